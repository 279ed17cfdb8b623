"""Mixtures of datasets: their shares, what repeats and when, going on anywhere, and what is refused."""

import itertools
import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from datasets import Dataset, Features, Image, List, Value

from levljepa_hf.data.collator import LeVLJEPADataCollator, NumberedDataset
from levljepa_hf.data.loading import load_pretraining_dataset
from levljepa_hf.data.mixtures import (
    MixedDataset,
    MixedStream,
    Mixture,
    MixtureSource,
    load_mixture,
    read_source,
    read_sources,
)
from levljepa_hf.data.streams import EndlessStream, Position, ResumableStream, RowShards, StreamState, _EarlierRun
from levljepa_hf.training.order import SamplesPerDataset
from test_data import imagefolder, webdataset  # noqa: F401  (fixtures)
from test_pretrain import RECIPE, pretrain
from test_pretrain import run as script  # noqa: F401  (a fixture)
from test_streams import DAMAGES, EACH, SHARDS, impatient, write_tar  # noqa: F401  (a fixture)
from test_trainer import new_model, samples, trainer, trajectory

WEIGHTS = {"web": 0.7, "photos": 0.3}


@pytest.fixture
def shards(tmp_path) -> Path:
    """Tars of 55 samples, `picture 0` to `picture 54`."""
    folder = tmp_path / "web"
    folder.mkdir()
    for i in range(SHARDS):
        write_tar(folder / f"part-{i}.tar", i * EACH, EACH)
    return folder


def tars(shards: Path) -> Any:
    return load_pretraining_dataset(f"{shards}/part-*.tar", streaming=True, caption_column="json.captions")


def web_and_photos(shards: Path, number: int = 13) -> Mixture:
    """A streamed dataset and a map-style one, whose captions have columns of their own."""
    columns = {"web": ("png", "json.captions"), "photos": ("image", "captions")}
    return Mixture({"web": tars(shards), "photos": samples(number)}, WEIGHTS, columns)


def rows(name: str, number: int) -> list[dict[str, Any]]:
    return [{"image": b"", "captions": f"{name} {i}"} for i in range(number)]


def captions(dataset: MixedDataset, epochs: int, first: int = 0) -> list[str]:
    drawn = []
    for epoch in range(first, first + epochs):
        dataset.set_epoch(epoch)
        drawn += [dataset[i]["captions"] for i in range(len(dataset))]
    return drawn


def names(sample: dict[str, Any]) -> tuple[Any, ...]:
    return sample["sample_dataset"], sample["sample_epoch"], sample["sample_index"]


# Map-style


def test_in_proportion_to_the_sizes_an_epoch_has_each_sample_once():
    dataset = Mixture({"a": rows("a", 30), "b": rows("b", 11), "c": rows("c", 1)}).prepared(seed=1)
    assert isinstance(dataset, MixedDataset) and len(dataset) == 42
    epochs = [captions(dataset, 1, first) for first in range(3)]
    assert all(Counter(one) == Counter(epochs[0]) and len(set(one)) == 42 for one in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert captions(Mixture({"a": rows("a", 30), "b": rows("b", 11), "c": rows("c", 1)}).prepared(2), 1) != epochs[0]


@pytest.mark.parametrize("shares", [(0.7, 0.3), (1, 999), (3, 1), (0.011, 0.989)])
def test_epochs_have_the_shares_to_a_sample(shares):
    weights = dict(zip("ab", shares, strict=True))
    dataset = Mixture({"a": rows("a", 30), "b": rows("b", 11)}, weights).prepared()
    share = Fraction(shares[0]) / sum(map(Fraction, shares))
    for epoch in range(40):
        assert abs(dataset.counts(epoch)[0] - 41 * share) < 1 and sum(dataset.counts(epoch)) == 41
        so_far = sum(dataset.counts(one)[0] for one in range(epoch + 1))
        assert abs(so_far - 41 * share * (epoch + 1)) < 2.5
    drawn = Counter(one[0] for one in captions(dataset, 40))
    assert drawn["a"] == so_far and drawn.total() == 40 * 41


def test_a_dataset_is_gone_through_before_it_repeats_across_epochs():
    dataset = Mixture({"a": rows("a", 30), "b": rows("b", 11)}, {"a": 0.4, "b": 0.6}).prepared(seed=3)
    drawn = captions(dataset, 12)
    passes = {}
    for name, size in (("a", 30), ("b", 11)):
        own = [one for one in drawn if one.startswith(name)]
        passes[name] = [own[i : i + size] for i in range(0, len(own), size)]
        assert all(len(set(one)) == len(one) for one in passes[name]) and len(passes[name]) > 2
        assert passes[name][0] != passes[name][1]
    assert [int(one.split()[1]) for one in passes["b"][0]] != sorted(range(11)), "and in a random order"
    half = [one[0] for one in drawn[:20]]
    assert {"a", "b"} == set(half) and half != sorted(half), "of both by turns"


def test_an_epoch_is_the_same_however_one_comes_to_it():
    def new() -> MixedDataset:
        return Mixture({"a": rows("a", 30), "b": rows("b", 11)}, {"a": 0.4, "b": 0.6}).prepared(seed=3)

    whole = captions(new(), 5)
    assert captions(new(), 1, first=4) == whole[4 * 41 :]
    dataset = new()
    NumberedDataset.set_epoch(dataset, 4)  # as a worker that is running learns of it
    assert [dataset[i]["captions"] for i in range(41)] == whole[4 * 41 :]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_do_not_change_the_order(num_workers):
    dataset = Mixture({"a": rows("a", 30), "b": rows("b", 11)}, {"a": 0.4, "b": 0.6}).prepared(seed=3)
    dataset.set_epoch(1)
    alone = [dataset[i] for i in range(41)]
    options = {"num_workers": num_workers, "collate_fn": list, "multiprocessing_context": "fork"}
    batches = torch.utils.data.DataLoader(dataset, batch_size=5, **options)
    assert [one for batch in batches for one in batch] == alone


def test_samples_of_different_datasets_and_passes_are_augmented_differently(processor):
    """The same image under the same number in two datasets, and again in the next pass of the same epoch."""
    image = samples(1)[0]["image"]
    for i in range(40):
        for j in range(36):
            image.putpixel((i, j), (i * 6, j * 7, (i * j) % 256))
    row = {"image": image, "captions": "x"}
    mixture = Mixture({"a": [row], "b": [row]})
    collator = LeVLJEPADataCollator(processor)

    def pixels(part: int, epoch: int) -> torch.Tensor:
        return collator([mixture.sample(part, row, (0,), epoch)])["pixel_values"]

    assert torch.equal(pixels(0, 0), pixels(0, 0))
    assert not torch.equal(pixels(0, 0), pixels(1, 0)) and not torch.equal(pixels(0, 0), pixels(0, 1))
    dataset = Mixture({"a": rows("a", 2), "b": rows("b", 9)}, {"a": 0.9, "b": 0.1}).prepared()
    dataset.set_epoch(1)
    drawn = [names(dataset[i]) for i in range(len(dataset))]
    assert len(set(drawn)) == 11, "a dataset that repeats within an epoch is in another pass"


def test_a_mixture_reads_columns_of_each_dataset():
    mixture = Mixture(
        {
            "a": Dataset.from_dict({"photo": [b"1"], "json": [{"captions": ["x", "y"]}]}),
            "b": Dataset.from_dict({"jpg": [b"2"], "txt": ["z"], "__key__": ["k"]}),
        },
        columns={"a": ("photo", "json.captions")},
    )
    dataset = mixture.prepared()
    found = {one["sample_dataset"]: one for one in (dataset[0], dataset[1])}
    assert found["a"] == {
        **{"image": b"1", "captions": ["x", "y"]},
        **{"sample_dataset": "a", "sample_index": (0, 0), "sample_epoch": 0},
    }
    assert found["b"]["image"] == b"2" and found["b"]["captions"] == "z" and found["b"]["__key__"] == "k"


# Streamed


def test_every_worker_of_a_stream_has_the_shares(shards):
    """Within four standard deviations of 3000 draws each, and no two workers make the same choices."""
    mixture = Mixture({"a": tars(shards), "b": rows("b", 50), "c": rows("c", 50)}, {"a": 0.6, "b": 0.3, "c": 0.1})
    stream = mixture.prepared(seed=1)
    assert isinstance(stream, MixedStream) and isinstance(stream, ResumableStream)
    choices = [tuple(stream.which(consumer, i) for i in range(3000)) for consumer in range(4)]
    for one in choices:
        for part, share in enumerate((0.6, 0.3, 0.1)):
            assert abs(one.count(part) - 3000 * share) < 4 * (3000 * share * (1 - share)) ** 0.5
    assert len(set(choices)) == 4
    assert choices[0] != tuple(mixture.prepared(seed=2).which(0, i) for i in range(3000))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_of_a_stream_share_each_dataset(world_size, shards):
    """While none has been through a dataset no sample is drawn twice; each rank has the shares."""
    mixture = web_and_photos(shards, number=60)
    ranks = [mixture.prepared(2, 4, rank, world_size) for rank in range(world_size)]
    drawn = [list(itertools.islice(one, 54 // world_size)) for one in ranks]
    keys = [names(one) for rank in drawn for one in rank]
    assert len(set(keys)) == len(keys)
    assert all({one["sample_dataset"] for one in rank} == {"web", "photos"} for rank in drawn)


def test_the_datasets_of_a_stream_are_gone_through_before_they_repeat(shards):
    drawn = list(itertools.islice(web_and_photos(shards).prepared(2, 7), 300))
    for name, size in (("web", SHARDS * EACH), ("photos", 13)):
        own = [one for one in drawn if one["sample_dataset"] == name]
        assert len(own) > 3 * size
        for i in range(0, len(own) - size, size):
            assert len({one["sample_index"] for one in own[i : i + size]}) == size
            assert {one["sample_epoch"] for one in own[i : i + size]} == {i // size}
    orders = [[one["sample_index"] for one in drawn if names(one)[:2] == ("photos", epoch)] for epoch in (0, 1)]
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])
    assert {type(one["captions"]) for one in drawn} == {list} and {"image", "captions"} <= drawn[0].keys()


def test_rows_do_not_wait_in_a_buffer(shards):
    stream = web_and_photos(shards).prepared(1, 7)
    for _ in zip(range(20), stream, strict=False):
        pass
    assert [len(one.buffer) for one in stream.position.parts] == [7, 1]


def test_streams_of_as_many_shards_do_not_go_in_step(shards):
    mixture = Mixture({"a": tars(shards), "b": tars(shards)}, {"a": 1, "b": 1})
    drawn = list(itertools.islice(mixture.prepared(0, 1), 60))
    a, b = ([one["sample_index"][1:] for one in drawn if one["sample_dataset"] == name] for name in "ab")
    assert a[:20] != b[:20]


def test_many_rows_are_put_into_shards(monkeypatch):
    monkeypatch.setattr("levljepa_hf.data.streams.MAX_ROW_SHARDS", 4)
    found = RowShards(list(range(11)))
    assert found.num_shards == 4
    assert sorted(row for i in range(4) for row in found.read_shard(i)) == list(range(11))


@pytest.mark.parametrize(("number", "consumers"), [(20, 16), (100, 16), (16, 16)])
def test_rows_are_dealt_about_evenly(number, consumers):
    """Not as shards are, of which workers would share the samples: a row has but one."""
    sizes = []
    for rank in range(consumers):
        stream = EndlessStream(RowShards(rows("a", number)), 0, 1, rank, consumers)
        sizes.append(sum(1 for _ in itertools.takewhile(lambda one: one["sample_epoch"] == 0, stream)))
    assert sum(sizes) == number and max(sizes) - min(sizes) <= 1


# Going on


@pytest.mark.parametrize("buffer_size", [1, 7, 1000])
def test_a_mixed_stream_goes_on_after_any_sample(buffer_size, shards):
    mixture = web_and_photos(shards)
    expected = [names(one) for one in itertools.islice(mixture.prepared(1, buffer_size), 300)]
    for number in (1, 2, 3, 11, 40, 79, 80, 200):
        stream = mixture.prepared(1, buffer_size)
        for _ in zip(range(number), stream, strict=False):
            pass
        again = mixture.prepared(1, buffer_size)
        again.resume(StreamState.from_json(StreamState([stream.position]).to_json()))
        assert [names(one) for one in itertools.islice(again, 60)] == expected[number : number + 60], number


def test_a_dataset_that_was_not_drawn_from_since_keeps_its_place(shards):
    """Stopped, taken up, and stopped again after one sample, of one dataset."""
    mixture = web_and_photos(shards)
    expected = [names(one) for one in itertools.islice(mixture.prepared(1, 7), 120)]
    state = None
    for number in range(60):
        stream = mixture.prepared(1, 7)
        if state is not None:
            stream.resume(StreamState.from_json(state))
        assert names(next(iter(stream))) == expected[number], number
        state = StreamState([stream.position], 1, 0, stream.earlier_runs(1)).to_json()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("num_workers", "batches"), [(1, 5), (2, 5), (2, 6), (3, 7)])
def test_workers_of_a_mixture_go_on_in_their_turn(num_workers, batches, shards):
    mixture = web_and_photos(shards)

    def loader(stream):
        def collate(drawn):
            at = torch.utils.data.get_worker_info().dataset
            return [names(one) for one in drawn], (at.worker, at.position)

        options = {"collate_fn": collate, "multiprocessing_context": "fork"}
        return torch.utils.data.DataLoader(stream, 3, num_workers=num_workers, **options)

    whole = [*itertools.islice(loader(mixture.prepared(1, 7)), batches + 12)]
    positions = dict(position for _, position in whole[:batches])
    again = mixture.prepared(1, 7)
    again.resume(StreamState([positions[i] for i in range(num_workers)], num_workers, batches % num_workers))
    assert [*itertools.islice(loader(again), 12)] == whole[batches:]


@pytest.mark.parametrize("ranks", [(1, 2), (2, 1), (3, 5, 2), (2, 2, 3)])
def test_with_other_numbers_the_samples_of_a_pass_stay_unique_in_each_dataset(ranks, shards):
    mixture, seen, state = web_and_photos(shards, number=40), Counter(), None
    for world_size in ranks:
        run = [mixture.prepared(1, 4, rank, world_size) for rank in range(world_size)]
        for one in run:
            if state is not None:
                one.resume(StreamState.from_json(state.to_json()))
        for iterator in [iter(one) for one in run]:
            for sample in itertools.islice(iterator, 12 // world_size):
                seen[names(sample)] += 1
        state = StreamState([one.position for one in run], 1, 0, run[0].earlier_runs(1))
    for one in run:  # to the end of each dataset's pass, from there
        again = mixture.prepared(1, 4, one.rank, one.world_size)
        again.resume(state)
        done = set()
        for sample in itertools.islice(again, 2000):
            if sample["sample_epoch"] == 0:
                seen[names(sample)] += 1
            else:
                done.add(sample["sample_dataset"])
            if len(done) == 2:
                break
    first = [count for (_, epoch, _), count in seen.items() if epoch == 0]
    assert len(first) == SHARDS * EACH + 40 and set(first) == {1}


def test_with_other_numbers_no_choice_is_made_twice(shards):
    mixture = web_and_photos(shards)
    again = mixture.prepared(1, 4)
    positions = [Position(draws=20, parts=[Position(), Position()]), Position(draws=26), Position(draws=23)]
    again.resume(StreamState(positions, 1, 0))
    next(iter(again))
    assert again.position.draws == 27


def test_what_a_checkpoint_holds_must_be_of_the_same_mixture(shards):
    mixture, single = web_and_photos(shards), EndlessStream(tars(shards))
    three = Mixture({"a": tars(shards), "b": rows("b", 5), "c": rows("c", 5)}, {"a": 1, "b": 1, "c": 1})
    next(iter(single))
    stream = mixture.prepared()
    next(iter(stream))
    with pytest.raises(ValueError, match="is of one dataset, and this run mixes 2"):
        mixture.prepared().resume(StreamState([single.position]))
    with pytest.raises(ValueError, match="is of a mixture of 2 datasets, and this run mixes 3"):
        three.prepared().resume(StreamState([stream.position]))
    with pytest.raises(ValueError, match="of a mixture of datasets, and this run has one"):
        EndlessStream(tars(shards)).resume(StreamState([stream.position]))
    mixture.prepared().resume(StreamState([stream.position, Position()], 2, 1))  # one without a batch yet


def test_positions_of_earlier_versions_are_read():
    fields = {"epoch": 1, "shard": 2, "read": 3, "draws": 4, "buffer": [[5, 6]]}
    state = StreamState.from_json(json.dumps({"positions": [fields], "num_workers": 1, "next_worker": 0, "pasts": []}))
    assert state.positions == [Position(1, 2, 3, 4, [[5, 6]])]
    assert _EarlierRun(state.positions, EndlessStream(RowShards(rows("a", 9)))).reaches(1)


# What is broken


def test_a_broken_shard_is_counted_and_named_with_its_dataset(shards, tmp_path, processor, caplog):
    mixture = web_and_photos(shards)
    mixture.datasets[1][5] = {"image": b"no image", "captions": "x"}
    DAMAGES["garbage"][0](shards / "part-2.tar")
    run = trainer(tmp_path / "run", processor, train_dataset=mixture, max_steps=24, stream_buffer_size=3)
    run.data_collator.max_skipped_rate = 0.5
    run.train()
    log = [entry for entry in run.state.log_history if "loss" in entry][-1]
    assert log["skipped_shards/web"] == 1 and not any("skipped_shards/photos" in one for one in run.state.log_history)
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped_0.jsonl").read_text().splitlines()]
    assert [(one["dataset"], one["shard"]) for one in lines if "shard" in one] == [("web", 2)]
    assert ("photos", "number (1, 5, 0)") in {(one["dataset"], one.get("sample")) for one in lines}
    assert sum("sample" in one for one in lines) == log["skipped_images"] >= 1
    assert "Shard 2 of 5 of web is used" in caplog.text and " of photos: its image" in caplog.text


def test_each_dataset_may_have_its_share_of_broken_shards(shards, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for i in range(SHARDS):
        write_tar(other / f"part-{i}.tar", i * EACH, EACH)
    mixture = Mixture({"a": tars(shards), "b": tars(other)}, {"a": 0.5, "b": 0.5})
    (shards / "part-1.tar").write_bytes(b"")
    (other / "part-1.tar").write_bytes(b"")
    assert len(list(itertools.islice(mixture.prepared(), 300))) == 300, "one of each"
    (other / "part-3.tar").write_bytes(b"")
    with pytest.raises(RuntimeError, match="2 of 5 shards of b can't be read"):
        list(itertools.islice(mixture.prepared(), 300))


def test_fewer_rows_than_workers_are_refused_before_the_first_sample(shards):
    mixture = web_and_photos(shards, number=3)
    for rank in range(3):
        assert len(list(itertools.islice(mixture.prepared(0, 4, rank, 3), 50))) == 50
    for rank in range(4):
        with pytest.raises(ValueError, match="'photos' of the mixture has 3 rows for 4 workers.*or leave it out"):
            next(iter(mixture.prepared(0, 4, rank, 4)))


def test_a_stream_too_small_for_its_workers_is_named(tmp_path):
    write_tar(tmp_path / "part-0.tar", 0, 2)
    dataset = load_pretraining_dataset(f"{tmp_path}/part-*.tar", streaming=True, caption_column="txt")
    mixture = Mixture({"web": dataset, "photos": samples(9)}, WEIGHTS)
    with pytest.raises(ValueError, match="of 3 gets no sample of 'web'.*without streaming"):
        for rank in range(3):
            list(itertools.islice(mixture.prepared(0, 4, rank, 3), 50))


class Rows:
    """Rows of which one can't be read."""

    def __init__(self, error: Exception) -> None:
        self.error, self.tries = error, 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> dict[str, Any]:
        if row == 7:
            self.tries += 1
            raise self.error
        return {"image": b"", "captions": f"photos {row}"}


@pytest.mark.parametrize("error", [KeyError("caption"), ValueError("no such thing")])
def test_errors_of_a_dataset_of_rows_are_its_own(error, shards):
    """Those that are no failure to read are no broken shard, and another try would not help."""
    dataset = Rows(error)
    stream = Mixture({"web": tars(shards), "photos": dataset}, WEIGHTS).prepared()
    with pytest.raises(type(error)) as caught:
        list(itertools.islice(stream, 200))
    assert caught.value.__notes__ == [f"In row 7 of photos, which raised {type(error).__name__}."]
    assert dataset.tries == 1 and stream.parts[1].broken.count == 0


@pytest.mark.parametrize("error", [FileNotFoundError("7.jpg"), pa.ArrowInvalid("7.jpg")])
def test_a_row_that_is_out_of_reach_is_a_broken_shard_and_named(error, shards, caplog):
    dataset = Rows(error)
    stream = Mixture({"web": tars(shards), "photos": dataset}, WEIGHTS).prepared()
    drawn = {one["captions"] for one in itertools.islice(stream, 200) if one["sample_dataset"] == "photos"}
    assert drawn == {f"photos {row}" for row in range(20) if row != 7}
    assert dataset.tries % 3 == 0 and stream.parts[1].broken.count == 1
    assert f"In row 7 of photos, which raised {type(error).__name__}. 7.jpg." in caplog.text


# What is refused


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 0.5}, "'b' of the mixture has no weight"),
        ({"a": 0.5, "b": 0}, "weight=0 of the dataset 'b' must be positive"),
        ({"a": -1, "b": 2}, "weight=-1 of the dataset 'a' must be positive"),
        ({"a": float("nan"), "b": 2}, "weight=nan of the dataset 'a' must be positive and finite"),
        ({"a": float("inf"), "b": 2}, "weight=inf"),
        ({"a": 1, "b": "much"}, "weight='much' of the dataset 'b' is no number"),
        ({"a": [1], "b": 1}, r"weight=\[1\] of the dataset 'a' is no number"),
        ({"a": 10**400, "b": 1}, "of the dataset 'a' is no number"),
        ({"a": "-0.5", "b": 1}, "weight=-0.5 of the dataset 'a' must be positive"),
        ({"a": 1, "b": 1, "c": 1}, "weights names 'c'; the mixture has a, b"),
    ],
)
def test_weights_that_are_none_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture({"a": rows("a", 2), "b": rows("b", 3)}, weights)


def test_weights_are_normalised_and_those_of_streams_must_be_given(shards):
    assert Mixture({"a": rows("a", 2), "b": rows("b", 3)}, {"b": 6, "a": 2}).weights == {"a": 0.25, "b": 0.75}
    assert Mixture({"a": rows("a", 1), "b": rows("b", 3)}).weights == {"a": 0.25, "b": 0.75}
    with pytest.raises(ValueError, match="'web' of the mixture is streamed, so its size is not known: give each"):
        Mixture({"photos": rows("a", 2), "web": tars(shards)})


def test_weights_are_numbers_of_any_kind():
    weights = {"a": np.float32(0.5), "b": "1.5"}
    assert Mixture({"a": rows("a", 2), "b": rows("b", 3)}, weights).weights == {"a": 0.25, "b": 0.75}
    sources = read_sources(["a", "b"], [np.float32(0.5), Fraction(1, 4)])
    assert [one.weight for one in sources] == [0.5, 0.25] and {type(one.weight) for one in sources} == {float}


def test_what_is_no_mixture_is_refused(tmp_path, processor):
    with pytest.raises(ValueError, match="two datasets or more, not 1"):
        Mixture({"a": rows("a", 2)})
    with pytest.raises(ValueError, match="'b' of the mixture is empty"):
        Mixture({"a": rows("a", 2), "b": []})
    with pytest.raises(ValueError, match="columns names 'c'"):
        Mixture({"a": rows("a", 2), "b": rows("b", 2)}, columns={"c": ("x", "y")})
    mixture = Mixture({"a": samples(8), "b": samples(8)})
    with pytest.raises(ValueError, match="A mixture is for training"):
        trainer(tmp_path, processor, eval_dataset={"mixed": mixture})
    with pytest.raises(ValueError, match="has 16 samples, less than one batch"):
        trainer(tmp_path, processor, train_dataset=mixture, per_device_train_batch_size=17)


# By their names


@pytest.mark.parametrize(
    ("entries", "weights", "message"),
    [
        (["a"], None, "two datasets or more, not 1"),
        (["a", "b"], [0.5], "There are 1 weights for 2 datasets"),
        (["a", {"dataset": "b", "weight": 0.5}], [0.5, 0.5], "stand both with the datasets and apart"),
        (["a", {"dataset": "b", "weight": 0.5}], None, "'a' of the mixture has no weight"),
        (["a", "b"], [0.5, -0.5], "weight=-0.5 of the dataset 'b'"),
        (["a", {"dataset": "b", "streaming": True}], None, "'b' of the mixture is streamed"),
        (["a", {"dataset": "b", "wieght": 0.5}], None, "no option 'wieght'. Did you mean 'weight'"),
        (["a", {"weight": 0.5}], None, "names no dataset"),
        (["a", {"dataset": "b", "weight": "much"}], None, "weight='much' .* wrong type"),
        (["a", {"dataset": "b", "streaming": "yes"}], None, "streaming='yes' .* wrong type"),
        (["a", {"dataset": "b", "max_samples": True}], None, "max_samples=True .* wrong type"),
        (["a", "{dataset: b, weight: [}"], None, "is no YAML"),
    ],
)
def test_entries_that_can_not_be_are_refused_before_anything_is_loaded(entries, weights, message):
    with pytest.raises(ValueError, match=message):
        read_sources(entries, weights)


def test_an_entry_is_a_name_or_a_mapping_over_defaults():
    defaults = {"split": "all", "caption_column": "text"}
    assert read_source("some/set", defaults) == MixtureSource("some/set", split="all", caption_column="text")
    entry = "{dataset: shards/*.tar, weight: 2e-1, streaming: true, caption_column: txt}"
    expected = MixtureSource("shards/*.tar", 0.2, split="all", caption_column="txt", streaming=True)
    assert read_source(entry, defaults) == expected
    sources = read_sources(["web/cc12m/*.tar", "some/set", "data/photos/", "other/set", "x/photos"], [1, 1, 1, 1, 2])
    assert [one.weight for one in sources] == [1, 1, 1, 1, 2]
    assert [one.name for one in sources] == ["cc12m", "some/set", "data/photos/", "other/set", "x/photos"]


def test_names_are_short_and_different(tmp_path):
    for name in ("x/photos", "y/photos"):
        (tmp_path / name).mkdir(parents=True)
    entries = [f"{tmp_path}/x/photos", f"{tmp_path}/y/photos", {"dataset": f"{tmp_path}/y/photos", "name": "mine"}]
    assert [one.name for one in read_sources(entries)] == ["photos", "photos-2", "mine"]


def test_a_mixture_is_loaded_by_name(shards, tmp_path):
    features = Features({"picture": Image(), "text": List(Value("string"))})
    photos = [{"picture": one["image"], "text": one["captions"]} for one in samples(9)]
    Dataset.from_list(photos, features=features).save_to_disk(tmp_path / "photos")
    own = {"image_column": "picture", "caption_column": "text", "max_samples": 6}
    mixture = load_mixture(
        [
            {"dataset": f"{shards}/part-*.tar", "weight": 3, "streaming": True, "caption_column": "txt"},
            {"dataset": str(tmp_path / "photos"), "weight": 1, **own},
        ]
    )
    assert mixture.weights == {"web": 0.75, "photos": 0.25} and mixture.is_stream
    assert mixture.columns == [("png", "txt"), ("picture", "text")]
    assert mixture.settings() == {"mixture_weights": mixture.weights, "mixture_sizes": {"web": 5, "photos": 6}}
    drawn = list(itertools.islice(mixture.prepared(), 40))
    found = {one["sample_dataset"]: one["captions"] for one in drawn}
    assert found["web"].startswith("picture ") and found["photos"][0].startswith("colour ")
    assert len({one["sample_index"] for one in drawn if one["sample_dataset"] == "photos"}) == 6


# In the Trainer


@pytest.mark.parametrize(
    ("kind", "num_workers", "save_at"),
    [("map", 0, 3), ("map", 2, 5), ("map", 0, 4), ("stream", 0, 4), ("stream", 2, 3), ("stream", 2, 4)],
)
def test_a_resumed_mixture_is_the_uninterrupted_one(tmp_path, shards, processor, kind, num_workers, save_at):
    """Map-style in the first epoch of 4 batches, at its end and in the second."""

    def run(resume: str | None = None) -> Any:
        if kind == "map":
            mixture = Mixture({"web": samples(9), "photos": samples(7)}, WEIGHTS)
        else:
            mixture = web_and_photos(shards)
        model = new_model(text_config={"embd_pdrop": 0.1})
        torch.manual_seed(99 if resume else 1)  # the state outside must not matter
        options = {"save_strategy": "steps", "save_steps": save_at, "max_steps": 7, "logging_steps": 1}
        options |= {"stream_buffer_size": 5, "dataloader_num_workers": num_workers}
        one = trainer(tmp_path / "run", processor, model=model, train_dataset=mixture, **options)
        one.train(resume_from_checkpoint=resume)
        return one

    whole = run()
    assert len({entry["loss"] for entry in trajectory(whole)}) == 7, "no two batches are the same"
    resumed = run(str(tmp_path / "run" / f"checkpoint-{save_at}"))
    assert trajectory(resumed) == trajectory(whole)
    assert trajectory(resumed, "samples/web", "samples/photos") == trajectory(whole, "samples/web", "samples/photos")
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("kind", "num_workers", "accumulation", "bad"),
    [
        ("map", 0, 1, 1),
        ("map", 0, 1, 3),
        ("map", 0, 1, 5),
        ("mixture", 2, 1, 1),
        ("mixture", 2, 1, 2),
        ("mixture", 0, 2, 4),
        ("stream", 0, 1, 1),
        ("stream", 2, 1, 4),
    ],
)
def test_a_run_that_was_not_finite_goes_on_before_the_batches_of_that_step(
    tmp_path, shards, processor, kind, num_workers, accumulation, bad
):
    """`bad` is the number of the batch, which is drawn again, and counted once."""

    def run(resume: str | None = None, bad: int | None = None) -> Any:
        if kind == "map":
            dataset = Mixture({"web": samples(9), "photos": samples(7)}, WEIGHTS)
        else:
            dataset = web_and_photos(shards) if kind == "mixture" else tars(shards)
        model = new_model(text_config={"embd_pdrop": 0.1})
        calls = itertools.count(1)
        model.text_projection.register_forward_hook(
            lambda *args: args[2] * float("nan") if next(calls) == bad else None
        )
        options = {"max_steps": 6, "logging_steps": 1, "stream_buffer_size": 5, "dataloader_num_workers": num_workers}
        options |= {"gradient_accumulation_steps": accumulation}
        one = trainer(tmp_path / "run", processor, model=model, train_dataset=dataset, **options)
        if bad is None:
            one.train(resume_from_checkpoint=resume)
        else:
            with pytest.raises(FloatingPointError):
                one.train()
        return one

    whole = run()
    run(bad=bad)
    step = (bad - 1) // accumulation
    checkpoint = tmp_path / "run" / f"checkpoint-{step}"
    if kind != "stream":
        assert sum(json.loads((checkpoint / "samples.json").read_text()).values()) == step * accumulation * 4
    names = ("samples/web", "samples/photos") if kind != "stream" else ()
    resumed = run(str(checkpoint))
    assert trajectory(resumed) == trajectory(whole)
    assert trajectory(resumed, *names) == trajectory(whole, *names)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("kind", ["mixture", "stream"])
def test_workers_without_a_batch_yet_are_where_they_began(tmp_path, shards, processor, kind):
    """One worker; then three, of which one has given a batch at the checkpoint; then three again."""

    def run(num_workers: int, max_steps: int, resume: int | None = None) -> Any:
        dataset = web_and_photos(shards) if kind == "mixture" else tars(shards)
        options = {"save_strategy": "steps", "save_steps": 16, "max_steps": max_steps, "logging_steps": 1}
        options |= {"stream_buffer_size": 5, "dataloader_num_workers": num_workers, "lr_scheduler_type": "constant"}
        one = trainer(tmp_path / "run", processor, train_dataset=dataset, **options)
        one.train(None if resume is None else str(tmp_path / "run" / f"checkpoint-{resume}"))
        return one

    run(0, 15)  # with 60 samples, in the second pass of the stream alone
    whole = run(3, 20, resume=15)
    state = StreamState.from_json((tmp_path / "run" / "checkpoint-16" / "stream_0.json").read_text())
    assert {one.epoch for one in state.positions} == ({0} if kind == "mixture" else {1})
    assert trajectory(run(3, 20, resume=16)) == trajectory(whole)


def test_what_was_drawn_is_logged(tmp_path, processor):
    mixture = Mixture({"web": samples(9), "photos": samples(7)}, WEIGHTS)
    run = trainer(tmp_path, processor, train_dataset=mixture, max_steps=8, logging_steps=4)
    metrics = run.train().metrics
    counts = [run.train_dataset.counts(epoch) for epoch in (0, 1)]
    logs = [(one["samples/web"], one["samples/photos"]) for one in run.state.log_history if "loss" in one]
    assert logs == [tuple(counts[0]), tuple(map(sum, zip(*counts, strict=True)))] and sum(logs[1]) == 32
    assert (metrics["samples/web"], metrics["samples/photos"]) == logs[1]


def test_batches_follow_the_order_of_the_mixture(tmp_path, processor):
    """Which another sampler would shuffle, so that samples came again before others of their dataset."""
    seen = []

    def collate(drawn: list[dict[str, Any]]) -> dict[str, Any]:
        seen.extend(map(names, drawn))
        return collator(drawn)

    collator = LeVLJEPADataCollator(processor)
    mixture = Mixture({"web": samples(9), "photos": samples(7)}, WEIGHTS)
    trainer(tmp_path, processor, train_dataset=mixture, data_collator=collate, max_steps=8, seed=5).train()
    dataset = mixture.prepared(seed=5)
    expected = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        expected += [names(dataset[i]) for i in range(16)]
    assert seen == expected


def test_single_datasets_are_not_counted(tmp_path, processor):
    run = trainer(tmp_path, processor)
    run.train()
    assert not any(name.startswith("samples/") for one in run.state.log_history for name in one)


def test_counts_are_of_all_ranks(tmp_path):
    class Ranks:
        device, is_main_process = torch.device("cpu"), True

        def reduce(self, counts: torch.Tensor) -> torch.Tensor:
            return counts + torch.tensor([100, 200])  # of the others

    drawn = SamplesPerDataset(["a", "b"])
    batch = {"x": 1, "samples_by_dataset": {"b": 3}}
    drawn.take(batch)
    assert batch == {"x": 1} and drawn.total(Ranks()) == {"a": 100, "b": 203}
    drawn.save(tmp_path, Ranks())
    drawn.load(tmp_path, Ranks())
    assert drawn.counts.tolist() == [100, 203]
    other = Ranks()
    other.is_main_process = False
    drawn.load(tmp_path, other)
    assert drawn.counts.tolist() == [0, 0]


def test_other_weights_and_sizes_are_named_on_resuming(tmp_path, processor, caplog):
    def run(weight: float, number: int, **options: Any) -> None:
        mixture = Mixture({"web": samples(9), "photos": samples(number)}, {"web": weight, "photos": 1 - weight})
        options = {"save_strategy": "steps", "save_steps": 2, **options}
        trainer(tmp_path, processor, train_dataset=mixture, **options).train("auto")

    run(0.5, 7, max_steps=2)
    run(0.5, 7, max_steps=3)
    assert "mixture" not in caplog.text
    run(0.25, 8, max_steps=4)
    assert "mixture_weights ({'web': 0.5, 'photos': 0.5} then" in caplog.text and "mixture_sizes" in caplog.text


def test_a_single_dataset_is_read_as_ever(shards):
    """The order of streams and their buffers is what runs that are under way go on with."""
    drawn = [one["json"]["captions"][0] for one in itertools.islice(EndlessStream(tars(shards), 1, 7), 12)]
    assert [int(one.split()[1]) for one in drawn] == [18, 13, 19, 17, 15, 23, 22, 25, 11, 20, 24, 14]


# In `levljepa pretrain`


def test_a_run_on_a_mixture(script, imagefolder: Path, webdataset: Path, tmp_path: Path) -> None:  # noqa: F811
    """From a recipe, with a streamed dataset and photos; the recipe that is left gives the same run."""
    mixture = f"""
mixture:
- {{dataset: "{webdataset}/train-*.tar", weight: 0.7, streaming: true, caption_column: json.captions, name: web}}
- {{dataset: {imagefolder}, weight: 0.3, max_samples: 5}}
"""
    options = ["--max_steps", "8", "--eval_dataset", str(imagefolder), "--eval_split", "validation"]
    metrics, logs = script(*options, recipe=RECIPE + mixture)
    photos = f"samples/{imagefolder.name}"
    assert metrics["samples/web"] + metrics[photos] == 32 and min(metrics["samples/web"], metrics[photos]) > 2
    assert logs[0]["samples/web"] + logs[0][photos] == 4 and "eval_text_to_image_R@1" in metrics

    card = (tmp_path / "run" / "README.md").read_text()
    assert f"on `{webdataset.name}/train-*.tar` and `{imagefolder.name}` for 8 steps" in card
    web = metrics["samples/web"]
    assert (
        f"`{imagefolder.name}` {32 - web} ({100 - 100 * web / 32:.1f} %), `web` {web} ({100 * web / 32:.1f} %)."
        in card
    )
    assert str(imagefolder.parent) not in card and "weight: 0.7" in card

    saved = str(tmp_path / "run" / "recipe.yaml")
    again = ["--recipe", saved, "--output_dir", str(tmp_path / "again")]
    assert pretrain.parse_args(again)[1] == pretrain.parse_args(["--recipe", saved])[1]
    pretrain.pretrain(*pretrain.parse_args(again))
    log = json.loads((tmp_path / "again" / "trainer_state.json").read_text())["log_history"]
    assert [one["loss"] for one in log if "loss" in one] == [one["loss"] for one in logs if "loss" in one]


def test_a_mixture_on_the_command_line(script, imagefolder: Path, tmp_path: Path) -> None:  # noqa: F811
    other = tmp_path / "other"
    Dataset.from_list([{"image": one["image"], "text": "x"} for one in samples(6)]).save_to_disk(other)
    own = f"{{dataset: {other}, caption_column: text, name: mine}}"
    common = ["--max_steps", "-1", "--num_train_epochs", "1", "--caption_column", "captions"]
    metrics, _ = script("--mixture", str(imagefolder), own, *common, "--dataloader_drop_last", "False")
    assert (metrics[f"samples/{imagefolder.name}"], metrics["samples/mine"]) == (12, 6), "in proportion: each once"
    weights = ["--mixture_weights", "1", "2", "--max_train_samples", "6"]
    metrics, _ = script("--mixture", str(imagefolder), own, *common, *weights, folder="weighted")
    assert (metrics[f"samples/{imagefolder.name}"], metrics["samples/mine"]) == (4, 8)
    saved = yaml.safe_load((tmp_path / "weighted" / "recipe.yaml").read_text())
    assert saved["mixture"][1] == {"dataset": str(other), "caption_column": "text", "name": "mine"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dataset", "x", "--mixture", "a", "b"], "--dataset x is one dataset and --mixture names several"),
        (["--dataset", "x", "--mixture_weights", "0.5", "0.5"], "--mixture_weights are those of"),
        (["--mixture", "a", "b", "--eval_split", "test"], "--eval_split needs --eval_dataset"),
        (
            ["--mixture", "a", "{dataset: b, streaming: true}", "--mixture_weights", "1", "2"],
            "has no epochs: give the length",
        ),
    ],
)
def test_options_that_do_not_go_with_a_mixture(argv: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit):
        pretrain.parse_args(argv)
    assert message in capsys.readouterr().err


def test_a_recipe_may_name_mappings_where_they_are_read(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("mixture: [a, {dataset: b, weight: 1}]\n")
    with pytest.raises(ValueError, match="'a' of the mixture has no weight"):
        pretrain.parse_args(["--recipe", str(recipe)])
    recipe.write_text("mixture: [{dataset: a, weight: 1, name: null}, {dataset: b, weight: 1}]\n")
    argv = ["--recipe", str(recipe), "--output_dir", str(tmp_path), "--use_cpu"]
    assert pretrain.parse_args(argv)[1].mixture[0] == {"dataset": "a", "weight": 1, "name": None}
    recipe.write_text("mixture: a\n")
    with pytest.raises(ValueError, match="mixture='a' must be a list"):
        pretrain.parse_args(["--recipe", str(recipe)])
    recipe.write_text("crop_scale: [{a: 1}]\n")
    with pytest.raises(ValueError, match="crop_scale=.* is of the wrong type"):
        pretrain.parse_args(["--recipe", str(recipe), "--dataset", "x"])
