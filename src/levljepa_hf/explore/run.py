"""The curves of training runs, also of one that still trains.

curves = read_curves("runs/photos")  # {"loss": [(20, 1.9), (40, 1.6), ...], ...}
plot_run(["runs/photos", "runs/other"])
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cards import STATE_NAME

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Panels by title: whole names, or with a * what they end with.
PANELS: dict[str, tuple[str, ...]] = {
    "loss": ("loss", "prediction_loss", "contrastive_loss", "multi_view_loss", "eval_loss"),
    "SIGReg": ("sigreg_vision", "sigreg_text", "sigreg_floor"),
    "effective rank": ("effective_rank_vision", "effective_rank_text"),
    "cosine of pairs": ("cosine_matched", "cosine_shuffled"),
    "retrieval": ("eval_text_to_image_R@1", "eval_image_to_text_R@1", "eval_text_to_image_R@10"),
    "probes": ("*top1",),
    "learning rate": ("learning_rate",),
    "gradient norm": ("grad_norm",),
}
LOGARITHMIC = ("SIGReg", "gradient norm")

Curves = dict[str, list[tuple[int, float]]]


def read_curves(folder: str | os.PathLike) -> Curves:
    """What a run has logged, by name: (step, value) in the steps' order. Values that are not finite are left out.

    Args:
        folder: Of a run. The newest of its own `trainer_state.json` and of those in its checkpoints is read, so a run
            that still trains shows what it had logged at its last checkpoint.

    Raises:
        ValueError: if there is none, or it is not whole.
    """
    states = []
    paths = [Path(folder, STATE_NAME), *Path(folder).glob(f"checkpoint-*/{STATE_NAME}")]
    for path in (path for path in paths if path.is_file()):
        try:
            states.append(json.loads(path.read_text("utf-8")))
        except ValueError as error:
            raise ValueError(f"{path} does not parse ({error}): is it being written, or broken?") from error
    if not states:
        raise ValueError(
            f"{folder} has no {STATE_NAME}, nor has a checkpoint in it: name the folder of a training run. One that "
            "still trains has it from its first checkpoint (--save_steps)."
        )
    newest = max(states, key=lambda state: state.get("global_step", 0))
    curves: Curves = {}
    for entry in newest.get("log_history", ()):
        for name, value in entry.items():
            if name not in ("step", "epoch") and isinstance(value, (int, float)) and math.isfinite(value):
                curves.setdefault(name, []).append((entry.get("step", 0), float(value)))
    return curves


def panels_of(names: Sequence[str]) -> dict[str, list[str]]:
    """The panels that have something to show, and the names in each."""
    found: dict[str, list[str]] = {}
    for title, wanted in PANELS.items():
        for name in names:
            if name in wanted or any(one[0] == "*" and name.endswith(one[1:]) for one in wanted):
                found.setdefault(title, []).append(name)
    return found


def plot_run(folders: Sequence[str | os.PathLike]) -> "Figure":
    """A panel for each kind of figure, the runs over one another.

    Args:
        folders: Of runs.

    Raises:
        ValueError: as `read_curves`.
    """
    from matplotlib.figure import Figure

    runs = {Path(folder).name: read_curves(folder) for folder in folders}
    panels = panels_of(list(dict.fromkeys(name for curves in runs.values() for name in curves)))
    columns = min(4, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows), layout="constrained")
    axes: list[Any] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (title, names) in zip(axes, panels.items(), strict=False):
        for run, style in zip(runs, ("-", "--", ":", "-.") * len(runs), strict=False):
            for i, name in enumerate(names):
                if points := runs[run].get(name):
                    label = name if len(runs) == 1 else f"{run}: {name}"
                    axis.plot(*zip(*points, strict=True), style, color=f"C{i}", label=label)
        axis.set(title=title, xlabel="step", yscale="log" if title in LOGARITHMIC else "linear")
        axis.legend(fontsize=6)
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


__all__ = ["PANELS", "panels_of", "plot_run", "read_curves"]
