"""The training arguments: transformers' own, the released recipe's defaults, and the options of `LeVLJEPATrainer`."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from transformers import TrainingArguments

from ..data.streams import MAX_SKIPPED_SHARDS
from ..evaluation.task import declarations
from ..options import option, with_field_help

# The probes of `levljepa_hf.training.probing`, and the task of `levljepa evaluate` whose data each reads.
ONLINE_PROBES = ("online_linear", "online_attentive")
PROBES = {
    **{task.probe: name for name, task in declarations().items() if task.probe},
    **dict.fromkeys(ONLINE_PROBES, "linear-probe"),
}


@with_field_help
@dataclass
class ProbeArguments:
    """Probes of the model while it is trained, on labelled data (`levljepa_hf.training.probing`)."""

    probe_dataset: str | None = option(
        default=None,
        help="Labelled data to probe the model on while it is trained: scenes, another name that `levljepa "
        "evaluate` knows, or any source that `datasets` loads. Needs the extra `eval`.",
    )
    probe_steps: int = option(default=500, help="Every so many steps the probes are measured.")
    probe_tasks: list[str] = option(
        default_factory=lambda: ["zero_shot", "linear"],
        help=f"Of {', '.join(PROBES)}: protocols of `levljepa evaluate`, and classifiers that learn online, "
        "beside the model and without a gradient into it.",
    )
    probe_dataset_config: str | None = option(
        default=None, help="Its configuration; of the scenes, their side in pixels (48)."
    )
    probe_train_split: str = option(default="train", help="The split that probes learn from.")
    probe_test_split: str = option(default="test", help="The split that they are measured on.")
    probe_image_column: str | None = option(default=None, help="The column of the images.")
    probe_label_column: str | None = option(default=None, help="The column of the classes.")
    probe_caption_column: str | None = option(default=None, help="The column of the captions, for retrieval.")
    probe_class_names: str | None = option(
        default=None, help="JSON or text file of the class names, in the order of the labels."
    )
    probe_max_train_samples: int = option(
        default=10_000, help="Images that probes learn from at most, drawn at random."
    )
    probe_max_test_samples: int = option(
        default=5_000, help="Images that they are measured on at most, drawn at random."
    )
    probe_protocols: str | None = option(
        default=None, help="YAML file of constants of the protocols, by task, as `levljepa evaluate all` takes it."
    )
    probe_batch_size: int = option(default=64, help="Labelled images in a step of the online probes.")


def _check_probes(args: ProbeArguments) -> None:
    """Refuses what would have no effect, and tasks that do not exist."""
    if args.probe_dataset is None:
        fields = [one for one in dataclasses.fields(ProbeArguments) if one.name != "probe_dataset"]
        defaults = ProbeArguments()
        given = [one.name for one in fields if getattr(args, one.name) != getattr(defaults, one.name)]
        if given:
            raise ValueError(f"{given[0]}={getattr(args, given[0])} has no effect without probe_dataset: give one.")
        return
    unknown = [task for task in args.probe_tasks if task not in PROBES]
    if unknown or not args.probe_tasks:
        what = f"{unknown[0]!r} is no probe" if unknown else "there are no probe_tasks"
        raise ValueError(f"probe_tasks={args.probe_tasks}: {what}. Use some of {', '.join(PROBES)}.")


@with_field_help
@dataclass
class LeVLJEPATrainingArguments(ProbeArguments, TrainingArguments):
    """`TrainingArguments` with the released recipe's optimiser settings, and the options of `LeVLJEPATrainer`."""

    learning_rate: float = option(default=2e-4, help="The peak learning rate of AdamW.")
    weight_decay: float = option(default=0.01, help="The weight decay of AdamW.")
    weight_decay_parameters: Literal["matrices", "all"] = option(
        default="matrices",
        help="What weight decay applies to: 'matrices' leaves out biases, norms, class tokens and the vision "
        "tower's position embeddings; 'all' is every parameter, as in the released recipe, but a contrastive "
        "loss's scale and bias.",
    )
    warmup_start_factor: float = option(
        default=0.0,
        help="The share of the peak at which the warm-up of the learning rate starts; it is linear from there. "
        "The official code's is 0.01. Needs a scheduler with a warm-up.",
    )
    wsd_decay_frac: float = option(
        default=0.15,
        help="With lr_scheduler_type=warmup_stable_decay, the share of all steps that the final decay takes (a "
        "cosine). lr_scheduler_kwargs may have num_decay_steps instead, and min_lr_ratio, the floor as a share of "
        "the peak.",
    )
    health_steps: int = option(
        default=100,
        help="Every so many steps the health of the embeddings is logged and judged: effective rank, cosine of "
        "matched and of shuffled pairs, unexplained variance, and what SIGReg would be on a Gaussian and on a "
        "single point. 0 turns it off.",
    )
    encoder_micro_batch_size: int | None = option(
        default=None,
        help="Run the encoders on so many samples of a device's batch at a time, heads and losses on all: the "
        "gradients of the whole batch, exactly, for the memory of a micro-batch and a second forward pass.",
    )
    stream_buffer_size: int = option(
        default=1000, help="Samples of a streamed dataset held in memory to shuffle among."
    )
    max_skipped_shards: float = option(
        default=MAX_SKIPPED_SHARDS,
        help="The share of a stream's shards that may be broken (and one of few). They are used as far as they "
        "can be read, and named.",
    )
    per_device_eval_batch_size: int = option(default=64, help="The batch size of evaluation.")
    dataloader_drop_last: bool = option(default=True, help="In training, drop an incomplete last batch.")
    remove_unused_columns: bool = option(
        default=False, help="Keep False: the collator needs the image and the caption columns."
    )
    label_names: list[str] | None = option(
        default_factory=list, help="Keep empty: the model returns its loss without labels."
    )
    logging_nan_inf_filter: bool = option(default=False, help="Keep False: a loss that is not finite stops the run.")
    ddp_find_unused_parameters: bool | None = option(
        default=False, help="Every parameter takes part in the loss, so DDP need not look for others."
    )

    overwrite_output_dir: bool = option(
        default=False,
        help="Begin a new run in a folder that holds checkpoints; they are removed when training begins.",
    )

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_probes(self)
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # torch would warn that it has no use


# Smallest values of arguments, those that must be larger than it, and what is allowed beside.
_SMALLEST: dict[str, tuple[float, bool, Any]] = {
    "per_device_train_batch_size": (1, False, None),
    "per_device_eval_batch_size": (1, False, None),
    "gradient_accumulation_steps": (1, False, None),
    "max_steps": (1, False, -1),
    "num_train_epochs": (0, True, None),
    "learning_rate": (0, False, None),
    "weight_decay": (0, False, None),
    "max_grad_norm": (0, False, None),
    "warmup_steps": (0, False, None),
    "adam_beta1": (0, False, None),
    "adam_beta2": (0, False, None),
    "adam_epsilon": (0, True, None),
    "logging_steps": (0, True, None),
    "save_steps": (0, True, None),
    "eval_steps": (0, True, None),
    "save_total_limit": (1, False, None),
    "health_steps": (0, False, None),
    "stream_buffer_size": (1, False, None),
    "dataloader_num_workers": (0, False, None),
    "dataloader_prefetch_factor": (1, False, None),
    "encoder_micro_batch_size": (1, False, None),
    "probe_steps": (1, False, None),
    "probe_max_train_samples": (1, False, None),
    "probe_max_test_samples": (1, False, None),
    "probe_batch_size": (2, False, None),
}
_SHARES = ("warmup_start_factor", "wsd_decay_frac", "max_skipped_shards")


def _check_numbers(args: LeVLJEPATrainingArguments) -> None:
    """Refuses numbers that would end in an error, or in nonsense, only when they are used.

    Raises:
        ValueError: with the argument, its value, and what it may be.
    """
    for name, (smallest, exclusive, beside) in _SMALLEST.items():
        value = getattr(args, name)
        if value is None or value == beside:
            continue
        if not (value > smallest if exclusive else value >= smallest) or not math.isfinite(value):
            allowed = f"larger than {smallest}" if exclusive else f"at least {smallest}"
            raise ValueError(f"{name}={value} must be {allowed}{'' if beside is None else f', or {beside}'}.")
    for name in _SHARES:
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"{name}={getattr(args, name)} is a share: it must be between 0 and 1.")
    for name in ("adam_beta1", "adam_beta2"):
        if getattr(args, name) >= 1:
            raise ValueError(f"{name}={getattr(args, name)} must be below 1.")


__all__ = ["LeVLJEPATrainingArguments"]
