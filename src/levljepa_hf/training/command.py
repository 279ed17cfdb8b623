"""Pretrains a LeVLJEPA model on captioned images: a recipe, a dataset, and overrides from the command line.

Example, a few minutes on two CPU cores with a folder of captioned photos (images and a metadata.jsonl):

    levljepa pretrain --recipe flickr8k --dataset path/to/photos --output_dir runs/first --max_steps 200

The same with webdataset shards, streamed, and with several GPUs:

    levljepa pretrain --recipe flickr8k --dataset "path/to/train-*.tar" --streaming --max_steps 200
    accelerate launch --num_processes 16 -m levljepa_hf.cli pretrain --recipe datacomp-vit-base \\
        --dataset "shards/*.tar" --streaming

Several datasets, 70 % of the samples from the first:

    levljepa pretrain --recipe flickr8k --mixture path/to/photos other/photos --mixture_weights 0.7 0.3

A recipe is a YAML file of the options below, by its path or by its name in `levljepa recipes`. The command line wins.
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import IntervalStrategy, set_seed

from ..data.collator import LeVLJEPADataCollator, image_size, objective_transform
from ..data.loading import find_columns, load_pretraining_dataset
from ..data.mixtures import MixtureSource, load_mixture, read_entry, read_sources
from ..hub.publishing import prepare_push
from ..model.configuration_levljepa import LeVLJEPAConfig
from ..model.modeling_levljepa import LeVLJEPAModel
from ..model.processing_levljepa import LeVLJEPAProcessor
from ..options import Command, option
from ..recipes import (
    DIVERGED_NAME,
    add_overrides,
    as_overrides,
    config_from_preset,
    parse_arguments,
    run_script,
    save_recipe,
)
from ..recipes.shelf import recipe_names
from .arguments import LeVLJEPATrainingArguments
from .checkpoints import refuse_used_folder
from .distributed import check_launch
from .metrics import evaluation_figures
from .trainer import LeVLJEPATrainer

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """The model: a preset with overrides, or a checkpoint to go on from."""

    preset: str = option(
        "small", help="Size of a new model: tiny, small, base, released (base with embeddings of 256), or debug."
    )
    config: list[str] = option(
        default_factory=list, help="Fields that replace the preset's, beside the recipe's: projection_dim=128 ..."
    )
    model_name_or_path: str | None = option(
        None,
        help="Start from this checkpoint (weights and processor), a folder or Hub id, and not from a preset.",
        kind="checkpoint",
    )


@dataclass
class DataArguments:
    """The dataset and how it is augmented."""

    dataset: str | None = option(
        None,
        help="Hub id; folder of images, webdataset or parquet shards; a file or glob; or what save_to_disk wrote.",
        kind="dataset",
    )
    mixture: list[str] = option(
        default_factory=list,
        help="Several datasets in place of --dataset: their names, or mappings in YAML of what is their own, "
        "'{dataset: shards/*.tar, streaming: true, weight: 0.7}'; also name, split, image_column, caption_column, "
        "config, max_samples. What it leaves out is that of the options here.",
    )
    mixture_weights: list[float] = option(
        default_factory=list,
        help="How likely a sample is from each of them; where left out, in proportion to their sizes, which "
        "streams do not have.",
    )
    dataset_config: str | None = option(None, help="Configuration of a Hub dataset that has several.")
    image_column: str | None = option(None, help="Column of the images; found by itself where it has a usual name.")
    caption_column: str | None = option(
        None, help="Column of the caption or of the list of captions; dots address nested fields, as in json.captions."
    )
    train_split: str = option("train", help="Split to train on.")
    eval_split: str | None = option(None, help="Split to evaluate on; without it there is no evaluation.")
    eval_dataset: str | None = option(
        None, help="Another dataset to evaluate on; by default the same one.", kind="dataset"
    )
    eval_image_column: str | None = option(None, help="Its column of images, as --image_column.")
    eval_caption_column: str | None = option(None, help="Its column of captions, as --caption_column.")
    streaming: bool = option(False, help="Read the data as a stream; needs --max_steps.")
    max_train_samples: int | None = option(None, help="Keep the first so many training samples, of each dataset.")
    max_eval_samples: int = option(1000, help="Evaluate on the first so many samples at most.")
    cache_dir: str | None = option(None, help="Where `datasets` keeps what it prepares.")
    crop_scale: list[float] | None = option(
        None, help="Range of the random crop's share of the area; by default 0.8 1.0, and 0.4 1.0 of global views."
    )
    local_crop_scale: list[float] | None = option(None, help="The same of local views; by default 0.05 0.4.")
    flip_probability: float | None = option(
        None, help="Probability of mirroring, by default 0.5; 0 for captions that tell left from right."
    )
    color_jitter_probability: float | None = option(
        None, help="Probability of the colour jitter; by default 0.3, and 0.8 where there are several views."
    )
    grayscale_probability: float | None = option(
        None, help="Probability of removing the colour; by default 0.05, and 0.2 where there are several views."
    )
    pad_to_multiple_of: int | None = option(None, help="Pad captions to a multiple of this many tokens.")


OPTIONS = (ModelArguments, DataArguments, LeVLJEPATrainingArguments)


RECIPES = tuple(name for name in recipe_names() if not name.startswith(("compare-", "evaluate-", "finetune-")))
COMMAND = Command(
    "levljepa pretrain",
    "Pretrain a model on captioned images: a recipe, a dataset, and overrides from the command line.\n\n"
    + __doc__.partition("\n\n")[2].rstrip(),  # the example comes before the many options
    OPTIONS,
    extra="train",
    recipes=RECIPES,
)


def main(argv: Sequence[str] | None = None) -> int:
    """`levljepa pretrain`: returns the exit status."""
    run_script(lambda: pretrain(*parse_args(argv)), COMMAND.name)
    return 0


def pretrain(
    model_args: ModelArguments, data_args: DataArguments, args: LeVLJEPATrainingArguments
) -> dict[str, float]:
    """Trains, evaluates and saves as the options say; returns the metrics.

    Raises:
        ValueError: if data or options do not fit, or the output folder holds another run; before any training.
        OSError: if the checkpoint or the data are not within reach.
        FloatingPointError: if the loss was not finite; the output folder then has a file that says so.
    """
    trainer = build_trainer(model_args, data_args, args)
    start = trainer.find_start(args.resume_from_checkpoint)
    if start is not None and trainer.is_finished(start) and (results := read_results(args.output_dir, data_args)):
        print(f"{start} is the end of this run, and its results are in {args.output_dir}: nothing is left to do.")
        return results
    push = args.push_to_hub
    metrics = run(trainer, model_args, data_args)
    if trainer.is_world_process_zero():
        report(trainer, metrics)
    if push:
        trainer.push_to_hub()
    return metrics


def build_trainer(
    model_args: ModelArguments, data_args: DataArguments, args: LeVLJEPATrainingArguments
) -> LeVLJEPATrainer:
    """The Trainer with model and data; nothing is written yet.

    Raises:
        ValueError, OSError: as `pretrain`.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the DataLoader's workers are parallel enough
    if not args.resume_from_checkpoint and not args.overwrite_output_dir:
        refuse_used_folder(args.output_dir)
    check_launch(args)
    prepare_push(args)
    set_seed(args.seed)
    model, processor = build_model(model_args)
    collator = build_collator(data_args, model.config, processor, args.seed)
    with args.main_process_first(desc="preparing the dataset"):
        train_dataset, columns = load_train_data(data_args)
        eval_dataset, eval_columns = load_eval_data(data_args)
    return LeVLJEPATrainer(
        model=model,
        args=args,
        data_collator=replace(collator, **columns),
        eval_data_collator=collator.for_evaluation(**eval_columns),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
    )


def run(trainer: LeVLJEPATrainer, model_args: ModelArguments, data_args: DataArguments) -> dict[str, float]:
    """Trains, evaluates, saves and writes the card, with the recipe beside it; returns the metrics.

    Only checkpoints on the way are pushed: what is in the folder at the end is the caller's to push.

    Raises:
        FloatingPointError: as `pretrain`.
    """
    args = trainer.args
    if args.should_save:
        save_recipe(args.output_dir, (model_args, data_args, args))
    diverged = Path(args.output_dir, DIVERGED_NAME)
    try:
        metrics = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics
    except FloatingPointError as error:
        if args.should_save:
            diverged.write_text(f"{error}\n", "utf-8")
        raise
    if args.should_save:
        diverged.unlink(missing_ok=True)
    args.push_to_hub = False  # until everything is in the folder
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("train", metrics)
    if trainer.eval_dataset is not None:
        eval_metrics = trainer.evaluate()
        trainer.save_metrics("eval", eval_metrics)
        metrics |= eval_metrics
    trainer.create_model_card()
    return metrics


def parse_args(
    argv: Sequence[str] | None = None,
) -> tuple[ModelArguments, DataArguments, LeVLJEPATrainingArguments]:
    """The three groups of options, from the recipe and, over it, from the command line.

    Args:
        argv: The command line.

    Raises:
        SystemExit: if options contradict each other, or one is missing; after a message.
        ValueError, FileNotFoundError: as `parse_arguments`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = COMMAND.parser()
    (model_args, data_args, args), recipe_config = parse_arguments(parser, argv)
    if model_args.model_name_or_path is None:
        model_args.config = add_overrides(recipe_config, model_args.config)
    elif any(argument.partition("=")[0] == "--preset" for argument in argv):
        parser.error(
            f"--preset {model_args.preset} has no effect on --model_name_or_path {model_args.model_name_or_path}, "
            "whose own configuration holds: leave one of them out."
        )
    elif model_args.config:
        parser.error(
            f"--config {' '.join(model_args.config)} has no effect on --model_name_or_path "
            f"{model_args.model_name_or_path}, whose own configuration holds: leave one of them out, or "
            "change a copy of the checkpoint."
        )
    elif recipe_config and args.should_log:
        logger.warning(
            "The recipe's `config` (%s) is left aside: the configuration of the checkpoint %s holds.",
            ", ".join(as_overrides(recipe_config)),
            model_args.model_name_or_path,
        )
    data_args.mixture = [read_entry(one) for one in data_args.mixture]
    if data_args.mixture and data_args.dataset is not None:
        parser.error(
            f"--dataset {data_args.dataset} is one dataset and --mixture names several: leave one of them out."
        )
    if data_args.dataset is None and not data_args.mixture:
        parser.error("--dataset is missing: a Hub id, a folder, or a glob of files. Or name several with --mixture.")
    if data_args.mixture_weights and not data_args.mixture:
        parser.error("--mixture_weights are those of the datasets of --mixture, and there are none.")
    sources = mixture_sources(data_args)
    if (data_args.streaming or any(one.streaming for one in sources)) and args.max_steps <= 0:
        parser.error("--streaming has no epochs: give the length of the run with --max_steps.")
    if sources and data_args.eval_dataset is None and data_args.eval_split is not None:
        parser.error("--eval_split needs --eval_dataset, which is one dataset, where --mixture names several.")
    if data_args.eval_dataset is not None and data_args.eval_split is None:
        parser.error("--eval_dataset needs --eval_split.")
    if args.load_best_model_at_end and data_args.eval_split is None:
        parser.error("--load_best_model_at_end needs --eval_split: the best one is known by its evaluation.")
    best = (args.metric_for_best_model or "loss").removeprefix("eval_")
    is_new = best != "loss" and model_args.model_name_or_path is None
    figures = evaluation_figures(build_config(model_args) if is_new else None)
    if best not in figures and (is_new or best != "contrastive_loss"):
        parser.error(
            f"--metric_for_best_model {best} is no figure of the evaluation: use one of {', '.join(figures)}."
        )
    if data_args.eval_split is None:
        args.eval_strategy = IntervalStrategy.NO
    return model_args, data_args, args


def build_model(model_args: ModelArguments) -> tuple[LeVLJEPAModel, LeVLJEPAProcessor]:
    if model_args.model_name_or_path is not None:
        model = LeVLJEPAModel.from_pretrained(model_args.model_name_or_path)
        return model, LeVLJEPAProcessor.from_pretrained(model_args.model_name_or_path)
    config = build_config(model_args)
    processor = LeVLJEPAProcessor.from_image_size(config.vision_config.image_size, text_readout=config.text_readout)
    return LeVLJEPAModel(config), processor


def build_config(model_args: ModelArguments) -> LeVLJEPAConfig:
    """The preset with its overrides; a wrong one is an error that names it."""
    return config_from_preset(model_args.preset, model_args.config)


def load_train_data(data_args: DataArguments) -> tuple[Any, dict[str, str]]:
    """The training set, and the collator's arguments that name its columns: a mixture has the usual ones."""
    if data_args.mixture:
        return load_mixture(mixture_sources(data_args), cache_dir=data_args.cache_dir), {}
    columns = (data_args.image_column, data_args.caption_column)
    dataset = load_pretraining_dataset(
        data_args.dataset,
        data_args.train_split,
        *columns,
        streaming=data_args.streaming,
        max_samples=data_args.max_train_samples,
        config_name=data_args.dataset_config,
        cache_dir=data_args.cache_dir,
    )
    return dataset, _named(find_columns(dataset, *columns))


def mixture_sources(data_args: DataArguments) -> list[MixtureSource]:
    """The datasets of the mixture, none where there is one dataset."""
    if not data_args.mixture:
        return []
    defaults = {
        "split": data_args.train_split,
        "image_column": data_args.image_column,
        "caption_column": data_args.caption_column,
        "config": data_args.dataset_config,
        "streaming": data_args.streaming,
        "max_samples": data_args.max_train_samples,
    }
    return read_sources(data_args.mixture, data_args.mixture_weights, defaults)


def load_eval_data(data_args: DataArguments) -> tuple[Any, dict[str, str]]:
    """The evaluation set (None without a split) and its columns. What is streamed is held in memory, still encoded."""
    if data_args.eval_split is None:
        return None, {}
    same = data_args.eval_dataset is None
    columns = (
        data_args.eval_image_column or (data_args.image_column if same else None),
        data_args.eval_caption_column or (data_args.caption_column if same else None),
    )
    dataset = load_pretraining_dataset(
        data_args.dataset if same else data_args.eval_dataset,
        data_args.eval_split,
        *columns,
        streaming=data_args.streaming,
        max_samples=data_args.max_eval_samples,
        config_name=data_args.dataset_config if same else None,
        cache_dir=data_args.cache_dir,
    )
    found = _named(find_columns(dataset, *columns))
    return list(dataset) if data_args.streaming else dataset, found


def _named(columns: tuple[str, str]) -> dict[str, str]:
    return dict(zip(("image_column", "caption_column"), columns, strict=True))


def build_collator(
    data_args: DataArguments, config: LeVLJEPAConfig, processor: LeVLJEPAProcessor, seed: int
) -> LeVLJEPADataCollator:
    """The collator with the augmentations of the model's objective, where the options give no others."""
    transform = objective_transform(
        config,
        image_size(processor),
        crop_scale=data_args.crop_scale,
        local_crop_scale=data_args.local_crop_scale,
        flip_probability=data_args.flip_probability,
        color_jitter_probability=data_args.color_jitter_probability,
        grayscale_probability=data_args.grayscale_probability,
    )
    return LeVLJEPADataCollator(
        processor, transform=transform, seed=seed, pad_to_multiple_of=data_args.pad_to_multiple_of
    )


def read_results(output_dir: str, data_args: DataArguments) -> dict[str, float]:
    """What a run has left at its very end; nothing of one that was killed before."""
    path = Path(output_dir, "all_results.json")
    results = json.loads(path.read_text()) if path.is_file() else {}
    evaluated = data_args.eval_split is None or any(name.startswith("eval_") for name in results)
    return results if evaluated else {}


def report(trainer: LeVLJEPATrainer, metrics: dict[str, float]) -> None:
    """Prints the metrics and how to load the model."""
    for name in sorted(metrics):
        print(f"{name:40s} {metrics[name]:.4f}")
    print(f'Saved. Load it with: LeVLJEPAModel.from_pretrained("{trainer.args.output_dir}")')


__all__ = [
    "COMMAND",
    "DataArguments",
    "ModelArguments",
    "OPTIONS",
    "RECIPES",
    "build_config",
    "build_model",
    "build_trainer",
    "main",
    "parse_args",
    "pretrain",
    "run",
]
