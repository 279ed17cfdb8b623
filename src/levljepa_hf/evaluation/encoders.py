"""What is measured: a LeVLJEPA checkpoint, or a peer, behind one interface."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn


class VisionTokens(NamedTuple):
    """What an encoder sees in images, after its final norm."""

    cls: Tensor  # [N, C], the class token, or the encoder's own pooling where it has none
    patches: Tensor  # [N, P, C], row by row; register tokens are left out
    grid: tuple[int, int]  # rows and columns of the patches


class Encoder(ABC):
    """A frozen encoder in evaluation mode.

    Attributes:
        name: As it was asked for.
        model: The module, on `device`.
        image_size: Side of its input in pixels.
        hidden_size: C, the width of its tokens.
        readouts: The readouts of `levljepa_hf.modeling_levljepa.READOUTS` that it offers; none without a text tower.
        fingerprint: Hex digest of the weights and of what else decides the features.
    """

    name: str
    model: nn.Module
    image_size: int
    hidden_size: int
    readouts: tuple[str, ...]
    fingerprint: str

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @abstractmethod
    def image_processor(self, transform: str = "evaluation") -> "LeVLJEPAImageProcessor":  # noqa: F821
        """Prepares images, `(images, return_tensors="pt") -> {"pixel_values": [N, 3, S, S]}`, with its statistics."""

    @abstractmethod
    def tokens(self, pixel_values: Tensor) -> VisionTokens:
        """The tokens of prepared images [N, 3, H, W], without gradients."""
