"""Zero-shot classification with class names that are typed in.

result = classify(seen, photos, ["cat", "dog"])
result.probabilities[0], result.accuracy, result.confusion
plot_zero_shot([seen], photos, ["cat", "dog"])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ..data.splits import class_key
from ..encoders.embeddings import Embeddings
from ..encoders.encoders import Encoder
from ..encoders.features import pooled_features
from ..evaluation.pictures import plot_bars, plot_confusion
from ..evaluation.zero_shot import class_prompts, prompt_ensemble, top_k_accuracy
from .photos import PhotoFeatures, Photos, similarity_with

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WITHOUT_SCALE = 20.0


@dataclass(frozen=True)
class ZeroShotResult:
    """What a model makes of photos with some class names.

    Args:
        class_names: C names.
        probabilities: [N, C], softmax of the similarities times the model's scale.
        labels: [N] the true class as an index into `class_names`, -1 where it is none of them; `None` where no photo
            has one.
        accuracy: Top-1, over the photos whose class is among the names; `None` without such.
        confusion: [C, C] counts of these photos, a row for each true class; `None` without such.
    """

    class_names: tuple[str, ...]
    probabilities: Tensor
    labels: Tensor | None
    accuracy: float | None
    confusion: Tensor | None


def logit_scale(encoder: Encoder) -> float:
    """The factor of the similarities before the softmax: the model's own, or else LeVLJEPA's 20."""
    fixed = getattr(getattr(encoder.model, "config", None), "logit_scale", None)
    learned = getattr(encoder.model, "logit_scale", None)
    if isinstance(fixed, (int, float)):
        return float(fixed)
    return learned.exp().item() if isinstance(learned, Tensor) else _WITHOUT_SCALE


def classifier(encoder: Encoder, class_names: Sequence[str], template: str = "a photo of a {}.") -> Embeddings:
    """The prompts of the classes, embedded.

    Raises:
        ValueError: if there are fewer than two classes, two are the same, the template has no place for the name, or
            the model has no text tower.
    """
    names = [name.strip() for name in class_names if name.strip()]
    if len(names) < 2 or len({class_key(name) for name in names}) < len(names):
        raise ValueError(f"Type at least two different class names, one a line; there are {names}.")
    prompts = class_prompts(names, template)
    texts = encoder.embed_texts([prompt for of_class in prompts for prompt in of_class], show_progress=False)
    return prompt_ensemble(texts, len(names))


def classify(
    seen: PhotoFeatures,
    photos: Photos,
    class_names: Sequence[str],
    template: str = "a photo of a {}.",
    readout: str | None = None,
) -> ZeroShotResult:
    """Probabilities of all photos; accuracy and confusion of those whose own class is among the names.

    Args:
        seen: A whole model, by `embed_photos`.
        photos: The photos.
        class_names: At least two, in any order; they are matched with the photos' classes by letters and digits.
        template: The prompt, with `{}` for the name.
        readout: By default the one to quote.

    Raises:
        ValueError: as `classifier`, or if the model lacks the readout.
    """
    texts = classifier(seen.encoder, class_names, template)
    scores = similarity_with(seen, texts, readout)
    names = tuple(name.strip() for name in class_names if name.strip())
    labels = _labels(photos, names)
    accuracy = confusion = None
    if labels is not None:
        known = labels >= 0
        accuracy = top_k_accuracy(scores[known], labels[known], (1,))["top1"]
        pairs = labels[known] * len(names) + scores[known].argmax(1)
        confusion = torch.bincount(pairs, minlength=len(names) ** 2).view(len(names), -1)
    probabilities = (logit_scale(seen.encoder) * scores).softmax(1)
    return ZeroShotResult(names, probabilities, labels, accuracy, confusion)


def classify_image(
    encoder: Encoder,
    image: Image.Image,
    class_names: Sequence[str],
    template: str = "a photo of a {}.",
    readout: str | None = None,
    transform: str = "evaluation",
) -> Tensor:
    """Probabilities [C] of one photo. Arguments and errors as of `classify`."""
    seen = PhotoFeatures(encoder, pooled_features(encoder, [image], transform=transform, show_progress=False))
    scores = similarity_with(seen, classifier(encoder, class_names, template), readout)
    return (logit_scale(encoder) * scores[0]).softmax(0)


def _labels(photos: Photos, names: Sequence[str]) -> Tensor | None:
    if photos.labels is None or photos.class_names is None:
        return None
    index = {class_key(name): i for i, name in enumerate(names)}
    place = [index.get(class_key(name), -1) for name in photos.class_names]
    labels = torch.tensor([place[label] if label >= 0 else -1 for label in photos.labels])
    return labels if (labels >= 0).any() else None


def plot_zero_shot(
    seen: PhotoFeatures,
    photos: Photos,
    class_names: Sequence[str] | None = None,
    template: str = "a photo of a {}.",
    readout: str | None = None,
    photo: int | None = None,
) -> "Figure":
    """The confusion matrix, or the probabilities of one photo.

    Args:
        seen: A whole model, by `embed_photos`.
        photos: The photos.
        class_names: By default the photos' own classes.
        template: The prompt, with `{}` for the name.
        readout: By default the one to quote.
        photo: The number of one; without it, and only where photos have labels, the confusion of all.

    Raises:
        ValueError: as `classify`, or if there are neither names nor labels.
    """
    class_names = class_names or photos.class_names
    if class_names is None:
        raise ValueError(f"{photos.name} has no classes of its own: give class_names.")
    result = classify(seen, photos, class_names, template, readout)
    if photo is not None:
        best = result.probabilities[photo].topk(min(10, len(class_names)))
        names = [result.class_names[i] for i in best.indices.tolist()]
        return plot_bars(names, best.values.tolist(), label="probability")
    if result.labels is None:
        raise ValueError(f"No photo of {photos.name} has one of these classes as its label: name a photo.")
    known = result.labels >= 0
    return plot_confusion(result.labels[known], result.probabilities[known].argmax(1), result.class_names)


__all__ = ["ZeroShotResult", "classifier", "classify", "classify_image", "logit_scale", "plot_zero_shot"]
