"""Zero-shot classification: an image goes to the class whose prompt is most similar (CLIP, arXiv 2103.00020).

LeVLJEPA's official evaluation uses one prompt a class (`PROMPTS`) and reads the similarity in several ways (see
`levljepa_hf.modeling_levljepa.similarity`); `avg` is the one to quote for LeVLJEPA.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..modeling_levljepa import READOUTS, LeVLJEPAModel, similarity
from .embeddings import Embeddings, embed_texts

# The official evaluation's prompt for each dataset, and the one of its evaluation during training.
PROMPTS = {
    "imagenet": "a photo of a {}.",
    "imagenet_online": "a photo of a {}",
    "places365": "a photo of a {}.",
    "aircraft": "a photo of a {}, a type of aircraft.",
    "pets": "a photo of a {}, a type of pet.",
}


def zero_shot_classifier(
    model: LeVLJEPAModel,
    processor: Callable[..., Any],
    class_names: Sequence[str],
    template: str = PROMPTS["imagenet"],
) -> Embeddings:
    """Text embeddings and predictions of one prompt a class, both [C, D]: the weights of a zero-shot classifier.

    Args:
        model: Used in evaluation mode, and left in the mode it was in.
        processor: A `LeVLJEPAProcessor`.
        class_names: C names, in the order of the labels. Underscores become spaces, as in the official evaluation.
        template: The prompt, with `{}` in place of the name: one of `PROMPTS`, or another.

    Raises:
        ValueError: if the template has no place for the name.
    """
    if "{}" not in template:
        raise ValueError(f"The prompt template {template!r} has no place for the class name: write '{{}}' there.")
    names = [name.replace("_", " ").strip() for name in class_names]
    return embed_texts(model, processor, [template.format(name) for name in names])


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
    ks = [k for k in ks if k <= num_classes]
    accuracies = {}
    for readout in readouts:
        scores = similarity(images.embeds, classifier.embeds, images.predictions, classifier.predictions, readout)
        best = scores.topk(max(ks), dim=1).indices == labels[:, None]  # [N, max k]
        for k in ks:
            accuracies[f"{readout}_top{k}"] = best[:, :k].any(dim=1).float().mean().item()
    return accuracies


__all__ = ["PROMPTS", "zero_shot_accuracy", "zero_shot_classifier"]
