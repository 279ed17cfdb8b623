"""What a task gives back: figures over several runs, what they rest on, and pictures; as JSON and on a model card."""

import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class TaskResult:
    """Figures of one encoder in one task, over one or several runs.

    Args:
        runs: The metrics of each run, by name; runs differ by their seed alone.
        details: What the figures rest on, for JSON: numbers of samples, chosen settings, classes left out, ...
        chance: What guessing scores, by the metric's name, where that is known.
        pictures: Functions that draw, each given the path of the PNG to write, by the picture's name.
    """

    runs: list[dict[str, float]]
    details: dict[str, Any] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Callable[[Path], None]] = field(default_factory=dict)

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
