"""What every picture shares: a figure of the house style, its file, and the losses of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS_TERMS = ("loss", "prediction_loss", "sigreg_vision", "sigreg_text")


def plot_losses(
    log_history: Sequence[dict[str, Any]], path: str | Path | None = None, terms: Sequence[str] = LOSS_TERMS
) -> "Figure":
    """A panel for each loss term over the steps, logarithmic; `log_history` is `trainer.state.log_history`."""
    figure, axes = new_figure(len(terms), columns=len(terms), side=2.8)
    for axis, term in zip(axes, terms, strict=True):
        points = [(entry["step"], entry[term]) for entry in log_history if term in entry and "step" in entry]
        axis.plot(*zip(*points, strict=True) if points else ((), ()), color="#1f5fa8")
        axis.set(title=term, xlabel="step", yscale="log" if points and min(y for _, y in points) > 0 else "linear")
        axis.grid(alpha=0.3)
    return save_figure(figure, path)


def new_figure(
    num_axes: int, columns: int, side: float, aspect: float = 1.0, title: float = 0.25
) -> tuple["Figure", list[Any]]:
    """A figure and its axes in reading order, `side` inches high, `aspect` times as wide, with room for a title."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Pictures need matplotlib. Run: pip install "levljepa_hf[eval]"') from error
    rows = -(-num_axes // columns)
    figure = Figure(figsize=(side * aspect * columns, (side + title) * rows), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display, whatever backend the process has
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def save_figure(figure: "Figure", path: str | Path | None, axes_off: bool = False) -> "Figure":
    for axis in figure.axes if axes_off else ():
        axis.set_axis_off()
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    return figure


__all__ = ["LOSS_TERMS", "plot_losses"]
