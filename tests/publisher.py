"""Run by `test_publishing.py` in a process of its own, whose Hub is the local one: publishes in every way.

    python tests/publisher.py FOLDER

FOLDER has photos with captions, `photo.png`, and gets what is published, `expected.safetensors` and `results.json`.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import levljepa_hf  # noqa: F401  isort: skip  (before what imports torchvision)
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments

from levljepa_hf import (
    LeVLJEPAConfig,
    LeVLJEPAForImageClassification,
    LeVLJEPAModel,
    LeVLJEPAProcessor,
    LeVLJEPAVisionModel,
)
from levljepa_hf.evaluation.command import main as evaluate
from levljepa_hf.hub.command import main as card
from levljepa_hf.hub.convert import main as convert
from levljepa_hf.hub.publishing import ModelCardMixin
from levljepa_hf.model.released import save_released

TEXTS = ["a cat", "two dogs run"]
FOLDER = Path(sys.argv[1])
_spec = importlib.util.spec_from_file_location("pretrain", Path(__file__).parents[1] / "training" / "pretrain.py")
pretrain = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pretrain)

expected: dict[str, torch.Tensor] = {}
results: dict[str, Any] = {}


class ClassificationTrainer(ModelCardMixin, Trainer):
    """As a script of fine-tuning has it."""


def new_model(seed: int) -> LeVLJEPAModel:
    torch.manual_seed(seed)
    return LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug")).eval()


def expect(repo_id: str, model: Any, processor: Any) -> None:
    """Notes the logits that a model loaded from the Hub is to give."""
    is_whole = isinstance(model, LeVLJEPAModel)
    inputs = processor(
        images=Image.open(FOLDER / "photo.png"), return_tensors="pt", **({"text": TEXTS} if is_whole else {})
    )
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    expected[repo_id] = (outputs.logits_per_image if is_whole else outputs.logits).contiguous()


def pretrain_and_push(repo_id: str, *more: str) -> None:
    options = {
        "dataset": FOLDER / "photos",
        "eval_split": "validation",
        "cache_dir": FOLDER / "cache",
        "output_dir": FOLDER / "runs" / repo_id.split("/")[1],
        "hub_model_id": repo_id,
        "preset": "debug",
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "report_to": "none",
    }
    argv = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    pretrain.main([*argv, "--push_to_hub", "--disable_tqdm", "True", "--use_cpu", *more])


def failure(action: Any, *args: Any, **kwargs: Any) -> str:
    """What the error says that the action ends with."""
    try:
        action(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("no error")


processor = LeVLJEPAProcessor.from_image_size(32)

# Model and processor by themselves; then a card, where only transformers' own is.
model = new_model(0)
model.push_to_hub("ann/bare")
processor.push_to_hub("ann/bare")
expect("ann/bare", model, processor)
results["card"] = card(["ann/bare", "--write", "--license", "mit"])

# A conversion, over a repository of the other layout.
save_released(new_model(1), None, FOLDER / "released")
for to in ("released", "native"):
    argv = [str(FOLDER / "released"), str(FOLDER / "converted"), "--to", to, "--overwrite"]
    results["convert"] = convert([*argv, "--push_to_hub", "ann/converted", "--private"])
expect("ann/converted", LeVLJEPAModel.from_pretrained(FOLDER / "converted"), processor)

# Pretraining, with pushes of its checkpoints on the way; an evaluation of what is on the Hub; pretraining again.
saving = ("--save_strategy", "steps", "--save_steps", "2", "--hub_strategy", "checkpoint")
pretrain_and_push("lab/pretrained", *saving, "--hub_token", "ann-write")
scenes = ("--dataset", "scenes", "--dataset_config", "32", "--max_samples", "10", "--max_train_samples", "20")
features = ("--cache_dir", str(FOLDER / "features"))
results["evaluate"] = evaluate(["knn", "--model", "lab/pretrained", "--card", "--ks", "3", *scenes, *features])
pretrain_and_push("lab/pretrained", "--overwrite_output_dir")
expect("lab/pretrained", LeVLJEPAModel.from_pretrained(FOLDER / "runs" / "pretrained"), processor)

# A classifier from that repository, pushed twice.
assert LeVLJEPAModel.from_pretrained("lab/pretrained").config.projection_dim
assert LeVLJEPAVisionModel.from_pretrained("lab/pretrained").config.image_size == 32
names = {0: "cat", 1: "dog", 2: "tree"}
classifier = LeVLJEPAForImageClassification.from_pretrained("lab/pretrained", id2label=names)
image_processor = LeVLJEPAProcessor.from_pretrained("lab/pretrained").image_processor
pixels = image_processor(Image.open(FOLDER / "photo.png"), return_tensors="pt").pixel_values[0]
samples = [{"pixel_values": pixels * (label + 1), "labels": label} for label in names]
args = TrainingArguments(
    output_dir=str(FOLDER / "runs" / "classifier"),
    hub_model_id="ann/classifier",
    max_steps=2,
    logging_steps=1,
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
)
trainer = ClassificationTrainer(
    model=classifier,
    args=args,
    train_dataset=samples,
    eval_dataset=samples,
    processing_class=image_processor,
    compute_metrics=lambda prediction: {"accuracy": (prediction.predictions.argmax(1) == prediction.label_ids).mean()},
)
trainer.train()
trainer.evaluate()
for _ in range(2):
    trainer.push_to_hub(dataset="some photos")
expect("ann/classifier", classifier, image_processor)

# Uploads that break: after two commits, the first and the one of the old weights; after the first, that of a run.
model = new_model(2)
model.push_to_hub("ann/kept")
processor.push_to_hub("ann/kept")
expect("ann/kept", model, processor)
results["interrupted"] = failure(new_model(3).push_to_hub, "ann/kept")
results["lost"] = failure(pretrain_and_push, "ann/lost")

save_file(expected, FOLDER / "expected.safetensors")
(FOLDER / "results.json").write_text(json.dumps(results))
