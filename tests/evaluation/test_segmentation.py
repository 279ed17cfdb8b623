"""Segmentation: masks lie on their images, training and scoring equal plain ones, memory is bounded."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score
from torch import nn

from levljepa_hf.data.labelled import EvaluationSplit
from levljepa_hf.encoders.encoders import Encoder
from levljepa_hf.encoders.features import PatchFeatures
from levljepa_hf.evaluation import segmentation
from levljepa_hf.evaluation.pictures import plot_segmentation
from levljepa_hf.evaluation.segmentation import LabelMaps, SegmentationProtocol, evaluate_segmentation, iou_per_class
from levljepa_hf.model.processing_levljepa import LeVLJEPAImageProcessor
from levljepa_hf.options import Parser

SIDE, PATCH, VOID = 32, 4, 255
NAMES = ("red", "green", "blue", "white", "black", "pink", "never")
COLORS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3, (0,) * 3, (255, 128, 200), (9, 9, 9)], np.uint8)


class ColorEncoder(Encoder):
    """Sees the mean colour of each patch, and some of its texture."""

    def __init__(self, extra_tokens: int = 0) -> None:
        super().__init__("colors", nn.Linear(1, 1), SIDE, 6)
        self.extra_tokens = extra_tokens
        self.num_encoded = 0

    def _image_processor(self):
        return LeVLJEPAImageProcessor(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, resample=3
        )

    def _encode(self, pixel_values):
        self.num_encoded += len(pixel_values)
        mean = F.avg_pool2d(pixel_values, PATCH)
        patches = torch.cat([mean, F.max_pool2d(pixel_values, PATCH) - mean], dim=1).flatten(2).mT
        return mean.mean(dim=(2, 3)), F.pad(patches, (0, 0, 0, self.extra_tokens)), None


@pytest.fixture
def encoder() -> ColorEncoder:
    return ColorEncoder()


def draw_mask(rng: np.random.Generator, height: int, width: int, classes: list[int]) -> np.ndarray:
    """Rectangles of classes, and one of void."""
    mask = np.full((height, width), rng.choice(classes), np.uint8)
    for value in [*rng.choice(classes, 4), VOID]:
        top, left = rng.integers(0, height - 4), rng.integers(0, width - 4)
        mask[top : top + rng.integers(4, height), left : left + rng.integers(4, width // 2)] = value
    return mask


def make_split(name: str, num_images: int, classes: list[int], seed: int) -> EvaluationSplit:
    """Images that show their masks in colours with some noise; void is grey."""
    rng = np.random.default_rng(seed)
    masks = [draw_mask(rng, *rng.integers(35, 70, 2), classes) for _ in range(num_images)]
    colors = np.concatenate([COLORS, np.full((256 - len(COLORS), 3), 128, np.uint8)])
    noisy = [np.clip(colors[mask] + rng.normal(0, 40, (*mask.shape, 3)), 0, 255).astype(np.uint8) for mask in masks]
    images = [Image.fromarray(pixels) for pixels in noisy]
    return EvaluationSplit(name, images, class_names=NAMES, masks=masks, void=VOID, transform="default")


@pytest.fixture
def train() -> EvaluationSplit:
    return make_split("colors/train", 11, [0, 1, 2, 3, 4], seed=0)  # pink is only in test, black only here


@pytest.fixture
def test() -> EvaluationSplit:
    return make_split("colors/test", 7, [0, 1, 2, 3, 5], seed=1)


def run(encoder, train, test, *, seeds=(0, 1), loss_at="patches", epochs=8, **options):
    protocol = SegmentationProtocol(loss_at=loss_at, batch_size=4, epochs=epochs, learning_rate=0.05)
    options = {"batch_size": 5, "show_progress": False, **options}
    return evaluate_segmentation(encoder, train, test, protocol, seeds=seeds, **options)


# ----------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("transform", ["default", "evaluation"])
def test_masks_lie_on_their_images_to_the_pixel(encoder, transform):
    rng = np.random.default_rng(0)
    masks = [(rng.random((h // 12 + 1, w // 12 + 1)) < 0.5).repeat(12, 0).repeat(12, 1)[:h, :w] for h, w in SIZES]
    images = [Image.fromarray(np.uint8(255 * mask)).convert("RGB") for mask in masks]
    split = EvaluationSplit("twins", images, class_names=("dark", "bright"), masks=[m.astype(np.uint8) for m in masks])
    maps = LabelMaps(split, encoder, transform, show_progress=False)[torch.arange(len(masks))]
    pixels = encoder.image_processor(transform)(images, do_normalize=False, return_tensors="pt")["pixel_values"][:, 0]
    certain = (pixels - 0.5).abs() > 0.3  # the others lie on an edge
    assert certain.float().mean() > 0.6
    assert torch.equal(maps[certain] == 1, pixels[certain] > 0.5)


SIZES = [(97, 64), (64, 97), (71, 71), (33, 49), (120, 45)]  # with odd margins, larger and smaller than the crop


def test_masks_are_those_of_pil(encoder):
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 300, size) for size in SIZES]
    images = [Image.new("RGB", mask.shape[::-1]) for mask in masks]
    split = EvaluationSplit("noise", images, class_names=tuple(map(str, range(299))), masks=masks, void=299)
    maps = LabelMaps(split, encoder, "default", show_progress=False)
    expected = []
    for mask in masks:
        height, width = (int(SIDE * length / min(mask.shape)) for length in mask.shape)
        small = np.asarray(Image.fromarray(mask.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST))
        top, left = round((height - SIDE) / 2), round((width - SIDE) / 2)
        expected.append(torch.tensor(small[top : top + SIDE, left : left + SIDE]).long())
    expected = torch.stack(expected)
    assert torch.equal(maps[torch.arange(5)], expected) and torch.equal(maps[torch.tensor([3, 1])], expected[[3, 1]])
    assert torch.equal(maps.counts, torch.bincount(expected.flatten(), minlength=300))
    assert maps.void_share == pytest.approx((expected == 299).float().mean().item())


def test_void_may_be_a_low_value_or_missing(encoder, train):
    """With void 0 as in ADE20K's own masks, class 0 of the names has no pixel."""
    shifted = replace(train, masks=[np.where(mask == VOID, 0, mask + 1) for mask in train.masks], void=0)
    shifted.class_names = ("void", *NAMES)
    plain, moved = (LabelMaps(split, encoder, "default", show_progress=False) for split in (train, shifted))
    assert moved.counts[0] == 0 and torch.equal(moved.counts[1:], plain.counts)
    full = replace(train, masks=[np.where(mask == VOID, 6, mask) for mask in train.masks], void=None)
    counts = LabelMaps(full, encoder, "default", show_progress=False).counts
    assert counts[-1] == 0 and counts[6] == plain.counts[-1]


# ----------------------------------------------------------------------------------------- training and scoring


def plain_run(encoder, train, test, seed: int, loss_at: str, epochs: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """One run with everything in memory: the figures, the test masks and the predictions."""
    processor = encoder.image_processor("default")

    def prepare(split):
        pixels = processor(split.images, return_tensors="pt")["pixel_values"]
        maps = [
            processor(i, segmentation_maps=m, return_tensors="pt")["labels"]
            for i, m in zip(split.images, split.masks, strict=True)
        ]
        tokens = encoder.tokens(pixels).patches.half().float()
        return tokens, torch.cat(maps)

    tokens, labels = prepare(train)
    test_tokens, test_labels = prepare(test)
    mean, std = tokens.flatten(0, 1).double().mean(0), tokens.flatten(0, 1).double().std(0, correction=0)
    tokens, test_tokens = (((x.double() - mean) / std).float() for x in (tokens, test_tokens))
    centres = labels[:, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH]
    torch.manual_seed(seed)
    layer = nn.Linear(6, len(NAMES))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05, weight_decay=0)
    generator = torch.Generator().manual_seed(0)

    def logits(tokens):
        return layer(tokens).mT.unflatten(2, (SIDE // PATCH, SIDE // PATCH))

    for _ in range(epochs):
        for batch in torch.randperm(len(tokens), generator=generator).split(4):
            scores, target = logits(tokens[batch]), centres[batch]
            if loss_at == "pixels":
                scores, target = F.interpolate(scores, SIDE, mode="bilinear"), labels[batch]
            optimizer.zero_grad()
            F.cross_entropy(scores, target, ignore_index=VOID).backward()
            optimizer.step()
    predicted = F.interpolate(logits(test_tokens), SIDE, mode="bilinear").argmax(dim=1)
    truth, guess = (x[test_labels != VOID].numpy() for x in (test_labels, predicted))
    present = np.unique(truth)
    confusion = confusion_matrix(truth, guess, labels=range(len(NAMES)))
    iou = jaccard_score(truth, guess, labels=present, average=None)
    frequency = confusion.sum(1)[present]
    figures = {
        "mean_iou": iou.mean(),
        "mean_iou_learnable": iou[present != 5].mean(),
        "mean_accuracy": (confusion.diagonal()[present] / frequency).mean(),
        "pixel_accuracy": (truth == guess).mean(),
        "frequency_weighted_iou": (iou * frequency).sum() / frequency.sum(),
    }
    return figures, iou, predicted


@pytest.mark.parametrize("loss_at", ["patches", "pixels"])
def test_each_run_is_a_plain_run_of_its_own(encoder, train, test, loss_at, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(segmentation, "plot_segmentation", lambda *args: drawn.update(args=args))
    found = run(encoder, train, test, seeds=(3, 0), loss_at=loss_at)
    plain = [plain_run(encoder, train, test, seed, loss_at, epochs=8) for seed in (3, 0)]
    for figures, (expected, _, _) in zip(found.runs, plain, strict=True):
        assert figures == pytest.approx(expected, abs=2e-3)
    assert found.runs[0] != found.runs[1] and found.metrics["mean_iou_learnable"] > 0.6
    details = found.details
    assert details["classes_absent_from_train"] == ["pink", "never"]
    assert details["classes_absent_from_test"] == ["black", "never"]
    assert (details["num_classes_averaged"], details["num_classes_learnable"]) == (5, 4)
    iou = np.mean([iou for _, iou, _ in plain], axis=0)
    assert list(details["iou_per_class"]) == ["red", "green", "blue", "white", "pink"]
    np.testing.assert_allclose(list(details["iou_per_class"].values()), iou, atol=2e-3)
    found.pictures["predictions"](tmp_path / "picture.png")
    pixels, truth, predicted, _, _ = drawn["args"]
    rows = [0, 1, 2, 3, 4, 6]
    assert (predicted != plain[0][2][rows]).float().mean() < 2e-3 and len(pixels) == len(truth) == 6
    assert pixels.min() >= 0 and pixels.max() <= 1


def test_chance_is_the_most_frequent_class_everywhere(encoder, train, test):
    found = run(encoder, train, test, epochs=1)
    name = found.details["chance_class"]
    train_maps, test_maps = (LabelMaps(split, encoder, "default", show_progress=False) for split in (train, test))
    k = NAMES.index(name)
    assert k == train_maps.counts[:-1].argmax() and k in (0, 1, 2, 3)
    share = (test_maps.counts[k] / test_maps.counts[:-1].sum()).item()
    assert found.chance == pytest.approx(
        {
            "mean_iou": share / 5,
            "mean_iou_learnable": share / 4,
            "mean_accuracy": 1 / 5,
            "pixel_accuracy": share,
            "frequency_weighted_iou": share**2,
        }
    )


def test_iou_per_class_counts_what_is_never_predicted():
    confusion = torch.tensor([[3, 0, 1, 0], [2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    iou = iou_per_class(confusion)
    assert iou[:3].tolist() == [0.5, 0, 0] and iou[3].isnan()


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("loss_at", ["patches", "pixels"])
def test_only_a_few_images_are_read_at_a_time(encoder, train, test, monkeypatch, loss_at):
    whole = run(encoder, train, test, loss_at=loss_at)
    sizes = {"tokens": [], "maps": [], "logits": []}

    def watch(owner, name, key, size=len):
        method = getattr(owner, name)

        def watched(*args, **kwargs):
            out = method(*args, **kwargs)
            sizes[key].append(size(out))
            return out

        monkeypatch.setattr(owner, name, watched)

    watch(PatchFeatures, "__getitem__", "tokens")
    watch(LabelMaps, "__getitem__", "maps")
    watch(segmentation._Heads, "logits", "logits")
    monkeypatch.setattr(segmentation, "_CHUNK_BYTES", 2 * 4 * SIDE**2 * 2 * len(NAMES))  # two images of two runs
    found = run(encoder, train, test, loss_at=loss_at)
    assert max(sizes["tokens"]) == max(sizes["maps"]) == 4
    assert sum(sizes["tokens"]) == 11 * (1 + 8) + 7  # once for the statistics, once an epoch, once for the score
    assert set(sizes["logits"]) == ({1, 2} if loss_at == "pixels" else {1, 2, 3, 4})
    for one, other in zip(found.runs, whole.runs, strict=True):
        assert one == pytest.approx(other, abs=2e-3)


def test_the_global_random_state_is_left_alone(encoder, train, test):
    state = torch.get_rng_state()
    run(encoder, train, test, epochs=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_masks_leave_no_file(encoder, train, test, tmp_path):
    found = run(encoder, train, test, epochs=1, cache_dir=tmp_path / "cache", num_workers=2)
    (folder,) = (tmp_path / "cache").iterdir()
    assert "patches" in folder.name
    before = encoder.num_encoded
    again = run(encoder, train, test, epochs=1, cache_dir=tmp_path / "cache")
    assert encoder.num_encoded - before == 1 and again.runs == found.runs  # the one that shows the grid


def test_the_disk_must_have_room(encoder, train, test, monkeypatch, tmp_path, caplog):
    needed = 18 * (64 * 6 * 2 + SIDE**2)
    assert run(encoder, train, test, epochs=1, cache_dir=tmp_path).details["disk_bytes"] == needed
    kept = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))

    def leave(free):
        monkeypatch.setattr(segmentation.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free})())

    leave(needed - 1)
    before = encoder.num_encoded
    with pytest.raises(ValueError, match=r"Patch tokens and masks take 0\.0 GB.*--cache_dir"):
        run(encoder, train, test)
    leave(needed - kept - 1)
    with pytest.raises(ValueError, match="Patch tokens and masks take"):
        run(encoder, train, test, cache_dir=tmp_path)
    assert encoder.num_encoded - before == 2
    leave(needed - kept)
    monkeypatch.setattr(segmentation.logger, "warning", lambda message: caplog.records.append(message))
    run(encoder, train, test, epochs=1, cache_dir=tmp_path)
    assert "enough only if they are there already" in caplog.records[-1]


# ------------------------------------------------------------------------------------------------------------- errors


def broken(split: EvaluationSplit, mask: np.ndarray, index: int = 2) -> EvaluationSplit:
    return replace(split, masks=[*split.masks[:index], mask, *split.masks[index + 1 :]])


def test_wrong_data_are_told_before_the_encoder_works(encoder, train, test):
    height, width = test.masks[2].shape
    other = test.masks[2].copy()
    other[3, 4] = 9
    cases = [
        (train, replace(test, masks=None), "colors/test has no masks"),
        (replace(train, class_names=None), test, "colors/train has no class names"),
        (train, replace(test, masks=test.masks[:-1]), "has 7 images and 6 masks"),
        (
            train,
            broken(test, test.masks[2].T),
            f"Mask 2 of colors/test is {width} x {height} .height x width.* {height} x {width}",
        ),
        (
            train,
            broken(test, other),
            "Mask 2 of colors/test has the value 9: they go from 0 to 6, and 255 is void",
        ),
        (train, broken(test, test.masks[2] / 1.0), "float64 .* integers"),
        (train, broken(test, test.masks[2][..., None]), "Mask 2 .*, 1\\)"),
        (replace(train, void=None), test, "has the value 255: .*None is void"),
        (train, replace(test, class_names=(*NAMES[:6], "ever")), "class 6 is 'never' and 'ever'"),
        (train, replace(test, class_names=NAMES[:6]), "has 7 classes and colors/test has 6"),
        (train, replace(test, masks=[np.full_like(m, VOID) for m in test.masks]), "No class of colors/test is found"),
        (
            replace(train, images=[*train.images[:4], b"no", *train.images[5:]]),
            test,
            "Image 4 of colors.train does not decode",
        ),
    ]
    for bad_train, bad_test, message in cases:
        with pytest.raises(ValueError, match=message):
            run(encoder, bad_train, bad_test)
    with pytest.raises(ValueError, match="no seeds"):
        run(encoder, train, test, seeds=())
    assert encoder.num_encoded <= len(cases)  # a blank image each, which shows the grid


def test_tokens_must_form_a_grid(train, test):
    with pytest.raises(ValueError, match="66 patch tokens, which form no grid of 8 x 8"):
        run(ColorEncoder(extra_tokens=2), train, test)


def test_tokens_must_be_finite(encoder, train, test, monkeypatch):
    encode = encoder._encode

    def broken(pixel_values):
        cls, patches, embeddings = encode(pixel_values)
        if encoder.num_encoded == 1 + 5 + 5:  # the blank image, and two batches
            patches[1, 2, 3] = float("nan")
        return cls, patches, embeddings

    monkeypatch.setattr(encoder, "_encode", broken)
    with pytest.raises(ValueError, match="patches are not finite"):
        run(encoder, train, test)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_at": "edges"}, "loss_at='edges' is unknown: use 'patches' or 'pixels'"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"epochs": 0}, "epochs=0"),
    ],
)
def test_the_protocol_refuses_what_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        SegmentationProtocol(**fields)


def test_the_protocol_is_the_reproductions_and_makes_options():
    (protocol,) = Parser([SegmentationProtocol], prog="probe").parse_groups([])
    assert protocol == SegmentationProtocol("patches", 1e-2, 0.0, 256, 30)


# ------------------------------------------------------------------------------------------------------------ picture


def test_a_class_has_its_color_and_void_is_grey(tmp_path):
    names = [f"class {i}" for i in range(20)]
    truth = torch.full((2, 16, 16), 7)
    truth[1] = VOID
    images = torch.ones(2, 3, 16, 16)
    plot_segmentation(images, truth, torch.full((2, 16, 16), 7), names, tmp_path / "a.png")
    plot_segmentation(images[:1], truth[:1], torch.full((1, 16, 16), 3), names, tmp_path / "b.png", max_names=1)
    (first, second) = (
        dict(map(reversed, Image.open(tmp_path / name).convert("RGB").getcolors(2**24))) for name in ("a.png", "b.png")
    )
    white, blue = sorted(first, key=first.get)[-1], sorted(first, key=first.get)[-2]
    assert white == (255, 255, 255) and len(set(blue)) == 3
    grey = (191, 191, 191)
    panel = first[grey]
    assert first[blue] == pytest.approx(3 * panel, rel=0.05)  # one truth and two predictions
    assert second[blue] == pytest.approx(panel, rel=0.1) and second.get(grey, 0) < panel / 100
