"""The vision tower's insides: timm's Vision Transformer, built to a configuration, with what transformers asks of it.

The one file that imports timm; `modeling_levljepa` imports it when a tower is built, and not before. It travels to the
Hub with a saved model.
"""

from collections.abc import Collection
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from .hints_levljepa import did_you_mean


def create_timm_vit(architecture: str, **kwargs: Any) -> VisionTransformer:
    """Builds the timm Vision Transformer `architecture` without a classifier, for any image size.

    Raises:
        ValueError: if timm does not know the name, or the name is not a plain Vision Transformer.
    """
    if not timm.is_model(architecture.split(".")[0]):
        raise ValueError(
            f"architecture={architecture!r} is not a model of the installed timm {timm.__version__}."
            f"{did_you_mean(architecture, timm.list_models('*vit*'), most=5, cutoff=0.5)} "
            "Pick one of `timm.list_models('vit_*')`, or upgrade with `pip install -U timm`."
        )
    try:
        model = timm.create_model(architecture, pretrained=False, num_classes=0, dynamic_img_size=True, **kwargs)
    except TypeError as error:  # convolutional models take no dynamic_img_size
        raise ValueError(_not_a_vit(architecture)) from error
    if not isinstance(model, VisionTransformer):
        raise ValueError(_not_a_vit(architecture, type(model).__name__))
    return model


def create_vit(config: PreTrainedConfig) -> VisionTransformer:
    """Builds the Vision Transformer of a `LeVLJEPAVisionConfig`, whose dimensions replace the architecture's."""
    mlp = {}
    if config.intermediate_size is not None:  # timm truncates hidden_size * mlp_ratio
        mlp = {"mlp_ratio": (config.intermediate_size + 0.5) / config.hidden_size}
    return create_timm_vit(
        config.architecture,
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.num_channels,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        reg_tokens=config.num_register_tokens,
        drop_path_rate=config.drop_path_rate,
        **({"weight_init": config.weight_init} if config.weight_init else {}),
        **mlp,
    )


def _not_a_vit(architecture: str, class_name: str = "another model class") -> str:
    return (
        f"architecture={architecture!r} builds {class_name}, but LeVLJEPA's vision tower is timm's VisionTransformer "
        "(a class token and patch tokens). Pick one of `timm.list_models('vit_*')`, such as 'vit_base_patch16_224'."
    )


@lru_cache(maxsize=64)
def timm_dimensions(architecture: str) -> dict[str, int]:
    """What timm makes of `architecture`, under the names of `LeVLJEPAVisionConfig`; nothing is allocated."""
    with torch.device("meta"):
        model = create_timm_vit(architecture)
    dimensions = {
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": next(m.num_heads for m in model.blocks.modules() if hasattr(m, "num_heads")),
        "image_size": model.patch_embed.img_size[0],
        "patch_size": model.patch_embed.patch_size[0],
        "num_register_tokens": model.num_reg_tokens,
    }
    hidden_layers = [m for name, m in model.blocks[0].named_modules() if name.endswith(("mlp.fc1", "mlp.fc1_g"))]
    if hidden_layers:
        dimensions["intermediate_size"] = hidden_layers[0].out_features
    return dimensions


class LeVLJEPAVisionLayer(GradientCheckpointingLayer, Block):
    """timm's block, with transformers' gradient checkpointing."""


class LeVLJEPAVisionTransformer(VisionTransformer):
    """timm's Vision Transformer, whose `forward` can return the tokens and hidden states too.

    All its own parameters are read inside `forward`, where accelerate's hooks bring offloaded weights back.
    """

    def forward(
        self, x: Tensor, hidden_state_indices: Collection[int] | None = None, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """
        Args:
            x: Normalised images `(N, C, H, W)`.
            hidden_state_indices: The hidden states wanted, 0 for the embeddings and i for the output of block i.
            kwargs: What timm's own `forward` takes.

        Returns:
            The tokens after the final norm `(N, prefix + patches, hidden_size)`, the pooled feature `(N, hidden_size)`
            and the hidden states before the final norm, `None` where not wanted. Without `hidden_state_indices` it is
            timm's own `forward`.
        """
        if hidden_state_indices is None:
            return super().forward(x, **kwargs)
        x = self.patch_embed(x.to(self.patch_embed.proj.weight.dtype))  # (N, H / patch, W / patch, C)
        x = self.norm_pre(self.patch_drop(self._pos_embed(x)))  # (N, prefix + patches, C)
        hidden_states = (x if 0 in hidden_state_indices else None,)
        for index, block in enumerate(self.blocks, start=1):
            x = block(x)
            hidden_states += (x if index in hidden_state_indices else None,)
        x = self.norm(x)
        return x, self.forward_head(x, pre_logits=True), hidden_states


class LeVLJEPADistilledVisionTransformer(LeVLJEPAVisionTransformer, VisionTransformerDistilled):
    """The same of DeiT's distilled models, which have a second class token."""


# What timm's classes become in the vision tower.
TIMM_SUBCLASSES = {
    Block: LeVLJEPAVisionLayer,
    VisionTransformer: LeVLJEPAVisionTransformer,
    VisionTransformerDistilled: LeVLJEPADistilledVisionTransformer,
}


def create_tower(config: PreTrainedConfig) -> VisionTransformer:
    """As `create_vit`, of the classes above."""
    vit = create_vit(config)
    for module in vit.modules():
        if type(module) in TIMM_SUBCLASSES:
            module.__class__ = TIMM_SUBCLASSES[type(module)]
    return vit


def has_plain_blocks(vit: VisionTransformer) -> bool:
    """Whether every block is timm's plain one, with one attention map."""
    return all(isinstance(block, LeVLJEPAVisionLayer) and type(block.attn) is Attention for block in vit.blocks)
