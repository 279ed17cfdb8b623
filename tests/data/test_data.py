"""Loading of image-caption datasets, augmentation, the collator: layouts, columns, seeds, samples without use."""

import io
import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from torchvision.transforms import v2

from levljepa_hf import LeVLJEPAProcessor
from levljepa_hf.data.collator import LeVLJEPADataCollator, NumberedDataset, draft_size, image_size, open_image
from levljepa_hf.data.loading import find_columns, load_pretraining_dataset, look_up
from levljepa_hf.data.streams import EndlessStream
from levljepa_hf.model.processing_levljepa import build_tokenizer

NUM_TRAIN, NUM_VALIDATION = 12, 4


def jpeg(seed: int, size: tuple[int, int] = (50, 40)) -> bytes:
    """A smooth random photo, so that JPEG keeps its pixels nearly as they are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(coarse).resize(size, PIL.Image.Resampling.BICUBIC).save(file, "jpeg", quality=95)
    return file.getvalue()


def captions(seed: int) -> list[str]:
    return [f"photo {seed} seen from side {side}" for side in range(3)]


def sample(seed: int) -> dict[str, Any]:
    return {"image": {"bytes": jpeg(seed), "path": None}, "captions": captions(seed)}


@pytest.fixture(scope="session")
def imagefolder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for split, first, number in (("train", 0, NUM_TRAIN), ("validation", 100, NUM_VALIDATION)):
        (root / split).mkdir()
        lines = []
        for seed in range(first, first + number):
            (root / split / f"{seed}.jpg").write_bytes(jpeg(seed))
            lines.append(json.dumps({"file_name": f"{seed}.jpg", "captions": captions(seed)}))
        (root / split / "metadata.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="session")
def webdataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        with tarfile.open(root / f"train-{shard:05d}.tar", "w") as tar:
            for seed in range(shard * 6, shard * 6 + 6):
                record = json.dumps({"captions": captions(seed), "id": seed}).encode()
                files = {"jpg": jpeg(seed), "txt": captions(seed)[0].encode(), "json": record}
                for extension, content in files.items():
                    info = tarfile.TarInfo(f"{seed:04d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return root


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@pytest.fixture
def collator(processor) -> LeVLJEPADataCollator:
    return LeVLJEPADataCollator(processor)


# Loading


def test_imagefolder(imagefolder: Path, cache: str) -> None:
    dataset = load_pretraining_dataset(str(imagefolder), "validation", cache_dir=cache)
    assert len(dataset) == NUM_VALIDATION and any(Path(cache).iterdir())
    assert find_columns(dataset) == ("image", "captions")
    assert dataset[0]["captions"] == captions(100)
    assert dataset[0]["image"]["path"].endswith("100.jpg"), "images stay encoded"


def test_slices_and_max_samples(imagefolder: Path, cache: str) -> None:
    assert len(load_pretraining_dataset(str(imagefolder), "train[:50%]", cache_dir=cache)) == NUM_TRAIN // 2
    assert len(load_pretraining_dataset(str(imagefolder), max_samples=5, cache_dir=cache)) == 5
    assert len(load_pretraining_dataset(str(imagefolder), max_samples=500, cache_dir=cache)) == NUM_TRAIN
    stream = load_pretraining_dataset(str(imagefolder), streaming=True, max_samples=5, cache_dir=cache)
    assert len(list(stream)) == 5


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("pattern", ["", "/train-*.tar", "/train-00000.tar"])
def test_webdataset(webdataset: Path, cache: str, streaming: bool, pattern: str) -> None:
    dataset = load_pretraining_dataset(
        f"{webdataset}{pattern}", caption_column="json.captions", streaming=streaming, cache_dir=cache
    )
    samples = list(dataset)
    assert len(samples) == (6 if pattern.endswith("0.tar") else NUM_TRAIN)
    assert set(samples[0]) == {"jpg", "json", "__key__"}, "other columns are dropped"
    assert look_up(samples[3], "json.captions") == captions(3)
    assert find_columns(dataset, None, "json.captions") == ("jpg", "json.captions")


def test_parquet_and_saved(tmp_path: Path, cache: str) -> None:
    features = datasets.Features({"photo": datasets.Image(), "caption": datasets.Value("string")})
    rows = [{"photo": {"bytes": jpeg(i), "path": None}, "caption": captions(i)[0]} for i in range(3)]
    dataset = datasets.Dataset.from_list(rows, features=features)
    dataset.to_parquet(tmp_path / "some.parquet")
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "saved")
    for path, streaming in (("some.parquet", False), ("some.parquet", True), ("saved", False), ("saved", True)):
        loaded = load_pretraining_dataset(str(tmp_path / path), streaming=streaming, cache_dir=cache)
        assert find_columns(loaded) == ("photo", "caption")
        assert [s["photo"]["bytes"] for s in loaded] == [jpeg(i) for i in range(3)]
    with pytest.raises(ValueError, match="no split 'test': it has train"):
        load_pretraining_dataset(str(tmp_path / "saved"), "test")


def test_missing_columns_list_those_there_are(imagefolder: Path, webdataset: Path, cache: str) -> None:
    with pytest.raises(ValueError, match=r"no column 'images' of images.*mean 'image'.*'image' .Image., 'captions'"):
        load_pretraining_dataset(str(imagefolder), image_column="images", cache_dir=cache)
    with pytest.raises(ValueError, match=r"'json.caption' of captions.*mean 'json.captions'.*'jpg'.*'txt'.*'json'"):
        load_pretraining_dataset(str(webdataset), caption_column="json.caption", streaming=True, cache_dir=cache)
    unusual = datasets.Dataset.from_dict({"a": [b"x"], "b": ["y"]})
    with pytest.raises(ValueError, match="Which column of .* holds the images.*'a' .*'b'"):
        find_columns(unusual)
    with pytest.raises(ValueError, match="Unknown split"):
        load_pretraining_dataset(str(imagefolder), "trian", cache_dir=cache)


# Decoding and augmenting


def test_open_image_takes_all_forms(tmp_path: Path) -> None:
    data = jpeg(0)
    (tmp_path / "0.jpg").write_bytes(data)
    reference = np.asarray(PIL.Image.open(io.BytesIO(data)))
    path = str(tmp_path / "0.jpg")
    forms = [data, path, tmp_path / "0.jpg", f"file://{path}", {"bytes": data}, {"bytes": None, "path": path}]
    forms += [PIL.Image.fromarray(reference), reference, torch.from_numpy(reference.copy()).permute(2, 0, 1)]
    for form in forms:
        np.testing.assert_array_equal(np.asarray(open_image(form)), reference)


def test_open_image_is_upright_whatever_it_is_given(tmp_path: Path) -> None:
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    PIL.Image.open(io.BytesIO(jpeg(0, (400, 320)))).save(file, "jpeg", exif=exif)
    data, path = file.getvalue(), str(tmp_path / "side.jpg")
    Path(path).write_bytes(data)
    upright = PIL.Image.open(io.BytesIO(data)).transpose(PIL.Image.Transpose.ROTATE_270)
    forms = [data, path, Path(path), f"file://{path}", {"bytes": data}, {"bytes": None, "path": path}]
    for form in forms:
        np.testing.assert_array_equal(np.asarray(open_image(form)), np.asarray(upright))
        assert open_image(form, draft_size=64).size == (80, 100)


def test_draft_decodes_large_jpegs_small_but_large_enough() -> None:
    wanted = draft_size(v2.Compose([v2.RandomResizedCrop(32, scale=(0.8, 1.0))]))
    assert 32 / np.sqrt(0.8 * 0.75) <= wanted < 43
    small = open_image(jpeg(0, (400, 300)), wanted)
    assert small.size == (100, 75), "a quarter: an eighth would be 38 high"
    assert open_image(jpeg(0, (60, 50)), wanted).size == (60, 50)
    assert draft_size(v2.Resize((32, 32))) is None


def test_drafts_are_for_training_that_wants_them(processor) -> None:
    photo = {"image": jpeg(0, (400, 300)), "captions": "a photo"}
    whole = v2.Compose([v2.RandomResizedCrop(32, scale=(1, 1), ratio=(4 / 3, 4 / 3))])
    full = v2.functional.pil_to_tensor(PIL.Image.open(io.BytesIO(photo["image"])))
    images = processor.image_processor
    expected = images(v2.functional.resize(full, [32, 32]), return_tensors="pt")["pixel_values"]
    drafted, undrafted = (
        LeVLJEPADataCollator(processor, transform=whole, jpeg_draft=draft)([photo])["pixel_values"]
        for draft in (True, False)
    )
    torch.testing.assert_close(undrafted, expected, rtol=0, atol=1e-5)
    assert 1e-4 < (drafted - undrafted).abs().mean() < 0.05
    evaluated = LeVLJEPADataCollator(processor, transform=whole).for_evaluation()([photo])["pixel_values"]
    torch.testing.assert_close(evaluated, images(full, return_tensors="pt")["pixel_values"], rtol=0, atol=0)


def test_training_pixels_are_normalised_by_the_processor(processor) -> None:
    collator = LeVLJEPADataCollator(processor, transform=v2.Resize((8, 8)))
    gray = PIL.Image.new("L", (20, 20), 51)  # 0.2
    pixels = collator([{"image": gray, "captions": "gray"}])["pixel_values"]
    images = processor.image_processor
    mean, std = (torch.tensor(value)[:, None, None] for value in (images.image_mean, images.image_std))
    torch.testing.assert_close(pixels[0], ((0.2 - mean) / std).expand(3, 8, 8))
    assert image_size(processor) == (32, 32)


# Collating


def test_evaluation_batch_is_the_processors(processor, collator) -> None:
    samples = [NumberedDataset([sample(i) for i in range(3)])[i] for i in (2, 0)]
    batch = collator.for_evaluation()(samples)
    expected = processor(
        images=[PIL.Image.open(io.BytesIO(jpeg(i))) for i in (2, 0)],
        text=[captions(i)[0] for i in (2, 0)],
        return_tensors="pt",
    )
    assert set(batch) == {*expected, "sample_index"}
    for name in expected:
        torch.testing.assert_close(batch[name], expected[name])
    assert batch["sample_index"].tolist() == [2, 0]


def test_captions_are_padded_to_the_longest(collator) -> None:
    samples = [{**sample(i), "captions": "a " * n + "dog"} for i, n in enumerate((2, 9))]
    batch = collator(samples)
    assert batch["input_ids"].shape == (2, 11), "the words and EOS"
    assert batch["attention_mask"].sum(1).tolist() == [4, 11]
    collator.pad_to_multiple_of = 8
    assert collator(samples)["input_ids"].shape == (2, 16)
    assert collator([{**sample(0), "captions": "word " * 200}])["input_ids"].shape == (1, 77), "77 with EOS, at most"


def test_captions_are_padded_on_the_tokenizers_side(processor) -> None:
    left = LeVLJEPAProcessor(processor.image_processor, build_tokenizer(padding_side="left"))
    samples = [{**sample(i), "captions": "a " * n + "dog"} for i, n in enumerate((2, 9))]
    for multiple, length in ((None, 11), (8, 16)):
        batch = LeVLJEPADataCollator(left, pad_to_multiple_of=multiple)(samples)
        other = LeVLJEPADataCollator(processor, pad_to_multiple_of=multiple)(samples)
        for row, number in enumerate((4, 11)):
            expected = left.tokenizer(samples[row]["captions"])["input_ids"]
            assert len(expected) == number
            padding = [left.tokenizer.pad_token_id] * (length - number)
            assert batch["input_ids"][row].tolist() == padding + expected
            assert batch["attention_mask"][row].tolist() == [0] * len(padding) + [1] * number
            assert other["input_ids"][row].tolist() == expected + padding
            assert other["attention_mask"][row].tolist() == [1] * number + [0] * len(padding)


@pytest.mark.parametrize("training", [True, False])
def test_captions_are_padded_as_the_processor_pads(training: bool) -> None:
    """For the readout `pad77`: no EOS, 77 positions."""
    processor = LeVLJEPAProcessor.from_image_size(32, text_readout="pad77")
    samples = [{**sample(0), "captions": "a dog"}, {**sample(1), "captions": "word " * 200}]
    batch = LeVLJEPADataCollator(processor, training=training, pad_to_multiple_of=8)(samples)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 77)
    assert batch["attention_mask"].sum(dim=1).tolist() == [2, 77]
    assert processor.tokenizer.eos_token_id not in batch["input_ids"][0, :2].tolist() + batch["input_ids"][1].tolist()


def test_captions_may_be_bytes_and_have_space_around_them(processor, collator) -> None:
    clean = collator([{**sample(0), "captions": "a dog"}])["input_ids"]
    for value in (b"a dog", " a dog\n", [b" a dog "], np.array([" a dog "])):
        assert torch.equal(collator([{**sample(0), "captions": value}])["input_ids"], clean)


def test_training_draws_captions_and_evaluation_takes_the_first(processor, collator) -> None:
    dataset = NumberedDataset([sample(0)])
    seen = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        seen.add(processor.tokenizer.decode(collator([dataset[0]])["input_ids"][0], skip_special_tokens=True))
    assert seen == set(captions(0))
    ids = collator.for_evaluation()([dataset[0]])["input_ids"][0]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == captions(0)[0]


def test_randomness_follows_seed_epoch_and_sample_alone(processor) -> None:
    dataset = NumberedDataset([sample(0) for _ in range(4)])

    def pixels(order: list[int], epoch: int = 0, seed: int = 0) -> torch.Tensor:
        dataset.set_epoch(epoch)
        batch = LeVLJEPADataCollator(processor, seed=seed)([dataset[i] for i in order])
        return batch["pixel_values"][np.argsort(order)]

    reference = pixels([0, 1, 2, 3])
    torch.manual_seed(123)
    torch.testing.assert_close(pixels([2, 3, 1, 0]), reference, rtol=0, atol=0)
    assert torch.rand(1).item() == torch.rand(1, generator=torch.Generator().manual_seed(123)).item()
    for other in (pixels([0, 1, 2, 3], epoch=1), pixels([0, 1, 2, 3], seed=1), reference[[1, 2, 3, 0]]):
        assert all((a - b).abs().max() > 0.1 for a, b in zip(other, reference, strict=True))


def test_without_numbers_each_reading_differs_and_runs_repeat(processor) -> None:
    runs = []
    for _ in range(2):
        collator = LeVLJEPADataCollator(processor)
        runs.append([collator([sample(0), sample(1)])["pixel_values"] for _ in range(2)])
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)
    assert (runs[0][0] - runs[0][1]).abs().max() > 0.1


@pytest.mark.parametrize("form", ["bytes", "path", "dict", "dict of path"])
def test_without_numbers_the_sample_decides(tmp_path: Path, processor, form: str) -> None:
    """At the same place in a stream, another photo is cut in another way."""
    crop = v2.Compose([v2.RandomResizedCrop(32, scale=(0.1, 0.5))])
    ramp = np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 256, 3))
    crops = []
    for name in ("one", "two", "one"):
        path = tmp_path / f"{name}.jpg"
        PIL.Image.fromarray(ramp).save(path, comment=name.encode())  # the same pixels, other bytes
        data = path.read_bytes()
        forms = {"bytes": data, "path": path, "dict": {"bytes": data}, "dict of path": {"path": str(path)}}
        collator = LeVLJEPADataCollator(processor, transform=crop)
        crops.append(collator([{"image": forms[form], "captions": "a ramp"}])["pixel_values"])
    assert torch.equal(crops[0], crops[2])
    assert (crops[0] - crops[1]).abs().max() > 0.1


def test_workers_see_the_epoch_and_share_the_counts(processor) -> None:
    dataset = NumberedDataset([sample(i) for i in range(7)] + [{"image": b"broken", "captions": "x"}])
    collator = LeVLJEPADataCollator(processor, max_skipped_rate=1.0)
    loader = torch.utils.data.DataLoader(
        dataset, 2, collate_fn=collator, num_workers=2, persistent_workers=True, multiprocessing_context="fork"
    )
    passes = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        passes.append(torch.cat([batch["pixel_values"] for batch in loader]))
    torch.testing.assert_close(passes[0], passes[2], rtol=0, atol=0)
    assert (passes[0] - passes[1]).abs().amax((1, 2, 3)).min() > 0.1
    assert (collator.counter.read, collator.counter.skipped_images) == (24, 3)


# Samples that cannot be used


def test_images_that_do_not_decode_are_skipped_counted_and_named(collator, caplog) -> None:
    bad = [b"no image", jpeg(1)[:300], {"bytes": None, "path": "/nowhere/7.jpg"}, None]
    collator.max_skipped_rate = 0.9
    with caplog.at_level(logging.WARNING):
        batch = collator([sample(0), *({"image": value, "captions": "x"} for value in bad), sample(1)])
    assert batch["pixel_values"].shape[0] == batch["input_ids"].shape[0] == 2
    assert (collator.counter.read, collator.counter.skipped_images, collator.counter.skipped_captions) == (6, 4, 0)
    assert len(caplog.records) == 4
    assert "/nowhere/7.jpg" in caplog.text


@pytest.mark.parametrize("value", [None, "", "  ", [], [None, ""]])
def test_empty_captions_are_skipped_and_counted(collator, value) -> None:
    batch = collator([sample(0), {**sample(1), "captions": value}])
    assert batch["input_ids"].shape[0] == 1
    assert (collator.counter.skipped_images, collator.counter.skipped_captions) == (0, 1)


def test_empty_captions_among_others_are_never_drawn(processor, collator) -> None:
    for _ in range(10):
        ids = collator([{**sample(0), "captions": [None, "", "the one", " "]}])["input_ids"][0]
        assert processor.tokenizer.decode(ids, skip_special_tokens=True) == "the one"


def test_more_than_one_percent_of_failures_stops(collator) -> None:
    broken = {"image": b"no image", "captions": "x", "__key__": "0007"}
    for _ in range(10):
        collator([sample(0), broken])  # the first ten are within 1 % of a thousand
    with pytest.raises(RuntimeError, match="Of 22 samples, 11 were skipped because their image in column 'image'.*1%"):
        collator([sample(0), broken])
    fresh = collator.for_evaluation(training=True)
    fresh([sample(i) for i in range(150)] + [broken])
    fresh.check_skipped()  # 1 of 151
    fresh([sample(0), broken])
    with pytest.raises(RuntimeError, match="Of 153 samples, 2 were skipped"):
        fresh.check_skipped()


def test_a_batch_without_a_usable_sample(collator) -> None:
    with pytest.raises(ValueError, match="None of the 2 samples of a batch can be used.*and 2 because their cap"):
        collator([{**sample(i), "captions": None} for i in range(2)])


def test_values_of_wrong_types_name_the_column(collator) -> None:
    with pytest.raises(TypeError, match="'captions' holds 7 .int.: a caption is a string"):
        collator([{**sample(0), "captions": [7]}])
    with pytest.raises(TypeError, match="'image' holds 7 .int., which is no image"):
        collator([{**sample(0), "image": 7}])
    with pytest.raises(ValueError, match="no column 'captions'. Its columns: 'image', 'text'"):
        collator([{"image": jpeg(0), "text": "a dog"}])


def test_look_up_walks_dots() -> None:
    record = {"json": {"captions": ["a"], "more": {"id": 3}}, "seg.png": b"mask", "none": None}
    assert look_up(record, "json.captions") == ["a"]
    assert look_up(record, "json.more.id") == 3
    assert look_up(record, "seg.png") == b"mask"
    assert look_up(record, "none.captions") is None
    for missing in ("json.id", "seg.jpg", "json.captions.first"):
        with pytest.raises(ValueError, match="no column"):
            look_up(record, missing)


# Streams


def keys(stream: EndlessStream, number: int) -> list[str]:
    return [s["__key__"] for s, _ in zip(stream, range(number), strict=False)]


def test_a_stream_is_endless_shuffled_anew_and_repeatable(webdataset: Path) -> None:
    dataset = load_pretraining_dataset(str(webdataset), streaming=True)
    first = keys(EndlessStream(dataset, seed=1, buffer_size=20), 3 * NUM_TRAIN)
    passes = [first[i : i + NUM_TRAIN] for i in range(0, len(first), NUM_TRAIN)]
    assert all(len(set(one)) == NUM_TRAIN for one in passes), "every sample once a pass"
    assert passes[0] != passes[1] != passes[2]
    assert keys(EndlessStream(dataset, seed=1, buffer_size=20), 3 * NUM_TRAIN) == first
    assert keys(EndlessStream(dataset, seed=2, buffer_size=20), NUM_TRAIN) != passes[0]


@pytest.mark.parametrize("world_size", [2, 3])  # 2 shards: one for each rank; or samples dealt out
def test_a_stream_is_split_between_ranks(webdataset: Path, world_size: int) -> None:
    dataset = load_pretraining_dataset(str(webdataset), streaming=True)
    each = NUM_TRAIN // world_size
    ranks = [keys(EndlessStream(dataset, rank=r, world_size=world_size), each) for r in range(world_size)]
    assert len({key for rank in ranks for key in rank}) == NUM_TRAIN


def test_workers_share_a_shard(webdataset: Path) -> None:
    dataset = load_pretraining_dataset(f"{webdataset}/train-00000.tar", streaming=True)
    loader = torch.utils.data.DataLoader(
        EndlessStream(dataset), 3, num_workers=2, collate_fn=list, multiprocessing_context="fork"
    )
    batches = [[s["__key__"] for s in batch] for batch, _ in zip(loader, range(4), strict=False)]
    assert sorted(batches[0] + batches[1]) == sorted(batches[2] + batches[3]) == [f"{i:04d}" for i in range(6)]


# What is too large, or no text


def png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_transparent_and_16_bit_images_are_the_same_in_training_and_in_evaluation(processor) -> None:
    ramp = PIL.Image.fromarray(np.tile(np.arange(0, 65536, 2048, dtype=np.uint16), (32, 1)))
    clear = PIL.Image.new("RGBA", (32, 32), (255, 0, 0, 40))
    samples = [{"image": png(image), "captions": "a"} for image in (ramp, clear)]
    training = LeVLJEPADataCollator(processor, transform=torch.nn.Identity())
    evaluated = training.for_evaluation()(samples)["pixel_values"]
    torch.testing.assert_close(training(samples)["pixel_values"], evaluated, rtol=1e-5, atol=1e-5)


def test_an_image_beyond_the_limit_is_skipped_before_it_is_decoded(processor, caplog) -> None:
    huge = png(PIL.Image.new("L", (4000, 3000)))
    assert len(huge) < 50_000
    collator = LeVLJEPADataCollator(processor, max_image_pixels=1_000_000, max_skipped_rate=1.0)
    small = png(PIL.Image.new("L", (1000, 1000)))
    batch = collator([{"image": huge, "captions": "a"}, {"image": small, "captions": "b"}])
    assert len(batch["pixel_values"]) == 1 and collator.counter.skipped_images == 1
    assert "4000 x 3000 pixels, more than 1,000,000" in caplog.text
    assert LeVLJEPADataCollator(processor).max_image_pixels == 89_478_485


@pytest.mark.parametrize("bad", ["x" * 31, "a \ud800 lone surrogate", b"not \xff UTF-8"])
def test_a_caption_that_is_no_text_or_too_long_is_not_drawn(bad, processor, caplog) -> None:
    image = png(PIL.Image.new("L", (40, 40)))
    collator = LeVLJEPADataCollator(processor, max_caption_characters=30, max_skipped_rate=1.0)
    for _ in range(8):  # never of two
        tokens = collator([{"image": image, "captions": [bad, "good"]}])["input_ids"]
        assert torch.equal(tokens, processor(text=["good"], return_tensors="pt")["input_ids"])
    collator([{"image": image, "captions": bad}, {"image": image, "captions": "x" * 30}])
    assert collator.counter.skipped_captions == 1
    assert "no Unicode text, or longer than 30 characters" in caplog.text
