"""Search: the photos nearest to words or to a photo.

search(seen, "a dog on a beach", k=10)  # (indices [10], scores [10])
plot_search([seen_a, seen_b], photos, "a dog on a beach")
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..encoders.features import pooled_features
from .photos import PhotoFeatures, Photos, text_similarity
from .space import feature_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def search_scores(
    seen: PhotoFeatures,
    query: str | int | Image.Image,
    readout: str | None = None,
    feature: str | None = None,
    transform: str = "evaluation",
) -> Tensor:
    """Similarity of every photo with the query, [N].

    Args:
        seen: A model, by `embed_photos`.
        query: Words, the number of one of the photos, or another photo.
        readout: Of words: one of the model's `encoder.readouts`, by default the one to quote.
        feature: Of a photo, whose cosine counts: `image_embeds` (the default), `predictions`, `cls` or `mean`.
        transform: How another photo is prepared; it should be that of the photos.

    Raises:
        ValueError: if there are no words, or the model lacks what they, the readout or the feature need.
    """
    if isinstance(query, str):
        if not query.strip():
            raise ValueError("There is nothing to search for: type some words.")
        return text_similarity(seen, [query], readout)[:, 0]
    unit = F.normalize(feature_of(seen, feature), dim=1)
    if isinstance(query, int):
        if not 0 <= query < len(unit):
            raise ValueError(f"There is no photo {query}: they are 0 to {len(unit) - 1}.")
        return unit @ unit[query]
    features = pooled_features(seen.encoder, [query], transform=transform, show_progress=False)
    other = feature_of(PhotoFeatures(seen.encoder, features), feature)
    return unit @ F.normalize(other[0], dim=0)


def nearest_photos(
    seen: PhotoFeatures, query: str | int | Image.Image, k: int = 12, **options: str | None
) -> tuple[Tensor, Tensor]:
    """Indices and scores of the k photos of highest score, best first. Options are those of `search_scores`."""
    best = search_scores(seen, query, **options).topk(min(k, len(seen.features["cls"])))
    return best.indices, best.values


def neighbours(
    seen: PhotoFeatures, k: int = 12, feature: str | None = None, chunk_size: int = 1024
) -> tuple[Tensor, Tensor]:
    """The k nearest of every photo, itself left out: indices and cosines, both [N, k], best first."""
    unit = F.normalize(feature_of(seen, feature), dim=1)
    k = min(k, len(unit) - 1)
    found = []
    for start in range(0, len(unit), chunk_size):
        cosines = unit[start : start + chunk_size] @ unit.T
        rows = torch.arange(len(cosines))
        cosines[rows, start + rows] = -2.0
        found.append(cosines.topk(k, dim=1))
    return torch.cat([one.indices for one in found]), torch.cat([one.values for one in found])


def plot_search(
    seen: Sequence[PhotoFeatures], photos: Photos, query: str | int | Image.Image, k: int = 8, **options: str | None
) -> "Figure":
    """A row for each model: the photos of highest score, best first. Options are those of `search_scores`."""
    from matplotlib.figure import Figure

    k = min(k, len(photos))
    figure = Figure(figsize=(1.4 * k, 1.8 * len(seen)), layout="constrained")
    axes = figure.subplots(len(seen), k, squeeze=False)
    for row, one in zip(axes, seen, strict=True):
        for axis, index, score in zip(
            row, *(found.tolist() for found in nearest_photos(one, query, k, **options)), strict=True
        ):
            axis.imshow(photos.open(index))
            axis.set_title(f"{score:.3f}", fontsize=8)
            axis.set(xticks=[], yticks=[], frame_on=False)
        row[0].set_ylabel(one.encoder.name, fontsize=8)
    if isinstance(query, str):
        figure.suptitle(query, fontsize=10)
    return figure


__all__ = ["nearest_photos", "neighbours", "plot_search", "search_scores"]
