"""Which figure of a run's log tells how good its features become: rank correlations with what probes measure.

A run that was probed while it trained (`probe_dataset` of pretrain.py) has at each probe the health of its embeddings
beside the accuracy of its features. The correlations are Spearman's, so that nothing is assumed about the curve:

- *along a run*: over the probes of one run, averaged over runs. High where a figure moves with the accuracy in time;
- *at the end*: over runs, of both at their last probe;
- *early*: over runs, of the figure at the probe nearest to a third of the run, and the accuracy at its end.
"""

import fnmatch
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scipy.stats import spearmanr

from levljepa_hf.figures import new_figure, save_figure
from levljepa_hf.training.curves import RunLog

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The logged figures that a user watches, with their names in words.
HEALTH_FIGURES = {
    "effective_rank_vision": "effective rank, image",
    "effective_rank_text": "effective rank, text",
    "sigreg_vision": "SIGReg, image",
    "sigreg_text": "SIGReg, text",
    "unexplained_vision": "unexplained, image",
    "unexplained_text": "unexplained, text",
    "cosine_matched": "cosine of pairs",
    "loss": "loss",
    "eval_text_to_image_R@1": "validation recall, text to image R@1",
}
ALONG = ("loss",)  # means another thing under each objective, so that runs are not ranked by it
RESULTS = {"probe_zero_shot_top1": "zero-shot", "probe_knn_*top1": "kNN"}  # patterns of probes, and their names
EARLY = 1 / 3  # of a run
MIN_RUNS = 4  # that a correlation over runs is of


@dataclass(frozen=True)
class Trajectory:
    """A figure and a result of one run, probe by probe.

    Args:
        name: Of the run.
        steps: Of the probes.
        figures: The figure's last value at each, nan before the first.
        results: The accuracy at each.
    """

    name: str
    steps: list[int]
    figures: list[float]
    results: list[float]


def trajectories(runs: Sequence[RunLog], figure: str, result: str) -> list[Trajectory]:
    """Of the runs that log both; `result` may be a pattern."""
    found = []
    for run in runs:
        name = next(iter(fnmatch.filter(run.names(), result)), None)
        logged = dict(zip(*run.series(figure), strict=True))
        if name is None or not logged:
            continue
        steps, results = run.series(name)
        before = [max((step for step in logged if step <= at), default=None) for at in steps]
        figures = [math.nan if step is None else logged[step] for step in before]
        found.append(Trajectory(run.name, steps, figures, results))
    return found


def rank_correlations(paths: Sequence[Trajectory]) -> tuple[float | None, float | None, float | None]:
    """Spearman's correlation along a run (the mean), at the end, and early; None where there is too little."""
    along = [rho for path in paths if (rho := _spearman(path.figures, path.results, 3)) is not None]
    ends = [path.results[-1] for path in paths]
    early = [path.figures[_nearest(path.steps, EARLY * path.steps[-1])] for path in paths]
    return (
        statistics.fmean(along) if along else None,
        _spearman([path.figures[-1] for path in paths], ends, MIN_RUNS),
        _spearman(early, ends, MIN_RUNS),
    )


def _nearest(steps: Sequence[int], at: float) -> int:
    return min(range(len(steps)), key=lambda i: abs(steps[i] - at))


def _spearman(figures: Sequence[float], results: Sequence[float], least: int) -> float | None:
    pairs = [(x, y) for x, y in zip(figures, results, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if len(pairs) < least or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def probed(runs: Sequence[RunLog]) -> list[RunLog]:
    """What `format_health` reads of the runs, and no more: an entry for each probe; runs without are left out."""
    short = []
    for run in runs:
        results = [name for pattern in RESULTS for name in fnmatch.filter(run.names(), pattern)]
        entries: dict[int, dict[str, float]] = {}
        for figure in HEALTH_FIGURES:
            for result in results:
                for path in trajectories([run], figure, result):
                    for step, value, accuracy in zip(path.steps, path.figures, path.results, strict=True):
                        entry = entries.setdefault(step, {"step": step}) | {result: accuracy}
                        entries[step] = entry | ({figure: value} if math.isfinite(value) else {})
        if entries:
            short.append(RunLog(run.name, run.folder, [entries[step] for step in sorted(entries)], run.max_steps))
    return short


def format_health(runs: Sequence[RunLog]) -> str:
    """A table in Markdown: a row for each figure, for each result the three correlations; empty without probes."""
    lines = []
    for figure, words in HEALTH_FIGURES.items():
        cells, count = [], 0
        for result in RESULTS:
            paths = trajectories(runs, figure, result)
            count = max(count, len(paths))
            along, *over = rank_correlations(paths)
            found = [along, *((None, None) if figure in ALONG else over)]
            cells.append(" / ".join("-" if rho is None else f"{rho:+.2f}" for rho in found))
        if count and any(set(cell) - set("- /") for cell in cells):
            lines.append(f"| {words} | {' | '.join(cells)} | {count} |")
    names = [f"{name}: along a run / at the end / early" for name in RESULTS.values()]
    if not lines:
        return ""
    return "\n".join([f"| | {' | '.join(names)} | runs |", "|---|" + "---|" * (len(names) + 1), *lines]) + "\n"


def plot_health(
    runs: Sequence[RunLog],
    path: str | os.PathLike | None = None,
    figures: Sequence[str] = ("effective_rank_vision", "effective_rank_text", "sigreg_vision", "sigreg_text"),
    result: str = "probe_knn_*top1",
) -> "Figure":
    """A panel for each figure: the accuracy against it, a line through the probes of each run, a dot at its end.

    Args:
        runs: Of `read_run`.
        path: Where to write the picture, if anywhere.
        figures: The panels.
        result: The accuracy.
    """
    figure, axes = new_figure(len(figures), columns=min(len(figures), 4), side=3.0, aspect=1.15)
    from matplotlib import ticker  # needed for drawing alone

    for axis, name in zip(axes, figures, strict=False):
        paths = [(i, one) for i, run in enumerate(runs) for one in trajectories([run], name, result)]
        for i, one in paths:
            accuracy = [100 * value for value in one.results]
            axis.plot(one.figures, accuracy, color=f"C{i % 10}", linewidth=0.8, alpha=0.6)
            axis.plot(one.figures[-1:], accuracy[-1:], "o", color=f"C{i % 10}", markersize=4)
        if paths and "sigreg" in name:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set(xlabel=HEALTH_FIGURES.get(name, name), ylabel=f"{RESULTS.get(result, result)}, %")
        axis.grid(alpha=0.3)
    for axis in axes[len(figures) :]:
        axis.remove()
    return save_figure(figure, None if path is None else Path(path))


__all__ = [
    "ALONG",
    "EARLY",
    "HEALTH_FIGURES",
    "MIN_RUNS",
    "RESULTS",
    "Trajectory",
    "rank_correlations",
    "format_health",
    "plot_health",
    "probed",
    "trajectories",
]
