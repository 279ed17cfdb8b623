"""The transforms of training against torchvision's: laws of what is drawn, pixels, several views, decoding."""

import dataclasses
import io
import itertools
import math
import random
import struct
import zlib
from collections import Counter

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
import simplejpeg
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from levljepa_hf.data import augmentation
from levljepa_hf.data.augmentation import ViewChoices, ViewTransform, multi_view_transform, training_transform
from levljepa_hf.data.collator import LeVLJEPADataCollator, NumberedDataset
from levljepa_hf.data.images import UnreadImage, open_image

JITTER = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "saturation": tv.adjust_saturation,
    "hue": tv.adjust_hue,
}


def photo(seed: int, width: int, height: int) -> PIL.Image.Image:
    """Noise of all scales, as photos have it."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.float32)
    for across in (2, 4, 8, 16, 32, 64, 128):
        for channel in range(3):
            noise = PIL.Image.fromarray(generator.standard_normal((across, across)).astype(np.float32))
            noise = noise.resize((width, height), PIL.Image.Resampling.BICUBIC)
            pixels[..., channel] += np.asarray(noise) / across**0.7
    return PIL.Image.fromarray((120 + 60 * pixels).clip(0, 255).astype(np.uint8))


def jpeg(image: PIL.Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "jpeg", **{"quality": 90, **options})
    return file.getvalue()


def tensor(image: PIL.Image.Image) -> Tensor:
    return tv.pil_to_tensor(image)


def levels(ours: Tensor, reference: Tensor) -> Tensor:
    return (ours.float() - reference.float()).abs()


def distance(ours: list[float], reference: list[float]) -> float:
    """Of Kolmogorov and Smirnov between two samples, over the value that one pair in a thousand of one law exceeds."""
    a, b = np.sort(ours), np.sort(reference)
    points = np.concatenate([a, b])
    gaps = np.searchsorted(a, points, "right") / len(a) - np.searchsorted(b, points, "right") / len(b)
    return float(np.abs(gaps).max() / (1.95 * math.sqrt(1 / len(a) + 1 / len(b))))


# What is drawn


@pytest.mark.parametrize("size", [(500, 375), (64, 64), (30, 41), (300, 90)])
@pytest.mark.parametrize("scale", [(0.8, 1.0), (0.05, 0.4)])
def test_boxes_follow_torchvisions_law(size: tuple[int, int], scale: tuple[float, float]) -> None:
    generator, number = random.Random(0), 3000
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(8, scale=scale)
    image = torch.empty(3, size[1], size[0], dtype=torch.uint8)
    drawn = [crop.make_params([image]) for _ in range(number)]
    reference = np.array([(p["left"], p["top"], p["left"] + p["width"], p["top"] + p["height"]) for p in drawn])
    ours = np.array([augmentation._draw_box(*size, scale, (3 / 4, 4 / 3), generator) for _ in range(number)])
    for box in (ours, reference):
        assert (box[:, :2] >= 0).all() and (box[:, 2:] <= size).all() and (box[:, :2] < box[:, 2:]).all()

    def quantities(boxes: np.ndarray) -> np.ndarray:
        left, top, right, bottom = boxes.T
        return np.stack([left, top, right, bottom, (right - left) * (bottom - top), (right - left) / (bottom - top)])

    for a, b in zip(quantities(ours), quantities(reference), strict=True):
        assert distance(a, b) < 1


def test_photos_too_narrow_for_a_crop_give_torchvisions_middle() -> None:
    crop = v2.RandomResizedCrop(8, scale=(0.9, 1.0))
    for width, height in ((20, 1000), (1000, 20)):
        params = crop.make_params([torch.empty(3, height, width)])
        left, top, right, bottom = augmentation._draw_box(width, height, (0.9, 1.0), (3 / 4, 4 / 3), random.Random(0))
        found = {"left": left, "top": top, "width": right - left, "height": bottom - top}
        assert found == params


def test_everything_else_follows_its_law() -> None:
    view = ViewTransform((32, 32), (0.5, 1.0), 0.5, (0.4, 0.3, 0.2, 0.1), 0.8, 0.2, 0.1, 5, 0.25)
    generator, number = random.Random(1), 12_000
    drawn = [view.draw_view((40, 30), generator) for _ in range(number)]
    shares = {
        0.5: [d.flip for d in drawn],
        0.8: [bool(d.jitter) for d in drawn],
        0.2: [d.grayscale for d in drawn],
        0.1: [d.blur_sigma is not None for d in drawn],
        0.25: [d.solarize for d in drawn],
    }
    for share, happened in shares.items():
        assert abs(np.mean(happened) - share) < 4 * math.sqrt(share * (1 - share) / number)
    for (p, one), (q, other) in itertools.combinations(shares.items(), 2):  # independent of one another
        both = np.mean(np.logical_and(one, other))
        assert abs(both - p * q) < 4 * math.sqrt(p * q * (1 - p * q) / number)

    jitters = [dict(d.jitter) for d in drawn if d.jitter]
    for name, low, high in (
        ("brightness", 0.6, 1.4), ("contrast", 0.7, 1.3), ("saturation", 0.8, 1.2), ("hue", -0.1, 0.1)
    ):  # fmt: skip
        assert distance([j[name] for j in jitters], np.linspace(low, high, 20_000).tolist()) < 1
    sigmas = [d.blur_sigma for d in drawn if d.blur_sigma is not None]
    assert distance(sigmas, np.linspace(0.1, 2, 20_000).tolist()) < 1
    orders = Counter(tuple(name for name, _ in d.jitter) for d in drawn if d.jitter)
    expected = len(jitters) / 24
    assert len(orders) == 24 and max(abs(n - expected) for n in orders.values()) < 4 * math.sqrt(expected)


def test_the_recipe() -> None:
    view = training_transform(224)
    assert view == ViewTransform((224, 224), (0.8, 1.0), 0.5, (0.2, 0.2, 0.2, 0.02), 0.3, 0.05)
    assert (view.blur_probability, view.solarize_probability) == (0, 0)
    assert training_transform((20, 30)).image_size == (20, 30)


def test_the_views_of_levljepa_plus() -> None:
    transform = multi_view_transform()
    colors = (0.5, (0.4, 0.4, 0.2, 0.1), 0.8, 0.2)
    first = ViewTransform((224, 224), (0.4, 1.0), *colors, 1.0, 23, 0.0)
    second = ViewTransform((224, 224), (0.4, 1.0), *colors, 0.1, 23, 0.2)
    local = ViewTransform((96, 96), (0.05, 0.4), *colors, 0.5, 23, 0.0)
    assert transform.global_views == (first, second) and transform.local_views == (local,) * 4
    assert multi_view_transform(global_views=4).global_views == (first, second, second, second)
    assert augmentation._SOLARIZE_THRESHOLD == 128
    for side, kernel in ((224, 23), (32, 3), (112, 11), (160, 17), (448, 45), (16, 1)):
        kernels = {v.blur_kernel for v in multi_view_transform(side, max(side // 2, 8)).views}
        assert kernels == {kernel}


def test_a_transform_says_what_it_is() -> None:
    """A resumed run compares the words."""
    for make in (training_transform, multi_view_transform):
        assert eval(repr(make()), vars(augmentation)) == make()
    settings = {
        "image_size": 64, "local_image_size": 48, "global_views": 3, "local_views": 3, "global_crop_scale": (0.3, 1.0),
        "local_crop_scale": (0.1, 0.4), "flip_probability": 0.1, "color_jitter_probability": 0.1,
        "grayscale_probability": 0.1,
    }  # fmt: skip
    words = {repr(multi_view_transform(**{name: value})) for name, value in settings.items()}
    assert len(words | {repr(multi_view_transform())}) == 10


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (training_transform, {"crop_scale": (0.0, 1.0)}, r"crop_scale=\[0.0, 1.0\] must be two shares"),
        (training_transform, {"flip_probability": 1.5}, "flip_probability=1.5 must be between 0 and 1"),
        (training_transform, {"image_size": 0}, "image_size=.0, 0. must be at least"),
        (multi_view_transform, {"global_views": 0}, "global_views=0 must be at least 1"),
        (multi_view_transform, {"local_views": -1}, "local_views=-1 must be at least 0"),
        (multi_view_transform, {"global_crop_scale": (0.4, 1.2)}, "global_crop_scale=.* must be two shares"),
        (multi_view_transform, {"local_crop_scale": (0.4, 0.05)}, "local_crop_scale=.* must be two shares"),
        (multi_view_transform, {"grayscale_probability": -0.1}, "grayscale_probability=-0.1 must be between"),
        (multi_view_transform, {"local_image_size": 8}, "blur_kernel=23 must be odd and at most 15"),
    ],
)
def test_settings_out_of_range_are_named(make, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_strengths_and_views_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="color_jitter=.* and its last, the hue, at most 1/6"):
        ViewTransform((8, 8), (1, 1), 0, (0.1, 0.1, 0.1, 0.2), 1, 0)
    one, other = training_transform(8), training_transform(9)
    with pytest.raises(ValueError, match="global_views must be of one size, not of .*8, 8.*9, 9"):
        augmentation.MultiViewTransform((one, other))
    with pytest.raises(ValueError, match="global_views is empty"):
        augmentation.MultiViewTransform((), (one,))


# Pixels


def hard_pixels() -> Tensor:
    """A photo, noise, dark noise, grey, and pixels two of whose channels are the same."""
    image = tensor(photo(0, 96, 96))
    generator = torch.Generator().manual_seed(0)
    image[:, :20] = torch.randint(0, 256, (3, 20, 96), generator=generator)
    image[:, 20:30] = torch.randint(0, 4, (3, 10, 96), generator=generator)
    image[:, 30:35] = torch.randint(0, 256, (1, 5, 96), generator=generator)
    for equal in range(3):
        image[equal, 35 + equal] = image[equal - 1, 35 + equal]
    return image


@pytest.mark.parametrize("name", JITTER)
def test_colors_are_torchvisions(name: str) -> None:
    image = hard_pixels()
    shifts = [0.0, 0.001, 0.02, 0.05, 0.09, 0.1, 1 / 6]
    factors = [-s for s in shifts] + shifts if name == "hue" else [0.0, 0.6, 0.93, 1.0, 1.2, 1.4]
    for factor in factors:
        planes = image.float()
        augmentation._ADJUST[name](planes, factor)
        difference = levels(planes, JITTER[name](image, factor))
        assert difference.max() <= (name == "hue") and (difference > 0).float().mean() < 1e-3


@pytest.mark.parametrize("kernel", [23, 5, 1])
@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0, 2.0])
def test_blur_is_torchvisions(kernel: int, sigma: float) -> None:
    image = hard_pixels()[:, :, :60]
    difference = levels(augmentation._blur(image.float(), kernel, sigma), tv.gaussian_blur(image, [kernel] * 2, sigma))
    assert difference.max() <= 1 and (difference > 0).float().mean() < 2e-3


def test_crops_are_pils_and_torchvisions() -> None:
    image = photo(1, 200, 150)
    for box in ((0, 0, 200, 150), (17, 3, 190, 133), (40, 50, 60, 66)):
        drawn = ViewChoices(image.size, box)
        ours = training_transform((64, 48)).apply(np.asarray(image), [drawn])
        pil = tensor(image.crop(box).resize((48, 64), PIL.Image.Resampling.BICUBIC))
        left, top, right, bottom = box
        whole = tensor(image).float()[:, top:bottom, left:right]
        exact = tv.resize(whole, [64, 48], v2.InterpolationMode.BICUBIC, antialias=True).round().clamp(0, 255)
        for reference in (pil, exact):
            assert levels(ours, reference).max() <= 1 and (levels(ours, reference) > 0).float().mean() < 0.25


def plain_view(view: ViewTransform, image: Tensor, drawn: ViewChoices) -> Tensor:
    """What was drawn, by torchvision's functions."""
    left, top, right, bottom = drawn.box
    bicubic = v2.InterpolationMode.BICUBIC
    image = tv.resized_crop(image, top, left, bottom - top, right - left, list(view.image_size), bicubic, True)
    image = tv.horizontal_flip(image) if drawn.flip else image
    for name, factor in drawn.jitter:
        image = JITTER[name](image, factor)
    image = tv.rgb_to_grayscale(image, 3) if drawn.grayscale else image
    if drawn.blur_sigma is not None:
        image = tv.gaussian_blur(image, [view.blur_kernel] * 2, drawn.blur_sigma)
    return tv.solarize(image, 128) if drawn.solarize else image


def test_views_are_torchvisions() -> None:
    image = photo(2, 120, 90)
    view = ViewTransform((48, 40), (0.1, 1.0), 0.5, (0.4, 0.4, 0.2, 0.1), 0.7, 0.3, 0.5, 23, 0.3)
    generator, changed = random.Random(3), []
    for _ in range(150):
        drawn = view.draw(image.size, generator)
        difference = levels(view.apply(np.asarray(image), drawn), plain_view(view, tensor(image), drawn[0]))
        assert difference.max() <= 2
        changed.append((difference > 0).float().mean())
    assert np.mean(changed) < 2e-3


def test_a_transform_may_be_called_on_tensors() -> None:
    image, transform = tensor(photo(3, 80, 60)), training_transform(32)
    torch.manual_seed(5)
    runs = [transform(image) for _ in range(3)]
    torch.manual_seed(5)
    assert all(torch.equal(transform(image), run) for run in runs) and not torch.equal(runs[0], runs[1])
    one, other = (transform(image, random.Random(9)) for _ in range(2))
    assert torch.equal(one, other) and one.shape == (3, 32, 32) and one.dtype == torch.uint8
    large, small = multi_view_transform(32, 16, 3, 5)(image)
    assert large.shape == (3, 3, 32, 32) and small.shape == (5, 3, 16, 16) and small.dtype == torch.uint8
    assert multi_view_transform(32, local_views=0)(image)[1].shape[0] == 0


# Decoding


def test_reduction_enlarges_no_crop_and_is_the_most() -> None:
    transform = multi_view_transform((64, 40), (20, 30))
    generator, seen = random.Random(0), Counter()
    for size in ((1600, 1200), (300, 900), (200, 150), (50, 40)):
        for _ in range(100):
            drawn = transform.draw(size, generator)
            reduction = transform.reduction(drawn)
            rooms = [
                (side, target)
                for view, d in zip(transform.views, drawn, strict=True)
                for side, target in zip(
                    (d.box[3] - d.box[1], d.box[2] - d.box[0]), view.image_size, strict=True
                )
            ]  # fmt: skip
            fits = {r for r in (2, 4, 8) if all(side >= r * target for side, target in rooms)}
            assert reduction == max(fits, default=1)
            seen[reduction] += 1
    assert set(seen) == {1, 2, 4, 8}


def test_a_reduced_photo_gives_nearly_the_same_views() -> None:
    """On boxes of whole reduced pixels, to which others are rounded; what is left is one filter against two."""
    data = jpeg(photo(4, 803, 601))
    view = training_transform(64, flip_probability=0)
    generator, differences = random.Random(0), []
    whole = UnreadImage(data).pixels()
    for _ in range(20):
        drawn = view.draw((803, 601), generator)
        reduction = view.reduction(drawn)
        reduced = UnreadImage(data).pixels(reduction)
        assert reduction > 1 and reduced.shape[:2] == (-(-601 // reduction), -(-803 // reduction))
        box = tuple(reduction * round(edge / reduction) for edge in drawn[0].box)
        rounded = dataclasses.replace(drawn[0], box=box)
        views = [view.apply(reduced, [d]) for d in (drawn[0], rounded)]
        assert torch.equal(*views)
        differences.append(levels(views[0], view.apply(whole, [rounded])).mean())
    assert np.mean(differences) < 1.5 and max(differences) < 2.5


def test_pixels_are_pils() -> None:
    image = photo(5, 61, 47)
    broken = bytearray(jpeg(image))
    broken[len(broken) // 2] ^= 0xFF  # PIL decodes what it can
    files = [jpeg(image), jpeg(image, progressive=True), jpeg(image, subsampling=0), jpeg(image, keep_rgb=True)]
    files += [jpeg(image.convert(mode)) for mode in ("L", "CMYK")] + [bytes(broken)]
    for data in [*files, memoryview(files[0]), {"bytes": files[0]}, image, np.asarray(image)]:
        expected = np.asarray(open_image(data).convert("RGB"))
        np.testing.assert_array_equal(UnreadImage(data).pixels(), expected)
    with pytest.raises(OSError, match="truncated"):
        UnreadImage(files[0][:900]).pixels()
    with pytest.raises(ValueError, match="61 x 47 pixels, more than 2,000"):
        UnreadImage(files[0]).pixels(max_pixels=2000)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_on_their_side_are_cropped_upright(orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photo(6, 200, 120), exif=exif)
    upright = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    image = UnreadImage(data)
    assert image.size == upright.size == ((120, 200) if orientation > 4 else (200, 120))
    np.testing.assert_array_equal(image.pixels(), np.asarray(upright))
    assert UnreadImage(data).pixels(reduction=4).shape[:2] == ((50, 30) if orientation > 4 else (30, 50))


def test_xmp_too_may_say_that_a_photo_lies_on_its_side() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    assert UnreadImage(jpeg(photo(6, 50, 30), xmp=xmp)).size == (30, 50)


def png_with_late_xmp(image: PIL.Image.Image, xmp: bytes) -> bytes:
    """A PNG with XMP after its pixels."""
    file = io.BytesIO()
    image.save(file, "png")
    data, end = file.getvalue(), len(file.getvalue()) - 12
    body = b"iTXtXML:com.adobe.xmp" + bytes(5) + xmp
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:end] + chunk + data[end:]


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP", "BMP", "GIF"])
def test_what_is_too_large_is_not_decoded(file_format: str, monkeypatch) -> None:
    file = io.BytesIO()
    photo(6, 50, 30).save(file, file_format)
    decoded = []
    for kind in {type(PIL.Image.open(file)), PIL.ImageFile.ImageFile}:
        load = kind.load
        monkeypatch.setattr(kind, "load", lambda self, load=load: decoded.append(1) or load(self))
    image = UnreadImage(file.getvalue())
    assert image.size == (50, 30)
    for read in (image.decode, image.pixels):
        with pytest.raises(ValueError, match="50 x 30 pixels, more than 1,499"):
            read(max_pixels=1499)
    assert not decoded
    assert image.pixels(max_pixels=1500).shape == (30, 50, 3) and decoded


def test_an_orientation_counts_where_it_stands_before_the_pixels() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    for file_format in ("PNG", "TIFF", "WEBP"):
        file = io.BytesIO()
        photo(6, 50, 30).save(file, file_format, exif=exif)
        early = UnreadImage(file.getvalue())
        assert early.size == early.decode().size == early.size == (30, 50)
    late = UnreadImage(png_with_late_xmp(photo(6, 50, 30), b'<a tiff:Orientation="6"/>'))
    assert late.size == late.decode().size == (50, 30)
    assert late._image.info["XML:com.adobe.xmp"]


# Collating


def samples(number: int, size: tuple[int, int] = (90, 70)) -> list[dict]:
    return [{"image": jpeg(photo(i, *size)), "captions": [f"one {i}", f"two {i}"]} for i in range(number)]


def test_views_are_collated_and_normalised(processor) -> None:
    dataset = NumberedDataset(samples(3))
    transform = multi_view_transform(32, 16, 2, 4)
    collator = LeVLJEPADataCollator(processor, transform=transform, seed=4)
    batch = collator([dataset[i] for i in range(3)])
    assert batch["pixel_values"].shape == (3, 2, 3, 32, 32) and batch["local_pixel_values"].shape == (3, 4, 3, 16, 16)
    assert batch["pixel_values"].dtype == batch["local_pixel_values"].dtype == torch.float32
    assert batch["input_ids"].shape[0] == 3

    one = LeVLJEPADataCollator(processor, transform=transform, seed=4)([dataset[1]])
    mean, std = (
        torch.tensor(value)[:, None, None]
        for value in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    for name in ("pixel_values", "local_pixel_values"):
        torch.testing.assert_close(one[name][0], batch[name][1], rtol=0, atol=0)
        whole = (batch[name] * std + mean) * 255
        torch.testing.assert_close(whole, whole.round(), rtol=0, atol=1e-3)
        assert whole.min() > -0.01 and 200 < whole.max() < 255.01
        different = {view.numpy().tobytes() for photo_ in batch[name] for view in photo_}
        assert len(different) == batch[name].shape[0] * batch[name].shape[1]

    none = LeVLJEPADataCollator(processor, transform=multi_view_transform(32, local_views=0))([dataset[0]])
    assert set(none) == {"pixel_values", "input_ids", "attention_mask"} and none["pixel_values"].shape[1] == 2
    evaluated = collator.for_evaluation()([dataset[0]])
    assert set(evaluated) == {"pixel_values", "input_ids", "attention_mask", "sample_index"}
    assert evaluated["pixel_values"].shape == (1, 3, 32, 32)


def test_photos_are_decoded_once(processor, monkeypatch) -> None:
    calls = []
    decode = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda data: calls.append(1) or decode(data))
    transform = multi_view_transform(32, 16)
    LeVLJEPADataCollator(processor, transform=transform, jpeg_draft=False)(samples(5))
    assert len(calls) == 5


def test_large_photos_are_reduced_for_the_views_that_were_drawn(processor, monkeypatch) -> None:
    reductions = []
    pixels = UnreadImage.pixels
    monkeypatch.setattr(UnreadImage, "pixels", lambda self, by, most: reductions.append(by) or pixels(self, by, most))
    large = samples(4, (700, 500))
    for draft, transform in itertools.product((True, False), (training_transform(32), multi_view_transform(32, 16))):
        LeVLJEPADataCollator(processor, transform=transform, jpeg_draft=draft)(large)
    assert reductions[:4] == [8] * 4 and max(reductions[4:8]) > 1 and set(reductions[8:]) == {1}


def test_another_callable_may_give_views(processor) -> None:
    def halves(image: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
        return torch.stack([image[:, :20, :20], image[:, -20:, -20:]]), noise

    dataset = NumberedDataset(samples(2))
    batches = [LeVLJEPADataCollator(processor, transform=halves)([dataset[0], dataset[1]]) for _ in range(2)]
    assert batches[0]["pixel_values"].shape == (2, 2, 3, 20, 20)
    assert batches[0]["local_pixel_values"].shape == (2, 1, 3, 8, 8)
    assert torch.equal(batches[0]["local_pixel_values"], batches[1]["local_pixel_values"]), "seeded for each sample"
    assert not torch.equal(batches[0]["local_pixel_values"][0], batches[0]["local_pixel_values"][1])


@pytest.mark.parametrize("make", [lambda: training_transform(32), lambda: multi_view_transform(32, 16)])
def test_workers_change_nothing_and_no_global_state_moves(processor, make) -> None:
    dataset = NumberedDataset(samples(6))

    def read(workers: int) -> dict[str, Tensor]:
        collator = LeVLJEPADataCollator(processor, transform=make(), seed=7)
        context = "fork" if workers else None
        loader = torch.utils.data.DataLoader(
            dataset, 2, collate_fn=collator, num_workers=workers, multiprocessing_context=context
        )
        batches = list(loader)
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}

    random.random(), np.random.random()
    states = random.getstate(), np.random.get_state()[1].tolist()
    collator = LeVLJEPADataCollator(processor, transform=make(), seed=7)
    before = torch.get_rng_state()
    collator([dataset[0], dataset[1]])
    assert torch.equal(torch.get_rng_state(), before)
    alone = read(0)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    for name, value in read(2).items():
        torch.testing.assert_close(value, alone[name], rtol=0, atol=0)
