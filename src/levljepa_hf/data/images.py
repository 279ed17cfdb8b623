"""Opening images as data sets hold them (encoded, by path, decoded), and what counts as one that does not decode."""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor
from torchvision.transforms import v2

from ..model.processing_levljepa import to_rgb

REDUCTIONS = (1, 2, 4, 8)  # at which JPEGs can be decoded
_EXIF_ORIENTATION = 0x0112
_ON_ITS_SIDE = (5, 6, 7, 8)


class UnreadImage:
    """An image whose size is known, and whose pixels, where it is encoded, are not yet decoded.

    EXIF and XMP say how it lies, but not those that a PNG has after its pixels, for which all would be decoded.

    Args:
        value: what `open_image` takes.

    Raises:
        OSError and others of PIL: if there is no image in it.
    """

    def __init__(self, value: Any) -> None:
        self._encoded = not isinstance(value, (PILImage.Image, Tensor, np.ndarray))
        if isinstance(value, PILImage.Image):
            self._image = value
        elif isinstance(value, (Tensor, np.ndarray)):
            self._image = v2.functional.to_pil_image(value)
        else:
            self._data = content_of(value)
            if self._data is None:
                raise ValueError("there is no image")
            self._image = PILImage.open(io.BytesIO(self._data))
        # The marks by which a JPEG may say that it lies on its side; `getexif` would take its time to find none. That
        # of PIL's PNGs would decode the image to find them; its base class takes those that are there. TIFFs it turns.
        image_format, marks = self._image.format, {"exif", "xmp"} & self._image.info.keys()
        marked = self._encoded and image_format != "TIFF" and (image_format != "JPEG" or marks)
        self._orientation = PILImage.Image.getexif(self._image).get(_EXIF_ORIENTATION, 1) if marked else 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright, of all its pixels."""
        return self._image.size[::-1] if self._orientation in _ON_ITS_SIDE else self._image.size

    def decode(self, reduction: int = 1, max_pixels: int | None = None) -> PILImage.Image:
        """Decodes it, upright.

        Args:
            reduction: 1, 2, 4 or 8: lets a JPEG be decoded at that part of its width and height.
            max_pixels: the most that are decoded, at that scale: a small file can hold an image of any size.

        Raises:
            OSError and others of PIL: if the image does not decode.
            ValueError: if it is larger than `max_pixels`.
        """
        image = self._image
        if self._encoded:
            if reduction > 1:
                image.draft("RGB", (image.width // reduction, image.height // reduction))
            self._check_size(max_pixels)
        image.load()
        return image if self._orientation == 1 else ImageOps.exif_transpose(image)

    def pixels(self, reduction: int = 1, max_pixels: int | None = None) -> np.ndarray:
        """What `to_rgb` makes of the decoded image, as uint8 (H, W, 3). Arguments and errors as those of `decode`.

        Ordinary JPEGs that are wanted whole go through simplejpeg, which gives PIL's pixels in two thirds of the time,
        and refuses what PIL would mend.
        """
        import simplejpeg  # of the extra `train`; inference opens images too

        image = self._image
        if self._encoded and (image.format, image.mode) == ("JPEG", "RGB") and self._orientation == reduction == 1:
            self._check_size(max_pixels)
            with contextlib.suppress(ValueError):
                return simplejpeg.decode_jpeg(self._data)
        return np.asarray(to_rgb(self.decode(reduction, max_pixels)))

    def _check_size(self, max_pixels: int | None) -> None:
        width, height = self._image.size
        if max_pixels is not None and width * height > max_pixels:
            raise ValueError(f"it has {width} x {height} pixels, more than {max_pixels:,}")


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
    image = UnreadImage(value)
    room = 1 if draft_size is None else min(image.size) // draft_size
    return image.decode(max((r for r in REDUCTIONS if r <= room), default=1), max_pixels)


class UndecodedImageError(ValueError):
    """An image does not decode; the text says why, and which one where that is known."""


@contextlib.contextmanager
def decoding(what: str | None = None) -> Iterator[None]:
    """Inside, whatever is raised means that an image does not decode; a package that is missing is no fault of it.

    PIL has no error of its own for a broken file: it raises OSError, ValueError, SyntaxError, struct.error, and for
    one of too many pixels an error that is none of these.

    Args:
        what: Names the image ("Image 3 of pets/test") in a message for the user; without it the text is the reason.

    Raises:
        UndecodedImageError: for every other error than ImportError.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        reason = re.sub(r" at 0x[0-9a-f]+", "", reason)[:200]  # without addresses it is the same in every run
        text = reason if what is None else f"{what} does not decode: {reason}. Leave it out or replace it."
        raise UndecodedImageError(text) from error


def image_at(images: Sequence[Any], index: int, what: str, draft_size: int | None = None) -> PILImage.Image:
    """Image number `index` of those that `open_image` takes, RGB; `what` names it if it fails.

    Raises:
        UndecodedImageError: if it does not decode.
    """
    with decoding(what):
        return to_rgb(open_image(images[index], draft_size))


def content_of(value: Any) -> Any:
    """The encoded bytes of an image that is encoded or named by its path, alone or in a dict; what is decoded, as it
    is."""
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    return read_file(str(value)) if isinstance(value, (str, Path)) else value


def path_of(value: Any) -> str | None:
    """Where an image is or was, as data sets say it, if they do."""
    return value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) else None


def read_file(path: str) -> bytes:
    """The content of a file, or of a URL."""
    if "://" not in path:
        return Path(path).read_bytes()
    import fsspec

    with fsspec.open(path, "rb") as file:
        return file.read()


__all__ = [
    "REDUCTIONS",
    "UndecodedImageError",
    "UnreadImage",
    "content_of",
    "decoding",
    "image_at",
    "open_image",
    "path_of",
    "read_file",
]
