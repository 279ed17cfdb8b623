"""`levljepa finetune classification` and `levljepa finetune segmentation`: their options, and the run."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchvision.transforms import v2
from transformers import set_seed
from transformers.image_processing_utils import BaseImageProcessor

from ..data.catalogue import DATASETS
from ..data.splits import EvaluationSplit
from ..evaluation.task import load_split
from ..hub.publishing import prepare_push
from ..options import Command, option
from ..recipes import add_overrides, config_from_preset, parse_arguments, run_script, save_recipe
from ..recipes.shelf import recipe_names
from ..training.distributed import check_launch
from .data import AUGMENTATIONS, classification_transform, count_classes, segmentation_transform
from .trainer import (
    ClassificationArguments,
    FineTuningArguments,
    FineTuningTrainer,
    SegmentationArguments,
    build_trainer,
    check_classes,
    dataset_of,
    draw_confusion,
    draw_segmentation,
    load_model,
)

DESCRIPTIONS = {
    "classification": """\
Fine-tunes a LeVLJEPA checkpoint to classify images: full, linear (the paper's probe as training) or LoRA.

Example, a minute on two CPU cores with the checkpoint of `levljepa demo`:

    levljepa finetune classification --recipe finetune-scenes-classification --model_name_or_path runs/demo

A folder of images with a folder for each class, and any other source that `datasets` loads:

    levljepa finetune classification --recipe finetune-classification --dataset path/to/photos

The same size from random weights, to compare:

    levljepa finetune classification --recipe finetune-scenes-classification \\
        --model_name_or_path runs/demo --from_scratch

The output folder has the best checkpoint (AutoModelForImageClassification loads it, and the pipeline), the figures,
confusion.png, and recipe.yaml, which repeats the run. The command line wins over the recipe.
""",
    "segmentation": """\
Fine-tunes a LeVLJEPA checkpoint to segment images: full, linear (the paper's protocol as training) or LoRA.

Example, a minute or two on two CPU cores with the checkpoint of `levljepa demo`:

    levljepa finetune segmentation --recipe finetune-scenes-segmentation --model_name_or_path runs/demo

Images and masks of your own (a class a pixel, 255 is void), from any source that `datasets` loads:

    levljepa finetune segmentation --recipe finetune-segmentation --dataset path/to/photos \\
        --mask_column mask --class_names path/to/classes.json

The output folder has the best checkpoint (AutoModelForSemanticSegmentation loads it, and the pipeline), the figures,
segmentation.png, and recipe.yaml, which repeats the run. The command line wins over the recipe.
""",
}
_SPLITS_OF = {"classification": "linear-probe", "segmentation": "segmentation"}  # `load_split`'s names of the tasks


@dataclass
class ModelArguments:
    """What is fine-tuned: a checkpoint, or a new model to compare it with."""

    model_name_or_path: str | None = option(
        default=None, help="Any LeVLJEPA checkpoint with a vision tower, a folder or Hub id.", kind="checkpoint"
    )
    from_scratch: bool = option(
        default=False, help="Take the checkpoint's configuration and processor, and random weights."
    )
    preset: str | None = option(
        default=None, help="Size of a new model, without a checkpoint: tiny, small, base, released or debug."
    )
    config: list[str] = option(
        default_factory=list, help="Fields that replace the preset's, beside the recipe's: vision_config.image_size=96"
    )
    image_size: int | None = option(
        default=None, help="Side of the images in pixels, a multiple of the patch size; by default the checkpoint's."
    )


@dataclass
class DataArguments:
    """The data, as `levljepa evaluate` takes it."""

    dataset: str | None = option(
        default=None,
        help="A name that `levljepa evaluate` knows (pets, ade20k, scenes, ...), or any source that `datasets` loads: "
        "folder, file, Hub id.",
        kind="dataset",
        known=DATASETS,
    )
    dataset_path: str | None = option(default=None, help="A local copy of a data set known by name.")
    dataset_config: str | None = option(
        default=None, help="Configuration of a source that has several; of the scenes, their side in pixels (48)."
    )
    train_split: str = option(default="train", help="Split to train on; parts are written like train[:80%].")
    test_split: str = option(
        default="test", help="Split to evaluate on; where a source has no `test`, it is its `validation`."
    )
    validation_split: str | None = option(
        default=None,
        help="Split by which the best checkpoint is chosen, such as train[80%:]; by default the test split, whose "
        "figures are then flattered.",
    )
    max_train_samples: int | None = option(default=None, help="Training samples at most, drawn at random.")
    max_samples: int | None = option(default=None, help="Test (and validation) samples at most, drawn at random.")
    image_column: str | None = option(default=None, help="Column of the images; found by itself by its usual names.")
    class_names: str | None = option(
        default=None, help="JSON or text file of the class names, in the order of the labels or of the masks' values."
    )
    flip_probability: float = option(default=0.5, help="Probability of mirroring.")


@dataclass
class ClassificationDataArguments(DataArguments):
    """The data of classification, and how images are augmented."""

    label_column: str | None = option(default=None, help="Column of the classes, integers or names.")
    crop_scale: list[float] = option(
        default_factory=lambda: [0.35, 1.0], help="Range of the random crop's share of the area."
    )
    augmentation: str = option(
        default="trivial",
        help="After crop and flip: trivial (TrivialAugment), randaugment or none.",
        choices=AUGMENTATIONS,
    )
    mixup_alpha: float = option(default=0.0, help="MixUp of a batch, with shares from Beta(alpha, alpha); 0: none.")
    cutmix_alpha: float = option(default=0.0, help="CutMix; beside MixUp, one of the two at random.")

    def transform(self, processor: BaseImageProcessor, void: int) -> v2.Compose:
        return classification_transform(processor, self.crop_scale, self.flip_probability, self.augmentation)

    def mixing(self) -> dict[str, float]:
        return {"mixup_alpha": self.mixup_alpha, "cutmix_alpha": self.cutmix_alpha}


@dataclass
class SegmentationDataArguments(DataArguments):
    """The data of segmentation, and how images and masks are augmented."""

    mask_column: str | None = option(default=None, help="Column of the masks: a class a pixel, 255 is void.")
    scale_range: list[float] = option(
        default_factory=lambda: [0.5, 2.0],
        help="The longer side of an image becomes the crop's times a factor of this range.",
    )
    photometric_probability: float = option(default=0.5, help="Probability of each distortion of the colours.")

    def transform(self, processor: BaseImageProcessor, void: int) -> v2.Compose:
        return segmentation_transform(
            processor, self.scale_range, self.flip_probability, self.photometric_probability, void
        )

    def mixing(self) -> dict[str, float]:
        return {}


OPTIONS: dict[str, tuple[type, ...]] = {
    "classification": (ModelArguments, ClassificationDataArguments, ClassificationArguments),
    "segmentation": (ModelArguments, SegmentationDataArguments, SegmentationArguments),
}
Groups = tuple[ModelArguments, Any, FineTuningArguments]


RECIPES = tuple(name for name in recipe_names() if name.startswith("finetune-"))
COMMAND = Command(
    "levljepa finetune",
    "Fine-tune a checkpoint: full, linear (the paper's probe as training) or LoRA.",
    more="example:\n"
    "  levljepa finetune segmentation --recipe finetune-scenes-segmentation --model_name_or_path runs/demo",
    extra="lora",
    parts={
        task: Command(
            f"levljepa finetune {task}",
            DESCRIPTIONS[task].rstrip(),  # the example comes before the many options
            OPTIONS[task],
            extra="lora",
            recipes=RECIPES,
        )
        for task in OPTIONS
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """`levljepa finetune TASK`: returns the exit status."""
    command, rest = COMMAND.part(sys.argv[1:] if argv is None else argv)
    task = command.name.split()[-1]
    run_script(lambda: fine_tune(task, *parse_options(task, rest)), command.name)
    return 0


def parse_options(task: str, argv: Sequence[str] | None = None) -> Groups:
    """The three groups of options, from the recipe and, over it, from the command line.

    Args:
        task: classification or segmentation.
        argv: The command line.

    Raises:
        SystemExit: if options contradict each other, or one is missing; after a message.
        ValueError, FileNotFoundError: as `parse_arguments`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = COMMAND.parts[task].parser()
    (model_args, data_args, args), recipe_config = parse_arguments(parser, argv)
    model_args.config = add_overrides(recipe_config, model_args.config)
    for wrong, message in (
        (data_args.dataset is None, "--dataset is missing: a name, a Hub id, a folder or a file."),
        (
            model_args.model_name_or_path is None and model_args.preset is None,
            "--model_name_or_path is missing: a checkpoint, or --preset for a new model.",
        ),
        (
            model_args.model_name_or_path is not None and bool(model_args.preset or model_args.config),
            "--preset and --config are for a new model, and --model_name_or_path has a configuration of its own: "
            "leave one of them out. --from_scratch takes the checkpoint's size with random weights.",
        ),
        (
            model_args.model_name_or_path is None and model_args.from_scratch,
            "--from_scratch takes the configuration of --model_name_or_path; --preset alone is new already.",
        ),
    ):
        if wrong:
            parser.error(message)
    return model_args, data_args, args


def fine_tune(task: str, model_args: ModelArguments, data_args: Any, args: FineTuningArguments) -> dict[str, float]:
    """Trains, evaluates, draws and saves as the options say; returns the figures.

    Raises:
        ValueError: if data, labels, masks or options do not fit; before any training.
        OSError: if the checkpoint or the data are not within reach.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    check_launch(args)
    prepare_push(args, at_end_only=args.mode == "lora")  # single checkpoints of LoRA are adapters, and no models
    set_seed(args.seed)
    config = config_from_preset(model_args.preset, model_args.config) if model_args.preset else None
    with args.main_process_first(desc="preparing the dataset"):
        train, validation, test = load_splits(task, data_args)
    check_classes(train, *[split for split in (validation, test) if split is not None])
    model, processor = load_model(
        task,
        model_args.model_name_or_path,
        train.class_names,
        config=config,
        from_scratch=model_args.from_scratch,
        image_size=model_args.image_size,
    )
    void = model.config.semantic_loss_ignore_index
    trainer = build_trainer(
        model,
        processor,
        args,
        train,
        validation or test,
        transform=data_args.transform(processor, void),
        **data_args.mixing(),
    )
    if validation is not None:  # what `build_trainer` does for the split that it takes
        count_classes(test, args.dataloader_num_workers, show_progress=not args.disable_tqdm and args.should_log)
    trainer.find_start(args.resume_from_checkpoint)  # refused before anything is written
    if args.should_save:
        save_recipe(args.output_dir, (model_args, data_args, args))
    metrics = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics
    trainer.save_metrics("train", metrics)
    trainer.merge_lora()
    metrics |= evaluated(trainer, "eval")
    if validation is not None:
        metrics |= evaluated(trainer, "test", dataset_of(test, processor, void=void))
    trainer.save_state()
    push, args.push_to_hub = args.push_to_hub, False  # once, when everything is in the folder
    trainer.save_model()
    if trainer.is_world_process_zero():
        report(task, trainer, test, metrics)
    trainer.create_model_card()
    if push:
        trainer.push_to_hub()
    return metrics


def report(task: str, trainer: FineTuningTrainer, test: EvaluationSplit, metrics: dict[str, float]) -> None:
    """Draws the last evaluation, and prints the figures and how to load the model."""
    folder = trainer.args.output_dir
    if task == "classification":
        auto_class, picture = "AutoModelForImageClassification", Path(folder, "confusion.png")
        draw_confusion(trainer, picture)
    else:
        auto_class, picture = "AutoModelForSemanticSegmentation", Path(folder, "segmentation.png")
        draw_segmentation(trainer.model, trainer.processing_class, test, picture)
    for name in sorted(name for name in metrics if name.startswith(("eval_", "test_")) or name == "train_loss"):
        if not name.endswith(("_runtime", "_per_second")):
            print(f"{name:40s} {metrics[name]:.4f}")
    print(f"Picture: {picture}")
    print(f'Saved. Load it with: {auto_class}.from_pretrained("{folder}")')


def load_splits(task: str, data_args: Any) -> tuple[EvaluationSplit, EvaluationSplit | None, EvaluationSplit]:
    """The splits to train on, to choose the checkpoint by (where there is one) and to evaluate on.

    Raises:
        ValueError: if two of them are the same, or a split, column or label does not fit.
        OSError: if the source is not within reach.
    """
    role = {"classification": "label", "segmentation": "mask"}[task]
    columns = {"image": data_args.image_column, role: getattr(data_args, f"{role}_column")}

    def load(split: str, max_samples: int | None) -> EvaluationSplit:
        return load_split(
            data_args.dataset,
            _SPLITS_OF[task],
            split,
            columns={role: column for role, column in columns.items() if column is not None},
            path=data_args.dataset_path,
            config_name=data_args.dataset_config,
            class_names=data_args.class_names,
            max_samples=max_samples,
        )

    train = load(data_args.train_split, data_args.max_train_samples)
    test = load(data_args.test_split, data_args.max_samples)
    name = data_args.validation_split
    validation = None if name is None else load(name, data_args.max_samples)
    names = [split.name for split in (train, validation, test) if split is not None]
    if twice := [one for one in names if names.count(one) > 1]:
        raise ValueError(
            f"{twice[0]} would serve twice: choose with --train_split, --validation_split and --test_split; parts of "
            "one are written like train[:80%] and train[80%:]."
        )
    return train, validation, test


def evaluated(trainer: FineTuningTrainer, prefix: str, dataset: Any = None) -> dict[str, float]:
    """The figures on the trainer's own evaluation data or on `dataset`, which are saved as well."""
    metrics = trainer.evaluate(dataset, metric_key_prefix=prefix)
    trainer.save_metrics(prefix, metrics)
    return metrics


__all__ = [
    "COMMAND",
    "ClassificationDataArguments",
    "DataArguments",
    "ModelArguments",
    "OPTIONS",
    "SegmentationDataArguments",
    "fine_tune",
    "load_splits",
    "main",
    "parse_options",
]
