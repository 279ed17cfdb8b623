"""What `LeVLJEPATrainer` tells of a run, and what of it goes into the log: terms, throughput, health, probes."""

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import Trainer

from .log_file import LogFile
from .throughput import StepFlops, Throughput, device_peak_flops
from .warnings import HealthMonitor

logger = logging.getLogger(__name__)

_ROUGH_STEPS = 100  # of a run's beginning, which health warnings leave alone as they do the warm-up; at most a quarter


class Watcher:
    """Watches the runs of a trainer.

    Args:
        trainer: A `Trainer` whose arguments, model and processor are set.

    Attributes:
        terms: Collects the loss terms of each step.
        throughput: The clock.
        probes: The `Probes` that the arguments ask for, or None.

    Raises:
        ValueError: as `Probes`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._monitor: HealthMonitor | None = None
        self._flops: StepFlops | None = None
        self._log_file = LogFile(trainer.args.output_dir)
        self.terms, self.throughput, self.probes = Averages(), Throughput(), None
        if trainer.args.probe_dataset is not None:
            from .probing import Probes  # what they need is imported for them alone

            with trainer.args.main_process_first(desc="preparing the probes' data"):
                self.probes = Probes(trainer.args, trainer.model, trainer.processing_class)

    def begin(self) -> None:
        """When training begins, or goes on from a checkpoint: what was before is in the log's history."""
        trainer, args, history = self._trainer, self._trainer.args, self._trainer.state.log_history
        config, max_steps = getattr(trainer.model, "config", None), trainer.state.max_steps
        self.throughput = Throughput(device_peak_flops(args.device, args.bf16 or args.fp16))
        self._flops = StepFlops(trainer.model)
        rows = args.train_batch_size * args.world_size
        self._monitor = HealthMonitor(
            max_rank=min(rows - 1, getattr(config, "projection_dim", rows)),
            warmup_steps=max(args.get_warmup_steps(max_steps), min(_ROUGH_STEPS, max_steps // 4)),
            judge_predictions=getattr(config, "prediction_loss_type", "mse") == "mse",
        )
        for entry in history:
            self._monitor.check(entry, entry["step"])
        if trainer.is_world_process_zero():
            self._log_file.begin(history)
        if self.probes is not None:
            self.probes.begin(trainer.model)

    def count(self, inputs: dict[str, Any]) -> float | None:
        """Counts a batch of this process; returns the FLOPs of its step, where they are known."""
        flops = self._flops(inputs)
        self.throughput.add(len(inputs["input_ids"]) if "input_ids" in inputs else 0, flops)
        return flops

    def end_step(self) -> None:
        """After each step of the optimizer."""
        self.throughput.end_step()
        if self.probes is not None:
            control = self._trainer.control
            should_log = control.should_log  # which a log of the probes would settle
            with self.throughput.paused():
                self.probes.on_step_end(self._trainer)
            control.should_log = should_log

    def figures(self, health: dict[str, float]) -> dict[str, float]:
        """What a line of the log holds beside the loss, from the steps since the last one, on all processes.

        Args:
            health: The health of the embeddings, where it is due; it is judged with the terms.
        """
        trainer = self._trainer
        figures = {**self.terms.pop(trainer.accelerator), **self.throughput.pop(trainer.accelerator)}
        if health:
            figures |= health
            for message in self._monitor.check(figures, trainer.state.global_step):
                if trainer.is_world_process_zero():
                    logger.warning(message)
            figures["health_warnings"] = self._monitor.num_states
        return figures

    def write(self, entry: dict[str, Any]) -> None:
        """Writes a line of the log to the file."""
        if self._trainer.is_world_process_zero():
            self._log_file.add(entry)

    def save(self, folder: Path) -> None:
        """What a checkpoint holds beside model, optimizer and log."""
        if self.probes is not None:
            self.probes.save(folder)

    def load(self, checkpoint: Path) -> None:
        """Goes on from there."""
        if self.probes is not None:
            self.probes.load(checkpoint)

    def close(self) -> None:
        """When training ends."""
        if self.probes is not None:
            self.probes.close()


class Averages:
    """Means of named scalars over steps and ranks, kept on their device until they are asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: dict[str, Tensor]) -> None:
        self._sums = {name: self._sums.get(name, 0) + value.float() for name, value in values.items()}
        self._count += 1

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """The means since the last call."""
        if not self._sums:
            return {}
        means = accelerator.reduce(torch.stack(list(self._sums.values())) / self._count, reduction="mean").tolist()
        names = list(self._sums)
        self.__init__()
        return dict(zip(names, means, strict=True))


__all__ = ["Averages", "Watcher"]
