"""`levljepa plot`: the curves of one or several runs as a picture; and their logs, read for any other use.

run = read_run("runs/photos")  # finished, or still going
steps, losses = run.series("loss")
figure = plot_runs([run, read_run("runs/other")], smooth=0.6)
"""

import fnmatch
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.task import declarations
from ..options import Command, did_you_mean, option
from .log_file import LOG_NAME

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STATE_NAME = "trainer_state.json"
# The panels, from left to right and from above: title, and the figures in it, as patterns of their names.
PANELS = {
    "Loss and terms": (
        "loss",
        "prediction_loss",
        "contrastive_loss",
        "multi_view_loss",
        "eval_loss",
        "eval_*[!_]_loss",
    ),
    "SIGReg": ("sigreg_vision", "sigreg_text", "sigreg_floor", "sigreg_ceiling"),
    "Effective rank": ("effective_rank_vision", "effective_rank_text"),
    "Unexplained variance": ("unexplained_vision", "unexplained_text"),
    "Cosine of pairs": ("cosine_matched", "cosine_shuffled"),
    "Retrieval": ("eval_*_R@1", "eval_*_R@10", "probe_retrieval_*_R@1", "probe_retrieval_*_R@10"),
    "Zero-shot and probes": (
        "probe_*_top1",
        *(  # the head figures of the others, but for recalls, which have their panel
            f"probe_{task.probe}_{name}"
            for task in declarations().values()
            if task.probe and task.reads != "captions"
            for names in task.headlines.values()
            for name in names
        ),
    ),
    "Health warnings": ("health_warnings",),
    "Samples a second": ("samples_per_second",),
    "Waiting for data, utilisation": ("data_wait", "mfu"),
    "Samples drawn, by dataset": ("samples/*",),
    "Learning rate": ("learning_rate",),
    "Norm of the gradient": ("grad_norm",),
}
LOGARITHMIC = ("Loss and terms", "SIGReg", "Norm of the gradient")  # where they span more than a factor of 20
_REFERENCES = ("sigreg_floor", "sigreg_ceiling")  # drawn thin and grey
_SMOOTH_ALREADY = ("learning_rate", "health_warnings")
_OTHER = "Other terms"
_NO_TERMS = ("epoch", "step", "total_flos", "skipped_*", "eval_*", "probe_*")
_STYLES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (6, 3)))

_EXAMPLE = """examples:
  levljepa plot runs/demo
  levljepa plot runs/demo runs/photos --smooth 0.6 --output runs/both.png
  levljepa plot runs/photos --figures loss "effective_rank_*" learning_rate
"""


# ----------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class RunLog:
    """What a run has logged so far.

    Args:
        name: What it is called: its folder's name.
        folder: Where it is.
        entries: The lines of the log, oldest first; each has a `step`.
        max_steps: The length of the run, where it is known.
    """

    name: str
    folder: Path
    entries: list[dict[str, Any]]
    max_steps: int | None = None

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return max((int(entry["step"]) for entry in self.entries), default=0)

    def names(self) -> list[str]:
        """The figures in the log, in the order in which they come up."""
        found = (name for entry in self.entries for name, value in entry.items() if _is_number(value))
        return [name for name in dict.fromkeys(found) if name != "step"]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a figure; values that are not finite are left out."""
        points = [(entry["step"], entry[name]) for entry in self.entries if _is_number(entry.get(name))]
        points = [(int(step), float(value)) for step, value in points if math.isfinite(value)]
        return [step for step, _ in points], [value for _, value in points]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_run(folder: str | os.PathLike) -> RunLog:
    """The log of a run: of `log.jsonl`, which grows with it, of its `trainer_state.json`, or of its newest checkpoint.

    Args:
        folder: The output folder of a run, or one of its checkpoints.

    Raises:
        ValueError: if there is no such folder, or it holds no log.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the output folder of a run.")
    logs = list(_logs(folder))
    if not logs:
        below = sorted({path.parent for name in (LOG_NAME, _STATE_NAME) for path in folder.glob(f"*/{name}")})
        hint = f" There are runs below it: {', '.join(map(str, below[:5]))}." if below else ""
        raise ValueError(
            f"{folder} holds no log of a run ({LOG_NAME}, {_STATE_NAME}, or a checkpoint with one): give the output "
            f"folder of a training.{hint}"
        )
    run = max(logs, key=lambda log: log.step)  # the first of equals
    lengths = [log.max_steps for log in logs if log.max_steps]
    return RunLog(run.name, folder, run.entries, max(lengths, default=None))


def _logs(folder: Path) -> Iterator[RunLog]:
    name = folder.resolve().name
    states = [folder / _STATE_NAME, *folder.glob(f"checkpoint-*/{_STATE_NAME}")]
    for path in states:
        try:
            state = json.loads(path.read_text("utf-8"))
            entries = [entry for entry in state["log_history"] if "step" in entry]
        except (OSError, ValueError, KeyError, TypeError):  # not there, or half written by a run that was killed
            continue
        yield RunLog(name, folder, entries, state.get("max_steps"))
    if (folder / LOG_NAME).is_file():
        entries = []
        for line in (folder / LOG_NAME).read_text("utf-8").splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:  # the line that is being written
                break
        if entries:
            yield RunLog(name, folder, [entry for entry in entries if "step" in entry])


# ----------------------------------------------------------------------------------------------------------- drawing


def plot_runs(
    runs: Sequence[RunLog],
    path: str | os.PathLike | None = None,
    figures: Sequence[str] | None = None,
    smooth: float = 0.0,
) -> "Figure":
    """The curves of runs over their steps, a panel for each kind of figure that they have (`PANELS`).

    Of one run the figures of a panel differ by colour; of several, runs differ by colour and figures by line style.

    Args:
        runs: Of `read_run`. Runs of the same name are told apart by their folders.
        path: Where to write the picture, if anywhere.
        figures: Names of figures or patterns of them (`effective_rank_*`), a panel for each; by default `PANELS`.
        smooth: Weight of the past in an exponential mean, from 0 to below 1, of what each line logs; the curves
            themselves stay, faintly.

    Raises:
        ValueError: if there are no runs, none of them has a figure that is asked for, or `smooth` is out of range.
    """
    from ..figures import new_figure, save_figure  # matplotlib is needed for drawing alone

    if not runs:
        raise ValueError("There is no run to draw: give one or several.")
    if not 0 <= smooth < 1:
        raise ValueError(f"smooth={smooth} must be between 0 and 1, and below 1.")
    panels = panels_of(runs, figures)
    columns = min(len(panels), 4 if len(panels) > 6 else 3)
    figure, axes = new_figure(len(panels), columns=columns, side=3.6, aspect=1.35)
    labels = _labels(runs)
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, (title, names) in zip(axes, panels.items(), strict=False):
        _draw_panel(axis, title, names, dict(zip(labels, runs, strict=True)), smooth)
    if len(runs) > 1:
        import matplotlib.lines

        lines = [matplotlib.lines.Line2D((), (), color=f"C{i % 10}", label=label) for i, label in enumerate(labels)]
        figure.legend(handles=lines, loc="outside upper center", ncols=min(len(lines), 6), frameon=False)
    return save_figure(figure, None if path is None else Path(path))


def _labels(runs: Sequence[RunLog]) -> list[str]:
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else str(run.folder) for run in runs]


def panels_of(runs: Sequence[RunLog], figures: Sequence[str] | None = None) -> dict[str, list[str]]:
    """The names of the figures in each panel; panels without any are left out.

    Args:
        runs: The logs.
        figures: Patterns of names, a panel for each; by default those of `PANELS`, and what else was logged.

    Raises:
        ValueError: if no run has logged a figure that a pattern names.
    """
    known = list(dict.fromkeys(name for run in runs for name in run.names() if run.series(name)[0]))
    if figures is not None:
        panels = {pattern: fnmatch.filter(known, pattern) for pattern in figures}
        for pattern, found in panels.items():
            if not found:
                hint = did_you_mean(pattern, known)
                raise ValueError(f"No run has logged {pattern!r}.{hint} There are {', '.join(sorted(known))}.")
        return panels
    panels, placed = {}, set()
    for title, patterns in PANELS.items():
        found = [name for pattern in patterns for name in fnmatch.filter(known, pattern)]
        panels[title] = list(dict.fromkeys(found))
        placed.update(found)
    terms = {name for run in runs for entry in run.entries if "loss" in entry for name in entry}
    rest = [name for name in known if name in terms - placed]
    panels[_OTHER] = [name for name in rest if not any(fnmatch.fnmatch(name, pattern) for pattern in _NO_TERMS)]
    if not any(value for run in runs for value in run.series("health_warnings")[1]):
        panels["Health warnings"] = []
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        raise ValueError(
            f"There is nothing to draw: {', '.join(map(str, (run.folder for run in runs)))} logged nothing."
        )
    return panels


def _draw_panel(axis: "Axes", title: str, names: Sequence[str], runs: dict[str, RunLog], smooth: float) -> None:
    drawn, several = [], len(runs) > 1
    shown = [name for name in names if name not in _REFERENCES]
    for i, run in enumerate(runs.values()):
        for name in names:
            steps, values = run.series(name)
            if not steps:
                continue
            if name in _REFERENCES:
                axis.plot(steps, values, color="0.6", linewidth=0.8, linestyle=":" if "ceiling" in name else "--")
                continue
            place = shown.index(name)
            color, style = (f"C{i % 10}", _STYLES[place % len(_STYLES)]) if several else (f"C{place % 10}", "-")
            mark = "." if len(steps) < 12 else None
            curve = values
            if smooth and name not in _SMOOTH_ALREADY and not name.startswith(("eval_", "probe_")):
                axis.plot(steps, values, color=color, linestyle=style, alpha=0.25, linewidth=0.8)
                curve = _smoothed(values, smooth)
            axis.plot(steps, curve, color=color, linestyle=style, marker=mark, linewidth=1.3)
            drawn += values
    spread = title in (*LOGARITHMIC, *names) and min(drawn, default=0) > 0 and max(drawn) > 20 * min(drawn)
    axis.set(title=title, xlabel="step", yscale="log" if spread else "linear")
    axis.grid(alpha=0.3)
    _add_names(axis, names, shown, several)


def _add_names(axis: "Axes", names: Sequence[str], shown: Sequence[str], several: bool) -> None:
    """The legend of a panel: a line for each figure. The runs' colours have a legend of their own."""
    import matplotlib.lines

    lines = []
    for name in names:
        look = {"color": "0.6", "linestyle": ":" if "ceiling" in name else "--"}
        if name in shown:
            place = shown.index(name)
            look = (
                {"color": "0.2", "linestyle": _STYLES[place % len(_STYLES)]}
                if several
                else {"color": f"C{place % 10}"}
            )
        lines.append(matplotlib.lines.Line2D((), (), label=name, **look))
    if len(lines) > 1 or names[0].replace("_", " ") != axis.get_title().lower():
        axis.legend(handles=lines, fontsize="x-small", framealpha=0.6)


def _smoothed(values: Sequence[float], weight: float) -> list[float]:
    """An exponential mean that does not lean on its beginning: each value weighs `weight` of the one after it."""
    smoothed, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + value, weight * norm + 1
        smoothed.append(total / norm)
    return smoothed


# ----------------------------------------------------------------------------------------------------------- command


@dataclass
class PlotArguments:
    """What is drawn, and where it goes."""

    runs: list[str] = option(
        help="Output folders of trainings, or checkpoints in them.", positional=True, metavar="RUN", kind="folder"
    )
    output: str | None = option(None, help="The picture; by default curves.png in the folder of the first run.")
    figures: list[str] | None = option(None, help="A panel for each of these figures; * stands for anything.")
    smooth: float = option(0.0, help="Weight of the past in a running mean, 0 to 1.")


COMMAND = Command(
    "levljepa plot",
    "Draw the curves of one or several runs, finished or still going, as one picture.",
    (PlotArguments,),
    more=_EXAMPLE,
    extra="eval",
    models=False,
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `levljepa plot`. Returns the exit status."""
    return COMMAND.run(argv, _plot)


def _plot(arguments: PlotArguments) -> None:
    runs = [read_run(folder) for folder in arguments.runs]
    output = Path(arguments.output or Path(arguments.runs[0], "curves.png"))
    output.parent.mkdir(parents=True, exist_ok=True)
    plot_runs(runs, output, arguments.figures, arguments.smooth)
    for run in runs:
        print(f"{run.folder}: {run.step}{f' of {run.max_steps}' if run.max_steps else ''} steps")
    print(output)


__all__ = ["COMMAND", "LOGARITHMIC", "PANELS", "PlotArguments", "RunLog", "main", "panels_of", "plot_runs", "read_run"]
