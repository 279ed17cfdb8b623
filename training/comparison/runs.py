"""The trainings of a comparison, each in a folder of its own, and how their options are chosen."""

import json
import math
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from levljepa_hf.recipes import DIVERGED_NAME, as_overrides
from levljepa_hf.training.curves import read_run

from .evaluations import EVALUATION_FILE, Evaluation, read_results
from .sweeps import Sweep

OPTIONS_FILE = "compared_as.json"  # in a run's folder: the options that it was started with


def check_folder(folder: Path, options: dict[str, Any]) -> None:
    """Raises `ValueError` if a folder holds a run with other options."""
    before = folder / OPTIONS_FILE
    if before.is_file() and (found := json.loads(before.read_text())) != options:
        changed = [key for key in {*found, *options} if found.get(key) != options.get(key)]
        lines = "; ".join(f"{key}: {found.get(key)} there, {options.get(key)} now" for key in sorted(changed))
        raise ValueError(
            f"{folder} holds a run with other options ({lines}): give another --output_dir, or remove it."
        )


@dataclass(frozen=True)
class Run:
    """One training of the comparison.

    Args:
        objective: its name in the recipe.
        seed: of weights, order and augmentations.
        folder: where it goes.
        options: of pretrain.py, as they stand in a recipe.
    """

    objective: str
    seed: int
    folder: Path
    options: dict[str, Any]

    def argv(self) -> list[str]:
        """The command line of pretrain.py; what is null is left to its default."""
        words = []
        for name, value in self.options.items():
            if value is None:
                continue
            values = as_overrides(value) if name == "config" else value if isinstance(value, list) else [value]
            words += [f"--{name}", *(json.dumps(v) if isinstance(v, (dict, bool)) else str(v) for v in values)]
        return [*words, "--seed", str(self.seed), "--output_dir", str(self.folder)]

    def results(self) -> dict[str, float] | None:
        """What it measured, or None if it is not at its end.

        Raises:
            ValueError: if its folder holds a run with other options.
        """
        check_folder(self.folder, self.options)
        path = self.folder / "all_results.json"
        results = json.loads(path.read_text()) if path.is_file() else {}
        evaluated = "eval_split" not in self.options or any(name.startswith("eval_") for name in results)
        return results if results and evaluated else None

    def is_measured(self, evaluations: Sequence[Evaluation]) -> bool:
        """Whether `evaluate_model` would find nothing to do."""
        found = read_results(self.folder / EVALUATION_FILE, evaluations)
        return all(one.key(task) in found for one in evaluations for task in one.tasks)

    def diverged(self) -> bool:
        """Whether its loss has been seen to become infinite or no number, so that there is nothing to go on with.

        Raises:
            ValueError: if its folder holds a run with other options.
        """
        check_folder(self.folder, self.options)
        return (self.folder / DIVERGED_NAME).is_file()

    def train(self, script: Path, processes: int) -> None:
        """Trains with pretrain.py, `script`, from where it is to its end.

        Raises:
            FloatingPointError: if the loss becomes infinite or no number.
            RuntimeError: if the training fails otherwise.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / OPTIONS_FILE).write_text(json.dumps(self.options, indent=1))
        diverged = self.folder / DIVERGED_NAME
        diverged.unlink(missing_ok=True)
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(launch if processes > 1 else []), str(script), *self.argv()]
        if processes > 1 and not torch.accelerator.is_available():
            command.append("--use_cpu")
        status = _call([*command, "--resume_from_checkpoint", "auto"])
        if status and diverged.is_file():
            raise FloatingPointError(f"{self.objective}, seed {self.seed}: {diverged.read_text('utf-8').strip()}")
        if status:
            raise RuntimeError(
                f"The training of {self.objective}, seed {self.seed}, ended with status {status}; its "
                f"message is above. Call this script again to go on, or run it alone: {shlex.join(command)}"
            )

    def figures(self) -> dict[str, float]:
        """The last value of each figure in the log, and what was measured at the end."""
        figures: dict[str, float] = {}
        for entry in read_run(self.folder).entries:
            figures |= {name: value for name, value in entry.items() if isinstance(value, (int, float))}
        return figures | (self.results() or {})


def _call(command: Sequence[str]) -> int:
    """Runs a command and returns its status. What ends this process ends it too, by SIGTERM: with a checkpoint."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


@dataclass(frozen=True)
class Tuning:
    """How options are chosen.

    Args:
        grid: For each objective the points, as many for each.
        metrics: Figures of pretrain.py's evaluation whose mean decides.
        pretrain: Options of the runs that try.
    """

    grid: dict[str, list[dict[str, Any]]]
    metrics: list[str]
    pretrain: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A recipe of training/compare.py, whose help says what the keys mean.

    Args:
        pretrain: Options of all runs.
        objectives: For each the options that differ.
        seeds: A run for each.
        evaluations: What is measured of each run.
        tuning: How options are chosen, if they are.
        paper: Source and figures of a paper.
        sweeps: What is drawn against a setting that varies.
    """

    pretrain: dict[str, Any]
    objectives: dict[str, dict[str, Any]]
    seeds: list[int]
    evaluations: list[Evaluation] = field(default_factory=list)
    tuning: Tuning | None = None
    paper: dict[str, Any] = field(default_factory=dict)
    sweeps: list[Sweep] = field(default_factory=list)


def score(run: Run, metrics: Sequence[str]) -> float:
    """The mean of the figures that choose, of a run that is done; of one that diverged minus infinity."""
    if run.diverged():
        return -math.inf
    results = run.results() or {}
    return statistics.fmean(results[f"eval_{name}"] for name in metrics)


__all__ = ["Comparison", "OPTIONS_FILE", "Run", "Tuning", "check_folder", "score"]
