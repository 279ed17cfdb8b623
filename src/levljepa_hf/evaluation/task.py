"""What an evaluation task declares, which tasks there are, and the splits that each reads.

A task is a file of this folder that ends in `TASK = Task(...)`, after its protocol and its function, and has its
name: linear-probe is in linear_probe.py. Nothing else is told of it: the command, the data, the probes of a training,
model cards and tables of comparisons read that declaration.
"""

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data.catalogue import DATASETS
from ..data.splits import COLUMNS, EvaluationSplit
from ..options import did_you_mean

if TYPE_CHECKING:
    from .results import TaskResult

_DECLARATION = "\nTASK = Task("  # after it a task's file has nothing but `__all__`


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that is known of a task outside of its file.

    Its declaration is read from the file without running it (`declarations`): write everything but `protocol` and
    `run` as plain literals.

    Args:
        help: What is measured, in a line.
        protocol: The frozen dataclass of its constants, each with its help; of these options are made.
        run: Called as `run(encoder, train, test, protocol=..., seeds=..., **feature_options)`. Without `train` and
            `seeds` where the task has none, and with a mapping in place of `test` where it has several.
        reads: What it reads of a data set beside the images, a field of `EvaluationSplit`.
        headlines: Its figures in tables: for each title the names or patterns of the metric, of which the first that
            a model has is shown.
        train: Whether it learns from a training split.
        tests: The roles of the splits that it measures on.
        seeds: Of its runs by default, one each; none where nothing is drawn at random.
        transform: How images are prepared that come from no data set of the catalogue, see `EvaluationSplit`.
        scenes: Which scenes are its data offline: `objects`, or `backgrounds`, where each class has its own.
        hub_task: The Hub's name of what it measures, for model cards.
        gain: The metric whose gain over a random encoder is reported too, so that one is always measured along.
        probe: What it is called among the probes of a training (`--probe_tasks`), if it can be one.
        probe_constants: What differs from the protocol's defaults there, to be quick and to log one figure of a kind.
        position: Its place among the tasks. `evaluate all` runs them in this order, so what takes long comes late.
    """

    help: str
    protocol: Any
    run: Callable[..., "TaskResult"]
    headlines: Mapping[str, tuple[str, ...]]
    reads: Literal["labels", "captions", "masks", "questions"] = "labels"
    train: bool = True
    tests: tuple[str, ...] = ("test",)
    seeds: tuple[int, ...] = (0, 1, 2)
    transform: str = "evaluation"
    scenes: str = "objects"
    hub_task: str = "image-classification"
    gain: str | None = None
    probe: str | None = None
    probe_constants: Mapping[str, Any] = field(default_factory=dict)
    position: int = 50

    @property
    def roles(self) -> tuple[str, ...]:
        """Of its splits, in the order in which `run` takes them."""
        return ("train", *self.tests) if self.train else self.tests


@cache
def declarations() -> dict[str, Task]:
    """The tasks by name as their files declare them, in their order; nothing is imported.

    `protocol` and `run` are names here, as they stand in the file: `TASKS` has the tasks themselves.
    """
    found = {}
    for path in sorted(path for folder in sys.modules[__package__].__path__ for path in Path(folder).glob("*.py")):
        _, declared, call = path.read_text("utf-8").partition(_DECLARATION)
        if declared:
            keywords = ast.parse(declared.lstrip() + call).body[0].value.keywords
            found[path.stem.replace("_", "-")] = Task(**{one.arg: _literal(one.value) for one in keywords})
    return dict(sorted(found.items(), key=lambda item: item[1].position))


def _literal(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


class _Tasks(Mapping[str, Task]):
    """The tasks by name. A task's file is imported when it is asked for, and not to list the names."""

    def __getitem__(self, name: str) -> Task:
        if name not in declarations():
            raise KeyError(name)
        return import_module(f".{name.replace('-', '_')}", __package__).TASK

    def __iter__(self) -> Iterator[str]:
        return iter(declarations())

    def __len__(self) -> int:
        return len(declarations())


TASKS: Mapping[str, Task] = _Tasks()


def serves(dataset: str, task: str) -> bool:
    """Whether a data set of the catalogue has what a task reads, in all of the task's splits."""
    entry, declared = DATASETS[dataset], declarations()[task]
    return task not in entry.unfit_for and entry.gives(COLUMNS[declared.reads], declared.roles)


def load_split(dataset: str, task: str, split: str, **options: Any) -> EvaluationSplit:
    """A split as a task reads it.

    Args:
        dataset: A name of `levljepa_hf.data.DATASETS`, or any source of `levljepa_hf.data.load_source`.
        task: One of the tasks of `levljepa evaluate`.
        split: A role of the task ("train", "test"; of `background` "train", "original", "mixed_same", "mixed_rand"),
            for which the catalogue has the split, or a split's own name. Of a source that is not in the catalogue,
            "test" is its split `test`, or without one `validation`.
        options: `columns`, `path`, `config_name`, `class_names`, `max_samples` and `seed` of
            `levljepa_hf.data.labelled.read_split`.

    Raises:
        ValueError: if the data set does not serve the task, or a split, column, label or name does not fit.
        OSError: if the source is not within reach.
    """
    from ..data.labelled import read_split  # needs the extra `train`, which the names of the tasks do not

    names = declarations()
    if task not in names:
        raise ValueError(f"Unknown task {task!r}: it is one of {', '.join(names)}.{did_you_mean(task, names)}")
    if dataset in DATASETS and not serves(dataset, task):
        mine = ", ".join(name for name in names if serves(dataset, name))
        others = ", ".join(name for name in DATASETS if serves(name, task))
        raise ValueError(f"{dataset} is no data for {task}: it serves {mine}. {task}: {others}.")
    declared = names[task]
    return read_split(dataset, declared.reads, split, transform=declared.transform, scenes=declared.scenes, **options)


__all__ = ["TASKS", "Task", "declarations", "load_split", "serves"]
