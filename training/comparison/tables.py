"""Means and spreads over seeds, as a table and a picture."""

import fnmatch
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy.stats import ttest_ind_from_stats

from levljepa_hf.evaluation.results import format_runs
from levljepa_hf.evaluation.task import declarations
from levljepa_hf.figures import new_figure, save_figure

from .evaluations import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIDENCE = 0.95


@dataclass
class Row:
    """One figure of several models.

    Args:
        title: Task, data set and figure.
        values: For each model its figure for each seed, in 0..1.
        chance: What guessing scores, where that is known.
        paper: What a paper reports of models of the same names, in percent.
        missing: Why a model has no figure.
    """

    title: str
    values: dict[str, list[float]]
    chance: float | None = None
    paper: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def row_titles(evaluations: Sequence[Evaluation]) -> list[str]:
    """The titles of the rows that these evaluations give."""
    return [title for title, *_ in _headlines(evaluations)]


def _headlines(evaluations: Sequence[Evaluation]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Title, key of the result, and names of the figure."""
    return [
        (f"{one.key(task)}, {title}", one.key(task), names)
        for one in evaluations
        for task in one.tasks
        for title, names in declarations()[task].headlines.items()
    ]


def comparison_rows(
    evaluations: Sequence[Evaluation],
    results: Mapping[str, Sequence[Mapping[str, dict[str, Any]]]],
    paper: Mapping[str, dict[str, float]] | None = None,
) -> list[Row]:
    """The rows of the table; those of which no model has a figure are left out.

    Args:
        evaluations: What was measured.
        results: For each model what `evaluate_model` returned, one for each seed.
        paper: By title (`row_titles`), for each model what a paper reports, in percent.
    """
    rows = []
    for title, key, names in _headlines(evaluations):
        row = Row(title, {}, paper=dict((paper or {}).get(title, {})))
        for model, of_seeds in results.items():
            records = [one[key] for one in of_seeds if key in one]
            if why := next((one["left_out"] for one in records if "left_out" in one), None):
                row.missing[model] = why
                continue
            found = [(one, _first(names, one["metrics"])) for one in records]
            values = [one["metrics"][name] for one, name in found if name is not None]
            if values:
                row.values[model] = values
                chances = [one["chance"][name] for one, name in found if name in one["chance"]]
                row.chance = chances[0] if row.chance is None and chances else row.chance
        if row.values:
            rows.append(row)
    return rows


def _first(patterns: Sequence[str], names: Iterable[str]) -> str | None:
    return next((name for pattern in patterns for name in fnmatch.filter(names, pattern)), None)


def differs(ours: Sequence[float], theirs: Sequence[float], confidence: float = CONFIDENCE) -> bool:
    """Whether two means differ by more than the spreads over seeds explain: Welch's t interval of the difference.

    Args:
        ours, theirs: Figures of two models, one for each seed.
        confidence: Of the interval, which is two-sided.

    Returns:
        False where one of them has a single seed.
    """
    if len(ours) < 2 or len(theirs) < 2:
        return False
    # From the statistics, as `ttest_ind` of the values warns where they are all but equal.
    stats = [(statistics.fmean(one), statistics.stdev(one), len(one)) for one in (ours, theirs)]
    return bool(ttest_ind_from_stats(*stats[0], *stats[1], equal_var=False).pvalue < 1 - confidence)


def format_rows(rows: Sequence[Row], reference: str | None = None) -> str:
    """A table in Markdown: a row for each figure in percent, a column for each model, and chance.

    Where there are several seeds the standard deviation follows, and a star where the difference from the model
    `reference` exceeds the spread (`differs`). A paper's figures have a row of their own below.
    """
    models = list(dict.fromkeys(model for row in rows for model in row.values))
    lines = [f"| % | {' | '.join(models)} | chance |", "|---|" + "---|" * (len(models) + 1)]
    for row in rows:
        cells = [_cell(row.values.get(model), row.values.get(reference or "")) for model in models]
        lines.append(
            f"| {row.title} | {' | '.join(cells)} | {format_runs([] if row.chance is None else [row.chance])} |"
        )
        if row.paper:
            cells = [f"{row.paper[model]:.2f}" if model in row.paper else "" for model in models]
            lines.append(f"| *the same in the paper* | {' | '.join(cells)} | |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float] | None, reference: Sequence[float] | None) -> str:
    star = " \\*" if values and reference and differs(values, reference) else ""
    return format_runs(values or ()) + star


def plot_rows(
    rows: Sequence[Row], path: str | os.PathLike | None = None, lines: Sequence[str] = ("random",)
) -> "Figure":
    """A panel for each row: the models' means with the standard deviation over seeds, baselines and chance as lines.

    Args:
        rows: Of `comparison_rows`; at least one.
        path: Where to write the picture, if anywhere.
        lines: The models that are drawn as lines.
    """
    figure, axes = new_figure(len(rows), columns=min(len(rows), 4), side=3.0, aspect=1.15)
    for axis in axes[len(rows) :]:
        axis.remove()
    models = [m for m in dict.fromkeys(model for row in rows for model in row.values) if m not in lines]
    for axis, row in zip(axes, rows, strict=False):
        for i, model in enumerate(models):
            if values := row.values.get(model):
                spread = 100 * statistics.stdev(values) if len(values) > 1 else 0
                mean = 100 * statistics.fmean(values)
                axis.errorbar(i, mean, yerr=spread or None, fmt="o", color=f"C{i % 10}", capsize=4)
        for place, name in enumerate(name for name in lines if name in row.values):
            mean = 100 * statistics.fmean(row.values[name])
            axis.axhline(mean, color="0.4", linestyle=("--", "-.")[place % 2], label=name)
        if row.chance is not None:
            axis.axhline(100 * row.chance, color="0.4", linestyle=":", label="chance")
        axis.set_title(row.title.replace(", ", "\n", 1), fontsize="small")
        axis.set_xticks(range(len(models)), models, rotation=30, ha="right", fontsize="x-small")
        axis.set(xlim=(-0.5, len(models) - 0.5), ylabel="%")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="x-small", framealpha=0.6)
    return save_figure(figure, None if path is None else Path(path))


__all__ = ["CONFIDENCE", "Row", "comparison_rows", "differs", "format_rows", "plot_rows", "row_titles"]
