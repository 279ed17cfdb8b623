"""What commit 9be0e92 left, loaded and taken up again; `fixtures/run_before_rooms` says how it was made."""

import json
import logging
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification, AutoProcessor

from test_finetune_scripts import SCRIPTS
from test_pretrain import pretrain

EARLIER = Path(__file__).parent / "fixtures" / "run_before_rooms"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # sums in another order; a state that is lost changes weights by 1e-3


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch) -> Path:
    """A copy of the folders, as the working directory: the recipes' paths are relative."""
    shutil.copytree(EARLIER, tmp_path / "earlier")
    monkeypatch.chdir(tmp_path / "earlier")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "earlier"


def losses(state: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]


def test_features_of_an_earlier_model() -> None:
    expected = load_file(EARLIER / "features.safetensors")
    photos = [Image.open(EARLIER / "photos" / "validation" / f"{i}.png") for i in range(10, 14)]
    lines = (EARLIER / "photos" / "validation" / "metadata.jsonl").read_text().splitlines()[:4]
    processor = AutoProcessor.from_pretrained(EARLIER / "run")
    inputs = processor(images=photos, text=[json.loads(line)["caption"] for line in lines], return_tensors="pt")
    classifier = AutoModelForImageClassification.from_pretrained(EARLIER / "classification").eval()
    assert classifier.config.id2label == {0: "blue", 1: "red"}
    with torch.inference_mode():
        found = AutoModel.from_pretrained(EARLIER / "run").eval()(**inputs)
        found["image_tokens"] = found.vision_model_output.last_hidden_state
        found["class_logits"] = classifier(inputs["pixel_values"]).logits
    for name, features in expected.items():
        torch.testing.assert_close(found[name], features, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", ["run", "mixture", "classification"])
def test_an_earlier_run_ends_as_if_it_had_not_stopped(earlier: Path, name: str, caplog) -> None:
    """Model, optimizer, schedule, probe and the place in the data; nothing of them draws from the random states."""
    script = SCRIPTS["classification"] if name == "classification" else pretrain
    with caplog.at_level(logging.WARNING, "levljepa_hf"):
        script.main(["--recipe", f"{name}/recipe.yaml", "--resume_from_checkpoint", "auto"])
    assert not [text for text in caplog.messages if "Changed since" in text or "begins anew" in text]
    found = losses(earlier / name / "trainer_state.json")
    before = losses(EARLIER / name / "checkpoint-2" / "trainer_state.json")
    assert len(found) == 4 and found[:2] == before, "two steps are those of the checkpoint"
    if name == "mixture":
        weights = EARLIER / "mixture-weights.safetensors"
    else:
        weights = EARLIER / name / "model.safetensors"
        assert found == pytest.approx(losses(EARLIER / name / "trainer_state.json"), rel=1e-4)
    expected, ended = load_file(weights), load_file(earlier / name / "model.safetensors")
    assert expected.keys() == ended.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(ended[key], weight, **CLOSE, msg=lambda text, key=key: f"{key}: {text}")
