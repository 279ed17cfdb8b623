"""`levljepa embed`: the features are the model's, whole shards are kept, and kills and processes change no bit."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from levljepa_hf import cli
from levljepa_hf.encoders import command as embed_command
from levljepa_hf.encoders import shards
from levljepa_hf.encoders.command import EmbedArguments, embed
from levljepa_hf.encoders.encoders import load_encoder

NUM_IMAGES = 23
BROKEN = 7
RETRIEVAL = ["cls", "mean", "image_embeds", "predictions", "retrieval", "patches"]


def photo(number: int) -> bytes:
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((36 + number % 7, 40))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    """What `save_to_disk` writes of 23 photos, one of which does not decode."""
    folder = tmp_path_factory.mktemp("photos") / "saved"
    content = [b"no image" if i == BROKEN else photo(i) for i in range(NUM_IMAGES)]
    images = [{"bytes": one, "path": f"{i:03}.png"} for i, one in enumerate(content)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"image": images, "label": list(range(NUM_IMAGES))}
    datasets.Dataset.from_dict(columns, features).save_to_disk(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def one_thread():
    """As in processes beside one another: sums over several threads round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def arguments(dataset: str, output: Path, **changes) -> EmbedArguments:
    options = {"shard_size": 5, "batch_size": 2, "max_skipped_rate": 0.1, "device": "cpu", "features": ["cls"]}
    return EmbedArguments("random:debug", dataset, str(output), **options | changes)


def files(folder: Path) -> dict[str, bytes]:
    """But for the names of folders and versions in `settings.json`."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "settings.json"}


def load(folder: Path, cache: Path) -> datasets.Dataset:
    pattern = str(folder / "*.parquet")
    return datasets.load_dataset("parquet", data_files=pattern, split="train", cache_dir=str(cache))


def reference(dataset: str) -> tuple[list[int], dict[str, torch.Tensor]]:
    """Features of each image alone, by the model's own methods."""
    encoder = load_encoder("random:debug")
    rows = [i for i in range(NUM_IMAGES) if i != BROKEN]
    images = [datasets.load_from_disk(dataset)[i]["image"] for i in rows]
    pixels = [encoder.image_processor()(image, return_tensors="pt")["pixel_values"] for image in images]
    found = {name: [] for name in RETRIEVAL}
    with torch.no_grad():
        for one in pixels:
            tokens = encoder.model.vision_model(one).last_hidden_state[0]
            z = encoder.model.get_image_features(one).pooler_output
            found["cls"].append(tokens[0])
            found["mean"].append(tokens[1:].mean(dim=0))
            found["patches"].append(tokens[1:])
            found["image_embeds"].append(z[0])
            found["predictions"].append(encoder.model.vision_predictor(z)[0])
            found["retrieval"].append(encoder.model.get_image_retrieval_features(one).pooler_output[0])
    return rows, {name: torch.stack(tensors) for name, tensors in found.items()}


@pytest.mark.parametrize(
    ("format", "dtype"), [("parquet", "float32"), ("parquet", "float16"), ("safetensors", "bfloat16")]
)
def test_features_are_the_models_and_read_by_datasets(photos, tmp_path, format, dtype):
    report = embed(arguments(photos, tmp_path / "out", format=format, dtype=dtype, features=RETRIEVAL))
    rows, expected = reference(photos)
    if format == "parquet":
        table = load(tmp_path / "out", tmp_path / "cache")
        assert table.features["cls"] == datasets.List(datasets.Value(dtype), length=32)
        columns = table[:]
        found = {name: torch.from_numpy(np.array(columns[name], dtype)) for name in RETRIEVAL}
        index, keys = columns["index"], columns["key"]
    else:
        shards = sorted((tmp_path / "out").glob("*.safetensors"))
        found = {name: torch.cat([load_file(path)[name] for path in shards]) for name in RETRIEVAL}
        index = torch.cat([load_file(path)["index"] for path in shards]).tolist()
        keys = [key for path in shards for key in json.loads(safe_open(path, "pt").metadata()["levljepa"])["keys"]]
    assert index == rows and keys == [f"{i:03}.png" for i in rows]
    tolerance = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
    for name, tensor in expected.items():
        assert format == "parquet" or found[name].dtype == torch.bfloat16
        torch.testing.assert_close(found[name].float(), tensor, rtol=tolerance, atol=tolerance, msg=name)
    assert (report.images, report.skipped, report.num_shards, report.kept_shards) == (NUM_IMAGES, 1, 5, 0)
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["index"] == BROKEN and "cannot identify image" in json.loads(line)["reason"]


def command(dataset: str, output: Path, *launcher: str) -> list[str]:
    program = [sys.executable, *(launcher or ("-m", "levljepa_hf.cli")), "embed", "--model", "random:debug"]
    data = ["--dataset", dataset, "--output", str(output), "--features", "cls", "predictions", "--device", "cpu"]
    return [*program, *data, "--shard_size", "1", "--batch_size", "1", "--max_skipped_rate", "0.1"]


def test_a_killed_run_goes_on_in_two_processes_and_no_bit_differs(photos, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.Popen(command(photos, tmp_path / "out"), env=environment, stderr=subprocess.PIPE)
    while len(list((tmp_path / "out").glob("features-*"))) < 2 and killed.poll() is None:
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, killed.stderr.read().decode()
    killed.stderr.close()
    there = sorted((tmp_path / "out").glob("features-*"))
    assert 2 <= len(there) < NUM_IMAGES
    times = [path.stat().st_mtime_ns for path in there]

    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "levljepa_hf.cli"]
    resumed = subprocess.run(
        command(photos, tmp_path / "out", *launcher), env=environment, capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    (line,) = resumed.stdout.splitlines()
    assert line.startswith(f"{NUM_IMAGES - len(there)} images in ")
    assert "a process (2 x cpu, weights float32, features float16)" in line
    assert f"; {len(there)} of {NUM_IMAGES} shards were there; 1 images skipped" in line
    assert [path.stat().st_mtime_ns for path in there] == times  # they were not written again

    embed(arguments(photos, tmp_path / "whole", features=["cls", "predictions"], shard_size=1, batch_size=1))
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert len(files(tmp_path / "out")) == NUM_IMAGES + 1


@pytest.mark.parametrize("format", ["parquet", "safetensors"])
def test_shards_that_are_not_whole_or_not_of_this_run_are_written_again(photos, tmp_path, format):
    base = arguments(photos, tmp_path / "out", format=format)
    embed(base)
    expected = files(tmp_path / "out")
    other = arguments(photos, tmp_path / "other", format=format, dtype="float32")
    embed(other)
    names = sorted(name for name in expected if name.startswith("features-"))
    (tmp_path / "out" / names[0]).unlink()
    (tmp_path / "out" / names[1]).write_bytes(expected[names[1]][:-9])
    (tmp_path / "out" / names[2]).write_bytes(files(tmp_path / "other")[names[2]])
    (tmp_path / "out" / names[3]).write_bytes(expected[names[4]])  # of three rows
    (tmp_path / "out" / f".0a1b2c3d-{names[0]}").write_bytes(b"left by a kill")
    report = embed(base)
    assert files(tmp_path / "out") == expected
    assert (report.images, report.kept_shards, report.skipped) == (20, 1, 1)


def test_other_settings_are_refused_with_both_values(photos, tmp_path, capsys):
    embed(arguments(photos, tmp_path))
    before = files(tmp_path)
    changes = {
        "dtype": ("float32", "dtype 'float16' there, 'float32' now"),
        "features": (["mean"], r"features \['cls'\] there, \['mean'\] now"),
        "transform": ("default", "transform 'evaluation' there, 'default' now"),
        "shard_size": (6, "shard_size 5 there, 6 now"),
        "batch_size": (3, "batch_size 2 there, 3 now"),
        "max_samples": (22, "num_rows 23 there, 22 now"),
        "model_dtype": ("bfloat16", "model_fingerprint '.*' there, '.*' now; model_dtype 'float32' there"),
        "format": ("safetensors", "format 'parquet' there, 'safetensors' now"),
        "key_column": ("label", "key_column None there, 'label' now"),
    }
    for name, (value, message) in changes.items():
        with pytest.raises(ValueError, match=message):
            embed(arguments(photos, tmp_path, **{name: value}))
    assert files(tmp_path) == before
    embed(arguments(photos, tmp_path, num_workers=1, max_skipped_rate=0.2))  # decide nothing


def test_other_images_are_refused(photos, tmp_path):
    changed = datasets.load_from_disk(photos).select([*range(1, NUM_IMAGES), 0])
    embed(arguments(photos, tmp_path / "out"))
    changed.save_to_disk(tmp_path / "changed")
    with pytest.raises(ValueError, match="dataset_fingerprint '.*' there"):
        embed(arguments(str(tmp_path / "changed"), tmp_path / "out"))
    os.rename(tmp_path / "changed", tmp_path / "renamed")
    embed(arguments(str(tmp_path / "renamed"), tmp_path / "new"))
    os.rename(tmp_path / "renamed", tmp_path / "moved")
    assert embed(arguments(str(tmp_path / "moved"), tmp_path / "new")).kept_shards == 5  # a name decides nothing


def test_too_many_broken_images_are_an_error_that_lists_them(photos, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="1 of 23 images do not decode, which is more than 1.00%; .*skipped.jsonl"):
        embed(arguments(photos, tmp_path / "out", max_skipped_rate=0.01))
    assert json.loads((tmp_path / "out" / "skipped.jsonl").read_text())["index"] == BROKEN
    monkeypatch.setattr(shards, "MIN_SAMPLES_TO_JUDGE", 1)  # while it runs
    with pytest.raises(ValueError, match=r"1 of 9 images do not decode.* the last of them is \[\(7, "):
        embed(arguments(photos, tmp_path / "other", max_skipped_rate=0.09))
    assert len(list((tmp_path / "other").glob("features-*"))) == 1


def test_a_shard_of_broken_images_is_empty(photos, tmp_path):
    for format in ("parquet", "safetensors"):
        out = tmp_path / format
        embed(arguments(photos, out, format=format, shard_size=1, batch_size=1, features=["patches"]))
        assert (
            embed(arguments(photos, out, format=format, shard_size=1, batch_size=1, features=["patches"])).kept_shards
            == 23
        )
    table = load(tmp_path / "parquet", tmp_path / "cache")
    assert len(table) == NUM_IMAGES - 1 and np.shape(table[0]["patches"]) == (16, 32)


def test_the_keys_of_a_folder_are_its_relative_paths(tmp_path, monkeypatch, capsys):
    """And the example of the help runs."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("cat/1.png", "dog/1.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        (tmp_path / "photos" / name).write_bytes(photo(len(name) + ord(name[0])))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["embed", "--help"])
    example = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  levljepa embed"))
    assert cli.main(example.split()[1:]) == 0
    assert capsys.readouterr().out.startswith("2 images in ")
    table = load(tmp_path / "features", tmp_path / "cache")
    assert table["key"][:] == ["cat/1.png", "dog/1.png"]
    assert table.column_names == ["index", "key", "cls", "mean", "image_embeds", "predictions", "retrieval"]
    assert cli.main([*example.split()[1:], "--key_column", "label", "--output", "labels"]) == 0
    assert load(tmp_path / "labels", tmp_path / "cache")["key"][:] == ["0", "1"]


def test_errors_come_before_the_work(photos, tmp_path, capsys, monkeypatch):
    for changes, message in (
        ({"format": "csv"}, "format='csv' is unknown: use one of parquet, safetensors"),
        ({"features": ["clss"]}, r"features=\['clss'\] are unknown"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16' is no type of Parquet's"),
        ({"shard_size": 0}, "shard_size=0 is too small: use 1 or more"),
        ({"max_skipped_rate": 2.0}, "max_skipped_rate=2.0 is no share"),
        ({"device": "tpux"}, "device='tpux' is none of torch's"),
        ({"key_column": "name"}, "key_column='name' is none of the columns image, label"),
        ({"image_column": "img"}, "this data set has no column 'img' of images"),
    ):
        with pytest.raises(ValueError, match=message):
            embed(arguments(photos, tmp_path / "out", **changes))
    monkeypatch.setattr(embed_command.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 22 * 32 * 2})())
    with pytest.raises(ValueError, match=r"The features of 23 images take 0.0 GiB"):
        embed(arguments(photos, tmp_path / "out"))
    assert not list((tmp_path / "out").glob("features-*"))
    line = ["embed", "--model", str(tmp_path / "none"), "--dataset", photos, "--output", str(tmp_path / "new")]
    with pytest.raises(SystemExit) as exit_info:
        cli.main(line)
    assert exit_info.value.code == 2 and capsys.readouterr().err.startswith("levljepa embed: ")


def test_features_that_overflow_or_that_a_model_lacks_are_refused(photos, tmp_path, monkeypatch, model):
    def load_tower(*args, **kwargs):
        encoder = load_encoder("random:debug")
        encoder.readouts = ()
        return encoder

    monkeypatch.setattr(embed_command, "load_encoder", load_tower)
    with pytest.raises(ValueError, match="random:debug has no retrieval: it has cls, mean, patches"):
        embed(arguments(photos, tmp_path / "tower", features=["cls", "retrieval"]))

    def load_large(*args, **kwargs):
        encoder = load_encoder("random:debug")
        encoder.model.vision_model.timm_model.norm.weight.mul_(1e6)
        return encoder

    monkeypatch.setattr(embed_command, "load_encoder", load_large)
    with pytest.raises(ValueError, match="cls of image 0 is not finite in float16"):
        embed(arguments(photos, tmp_path / "large"))
    embed(arguments(photos, tmp_path / "float32", dtype="float32"))
