"""Scenes: determinism and disjoint splits, captions and masks that agree with the painting, the `datasets` form.

The pictures themselves are not compared with stored ones: the drawings change with OpenMoji's releases.
"""

import hashlib
import random
import sys
from collections import Counter

import numpy as np
import pytest
from datasets import ClassLabel, load_from_disk
from PIL import Image

from levljepa_hf.scenes import painting
from levljepa_hf.scenes.__main__ import main
from levljepa_hf.scenes.dataset import (
    BACKGROUND_CORRELATION,
    BACKGROUNDS_PER_CLASS,
    BackgroundScenes,
    SceneDataset,
    class_backgrounds,
    load_scenes,
    mixed_scene,
)
from levljepa_hf.scenes.painting import render_scene
from levljepa_hf.scenes.scene import (
    BACKGROUND_NAMES,
    CAPTION_KINDS,
    CLASS_NAMES,
    POSITION_NAMES,
    Scene,
    SceneObject,
    class_prompts,
    describe_scene,
    sample_scene,
    scene_questions,
)


def pixels(item):
    return np.asarray(item["image"])


def upright(label, center=(0.5, 0.5), scale=0.6, mirrored=False):
    return SceneObject(label, center, scale, rotation=0.0, mirrored=mirrored)


def test_vocabulary():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) >= 50
    assert len(BACKGROUND_NAMES) == len(set(BACKGROUND_NAMES)) == 48
    assert not any("_" in name or name != name.lower() or name[-1].isdigit() for name in CLASS_NAMES)
    prompts = class_prompts()
    assert prompts[CLASS_NAMES.index("apple")] == "a photo of an apple."
    assert prompts[CLASS_NAMES.index("banana")] == "a photo of a banana."


def test_every_class_is_drawn_and_differs_from_the_others():
    images = [render_scene(Scene((upright(label),), background=0), 48) for label in range(len(CLASS_NAMES))]
    assert all((mask == label + 1).mean() > 0.04 for label, (_, mask) in enumerate(images))
    flat = np.stack([np.asarray(image, dtype=np.float32).ravel() for image, _ in images])
    distances = np.abs(flat[:, None] - flat[None]).mean(axis=-1) + 1e9 * np.eye(len(flat))
    assert distances.min() > 5  # of 255: no class is missing or drawn twice


def test_every_background_differs_from_the_others():
    backgrounds = [painting._paint_background(i, texture_seed=0, image_size=32) for i in range(len(BACKGROUND_NAMES))]
    flat = np.stack([b.astype(np.float32).ravel() for b in backgrounds])
    distances = np.abs(flat[:, None] - flat[None]).mean(axis=-1) + 1e9 * np.eye(len(flat))
    assert distances.min() > 1
    means = np.stack([b.mean(axis=(0, 1)) for b in backgrounds])
    blue = [name.count("blue") > 0 for name in BACKGROUND_NAMES]
    assert (means[blue].argmax(axis=1) == 2).all()  # the name says the colour
    assert np.ptp(backgrounds[BACKGROUND_NAMES.index("plain blue")], axis=(0, 1)).max() == 0


def test_a_scene_is_a_function_of_seed_split_and_index():
    first, again = (SceneDataset("train", 8, 32, seed=3) for _ in range(2))
    again[7]  # the order of access does not matter
    longer = SceneDataset("train", 20, 32, seed=3)
    other = SceneDataset("train", 8, 32, seed=4)
    for i in range(8):
        assert np.array_equal(pixels(first[i]), pixels(again[i])) and first[i]["captions"] == again[i]["captions"]
        assert np.array_equal(pixels(first[i]), pixels(longer[i]))
        assert first.scene(i) != other.scene(i)


def test_scenes_are_those_of_earlier_versions():
    """Figures of one version are to be compared with those of another. The drawings are OpenMoji's own affair."""
    dataset = SceneDataset("test", 50, seed=1, pair_fraction=0.5)
    drawn = repr([dataset._draw(i) for i in range(50)])
    assert hashlib.sha256(drawn.encode()).hexdigest()[:16] == "5836e7e3c119a0f2"


def test_splits_share_no_rendering():
    rendered = [
        {pixels(item).tobytes() for item in SceneDataset(split, 150, 24)} for split in ("train", "validation", "test")
    ]
    assert all(len(one) == 150 for one in rendered)
    assert len(set.union(*rendered)) == 450


def test_items_agree_with_their_scene():
    dataset = SceneDataset("validation", 60, 40, pair_fraction=0.5)
    kinds = set()
    for i in range(len(dataset)):
        item, scene = dataset[i], dataset.scene(i)
        kinds.add(scene.relation)
        assert item["image"].size == (40, 40) and item["image"].mode == "RGB"
        assert item["mask"].shape == (40, 40) and item["mask"].dtype == np.uint8
        assert set(np.unique(item["mask"])) == {0} | {thing.label + 1 for thing in scene.objects}
        assert item["label"] == scene.objects[0].label and item["background"] == scene.background
        assert len(item["captions"]) == len(set(item["captions"])) == 5
        assert all(CLASS_NAMES[item["label"]] in caption for caption in item["captions"])
        assert BACKGROUND_NAMES[item["background"]] in item["captions"][0]
        assert item["captions"][-1].startswith("a photo of a")
    assert kinds == {None, "horizontal", "vertical"}


def test_captions_say_where_the_object_is():
    """The position words against the mask's centre of mass, independently of `SceneObject.position`."""
    dataset = SceneDataset("train", 200, 48, pair_fraction=0)
    seen = set()
    for i in range(len(dataset)):
        item = dataset[i]
        rows, columns = np.nonzero(item["mask"])
        (where,) = [name for name in POSITION_NAMES if name in item["captions"][0]]
        seen.add(where)
        x, y = columns.mean() / 48, rows.mean() / 48
        assert not ("left" in where and x > 0.45) and not ("right" in where and x < 0.55)
        assert not (("upper" in where or "top" in where) and y > 0.45)
        assert not (("lower" in where or "bottom" in where) and y < 0.55)
    assert seen == set(POSITION_NAMES)


def test_relations_are_true_of_the_mask():
    dataset = SceneDataset("train", 100, 48, pair_fraction=1)
    for i in range(len(dataset)):
        scene, mask = dataset.scene(i), dataset[i]["mask"]
        centers = [np.argwhere(mask == thing.label + 1).mean(axis=0) for thing in scene.objects]  # (row, column)
        axis = 1 if scene.relation == "horizontal" else 0
        assert centers[0][axis] < centers[1][axis]
        first, second = (CLASS_NAMES[thing.label] for thing in scene.objects)
        words = {"horizontal": "to the left of", "vertical": "above"}[scene.relation]
        text = dataset[i]["captions"][0]
        assert text.index(first) < text.index(words) < text.rindex(second)


def test_placing_mirroring_rotating_and_scaling():
    def mask_of(**changes):
        return render_scene(Scene((SceneObject(**{**vars(upright(0)), **changes}),), background=0), 64)[1] > 0

    middle = mask_of()
    assert np.abs(np.argwhere(middle).mean(axis=0) - 32).max() < 3
    moved = mask_of(center=(0.5 + 8 / 64, 0.5 - 4 / 64))
    assert np.array_equal(moved, np.roll(middle, (-4, 8), axis=(0, 1)))
    assert (mask_of(mirrored=True) == middle[:, ::-1]).mean() > 0.99
    assert (mask_of(rotation=90.0) == np.rot90(middle)).mean() > 0.99  # counter-clockwise
    longest = np.ptp(np.argwhere(mask_of(scale=0.9)), axis=0).max() + 1
    assert abs(longest - 0.9 * 64) < 2.5


def test_the_mask_holds_what_is_at_least_half_covered(monkeypatch):
    """Pixels covered by 0, 127, 128 and 255 of 255, of a second object above a first one that covers all."""
    covered = np.array([[0, 127], [128, 255]], dtype=np.uint8)
    layers = {0: np.full((2, 2), 255, dtype=np.uint8), 5: covered}

    def paint(thing, image_size):
        return Image.fromarray(np.dstack([np.zeros((2, 2, 3), dtype=np.uint8), layers[thing.label]]))

    monkeypatch.setattr(painting, "_paint_object", paint)
    mask = render_scene(Scene((upright(0), upright(5)), background=0), 2)[1]
    assert mask.tolist() == [[1, 1], [6, 6]]


def test_pair_fraction_and_ranges_are_kept():
    rng = random.Random(0)
    drawn = [sample_scene(rng, pair_fraction=0.3, scale_range=(0.2, 0.4), max_rotation=10) for _ in range(600)]
    assert 0.2 < np.mean([len(scene.objects) == 2 for scene in drawn]) < 0.4
    things = [thing for scene in drawn for thing in scene.objects]
    assert all(0.2 <= t.scale <= 0.4 and abs(t.rotation) <= 10 for t in things)
    assert all(scene.objects[0].label != scene.objects[-1].label for scene in drawn if scene.relation)
    assert {t.label for t in things} == set(range(len(CLASS_NAMES)))
    assert len(describe_scene(drawn[0], rng)) == 5


def test_keep_rendered_gives_the_same_items_twice():
    kept, fresh = SceneDataset("train", 3, 32, keep_rendered=True), SceneDataset("train", 3, 32)
    kept[1].pop("image")  # what a caller does to an item stays with the caller
    assert np.array_equal(pixels(kept[1]), pixels(fresh[1])) and kept[1]["image"] is kept[1]["image"]


def test_datasets_form_holds_the_same_scenes():
    table, dataset = load_scenes("test", 6, image_size=32, seed=1), SceneDataset("test", 6, 32, seed=1)
    assert isinstance(table.features["label"], ClassLabel) and table.features["background"].names[0] == "plain red"
    for i, row in enumerate(table):
        item = dataset[i]
        assert np.array_equal(np.asarray(row["image"]), pixels(item))
        assert np.array_equal(np.asarray(row["mask"]), item["mask"])
        assert (row["captions"], row["label"], row["background"]) == tuple(
            item[name] for name in ("captions", "label", "background")
        )


def test_main_writes_the_three_splits(tmp_path, capsys):
    assert main([str(tmp_path / "scenes"), "--num-scenes", "3", "2", "1", "--image-size", "32"]) == 0
    written = load_from_disk(str(tmp_path / "scenes"))
    assert {split: len(table) for split, table in written.items()} == {"train": 3, "validation": 2, "test": 1}
    item = SceneDataset("validation", 2, 32, pair_fraction=0)[1]
    assert np.array_equal(np.asarray(written["validation"][1]["image"]), pixels(item))
    words = ["--captions", "prompt", "background", "--scale-range", "0.2", "0.3", "--num-scenes", "9", "1", "1"]
    assert main([str(tmp_path / "few"), "--image-size", "32", *words]) == 0
    written = load_from_disk(str(tmp_path / "few"))["train"]
    plain = SceneDataset("train", 9, 32, pair_fraction=0, scale_range=(0.2, 0.3))
    assert np.array_equal(np.asarray(written[8]["image"]), pixels(plain[8]))
    assert written["captions"] == [
        [one["captions"][4], one["captions"][2]] for one in map(plain.__getitem__, range(9))
    ]
    with pytest.raises(SystemExit):
        main([str(tmp_path / "scenes"), "--image-size", "8"])
    assert "image_size=8" in capsys.readouterr().err


def test_kinds_of_captions_leave_out_what_they_say():
    options = {"image_size": 32, "pair_fraction": 0}
    whole = SceneDataset("test", 30, **options)
    kinds = {kind: SceneDataset("test", 30, **options, caption_kinds=[kind]) for kind in CAPTION_KINDS}
    mixed = BackgroundScenes("test", 30, 32, caption_kinds=["background", "full"])
    for i in range(30):
        assert [kinds[kind][i]["captions"] for kind in kinds] == [[one] for one in whole[i]["captions"]]
        assert np.array_equal(pixels(kinds["prompt"][i]), pixels(whole[i]))
        name = CLASS_NAMES[whole[i]["label"]]
        where = POSITION_NAMES[whole.scene(i).objects[0].position]
        background = BACKGROUND_NAMES[whole[i]["background"]]
        says = {kind: [text in kinds[kind].captions(i)[0] for text in (name, where, background)] for kind in kinds}
        assert says["full"] == [True, True, True]
        assert says["place"] == [True, True, False] and says["background"] == [True, False, True]
        assert says["picture"] == says["prompt"] == [True, False, False]
        of_mixed = BACKGROUND_NAMES[mixed[i]["background"]]
        assert len(mixed.captions(i)) == 2 and all(of_mixed in caption for caption in mixed.captions(i))


def test_mixing_changes_the_background_and_nothing_else():
    scene, other = (sample_scene(random.Random(seed), pair_fraction=1) for seed in (0, 1))
    assert scene.background != other.background
    (image, mask), (foreign, _), (mixed, mixed_mask) = (
        render_scene(one, 48) for one in (scene, other, mixed_scene(scene, other))
    )
    assert np.array_equal(mask, mixed_mask) and mask.any()
    covered = np.max([np.asarray(painting._paint_object(thing, 48))[..., 3] for thing in scene.objects], axis=0)
    opaque, free = covered == 255, covered == 0
    assert opaque.sum() > 0.5 * (mask > 0).sum()
    assert np.array_equal(np.asarray(mixed)[opaque], np.asarray(image)[opaque])
    bare = painting._paint_background(other.background, other.texture_seed, 48)
    assert np.array_equal(np.asarray(mixed)[free], bare[free])
    assert not np.array_equal(np.asarray(mixed)[free], np.asarray(image)[free])


def test_variants_show_the_same_objects_on_other_backgrounds():
    plain = SceneDataset("test", 300, 32, pair_fraction=0)
    variants = {name: BackgroundScenes("test", 300, 32, variant=name) for name in BackgroundScenes.VARIANTS}
    assert all(variants[name].scene(i).objects == plain.scene(i).objects for name in variants for i in range(300))
    drawn = {name: [dataset.scene(i) for i in range(300)] for name, dataset in variants.items()}
    for first, second in (("original", "mixed_same"), ("original", "mixed_rand"), ("mixed_same", "mixed_rand")):
        same = [a.texture_seed == b.texture_seed for a, b in zip(drawn[first], drawn[second], strict=True)]
        assert not any(same)
    item = variants["mixed_rand"][5]
    assert BACKGROUND_NAMES[item["background"]] in item["captions"][0]
    assert item["background"] == drawn["mixed_rand"][5].background


def test_backgrounds_tell_of_the_class_unless_they_are_mixed_at_random():
    assert {len(set(class_backgrounds(label))) for label in range(60)} == {BACKGROUNDS_PER_CLASS}
    shares = {}
    for name in BackgroundScenes.VARIANTS:
        dataset = BackgroundScenes("train", 2000, 32, variant=name)
        drawn = [dataset.scene(i) for i in range(2000)]
        shares[name] = np.mean([s.background in class_backgrounds(s.objects[0].label) for s in drawn])
    chance = BACKGROUNDS_PER_CLASS / len(BACKGROUND_NAMES)
    own = BACKGROUND_CORRELATION + (1 - BACKGROUND_CORRELATION) * chance
    assert abs(shares["original"] - own) < 0.03 and abs(shares["mixed_same"] - own) < 0.03
    assert abs(shares["mixed_rand"] - chance) < 0.03


def test_background_scenes_are_a_function_of_seed_split_index_and_variant():
    first, longer = BackgroundScenes("train", 5, 32, seed=2), BackgroundScenes("train", 9, 32, seed=2)
    assert all(np.array_equal(pixels(first[i]), pixels(longer[i])) for i in range(5))
    assert BackgroundScenes("train", 5, 32, seed=3).scene(0) != first.scene(0)
    with pytest.raises(ValueError, match="Unknown variant 'mixed': take one of original, mixed_same, mixed_rand"):
        BackgroundScenes(variant="mixed")


def test_questions_are_true_of_the_scene():
    """Against the mask and the first caption, not the scene that they are made of."""
    dataset = SceneDataset("test", 120, 48, pair_fraction=0.5)
    asked = Counter()
    for i in range(len(dataset)):
        item, questions = dataset[i], scene_questions(dataset.scene(i), random.Random(i))
        shown = {
            CLASS_NAMES[value - 1]: np.argwhere(item["mask"] == value).mean(axis=0) / 48
            for value in np.unique(item["mask"])
            if value
        }  # to (row, column) of the centre
        for text, answer, kind in questions:
            words = text.removesuffix("?")
            asked[" ".join(words.split()[:2]) if text.startswith(("Is", "Where")) else words, kind] += 1
            if text.startswith("Is there"):
                name = words.removeprefix("Is there a").removesuffix(" in the picture").removeprefix("n ").strip()
                assert name in CLASS_NAMES and (name in shown) == (answer == "yes")
            elif text.startswith("How many"):
                assert answer == str(len(shown))
            elif "color" in text:
                assert answer in BACKGROUND_NAMES[item["background"]].split()
            elif text.startswith("Where"):
                row, column = shown[words.removeprefix("Where is the ")]
                assert not ("left" in answer and column > 0.5) and not ("right" in answer and column < 0.5)
                assert not (("upper" in answer or answer == "top") and row > 0.5)
                assert not (("lower" in answer or answer == "bottom") and row < 0.5)
            else:
                axis = 1 if text in ("What is on the left?", "What is on the right?") else 0
                others = [center[axis] for name, center in shown.items() if name != answer]
                ahead = text in ("What is on the left?", "What is at the top?")
                assert all((shown[answer][axis] < other) == ahead for other in others)
    assert asked["Is there", "yes/no"] == 240 and asked["How many objects are there", "number"] == 120
    assert {what for what, kind in asked if kind == "other"} == {
        "What color is the background",
        "What is at the bottom",
        "What is at the top",
        "What is in the picture",
        "What is on the left",
        "What is on the right",
        "Where is",
    }
    scene = dataset.scene(0)
    assert scene_questions(scene, random.Random(0)) == scene_questions(scene, random.Random(0))
    assert scene_questions(scene, random.Random(0)) != scene_questions(scene, random.Random(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "Unknown split 'dev': take one of train, validation, test"),
        ({"num_scenes": 0}, "num_scenes=0"),
        ({"image_size": 8}, "image_size=8"),
        ({"pair_fraction": 1.5}, "pair_fraction=1.5"),
        ({"scale_range": (0.6, 0.4)}, r"scale_range=\(0.6, 0.4\)"),
        ({"caption_kinds": ["full", "long"]}, r"caption_kinds=\['full', 'long'\]: take some of full, place"),
        ({"caption_kinds": []}, "caption_kinds="),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SceneDataset(**arguments)


def test_index_out_of_range_and_negative_index():
    dataset = SceneDataset("train", 3, 32)
    with pytest.raises(IndexError, match="Scene 3 of 3"):
        dataset[3]
    assert np.array_equal(pixels(dataset[-1]), pixels(dataset[2]))


def test_missing_package_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)  # what an import of a missing package looks like
    painting._drawing.cache_clear()
    painting._sprite.cache_clear()
    with pytest.raises(ImportError, match=r"'resvg_py' is missing. Run: pip install \"levljepa_hf\[demo\]\""):
        SceneDataset("train", 1, 32)[0]
