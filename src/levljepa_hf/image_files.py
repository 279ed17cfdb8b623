"""Opening images as data sets hold them: encoded, by path, decoded."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor
from torchvision.transforms import v2

_EXIF_ORIENTATION = 0x0112


def open_image(value: Any, draft_size: int | None = None, max_pixels: int | None = None) -> PILImage.Image:
    """Decodes bytes, a path, a dict of either (as `datasets` gives with `decode=False`), or takes a decoded image.

    Args:
        value: encoded bytes, a path or URL, `{"bytes": ..., "path": ...}`, a PIL image, or an array or tensor of uint8
            (H, W, C) or float in [0, 1] (C, H, W) pixels.
        draft_size: lets a JPEG be decoded at the smallest of its 1/1, 1/2, 1/4, 1/8 scales whose sides are at least
            this, which halves the time for large photos.
        max_pixels: the most that are decoded, at that scale: a small file can hold an image of any size.

    Raises:
        OSError and others of PIL: if the image does not decode.
        ValueError: if it is larger than `max_pixels`.
    """
    if isinstance(value, PILImage.Image):
        value.load()
        return value
    if isinstance(value, (Tensor, np.ndarray)):
        return v2.functional.to_pil_image(value)
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise ValueError("there is no image")
    data = read_file(str(value)) if isinstance(value, (str, Path)) else value
    image = PILImage.open(io.BytesIO(data))
    if draft_size is not None:
        image.draft("RGB", (draft_size, draft_size))
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise ValueError(f"it has {image.width} x {image.height} pixels, more than {max_pixels:,}")
    image.load()
    return ImageOps.exif_transpose(image) if image.getexif().get(_EXIF_ORIENTATION, 1) != 1 else image


def read_file(path: str) -> bytes:
    """The content of a file, or of a URL."""
    if "://" not in path:
        return Path(path).read_bytes()
    import fsspec

    with fsspec.open(path, "rb") as file:
        return file.read()


__all__ = ["open_image", "read_file"]
