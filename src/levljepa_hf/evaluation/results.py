"""What a task gives back: figures over several runs, what they rest on, and pictures; as JSON and on a model card."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_whole
from ..version import versions


@dataclass
class TaskResult:
    """Figures of one encoder in one task, over one or several runs.

    Args:
        runs: The metrics of each run, by name; runs differ by their seed alone.
        details: What the figures rest on, for JSON: numbers of samples, chosen settings, classes left out, ...
        chance: What guessing scores, by the metric's name, where that is known.
        pictures: Functions that draw, by the picture's name. Each returns the figure, and writes it as a PNG where it
            is given a path.
    """

    runs: list[dict[str, float]]
    details: dict[str, Any] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Callable[..., Any]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of each metric over the runs."""
        return {name: statistics.fmean(run[name] for run in self.runs) for name in self.runs[0]}

    @property
    def spread(self) -> dict[str, float]:
        """The standard deviation of each metric over the runs (n - 1); empty for a single run."""
        if len(self.runs) < 2:
            return {}
        return {name: statistics.stdev(run[name] for run in self.runs) for name in self.runs[0]}


@dataclass
class EvaluationRecord:
    """A result with everything that it takes to repeat it.

    Args:
        task: Name of the task.
        model: The encoder, as it was asked for.
        dataset: Name of the data set, as it was asked for.
        dataset_id: Where it comes from: a Hub id or a folder's name.
        splits: The splits used, by role ("train", "test").
        protocol: Every constant of the protocol.
        features: How images were prepared and features kept.
        seeds: One for each run.
        result: The figures.
    """

    task: str
    model: str
    dataset: str
    dataset_id: str
    splits: dict[str, str]
    protocol: dict[str, Any]
    features: dict[str, Any]
    seeds: list[int]
    result: TaskResult

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        fields = {name: value for name, value in vars(self).items() if name != "result"}
        result = self.result
        return fields | {
            "metrics": result.metrics,
            "spread": result.spread,
            "chance": result.chance,
            "runs": result.runs,
            "details": result.details,
        }


def save_records(
    records: Sequence[EvaluationRecord], path: str | Path, left_out: Mapping[str, str] | None = None
) -> None:
    """Writes the records as JSON, under its name when it is whole; `left_out` says what was not measured, and why."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"versions": versions(), "results": [record.to_dict() for record in records]}
    if left_out:
        content["left_out"] = dict(left_out)
    write_whole(path, lambda part: part.write_text(json.dumps(content, indent=2) + "\n", "utf-8"))


def format_table(records: Sequence[EvaluationRecord]) -> str:
    """A table for the terminal: a block for each task and data set, a row for each metric, a column for each model.

    Fractions are shown in percent, with the spread over the runs where there are several.
    """
    blocks = []
    for task, dataset in dict.fromkeys((record.task, record.dataset) for record in records):
        mine = [record for record in records if (record.task, record.dataset) == (task, dataset)]
        names = list(dict.fromkeys(name for record in mine for name in record.result.metrics))
        chance = {name: value for record in mine for name, value in record.result.chance.items()}
        rows = [[f"{task} on {dataset}", *(_label(record.model) for record in mine), *(["chance"] if chance else [])]]
        for name in names:
            cells = [format_runs([run[name] for run in record.result.runs if name in run]) for record in mine]
            guessed = [format_runs([chance[name]] if name in chance else [])] if chance else []
            rows.append([f"  {name}", *cells, *guessed])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _label(model: str) -> str:
    return model if len(model) <= 28 else "..." + model[-25:]


def format_runs(values: Sequence[float], form: str = ".1%") -> str:
    """The mean of a figure over its runs, and with several of them the standard deviation (n - 1): `74.4 +- 0.3`.

    Args:
        values: The figure of each run; of none the text is empty.
        form: How a number is written. Of a percentage the sign is left out.
    """
    shown = [statistics.fmean(values)] if values else []
    if len(values) > 1:
        shown.append(statistics.stdev(values))
    return " +- ".join(f"{value:{form}}".removesuffix("%") for value in shown)


__all__ = ["EvaluationRecord", "TaskResult", "format_runs", "format_table", "save_records"]
