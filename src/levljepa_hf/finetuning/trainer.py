"""Arguments, model, metrics and the Trainer of fine-tuning, and the pictures at its end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    AutoImageProcessor,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file, logging

from ..data.collator import image_size as processor_size
from ..data.images import open_image
from ..data.splits import EvaluationSplit, check_same_classes
from ..evaluation.metrics import MeanIoU, TopKAccuracy
from ..evaluation.pictures import plot_confusion, plot_segmentation
from ..hub.publishing import ModelCardMixin
from ..model.configuration_levljepa import LeVLJEPAConfig
from ..model.modeling_levljepa import LeVLJEPAForImageClassification, LeVLJEPAForSemanticSegmentation
from ..model.processing_levljepa import LeVLJEPAImageProcessor, to_rgb
from ..model.released import QUIET
from ..options import option
from ..training.checkpoints import ResumableTrainer
from ..training.order import data_loader, train_batch_size
from .data import (
    ClassBalancedSampler,
    ClassificationDataset,
    FineTuningCollator,
    FineTuningDataset,
    SegmentationDataset,
    classification_transform,
    count_classes,
    segmentation_transform,
)
from .modes import (
    MODES,
    TaskModel,
    WeightedLoss,
    add_lora,
    check_layer_decay,
    class_weights,
    freeze_tower,
    layer_decay_groups,
    names_without,
    upsampled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.get_logger(__name__)

TASKS: dict[str, type[TaskModel]] = {
    "classification": LeVLJEPAForImageClassification,
    "segmentation": LeVLJEPAForSemanticSegmentation,
}
CLASS_BALANCES = ("none", "sampler", "weights")
_VOID = 255  # the models' default label of no class
_NUM_SHOWN = 6


# ----------------------------------------------------------------------------------------------------------- arguments


@dataclass
class FineTuningArguments(TrainingArguments):
    """`TrainingArguments` with what is trained, and defaults for fine-tuning: the best checkpoint is kept.

    `ClassificationArguments` and `SegmentationArguments` name the figure by which it is the best.
    """

    figures: ClassVar[tuple[str, ...]] = ()  # of an evaluation

    mode: str = option(
        default="full",
        help="What is trained: full (everything), linear (the classifier on the frozen tower, the paper's probe) or "
        "lora (low-rank adapters and the classifier; needs peft).",
        choices=MODES,
    )
    layer_decay: float = option(
        default=1.0,
        help="With mode full, the factor of the learning rate from one layer to the one below, such as 0.75. The "
        "classifier has learning_rate itself.",
    )
    lora_rank: int = option(default=16, help="Of the adapters, with mode lora.")
    lora_alpha: int = option(
        default=16, help="With mode lora: the adapters' output is scaled by lora_alpha / lora_rank."
    )
    lora_dropout: float = option(default=0.0, help="On the adapters' input, with mode lora.")
    class_balance: str = option(
        default="none",
        help="Against classes of unequal size: sampler (each class is drawn as often; classification) or weights (in "
        "the loss, inverse to the images or pixels of a class).",
        choices=CLASS_BALANCES,
    )
    early_stopping_patience: int | None = option(
        default=None, help="Stop after so many evaluations without a better figure (metric_for_best_model)."
    )
    learning_rate: float = option(default=1e-4, help="The peak learning rate of AdamW.")
    weight_decay: float = option(default=0.05, help="The weight decay of AdamW.")
    per_device_train_batch_size: int = option(default=32, help="The batch size of training, on each device.")
    per_device_eval_batch_size: int = option(default=32, help="The batch size of evaluation, on each device.")
    eval_strategy: IntervalStrategy | str = option(default="epoch", help="When to evaluate: no, steps, epoch.")
    save_strategy: SaveStrategy | str = option(
        default="epoch", help="When to save a checkpoint: no, steps, epoch, best."
    )
    save_total_limit: int | None = option(default=1, help="Checkpoints to keep, the best one aside.")
    load_best_model_at_end: bool = option(default=True, help="End with the best checkpoint, not with the last step.")
    batch_eval_metrics: bool = option(default=True, help="Keep True: figures are counted batch by batch.")
    remove_unused_columns: bool = option(default=False, help="Keep False: the dataset gives what the model takes.")
    label_names: list[str] | None = option(default_factory=lambda: ["labels"], help="Keep: the models' labels.")
    overwrite_output_dir: bool = option(
        default=False, help="Begin a new run in a folder with checkpoints, which are removed when training begins."
    )
    ddp_find_unused_parameters: bool | None = option(
        default=False, help="Every trained parameter takes part in the loss, so DDP need not look for others."
    )

    def __post_init__(self) -> None:
        for name, choices in (("mode", MODES), ("class_balance", CLASS_BALANCES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown: use one of {', '.join(choices)}.")
        if self.layer_decay != 1 and self.mode != "full":
            raise ValueError(
                f"layer_decay={self.layer_decay} has no effect with mode={self.mode!r}, which trains no layer of the "
                "tower itself: leave it out, or take mode=full."
            )
        check_layer_decay(self.layer_decay)
        if self.metric_for_best_model is not None and self.figures:
            name = self.metric_for_best_model.removeprefix("eval_")
            if name not in (*self.figures, "loss"):
                raise ValueError(
                    f"metric_for_best_model={name!r} is no figure of the evaluation: use one of "
                    f"{', '.join(self.figures)} or loss."
                )
        super().__post_init__()
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise ValueError(
                f"early_stopping_patience={self.early_stopping_patience} needs load_best_model_at_end and an "
                "eval_strategy: it compares evaluations with the best one."
            )
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # torch would warn that it has no use


@dataclass
class ClassificationArguments(FineTuningArguments):
    """`FineTuningArguments` for classification: the best checkpoint is the one of the highest accuracy."""

    figures = ("accuracy", "top5_accuracy", "mean_per_class_accuracy")

    metric_for_best_model: str | None = option(
        default="accuracy",
        help="Figure of the best checkpoint: accuracy, top5_accuracy, mean_per_class_accuracy or loss.",
    )


@dataclass
class SegmentationArguments(FineTuningArguments):
    """`FineTuningArguments` for segmentation: the best checkpoint is the one of the highest mean IoU."""

    figures = ("mean_iou", "mean_accuracy", "pixel_accuracy")

    metric_for_best_model: str | None = option(
        default="mean_iou", help="Figure of the best checkpoint: mean_iou, mean_accuracy, pixel_accuracy or loss."
    )

    def __post_init__(self) -> None:
        if self.class_balance == "sampler":
            raise ValueError(
                "class_balance='sampler' draws images by their class, and an image to segment has several: use "
                "class_balance='weights'."
            )
        if self.label_smoothing_factor and self.class_balance != "weights":
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor}: transformers smooths no maps of labels. Leave "
                "it out, or add class_balance=weights, whose loss does."
            )
        super().__post_init__()


# --------------------------------------------------------------------------------------------------------------- model


def load_model(
    task: str,
    model_name_or_path: str | Path | None,
    class_names: Sequence[str],
    *,
    config: LeVLJEPAConfig | None = None,
    from_scratch: bool = False,
    image_size: int | None = None,
) -> tuple[TaskModel, BaseImageProcessor]:
    """A model for a task, with its labels, and the image processor that belongs to it.

    The classifier is new, unless the checkpoint is one of the same task and the same classes.

    Args:
        task: "classification" or "segmentation".
        model_name_or_path: A folder or Hub id of any LeVLJEPA checkpoint with a vision tower; `None` for a new model
            of `config`.
        class_names: Become `id2label` and `label2id`.
        config: Of a new model.
        from_scratch: Take the checkpoint's configuration and processor, and random weights.
        image_size: Side of the images in pixels, a multiple of the patch size; by default the processor's.

    Returns:
        The model, and a processor: for classification the checkpoint's own, for segmentation one that resizes whole
        images to squares, as a crop would lose pixels.

    Raises:
        ValueError: if the task is unknown, the patch size does not divide the image size, class names are fewer than
            two or not distinct, or neither or both of checkpoint and configuration are given.
        OSError: if there is no such checkpoint.
    """
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}: it is one of {', '.join(TASKS)}.")
    if (model_name_or_path is None) == (config is None):
        raise ValueError("Give a checkpoint to start from, or the configuration of a new model, and not both.")
    labels = _label_maps(class_names)
    model_class = TASKS[task]
    if config is None:
        model = model_class.from_pretrained(model_name_or_path, **labels, ignore_mismatched_sizes=True)
        _renew_classifier(model, model_name_or_path, labels["id2label"])
        if from_scratch:
            model.config.name_or_path = ""  # no weight is the checkpoint's
            model = model_class(model.config)
    else:
        model = model_class(LeVLJEPAConfig.from_dict({**config.to_dict(), **labels}))
    if task == "segmentation":
        model.config.semantic_loss_ignore_index = _VOID if len(class_names) <= _VOID else -100
    processor = _saved_processor(model_name_or_path) or _new_processor(model.config.vision_config.image_size)
    side = image_size or processor_size(processor)[0]
    patch_size = model.config.vision_config.patch_size
    if side % patch_size:
        raise ValueError(
            f"image_size={side} is not divisible by the patch size {patch_size}: take "
            f"{max(side // patch_size, 1) * patch_size}."
        )
    return model, _processor_of(task, processor, side)


def _label_maps(class_names: Sequence[str]) -> dict[str, dict[Any, Any]]:
    names = list(class_names)
    if len(names) < 2:
        raise ValueError(
            f"There is one class ({names[0]!r}), and nothing to tell apart: give data with two classes or more."
            if names
            else "There are no classes: give data with two classes or more."
        )
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"Class names must differ, and {twice[0]!r} occurs twice: mend --class_names.")
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def _renew_classifier(model: TaskModel, checkpoint: str | Path, id2label: dict[int, str]) -> None:
    """A new classifier where the checkpoint's is of another task or tells other classes apart, be they as many."""
    try:
        saved, _ = PreTrainedConfig.get_config_dict(checkpoint)
    except OSError:  # the released layout may have none
        return
    task_model, *_ = saved.get("architectures") or [None]
    if task_model not in [one.__name__ for one in TASKS.values()]:
        return  # there is no classifier
    saved_labels = {int(label): name for label, name in (saved.get("id2label") or {}).items()}
    if task_model != type(model).__name__ or saved_labels != id2label:
        logger.warning(f"The classifier is new: that of {checkpoint} is for another task or other classes.")
        model.classifier.reset_parameters()


def _saved_processor(checkpoint: str | Path | None) -> BaseImageProcessor | None:
    """A checkpoint's image processor; `None` where it has none, as the released ones."""
    names = (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME)
    if checkpoint is None or not any(cached_file(checkpoint, name, **QUIET) for name in names):
        return None
    return AutoImageProcessor.from_pretrained(checkpoint)


def _new_processor(side: int) -> BaseImageProcessor:
    return LeVLJEPAImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def _processor_of(task: str, processor: BaseImageProcessor, side: int) -> BaseImageProcessor:
    """The processor at another size; for segmentation, without a crop."""
    square, before = {"height": side, "width": side}, processor_size(processor)[0]
    if task == "segmentation" or not processor.do_center_crop:
        changes = {"do_center_crop": False, "size": square}
    else:
        shortest = processor.size.shortest_edge or before
        changes = {"size": {"shortest_edge": round(shortest * side / before)}, "crop_size": square}
    return type(processor).from_dict({**processor.to_dict(), **changes})


# -------------------------------------------------------------------------------------------------------------- splits


def check_classes(train: EvaluationSplit, *others: EvaluationSplit) -> tuple[str, ...]:
    """The names of the classes that all splits have; integer labels without names, 0 to K - 1, become their names.

    Raises:
        ValueError: if they do not have the same classes, or integers without names leave gaps.
    """
    splits = (train, *others)
    if train.masks is None and all(split.class_names is None for split in splits):
        found = sorted({label for split in splits for label in split.require("labels")})
        if found != list(range(len(found))):
            raise ValueError(
                f"The labels of {train.name} have no names and are not 0 to {len(found) - 1}: they go from {found[0]} "
                f"to {found[-1]}, and {len(found)} occur. Name all classes with --class_names, or save the labels as "
                "names."
            )
        for split in splits:
            split.class_names = tuple(map(str, found))
    for split in others:
        try:
            check_same_classes(train, split)
        except ValueError as error:
            fix = "" if "--class_names" in str(error) else " A file of them goes to --class_names."
            raise ValueError(f"{error}{fix}") from error
    return tuple(train.require("class_names"))


def check_train_classes(train: EvaluationSplit, num_workers: int = 0, show_progress: bool = True) -> Tensor:
    """The number of training images (or pixels) of each class [C]; classes without any are named in a warning.

    Raises:
        ValueError: if one class alone occurs, or a label or mask does not fit.
    """
    counts = count_classes(train, num_workers, show_progress)
    missing = names_without(counts, train.class_names)
    if len(counts) - len(missing) < 2:
        raise ValueError(
            f"{train.name} has {len(counts) - len(missing)} of {len(counts)} classes: training needs two or more. "
            "Choose another split with --train_split or more samples with --max_train_samples."
        )
    if missing:
        logger.warning(
            f"{len(missing)} of {len(counts)} classes have no sample in {train.name} and cannot be learned: "
            f"{', '.join(missing)}."
        )
    return counts


# ------------------------------------------------------------------------------------------------------------- metrics


class ClassificationMetrics:
    """`compute_metrics` for classification: `accuracy`, `top5_accuracy` (of more than five classes) and
    `mean_per_class_accuracy` (over the classes that the labels have), counted batch by batch.

    Args:
        num_classes: C.

    Attributes:
        labels, predicted: [N] of the last evaluation.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.metric = TopKAccuracy(ks=(1, 5) if num_classes > 5 else (1,))
        self.labels = self.predicted = torch.empty(0, dtype=torch.int64)
        self._batches: list[tuple[Tensor, Tensor]] = []

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        logits, labels = (torch.as_tensor(one).cpu() for one in (prediction.predictions, prediction.label_ids))
        self.metric.add_batch(predictions=logits, references=labels)
        self._batches.append((labels, logits.argmax(dim=1)))
        if not compute_result:
            return {}
        self.labels, self.predicted = (torch.cat(one) for one in zip(*self._batches, strict=True))
        self._batches = []
        totals = torch.bincount(self.labels, minlength=self.num_classes)
        hits = torch.bincount(self.labels[self.labels == self.predicted], minlength=self.num_classes)
        names = {"top1": "accuracy", "top5": "top5_accuracy"}
        figures = {names[name]: value for name, value in self.metric.compute().items()}
        present = totals > 0
        return {**figures, "mean_per_class_accuracy": (hits[present] / totals[present]).mean().item()}


class SegmentationMetrics:
    """`compute_metrics` for segmentation, of predicted maps (`predicted_maps`): `mean_iou` and `mean_accuracy` over
    the classes that the labels have, and `pixel_accuracy`, as `levljepa evaluate segmentation` has them.

    Args:
        num_classes: K.
        ignore_index: The label of void.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.metric, self.num_classes, self.ignore_index = MeanIoU(), num_classes, ignore_index

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        maps, labels = (torch.as_tensor(one).cpu() for one in (prediction.predictions, prediction.label_ids))
        self.metric.add_batch(predictions=maps, references=labels)
        if not compute_result:
            return {}
        figures = self.metric.compute(num_labels=self.num_classes, ignore_index=self.ignore_index)
        accuracy, iou = (torch.from_numpy(figures[f"per_category_{name}"]) for name in ("accuracy", "iou"))
        present = ~accuracy.isnan()
        return {
            "mean_iou": iou[present].mean().item(),
            "mean_accuracy": accuracy[present].mean().item(),
            "pixel_accuracy": figures["overall_accuracy"],
        }


def predicted_maps(logits: Tensor, labels: Tensor) -> Tensor:
    """Classes (N, H, W) of logits (N, K, h, w), upsampled bilinearly to the labels (N, H, W)."""
    return upsampled(logits, labels).argmax(dim=1)


# ------------------------------------------------------------------------------------------------------------- trainer


class FineTuningTrainer(ModelCardMixin, ResumableTrainer):
    """transformers' `Trainer`, which can draw classes equally often, and merge LoRA into a plain model.

    Args:
        train_sampler: The order of the training samples; by default the `Trainer`'s own.
        args, kwargs: Of `Trainer`.
    """

    def __init__(self, *args: Any, train_sampler: ClassBalancedSampler | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.train_sampler = train_sampler
        self.add_callback(_Epochs())

    def get_train_dataloader(self) -> DataLoader:
        if self.train_sampler is None:
            return super().get_train_dataloader()
        order = {"sampler": self.train_sampler, "drop_last": self.args.dataloader_drop_last}
        loader = data_loader(self.args, self.train_dataset, self.data_collator, train_batch_size(self), **order)
        return self.accelerator.prepare(loader)

    def merge_lora(self) -> "FineTuningTrainer":
        """With mode lora, makes a plain model of the trained one, and keeps its adapter in `output_dir/adapter`."""
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "merge_and_unload"):
            if self.args.should_save:
                model.save_pretrained(Path(self.args.output_dir, "adapter"))
            self.model = self.model_wrapped = model.merge_and_unload()
        return self


class _Epochs(TrainerCallback):
    """Tells the dataset the epoch, which accelerate does not when a run is resumed within one."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        train_dataloader.dataset.set_epoch(int(state.epoch or 0))


def build_trainer(
    model: TaskModel,
    processor: BaseImageProcessor,
    args: FineTuningArguments,
    train: EvaluationSplit,
    test: EvaluationSplit,
    *,
    transform: Callable[..., Any] | None = None,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
) -> FineTuningTrainer:
    """A `Trainer` for a task model on two splits. Masks are read once here, so that errors come before any training.

    Args:
        model: Of `load_model`; what the arguments' mode does not train is frozen.
        processor: Of `load_model`.
        args: The training's arguments.
        train: Images with labels or masks.
        test: The same, to evaluate on.
        transform: The augmentation; by default `classification_transform` or `segmentation_transform` as they are.
        mixup_alpha, cutmix_alpha: Of `FineTuningCollator`, for classification.

    Raises:
        ValueError: if the splits have other classes than the model or only one, or a label or mask does not fit.
        ImportError: with mode lora, if peft is not installed.
    """
    segments = isinstance(model, LeVLJEPAForSemanticSegmentation)
    names = check_classes(train, test)
    if list(names) != [model.config.id2label[i] for i in range(model.config.num_labels)]:
        raise ValueError(
            f"The model tells {model.config.num_labels} classes apart, and not the {len(names)} of {train.name}: load "
            "it with load_model(..., class_names=train.class_names)."
        )
    show = not args.disable_tqdm and args.should_log
    counts = check_train_classes(train, args.dataloader_num_workers, show)
    count_classes(test, args.dataloader_num_workers, show)
    void = model.config.semantic_loss_ignore_index
    if not segments:
        model.config.problem_type = "single_label_classification"
    if transform is None:
        transform = segmentation_transform(processor, void=void) if segments else classification_transform(processor)
    train_dataset = dataset_of(train, processor, transform, args.seed, void)
    loss = None
    if args.class_balance == "weights" or max(mixup_alpha, cutmix_alpha) > 0:
        weights = class_weights(counts) if args.class_balance == "weights" else None
        loss = WeightedLoss(weights, void if segments else -100, args.label_smoothing_factor)
    balanced = args.class_balance == "sampler"
    optimizer = None
    if args.mode == "full":
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        groups = layer_decay_groups(model, args.learning_rate, args.weight_decay, args.layer_decay)
        optimizer = (optimizer_class, {**options, "params": groups})
    patience = args.early_stopping_patience
    return FineTuningTrainer(
        model=_trainable(model, args),
        args=args,
        data_collator=FineTuningCollator(len(names), mixup_alpha, cutmix_alpha),
        train_dataset=train_dataset,
        eval_dataset=dataset_of(test, processor, void=void),
        processing_class=processor,
        compute_loss_func=loss,
        compute_metrics=SegmentationMetrics(len(names), void) if segments else ClassificationMetrics(len(names)),
        preprocess_logits_for_metrics=predicted_maps if segments else None,
        callbacks=None if patience is None else [EarlyStoppingCallback(patience)],
        optimizer_cls_and_kwargs=optimizer,
        train_sampler=ClassBalancedSampler(train.labels, args.seed) if balanced else None,
    )


def dataset_of(
    split: EvaluationSplit,
    processor: BaseImageProcessor,
    transform: Callable[..., Any] | None = None,
    seed: int = 0,
    void: int = _VOID,
) -> FineTuningDataset:
    """The dataset of a split: of its masks where it has them, else of its labels."""
    dataset_class = ClassificationDataset if split.masks is None else SegmentationDataset
    return dataset_class(split, processor, transform, seed, void)


def _trainable(model: TaskModel, args: FineTuningArguments) -> Any:
    if args.mode == "linear":
        return freeze_tower(model)
    if args.mode == "lora":
        return add_lora(model, args.lora_rank, args.lora_alpha, args.lora_dropout)
    return model


# ------------------------------------------------------------------------------------------------------------ pictures


def draw_confusion(trainer: FineTuningTrainer, path: str | Path | None = None) -> "Figure":
    """The confusion matrix of the last evaluation; written to `path`, if given."""
    metrics, names = trainer.compute_metrics, trainer.train_dataset.split.class_names
    return plot_confusion(metrics.labels, metrics.predicted, names, path)


@torch.no_grad()
def draw_segmentation(
    model: LeVLJEPAForSemanticSegmentation,
    processor: BaseImageProcessor,
    split: EvaluationSplit,
    path: str | Path | None = None,
    num_images: int = _NUM_SHOWN,
) -> "Figure":
    """Images of a split, their masks and what the model predicts, in the processor's size; written to `path`, if
    given."""
    shown = torch.linspace(0, len(split.images) - 1, min(num_images, len(split.images))).long().tolist()
    dataset = SegmentationDataset(split, processor, void=len(split.class_names))
    samples = [dataset[i] for i in shown]
    labels = torch.stack([sample["labels"] for sample in samples])
    pixel_values = torch.stack([sample["pixel_values"] for sample in samples]).to(model.device, model.dtype)
    predicted = predicted_maps(model.eval()(pixel_values).logits, labels).cpu()
    images = [to_rgb(open_image(split.images[i])) for i in shown]
    pixels = processor(images, do_normalize=False, return_tensors="pt")["pixel_values"]
    return plot_segmentation(pixels, labels, predicted, split.class_names, path)


__all__ = [
    "CLASS_BALANCES",
    "ClassificationArguments",
    "ClassificationMetrics",
    "FineTuningArguments",
    "FineTuningTrainer",
    "SegmentationArguments",
    "SegmentationMetrics",
    "TASKS",
    "build_trainer",
    "check_classes",
    "check_train_classes",
    "draw_confusion",
    "draw_segmentation",
    "load_model",
    "predicted_maps",
]
