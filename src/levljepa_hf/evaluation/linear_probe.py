"""How well a linear layer tells classes apart in frozen features.

    result = evaluate_linear_probe(encoder, train, test)  # the paper's protocol, three runs
    result.metrics["top1"]

The linear probe is the paper's (arXiv 2607.00784): the class token after the final norm, without heads, brought to
unit length and standardised per dimension, then one linear layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ..data.splits import EvaluationSplit
from ..encoders.encoders import Encoder
from ..options import option, with_field_help
from .classification import (
    check_features,
    check_seeds,
    class_labels,
    classification_chance,
    classification_metrics,
    confusion_picture,
    count_images,
    probe_features,
)
from .results import TaskResult
from .task import Task

_CHUNK_ROWS = 4096  # images scored at a time


@with_field_help
@dataclass(frozen=True)
class LinearProbeProtocol:
    """The paper's: AdamW, learning rate 0.1, weight decay 1e-4, batches of 4096, 50 epochs, a constant learning rate.

    The decay is next to no penalty. With many images for the features' width the probe is logistic regression to 0.1
    point; with few, scikit-learn's default penalty (C = 1) scores 1 to 2 points more (2000 images, 64 dimensions), and
    so may a lower learning rate. Compare encoders by one protocol.

    `levljepa evaluate linear-probe` makes options of the fields.
    """

    features: str = option(
        default="cls", help="cls (class token), mean (of the patch tokens) or both; each is brought to unit length."
    )
    learning_rates: list[float] = option(
        default_factory=lambda: [0.1], help="One, or several to choose from on a held-out part of the training images."
    )
    weight_decay: float = option(default=1e-4, help="Of AdamW.")
    batch_size: int = option(default=4096, help="Images in a step.")
    epochs: int = option(default=50, help="Passes over the training images.")
    bias: bool = option(default=True, help="Whether the linear layer has a bias.")
    held_out: float = option(
        default=0.1, help="Share of each class's training images on which a learning rate is chosen."
    )

    def __post_init__(self) -> None:
        check_features(self.features)
        if not self.learning_rates or not all(rate > 0 for rate in self.learning_rates):
            raise ValueError(f"learning_rates={self.learning_rates} must be one or several numbers above 0.")
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise ValueError(f"learning_rates={self.learning_rates} names one twice: give each once.")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay} must be 0 or more.")
        if self.batch_size < 1 or self.epochs < 1:
            raise ValueError(f"batch_size={self.batch_size} and epochs={self.epochs} must be at least 1.")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} must be a share between 0 and 1.")


@dataclass(frozen=True)
class LinearProbes:
    """Linear classifiers of K classes on standardised features, one for each of R learning rates."""

    mean: Tensor  # [C], of the training features
    std: Tensor  # [C]
    weights: list[Tensor]  # R of [K, C]
    biases: list[Tensor]  # R of [K], or none

    def scores(self, features: Tensor, index: int = 0) -> Tensor:
        """Logits [N, K] on the CPU, of features [N, C], from the classifier of the learning rate `index`."""
        return torch.cat([logits.cpu() for logits in self._logits(features, index)])

    def top1(self, features: Tensor, labels: Tensor, index: int = 0) -> float:
        """Accuracy on features [N, C] of classes [N]; holds no logits of all of them."""
        predicted = torch.cat([logits.argmax(dim=1).cpu() for logits in self._logits(features, index)])
        return (predicted == labels).double().mean().item()

    @torch.no_grad()
    def _logits(self, features: Tensor, index: int) -> Iterator[Tensor]:
        bias = self.biases[index] if self.biases else None
        for chunk in features.split(_CHUNK_ROWS):
            yield F.linear(self.standardized(chunk), self.weights[index], bias)

    def standardized(self, features: Tensor) -> Tensor:
        """Features [n, C] with the mean and the standard deviation of the training features taken out."""
        return (features.to(self.mean.device, non_blocking=True) - self.mean) / self.std


def train_linear_probes(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    protocol: LinearProbeProtocol,
    seed: int = 0,
    device: str | torch.device = "cpu",
    show_progress: bool = True,
) -> LinearProbes:
    """Trains a linear classifier at each learning rate, all in one pass over the data.

    They start from the same weights and see the same batches, and none meets another's gradient: each becomes what it
    would become alone. The features move to the device once, where they fit into half of what is free.

    Args:
        features: [N, C] float32.
        labels: [N] classes, integers below `num_classes`.
        num_classes: K.
        protocol: Constants of the optimisation.
        seed: Of the first weights and of the order of the samples.
        device: Where it is trained.
        show_progress: Whether a bar shows the epochs.
    """
    device = torch.device(device)
    generator = torch.Generator().manual_seed(seed)
    bound = features.shape[1] ** -0.5  # as `torch.nn.Linear`
    weight = torch.empty(num_classes, features.shape[1]).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(num_classes).uniform_(-bound, bound, generator=generator)

    std, mean = torch.std_mean(features, dim=0, correction=0)
    rates = protocol.learning_rates
    weights = [weight.to(device, copy=True).requires_grad_() for _ in rates]
    biases = [bias.to(device, copy=True).requires_grad_() for _ in rates] if protocol.bias else []
    probes = LinearProbes(mean.to(device), std.clamp(min=1e-8).to(device), weights, biases)
    groups = [{"params": [weights[i], *biases[i : i + 1]], "lr": rate} for i, rate in enumerate(rates)]
    optimizer = torch.optim.AdamW(groups, weight_decay=protocol.weight_decay)

    features, labels = _on_device_if_it_fits(features, device), labels.to(device)
    for _ in tqdm(range(protocol.epochs), "linear probe", unit=" epochs", disable=not show_progress):
        for indices in torch.randperm(len(features), generator=generator).split(protocol.batch_size):
            x = probes.standardized(features[indices.to(features.device)])  # [n, C]
            logits = F.linear(x, torch.cat(weights), torch.cat(biases) if biases else None)  # [n, R K]
            targets = labels[indices.to(device)]
            losses = [F.cross_entropy(one, targets) for one in logits.split(num_classes, dim=1)]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
    return LinearProbes(probes.mean, probes.std, [w.detach() for w in weights], [b.detach() for b in biases])


def _on_device_if_it_fits(features: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and features.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return features
    return features.to(device)


def hold_out(labels: Tensor, share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Splits samples class by class: indices of those to train on, and of those held out.

    Of each class with two samples or more, `share` is held out, at least one sample and never all.

    Args:
        labels: [N] classes.
        share: Between 0 and 1.
        seed: Of the choice.

    Raises:
        ValueError: if no class has two samples.
    """
    generator = torch.Generator().manual_seed(seed)
    kept, held = [], []
    for label in labels.unique().tolist():
        of_class = (labels == label).nonzero().flatten()
        of_class = of_class[torch.randperm(len(of_class), generator=generator)]
        num_held = min(max(1, round(share * len(of_class))), len(of_class) - 1)
        held.append(of_class[:num_held])
        kept.append(of_class[num_held:])
    if not any(map(len, held)):
        raise ValueError(
            "No class has two training images, so none can be held out to choose a learning rate: give more images, "
            "or one learning rate."
        )
    return torch.cat(kept).sort().values, torch.cat(held).sort().values


class ProbeRun(NamedTuple):
    """A linear probe of one seed."""

    scores: dict[str, Tensor]  # logits [N, K] on each test split, at the learning rate in use
    details: dict[str, Any]  # the learning rates: which is in use, and what each one scores


def run_linear_probes(
    encoder: Encoder,
    train: EvaluationSplit,
    tests: Mapping[str, EvaluationSplit],
    protocol: LinearProbeProtocol,
    seeds: Sequence[int],
    **feature_options: Any,
) -> tuple[list[ProbeRun], dict[str, Tensor]]:
    """Trains a probe for each seed and applies it to the test splits.

    Of several learning rates, each run takes the one that is best on its held-out training images, the first of
    equals; then all of them are trained on the whole training split.

    Returns:
        The runs, and the labels [N] of each test split.

    Raises:
        ValueError: if splits lack labels, their classes differ, there are no seeds, or features are not finite.
    """
    check_seeds(seeds)
    labels = class_labels(train, *tests.values())
    num_classes = len(train.require("class_names"))
    x_train = probe_features(encoder, train, protocol.features, **feature_options)
    x_tests = {
        name: probe_features(encoder, test, protocol.features, **feature_options) for name, test in tests.items()
    }
    y_train, y_tests = labels[0], dict(zip(tests, labels[1:], strict=True))
    rates = protocol.learning_rates
    show_progress = feature_options.get("show_progress", True)

    def fit(x: Tensor, y: Tensor, seed: int) -> LinearProbes:
        return train_linear_probes(x, y, num_classes, protocol, seed, encoder.device, show_progress)

    def top1(probes: LinearProbes, x: Tensor, y: Tensor) -> dict[float, float]:
        return {rate: probes.top1(x, y, i) for i, rate in enumerate(rates)}

    runs = []
    for seed in seeds:
        chosen, details = 0, {"seed": seed}
        if len(rates) > 1:
            kept, held = hold_out(y_train, protocol.held_out, seed)
            held_out = top1(fit(x_train[kept], y_train[kept], seed), x_train[held], y_train[held])
            chosen = rates.index(max(rates, key=held_out.get))
            details |= {"num_held_out": len(held), "held_out_top1": held_out}
        probes = fit(x_train, y_train, seed)
        details |= {
            "learning_rate": rates[chosen],
            "train_top1": probes.top1(x_train, y_train, chosen),
            "top1": {name: top1(probes, x, y_tests[name]) for name, x in x_tests.items()},
        }
        runs.append(ProbeRun({name: probes.scores(x, chosen) for name, x in x_tests.items()}, details))
    return runs, y_tests


def evaluate_linear_probe(
    encoder: Encoder,
    train: EvaluationSplit,
    test: EvaluationSplit,
    protocol: LinearProbeProtocol | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    **feature_options: Any,
) -> TaskResult:
    """Top-1, top-5 (of five classes or more) and mean per-class accuracy of a linear layer on frozen features.

    Args:
        encoder: What gives the features.
        train: Images with labels and class names, to learn from.
        test: The same, to measure on, with the same class names in the same order.
        protocol: By default the paper's.
        seeds: A run for each: other first weights, another order, other held-out images.
        feature_options: Those of `levljepa_hf.encoders.features.extract`.

    Returns:
        `top1`, `top5`, `mean_per_class`. The details of each run have the learning rate in use, and the test accuracy
        at every other one; the test split takes no part in the choice.

    Raises:
        ValueError: as `run_linear_probes`.
    """
    protocol = protocol or LinearProbeProtocol()
    runs, labels = run_linear_probes(encoder, train, {"test": test}, protocol, seeds, **feature_options)
    scores = [run.scores["test"] for run in runs]
    return TaskResult(
        runs=[classification_metrics(one, labels["test"]) for one in scores],
        details={**count_images(train, {"test": test}), "runs": [run.details for run in runs]},
        chance=classification_chance(len(train.class_names)),
        pictures={"confusion": confusion_picture(labels["test"], scores[0].argmax(dim=1), test)},
    )


TASK = Task(
    help="a linear layer on frozen features",
    protocol=LinearProbeProtocol,
    run=evaluate_linear_probe,
    reads="labels",
    headlines={"top-1": ("top1",)},
    probe="linear",
    position=30,
)


__all__ = [
    "LinearProbeProtocol",
    "LinearProbes",
    "ProbeRun",
    "evaluate_linear_probe",
    "hold_out",
    "run_linear_probes",
    "train_linear_probes",
]
