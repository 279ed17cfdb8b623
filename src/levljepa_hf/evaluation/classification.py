"""What the classification tasks share: labels, features, metrics, chance."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import recall_score
from torch import Tensor

from ..data.splits import EvaluationSplit, check_same_classes
from ..encoders.encoders import Encoder
from ..encoders.features import pooled_features
from .pictures import plot_confusion
from .zero_shot import top_k_accuracy

FEATURES = {"cls": ("cls",), "mean": ("mean",), "both": ("cls", "mean")}


def check_features(features: str) -> None:
    """Raises `ValueError` if they are none of `FEATURES`."""
    if features not in FEATURES:
        raise ValueError(f"features={features!r} is unknown: use one of {', '.join(FEATURES)}.")


def class_labels(train: EvaluationSplit, *tests: EvaluationSplit) -> list[Tensor]:
    """The labels [N] of a training split and of test splits, which must name the same classes in the same order.

    Raises:
        ValueError: if a split has no labels or class names, labels out of their range or not one for each image, or
            other classes than the training split.
    """
    names = train.require("class_names")
    found = []
    for split in (train, *tests):
        check_same_classes(train, split)
        labels = torch.as_tensor(split.require("labels"), dtype=torch.long)
        if len(labels) != len(split.images):
            raise ValueError(f"{split.name} has {len(labels)} labels for {len(split.images)} images: give one each.")
        if len(labels) == 0:
            raise ValueError(f"{split.name} has no images: choose another split, or more samples.")
        if labels.min() < 0 or labels.max() >= len(names):
            raise ValueError(
                f"The labels of {split.name} run from {labels.min()} to {labels.max()}, and it has {len(names)} "
                "classes: choose a split whose labels are published, and give the class names in the labels' order."
            )
        found.append(labels)
    return found


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises `ValueError` if there are none."""
    if not seeds:
        raise ValueError("There are no seeds, and each makes a run: give one or several.")


def count_images(train: EvaluationSplit, tests: Mapping[str, EvaluationSplit]) -> dict[str, Any]:
    """Numbers of images and classes, and of what cannot be learned: classes that the training split does not show."""
    learned = set(torch.as_tensor(train.labels).tolist())
    unseen = {
        name: sum(label not in learned for label in torch.as_tensor(test.labels).tolist())
        for name, test in tests.items()
    }
    return {
        "num_train": len(train.images),
        "num_test": {name: len(test.images) for name, test in tests.items()},
        "num_classes": len(train.class_names),
        "classes_without_training_images": len(train.class_names) - len(learned),
        "test_images_of_those_classes": unseen,
    }


def classification_metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """`top1`, `top5` (of five classes or more) and `mean_per_class`, over the classes that the labels name.

    Args:
        scores: [N, K].
        labels: [N].
    """
    y_true, y_pred = labels.numpy(), scores.argmax(dim=1).numpy()
    mean_per_class = recall_score(y_true, y_pred, labels=labels.unique().numpy(), average="macro")
    return {**top_k_accuracy(scores, labels), "mean_per_class": float(mean_per_class)}


def classification_chance(num_classes: int) -> dict[str, float]:
    """What guessing scores in `classification_metrics`."""
    top5 = {"top5": 5 / num_classes} if num_classes >= 5 else {}
    return {"top1": 1 / num_classes, **top5, "mean_per_class": 1 / num_classes}


def probe_features(encoder: Encoder, split: EvaluationSplit, features: str = "cls", **feature_options: Any) -> Tensor:
    """Frozen features of unit length, [N, C] on the CPU in float32: of "both", [N, 2 C], each half of unit length."""
    pooled = pooled_features(encoder, split.images, **{"transform": split.transform, **feature_options})
    return torch.cat([F.normalize(pooled[name], dim=1) for name in FEATURES[features]], dim=1)


def confusion_picture(labels: Tensor, predicted: Tensor, split: EvaluationSplit) -> Callable[..., Any]:
    """What draws the confusion of classes [N] with those predicted, for `TaskResult.pictures`."""
    return lambda path=None: plot_confusion(labels, predicted, split.class_names, path)


__all__ = [
    "FEATURES",
    "check_features",
    "check_seeds",
    "class_labels",
    "classification_chance",
    "classification_metrics",
    "confusion_picture",
    "count_images",
    "probe_features",
]
