"""A vote of the nearest neighbours among frozen features, as in DINO (arXiv 2104.14294)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.splits import EvaluationSplit
from ..encoders.encoders import Encoder
from ..options import option, with_field_help
from .classification import (
    check_features,
    class_labels,
    confusion_picture,
    count_images,
    probe_features,
)
from .results import TaskResult
from .task import Task

_CHUNK_ELEMENTS = 2**26  # similarities held at a time: 256 MiB


@with_field_help
@dataclass(frozen=True)
class KNNProtocol:
    """DINO's: class tokens of unit length, cosine similarity, a vote weighted by exp(similarity / 0.07).

    `levljepa evaluate knn` makes options of the fields.
    """

    features: str = option(
        default="cls", help="cls (class token), mean (of the patch tokens) or both, which count alike."
    )
    ks: list[int] = option(default_factory=lambda: [10, 20, 100, 200], help="Numbers of neighbours that vote.")
    temperature: float = option(default=0.07, help="Of the votes: lower, and the nearest count for more.")

    def __post_init__(self) -> None:
        check_features(self.features)
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks={self.ks} must be one or several numbers from 1.")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be above 0.")


class Votes(NamedTuple):
    """How the neighbours of M images voted among K classes."""

    rank: Tensor  # [M], places of the true class behind the first; K where no neighbour is of it
    predicted: Tensor  # [M], the class with the largest vote


@torch.no_grad()
def knn_vote(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    num_classes: int,
    ks: Sequence[int] = KNNProtocol().ks,
    temperature: float = KNNProtocol().temperature,
    chunk_elements: int = _CHUNK_ELEMENTS,
) -> dict[int, Votes]:
    """The vote of the k training images most similar to each test image, weighted by exp(similarity / temperature).

    Of equally similar images the first come first, of classes with equal votes too, and a class that no neighbour
    votes for is not among the answers. Everything runs where `train` is.

    Args:
        train: [N, C] features of unit length.
        train_labels: [N] classes.
        test: [M, C] features of unit length.
        test_labels: [M] classes.
        num_classes: K.
        ks: Numbers of neighbours, at most N.
        temperature: Of the weights.
        chunk_elements: Similarities held at a time.
    """
    device, ks = train.device, sorted(set(ks))
    train_labels = train_labels.to(device)
    chunk_size = max(1, chunk_elements // len(train))
    found: dict[int, list[Votes]] = {k: [] for k in ks}
    for x, y in zip(test.split(chunk_size), test_labels.split(chunk_size), strict=True):
        similarity, neighbours = _nearest(x.to(device) @ train.T, ks[-1])  # [m, max k]
        weights = ((similarity - similarity[:, :1]) / temperature).exp()  # the common factor changes no order
        for k, votes in _tallies(weights, train_labels[neighbours], num_classes, ks):
            found[k].append(Votes(_rank(votes, y.to(device)).cpu(), votes.argmax(dim=1).cpu()))
    return {k: Votes(*map(torch.cat, zip(*chunks, strict=True))) for k, chunks in found.items()}


def _nearest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of [m, N] and where they are, equal ones in the order of the columns."""
    values, indices = similarity.topk(k, dim=1)
    tied = (similarity >= values[:, -1:]).sum(dim=1) > k  # which of the last ones `topk` takes is not defined
    if tied.any():
        values[tied], indices[tied] = (t[:, :k] for t in similarity[tied].sort(dim=1, descending=True, stable=True))
    indices, order = indices.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)


def _tallies(weights: Tensor, labels: Tensor, num_classes: int, ks: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """For each k the votes [m, K] of the first k neighbours; neighbour by neighbour, so that sums have one order."""
    votes = weights.new_zeros(len(weights), num_classes)
    for j in range(ks[-1]):
        votes.scatter_add_(1, labels[:, j : j + 1], weights[:, j : j + 1])
        if j + 1 in ks:
            yield j + 1, votes


def _rank(votes: Tensor, labels: Tensor) -> Tensor:
    """[m] classes ahead of the true one in votes [m, K]; K where the true one has none."""
    own = votes.gather(1, labels[:, None])
    earlier = torch.arange(votes.shape[1], device=votes.device) < labels[:, None]
    ahead = (votes > own) | ((votes == own) & earlier)
    return ahead.sum(dim=1).masked_fill(own[:, 0] == 0, votes.shape[1])


def evaluate_knn(
    encoder: Encoder,
    train: EvaluationSplit,
    test: EvaluationSplit,
    protocol: KNNProtocol | None = None,
    **feature_options: Any,
) -> TaskResult:
    """Top-1 and top-5 accuracy of the vote of the nearest training images, for each k.

    Args:
        encoder: What gives the features.
        train: Images with labels and class names, to vote.
        test: The same, to measure on, with the same class names in the same order.
        protocol: By default DINO's.
        feature_options: Those of `levljepa_hf.encoders.features.extract`.

    Returns:
        `k20_top1`, `k20_top5` and so on. A k above the number of training images is left out and named in the details.

    Raises:
        ValueError: if every k is above that number, splits lack labels, their classes differ, or features are not
            finite.
    """
    protocol = protocol or KNNProtocol()
    y_train, y_test = class_labels(train, test)
    num_classes = len(train.class_names)
    ks = sorted({k for k in protocol.ks if k <= len(y_train)})
    if not ks:
        raise ValueError(
            f"ks={protocol.ks} are all above the {len(y_train)} training images of {train.name}: give a smaller one."
        )
    x_train, x_test = (
        F.normalize(probe_features(encoder, split, protocol.features, **feature_options), dim=1)  # halves to a whole
        for split in (train, test)
    )
    votes = knn_vote(x_train.to(encoder.device), y_train, x_test, y_test, num_classes, ks, protocol.temperature)
    tops = [top for top in (1, 5) if top <= num_classes]
    metrics = {f"k{k}_top{top}": (votes[k].rank < top).double().mean().item() for k in ks for top in tops}
    drawn = 20 if 20 in ks else ks[0]
    return TaskResult(
        runs=[metrics],
        details={
            **count_images(train, {"test": test}),
            "ks_above_the_number_of_training_images": sorted(set(protocol.ks) - set(ks)),
            "confusion_k": drawn,
        },
        chance={f"k{k}_top{top}": top / num_classes for k in ks for top in tops},
        pictures={"confusion": confusion_picture(y_test, votes[drawn].predicted, test)},
    )


TASK = Task(
    help="nearest neighbours among frozen features",
    protocol=KNNProtocol,
    run=evaluate_knn,
    reads="labels",
    headlines={"top-1": ("k20_top1", "k*_top1")},
    seeds=(),
    probe="knn",
    probe_constants={"ks": [20]},
    position=40,
)


__all__ = ["KNNProtocol", "Votes", "evaluate_knn", "knn_vote"]
