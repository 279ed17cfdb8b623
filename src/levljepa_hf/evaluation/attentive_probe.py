"""Attentive probe: one block of attention over frozen patch tokens, then a linear layer.

A learned query attends to the patch tokens, without the class token; a multilayer perceptron and a linear layer follow
(the pooling of V-JEPA, arXiv 2404.08471, and CAPI, arXiv 2502.08769). The constants are those of LeVLJEPA's paper
(arXiv 2607.00784), where it reaches 73 % on ImageNet.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm.auto import tqdm
from transformers.image_utils import pil_torch_interpolation_mapping

from ..data.collator import draft_size
from ..data.images import image_at
from ..data.seeds import seed_from
from ..data.splits import EvaluationSplit
from ..encoders.encoders import Encoder
from ..encoders.features import PatchFeatures, patch_features
from ..options import option, with_field_help
from .classification import check_seeds, class_labels, classification_chance, classification_metrics, count_images
from .pictures import plot_confusion
from .results import TaskResult
from .task import Task

MLP_RATIO = 4  # width of the block's multilayer perceptron over that of its tokens
CROP_SCALE = (0.08, 1.0)  # shares of the image's area


@with_field_help
@dataclass(frozen=True)
class AttentiveProbeProtocol:
    """The paper's: 12 heads, AdamW, learning rate 1e-3 by a cosine to 1 %, weight decay 1e-4, 20 epochs, random crops.

    `levljepa evaluate attentive-probe` makes options of the fields.
    """

    num_heads: int = option(
        default=12, help="Attention heads; the next smaller number that divides the encoder's width."
    )
    learning_rate: float = option(default=1e-3, help="At the start.")
    final_learning_rate: float = option(default=0.01, help="At the end, as a share of that at the start.")
    weight_decay: float = option(default=1e-4, help="Of AdamW.")
    batch_size: int = option(default=256, help="Images in a step.")
    epochs: int = option(default=20, help="Passes over the training images.")
    augment: bool = option(
        default=True,
        help="Encode a new random crop of each image in each epoch, or (quick) learn from tokens encoded once.",
    )

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise ValueError(f"num_heads={self.num_heads} must be at least 1.")
        if self.learning_rate <= 0 or not 0 <= self.final_learning_rate <= 1:
            raise ValueError(
                f"learning_rate={self.learning_rate} must be above 0, and final_learning_rate="
                f"{self.final_learning_rate}, its share at the end, between 0 and 1."
            )
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay={self.weight_decay} must be 0 or more.")
        if self.batch_size < 1 or self.epochs < 1:
            raise ValueError(f"batch_size={self.batch_size} and epochs={self.epochs} must be at least 1.")


class AttentiveProbe(nn.Module):
    """Patch tokens [N, P, C] to logits [N, K].

    Args:
        hidden_size: C.
        num_classes: K.
        num_heads: Attention heads, a divisor of C.
    """

    def __init__(self, hidden_size: int, num_classes: int, num_heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(hidden_size), std=0.02))
        self.norm1 = nn.LayerNorm(hidden_size)
        self.attention = nn.MultiheadAttention(hidden_size, num_heads, batch_first=True)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, MLP_RATIO * hidden_size), nn.GELU(), nn.Linear(MLP_RATIO * hidden_size, hidden_size)
        )
        self.classifier = nn.Linear(hidden_size, num_classes)

    def forward(self, patches: Tensor) -> Tensor:
        pooled = self.query + attend_once(self.attention, self.query, self.norm1(patches))  # [N, C]
        pooled = pooled + self.mlp(self.norm2(pooled))
        return self.classifier(pooled)


def attend_once(attention: nn.MultiheadAttention, query: Tensor, tokens: Tensor) -> Tensor:
    """What `attention(query, tokens, tokens)` gives for one query [C] over tokens [N, P, C]: [N, C].

    One query needs no key and no value of each token: with W_q, W_k, W_v of a head, its score of the token x is
    (W_k^T W_q query) . x, and the weighted mean of the values is W_v times that of the tokens. Instead of 2 C^2
    multiplications for each token that takes 2 C for each head. (The keys' bias adds the same to every score.)
    """
    w_q, w_k, w_v = attention.in_proj_weight.unflatten(0, (3, attention.num_heads, -1))  # each [heads, C / heads, C]
    b_q, _, b_v = attention.in_proj_bias.unflatten(0, (3, attention.num_heads, -1))  # each [heads, C / heads]
    scaled = (w_q @ query + b_q) * attention.head_dim**-0.5
    scores = tokens @ torch.einsum("hd,hdc->ch", scaled, w_k)  # [N, P, heads]
    mean = scores.softmax(dim=1).mT @ tokens  # [N, heads, C]
    values = torch.einsum("nhc,hdc->nhd", mean, w_v) + b_v
    return attention.out_proj(values.flatten(1))


def fitting_heads(hidden_size: int, num_heads: int) -> int:
    """The largest number of heads up to `num_heads` that divides the width: of 12, 8 for ViT-L's 1024."""
    return max(n for n in range(1, num_heads + 1) if hidden_size % n == 0)


def evaluate_attentive_probe(
    encoder: Encoder,
    train: EvaluationSplit,
    test: EvaluationSplit,
    protocol: AttentiveProbeProtocol | None = None,
    *,
    seeds: Sequence[int] = (0,),
    **feature_options: Any,
) -> TaskResult:
    """Top-1, top-5 (of five classes or more) and mean per-class accuracy of an attentive probe on frozen patches.

    Args:
        encoder: What gives the patch tokens.
        train: Images with labels and class names, to learn from.
        test: The same, to measure on, with the same class names in the same order.
        protocol: By default the paper's.
        seeds: A run for each: other first weights, another order, other crops.
        feature_options: Those of `levljepa_hf.encoders.features.extract`. `batch_size` is that of the encoder, and
            `num_workers` decode the crops too; the crops do not depend on their number.

    Returns:
        `top1`, `top5`, `mean_per_class`. The details have the number of heads and where training tokens came from.

    Raises:
        ValueError: if splits lack labels, their classes differ, there are no seeds, an image does not decode, or
            patch tokens are not finite.
    """
    protocol = protocol or AttentiveProbeProtocol()
    check_seeds(seeds)
    y_train, y_test = class_labels(train, test)
    num_classes = len(train.class_names)
    num_heads = fitting_heads(encoder.hidden_size, protocol.num_heads)
    options = {"transform": train.transform, **feature_options}
    test_patches = patch_features(encoder, test.images, **{"transform": test.transform, **feature_options})
    kept = None if protocol.augment else patch_features(encoder, train.images, **options)
    runs, losses, scores = [], [], []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            probe = AttentiveProbe(encoder.hidden_size, num_classes, num_heads).to(encoder.device)
        if kept is None:
            batches = augmented_batches(encoder, train, protocol, seed, **options)
        else:
            batches = _kept_batches(kept, encoder.device, protocol, seed)
        losses.append(_train(probe, batches, y_train, protocol, feature_options.get("show_progress", True)))
        scores.append(_scores(probe, test_patches, encoder.device, protocol.batch_size))
        runs.append(classification_metrics(scores[-1], y_test))
    predicted = scores[0].argmax(dim=1)
    return TaskResult(
        runs=runs,
        details={
            **count_images(train, {"test": test}),
            "num_heads": num_heads,
            "training_tokens": "random crops, encoded in each epoch" if protocol.augment else "encoded once, no crops",
            "final_training_loss": losses,
        },
        chance=classification_chance(num_classes),
        pictures={"confusion": lambda path=None: plot_confusion(y_test, predicted, test.class_names, path)},
    )


def _train(
    probe: AttentiveProbe,
    batches: Iterator[tuple[Tensor, Tensor]],
    labels: Tensor,
    protocol: AttentiveProbeProtocol,
    show_progress: bool,
) -> float:
    """Trains on batches of tokens [n, P, C] and the indices [n] of their images; returns the last epoch's loss."""
    steps_per_epoch = math.ceil(len(labels) / protocol.batch_size)
    num_steps = protocol.epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(probe.parameters(), protocol.learning_rate, weight_decay=protocol.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, num_steps, protocol.final_learning_rate * protocol.learning_rate
    )
    losses = []
    for patches, indices in tqdm(batches, "attentive probe", num_steps, unit=" steps", disable=not show_progress):
        loss = F.cross_entropy(probe(patches), labels[indices].to(patches.device))
        if not loss.isfinite():
            raise ValueError(
                f"The loss is {loss.item()} at step {len(losses) + 1}: the encoder's tokens are not finite (try dtype "
                f"float32), or learning_rate={protocol.learning_rate} is too high."
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach() * len(indices))
    return (torch.stack(losses[-steps_per_epoch:]).sum() / len(labels)).item()


@torch.no_grad()
def _scores(probe: AttentiveProbe, patches: PatchFeatures, device: torch.device, batch_size: int) -> Tensor:
    """Logits [N, K] on the CPU."""
    batches = torch.arange(len(patches)).split(batch_size)
    return torch.cat([probe(patches[indices].to(device)).cpu() for indices in batches])


# Batches of training tokens


def _orders(num_images: int, protocol: AttentiveProbeProtocol, seed: int) -> Iterator[list[tuple[int, int]]]:
    """The (epoch, image) of each sample of each batch: every image once in each epoch."""
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(protocol.epochs):
        for indices in torch.randperm(num_images, generator=generator).split(protocol.batch_size):
            yield [(epoch, index) for index in indices.tolist()]


def _kept_batches(
    patches: PatchFeatures, device: torch.device, protocol: AttentiveProbeProtocol, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in _orders(len(patches), protocol, seed):
        indices = torch.tensor([index for _, index in batch])
        yield patches[indices].to(device), indices


def augmented_batches(
    encoder: Encoder,
    split: EvaluationSplit,
    protocol: AttentiveProbeProtocol,
    seed: int,
    *,
    transform: str,
    batch_size: int = 64,
    num_workers: int = 0,
    **_: Any,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Encodes the crops, `batch_size` at a time. One DataLoader serves all epochs, so that its workers start once."""
    loader = DataLoader(
        _Crops(split.images, encoder, transform, seed),
        batch_sampler=_orders(len(split.images), protocol, seed),
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(seed),
    )
    for pixel_values, indices in loader:
        yield torch.cat([encoder.tokens(one).patches.float() for one in pixel_values.split(batch_size)]), indices


class _Crops(Dataset):
    """A random crop of an image in an epoch, a function of the seed, the epoch and the image alone."""

    def __init__(self, images: Sequence[Any], encoder: Encoder, transform: str, seed: int) -> None:
        processor = encoder.image_processor(transform)
        self.images, self.seed = images, seed
        self.crop = v2.Compose(
            [
                v2.PILToTensor(),
                v2.RandomResizedCrop(
                    encoder.image_size,
                    scale=CROP_SCALE,
                    interpolation=pil_torch_interpolation_mapping[processor.resample],
                    antialias=True,
                ),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(processor.image_mean, processor.image_std),
            ]
        )
        self.draft_size = draft_size(self.crop)

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = sample
        image = image_at(self.images, index, f"Image {index}", self.draft_size)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_from(f"{self.seed} {epoch} {index}"))
            return self.crop(image), index


TASK = Task(
    help="attention over frozen patches",
    protocol=AttentiveProbeProtocol,
    run=evaluate_attentive_probe,
    reads="labels",
    headlines={"top-1": ("top1",)},
    seeds=(0,),
    probe="attentive",
    probe_constants={"augment": False},  # tokens are encoded once, not anew in each epoch
    position=50,
)


__all__ = ["AttentiveProbe", "AttentiveProbeProtocol", "evaluate_attentive_probe", "fitting_heads"]
