"""LeVLJEPA configurations: each tower alone, and the whole model.

Inside the whole model the text tower's configuration is transformers' own `GPT2Config`. This file travels to the Hub
with a saved model.
"""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import GPT2Config
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .hints_levljepa import did_you_mean

# The text tower of the official code: GPT-2 without dropout, used as an encoder.
TEXT_DEFAULTS = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}

TEXT_READOUTS = ("eot", "pad77")
WEIGHT_INITS = ("", "jax", "moco")  # timm's, of a tower without a classifier

OBJECTIVES = ("levljepa", "levljepa_plus", "infonce", "siglip")
DEFAULT_VIEWS = {"global": 2, "local": 4}  # of LeVLJEPA+, with local views of 96 px beside global ones of 224

# `tiny`, `small` and `base` are the sizes of the official code, with embeddings as wide as the towers. `released` is
# the checkpoint lukaskuhndkfz/LeVLJEPA-ViT-B-DataComp-200k: `base` with embeddings of 256.
PRESETS: dict[str, dict[str, Any]] = {
    "debug": {
        "vision_config": {
            "architecture": "vit_tiny_patch16_224",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        "text_config": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
        "projection_dim": 16,
        "head_hidden_size": 64,
        "predictor_num_layers": 2,
        "sigreg_num_directions": 64,
    },
    "tiny": {
        "vision_config": {"architecture": "vit_tiny_patch16_224"},
        "text_config": {"n_embd": 192, "n_layer": 12, "n_head": 3},
        "projection_dim": 192,
    },
    "small": {
        "vision_config": {"architecture": "vit_small_patch16_224"},
        "text_config": {"n_embd": 384, "n_layer": 12, "n_head": 6},
        "projection_dim": 384,
    },
    "base": {
        "vision_config": {"architecture": "vit_base_patch16_224"},
        "text_config": {"n_embd": 768, "n_layer": 12, "n_head": 12},
        "projection_dim": 768,
    },
}
PRESETS["released"] = {**PRESETS["base"], "projection_dim": 256}


@strict
class LeVLJEPAVisionConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of the vision tower: a timm Vision Transformer.

    A bare `architecture` fills every dimension left at `None` from timm; a dimension that is given drives timm
    instead, so that `LeVLJEPAVisionConfig(architecture="vit_base_patch16_224", image_size=384)` is that model at 384
    px.

    Args:
        architecture: Name of a timm `VisionTransformer`, such as `"vit_base_patch16_224"`.
        hidden_size: Width of the tokens.
        intermediate_size: Width of the MLP's hidden layer.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Number of attention heads; must divide `hidden_size`.
        image_size: Side in pixels of the square image that the position embeddings are made for. The forward pass
            takes any height and width that `patch_size` divides.
        patch_size: Side of a patch in pixels; must divide `image_size`.
        num_register_tokens: Register tokens beside the class token. They take part in attention and are left out of
            the outputs.
        num_channels: Channels of the images.
        drop_path_rate: Rate of stochastic depth at the last block (it grows linearly from 0 at the first).
        weight_init: How new weights are drawn, of timm's ways: `""` for its default, a standard deviation of 0.02,
            which suits widths from 200 on; `"jax"`, Xavier's, which suits any and learns much faster in narrower
            towers; or `"moco"`.
        apply_layernorm: Whether the backbone's feature maps are normalised by the final norm.
        reshape_hidden_states: Whether the backbone's feature maps are maps `(N, C, H, W)`. `False` leaves tokens
            `(N, 1 + patches, C)`, the class token first, as DPT and Depth Anything take them.

    Raises:
        ValueError: if timm does not know the architecture, or the dimensions do not divide each other.

    Example:

    ```python
    >>> from levljepa_hf import LeVLJEPAVisionConfig, LeVLJEPAVisionModel

    >>> config = LeVLJEPAVisionConfig(architecture="vit_small_patch16_224")
    >>> config.hidden_size
    384
    >>> model = LeVLJEPAVisionModel(config)
    ```"""

    model_type = "levljepa_vision_model"
    base_config_key = "vision_config"

    architecture: str = "vit_base_patch16_224"
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    image_size: int | None = None
    patch_size: int | None = None
    num_register_tokens: int | None = None
    num_channels: int = 3
    drop_path_rate: float | int = 0.0
    weight_init: str = ""
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._fill_from_timm()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={self.num_attention_heads} "
                f"(architecture {self.architecture!r}): change one of them."
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is not divisible by patch_size={self.patch_size} (architecture "
                f"{self.architecture!r}): {self.image_size // self.patch_size * self.patch_size} or "
                f"{(self.image_size // self.patch_size + 1) * self.patch_size} would be."
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} must be at least 0 and less than 1.")
        if self.weight_init not in WEIGHT_INITS:
            raise ValueError(
                f"weight_init={self.weight_init!r} is unknown: use one of {', '.join(map(repr, WEIGHT_INITS))}."
            )
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    def _fill_from_timm(self) -> None:
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
        names += ("num_register_tokens", "intermediate_size")
        if all(getattr(self, name) is not None for name in names):
            return
        from .vision_levljepa import timm_dimensions  # timm takes a while, and a class alone needs none

        defaults = timm_dimensions(self.architecture)
        for name in names[:-1]:
            if getattr(self, name) is None:
                setattr(self, name, defaults[name])
        if self.intermediate_size is None and "intermediate_size" in defaults:
            self.intermediate_size = defaults["intermediate_size"] * self.hidden_size // defaults["hidden_size"]

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> tuple[dict, dict]:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        config_dict = _from_released(config_dict)
        if config_dict.get("model_type") == LeVLJEPATextConfig.model_type:
            raise ValueError(other_tower(pretrained_model_name_or_path, "text", "vision"))
        if "quantization_config" in config_dict and "vision_config" in config_dict:
            raise ValueError(_quantised(pretrained_model_name_or_path))
        return config_dict, kwargs


@strict
class LeVLJEPATextConfig(GPT2Config):
    r"""
    Configuration of the text tower alone: a `GPT2Config`, whose fields it takes (`n_embd`, `n_layer`, `n_head`,
    `n_positions`, ...), without dropout, and where the feature is read.

    Args:
        text_readout: `"eot"`, the last unmasked token, or `"pad77"`, the last of 77 positions (see `LeVLJEPAConfig`).
        resid_pdrop, embd_pdrop, attn_pdrop: Dropout rates, as in `GPT2Config`, but 0 by default.
        use_cache: Whether past keys and values are kept; an encoder has no use for them.

    Raises:
        ValueError: if the readout is unknown.
    """

    model_type = "levljepa_text_model"
    base_config_key = "text_config"

    resid_pdrop: float | int = TEXT_DEFAULTS["resid_pdrop"]
    embd_pdrop: float | int = TEXT_DEFAULTS["embd_pdrop"]
    attn_pdrop: float | int = TEXT_DEFAULTS["attn_pdrop"]
    use_cache: bool = TEXT_DEFAULTS["use_cache"]
    text_readout: str = "eot"

    def __post_init__(self, **kwargs: Any) -> None:
        _check_text_readout(self.text_readout)
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> tuple[dict, dict]:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        config_dict = _from_released(config_dict)
        if config_dict.get("model_type") == LeVLJEPAVisionConfig.model_type:
            raise ValueError(other_tower(pretrained_model_name_or_path, "vision", "text"))
        if "quantization_config" in config_dict and "text_config" in config_dict:
            raise ValueError(_quantised(pretrained_model_name_or_path))
        return _text_alone(config_dict), kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "LeVLJEPATextConfig":
        return super().from_dict(_text_alone(config_dict), **kwargs)


@strict
class LeVLJEPAConfig(PreTrainedConfig):
    r"""
    Configuration of the whole model (arXiv 2607.00784): two towers, two heads, two predictors and the loss.

    Args:
        vision_config: A `LeVLJEPAVisionConfig` or a dict of its fields.
        text_config: A `GPT2Config` or a dict of its fields. A dict's dropouts default to 0, as in the official code.
        projection_dim: D, the dimension of the embeddings Z_V and Z_T.
        head_hidden_size: Width of the heads' hidden layers; a list has the width of each.
        head_num_layers: Hidden layers of each head; 1, or the length of a list. 0 makes the heads linear.
        predictor_hidden_size: Width of the predictors' hidden layers; a list has the width of each, and an empty one
            makes the predictors linear. `None` is `head_hidden_size`. Contrastive objectives make it `None`.
        predictor_num_layers: Hidden layers of each predictor; 4, or the length of a list. 0 without a list means no
            predictors (the InfoNCE sibling): the predictions are `None`, the logits use the `zeroshot` readout, and
            the loss compares the embeddings themselves. Contrastive objectives make it 0, whatever was given.
        predictor_dropout: Dropout after each hidden layer of the predictors and after their last layer, as in
            `torchvision.ops.MLP`, which the official code uses.
        text_readout: Where the text feature is read. `"eot"`: at the last unmasked token, which is EOS. `"pad77"`, the
            readout of older official runs: at the last position, after captions without EOS are padded to 77.
        prediction_loss_type: `"mse"`, the squared error, or `"cosine"`, `2 - 2 cos`.
        stop_gradient: Whether the targets of prediction are behind a stop-gradient, as in the paper. `False` is for
            seeing what it does.
        sigreg_vision_weight: lv, the weight of SIGReg(Z_V).
        sigreg_text_weight: lt, the weight of SIGReg(Z_T). The prediction term weighs `1 - lv - lt`.
        sigreg_num_directions: S, the random directions of SIGReg.
        sigreg_num_knots: K, the knots of the Epps-Pulley statistic.
        sigreg_t_max: The last knot.
        sigreg_sample_size_scale: The factor in front of the statistic. `None` is N, the batch, as in the paper (the
            released recipe: 256 per device); a number keeps the meaning of the weights when the batch changes.
        sigreg_distributed: Whether SIGReg's means run over the samples of all devices. `False` takes them on each
            device alone, as the released recipe does: exact for reproducing it, but the objective then depends on how
            many devices share the batch. With `True` many devices equal one with the whole batch.
        logit_scale: Factor of the cosine similarities in `logits_per_image` and `logits_per_text`. Fixed, and used for
            inference alone; contrastive objectives use what they have learned. 20 is a guess for the `avg` readout:
            it calibrates best (negative log-likelihood 0.17; 0.51 at 100) the scores that the authors publish for 500
            Imagenette photos, which are those of the `proj_text` readout on images normalised with ImageNet's
            statistics.
        semantic_loss_ignore_index: The label of void pixels, left out of the segmentation loss.
        objective: What is trained. `"levljepa"`: prediction and SIGReg. `"levljepa_plus"`: the same with several views
            of each image, which are also drawn to their mean. `"infonce"` (CLIP) and `"siglip"`: the contrastive
            objectives it is compared with, on the same towers and heads, with a learned scale and no predictors.
        contrastive_initial_scale: Where the learned scale (1 / temperature) of the contrastive objectives begins,
            above 0 and at most 100. `None` is CLIP's 1 / 0.07 and SigLIP's 10. Other objectives do not read it.
        multi_view_weight: With `levljepa_plus`, the weight of the squared distance of the views' embeddings from the
            mean of the global ones. The prediction term weighs `1 - lv - lt` less this. Other objectives do not read
            it, and contrastive ones none of `prediction_loss_type`, `stop_gradient` and what is named after SIGReg.
        views: With `levljepa_plus`, how many `"global"` and `"local"` views (crops) training takes of an image; 2 and
            4 by default. The mean of the global ones is the image's embedding.
        local_image_size: With `levljepa_plus`, the side of local views in pixels; by default the multiple of the patch
            size next to 96 / 224 of `vision_config.image_size`.

    Raises:
        ValueError: if a value is out of its range.

    Example:

    ```python
    >>> from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel

    >>> config = LeVLJEPAConfig.from_preset("tiny", projection_dim=128)
    >>> model = LeVLJEPAModel(config)
    ```"""

    model_type = "levljepa"
    keys_to_ignore_at_inference = ["vision_model_output", "text_model_output"]
    sub_configs = {"vision_config": LeVLJEPAVisionConfig, "text_config": GPT2Config}

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 256
    head_hidden_size: int | list[int] = 2048
    head_num_layers: int | None = None
    predictor_hidden_size: int | list[int] | None = None
    predictor_num_layers: int | None = None
    predictor_dropout: float | int = 0.0
    text_readout: str = "eot"
    prediction_loss_type: str = "mse"
    stop_gradient: bool = True
    sigreg_vision_weight: float | int = 0.02
    sigreg_text_weight: float | int = 0.02
    sigreg_num_directions: int = 4096
    sigreg_num_knots: int = 17
    sigreg_t_max: float | int = 3.0
    sigreg_sample_size_scale: float | int | None = None
    sigreg_distributed: bool = True
    logit_scale: float | int = 20.0
    semantic_loss_ignore_index: int = 255
    objective: str = "levljepa"
    contrastive_initial_scale: float | int | None = None
    multi_view_weight: float | int = 0.2
    views: dict | None = None
    local_image_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = LeVLJEPAVisionConfig(**(self.vision_config or {}))
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = GPT2Config(**{**TEXT_DEFAULTS, **(self.text_config or {})})
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective={self.objective!r} is unknown: use one of {', '.join(OBJECTIVES)}.")
        if self.is_contrastive:
            self.predictor_hidden_size, self.predictor_num_layers = None, 0
        self._fill_views()
        self.head_num_layers = _num_layers("head", self.head_hidden_size, self.head_num_layers, default=1)
        self.predictor_num_layers = _num_layers(
            "predictor", self.predictor_hidden_size, self.predictor_num_layers, default=4
        )
        self._check_values()
        super().__post_init__(**kwargs)

    def _check_values(self) -> None:
        text = self.text_config
        if text.hidden_size % text.num_attention_heads:
            raise ValueError(
                f"text_config: n_embd={text.hidden_size} is not divisible by n_head={text.num_attention_heads}: "
                "change one of them."
            )
        if self.prediction_loss_type not in ("mse", "cosine"):
            raise ValueError(f"prediction_loss_type={self.prediction_loss_type!r} is unknown: use 'mse' or 'cosine'.")
        _check_text_readout(self.text_readout)
        if self.contrastive_initial_scale is not None and not 0 < self.contrastive_initial_scale <= 100:
            raise ValueError(
                f"contrastive_initial_scale={self.contrastive_initial_scale} must be above 0 and at most 100."
            )
        if not 0 <= self.predictor_dropout < 1:
            raise ValueError(f"predictor_dropout={self.predictor_dropout} must be at least 0 and less than 1.")
        weights = {"sigreg_vision_weight": self.sigreg_vision_weight, "sigreg_text_weight": self.sigreg_text_weight}
        if self.views is not None:
            weights["multi_view_weight"] = self.multi_view_weight
        if min(weights.values()) < 0 or sum(weights.values()) > 1:
            raise ValueError(
                f"{' and '.join(f'{name}={weight}' for name, weight in weights.items())} must be at least 0 and add "
                "up to at most 1: the prediction term weighs what they leave."
            )
        if (
            isinstance(self.head_hidden_size, list)
            and self.predictor_hidden_size is None
            and self.predictor_num_layers
        ):
            raise ValueError(
                f"head_hidden_size={self.head_hidden_size} is a list, which predictor_hidden_size=None would repeat: "
                "give predictor_hidden_size a width or a list of its own."
            )
        for name in ("projection_dim", "head_hidden_size", "predictor_hidden_size", "sigreg_num_directions"):
            value = getattr(self, name)
            if value is not None and min(value if isinstance(value, list) else [value], default=1) < 1:
                raise ValueError(f"{name}={value} must be at least 1.")

    def _fill_views(self) -> None:
        """The number and size of the views that `levljepa_plus` takes of an image; others take none."""
        if self.objective != "levljepa_plus":
            given = [name for name in ("views", "local_image_size") if getattr(self, name) is not None]
            if given:
                raise ValueError(
                    f"{given[0]}={getattr(self, given[0])} has no effect with objective={self.objective!r}: leave it "
                    'out, or choose "levljepa_plus".'
                )
            return
        self.views = {**DEFAULT_VIEWS, **(self.views or {})}
        counts = list(self.views.values())
        if self.views.keys() != DEFAULT_VIEWS.keys() or not all(isinstance(count, int) for count in counts):
            raise ValueError(f"views={self.views}: give the numbers of global and local views, as {DEFAULT_VIEWS}.")
        if self.views["global"] < 1 or self.views["local"] < 0 or sum(counts) < 2:
            raise ValueError(
                f"views={self.views}: there must be at least 1 global view and 2 in all, else there is nothing to "
                'draw together: objective="levljepa" is the one for a single view.'
            )
        size, patch = self.vision_config.image_size, self.vision_config.patch_size
        if self.local_image_size is None:
            self.local_image_size = max(1, round(size * 96 / 224 / patch)) * patch
        if self.local_image_size < 1 or self.local_image_size % patch:
            raise ValueError(
                f"local_image_size={self.local_image_size} must be a multiple of patch_size={patch}, such as "
                f"{max(1, round(self.local_image_size / patch)) * patch}."
            )

    def check_objective(self) -> None:
        """Refuses an objective that was set on a finished configuration, whose other fields are not of it.

        Raises:
            ValueError: with the way to change it.
        """
        views, predictors = self.views is not None, self.predictor_hidden_sizes is not None
        if views != (self.objective == "levljepa_plus") or (self.is_contrastive and predictors):
            raise ValueError(
                f"objective={self.objective!r} was set on a configuration that was made for another one (views="
                f"{self.views}, predictor_num_layers={self.predictor_num_layers}): give it when the configuration is "
                "made, or to `from_pretrained`."
            )

    @property
    def is_contrastive(self) -> bool:
        """Whether the objective compares the embeddings themselves, over all pairs, and has no predictors."""
        return self.objective in ("infonce", "siglip")

    @property
    def head_hidden_sizes(self) -> list[int]:
        """Widths of the hidden layers of each head."""
        return _widths(self.head_hidden_size, self.head_num_layers)

    @property
    def predictor_hidden_sizes(self) -> list[int] | None:
        """Widths of the hidden layers of each predictor, none for a linear one; `None` without predictors."""
        if self.predictor_num_layers == 0 and not isinstance(self.predictor_hidden_size, list):
            return None
        size = self.head_hidden_size if self.predictor_hidden_size is None else self.predictor_hidden_size
        return _widths(size, self.predictor_num_layers)

    @property
    def prediction_weight(self) -> float:
        """1 - lv - lt, and with several views less `multi_view_weight`: the weight of the prediction term."""
        views = 0.0 if self.views is None else self.multi_view_weight
        return 1.0 - self.sigreg_vision_weight - self.sigreg_text_weight - views

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "LeVLJEPAConfig":
        """One of the official code's sizes `tiny`, `small`, `base`, with embeddings as wide as the towers (192, 384,
        768); `released`, the published checkpoint: `base` with embeddings of 256; or `debug` for tests.

        Args:
            name: The preset.
            overrides: Fields of this class that replace the preset's; dicts for `vision_config` and `text_config` are
                merged into the preset's.

        Raises:
            ValueError: if the preset or a field, also one inside a dict, is unknown; or a value is out of its range.
        """
        if name not in PRESETS:
            raise ValueError(f"Unknown preset {name!r}: use one of {', '.join(PRESETS)}.")
        check_field_names(cls, overrides)
        fields = dict(PRESETS[name])
        for part in ("head", "predictor"):
            if isinstance(overrides.get(f"{part}_hidden_size"), list):  # says how many by itself
                fields.pop(f"{part}_num_layers", None)
        for key, value in overrides.items():
            merge = isinstance(value, dict) and isinstance(fields.get(key), dict)
            fields[key] = {**fields[key], **value} if merge else value
        return cls(**fields)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> tuple[dict, dict]:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return _whole(_from_released(config_dict)), kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "LeVLJEPAConfig":
        """As in transformers, but what is given beside the dict is there when the fields that follow are filled."""
        config_dict = _whole(_from_released(config_dict))
        names = {field.name for field in dataclasses.fields(cls)} - cls.sub_configs.keys()
        given = {name: kwargs.pop(name) for name in [*kwargs] if name in names}
        if given.get("objective", config_dict.get("objective")) != config_dict.get("objective"):
            config_dict = {k: v for k, v in config_dict.items() if k not in ("views", "local_image_size")}
        return super().from_dict({**config_dict, **given}, **kwargs)


def check_field_names(config_class: type[PreTrainedConfig], names: Iterable[str], prefix: str = "") -> None:
    """Refuses what is no field of a configuration class, which the class itself would keep and never read.

    Args:
        config_class: The configuration class.
        names: Names of fields. Of a mapping, the values that are mappings too are checked against the class of that
            sub-configuration.
        prefix: Where the names stand, for the message: `"vision_config."`.

    Raises:
        ValueError: for the first unknown name; the message has the close ones.
    """
    properties = inspect.getmembers(config_class, lambda member: isinstance(member, property) and member.fset)
    known = {name for name, _ in properties} | {f.name for f in dataclasses.fields(config_class)}
    known = {name.removeprefix("_") for name in known} | {*config_class.attribute_map}
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known, most=3, prefix=prefix)
            raise ValueError(f"{prefix}{name} is no field of {config_class.__name__}.{hint}")
        if isinstance(names, Mapping) and isinstance(names[name], Mapping) and name in config_class.sub_configs:
            check_field_names(config_class.sub_configs[name], names[name], f"{prefix}{name}.")


def _num_layers(part: str, hidden_size: int | list[int] | None, num_layers: int | None, default: int) -> int:
    """The number of hidden layers of the heads or the predictors, checked against a list of their widths."""
    if isinstance(hidden_size, list):
        if num_layers not in (None, len(hidden_size)):
            raise ValueError(
                f"{part}_hidden_size={hidden_size} has {len(hidden_size)} widths, but {part}_num_layers={num_layers}: "
                f"a list has one width a hidden layer, so leave {part}_num_layers out."
            )
        return len(hidden_size)
    if num_layers is None:
        return default
    if num_layers < 0:
        meaning = "no predictors" if part == "predictor" else "a linear head"
        raise ValueError(f"{part}_num_layers={num_layers} is negative: 0 means {meaning}.")
    return num_layers


def _widths(hidden_size: int | list[int], num_layers: int) -> list[int]:
    return list(hidden_size) if isinstance(hidden_size, list) else [hidden_size] * num_layers


def _check_text_readout(text_readout: str) -> None:
    if text_readout not in TEXT_READOUTS:
        raise ValueError(f"text_readout={text_readout!r} is unknown: use one of {', '.join(TEXT_READOUTS)}.")


def other_tower(source: str, has: str, wanted: str) -> str:
    """The message for a checkpoint of one tower where the other is wanted."""
    return (
        f"{source} holds a {has} tower alone and no {wanted} tower: load it with "
        f"LeVLJEPA{has.capitalize()}Model, or name a full checkpoint."
    )


def _quantised(source: str) -> str:
    return (
        f"{source} holds quantised weights of the whole model, from which a tower can't be loaded alone: load "
        "LeVLJEPAModel and take its tower, or quantise the tower while loading it from a checkpoint in full precision."
    )


def _from_released(config_dict: dict[str, Any]) -> dict[str, Any]:
    """The native fields of a released `config.json` (`vision_encoder`, `text_encoder`, `embed_dim`, ...).

    Other dicts come back as they are. The tensor shapes have the last word: see `released.py`.
    """
    if "vision_encoder" not in config_dict and "text_encoder" not in config_dict:
        return config_dict
    vision, text = config_dict.get("vision_encoder") or {}, config_dict.get("text_encoder") or {}
    predictor_width = config_dict.get("projector_hidden_dims", config_dict.get("projector_width"))
    head_width = config_dict.get("pre_proj_hidden_dims", config_dict.get("pre_proj_width"))
    renamed = {
        "vision_config": {
            "architecture": vision.get("architecture"),
            "hidden_size": vision.get("hidden_size"),
            "num_hidden_layers": vision.get("num_layers"),
            "num_attention_heads": vision.get("num_heads"),
        },
        "text_config": {
            "n_embd": text.get("hidden_size"),
            "n_layer": text.get("num_layers"),
            "n_head": text.get("num_heads"),
            "vocab_size": text.get("vocab_size"),
        },
        "projection_dim": config_dict.get("embed_dim"),
        "head_hidden_size": predictor_width if head_width is None else head_width,
        "head_num_layers": None if isinstance(head_width, list) else config_dict.get("pre_proj_depth"),
        "predictor_hidden_size": None if head_width is None else predictor_width,
        "predictor_num_layers": None if isinstance(predictor_width, list) else config_dict.get("projector_depth"),
        "text_readout": config_dict.get("text_readout"),
    }
    widths = {"vision_config": ("hidden_size", "num_attention_heads"), "text_config": ("n_embd", "n_head")}
    for key, (width, heads) in widths.items():
        part = {name: value for name, value in renamed[key].items() if value is not None}
        if width in part and heads in part and part[width] % part[heads]:  # wrong: the shapes will tell
            del part[width], part[heads]
        renamed[key] = part
    rest = {key: value for key, value in config_dict.items() if key not in RELEASED_KEYS}
    return {**rest, **{key: value for key, value in renamed.items() if value is not None}}


RELEASED_KEYS = (
    *("vision_encoder", "text_encoder", "embed_dim", "training", "text_readout"),
    *("projector_width", "projector_depth", "projector_hidden_dims"),
    *("pre_proj_width", "pre_proj_depth", "pre_proj_hidden_dims"),
)


def _whole(config_dict: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the whole model around that of a tower, so that every class loads from a bare tower."""
    model_type = config_dict.get("model_type")
    shared = ("dtype", "id2label", "label2id", "num_labels", "problem_type", "text_readout", "architectures")
    shared = {key: config_dict[key] for key in shared if key in config_dict}
    if model_type == LeVLJEPAVisionConfig.model_type:
        return {"vision_config": config_dict, **shared}
    if model_type == LeVLJEPATextConfig.model_type:
        text = {key: value for key, value in config_dict.items() if key != "text_readout"}
        return {"text_config": {**text, "model_type": GPT2Config.model_type}, **shared}
    return config_dict


def whole_config(config: LeVLJEPAVisionConfig | LeVLJEPATextConfig) -> LeVLJEPAConfig:
    """The configuration of a whole model around that of a tower, as a class of the whole model makes it."""
    whole = LeVLJEPAConfig.from_dict(config.to_dict())
    whole._attn_implementation, whole.name_or_path = config._attn_implementation, config.name_or_path  # in no dict
    return whole


def _text_alone(config_dict: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the text tower inside that of the whole model; that of the tower itself comes back."""
    if "text_config" not in config_dict:
        return config_dict
    outer = {key: config_dict[key] for key in ("dtype", "text_readout", "architectures") if key in config_dict}
    return {**config_dict["text_config"], **outer, "model_type": LeVLJEPATextConfig.model_type}


__all__ = ["LeVLJEPAConfig", "LeVLJEPATextConfig", "LeVLJEPAVisionConfig"]
