"""A split as the tasks of evaluation read it: images, and what belongs to them."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# What a split can hold beside its images, by its field in `EvaluationSplit`: the columns that it is read from.
COLUMNS = {
    "labels": ("label",),
    "captions": ("caption",),
    "masks": ("mask",),
    "questions": ("question", "answer"),
}


@dataclass(frozen=True)
class Question:
    """A question about an image, with the answers that people gave.

    Args:
        image: Index into the split's images.
        text: The question.
        answers: One or several; VQAv2 has 10, GQA and POPE have one.
        kind: Of the answer ("yes/no", "number", "other") or of the question, where the data say so: scores are also
            given for each kind.
    """

    image: int
    text: str
    answers: tuple[str, ...]
    kind: str | None = None


@dataclass
class EvaluationSplit:
    """The samples of one split, by `load_split` or of your own. What a dataset does not have is `None`.

        EvaluationSplit("mine/test", images=["a.jpg", "b.jpg"], labels=[1, 0], class_names=("cat", "dog"))

    Args:
        name: Of dataset and split, for messages and results: "imagenet/validation".
        images: N images as `levljepa_hf.data.images.open_image` takes them (encoded, paths, PIL), read one by one.
        labels: The class of each image, an index into `class_names`.
        class_names: C names, of the labels or of the masks' values.
        prompts: Templates of zero-shot prompts, with `{}` for the class name; several make an ensemble.
        captions: The captions of each image, one or more.
        masks: The class of each pixel, integers [H, W] as high and wide as the image, read one by one.
        void: The value of pixels of no class in `masks`.
        questions: Questions about the images.
        transform: How images are prepared: "evaluation" (short side 256/224 of the crop, then the crop) or "default"
            (short side as long as the crop), for images whose border counts.
        dropped: How many samples were left out, as they have no label or no answer.
    """

    name: str
    images: Sequence[Any]
    labels: Sequence[int] | None = None
    class_names: tuple[str, ...] | None = None
    prompts: tuple[str, ...] = ("a photo of a {}.",)
    captions: Sequence[Sequence[str]] | None = None
    masks: Sequence[np.ndarray] | None = None
    void: int | None = 255
    questions: Sequence[Question] | None = None
    transform: str = "evaluation"
    dropped: int = 0

    def require(self, role: str) -> Any:
        """The field `role`.

        Raises:
            ValueError: if this data set does not have it.
        """
        value = getattr(self, role)
        if value is None:
            option = {"class_names": "--class_names", "captions": "--caption_column"}.get(role)
            option = option or f"--{role.removesuffix('s')}_column"
            raise ValueError(f"{self.name} has no {role.replace('_', ' ')}: name where they are with {option}.")
        return value


def class_key(name: str) -> str:
    """What spellings of a class share, its letters and digits: repositories of one data set may spell apart."""
    return re.sub(r"[\W_]+", "", name.casefold())


def check_same_classes(train: EvaluationSplit, test: EvaluationSplit) -> tuple[str, ...]:
    """The class names of two splits, as the first spells them.

    Raises:
        ValueError: if one has none, or they do not name the same classes in the same order (see `class_key`).
    """
    names, others = tuple(train.require("class_names")), tuple(test.require("class_names"))
    places = [i for i, pair in enumerate(zip(names, others, strict=False)) if class_key(pair[0]) != class_key(pair[1])]
    if places or len(names) != len(others):
        where = "the first ones agree"
        if places:
            where = f"class {places[0]} is {names[places[0]]!r} and {others[places[0]]!r}"
        raise ValueError(
            f"{train.name} has {len(names)} classes and {test.name} has {len(others)}, and they differ ({where}): "
            "labels mean nothing across the two. Give both the same class names in the same order."
        )
    return names


@dataclass(frozen=True)
class Subsample:
    """A random subset of so many samples at most, in their order; the same for every call."""

    max_samples: int | None
    seed: int

    def __call__(self, samples: Sequence[int]) -> list[int]:
        if self.max_samples is None or self.max_samples >= len(samples):
            return list(samples)
        return sorted(random.Random(self.seed).sample(list(samples), self.max_samples))


__all__ = ["COLUMNS", "EvaluationSplit", "Question", "Subsample", "check_same_classes", "class_key"]
