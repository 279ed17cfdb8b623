"""One setting varied: figures of the table against it, as a table and a picture for each of a recipe's `sweeps`."""

import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levljepa_hf.evaluation.protocols import check_names
from levljepa_hf.evaluation.results import format_runs
from levljepa_hf.figures import new_figure, save_figure

from .tables import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KEYS = ("axis", "series", "rows")


@dataclass(frozen=True)
class Sweep:
    """What is drawn against what.

    Args:
        name: Of the sweep, and of its picture's file.
        axis: What is varied, in words.
        series: For each line its objective, or for each place on the axis one: `{"0": "no-sigreg", "1": "levljepa"}`.
        rows: For each panel the title of a row of the table, or for each place on the axis one.
    """

    name: str
    axis: str
    series: dict[str, str | dict[str, str]]
    rows: dict[str, str | dict[str, str]]

    def places(self) -> list[str]:
        """The places on the axis, in the order of the recipe."""
        groups = [one for one in (*self.series.values(), *self.rows.values()) if isinstance(one, dict)]
        return list(dict.fromkeys(place for group in groups for place in group))

    def values(self, line: str, panel: str, place: str, rows: Sequence[Row]) -> list[float]:
        """The figures of a line at a place, one for each seed; none where there are none."""
        objective, title = (_at(one, place) for one in (self.series[line], self.rows[panel]))
        row = next((row for row in rows if row.title == title), None)
        return [] if row is None or objective is None else row.values.get(objective, [])


def _at(one: str | Mapping[str, str], place: str) -> str | None:
    return one if isinstance(one, str) else one.get(place)


def read_sweeps(sweeps: Any, objectives: Iterable[str], titles: Sequence[str]) -> list[Sweep]:
    """The sweeps of a recipe.

    Args:
        sweeps: For each name `axis`, `series` and `rows`, of `Sweep`; `rows` may be a list of titles.
        objectives: Those of the recipe.
        titles: The titles of the table's rows.

    Raises:
        ValueError: if a key, an objective or a title is unknown, or nothing is varied.
    """
    objectives, found = list(objectives), []
    if not isinstance(sweeps, Mapping):
        raise ValueError("`sweeps` must be a mapping: for each name axis, series and rows.")
    for name, given in sweeps.items():
        given = given if isinstance(given, Mapping) else {}
        check_names(given, _KEYS, f"key of a sweep ({name})")
        if missing := [key for key in _KEYS if not given.get(key)]:
            raise ValueError(f"The sweep {name} has no {missing[0]}: it takes {', '.join(_KEYS)}.")
        if not re.fullmatch(r"[\w.-]+", str(name)):
            raise ValueError(f"A sweep is called {name!r}, and so is its picture: take letters, digits, . - and _.")
        if not isinstance(given["series"], Mapping) or not isinstance(given["rows"], (Mapping, list)):
            raise ValueError(
                f"The sweep {name}: `series` must be a mapping, and `rows` a list of titles or a mapping."
            )
        rows = given["rows"] if isinstance(given["rows"], Mapping) else {title: title for title in given["rows"]}
        sweep = Sweep(str(name), str(given["axis"]), _texts(given["series"]), _texts(rows))
        for what, known, groups in (
            ("objective of this recipe", objectives, sweep.series),
            ("row of this comparison", titles, sweep.rows),
        ):
            for one in groups.values():
                check_names([one] if isinstance(one, str) else one.values(), known, f"{what} ({name} of `sweeps`)")
        if not sweep.places():
            raise ValueError(
                f"The sweep {name} varies nothing: a line of `series`, or a panel of `rows`, must map places to names."
            )
        found.append(sweep)
    return found


def _texts(groups: Mapping[Any, Any]) -> dict[str, str | dict[str, str]]:
    """Names and places as texts: YAML reads 0.1 as a number."""
    return {
        str(key): {str(place): str(one) for place, one in value.items()} if isinstance(value, Mapping) else str(value)
        for key, value in groups.items()
    }


def format_sweep(sweep: Sweep, rows: Sequence[Row]) -> str:
    """A table in Markdown, in percent: a row for each panel and line, a column for each place; empty without any."""
    places, lines = sweep.places(), []
    for panel in sweep.rows:
        for line in sweep.series:
            cells = [format_runs(sweep.values(line, panel, place, rows)) for place in places]
            if any(cells):
                lines.append(f"| {panel}: {line} | {' | '.join(cells)} |")
    if not lines:
        return ""
    return "\n".join([f"| {sweep.axis} | {' | '.join(places)} |", "|---|" + "---|" * len(places), *lines]) + "\n"


def plot_sweep(sweep: Sweep, rows: Sequence[Row], path: str | os.PathLike | None = None) -> "Figure":
    """A panel for each figure, a line for each of the series: means, with the standard deviation over seeds.

    Args:
        sweep: What is drawn.
        rows: Of `comparison_rows`.
        path: Where to write the picture, if anywhere.
    """
    figure, axes = new_figure(len(sweep.rows), columns=min(len(sweep.rows), 4), side=2.8, aspect=1.15)
    for axis in axes[len(sweep.rows) :]:
        axis.remove()
    places = sweep.places()
    for axis, panel in zip(axes, sweep.rows, strict=False):
        for line in sweep.series:
            found = [(i, values) for i, p in enumerate(places) if (values := sweep.values(line, panel, p, rows))]
            means = [100 * statistics.fmean(values) for _, values in found]
            spreads = [100 * statistics.stdev(values) if len(values) > 1 else 0 for _, values in found]
            axis.errorbar([i for i, _ in found], means, yerr=spreads, fmt="o-", capsize=3, label=line)
        chance = {row.title: row.chance for row in rows}.get(_at(sweep.rows[panel], places[0]) or "")
        if chance is not None:
            axis.axhline(100 * chance, color="0.4", linestyle=":", label="chance")
        axis.set_title(panel.replace(", ", "\n", 1), fontsize="small")
        axis.set_xticks(range(len(places)), places, fontsize="x-small")
        axis.set(xlabel=sweep.axis, ylabel="%", xlim=(-0.3, len(places) - 0.7))
        axis.xaxis.label.set_size("x-small")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small", framealpha=0.6)
    return save_figure(figure, None if path is None else Path(path))


__all__ = ["Sweep", "format_sweep", "plot_sweep", "read_sweeps"]
