"""What the learning rates of the official code need beside transformers' schedules."""

from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers.trainer_utils import SchedulerType

from .arguments import LeVLJEPATrainingArguments


def schedule_options(args: LeVLJEPATrainingArguments, steps: int) -> dict[str, Any]:
    """`lr_scheduler_kwargs` for a run of so many steps: the length of a final decay follows from `wsd_decay_frac`.

    Raises:
        ValueError: if the warm-up and the decay are longer than the run.
    """
    options = dict(args.lr_scheduler_kwargs or {})
    if args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
        warmup_steps = args.get_warmup_steps(steps)
        decay_steps = options.setdefault("num_decay_steps", round(args.wsd_decay_frac * steps))
        if warmup_steps + decay_steps > steps:
            raise ValueError(
                f"A warm-up of {warmup_steps} steps (warmup_steps) and a decay of {decay_steps} (wsd_decay_frac="
                f"{args.wsd_decay_frac}, or num_decay_steps) are longer than the run of {steps} steps: lower one."
            )
    return options


def with_warmup_from(start: float, scheduler: LRScheduler, warmup_steps: int) -> LambdaLR:
    """The schedule with another warm-up: linear from `start`, a share of the peak, as torch's `LinearLR` has it.

    transformers' schedules start at 0, or at their floor (`get_wsd_schedule`).

    Raises:
        ValueError: if the schedule has no warm-up to move.
    """
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(
            f"warmup_start_factor={start} needs a schedule with a warm-up, and {type(scheduler).__name__} has none: "
            "take another lr_scheduler_type, or leave it out."
        )

    def warmed_up(factor: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: start + (1 - start) * step / warmup_steps if step < warmup_steps else factor(step)

    return LambdaLR(scheduler.optimizer, [warmed_up(factor) for factor in scheduler.lr_lambdas])


__all__ = ["schedule_options", "with_warmup_from"]
