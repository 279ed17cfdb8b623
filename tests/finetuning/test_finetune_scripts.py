"""`levljepa finetune` and training/finetune_*.py by their real functions: from data to a saved model."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    pipeline,
)

from levljepa_hf import LeVLJEPAForImageClassification, LeVLJEPAForSemanticSegmentation, cli
from levljepa_hf.finetuning.command import OPTIONS, parse_options
from levljepa_hf.recipes import RECIPES, run_script, save_recipe
from test_pretrain import fields_of
from test_transformers import run_without_package

TRAINING = Path(__file__).parents[2] / "training"
TASKS = ("classification", "segmentation")
COLORS = {"blue": (30, 30, 220), "green": (30, 220, 30), "red": (220, 30, 30)}
SAVED = {"model.safetensors", "config.json", "preprocessor_config.json", "modeling_levljepa.py", "recipe.yaml"}
SAVED |= {"all_results.json", "train_results.json", "eval_results.json", "trainer_state.json"}


def script(task: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"finetune_{task}", TRAINING / f"finetune_{task}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPTS = {task: script(task) for task in TASKS}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of plain images with a folder for each class: 12 to train on, 6 to validate."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 4), ("validation", 2)):
        for name, color in COLORS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(np.array(color) + rng.normal(0, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> Path:
    """A folder of two-coloured images with their masks, names of the classes in a file beside it."""
    root = tmp_path_factory.mktemp("maps")
    for split, count in (("train", 6), ("validation", 3)):
        (root / "data" / split / "masks").mkdir(parents=True)
        lines = []
        for i in range(count):
            mask = np.full((40, 48), i % 3, dtype=np.uint8)
            mask[:, 24:] = (i + 1) % 3
            Image.fromarray(np.array(list(COLORS.values()), dtype=np.uint8)[mask]).save(
                root / "data" / split / f"{i}.png"
            )
            mask[:4, :4] = 255
            Image.fromarray(mask).save(root / "data" / split / "masks" / f"{i}.png")
            lines.append(json.dumps({"file_name": f"{i}.png", "mask_file_name": f"masks/{i}.png"}))
        (root / "data" / split / "metadata.jsonl").write_text("\n".join(lines))
    (root / "classes.json").write_text(json.dumps({"names": list(COLORS)}))
    return root


@pytest.fixture
def checkpoint(model, processor, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "pretrained")
    processor.save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


@pytest.fixture
def run(checkpoint, photos, maps, tmp_path, monkeypatch):
    """Calls main with a few steps on the CPU, and gives the figures and the folder."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def run(task: str, *argv: str, folder: str = "run") -> tuple[dict[str, float], Path]:
        new = [] if "--resume_from_checkpoint" in argv else ["--overwrite_output_dir"]
        argv = common(task, checkpoint, photos, maps) + [*new, "--output_dir", str(tmp_path / folder), *argv]
        return SCRIPTS[task].main(argv), tmp_path / folder

    return run


def common(task: str, checkpoint: Path, photos: Path, maps: Path) -> list[str]:
    argv = ["--model_name_or_path", str(checkpoint), "--use_cpu", "--disable_tqdm", "True", "--report_to", "none"]
    argv += ["--per_device_train_batch_size", "4", "--logging_steps", "1", "--max_steps", "3", "--seed", "3"]
    if task == "classification":
        return [*argv, "--dataset", str(photos), "--augmentation", "none"]
    return [
        *argv,
        "--dataset",
        str(maps / "data"),
        "--mask_column",
        "mask",
        "--class_names",
        str(maps / "classes.json"),
    ]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("mode", ["full", "linear", "lora"])
def test_a_classifier_from_a_folder_of_images(run, photos, capsys, mode):
    argv = ["--mode", mode, "--max_steps", "12", "--learning_rate", "2e-2" if mode == "linear" else "5e-3"]
    metrics, folder = run("classification", *argv)
    assert metrics["eval_accuracy"] >= 0.8, "the colours are the classes"
    assert SAVED | {"confusion.png"} <= names_in(folder)
    assert ("adapter" in names_in(folder)) == (mode == "lora")
    printed = capsys.readouterr().out
    assert f"eval_accuracy {metrics['eval_accuracy']:30.4f}".split() == [
        word for line in printed.splitlines() if line.startswith("eval_accuracy") for word in line.split()
    ]
    assert f'AutoModelForImageClassification.from_pretrained("{folder}")' in printed
    assert json.loads((folder / "all_results.json").read_text())["eval_accuracy"] == metrics["eval_accuracy"]

    tuned = AutoModelForImageClassification.from_pretrained(folder)
    assert type(tuned) is LeVLJEPAForImageClassification and tuned.config.id2label[1] == "green"
    classify = pipeline("image-classification", model=str(folder))
    right = 0
    for name in COLORS:
        for path in sorted((photos / "validation" / name).iterdir()):
            right += classify(str(path))[0]["label"] == name
    assert right / 6 == pytest.approx(metrics["eval_accuracy"]), "what is saved is what was measured"


@pytest.mark.parametrize("mode", ["full", "linear", "lora"])
def test_a_segmenter_from_images_and_masks(run, maps, mode):
    argv = ["--mode", mode, "--max_steps", "10", "--learning_rate", "2e-2" if mode == "linear" else "5e-3"]
    argv += ["--scale_range", "1", "1", "--photometric_probability", "0"]
    metrics, folder = run("segmentation", *argv)
    assert metrics["eval_mean_iou"] > 0.4
    assert SAVED | {"segmentation.png"} <= names_in(folder)
    tuned = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert type(tuned) is LeVLJEPAForSemanticSegmentation and tuned.config.id2label == dict(enumerate(COLORS))
    processor = AutoImageProcessor.from_pretrained(folder)
    assert not processor.do_center_crop and dict(processor.size)["height"] == 32
    with Image.open(maps / "data" / "validation" / "0.png") as image:
        segments = pipeline("image-segmentation", model=str(folder))(image)
        assert {one["label"] for one in segments} <= set(COLORS) and segments[0]["mask"].size == image.size
        pixels = processor(image, return_tensors="pt")["pixel_values"]
    guess = processor.post_process_semantic_segmentation(tuned.eval()(pixels), target_sizes=[(40, 48)])[0]
    with Image.open(maps / "data" / "validation" / "masks" / "0.png") as mask:
        truth = torch.from_numpy(np.array(mask))
    assert (guess == truth)[truth != 255].float().mean() > 0.6


REMOTE = """
import sys
sys.modules["levljepa_hf"] = None
{prelude}
import PIL.Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSemanticSegmentation

classifier, segmenter, image, result = sys.argv[1:]
logits = dict()
tasks = ((AutoModelForImageClassification, classifier), (AutoModelForSemanticSegmentation, segmenter))
for auto_class, folder in tasks:
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.")
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(PIL.Image.open(image), return_tensors="pt")
    logits[auto_class.__name__] = model(**inputs).logits.contiguous()
save_file(logits, result)
"""


def test_what_is_saved_loads_without_the_package(run, photos, tmp_path):
    """After LoRA and after full training: the files hold a plain model, its code and its processor."""
    _, classifier = run("classification", "--mode", "lora", "--max_steps", "1", folder="classifier")
    _, segmenter = run("segmentation", "--max_steps", "1", folder="segmenter")
    image = photos / "validation" / "red" / "0.png"
    arguments = [classifier, segmenter, image, tmp_path / "logits.safetensors"]
    run_without_package(REMOTE, arguments, tmp_path / "modules")
    found = load_file(tmp_path / "logits.safetensors")
    for auto_class, folder in (
        (AutoModelForImageClassification, classifier),
        (AutoModelForSemanticSegmentation, segmenter),
    ):
        with Image.open(image) as opened:
            inputs = AutoImageProcessor.from_pretrained(folder)(opened, return_tensors="pt")
        torch.testing.assert_close(found[auto_class.__name__], auto_class.from_pretrained(folder)(**inputs).logits)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize(
    "options", [["--augmentation", "trivial"], ["--mode", "lora"], ["--class_balance", "sampler"]]
)
def test_resuming_gives_the_uninterrupted_run(run, options):
    """From the middle of the second epoch."""
    argv = ["--max_steps", "7", "--save_strategy", "steps", "--save_steps", "4", "--eval_strategy", "steps"]
    argv += ["--eval_steps", "4", "--load_best_model_at_end", "False", "--save_total_limit", "5", *options]
    _, whole = run("classification", *argv, folder="whole")
    argv += ["--resume_from_checkpoint", str(whole / "checkpoint-4")]
    _, resumed = run("classification", *argv, folder="resumed")
    assert losses(resumed)[-3:] == losses(whole)[-3:] and len(losses(whole)) == 7
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(resumed)[name], tensor), name


def test_a_saved_recipe_repeats_the_run(run, tmp_path):
    _, folder = run("classification", "--layer_decay", "0.5", "--class_balance", "weights")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["layer_decay"] == 0.5 and "weight_decay" not in recipe
    SCRIPTS["classification"].main(["--recipe", str(folder / "recipe.yaml"), "--output_dir", str(tmp_path / "again")])
    for name, tensor in weights(folder).items():
        assert torch.equal(weights(tmp_path / "again")[name], tensor), name


def test_the_best_checkpoint_is_kept_and_training_stops_early(run):
    """The first step, of rate 0, is evaluated as the model was; the second ruins it."""
    argv = ["--max_steps", "12", "--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps"]
    argv += ["--save_steps", "1", "--metric_for_best_model", "loss", "--early_stopping_patience", "2"]
    argv += ["--learning_rate", "1000", "--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", "12"]
    metrics, folder = run("classification", *argv)
    state = json.loads((folder / "trainer_state.json").read_text())
    evaluations = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    best = min(evaluations, key=evaluations.get)
    assert best == 1 and state["global_step"] == 3, "two evaluations that were no better"
    assert metrics["eval_loss"] == pytest.approx(evaluations[best])
    assert (folder / f"checkpoint-{best}").is_dir()
    for name, tensor in weights(folder / f"checkpoint-{best}").items():
        assert torch.equal(weights(folder)[name], tensor)


def test_another_split_chooses_the_checkpoint(run):
    """The last four training images are the red ones, which the first eight do not teach."""
    argv = ["--train_split", "train[:8]", "--validation_split", "train[8:]", "--test_split", "validation"]
    metrics, folder = run("classification", *argv, "--max_steps", "10", "--learning_rate", "5e-3")
    assert metrics["eval_accuracy"] == 0 and metrics["test_accuracy"] >= 0.5
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert {entry["eval_accuracy"] for entry in history[-3:] if "eval_accuracy" in entry} == {0}
    assert {"eval_results.json", "test_results.json"} <= names_in(folder)


@pytest.mark.parametrize("task", TASKS)
def test_from_scratch_beside_a_checkpoint(run, checkpoint, task):
    rate = ["--max_steps", "1", "--learning_rate", "0", "--weight_decay", "0"]
    key = "vision_model.timm_model.blocks.0.mlp.fc1.weight"
    pretrained = weights(checkpoint)[key]
    assert torch.equal(weights(run(task, *rate)[1])[key], pretrained)
    scratch = weights(run(task, *rate, "--from_scratch")[1])
    assert scratch[key].shape == pretrained.shape and not torch.allclose(scratch[key], pretrained, atol=1e-2)


def test_a_new_model_of_a_preset(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    argv = [
        "--preset",
        "debug",
        "--config",
        "vision_config.num_hidden_layers=1",
        "--dataset",
        str(photos),
        "--use_cpu",
    ]
    argv += ["--max_steps", "1", "--disable_tqdm", "True", "--output_dir", str(tmp_path / "run"), "--image_size", "48"]
    SCRIPTS["classification"].main(argv)
    tuned = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert tuned.config.vision_config.num_hidden_layers == 1
    assert AutoImageProcessor.from_pretrained(tmp_path / "run").crop_size["height"] == 48


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(run, checkpoint, photos, maps, tmp_path):
    """torchrun with 2 processes of 2 samples, with class weights: the loss and the weights of one process of 4."""
    argv = ["--optim", "sgd", "--learning_rate", "0.1", "--class_balance", "weights"]
    metrics, one = run("classification", *argv)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += [
        str(TRAINING / "finetune_classification.py"),
        *common("classification", checkpoint, photos, maps),
        *argv,
    ]
    command += ["--output_dir", str(tmp_path / "two"), "--per_device_train_batch_size", "2", "--ddp_backend", "gloo"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(one), rel=1e-3)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    two = json.loads((tmp_path / "two" / "all_results.json").read_text())
    assert two["eval_accuracy"] == metrics["eval_accuracy"]


# Real photos


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not (SHARED / "imagenette-500").is_dir(), reason="needs the photos of shared/data")
def test_real_photos(run):
    argv = ["--dataset", str(SHARED / "imagenette-500"), "--max_train_samples", "40", "--max_samples", "20"]
    metrics, _ = run("classification", *argv, "--augmentation", "trivial", "--per_device_train_batch_size", "20")
    assert 0 <= metrics["eval_top5_accuracy"] <= 1
    argv = ["--dataset", str(SHARED / "coco-stuff-100"), "--class_names", str(SHARED / "coco-stuff-100/classes.json")]
    metrics, _ = run("segmentation", *argv, "--max_train_samples", "8", "--max_samples", "8")
    assert 0 <= metrics["eval_mean_iou"] <= 1


# Recipes and options


def task_of(recipe: str) -> str:
    return "segmentation" if "segmentation" in recipe else "classification"


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("finetune-*.yaml")))
def test_every_recipe_is_read_by_its_script(name, tmp_path):
    argv = ["--recipe", name, "--dataset", "x", "--use_cpu", "--bf16", "False", "--output_dir", str(tmp_path)]
    if name.startswith("finetune-scenes"):
        argv += ["--model_name_or_path", "owner/demo"]
    groups = parse_options(task_of(name), argv)
    text = (RECIPES / f"{name}.yaml").read_text()
    assert f"finetune {task_of(name)} --recipe {name}" in text.partition("\n\n")[0]
    for mode in ("linear", "lora"):  # as the comments of the recipes say
        parse_options(task_of(name), [*argv, "--mode", mode, "--layer_decay", "1"])
    again = parse_options(task_of(name), ["--recipe", str(save_recipe(tmp_path, groups))])
    for one, other in zip(fields_of(*groups), fields_of(*again), strict=True):
        assert one == other
    options = [field for group in OPTIONS[task_of(name)] for field in group.__dataclass_fields__]
    assert set(yaml.safe_load(text)) <= set(options)


@pytest.mark.parametrize("task", TASKS)
def test_help_shows_the_example_first(task, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["finetune", task, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert text.index(f"levljepa finetune {task} --recipe finetune-scenes-{task}") < text.index("--mode {")
    assert "finetune-scenes" in text and "flickr8k" not in text and "train[:80%]" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model_name_or_path", "owner/x"], "--dataset is missing"),
        (["--dataset", "scenes"], "--model_name_or_path is missing: a checkpoint, or --preset for a new model"),
        (
            ["--dataset", "scenes", "--model_name_or_path", "owner/x", "--preset", "tiny"],
            "--preset and --config are for a new",
        ),
        (["--dataset", "scenes", "--preset", "tiny", "--from_scratch"], "--from_scratch takes the configuration of"),
        (
            ["--dataset", "scenes", "--preset", "tiny", "--mode", "adapter"],
            "--mode: 'adapter' is none of full, linear, lora",
        ),
    ],
)
def test_options_that_contradict_each_other(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        SCRIPTS["classification"].main(argv)
    assert stop.value.code == 2 and message in " ".join(capsys.readouterr().err.split())


# Bad input


def spoil(maps: Path, tmp_path: Path, mask: np.ndarray) -> Path:
    """A copy of the masks' folder, one of them another."""
    shutil.copytree(maps / "data", tmp_path / "spoiled")
    Image.fromarray(mask).save(tmp_path / "spoiled" / "train" / "masks" / "2.png")
    return tmp_path / "spoiled"


@pytest.mark.parametrize(
    ("task", "argv", "message"),
    [
        (
            "classification",
            ["--label_column", "species"],
            "has no column 'species' of labels.*--label_column.*'label'",
        ),
        (
            "segmentation",
            ["--mask_column", "maks"],
            "has no column 'maks' of masks. Did you mean 'mask'?.*--mask_column",
        ),
        ("classification", ["--test_split", "exam"], "has no split 'exam': it has train, validation.*--test_split"),
        ("classification", ["--train_split", "validation"], "photos.*/validation would serve twice"),
        ("classification", ["--dataset", "/nowhere/at/all"], "--dataset /nowhere/at/all is no folder or file here"),
        ("classification", ["--dataset", "ade20k"], "ade20k is no data for linear-probe"),
        ("classification", ["--model_name_or_path", "/nowhere/at/all"], "/nowhere/at/all"),
        ("classification", ["--image_size", "50"], "image_size=50 is not divisible by the patch size 8"),
        ("classification", ["--crop_scale", "0", "2"], "crop_scale=.0.0, 2.0. must be two shares"),
        (
            "classification",
            ["--mode", "lora", "--layer_decay", "0.5"],
            "layer_decay=0.5 has no effect with mode='lora'",
        ),
        ("classification", ["--lerning_rate", "1"], "no option --lerning_rate. Did you mean --learning_rate"),
        ("classification", ["--recipe", "finetune-nothing"], "No recipe 'finetune-nothing'.*finetune-classification"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, tmp_path, capsys, task, argv, message):
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: run(task, *argv))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert stop.value.code == 2
    assert re.search(message, lines[-1]), lines
    assert not (tmp_path / "run").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.zeros((20, 48), dtype=np.uint8),
            "Mask 2 of spoiled/train is 20 x 48 .height x width., and its image 40 x 48",
        ),
        (
            np.full((40, 48), 7, dtype=np.uint8),
            "Mask 2 of spoiled/train has the value 7: they go from 0 to 2.*--class_names",
        ),
        (np.zeros((40, 48, 3), dtype=np.uint8) + [1, 2, 3], "is to have one class number a pixel"),
    ],
)
def test_a_mask_that_does_not_fit(run, maps, tmp_path, mask, message):
    with pytest.raises(ValueError, match=message):
        run("segmentation", "--dataset", str(spoil(maps, tmp_path, mask.astype(np.uint8))))
    assert not (tmp_path / "run").exists(), "before any training"


def test_masks_without_names_of_classes(maps, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    argv = ["--preset", "debug", "--dataset", str(maps / "data"), "--use_cpu", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(ValueError, match="has no class names: name where they are with --class_names"):
        SCRIPTS["segmentation"].main(argv)


def labelled_rows(tmp_path: Path, labels: list[Any], test_labels: list[Any] | None = None) -> list[str]:
    """Options for a parquet data set of these labels."""
    from datasets import Dataset, DatasetDict

    rng = np.random.default_rng(0)
    splits = {}
    for split, values in (("train", labels), ("validation", labels if test_labels is None else test_labels)):
        images = [Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in values]
        splits[split] = Dataset.from_dict({"image": images, "label": values})
    DatasetDict(splits).save_to_disk(str(tmp_path / "rows"))
    return ["--dataset", str(tmp_path / "rows"), "--max_steps", "1"]


def test_labels_that_are_names_or_numbers_without_names(run, tmp_path):
    _, folder = run("classification", *labelled_rows(tmp_path / "a", ["wolf", "ant", "wolf", "bee"]))
    assert AutoModelForImageClassification.from_pretrained(folder).config.id2label == {0: "ant", 1: "bee", 2: "wolf"}
    argv = [
        *labelled_rows(tmp_path / "b", [2, 0, 1, 1]),
        "--train_split",
        "train[:3]",
        "--validation_split",
        "train[3:]",
    ]
    _, folder = run("classification", *argv, folder="numbers")
    assert AutoModelForImageClassification.from_pretrained(folder).config.id2label == {0: "0", 1: "1", 2: "2"}


@pytest.mark.parametrize(
    ("labels", "test_labels", "message"),
    [
        ([0, 3, 7], None, "have no names and are not 0 to 2: they go from 0 to 7.*--class_names"),
        ([0.5, 1.5], None, "are to be integers or names, and some are float.*--label_column"),
        (["cat", "cat"], None, "There is one class .'cat'., and nothing to tell apart|has 1 of 1 classes"),
        ([0, 0], None, "There is one class"),
        (["cat", "dog"], ["cat", "fox"], "class 1 is 'dog' and 'fox'.*--class_names"),
    ],
)
def test_labels_that_cannot_be_trained_on(run, tmp_path, labels, test_labels, message):
    with pytest.raises(ValueError, match=message):
        run("classification", *labelled_rows(tmp_path, labels, test_labels))
    assert not (tmp_path / "run").exists()
