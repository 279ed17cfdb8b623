"""Image-caption pairs for pretraining: loading a dataset, augmenting, and collating samples into batches.

    dataset = load_pretraining_dataset("path/or/hub-id", split="train")
    image_column, caption_column = find_columns(dataset)
    collator = LeVLJEPADataCollator(processor, image_column, caption_column)
    batch = collator([dataset[0], dataset[1]])  # pixel_values, input_ids, attention_mask

Images stay encoded until the collator, which runs in the DataLoader's workers. Every random choice (crop, colours,
which caption) is a function of the seed, the epoch and the sample, so a resumed run sees what an uninterrupted one
sees, and the global random state is left alone.
"""

import logging
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor
from torch.nn import functional as F
from transformers import ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from ..model.processing_levljepa import to_rgb
from .augmentation import (
    Augmentation,
    ViewChoices,
    draft_size,
    multi_view_transform,
    objective_transform,
    training_transform,
)
from .images import UndecodedImageError, UnreadImage, decoding, open_image
from .loading import (
    look_up,
)
from .seeds import seed_from
from .streams import SAMPLE_DATASET, SAMPLE_EPOCH, SAMPLE_INDEX, list_skipped
from .workers import prepare_worker

logger = logging.getLogger(__name__)

MAX_SKIPPED_RATE = 0.01
MIN_SAMPLES_TO_JUDGE = 1000  # before the end of an epoch, the rate is that of at least so many samples
MAX_IMAGE_PIXELS = 89_478_485  # from here PIL warns of decompression bombs; 268 MB in RGB
MAX_CAPTION_CHARACTERS = 20_000
IMAGE_TYPES = (bytes, bytearray, memoryview, str, Path, Mapping, PILImage.Image, Tensor, np.ndarray)
Views = Tensor | tuple[Tensor, Tensor]  # one view, or the global and the local ones
_MAX_WORKERS = 512
PIXELS = ("pixel_values", "local_pixel_values")  # of a batch: the (global) views of each image, and the local ones


# Numbering, so that randomness can follow the sample


class NumberedDataset(torch.utils.data.Dataset):
    """A map-style dataset whose samples carry their index and the epoch, from which the collator draws its randomness.

    The epoch lives in shared memory, so that `set_epoch` reaches workers that are already running.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        # Persistent workers keep the copy that they were started with, in which a plain attribute would stay at 0.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        prepare_worker()
        return {**self.dataset[index], SAMPLE_INDEX: index, SAMPLE_EPOCH: int(self._epoch)}


# Decoding and augmenting


def image_size(processor: ProcessorMixin | BaseImageProcessor) -> tuple[int, int]:
    """Height and width in pixels of the images that a processor, or its image processor, gives."""
    images = getattr(processor, "image_processor", processor)
    size = images.crop_size if images.do_center_crop else images.size
    return size["height"], size["width"]


# Collating


class SampleCounter:
    """Samples read and samples skipped, summed over the DataLoader's workers (shared memory, one row a worker)."""

    def __init__(self) -> None:
        self._counts = torch.zeros(_MAX_WORKERS, 3, dtype=torch.int64).share_memory_()

    def add(self, read: int = 0, images: int = 0, captions: int = 0) -> None:
        # One row a worker, so that nobody adds to a number that another one is writing.
        self._counts.numpy()[self._row()] += (read, images, captions)

    def read_by_this_worker(self) -> int:
        return int(self._counts[self._row(), 0])

    @property
    def read(self) -> int:
        return int(self._counts[:, 0].sum())

    @property
    def skipped_images(self) -> int:
        """Samples whose image did not decode."""
        return int(self._counts[:, 1].sum())

    @property
    def skipped_captions(self) -> int:
        """Samples whose captions were all empty or missing."""
        return int(self._counts[:, 2].sum())

    @staticmethod
    def _row() -> int:
        worker = torch.utils.data.get_worker_info()
        return 0 if worker is None else 1 + worker.id % (_MAX_WORKERS - 1)


@dataclass
class LeVLJEPADataCollator:
    """Turns samples (an image and one or several captions) into a batch for `LeVLJEPAModel`.

    In training each image is augmented and one of its captions drawn; otherwise the processor's image processor
    prepares the images, and the first caption is taken. Captions are padded as the processor pads them: to the longest
    of the batch by default.

    A sample whose image does not decode, or whose captions are all empty or missing, is skipped and counted in
    `counter`. If more than `max_skipped_rate` of the samples are skipped, an error stops the run (`check_skipped`).

    Args:
        processor: a `LeVLJEPAProcessor`.
        image_column: column of the image; see `open_image` for what it may hold.
        caption_column: column of the caption (a string) or captions (a list of strings); dots address nested fields.
        training: whether to augment and to draw the caption.
        transform: the augmentations; `training_transform` at the processor's image size by default. A
            `multi_view_transform` gives several views. Any other callable from uint8 images (3, H, W) to uint8 images
            of one size will do, and may draw from torch's global generator, which is seeded for each sample; so will
            one to a pair of stacks of views (V, 3, H, W), the global and the local ones.
        seed: decides everything random, together with the epoch and the index of the sample (in a `NumberedDataset`;
            elsewhere with the image's bytes or path and how many samples the worker has read).
        jpeg_draft: in training, decode large JPEGs at a reduced scale that still exceeds what the crop needs.
        pad_to_multiple_of: pad the captions to a multiple of this (or to the longest length allowed), so that fewer
            different lengths occur.
        max_skipped_rate: the share of the samples that may be skipped.
        max_image_pixels: larger images are skipped (as decoded: large JPEGs may be decoded at a reduced scale).
        max_caption_characters: longer captions are not drawn.
        skipped_file: where the skipped samples are listed, a line of JSON each.
        normalize: False leaves the pixels of training as uint8, a quarter of the bytes for workers and devices to
            hand over, and `normalized` makes them float32 where they have arrived; the Trainer does.
        counter: counts what was read and skipped, over all workers; by default a new one.

    Returns (when called with a list of samples):
        `pixel_values` (N, 3, H, W) float32 (of several views in training: (N, V, 3, H, W), and `local_pixel_values`
        of the local ones where there are any), `input_ids` and `attention_mask` (N, L), and in evaluation, where the
        samples are numbered, `sample_index` (N,).
    """

    processor: ProcessorMixin
    image_column: str = "image"
    caption_column: str = "captions"
    training: bool = True
    transform: Callable[[Tensor], Views] | None = None
    seed: int = 0
    jpeg_draft: bool = True
    pad_to_multiple_of: int | None = None
    max_skipped_rate: float = MAX_SKIPPED_RATE
    max_image_pixels: int = MAX_IMAGE_PIXELS
    max_caption_characters: int = MAX_CAPTION_CHARACTERS
    skipped_file: Path | None = None
    normalize: bool = True
    counter: SampleCounter = field(default_factory=SampleCounter)

    def __post_init__(self) -> None:
        if self.transform is None:
            self.transform = training_transform(image_size(self.processor))
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of={self.pad_to_multiple_of} must be at least 1.")
        self._draft_size = draft_size(self.transform) if self.jpeg_draft else None

    def for_evaluation(self, **changes: Any) -> "LeVLJEPADataCollator":
        """The same collator without randomness and with a counter of its own; `changes` replace arguments."""
        return replace(self, **{"training": False, "counter": SampleCounter(), **changes})

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        images, captions, indices = [], [], []
        for sample in samples:
            pair = self._read(sample)
            if pair is not None:
                images.append(pair[0])
                captions.append(pair[1])
                indices.append(sample.get(SAMPLE_INDEX))
        self.check_skipped(MIN_SAMPLES_TO_JUDGE)
        if not images:
            raise ValueError(f"None of the {len(samples)} samples of a batch can be used. {self._skipped()}")

        batch = {**self._pixel_values(images), **self._tokens(captions)}
        if not self.training and None not in indices:
            batch[SAMPLE_INDEX] = torch.tensor(indices)
        return batch

    def check_skipped(self, min_samples: int = 1) -> None:
        """Raises a RuntimeError if too many samples were skipped of those read (or of `min_samples`, if more)."""
        skipped = self.counter.skipped_images + self.counter.skipped_captions
        # Judged by at least `min_samples`: one broken image among the first ten is no rate of 10 %.
        if skipped > self.max_skipped_rate * max(self.counter.read, min_samples):
            raise RuntimeError(
                f"{self._skipped()} That is more than {self.max_skipped_rate:.0%}. Check the files and the columns "
                f"(image_column={self.image_column!r}, caption_column={self.caption_column!r}): the warnings above "
                "name the samples."
            )

    def _skipped(self) -> str:
        counter = self.counter
        return (
            f"Of {counter.read} samples, {counter.skipped_images} were skipped because their image in column "
            f"{self.image_column!r} does not decode, and {counter.skipped_captions} because their captions in column "
            f"{self.caption_column!r} can't be used."
        )

    def _generator(self, sample: Mapping[str, Any]) -> random.Random:
        if SAMPLE_INDEX in sample:
            key = (self.seed, sample[SAMPLE_EPOCH], sample[SAMPLE_INDEX])
        else:
            # Without a number, samples are told apart by their content, and their place in what this worker has read.
            image = look_up(sample, self.image_column)
            content = image.get("bytes") or image.get("path") if isinstance(image, Mapping) else image
            content = str(content).encode() if isinstance(content, (str, Path)) else content
            checksum = zlib.crc32(content) if isinstance(content, (bytes, bytearray, memoryview)) else 0
            key = (self.seed, self.counter.read_by_this_worker(), checksum)
        # One number of all three, the same in every process and version of Python, which `hash` does not promise.
        return random.Random(seed_from(repr(key)))

    def _read(self, sample: Mapping[str, Any]) -> tuple[Views | PILImage.Image, str] | None:
        """The image (in training its views) and the caption of a sample, or None if it has to be skipped."""
        generator = self._generator(sample) if self.training else None
        image_value = look_up(sample, self.image_column)
        caption = self._caption(look_up(sample, self.caption_column), generator)
        if image_value is not None and not isinstance(image_value, IMAGE_TYPES):
            raise TypeError(
                f"Column {self.image_column!r} holds {image_value!r:.80} ({type(image_value).__name__}), which is no "
                "image (encoded bytes, a path, a dict of them, a PIL image, an array): name another column."
            )
        # A value of the wrong type is a wrong column and has raised; from here a sample that is no good is skipped.
        self.counter.add(read=1)
        if caption is None:
            self.counter.add(captions=1)
            self._warn(
                sample,
                f"its captions in column {self.caption_column!r} are empty, missing, no Unicode text, or longer than "
                f"{self.max_caption_characters:,} characters",
            )
            return None
        try:
            image, drawn = self._open(image_value, generator)
        except UndecodedImageError as error:
            self.counter.add(images=1)
            self._warn(sample, f"its image in column {self.image_column!r} does not decode ({error})")
            return None
        return (image if generator is None else self._augmented(image, drawn, generator)), caption

    def _open(
        self, value: Any, generator: random.Random | None
    ) -> tuple[PILImage.Image | np.ndarray, Sequence[ViewChoices] | None]:
        """The image, in training as pixels (H, W, 3), and what was drawn for it before their scale was chosen."""
        if generator is None:
            with decoding():
                return open_image(value, max_pixels=self.max_image_pixels), None
        if not isinstance(self.transform, Augmentation):
            with decoding():
                return np.array(to_rgb(open_image(value, self._draft_size, self.max_image_pixels))), None
        with decoding():
            image = UnreadImage(value)
        # Drawn before the pixels are decoded: the crop decides at which scale a JPEG is decoded.
        drawn = self.transform.draw(image.size, generator)
        reduction = self.transform.reduction(drawn) if self.jpeg_draft else 1
        with decoding():
            return image.pixels(reduction, self.max_image_pixels), drawn

    def _augmented(self, pixels: np.ndarray, drawn: Sequence[ViewChoices] | None, generator: random.Random) -> Views:
        if drawn is not None:
            return self.transform.apply(pixels, drawn)
        # Somebody else's transform: it draws from torch's generator, if it draws.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator.getrandbits(63))
            return self.transform(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())

    def _warn(self, sample: Mapping[str, Any], reason: str) -> None:
        image = look_up(sample, self.image_column)
        path = image.get("path") if isinstance(image, Mapping) else None
        name = sample.get("__key__") or path or f"number {sample.get(SAMPLE_INDEX, 'unknown')}"
        dataset = {"dataset": sample[SAMPLE_DATASET]} if SAMPLE_DATASET in sample else {}
        logger.warning("Skipped sample %s: %s.", " of ".join([str(name), *dataset.values()]), reason)
        list_skipped(self.skipped_file, **dataset, sample=str(name), reason=reason)

    def _caption(self, value: Any, generator: random.Random | None) -> str | None:
        values = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]
        captions = []
        for caption in values:
            caption = caption.decode(errors="surrogateescape") if isinstance(caption, bytes) else caption
            if caption is not None and not isinstance(caption, str):
                raise TypeError(
                    f"Column {self.caption_column!r} holds {caption!r:.80} ({type(caption).__name__}): a caption is a "
                    "string, or a list of strings to draw from."
                )
            if caption is not None and caption.strip() and self._is_usable(caption):
                captions.append(caption.strip())
        if not captions:
            return None
        return captions[0] if generator is None else generator.choice(captions)

    def _is_usable(self, caption: str) -> bool:
        try:
            caption.encode()  # surrogates, alone or for bytes that were not UTF-8, are no text
        except UnicodeEncodeError:
            return False
        return len(caption) <= self.max_caption_characters

    def _pixel_values(self, images: Sequence[Views | PILImage.Image]) -> dict[str, Tensor]:
        if not self.training:
            return {"pixel_values": self.processor.image_processor(images, return_tensors="pt")["pixel_values"]}
        # One view a photo makes one stack; pairs of global and local views make two, of which the local may be empty.
        views = [images] if isinstance(images[0], Tensor) else zip(*images, strict=True)
        batch = {name: stack for name, stack in zip(PIXELS, views, strict=False) if stack[0].numel()}
        for stack in batch.values():
            if stack[0].dtype != torch.uint8:
                raise ValueError(
                    f"The transform gave an image of {stack[0].dtype}: it is to give uint8 (3, H, W), which the "
                    "collator normalises. Leave out its conversion to float."
                )
        if not self.normalize:
            return {name: torch.stack(list(stack)) for name, stack in batch.items()}
        return {name: self._normalized(stack) for name, stack in batch.items()}

    def normalized(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch whose uint8 pixels, as `normalize=False` leaves them, are float32, on the device where they are."""
        pixels = {name: batch[name] for name in PIXELS if name in batch and batch[name].dtype == torch.uint8}
        return {**batch, **{name: self._normalized(value) for name, value in pixels.items()}}

    def _normalized(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """uint8 images, or stacks of them (V, 3, H, W), as a float32 batch, with the processor's mean and std."""
        device = images[0].device
        mean, std = (
            torch.tensor(value, dtype=torch.float64)[:, None, None]
            for value in (self.processor.image_processor.image_mean, self.processor.image_processor.image_std)
        )
        scale, offset = (value.float().to(device, non_blocking=True) for value in (1 / (255 * std), -mean / std))
        # x / 255, less the mean, over the standard deviation, as one multiplication and one addition.
        if device.type != "cpu":
            return images.float().mul_(scale).add_(offset)
        # Memory from numpy, which asks for huge pages: writing to a fresh batch costs a quarter of what it does to
        # memory from torch. One image at a time stays in the cache.
        batch = torch.from_numpy(np.empty((len(images), *images[0].shape), dtype=np.float32))
        for row, image in zip(batch, images, strict=True):
            row.copy_(image).mul_(scale).add_(offset)
        return batch

    def _tokens(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        tokenizer, multiple = self.processor.tokenizer, self.pad_to_multiple_of or 1
        tokens = self.processor(text=list(captions), return_tensors="pt")  # padded and cut as the text readout needs
        longest = tokens["input_ids"].shape[1]
        # Up to the next multiple, but not beyond what the tokenizer allows.
        missing = min(-longest % multiple, tokenizer.model_max_length - longest)
        sides = (missing, 0) if tokenizer.padding_side == "left" else (0, missing)
        return {
            "input_ids": F.pad(tokens["input_ids"], sides, value=tokenizer.pad_token_id),
            "attention_mask": F.pad(tokens["attention_mask"], sides),
        }


__all__ = [
    "LeVLJEPADataCollator",
    "NumberedDataset",
    "SampleCounter",
    "image_size",
    "multi_view_transform",
    "objective_transform",
    "open_image",
    "training_transform",
]
