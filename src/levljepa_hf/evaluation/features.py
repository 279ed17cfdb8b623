"""Features of many images, extracted once and cached."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .encoders import Encoder


def pooled_features(encoder: Encoder, images: Sequence[Any], **options: Any) -> dict[str, Tensor]:
    """`cls` [N, C] and `mean` [N, C] (of the patch tokens), float32 on the CPU."""
    raise NotImplementedError


def patch_features(encoder: Encoder, images: Sequence[Any], **options: Any) -> "PatchFeatures":
    """The patch tokens of all images, on disk."""
    raise NotImplementedError


class PatchFeatures:
    """Patch tokens [N, P, C] on disk, read a batch of images at a time."""

    shape: tuple[int, int, int]
    grid: tuple[int, int]

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, indices: Tensor | Sequence[int] | slice) -> Tensor:
        """[n, P, C] of the images asked for, float32 on the CPU; reads those and no others."""
        raise NotImplementedError
