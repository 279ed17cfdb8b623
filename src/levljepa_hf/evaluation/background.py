"""Robustness to backgrounds on ImageNet-9: what a probe of the foreground's class loses when backgrounds are mixed.

The backgrounds challenge (Xiao et al., arXiv 2006.09994) puts the foregrounds of its original images on backgrounds of
other images: of the same class (Mixed-Same), so that the background still tells the class, or of a random one
(Mixed-Rand). LeVLJEPA's paper (arXiv 2607.00784) trains a linear probe on Original and reads the drops.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.splits import EvaluationSplit
from ..encoders.encoders import Encoder
from ..options import option, with_field_help
from .classification import count_images
from .linear_probe import LinearProbeProtocol, run_linear_probes
from .pictures import plot_bars
from .results import TaskResult
from .task import Task
from .zero_shot import top_k_accuracy

VARIANTS = ("original", "mixed_same", "mixed_rand")


@with_field_help
@dataclass(frozen=True)
class BackgroundProtocol(LinearProbeProtocol):
    """The paper's: its linear probe, without the bias.

    `levljepa evaluate background` makes options of the fields.
    """

    bias: bool = option(default=False, help="Whether the linear layer has a bias.")


def evaluate_background(
    encoder: Encoder,
    train: EvaluationSplit,
    tests: Mapping[str, EvaluationSplit],
    protocol: BackgroundProtocol | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    **feature_options: Any,
) -> TaskResult:
    """Top-1 accuracy of a linear probe of original images, on original ones and on those with other backgrounds.

    Args:
        encoder: What gives the features.
        train: Original images with labels and class names, to learn from.
        tests: By the names `original`, `mixed_same` and `mixed_rand`, images of the same classes.
        protocol: By default the paper's.
        seeds: A run for each.
        feature_options: Those of `levljepa_hf.encoders.features.extract`.

    Returns:
        `original_top1`, `mixed_same_top1`, `mixed_rand_top1`; `mixed_same_drop` and `mixed_rand_drop`, what is lost
        against the original images; `bg_gap`, Mixed-Same minus Mixed-Rand: what the backgrounds' class gives. All are
        fractions; the paper's are in points.

    Raises:
        ValueError: if the test splits are others than these three, or as
            `levljepa_hf.evaluation.linear_probe.run_linear_probes`.
    """
    if set(tests) != set(VARIANTS):
        raise ValueError(f"The test splits are {', '.join(tests) or 'none'}: give {', '.join(VARIANTS)}.")
    tests = {name: tests[name] for name in VARIANTS}
    runs, labels = run_linear_probes(encoder, train, tests, protocol or BackgroundProtocol(), seeds, **feature_options)
    top1 = [{name: top_k_accuracy(run.scores[name], labels[name], [1])["top1"] for name in tests} for run in runs]
    chance = 1 / len(train.class_names)
    result = TaskResult(
        runs=[_drops(one) for one in top1],
        details={**count_images(train, tests), "runs": [run.details for run in runs]},
        chance={f"{name}_top1": chance for name in tests},
    )
    result.pictures["accuracies"] = lambda path=None: _plot(result, chance, path)
    return result


def _drops(top1: Mapping[str, float]) -> dict[str, float]:
    return {
        **{f"{name}_top1": value for name, value in top1.items()},
        "mixed_same_drop": top1["original"] - top1["mixed_same"],
        "mixed_rand_drop": top1["original"] - top1["mixed_rand"],
        "bg_gap": top1["mixed_same"] - top1["mixed_rand"],
    }


def _plot(result: TaskResult, chance: float, path: Any) -> Any:
    names = [f"{name}_top1" for name in VARIANTS]
    return plot_bars(
        [name.replace("_", " ") for name in VARIANTS],
        [result.metrics[name] for name in names],
        path,
        errors=[result.spread[name] for name in names] if result.spread else None,
        chance=chance,
        label="top-1 accuracy",
    )


TASK = Task(
    help="a probe's drop when backgrounds are mixed (ImageNet-9)",
    protocol=BackgroundProtocol,
    run=evaluate_background,
    reads="labels",
    headlines={
        "top-1": ("original_top1",),
        "drop, Mixed-Same": ("mixed_same_drop",),
        "drop, Mixed-Rand": ("mixed_rand_drop",),
    },
    tests=("original", "mixed_same", "mixed_rand"),
    scenes="backgrounds",
    position=60,
)


__all__ = ["BackgroundProtocol", "evaluate_background"]
