"""Publishing over HTTP: the real client of the Hub against a local one, and loading from it without the package."""

import importlib.util
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from levljepa_hf.evaluation.card import check_card
from levljepa_hf.hub.command import main
from levljepa_hf.hub.convert import main as convert
from levljepa_hf.hub.publishing import check_push, prepare_push
from levljepa_hf.training.command import parse_args
from local_hub import LocalHub, Repo
from test_transformers import run_without_package

TESTS = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("pretrain", TESTS.parent / "training" / "pretrain.py")
pretrain = importlib.util.module_from_spec(_spec)
sys.modules["pretrain"] = pretrain
_spec.loader.exec_module(pretrain)

# Loads what was published where the package is not installed.
LOADER = """
import sys
sys.modules["levljepa_hf"] = None
{prelude}
import PIL.Image, torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoProcessor, pipeline

photo, result, *repositories = sys.argv[1:]
image, found = PIL.Image.open(photo), {{}}
for name in repositories:
    if name.endswith("classifier"):
        model = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=True)
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
        found[name] = model(**processor(images=image, return_tensors="pt")).logits
        classify = pipeline("image-classification", model=name, trust_remote_code=True)
        best = max(classify(image), key=lambda one: one["score"])
        assert best["label"] == model.config.id2label[found[name].argmax().item()]
        continue
    model = AutoModel.from_pretrained(name, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    inputs = processor(images=image, text=["a cat", "two dogs run"], return_tensors="pt")
    found[name] = model(**inputs).logits_per_image
save_file({{name: logits.contiguous() for name, logits in found.items()}}, result)
"""


@dataclass
class Published:
    """A Hub after `publisher.py`, the folder that it had, and what came out."""

    hub: LocalHub
    folder: Path
    results: dict[str, Any]
    printed: str

    def card(self, repo_id: str) -> ModelCard:
        return ModelCard(self.hub.files(repo_id)["README.md"].decode())


def environment(hub: LocalHub, home: Path, token: str = "ann-write") -> dict[str, str]:
    """Of a process whose Hub is the local one: read when huggingface_hub is imported."""
    here = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": token, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    here |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **here}


def write_photos(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(count)
    lines = []
    for index in range(count):
        pixels = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((40, 36))
        pixels.save(folder / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "text": f"photo number {index}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("published")
    write_photos(folder / "photos" / "train", 8)
    write_photos(folder / "photos" / "validation", 5)
    Image.open(folder / "photos" / "train" / "0.png").save(folder / "photo.png")
    with LocalHub() as hub:
        hub.broken_after = {"ann/kept": 3, "ann/lost": 1}
        command = [sys.executable, str(TESTS / "publisher.py"), str(folder)]
        done = subprocess.run(command, env=environment(hub, folder / "home"), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        results = json.loads((folder / "results.json").read_text())
        yield Published(hub, folder, results, done.stdout + done.stderr)


def test_what_is_published_loads_without_the_package(published: Published, tmp_path: Path) -> None:
    """Also a private repository, and the one whose last upload was interrupted: it has its old weights, whole."""
    expected = load_file(published.folder / "expected.safetensors")
    assert set(expected) == {"ann/bare", "ann/converted", "ann/classifier", "ann/kept", "lab/pretrained"}
    arguments = [published.folder / "photo.png", tmp_path / "found.safetensors", *expected]
    run_without_package(LOADER, arguments, tmp_path / "modules", environment(published.hub, tmp_path / "home"))
    found = load_file(tmp_path / "found.safetensors")
    for name, logits in expected.items():
        assert_close(found[name], logits, msg=name)


def figures(card: ModelCard) -> Counter[tuple[Any, ...]]:
    results = card.data.eval_results or []
    return Counter((one.task_type, one.dataset_type, one.dataset_split, one.metric_name) for one in results)


def test_the_card_of_a_run_pushed_twice_and_evaluated_between(published: Published) -> None:
    card = published.card("lab/pretrained")
    found = figures(card)
    after_training = {
        ("image-text-retrieval", "photos", "validation", f"{direction} R@{k} (after training)")
        for direction in ("image to text", "text to image")
        for k in (1, 5, 10)
    }
    assert set(found.values()) == {1}, found
    assert after_training < set(found)
    assert {name.split()[0] for *_, name in set(found) - after_training} == {"knn"}, "evaluated between the pushes"
    results = json.loads((published.folder / "runs" / "pretrained" / "all_results.json").read_text())
    measured = {one.metric_name: one.metric_value for one in card.data.eval_results}
    assert measured["text to image R@5 (after training)"] == pytest.approx(results["eval_text_to_image_R@5"], abs=1e-6)
    assert card.data.pipeline_tag == "zero-shot-image-classification" and card.data.library_name == "transformers"
    assert card.data.language is None and "levljepa" in card.data.tags and card.data.metrics == ["recall"]
    assert card.data.license is None and card.data.base_model is None and card.data.datasets is None

    assert "Trained from new weights on `photos` for 3 steps (1.5 epochs), with a batch of 4 on each" in card.text
    assert "At the end of the training, on 5 samples of `photos` (validation)." in card.text
    assert "| chance | 20.0 | 100.0 | 100.0 |" in card.text
    assert 'LeVLJEPAModel.from_pretrained("lab/pretrained")' in card.text
    assert "![Losses over the steps of the training](losses.png)" in card.text
    assert published.hub.files("lab/pretrained")["losses.png"].startswith(b"\x89PNG")
    assert str(published.folder) not in str(card)


def test_the_recipe_on_a_card_gives_the_run_again(published: Published, tmp_path: Path) -> None:
    (recipe,) = re.findall(r"```yaml\n(.*?)```", published.card("lab/pretrained").text, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(recipe)
    photos = str(published.folder / "photos")
    argv = ["--recipe", str(tmp_path / "recipe.yaml"), "--dataset", photos]
    model_args, data_args, args = parse_args(argv)
    assert yaml.safe_load(recipe)["dataset"] == "photos"
    assert (model_args.preset, data_args.eval_split, args.max_steps) == ("debug", "validation", 3)
    assert args.per_device_train_batch_size == 4 and not args.push_to_hub


def test_checkpoints_are_pushed_on_the_way(published: Published) -> None:
    messages = published.hub.repos["lab/pretrained"].messages
    assert messages[1:4] == [
        "Training in progress, step 2",
        "Training in progress, step 2, checkpoint",
        "End of training",
    ]
    assert "last-checkpoint/optimizer.pt" in published.hub.files("lab/pretrained")


def test_no_token_is_pushed(published: Published) -> None:
    """transformers saves the training arguments, `hub_token` among them, and pushes them."""
    assert "training_args.bin" in published.hub.files("lab/pretrained")
    for content in published.hub.files("lab/pretrained").values():
        assert b"ann-write" not in content


def test_the_card_of_a_classifier(published: Published) -> None:
    card = published.card("ann/classifier")
    assert (card.data.pipeline_tag, card.data.base_model) == ("image-classification", "lab/pretrained")
    assert card.data.metrics == ["accuracy"] and card.data.language is None
    assert figures(card) == {("image-classification", "some photos", None, "accuracy (after training)"): 1}
    assert "| Classes | cat, dog, tree |" in card.text
    assert "Trained from [lab/pretrained](https://huggingface.co/lab/pretrained) on `some photos`" in card.text
    assert 'pipeline("image-classification", model="ann/classifier", trust_remote_code=True)' in card.text
    assert "losses.png" in published.hub.files("ann/classifier")
    assert published.hub.repos["ann/classifier"].messages == ["initial commit", "End of training"], "the same twice"


def test_a_conversion_is_pushed(published: Published) -> None:
    assert published.results["convert"] == 0 and published.hub.repos["ann/converted"].private
    files = published.hub.files("ann/converted")
    assert set(files) - {".gitattributes"} == {
        path.relative_to(published.folder / "converted").as_posix()
        for path in (published.folder / "converted").rglob("*.*")
    }
    card = published.card("ann/converted")
    assert 'from_pretrained("ann/converted")' in card.text and card.data.license is None


def test_a_repository_without_a_card_of_ours_gets_one(published: Published) -> None:
    card = published.card("ann/bare")
    assert published.results["card"] == 0 and card.data.license == "mit"
    assert 'LeVLJEPAModel.from_pretrained("ann/bare")' in card.text and "More Information Needed" not in card.text
    assert "| Source |" not in card.text


def test_an_interrupted_upload_leaves_the_old_revision(published: Published) -> None:
    """Its weights load, too: `test_what_is_published_loads_without_the_package`."""
    assert published.results["interrupted"].startswith("RuntimeError: Error while uploading 'model.safetensors'")
    assert published.hub.repos["ann/kept"].messages == ["initial commit", "Upload model", "Upload processor"]


def test_a_run_whose_push_fails_is_whole_and_pushed_by_the_command_given(published: Published, tmp_path: Path) -> None:
    message = published.results["lost"]
    folder = published.folder / "runs" / "lost"
    assert message.startswith("OSError: The push to ann/lost failed (") and "has expired" in message
    assert set(published.hub.files("ann/lost")) == {".gitattributes"}
    assert {"model.safetensors", "README.md", "eval_results.json", "losses.png", "checkpoint-3"} <= {
        path.name for path in folder.iterdir()
    }
    command = shlex.split(message.partition("To push it: ")[2])
    assert command[:3] == ["hf", "upload", "ann/lost"]
    published.hub.broken_after.clear()
    hf = [sys.executable, "-m", "huggingface_hub.cli.hf", *command[1:]]
    done = subprocess.run(hf, env=environment(published.hub, tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = published.hub.files("ann/lost")
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert not any(name.startswith("checkpoint-") for name in files)


# Seen before the work


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """A Hub for this process: `check_push` reads the address anew."""
    with LocalHub() as hub:
        hub.repos = {"bob/his": Repo(), "bob/secret": Repo(private=True), "ann/mine": Repo()}
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        yield hub


@pytest.mark.parametrize(
    ("repo_id", "whole"),
    [
        *(("mine", "ann/mine"), ("ann/mine", "ann/mine"), ("new", "ann/new"), ("lab/new", "lab/new")),
        ("Lab/new", "Lab/new"),
    ],
)
def test_what_may_be_written(hub: LocalHub, repo_id: str, whole: str) -> None:
    assert check_push(repo_id, "ann-write") == whole
    assert whole in hub.repos or whole.endswith("new"), "nothing is made"


@pytest.mark.parametrize(
    ("repo_id", "token", "error", "message"),
    [
        ("ann/mine", None, PermissionError, "takes a token of the Hub, and there is none.*hf auth login.*HF_TOKEN"),
        ("ann/mine", "unknown", PermissionError, "does not accept the token.*Make one that can write at https"),
        ("ann/mine", "ann-read", PermissionError, "token .ann's. of ann can only read.*Make one that can write"),
        ("new", "ann-read", PermissionError, "can only read, so ann/new can't be pushed to"),
        ("bob/his", "ann-write", PermissionError, "bob/his is bob's, and ann may not.*such as ann/his.*ann, lab,"),
        ("bob/secret", "ann-write", PermissionError, "bob/secret is bob's"),
        ("bob/new", "ann-write", PermissionError, "bob/new is bob's"),
        ("lab/new", "bob-write", PermissionError, "lab/new is lab's, and bob may not.*such as bob/new.*of bob, as"),
        ("a/b/c", "ann-write", ValueError, "'a/b/c' is no Hub id, NAME or OWNER/NAME"),
    ],
)
def test_what_may_not_be_written(
    hub: LocalHub, repo_id: str, token: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_push(repo_id, token)
    assert not any("create" in request for request in hub.requests)


def test_without_a_network(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set.*unset it, or push later with `hf upload`"):
        check_push("ann/mine", "ann-write")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as closed:  # a port that nobody listens to
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with pytest.raises(ConnectionError, match=f"{address} is not within reach .*look after the network"):
            check_push("ann/mine", "ann-write")


def test_pretraining_sees_it_before_anything_is_loaded(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The dataset and the checkpoint do not exist, and nobody notices."""
    monkeypatch.setenv("HF_TOKEN", "")  # put back after the test
    argv = ["--dataset", "no/where", "--model_name_or_path", "no/where", "--use_cpu", "--push_to_hub"]
    argv += ["--output_dir", str(tmp_path / "run")]
    with pytest.raises(PermissionError, match="can only read, so ann/run can't be pushed to"):
        pretrain.main([*argv, "--hub_token", "ann-read"])
    with pytest.raises(PermissionError, match="bob/his is bob's"):
        pretrain.main([*argv, "--hub_token", "ann-write", "--hub_model_id", "bob/his"])
    assert not (tmp_path / "run").exists()


def test_what_a_script_prepares(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    args = TrainingArguments(str(tmp_path / "run"), push_to_hub=True, hub_token="ann-write", use_cpu=True)
    prepare_push(args)
    assert (args.hub_model_id, args.hub_token, args.hub_strategy) == ("ann/run", None, HubStrategy.EVERY_SAVE)
    prepare_push(args, at_end_only=True)
    assert args.hub_strategy == HubStrategy.END
    hub.requests.clear()
    prepare_push(TrainingArguments(str(tmp_path), use_cpu=True))
    assert not hub.requests, "nothing is asked where nothing is to be pushed"


def test_converting_sees_it_before_anything_is_loaded(hub: LocalHub, tmp_path: Path, capsys) -> None:
    argv = [str(tmp_path), str(tmp_path / "target"), "--token", "ann-write"]
    with pytest.raises(SystemExit, match="2"):
        convert([*argv, "--push_to_hub", "bob/his"])
    assert "levljepa convert: bob/his is bob's" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        convert([*argv, "--private"])
    assert "--private is for the repository that --push_to_hub names" in capsys.readouterr().err


def test_a_card_of_a_repository_that_is_not_there(hub: LocalHub, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["ann/nowhere", "--token", "ann-write"])
    assert capsys.readouterr().err == (
        "levljepa card: ann/nowhere is no folder, and no repository of the Hub that the token may read.\n"
    )


def test_evaluating_sees_it_before_anything_is_measured(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "ann-read")
    with pytest.raises(PermissionError, match="can only read, so ann/mine can't be pushed to"):
        check_card(["ann/mine"])
