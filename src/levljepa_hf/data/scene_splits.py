"""The scenes that come with the package as splits of every task.

`scenes_pope` asks in the form of POPE; `scenes_background` and `scenes_position` are the same images with other
labels.
"""

import random
import re
from collections.abc import Sequence
from typing import Any

from ..scenes.dataset import BackgroundScenes, SceneDataset
from ..scenes.scene import BACKGROUND_NAMES, CLASS_NAMES, POSITION_NAMES, scene_questions, with_article
from .catalogue import BACKGROUND_ROLES, CatalogueEntry
from .splits import EvaluationSplit, Question, Subsample

_SCENES_IMAGE_SIZE = 48  # on which the demo trains
_NUM_SCENES = {"train": 4000, "validation": 1000, "test": 1000}
_NUM_ANSWERS = 10  # of a question of VQAv2


class _SceneItems(Sequence):
    """Images or masks of scenes, drawn one by one. Pickles, for workers."""

    def __init__(self, scenes: SceneDataset, key: str, indices: Sequence[int]) -> None:
        self.scenes, self.key, self.indices = scenes, key, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.scenes[self.indices[index]][self.key]


def load_scene_split(
    dataset: str,
    entry: CatalogueEntry,
    reads: str,
    split: str,
    config_name: str | None,
    subsample: Subsample,
    scenes: str = "objects",
) -> EvaluationSplit:
    """A split of scenes.

    Args:
        dataset: `scenes` or one of its fellows, which says what the labels or questions are about.
        entry: Its entry in the catalogue.
        reads: labels, captions, masks or questions.
        split: train, validation or test; of backgrounds also original, mixed_same and mixed_rand.
        config_name: As `_read_config` takes it.
        subsample: Which of them.
        scenes: `objects` on any background, or `backgrounds`, where each class has its own (`BackgroundScenes`).

    Raises:
        ValueError: if there is no such split, configuration or kind of scenes.
    """
    side, options = _read_config(dataset, config_name)
    part = "test" if split in BACKGROUND_ROLES else split
    count = _NUM_SCENES.get(part, 1)  # an unknown one is told by SceneDataset
    result = EvaluationSplit(
        f"{dataset}/{split}" + (f" ({config_name})" if config_name else ""),
        images=(),
        prompts=entry.prompts,
        void=entry.void,
        transform=entry.transform,
    )
    if scenes not in ("objects", "backgrounds"):
        raise ValueError(f"scenes={scenes!r} is unknown: use 'objects' or 'backgrounds'.")
    if scenes == "backgrounds":
        variant = split if split in BACKGROUND_ROLES else "original"
        drawn: SceneDataset = BackgroundScenes(part, count, side, variant=variant, **options)
    else:  # half of those that are asked about have two objects: else every count would be 1
        drawn = SceneDataset(part, count, side, pair_fraction=0.5 if reads == "questions" else 0, **options)
    if reads == "questions":
        return _ask_scenes(result, drawn, dataset == "scenes_pope", subsample)
    indices = subsample(range(count))
    result.images = _SceneItems(drawn, "image", indices)
    if reads == "captions":
        result.captions = [tuple(drawn.captions(i)) for i in indices]
    elif reads == "masks":
        result.masks = _SceneItems(drawn, "mask", indices)
        result.class_names = ("background", *CLASS_NAMES)
    elif dataset == "scenes_background":
        result.labels = [drawn.scene(i).background for i in indices]
        result.class_names = tuple(f"{with_article(name)} background" for name in BACKGROUND_NAMES)
    elif dataset == "scenes_position":
        result.labels = [drawn.scene(i).objects[0].position for i in indices]
        result.class_names = POSITION_NAMES
    else:
        result.labels = [drawn.scene(i).objects[0].label for i in indices]
        result.class_names = tuple(with_article(name) for name in CLASS_NAMES)
    return result


def _read_config(dataset: str, config_name: str | None) -> tuple[int, dict[str, Any]]:
    """The side of the images, and options of `SceneDataset`: "64", or "64:0.2-0.3" with objects of that scale."""
    if config_name is None:
        return _SCENES_IMAGE_SIZE, {}
    found = re.fullmatch(r"(\d+)(?::(\d*\.?\d+)-(\d*\.?\d+))?", config_name)
    if found is None:
        raise ValueError(
            f"--dataset_config {config_name}: of {dataset} it is the side of the images in pixels, and after a colon "
            "the objects' scale, as fractions of the side: 64 or 64:0.2-0.3."
        )
    side, least, most = found.groups()
    return int(side), {} if least is None else {"scale_range": (float(least), float(most))}


def _ask_scenes(result: EvaluationSplit, scenes: SceneDataset, pope: bool, subsample: Subsample) -> EvaluationSplit:
    asked = []
    for i in range(len(scenes)):
        questions = scene_questions(scenes.scene(i), random.Random(f"{scenes.seed}/{scenes.split}/{i}/questions"))
        asked += [(i, one) for one in questions if not pope or one.kind == "yes/no"]
    asked = [asked[i] for i in subsample(range(len(asked)))]
    index = {scene: image for image, scene in enumerate(dict.fromkeys(scene for scene, _ in asked))}
    result.images = _SceneItems(scenes, "image", list(index))
    result.questions = [
        Question(
            index[scene],
            one.text,
            (one.answer,) * (1 if pope else _NUM_ANSWERS),
            "random" if pope else one.kind,
        )
        for scene, one in asked
    ]
    return result


__all__ = ["load_scene_split"]
