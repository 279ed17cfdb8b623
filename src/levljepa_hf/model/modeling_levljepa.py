"""LeVLJEPA models (arXiv 2607.00784): a timm Vision Transformer and a GPT-2, trained to predict each other's
embeddings.

Notable features:
- no negatives, temperature, momentum encoder or teacher: a prediction loss with stop-gradient, and SIGReg
- the vision tower alone gives dense patch features at any image size that its patch size divides
- reads its own checkpoints and the released two-file layout (`released.py`)

This file travels to the Hub with a saved model, together with the files it imports from this folder.
"""

import functools
import inspect
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Model, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_levljepa import (
    LeVLJEPAConfig,
    LeVLJEPATextConfig,
    LeVLJEPAVisionConfig,
    other_tower,
    whole_config,
)
from .contrastive_levljepa import INITIAL_BIAS, ContrastiveLoss
from .heads_levljepa import predictor, projection_head
from .hints_levljepa import did_you_mean
from .prediction_levljepa import multi_view_distance, prediction_loss
from .released import HUB_KWARGS, find_released_files, released_config, released_state_dict
from .sigreg_levljepa import SIGReg

# What a saved checkpoint offers to a process without the package, by `model_type`.
AUTO_MAPS = {
    "levljepa": {
        "AutoConfig": "configuration_levljepa.LeVLJEPAConfig",
        "AutoModel": "modeling_levljepa.LeVLJEPAModel",
        "AutoModelForImageClassification": "modeling_levljepa.LeVLJEPAForImageClassification",
        "AutoModelForSemanticSegmentation": "modeling_levljepa.LeVLJEPAForSemanticSegmentation",
        "AutoModelForZeroShotImageClassification": "modeling_levljepa.LeVLJEPAModel",
    },
    "levljepa_text_model": {
        "AutoConfig": "configuration_levljepa.LeVLJEPATextConfig",
        "AutoModel": "modeling_levljepa.LeVLJEPATextModel",
    },
    "levljepa_vision_model": {
        "AutoBackbone": "modeling_levljepa.LeVLJEPABackbone",
        "AutoConfig": "configuration_levljepa.LeVLJEPAVisionConfig",
        "AutoModel": "modeling_levljepa.LeVLJEPAVisionModel",
    },
}
READOUTS = ("zeroshot", "proj", "proj_text", "avg", "predictor_pair")
PAD77_LENGTH = 77


def sentence_transformers_files(embedding_dim: int) -> dict[str, Any]:
    """What tells sentence-transformers 6, beside a checkpoint, to call the `get_..._retrieval_features` methods.

    The cosine of its embeddings is then the `avg` readout, and not `zeroshot`. It reads them as sequences of one token
    and pools these, because the pooling states their size, which else would be taken for `projection_dim`.

    Args:
        embedding_dim: The size of the retrieval features.

    Returns:
        The content of each file, to be written as JSON.
    """
    transformer = "sentence_transformers.base.modules.transformer.Transformer"
    pooling = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    return {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": transformer},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": pooling},
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {
                modality: {
                    "method": f"get_{modality}_retrieval_features",
                    "method_output_name": "last_hidden_state",
                }
                for modality in ("text", "image")
            },
            "module_output_name": "token_embeddings",
        },
        "1_Pooling/config.json": {"embedding_dimension": embedding_dim, "pooling_mode": "cls"},
    }


@dataclass
class LeVLJEPAOutput(ModelOutput):
    """
    Output of `LeVLJEPAModel`. N is the batch, D the projection dimension; embeddings are not normalised. What the
    objective does not have is `None`.

    Args:
        loss (`torch.Tensor` of shape `(1,)`, returned when `return_loss` and both modalities have the same batch
            size): What `config.objective` minimises. Of `levljepa` it is
            `(1 - lv - lt) * prediction_loss + lv * sigreg_vision + lt * sigreg_text`.
        prediction_loss (`torch.Tensor` of shape `(1,)`): Mean of the two directions of prediction, unweighted.
        sigreg_vision (`torch.Tensor` of shape `(1,)`): SIGReg(Z_V), unweighted; about 1 for an isotropic Gaussian. The
            mean over the views, where there are several.
        sigreg_text (`torch.Tensor` of shape `(1,)`): SIGReg(Z_T).
        multi_view_loss (`torch.Tensor` of shape `(1,)`): Squared distance of the views from their mean, unweighted.
        contrastive_loss (`torch.Tensor` of shape `(1,)`): InfoNCE or SigLIP.
        contrastive_scale (`torch.Tensor` of shape `(1,)`): The learned factor of the cosines, 1 / temperature.
        contrastive_bias (`torch.Tensor` of shape `(1,)`): SigLIP's learned bias.
        image_embeds (`torch.Tensor` of shape `(N_images, D)`): Z_V; of several views, the mean of the global ones.
        text_embeds (`torch.Tensor` of shape `(N_texts, D)`): Z_T.
        predicted_text_embeds (`torch.Tensor` of shape `(N_images, D)`): Zhat_T = q_V(Z_V), predicted from the image.
        predicted_image_embeds (`torch.Tensor` of shape `(N_texts, D)`): Zhat_V = q_T(Z_T), predicted from the text.
        logits_per_image (`torch.Tensor` of shape `(N_images, N_texts)`): Scaled similarities, for inference.
        logits_per_text (`torch.Tensor` of shape `(N_texts, N_images)`): Their transpose.
        vision_model_output (`BaseModelOutputWithPooling`): The vision tower's output.
        text_model_output (`BaseModelOutputWithPooling`): The text tower's output.
    """

    loss: Tensor | None = None
    prediction_loss: Tensor | None = None
    sigreg_vision: Tensor | None = None
    sigreg_text: Tensor | None = None
    multi_view_loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    contrastive_scale: Tensor | None = None
    contrastive_bias: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    predicted_text_embeds: Tensor | None = None
    predicted_image_embeds: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    text_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


def similarity(
    image_embeds: Tensor,
    text_embeds: Tensor,
    predicted_text_embeds: Tensor | None = None,
    predicted_image_embeds: Tensor | None = None,
    readout: str = "avg",
) -> Tensor:
    """Cosine similarity of every image with every text under one of the zero-shot readouts.

    `zeroshot` compares Z_V with Z_T, `proj` Zhat_T with Z_T, `proj_text` Z_V with Zhat_V, `avg` is the mean of these
    last two (the one to read for LeVLJEPA), `predictor_pair` compares Zhat_T with Zhat_V.

    Args:
        image_embeds: Z_V, of shape `(N_images, D)`.
        text_embeds: Z_T, of shape `(N_texts, D)`.
        predicted_text_embeds: Zhat_T, of shape `(N_images, D)`.
        predicted_image_embeds: Zhat_V, of shape `(N_texts, D)`.
        readout: One of `READOUTS`.

    Returns:
        Similarities in [-1, 1], of shape `(N_images, N_texts)`.

    Raises:
        ValueError: if the readout is unknown, or needs predictions that are `None`.
    """
    if readout not in READOUTS:
        raise ValueError(f"Unknown readout {readout!r}: use one of {', '.join(READOUTS)}.")
    z_v, z_t = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)
    if readout == "zeroshot":
        return z_v @ z_t.T
    if predicted_text_embeds is None or predicted_image_embeds is None:
        raise ValueError(f"readout={readout!r} needs predictions, and this model has no predictors: use 'zeroshot'.")
    zhat_t, zhat_v = F.normalize(predicted_text_embeds, dim=-1), F.normalize(predicted_image_embeds, dim=-1)
    if readout == "proj":
        return zhat_t @ z_t.T
    if readout == "proj_text":
        return z_v @ zhat_v.T
    if readout == "avg":
        return (zhat_t @ z_t.T + z_v @ zhat_v.T) / 2
    return zhat_t @ zhat_v.T


def retrieval_embeds(in_text_space: Tensor | None, in_image_space: Tensor | None) -> Tensor:
    """Embeddings whose cosine is the `avg` readout, for vector stores and other clients that know one vector an item.

    An image is [Zhat_T; Z_V] and a text [Z_T; Zhat_V], each half of unit length.

    Args:
        in_text_space: Zhat_T of images (`None` without predictors), or Z_T of texts, `(N, D)`.
        in_image_space: Z_V of images, or Zhat_V of texts (`None` without predictors), `(N, D)`.

    Returns:
        `(N, 2 D)`, of length sqrt(2); without predictors `(N, D)` of unit length, whose cosine is `zeroshot`.
    """
    halves = [half for half in (in_text_space, in_image_space) if half is not None]
    return torch.cat([F.normalize(half, dim=-1) for half in halves], dim=-1)


def known_arguments_only(method: Callable[..., Any]) -> Callable[..., Any]:
    """Refuses keyword arguments that are neither the method's own nor transformers' common ones, `TransformersKwargs`.

    `**kwargs` passes these on to the towers; anything else, such as `attention_masks`, would silently change nothing.
    """
    known = frozenset(inspect.signature(method).parameters) | frozenset(TransformersKwargs.__annotations__)

    @functools.wraps(method)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for name in [name for name in kwargs if name not in known]:
            if kwargs.pop(name) is not None:  # callers that know many models pass `inputs_embeds=None` and the like
                hint = did_you_mean(name, known - {"self", "kwargs"})
                raise TypeError(
                    f"{type(self).__name__}.{method.__name__}() got an unexpected keyword argument {name!r}.{hint}"
                )
        return method(self, *args, **kwargs)

    return wrapper


class LeVLJEPAPreTrainedModel(PreTrainedModel):
    """Loading (native and released layouts) and initialisation, common to all classes.

    Args:
        config: The configuration of the class, which `from_pretrained` reads from the checkpoint.
        inputs: Those of transformers' `PreTrainedModel`.
        kwargs: The same.
    """

    config: LeVLJEPAConfig
    config_class = LeVLJEPAConfig
    base_model_prefix = "levljepa"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = []  # each tower names its own, and a model has those of its towers
    _supports_sdpa = True
    _released_towers = ("vision",)

    def __init__(self, config: PreTrainedConfig, *inputs: Any, **kwargs: Any) -> None:
        if isinstance(config, LeVLJEPAVisionConfig) and self.config_class is LeVLJEPAConfig:
            config = whole_config(config)
        super().__init__(config, *inputs, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> "LeVLJEPAPreTrainedModel":
        """Loads a checkpoint from a folder or a Hub id: transformers' own layout, or the released two-file layout.

        Takes every argument of transformers' `PreTrainedModel.from_pretrained`.
        """
        hub_kwargs = {name: kwargs[name] for name in HUB_KWARGS if name in kwargs}
        files = None
        if pretrained_model_name_or_path is not None and kwargs.get("gguf_file") is None:
            files = find_released_files(pretrained_model_name_or_path, towers=cls._released_towers, **hub_kwargs)
        if files is None:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)

        if not isinstance(config, PreTrainedConfig):
            dtypes = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
            config = released_config(files, config).to_dict()  # also where config.json is wrong or missing
            config, kwargs = LeVLJEPAConfig.from_dict(config, return_unused_kwargs=True, **kwargs)
            kwargs.update(dtypes)  # the model's alone: on a configuration "auto" would stay a string
        if not isinstance(config, LeVLJEPAConfig):  # that of a tower alone
            config = whole_config(config)
        config = released_config(files, config)
        state_dict = released_state_dict(files, config, towers=cls._released_towers)
        if cls.config_class is LeVLJEPAVisionConfig:
            config = config.vision_config
        elif cls.config_class is LeVLJEPATextConfig:
            config = LeVLJEPATextConfig.from_dict(config.to_dict())
        for name in HUB_KWARGS:
            kwargs.pop(name, None)
        model = super().from_pretrained(None, *model_args, config=config, state_dict=state_dict, **kwargs)
        loaded = model[0] if isinstance(model, tuple) else model
        loaded.name_or_path = loaded.config.name_or_path = str(pretrained_model_name_or_path)
        return model

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves the weights in one `model.safetensors`, the configuration and the code that loads them anywhere.

        Takes every argument of transformers' `PreTrainedModel.save_pretrained`.
        """
        self.config.auto_map = dict(AUTO_MAPS[self.config.model_type])
        if kwargs.get("is_main_process", True):
            for name, content in self._files_of_other_libraries().items():
                path = Path(save_directory, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        super().save_pretrained(save_directory, **kwargs)

    def _files_of_other_libraries(self) -> dict[str, Any]:
        """The JSON files, by name, that tell other libraries how to use the checkpoint."""
        return {}

    def _get_files_timestamps(self, working_dir: str | os.PathLike) -> dict[str, float]:
        """Without the files just written, so that `save_pretrained(..., push_to_hub=True)` uploads them as well."""
        written = {Path(name).parts[0] for name in self._files_of_other_libraries()}
        timestamps = super()._get_files_timestamps(working_dir)
        return {name: time for name, time in timestamps.items() if name not in written}

    @classmethod
    def is_custom_code(cls) -> bool:
        """False, as for transformers' own models: `_init_weights` leaves loaded tensors alone by itself.

        The guard for code that does not would skip a module whose own tensors are loaded, or that has none: the rest
        of a VisionTransformer would stay uninitialised, and GPT-2's residual projections unscaled.
        """
        return False

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """As transformers', where flash attention is asked for with what to ask for instead.

        Raises:
            ValueError: if the implementation is unknown, or is one of flash attention's for a class with a vision
                tower.
        """
        if not self._supports_flash_attn and requested_attention is not None and "flash" in requested_attention:
            raise ValueError(
                f"attn_implementation={requested_attention!r} is for the text tower alone: pass "
                f'`attn_implementation={{"text_config": {requested_attention!r}}}`. The vision tower keeps "sdpa", '
                "which runs PyTorch's own flash attention where the device has it."
            )
        return super().get_correct_attn_implementation(requested_attention, is_init_check)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """torch's own defaults, as the official code leaves them in the heads."""
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.BatchNorm1d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)
        elif isinstance(module, SIGReg):
            init.zeros_(module.step)
        elif isinstance(module, ContrastiveLoss):
            init.constant_(module.logit_scale, math.log(module.initial_scale))
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, INITIAL_BIAS)


class LeVLJEPAVisionModel(LeVLJEPAPreTrainedModel):
    """The vision tower alone: dense patch features.

    Loads from its own checkpoint, from a full LeVLJEPA checkpoint and from the released one.

    Args:
        config: A `LeVLJEPAVisionConfig`; the weights are new. `from_pretrained` loads trained ones.

    Example:

    ```python
    >>> from levljepa_hf import LeVLJEPAProcessor, LeVLJEPAVisionModel

    >>> model = LeVLJEPAVisionModel.from_pretrained(checkpoint)  # a folder or a Hub id
    >>> processor = LeVLJEPAProcessor.from_pretrained(checkpoint)
    >>> patches = model(**processor(images=image, return_tensors="pt")).last_hidden_state[:, 1:]
    ```
    """

    config: LeVLJEPAVisionConfig
    config_class = LeVLJEPAVisionConfig
    base_model_prefix = "vision_model"
    _keys_to_ignore_on_load_unexpected = [r"^(text|sigreg|contrastive|vision_projection|vision_predictor|classifier)"]

    def __init__(self, config: LeVLJEPAVisionConfig) -> None:
        from .vision_levljepa import create_tower

        super().__init__(config)
        self.timm_model = create_tower(config)
        # A tower stays on one device, as its own parameters meet those of its layers; FSDP wraps the layers too.
        self._no_split_modules = [type(module).__name__ for module in (self.timm_model, *self.timm_model.blocks)]
        self._fused_attention = True
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """timm's own initialisation, whatever the architecture: what was not loaded is copied from a fresh model."""
        from .vision_levljepa import VisionTransformer, create_vit

        if not isinstance(module, VisionTransformer):
            return
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        new = {name: tensor for name, tensor in tensors.items() if not getattr(tensor, "_is_hf_initialized", False)}
        if not new:
            return
        with torch.device("cpu"):
            vit = create_vit(self.config)
        fresh = {**dict(vit.named_parameters()), **dict(vit.named_buffers())}
        for name in new.keys() & fresh.keys():  # a quantised model has tensors of its own
            init.copy_(new[name], fresh[name].to(new[name].device, new[name].dtype))

    def get_input_embeddings(self) -> nn.Module:
        return self.timm_model.patch_embed.proj

    def _patch_tokens(self, tokens: Tensor) -> Tensor:
        """Drops the register tokens: `(N, prefix + patches, C)` to `(N, 1 + patches, C)`, or without a class token."""
        num_class, num_prefix = int(self.timm_model.has_class_token), self.timm_model.num_prefix_tokens
        if num_prefix == num_class:
            return tokens
        return torch.cat([tokens[:, :num_class], tokens[:, num_prefix:]], dim=1)

    def _select_attention(self) -> None:
        fused = self.config._attn_implementation != "eager"
        if fused != self._fused_attention:
            for module in self.timm_model.modules():
                if hasattr(module, "fused_attn"):
                    module.fused_attn = fused
            self._fused_attention = fused

    @can_return_tuple
    @known_arguments_only
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: Normalised images `(N, C, H, W)`; the patch size must divide H and W.
            output_hidden_states: Whether to return the hidden states, or the indices of those wanted.
            output_attentions: Whether to return the attention maps; they need `attn_implementation="eager"`.

        Returns:
            `last_hidden_state` `(N, 1 + patches, hidden_size)` after the final norm: the class token, then the patches
            row by row (no class token where the architecture has none; register tokens are left out).
            `pooler_output` `(N, hidden_size)`: the class token (or the architecture's own pooling, where it has
            one). `hidden_states`: the embeddings and each block's output before the final norm. `attentions`: each
            block's attention map `(N, heads, prefix + patches, prefix + patches)`, register tokens included.

        Raises:
            ValueError: if the patch size does not divide the image's height and width; if the images are whole
                numbers, as before they are normalised; if attention maps are wanted of a model that does not compute
                them.
        """
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values of type {pixel_values.dtype} are not normalised: pass them through the processor, or, "
                "where a training collator left them as bytes, through its `normalized`."
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        height, width = pixel_values.shape[-2:]
        patch_size = self.config.patch_size
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"The image size {height}x{width} is not divisible by patch_size={patch_size}: resize or crop to "
                f"{max(height // patch_size, 1) * patch_size}x{max(width // patch_size, 1) * patch_size}."
            )
        self._select_attention()
        indices = self._hidden_state_indices(output_hidden_states)
        with self._recorded_attention(output_attentions) as attentions:
            tokens, pooled, hidden_states = self.timm_model(pixel_values, hidden_state_indices=indices)
        if output_hidden_states is None or output_hidden_states is False:
            hidden_states = None
        else:
            hidden_states = tuple(h if h is None else self._patch_tokens(h) for h in hidden_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=self._patch_tokens(tokens),
            pooler_output=pooled,
            hidden_states=hidden_states,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _hidden_state_indices(self, selection: bool | int | list[int] | None) -> set[int]:
        if selection is None or selection is False:
            return set()
        num_states = len(self.timm_model.blocks) + 1
        if selection is True:
            return set(range(num_states))
        return {index % num_states for index in ([selection] if isinstance(selection, int) else selection)}

    @contextmanager
    def _recorded_attention(self, wanted: bool) -> Iterator[list[Tensor]]:
        """The attention maps of what runs inside, block by block: what timm's eager attention gives to its dropout."""
        maps: list[Tensor] = []
        if not wanted:
            yield maps
            return
        if self._fused_attention:
            raise ValueError(
                f"output_attentions=True with attn_implementation={self.config._attn_implementation!r}, which has no "
                'attention maps: load the model with `attn_implementation="eager"`, or call '
                '`model.set_attn_implementation("eager")`.'
            )
        from .vision_levljepa import has_plain_blocks

        blocks = self.timm_model.blocks
        if not has_plain_blocks(self.timm_model):
            raise ValueError(
                f"output_attentions=True with architecture={self.config.architecture!r}, whose blocks do not have one "
                "attention map each: pick an architecture of timm's plain blocks, such as 'vit_base_patch16_224'."
            )
        if self.training and any(block.gradient_checkpointing for block in blocks):
            raise ValueError(
                "output_attentions=True with gradient checkpointing, which keeps no attention maps: call "
                "`model.gradient_checkpointing_disable()` or `model.eval()`."
            )
        hooks = [
            block.attn.attn_drop.register_forward_pre_hook(lambda module, args: maps.append(args[0]))
            for block in blocks
        ]
        try:
            yield maps
        finally:
            for hook in hooks:
                hook.remove()


class LeVLJEPABackbone(BackboneMixin, LeVLJEPAPreTrainedModel):
    """The vision tower as a backbone for detection, segmentation and depth heads: feature maps of its patch tokens.

    `AutoBackbone.from_pretrained` looks names up on the Hub; this class's own `from_pretrained` takes folders as well.

    Args:
        config: A `LeVLJEPAVisionConfig`; `out_features=["stage6", "stage12"]` or `out_indices=[6, 12]`, there or in
            `from_pretrained`, name the blocks that give maps. The last one alone is the default.

    Raises:
        ValueError: if `reshape_hidden_states=False` meets an architecture without a class token.
    """

    config: LeVLJEPAVisionConfig
    config_class = LeVLJEPAVisionConfig
    base_model_prefix = "vision_model"
    _keys_to_ignore_on_load_unexpected = LeVLJEPAVisionModel._keys_to_ignore_on_load_unexpected

    def __init__(self, config: LeVLJEPAVisionConfig) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.vision_model = LeVLJEPAVisionModel(config)
        if not config.reshape_hidden_states and not self.vision_model.timm_model.has_class_token:
            raise ValueError(
                f"reshape_hidden_states=False with architecture={config.architecture!r}: heads that take tokens want "
                "a class token before the patches, and this architecture has none. Pick one that has, or a head that "
                "takes feature maps."
            )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    @can_return_tuple
    @known_arguments_only
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        """
        Args:
            pixel_values: Normalised images `(N, C, H, W)`; the patch size must divide H and W.
            output_hidden_states: Whether to return the hidden states of all stages.
            output_attentions: Whether to return the attention maps, as `LeVLJEPAVisionModel` does.

        Returns:
            `feature_maps`: for each stage of `out_features`, its patch tokens
            `(N, hidden_size, H / patch_size, W / patch_size)`, or, with `config.reshape_hidden_states=False`, its
            tokens `(N, 1 + patches, hidden_size)`; after the final norm, unless `config.apply_layernorm` is `False`.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        indices = [self.stage_names.index(name) for name in self.out_features]
        outputs = self.vision_model(
            pixel_values,
            output_hidden_states=True if output_hidden_states else indices,
            output_attentions=output_attentions,
            return_dict=True,
        )

        vit = self.vision_model.timm_model
        grid = [side // self.config.patch_size for side in pixel_values.shape[-2:]]
        feature_maps = ()
        for index in indices:
            tokens = outputs.hidden_states[index]  # (N, 1 + patches, C)
            if self.config.apply_layernorm:
                tokens = vit.norm(tokens)
            if self.config.reshape_hidden_states:
                patches = tokens[:, int(vit.has_class_token) :]
                tokens = patches.transpose(1, 2).unflatten(2, grid).contiguous()
            feature_maps += (tokens,)

        return BackboneOutput(
            feature_maps=feature_maps,
            hidden_states=outputs.hidden_states if output_hidden_states else None,
            attentions=outputs.attentions,
        )


def encode_captions(
    text_model: GPT2Model,
    readout: str,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> BaseModelOutputWithPooling:
    """A GPT-2's output for captions; `pooler_output` `(N, hidden_size)` is the feature that `readout` names.

    `eot` is the last unmasked token. There the tokens are first moved to the left of their row, so that causal
    attention needs no padding mask, padding on either side gives the same features and SDPA runs its causal kernel.
    The outputs are in the order of the input. `pad77` is the last of 77 positions, whatever the mask; shorter captions
    are padded here, for clients whose tokenizer call pads to the longest alone.

    Raises:
        ValueError: if the captions are longer than the text tower's positions, or than 77 tokens under `pad77` (or
            shorter, with `position_ids`); or for attention maps of another attention implementation than "eager".
    """
    config = text_model.config
    if kwargs.get("output_attentions") and config._attn_implementation != "eager":
        raise ValueError(
            f"output_attentions=True needs attention maps, which attn_implementation={config._attn_implementation!r} "
            'never makes: load the model with attn_implementation="eager".'
        )
    length, max_length = input_ids.shape[-1], config.max_position_embeddings
    missing = PAD77_LENGTH - length if readout == "pad77" else 0
    if missing < 0 or (missing and position_ids is not None):
        raise ValueError(
            f'The captions have {length} tokens, but text_readout="pad77" reads the last of {PAD77_LENGTH} positions: '
            f'tokenize with `padding="max_length", truncation=True, max_length={PAD77_LENGTH}` and without EOS.'
        )
    if missing:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        attention_mask = F.pad(mask, (0, missing))
        input_ids = F.pad(input_ids, (0, missing), value=config.eos_token_id)
        length = PAD77_LENGTH
    if length > max_length:
        raise ValueError(
            f"The captions have {length} tokens, but the text tower has {max_length} positions: tokenize with "
            f"`truncation=True, max_length={min(max_length, 77)}`."
        )
    # Given token ids, GPT-2 would look for padding, and wait for the GPU.
    embed = text_model.get_input_embeddings()
    kwargs |= {"return_dict": True, "use_cache": False}
    if readout == "pad77" or attention_mask is None:
        outputs = text_model(
            inputs_embeds=embed(input_ids), attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
        return _with_pooling(outputs, outputs.last_hidden_state[:, -1], None)

    mask = attention_mask.to(torch.long)
    num_tokens = mask.sum(dim=-1, keepdim=True)  # (N, 1)
    left = torch.where(mask.bool(), mask.cumsum(-1) - 1, num_tokens + (1 - mask).cumsum(-1) - 1)  # (N, L)
    input_ids = torch.zeros_like(input_ids).scatter(1, left, input_ids)
    if position_ids is not None:
        position_ids = torch.zeros_like(input_ids).scatter(1, left, position_ids.expand_as(input_ids))
    outputs = text_model(inputs_embeds=embed(input_ids), position_ids=position_ids, **kwargs)
    last = (num_tokens - 1).clamp(min=0).unsqueeze(-1)  # (N, 1, 1)
    return _with_pooling(outputs, _take(outputs.last_hidden_state, last).squeeze(1), left.unsqueeze(-1))


def _take(hidden_states: Tensor, index: Tensor) -> Tensor:
    """Rows `index` `(N, M, 1)` of `hidden_states` `(N, L, C)`, as `(N, M, C)`."""
    return hidden_states.gather(1, index.expand(-1, -1, hidden_states.shape[-1]))


def _with_pooling(outputs: ModelOutput, pooled: Tensor, order: Tensor | None) -> BaseModelOutputWithPooling:
    """The text tower's output with its pooled feature; `order` `(N, L, 1)` puts tokens back where they came from."""
    hidden_states, attentions = outputs.hidden_states, outputs.attentions
    last_hidden_state = outputs.last_hidden_state
    if order is not None:
        last_hidden_state = _take(last_hidden_state, order)
        hidden_states = hidden_states and tuple(h if h is None else _take(h, order) for h in hidden_states)
        attentions = attentions and tuple(_reorder_attention(maps, order.squeeze(-1)) for maps in attentions)
    return BaseModelOutputWithPooling(
        last_hidden_state=last_hidden_state,
        pooler_output=pooled,
        hidden_states=hidden_states,
        attentions=attentions,
    )


def _reorder_attention(maps: Tensor, order: Tensor) -> Tensor:
    """Attention maps `(N, heads, L, L)` with queries and keys in the order of the input, given by `order` `(N, L)`."""
    maps = maps.gather(2, order[:, None, :, None].expand_as(maps))
    return maps.gather(3, order[:, None, None, :].expand_as(maps))


class LeVLJEPATextModel(LeVLJEPAPreTrainedModel):
    """The text tower alone: a GPT-2 that gives one feature a caption.

    Loads from its own checkpoint, from a full LeVLJEPA checkpoint and from the released one.

    Args:
        config: A `LeVLJEPATextConfig`; the weights are new. `from_pretrained` loads trained ones.
    """

    config: LeVLJEPATextConfig
    config_class = LeVLJEPATextConfig
    base_model_prefix = "text_model"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    _released_towers = ("text",)
    _supports_flash_attn = True
    _keys_to_ignore_on_load_unexpected = [r"^(vision|sigreg|contrastive|text_projection|text_predictor)"]

    def __init__(self, config: LeVLJEPATextConfig) -> None:
        super().__init__(config)
        self.text_model = GPT2Model(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    @known_arguments_only
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids: Token ids `(N, L)`, each caption ended by EOS.
            attention_mask: 1 at tokens, 0 at padding, `(N, L)`; every row needs a token.
            position_ids: Positions `(N, L)`; by default each row counts its tokens from 0.

        Returns:
            `last_hidden_state` `(N, L, hidden_size)` after the final norm, and `pooler_output` `(N, hidden_size)`: the
            feature of the last unmasked token (or what `config.text_readout` says), *before* the head.

        Raises:
            ValueError: if the captions are longer than the text tower's positions.

        Example:

        ```python
        >>> from levljepa_hf import LeVLJEPAProcessor, LeVLJEPATextModel

        >>> model = LeVLJEPATextModel.from_pretrained(checkpoint)
        >>> processor = LeVLJEPAProcessor.from_pretrained(checkpoint)
        >>> features = model(**processor(text=["a photo of a cat."], return_tensors="pt")).pooler_output
        ```"""
        return encode_captions(
            self.text_model, self.config.text_readout, input_ids, attention_mask, position_ids, **kwargs
        )


class LeVLJEPAModel(LeVLJEPAPreTrainedModel):
    """The whole model: both towers, their heads, the predictors and the loss (arXiv 2607.00784, section 3).

    An image's embedding Z_V and a text's Z_T each predict the other: Zhat_T = q_V(Z_V), Zhat_V = q_T(Z_T). Called with
    both modalities it gives all four, their similarities and the loss (see `LeVLJEPAOutput`), which `config.objective`
    chooses (see `compute_loss`). `get_image_features` and `get_text_features` embed one modality,
    `get_image_retrieval_features` and `get_text_retrieval_features` make vectors for an index.

    Args:
        config: A `LeVLJEPAConfig`; the weights are new. `from_pretrained` loads trained ones from a folder or the Hub,
            in transformers' layout or the released one.
    """

    base_model_prefix = "vision_model"  # a bare vision tower loads into its place
    input_modalities = ("image", "text")
    _released_towers = ("vision", "text")
    _keys_to_ignore_on_load_missing = [r"^sigreg\.step$"]

    def __init__(self, config: LeVLJEPAConfig) -> None:
        super().__init__(config)
        config = self.config
        config.check_objective()
        self.vision_model = LeVLJEPAVisionModel(config.vision_config)
        self.text_model = GPT2Model(config.text_config)
        dim, dropout = config.projection_dim, config.predictor_dropout
        head_sizes, predictor_sizes = config.head_hidden_sizes, config.predictor_hidden_sizes
        self.vision_projection = projection_head(config.vision_config.hidden_size, head_sizes, dim)
        self.text_projection = projection_head(config.text_config.hidden_size, head_sizes, dim)
        self.vision_predictor = predictor(dim, predictor_sizes, dropout)
        self.text_predictor = predictor(dim, predictor_sizes, dropout)
        self.sigreg = self.contrastive = None  # the objective has one or the other
        if config.is_contrastive:
            self.contrastive = ContrastiveLoss(config.objective, initial_scale=config.contrastive_initial_scale)
        else:
            self.sigreg = SIGReg(
                num_directions=config.sigreg_num_directions,
                num_knots=config.sigreg_num_knots,
                t_max=config.sigreg_t_max,
                sample_size_scale=config.sigreg_sample_size_scale,
                distributed=config.sigreg_distributed,
            )
        self.post_init()
        # post_init takes over the vision tower's, under which what is foreign to a whole model would pass unreported
        self._keys_to_ignore_on_load_unexpected -= set(LeVLJEPAVisionModel._keys_to_ignore_on_load_unexpected)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    @known_arguments_only
    def encode_image(
        self,
        pixel_values: Tensor,
        local_pixel_values: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """The vision tower's output; `pooler_output` `(N, hidden_size)` is the feature *before* the head.

        Of several views, `(N, V, C, H, W)`, and smaller ones of other number and size beside, it is the output for the
        views in `pixel_values`, one after the other, with all views' features `(V, N, hidden_size)`.
        """
        if pixel_values.dim() == 4:
            return self.vision_model(pixel_values=pixel_values, return_dict=True, **kwargs)
        outputs = self.vision_model(_views_as_images(pixel_values), return_dict=True, **kwargs)
        features = [outputs.pooler_output]
        if local_pixel_values is not None:
            local = self.vision_model(_views_as_images(local_pixel_values), return_dict=True, **kwargs)
            features.append(local.pooler_output)
        outputs.pooler_output = torch.cat(features).unflatten(0, (-1, pixel_values.shape[0]))
        return outputs

    @known_arguments_only
    def encode_text(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """The text tower's output, as of `LeVLJEPATextModel`; `pooler_output` is the feature *before* the head."""
        readout = self.config.text_readout
        return encode_captions(self.text_model, readout, input_ids, attention_mask, position_ids, **kwargs)

    @can_return_tuple
    @known_arguments_only
    def get_image_features(
        self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: Normalised images `(N, C, H, W)`.

        Returns:
            The vision tower's output with `pooler_output` = Z_V, the image embeddings `(N, D)`, not normalised.

        Example:

        ```python
        >>> inputs = processor(images=image, return_tensors="pt")
        >>> z_v = model.get_image_features(**inputs).pooler_output
        >>> predicted_text_embeds = model.vision_predictor(z_v)
        ```"""
        if pixel_values.dim() != 4:
            raise ValueError(
                f"pixel_values of shape {tuple(pixel_values.shape)}: one view of each image, (N, C, H, W), has "
                "features; `forward` takes several for training."
            )
        outputs = self.encode_image(pixel_values, **kwargs)
        outputs.pooler_output = self.vision_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    @known_arguments_only
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids: Token ids `(N, L)`, each caption ended by EOS.
            attention_mask: 1 at tokens, 0 at padding, `(N, L)`.
            position_ids: Positions `(N, L)`; by default each row counts its tokens from 0.

        Returns:
            The text tower's output with `pooler_output` = Z_T, the text embeddings `(N, D)`, not normalised.
        """
        outputs = self.encode_text(input_ids, attention_mask, position_ids, **kwargs)
        outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    @known_arguments_only
    def get_image_retrieval_features(
        self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: Normalised images `(N, C, H, W)`.

        Returns:
            `pooler_output` = [Zhat_T; Z_V], `(N, 2 D)`, each half of unit length: its cosine with a text's retrieval
            feature is the `avg` readout (`zeroshot` for a model without predictors, `(N, D)`). `last_hidden_state` is
            the same as a sequence of one, `(N, 1, 2 D)`, for clients that pool.
        """
        outputs = self.get_image_features(pixel_values, return_dict=True, **kwargs)
        z_v = outputs.pooler_output
        zhat_t = None if self.vision_predictor is None else self.vision_predictor(z_v)
        return _with_retrieval_embeds(outputs, zhat_t, z_v)

    @can_return_tuple
    @known_arguments_only
    def get_text_retrieval_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids: Token ids `(N, L)`, each caption ended by EOS.
            attention_mask: 1 at tokens, 0 at padding, `(N, L)`.
            position_ids: Positions `(N, L)`; by default each row counts its tokens from 0.

        Returns:
            `pooler_output` = [Z_T; Zhat_V], `(N, 2 D)`, each half of unit length: its cosine with an image's retrieval
            feature is the `avg` readout (`zeroshot` for a model without predictors, `(N, D)`). `last_hidden_state` is
            the same as a sequence of one, `(N, 1, 2 D)`, for clients that pool.
        """
        outputs = self.get_text_features(input_ids, attention_mask, position_ids, return_dict=True, **kwargs)
        z_t = outputs.pooler_output
        zhat_v = None if self.text_predictor is None else self.text_predictor(z_t)
        return _with_retrieval_embeds(outputs, z_t, zhat_v)

    def _files_of_other_libraries(self) -> dict[str, Any]:
        halves = 1 if self.vision_predictor is None else 2
        return sentence_transformers_files(halves * self.config.projection_dim)

    def forward_heads(self, image_features: Tensor, text_features: Tensor, return_loss: bool = True) -> LeVLJEPAOutput:
        """Everything after the towers: heads, predictors, loss and logits.

        Args:
            image_features: Pooled features `(N_images, hidden_size)`, as `encode_image` gives them; of several views
                `(V, N_images, hidden_size)`.
            text_features: Pooled features `(N_texts, hidden_size)`, as `encode_text` gives them.
            return_loss: Whether to compute the loss, where images and texts have the same number.
        """
        z_views = None
        if image_features.dim() == 2:
            z_v = self.vision_projection(image_features)  # (N_images, D)
        else:  # in one call, so that BatchNorm pools the views
            z_views = self.vision_projection(image_features.flatten(0, 1)).unflatten(0, image_features.shape[:2])
            z_v = z_views[: self.config.views["global"]].mean(0)  # of the global ones, which come first
        z_t = self.text_projection(text_features)  # (N_texts, D)

        zhat_t = zhat_v = None
        if self.vision_predictor is not None:
            zhat_t = self.vision_predictor(z_v)  # q_V: the text predicted from the image
            zhat_v = self.text_predictor(z_t)  # q_T: the image predicted from the text

        terms: dict[str, Tensor] = {}
        if return_loss and z_v.shape == z_t.shape:
            terms = self.compute_loss(z_v, z_t, zhat_t, zhat_v, z_views)

        with torch.no_grad():
            readout = "zeroshot" if zhat_t is None else "avg"
            logits_per_image = similarity(z_v, z_t, zhat_t, zhat_v, readout)
            if self.contrastive is None:
                logits_per_image = self.config.logit_scale * logits_per_image
            else:
                logits_per_image = self.contrastive.logits(logits_per_image)

        return LeVLJEPAOutput(
            **terms,
            image_embeds=z_v,
            text_embeds=z_t,
            predicted_text_embeds=zhat_t,
            predicted_image_embeds=zhat_v,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.T,
        )

    def compute_loss(
        self,
        z_v: Tensor,
        z_t: Tensor,
        zhat_t: Tensor | None = None,
        zhat_v: Tensor | None = None,
        z_views: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What `config.objective` minimises, from embeddings and predictions, all `(N, D)`.

        `levljepa` (arXiv 2607.00784, section 3): `(1 - lv - lt) * prediction_loss + lv * sigreg_vision + lt *
        sigreg_text`. Without predictions the predictors are the identity: each embedding is compared with the other's.
        `levljepa_plus`: SIGReg of every view `(V, N, D)`, and `0.2 * multi_view_loss` at the prediction's expense.
        `infonce` and `siglip`: `contrastive_loss`, of the batch of all ranks in training (`contrastive_levljepa.py`).

        Args:
            z_v: Z_V; of several views, the mean of the global ones.
            z_t: Z_T.
            zhat_t: Zhat_T, predicted from the image; `None` without predictors.
            zhat_v: Zhat_V, predicted from the text.
            z_views: The embeddings of all views `(V, N, D)`, where there are several.

        Returns:
            `loss` and the terms it consists of, unweighted, by the names of `LeVLJEPAOutput`: scalars of float32, or
            of float64 if the embeddings are.
        """
        if self.contrastive is not None:
            loss = self.contrastive(z_v, z_t)
            learned = {"contrastive_scale": self.contrastive.scale(), "contrastive_bias": self.contrastive.logit_bias}
            learned = {name: value.detach().squeeze(0) for name, value in learned.items() if value is not None}
            return {"loss": loss, "contrastive_loss": loss, **learned}
        config = self.config
        if zhat_t is None or zhat_v is None:
            zhat_t, zhat_v = z_v, z_t
        terms = {
            "prediction_loss": prediction_loss(
                z_v, z_t, zhat_t, zhat_v, config.prediction_loss_type, config.stop_gradient
            ),
            "sigreg_vision": self.sigreg(z_v if z_views is None else z_views),
            "sigreg_text": self.sigreg(z_t),
        }
        loss = (
            config.prediction_weight * terms["prediction_loss"]
            + config.sigreg_vision_weight * terms["sigreg_vision"]
            + config.sigreg_text_weight * terms["sigreg_text"]
        )
        if z_views is not None:
            terms["multi_view_loss"] = multi_view_distance(z_views, z_v)
            loss = loss + config.multi_view_weight * terms["multi_view_loss"]
        return {"loss": loss, **terms}

    @can_return_tuple
    @known_arguments_only
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool = True,
        position_ids: Tensor | None = None,
        local_pixel_values: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LeVLJEPAOutput:
        """
        Args:
            pixel_values: Normalised images `(N_images, C, H, W)`; of several (global) views of each `(N, V, C, H, W)`.
            input_ids: Token ids `(N_texts, L)`, each caption ended by EOS.
            attention_mask: 1 at tokens, 0 at padding, `(N_texts, L)`.
            return_loss: Whether to compute the loss. In evaluation mode there is none when images and texts differ in
                number, as in zero-shot classification.
            position_ids: Positions `(N_texts, L)`.
            local_pixel_values: Smaller views of the images, `(N_images, V_local, C, h, w)`.

        Raises:
            ValueError: without images or without texts; in training mode with a batch of one, or (with `return_loss`)
                with images and texts of different number; with several views where the objective has one, or (in
                training mode) one where it has several.

        Example:

        ```python
        >>> from levljepa_hf import LeVLJEPAModel, LeVLJEPAProcessor

        >>> model = LeVLJEPAModel.from_pretrained(checkpoint)
        >>> processor = LeVLJEPAProcessor.from_pretrained(checkpoint)
        >>> inputs = processor(images=image, text=["a photo of a cat.", "a photo of a dog."], return_tensors="pt")
        >>> probabilities = model(**inputs).logits_per_image.softmax(-1)
        ```"""
        self._check_batch(input_ids, pixel_values, return_loss, local_pixel_values)
        vision_outputs = self.encode_image(pixel_values, local_pixel_values, **kwargs)
        text_outputs = self.encode_text(input_ids, attention_mask, position_ids, **kwargs)
        outputs = self.forward_heads(vision_outputs.pooler_output, text_outputs.pooler_output, return_loss)
        vision_outputs.pooler_output, text_outputs.pooler_output = outputs.image_embeds, outputs.text_embeds
        outputs.vision_model_output, outputs.text_model_output = vision_outputs, text_outputs
        return outputs

    def _check_batch(
        self,
        input_ids: Tensor | None,
        pixel_values: Tensor | None,
        return_loss: bool,
        local_pixel_values: Tensor | None = None,
    ) -> None:
        if input_ids is None or pixel_values is None:
            missing, method = ("input_ids", "image") if input_ids is None else ("pixel_values", "text")
            tower = "Vision" if method == "image" else "Text"
            raise ValueError(
                f"LeVLJEPAModel needs both modalities and got no {missing}: for one alone call "
                f"`get_{method}_features`, or load the checkpoint with LeVLJEPA{tower}Model, which pipelines such as "
                '"image-feature-extraction" take as their `model`.'
            )
        self._check_views(pixel_values, local_pixel_values)
        if not self.training:
            return
        num_images, num_texts = pixel_values.shape[0], input_ids.shape[0]
        if return_loss and num_images != num_texts:
            raise ValueError(
                f"Got {num_images} images and {num_texts} texts with return_loss=True: the loss pairs image i with "
                "text i. Give one caption per image, or pass return_loss=False."
            )
        if min(num_images, num_texts) == 1 and any(isinstance(module, nn.BatchNorm1d) for module in self.modules()):
            raise ValueError(
                "A batch of one in training mode has no BatchNorm statistics: use a batch of at least 2 "
                "(`dataloader_drop_last=True` drops a last batch of one), or call `model.eval()`."
            )

    def _check_views(self, pixel_values: Tensor, local_pixel_values: Tensor | None) -> None:
        """Images as the objective takes them: `(N, C, H, W)`, or views `(N, V, C, H, W)` where it has several."""
        shape, views = tuple(pixel_values.shape), self.config.views
        if views is None and (len(shape) == 5 or local_pixel_values is not None):
            raise ValueError(
                f"pixel_values of shape {shape}{'' if local_pixel_values is None else ' and local_pixel_values'}, but "
                f'objective={self.config.objective!r} takes one view an image, (N, C, H, W): use "levljepa_plus" for '
                "several."
            )
        if views is None or (len(shape) == 4 and local_pixel_values is None and not self.training):
            return
        if len(shape) == 4:
            raise ValueError(
                f'pixel_values of shape {shape}: training with objective="levljepa_plus" takes several views of each '
                "image, (N, V, C, H, W), as `LeVLJEPADataCollator` makes them with `multi_view_transform`; or call "
                "`model.eval()`."
            )
        if shape[1] != views["global"]:
            raise ValueError(
                f"pixel_values of shape {shape} have {shape[1]} views an image, but the mean of config.views['global']"
                f"={views['global']} views is its embedding: local views go to local_pixel_values."
            )
        num_local = 0 if local_pixel_values is None else local_pixel_values.shape[1]
        if self.training and num_local != views["local"]:
            raise ValueError(
                f"Got {num_local} local views an image, but config.views['local']={views['local']}: give as many in "
                "local_pixel_values, or set the number in the configuration."
            )
        if local_pixel_values is not None and local_pixel_values.shape[0] != shape[0]:
            raise ValueError(
                f"Got views of {shape[0]} images and local views of {local_pixel_values.shape[0]}: they must be of "
                "the same images."
            )


def _views_as_images(pixel_values: Tensor) -> Tensor:
    """`(N, V, C, H, W)` to `(V N, C, H, W)`, all images of the first view first."""
    return pixel_values.transpose(0, 1).flatten(0, 1)


def _with_retrieval_embeds(
    outputs: BaseModelOutputWithPooling, in_text_space: Tensor | None, in_image_space: Tensor | None
) -> BaseModelOutputWithPooling:
    outputs.pooler_output = retrieval_embeds(in_text_space, in_image_space)
    outputs.last_hidden_state = outputs.pooler_output.unsqueeze(1)
    return outputs


class _LinearClassifier(LeVLJEPAPreTrainedModel):
    """The vision tower and a linear classifier: what both task heads are made of."""

    base_model_prefix = "vision_model"
    _keys_to_ignore_on_load_unexpected = [r"^(text|sigreg|contrastive|vision_projection|vision_predictor)"]

    def __init__(self, config: LeVLJEPAConfig) -> None:
        super().__init__(config)
        config = self.config
        if config.architectures == ["LeVLJEPATextModel"]:
            raise ValueError(other_tower(config.name_or_path, "text", "vision"))
        if type(self).__name__ not in (config.architectures or ()):  # a checkpoint without this head
            self._keys_to_ignore_on_load_missing = [r"^classifier\."]
        self.num_labels = config.num_labels
        self.vision_model = LeVLJEPAVisionModel(config.vision_config)
        self.classifier = nn.Linear(config.vision_config.hidden_size, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()


class LeVLJEPAForImageClassification(_LinearClassifier):
    """The vision tower with a linear classifier on its pooled feature (the class token).

    `from_pretrained` of any checkpoint with a vision tower takes the tower from it and makes a new classifier, of
    `num_labels` or `id2label`; of a checkpoint of this class it loads both.

    Args:
        config: A `LeVLJEPAConfig` (or that of a vision tower); the weights are new.

    Example:

    ```python
    >>> from levljepa_hf import LeVLJEPAForImageClassification

    >>> model = LeVLJEPAForImageClassification.from_pretrained(checkpoint, id2label={0: "cat", 1: "dog"})
    >>> loss = model(pixel_values, labels=labels).loss
    ```
    """

    @can_return_tuple
    @known_arguments_only
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: Normalised images `(N, C, H, W)`.
            labels: Class indices `(N,)` (or targets `(N, num_labels)`, see `config.problem_type`).

        Returns:
            `logits` `(N, num_labels)`, and `loss` if `labels` are given.
        """
        outputs = self.vision_model(pixel_values, return_dict=True, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class LeVLJEPAForSemanticSegmentation(_LinearClassifier):
    """The vision tower with a linear classifier on every patch token: the paper's linear segmentation protocol.

    `from_pretrained` of any checkpoint with a vision tower takes the tower from it and makes a new classifier, of
    `num_labels` or `id2label`; of a checkpoint of this class it loads both. The protocol freezes the tower:
    `model.vision_model.requires_grad_(False)`.

    Args:
        config: A `LeVLJEPAConfig` (or that of a vision tower); the weights are new.

    Example:

    ```python
    >>> from levljepa_hf import LeVLJEPAForSemanticSegmentation, LeVLJEPAImageProcessor

    >>> model = LeVLJEPAForSemanticSegmentation.from_pretrained(checkpoint, num_labels=150)
    >>> processor = LeVLJEPAImageProcessor(size={"height": 224, "width": 224}, do_center_crop=False)
    >>> outputs = model(**processor(image, segmentation_maps=mask, return_tensors="pt"))
    >>> maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[(480, 640)])
    ```
    """

    @can_return_tuple
    @known_arguments_only
    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> SemanticSegmenterOutput:
        """
        Args:
            pixel_values: Normalised images `(N, C, H, W)`.
            labels: Class of every pixel `(N, H_labels, W_labels)`, of any size; void is
                `config.semantic_loss_ignore_index` (255).

        Returns:
            `logits` `(N, num_labels, H / patch_size, W / patch_size)`, and, if `labels` are given, `loss`: the cross
            entropy of the logits upsampled bilinearly to the labels, void left out.
        """
        outputs = self.vision_model(pixel_values, return_dict=True, **kwargs)
        patches = outputs.last_hidden_state[:, int(self.vision_model.timm_model.has_class_token) :]
        grid = [side // self.config.vision_config.patch_size for side in pixel_values.shape[-2:]]
        logits = self.classifier(patches).transpose(1, 2).unflatten(2, grid)  # (N, num_labels, H / patch, W / patch)
        loss = None
        if labels is not None:
            loss = self._segmentation_loss(logits, labels)
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _segmentation_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.num_labels == 1:
            raise ValueError("num_labels=1: segmentation needs at least 2 classes (say background and object).")
        ignore_index = self.config.semantic_loss_ignore_index
        upsampled = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
        # The mean over valid pixels, and 0 rather than NaN where a batch holds nothing but void.
        total = F.cross_entropy(upsampled, labels.long(), ignore_index=ignore_index, reduction="sum")
        return total / (labels != ignore_index).sum().clamp(min=1)


__all__ = [
    "LeVLJEPABackbone",
    "LeVLJEPAForImageClassification",
    "LeVLJEPAForSemanticSegmentation",
    "LeVLJEPAModel",
    "LeVLJEPAOutput",
    "LeVLJEPAPreTrainedModel",
    "LeVLJEPATextModel",
    "LeVLJEPAVisionModel",
    "READOUTS",
    "retrieval_embeds",
    "similarity",
]
