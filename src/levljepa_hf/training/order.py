"""What a run is trained on, in which order, and where it is: as batches carry it, checkpoints hold it, logs say it.

Samples are numbered and streams have no end, so that a position is a few numbers and a run can be taken up again.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import seed_worker

from ..data.collator import LeVLJEPADataCollator, NumberedDataset
from ..data.mixtures import STREAMS, MixedDataset, MixedStream, Mixture
from ..data.streams import SAMPLE_DATASET, EndlessStream, Position, ResumableStream, StreamState
from .arguments import LeVLJEPATrainingArguments

SAMPLES_BY_DATASET = "samples_by_dataset"  # beside the tensors of a batch, how many each dataset gave
STREAM_POSITION = "stream_position"  # and the worker, and where it was after it
DRAWN = "samples.json"  # in a checkpoint: how many of each dataset were drawn
_STREAM = "stream_{}.json"  # in a checkpoint, of each rank: where its workers are
_SAMPLERS = {"random": RandomSampler, "sequential": SequentialSampler}


# --------------------------------------------------------------------------------------------------- for every Trainer


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


def data_loader(args: TrainingArguments, dataset: Any, collator: Any, batch_size: int, **options: Any) -> DataLoader:
    """A DataLoader with workers as the arguments have them; `options` are its own, and win."""
    given = {
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory,
        "persistent_workers": args.dataloader_persistent_workers,
        "prefetch_factor": args.dataloader_prefetch_factor,
        "multiprocessing_context": args.dataloader_multiprocessing_context,
        "in_order": args.dataloader_in_order,
    }
    return DataLoader(dataset, batch_size, collate_fn=collator, **{**given, **options})


def train_batch_size(trainer: Trainer) -> int:
    """Of each process, as it is now: `auto_find_batch_size` lowers it."""
    return trainer.get_total_train_batch_size(trainer.args) // (
        trainer.args.gradient_accumulation_steps * trainer.args.world_size
    )


def check_batch(args: LeVLJEPATrainingArguments, dataset: Any) -> None:
    """Refuses batches that have no statistics, and a training set without a batch.

    Raises:
        ValueError: with what to change.
    """
    if dataset is None:
        return
    per_device, processes = args.per_device_train_batch_size, args.world_size
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs. BatchNorm and SIGReg need one process for each GPU: start with "
            "`accelerate launch` or `torchrun`, or set CUDA_VISIBLE_DEVICES=0."
        )
    if per_device * processes < 2:
        raise ValueError(
            f"per_device_train_batch_size={per_device} on one process is a batch of one: BatchNorm and SIGReg take "
            "statistics of the batch. Use at least 2 (gradient accumulation does not count)."
        )
    is_endless = isinstance(dataset, torch.utils.data.IterableDataset)
    if not is_endless and args.dataloader_drop_last and len(dataset) < per_device * processes:
        raise ValueError(
            f"The training set has {len(dataset)} samples, less than one batch ({per_device} a process, "
            f"{processes} processes), and incomplete batches are dropped: use a smaller per_device_train_batch_size."
        )


# ----------------------------------------------------------------------------------------------- what a batch says


class OriginCollator:
    """A collator whose batches say where their samples are from.

    How many each dataset of a mixture gave, skipped ones included; and of a stream, which worker made the batch, and
    where it was then. A worker reads ahead of the step that its batch is for, so the batch itself has to say it.

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


class SamplesPerDataset:
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


# ---------------------------------------------------------------------------------------------------------- of one run


class TrainingData(TrainerCallback):
    """The training data of a run, and where it is in them.

    Args:
        dataset: what `reproducible` gives; None where nothing is trained.
        collator: makes the batches. Only a `LeVLJEPADataCollator` counts and lists what it skips, leaves the pixels
            as bytes until they are on the device, and has settings to compare.
        args: the training arguments.
        accelerator: of the run.
    """

    def __init__(self, dataset: Any, collator: Any, args: LeVLJEPATrainingArguments, accelerator: Accelerator) -> None:
        self.dataset, self.collator, self.args, self.accelerator = dataset, collator, args, accelerator
        self.stream = dataset if isinstance(dataset, ResumableStream) else None
        self.mixture = dataset.mixture if isinstance(dataset, (MixedDataset, MixedStream)) else None
        self.samples = SamplesPerDataset(self.mixture.names if self.mixture else ())
        self._own_collator = collator if isinstance(collator, LeVLJEPADataCollator) else None
        self._positions: dict[int, Position] = {}  # by worker, the one whose batch was the last at the end
        self._before_step: dict[str, Any] = self.state_dict()
        self._resumed = False
        skipped = Path(args.output_dir, f"skipped_{args.process_index}.jsonl")
        if self._own_collator is not None:
            self._own_collator.skipped_file = skipped
        for part in self.stream.parts if self.stream is not None else ():
            part.broken.file = skipped

    # Batches

    def loader(self, batch_size: int) -> DataLoader:
        """Batches of this rank, in the order of the run.

        Raises:
            ValueError: for a `train_sampling_strategy` that needs the samples' lengths.
        """
        collator = self.collator
        if self._own_collator is not None:
            collator = replace(self._own_collator, normalize=False)  # on the device: see `on_device`
        if self.stream is not None:
            # A new loader takes its workers' seed from torch's generator. A checkpoint's random state is from after
            # that, so the loader of a run that goes on has a generator of its own.
            options = {"generator": torch.Generator() if self._resumed else None, "drop_last": True, "in_order": True}
            collator = OriginCollator(collator, self.stream)
            # Not for accelerate, which would have each rank read everything: the stream splits itself.
            return data_loader(self.args, self.stream, collator, batch_size, **options)
        if self.mixture is not None:
            collator = OriginCollator(collator)
        options = {}
        if not isinstance(self.dataset, torch.utils.data.IterableDataset):  # else as it comes, all of it
            options = {"sampler": self._sampler(), "drop_last": self.args.dataloader_drop_last}
            ranks = {"num_workers": self.args.dataloader_num_workers, "rank": self.args.process_index}
            options["worker_init_fn"] = partial(seed_worker, **ranks)  # as transformers has it
        return self.accelerator.prepare(data_loader(self.args, self.dataset, collator, batch_size, **options))

    def _sampler(self) -> torch.utils.data.Sampler:
        if self.mixture is not None:  # which has an order of its own
            return SequentialSampler(self.dataset)
        strategy = self.args.train_sampling_strategy
        if strategy not in _SAMPLERS:
            raise ValueError(
                f"train_sampling_strategy={strategy!r} needs the lengths of the samples, which are not known before "
                f"their captions are drawn: use {' or '.join(_SAMPLERS)}."
            )
        return _SAMPLERS[strategy](self.dataset)

    def take(self, batch: dict[str, Any]) -> None:
        """Notes where the run is after a batch, and takes out of it what is not the model's."""
        if STREAM_POSITION in batch:
            worker, position = batch.pop(STREAM_POSITION)
            self._positions.pop(worker, None)
            self._positions[worker] = position
        self.samples.take(batch)

    def on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch whose pixels are normalised, once they have travelled as bytes."""
        return batch if self._own_collator is None else self._own_collator.normalized(batch)

    # What the Trainer's loop tells

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if isinstance(self.dataset, NumberedDataset):
            self.dataset.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._before_step = self.state_dict()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stream is not None:  # of which the Trainer counts epochs from where it was resumed
            state.epoch = state.global_step / state.max_steps

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._own_collator is not None:
            self._own_collator.check_skipped()

    # What is logged

    def figures(self) -> dict[str, int]:
        """How many samples and shards were skipped, and how many each dataset of a mixture gave, on all ranks."""
        drawn = {f"samples/{name}": count for name, count in self.samples.total(self.accelerator).items()}
        return {**self._skipped(), **drawn}

    def _skipped(self) -> dict[str, int]:
        if self._own_collator is None:
            return {}
        counter, device = self._own_collator.counter, self.args.device
        counts = torch.tensor([counter.skipped_images, counter.skipped_captions], device=device)
        images, captions = self.accelerator.reduce(counts).tolist()
        skipped = {"skipped_images": images, "skipped_captions": captions}
        for part in self.stream.parts if self.stream is not None else ():
            broken = self.accelerator.reduce(part.broken.flags.to(device, torch.int32))
            name = "skipped_shards" if part.broken.name is None else f"skipped_shards/{part.broken.name}"
            skipped[name] = int((broken > 0).sum())  # several ranks may have met the same one
        return {name: count for name, count in skipped.items() if count}

    # Where the run is: within it, and in checkpoints

    def settings(self) -> dict[str, Any]:
        """What a resumed run is compared by: the data, their order and changes."""
        settings: dict[str, Any] = {} if self.mixture is None else self.mixture.settings()
        if self.stream is not None:
            settings["num_shards"] = sum(part.dataset.num_shards for part in self.stream.parts)
            settings["stream_buffer_size"] = self.args.stream_buffer_size
            settings["dataloader_num_workers"] = self.args.dataloader_num_workers  # they share the shards
        elif self.dataset is not None:
            settings["num_samples"] = len(self.dataset)
        if self._own_collator is not None:
            names = ("seed", "image_column", "caption_column", "transform", "pad_to_multiple_of")
            settings |= {f"collator_{name}": str(getattr(self._own_collator, name)) for name in names}
        return settings

    def state_dict(self) -> dict[str, Any]:
        """Where this rank is, to come back to within the run."""
        return {"positions": dict(self._positions), "samples": self.samples.counts.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._positions, self.samples.counts = dict(state["positions"]), state["samples"].clone()

    def go_back(self) -> None:
        """To where this rank was before the step at hand."""
        self.load_state_dict(self._before_step)

    def save(self, folder: Path) -> None:
        """Writes into a checkpoint where this rank's workers are in the stream and, of a mixture, what was drawn."""
        self.samples.save(folder, self.accelerator)
        if self.stream is None:
            return
        workers = max(1, self.args.dataloader_num_workers)
        last = next(reversed(self._positions), -1)  # none, if the first step was not finite
        positions = [
            self._positions.get(worker) or self.stream.beginning(worker, workers) for worker in range(workers)
        ]
        state = StreamState(positions, workers, (last + 1) % workers, self.stream.earlier_runs(workers))
        (folder / _STREAM.format(self.args.process_index)).write_text(state.to_json())

    def load(self, checkpoint: Path) -> None:
        """Puts the stream where it was, without reading what is behind; of other data, the steps say where."""
        self.samples.load(checkpoint, self.accelerator)
        files = sorted(checkpoint.glob(_STREAM.format("*")), key=lambda path: int(path.stem.split("_")[1]))
        if self.stream is None or not files:  # a checkpoint of an early version has none
            return
        ranks = [StreamState.from_json(path.read_text()) for path in files]
        state = replace(ranks[0], positions=[position for rank in ranks for position in rank.positions])
        self.stream.resume(state)
        workers = max(1, self.args.dataloader_num_workers)
        if state.is_of(self.args.world_size, workers):
            first = self.args.process_index * workers
            mine = dict(enumerate(state.positions[first : first + workers]))
            last = (state.next_worker - 1) % workers
            self._positions = {**{w: p for w, p in mine.items() if w != last}, last: mine[last]}
        self.args.ignore_data_skip, self._resumed = True, True


__all__ = [
    "OriginCollator",
    "SamplesPerDataset",
    "TrainingData",
    "check_batch",
    "data_loader",
    "numbered",
    "reproducible",
    "train_batch_size",
]
