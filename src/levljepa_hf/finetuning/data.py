"""The data of fine-tuning: samples of an `EvaluationSplit`, augmented in training, else prepared by the processor.

    split = load_split("scenes", "segmentation", "train")
    dataset = SegmentationDataset(split, processor, segmentation_transform(processor), void=255)
    dataset[0]  # {"pixel_values": (3, S, S) float32, "labels": (S, S) int64, "sample_seed": 123}

Images are decoded in `__getitem__`, that is in the DataLoader's workers. What is random follows from the seed, the
epoch and the sample, so a resumed run sees what an uninterrupted one sees, and the global random state is left alone.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm.auto import tqdm
from transformers.image_processing_utils import BaseImageProcessor

from ..data.collator import draft_size, image_size
from ..data.images import image_at
from ..data.masks import read_mask
from ..data.seeds import seed_from
from ..data.splits import EvaluationSplit

AUGMENTATIONS = ("none", "trivial", "randaugment")


# --------------------------------------------------------------------------------------------------------- transforms


def classification_transform(
    processor: BaseImageProcessor,
    crop_scale: Sequence[float] = (0.35, 1.0),
    flip_probability: float = 0.5,
    augmentation: str = "trivial",
) -> v2.Compose:
    """From a uint8 image (3, H, W) to normalised pixels (3, S, S) at the processor's size.

    Args:
        processor: Gives the size, the mean and the standard deviation.
        crop_scale: Range of the random crop's share of the area.
        flip_probability: Of mirroring.
        augmentation: "trivial" (TrivialAugment, arXiv 2103.10158), "randaugment" (arXiv 1909.13719) or "none".

    Raises:
        ValueError: if a share, a probability or the augmentation is out of its range.
    """
    if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise ValueError(
            f"crop_scale={list(crop_scale)} must be two shares of the area, 0 < smallest <= largest <= 1."
        )
    check_share("flip_probability", flip_probability)
    if augmentation not in AUGMENTATIONS:
        raise ValueError(f"augmentation={augmentation!r} is unknown: use one of {', '.join(AUGMENTATIONS)}.")
    fill = [round(255 * mean) for mean in processor.image_mean]
    bilinear = {"interpolation": v2.InterpolationMode.BILINEAR, "fill": fill}
    colors = {"trivial": [v2.TrivialAugmentWide(**bilinear)], "randaugment": [v2.RandAugment(**bilinear)], "none": []}
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                image_size(processor),
                scale=tuple(crop_scale),
                interpolation=v2.InterpolationMode.BICUBIC,
                antialias=True,
            ),
            v2.RandomHorizontalFlip(flip_probability),
            *colors[augmentation],
            *_normalised(processor),
        ]
    )


def segmentation_transform(
    processor: BaseImageProcessor,
    scale_range: Sequence[float] = (0.5, 2.0),
    flip_probability: float = 0.5,
    photometric_probability: float = 0.5,
    void: int = 255,
) -> v2.Compose:
    """From an `Image` (3, H, W) and its `Mask` (H, W), both of `tv_tensors`, to pixels (3, S, S) and labels (S, S).

    Both go through the same scale jitter, crop and flip. Where the image is too small for the crop it is padded, with
    the processor's mean, and its mask with void.

    Args:
        processor: Gives the size, the mean and the standard deviation.
        scale_range: The longer side of the whole image becomes the crop's, times a factor of this range.
        flip_probability: Of mirroring.
        photometric_probability: Of each distortion: brightness, contrast, saturation, hue, order of channels.
        void: The label of what is padded.

    Raises:
        ValueError: if a factor or a probability is out of its range.
    """
    if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
        raise ValueError(f"scale_range={list(scale_range)} must be two factors, 0 < smallest <= largest.")
    check_share("flip_probability", flip_probability)
    check_share("photometric_probability", photometric_probability)
    size = image_size(processor)
    fill = {tv_tensors.Image: [round(255 * mean) for mean in processor.image_mean], tv_tensors.Mask: void}
    return v2.Compose(
        [
            v2.ScaleJitter(size, scale_range=tuple(scale_range), antialias=True),
            v2.RandomCrop(size, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(flip_probability),
            v2.RandomPhotometricDistort(p=photometric_probability),
            *_normalised(processor),
        ]
    )


def _normalised(processor: BaseImageProcessor) -> list[v2.Transform]:
    return [
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        v2.Normalize(processor.image_mean, processor.image_std),
        v2.ToPureTensor(),
    ]


def check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must be between 0 and 1.")


# ------------------------------------------------------------------------------------------------------------ datasets


class FineTuningDataset(Dataset):
    """Samples of a split: `pixel_values` (3, S, S) float32 and `labels`.

    Args:
        split: Images with labels or masks.
        processor: Prepares images (and masks) where there is no transform.
        transform: The augmentation; samples that have one also hold `sample_seed`, from which it drew.
        seed: Of everything random, with the epoch and the sample.
        void: Of segmentation, the label of no class.

    Raises (on reading a sample):
        ValueError: if the image does not decode, or its mask does not fit.
    """

    def __init__(
        self,
        split: EvaluationSplit,
        processor: BaseImageProcessor,
        transform: Callable[..., Any] | None = None,
        seed: int = 0,
        void: int = 255,
    ) -> None:
        self.split, self.processor, self.transform = split, processor, transform
        self.seed, self.void = seed, void
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # reaches workers that are running

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self._image(index)
        if self.transform is None:
            return self._prepared(image, index)
        seed = seed_of(self.seed, int(self._epoch), int(index))
        with seeded(seed):
            return {**self._augmented(image, index), "sample_seed": seed}

    def _image(self, index: int) -> PILImage.Image:
        return image_at(self.split.images, index, f"Image {index} of {self.split.name}", self._draft_size())

    def _draft_size(self) -> int | None:
        return None

    def _prepared(self, image: PILImage.Image, index: int) -> dict[str, Any]:
        raise NotImplementedError

    def _augmented(self, image: PILImage.Image, index: int) -> dict[str, Any]:
        raise NotImplementedError


class ClassificationDataset(FineTuningDataset):
    """Images and their classes: `labels` is an integer."""

    def _draft_size(self) -> int | None:
        return None if self.transform is None else draft_size(self.transform)

    def _prepared(self, image: PILImage.Image, index: int) -> dict[str, Any]:
        pixels = self.processor(image, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": int(self.split.labels[index])}

    def _augmented(self, image: PILImage.Image, index: int) -> dict[str, Any]:
        return {"pixel_values": self.transform(_image_tensor(image)), "labels": int(self.split.labels[index])}


class SegmentationDataset(FineTuningDataset):
    """Images and the class of each pixel: `labels` is (S, S) int64, `void` where there is no class."""

    def _mask(self, image: PILImage.Image, index: int) -> Tensor:
        return torch.from_numpy(read_mask(self.split, index, self.void, image.size[::-1]))

    def _prepared(self, image: PILImage.Image, index: int) -> dict[str, Any]:
        features = self.processor(image, segmentation_maps=self._mask(image, index), return_tensors="pt")
        return {name: features[name][0] for name in ("pixel_values", "labels")}

    def _augmented(self, image: PILImage.Image, index: int) -> dict[str, Any]:
        pixels, labels = self.transform(_image_tensor(image), tv_tensors.Mask(self._mask(image, index)))
        return {"pixel_values": pixels, "labels": labels}


def _image_tensor(image: PILImage.Image) -> tv_tensors.Image:
    return tv_tensors.Image(v2.functional.pil_to_tensor(image))


def seed_of(*key: int) -> int:
    """64 bits that follow from the key."""
    return seed_from(repr(key))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's CPU generator (torchvision draws from it) starts from `seed`; outside nothing has changed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


# ----------------------------------------------------------------------------------------------------------- collating


class FineTuningCollator:
    """Stacks samples: `pixel_values` (N, 3, S, S) and `labels`.

    Batches of training images (all samples have a seed) are mixed if an alpha is not 0, with MixUp (arXiv 1710.09412)
    or CutMix (arXiv 1905.04899), or one of the two at random: `labels` are then shares (N, C).

    Args:
        num_classes: C.
        mixup_alpha: Both parameters of the Beta distribution of MixUp's shares; 0 leaves it out.
        cutmix_alpha: The same of CutMix.

    Raises:
        ValueError: if an alpha is negative.
    """

    def __init__(self, num_classes: int, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0) -> None:
        if min(mixup_alpha, cutmix_alpha) < 0:
            raise ValueError(f"mixup_alpha={mixup_alpha} and cutmix_alpha={cutmix_alpha} must be 0 or more.")
        pairs = ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
        mixes = [mix(alpha=alpha, num_classes=num_classes) for mix, alpha in pairs if alpha > 0]
        self.mix = v2.RandomChoice(mixes) if mixes else None

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        seeds = [sample["sample_seed"] for sample in samples if "sample_seed" in sample]
        names = ("pixel_values", "labels")
        batch = default_collate([{name: sample[name] for name in names} for sample in samples])
        if self.mix is None or len(seeds) < len(samples):
            return batch
        with seeded(seed_of(*seeds)):
            return dict(zip(names, self.mix(batch["pixel_values"], batch["labels"]), strict=True))


# ------------------------------------------------------------------------------------------------------------- classes


def count_classes(split: EvaluationSplit, num_workers: int = 0, show_progress: bool = True) -> Tensor:
    """How many images (of a split with masks: pixels) each class has, [C] int64. Reads, and so checks, every mask.

    Raises:
        ValueError: if a label or a mask has a value that is no class, or a mask has not its image's size.
    """
    num_classes = len(split.require("class_names"))
    if split.masks is None:
        labels = torch.as_tensor(split.require("labels"))
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            raise ValueError(
                f"{split.name} has the label {wrong[0]}, and there are {num_classes} classes: labels go from 0 to "
                f"{num_classes - 1}. Name all classes with --class_names."
            )
        return torch.bincount(labels, minlength=num_classes)
    counts = torch.zeros(num_classes, dtype=torch.int64)
    masks = DataLoader(_MaskCounts(split), batch_size=None, num_workers=num_workers, generator=torch.Generator())
    for one in tqdm(masks, f"checking masks of {split.name}", disable=not show_progress):
        counts += one
    return counts


class _MaskCounts(Dataset):
    """Pixels of each class in a mask, [C]."""

    def __init__(self, split: EvaluationSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, index: int) -> Tensor:
        num_classes = len(self.split.class_names)
        mask = torch.from_numpy(read_mask(self.split, index, void=num_classes))
        return torch.bincount(mask.flatten(), minlength=num_classes + 1)[:-1]


class ClassBalancedSampler(Sampler[int]):
    """Draws each class with the same probability, and then one of its samples: as many draws as there are samples.

    The draws follow from the seed and the epoch (`set_epoch`). Classes without a sample are left out.

    Args:
        labels: [N] class of each sample.
        seed: Of the draws.
    """

    def __init__(self, labels: Sequence[int], seed: int = 0) -> None:
        self.order = torch.as_tensor(labels).argsort(stable=True)  # [N], class by class
        self.counts = torch.as_tensor(labels).unique(return_counts=True)[1]  # of the classes that occur
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch) % 2**63)
        classes = torch.randint(len(self.counts), (len(self),), generator=generator)
        within = (torch.rand(len(self), generator=generator, dtype=torch.float64) * self.counts[classes]).long()
        starts = self.counts.cumsum(0) - self.counts
        yield from self.order[starts[classes] + within].tolist()


__all__ = [
    "AUGMENTATIONS",
    "ClassBalancedSampler",
    "ClassificationDataset",
    "FineTuningCollator",
    "FineTuningDataset",
    "SegmentationDataset",
    "classification_transform",
    "count_classes",
    "segmentation_transform",
]
