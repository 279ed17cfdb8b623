"""Maps of a model's space: photos as points of the plane, coloured by what is known of them.

points = project(seen.features["image_embeds"], "tsne")  # [N, 2]; computed once, then read
plot_space([seen_a, seen_b], photos)
"""

import hashlib
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..encoders.features import DEFAULT_CACHE
from ..files import write_whole
from .photos import PhotoFeatures, Photos, text_similarity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEATURES = ("image_embeds", "predictions", "cls", "mean")
COLORS = ("label", "prompt", "agreement")
_PACKAGES = {"pca": "scikit-learn", "tsne": "scikit-learn", "umap": "umap-learn"}


def methods() -> tuple[str, ...]:
    """The projections at hand: scikit-learn's PCA and t-SNE, and UMAP where umap-learn is installed."""
    return ("pca", "tsne", *(["umap"] if find_spec("umap") else []))


def project(
    features: Tensor,
    method: str = "pca",
    like: Tensor | None = None,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = DEFAULT_CACHE,
) -> Tensor:
    """A map of the plane, [N, 2] within -1..1, of features [N, C] of unit length (t-SNE and UMAP: by cosine).

    Args:
        features: Of at least 3 photos.
        method: One of `methods()`.
        like: Another map of the same photos, which this one is turned and mirrored to resemble (Procrustes).
        seed: Of t-SNE and UMAP.
        cache_dir: Beside it projections are kept, by the content of the features; `None` keeps none.

    Raises:
        ValueError: if the method is none, or there are too few photos.
    """
    if method not in methods():
        hint = ' Run: pip install "umap-learn"' if method == "umap" else ""
        raise ValueError(f"method={method!r} is not at hand: use one of {', '.join(methods())}.{hint}")
    if len(features) < 3:
        raise ValueError(f"A map of {len(features)} photos says nothing: at least 3 are needed.")
    unit = F.normalize(features.float(), dim=1).contiguous()
    settings = json.dumps([1, method, seed, list(unit.shape), version(_PACKAGES[method])])
    key = hashlib.sha256(settings.encode() + unit.numpy().tobytes()).hexdigest()[:24]
    path = None if cache_dir is None else Path(cache_dir).with_name("projections") / f"{method}-{key}.safetensors"
    points = _read(path)
    if points is None:
        points = _computed(unit.numpy(), method, seed)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda part: save_file({"points": points}, part))
    return points if like is None else _turned(points, like)


def _read(path: Path | None) -> Tensor | None:
    try:
        return load_file(path)["points"] if path is not None and path.exists() else None
    except (SafetensorError, OSError, KeyError):  # written anew
        return None


def _computed(unit: np.ndarray, method: str, seed: int) -> Tensor:
    if method == "pca":
        from sklearn.decomposition import PCA

        points = PCA(2, svd_solver="full" if min(unit.shape) < 3 else "covariance_eigh").fit_transform(unit)
    elif method == "tsne":
        from sklearn.manifold import TSNE

        # of vectors of unit length the Euclidean distance, which trees are fast at, orders as the cosine does
        perplexity = min(30, (len(unit) - 1) / 3)
        points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=-1).fit_transform(unit)
    else:
        from umap import UMAP

        points = UMAP(n_components=2, metric="cosine", random_state=seed).fit_transform(unit)
    points = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32))
    points = points - (points.amax(0) + points.amin(0)) / 2
    return points / points.abs().max().clamp(min=1e-12)


def _turned(points: Tensor, like: Tensor) -> Tensor:
    """`points`, rotated and mirrored to lie as near to `like` as they can."""
    u, _, v = torch.linalg.svd((points - points.mean(0)).T @ (like - like.mean(0)))
    turned = (points - points.mean(0)) @ (u @ v)
    return turned / turned.abs().max().clamp(min=1e-12)


def nearest_prompt(seen: PhotoFeatures, prompts: Sequence[str], readout: str | None = None) -> Tensor:
    """The most similar prompt of each photo, [N] indices, under a readout (by default the one to quote).

    Raises:
        ValueError: if there are no prompts, or the model has no text tower.
    """
    if not prompts:
        raise ValueError("There are no prompts: type some, one a line.")
    return text_similarity(seen, prompts, readout).argmax(dim=1)


def agreement(a: Tensor, b: Tensor, num_neighbours: int = 20, chunk_size: int = 1024) -> Tensor:
    """How far two models agree on each photo: the share of its nearest neighbours by cosine that they have in common.

    Args:
        a: Features of N photos by one model, [N, C].
        b: By another one, [N, C'].
        num_neighbours: How many neighbours are compared, N - 1 at most.
        chunk_size: Photos compared at once; memory grows with chunk_size x N.

    Returns:
        [N] in 0..1; chance is num_neighbours / (N - 1).
    """
    num_neighbours = max(1, min(num_neighbours, len(a) - 1))
    units = [F.normalize(one.float(), dim=1) for one in (a, b)]
    shared = []
    for start in range(0, len(a), chunk_size):
        rows = torch.arange(start, min(start + chunk_size, len(a)))
        among = []
        for unit in units:
            cosines = unit[rows] @ unit.T
            cosines[torch.arange(len(rows)), rows] = -2.0  # a photo is no neighbour of itself
            near = cosines.topk(num_neighbours, dim=1).indices
            among.append(torch.zeros(len(rows), len(a), dtype=torch.bool).scatter_(1, near, True))
        shared.append((among[0] & among[1]).sum(1) / num_neighbours)
    return torch.cat(shared)


def default_feature(seen: PhotoFeatures) -> str:
    """What is mapped unless something else is asked for: Z_V, or the class token of a model without it."""
    return next(name for name in FEATURES if name in seen.features)


def plot_space(
    seen: Sequence[PhotoFeatures],
    photos: Photos,
    method: str = "pca",
    feature: str | None = None,
    color: str = "label",
    prompts: Sequence[str] = (),
    cache_dir: str | os.PathLike | None = DEFAULT_CACHE,
) -> "Figure":
    """A map for each model, the later ones turned to resemble the first.

    Args:
        seen: Models, by `embed_photos`.
        photos: The photos.
        method: One of `methods()`.
        feature: One of `FEATURES`; by default Z_V.
        color: `label`, `prompt` (the nearest of `prompts`) or `agreement` (of the first two models). Without labels
            all points have one colour.
        prompts: Those to choose from.
        cache_dir: Where projections are kept.

    Raises:
        ValueError: as `project` and `nearest_prompt`, or if two models are needed, or one lacks the feature.
    """
    from matplotlib.figure import Figure

    if color not in COLORS:
        raise ValueError(f"color={color!r} is unknown: use one of {', '.join(COLORS)}.")
    figure = Figure(figsize=(4.6 * len(seen), 4.4), layout="constrained")
    axes = figure.subplots(1, len(seen), squeeze=False)[0]
    first = None
    for axis, one in zip(axes, seen, strict=True):
        points = project(feature_of(one, feature), method, first, cache_dir=cache_dir)
        first = points if first is None else first
        axis.set(title=one.encoder.name, xticks=[], yticks=[], aspect="equal")
        axis.title.set_fontsize(9)
        if color == "agreement":
            if len(seen) < 2:
                raise ValueError("Agreement is that of two models, and there is one.")
            values = agreement(*(feature_of(two, feature) for two in seen[:2]))
            drawn = axis.scatter(*points.T, c=values, s=8, vmin=0, vmax=1)
            continue
        names, groups = (photos.class_names or (), photos.labels) if color == "label" else (prompts, None)
        if color == "prompt":
            groups = nearest_prompt(one, prompts).tolist()
        groups = np.zeros(len(photos), dtype=int) if groups is None else np.asarray(groups)
        for group in np.unique(groups):
            label = names[group] if 0 <= group < len(names) else None
            axis.scatter(*points[groups == group].T, s=8, label=label)
    if color == "agreement":
        figure.colorbar(drawn, ax=list(axes), label="neighbours in common")
    elif axes[0].get_legend_handles_labels()[1]:
        axes[-1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def feature_of(seen: PhotoFeatures, feature: str | None) -> Tensor:
    """[N, C].

    Raises:
        ValueError: if the model does not have the feature.
    """
    name = feature or default_feature(seen)
    if name not in seen.features:
        raise ValueError(f"{seen.encoder.name} has no {name}: it has {', '.join(seen.features)}.")
    return seen.features[name]


__all__ = [
    "COLORS",
    "FEATURES",
    "agreement",
    "default_feature",
    "feature_of",
    "methods",
    "nearest_prompt",
    "plot_space",
    "project",
]
