"""Augmentations of training, made for speed: one view of a photo (the released recipe), or several (LeVLJEPA+).

    transform = training_transform(224)
    transform(image)  # uint8 (3, H, W) to uint8 (3, 224, 224)
    global_views, local_views = multi_view_transform(224)(image)  # (2, 3, 224, 224) and (4, 3, 96, 96)

The laws are torchvision's (`RandomResizedCrop`, `RandomHorizontalFlip`, `ColorJitter`, `RandomGrayscale`,
`GaussianBlur`, `RandomSolarize`), and so are the pixels, but for a level of 255 here and there. What is random is
drawn first (`draw`), from the size of the photo alone, so that a JPEG can be decoded at the smallest scale that serves
the crops (`reduction`). Then it is carried out (`apply`): crop and resize on interleaved pixels, colours on planes.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from ..model.configuration_levljepa import LeVLJEPAConfig
from .images import REDUCTIONS

_RATIO = (3 / 4, 4 / 3)  # of width to height, as RandomResizedCrop has it
_BLUR_KERNEL_SHARE = 23 / 224  # of the side of a global view
_BLUR_SIGMA = (0.1, 2.0)
_SOLARIZE_THRESHOLD = 128
_LUMINANCE = (0.2989, 0.587, 0.114)


# What is drawn


@dataclass(frozen=True)
class ViewChoices:
    """One view's random choices: all that `ViewTransform.apply` needs beside the pixels.

    Args:
        photo_size: width and height that the box refers to.
        box: left, top, right and bottom of the crop in pixels.
        flip: whether left and right are swapped.
        jitter: names and factors of the changes of colour, in their order.
        grayscale: whether the colours go.
        blur_sigma: of the Gaussian blur, in pixels of the view; None for no blur.
        solarize: whether the light half is inverted.
    """

    photo_size: tuple[int, int]
    box: tuple[int, int, int, int]
    flip: bool = False
    jitter: tuple[tuple[str, float], ...] = ()
    grayscale: bool = False
    blur_sigma: float | None = None
    solarize: bool = False


def _draw_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], generator: random.Random
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop, by the law of torchvision's `RandomResizedCrop`."""
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = generator.randrange(width - w + 1), generator.randrange(height - h + 1)
            return left, top, left + w, top + h
    w, h = width, height  # the largest crop in the middle whose ratio is allowed
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


# The transforms


class Augmentation:
    """Base of the transforms here: how they draw, and what they say to the one who decodes the photo."""

    @property
    def views(self) -> tuple["ViewTransform", ...]:
        """The views of a photo, in the order in which they are drawn."""
        raise NotImplementedError

    def draw(self, photo_size: tuple[int, int], generator: random.Random) -> list[ViewChoices]:
        """The random choices for a photo of so many pixels (width, height)."""
        return [view.draw_view(photo_size, generator) for view in self.views]

    def reduction(self, drawn: Sequence[ViewChoices]) -> int:
        """The most (of 1, 2, 4, 8) that the photo can be reduced by before any of the crops had to be enlarged."""
        room = min(
            min((d.box[2] - d.box[0]) / view.image_size[1], (d.box[3] - d.box[1]) / view.image_size[0])
            for view, d in zip(self.views, drawn, strict=True)
        )
        return max((r for r in REDUCTIONS if r <= room), default=1)

    def apply(self, pixels: np.ndarray, drawn: Sequence[ViewChoices]) -> Tensor | tuple[Tensor, Tensor]:
        """Carries out what was drawn on uint8 pixels (H, W, 3) of the photo, whole or reduced."""
        raise NotImplementedError

    def __call__(self, image: Tensor, generator: random.Random | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """
        Args:
            image: uint8 (3, H, W).
            generator: where the draws come from; by default one that torch's global generator seeds.
        """
        generator = generator or random.Random(int(torch.randint(2**63 - 1, ())))
        return self.apply(image.permute(1, 2, 0).numpy(), self.draw((image.shape[2], image.shape[1]), generator))


@dataclass(frozen=True)
class ViewTransform(Augmentation):
    """One random view: crop, flip, colour jitter, grayscale, blur, solarization, each by torchvision's law.

    `training_transform` and `multi_view_transform` make them with the settings of the method.

    Args:
        image_size: height and width of the view.
        crop_scale: least and largest share of the photo's area that is cropped.
        flip_probability: of swapping left and right.
        color_jitter: strengths of brightness, contrast, saturation and hue; hue is 1/6 at most.
        color_jitter_probability: of changing them.
        grayscale_probability: of losing the colours.
        blur_probability: of a Gaussian blur, whose sigma is uniform on [0.1, 2] pixels.
        blur_kernel: pixels across the blur, odd.
        solarize_probability: of inverting what is 128 or above.

    Returns (when called with a uint8 image (3, H, W)):
        uint8 (3, *image_size).

    Raises:
        ValueError: if a share, a probability, a strength or the kernel is out of its range.
    """

    image_size: tuple[int, int]
    crop_scale: tuple[float, float]
    flip_probability: float
    color_jitter: tuple[float, float, float, float]
    color_jitter_probability: float
    grayscale_probability: float
    blur_probability: float = 0.0
    blur_kernel: int = 23
    solarize_probability: float = 0.0

    def __post_init__(self) -> None:
        if min(self.image_size) < 1:
            raise ValueError(f"image_size={self.image_size} must be at least 1 x 1.")
        _check_crop_scale("crop_scale", self.crop_scale)
        for name, value in vars(self).items():
            if name.endswith("_probability") and not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must be between 0 and 1.")
        if min(self.color_jitter) < 0 or self.color_jitter[3] > 1 / 6:
            raise ValueError(
                f"color_jitter={self.color_jitter} must be at least 0, and its last, the hue, at most 1/6."
            )
        largest = 2 * min(self.image_size) - 1
        if self.blur_probability > 0 and not (1 <= self.blur_kernel <= largest and self.blur_kernel % 2):
            raise ValueError(
                f"blur_kernel={self.blur_kernel} must be odd and at most {largest}: a view of "
                f"{self.image_size[0]} x {self.image_size[1]}, reflected at its edges, fills no more."
            )

    @property
    def views(self) -> tuple["ViewTransform", ...]:
        return (self,)

    def draw_view(self, photo_size: tuple[int, int], generator: random.Random) -> ViewChoices:
        """The random choices for this view of a photo of so many pixels (width, height)."""
        chance = generator.random
        box = _draw_box(*photo_size, self.crop_scale, _RATIO, generator)
        flip = chance() < self.flip_probability
        jitter = []
        if chance() < self.color_jitter_probability:
            centers = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
            for (name, center), strength in zip(centers.items(), self.color_jitter, strict=True):
                least = center - strength if name == "hue" else max(0.0, center - strength)
                jitter.append((name, generator.uniform(least, center + strength)))
            generator.shuffle(jitter)
        grayscale = chance() < self.grayscale_probability
        sigma = generator.uniform(*_BLUR_SIGMA) if chance() < self.blur_probability else None
        return ViewChoices(
            photo_size, box, flip, tuple(jitter), grayscale, sigma, chance() < self.solarize_probability
        )

    def apply(self, pixels: np.ndarray, drawn: Sequence[ViewChoices]) -> Tensor:
        return self.apply_view(pixels, drawn[0])

    def apply_view(self, pixels: np.ndarray, drawn: ViewChoices) -> Tensor:
        """Carries out `drawn` on uint8 pixels (H, W, 3) of the photo, whole or reduced."""
        reduction = next(r for r in REDUCTIONS if math.ceil(drawn.photo_size[0] / r) == pixels.shape[1])
        left, top, right, bottom = (round(edge / reduction) for edge in drawn.box)
        crop = pixels[top : max(bottom, top + 1), left : max(right, left + 1)].copy()
        interleaved = torch.from_numpy(crop[None]).permute(0, 3, 1, 2)  # torch is fastest on these
        view = F.interpolate(interleaved, self.image_size, mode="bicubic", antialias=True)[0]
        view = (view.flip(-1) if drawn.flip else view).contiguous()
        if not (drawn.jitter or drawn.grayscale or drawn.blur_sigma is not None or drawn.solarize):
            return view
        planes = view.float()
        for name, factor in drawn.jitter:
            _ADJUST[name](planes, factor)
        if drawn.grayscale:
            planes.copy_(_luminance(planes))
        if drawn.blur_sigma is not None:
            planes = _blur(planes, self.blur_kernel, drawn.blur_sigma)
        view = torch.from_numpy(planes.numpy().astype(np.uint8))  # four times as fast as torch's own
        return torch.where(view >= _SOLARIZE_THRESHOLD, 255 - view, view) if drawn.solarize else view


@dataclass(frozen=True)
class MultiViewTransform(Augmentation):
    """Several random views of a photo.

    Args:
        global_views: the large views, all of one size.
        local_views: the small views, all of one size; there may be none.

    Returns (when called with a uint8 image (3, H, W)):
        the global views, uint8 (V, 3, H, W), and the local ones; (0, 3, 0, 0) where there are none.

    Raises:
        ValueError: if there is no global view, or views of a kind differ in size.
    """

    global_views: tuple[ViewTransform, ...]
    local_views: tuple[ViewTransform, ...] = ()

    def __post_init__(self) -> None:
        if not self.global_views:
            raise ValueError("A photo needs at least one global view: global_views is empty.")
        for name in ("global_views", "local_views"):
            sizes = {view.image_size for view in getattr(self, name)}
            if len(sizes) > 1:
                raise ValueError(f"The {name} must be of one size, not of {sorted(sizes)}.")

    @property
    def views(self) -> tuple[ViewTransform, ...]:
        return self.global_views + self.local_views

    def apply(self, pixels: np.ndarray, drawn: Sequence[ViewChoices]) -> tuple[Tensor, Tensor]:
        images = [view.apply_view(pixels, d) for view, d in zip(self.views, drawn, strict=True)]
        number = len(self.global_views)
        local_views = torch.stack(images[number:]) if self.local_views else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
        return torch.stack(images[:number]), local_views


def training_transform(
    image_size: int | tuple[int, int] = 224,
    crop_scale: tuple[float, float] = (0.8, 1.0),
    flip_probability: float = 0.5,
    color_jitter_probability: float = 0.3,
    grayscale_probability: float = 0.05,
) -> ViewTransform:
    """The augmentations of the released recipe, from a uint8 image (3, H, W) to one of `image_size`.

    Captions that say left and right want `flip_probability=0`.

    Args:
        image_size: side, or height and width, of what comes out.
        crop_scale: least and largest share of the area that is cropped.
        flip_probability: of swapping left and right.
        color_jitter_probability: of changing brightness, contrast and saturation by up to 0.2, and hue by up to 0.02.
        grayscale_probability: of losing the colours.

    Raises:
        ValueError: if the crop's shares or a probability are out of their range.
    """
    return ViewTransform(
        _height_and_width(image_size),
        tuple(crop_scale),
        flip_probability,
        (0.2, 0.2, 0.2, 0.02),
        color_jitter_probability,
        grayscale_probability,
    )


def multi_view_transform(
    image_size: int | tuple[int, int] = 224,
    local_image_size: int | tuple[int, int] = 96,
    global_views: int = 2,
    local_views: int = 4,
    global_crop_scale: tuple[float, float] = (0.4, 1.0),
    local_crop_scale: tuple[float, float] = (0.05, 0.4),
    flip_probability: float = 0.5,
    color_jitter_probability: float = 0.8,
    grayscale_probability: float = 0.2,
) -> MultiViewTransform:
    """The views of LeVLJEPA+: from a uint8 image (3, H, W) to global views (V, 3, H, W) and local ones.

    The first global view is always blurred; the others are blurred with probability 0.1 and solarized with 0.2; local
    views are blurred with 0.5. The blur's kernel is 23 pixels across for views of 224 and goes with the side of the
    global views (to the nearest odd number); local views have the same.

    Args:
        image_size: side, or height and width, of the global views.
        local_image_size: of the local views.
        global_views: how many.
        local_views: how many; 0 for none.
        global_crop_scale: least and largest share of the area that a global view shows.
        local_crop_scale: the same of a local view.
        flip_probability: of swapping left and right.
        color_jitter_probability: of changing brightness and contrast by up to 0.4, saturation by 0.2, hue by 0.1.
        grayscale_probability: of losing the colours.

    Raises:
        ValueError: if a number of views, a share or a probability is out of its range, or local views are too small
            for the blur.
    """
    for name, value, least in (("global_views", global_views, 1), ("local_views", local_views, 0)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}.")
    _check_crop_scale("global_crop_scale", global_crop_scale)
    _check_crop_scale("local_crop_scale", local_crop_scale)
    global_size, local_size = _height_and_width(image_size), _height_and_width(local_image_size)
    kernel = 2 * round((_BLUR_KERNEL_SHARE * max(global_size) - 1) / 2) + 1
    common = (
        flip_probability, (0.4, 0.4, 0.2, 0.1), color_jitter_probability, grayscale_probability
    )  # fmt: skip
    first = ViewTransform(global_size, tuple(global_crop_scale), *common, 1.0, kernel)
    second = ViewTransform(global_size, tuple(global_crop_scale), *common, 0.1, kernel, 0.2)
    local = ViewTransform(local_size, tuple(local_crop_scale), *common, 0.5, kernel) if local_views else None
    return MultiViewTransform((first, *(second,) * (global_views - 1)), (local,) * local_views)


def objective_transform(
    config: LeVLJEPAConfig,
    image_size: int | tuple[int, int],
    crop_scale: Sequence[float] | None = None,
    local_crop_scale: Sequence[float] | None = None,
    **probabilities: float | None,
) -> ViewTransform | MultiViewTransform:
    """The augmentations that a model's objective is trained with: one view, or those of `config.views`.

    Args:
        config: the model's; `objective`, `views` and `local_image_size` decide.
        image_size: side, or height and width, of the (global) views.
        crop_scale: least and largest share of the area that a (global) view shows. What is None is the objective's.
        local_crop_scale: the same of a local view.
        probabilities: `flip_probability`, `color_jitter_probability`, `grayscale_probability`.

    Raises:
        ValueError: if a share or a probability is out of its range, or a share is given of views that there are not.
    """
    own = {name: value for name, value in probabilities.items() if value is not None}
    if config.views is None:
        if local_crop_scale is not None:
            raise ValueError(
                f"local_crop_scale={list(local_crop_scale)} has no effect with objective={config.objective!r}, which "
                "takes one view of an image: leave it out."
            )
        return training_transform(image_size, **own, **({} if crop_scale is None else {"crop_scale": crop_scale}))
    shares = {"global_crop_scale": crop_scale, "local_crop_scale": local_crop_scale}
    own |= {name: share for name, share in shares.items() if share is not None}
    return multi_view_transform(
        image_size, config.local_image_size, config.views["global"], config.views["local"], **own
    )


def draft_size(transform: Callable[[Tensor], Tensor]) -> int | None:
    """Side of an image whose smallest `RandomResizedCrop` in `transform` is not enlarged; None where there is none."""
    crop = next((t for t in getattr(transform, "transforms", ()) if isinstance(t, v2.RandomResizedCrop)), None)
    return None if crop is None else math.ceil(max(crop.size) / math.sqrt(min(crop.scale) * min(crop.ratio)))


def _height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _check_crop_scale(name: str, scale: Sequence[float]) -> None:
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"{name}={list(scale)} must be two shares of the area, 0 < smallest <= largest <= 1.")


# Colours and blur, in place on float planes (3, H, W) that hold whole numbers from 0 to 255


def _luminance(planes: Tensor) -> Tensor:
    red, green, blue = planes
    return red.mul(_LUMINANCE[0]).add_(green, alpha=_LUMINANCE[1]).add_(blue, alpha=_LUMINANCE[2]).floor_()


def _adjust_brightness(planes: Tensor, factor: float) -> None:
    planes.mul_(factor).clamp_(0, 255).floor_()


def _adjust_contrast(planes: Tensor, factor: float) -> None:
    mean = _luminance(planes).mean()
    planes.mul_(factor).add_(mean, alpha=1 - factor).clamp_(0, 255).floor_()


def _adjust_saturation(planes: Tensor, factor: float) -> None:
    gray = _luminance(planes)
    planes.mul_(factor).add_(gray, alpha=1 - factor).clamp_(0, 255).floor_()


def _adjust_hue(planes: Tensor, shift: float) -> None:
    """Turns the hue by `shift` of the circle, 1/6 at most, as torchvision does by way of HSV.

    Around the circle of hues each channel rests at the pixel's largest value for two sixths, falls for one, rests at
    the least for two and rises for one. A turn by e = 6 |shift| moves a channel where it is on a slope, or within e of
    one, and the other two channels say where that is. With c = largest - least, and d the difference of the other two
    (for a turn forwards: red has blue - green, and so around), the channel moves by what d exceeds (1 - e) c by, on
    either side, as far as the least and the largest.
    """
    red, green, blue = planes
    largest = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    slack = (largest - least).mul_(1 - 6 * abs(shift))
    differences = (blue - green, red - blue, green - red) if shift > 0 else (green - blue, blue - red, red - green)
    for plane, difference in zip(planes, differences, strict=True):
        plane.add_(difference).sub_(difference.clamp_(-slack, slack)).clamp_(least, largest)
    planes.mul_(255.999 / 255).floor_()  # as torchvision makes whole levels of [0, 1]


_ADJUST = {
    "brightness": _adjust_brightness,
    "contrast": _adjust_contrast,
    "saturation": _adjust_saturation,
    "hue": _adjust_hue,
}


def _blur(planes: Tensor, kernel: int, sigma: float) -> Tensor:
    """Gaussian blur of `kernel` pixels across, edges reflected, rounded: torchvision's, one axis after the other.

    Weights beyond 4 sigma are left out: together they would change no pixel by more than 0.02 of 255.
    """
    radius = min(kernel // 2, math.ceil(4 * sigma))
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    padded = F.pad(planes[None], (radius,) * 4, mode="reflect")[0]
    for dim in (1, 2):
        size = planes.shape[dim]
        result = padded.narrow(dim, radius, size) * (weights[0] / total)
        for i in range(1, radius + 1):
            for start in (radius - i, radius + i):
                result.add_(padded.narrow(dim, start, size), alpha=weights[i] / total)
        padded = result
    return padded.round_()


__all__ = [
    "Augmentation",
    "ViewChoices",
    "MultiViewTransform",
    "ViewTransform",
    "draft_size",
    "multi_view_transform",
    "objective_transform",
    "training_transform",
]
