"""Semantic segmentation by a linear layer on frozen patch tokens (LeVLJEPA, arXiv 2607.00784, section on dense tasks).

result = evaluate_segmentation(load_encoder("runs/demo"), train, test, cache_dir="features")
result.metrics["mean_iou"]

Patch tokens stay on disk and are read a batch at a time, and so are the masks: memory does not grow with the data.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassConfusionMatrix
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.images import image_at, open_image
from ..data.masks import read_mask
from ..data.splits import check_same_classes
from ..encoders.encoders import Encoder
from ..encoders.features import PatchFeatures, patch_features
from ..model.processing_levljepa import to_rgb
from ..options import option, with_field_help
from .classification import check_seeds
from .pictures import plot_segmentation
from .results import TaskResult
from .task import Task

if TYPE_CHECKING:
    from ..data.splits import EvaluationSplit

logger = logging.get_logger(__name__)

LOSS_PLACES = ("patches", "pixels")
_ORDER_SEED = 0  # of the order of the images, which all runs share
_CHUNK_BYTES = 2**24  # of the logits that are held at a time; on a CPU larger tensors come with fresh pages
_TOKEN_BYTES = 2  # float16, as `patch_features` keeps them
_NUM_SHOWN = 6


@with_field_help
@dataclass(frozen=True)
class SegmentationProtocol:
    """One linear layer (with bias) on the patch tokens after the final norm, without the class token.

    The paper says so much, and that void is ignored, that logits are upsampled bilinearly to the image size (224) for
    scoring, and that the mean is over the classes present. The constants below and the standardising of the tokens
    are those of a reproduction of it (ADE20K: 23.6), which also resized to 224 without a margin, bicubically
    (transform "default-bicubic").
    `levljepa evaluate segmentation` makes options of the fields.
    """

    loss_at: str = option(
        default="patches",
        help="Where the loss is taken: patches (labels brought down to the patches, as in the reproduction) or "
        "pixels (logits brought up to the image size). The paper does not say.",
    )
    learning_rate: float = option(default=1e-2, help="Of AdamW, constant.")
    weight_decay: float = option(default=0.0, help="Of AdamW.")
    batch_size: int = option(default=256, help="Images in a step.")
    epochs: int = option(default=30, help="Passes over the training images.")

    def __post_init__(self) -> None:
        if self.loss_at not in LOSS_PLACES:
            raise ValueError(f"loss_at={self.loss_at!r} is unknown: use {' or '.join(map(repr, LOSS_PLACES))}.")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"learning_rate={self.learning_rate} and weight_decay={self.weight_decay}: give a positive rate, "
                "and a decay of 0 or more."
            )
        if self.batch_size < 1 or self.epochs < 1:
            raise ValueError(f"batch_size={self.batch_size} and epochs={self.epochs}: both must be 1 or more.")


def evaluate_segmentation(
    encoder: Encoder,
    train: "EvaluationSplit",
    test: "EvaluationSplit",
    protocol: SegmentationProtocol | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    **feature_options: Any,
) -> TaskResult:
    """Mean IoU of a linear layer that is trained on one split and scored on another.

    Masks go through the resize (nearest) and crop of their images. Tokens are standardised per dimension by the mean
    and deviation of all training tokens. The runs differ by the layer's initialisation; they see the images in one
    order and are trained side by side, so that tokens are read once for all. A run does not depend on the others.

    At the patches a label is that of the pixel at the patch's centre, where bilinear upsampling places its logits
    (torch's "nearest-exact"; its "nearest" takes the corner's).

    Args:
        encoder: What encodes the images, resampled in its own way (LeVLJEPA: bilinear) unless `transform` says other.
        train: Images with masks and class names.
        test: The same, of the same classes.
        protocol: By default the reproduction's.
        seeds: One for each run.
        feature_options: Those of `levljepa_hf.encoders.features.extract`. The tokens go to `cache_dir`, or to a
            temporary folder; their size is in the details.

    Returns:
        `mean_iou` and `mean_accuracy` over the classes that the test masks have, `mean_iou_learnable` over those of
        them that the training masks have too, `pixel_accuracy`, `frequency_weighted_iou`. Pixels are those of the
        prepared masks. The details name the classes, and the IoU of each (mean over the runs). Chance is the constant
        answer of the most frequent training class.

    Raises:
        ValueError: if there are no seeds; if a split has no masks or class names or the two disagree; if a mask has
            not its image's size, or values of no class; if the two splits share no class; if the encoder's patches
            form no grid, or are not finite; if the disk has no room.
    """
    protocol = protocol or SegmentationProtocol()
    check_seeds(seeds)
    names = _class_names(train, test)
    grid = _patch_grid(encoder)
    options = {"transform": train.transform, **feature_options}
    bytes_per_image = (
        grid[0] * grid[1] * encoder.hidden_size * _TOKEN_BYTES
        + encoder.image_size**2 * _map_dtype(len(names)).itemsize
    )
    num_bytes = (len(train.images) + len(test.images)) * bytes_per_image
    _check_disk(num_bytes, options.get("cache_dir"))

    reading = {
        name: options[name] for name in ("transform", "num_workers", "cache_dir", "show_progress") if name in options
    }
    train_maps, test_maps = (LabelMaps(split, encoder, **reading) for split in (train, test))
    present, in_train = test_maps.counts[:-1] > 0, train_maps.counts[:-1] > 0
    if not (present & in_train).any():
        raise ValueError(
            f"No class of {test.name} is found in {train.name}: are the masks those of the class names, and void "
            f"{test.void}?"
        )
    train_tokens, test_tokens = (patch_features(encoder, split.images, **options) for split in (train, test))

    show = options.get("show_progress", True)
    heads = _train(train_tokens, train_maps, protocol, seeds, encoder.device, show)
    shown = torch.linspace(0, len(test_maps) - 1, min(_NUM_SHOWN, len(test_maps))).long()
    confusions, predictions = _score(heads, test_tokens, test_maps, shown, show)

    constant = torch.zeros(len(names), len(names), dtype=torch.int64)
    constant[:, train_maps.counts[:-1].argmax()] = test_maps.counts[:-1]
    per_class = torch.stack([iou_per_class(confusion) for confusion in confusions]).mean(dim=0)

    def draw(path: Any = None) -> Any:
        processor = encoder.image_processor(options["transform"])
        images = [to_rgb(open_image(test.images[i])) for i in shown.tolist()]
        pixels = processor(images, do_normalize=False, return_tensors="pt")["pixel_values"]
        return plot_segmentation(pixels, test_maps[shown], predictions, names, path)

    return TaskResult(
        runs=[_metrics(confusion, in_train) for confusion in confusions],
        details={
            "num_train": len(train_maps),
            "num_test": len(test_maps),
            "num_classes": len(names),
            "num_classes_averaged": int(present.sum()),
            "num_classes_learnable": int((present & in_train).sum()),
            "classes_absent_from_train": [name for name, found in zip(names, in_train, strict=True) if not found],
            "classes_absent_from_test": [name for name, found in zip(names, present, strict=True) if not found],
            "void_share_train": train_maps.void_share,
            "void_share_test": test_maps.void_share,
            "patch_grid": list(grid),
            "disk_bytes": num_bytes,
            "chance_class": names[int(train_maps.counts[:-1].argmax())],
            "iou_per_class": {names[i]: per_class[i].item() for i in present.nonzero()[:, 0].tolist()},
        },
        chance=_metrics(constant, in_train),
        pictures={"predictions": draw},
    )


def iou_per_class(confusion: Tensor) -> Tensor:
    """Intersection over union [K] of a confusion matrix [K, K] (rows are true classes); NaN where both are empty."""
    confusion = confusion.double()
    hits = confusion.diagonal()
    return hits / (confusion.sum(dim=0) + confusion.sum(dim=1) - hits)


def _metrics(confusion: Tensor, in_train: Tensor) -> dict[str, float]:
    """Means over the classes that the truth has. torchmetrics' macro average also counts, as 0, each class that is
    only predicted."""
    iou, frequency = iou_per_class(confusion), confusion.sum(dim=1).double()
    present = frequency > 0
    return {
        "mean_iou": iou[present].mean().item(),
        "mean_iou_learnable": iou[present & in_train].mean().item(),
        "mean_accuracy": (confusion.diagonal()[present] / frequency[present]).mean().item(),
        "pixel_accuracy": (confusion.diagonal().sum() / frequency.sum()).item(),
        "frequency_weighted_iou": (iou[present] * frequency[present]).sum().item() / frequency.sum().item(),
    }


# ------------------------------------------------------------------------------------------------------------- checks


def _class_names(train: "EvaluationSplit", test: "EvaluationSplit") -> tuple[str, ...]:
    for split in (train, test):
        masks = split.require("masks")
        if len(masks) != len(split.images):
            raise ValueError(f"{split.name} has {len(split.images)} images and {len(masks)} masks: give one for each.")
    return check_same_classes(train, test)


def _patch_grid(encoder: Encoder) -> tuple[int, int]:
    side = encoder.image_size
    _, patches, (rows, columns) = encoder.tokens(torch.zeros(1, 3, side, side))
    if rows * columns != patches.shape[1]:
        raise ValueError(
            f"{encoder.name} gives {patches.shape[1]} patch tokens, which form no grid of {rows} x {columns}: "
            "segmentation needs an encoder with one token for each square of the image."
        )
    return rows, columns


def _check_disk(num_bytes: int, cache_dir: Any) -> None:
    """Raises where the tokens cannot fit, even if all that the cache holds were theirs; warns where it is close."""
    folder = Path(cache_dir or tempfile.gettempdir())
    kept = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) if cache_dir else 0
    free = shutil.disk_usage(next(one for one in (folder, *folder.absolute().parents) if one.exists())).free
    if num_bytes > free:
        message = (
            f"Patch tokens and masks take {num_bytes / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free: take a "
            "folder on another disk (--cache_dir), or fewer images (--max_train_samples, --max_samples)."
        )
        if num_bytes > free + kept:
            raise ValueError(message)
        logger.warning(f"{message} It is enough only if they are there already.")


# -------------------------------------------------------------------------------------------------------------- masks


class LabelMaps:
    """The masks of a split under the geometry of the prepared images, in a temporary file, read some at a time.

    Args:
        split: Images with masks and class names.
        encoder: Whose image processor prepares them, to squares of side S.
        transform: As `Encoder.image_processor` takes it.
        num_workers: Processes that read them; 0 does it here.
        cache_dir: The folder whose disk holds the file, by default the system's temporary folder.
        show_progress: Whether there is a progress bar.

    Attributes:
        size: S.
        void: K, the number of classes: the value of void in what is read.
        counts: [K + 1] pixels of each class, then of void.

    Raises:
        ValueError: if a mask has not its image's size, or values that are neither a class nor void.
    """

    def __init__(
        self,
        split: "EvaluationSplit",
        encoder: Encoder,
        transform: str,
        num_workers: int = 0,
        cache_dir: Any = None,
        show_progress: bool = True,
    ) -> None:
        masks = _PreparedMasks(split, encoder.image_processor(transform))
        self.size, self.void = encoder.image_size, masks.void
        if cache_dir is not None:
            Path(cache_dir).mkdir(parents=True, exist_ok=True)
        self.counts = torch.zeros(self.void + 1, dtype=torch.int64)
        loader = DataLoader(masks, batch_size=None, num_workers=num_workers, generator=torch.Generator())
        dtype = _map_dtype(self.void)
        with tempfile.TemporaryFile(dir=cache_dir) as file:  # stays while it is mapped
            for labels in tqdm(loader, f"reading masks of {split.name}", disable=not show_progress):
                file.write(labels.numpy().astype(dtype).tobytes())
                self.counts += torch.bincount(labels.flatten(), minlength=len(self.counts))
            file.flush()
            self._maps = np.memmap(file, dtype, "r", shape=(len(masks), self.size, self.size))

    def __len__(self) -> int:
        return len(self._maps)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """[n, S, S] classes, `void` where there is none, int64; reads those and no others."""
        return torch.from_numpy(self._maps[indices.numpy()]).long()

    @property
    def void_share(self) -> float:
        return (self.counts[-1] / self.counts.sum()).item()


def _map_dtype(num_classes: int) -> np.dtype:
    """Holds 0 to `num_classes`, the value of void."""
    return np.dtype(np.uint8 if num_classes < 256 else np.int32)


class _PreparedMasks(Dataset):
    """Label maps [S, S] (int64), in which void is K, the number of classes."""

    def __init__(self, split: "EvaluationSplit", processor: Any) -> None:
        self.split, self.processor, self.void = split, processor, len(split.class_names)

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, index: int) -> Tensor:
        image = image_at(self.split.images, index, f"Image {index} of {self.split.name}")
        mask = read_mask(self.split, index, self.void, image.size[::-1])
        return self.processor(image, segmentation_maps=mask, return_tensors="pt")["labels"][0]


# --------------------------------------------------------------------------------------------- training and scoring


@dataclass
class _Heads:
    """Linear layers of R runs, side by side, on standardised tokens."""

    linear: nn.Linear  # C to R x K
    mean: Tensor  # [C]
    std: Tensor  # [C]
    num_runs: int
    grid: tuple[int, int]

    def logits(self, tokens: Tensor) -> Tensor:
        """[n, P, C] on any device to [n, rows, columns, R, K]."""
        standardised = (tokens.to(self.mean.device) - self.mean) / self.std
        return self.linear(standardised).unflatten(1, self.grid).unflatten(3, (self.num_runs, -1))


def _upsample(logits: Tensor, size: int) -> Tensor:
    """[n, rows, columns, R, K] to [n, size, size, R, K]."""
    channels = logits.flatten(3).movedim(3, 1)  # channels last in memory, and so is what comes back
    maps = F.interpolate(channels, size=(size, size), mode="bilinear", align_corners=False)
    return maps.movedim(1, 3).unflatten(3, logits.shape[3:])


def _to_patches(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """[n, S, S] to [n, rows, columns]: the pixel at each patch's centre."""
    return F.interpolate(labels[:, None].float(), size=grid, mode="nearest-exact")[:, 0].long()


def _train(
    tokens: PatchFeatures,
    maps: LabelMaps,
    protocol: SegmentationProtocol,
    seeds: Sequence[int],
    device: torch.device,
    show_progress: bool,
) -> _Heads:
    mean, std = (x.to(device) for x in _statistics(tokens, protocol.batch_size))
    linear = _initial_heads(tokens.shape[2], maps.void, seeds).to(device)
    heads = _Heads(linear, mean, std, len(seeds), tokens.grid)
    at_pixels = protocol.loss_at == "pixels"
    cells = maps.size**2 if at_pixels else tokens.shape[1]
    optimizer = torch.optim.AdamW(linear.parameters(), lr=protocol.learning_rate, weight_decay=protocol.weight_decay)
    for batch in _batches(len(tokens), protocol, show_progress):
        labels = maps[batch] if at_pixels else _to_patches(maps[batch], tokens.grid)
        num_labelled = (labels != maps.void).sum().clamp(min=1)
        optimizer.zero_grad()
        for chunk in _chunks(len(batch), cells * linear.out_features):
            logits = heads.logits(tokens[batch[chunk]])
            logits = _upsample(logits, maps.size) if at_pixels else logits
            target = labels[chunk].to(device)[..., None].expand(logits.shape[:4])
            loss = F.cross_entropy(logits.flatten(0, 3), target.flatten(), ignore_index=maps.void, reduction="sum")
            (loss / num_labelled).backward()  # a sum over the runs, each with the gradient of its own mean
        optimizer.step()
    return heads


def _statistics(tokens: PatchFeatures, batch_size: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C] over all tokens of all images; 1 where a dimension does not vary."""
    scaler = StandardScaler()
    for batch in torch.arange(len(tokens)).split(batch_size):
        scaler.partial_fit(tokens[batch].flatten(0, 1).numpy())
    return torch.from_numpy(scaler.mean_).float(), torch.from_numpy(scaler.scale_).float()


def _initial_heads(num_features: int, num_classes: int, seeds: Sequence[int]) -> nn.Linear:
    """torch's own initialisation of one layer for each seed, stacked."""
    layers = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.default_generator.manual_seed(seed)
            layers.append(nn.Linear(num_features, num_classes))
        stacked = nn.Linear(num_features, num_classes * len(seeds))
    with torch.no_grad():
        stacked.weight.copy_(torch.cat([layer.weight for layer in layers]))
        stacked.bias.copy_(torch.cat([layer.bias for layer in layers]))
    return stacked


def _batches(num_images: int, protocol: SegmentationProtocol, show_progress: bool) -> Iterator[Tensor]:
    """The indices of each step's images, sorted within the step: they are read from disk in that order."""
    generator = torch.Generator().manual_seed(_ORDER_SEED)
    steps = protocol.epochs * -(-num_images // protocol.batch_size)
    with tqdm(total=steps, desc="training the linear layer", unit=" steps", disable=not show_progress) as bar:
        for _ in range(protocol.epochs):
            for batch in torch.randperm(num_images, generator=generator).split(protocol.batch_size):
                yield batch.sort().values
                bar.update()


def _chunks(num_images: int, logits_per_image: int) -> Iterator[slice]:
    """Slices whose float32 logits fit `_CHUNK_BYTES`, of one image at least."""
    length = max(1, _CHUNK_BYTES // (4 * logits_per_image))
    for start in range(0, num_images, length):
        yield slice(start, start + length)


@torch.no_grad()
def _score(
    heads: _Heads, tokens: PatchFeatures, maps: LabelMaps, shown: Tensor, show_progress: bool
) -> tuple[list[Tensor], Tensor]:
    """The confusion matrix [K, K] of each run over all pixels that are not void, and the first run's predictions
    [n, S, S] for the images `shown`."""
    device = heads.mean.device
    metrics = [
        MulticlassConfusionMatrix(maps.void, ignore_index=maps.void, validate_args=False).to(device)
        for _ in range(heads.num_runs)
    ]
    pictures = []
    with tqdm(total=len(tokens), desc="scoring", unit=" images", disable=not show_progress) as bar:
        for chunk in _chunks(len(tokens), maps.size**2 * heads.linear.out_features):
            indices = torch.arange(len(tokens))[chunk]
            predictions = _upsample(heads.logits(tokens[indices]), maps.size).argmax(dim=4)  # [n, S, S, R]
            labels = maps[indices].to(device)
            for run, metric in enumerate(metrics):
                metric.update(predictions[..., run], labels)
            pictures.append(predictions[torch.isin(indices, shown)][..., 0].cpu())
            bar.update(len(indices))
    return [metric.compute().cpu() for metric in metrics], torch.cat(pictures)


TASK = Task(
    help="a linear layer on frozen patches, mean IoU",
    protocol=SegmentationProtocol,
    run=evaluate_segmentation,
    reads="masks",
    headlines={"mean IoU": ("mean_iou",)},
    transform="default",  # what a margin would cut off is to be segmented too
    hub_task="image-segmentation",
    position=70,
)


__all__ = ["LOSS_PLACES", "LabelMaps", "SegmentationProtocol", "evaluate_segmentation", "iou_per_class"]
