"""What ends a run before its time: a signal to any of its ranks, or a loss that is not finite.

`StopSignals` is for every `ResumableTrainer`. `StepGuard` is for `LeVLJEPATrainer`: it looks at the terms of a step
before they reach the weights, and asks the other ranks for theirs and for their signals in one message.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from ..data.streams import ResumableStream

AUTO = "auto"  # the newest complete checkpoint, to go on from
_STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
_CHANGED_BY_FORWARD = ("running_mean", "running_var", "num_batches_tracked", "step")  # of BatchNorm and SIGReg


class TrainingStopped(SystemExit):
    """A signal stopped the training after a checkpoint was written. The exit status is 128 + the signal's number.

    Args:
        signum: the signal.
        checkpoint: the folder of the checkpoint.
    """

    def __init__(self, signum: int, checkpoint: Path) -> None:
        super().__init__(128 + signum)
        self.signum, self.checkpoint = signum, checkpoint

    def __str__(self) -> str:
        return (
            f"Stopped by {signal.Signals(self.signum).name}: {self.checkpoint} is written. To go on: the same command "
            f"with --resume_from_checkpoint {AUTO}."
        )


def not_finite_error(names: Sequence[str], step: int, output_dir: str | Path) -> FloatingPointError:
    """The error of a run that stops at the step after `step`, whose checkpoint is written."""
    return FloatingPointError(
        f"Not finite since step {step + 1}: {', '.join(names)}. The state before that step is in "
        f"{output_dir}/checkpoint-{step}. If only one modality's term is named, check its inputs; else "
        "a lower learning_rate, more warmup_steps or bf16 instead of fp16 often help."
    )


class StopSignals(TrainerCallback):
    """Ends the training after the step at hand, with a checkpoint, if a signal has asked a rank for it.

    Attributes:
        received: the signal that this process got.
        stopped_by: the one that ended the run, the same on all ranks.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.stopped_by: int | None = None

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """While it trains a signal only asks for the end; the ranks agree on it at the end of each step."""
        self.received = self.stopped_by = None
        if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread
            yield
            return

        def ask(signum: int, frame: FrameType | None) -> None:
            self.received = signum
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process

        numbers = [getattr(signal, name) for name in _STOP_SIGNALS if hasattr(signal, name)]
        before = {number: signal.signal(number, ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self, args: TrainingArguments) -> int | None:
        """The signal that asked one of the ranks for the end, the same answer on all."""
        if args.world_size == 1:
            return self.received
        number = torch.tensor(self.received or 0, device=args.device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return int(number) or None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.stopped_by = self.agreed(args)
        if self.stopped_by is not None:
            control.should_save = control.should_training_stop = True
        return control


class StepGuard(StopSignals):
    """Which terms of a step are finite on every rank, and the state before the step, to go back to if one is not."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: tuple[list[str], Tensor, torch.cuda.Event | None] | None = None
        self._signum: int | None = None  # that came with the answer
        self._before: _StateBeforeStep | None = None
        self._is_kept = False  # for the step to come

    def ask(self, terms: Mapping[str, Tensor]) -> None:
        """Asks which terms are finite on every rank, and whether a signal came to one, without waiting."""
        finite = torch.stack([term.detach().isfinite() for term in terms.values()]).int()
        signum = finite.new_full((1,), -(self.received or 0))  # negative: the ranks' minimum then has one
        answers = torch.cat([finite, signum])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(answers, torch.distributed.ReduceOp.MIN)
        event = None
        if answers.is_cuda:
            answers = answers.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._asked = (list(terms), answers, event)

    def bad_terms(self) -> list[str]:
        """The terms that are not. Waits for the forward pass alone: the backward is queued by now."""
        names, answers, event = self._asked
        if event is not None:
            event.synchronize()
        *finite, signum = answers.tolist()
        self._signum = -signum or None
        return [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]

    def agreed(self, args: TrainingArguments) -> int | None:
        return self._signum

    def go_back(self) -> None:
        """Buffers and random states are as before the step."""
        self._before.restore()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keeps the state before the order of an epoch is drawn: a checkpoint at its beginning is resumed from there.

        Not of a stream, which has no order that is drawn; and an epoch that is taken up inside has drawn it.
        """
        self._is_kept, epoch = False, state.epoch or 0
        if epoch == int(epoch) and not isinstance(kwargs["train_dataloader"].dataset, ResumableStream):
            self._keep(kwargs["model"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._is_kept:
            self._keep(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self._is_kept = False
        return super().on_step_end(args, state, control, **kwargs)

    def _keep(self, model: nn.Module) -> None:
        self._before, self._is_kept = _StateBeforeStep(model), True


class _StateBeforeStep:
    """What a forward pass changes: BatchNorm's statistics, SIGReg's step, and torch's random states."""

    def __init__(self, model: nn.Module) -> None:
        buffers = [buffer for name, buffer in model.named_buffers() if name.split(".")[-1] in _CHANGED_BY_FORWARD]
        self._buffers = [(buffer, buffer.clone()) for buffer in buffers]
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        for buffer, before in self._buffers:
            buffer.copy_(before)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)


__all__ = ["AUTO", "StepGuard", "StopSignals", "TrainingStopped", "not_finite_error"]
