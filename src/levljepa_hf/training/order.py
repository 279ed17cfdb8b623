"""The order of the samples: numbered, with their origin, counted, so that a run can be taken up again."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..data.collator import NumberedDataset
from ..data.mixtures import (
    STREAMS,
    Mixture,
)
from ..data.streams import (
    SAMPLE_DATASET,
    EndlessStream,
    ResumableStream,
)
from .arguments import LeVLJEPATrainingArguments

SAMPLES_BY_DATASET = "samples_by_dataset"  # beside the tensors of a batch, how many each dataset gave
STREAM_POSITION = "stream_position"  # and the worker, and where it was after it
DRAWN = "samples.json"  # in a checkpoint: how many of each dataset were drawn


# For the Trainer


def reproducible(dataset: Any, args: LeVLJEPATrainingArguments) -> Any:
    """What a Trainer reads of a training set: a mixture or a stream without an end, or numbered samples."""
    options = (args.seed, args.stream_buffer_size, args.process_index, args.world_size, args.max_skipped_shards)
    if isinstance(dataset, Mixture):
        return dataset.prepared(*options)
    return EndlessStream(dataset, *options) if isinstance(dataset, STREAMS) else numbered(dataset)


def numbered(dataset: Any) -> Any:
    """A map-style dataset, or a dict of them, with numbered samples; what is none as it is.

    Raises:
        ValueError: for a mixture, which is for training.
    """
    if isinstance(dataset, Mixture):
        raise ValueError("A mixture is for training: evaluate on one dataset, or on a dict of several.")
    if isinstance(dataset, dict):
        return {name: numbered(one) for name, one in dataset.items()}
    as_it_is = (type(None), str, NumberedDataset, torch.utils.data.IterableDataset, *STREAMS)
    return dataset if isinstance(dataset, as_it_is) else NumberedDataset(dataset)


class WithOrigin:
    """A collator whose batches say where their samples are from.

    How many each dataset of a mixture gave, skipped ones included; and of a stream, which worker made the batch, and
    where it was then.

    Args:
        collator: makes the batches.
        stream: whose samples they are, if it is one.
    """

    def __init__(self, collator: Any, stream: ResumableStream | None = None) -> None:
        self.collator, self.stream = collator, stream

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = self.collator(samples)
        counts = Counter(one[SAMPLE_DATASET] for one in samples if SAMPLE_DATASET in one)
        if counts:
            batch[SAMPLES_BY_DATASET] = dict(counts)
        if self.stream is not None:
            worker = torch.utils.data.get_worker_info()
            stream = self.stream if worker is None else worker.dataset
            batch[STREAM_POSITION] = (stream.worker, stream.position)
        return batch


class DrawnSamples:
    """How many samples of each dataset of a mixture a run has been trained on, from its first step on.

    Args:
        names: of the datasets.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = list(names)
        self.counts = torch.zeros(len(self.names), dtype=torch.int64)  # of this rank

    def take(self, batch: dict[str, Any]) -> None:
        """Counts a batch, and takes out of it what only counts."""
        for name, count in batch.pop(SAMPLES_BY_DATASET, {}).items():
            self.counts[self.names.index(name)] += count

    def total(self, accelerator: Accelerator) -> dict[str, int]:
        """By name, over all ranks."""
        if not self.names:
            return {}
        return dict(zip(self.names, accelerator.reduce(self.counts.to(accelerator.device)).tolist(), strict=True))

    def save(self, folder: Path, accelerator: Accelerator) -> None:
        if (total := self.total(accelerator)) and accelerator.is_main_process:
            (folder / DRAWN).write_text(json.dumps(total))

    def load(self, folder: Path, accelerator: Accelerator) -> None:
        """Takes up the count of a checkpoint: on the first rank, since they are summed."""
        before = json.loads((folder / DRAWN).read_text()) if (folder / DRAWN).is_file() else {}
        own = [before.get(name, 0) if accelerator.is_main_process else 0 for name in self.names]
        self.counts = torch.tensor(own, dtype=torch.int64)


__all__ = ["DrawnSamples", "WithOrigin", "numbered", "reproducible"]
