"""Features of many images, extracted once for each encoder and transform, and kept on disk.

    features = pooled_features(encoder, images, transform="evaluation", cache_dir="features")
    features["cls"]  # [N, C]

What is kept is addressed by content: a folder for each (weights, transform, kind, dtype, versions), in it files with
the features of some images beside the digest of each image. An image that is there already, from an earlier
extraction, an interrupted one or another data set, is read; the others are encoded. A file has its name from when it
is whole.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.images import content_of, decoding, open_image
from ..files import write_whole
from ..model.processing_levljepa import to_rgb
from ..version import __version__
from .encoders import Encoder, patch_grid

logger = logging.get_logger(__name__)

DEFAULT_CACHE = Path(HF_HOME) / "levljepa_hf" / "features"
_FORMAT = 1  # of the files: another one is another folder
_PACKAGES = ("timm", "torch", "torchvision", "transformers")  # what decides the features
_FILE_BYTES = 64 * 2**20  # features held in memory before they are written ...
_FILE_SECONDS = 60  # ... or so long: what an interruption costs
_DIGEST_BYTES = 16


def pooled_features(encoder: Encoder, images: Sequence[Any], **options: Any) -> dict[str, Tensor]:
    """What does not grow with the number of patches, of every image.

    Args:
        encoder: What encodes them.
        images: N images as `levljepa_hf.data.images.open_image` takes them.
        options: Those of `extract`.

    Returns:
        `cls` and `mean` (of the patch tokens), [N, C]; of an encoder with a text tower also `image_embeds` and, with
        predictors, `predictions`, [N, D]. All float32 on the CPU.

    Raises:
        ValueError: as `extract`.
    """
    features = extract(encoder, images, _pooled, "pooled", **options)
    return {name: features.column(name) for name in features.names}


def patch_features(
    encoder: Encoder, images: Sequence[Any], dtype: torch.dtype = torch.float16, **options: Any
) -> "PatchFeatures":
    """The patch tokens of every image, on disk: in the cache, or in a temporary folder that lives as long as they.

    Args:
        encoder: What encodes them.
        images: N images as `levljepa_hf.data.images.open_image` takes them.
        dtype: In which they are kept. ADE20K's 20,210 training images take 6 GB of a ViT-B/16 in float16.
        options: Those of `extract`.

    Raises:
        ValueError: as `extract`.
    """

    def patches(encoder: Encoder, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"patches": encoder.tokens(pixel_values).patches.to(dtype)}

    kind = f"patches-{str(dtype).removeprefix('torch.')}"
    return PatchFeatures(extract(encoder, images, patches, kind, in_memory=False, **options), encoder.image_size)


def _pooled(encoder: Encoder, pixel_values: Tensor) -> dict[str, Tensor]:
    tokens, embeddings = encoder.encode(pixel_values)
    features = {"cls": tokens.cls, "mean": tokens.patches.float().mean(dim=1)}
    if embeddings is not None:
        features["image_embeds"] = embeddings.embeds
        if embeddings.predictions is not None:
            features["predictions"] = embeddings.predictions
    return {name: tensor.float() for name, tensor in features.items()}


def extract(
    encoder: Encoder,
    images: Sequence[Any],
    encode: Callable[[Encoder, Tensor], dict[str, Tensor]],
    kind: str,
    *,
    transform: str = "evaluation",
    batch_size: int = 64,
    num_workers: int = 0,
    cache_dir: str | os.PathLike | None = None,
    in_memory: bool = True,
    show_progress: bool = True,
) -> "Features":
    """Encodes the images that the cache lacks.

    Args:
        encoder: What encodes them.
        images: N images as `levljepa_hf.data.images.open_image` takes them.
        encode: `(encoder, pixel_values [n, 3, S, S])` to named tensors [n, ...].
        kind: Names what `encode` gives, in the cache's key.
        transform: How images are prepared, see `Encoder.image_processor`.
        batch_size: Images encoded at a time.
        num_workers: Processes that decode and prepare the images; 0 does it here.
        cache_dir: The cache's folder, such as `DEFAULT_CACHE`; without it nothing is kept.
        in_memory: Whether, without a cache, features stay in memory; else they go to a temporary folder.
        show_progress: Whether several batches show a progress bar.

    Raises:
        ValueError: if there are no images, one of them does not decode, a feature is not finite, or the transform is
            unknown.
        OSError: if features cannot be written; where the folder is at fault, before any image is encoded.
    """
    if len(images) == 0:
        raise ValueError("There are no images to encode.")
    processor = encoder.image_processor(transform)
    settings = {
        "format": _FORMAT,
        "versions": {"levljepa_hf": __version__, **{name: version(name) for name in _PACKAGES}},
        "kind": kind,
        "encoder": encoder.fingerprint,
        "images": {k: v for k, v in sorted(processor.to_dict().items()) if k != "auto_map"},
    }
    store = _open_store(encoder.name, settings, cache_dir, in_memory)
    dataset = _Prepared(images, processor, store.rows.keys())
    pinned = encoder.device.type == "cuda"
    loader = DataLoader(
        dataset,
        batch_size,
        num_workers=num_workers,
        collate_fn=_stack_new,
        pin_memory=pinned,
        # Or the loader would draw a seed from the global generator, and encoding change what is drawn afterwards.
        generator=torch.Generator(),
    )
    # The workers know what was there when they started; `known` grows, for images that occur more than once.
    known, order = set(store.rows), []
    with tqdm(total=len(images), desc=f"encoding {kind}", unit=" images", disable=not show_progress) as bar:
        for digests, new, pixel_values in loader:
            order += digests
            fresh = [i for i, digest in enumerate(new) if digest not in known]  # an earlier batch may have the others
            if fresh:
                store.check_writable()
                pixel_values = pixel_values if len(fresh) == len(new) else pixel_values[fresh]
                store.add([new[i] for i in fresh], encode(encoder, pixel_values))
            known.update(new)
            bar.update(len(digests))
    store.flush()
    return Features(store, order)


class Features:
    """Named features of images, read from where they are kept."""

    def __init__(self, store: "_Store", order: Sequence[bytes]) -> None:
        self._store = store
        places = [store.rows[digest] for digest in order]
        self._file = torch.tensor([file for file, _ in places])
        self._row = torch.tensor([row for _, row in places])
        self.names = [name for name in store.files[places[0][0]] if name != "digests"]

    def __len__(self) -> int:
        return len(self._file)

    def read(self, name: str, indices: Tensor) -> Tensor:
        """The features [n, ...] of some images, in the dtype they are kept in; reads those and no others."""
        files, rows = self._file[indices], self._row[indices]
        first = self._store.files[int(files[0])][name]
        out = torch.empty(len(files), *first.shape[1:], dtype=first.dtype)
        # File by file, so that each is read through once, in whatever order the images are asked for.
        for file in files.unique().tolist():
            of_file = files == file
            out[of_file] = self._store.files[file][name][rows[of_file]]
        return out

    def column(self, name: str) -> Tensor:
        """The features [N, ...] of all images, float32."""
        return self.read(name, torch.arange(len(self))).float()


class PatchFeatures:
    """Patch tokens on disk, read some images at a time.

    Attributes:
        shape: (N, P, C).
        grid: Rows and columns of the patches.
    """

    def __init__(self, features: Features, image_size: int) -> None:
        self._features = features
        self.shape = (len(features), *features.read("patches", torch.tensor([0])).shape[1:])
        self.grid = patch_grid(self.shape[1], image_size, image_size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Tensor | Sequence[int] | slice) -> Tensor:
        """[n, P, C] of the images asked for, float32 on the CPU; reads those and no others."""
        return self._features.read("patches", torch.arange(len(self))[indices]).float()


class _Prepared(Dataset):
    """An image's digest, and its pixel values where the digest is not among those known."""

    def __init__(self, images: Sequence[Any], processor: Any, known: Any) -> None:
        self.images, self.processor, self.known = images, processor, frozenset(known)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[bytes, Tensor | None]:
        with decoding(f"Image {index}"):
            image = self.images[index]
            digest = image_digest(image)
            if digest in self.known:
                return digest, None
            image = to_rgb(open_image(image))
        return digest, self.processor(image, return_tensors="pt")["pixel_values"][0]


def _stack_new(batch: Sequence[tuple[bytes, Tensor | None]]) -> tuple[list[bytes], list[bytes], Tensor | None]:
    """Digests of all images; those of the new ones, each once, and their pixel values [n, 3, S, S].

    Stacked here, in the workers: the pixels come from them in one piece, and not in one for each image.
    """
    new = {digest: pixels for digest, pixels in batch if pixels is not None}
    return [digest for digest, _ in batch], list(new), torch.stack(list(new.values())) if new else None


def image_digest(image: Any) -> bytes:
    """16 bytes of the content: of the encoded file where there is one, else of the pixels."""
    image = content_of(image)
    if isinstance(image, Image.Image):
        image = to_rgb(image)
        header, data = f"{image.size}".encode(), image.tobytes()
    elif isinstance(image, (Tensor, np.ndarray)):
        array = np.ascontiguousarray(image)
        header, data = f"{array.dtype} {array.shape}".encode(), array.tobytes()
    elif isinstance(image, (bytes, bytearray, memoryview)):
        header, data = b"", bytes(image)
    else:
        raise ValueError(f"it is a {type(image).__name__}, and no image")
    return hashlib.sha256(header + data).digest()[:_DIGEST_BYTES]


def _open_store(name: str, settings: dict[str, Any], cache_dir: str | os.PathLike | None, in_memory: bool) -> "_Store":
    if cache_dir is None:
        return _Store(None) if in_memory else _temporary_store()
    text = json.dumps(settings, indent=1, default=str)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    label = re.sub(r"[^\w.-]+", "-", Path(name).name or name)[-40:]
    folder = Path(cache_dir) / f"{label}-{settings['kind']}-{key}"
    with _writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "settings.json").exists():
            write_whole(folder / "settings.json", lambda path: path.write_text(text + "\n"))
    return _Store(folder)


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Errors inside say what to do. The files that are there already are kept."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        raise OSError(
            f"Features cannot be written to {folder} ({error}): give another folder with --cache_dir, or --no_cache "
            "to keep none (TMPDIR says where those of one run go)."
        ) from error


def _temporary_store() -> "_Store":
    """In a folder that goes when nothing reads it any more."""
    store = _Store(Path(tempfile.mkdtemp(prefix="levljepa-features-")))
    weakref.finalize(store, shutil.rmtree, store.folder, ignore_errors=True)
    return store


class _Store:
    """The files of one folder, memory-mapped, and in which row of which each image's features are."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.files: list[dict[str, Tensor]] = []
        self.rows: dict[bytes, tuple[int, int]] = {}
        self._pending: list[dict[str, Tensor]] = []
        self._pending_bytes = 0
        self._since = time.monotonic()
        self._is_writable = folder is None
        for path in sorted(self.folder.glob("[!.]*.safetensors")) if self.folder else ():
            try:
                tensors = load_file(path)
                self._check(tensors)
                self._index(tensors)
            except (SafetensorError, OSError, ValueError) as error:
                logger.warning(f"{path} is no whole file of features ({error}): its images are encoded again.")

    def _check(self, tensors: dict[str, Tensor]) -> None:
        """Raises a ValueError if a file is not one that `flush` wrote, or not of the same features as the others."""
        digests = tensors.get("digests")
        if digests is None or digests.dtype != torch.uint8 or digests.shape[1:] != (_DIGEST_BYTES,):
            raise ValueError("it has no digests of images")
        for name, tensor in tensors.items():
            if len(tensor) != len(digests):
                raise ValueError(f"{name} has {len(tensor)} rows for {len(digests)} images")
            if not tensor.isfinite().all():
                raise ValueError(f"{name} is not finite")
        if self.files and _layout(tensors) != _layout(self.files[0]):
            raise ValueError(f"it has {_layout(tensors)}, and others {_layout(self.files[0])}")

    def check_writable(self) -> None:
        """Sees before the work, once, whether a file can be written. What is all there already needs no writing."""
        if not self._is_writable:
            with _writing_to(self.folder), tempfile.TemporaryFile(dir=self.folder):
                self._is_writable = True

    def _index(self, tensors: dict[str, Tensor]) -> None:
        for row, digest in enumerate(tensors["digests"].numpy()):
            # The first one stays: two processes may have encoded the same image into files of their own.
            self.rows.setdefault(digest.tobytes(), (len(self.files), row))
        self.files.append(tensors)

    def add(self, digests: Sequence[bytes], features: dict[str, Tensor]) -> None:
        stacked = torch.from_numpy(np.stack([np.frombuffer(digest, dtype=np.uint8) for digest in digests]))
        features = {name: tensor.cpu() for name, tensor in features.items()}
        for name, tensor in features.items():
            if not tensor.isfinite().all():
                raise ValueError(
                    f"The encoder's {name} are not finite in {str(tensor.dtype)[6:]}: its weights have diverged, or "
                    "the values are too large for the dtype; use float32."
                )
        self._pending.append({"digests": stacked, **features})
        self._pending_bytes += sum(tensor.nbytes for tensor in self._pending[-1].values())
        if self.folder and (self._pending_bytes > _FILE_BYTES or time.monotonic() - self._since > _FILE_SECONDS):
            self.flush()

    def flush(self) -> None:
        if self._pending:
            # One file of many batches: a file a batch would be thousands, of which each is opened and mapped.
            merged = {name: torch.cat([one[name] for one in self._pending]) for name in self._pending[0]}
            self._pending, self._pending_bytes = [], 0
            if self.folder:
                # A name that no other process takes: several may fill one folder at a time.
                path = self.folder / f"{uuid.uuid4().hex}.safetensors"
                with _writing_to(self.folder):
                    write_whole(path, lambda part: save_file(merged, part))
                # Mapped from the disk again, so that what is written no longer takes memory.
                merged = load_file(path)
            self._index(merged)
        self._since = time.monotonic()


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of each feature of one image."""
    return {name: (str(tensor.dtype)[6:], tuple(tensor.shape[1:])) for name, tensor in sorted(tensors.items())}


__all__ = [
    "DEFAULT_CACHE",
    "Features",
    "PatchFeatures",
    "extract",
    "image_digest",
    "patch_features",
    "pooled_features",
]
