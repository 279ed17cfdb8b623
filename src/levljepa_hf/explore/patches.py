"""Dense features: where in a photo, and in others, a model sees what it sees at one point.

tokens = patch_tokens(encoder, image, size=448)
similar_patches([tokens, other], point=(0.5, 0.3))  # a map of cosines for each photo
plot_patches([encoder], [image, other], point=(0.5, 0.3), size=448)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ..encoders.embeddings import Embeddings
from ..encoders.encoders import Encoder, LeVLJEPAEncoder
from ..evaluation.pictures import patch_pca, patch_similarity
from ..model.modeling_levljepa import similarity
from ..model.processing_levljepa import to_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (224, 896)  # pixels of the longer side that can be chosen; a model's own size too


@dataclass(frozen=True)
class PatchTokens:
    """The patches of one photo, whole.

    Args:
        tokens: [P, C], row by row, after the final norm.
        grid: Their rows and columns.
        size: Height and width in pixels at which the model saw the photo.
        keeps_aspect: Whether it saw it in its own proportions. A model that takes one size alone saw it squeezed.
    """

    tokens: Tensor
    grid: tuple[int, int]
    size: tuple[int, int]
    keeps_aspect: bool

    def patch_at(self, point: tuple[float, float]) -> tuple[int, int]:
        """Row and column of the patch at (x, y), fractions of width and height from the upper left.

        Raises:
            ValueError: if the point lies outside.
        """
        x, y = point
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ValueError(f"The point {point} lies outside of the photo: x and y are fractions from 0 to 1.")
        rows, columns = self.grid
        return min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)


def takes_any_size(encoder: Encoder) -> bool:
    """Whether the model takes photos of any size that its patches divide."""
    return isinstance(encoder, LeVLJEPAEncoder)


def patch_tokens(encoder: Encoder, image: Image.Image, size: int | None = None) -> PatchTokens:
    """The patch tokens of a photo, which is neither cropped nor, where the model lets us, squeezed.

    Args:
        encoder: Of `levljepa_hf.evaluation.load_encoder`.
        image: The photo.
        size: Its longer side in pixels, rounded to whole patches; by default the model's own size.

    Raises:
        ValueError: if the size is below one patch or above 2048.
    """
    size = size or encoder.image_size
    if not 16 <= size <= 2048:
        raise ValueError(f"size={size}: the longer side must be from 16 to 2048 pixels.")
    image = to_rgb(image)
    height = width = encoder.image_size
    free = takes_any_size(encoder)
    if free:
        patch = encoder.vision_model.config.patch_size
        scale = size / max(image.size)
        height, width = (max(1, round(side * scale / patch)) * patch for side in (image.height, image.width))
    processor = encoder.image_processor("default")
    options = {"size": {"height": height, "width": width}, "do_center_crop": False}
    pixel_values = processor(image, return_tensors="pt", **options)["pixel_values"]
    seen = encoder.tokens(pixel_values)
    return PatchTokens(seen.patches[0].float().cpu(), seen.grid, (height, width), free)


def similar_patches(photos: Sequence[PatchTokens], point: tuple[float, float]) -> list[Tensor]:
    """Cosine of the first photo's patch at `point` with the patches of every photo: a map [rows, columns] of each.

    Args:
        photos: Seen by one model.
        point: (x, y) in the first photo, fractions of width and height.

    Raises:
        ValueError: if the point lies outside.
    """
    row, column = photos[0].patch_at(point)
    index = row * photos[0].grid[1] + column
    return _unflatten(photos, patch_similarity(_joined(photos), 0, index)[0])


def pca_pictures(photos: Sequence[PatchTokens]) -> list[Tensor]:
    """The first three principal components over the patches of all photos, as colours [rows, columns, 3] in 0..1."""
    return _unflatten(photos, patch_pca(_joined(photos))[0])


def _joined(photos: Sequence[PatchTokens]) -> Tensor:
    return torch.cat([photo.tokens for photo in photos])[None]


def _unflatten(photos: Sequence[PatchTokens], values: Tensor) -> list[Tensor]:
    parts = values.split([len(photo.tokens) for photo in photos])
    return [part.unflatten(0, photo.grid) for part, photo in zip(parts, photos, strict=True)]


@torch.no_grad()
def text_on_patches(
    encoder: Encoder, photos: Sequence[PatchTokens], text: str, readout: str | None = None
) -> list[Tensor]:
    """Where a text is nearest: its similarity with every patch, a map [rows, columns] of each photo.

    Each patch token goes through the projection head (and the predictor) as if it were the class token, and is
    compared with the text under a readout: by default `proj_text`, the image embedding predicted from the text, or
    `zeroshot` without predictors. Training never showed the heads a patch, so a map may say nothing (the idea is
    MaskCLIP's, arXiv 2112.01071).

    Raises:
        ValueError: if the model has no text tower, or not LeVLJEPA's heads, or lacks the readout.
    """
    if not isinstance(encoder, LeVLJEPAEncoder) or not encoder.readouts:
        raise ValueError(f"{encoder.name} has no text tower with LeVLJEPA's heads, so words cannot be placed.")
    if not text.strip():
        raise ValueError("There are no words: type some.")
    model = encoder.model
    readout = readout or ("proj_text" if "proj_text" in encoder.readouts else "zeroshot")
    z = model.vision_projection(_joined(photos)[0].to(encoder.device, encoder.dtype))
    predicted = None if model.vision_predictor is None else model.vision_predictor(z).float().cpu()
    images, texts = Embeddings(z.float().cpu(), predicted), encoder.embed_texts([text], show_progress=False)
    scores = similarity(images.embeds, texts.embeds, images.predictions, texts.predictions, readout)
    return _unflatten(photos, scores[:, 0])


def plot_patches(
    encoders: Sequence[Encoder],
    images: Sequence[Image.Image],
    point: tuple[float, float] = (0.5, 0.5),
    size: int | None = None,
    text: str | None = None,
) -> "Figure":
    """The photos; then, for each model, PCA and similarity to the patch at a point of the first photo, or to a text.

    Args:
        encoders: Models, a pair of rows each.
        images: Photos; the first one has the point.
        point: (x, y), fractions of width and height.
        size: Longer side in pixels at which the models see the photos; by default each model's own size.
        text: Words to look for in place of the point.

    Raises:
        ValueError: as `patch_tokens`, `similar_patches` and `text_on_patches`.
    """
    from matplotlib.figure import Figure

    rows = 1 + 2 * len(encoders)
    figure = Figure(figsize=(2.6 * len(images), 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, len(images), squeeze=False)
    for axis, image in zip(axes[0], images, strict=True):
        axis.imshow(image)
    if text is None:
        x, y = point
        axes[0, 0].plot([x * images[0].width], [y * images[0].height], "o", mfc="none", mec="red", ms=10, mew=2)
    for i, encoder in enumerate(encoders):
        photos = [patch_tokens(encoder, image, size) for image in images]
        maps = similar_patches(photos, point) if text is None else text_on_patches(encoder, photos, text)
        low, high = min(one.min().item() for one in maps), max(one.max().item() for one in maps)
        of_model = axes[1 + 2 * i : 3 + 2 * i]
        for column, (colors, cosines) in enumerate(zip(pca_pictures(photos), maps, strict=True)):
            extent = (0, images[column].width, images[column].height, 0)
            of_model[0, column].imshow(colors.numpy(), extent=extent, interpolation="nearest")
            drawn = of_model[1, column].imshow(cosines.numpy(), extent=extent, vmin=low, vmax=high)
        figure.colorbar(drawn, ax=list(of_model[1]), label="cosine")
        of_model[0, 0].set_ylabel(f"{encoder.name}\nPCA", fontsize=8)
        of_model[1, 0].set_ylabel("like the point" if text is None else text, fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    return figure


__all__ = [
    "PatchTokens",
    "SIZES",
    "patch_tokens",
    "pca_pictures",
    "plot_patches",
    "similar_patches",
    "takes_any_size",
    "text_on_patches",
]
