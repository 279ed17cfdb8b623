"""Model cards made from a folder: every class, licences, names in place of paths, figures, and `levljepa card`."""

import json
import logging
import re
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from levljepa_hf import (
    LeVLJEPABackbone,
    LeVLJEPAConfig,
    LeVLJEPAForImageClassification,
    LeVLJEPAForSemanticSegmentation,
    LeVLJEPAModel,
    LeVLJEPATextConfig,
    LeVLJEPATextModel,
    LeVLJEPATrainer,
    LeVLJEPATrainingArguments,
)
from levljepa_hf.hub import cards as cards_module
from levljepa_hf.hub.cards import LICENSE, RELEASES, Run, add_figures, checkpoint_card, license_of, write_card
from levljepa_hf.hub.command import main
from levljepa_hf.hub.publishing import ModelCardMixin
from levljepa_hf.model.released import save_released
from levljepa_hf.recipes import save_recipe
from local_hub import metadata_errors
from test_package import BIBTEX, ROOT

EVALUATED = {"eval_loss": 0.5, "eval_runtime": 4.0, "eval_samples_per_second": 25.0}
RETRIEVED = {f"eval_{way}_R@{k}": k / 20 for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)}
LOG = [
    {"loss": 2.0, "prediction_loss": 0.9, "step": 10},
    {"loss": 1.5, "prediction_loss": 0.7, "sigreg_floor": 1.25, "effective_rank_vision": 3, "step": 20},
    {"eval_loss": 9.0, "eval_accuracy": 0.1, "step": 10},
    {**EVALUATED, **RETRIEVED, "eval_effective_rank_vision": 4.25, "eval_effective_rank_text": 5, "step": 20},
    {"train_runtime": 300.0, "step": 20},
]


def leave_run(folder: Path, recipe: dict[str, Any] | None, log: list[dict[str, Any]] = LOG, **results: float) -> None:
    """What a script leaves beside the weights."""
    state = {"global_step": 20, "epoch": 2.5, "train_batch_size": 8, "log_history": log}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    if recipe is not None:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    if results:
        (folder / "all_results.json").write_text(json.dumps(results))


@pytest.fixture
def folder(config, tmp_path) -> Path:
    """A checkpoint without its weights, which no card reads."""
    folder = tmp_path / "runs" / "mine"
    config.architectures = ["LeVLJEPAModel"]
    config.save_pretrained(folder)
    return folder


def classifier(folder: Path, config: Any, architecture: str = "LeVLJEPAForImageClassification") -> None:
    config.id2label, config.label2id = {0: "cat", 1: "dog", 2: "tree"}, {"cat": 0, "dog": 1, "tree": 2}
    config.architectures = [architecture]
    config.save_pretrained(folder)


def recipe_of(card: ModelCard) -> dict[str, Any]:
    return yaml.safe_load(re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)[1])


def names(card: ModelCard) -> list[str]:
    return [one.metric_name for one in card.data.eval_results or ()]


# What the card says


@pytest.mark.parametrize(
    ("model_class", "task", "words"),
    [
        (LeVLJEPAModel, "zero-shot-image-classification", 'LeVLJEPAModel.from_pretrained("saved")'),
        (LeVLJEPAForImageClassification, "image-classification", "classifier of 3 classes"),
        (LeVLJEPAForSemanticSegmentation, "image-segmentation", "segmentation into 3 classes"),
        (LeVLJEPABackbone, "image-feature-extraction", "image encoder of a LeVLJEPA model"),
        (LeVLJEPATextModel, "feature-extraction", "text encoder of a LeVLJEPA model"),
    ],
)
def test_every_class_has_a_card(model_class, task, words, config, tmp_path) -> None:
    config.id2label, config.label2id = {0: "cat", 1: "dog", 2: "tree"}, {"cat": 0, "dog": 1, "tree": 2}
    config = {
        LeVLJEPABackbone: config.vision_config,
        LeVLJEPATextModel: LeVLJEPATextConfig.from_dict(config.to_dict()),
    }.get(model_class, config)
    model_class(config).save_pretrained(tmp_path / "saved")
    card = write_card(tmp_path / "saved")
    assert card.data.pipeline_tag == task and card.data.library_name == "transformers" and words in card.text
    assert "levljepa" in card.data.tags and "arxiv:2607.00784" in card.data.tags
    text = (tmp_path / "saved" / "README.md").read_text()
    assert not metadata_errors(text) and text.endswith("```\n") and "{{" not in text and "None" not in text
    assert ("| Classes | cat, dog, tree |" in text) == ("For" in model_class.__name__)
    assert "## Training" not in text and "## Evaluation" not in text and "## Recipe" not in text
    (bibtex,) = BIBTEX.findall(text)
    assert [bibtex] == BIBTEX.findall((ROOT / "README.md").read_text("utf-8"))


def test_the_card_of_a_run(folder) -> None:
    leave_run(folder, {"dataset": "someone/photos", "eval_split": "test", "max_steps": 20, "learning_rate": 2e-4})
    card = write_card(folder, language="en")
    assert (
        "Trained from new weights on [someone/photos](https://huggingface.co/datasets/someone/photos) for 20 steps "
        "(2.5 epochs), with a batch of 8 on each device, in 5 minutes."
    ) in card.text
    assert card.data.datasets == ["someone/photos"] and card.data.language == "en" and card.data.license is None
    assert "on 100 samples of `someone/photos` (test)" in card.text
    assert "| recall, in % | R@1 | R@5 | R@10 |" in card.text
    assert "| text to image | 5.0 | 25.0 | 50.0 |" in card.text and "| chance | 1.0 | 5.0 | 10.0 |" in card.text
    assert "| effective rank, image / text | 4.2 / 5.0, of 16 |" in card.text
    assert "| SIGReg of a training batch of Gaussian samples | 1.25 |" in card.text, "only the training logs it"
    assert "shuffled pairs" not in card.text, "it was not measured"
    assert (folder / "losses.png").read_bytes().startswith(b"\x89PNG") and "](losses.png)" in card.text
    assert recipe_of(card) == {
        "dataset": "someone/photos",
        "eval_split": "test",
        "max_steps": 20,
        "learning_rate": 2e-4,
    }
    by_name = {one.metric_name: one for one in card.data.eval_results}
    assert len(by_name) == 6 and by_name["text to image R@5 (after training)"].metric_value == 0.25
    assert {one.metric_type for one in by_name.values()} == {"recall"}


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("levljepa", "to predict each other's embeddings"),
        ("levljepa_plus", "on 2 global and 4 local views of each image"),
        ("infonce", "aligned directly with InfoNCE"),
        ("siglip", "aligned directly with SigLIP's pairwise sigmoid loss"),
    ],
)
def test_the_card_says_what_was_trained(objective, words, tmp_path) -> None:
    config = LeVLJEPAConfig.from_preset("debug", objective=objective, architectures=["LeVLJEPAModel"])
    config.save_pretrained(tmp_path)
    log = [{"loss": 1.0, "contrastive_scale": 17.25, "contrastive_bias": -9.5, "multi_view_loss": 0.25, "step": 20}]
    leave_run(tmp_path, {"objective": objective}, log)
    card = " ".join(str(checkpoint_card(tmp_path)).split())
    assert words in card
    assert ("LeVLJEPA+" in card) == (objective == "levljepa_plus")
    for row in ("learned scale | 17.25", "learned bias | -9.50", "squared distance of the views | 0.2500"):
        assert row in card


def test_the_card_of_a_fine_tuned_classifier(tmp_path, config) -> None:
    classifier(tmp_path, config)
    log = [{"loss": 1.0, "step": 5}, {"eval_accuracy": 0.5, "step": 20}]
    recipe = {"dataset": "pets", "validation_split": "train[80%:]", "test_split": "test", "mode": "linear"}
    leave_run(tmp_path, recipe, log, eval_accuracy=0.6, test_accuracy=0.75, test_top5_accuracy=1.0, test_loss=0.7)
    (tmp_path / "confusion.png").write_bytes(b"")
    card = write_card(tmp_path)
    assert "| accuracy | 0.7500 |" in card.text and "0.6" not in card.text, "the test split's, not the validation's"
    found = {one.metric_name: (one.metric_type, one.metric_value, one.dataset_split) for one in card.data.eval_results}
    assert found == {
        "accuracy (after training)": ("accuracy", 0.75, "test"),
        "top5 accuracy (after training)": ("accuracy", 1.0, "test"),
    }
    assert card.data.metrics == ["accuracy"] and "![Confusion matrix](confusion.png)" in card.text
    (dataset,) = card.data.datasets
    assert dataset.endswith("/pets") or "pet" in dataset.lower(), "the repository of the data set known by name"
    assert "levljepa finetune classification --recipe" in card.text


def test_the_card_of_a_fine_tuned_segmenter(tmp_path, config) -> None:
    classifier(tmp_path, config, "LeVLJEPAForSemanticSegmentation")
    leave_run(tmp_path, {"dataset": "scenes"}, [], eval_mean_iou=0.25, eval_pixel_accuracy=0.5, eval_loss=1.0)
    (tmp_path / "segmentation.png").write_bytes(b"")
    card = write_card(tmp_path)
    assert {one.metric_type: one.metric_value for one in card.data.eval_results} == {"mean_iou": 0.25, "accuracy": 0.5}
    assert card.data.eval_results[0].task_type == "image-segmentation" and card.data.datasets is None
    assert "](segmentation.png)" in card.text and "levljepa finetune segmentation" in card.text


@pytest.mark.parametrize("results", [{}, {"eval_a": 5.0}])
def test_figures_of_the_last_step_and_of_the_results(results, tmp_path) -> None:
    log = [{"eval_a": 1, "step": 10}, {"eval_a": 2, "eval_c": 2, "step": 20}, {"eval_b": 3, "step": 20}]
    leave_run(tmp_path, None, [*log, {"eval_a": 4, "step": 20}, {"loss": 1, "step": 20}], **results)
    assert Run.from_folder(tmp_path).figures == {"a": results.get("eval_a", 4), "b": 3, "c": 2}


def test_figures_that_are_no_numbers_stay_out(tmp_path, config) -> None:
    classifier(tmp_path, config)
    leave_run(tmp_path, {"dataset": "x/y"}, [{"eval_accuracy": float("nan"), "eval_per_class": [1, 2], "step": 1}])
    assert checkpoint_card(tmp_path).data.eval_results is None


# Names in place of paths


def test_no_paths_of_the_machine(folder, tmp_path) -> None:
    photos, base = tmp_path / "data" / "photos", tmp_path / "runs" / "base" / "checkpoint-5"
    photos.mkdir(parents=True), base.mkdir(parents=True)
    (base.parent / "README.md").write_text("---\nlicense: mit\nbase_model: someone/first\n---\n")
    recipe = {
        "dataset": str(photos),
        "eval_dataset": f"{tmp_path}/shards/test-*.tar",
        "model_name_or_path": str(base),
        "config": {"vision_config": {"image_size": 32}},
        "class_names": str(tmp_path / "classes.json"),
        "output_dir": str(folder),
        "cache_dir": str(tmp_path / "cache"),
        "push_to_hub": True,
        "max_steps": 20,
    }
    leave_run(folder, recipe)
    card = checkpoint_card(folder)
    assert str(tmp_path) not in str(card)
    assert recipe_of(card) == {
        "dataset": "photos",
        "eval_dataset": "shards/test-*.tar",
        "model_name_or_path": "base/checkpoint-5",
        "config": {"vision_config": {"image_size": 32}},
        "class_names": "classes.json",
        "max_steps": 20,
    }
    assert "Trained from `base/checkpoint-5` on `photos`" in card.text and card.data.datasets is None
    assert (card.data.base_model, card.data.license) == ("someone/first", "mit"), "from the card beside it"


@dataclass
class Options:
    """Of a script."""

    dataset: str | None = None
    eval_dataset: str | None = None
    model_name_or_path: str | None = None


def test_a_relative_path_is_no_hub_id_here_nor_elsewhere(folder, tmp_path, monkeypatch) -> None:
    """The recipe says that it is a path, and the metadata of the card that was made there what the base is made of."""
    (tmp_path / "data" / "photos").mkdir(parents=True)
    (tmp_path / "runs" / "base").mkdir()
    (tmp_path / "runs" / "base" / "README.md").write_text(f"---\nbase_model: {RELEASES[0]}\n---\n")
    monkeypatch.chdir(tmp_path)
    options = Options(dataset="data/photos", eval_dataset="some/set", model_name_or_path="runs/base")
    leave_run(folder, None)
    save_recipe(folder, [options])
    made = [write_card(folder)]
    monkeypatch.chdir(folder)
    made.append(write_card(folder))
    for card in made:
        assert card.data.datasets == ["some/set"] and recipe_of(card)["dataset"] == "photos"
        assert (card.data.base_model, card.data.license) == (RELEASES[0], LICENSE)
        assert "Trained from `base` on `photos`" in card.text
    assert str(made[0]) == str(made[1])


# The licence, and what it is made of


def test_licences(folder, monkeypatch) -> None:
    leave_run(folder, {"dataset": "x/y", "model_name_or_path": RELEASES[0]}, [])
    card = write_card(folder)
    assert (card.data.license, card.data.base_model) == (LICENSE, RELEASES[0])
    assert "excludes commercial use" in card.text and "23.15" not in card.text, "the paper's figures are not its own"
    assert write_card(folder, license="mit").data.license == "mit"
    assert write_card(folder).data.license == "mit", "as it was stated"

    leave_run(folder, {"dataset": "x/y", "model_name_or_path": "someone/else"}, [])
    monkeypatch.setattr(cards_module, "license_of", lambda repo_id, token: {"someone/else": "apache-2.0"}[repo_id])
    card = write_card(folder)
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "someone/else"), "of another checkpoint now"

    leave_run(folder, {"dataset": "x/y"}, [])
    card = write_card(folder)
    assert card.data.license is None and card.data.base_model is None and "| Licence | none stated |" in card.text


def test_new_weights_of_a_checkpoints_size_are_not_made_of_it(folder) -> None:
    leave_run(folder, {"dataset": "x/y", "model_name_or_path": RELEASES[0], "from_scratch": True})
    card = checkpoint_card(folder)
    assert card.data.base_model is None and card.data.license is None and "Trained from new weights" in card.text


def test_a_licence_that_is_not_within_reach_is_named(caplog) -> None:
    transformers_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            assert license_of("someone/model") is None  # there is no Hub in these tests
            assert "card of someone/model is not within reach, so its licence is not taken over" in caplog.text
        assert license_of(RELEASES[1]) == LICENSE
    finally:
        transformers_logging.disable_propagation()


# What stays on a card


def test_metadata_and_figures_stay_and_are_not_doubled(folder) -> None:
    evaluated = EvalResult("image-classification", "hub/pets", "pets", "top1", 0.5, metric_name="knn top1")
    own = EvalResult(
        "image-classification", "old/set", "old", "accuracy", 0.1, metric_name="accuracy (after training)"
    )
    leave_run(folder, {"dataset": "someone/photos"}, [{**RETRIEVED, "step": 20}])
    for _ in range(2):
        card = write_card(folder, tags=["mine"])
        add_figures(card.data, [evaluated, own], "mine")
        card.data["thumbnail"] = "losses.png"
        card.save(folder / "README.md")
        add_figures(card.data, [evaluated], "mine")
        assert names(card).count("knn top1") == 1
    card = write_card(folder)
    assert sorted(names(card)) == sorted({*names(card)}) and len(names(card)) == 7, "the trainer's old one goes"
    assert card.data["thumbnail"] == "losses.png" and card.data.tags.count("mine") == 1
    assert card.data.model_name == "mine" and not metadata_errors(str(card))


def test_the_name_that_loads_it(folder) -> None:
    """From the recipe, an argument or the folder: not from the text of an older card."""
    leave_run(folder, {"dataset": "x/y", "push_to_hub": True, "hub_model_id": "ann/run"})
    assert 'LeVLJEPAModel.from_pretrained("ann/run")' in checkpoint_card(folder).text
    leave_run(folder, {"dataset": "x/y"})
    assert 'LeVLJEPAModel.from_pretrained("mine")' in checkpoint_card(folder).text
    write_card(folder, name="ann/pushed")
    assert 'LeVLJEPAModel.from_pretrained("mine")' in checkpoint_card(folder).text


def test_a_base_that_only_a_path_names_is_told(folder) -> None:
    """Where the card is made for the first time far from the run."""
    leave_run(folder, {"dataset": "x/y", "model_name_or_path": "./runs/base"})
    assert checkpoint_card(folder).data.base_model is None
    card = checkpoint_card(folder, base_model=RELEASES[0])
    assert (card.data.base_model, card.data.license) == (RELEASES[0], LICENSE)


# The trainers


def test_a_trainer_without_a_script(model, processor, images, tmp_path) -> None:
    """The recipe is that of the arguments; a base is what the model was loaded from."""
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    model = LeVLJEPAModel.from_pretrained(tmp_path / "base")
    args = LeVLJEPATrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=2, logging_steps=1, report_to="none", use_cpu=True,
        per_device_train_batch_size=4, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    samples = [{"image": image, "captions": "a photo"} for image in images]
    trainer = LeVLJEPATrainer(model, args, train_dataset=samples, eval_dataset=samples, processing_class=processor)
    trainer.train()
    trainer.save_model()
    trainer.evaluate()
    for _ in range(2):
        trainer.create_model_card(language="en", dataset="four photos")
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert "Trained from `base` on `four photos` for 2 steps" in card.text and "](losses.png)" in card.text
    assert card.data.license == "mit" and card.data.base_model is None and len(set(names(card))) == 6
    assert len(names(card)) == 6 and str(tmp_path) not in str(card)
    assert recipe_of(card)["max_steps"] == 2 and "output_dir" not in recipe_of(card)
    assert main([str(tmp_path / "run"), "--write"]) == 0
    assert str(ModelCard.load(tmp_path / "run" / "README.md")) == str(card), "what was said then, the card knows"


class BertTrainer(ModelCardMixin, Trainer):
    """Of a model that is none of LeVLJEPA's."""


def test_a_model_that_is_none_of_ours_gets_transformers_card(tmp_path) -> None:
    model = BertForSequenceClassification(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=20)
    )
    model.save_pretrained(tmp_path)
    trainer = BertTrainer(model, TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    trainer.create_model_card(license="mit", model_name="a bert")
    card = ModelCard.load(tmp_path / "README.md")
    assert "# a bert" in card.text and card.data.license == "mit" and "levljepa" not in str(card)


class Pushing:
    """What of a `Trainer` a push needs."""

    def __init__(self, error: Exception | None = None, jobs: tuple[Future, ...] = ()) -> None:
        self.error, self.hub_model_id = error, "ann/model"
        self.args = TrainingArguments("runs/x y", use_cpu=True, report_to="none")
        self.push_in_progress = type("Pushes", (), {"jobs": jobs})()

    def push_to_hub(self) -> str:
        if self.error:
            raise self.error
        return "pushed"


class PushingTrainer(ModelCardMixin, Pushing):
    pass


@pytest.mark.parametrize("error", [RuntimeError("no\nanswer"), ConnectionError("no answer"), ValueError("no answer")])
def test_a_push_that_fails_says_how_to_push(error) -> None:
    command = "hf upload ann/model 'runs/x y' . --exclude 'checkpoint-\\*'"
    with pytest.raises(OSError, match=rf"push to ann/model failed \(no answer\).*To push it: {command}$"):
        PushingTrainer(error).push_to_hub()


def test_the_command_keeps_what_is_private_private() -> None:
    trainer = PushingTrainer(ConnectionError("no answer"))
    trainer.args.hub_private_repo = True
    with pytest.raises(OSError, match="--private$"):
        trainer.push_to_hub()


def test_pushes_that_failed_on_the_way_are_counted(caplog) -> None:
    good, bad = Future(), Future()
    good.set_result(None), bad.set_exception(ConnectionError("the line was cut"))
    transformers_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            assert PushingTrainer(jobs=(good,)).push_to_hub() == "pushed" and not caplog.records
            assert PushingTrainer(jobs=(good, bad)).push_to_hub() == "pushed"
        assert "1 of the pushes during the training failed, the last with: the line was cut" in caplog.text
    finally:
        transformers_logging.disable_propagation()


# The command


def test_the_command_prints_and_writes(folder, capsys) -> None:
    leave_run(folder, {"dataset": "someone/photos"})
    assert main([str(folder)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("---\n") and "on [someone/photos]" in printed and not (folder / "README.md").exists()
    options = ["--license", "mit", "--base_model", RELEASES[0], "--datasets", "a/b", "c/d", "--name", "ann/mine"]
    assert main([str(folder), "--write", *options]) == 0
    assert capsys.readouterr().out == f"Wrote {folder / 'README.md'}\n"
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.base_model, card.data.datasets) == ("mit", RELEASES[0], ["a/b", "c/d"])
    assert 'from_pretrained("ann/mine")' in card.text
    assert {path.name for path in folder.iterdir() if path.suffix != ".py"} == {
        *("README.md", "config.json", "losses.png", "recipe.yaml", "trainer_state.json")
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no checkpoint: it has no config.json"),
        ('{"model_type": "bert", "architectures": ["BertModel"]}', "holds a model of type ['BertModel']; cards are"),
    ],
)
def test_a_folder_that_is_no_checkpoint(content, message, tmp_path, capsys) -> None:
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--write"])
    error = capsys.readouterr().err
    assert error.startswith("levljepa card: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "README.md").exists()


def test_what_is_no_id_and_what_is_not_within_reach(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["runs/nowhere/x"])
    assert "runs/nowhere/x is no folder here" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["someone/model", "--write"])
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["someone/model"])
    assert capsys.readouterr().err.count("\n") == 1


def test_a_card_of_the_released_layout_says_what_loads_it(model, tmp_path) -> None:
    save_released(model, None, tmp_path)
    card = checkpoint_card(tmp_path, base_model=RELEASES[0])
    assert "one for each tower, without code" in card.text and card.data.license == LICENSE
