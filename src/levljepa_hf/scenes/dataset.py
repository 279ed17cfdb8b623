"""Scenes as data sets: captioned, labelled, and with mixed backgrounds."""

import io
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .painting import render_scene
from .scene import BACKGROUND_NAMES, CAPTION_KINDS, CLASS_NAMES, Scene, describe_scene, sample_scene

SPLITS = ("train", "validation", "test")

BACKGROUNDS_PER_CLASS = 4  # of the 48, in `BackgroundScenes`: about 5 of the 60 classes share each
BACKGROUND_CORRELATION = 0.9  # share of its scenes whose background is of the class's own


# ---------------------------------------------------------------------------------------------------------- datasets


class SceneDataset(Dataset):
    """Map-style dataset of scenes, each a pure function of (seed, split, index) and of the options.

    An item has `image` (RGB PIL image), `captions` (five strings), `mask` (uint8 [image_size, image_size], see
    `render_scene`), `label` (index into CLASS_NAMES, of the first object) and `background` (into BACKGROUND_NAMES).

    Args:
        split: "train", "validation" or "test".
        num_scenes: length of the dataset.
        image_size: side of the images in pixels.
        seed: another seed gives other scenes in every split.
        pair_fraction: share of scenes with two objects and a relation; 0 for classification.
        scale_range: an object's longest side, as a fraction of the image's.
        max_rotation: in degrees, to both sides.
        caption_kinds: some of CAPTION_KINDS, the captions that an item has: "full" says what, where and on which
            background, "place" and "background" leave out the other, "picture" and "prompt" name the class alone.
        keep_rendered: keep what was rendered in memory (3 bytes a pixel, 4 with the mask), for several epochs.
    """

    class_names = CLASS_NAMES
    background_names = BACKGROUND_NAMES

    def __init__(
        self,
        split: str = "train",
        num_scenes: int = 10_000,
        image_size: int = 64,
        seed: int = 0,
        *,
        pair_fraction: float = 0.2,
        scale_range: tuple[float, float] = (0.45, 0.75),
        max_rotation: float = 25.0,
        caption_kinds: Sequence[str] = CAPTION_KINDS,
        keep_rendered: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"Unknown split {split!r}: take one of {', '.join(SPLITS)}.")
        if num_scenes < 1 or image_size < 16:
            raise ValueError(
                f"num_scenes={num_scenes} and image_size={image_size}: at least one scene and 16 pixels are needed."
            )
        if not 0 <= pair_fraction <= 1 or not 0 < scale_range[0] <= scale_range[1] <= 1:
            raise ValueError(
                f"pair_fraction={pair_fraction} and scale_range={scale_range}: take fractions, scales in order."
            )
        unknown = [kind for kind in caption_kinds if kind not in CAPTION_KINDS]
        if unknown or not caption_kinds:
            raise ValueError(f"caption_kinds={list(caption_kinds)}: take some of {', '.join(CAPTION_KINDS)}.")
        self.split, self.num_scenes, self.image_size, self.seed = split, num_scenes, image_size, seed
        self.caption_kinds = tuple(caption_kinds)
        self.options = {"pair_fraction": pair_fraction, "scale_range": scale_range, "max_rotation": max_rotation}
        self._kept: dict[int, dict[str, Any]] | None = {} if keep_rendered else None

    def __len__(self) -> int:
        return self.num_scenes

    def scene(self, index: int) -> Scene:
        """The scene that item `index` shows."""
        return self._draw(index)[0]

    def captions(self, index: int) -> list[str]:
        """The captions of item `index`, without painting it."""
        return self._draw(index)[1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        if not -self.num_scenes <= index < self.num_scenes:
            raise IndexError(f"Scene {index} of {self.num_scenes}.")
        index %= self.num_scenes
        if self._kept is not None and index in self._kept:
            return dict(self._kept[index])
        scene, captions = self._draw(index)
        image, mask = render_scene(scene, self.image_size)
        item = {
            "image": image,
            "captions": captions,
            "mask": mask,
            "label": scene.objects[0].label,
            "background": scene.background,
        }
        if self._kept is not None:
            self._kept[index] = dict(item)
        return item

    def _draw(self, index: int) -> tuple[Scene, list[str]]:
        rng = random.Random(f"{self.seed}/{self.split}/{index}")
        scene = sample_scene(rng, **self.options)
        return scene, self._describe(scene, rng)

    def _describe(self, scene: Scene, rng: random.Random) -> list[str]:
        captions = dict(zip(CAPTION_KINDS, describe_scene(scene, rng), strict=True))
        return [captions[kind] for kind in self.caption_kinds]

    def to_datasets(self, show_progress: bool = False):
        """The same scenes as a `datasets.Dataset` held in memory.

        Columns: `image` and `mask` (`Image`, PNG), `captions` (strings), `label` and `background` (`ClassLabel`).
        """
        from datasets import ClassLabel, Features, List, Value
        from datasets import Dataset as ArrowDataset
        from datasets import Image as ImageFeature

        features = Features(
            {
                "image": ImageFeature(),
                "captions": List(Value("string")),
                "mask": ImageFeature(),
                "label": ClassLabel(names=list(CLASS_NAMES)),
                "background": ClassLabel(names=list(BACKGROUND_NAMES)),
            }
        )
        columns: dict[str, list] = {name: [] for name in features}
        bar = {"desc": f"rendering scenes, {self.split}", "unit": " scenes", "disable": not show_progress}
        for index in tqdm(range(self.num_scenes), **bar):
            item = self[index]
            item["image"] = {"bytes": _png(item["image"]), "path": None}
            item["mask"] = {"bytes": _png(Image.fromarray(item["mask"])), "path": None}
            for name, column in columns.items():
                column.append(item[name])
        return ArrowDataset.from_dict(columns, features=features)


def class_backgrounds(label: int) -> tuple[int, ...]:
    """The backgrounds of a class in `BackgroundScenes`, indices into BACKGROUND_NAMES; the same for every seed."""
    rng = random.Random(f"backgrounds/{label}")
    return tuple(rng.sample(range(len(BACKGROUND_NAMES)), BACKGROUNDS_PER_CLASS))


def mixed_scene(scene: Scene, other: Scene) -> Scene:
    """The objects of `scene` on the background of `other`.

    It is painted anew, so the objects' edges blend with the background they stand on, and nothing is left of the old
    one. What an object covers fully keeps its pixels, and the mask stays.
    """
    return replace(scene, background=other.background, texture_seed=other.texture_seed)


class BackgroundScenes(SceneDataset):
    """Scenes of one object whose background tells of its class, and the same objects on other backgrounds.

    After ImageNet-9 (arXiv 2006.09994): what a probe of "original" scenes loses on mixed ones is what it read in the
    background. In `SceneDataset` class and background are independent, so there would be nothing to lose. Here a class
    has BACKGROUNDS_PER_CLASS backgrounds (`class_backgrounds`), and its scene stands on one of them with probability
    BACKGROUND_CORRELATION, else on any of the 48.

    Item `index` shows the object of item `index` of `SceneDataset(split, ..., pair_fraction=0)` in every variant, and
    its captions say which background it stands on.

    Args:
        split, num_scenes, image_size, seed: as of `SceneDataset`.
        variant: "original"; "mixed_same", on the background of another scene of the class; or "mixed_rand", on that of
            a scene of a random class, drawn uniformly among all 60.
        options: the others of `SceneDataset`.

    Raises:
        ValueError: if the variant is unknown, or as `SceneDataset`.
    """

    VARIANTS = ("original", "mixed_same", "mixed_rand")

    def __init__(
        self,
        split: str = "train",
        num_scenes: int = 10_000,
        image_size: int = 64,
        seed: int = 0,
        *,
        variant: str = "original",
        **options: Any,
    ) -> None:
        if variant not in self.VARIANTS:
            raise ValueError(f"Unknown variant {variant!r}: take one of {', '.join(self.VARIANTS)}.")
        super().__init__(split, num_scenes, image_size, seed, pair_fraction=0, **options)
        self.variant = variant

    def _draw(self, index: int) -> tuple[Scene, list[str]]:
        scene, _ = super()._draw(index)
        label = scene.objects[0].label
        rng = random.Random(f"{self.seed}/{self.split}/{index}/{self.variant}")
        if self.variant == "mixed_rand":
            label = rng.randrange(len(CLASS_NAMES))
        own = rng.random() < BACKGROUND_CORRELATION
        background = rng.choice(class_backgrounds(label) if own else range(len(BACKGROUND_NAMES)))
        scene = mixed_scene(scene, Scene((), background, texture_seed=rng.getrandbits(32)))
        return scene, self._describe(scene, rng)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def load_scenes(split: str = "train", num_scenes: int = 10_000, image_size: int = 64, seed: int = 0, **options: Any):
    """Scenes as a `datasets.Dataset`; the arguments are `SceneDataset`'s."""
    return SceneDataset(split, num_scenes, image_size, seed, **options).to_datasets()


def save_scenes(
    folder: str | os.PathLike, num_scenes: Sequence[int], image_size: int = 48, seed: int = 0, **options: Any
) -> None:
    """Writes the three splits as a `datasets.DatasetDict` that `load_from_disk` and `levljepa pretrain` read.

    Args:
        folder: Where they go.
        num_scenes: Of train, validation and test.
        image_size, seed, options: as of `SceneDataset`.

    Raises:
        ValueError: as `SceneDataset`.
    """
    from datasets import DatasetDict

    splits = {
        split: SceneDataset(split, num, image_size, seed, **options).to_datasets(show_progress=True)
        for split, num in zip(SPLITS, num_scenes, strict=True)
    }
    DatasetDict(splits).save_to_disk(folder)


__all__ = [
    "BACKGROUNDS_PER_CLASS",
    "BACKGROUND_CORRELATION",
    "BackgroundScenes",
    "SPLITS",
    "SceneDataset",
    "class_backgrounds",
    "load_scenes",
    "mixed_scene",
    "save_scenes",
]
