"""Photos of folders and the scenes: classes, captions, broken ones, thumbnails, what a cache keeps."""

import io
import json

import pytest
from PIL import Image

from explore.conftest import photo
from levljepa_hf.explore import Photos, load_photos
from levljepa_hf.explore import photos as module


def load(folder, **options):
    return load_photos(str(folder), **{"cache_dir": None, "show_progress": False} | options)


def test_the_folders_are_classes(photos: Photos) -> None:
    assert len(photos) == len(photos.thumbnails) == 24
    assert photos.class_names == ("owl", "red_fox") and photos.captions is None
    assert [photos.class_names[label] for label in photos.labels] == ["owl"] * 12 + ["red_fox"] * 12
    assert photos.file_names[0] == "00.png" and photos.open(0).tobytes() == photo(0).tobytes()
    small = Image.open(io.BytesIO(photos.thumbnails[0]))
    assert small.format == "WEBP" and small.size == (60, 44)


def test_captions_and_all_splits_of_a_folder(tmp_path) -> None:
    for part, count in (("train", 3), ("validation", 2)):
        (tmp_path / part).mkdir()
        lines = [json.dumps({"file_name": f"{i}.png", "captions": [f"{part} {i}", "more"]}) for i in range(count)]
        (tmp_path / part / "metadata.jsonl").write_text("\n".join(lines))
        for i in range(count):
            photo(i).save(tmp_path / part / f"{i}.png")
    found = load(tmp_path)
    assert [one[0] for one in found.captions] == ["train 0", "train 1", "train 2", "validation 0", "validation 1"]
    assert found.labels is None and found.name == f"{tmp_path.name}/train+validation"
    assert len(load(tmp_path, split="validation")) == 2
    with pytest.raises(ValueError, match="no split 'test'.*train, validation"):
        load(tmp_path, split="test")


def test_broken_photos_are_left_out_and_named(tmp_path) -> None:
    for i in range(4):
        (tmp_path / f"class{i % 2}").mkdir(exist_ok=True)
        photo(i).save(tmp_path / f"class{i % 2}" / f"{i}.png")
    (tmp_path / "class0" / "0.png").write_bytes(b"no image")
    data = (tmp_path / "class1" / "3.png").read_bytes()
    (tmp_path / "class1" / "3.png").write_bytes(data[: len(data) // 2])
    found = load(tmp_path)
    assert [name for name, _ in found.broken] == ["0.png", "3.png"] and found.dropped == 2
    assert "UnidentifiedImageError" in found.broken[0][1] and " at 0x" not in found.broken[0][1]
    assert found.file_names == ["2.png", "1.png"] and found.labels == [0, 1]
    assert found.open(1).tobytes() == photo(1).tobytes()
    for path in tmp_path.glob("*/*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="None of the 4 images .* decodes"):
        load(tmp_path)


def test_a_photo_of_too_many_pixels_is_broken(tmp_path, monkeypatch) -> None:
    photo(0).save(tmp_path / "0.png")
    photo(1, (400, 400)).save(tmp_path / "1.png")
    monkeypatch.setattr(module, "MAX_PIXELS", 100_000)
    assert [name for name, _ in load(tmp_path).broken] == ["1.png"]


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: None], ids=["empty", "missing"])
def test_no_photos_is_one_clear_error(tmp_path, make) -> None:
    make(tmp_path / "photos")
    with pytest.raises(ValueError, match="holds no images|is no folder or file"):
        load(tmp_path / "photos")


def test_some_are_drawn(folder) -> None:
    some, again = (load(folder, max_photos=10).file_names for _ in range(2))
    assert len(some) == 10 and some == again and some != load(folder, max_photos=10, seed=1).file_names
    with pytest.raises(ValueError, match="max_photos=0"):
        load(folder, max_photos=0)


def test_labels_of_a_column_of_texts(tmp_path) -> None:
    rows = [{"file_name": f"{i}.png", "kind": kind} for i, kind in enumerate(("owl", "fox", None))]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for i in range(3):
        photo(i).save(tmp_path / f"{i}.png")
    found = load(tmp_path, label_column="kind")
    assert found.class_names == ("fox", "owl") and found.labels == [1, 0, -1]
    with pytest.raises(ValueError, match="has no column 'sort' of labels"):
        load(tmp_path, label_column="sort")


def test_thumbnails_are_kept_by_content(tmp_path, monkeypatch) -> None:
    (tmp_path / "photos").mkdir()
    photo(0, (400, 300)).save(tmp_path / "photos" / "0.png")
    options = {"cache_dir": tmp_path / "cache" / "features"}
    first = load(tmp_path / "photos", **options)
    assert Image.open(io.BytesIO(first.thumbnails[0])).size == (160, 120)
    monkeypatch.setattr(module, "thumbnail", lambda image: pytest.fail("it was there"))
    (tmp_path / "photos" / "0.png").rename(tmp_path / "photos" / "other.png")
    assert load(tmp_path / "photos", **options).thumbnails == first.thumbnails
    monkeypatch.undo()
    photo(1, (400, 300)).save(tmp_path / "photos" / "other.png")
    assert load(tmp_path / "photos", **options).thumbnails != first.thumbnails


def test_the_scenes() -> None:
    found = load("scenes", max_photos=3, config_name="32")
    assert len(found) == 3 and found.open(0).size == (32, 32) and found.transform == "default"
    assert all(
        name.split()[-1] in caption[-1]
        for name, caption in zip((found.class_names[label] for label in found.labels), found.captions, strict=True)
    )


def test_photos_in_memory() -> None:
    mine = Photos("mine", [photo(0), photo(1)])
    assert len(mine) == 2 and mine.file_names == ["0", "1"] and len(mine.thumbnails) == 2
