"""Streams without an end that can be left at any sample and taken up there again.

    stream = EndlessStream(dataset, seed=0, buffer_size=1000)
    for sample in stream: ...
    stream.position  # of the last sample; another stream's resume(StreamState([position])) goes on after it

In each pass ("epoch") the shards are shuffled and dealt to the workers of all ranks, and each worker draws its samples
from a buffer that it fills from its shards. Every choice is a function of the seed, the epoch and the count of draws
(`random_below`), and of no generator whose state would have to be kept: so a position is a few numbers, and to go back
to it no sample before it is decoded. `mixtures.py` makes one stream of several.
"""

import json
import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from pyarrow import ArrowException

from .seeds import seed_from
from .tar_shards import TarShards
from .workers import prepare_worker

logger = logging.getLogger(__name__)

MAX_SKIPPED_SHARDS = 0.1
MANY = 8  # from so many shards a worker on, one more or less makes little difference
RETRY_AFTER = (0.5, 2.0)  # seconds: a shard that is out of reach may come back
SAMPLE_INDEX, SAMPLE_EPOCH = "sample_index", "sample_epoch"  # what samples carry for the collator's randomness
SAMPLE_DATASET = "sample_dataset"  # and those of a mixture: the name of their dataset
MAX_ROW_SHARDS = 2**20  # their order is a list in each worker


@dataclass
class Position:
    """Where a worker is in a stream: enough to go on with the next sample.

    Args:
        epoch: of the pass.
        shard: how many of the worker's shards are read to their end.
        read: samples of the next one that are read.
        draws: samples drawn from the buffer in this epoch; of a mixture, from its streams.
        buffer: (shard, sample) of what waits in the buffer, in its order.
        parts: of a mixture, where the worker is in each of its streams.
    """

    epoch: int = 0
    shard: int = 0
    read: int = 0
    draws: int = 0
    buffer: list[tuple[int, int]] = field(default_factory=list)
    parts: list["Position"] = field(default_factory=list)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Position":
        return cls(**{**fields, "parts": [cls.from_dict(one) for one in fields.get("parts", ())]})

    def of_part(self, number: int) -> "Position":
        return self.parts[number] if self.parts else Position()


@dataclass
class StreamState:
    """Where the workers of all ranks are.

    Args:
        positions: of the workers of rank 0, then of those of rank 1, and so on.
        num_workers: of each rank, at least 1 (the process itself).
        next_worker: the worker whose batch comes next, on each rank.
        earlier_runs: positions of runs before, with other numbers of workers or ranks, in the same pass.
    """

    positions: list[Position]
    num_workers: int = 1
    next_worker: int = 0
    earlier_runs: list[list[Position]] = field(default_factory=list)

    def is_of(self, world_size: int, num_workers: int) -> bool:
        return num_workers == self.num_workers and len(self.positions) == world_size * num_workers

    def of_part(self, number: int) -> "StreamState":
        """Where they are in one of the streams of a mixture."""
        runs = (self.positions, *self.earlier_runs)
        positions, *earlier = ([one.of_part(number) for one in run] for run in runs)
        return replace(self, positions=positions, earlier_runs=earlier)

    def to_json(self) -> str:
        fields = asdict(self)
        fields["pasts"] = fields.pop("earlier_runs")  # as checkpoints have called it from the first
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "StreamState":
        fields = json.loads(text)
        runs = (fields["positions"], *fields.pop("pasts"))
        positions, *earlier = ([Position.from_dict(one) for one in run] for run in runs)
        return cls(**{**fields, "positions": positions, "earlier_runs": earlier})


class BrokenShards:
    """Which shards could not be read to their end, shared by the workers of a rank.

    Args:
        num_shards: of the stream.
        max_rate: the share of them that may be broken.
        name: of the stream, where it is one of several.
    """

    def __init__(self, num_shards: int, max_rate: float = MAX_SKIPPED_SHARDS, name: str | None = None) -> None:
        self.flags = torch.zeros(num_shards, dtype=torch.uint8).share_memory_()
        self.max_rate = max_rate
        self.name = name
        self.file: Path | None = None  # where they are listed

    @property
    def count(self) -> int:
        return int(self.flags.sum())

    def add(self, shard: int, reason: str) -> None:
        """Notes a shard and why.

        Raises:
            RuntimeError: if more than `max_rate` of the shards, and more than one, are broken.
        """
        of = "" if self.name is None else f" of {self.name}"
        if not self.flags[shard]:
            logger.warning("Shard %d of %d%s is used as far as it can be read. %s", shard, len(self.flags), of, reason)
            list_skipped(self.file, **({"dataset": self.name} if of else {}), shard=shard, reason=reason)
        self.flags[shard] = 1
        if self.count > max(1, self.max_rate * len(self.flags)) or self.count == len(self.flags):
            raise RuntimeError(
                f"{self.count} of {len(self.flags)} shards{of} can't be read to their end, more than "
                f"max_skipped_shards={self.max_rate:.0%}. The last one: {reason} The warnings above name the others."
            )


class RowShards:
    """A map-style dataset as a stream whose shards are its rows, so that each pass takes them in an order of its own.

    Args:
        dataset: anything with a length and rows by number.
        name: what errors call it.
    """

    def __init__(self, dataset: Any, name: str | None = None) -> None:
        self.dataset, self.name = dataset, name
        self.num_shards = min(len(dataset), MAX_ROW_SHARDS)

    def read_shard(self, number: int) -> Iterator[dict[str, Any]]:
        """The row; of more than `MAX_ROW_SHARDS`, every so manieth. An error has a note of its row."""
        of = "" if self.name is None else f" of {self.name}"
        for row in range(number, len(self.dataset), self.num_shards):
            try:
                sample = self.dataset[row]
            except Exception as error:
                error.add_note(f"In row {row}{of}, which raised {type(error).__name__}.")
                raise
            yield sample


class ResumableStream(torch.utils.data.IterableDataset):
    """What can be taken up again: where its workers were, and which of those is whose now.

    Args:
        seed: of every choice; the same on every rank.
        rank, world_size: which part of the stream this process reads.
    """

    def __init__(self, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.worker = 0  # the number of the one that this process is
        self.resumed: StreamState | None = None

    @property
    def position(self) -> Position:
        """After the last sample that this process has drawn."""
        raise NotImplementedError

    @property
    def parts(self) -> "list[EndlessStream]":
        """The streams that it is made of."""
        raise NotImplementedError

    def resume(self, state: StreamState) -> None:
        """Goes on from where the workers of all ranks were.

        As many ranks and workers as then draw what they would have drawn. With other numbers they draw, in another
        order, what was not drawn yet in the pass at hand.
        """
        self.resumed = state

    def earlier_runs(self, num_workers: int) -> list[list[Position]]:
        """Positions of earlier runs with other numbers of workers or ranks, whose samples are not drawn again."""
        if self.resumed is None:
            return []
        same = self.resumed.is_of(self.world_size, num_workers)
        earlier = self.resumed.earlier_runs
        return earlier if same else [*earlier, self.resumed.positions]

    def start(self) -> tuple[int, int, Position]:
        """Of this process: the number of the worker that it is or takes over, how many there are, where it begins."""
        worker = torch.utils.data.get_worker_info()
        number, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if self.resumed is not None and self.resumed.is_of(self.world_size, num_workers):
            number = (number + self.resumed.next_worker) % num_workers  # the loader begins with its worker 0
        return number, num_workers, self.beginning(number, num_workers)

    def beginning(self, number: int, num_workers: int) -> Position:
        """Where the worker of this rank with that number begins, of so many."""
        if self.resumed is not None and self.resumed.is_of(self.world_size, num_workers):
            return self.resumed.positions[self.rank * num_workers + number]
        return self.after_others([] if self.resumed is None else self.resumed.positions)

    def after_others(self, positions: list[Position]) -> Position:
        """Where a worker begins after a run with other numbers of them, or after none."""
        raise NotImplementedError


class EndlessStream(ResumableStream):
    """A streamed dataset, repeated for ever and shuffled anew in each pass, split between ranks and workers.

    Without an end no rank runs dry before the others, and a run of `max_steps` is one epoch of the Trainer. Where the
    shards are few, several workers share them and take their samples in turns.

    A shard that ends with an error is used as far as it went, named and counted in `broken`. Of rows that holds for
    errors of the system and of Arrow; another one is the dataset's own, and passes on.

    Args:
        dataset: what `load_pretraining_dataset(..., streaming=True)` returns, or `RowShards`.
        seed: of the shuffling; the same on every rank.
        buffer_size: samples held in memory to draw from. The order of the shards is shuffled as well.
        rank, world_size: which part of the stream this process reads.
        max_skipped_shards: the share of the shards that may be broken.
        name: what it is called where it is one of several.
    """

    def __init__(
        self,
        dataset: IterableDataset | TarShards | RowShards,
        seed: int = 0,
        buffer_size: int = 1000,
        rank: int = 0,
        world_size: int = 1,
        max_skipped_shards: float = MAX_SKIPPED_SHARDS,
        name: str | None = None,
    ) -> None:
        if buffer_size < 1:
            raise ValueError(f"buffer_size={buffer_size} must be at least 1: what is drawn from has a sample or more.")
        super().__init__(seed, rank, world_size)
        self.dataset = dataset
        self.buffer_size = buffer_size
        self.many = 1 if isinstance(dataset, RowShards) else MANY  # a shard of one row is not shared
        self.broken = BrokenShards(dataset.num_shards, max_skipped_shards, name)
        self._drawn: tuple[int, int, int, int, list[Any]] = (0, 0, 0, 0, [])

    @property
    def position(self) -> Position:
        epoch, shard, read, draws, buffer = self._drawn
        return Position(epoch, shard, read, draws, [key for key, _ in buffer])

    @property
    def parts(self) -> "list[EndlessStream]":
        return [self]

    def resume(self, state: StreamState) -> None:
        """As `ResumableStream.resume`.

        Raises:
            ValueError: if the position is one in a mixture.
        """
        if any(one.parts for one in state.positions):
            raise ValueError(
                "The checkpoint is of a mixture of datasets, and this run has one: give the same ones in the same "
                "order."
            )
        super().resume(state)

    def after_others(self, positions: list[Position]) -> Position:
        return Position(epoch=min((position.epoch for position in positions), default=0))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        prepare_worker()
        number, num_workers, start = self.start()
        self.worker = number
        earlier = [_EarlierRun(one, self) for one in self.earlier_runs(num_workers)]
        consumer, consumers = self.rank * num_workers + number, self.world_size * num_workers
        epoch = start.epoch
        while True:
            empty = True
            for sample in self._epoch(epoch, consumer, consumers, start, earlier):
                empty = False
                yield sample
            if empty and start.draws == 0 and not earlier:  # this worker has nothing to read
                return
            epoch, start = epoch + 1, Position()
            earlier = [run for run in earlier if run.reaches(epoch)]

    def worker_shards(self, epoch: int, consumer: int, consumers: int) -> tuple[list[int], int, int]:
        """A worker's shards and turns (`worker_shards`) in this stream."""
        return worker_shards(self.dataset.num_shards, self.seed, epoch, consumer, consumers, self.many)

    def _epoch(
        self, epoch: int, consumer: int, consumers: int, start: Position, earlier: "list[_EarlierRun]"
    ) -> Iterator[dict[str, Any]]:
        """What is left of a pass for one of the workers of all ranks (`consumer`), from a position on."""
        shards, turn, turns = self.worker_shards(epoch, consumer, consumers)
        buffer, draws = self._refilled(start.buffer), start.draws

        def drawn(place: int, read: int) -> dict[str, Any]:
            nonlocal draws
            at = random_below(len(buffer), self.seed, epoch, consumer, draws)
            buffer[at], buffer[-1] = buffer[-1], buffer[at]  # the hole is filled by the last one: no shifting
            key, sample = buffer.pop()
            draws += 1
            self._drawn = (epoch, place, read, draws, buffer)  # `position` is made of it when it is asked for
            return {**sample, SAMPLE_INDEX: key, SAMPLE_EPOCH: epoch}

        for place in range(start.shard, len(shards)):
            shard = shards[place]
            for index, sample in self._samples(shard, start.read if place == start.shard else 0):
                # Of a shard that several workers share, each reads all and keeps its turns.
                if index % turns != turn or any(run.has_drawn(epoch, shard, index) for run in earlier):
                    continue
                buffer.append(((shard, index), sample))
                if len(buffer) > self.buffer_size:
                    yield drawn(place, index + 1)
        while buffer:
            yield drawn(len(shards), 0)

    def _samples(self, shard: int, first: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """The numbered samples of a shard from `first` on. One that does not open is tried again."""
        for seconds in (*RETRY_AFTER, None):
            opened = False
            try:
                for index, sample in enumerate(_read_shard(self.dataset, shard)):
                    opened = True
                    if index >= first:
                        yield index, sample
                return
            except Exception as error:  # of a tar, of Arrow, of the network: a shard can break in every way
                rows = isinstance(self.dataset, RowShards)
                if rows and not isinstance(error, (OSError, ArrowException)):
                    raise
                if opened or seconds is None:
                    self.broken.add(shard, f"{error.__notes__[-1]} {error}." if rows else f"{error}.")
                    return
            time.sleep(seconds)

    def _refilled(self, keys: list[tuple[int, int]]) -> list[tuple[tuple[int, int], dict[str, Any]]]:
        """The samples that waited in the buffer, read again."""
        wanted: dict[int, set[int]] = {}
        for shard, index in keys:
            wanted.setdefault(shard, set()).add(index)
        found = {}
        for shard, indices in wanted.items():
            for index, sample in self._samples(shard):
                if index in indices:
                    found[shard, index] = sample
                if index >= max(indices):
                    break
        return [(tuple(key), found[tuple(key)]) for key in keys if tuple(key) in found]


def _read_shard(dataset: IterableDataset | TarShards | RowShards, shard: int) -> Iterator[dict[str, Any]]:
    if isinstance(dataset, (TarShards, RowShards)):
        yield from dataset.read_shard(shard)
        return
    for row in dataset.shard(dataset.num_shards, shard).iter(batch_size=1):  # `iter(dataset)` splits it among workers
        yield {name: values[0] for name, values in row.items()}


class _EarlierRun:
    """What the workers of an earlier run, of any number, have drawn.

    Which samples were whose follows from that number as it did then; of each worker's, those are drawn that it had
    read, less what waited in its buffer.
    """

    def __init__(self, positions: Sequence[Position], stream: EndlessStream) -> None:
        self.positions, self._worker_shards = positions, stream.worker_shards
        self._waiting = [{tuple(key) for key in position.buffer} for position in positions]
        self._owners: dict[int, dict[int, list[tuple[int, int]]]] = {}  # epoch: shard: (consumer, place) by turn

    def reaches(self, epoch: int) -> bool:
        """Whether any of them was in this epoch or beyond."""
        return any(position.epoch >= epoch for position in self.positions)

    def has_drawn(self, epoch: int, shard: int, index: int) -> bool:
        """Whether a sample was drawn in this epoch."""
        owners = self._owners_in(epoch)[shard]
        consumer, place = owners[index % len(owners)]
        position = self.positions[consumer]
        if position.epoch != epoch:
            return position.epoch > epoch
        was_read = place < position.shard or (place == position.shard and index < position.read)
        return was_read and (shard, index) not in self._waiting[consumer]

    def _owners_in(self, epoch: int) -> dict[int, list[tuple[int, int]]]:
        if epoch not in self._owners:
            owners: dict[int, list[tuple[int, int]]] = {}
            for consumer in range(len(self.positions)):  # ascending: the order of their turns
                shards = self._worker_shards(epoch, consumer, len(self.positions))[0]
                for place, shard in enumerate(shards):
                    owners.setdefault(shard, []).append((consumer, place))
            self._owners[epoch] = owners
        return self._owners[epoch]


def list_skipped(file: Path | None, **entry: Any) -> None:
    """Adds a line of JSON to the list of what was skipped; workers may do so at the same time."""
    if file is not None:
        with file.open("a") as lines:
            lines.write(json.dumps(entry) + "\n")


def worker_shards(
    num_shards: int, seed: int, epoch: int, consumer: int, consumers: int, many: int = MANY
) -> tuple[list[int], int, int]:
    """A worker's shards in an epoch, in its order, and which samples of them are its: every `turns`-th from `turn`.

    Of all workers together, each sample of each shard is dealt to exactly one. Where whole shards can't be dealt about
    evenly (there are fewer than `many` for each worker), groups of workers share theirs.
    """
    order = list(range(num_shards))
    random.Random(f"{seed} {epoch}").shuffle(order)  # the same on all ranks, which so need not speak to each other
    even = num_shards % consumers == 0 or num_shards >= many * consumers
    groups = consumers if even else math.gcd(num_shards, consumers)  # the most that have as many shards each
    return order[consumer % groups :: groups], consumer // groups, consumers // groups


def random_below(size: int, seed: int, epoch: int, consumer: int, count: int) -> int:
    """A whole number in [0, size), uniformly, by the four numbers alone: which of so many samples is drawn."""
    # scaled down, not modulo, so that no number is preferred
    return seed_from(f"{seed} {epoch} {consumer} {count}") * size >> 64


__all__ = [
    "BrokenShards",
    "EndlessStream",
    "MAX_SKIPPED_SHARDS",
    "Position",
    "ResumableStream",
    "RowShards",
    "StreamState",
    "list_skipped",
    "random_below",
    "worker_shards",
]
