"""Probes of the model that is being trained, on labelled data that it does not train on.

- tasks of `levljepa evaluate` that declare a `probe` (`zero_shot`, `linear`, ...): every `probe_steps` steps, on
  features of the model as it is then, with the constants that the task declares for that.
- `online_linear`, `online_attentive`: classifiers that learn beside the model. After each step they see a batch of
  labelled images through the frozen model and take a step of their own; no gradient reaches the model. They lag behind
  a moving model a little, and cost a forward pass on `probe_batch_size` images a step.

Nothing here changes the training: modules are put into evaluation mode and back, and random states are restored. The
first process probes, and the others wait for its figures. Online classifiers are in the checkpoints.
"""

import contextlib
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers.utils import logging

from ..data.images import image_at
from ..data.splits import EvaluationSplit
from ..data.workers import prepare_worker
from ..encoders.embeddings import Embeddings, embed_texts
from ..encoders.encoders import LeVLJEPAEncoder
from ..evaluation.attentive_probe import AttentiveProbe, AttentiveProbeProtocol, fitting_heads
from ..evaluation.classification import class_labels
from ..evaluation.protocols import read_protocols
from ..evaluation.task import TASKS, load_split
from ..evaluation.zero_shot import top_k_accuracy
from ..model.modeling_levljepa import READOUTS, LeVLJEPAModel
from ..model.processing_levljepa import LeVLJEPAProcessor
from .arguments import ONLINE_PROBES, PROBES, LeVLJEPATrainingArguments
from .distributed import sharding_of

logger = logging.get_logger(__name__)

_STATE_NAME = "online_probes.pt"  # in a checkpoint
# Of the online classifiers. Class tokens are standardised by running statistics, as in MAE's probe (arXiv 2111.06377).
_LEARNING_RATES = {"online_linear": 1e-2, "online_attentive": 1e-3}
_WEIGHT_DECAY = 1e-4


class Probes:
    """What `probe_dataset` and its fellows in the training arguments ask for.

    Args:
        args: The training arguments.
        model: The model that is trained.
        processor: Its processor.

    Raises:
        ValueError: if the data do not serve a task, or the model or its sharding does not allow to probe it.
        OSError: if the data are not within reach.
    """

    def __init__(self, args: LeVLJEPATrainingArguments, model: nn.Module, processor: Any) -> None:
        if not isinstance(model, LeVLJEPAModel) or not isinstance(processor, LeVLJEPAProcessor):
            raise ValueError(
                f"probe_dataset={args.probe_dataset!r} needs a LeVLJEPAModel with its LeVLJEPAProcessor as "
                f"processing_class, not {type(model).__name__} and {type(processor).__name__}: leave it out."
            )
        if sharding_of(args) is not None:
            raise ValueError(
                "Probes need the model's whole weights on one process: leave out probe_dataset under FSDP and "
                "DeepSpeed, and run `levljepa evaluate` on the checkpoints."
            )
        self.args = args
        self.encoder = _ModelInTraining(model, processor)
        offline = [PROBES[probe] for probe in args.probe_tasks if probe not in ONLINE_PROBES]
        given = read_protocols(args.probe_protocols) if args.probe_protocols else {}
        self._protocols = {task: given.get(task) or _protocol(task, self.encoder.readouts) for task in offline}
        self._splits = {task: _load(args, PROBES[task]) for task in args.probe_tasks}
        online = [task for task in args.probe_tasks if task in ONLINE_PROBES]
        self.online = OnlineProbes(online, args, self.encoder, self._splits[online[0]]) if online else None

    # What the watcher calls

    def begin(self, model: LeVLJEPAModel) -> None:
        """When training begins; a trainer with a `model_init` has made a new model by then."""
        self.encoder.attach(model)

    def after_step(self, step: int, accelerator: Accelerator) -> dict[str, float]:
        """Lets the online classifiers take a step; returns the figures of all probes when it is time, else none."""
        if self.online is not None and self.args.process_index == 0:
            with self._undisturbed(), accelerator.autocast():
                self.online.step(step)
        return self._measure_together() if step % self.args.probe_steps == 0 else {}

    def save(self, folder: Path) -> None:
        """The state of the online classifiers, by the first process."""
        if self.online is not None and self.args.process_index == 0:
            torch.save(self.online.state_dict(), folder / _STATE_NAME)

    def load(self, checkpoint: Path) -> None:
        """Takes them up again."""
        if self.online is None or self.args.process_index != 0:
            return
        file = checkpoint / _STATE_NAME
        state = torch.load(file, map_location="cpu", weights_only=True) if file.is_file() else {}
        self.online.load_state_dict(state, checkpoint)

    def close(self) -> None:
        """Ends the processes that prepare labelled images."""
        if self.online is not None:
            self.online.close()

    # Measuring

    def _measure_together(self) -> dict[str, float]:
        """The figures of the first process, on all of them; its error too, so that none waits for another."""
        figures, error = {}, None
        if self.args.process_index == 0:
            try:
                figures = self.measure()
            except Exception as failure:  # told to the others first
                error = failure
        if self.args.world_size > 1:
            shared = [figures, None if error is None else f"{type(error).__name__}: {error}"]
            figures, told = broadcast_object_list(shared)
            if told is not None and error is None:
                raise RuntimeError(f"A probe failed on the first process: {told}")
        if error is not None:
            raise error
        return figures

    def measure(self) -> dict[str, float]:
        """Every task on the model as it is: figures such as `probe_linear_top1`, in 0..1."""
        figures: dict[str, float] = {}
        with self._undisturbed(), tempfile.TemporaryDirectory(prefix="levljepa-probes-") as cache:
            for task, splits in self._splits.items():
                if task in ONLINE_PROBES:
                    continue
                metrics = self._run(task, splits, cache)
                figures |= {f"probe_{task}_{name}": value for name, value in metrics.items()}
            if self.online is not None:
                figures |= self.online.measure()
        return figures

    def _run(self, task: str, splits: dict[str, EvaluationSplit], cache: str) -> dict[str, float]:
        evaluated = TASKS[PROBES[task]]
        options: dict[str, Any] = {
            "batch_size": self.args.per_device_eval_batch_size,
            "num_workers": self.args.dataloader_num_workers,
            "cache_dir": cache,  # tasks share features
            "show_progress": False,
        }
        if evaluated.seeds:
            options["seeds"] = (self.args.seed,)
        protocol = self._protocols[PROBES[task]]
        inputs = [splits[role] for role in evaluated.roles]
        metrics = evaluated.run(self.encoder, *inputs, protocol=protocol, **options).metrics
        readouts = getattr(protocol, "readouts", ())
        if len(readouts) == 1:
            metrics = {name.removeprefix(f"{readouts[0]}_"): value for name, value in metrics.items()}
        return metrics

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Inside, the model is in evaluation mode; afterwards it and every random state are as before."""
        training, states = self.encoder.model.training, (random.getstate(), np.random.get_state())
        devices = [self.encoder.device] if self.encoder.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                self.encoder.model.eval()
                yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            self.encoder.model.train(training)


class _ModelInTraining(LeVLJEPAEncoder):
    """The model itself as an encoder: nothing of it is copied, frozen or hashed."""

    def __init__(self, model: LeVLJEPAModel, processor: LeVLJEPAProcessor) -> None:
        config = model.config.vision_config
        self.name, self.fingerprint, self.processor = "the model in training", "in training", processor
        self.image_size, self.hidden_size = config.image_size, config.hidden_size
        self.readouts = READOUTS if model.vision_predictor is not None else ("zeroshot",)
        self.attach(model)

    def attach(self, model: LeVLJEPAModel) -> None:
        self.model, self.vision_model = model, model.vision_model

    def embed_texts(self, texts: Sequence[str], batch_size: int = 256, show_progress: bool = False) -> Embeddings:
        return embed_texts(self.model, self.processor, texts, batch_size, show_progress=False)


def _protocol(name: str, readouts: Sequence[str]) -> Any:
    """What a task declares for a probe; and of several readouts the one to quote, to log one figure of a kind."""
    task = TASKS[name]
    constants = dict(task.probe_constants)
    if "readouts" in task.protocol.__dataclass_fields__:
        constants.setdefault("readouts", ["avg" if "avg" in readouts else readouts[0]])
    return task.protocol(**constants)


def _load(args: LeVLJEPATrainingArguments, task: str) -> dict[str, EvaluationSplit]:
    """The splits of a task of `levljepa evaluate`, by role."""
    columns = {role: getattr(args, f"probe_{role}_column") for role in ("image", "label", "caption")}
    options: dict[str, Any] = {
        "columns": {role: column for role, column in columns.items() if column is not None},
        "config_name": args.probe_dataset_config,
        "class_names": args.probe_class_names,
    }
    test = load_split(
        args.probe_dataset, task, args.probe_test_split, max_samples=args.probe_max_test_samples, **options
    )
    if "train" not in TASKS[task].roles:
        return {"test": test}
    train = load_split(
        args.probe_dataset, task, args.probe_train_split, max_samples=args.probe_max_train_samples, **options
    )
    if train.name == test.name:
        raise ValueError(
            f"{train.name} would be both learned from and measured on: choose with --probe_train_split and "
            "--probe_test_split."
        )
    if TASKS[task].reads == "labels":
        class_labels(train, test)  # what does not fit is an error now
    return {"train": train, "test": test}


# ------------------------------------------------------------------------------------------------------------ online


class OnlineProbes:
    """Classifiers of a model's features that learn while it learns.

    Each takes one step of AdamW after each step of the training, on the batch that the seed and the number of that
    step decide: one goes on from a checkpoint as if there had been no stop.

    Args:
        tasks: Of `online_linear` (the class token, of unit length) and `online_attentive` (the patch tokens).
        args: The training arguments.
        encoder: Gives the features.
        splits: `train` and `test`, with labels.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        args: LeVLJEPATrainingArguments,
        encoder: LeVLJEPAEncoder,
        splits: dict[str, EvaluationSplit],
    ) -> None:
        self.args, self.encoder, self.splits = args, encoder, splits
        self.labels = dict(zip(("train", "test"), class_labels(splits["train"], splits["test"]), strict=True))
        width, num_classes = encoder.hidden_size, len(splits["train"].class_names)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(args.seed)
            make = {
                "online_linear": lambda: nn.Sequential(
                    nn.BatchNorm1d(width, affine=False), nn.Linear(width, num_classes)
                ),
                "online_attentive": lambda: AttentiveProbe(
                    width, num_classes, fitting_heads(width, AttentiveProbeProtocol().num_heads)
                ),
            }
            self.probes = {task: make[task]().to(args.device) for task in tasks}
        self.optimizers = {
            task: torch.optim.AdamW(probe.parameters(), _LEARNING_RATES[task], weight_decay=_WEIGHT_DECAY)
            for task, probe in self.probes.items()
        }
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None

    def step(self, number: int) -> None:
        """The step `number` of each classifier. The model is to be in evaluation mode."""
        if self._batches is None:
            self._batches = iter(self._loader("train", self._orders(number)))
        pixel_values, indices = next(self._batches)
        labels = self.labels["train"][indices].to(self.args.device)
        for task, logits in self._logits(pixel_values, training=True).items():
            self.optimizers[task].zero_grad()
            F.cross_entropy(logits.float(), labels).backward()
            self.optimizers[task].step()

    def measure(self) -> dict[str, float]:
        """Top-1 and top-5 accuracy on the test split, such as `probe_online_linear_top1`."""
        scores: dict[str, list[Tensor]] = {task: [] for task in self.probes}
        batches = torch.arange(len(self.labels["test"])).split(self.args.per_device_eval_batch_size)
        with torch.no_grad():
            for pixel_values, _ in self._loader("test", [batch.tolist() for batch in batches]):
                for task, logits in self._logits(pixel_values, training=False).items():
                    scores[task].append(logits.float().cpu())
        return {
            f"probe_{task}_{name}": value
            for task, logits in scores.items()
            for name, value in top_k_accuracy(torch.cat(logits), self.labels["test"]).items()
        }

    def _logits(self, pixel_values: Tensor, training: bool) -> dict[str, Tensor]:
        tokens = self.encoder.tokens(pixel_values)
        inputs = {"online_linear": F.normalize(tokens.cls.float(), dim=1), "online_attentive": tokens.patches.float()}
        return {task: probe.train(training)(inputs[task]) for task, probe in self.probes.items()}

    def _loader(self, role: str, batches: Any) -> DataLoader:
        split = self.splits[role]
        images = _Prepared(split.images, self.encoder.image_processor(split.transform))
        workers = min(1, self.args.dataloader_num_workers) if role == "train" else self.args.dataloader_num_workers
        return DataLoader(images, batch_sampler=batches, num_workers=workers, generator=torch.Generator())

    def _orders(self, number: int) -> Iterator[list[int]]:
        """The indices of each batch, from the step `number` on; every image once in each pass."""
        size = min(self.args.probe_batch_size, len(self.labels["train"]))
        per_pass = len(self.labels["train"]) // size
        order, drawn = None, -1
        while True:
            which, place = divmod(number, per_pass)
            if which != drawn:
                generator = torch.Generator().manual_seed(self.args.seed + which)
                order, drawn = torch.randperm(len(self.labels["train"]), generator=generator), which
            yield order[place * size : (place + 1) * size].tolist()
            number += 1

    def state_dict(self) -> dict[str, Any]:
        """Classifiers and optimizers, by task."""
        return {
            task: {"probe": probe.state_dict(), "optimizer": self.optimizers[task].state_dict()}
            for task, probe in self.probes.items()
        }

    def load_state_dict(self, state: dict[str, Any], source: str | Path) -> None:
        """Takes over what `state_dict` gave; a classifier that is not there, or of other shapes, begins anew."""
        self.close()
        for task, probe in self.probes.items():
            shapes = {name: tensor.shape for name, tensor in probe.state_dict().items()}
            saved = state.get(task)
            if saved is None or {name: tensor.shape for name, tensor in saved["probe"].items()} != shapes:
                logger.warning(f"{source} has no state of {task} that fits: it begins anew.")
                continue
            probe.load_state_dict(saved["probe"])
            self.optimizers[task].load_state_dict(saved["optimizer"])

    def close(self) -> None:
        """Ends the processes that prepare images."""
        self._batches = None


class _Prepared(Dataset):
    """The pixel values of an image, and its index."""

    def __init__(self, images: Sequence[Any], processor: Any) -> None:
        self.images, self.processor = images, processor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        prepare_worker()
        image = image_at(self.images, index, f"Labelled image {index}")
        return self.processor(image, return_tensors="pt")["pixel_values"][0], index


__all__ = ["OnlineProbes", "Probes"]
