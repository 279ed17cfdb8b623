"""Mixtures of datasets: several sources of captioned images, each drawn from with a probability.

    mixture = Mixture({"web": web, "photos": photos}, weights={"web": 0.7, "photos": 0.3})
    trainer = LeVLJEPATrainer(model, args, train_dataset=mixture, processing_class=processor)

    mixture = load_mixture(["shards/*.tar", {"dataset": "photos", "weight": 0.3}], ...)  # by their names

Each dataset keeps its own columns; the samples of all are `image` and `captions`. Where none is a stream the mixture
is map-style and has epochs (`MixedDataset`), else it is an endless stream (`MixedStream`). What is drawn when follows
from the seed and from counts alone, so a run is taken up again exactly.

`datasets.interleave_datasets(probabilities=...)` is not used. Of map-style datasets it makes one list of indices that
stops at the first or last dataset's end, without a new order in each epoch. Of streams its state loses what a shuffle
buffer holds, its shards are as many as those of the dataset with the fewest (further workers read nothing), and other
numbers of workers can't take it up again.
"""

import bisect
import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml

from ..options import did_you_mean
from ..recipes import RecipeLoader
from .collator import NumberedDataset
from .loading import FILE_BUILDERS, find_columns, load_pretraining_dataset, look_up
from .streams import (
    MAX_SKIPPED_SHARDS,
    SAMPLE_DATASET,
    SAMPLE_EPOCH,
    SAMPLE_INDEX,
    EndlessStream,
    Position,
    ResumableStream,
    RowShards,
    StreamState,
    random_below,
)
from .tar_shards import TarShards
from .workers import prepare_worker

IMAGE, CAPTIONS = "image", "captions"  # the columns of a mixture
STREAMS = (datasets.IterableDataset, TarShards)
_CHOICES = 2**53  # equally likely numbers, of which the weights take their shares
_GOLDEN = 0x9E3779B97F4A7C15  # the golden ratio's fraction, times 2**64
# Places of `random_below`'s numbers that no stream of samples uses: its epochs and consumers count from 0.
_WHICH, _SEEDS, _ORDERS = -1, -2, -3


class Mixture:
    """Several datasets, and how often a sample is drawn from each.

    Args:
        datasets: by name, two or more of what `load_pretraining_dataset` returns, or anything with a length and rows.
        weights: by name, the probability that a sample is drawn from the dataset; they are normalised. By default in
            proportion to the datasets' sizes, which streams do not have.
        columns: by name, the columns of image and captions; found where left out.

    Raises:
        ValueError: if there are fewer than two datasets, if a weight is missing, has no dataset, is not positive or
            not finite, is no number, or if a column can't be found.
    """

    def __init__(
        self,
        datasets: Mapping[str, Any],
        weights: Mapping[str, float] | None = None,
        columns: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        if len(datasets) < 2:
            raise ValueError(f"A mixture has two datasets or more, not {len(datasets)}: give a single one as it is.")
        self.names = list(datasets)
        self.datasets = list(datasets.values())
        for name, dataset in datasets.items():
            if not isinstance(dataset, STREAMS) and len(dataset) == 0:
                raise ValueError(f"The dataset {name!r} of the mixture is empty: leave it out.")
        self.fractions = self._fractions(weights)
        given = dict(columns or {})
        _check_names("columns", given, self.names)
        self.columns = [given.get(name) or _columns(dataset) for name, dataset in datasets.items()]

    def _fractions(self, weights: Mapping[str, float] | None) -> list[Fraction]:
        if weights is None:
            for name, dataset in zip(self.names, self.datasets, strict=True):
                _check_size_known(name, isinstance(dataset, STREAMS))
            weights = {name: len(one) for name, one in zip(self.names, self.datasets, strict=True)}
        _check_names("weights", weights, self.names)
        # Exact: a rounded share would put `counts` one off somewhere in a long run.
        parts = [Fraction(one) for one in _numbers({name: weights.get(name) for name in self.names}).values()]
        return [one / sum(parts) for one in parts]

    @property
    def weights(self) -> dict[str, float]:
        """By name; their sum is 1."""
        return dict(zip(self.names, map(float, self.fractions), strict=True))

    @property
    def is_stream(self) -> bool:
        return any(isinstance(one, STREAMS) for one in self.datasets)

    def settings(self) -> dict[str, Any]:
        """What a resumed run is compared by: weights, and sizes (of streams their shards), by name."""
        sizes = [one.num_shards if isinstance(one, STREAMS) else len(one) for one in self.datasets]
        return {"mixture_weights": self.weights, "mixture_sizes": dict(zip(self.names, sizes, strict=True))}

    def prepared(
        self,
        seed: int = 0,
        buffer_size: int = 1000,
        rank: int = 0,
        world_size: int = 1,
        max_skipped_shards: float = MAX_SKIPPED_SHARDS,
    ) -> "MixedDataset | MixedStream":
        """What a DataLoader reads. Arguments as those of `MixedStream`; a map-style mixture needs the seed alone."""
        if self.is_stream:
            return MixedStream(self, seed, buffer_size, rank, world_size, max_skipped_shards)
        return MixedDataset(self, seed)

    def sample(self, part: int, row: Mapping[str, Any], key: tuple[int, ...], epoch: int) -> dict[str, Any]:
        """A row of the dataset with the number `part`, under the columns of the mixture, and what tells it apart.

        The dataset's number is part of the index that the collator draws its randomness from, and `epoch` is the pass
        through that dataset: one that is gone through twice in an epoch is augmented anew.
        """
        image, captions = (look_up(row, column) for column in self.columns[part])
        kept = {"__key__": row["__key__"]} if "__key__" in row else {}
        number = {SAMPLE_DATASET: self.names[part], SAMPLE_INDEX: (part, *key), SAMPLE_EPOCH: epoch}
        return {IMAGE: image, CAPTIONS: captions, **kept, **number}


def _check_names(argument: str, given: Mapping[str, Any], names: Sequence[str]) -> None:
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ValueError(f"{argument} names {', '.join(map(repr, unknown))}; the mixture has {', '.join(names)}.")


def _numbers(weights: Mapping[str, Any]) -> dict[str, float]:
    """The weights as floats, positive and finite."""
    numbers = {}
    for name, weight in weights.items():
        if weight is None:
            raise ValueError(f"The dataset {name!r} of the mixture has no weight, and others have: give it one.")
        try:
            numbers[name] = float(weight)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"weight={weight!r} of the dataset {name!r} is no number: {error}.") from error
        if not (math.isfinite(numbers[name]) and numbers[name] > 0):
            raise ValueError(
                f"weight={weight} of the dataset {name!r} must be positive and finite. To leave a dataset out of a "
                "mixture, do not name it."
            )
    return numbers


def _check_size_known(name: str, is_stream: bool) -> None:
    if is_stream:
        raise ValueError(
            f"The dataset {name!r} of the mixture is streamed, so its size is not known: give each dataset a weight, "
            "the share of the samples that it is to have."
        )


def _columns(dataset: Any) -> tuple[str, str]:
    known = isinstance(dataset, (datasets.Dataset, *STREAMS))
    return find_columns(dataset) if known else (IMAGE, CAPTIONS)


# Map-style


class MixedDataset(NumberedDataset):
    """A mixture of map-style datasets. Its order is the one to draw in: it wants a sequential sampler.

    An epoch is as many draws as the datasets have samples together. Of each dataset it has the share of its weight,
    rounded up or down so that it comes out right over epochs: in proportion to the sizes, each sample once. Each
    dataset is gone through in a random order, to its end before a sample comes again, from one epoch into the next.

    Args:
        mixture: of map-style datasets.
        seed: of every choice. The order does not depend on ranks or workers, which take it by turns.
    """

    def __init__(self, mixture: Mixture, seed: int = 0) -> None:
        super().__init__(mixture)
        self.mixture, self.seed = mixture, seed
        self.sizes = [len(one) for one in mixture.datasets]
        self._ordered: int | None = None  # the epoch of what follows, each (length,)
        self._parts = self._rows = self._passes = torch.empty(0)

    def __len__(self) -> int:
        return sum(self.sizes)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self._order(epoch)  # here once, and not in each worker

    def __getitem__(self, index: int) -> dict[str, Any]:
        prepare_worker()
        self._order(int(self._epoch))
        part, row, epoch = (int(one[index]) for one in (self._parts, self._rows, self._passes))
        return self.mixture.sample(part, self.mixture.datasets[part][row], (row,), epoch)

    def counts(self, epoch: int) -> list[int]:
        """How many draws of an epoch each dataset has: its share of them, rounded up or down.

        The ends of the shares, laid one after the other, are moved by an offset and rounded down, so that the sum is
        the length. Over the epochs the offsets, multiples of the golden ratio, fill [0, 1) evenly.
        """
        offset = Fraction(epoch * _GOLDEN % 2**64, 2**64)
        ends = itertools.accumulate((len(self) * one for one in self.mixture.fractions), initial=offset)
        return [math.floor(end) - math.floor(start) for start, end in itertools.pairwise(ends)]

    def _order(self, epoch: int) -> None:
        """Lays out an epoch: for each place the dataset, its row, and which pass through that dataset it is.

        A dataset's passes do not end with epochs: one whose weight is above its size is gone through several times in
        one, and of another an epoch takes a piece. So its draws are numbered from the first epoch on, draw n is in
        its pass n // size, and each pass has an order of its own.
        """
        if self._ordered == epoch:
            return
        counts = self.counts(epoch)
        # How many each dataset has had so far is added up anew, so that nothing has to be kept for a resumed run.
        before = [sum(one) for one in zip(*map(self.counts, range(epoch)), strict=True)] or [0] * len(counts)
        parts = torch.arange(len(counts), dtype=torch.int16).repeat_interleave(torch.tensor(counts))
        self._parts = parts[self._permutation(len(self), epoch, _ORDERS)]
        self._rows = torch.empty(len(self), dtype=torch.int64)
        self._passes = torch.empty(len(self), dtype=torch.int32)
        for part, (size, start, count) in enumerate(zip(self.sizes, before, counts, strict=True)):
            draws = torch.arange(start, start + count)
            passes = range(start // size, -(-(start + count) // size))  # those that the draws touch, rounded outwards
            orders = [self._permutation(size, one, part) for one in passes]
            places = (self._parts == part).nonzero().squeeze(1)
            if orders:
                self._rows[places] = torch.cat(orders)[start % size :][:count]
                self._passes[places] = (draws // size).int()
        self._ordered = epoch

    def _permutation(self, size: int, epoch: int, part: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(random_below(2**63, self.seed, epoch, part, 0))
        return torch.randperm(size, generator=generator)


# Streamed


class MixedStream(ResumableStream):
    """A mixture of which a dataset is streamed, without an end.

    For each sample a worker decides by the seed, its number and the count of its samples alone which dataset it is
    from, so every worker holds the shares. Each dataset is an `EndlessStream`, a map-style one with its rows as
    shards: it is shuffled whole, and no sample comes again before a worker's share of the others was drawn.

    Args:
        mixture: the datasets and their weights.
        seed: of every choice; the same on every rank.
        buffer_size: samples of each streamed dataset held in memory to draw from.
        rank, world_size: which part of the streams this process reads.
        max_skipped_shards: the share of each dataset's shards that may be broken.
    """

    def __init__(
        self,
        mixture: Mixture,
        seed: int = 0,
        buffer_size: int = 1000,
        rank: int = 0,
        world_size: int = 1,
        max_skipped_shards: float = MAX_SKIPPED_SHARDS,
    ) -> None:
        super().__init__(seed, rank, world_size)
        self.mixture, self.buffer_size = mixture, buffer_size
        self._parts = []
        for number, (name, dataset) in enumerate(zip(mixture.names, mixture.datasets, strict=True)):
            is_stream = isinstance(dataset, STREAMS)
            source, size = (dataset, buffer_size) if is_stream else (RowShards(dataset, name), 1)
            own_seed = random_below(2**32, seed, _SEEDS, number, 0)  # or datasets of as many shards would go in step
            self._parts.append(EndlessStream(source, own_seed, size, rank, world_size, max_skipped_shards, name))
        # The datasets laid one after the other on [0, _CHOICES), each as long as its weight; `which` throws a dart.
        self._limits = [round(_CHOICES * limit) for limit in itertools.accumulate(mixture.fractions)]
        self._draws = 0
        self._starts: dict[int, Position] = {}  # by part, where those are that were not drawn from

    @property
    def position(self) -> Position:
        parts = [self._starts.get(number, part.position) for number, part in enumerate(self._parts)]
        return Position(draws=self._draws, parts=parts)

    @property
    def parts(self) -> list[EndlessStream]:
        return self._parts

    def resume(self, state: StreamState) -> None:
        """As `ResumableStream.resume`, for each of the datasets.

        Raises:
            ValueError: if the position is not one in a mixture of as many datasets.
        """
        number = max(len(one.parts) for one in state.positions)  # workers without a batch yet have none
        if number != len(self._parts):
            before = f"a mixture of {number} datasets" if number else "one dataset"
            raise ValueError(
                f"The checkpoint is of {before}, and this run mixes {len(self._parts)}: give the same ones in the "
                "same order."
            )
        super().resume(state)
        for number, part in enumerate(self._parts):
            part.resume(state.of_part(number))

    def after_others(self, positions: list[Position]) -> Position:
        parts = [
            part.after_others([one.of_part(number) for one in positions]) for number, part in enumerate(self._parts)
        ]
        # From the worker on that was furthest: below it, choices would repeat those of the run before.
        draws = max((one.draws for one in positions), default=0)
        return Position(draws=draws, parts=parts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        prepare_worker()
        number, num_workers, start = self.start()
        self.worker, self._draws = number, start.draws
        self._starts = {part: stream.start()[2] for part, stream in enumerate(self._parts)}
        consumer, consumers = self.rank * num_workers + number, self.world_size * num_workers
        self._check_rows(consumers)
        iterators = [iter(stream) for stream in self._parts]
        while True:
            part = self.which(consumer, self._draws)
            row = next(iterators[part], None)
            if row is None:
                is_stream = isinstance(self.mixture.datasets[part], STREAMS)
                raise ValueError(
                    f"Worker {consumer + 1} of {consumers} gets no sample of {self.mixture.names[part]!r}, which has "
                    "too few that can be read for so many: lower dataloader_num_workers"
                    f"{', or take the dataset without streaming' if is_stream else ''}."
                )
            self._draws += 1
            self._starts.pop(part, None)  # from now on the stream itself knows where it is
            yield self.mixture.sample(part, row, row[SAMPLE_INDEX], row[SAMPLE_EPOCH])

    def _check_rows(self, consumers: int) -> None:
        for name, dataset in zip(self.mixture.names, self.mixture.datasets, strict=True):
            if not isinstance(dataset, STREAMS) and len(dataset) < consumers:
                raise ValueError(
                    f"The dataset {name!r} of the mixture has {len(dataset)} rows for {consumers} workers, those of "
                    "all processes together: lower dataloader_num_workers or the number of processes, or leave it out."
                )

    def which(self, consumer: int, count: int) -> int:
        """The dataset that a worker's sample with the number `count` is from."""
        return bisect.bisect(self._limits, random_below(_CHOICES, self.seed, _WHICH, consumer, count))


# Loading


@dataclass
class MixtureSource:
    """A dataset of a mixture by its name, as recipes have it.

    Args:
        dataset: what `load_pretraining_dataset` takes.
        weight: the probability that a sample is drawn from it.
        name: what logs call it; by default the end of `dataset`.
        split: the split.
        image_column: column of the images.
        caption_column: column of the captions.
        config: configuration of a Hub dataset that has several.
        streaming: read it as a stream.
        max_samples: keep the first so many.
    """

    dataset: str
    weight: float | None = None
    name: str | None = None
    split: str = "train"
    image_column: str | None = None
    caption_column: str | None = None
    config: str | None = None
    streaming: bool = False
    max_samples: int | None = None


def read_entry(entry: str | Mapping[str, Any]) -> str | dict[str, Any]:
    """An entry of a mixture as a name or a mapping, of which the command line has the YAML: `"{dataset: ..., ...}"`.

    Raises:
        ValueError: if it is neither.
    """
    if not isinstance(entry, str):
        return dict(entry)
    try:
        return yaml.load(entry, RecipeLoader) if entry.lstrip().startswith("{") else entry
    except yaml.YAMLError as error:
        raise ValueError(f"The mixture's {entry!r} is no YAML: {' '.join(str(error).split())}") from error


def read_source(entry: str | Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> MixtureSource:
    """A dataset of a mixture, from what a recipe or the command line has.

    Args:
        entry: a name, or a mapping of `MixtureSource`'s arguments; see `read_entry`.
        defaults: of those arguments that the entry leaves out.

    Raises:
        ValueError: if it is neither, or an argument does not exist or is of the wrong type.
    """
    entry = read_entry(entry)
    options = {"dataset": entry} if isinstance(entry, str) else entry
    types = {field.name: field.type for field in dataclasses.fields(MixtureSource)}
    for name, value in options.items():
        if name not in types:
            hint = did_you_mean(name, types) or f" It takes {', '.join(types)}."
            raise ValueError(f"An entry of the mixture has no option {name!r}.{hint}")
        numbers = isinstance(value, int) and not isinstance(value, bool) and name == "weight"
        if not (isinstance(value, types[name]) or numbers) or (isinstance(value, bool) and name != "streaming"):
            raise ValueError(f"{name}={value!r} of an entry of the mixture is of the wrong type.")
    if "dataset" not in options:
        raise ValueError(f"An entry of the mixture names no dataset: {options}.")
    return MixtureSource(**{**(defaults or {}), **options})


def read_sources(
    entries: Sequence[str | Mapping[str, Any]],
    weights: Sequence[float] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> list[MixtureSource]:
    """The datasets of a mixture, with their names and weights, and all that can be wrong before they are loaded.

    Args:
        entries: two or more; see `read_source`.
        weights: one for each, if the entries have none. Without any they are in proportion to the sizes.
        defaults: of arguments that an entry leaves out.

    Raises:
        ValueError: as `read_source`; if there are not as many weights as entries, or they are no weights.
    """
    sources = [read_source(entry, defaults) for entry in entries]
    if len(sources) < 2:
        raise ValueError(f"A mixture has two datasets or more, not {len(sources)}: give a single one as the dataset.")
    if weights:
        if any(one.weight is not None for one in sources):
            raise ValueError("The weights of the mixture stand both with the datasets and apart: leave one out.")
        if len(weights) != len(sources):
            raise ValueError(f"There are {len(weights)} weights for {len(sources)} datasets: give one for each.")
        sources = [dataclasses.replace(one, weight=weight) for one, weight in zip(sources, weights, strict=True)]
    names = _unique([one.name or _short_name(one.dataset) for one in sources])
    sources = [dataclasses.replace(one, name=name) for one, name in zip(sources, names, strict=True)]
    if any(one.weight is not None for one in sources):
        numbers = _numbers({one.name: one.weight for one in sources})
        sources = [dataclasses.replace(one, weight=numbers[one.name]) for one in sources]
    else:
        for one in sources:
            _check_size_known(one.name, one.streaming)
    return sources


def load_mixture(
    sources: Sequence[str | Mapping[str, Any] | MixtureSource],
    weights: Sequence[float] | None = None,
    cache_dir: str | None = None,
) -> Mixture:
    """Loads the datasets of a mixture with `load_pretraining_dataset`.

    Args:
        sources: two or more; see `read_source`.
        weights: one for each, if the sources have none. Without any they are in proportion to the sizes.
        cache_dir: where `datasets` keeps what it prepares.

    Raises:
        ValueError: as `read_sources`, `load_pretraining_dataset` and `Mixture`.
        FileNotFoundError: if a path does not exist.
    """
    sources = read_sources([vars(one) if isinstance(one, MixtureSource) else one for one in sources], weights)
    loaded, columns = {}, {}
    for one in sources:
        wanted = (one.image_column, one.caption_column)
        options = {"streaming": one.streaming, "max_samples": one.max_samples, "config_name": one.config}
        loaded[one.name] = load_pretraining_dataset(one.dataset, one.split, *wanted, cache_dir=cache_dir, **options)
        columns[one.name] = find_columns(loaded[one.name], *wanted)
    given = {one.name: one.weight for one in sources if one.weight is not None}
    return Mixture(loaded, given or None, columns)


def _short_name(dataset: str) -> str:
    """A Hub id as it is; of a path the last part, or of files and patterns of files their folder."""
    path = Path(dataset)
    files = bool(re.search(r"[*?\[]", path.name)) or path.suffix in FILE_BUILDERS
    if files and path.parent.name:
        return path.parent.name
    return path.stem if files else dataset if not path.exists() and "://" not in dataset else path.name


def _unique(names: Sequence[str]) -> list[str]:
    counts: Counter[str] = Counter()
    unique = []
    for name in names:
        counts[name] += 1
        unique.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return unique


__all__ = [
    "MixedDataset",
    "MixedStream",
    "Mixture",
    "MixtureSource",
    "load_mixture",
    "read_entry",
    "read_source",
    "read_sources",
]
