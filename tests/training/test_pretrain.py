"""`levljepa pretrain` by its real functions: recipes, datasets, resuming, two processes, and what it refuses."""

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from transformers import AutoModel, AutoProcessor

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, cli
from levljepa_hf.recipes import RECIPES, RecipeLoader, read_recipe, run_script, save_recipe
from levljepa_hf.training import command as pretrain
from levljepa_hf.training.trainer import LeVLJEPATrainer
from test_data import NUM_TRAIN, captions, imagefolder, webdataset  # noqa: F401  (fixtures)

SCRIPT = Path(__file__).parents[2] / "training" / "pretrain.py"

RECIPE = """
preset: debug
config: {projection_dim: 8, vision_config: {num_hidden_layers: 1}}
per_device_train_batch_size: 4
max_steps: 3
learning_rate: 1e-3
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr: 1e-4}
logging_steps: 1
save_strategy: "no"
use_cpu: true
disable_tqdm: true
"""


@pytest.fixture
def run(tmp_path: Path):
    """Calls main with a small recipe, and gives the metrics and the logs."""

    def run(*argv: str, folder: str = "run", recipe: str = RECIPE) -> tuple[dict[str, float], list[dict[str, Any]]]:
        (tmp_path / "recipe.yaml").write_text(recipe)
        common = ["--recipe", str(tmp_path / "recipe.yaml"), "--cache_dir", str(tmp_path / "cache")]
        argv = (*common, "--output_dir", str(tmp_path / folder), *argv)
        metrics = pretrain.pretrain(*pretrain.parse_args(argv))
        return metrics, json.loads((tmp_path / folder / "trainer_state.json").read_text())["log_history"]

    return run


def test_a_run_on_a_folder_of_photos(run, imagefolder: Path, tmp_path: Path, capsys) -> None:  # noqa: F811
    metrics, logs = run("--dataset", str(imagefolder), "--eval_split", "validation", "--learning_rate", "2e-3")
    assert [entry["step"] for entry in logs if "loss" in entry] == [1, 2, 3]
    assert max(entry.get("learning_rate", 0) for entry in logs) == pytest.approx(2e-3), "the command line wins"
    assert metrics["eval_text_to_image_R@10"] == 1.0, "there are 4 candidates"
    for name in ("train_results.json", "eval_results.json", "model.safetensors", "tokenizer.json", "losses.png"):
        assert (tmp_path / "run" / name).exists(), name
    assert f'from_pretrained("{tmp_path / "run"}")' in capsys.readouterr().out

    model, processor = AutoModel.from_pretrained(tmp_path / "run"), AutoProcessor.from_pretrained(tmp_path / "run")
    assert (model.config.projection_dim, model.config.vision_config.num_hidden_layers) == (8, 1)
    assert processor.image_processor.crop_size["height"] == 32

    again, _ = run(
        "--dataset", str(imagefolder), "--eval_split", "validation", "--model_name_or_path", str(tmp_path / "run"),
        "--learning_rate", "0", "--lr_scheduler_type", "constant", "--lr_scheduler_kwargs", "{}", folder="again",
    )  # fmt: skip
    assert again["eval_effective_rank_text"] == pytest.approx(metrics["eval_effective_rank_text"], rel=0.2)


def test_a_run_on_streamed_shards_evaluated_on_photos(run, imagefolder: Path, webdataset: Path) -> None:  # noqa: F811
    metrics, logs = run(
        "--dataset", f"{webdataset}/train-*.tar", "--streaming", "--caption_column", "json.captions",
        "--eval_dataset", str(imagefolder), "--eval_split", "validation", "--max_steps", "7",
        "--max_eval_samples", "3", "--dataloader_num_workers", "1", "--eval_strategy", "steps", "--eval_steps", "4",
    )  # fmt: skip
    assert [entry["step"] for entry in logs if "loss" in entry] == list(range(1, 8)), "more than two passes"
    assert len([entry for entry in logs if "eval_loss" in entry]) == 2
    assert metrics["eval_text_to_image_R@5"] == 1.0


def test_resuming_gives_the_uninterrupted_run(run, imagefolder: Path, tmp_path: Path) -> None:  # noqa: F811
    common = ["--dataset", str(imagefolder), "--save_strategy", "steps", "--save_steps", "2", "--max_steps", "4"]
    _, whole = run(*common)
    for checkpoint in (str(tmp_path / "run" / "checkpoint-2"), "true"):
        if checkpoint == "true":  # the last one
            os.rename(tmp_path / "run" / "checkpoint-4", tmp_path / "run" / "put-away")
        _, resumed = run(*common, "--resume_from_checkpoint", checkpoint)
        assert [entry["loss"] for entry in resumed if "loss" in entry] == [e["loss"] for e in whole if "loss" in e]


@pytest.mark.parametrize("objective", ["levljepa_plus", "infonce", "siglip"])
def test_every_objective_is_one_argument(run, imagefolder: Path, tmp_path: Path, objective: str) -> None:  # noqa: F811
    """It trains, evaluates, saves and, taken up again, ends as the uninterrupted run."""
    argv = ["--dataset", str(imagefolder), "--save_strategy", "steps", "--save_steps", "2", "--max_steps", "4"]
    argv += ["--eval_split", "validation", "--health_steps", "2", "--config", f"objective={objective}"]
    metrics, whole = run(*argv)
    losses = [entry for entry in whole if "loss" in entry]
    terms = {
        "levljepa_plus": {"prediction_loss", "sigreg_vision", "sigreg_text", "multi_view_loss", "sigreg_floor"},
        "infonce": {"contrastive_loss", "contrastive_scale"},
        "siglip": {"contrastive_loss", "contrastive_scale", "contrastive_bias"},
    }
    every_term = set.union(*terms.values())
    assert every_term & losses[1].keys() == terms[objective] and "effective_rank_vision" in losses[1]
    assert {"eval_loss", "eval_text_to_image_R@1", "eval_cosine_matched"} <= metrics.keys()
    assert "eval_multi_view_loss" not in metrics, "evaluation sees whole images"
    weights = LeVLJEPAModel.from_pretrained(tmp_path / "run").state_dict()
    assert ("contrastive.logit_scale" in weights) == (objective != "levljepa_plus")
    _, resumed = run(*argv, "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-2"))
    assert [e["loss"] for e in resumed if "loss" in e] == [entry["loss"] for entry in losses]
    again = LeVLJEPAModel.from_pretrained(tmp_path / "run").state_dict()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_one_command_starts_goes_on_and_ends(run, imagefolder: Path, tmp_path: Path, capsys) -> None:  # noqa: F811
    command = ["--dataset", str(imagefolder), "--save_strategy", "steps", "--save_steps", "2", "--max_steps", "4"]
    command += ["--resume_from_checkpoint", "auto"]
    metrics, whole = run(*command)
    assert "train_loss" in metrics

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    again, _ = run(*command)
    assert "checkpoint-4 is the end of this run" in capsys.readouterr().out and again == pytest.approx(metrics)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == written

    (tmp_path / "run" / "checkpoint-4" / "optimizer.pt").unlink()  # killed while saving, by an earlier version
    (tmp_path / "run" / "all_results.json").unlink()
    _, resumed = run(*command)
    assert [entry["loss"] for entry in resumed if "loss" in entry] == [e["loss"] for e in whole if "loss" in e]

    recipe = (tmp_path / "run" / "recipe.yaml").read_bytes()
    with pytest.raises(ValueError, match="holds checkpoint-4 of another run"):
        run("--dataset", "nowhere", "--max_steps", "2")  # seen before the data are
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == recipe


@pytest.mark.parametrize("where", ["recipe", "command line"])
@pytest.mark.parametrize(
    "override, message",
    [
        ("projecton_dim=12", "projecton_dim is no field of LeVLJEPAConfig. Did you mean 'projection_dim'?"),
        (
            "vision_config.num_layers=1",
            "vision_config.num_layers is no .*LeVLJEPAVision.* 'vision_config.num_hidden_layers'",
        ),
        (
            "text_config.n_layers=1",
            "text_config.n_layers is no field of GPT2Config. Did you mean 'text_config.n_layer'",
        ),
        ("a.b.c=1", "a.b is no field of LeVLJEPAConfig"),
        (
            "projection_dim=abc",
            "projection_dim=.*abc.*wrong type.*'projection_dim' expected int, got str .value: 'abc'",
        ),
        ("vision_config.image_size=big", "vision_config.image_size=.*wrong type.*'image_size' with value 'big'"),
        ("text_config.n_layer=few", "text_config.n_layer=.*wrong type.*'n_layer' expected int, got str"),
    ],
)
def test_wrong_overrides_are_named_before_anything_is_loaded(run, override: str, message: str, where: str) -> None:
    """The dataset does not exist, and nobody notices."""
    argv, recipe = ["--dataset", "nowhere"], RECIPE
    if where == "recipe":
        name, _, value = override.partition("=")
        for part in reversed(name.split(".")):
            value = f"{{{part}: {value}}}"
        recipe = RECIPE.replace(
            "config: {projection_dim: 8, vision_config: {num_hidden_layers: 1}}", f"config: {value}"
        )
        assert recipe != RECIPE
    else:
        argv += ["--config", override]
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        run(*argv, recipe=recipe)


def test_a_checkpoint_keeps_its_configuration(run, caplog, capsys) -> None:
    checkpoint = ["--dataset", "x", "--model_name_or_path", "owner/one", "--use_cpu"]
    with pytest.raises(SystemExit):
        pretrain.parse_args([*checkpoint, "--config", "projection_dim=12"])
    message = " ".join(capsys.readouterr().err.split())
    assert "--config projection_dim=12 has no effect on --model_name_or_path owner/one" in message
    assert "leave one of them out" in message
    with pytest.raises(SystemExit):
        pretrain.parse_args([*checkpoint, "--preset=tiny"])
    assert "--preset tiny has no effect on --model_name_or_path owner/one" in " ".join(capsys.readouterr().err.split())
    with caplog.at_level(logging.WARNING):
        pretrain.parse_args(checkpoint)
        assert not caplog.records
        model_args = pretrain.parse_args([*checkpoint, "--recipe", "flickr8k"])[0]
    assert model_args.config == []
    assert "The recipe's `config` (projection_dim=64, " in caplog.text
    assert "the configuration of the checkpoint owner/one holds" in caplog.text


def test_the_config_of_a_recipe_holds_fields(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("config: projection_dim=8")
    with pytest.raises(ValueError, match="config='projection_dim=8' must hold fields, such as {projection_dim: 128}"):
        pretrain.parse_args(["--recipe", str(path), "--dataset", "x"])
    path.write_text("preset: debug\nconfig:\n")
    assert pretrain.parse_args(["--recipe", str(path), "--dataset", "x", "--use_cpu"])[0].config == []


def test_the_text_readout_reaches_model_and_processor() -> None:
    model_args = pretrain.ModelArguments(preset="debug", config=["text_readout=pad77"])
    model, processor = pretrain.build_model(model_args)
    assert model.config.text_readout == processor.text_readout == "pad77"
    assert processor(text=["a"], return_tensors="pt")["input_ids"].shape == (1, 77)


def test_options_of_the_data_reach_it(imagefolder: Path, tmp_path: Path) -> None:  # noqa: F811
    data_args = pretrain.DataArguments(
        dataset=str(imagefolder),
        train_split="validation",
        max_train_samples=3,
        eval_split="train",
        max_eval_samples=5,
        cache_dir=str(tmp_path / "cache"),
    )
    train_dataset, columns = pretrain.load_train_data(data_args)
    eval_dataset, _ = pretrain.load_eval_data(data_args)
    assert columns == {"image_column": "image", "caption_column": "captions"}
    assert [sample["captions"] for sample in train_dataset] == [captions(seed) for seed in (100, 101, 102)]
    assert len(eval_dataset) == 5 and captions(100) not in eval_dataset["captions"]


def test_the_seed_decides_the_run(run, imagefolder: Path) -> None:  # noqa: F811
    losses = []
    for folder, seed in (("one", "3"), ("two", "3"), ("other", "4")):
        torch.rand(1)  # the state outside must not matter
        _, logs = run("--dataset", str(imagefolder), "--max_steps", "1", "--seed", seed, folder=folder)
        losses.append(logs[0]["loss"])
    assert losses[0] == losses[1] != losses[2]


def test_overrides_of_the_config_add_to_the_recipes(run, imagefolder: Path, tmp_path: Path) -> None:  # noqa: F811
    run("--dataset", str(imagefolder), "--config", "projection_dim=12", "text_config.n_layer=1", "--max_steps", "1")
    config = LeVLJEPAModel.from_pretrained(tmp_path / "run").config
    assert (config.projection_dim, config.text_config.n_layer, config.vision_config.num_hidden_layers) == (12, 1, 1)
    with pytest.raises(ValueError, match="--config takes name=value.*not 'projection_dim'"):
        run("--dataset", str(imagefolder), "--config", "projection_dim")


def test_two_processes_give_the_run_of_one(run, imagefolder: Path, tmp_path: Path) -> None:  # noqa: F811
    """torchrun with 2 processes of 3 samples: the losses, the evaluation and the weights of one process of 6."""
    argv = ["--dataset", str(imagefolder), "--max_steps", "2", "--eval_split", "validation", "--health_steps", "2"]
    argv += ["--optim", "sgd", "--learning_rate", "0.1"]  # Adam would turn rounding errors into whole steps
    one, logs = run(*argv, "--per_device_train_batch_size", "6")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += ["-m", "levljepa_hf.cli", "pretrain"]
    command += ["--recipe", str(tmp_path / "recipe.yaml"), "--cache_dir", str(tmp_path / "cache"), *argv]
    command += ["--output_dir", str(tmp_path / "two"), "--per_device_train_batch_size", "3", "--ddp_backend", "gloo"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]

    two = json.loads((tmp_path / "two" / "all_results.json").read_text())
    for name in ("train_loss", "eval_loss", "eval_prediction_loss", "eval_text_to_image_R@1", "eval_cosine_matched"):
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name
    logs_of_two = json.loads((tmp_path / "two" / "trainer_state.json").read_text())["log_history"]
    for entry, other in zip(logs, logs_of_two, strict=True):
        for name in {"loss", "prediction_loss", "sigreg_vision", "grad_norm", "effective_rank_vision"} & set(entry):
            assert other[name] == pytest.approx(entry[name], rel=1e-3), name
    a, b = (LeVLJEPAModel.from_pretrained(tmp_path / folder).state_dict() for folder in ("run", "two"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4, msg=name)


# Recipes


@pytest.mark.parametrize("name", pretrain.RECIPES)
def test_every_recipe_parses_and_its_model_config_is_valid(name: str, tmp_path: Path) -> None:
    argv = ["--recipe", name, "--dataset", "some/dataset", "--use_cpu", "--bf16", "False"]
    model_args, _, args = pretrain.parse_args([*argv, "--output_dir", str(tmp_path)])
    config = pretrain.build_config(model_args)
    assert config.vision_config.image_size % config.vision_config.patch_size == 0
    assert args.output_dir == str(tmp_path) and not args.bf16


@pytest.mark.parametrize("name", ["datacomp-vit-base", "cc12m-vit-base"])
def test_the_released_recipe(name: str) -> None:
    recipe = read_recipe(name, _options())
    wanted = {
        "preset": "released" if name == "datacomp-vit-base" else "base",
        "learning_rate": 2e-4,
        "weight_decay": 0.01,
        "weight_decay_parameters": "all",
        "warmup_steps": 1000,
        "warmup_start_factor": 0.01,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 2e-5},
        "max_grad_norm": 1.0,
        "bf16": True,
        "config": {"sigreg_distributed": False},
    }
    assert {key: recipe[key] for key in wanted} == wanted
    assert recipe["max_steps"] == (200_000 if name == "datacomp-vit-base" else 50_000)
    model_args = pretrain.parse_args(["--recipe", name, "--dataset", "x", "--use_cpu", "--bf16", "False"])[0]
    config = pretrain.build_config(model_args)
    assert config.projection_dim == (256 if name == "datacomp-vit-base" else 768)
    assert config.sigreg_sample_size_scale is None and not config.sigreg_distributed


def test_the_recipes_comment_gives_the_other_schedule(tmp_path: Path) -> None:
    comment = (RECIPES / "datacomp-vit-base.yaml").read_text()
    line = next(line for line in comment.splitlines() if "warmup_stable_decay" in line)
    argv = ["--recipe", "datacomp-vit-base", "--dataset", "x", "--use_cpu", "--bf16", "False"]
    argv += ["--output_dir", str(tmp_path)]
    args = pretrain.parse_args([*argv, *shlex.split(line.removeprefix("#"))])[2]
    run = LeVLJEPATrainer(LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug")), args)
    run.create_optimizer()
    factor = run.create_scheduler(args.max_steps).lr_lambdas[0]
    shares = [factor(step) for step in (0, 500, 1000, 170_000, 185_000, 200_000)]
    assert shares == pytest.approx([0.01, 0.505, 1, 1, 0.55, 0.1])


@pytest.mark.parametrize(
    "option", ["crop_scale", "flip_probability", "color_jitter_probability", "grayscale_probability"]
)
def test_options_of_the_augmentation_reach_it(processor, option: str) -> None:
    value = {"crop_scale": [0.3, 0.4]}.get(option, 0.77)
    data_args = pretrain.DataArguments(**{option: value, "pad_to_multiple_of": 5})
    collator = pretrain.build_collator(data_args, LeVLJEPAConfig.from_preset("debug"), processor, seed=9)
    transform = collator.transform
    found = {
        "crop_scale": list(transform.crop_scale),
        "flip_probability": transform.flip_probability,
        "color_jitter_probability": transform.color_jitter_probability,
        "grayscale_probability": transform.grayscale_probability,
    }
    recipe = {"crop_scale": [0.8, 1.0], "flip_probability": 0.5}
    recipe |= {"color_jitter_probability": 0.3, "grayscale_probability": 0.05}
    assert found == {**recipe, option: value}
    assert (transform.image_size, collator.seed, collator.pad_to_multiple_of) == ((32, 32), 9, 5)


def test_the_views_of_the_objective_and_their_options(processor) -> None:
    fields = {"objective": "levljepa_plus", "views": {"global": 3, "local": 2}}
    config = LeVLJEPAConfig.from_preset("debug", **fields)
    given = pretrain.DataArguments(crop_scale=[0.5, 0.6], local_crop_scale=[0.1, 0.2], flip_probability=0.0)
    plain, transform = (
        pretrain.build_collator(data_args, config, processor, seed=0).transform
        for data_args in (pretrain.DataArguments(), given)
    )
    assert [view.image_size for view in transform.views] == [(32, 32)] * 3 + [(16, 16)] * 2
    assert [list(view.crop_scale) for view in transform.views] == [[0.5, 0.6]] * 3 + [[0.1, 0.2]] * 2
    assert {view.flip_probability for view in transform.views} == {0.0}
    assert [view.crop_scale for view in plain.views] == [(0.4, 1.0)] * 3 + [(0.05, 0.4)] * 2
    assert {view.color_jitter_probability for view in transform.views} == {0.8}
    with pytest.raises(ValueError, match=r"local_crop_scale=\[0.1, 0.2\] has no effect with objective='levljepa'"):
        pretrain.build_collator(given, LeVLJEPAConfig.from_preset("debug"), processor, seed=0)


def _options() -> list[str]:
    return [name for group in pretrain.OPTIONS for name in group.__dataclass_fields__]


def test_unknown_options_of_a_recipe_are_named(run, imagefolder: Path) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="unknown options: learning_rte, zzz. Did you mean 'learning_rate'"):
        run("--dataset", str(imagefolder), recipe=RECIPE + "learning_rte: 1\nzzz: 2\n")


def test_unknown_recipe_and_options_and_what_is_missing(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        pretrain.parse_args(["--recipe", "flickr", "--dataset", "x"])
    message = capsys.readouterr().err
    assert "No recipe 'flickr'. Did you mean 'flickr8k'?" in message and "cc12m-vit-base" in message
    with pytest.raises(SystemExit, match="2"):
        pretrain.parse_args(["--recipe", "nowhere.yaml", "--dataset", "x"])
    assert "No recipe 'nowhere.yaml'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pretrain.parse_args(["--dataset", "x", "--lerning_rate", "1"])
    assert "no option --lerning_rate. Did you mean --learning_rate?" in capsys.readouterr().err
    for argv, message in (
        ([], "--dataset is missing"),
        (["--dataset", "x", "--streaming"], "length of the run with --max_steps"),
        (["--dataset", "x", "--eval_dataset", "y"], "--eval_dataset needs --eval_split"),
    ):
        with pytest.raises(SystemExit):
            pretrain.parse_args(argv)
        assert message in capsys.readouterr().err


def test_there_is_no_evaluation_without_a_split() -> None:
    argv = ["--dataset", "x", "--eval_strategy", "steps", "--eval_steps", "5", "--use_cpu"]
    assert pretrain.parse_args(argv)[2].eval_strategy == "no"
    assert pretrain.parse_args([*argv, "--eval_split", "test"])[2].eval_strategy == "steps"


def test_exponents_without_a_point_are_numbers() -> None:
    parsed = yaml.load("{a: 2e-4, b: 1E5, c: 1.5e3, d: e5, e: 12}", RecipeLoader)
    assert parsed == {"a": 2e-4, "b": 1e5, "c": 1500.0, "d": "e5", "e": 12}


def test_help_shows_the_example_first(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "--help"])
    text = capsys.readouterr().out
    assert text.index("levljepa pretrain --recipe flickr8k") < text.index("--learning_rate")
    assert "--resume_from_checkpoint" in text and "--report_to" in text and "--push_to_hub" in text


# Bad input


def test_a_dataset_without_the_named_column(run, imagefolder: Path) -> None:  # noqa: F811
    with pytest.raises(ValueError, match=r"no column 'caption' of captions. Did you mean.*'image' \(Image\)"):
        run("--dataset", str(imagefolder), "--caption_column", "caption")


def test_images_that_do_not_decode_stop_a_run(run, imagefolder: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(imagefolder, tmp_path / "photos")
    (tmp_path / "photos" / "train" / "3.jpg").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match=f"Of {NUM_TRAIN} samples, 1 were skipped because their image"):
        run("--dataset", str(tmp_path / "photos"), "--num_train_epochs", "2", "--max_steps", "-1")


def test_a_batch_of_one(run, imagefolder: Path) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="is a batch of one"):
        run("--dataset", str(imagefolder), "--per_device_train_batch_size", "1")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("crop_scale: 3", "crop_scale=3 must be a list"),
        ("crop_scale: [a, b]", "crop_scale=..a., .b.. is of the wrong type"),
        ("max_steps: many", "max_steps='many' is of the wrong type"),
        ("bf16: 3", "bf16=3 is of the wrong type"),
        ("crop_scale: [1.0, 0.4]", "crop_scale=.1.0, 0.4. must be two shares"),
        ("flip_probability: 3", "flip_probability=3.0 must be between 0 and 1"),
        ("config: {dtype: float17}", "float17"),
    ],
)
def test_wrong_types_in_a_recipe_stop_before_the_data(option: str, message: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"preset: debug\n{option}\n")
    with pytest.raises(ValueError, match=message):
        argv = ["--recipe", str(recipe), "--dataset", "nowhere", "--output_dir", str(tmp_path / "run")]
        pretrain.pretrain(*pretrain.parse_args(argv))


def test_a_recipes_values_are_read_as_the_command_lines(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("image_column: 3\nmax_steps: 7\nlearning_rate: 1\nbf16: false\ncrop_scale: [1, 1]\n")
    argv = ["--recipe", str(recipe), "--dataset", "x", "--output_dir", str(tmp_path)]
    _, data_args, args = pretrain.parse_args(argv)
    assert (data_args.image_column, data_args.crop_scale) == ("3", [1.0, 1.0])
    assert (args.max_steps, args.learning_rate, args.bf16) == (7, 1.0, False)


def test_a_choice_that_a_recipe_does_not_have(tmp_path: Path) -> None:
    """YAML reads a bare `no` as false, and argparse checks no defaults."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("save_strategy: no\n")
    with pytest.raises(ValueError, match="save_strategy=False is none of no, steps, epoch"):
        pretrain.parse_args(["--recipe", str(recipe), "--dataset", "x"])
    for text, message in (("- a\n", "must hold options"), ("a: [", "is no YAML")):
        recipe.write_text(text)
        with pytest.raises(ValueError, match=message):
            pretrain.parse_args(["--recipe", str(recipe), "--dataset", "x"])


# The recipe of a run


def fields_of(*groups: Any) -> list[dict[str, Any]]:
    return [{name: getattr(group, name) for name in group.__dataclass_fields__} for group in groups]


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--recipe", "flickr8k", "--config", "projection_dim=12", "vision_config.image_size=112"],
        ["--recipe", "datacomp-vit-base", "--bf16", "False", "--lr_scheduler_kwargs", '{"min_lr": 1e-6}'],
        ["--recipe", "demo", "--lr_scheduler_type", "warmup_stable_decay", "--report_to", "tensorboard"],
        ["--model_name_or_path", "runs/a", "--crop_scale", "0.3", "1", "--eval_split", "train[:5%]", "--streaming"],
        [
            "--run_name",
            "1e5",
            "--image_column",
            "3",
            "--save_strategy",
            "no",
            "--optim",
            "sgd",
            "--debug",
            "underflow_overflow",
        ],
        ["--eval_split", "x", "--eval_strategy", "steps", "--load_best_model_at_end", "--save_steps", "500"],
        ["--accelerator_config", '{"split_batches": true}', "--dataloader_drop_last", "False", "--max_grad_norm", "0"],
        ["--num_train_epochs", "2.5", "--warmup_steps", "0.1", "--logging_steps", "0.25", "--gradient_checkpointing"],
    ],
)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_a_saved_recipe_gives_the_same_arguments(argv: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # `runs/a` is an id of the Hub where there is no folder `runs`
    argv = ["--dataset", "photos", "--output_dir", str(tmp_path), "--use_cpu", "--max_steps", "7", *argv]
    groups = pretrain.parse_args(argv)
    path = save_recipe(tmp_path, groups)
    assert path == tmp_path / "recipe.yaml"
    again = pretrain.parse_args(["--recipe", str(path)])
    for one, other in zip(fields_of(*groups), fields_of(*again), strict=True):
        assert one == other
    saved = yaml.load(path.read_text(), RecipeLoader)
    assert saved["dataset"] == "photos" and saved["max_steps"] == 7
    assert "adam_beta1" not in saved and "train_split" not in saved, "only what differs from its default"


def test_a_saved_recipe_holds_no_secret_and_no_resuming(tmp_path: Path) -> None:
    argv = ["--dataset", "photos", "--output_dir", str(tmp_path), "--use_cpu", "--hub_token", "secret"]
    groups = pretrain.parse_args([*argv, "--resume_from_checkpoint", "true", "--config", "projection_dim=8"])
    text = save_recipe(tmp_path, groups).read_text()
    assert yaml.safe_load(text) == {
        "config": {"projection_dim": 8},
        "dataset": "photos",
        "output_dir": str(tmp_path),
        "use_cpu": True,
    }


def test_saving_a_recipe_leaves_the_device_as_it_is(tmp_path: Path) -> None:
    """Training arguments reset accelerate's state when they are made, also those of the defaults."""
    groups = pretrain.parse_args(["--dataset", "photos", "--output_dir", str(tmp_path), "--use_cpu"])
    accelerator = Accelerator(cpu=True)
    save_recipe(tmp_path, groups)
    assert accelerator.state.mixed_precision == "no" and accelerator.device.type == "cpu"


def test_a_run_writes_its_recipe(run, imagefolder: Path, tmp_path: Path) -> None:  # noqa: F811
    run("--dataset", str(imagefolder), "--max_steps", "1")
    recipe = tmp_path / "run" / "recipe.yaml"
    groups = pretrain.parse_args(["--recipe", str(recipe)])
    assert (groups[0].preset, groups[2].max_steps, groups[1].dataset) == ("debug", 1, str(imagefolder))
    assert groups[0].config == ["projection_dim=8", "vision_config.num_hidden_layers=1"]


def test_the_command_prints_what_its_user_can_mend_in_one_line(monkeypatch, capsys) -> None:
    for error in (ValueError("first\n  second"), OSError("first second"), ImportError("first second")):

        def main(error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(sys, "argv", ["training/pretrain.py"])
        with pytest.raises(SystemExit) as stop:
            run_script(main)
        assert stop.value.code == 2
        assert capsys.readouterr().err == "pretrain.py: first second\n"

    def bug() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run_script(bug)


def test_a_user_error_is_one_line_of_the_script() -> None:
    command = [sys.executable, str(SCRIPT), "--recipe", "flickr8k", "--dataset", "nowhere", "--config", "a=1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("levljepa pretrain: a is no field of LeVLJEPAConfig")
    assert "Traceback" not in done.stderr
