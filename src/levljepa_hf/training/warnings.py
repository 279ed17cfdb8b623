"""Collapse and divergence, said in words while a run is going on.

Each health line of the log (`health_steps`) is judged when the warm-up is over, modality by modality:

- `effective_rank_*` below 10 % of what the batch and the width allow, or below half of its peak: the embeddings keep
  to few directions. (A new model's rank is high, falls while the towers begin to learn, and rises again: the peak
  counts from the end of the warm-up.)
- `sigreg_*` more than halfway from its floor, N(0, I), to its ceiling, a single point, or four times as far as it has
  been (and a fifth of the way): the embeddings shrink, blow up, drift or clump. As a share of that way it does not
  depend on the batch, as SIGReg itself does.
- `unexplained_*` above 2: a prediction with its target's spread and nothing else to do with it would leave 2, and
  the target's mean 1. Above, the predictor runs away. Not judged under the cosine loss, which leaves lengths free.

A state that lasts for two lines is told once, and its end is told too. `health_warnings` in the log is how many there
are. What a model does not log (SIGReg, predictions) is not judged.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MODALITIES = {"vision": "image", "text": "text"}
_RECOVERED = 0.8  # how far within its limit, as a share, a figure is when a state has ended


@dataclass(frozen=True)
class HealthLimits:
    """From where on a run is warned of.

    Args:
        rank: Lowest effective rank, as a share of what the batch and the embeddings' width allow.
        rank_fall: The same, as a share of its peak since the warm-up.
        sigreg: Highest SIGReg, as a share of the way from its floor to its ceiling.
        sigreg_rise: The same, as a multiple of its lowest since the warm-up...
        sigreg_least: ...which counts from here on.
        unexplained: Highest mean squared error of a prediction, as a multiple of its target's variance.
        patience: Lines in a row that make a state.
    """

    rank: float = 0.1
    rank_fall: float = 0.5
    sigreg: float = 0.5
    sigreg_rise: float = 4.0
    sigreg_least: float = 0.2
    unexplained: float = 2.0
    patience: int = 2


@dataclass(frozen=True)
class _Reading:
    """A figure and how near it is to its limit, above 1 beyond it."""

    severity: float
    figure: str  # in words, with value and limit
    meaning: str
    advice: str


class HealthMonitor:
    """Judges the lines of a log.

        monitor = HealthMonitor(max_rank=64, warmup_steps=100)
        for message in monitor.check(logs, step):
            print(message)

    Args:
        max_rank: The highest effective rank there can be: the smaller of the batch's rows less one, and D.
        warmup_steps: Lines up to this step are not judged.
        judge_predictions: Whether `unexplained_*` is to be judged.
        limits: By default those of `HealthLimits`.
    """

    def __init__(
        self,
        max_rank: int,
        warmup_steps: int = 0,
        judge_predictions: bool = True,
        limits: HealthLimits | None = None,
    ) -> None:
        self.max_rank, self.warmup_steps, self.judge_predictions = max_rank, warmup_steps, judge_predictions
        self.limits = limits or HealthLimits()
        self._best: dict[str, float] = {}  # the highest rank and the lowest SIGReg of each modality
        self._lines: dict[tuple[str, str], int] = {}  # in a row, beyond a limit
        self._states: set[tuple[str, str]] = set()

    @property
    def num_states(self) -> int:
        """How many states there are that were warned of and have not ended."""
        return len(self._states)

    def check(self, logs: Mapping[str, Any], step: int) -> list[str]:
        """What is new in this line: a message for each state that begins or ends."""
        if step <= self.warmup_steps:
            return []
        messages = []
        for modality in _MODALITIES:
            for kind, read in (("rank", self._rank), ("sigreg", self._sigreg), ("prediction", self._prediction)):
                reading = read(logs, modality)
                if reading is not None:
                    messages += self._judge((kind, modality), reading, step)
        return messages

    def _judge(self, state: tuple[str, str], reading: _Reading, step: int) -> list[str]:
        self._lines[state] = self._lines.get(state, 0) + 1 if reading.severity > 1 else 0
        if state not in self._states and self._lines[state] >= self.limits.patience:
            self._states.add(state)
            return [f"Step {step}: {reading.figure}. {reading.meaning} {reading.advice}"]
        if state in self._states and reading.severity < _RECOVERED:
            self._states.remove(state)
            return [f"Step {step}: {reading.figure}. It has recovered."]
        return []

    def _rank(self, logs: Mapping[str, Any], modality: str) -> _Reading | None:
        name, what = f"effective_rank_{modality}", _MODALITIES[modality]
        if name not in logs:
            return None
        rank = 0.0 if math.isnan(logs[name]) else logs[name]  # of embeddings that are all equal
        peak = self._best[name] = max(self._best.get(name, 0.0), rank)
        limit = max(self.limits.rank * self.max_rank, self.limits.rank_fall * peak)
        advice = "Lower learning_rate, or lengthen warmup_steps"
        if f"sigreg_{modality}" in logs:
            advice += f"; or raise sigreg_{modality}_weight or sigreg_sample_size_scale"
        return _Reading(
            limit / max(rank, 1e-9),
            f"{name} is {rank:.3g} of at most {self.max_rank} (peak {peak:.3g}; warned below {limit:.3g})",
            f"The {what} embeddings collapse to few directions.",
            f"{advice}; and look whether the {what}s of a batch differ.",
        )

    def _sigreg(self, logs: Mapping[str, Any], modality: str) -> _Reading | None:
        name, what = f"sigreg_{modality}", _MODALITIES[modality]
        if not {name, "sigreg_floor", "sigreg_ceiling"} <= logs.keys():
            return None
        floor, ceiling = logs["sigreg_floor"], logs["sigreg_ceiling"]
        share = (logs[name] - floor) / (ceiling - floor)
        lowest = self._best[name] = min(self._best.get(name, math.inf), share)
        limit = min(self.limits.sigreg, max(self.limits.sigreg_least, self.limits.sigreg_rise * lowest))
        return _Reading(
            share / limit,
            f"{name} is {logs[name]:.3g}, {share:.0%} of the way from {floor:.3g} (a Gaussian) to {ceiling:.3g} (one "
            f"point; warned from {limit:.0%})",
            f"The {what} embeddings shrink, blow up, drift or clump.",
            f"Raise sigreg_{modality}_weight or sigreg_sample_size_scale, or lower learning_rate.",
        )

    def _prediction(self, logs: Mapping[str, Any], modality: str) -> _Reading | None:
        name = f"unexplained_{modality}"
        if name not in logs or not self.judge_predictions:
            return None
        other = "text" if modality == "vision" else "vision"
        error = math.inf if math.isnan(logs[name]) else logs[name]
        return _Reading(
            error / self.limits.unexplained,
            f"{name} is {error:.3g} (1 is what predicting the mean leaves; warned from {self.limits.unexplained:g})",
            f"The {other}_predictor diverges, or its target, the {_MODALITIES[modality]} embeddings, has shrunk.",
            f"Lower learning_rate or max_grad_norm, or lengthen warmup_steps; if sigreg_{modality} is high too, raise "
            "its weight.",
        )


__all__ = ["HealthLimits", "HealthMonitor"]
