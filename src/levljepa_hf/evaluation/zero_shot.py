"""Zero-shot classification: an image goes to the class whose prompt is most similar (CLIP, arXiv 2103.00020).

LeVLJEPA's official evaluation uses one prompt a class (`PROMPTS`) and reads the similarity in several ways (see
`levljepa_hf.model.modeling_levljepa.similarity`); `avg` is the one to quote for LeVLJEPA.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.catalogue import PROMPTS
from ..encoders.embeddings import Embeddings, embed_texts
from ..encoders.encoders import Encoder
from ..encoders.features import pooled_features
from ..model.modeling_levljepa import READOUTS, LeVLJEPAModel, similarity
from ..options import option, with_field_help
from .pictures import plot_confusion
from .results import TaskResult
from .task import Task

if TYPE_CHECKING:
    from ..data.splits import EvaluationSplit

# Sets of prompts by name, for `ZeroShotProtocol.prompts`. The seven were chosen for ImageNet by CLIP's authors.
PROMPT_ENSEMBLES = {
    "imagenet_7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
}


def zero_shot_classifier(
    model: LeVLJEPAModel,
    processor: Callable[..., Any],
    class_names: Sequence[str],
    template: str | Sequence[str] = PROMPTS["imagenet"],
) -> Embeddings:
    """Text embeddings and predictions of each class, both [C, D]: the weights of a zero-shot classifier.

    Args:
        model: Used in evaluation mode, and left in the mode it was in.
        processor: A `LeVLJEPAProcessor`.
        class_names: C names, in the order of the labels. Underscores become spaces, as in the official evaluation.
        template: The prompt, with `{}` in place of the name: one of `PROMPTS`, or another. Of several, the class has
            the mean of their vectors of unit length (CLIP's prompt ensemble).

    Raises:
        ValueError: if a template has no place for the name, or there is none.
    """
    prompts = class_prompts(class_names, template)
    texts = embed_texts(model, processor, [prompt for of_class in prompts for prompt in of_class])
    return prompt_ensemble(texts, len(class_names))


def class_prompts(class_names: Sequence[str], template: str | Sequence[str]) -> list[list[str]]:
    """The prompts of each class, with underscores in the names as spaces.

    Raises:
        ValueError: if a template has no place for the name, or there is none.
    """
    templates = [template] if isinstance(template, str) else list(template)
    for one in templates:
        if "{}" not in one:
            raise ValueError(f"The prompt template {one!r} has no place for the class name: write '{{}}' there.")
    if not templates:
        raise ValueError("There is no prompt template: give one such as 'a photo of a {}.'.")
    names = [name.replace("_", " ").strip() for name in class_names]
    return [[one.format(name) for one in templates] for name in names]


def prompt_ensemble(texts: Embeddings, num_classes: int) -> Embeddings:
    """The mean over each class's prompts, [C x prompts, D] to [C, D], of vectors of unit length."""

    def mean(z: Tensor | None) -> Tensor | None:
        if z is None or len(z) == num_classes:  # one prompt: as it is
            return z
        return F.normalize(z, dim=-1).unflatten(0, (num_classes, -1)).mean(dim=1)

    return Embeddings(mean(texts.embeds), mean(texts.predictions))


def zero_shot_accuracy(
    images: Embeddings,
    classifier: Embeddings,
    labels: Tensor | Sequence[int],
    readouts: Iterable[str] | None = None,
    ks: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """Top-k accuracy under each readout.

    Args:
        images: Z_V and q_V(Z_V) of the images, [N, D].
        classifier: Z_T and q_T(Z_T) of the classes, [C, D], from `zero_shot_classifier`.
        labels: [N] class of each image.
        readouts: by default those of READOUTS, or `zeroshot` alone for a model without predictors.
        ks: the k of top-k; those above the number of classes are left out.

    Returns:
        Fractions named `zeroshot_top1`, `avg_top5` and so on.
    """
    labels = torch.as_tensor(labels)
    num_classes = len(classifier.embeds)
    if len(labels) != len(images.embeds):
        raise ValueError(f"{len(labels)} labels for {len(images.embeds)} images: give one label for each image.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"Labels run from {labels.min()} to {labels.max()}, but the classifier has {num_classes} classes: give "
            "the class names in the order of the labels."
        )
    if readouts is None:
        readouts = READOUTS if images.predictions is not None else ("zeroshot",)
    accuracies = {}
    for readout in readouts:
        scores = similarity(images.embeds, classifier.embeds, images.predictions, classifier.predictions, readout)
        for name, value in top_k_accuracy(scores, labels, ks).items():
            accuracies[f"{readout}_{name}"] = value
    return accuracies


def top_k_accuracy(scores: Tensor, labels: Tensor | Sequence[int], ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Share of samples whose class is among the k of highest score.

    Args:
        scores: [N, C].
        labels: [N] class of each sample.
        ks: the k of top-k; those above C are left out.

    Returns:
        Fractions named `top1`, `top5` and so on.
    """
    ks = [k for k in ks if k <= scores.shape[1]]
    right = scores.topk(max(ks), dim=1).indices == torch.as_tensor(labels)[:, None]  # [N, max k]
    return {f"top{k}": right[:, :k].any(dim=1).float().mean().item() for k in ks}


@with_field_help
@dataclass(frozen=True)
class ZeroShotProtocol:
    """The official evaluation: one prompt a class, every readout.

    `levljepa evaluate zero-shot` makes options of the fields.
    """

    prompts: list[str] = option(
        default_factory=list,
        help="Templates with {} for the class name, several for an ensemble, or a set's name (imagenet_7); by default "
        "the data set's.",
    )
    readouts: list[str] = option(
        default_factory=list,
        help="Of zeroshot, proj, proj_text, avg, predictor_pair; by default all that the model has.",
    )

    def __post_init__(self) -> None:
        check_readouts(self.readouts)


def check_readouts(readouts: Sequence[str]) -> None:
    """Raises `ValueError` if one is unknown."""
    for readout in readouts:
        if readout not in READOUTS:
            raise ValueError(f"Unknown readout {readout!r}: use some of {', '.join(READOUTS)}.")


def offered_readouts(encoder: Encoder, wanted: Sequence[str]) -> Sequence[str]:
    """The readouts wanted, or all that the encoder has.

    Raises:
        ValueError: if it has no text tower, or lacks the predictors of one that is wanted.
    """
    if not encoder.readouts:
        raise ValueError(
            f"{encoder.name} has no text tower, so texts cannot be compared with its images: give a whole model."
        )
    for readout in wanted:
        if readout not in encoder.readouts:
            raise ValueError(
                f"The readout {readout!r} needs predictors, and {encoder.name} has none: use "
                f"{', '.join(encoder.readouts)}."
            )
    return wanted or encoder.readouts


def image_embeddings(encoder: Encoder, split: "EvaluationSplit", **feature_options: Any) -> Embeddings:
    """Embeddings of the images of a split, through `pooled_features`."""
    features = pooled_features(encoder, split.images, **{"transform": split.transform, **feature_options})
    return Embeddings(features["image_embeds"], features.get("predictions"))


def evaluate_zero_shot(
    encoder: Encoder, test: "EvaluationSplit", protocol: ZeroShotProtocol | None = None, **feature_options: Any
) -> TaskResult:
    """Top-1 and top-5 accuracy under each readout.

    Args:
        encoder: A whole model.
        test: Images with labels and class names.
        protocol: By default the official evaluation's.
        feature_options: Those of `levljepa_hf.encoders.features.extract`.

    Raises:
        ValueError: if the split has no labels or class names, or the encoder lacks a readout.
    """
    protocol = protocol or ZeroShotProtocol()
    readouts = offered_readouts(encoder, protocol.readouts)
    labels, names = test.require("labels"), test.require("class_names")
    given = protocol.prompts or test.prompts
    templates = [template for one in given for template in PROMPT_ENSEMBLES.get(one, (one,))]
    prompts = class_prompts(names, templates)
    texts = encoder.embed_texts([one for of_class in prompts for one in of_class])
    classifier = prompt_ensemble(texts, len(names))
    images = image_embeddings(encoder, test, **feature_options)
    metrics = zero_shot_accuracy(images, classifier, labels, readouts)
    drawn = "avg" if "avg" in readouts else readouts[0]
    pairs = (images.embeds, classifier.embeds, images.predictions, classifier.predictions)
    predicted = similarity(*pairs, drawn).argmax(dim=1)
    return TaskResult(
        runs=[metrics],
        details={"num_images": len(labels), "num_classes": len(names), "prompts": templates},
        chance={name: int(name.rpartition("_top")[2]) / len(names) for name in metrics},
        pictures={"confusion": lambda path=None: plot_confusion(torch.as_tensor(labels), predicted, names, path)},
    )


TASK = Task(
    help="top-1 and top-5 accuracy of class prompts",
    protocol=ZeroShotProtocol,
    run=evaluate_zero_shot,
    reads="labels",
    headlines={"top-1": ("avg_top1", "zeroshot_top1")},  # with predictors a model is read by `avg`
    train=False,
    seeds=(),
    hub_task="zero-shot-image-classification",
    probe="zero_shot",
    position=10,
)


__all__ = [
    "PROMPT_ENSEMBLES",
    "ZeroShotProtocol",
    "class_prompts",
    "evaluate_zero_shot",
    "prompt_ensemble",
    "top_k_accuracy",
    "zero_shot_accuracy",
    "zero_shot_classifier",
]
