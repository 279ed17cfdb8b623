"""Pictures of a run and of its evaluation: losses, patch features, nearest images, predictions.

Each function returns matplotlib's figure, which a notebook shows after `%matplotlib inline`, and writes it as a PNG
where it is given a path.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from ..figures import new_figure, save_figure


def patch_pca(patch_features: Tensor, num_components: int = 3) -> Tensor:
    """First principal components of patch features [N, P, C] over all N x P patches: [N, P, num_components] in 0..1.

    Each component runs from its 1st to its 99th percentile (the picture of DINOv2, arXiv 2304.07193, figure 1).
    """
    flat = patch_features.detach().float().flatten(0, 1)
    flat = flat - flat.mean(dim=0)
    eigenvectors = torch.linalg.eigh(flat.T @ flat).eigenvectors  # ascending
    components = flat @ eigenvectors[:, -num_components:].flip(1)
    low, high = components.quantile(torch.tensor([0.01, 0.99]), dim=0)
    scaled = ((components - low) / (high - low).clamp(min=1e-8)).clamp(0, 1)
    return scaled.unflatten(0, patch_features.shape[:2])


def plot_patch_pca(
    images: Sequence[Image.Image],
    patch_features: Tensor,
    path: str | Path | None = None,
    grid: tuple[int, int] | None = None,
) -> "Figure":
    """Images above, the first three principal components of their patch features as RGB below.

    Args:
        images: N images.
        patch_features: [N, P, C] post-norm patch tokens, without the class token.
        path: where to write the PNG, if anywhere.
        grid: (rows, columns) of the patches, by default a square.
    """
    rows, columns = _grid(patch_features, grid)
    colors = patch_pca(patch_features.cpu()).unflatten(1, (rows, columns)).numpy()
    figure, axes = new_figure(2 * len(images), columns=len(images), side=1.1, aspect=columns / rows, title=0)
    for index, (image, color) in enumerate(zip(images, colors, strict=True)):
        axes[index].imshow(image)
        axes[len(images) + index].imshow(color, interpolation="nearest")
    return save_figure(figure, path, axes_off=True)


def patch_similarity(patch_features: Tensor, image: int, patch: int) -> Tensor:
    """Cosine of one patch with every patch of every image: [N, P, C] to [N, P].

    Args:
        patch_features: [N, P, C] post-norm patch tokens, without the class token.
        image: index of the image that holds the patch.
        patch: index of the patch in it, row by row.
    """
    unit = F.normalize(patch_features.detach().float(), dim=-1)
    return unit @ unit[image, patch]


def plot_patch_similarity(
    images: Sequence[Image.Image],
    patch_features: Tensor,
    patch: tuple[int, int],
    path: str | Path | None = None,
    grid: tuple[int, int] | None = None,
) -> "Figure":
    """Images above; below, how similar each of their patches is to one of the first image, which is outlined.

    Args:
        images: N images, the first with the patch.
        patch_features: [N, P, C] post-norm patch tokens, without the class token.
        patch: (row, column) of the patch.
        path: where to write the PNG, if anywhere.
        grid: (rows, columns) of the patches, by default a square.

    Raises:
        ValueError: if the patches do not fill the grid, or the patch lies outside.
    """
    rows, columns = _grid(patch_features, grid)
    row, column = patch
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(f"There is no patch {patch} in a grid of {rows} x {columns}: count rows and columns from 0.")
    from matplotlib.patches import Rectangle

    cosines = patch_similarity(patch_features.cpu(), 0, row * columns + column).unflatten(1, (rows, columns))
    figure, axes = new_figure(2 * len(images), columns=len(images), side=1.3, aspect=columns / rows, title=0)
    for index, (image, cosine) in enumerate(zip(images, cosines, strict=True)):
        axes[index].imshow(image)
        drawn = axes[len(images) + index].imshow(cosine.numpy(), vmin=cosines.min().item(), vmax=1)
    height, width = images[0].height / rows, images[0].width / columns
    corner = (column * width - 0.5, row * height - 0.5)  # pixel centres are at integers
    axes[0].add_patch(Rectangle(corner, width, height, fill=False, edgecolor="red", linewidth=2))
    axes[len(images)].add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2))
    for axis in axes:
        axis.set_axis_off()
    figure.colorbar(drawn, ax=axes[len(images) :], label="cosine")
    return save_figure(figure, path)


def _grid(patch_features: Tensor, grid: tuple[int, int] | None) -> tuple[int, int]:
    """(rows, columns) of the patches of [N, P, C]; by default they fill a square."""
    num_patches = patch_features.shape[1]
    rows, columns = grid or (math.isqrt(num_patches),) * 2
    if rows * columns != num_patches:
        raise ValueError(f"{num_patches} patches do not fill a grid of {rows} x {columns}: pass grid=(rows, columns).")
    return rows, columns


def plot_nearest(
    captions: Sequence[str],
    images: Sequence[Image.Image],
    scores: Tensor,
    path: str | Path | None = None,
    num_images: int = 8,
) -> "Figure":
    """For each caption the most similar images, best first.

    Args:
        captions: M captions, one a row.
        images: the N images to choose from.
        scores: [N, M] similarities.
        path: where to write the PNG, if anywhere.
        num_images: images in a row.
    """
    num_images = min(num_images, len(images))
    best = scores.topk(num_images, dim=0).indices.T.tolist()  # [M, num_images]
    figure, axes = new_figure(len(captions) * num_images, columns=num_images, side=1.3)
    texts = []
    for row, (caption, indices) in enumerate(zip(captions, best, strict=True)):
        for column, index in enumerate(indices):
            axes[row * num_images + column].imshow(images[index])
        first = axes[row * num_images]
        text = first.text(0, 1.05, caption, transform=first.transAxes, fontsize=9)
        text.set_in_layout(False)  # it spans the row: the first column need not be as wide
        texts.append(text)
    figure.get_layout_engine().set(hspace=0.15, h_pad=0.15)
    for axis in axes:
        axis.set_axis_off()
    figure.draw_without_rendering()  # places the images
    figure.set_layout_engine("none")
    for text in texts:
        text.set_in_layout(True)  # notebooks cut off what is not in the layout
    return save_figure(figure, path)


def plot_confusion(
    labels: Tensor,
    predicted: Tensor,
    class_names: Sequence[str],
    path: str | Path | None = None,
    max_classes: int = 60,
) -> "Figure":
    """Confusion matrix, each row (a true class) divided by its number of samples.

    Args:
        labels: [N] true classes.
        predicted: [N] predicted classes.
        class_names: C names, in the order of the labels.
        path: where to write the PNG, if anywhere.
        max_classes: Of more, those with the most mistakes are shown, and the title says so.
    """
    num_classes = len(class_names)
    counts = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, -1)
    shown = torch.arange(num_classes)
    if num_classes > max_classes:
        mistakes = counts.sum(dim=1) - counts.diagonal()
        shown = mistakes.topk(max_classes).indices.sort().values
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    figure, (axis,) = new_figure(1, columns=1, side=max(3.5, 0.2 * len(shown) + 1.5))
    image = axis.imshow(shares[shown][:, shown].numpy(), vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    names = [class_names[i] for i in shown.tolist()]
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set(xlabel="predicted", ylabel="true")
    if len(shown) < num_classes:
        axis.set_title(f"the {max_classes} of {num_classes} classes with the most mistakes", fontsize=9)
    figure.colorbar(image, ax=axis, shrink=0.6, label="share of the true class")
    return save_figure(figure, path)


def plot_segmentation(
    images: Tensor,
    labels: Tensor,
    predicted: Tensor,
    class_names: Sequence[str],
    path: str | Path | None = None,
    max_names: int = 12,
) -> "Figure":
    """A row for each image: the image, its true classes, the predicted ones, and their colours.

    Args:
        images: [N, 3, H, W] in 0..1.
        labels: [N, H, W] true classes; what is none of the C classes is void, in grey.
        predicted: [N, H, W] predicted classes.
        class_names: C names. A class has the same colour in every picture of C classes or more; one that is named
            background is nearly white.
        path: where to write the PNG, if anywhere.
        max_names: names in a row, those of the classes with the most pixels.
    """
    num_classes = len(class_names)
    palette = torch.cat([_class_colors(num_classes), torch.tensor([[0.75, 0.75, 0.75]])])
    palette[[i for i, name in enumerate(class_names) if name.lower() == "background"]] = 0.93
    labels = torch.where((labels >= 0) & (labels < num_classes), labels, num_classes).long()
    figure, axes = new_figure(4 * len(images), columns=4, side=2.2)
    for i, title in enumerate(("image", "truth", "prediction")):
        axes[i].set_title(title, fontsize=9)
    for row, (image, truth, guess) in enumerate(zip(images, labels, predicted, strict=True)):
        first, second, third, legend = axes[4 * row : 4 * row + 4]
        first.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
        second.imshow(palette[truth].numpy(), interpolation="nearest")
        third.imshow(palette[guess].numpy(), interpolation="nearest")
        pixels = torch.bincount(torch.cat([truth.flatten(), guess.flatten()]), minlength=num_classes + 1)
        found = pixels.argsort(descending=True)[: int((pixels > 0).sum())].tolist()
        for line, index in enumerate(found[:max_names]):
            y = 1 - (line + 0.5) / max_names
            legend.scatter([0.04], [y], marker="s", s=40, color=[palette[index].tolist()], clip_on=False)
            legend.text(0.12, y, [*class_names, "void"][index], va="center", fontsize=7)
        if len(found) > max_names:
            legend.text(0.12, -0.04, f"and {len(found) - max_names} more", va="center", fontsize=7)
        legend.set(xlim=(0, 1), ylim=(0, 1))
    return save_figure(figure, path, axes_off=True)


def _class_colors(num_classes: int) -> Tensor:
    """[C, 3] in 0..1: hues a golden angle apart, in nine shades, none of them grey."""
    from matplotlib.colors import hsv_to_rgb

    index = torch.arange(num_classes)
    hue = (0.618034 * index) % 1
    saturation = torch.tensor([0.75, 0.95, 0.5])[index % 3]
    value = torch.tensor([0.9, 0.65, 0.45])[index // 3 % 3]
    return torch.from_numpy(hsv_to_rgb(torch.stack([hue, saturation, value], dim=1).numpy())).float()


def plot_answers(
    images: Sequence[Image.Image],
    questions: Sequence[str],
    answers: Sequence[str],
    truths: Sequence[str],
    scores: Sequence[float],
    path: str | Path | None = None,
) -> "Figure":
    """Images with a question each, what was answered (green where it counts as right, else red) and the truth.

    Args:
        images: N images.
        questions: N questions.
        answers: N answers given.
        truths: N right answers.
        scores: Of each answer, in 0..1; from a half on it is right.
        path: where to write the PNG, if anywhere.
    """
    figure, axes = new_figure(len(images), columns=min(4, len(images)), side=2.4)
    rows = zip(axes, images, questions, answers, truths, scores, strict=False)  # the last row may have room
    for axis, image, question, answer, truth, score in rows:
        axis.imshow(image)
        axis.set_title(textwrap.fill(question, 34), fontsize=8, loc="left")
        said = answer or "(nothing)"
        note = said if score >= 0.5 else f"{said}, not {truth}"
        color = "#1a7a3a" if score >= 0.5 else "#b3261e"
        axis.text(0, -0.03, textwrap.fill(note, 34), color=color, fontsize=8, va="top", transform=axis.transAxes)
    figure.get_layout_engine().set(hspace=0.1)  # room for what is below the images
    return save_figure(figure, path, axes_off=True)


def plot_bars(
    names: Sequence[str],
    values: Sequence[float],
    path: str | Path | None = None,
    errors: Sequence[float] | None = None,
    chance: float | None = None,
    label: str = "accuracy",
) -> "Figure":
    """Fractions as bars, with their values in percent above.

    Args:
        names: M names.
        values: M fractions.
        path: where to write the PNG, if anywhere.
        errors: M spreads, drawn around the values.
        chance: what guessing scores, drawn as a line.
        label: what the values are.
    """
    figure, (axis,) = new_figure(1, columns=1, side=3, aspect=max(1.2, 0.35 * len(names)))
    names = [textwrap.fill(name, 14) for name in names]
    bars = axis.bar(names, values, yerr=errors, capsize=4, width=0.6, color="#1f5fa8", ecolor="#7f7f7f")
    axis.bar_label(bars, [f"{100 * value:.1f}" for value in values], padding=2)
    if chance is not None:
        axis.axhline(chance, color="#c44e52", linestyle="--", linewidth=1)
        axis.text(1.01, chance, "chance", transform=axis.get_yaxis_transform(), va="center", fontsize=8)
    axis.set(ylabel=label, ylim=(0, 1.1))
    return save_figure(figure, path)


__all__ = [
    "patch_pca",
    "patch_similarity",
    "plot_answers",
    "plot_bars",
    "plot_confusion",
    "plot_nearest",
    "plot_patch_pca",
    "plot_patch_similarity",
    "plot_segmentation",
]
