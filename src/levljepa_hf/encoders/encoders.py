"""What is measured: a LeVLJEPA checkpoint, or a peer to compare it with, behind one interface.

encoder = load_encoder("runs/demo")  # or a Hub id, "timm:NAME", "hf:NAME", "random"
pixel_values = encoder.image_processor()(images, return_tensors="pt")["pixel_values"]
cls, patches, grid = encoder.tokens(pixel_values)
"""

import contextlib
import functools
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_utils import PILImageResampling
from transformers.utils import logging

from ..model.configuration_levljepa import LeVLJEPAConfig, LeVLJEPAVisionConfig
from ..model.modeling_levljepa import READOUTS, LeVLJEPAModel, LeVLJEPAVisionModel
from ..model.processing_levljepa import LeVLJEPAImageProcessor, LeVLJEPAProcessor, evaluation_image_processor
from ..model.released import find_released_files
from .embeddings import Embeddings, embed_distinct, embed_texts

OWN_TYPES = (LeVLJEPAConfig.model_type, LeVLJEPAVisionConfig.model_type)
RANDOM_PRESET = "base"
TRANSFORMS = ("evaluation", "default", "evaluation-bicubic", "default-bicubic")
# Types whose `last_hidden_state` has not met the final norm.
_TOKENS_BEFORE_NORM = ("altclip", "chinese_clip", "clip", "clip_vision_model", "metaclip_2", "mlcd_vision_model")


class VisionTokens(NamedTuple):
    """What an encoder sees in images, after its final norm."""

    cls: Tensor  # [N, C], the class token, or the encoder's own pooling where it has none
    patches: Tensor  # [N, P, C], row by row; register tokens are left out
    grid: tuple[int, int]  # rows and columns of the patches


class Encoder(ABC):
    """A frozen encoder in evaluation mode, which `load_encoder` makes. Another kind defines `_image_processor` and
    `_encode`, and `readouts` and `embed_texts` where it has a text tower.

        pixel_values = encoder.image_processor()(images, return_tensors="pt")["pixel_values"]
        cls, patches, grid = encoder.tokens(pixel_values)  # [N, C], [N, P, C], (rows, columns)

    Args:
        name: What it is called in results.
        model: The module; it is set to evaluation mode, and gradients are turned off.
        image_size: Side of its input in pixels.
        hidden_size: C, the width of its tokens.

    Attributes:
        readouts: Those of `levljepa_hf.model.modeling_levljepa.READOUTS` that it offers; none without a text tower.
        fingerprint: Hex digest of the weights that images meet, their dtype and the configuration.
    """

    readouts: tuple[str, ...] = ()

    def __init__(self, name: str, model: nn.Module, image_size: int, hidden_size: int) -> None:
        self.name, self.image_size, self.hidden_size = name, image_size, hidden_size
        self.model = model.eval().requires_grad_(False)
        self.fingerprint = _weights_fingerprint(model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    def image_processor(self, transform: str = "evaluation") -> LeVLJEPAImageProcessor:
        """Prepares images: `(images, return_tensors="pt")` gives `pixel_values` [N, 3, S, S].

        Args:
            transform: One of `TRANSFORMS`. `"evaluation"` resizes the short side to 256/224 of the crop, `"default"`
                to the crop's side, by the encoder's own resampling; with `"-bicubic"` behind, bicubically, as the
                reproduction of the paper's segmentation (`"default-bicubic"`) and ImageNet-9 did.

        Raises:
            ValueError: if the transform is unknown.
        """
        if transform not in TRANSFORMS:
            raise ValueError(f"transform={transform!r} is unknown: use one of {', '.join(TRANSFORMS)}.")
        processor = self._image_processor()
        geometry, _, resampling = transform.partition("-")
        if resampling:
            processor.resample = PILImageResampling.BICUBIC
        return evaluation_image_processor(processor) if geometry == "evaluation" else processor

    @abstractmethod
    def _image_processor(self) -> LeVLJEPAImageProcessor:
        """The one that resizes the short side to the crop's."""

    @abstractmethod
    def _encode(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Embeddings | None]:
        """Class token [N, C], patch tokens [N, P, C], and the embeddings where `readouts` has any."""

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> tuple[VisionTokens, Embeddings | None]:
        """Tokens and, of an encoder with a text tower, embeddings of prepared images [N, 3, H, W], in one pass."""
        pixel_values = pixel_values.to(self.device, self.dtype)
        cls, patches, embeddings = self._encode(pixel_values)
        return VisionTokens(cls, patches, patch_grid(patches.shape[1], *pixel_values.shape[-2:])), embeddings

    def tokens(self, pixel_values: Tensor) -> VisionTokens:
        """The tokens of prepared images [N, 3, H, W], without gradients."""
        return self.encode(pixel_values)[0]

    def embed_texts(self, texts: Sequence[str], batch_size: int = 256, show_progress: bool = True) -> Embeddings:
        """Embeddings of texts, and what they predict of the images', [N, D].

        Raises:
            ValueError: if the encoder has no text tower.
        """
        raise ValueError(
            f"{self.name} has no text tower, so texts cannot be compared with its images: give a whole model."
        )


class LeVLJEPAEncoder(Encoder):
    """A LeVLJEPA checkpoint, whole or its vision tower alone."""

    def __init__(
        self, name: str, model: LeVLJEPAModel | LeVLJEPAVisionModel, processor: LeVLJEPAProcessor | None
    ) -> None:
        self.vision_model = model.vision_model if isinstance(model, LeVLJEPAModel) else model
        config = self.vision_model.config
        super().__init__(name, model, config.image_size, config.hidden_size)
        self.processor = processor
        if isinstance(model, LeVLJEPAModel):
            self.readouts = READOUTS if model.vision_predictor is not None else ("zeroshot",)

    def _image_processor(self) -> LeVLJEPAImageProcessor:
        return _plain_image_processor(self.processor.image_processor, self.image_size)

    def _encode(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Embeddings | None]:
        outputs = self.vision_model(pixel_values)
        num_class_tokens = int(self.vision_model.timm_model.has_class_token)
        embeddings = None
        if self.readouts:
            z = self.model.vision_projection(outputs.pooler_output)
            predictor = self.model.vision_predictor
            embeddings = Embeddings(z, None if predictor is None else predictor(z))
        return outputs.pooler_output, outputs.last_hidden_state[:, num_class_tokens:], embeddings

    def embed_texts(self, texts: Sequence[str], batch_size: int = 256, show_progress: bool = True) -> Embeddings:
        if not self.readouts:
            return super().embed_texts(texts)
        return embed_texts(self.model, self.processor, texts, batch_size, show_progress)


class TimmEncoder(Encoder):
    """A timm model: a transformer's tokens after its final norm, or the positions of a convolutional network's map."""

    def __init__(self, name: str, model: nn.Module) -> None:
        self.data = resolve_model_data_config(model)
        super().__init__(name, model, self.data["input_size"][-1], model.num_features)

    def _image_processor(self) -> LeVLJEPAImageProcessor:
        return LeVLJEPAImageProcessor(
            size={"shortest_edge": self.image_size},
            crop_size={"height": self.image_size, "width": self.image_size},
            image_mean=list(self.data["mean"]),
            image_std=list(self.data["std"]),
            resample={"nearest": 0, "bilinear": 2, "bicubic": 3}.get(self.data["interpolation"], 3),
        )

    def _encode(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, None]:
        features = self.model.forward_features(pixel_values)
        if not isinstance(features, Tensor) or (features.ndim == 3 and not hasattr(self.model, "num_prefix_tokens")):
            raise ValueError(
                f"{self.name} does not say which of its tokens are patches ({type(self.model).__name__}): take a ViT "
                "or a convolutional network."
            )
        if features.ndim == 4:
            channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            patches = features.flatten(1, 2) if channels_last else features.flatten(2).mT
            return self.model.forward_head(features, pre_logits=True), patches, None
        tokens = features
        if isinstance(getattr(self.model, "norm", None), nn.Identity):  # it normalises after its pooling
            tokens = self.model.fc_norm(features)
        num_prefix = self.model.num_prefix_tokens
        has_class_token = getattr(self.model, "has_class_token", num_prefix > 0)
        cls = tokens[:, 0] if has_class_token else self.model.forward_head(features, pre_logits=True)
        return cls, tokens[:, num_prefix:], None


class TransformersEncoder(Encoder):
    """A model of transformers: CLIP and SigLIP with their text tower, or a vision tower (DINOv2, DINOv3, ViT, ...)."""

    def __init__(self, name: str, model: PreTrainedModel, source: str, **hub_kwargs: Any) -> None:
        config = getattr(model.config, "vision_config", model.config)
        saved = AutoImageProcessor.from_pretrained(source, **hub_kwargs)
        size = _crop(saved) or config.image_size  # DINOv2's configuration has 518, and its processor crops 224
        size = size if isinstance(size, int) else size[0]
        super().__init__(name, model, size, getattr(config, "hidden_size", None) or config.hidden_sizes[-1])
        self.saved_image_processor = saved
        self._source, self._hub_kwargs = source, hub_kwargs
        if hasattr(model, "get_text_features"):
            self.readouts = ("zeroshot",)

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Loaded where texts are embedded: some need packages that images do not."""
        return AutoTokenizer.from_pretrained(self._source, **self._hub_kwargs)

    def _image_processor(self) -> LeVLJEPAImageProcessor:
        return _plain_image_processor(self.saved_image_processor, self.image_size)

    def _encode(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Embeddings | None]:
        if self.readouts:
            outputs = self.model.get_image_features(pixel_values)
            embeddings, tower = Embeddings(outputs.pooler_output, None), self.model.vision_model
        else:
            outputs, embeddings, tower = self.model(pixel_values), None, self.model
        tokens = outputs.last_hidden_state
        if tokens.ndim == 4:  # a convolutional network
            return outputs.pooler_output.flatten(1), tokens.flatten(2).mT, embeddings
        if self.model.config.model_type in _TOKENS_BEFORE_NORM:
            tokens = tower.post_layernorm(tokens)
        pooled = getattr(outputs, "pooler_output", None)
        num_prefix = self._num_prefix(tokens, pooled, *pixel_values.shape[-2:])
        patches = tokens[:, num_prefix:]
        if num_prefix:
            return tokens[:, 0], patches, embeddings
        return patches.mean(dim=1) if pooled is None else pooled, patches, embeddings  # I-JEPA has no pooling

    def _num_prefix(self, tokens: Tensor, pooled: Tensor | None, height: int, width: int) -> int:
        """How many of the tokens [N, L, C] are a class token and registers."""
        patch_size = getattr(getattr(self.model.config, "vision_config", self.model.config), "patch_size", None)
        if patch_size is None:  # DINOv3's ConvNeXt, which puts its pooling before the positions
            return int(pooled is not None and torch.equal(tokens[:, 0], pooled))
        num_patches = (height // patch_size) * (width // patch_size)
        if tokens.shape[1] < num_patches:
            raise ValueError(
                f"{self.name} gives {tokens.shape[1]} tokens for {num_patches} patches: it hides or merges some "
                f"({self.model.config.model_type}), so they cannot be placed. Try timm's model, by timm:NAME."
            )
        return tokens.shape[1] - num_patches

    def embed_texts(self, texts: Sequence[str], batch_size: int = 256, show_progress: bool = True) -> Embeddings:
        if not self.readouts:
            return super().embed_texts(texts)
        options: dict[str, Any] = {"padding": True}
        if self.model.config.model_type.startswith("siglip"):  # trained on texts of full length, without a mask
            options = {"padding": "max_length", "return_attention_mask": False}
        limit = self.model.config.text_config.max_position_embeddings
        length = min(self.tokenizer.model_max_length, limit)  # SigLIP 2's tokenizer may know no limit

        def encode(batch: Sequence[str]) -> Embeddings:
            inputs = self.tokenizer(list(batch), max_length=length, truncation=True, return_tensors="pt", **options)
            features = self.model.get_text_features(**inputs.to(self.device))
            return Embeddings(features.pooler_output, None)

        return embed_distinct(encode, texts, batch_size, "texts" if show_progress else None)


def load_encoder(
    name: str | os.PathLike,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    like: Encoder | None = None,
    **hub_kwargs: Any,
) -> Encoder:
    """Loads what is to be measured.

    Args:
        name: A LeVLJEPA checkpoint (folder or Hub id, native or released, whole or a vision tower); `timm:NAME` with
            timm's pretrained weights (`timm:local-dir:FOLDER` for those of a folder); `hf:NAME` for a model of
            transformers by its folder or Hub id; `random` for a fresh LeVLJEPA encoder, of `like`'s configuration or
            else of the preset "base", and `random:PRESET` for that of another preset.
        device: Where it runs; by default a GPU where there is one.
        dtype: Of the weights.
        seed: Of a random encoder's weights.
        like: The encoder whose size a random one takes.
        hub_kwargs: How to fetch from the Hub: `revision`, `token`, `cache_dir`, ...

    Raises:
        ValueError: if the name's kind is unknown, the weights do not belong to LeVLJEPA or are incomplete.
        OSError: if there is no such folder, Hub id or pretrained model.
    """
    name = os.fspath(name)
    kind, _, rest = name.partition(":")
    if kind == "random":
        encoder = _random_encoder(name, rest, seed, like)
    elif kind == "timm":
        encoder = _timm_encoder(name, rest)
    elif kind == "hf":
        encoder = _transformers_encoder(name, rest, **hub_kwargs)
    elif rest and len(kind) > 1:  # one letter is a drive
        raise ValueError(
            f"{name!r} is of no known kind: give a folder or Hub id of LeVLJEPA, timm:NAME, hf:NAME or random."
        )
    else:
        encoder = _levljepa_encoder(name, name, **hub_kwargs)
    if dtype != encoder.dtype:
        encoder.model.to(dtype)
        encoder.fingerprint = _weights_fingerprint(encoder.model)
    encoder.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return encoder


def _levljepa_encoder(name: str, source: str, **hub_kwargs: Any) -> LeVLJEPAEncoder:
    if find_released_files(source, towers=("vision",), **hub_kwargs) is None:
        model_type = PreTrainedConfig.get_config_dict(source, **hub_kwargs)[0].get("model_type")
        if model_type not in OWN_TYPES:
            raise ValueError(
                f"{source} holds a model of type {model_type!r}, and LeVLJEPA's are {' and '.join(OWN_TYPES)}: name "
                f"a model of another kind by hf:{source}."
            )
    # A checkpoint that lacks the text tower (a bare tower, a fine-tuned head) is measured by its vision tower.
    for model_class in (LeVLJEPAModel, LeVLJEPAVisionModel):
        with _silent_transformers():
            model, info = model_class.from_pretrained(source, output_loading_info=True, **hub_kwargs)
        if not info["missing_keys"]:
            return LeVLJEPAEncoder(name, model, LeVLJEPAProcessor.from_pretrained(source, **hub_kwargs))
    missing = sorted(info["missing_keys"])
    raise ValueError(
        f"{source} lacks {len(missing)} tensors of the vision tower (the first is {missing[0]}), which would be "
        "random: the file is incomplete, or that of a text tower. Download or copy it again."
    )


def _random_encoder(name: str, preset: str, seed: int, like: Encoder | None) -> LeVLJEPAEncoder:
    if preset or not isinstance(like, LeVLJEPAEncoder):
        config = LeVLJEPAConfig.from_preset(preset or RANDOM_PRESET)
        processor = LeVLJEPAProcessor.from_image_size(config.vision_config.image_size)
    else:
        config, processor = like.model.config, like.processor
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        whole = isinstance(config, LeVLJEPAConfig)
        model = LeVLJEPAModel(config) if whole else LeVLJEPAVisionModel(config)
    return LeVLJEPAEncoder(name, model, processor)


def _timm_encoder(name: str, architecture: str) -> TimmEncoder:
    try:
        model = timm.create_model(architecture, pretrained=True, num_classes=0)
    except Exception as error:
        raise OSError(
            f"timm {timm.__version__} has no pretrained model {architecture!r} at hand ({error}). Is the name one of "
            "timm.list_models(pretrained=True), and the Hub within reach? timm:local-dir:FOLDER loads from a folder."
        ) from error
    return TimmEncoder(name, model)


def _transformers_encoder(name: str, source: str, **hub_kwargs: Any) -> Encoder:
    if find_released_files(source, towers=("vision",), **hub_kwargs) is not None:
        return _levljepa_encoder(name, source, **hub_kwargs)
    if PreTrainedConfig.get_config_dict(source, **hub_kwargs)[0].get("model_type") in OWN_TYPES:
        return _levljepa_encoder(name, source, **hub_kwargs)
    model, info = AutoModel.from_pretrained(source, output_loading_info=True, **hub_kwargs)
    missing = sorted(info["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        model.pooler = None  # DINO's and classifiers' checkpoints have none, and the class token is before it
    elif missing:
        raise ValueError(f"{source} lacks {len(missing)} tensors (the first is {missing[0]}), which would be random.")
    return TransformersEncoder(name, model, source, **hub_kwargs)


def _plain_image_processor(saved: Any, image_size: int) -> LeVLJEPAImageProcessor:
    """Resize of the short side and centre crop to `image_size`, with the statistics and the resampling of `saved`."""
    return LeVLJEPAImageProcessor(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(saved.image_mean),
        image_std=list(saved.image_std),
        rescale_factor=saved.rescale_factor,
        resample=saved.resample,
    )


def _crop(image_processor: Any) -> int | None:
    """Side of what an image processor of transformers gives, where it says so."""
    crops = getattr(image_processor, "do_center_crop", False) and image_processor.crop_size
    size = crops or image_processor.size
    return size.get("height") or size.get("shortest_edge")


def patch_grid(num_patches: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of square patches that cover an image of so many pixels."""
    rows = round((num_patches * height / width) ** 0.5)
    return rows, num_patches // rows


def _weights_fingerprint(model: nn.Module) -> str:
    """Digest of the configuration and of the tensors, but for the text tower's, which images do not meet."""
    digest = hashlib.sha256(type(model).__name__.encode())
    config = getattr(model, "config", None) or getattr(model, "pretrained_cfg", {})
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    paths = ("_name_or_path", "transformers_version", "file", "url", "hf_hub_id")
    digest.update(
        json.dumps({k: v for k, v in config.items() if k not in paths}, default=str, sort_keys=True).encode()
    )
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(("text_", "sigreg", "logit_")):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@contextlib.contextmanager
def _silent_transformers() -> Iterator[None]:
    """Without the report on what is new in a model: what lacks tensors is refused or loaded otherwise."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


__all__ = [
    "Encoder",
    "LeVLJEPAEncoder",
    "TRANSFORMS",
    "TimmEncoder",
    "TransformersEncoder",
    "VisionTokens",
    "load_encoder",
    "patch_grid",
]
