"""The curves of training runs, also of one that still trains, as `levljepa_hf.training.curves` reads and draws them.

plot_run(["runs/photos", "runs/other"])
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..training.curves import LOGARITHMIC, RunLog, panels_of, plot_runs, read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def read_curves(folders: Sequence[str | os.PathLike]) -> dict[str, Any]:
    """What runs have logged so far, as plain values.

    Args:
        folders: Of runs.

    Returns:
        `runs`, of each its `name`, `step`, `max_steps` and `curves` (steps and values by name), or its `name` and
        `error`; and `panels`, by title the `names` in it and whether it is `logarithmic`.
    """
    found: list[dict[str, Any]] = []
    logs: list[RunLog] = []
    for folder in folders:
        try:
            log = read_run(folder)
        except (ValueError, OSError) as error:
            found.append({"name": Path(folder).name, "error": str(error)})
            continue
        logs.append(log)
        curves = {name: log.series(name) for name in log.names()}
        curves = {name: series for name, series in curves.items() if series[0]}
        found.append({"name": log.name, "step": log.step, "max_steps": log.max_steps, "curves": curves})
    try:
        panels = panels_of(logs, None)
    except ValueError:  # nothing logged yet
        panels = {}
    titles = {title: {"names": names, "logarithmic": title in LOGARITHMIC[1:]} for title, names in panels.items()}
    return {"runs": found, "panels": titles}


def plot_run(folders: Sequence[str | os.PathLike]) -> "Figure":
    """A panel for each kind of figure, the runs over one another.

    Args:
        folders: Of runs.

    Raises:
        ValueError: if one holds no log of a run.
    """
    return plot_runs([read_run(folder) for folder in folders])


__all__ = ["plot_run", "read_curves"]
