"""Streams: who draws what, going on after any sample, shards that are damaged, and tars read sample by sample."""

import io
import itertools
import json
import random
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from datasets import Dataset

from levljepa_hf.data import streams, tar_shards
from levljepa_hf.data.loading import find_columns, load_pretraining_dataset
from levljepa_hf.data.streams import EndlessStream, Position, StreamState, random_below, worker_shards
from levljepa_hf.data.tar_shards import DamagedShardError, TarShards, read_tar_samples

SHARDS, EACH = 5, 11


def write_tar(path: Path, first: int, number: int, **replaced: bytes) -> None:
    """A shard of `number` samples from `first` on: jpg, txt, json; members of `replaced` have other contents."""
    image = io.BytesIO()
    PIL.Image.new("RGB", (60, 40)).save(image, "PNG")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(first, first + number):
            captions = {"captions": [f"picture {i}", f"the {i}th"]}
            members = {"png": image.getvalue(), "txt": f"picture {i}".encode(), "json": json.dumps(captions).encode()}
            for extension, content in members.items():
                content = replaced.get(f"{i}_{extension}", content)
                header = tarfile.TarInfo(f"some/folder/{i:04d}.{extension}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path) -> Path:
    for i in range(SHARDS):
        write_tar(tmp_path / f"part-{i}.tar", i * EACH, EACH)
    return tmp_path


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(streams, "RETRY_AFTER", (0.0, 0.0))


def opened(shards: Path) -> Any:
    return load_pretraining_dataset(f"{shards}/part-*.tar", streaming=True, caption_column="txt")


def keys(stream: EndlessStream, number: int) -> list[tuple[int, str]]:
    return [(one["sample_epoch"], one["txt"]) for one in itertools.islice(stream, number)]


# Who draws what


@pytest.mark.parametrize("num_shards", [1, 2, 3, 4, 6, 12, 50])
@pytest.mark.parametrize("consumers", [1, 2, 3, 4, 6, 8])
def test_each_sample_is_dealt_to_one_worker_and_about_as_many_to_each(num_shards, consumers):
    for epoch in range(3):
        owners, sizes = Counter(), Counter()
        for consumer in range(consumers):
            dealt, turn, turns = worker_shards(num_shards, 7, epoch, consumer, consumers)
            for shard, index in itertools.product(dealt, range(24)):
                if index % turns == turn:
                    owners[shard, index] += 1
                    sizes[consumer] += 1
        assert len(owners) == num_shards * 24 and set(owners.values()) == {1}
        assert max(sizes.values()) <= 1.15 * min(sizes.values())
    assert num_shards < 4 or worker_shards(num_shards, 7, 0, 0, 1) != worker_shards(num_shards, 7, 1, 0, 1)
    assert num_shards < 4 or worker_shards(num_shards, 7, 0, 0, 1) != worker_shards(num_shards, 8, 0, 0, 1)


def test_a_state_keeps_the_names_it_has_in_checkpoints():
    state = StreamState([Position(epoch=1, draws=2)], 3, 2, [[Position(parts=[Position(read=4)])]])
    assert list(json.loads(state.to_json())) == ["positions", "num_workers", "next_worker", "pasts"]
    assert StreamState.from_json(state.to_json()) == state


def test_draws_are_uniform_and_follow_from_the_numbers():
    counts = Counter(random_below(10, 3, 1, 0, i) for i in range(20_000))
    assert set(counts) == set(range(10)) and all(abs(n - 2000) < 200 for n in counts.values())
    others = ((3, 1, 0), (4, 1, 0), (3, 2, 0), (3, 1, 1))
    assert len({tuple(random_below(99, *numbers, i) for i in range(8)) for numbers in others}) == 4


def test_a_buffer_mixes_within_and_across_shards(shards):
    order = [int(text.split()[1]) for _, text in keys(EndlessStream(opened(shards), 0, buffer_size=15), SHARDS * EACH)]
    assert sorted(order) == list(range(SHARDS * EACH))
    assert any(a // EACH != b // EACH for a, b in zip(order[:10], order[1:], strict=False))
    whole = [
        int(text.split()[1]) // EACH
        for _, text in keys(EndlessStream(opened(shards), 0, buffer_size=1), SHARDS * EACH)
    ]
    assert [shard for shard, _ in itertools.groupby(whole)] != sorted(set(whole)), "shards are shuffled"
    assert len([*itertools.groupby(whole)]) <= 2 * SHARDS, "and with next to no buffer they come one after another"


@pytest.mark.parametrize("buffer_size", [5, 1000])
def test_one_shard_is_shuffled_by_seed_and_pass(buffer_size, shards):
    dataset = load_pretraining_dataset(f"{shards}/part-0.tar", streaming=True, caption_column="txt")
    orders = []
    for seed in (0, 1):
        texts = [text for _, text in keys(EndlessStream(dataset, seed, buffer_size), 2 * EACH)]
        orders += [tuple(texts[:EACH]), tuple(texts[EACH:])]
    assert len(set(orders)) == 4 and len({frozenset(order) for order in orders}) == 1


# Going on


@pytest.mark.parametrize("buffer_size", [1, 4, 30, 1000])
def test_a_stream_goes_on_after_any_sample(buffer_size, shards):
    dataset, size = opened(shards), SHARDS * EACH
    expected = keys(EndlessStream(dataset, 1, buffer_size), 3 * size)
    for number in (1, 3, 4, 10, 11, 12, 30, size - 1, size, size + 1, 2 * size - 5):
        stream = EndlessStream(dataset, 1, buffer_size)
        for _ in zip(range(number), stream, strict=False):
            pass
        again = EndlessStream(dataset, 1, buffer_size)
        again.resume(StreamState.from_json(StreamState([stream.position]).to_json()))
        assert keys(again, size // 2) == expected[number : number + size // 2], number


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine may have cores
@pytest.mark.parametrize("num_workers, batches", [(1, 5), (2, 5), (2, 6), (3, 7)])
def test_workers_go_on_in_their_turn(num_workers, batches, shards):
    dataset = opened(shards)

    def loader(stream):
        def collate(samples):
            at = torch.utils.data.get_worker_info().dataset
            return [one["txt"] for one in samples], (at.worker, at.position)

        return torch.utils.data.DataLoader(
            stream, 3, num_workers=num_workers, collate_fn=collate, multiprocessing_context="fork"
        )

    whole = [*itertools.islice(loader(EndlessStream(dataset, 1, 7)), batches + 12)]
    positions = dict(position for _, position in whole[:batches])
    state = StreamState([positions[i] for i in range(num_workers)], num_workers, batches % num_workers)
    again = EndlessStream(dataset, 1, 7)
    again.resume(state)
    assert [*itertools.islice(loader(again), 12)] == whole[batches:]


@pytest.mark.parametrize("ranks", [(1, 2), (2, 1), (3, 5, 2), (5, 1, 1, 2), (2, 2, 3), (4, 7, 6, 5)])
def test_with_other_numbers_the_samples_of_a_pass_stay_unique(ranks, shards):
    """The run is stopped, and goes on with another number of ranks, several times within a pass."""
    dataset, seen, state = opened(shards), Counter(), None
    for world_size in ranks:
        run = [EndlessStream(dataset, 1, 4, rank, world_size) for rank in range(world_size)]
        for one in run:
            if state is not None:
                one.resume(state)
        iterators = [iter(one) for one in run]
        for _ in range(12 // world_size):
            for iterator in iterators:
                one = next(iterator)
                seen[one["sample_epoch"], one["txt"]] += 1
        state = StreamState([one.position for one in run], 1, 0, run[0].earlier_runs(1))
    for one in run:  # to the end of the pass, from there
        again = EndlessStream(dataset, 1, 4, one.rank, one.world_size)
        again.resume(StreamState.from_json(state.to_json()))
        for sample in itertools.takewhile(lambda sample: sample["sample_epoch"] == 0, again):
            seen[0, sample["txt"]] += 1
    first_pass = [count for (epoch, _), count in seen.items() if epoch == 0]
    assert len(first_pass) == SHARDS * EACH and set(first_pass) == {1}


def test_with_other_numbers_ranks_that_were_ahead_do_not_repeat_themselves(shards):
    """One rank was in the second pass when the other had hardly begun the first; one process goes on."""
    dataset, seen = opened(shards), Counter()
    ranks = [EndlessStream(dataset, 1, 4, rank, 2) for rank in range(2)]
    for stream, number in zip(ranks, (40, 3), strict=True):
        for one in itertools.islice(stream, number):
            seen[one["sample_epoch"], one["txt"]] += 1
    assert {epoch for epoch, _ in seen} == {0, 1}
    again = EndlessStream(dataset, 1, 4)
    again.resume(StreamState([one.position for one in ranks], 1, 0))
    for one in itertools.takewhile(lambda one: one["sample_epoch"] < 2, again):
        seen[one["sample_epoch"], one["txt"]] += 1
    assert len(seen) == 2 * SHARDS * EACH and set(seen.values()) == {1}


def test_the_buffer_holds_as_many_as_it_is_told(shards):
    stream = EndlessStream(opened(shards), buffer_size=4)
    next(iter(stream))
    assert len(stream.position.buffer) == 4


def test_a_buffer_of_nothing_is_refused(shards):
    with pytest.raises(ValueError, match="buffer_size=0"):
        EndlessStream(opened(shards), buffer_size=0)


def test_a_stream_of_nothing_ends():
    dataset = Dataset.from_dict({"image": [b"x"], "captions": ["a"]}).to_iterable_dataset().filter(lambda one: False)
    assert list(EndlessStream(dataset)) == []


# Tars


def test_tar_samples_are_those_of_datasets(shards):
    from datasets import load_dataset

    files = [str(shards / "part-0.tar"), str(shards / "part-3.tar")]
    ours = list(read_tar_samples(files))
    theirs = load_dataset("webdataset", data_files=files, split="train", streaming=True).decode(False)
    for one, other in zip(ours, theirs, strict=True):
        assert one["png"]["bytes"] == other["png"]["bytes"]
        assert {**one, "png": 0} == {**{k: v for k, v in other.items() if k != "__url__"}, "png": 0}
    assert find_columns(TarShards(files)) == ("png", "txt")
    assert find_columns(TarShards(files), "png", "json.captions") == ("png", "json.captions")
    assert len(list(TarShards(files, ["txt"], max_samples=15))) == 15


def damage(path: Path, start: int, content: bytes | None) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:start] if content is None else data[:start] + content + data[start + len(content) :])


def member_offset(path: Path, number: int) -> int:
    with tarfile.open(path) as tar:
        return tar.getmembers()[number].offset


GARBAGE = random.Random(0).randbytes(4096)
DAMAGES = {
    "cut off within a file": (lambda path: damage(path, member_offset(path, 13) + 700, None), "end of data", 4, 4),
    "cut off between files": (lambda path: damage(path, member_offset(path, 12), None), "cut off", 4, 4),
    "garbage": (lambda path: damage(path, member_offset(path, 12), GARBAGE), "no part of a tar", 8, 10),
    "garbage at the start": (lambda path: damage(path, 0, GARBAGE[:600]), "no part of a tar", 10, 11),
    "a zeroed header": (lambda path: damage(path, member_offset(path, 12), bytes(512)), "no part of a tar", 10, 11),
    "HTML": (
        lambda path: path.write_text("<!DOCTYPE html>" + "x" * 2000),
        "no part of a tar",
        0,
        0,
    ),
    "empty": (lambda path: path.write_bytes(b""), "empty", 0, 0),
    "missing": (lambda path: path.unlink(), "does not open", 0, 0),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_tar_gives_what_it_still_holds_and_says_so(kind, shards):
    do, reason, least, most = DAMAGES[kind]
    path = shards / "part-2.tar"
    do(path)
    found = []
    with pytest.raises(DamagedShardError, match=reason) as caught:
        for sample in read_tar_samples([str(path)]):
            found.append(sample)
    whole = [one for one in found if {"png", "txt", "json"} <= one.keys()]
    assert least <= len(whole) <= most and str(path) in str(caught.value)
    assert all(one["txt"].split()[1] == str(int(one["__key__"][-4:])) for one in whole), "no parts of two samples"


def test_training_counts_and_lists_what_it_skips(shards, tmp_path, processor):
    from test_trainer import trainer

    dataset = opened(shards)
    DAMAGES["garbage"][0](shards / "part-2.tar")
    (shards / "part-3.tar").unlink()
    write_tar(shards / "part-3.tar", 33, EACH, **{"35_png": b"no image", "36_txt": b"\xff\xfe"})
    run = trainer(tmp_path / "run", processor, train_dataset=dataset, max_steps=14, stream_buffer_size=3)
    run.data_collator.max_skipped_rate = 0.5
    run.train()
    log = [entry for entry in run.state.log_history if "loss" in entry][-1]
    assert log["skipped_shards"] == 1 and log["skipped_images"] >= 1 and log["skipped_captions"] >= 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped_0.jsonl").read_text().splitlines()]
    assert [one["shard"] for one in lines if "shard" in one] == [2]
    reasons = {one["sample"]: one["reason"] for one in lines if "sample" in one}
    assert "does not decode" in reasons["some/folder/0035"] and "no Unicode" in reasons["some/folder/0036"]
    assert sum("sample" in one for one in lines) == log["skipped_images"] + log["skipped_captions"]


def test_the_choice_of_a_caption_column_is_named(shards, caplog):
    load_pretraining_dataset(f"{shards}/part-*.tar", streaming=True)
    assert "taken from the column 'txt'" in caplog.text and "'json.captions'" in caplog.text
    caplog.clear()
    load_pretraining_dataset(f"{shards}/part-*.tar", streaming=True, caption_column="json.captions")
    assert caplog.text == ""


def test_the_end_of_one_archive_is_not_that_of_the_next(shards):
    """Tars may be put one after the other; the last must end, too."""
    first, second = shards / "part-0.tar", shards / "part-1.tar"
    joined = first.read_bytes() + second.read_bytes()
    path = shards / "joined.tar"
    path.write_bytes(joined)
    assert len(list(read_tar_samples([str(path)]))) == 2 * EACH
    path.write_bytes(joined[: first.stat().st_size + member_offset(second, 6)])
    with pytest.raises(DamagedShardError, match="cut off"):
        list(read_tar_samples([str(path)]))


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_stream_uses_the_rest_and_counts_the_shard(kind, shards, caplog):
    dataset = opened(shards)  # it was whole when the run began
    do, _, least, _ = DAMAGES[kind]
    do(shards / "part-2.tar")
    stream = EndlessStream(dataset, buffer_size=5)
    passes = Counter()
    for one in itertools.takewhile(lambda one: one["sample_epoch"] < 2, stream):
        passes[one["sample_epoch"]] += one["txt"] is not None and one["png"] is not None
    assert passes[0] == passes[1] >= (SHARDS - 1) * EACH + least
    assert stream.broken.count == 1 and caplog.text.count("used as far as") == 1 and "part-2.tar" in caplog.text


def test_too_many_broken_shards_stop_the_stream(shards):
    dataset = opened(shards)
    for i in (1, 3):
        (shards / f"part-{i}.tar").write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"2 of 5 shards .*max_skipped_shards=10%.*part-[13]"):
        keys(EndlessStream(dataset), 60)
    assert len(keys(EndlessStream(dataset, max_skipped_shards=0.5), 60)) == 60
    for i in range(SHARDS):
        (shards / f"part-{i}.tar").write_bytes(b"")
    with pytest.raises(RuntimeError, match="5 of 5 shards"):
        keys(EndlessStream(dataset, max_skipped_shards=1.0), 1)


def test_a_shard_that_comes_back_is_read(shards, monkeypatch):
    dataset, attempts, real = opened(shards), [], tar_shards._opened

    def flaky(file):
        attempts.append(file)
        if "part-2" in file and sum("part-2" in one for one in attempts) < 3:
            raise DamagedShardError(f"{file} does not open")
        return real(file)

    monkeypatch.setattr(tar_shards, "_opened", flaky)
    stream = EndlessStream(dataset)
    assert len({text for _, text in keys(stream, SHARDS * EACH)}) == SHARDS * EACH and stream.broken.count == 0


def test_one_bad_text_or_json_costs_its_own_sample(tmp_path):
    bad = {"3_txt": b"caf\xe9", "4_json": b'{"captions": ["half', "5_json": b""}
    write_tar(tmp_path / "part-0.tar", 0, 8, **bad)
    samples = list(read_tar_samples([str(tmp_path / "part-0.tar")]))
    assert [one["txt"] for one in samples] == [f"picture {i}" if i != 3 else b"caf\xe9" for i in range(8)]
    assert [i for i, one in enumerate(samples) if one["json"] is None] == [4, 5]


def test_the_first_shard_may_be_the_broken_one(shards):
    (shards / "part-0.tar").write_text("<html>")
    dataset = opened(shards)
    assert len({text for _, text in keys(EndlessStream(dataset), 44)}) == 44
    for path in shards.glob("*.tar"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="No sample in any of the tar files: .*empty"):
        opened(shards)


def test_positions_start_at_nothing():
    assert Position() == Position(0, 0, 0, 0, [])
    state = StreamState([Position(1, 2, 3, 4, [(5, 6)])], 1, 0, [[Position(0, 1, 0, 9, [])]])
    assert json.loads(state.to_json()) == json.loads(StreamState.from_json(state.to_json()).to_json())


@pytest.mark.parametrize("kind", ["cut off within a file", "HTML", "empty"])
def test_a_damaged_tar_that_is_to_be_prepared_is_named_with_the_way_on(kind, shards, tmp_path):
    DAMAGES[kind][0](shards / "part-2.tar")
    with pytest.raises(ValueError, match=r"part-\*\.tar can't be prepared: .*--streaming"):
        load_pretraining_dataset(f"{shards}/part-*.tar", caption_column="txt", cache_dir=str(tmp_path / "cache"))
