"""What a run says of itself: how it is launched, and in the log its terms, throughput, health and probes."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainerCallback

from ..evaluation.embedding_health import embedding_health, sigreg_ceiling, sigreg_floor
from ..model.configuration_levljepa import LeVLJEPAConfig
from .arguments import LeVLJEPATrainingArguments
from .distributed import describe_launch
from .log_file import LogFile
from .metrics import EMBEDDINGS
from .throughput import StepFlops, Throughput, device_peak_flops
from .warnings import HealthMonitor

logger = logging.getLogger(__name__)

_ROUGH_STEPS = 100  # of a run's beginning, which health warnings leave alone as they do the warm-up; at most a quarter


class Watcher(TrainerCallback):
    """Watches a run.

    Args:
        args: The training arguments.
        accelerator: Of the run.
        model: What is trained; one that a `model_init` makes later is told when training begins.
        processor: Its processor, for the probes.
        log: Writes a line of the log: `Trainer.log`.

    Attributes:
        terms: Collects the loss terms of each step.
        throughput: The clock.
        probes: The `Probes` that the arguments ask for, or None.

    Raises:
        ValueError: as `Probes`.
    """

    def __init__(
        self,
        args: LeVLJEPATrainingArguments,
        accelerator: Accelerator,
        model: nn.Module,
        processor: Any,
        log: Callable[[dict[str, float]], None],
    ) -> None:
        self.args, self.accelerator, self._log = args, accelerator, log
        self._is_first = args.process_index == 0
        self._config = _config_of(model)
        self._monitor: HealthMonitor | None = None
        self._flops: StepFlops | None = None
        self._health: dict[str, float] = {}  # of the embeddings, since the last line of the log
        self._log_file = LogFile(args.output_dir)
        self.terms, self.throughput, self.probes = Averages(), Throughput(), None
        if args.probe_dataset is not None:
            from .probing import Probes  # what they need is imported for them alone

            with args.main_process_first(desc="preparing the probes' data"):
                self.probes = Probes(args, model, processor)

    # What the Trainer's loop tells

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Training begins, or goes on from a checkpoint: what was before is in the log's history."""
        model, rows = kwargs["model"], args.train_batch_size * args.world_size
        self._config = _config_of(model)
        self.throughput = Throughput(device_peak_flops(args.device, args.bf16 or args.fp16))
        self._flops = StepFlops(model)
        self._monitor = HealthMonitor(
            max_rank=min(rows - 1, getattr(self._config, "projection_dim", rows)),
            warmup_steps=max(args.get_warmup_steps(state.max_steps), min(_ROUGH_STEPS, state.max_steps // 4)),
            judge_predictions=getattr(self._config, "prediction_loss_type", "mse") == "mse",
        )
        for entry in state.log_history:
            self._monitor.check(entry, entry["step"])
        if self._is_first:
            print(f"Training: {describe_launch(args)}.", flush=True)
            self._log_file.begin(state.log_history)
        if self.probes is not None:
            self.probes.begin(model)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.throughput.end_step()
        if self._health:  # is told at once: a health step is a logging step
            control.should_log = True
        if self.probes is not None:
            should_log = control.should_log  # which a log of the probes would settle
            with self.throughput.paused():
                figures = self.probes.after_step(state.global_step, self.accelerator)
                if figures:
                    self._log(figures)
            control.should_log = should_log
        return control

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._is_first:
            self._log_file.add(state.log_history[-1])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.probes is not None:
            self.probes.close()

    # What a step tells

    def record(self, outputs: Any, terms: Mapping[str, Tensor], step: int) -> None:
        """Takes what is logged from a forward pass of training.

        Args:
            outputs: Of the model.
            terms: Of its loss, by name.
            step: Of the optimizer, that the pass is for. Of a step with accumulation the last pass is described.
        """
        self.terms.add(terms)
        due = self.args.health_steps > 0 and step % self.args.health_steps == 0
        if due and self.accelerator.gradient_state.sync_gradients:
            self._health = self.describe(outputs)

    def describe(self, outputs: Any) -> dict[str, float]:
        """The health of a batch's embeddings, those of all ranks; and where SIGReg would be at best and at worst."""
        embeds = {name: self._gathered_rows(outputs[name].detach()) for name in EMBEDDINGS if name in outputs}
        health = embedding_health(**embeds)
        config = self._config
        if isinstance(config, LeVLJEPAConfig) and outputs.get("sigreg_vision") is not None:
            rows = embeds if config.sigreg_distributed else outputs
            scale, size = config.sigreg_sample_size_scale, len(rows["image_embeds"])
            knots = (config.sigreg_num_knots, config.sigreg_t_max)
            health["sigreg_floor"] = sigreg_floor(*knots, size, scale)
            health["sigreg_ceiling"] = sigreg_ceiling(*knots, size, scale)
        return health

    def _gathered_rows(self, embeds: Tensor) -> Tensor:
        """The rows of all ranks, which may have different numbers of them."""
        if self.args.world_size == 1:
            return embeds
        padded = self.accelerator.pad_across_processes(embeds.float(), dim=0, pad_index=float("nan"))
        rows = self.accelerator.gather(padded)
        return rows[~rows.isnan().any(dim=1)]

    def count(self, inputs: dict[str, Any]) -> float | None:
        """Counts a batch of this process; returns the FLOPs of its step, where they are known."""
        flops = self._flops(inputs)
        self.throughput.add(len(inputs["input_ids"]) if "input_ids" in inputs else 0, flops)
        return flops

    def figures(self, step: int) -> dict[str, float]:
        """What a line of the log holds beside the loss, from the steps since the last one, on all processes.

        The health, where it is due, is judged together with the terms.
        """
        figures = {**self.terms.pop(self.accelerator), **self.throughput.pop(self.accelerator)}
        if self._health:
            figures |= self._health
            self._health = {}
            for message in self._monitor.check(figures, step):
                if self._is_first:
                    logger.warning(message)
            figures["health_warnings"] = self._monitor.num_states
        return figures

    # Checkpoints

    def save(self, folder: Path) -> None:
        """What a checkpoint holds beside model, optimizer and log."""
        if self.probes is not None:
            self.probes.save(folder)

    def load(self, checkpoint: Path) -> None:
        """Goes on from there."""
        if self.probes is not None:
            self.probes.load(checkpoint)


def _config_of(model: nn.Module) -> Any:
    return getattr(model, "config", None)  # a plain module has none


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
