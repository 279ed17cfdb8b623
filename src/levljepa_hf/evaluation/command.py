"""`levljepa evaluate TASK`: the paper's protocols on any checkpoint, beside peers; a table, JSON, pictures."""

import contextlib
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..data.catalogue import DATASETS
from ..data.labelled import dataset_id
from ..data.splits import EvaluationSplit
from ..encoders.encoders import Encoder, LeVLJEPAEncoder, load_encoder
from ..encoders.features import DEFAULT_CACHE
from ..files import write_whole
from ..options import Command, option
from .card import check_card, write_to_card
from .protocols import read_protocols
from .results import EvaluationRecord, format_table, save_records
from .task import TASKS, Task, declarations, load_split

logger = logging.get_logger(__name__)


ALL = "all"


@dataclass
class EvaluationArguments:
    """What is measured, on what, and where the figures go."""

    model: list[str] = option(
        default_factory=list,
        help="One or several: folders or Hub ids of LeVLJEPA, timm:NAME, hf:NAME (CLIP, SigLIP, DINO, ...), random "
        "(fresh weights, of the first LeVLJEPA model's size).",
        kind="model",
    )
    dataset: str = option(
        default="scenes",
        help=f"One of {', '.join(DATASETS)}, or any source that `datasets` loads: folder, file, Hub id.",
        kind="dataset",
        known=DATASETS,
    )
    dataset_path: str | None = option(default=None, help="A local copy of a data set known by name.")
    dataset_config: str | None = option(
        default=None,
        help="Configuration of a source that has several; of the scenes, their side in pixels (48) "
        "and the objects' scale, as in 64:0.2-0.3; of imagenet9, "
        "halves: to train and test on halves of Original's test images (the mixed ones, not halved, may show training "
        "foregrounds again, so drops may come out too small).",
    )
    train_split: str | None = option(default=None, help="Split to learn from, by default the data set's own.")
    test_split: str | None = option(default=None, help="Split to measure on, by default the data set's own.")
    max_samples: int | None = option(default=None, help="Test samples at most, drawn at random.")
    max_train_samples: int | None = option(
        default=None, help="Training samples at most, drawn at random; by default all."
    )
    image_column: str | None = option(default=None, help="Column of the images.")
    label_column: str | None = option(default=None, help="Column of the classes.")
    caption_column: str | None = option(default=None, help="Column of the captions.")
    mask_column: str | None = option(default=None, help="Column of the masks.")
    question_column: str | None = option(default=None, help="Column of the questions.")
    answer_column: str | None = option(default=None, help="Column of the answers.")
    class_names: str | None = option(
        default=None, help="JSON or text file of the class names, in the order of the labels."
    )
    seeds: list[int] = option(default_factory=list, help="A run for each; by default 0 1 2, of the attentive probe 0.")
    protocols: str | None = option(
        default=None, help="Of `all`: YAML file of constants, by task, or evaluate-scenes; by default the paper's."
    )
    output: str | None = option(default=None, help="JSON file to write; pictures go beside it.")
    card: bool = option(default=False, help="Write the figures into the checkpoint's model card.")
    transform: str | None = option(
        default=None,
        help="How images are prepared: evaluation (short side 256/224 of the crop) or default (no margin), each with "
        "-bicubic behind it for that resampling; by default the data set's.",
    )
    encode_batch_size: int = option(default=64, help="Images encoded at a time.")
    num_workers: int = option(default=0, help="Processes that decode and prepare images.")
    cache_dir: str = option(default=str(DEFAULT_CACHE), help="Where features are kept.")
    no_cache: bool = option(default=False, help="Keep no features.")
    device: str | None = option(default=None, help="Where encoders run, by default a GPU where there is one.")
    dtype: str = option(default="float32", help="Of the encoders' weights: float32, bfloat16, float16.")


COLUMN_ROLES = ("image", "label", "caption", "mask", "question", "answer")
DTYPES = ("float32", "bfloat16", "float16")

EXAMPLES = """examples:
  levljepa evaluate zero-shot --model runs/demo --dataset scenes
  levljepa evaluate all --model runs/demo random --dataset scenes --output runs/scenes.json
  levljepa evaluate linear-probe --model runs/demo timm:vit_base_patch16_224 --dataset imagenet --max_samples 5000
"""
# What each task's command is given: what it does, and its protocol, which is read where it stands.
_PARTS = {
    **{
        name: (task.help, (f"levljepa_hf.evaluation.{name.replace('-', '_')}:{task.protocol}",))
        for name, task in declarations().items()
    },
    ALL: ("every task that the data set and the model allow", ()),
}
COMMAND = Command(
    "levljepa evaluate",
    "Measure frozen features by the paper's protocols.",
    more=EXAMPLES,
    extra="eval",
    parts={
        name: Command(
            f"levljepa evaluate {name}",
            about[0].upper() + about[1:] + ".",
            (EvaluationArguments, *protocol),
            f"example:\n  levljepa evaluate {name} --model runs/demo random --dataset scenes --output runs/new.json",
            extra="eval",
        )
        for name, (about, protocol) in _PARTS.items()
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `levljepa evaluate`. Returns the exit status."""
    command, rest = COMMAND.part(sys.argv[1:] if argv is None else argv)
    name = command.name.split()[-1]
    tasks = TASKS if name == ALL else {name: TASKS[name]}

    def measure(arguments: EvaluationArguments, *given: Any) -> None:
        protocols = dict(zip(tasks, given, strict=False))
        if arguments.protocols:
            if name != ALL:
                raise ValueError(f"--protocols is for {ALL}: the constants of {name} are options of their own.")
            protocols = read_protocols(arguments.protocols)
        print(f"\n{format_table(evaluate(arguments, tasks, protocols))}")

    return command.run(rest, measure)


def evaluate(
    arguments: EvaluationArguments,
    tasks: Mapping[str, Task] = TASKS,
    protocols: Mapping[str, Any] | None = None,
) -> list[EvaluationRecord]:
    """Runs tasks on models and writes what the arguments ask for, after each task on each model.

    Args:
        arguments: Models, data and outputs.
        tasks: Those of `TASKS` to run. Of several, those that the data set, a model or the installed packages do not
            allow are left out, and named in a warning and in the JSON file.
        protocols: Constants of the tasks, by their name; by default the paper's.

    Returns:
        A record for each task and model.

    Raises:
        ValueError: if an argument, a column or a combination is wrong; before anything is measured, but where only
            the work on a model shows that it does not serve the one task. What came before is in the output.
        OSError: if a model or data set is not within reach.
    """
    _check(arguments)
    output = Path(arguments.output) if arguments.output else None
    only = len(tasks) == 1
    left_out: dict[str, str] = {}
    splits = {name: _load_data(arguments, name, task, only, left_out) for name, task in tasks.items()}
    splits = {name: data for name, data in splits.items() if data}
    records: list[EvaluationRecord] = []
    gains = {name: task.gain for name, task in tasks.items() if task.gain and name in splits}
    encoders = _load_encoders(arguments, with_gains=bool(gains))  # all at first: a wrong name is an error now
    with _feature_cache(arguments) as cache_dir:
        for encoder in encoders:
            for name, data in splits.items():
                if encoder.name not in arguments.model and name not in gains:
                    continue
                protocol = (protocols or {}).get(name) or tasks[name].protocol()
                try:
                    record = _run(arguments, name, tasks[name], data, encoder, protocol, cache_dir)
                except (ValueError, ImportError) as error:  # the model does not serve it, or a package is missing
                    if only:
                        raise
                    _leave_out(left_out, f"{name} of {encoder.name}", error)
                    continue
                records.append(record)
                if output:
                    save_records(records, output, left_out)
                    _draw(record, output)
    if not records:
        raise ValueError("Nothing could be measured: " + "; ".join(f"{k}: {v}" for k, v in left_out.items()))
    add_gains(records, gains)
    if output:
        save_records(records, output, left_out)
    for model in arguments.model if arguments.card else ():
        if _is_checkpoint(model):
            write_to_card(model, [record for record in records if record.model == model])
    return records


def _load_encoders(arguments: EvaluationArguments, with_gains: bool) -> list[Encoder]:
    """Each model once; `random` ones last, since they take another's size, and one of them where gains are wanted."""
    models = sorted(dict.fromkeys(arguments.model), key=_is_random)
    if with_gains and not _is_random(models[-1]):
        models.append("random")
    encoders: list[Encoder] = []
    for model in models:
        like = next((one for one in encoders if isinstance(one, LeVLJEPAEncoder)), None)
        encoders.append(load_encoder(model, arguments.device, getattr(torch, arguments.dtype), like=like))
    return encoders


def _is_random(model: str) -> bool:
    return model.partition(":")[0] == "random"


def _leave_out(left_out: dict[str, str], what: str, error: Exception) -> None:
    logger.warning(f"{what} is left out: {error}")
    left_out[what] = str(error)


def _check(arguments: EvaluationArguments) -> None:
    if not arguments.model:
        raise ValueError("There is no model to measure: give --model with one or several.")
    if arguments.dtype not in DTYPES:
        raise ValueError(f"dtype={arguments.dtype!r} is unknown: use one of {', '.join(DTYPES)}.")
    if arguments.output and Path(arguments.output).suffix != ".json":
        raise ValueError(f"--output {arguments.output} is to be a JSON file: let its name end in .json.")
    if arguments.card:
        check_card([model for model in arguments.model if _is_checkpoint(model)])


def _is_checkpoint(model: str) -> bool:
    return model.partition(":")[0] not in ("random", "timm", "hf")


def _load_data(
    arguments: EvaluationArguments, name: str, task: Task, only: bool, left_out: dict[str, str]
) -> dict[str, EvaluationSplit] | None:
    """The splits of a task by role; `None` where the data set does not serve it and other tasks are asked for."""
    columns = {role: getattr(arguments, f"{role}_column") for role in COLUMN_ROLES}
    options = {
        "columns": {role: column for role, column in columns.items() if column is not None},
        "path": arguments.dataset_path,
        "config_name": arguments.dataset_config,
        "class_names": arguments.class_names,
    }
    roles = {role: (getattr(arguments, f"{role}_split", None) or role) for role in task.roles}
    try:
        data = {
            role: load_split(
                arguments.dataset,
                name,
                split,
                max_samples=arguments.max_train_samples if role == "train" else arguments.max_samples,
                **options,
            )
            for role, split in roles.items()
        }
        if task.train and any(data[role].name == data["train"].name for role in task.tests):
            raise ValueError(
                f"{data['train'].name} would be both learned from and measured on: choose with --train_split and "
                "--test_split; parts of one are written like train[:80%] and train[80%:]."
            )
        return data
    except ValueError as error:
        if only:
            raise
        _leave_out(left_out, name, error)
        return None


@contextlib.contextmanager
def _feature_cache(arguments: EvaluationArguments) -> Iterator[str]:
    """The folder of the features, which several tasks share in any case."""
    if not arguments.no_cache:
        yield arguments.cache_dir
        return
    with tempfile.TemporaryDirectory(prefix="levljepa-features-") as folder:
        yield folder


def _run(
    arguments: EvaluationArguments,
    name: str,
    task: Task,
    data: dict[str, EvaluationSplit],
    encoder: Encoder,
    protocol: Any,
    cache_dir: str,
) -> EvaluationRecord:
    options: dict[str, Any] = {
        "batch_size": arguments.encode_batch_size,
        "num_workers": arguments.num_workers,
        "cache_dir": cache_dir,
    }
    transform = arguments.transform or next(iter(data.values())).transform
    options["transform"] = transform
    tests = [data[role] for role in task.tests]
    inputs = [data["train"]] if task.train else []
    inputs += tests if len(tests) == 1 else [dict(zip(task.tests, tests, strict=True))]
    seeds = list(arguments.seeds or task.seeds)
    if task.seeds:
        options["seeds"] = seeds
    result = task.run(encoder, *inputs, protocol=protocol, **options)
    result.details |= {f"dropped_{role}": split.dropped for role, split in data.items() if split.dropped}
    return EvaluationRecord(
        task=name,
        model=encoder.name,
        dataset=arguments.dataset,
        dataset_id=dataset_id(arguments.dataset),
        splits={role: split.name for role, split in data.items()},
        protocol=asdict(protocol),
        features={
            "transform": transform,
            "image_size": encoder.image_size,
            "dtype": arguments.dtype,
            "fingerprint": encoder.fingerprint,
        },
        seeds=seeds if task.seeds else [],
        result=result,
    )


def add_gains(records: Sequence[EvaluationRecord], gains: Mapping[str, str]) -> None:
    """Adds to each model's figures the gain over the random encoder's, run by run (the same seeds).

    Args:
        records: Of the models and of a random encoder.
        gains: By task the metric that the gain is of.
    """
    for task, metric in gains.items():
        mine = [record for record in records if record.task == task]
        base = next((record for record in mine if _is_random(record.model)), None)
        for record in mine:
            if base is None or record is base:
                continue
            for run, without in zip(record.result.runs, base.result.runs, strict=True):
                run["gain"] = run[metric] - without[metric]
            record.result.details["gain_over"] = base.model


def _draw(record: EvaluationRecord, output: Path) -> None:
    """The pictures, beside the JSON file."""
    label = re.sub(r"[^\w.-]+", "-", record.model).strip("-.")
    for name, draw in record.result.pictures.items():
        path = output.with_name(f"{output.stem}-{record.task}-{label}-{name}.png")
        write_whole(path, draw)


__all__ = ["COMMAND", "EvaluationArguments", "add_gains", "evaluate", "main"]
