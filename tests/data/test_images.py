"""What counts as an image that does not decode, whoever reads it."""

import io

import numpy as np
import PIL.Image
import pytest

from levljepa_hf.data import LeVLJEPADataCollator
from levljepa_hf.data.images import UndecodedImageError, decoding, image_at
from levljepa_hf.data.splits import EvaluationSplit
from levljepa_hf.encoders import load_encoder, pooled_features
from levljepa_hf.finetuning import ClassificationDataset


def encoded(image: PIL.Image.Image, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()


NOISE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
BROKEN = {
    "no image": b"no image",
    "empty": b"",
    "cut PNG": encoded(NOISE)[:2000],
    "cut JPEG": encoded(NOISE, "JPEG")[:1000],
    "no file": "nowhere.png",
    "nothing": None,
    "no content": {"bytes": None, "path": None},
    "another thing": 3,
    "a text as an array": np.array("text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_decode_is_one_error_that_names_the_image(name):
    with pytest.raises(UndecodedImageError, match="^Image 1 of mine does not decode: .+ Leave it out or replace it.$"):
        image_at([NOISE, BROKEN[name]], 1, "Image 1 of mine")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F", "HSV", "LAB"])
def test_every_mode_becomes_rgb(mode):
    image = NOISE.convert("I").convert(mode) if mode == "I;16" else NOISE.convert(mode)
    assert image_at([image], 0, "Image 0").mode == "RGB"


def test_the_reason_is_the_same_in_every_run_and_a_missing_package_is_no_broken_image():
    reasons = []
    for _ in range(2):
        with pytest.raises(UndecodedImageError) as caught, decoding():
            PIL.Image.open(io.BytesIO(b"no image"))
        reasons.append(str(caught.value))
    assert reasons[0] == reasons[1] and reasons[0].startswith("UnidentifiedImageError: ")
    with pytest.raises(ModuleNotFoundError), decoding():
        import no_such_package  # noqa: F401


def test_a_decompression_bomb_is_a_broken_image_to_every_reader(processor, monkeypatch):
    """PIL's error for it is neither an OSError nor a ValueError."""
    bomb = encoded(NOISE)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    split = EvaluationSplit("mine", [bomb], labels=[0], class_names=("a",))
    with pytest.raises(ValueError, match="Image 0 of mine does not decode: DecompressionBombError"):
        ClassificationDataset(split, processor.image_processor)[0]
    with pytest.raises(ValueError, match="Image 0 does not decode: DecompressionBombError"):
        pooled_features(load_encoder("random:debug"), [bomb], show_progress=False)
    collator = LeVLJEPADataCollator(processor)
    with pytest.raises(ValueError, match="1 were skipped because their image"):
        collator([{"image": bomb, "captions": "a"}])
