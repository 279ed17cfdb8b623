"""What fine-tuning trains and how fast: everything, the classifier alone, or LoRA; layer-wise rates; class weights."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn import functional as F

from ..model.modeling_levljepa import LeVLJEPAForImageClassification, LeVLJEPAForSemanticSegmentation

TaskModel = LeVLJEPAForImageClassification | LeVLJEPAForSemanticSegmentation
MODES = ("full", "linear", "lora")


def freeze_tower(model: TaskModel) -> TaskModel:
    """Leaves only the classifier to be trained: the paper's linear probe as training.

    The tower keeps no activations for a backward pass, and stays in evaluation mode, without dropout or drop path,
    when the model is put into training mode.
    """
    model.vision_model.requires_grad_(False)
    model.vision_model.register_forward_pre_hook(_evaluation_mode)
    return model


def _evaluation_mode(module: nn.Module, args: Any) -> None:
    module.eval()


def add_lora(model: TaskModel, rank: int = 16, alpha: int = 16, dropout: float = 0.0) -> Any:
    """Low-rank adapters (arXiv 2106.09685) on every linear layer of the tower; the classifier is trained whole.

    Args:
        model: A task model; its tower is frozen but for the adapters.
        rank: Of the adapters.
        alpha: The adapters' output is scaled by `alpha / rank`.
        dropout: On the adapters' input.

    Returns:
        A `peft.PeftModel`. `merge_and_unload` makes a plain model of it.

    Raises:
        ImportError: if peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError('mode="lora" needs peft. Run: pip install "levljepa_hf[lora]"') from error
    linear = [name for name, module in model.vision_model.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=[f"vision_model.{name}" for name in linear],
        modules_to_save=["classifier"],
    )
    return get_peft_model(model, config)


def layer_decay_groups(
    model: TaskModel, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Groups for an optimiser whose learning rate falls from layer to layer, from the classifier down (BEiT's rule).

    timm's `param_groups_layer_decay`: the classifier has `learning_rate`, block i of n `layer_decay ** (n - i)` of it
    (i from 0; the final norm goes with the last block), the patch embedding, position embeddings and tokens
    `layer_decay ** (n + 1)`. Biases, norms, tokens and position embeddings have no weight decay.

    Args:
        model: A task model.
        learning_rate: Of the classifier.
        weight_decay: Of matrices.
        layer_decay: The factor between a layer and the one above, in 0..1.

    Raises:
        ValueError: if `layer_decay` is out of its range.
    """
    check_layer_decay(layer_decay)
    groups = param_groups_layer_decay(
        _TimmView(model),
        weight_decay=weight_decay,
        no_weight_decay_list=model.vision_model.timm_model.no_weight_decay(),
        layer_decay=layer_decay,
    )
    return [
        {
            "params": group["params"],
            "weight_decay": group["weight_decay"],
            "lr": learning_rate * group["lr_scale"],
        }
        for group in reversed(groups)  # the classifier's first: `Trainer` logs the first group's rate
    ]


def check_layer_decay(layer_decay: float) -> None:
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay} must be above 0 and at most 1, such as 0.75.")


class _TimmView(nn.Module):
    """Tower and classifier as timm names them, the classifier as its `head`."""

    def __init__(self, model: TaskModel) -> None:
        super().__init__()
        self.tower, self.head = model.vision_model.timm_model, model.classifier

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        yield from self.tower.named_parameters()
        yield from self.head.named_parameters(prefix="head")

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return self.tower.group_matcher(coarse)


def class_weights(counts: Tensor) -> Tensor:
    """Weights [C] inversely proportional to the counts [C] of the classes, 1 in the mean over what was counted.

    A class without a sample has weight 0.
    """
    present = counts > 0
    return torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0.0)


class WeightedLoss:
    """Cross entropy with class weights or shares of classes as labels, as a `compute_loss_func` of `Trainer`.

    It is a sum over the labels divided by the number of labels in all batches that are accumulated, on all devices: a
    large batch and its parts give the same gradients. Void counts among the labels and adds nothing, so that every
    pixel weighs the same in every batch. Logits of segmentation are upsampled to the labels first.

    Args:
        weights: [C]; none with `None`.
        ignore_index: The label of void.
        label_smoothing: The share of a label that is spread over all classes.
    """

    def __init__(self, weights: Tensor | None = None, ignore_index: int = -100, label_smoothing: float = 0.0) -> None:
        self.weights, self.ignore_index, self.label_smoothing = weights, ignore_index, label_smoothing

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """
        Args:
            outputs: With `logits` (N, C), or (N, C, h, w).
            labels: (N,) classes, (N, C) shares of classes, or (N, H, W) classes of pixels.
            num_items_in_batch: The numbers in the labels of all accumulated batches, as `Trainer` counts them.
        """
        logits = outputs["logits"].float()
        shares = labels.is_floating_point()
        if logits.ndim == 4:
            logits = upsampled(logits, labels)
        total = F.cross_entropy(
            logits,
            labels,
            weight=None if self.weights is None else self.weights.to(logits.device, logits.dtype),
            ignore_index=-100 if shares else self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        num_items = labels.numel() if num_items_in_batch is None else num_items_in_batch
        return total / (num_items / logits.shape[1] if shares else num_items)


def upsampled(logits: Tensor, labels: Tensor) -> Tensor:
    """(N, C, h, w) brought bilinearly to the size of labels (N, H, W), float32."""
    return F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)


def names_without(counts: Tensor, names: Sequence[str]) -> list[str]:
    """The classes that have no sample."""
    return [name for name, count in zip(names, counts.tolist(), strict=True) if count == 0]


__all__ = [
    "MODES",
    "TaskModel",
    "WeightedLoss",
    "add_lora",
    "check_layer_decay",
    "class_weights",
    "freeze_tower",
    "layer_decay_groups",
    "names_without",
    "upsampled",
]
