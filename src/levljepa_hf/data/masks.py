"""Masks: the class of each pixel of an image, checked against the classes and the image."""

import numpy as np

from .splits import EvaluationSplit


def check_mask(
    mask: np.ndarray, where: str, num_classes: int | None, void: int | None, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Where a mask has no class, bool [H, W].

    Args:
        mask: The class of each pixel, integers [H, W].
        where: Names the mask in messages: "Mask 3 of ade20k/validation".
        num_classes: Classes go from 0 to this, and it is none; `None` where it is not known.
        void: The value of pixels of no class, if there is one; it may be that of a class, which then has no pixel.
        size: Height and width of the mask's image.

    Raises:
        ValueError: if it is no map of integers, is not as large as its image, or has a value that is neither a class
            nor void.
    """
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.integer):
        raise ValueError(
            f"{where} is {mask.dtype} {mask.shape}: it is to have one class number a pixel, integers (H, W). If its "
            "colours stand for classes, save the numbers instead, or name another column with --mask_column."
        )
    if size is not None and mask.shape != size:
        raise ValueError(
            f"{where} is {mask.shape[0]} x {mask.shape[1]} (height x width), and its image {size[0]} x {size[1]}: "
            "resize one, masks to the nearest pixel, or name another with --mask_column."
        )
    is_void = np.zeros(mask.shape, dtype=bool) if void is None else mask == void
    wrong = ~is_void & ((mask < 0) | (mask >= num_classes if num_classes is not None else False))
    if wrong.any():
        last = "any" if num_classes is None else num_classes - 1
        raise ValueError(
            f"{where} has the value {mask[wrong][0]}: they go from 0 to {last}, and {void} is void. Give a name for "
            "each class with --class_names, or name another column with --mask_column."
        )
    return is_void


def read_mask(split: EvaluationSplit, index: int, void: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """A mask of a split as labels [H, W] int64, in which `void` is what is of no class. Errors of `check_mask`."""
    mask = np.asarray(split.masks[index])
    is_void = check_mask(mask, f"Mask {index} of {split.name}", len(split.class_names), split.void, size)
    return np.where(is_void, void, mask.astype(np.int64))


__all__ = ["check_mask", "read_mask"]
