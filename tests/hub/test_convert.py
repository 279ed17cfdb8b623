"""`levljepa convert` of native checkpoints: what it refuses, what it replaces, what an error leaves, the card's words.

The released layout and the conversion of its files are tested in `test_released.py`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import levljepa_hf.hub.convert as convert_module
from levljepa_hf import LeVLJEPAConfig, LeVLJEPAForImageClassification, LeVLJEPAModel, LeVLJEPAProcessor
from levljepa_hf.hub.convert import convert, main, model_card
from levljepa_hf.model.released import TOWER_FILES, find_released_files, save_released


@pytest.fixture
def native(model, processor, tmp_path) -> Path:
    """A folder of its own: the tests look at everything that lies beside their target."""
    folder = tmp_path / "sources" / "native"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path) -> Path:
    """Where targets go; whatever a test leaves here it lists."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replaces (or with `None` removes) tensors; `__` in a keyword stands for a dot."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


# What is refused


@pytest.mark.parametrize("to", ["native", "released"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text_projection__3__bias": None},
            r"native has no tensor 'text_projection\.3\.bias', which the whole model",
        ),
        ({"vision_projection__1__running_var": None}, r"no tensor 'vision_projection\.1\.running_var'"),
        (
            {"text_model__wpe__weight": torch.zeros(3, 5)},
            r"'text_model\.wpe\.weight' has shape \(3, 5\), but config\.json makes it \(128, 32\)",
        ),
        (
            {"vision_model__timm_model__blocks__7__norm1__weight": torch.ones(32)},
            r"no place for: 'vision_model\.timm_model\.blocks\.7\.norm1\.weight'",
        ),
    ],
    ids=["missing", "missing statistics", "shape", "misplaced"],
)
def test_a_damaged_native_checkpoint_is_refused(native, place, to, changes, message, capsys):
    edit(native, **changes)
    with pytest.raises(ValueError, match=message):
        convert(native, place / "target", to=to)
    with pytest.raises(SystemExit, match="2"):
        main([str(native), str(place / "target"), "--to", to])
    assert "levljepa convert: " in capsys.readouterr().err
    assert names(place) == []


def test_a_task_head_is_no_whole_model(config, place, tmp_path):
    LeVLJEPAForImageClassification(config).save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match=r"classifier has no tensor 'text_model.* and \d+ more, .*or a task head"):
        convert(tmp_path / "classifier", place / "target")
    assert names(place) == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda path: path.unlink(), FileNotFoundError, "has weights but no config.json"),
        (lambda path: path.write_text('{"model_type": "bert"}'), ValueError, "holds a model of type 'bert'"),
    ],
    ids=["missing", "other"],
)
def test_a_folder_that_is_no_levljepa(native, place, change, error, message):
    change(native / "config.json")
    with pytest.raises(error, match=message):
        convert(native, place / "target")
    assert not (place / "target").exists()


def test_tensors_of_no_part_are_left_out_with_a_warning(native, place, monkeypatch):
    edit(native, queue=torch.zeros(2), sigreg__step=None)  # the counter is not needed
    warnings = []
    monkeypatch.setattr(convert_module.logger, "warning", warnings.append)
    target = convert(native, place / "target")
    assert warnings == [f"{native}: ignored 'queue', which belong to no part of the model."]
    assert "queue" not in load_file(target / "model.safetensors")


def test_empty_names_and_the_current_folder(native, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for target in ("", ".", place):
        with pytest.raises(ValueError, match="The target is the current folder: name another one"):
            convert(native, target, overwrite=True)
    with pytest.raises(SystemExit, match="2"):
        main([str(native), ""])
    assert "current folder" in capsys.readouterr().err
    monkeypatch.chdir(native)
    with pytest.raises(ValueError, match="The source is empty"):
        convert("", place / "target")
    assert names(place) == []


# From the Hub


def test_a_revision_of_a_hub_repository(model, place, tmp_path):
    """From the cache, which holds one branch that is not `main`: model and processor are fetched from it."""
    repo = tmp_path / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "v1").write_text("0" * 40)
    model.save_pretrained(repo / "snapshots" / ("0" * 40))
    kwargs = {"cache_dir": tmp_path, "local_files_only": True}
    target = convert("owner/name", place / "target", revision="v1", **kwargs)
    assert LeVLJEPAProcessor.from_pretrained(target).image_processor.crop_size["height"] == 32
    assert ModelCard.load(target / "README.md").data.base_model == "owner/name"
    with pytest.raises(OSError):
        convert("owner/name", place / "main", **kwargs)


def test_the_command_passes_its_options_on(monkeypatch, place):
    seen = []
    monkeypatch.setattr(convert_module, "convert", lambda **kwargs: seen.append(kwargs) or place)
    assert main(["owner/name", "target"]) == 0 and "revision" not in seen[0]
    options = ["--to", "released", "--overwrite", "--license", "mit", "--base_model", "a/b", "--revision", "v1"]
    assert main(["owner/name", "target", *options, "--text_readout", "pad77"]) == 0
    chosen = {"to": "released", "overwrite": True, "license": "mit", "base_model": "a/b", "revision": "v1"}
    assert seen[1] == {"source": "owner/name", "target": "target", "text_readout": "pad77", **chosen}


# What is replaced


@pytest.mark.parametrize("layouts", [("native", "released"), ("released", "native")])
def test_overwrite_replaces_all_that_convert_writes(native, model, place, layouts):
    """Files of the other layout go too: native weights have the last word wherever they lie."""
    target = place / "target"
    written = set()
    for to in (*layouts, layouts[0]):
        convert(native, target, to=to, overwrite=True)
        written |= set(names(target))
        assert (find_released_files(target) is not None) == (to == "released")
        for name, tensor in LeVLJEPAModel.from_pretrained(target).state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
    assert {"model.safetensors", "modeling_levljepa.py", "tokenizer.json", *TOWER_FILES.values()} <= written
    assert names(place) == ["target"]


@pytest.mark.parametrize(
    "foreign",
    [
        *("checkpoint-5/model.safetensors", "optimizer.pt", "training_args.bin", "notes.txt", "config.json.bak"),
        *("mine.py", "my_version/modeling_levljepa.py"),
    ],
)
def test_a_folder_with_foreign_files_is_left_alone(native, place, foreign, capsys):
    target = Path(shutil.copytree(native, place / "target"))
    (target / foreign).parent.mkdir(exist_ok=True)
    (target / foreign).write_text("mine")
    before = contents(target)
    with pytest.raises(SystemExit, match="2"):
        main([str(native), str(target), "--overwrite"])
    error = capsys.readouterr().err
    assert f"also holds {foreign.split('/')[0]!r}, which convert does not write" in error
    assert contents(target) == before and names(place) == ["target"]


def test_a_folder_named_as_a_file_of_ours_is_foreign(native, place):
    target = Path(shutil.copytree(native, place / "target"))
    (target / "README.md").mkdir()
    with pytest.raises(FileExistsError, match=r"also holds 'README\.md'"):
        convert(native, target, overwrite=True)


def test_a_file_that_appears_while_loading_is_kept(native, place, monkeypatch):
    target = Path(shutil.copytree(native, place / "target"))

    def load_slowly(*args, **kwargs):
        (target / "notes.txt").write_text("mine")
        return load(*args, **kwargs)

    load = convert_module._load
    monkeypatch.setattr(convert_module, "_load", load_slowly)
    with pytest.raises(FileExistsError, match="also holds 'notes.txt'"):
        convert(native, target, overwrite=True)
    assert (target / "notes.txt").read_text() == "mine" and names(place) == ["target"]


def test_a_target_that_appears_while_loading_is_kept(native, place, monkeypatch):
    def load_slowly(*args, **kwargs):
        shutil.copytree(native, place / "target")
        return load(*args, **kwargs)

    load = convert_module._load
    monkeypatch.setattr(convert_module, "_load", load_slowly)
    with pytest.raises(FileExistsError, match="is there already"):
        convert(native, place / "target")
    assert contents(place / "target") == contents(native)


# What an error leaves


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()], ids=["disk", "interrupt"])
def test_the_old_folder_is_restored_when_the_new_one_can_not_take_its_place(native, place, monkeypatch, error):
    target = Path(shutil.copytree(native, place / "target"))
    before = contents(target)
    rename = Path.rename

    def fail_for_new(self, to):
        if self.name == "new":
            assert not target.exists()
            raise error
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(type(error)):
        convert(native, target, overwrite=True)
    assert contents(target) == before and names(place) == ["target"]


@pytest.mark.parametrize("exists", [False, True])
def test_nothing_half_written_appears_under_the_target(native, place, monkeypatch, exists):
    target = place / "target"
    if exists:
        shutil.copytree(native, target)
    before = contents(place)

    def fail(self, folder, **kwargs):
        assert contents(place).items() >= before.items() and target.exists() == exists
        raise OSError("No space left on device")

    monkeypatch.setattr(LeVLJEPAProcessor, "save_pretrained", fail)  # the weights are written by then
    with pytest.raises(OSError, match="No space left"):
        convert(native, target, overwrite=True)
    assert contents(place) == before


# The text readout


def test_text_readout_of_an_older_run(model, place, tmp_path):
    """A `.pt` pair does not say it; whatever it is converted to does."""
    pairs = tmp_path / "run"
    pairs.mkdir()
    save_released(model, None, tmp_path / "released")
    for tower, file in TOWER_FILES.items():
        parts: dict[str, dict[str, torch.Tensor]] = {"encoder": {}, "pre_proj": {}, "projector": {}}
        for name, tensor in load_file(tmp_path / "released" / file).items():
            part, name = name.split(".", 1)
            parts[part][name] = tensor
        torch.save(parts, pairs / f"run_{tower}_step5.pt")
    config = json.loads((tmp_path / "released" / "config.json").read_text())
    (pairs / "config.json").write_text(json.dumps(config))

    assert main([str(pairs), str(place / "old"), "--text_readout", "pad77"]) == 0
    convert(place / "old", place / "back", to="released")
    for folder in (place / "old", place / "back"):
        assert LeVLJEPAModel.from_pretrained(folder).config.text_readout == "pad77", folder.name
        processor = LeVLJEPAProcessor.from_pretrained(folder)
        assert processor.text_readout == "pad77" and len(processor(text=["a"]).input_ids[0]) == 77, folder.name
    assert "padded to 77 tokens without EOS" in (place / "old" / "README.md").read_text()
    convert(place / "back", place / "eot", text_readout="eot")
    assert LeVLJEPAProcessor.from_pretrained(place / "eot").text_readout == "eot"
    (pairs / "config.json").write_text(json.dumps({**config, "text_readout": "pad77"}))
    convert(pairs, place / "stated")
    assert LeVLJEPAProcessor.from_pretrained(place / "stated").text_readout == "pad77"
    with pytest.raises(ValueError, match="text_readout='last' is unknown: use one of eot, pad77"):
        convert(pairs, place / "wrong", text_readout="last")


def test_a_native_checkpoint_that_is_cut_off_is_refused(native, place, capsys):
    weights = native / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(SystemExit, match="2"):
        main([str(native), str(place / "target")])
    assert "no readable safetensors file" in capsys.readouterr().err and not (place / "target").exists()


def test_a_native_checkpoint_without_a_processor_gets_one(native, place):
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (native / name).unlink()
    target = convert(native, place / "target")
    assert LeVLJEPAProcessor.from_pretrained(target).image_processor.crop_size["height"] == 32
    assert (target / "processor_config.json").is_file() and (target / "tokenizer.json").is_file()


def test_the_processors_own_settings_are_kept(native, place):
    LeVLJEPAProcessor.from_image_size(32, image_mean=[0.4] * 3, transform="evaluation").save_pretrained(native)
    image_processor = LeVLJEPAProcessor.from_pretrained(
        convert(native, place / "target", text_readout="pad77")
    ).image_processor
    assert list(image_processor.image_mean) == [0.4] * 3 and image_processor.size["shortest_edge"] == 37


# The card


@pytest.mark.parametrize(
    ("fields", "heads", "predictors"),
    [
        ({}, "1 hidden layer of width 64", "2 hidden layers of width 64"),
        (
            {"head_num_layers": 0, "predictor_num_layers": None, "predictor_hidden_size": []},
            "linear",
            "one for each modality: linear",
        ),
        ({"head_hidden_size": [48, 32], "predictor_hidden_size": 64}, "hidden layers of widths 48 and 32", "width 64"),
        (
            {"head_num_layers": 2, "predictor_num_layers": None, "predictor_hidden_size": [40, 24, 40]},
            "2 hidden layers of width 64",
            "hidden layers of widths 40, 24 and 40",
        ),
        ({"predictor_num_layers": 0}, "1 hidden layer of width 64", "none"),
    ],
    ids=["preset", "linear", "list", "both", "no predictors"],
)
def test_card_describes_heads_and_predictors(fields, heads, predictors):
    config = LeVLJEPAConfig.from_preset("debug", **fields)
    card = model_card(config, name="owner/name", source="somewhere", native=True).text
    rows = dict(re.findall(r"^\| (\w[\w ]*) \| (.*) \|$", card, re.MULTILINE))
    assert heads in rows["Heads"] and predictors in rows["Predictors"]
    assert ("has no predictors" in card) == (predictors == "none")
    assert ("`avg` readout" in card) == (predictors != "none")


def test_card_says_why_the_statistics_are_clips():
    config = LeVLJEPAConfig.from_preset("released")
    card = model_card(config, name="copy", source="", base_model=convert_module.RELEASES[0]).text
    assert "CLIP's mean and standard deviation**, as the processor does: training used them." in card
    assert "degenerate" not in card
    assert "Kuhn, Lukas and Serra, Giuseppe and Balestriero, Randall and Buettner, Florian" in card


def test_what_a_killed_call_left_is_removed_by_the_next(native, tmp_path):
    target = tmp_path / "copy"
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead, alive = (tmp_path / f".copy.{pid}.abc" for pid in (int(done.stdout), os.getpid()))
    for folder in (dead, alive, tmp_path / ".copy.backup"):
        folder.mkdir()
    assert main([str(native), str(target)]) == 0
    assert not dead.exists() and alive.is_dir() and (tmp_path / ".copy.backup").is_dir()
