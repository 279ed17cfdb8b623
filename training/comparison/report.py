"""What is written of a comparison: tables in Markdown and JSON, curves and pictures."""

import contextlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levljepa_hf.evaluation.results import format_runs
from levljepa_hf.files import write_whole
from levljepa_hf.recipes import as_overrides
from levljepa_hf.training.curves import RunLog, plot_runs, read_run
from levljepa_hf.version import versions

from .correlations import format_health, plot_health, probed
from .evaluations import EVALUATION_FILE, read_results
from .runs import Comparison, Run, score
from .sweeps import format_sweep, plot_sweep
from .tables import CONFIDENCE, Row, comparison_rows, format_rows, plot_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Rows of figures in the table: their title, their names in a run's log, and how they are written.
ROWS = {
    "loss": (("loss",), ".4f"),
    "prediction loss": (("prediction_loss",), ".4f"),
    "SIGReg, image / text": (("sigreg_vision", "sigreg_text"), ".2f"),
    "SIGReg of Gaussian samples": (("sigreg_floor",), ".2f"),
    "squared distance of the views": (("multi_view_loss",), ".4f"),
    "contrastive loss": (("contrastive_loss",), ".4f"),
    "learned scale / bias": (("contrastive_scale", "contrastive_bias"), ".2f"),
    "effective rank, image / text": (("effective_rank_vision", "effective_rank_text"), ".1f"),
    "evaluation: effective rank, image / text": (("eval_effective_rank_vision", "eval_effective_rank_text"), ".1f"),
    "evaluation: text to image R@1 / 5 / 10, %": (tuple(f"eval_text_to_image_R@{k}" for k in (1, 5, 10)), ".1%"),
    "evaluation: image to text R@1 / 5 / 10, %": (tuple(f"eval_image_to_text_R@{k}" for k in (1, 5, 10)), ".1%"),
    "samples a second": (("train_samples_per_second",), ".1f"),
}


def rounded(value: Any, digits: int = 5) -> Any:
    """The numbers within mappings and lists, to so many significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {name: rounded(one, digits) for name, one in value.items()}
    return [rounded(one, digits) for one in value] if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class Report:
    """What is written of a comparison, with what is there at the time.

    Args:
        comparison: The recipe.
        output_dir: Where it goes.
        command: The command line.
        runs: Those planned.
        tuning: For each objective the runs that tried options.
        chosen: What they chose.
        baselines: For each model that is not trained the files of its evaluations.
    """

    comparison: Comparison
    output_dir: Path
    command: str
    runs: Sequence[Run] = ()
    tuning: Mapping[str, Sequence[Run]] = field(default_factory=dict)
    chosen: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    baselines: Mapping[str, Sequence[Path]] = field(default_factory=dict)

    def write(self) -> str:
        """Writes `comparison.md` and `.json`, and the pictures that there are figures for; returns the tables."""
        figures = [(run, run.figures()) for run in self.runs if run.results() is not None]
        by_objective: dict[str, list[dict[str, float]]] = {}
        for run, values in figures:
            by_objective.setdefault(run.objective, []).append(values)
        logs = [read_run(run.folder) for run, _ in figures]
        probes = [replace(log, entries=rounded(log.entries)) for log in probed(logs)]
        rows, reference = self.rows(), self.reference(by_objective)
        lines = [f"| | {' | '.join(by_objective)} |", "|---|" + "---|" * len(by_objective)]
        for title, (names, form) in ROWS.items():
            cells = [_training_cell(runs_of, names, form) for runs_of in by_objective.values()]
            if any(cells):
                lines.append(f"| {title} | {' | '.join(cells)} |")
        training = "\n".join(lines) + "\n" if figures else ""
        several = max(map(len, by_objective.values()), default=0) > 1
        table = "\n".join(part for part in (format_rows(rows, reference) if rows else "", training) if part)
        sections = [
            *(["## Evaluation\n", format_rows(rows, reference), self.notes(rows, reference, several)] if rows else []),
            *(["## Training\n", training] if training else []),
            *(["Means over the seeds, and standard deviations.\n"] if several and training else []),
            *self.swept(rows),
            *self.health(probes),
            *(["## Chosen options\n", *self.tuned()] if self.tuning else []),
            "## Commands and versions\n",
            f"Command: `{self.command}`\n",
            f"Versions: {', '.join(f'{name} {version}' for name, version in versions().items())}\n",
            *self.commands(),
        ]
        self.output_dir.mkdir(parents=True, exist_ok=True)
        diverged = [run for run in self.runs if run.diverged()]
        sections += [f"Not in the tables: {run.objective}, seed {run.seed}, diverged.\n" for run in diverged]
        self.put("comparison.md", "\n".join(sections))
        self.put("comparison.json", json.dumps(rounded(self.content(figures, rows, probes)), separators=(",", ":")))
        with contextlib.suppress(ValueError):  # no run, or all are shorter than their logging_steps
            self.draw("curves.png", plot_runs(logs))
        if rows:
            self.draw("comparison.png", plot_rows(rows))
        return table

    def swept(self, rows: Sequence[Row]) -> list[str]:
        """Draws the sweeps of which there are figures, and returns their tables."""
        lines = []
        for sweep in self.comparison.sweeps:
            if text := format_sweep(sweep, rows):
                lines += [f"## Sweep: {sweep.name}\n", text]
                self.draw(f"sweep-{sweep.name}.png", plot_sweep(sweep, rows))
        return lines

    def health(self, logs: Sequence[RunLog]) -> list[str]:
        """Draws health against the probes of the runs that have some, and returns the table of correlations."""
        text = format_health(logs)
        if not text:
            return []
        self.draw("health.png", plot_health(logs))
        explained = (
            "Spearman's rank correlation of logged figures with the accuracy of probes. Along a run: over its probes, "
            "the mean of the runs. At the end: over the runs, at their last probe. Early: over the runs, the figure "
            "at a third of the run with the accuracy at its end.\n"
        )
        return ["## Which figure of the log tells the result\n", explained, text]

    def put(self, name: str, text: str) -> None:
        write_whole(self.output_dir / name, lambda part: part.write_text(text, "utf-8"))

    def draw(self, name: str, figure: "Figure") -> None:
        write_whole(self.output_dir / name, lambda part: figure.savefig(part, dpi=110))

    def results(self) -> dict[str, list[dict[str, Any]]]:
        """What has been evaluated, by model, a mapping for each seed."""
        files: dict[str, list[Path]] = {}
        for run in self.runs:
            files.setdefault(run.objective, []).append(run.folder / EVALUATION_FILE)
        files |= {name: list(paths) for name, paths in self.baselines.items()}
        return {
            name: found
            for name, paths in files.items()
            if (found := [one for path in paths if (one := read_results(path, self.comparison.evaluations))])
        }

    def rows(self) -> list[Row]:
        """The rows, rounded as in the JSON, so that one gets the same tables from it."""
        rows = comparison_rows(self.comparison.evaluations, self.results(), self.comparison.paper.get("figures"))
        return [replace(row, values=rounded(row.values)) for row in rows]

    def reference(self, objectives: Mapping[str, Any]) -> str | None:
        """The objective that others are compared with."""
        return "levljepa" if "levljepa" in objectives else next(iter(objectives), None)

    def notes(self, rows: Sequence[Row], reference: str | None, several: bool) -> str:
        """What the figures mean."""
        notes = ["Drops are better when they are lower, all else when it is higher."]
        if several:
            notes.append(
                f"Means over the seeds and standard deviations. \\* differs from {reference} by more than the seeds' "
                f"spread explains: 0 is outside Welch's {CONFIDENCE:.0%} t interval of the difference. Each figure is "
                f"tested alone: where nothing differs, 1 in {1 / (1 - CONFIDENCE):.0f} gets a star by chance."
            )
        else:
            notes.append("One seed: what may be called a difference is not known.")
        if "random" in self.baselines:
            notes.append("random: fresh weights of the same size, for each seed.")
        if any(row.paper for row in rows):
            notes.append(f"Rows of the paper are its own figures: {self.comparison.paper.get('source', 'no source')}.")
        missing = {why: name for row in rows for name, why in row.missing.items()}
        notes += [f"{name} lacks figures: {why}" for why, name in missing.items()]
        return "\n".join(f"- {note}" for note in notes) + "\n"

    def tuned(self) -> list[str]:
        """Which options were tried, with their scores, and chosen."""
        tuning = self.comparison.tuning
        lines = [
            f"By the mean of {', '.join(tuning.metrics)} (%) of pretrain.py's evaluation, not of the test data:\n"
        ]
        for objective, runs in self.tuning.items():
            lines += [f"| {objective} | |", "|---|---|"]
            for point, run in zip(tuning.grid[objective], runs, strict=True):
                words = " ".join(as_overrides(point)).replace("config.", "")
                result = "" if run.results() is None else f"{100 * rounded(score(run, tuning.metrics)):.1f}"
                result = "diverged" if run.diverged() else result
                lines.append(f"| {f'**{words}**' if self.chosen.get(objective) == point else words} | {result} |")
            lines.append("")
        return lines

    def commands(self) -> list[str]:
        """The commands that repeat each run and its evaluation."""
        lines = ["```bash"]
        for run in self.runs:
            lines.append(shlex.join(["python", "training/pretrain.py", *run.argv()]))
        for one in self.comparison.evaluations:
            lines += [one.command(task, str(self.runs[0].folder)) for task in one.tasks]
        return [*lines, "```\n"]

    def content(
        self, figures: Sequence[tuple[Run, dict[str, float]]], rows: Sequence[Row], probes: Sequence[RunLog]
    ) -> dict[str, Any]:
        """For JSON."""
        measured = {
            model: [{key: one.get("metrics", one.get("left_out")) for key, one in each.items()} for each in of_seeds]
            for model, of_seeds in self.results().items()
        }
        return {
            "command": self.command,
            "versions": versions(),
            "options": {run.objective: run.options for run in self.runs},
            "tuning": {
                objective: [
                    {
                        "options": point,
                        "score": None if run.results() is None else score(run, tuning.metrics),
                        "diverged": run.diverged(),
                    }
                    for point, run in zip(tuning.grid[objective], runs, strict=True)
                ]
                for objective, runs in self.tuning.items()
                if (tuning := self.comparison.tuning)
            },
            "chosen": dict(self.chosen),
            "runs": [{"objective": run.objective, "seed": run.seed, "figures": values} for run, values in figures],
            "probes": {log.name: log.entries for log in probes},
            "evaluation": {
                "settings": {
                    one.key(task): one.settings(task) for one in self.comparison.evaluations for task in one.tasks
                },
                "metrics": measured,
                "rows": [vars(row) for row in rows],
            },
            "paper": self.comparison.paper,
        }


def _training_cell(runs: Sequence[dict[str, float]], names: Sequence[str], form: str) -> str:
    """The means over runs, with their standard deviation where there are several; empty where a figure is missing."""
    values = ([run[name] for run in runs if name in run] for name in names)
    return " / ".join(format_runs(of_one, form) for of_one in values if of_one)


__all__ = ["ROWS", "Report", "rounded"]
