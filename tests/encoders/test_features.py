"""Features: equal to the encoder's own, kept on disk by content, resumed, and never taken for others."""

import io
import re
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from levljepa_hf import LeVLJEPAModel
from levljepa_hf.encoders import features as features_module
from levljepa_hf.encoders.encoders import LeVLJEPAEncoder
from levljepa_hf.encoders.features import image_digest, patch_features, pooled_features


@pytest.fixture
def encoder(model, processor) -> LeVLJEPAEncoder:
    return LeVLJEPAEncoder("debug", model, processor)


@pytest.fixture
def encoded(images) -> list[dict]:
    """Twelve different photos as data sets hold them."""
    found = []
    for turn in range(3):
        for image in images:
            buffer = io.BytesIO()
            image.rotate(90 * turn, expand=True).save(buffer, "PNG")
            found.append({"bytes": buffer.getvalue(), "path": None})
    return found


def count_encoded(encoder, monkeypatch) -> list[int]:
    """The sizes of the batches that the encoder meets from now on."""
    sizes: list[int] = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda pixels: (sizes.append(len(pixels)), encode(pixels))[1])
    return sizes


def quiet(**options):
    return {"batch_size": 5, "show_progress": False, **options}


def test_features_are_the_encoders(encoder, images):
    found = pooled_features(encoder, images, **quiet())
    patches = patch_features(encoder, images, dtype=torch.float32, **quiet())
    for i, image in enumerate(images):
        tokens, embeddings = encoder.encode(encoder.image_processor()(image, return_tensors="pt")["pixel_values"])
        torch.testing.assert_close(found["cls"][i], tokens.cls[0])
        torch.testing.assert_close(found["mean"][i], tokens.patches[0].mean(dim=0))
        torch.testing.assert_close(found["image_embeds"][i], embeddings.embeds[0])
        torch.testing.assert_close(found["predictions"][i], embeddings.predictions[0])
        torch.testing.assert_close(patches[[i]][0], tokens.patches[0])
    assert patches.shape == (4, *tokens.patches[0].shape) and patches.grid == tokens.grid


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_second_call_reads_what_the_first_wrote(encoder, encoded, monkeypatch, tmp_path, num_workers):
    sizes = count_encoded(encoder, monkeypatch)
    first = pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path, num_workers=num_workers))
    assert sum(sizes) == len(encoded)
    order = [3, 11, 0]
    again = pooled_features(encoder, [encoded[i] for i in order], **quiet(cache_dir=tmp_path))
    assert sum(sizes) == len(encoded)
    for name, values in first.items():
        assert torch.equal(again[name], values[order])


def test_an_interrupted_extraction_goes_on_where_it_was(encoder, encoded, monkeypatch, tmp_path):
    expected = pooled_features(encoder, encoded, **quiet())
    monkeypatch.setattr(features_module, "_FILE_BYTES", 0)  # every batch is written
    broken = [*encoded[:10], {"bytes": b"no image", "path": None}, encoded[11]]
    with pytest.raises(ValueError, match="Image 10 does not decode"):
        pooled_features(encoder, broken, **quiet(cache_dir=tmp_path))
    sizes = count_encoded(encoder, monkeypatch)
    found = pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path))
    assert sum(sizes) == 2
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values)


def test_a_file_that_was_cut_off_is_not_believed(encoder, encoded, monkeypatch, tmp_path):
    expected = pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path))
    (path,) = tmp_path.glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-64])
    sizes = count_encoded(encoder, monkeypatch)
    found = pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path))
    assert sum(sizes) == len(encoded)
    torch.testing.assert_close(found["cls"], expected["cls"])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda tensors: tensors["cls"][1].fill_(torch.nan), "cls is not finite"),
        (lambda tensors: tensors.update(cls=tensors["cls"][:, :3].clone()), "it has {'cls': .* others {'cls'"),
        (lambda tensors: tensors.update(mean=tensors["mean"][:3].clone()), "mean has 3 rows for 5 images"),
        (lambda tensors: tensors.pop("digests"), "no digests"),
    ],
)
def test_a_file_of_other_content_is_not_believed(encoder, encoded, monkeypatch, tmp_path, spoil, reason):
    warnings = []
    monkeypatch.setattr(features_module.logger, "warning", warnings.append)
    first = pooled_features(encoder, encoded[:7], **quiet(cache_dir=tmp_path))
    (whole,) = tmp_path.glob("*/*.safetensors")
    whole.rename(whole.with_name("-first.safetensors"))
    second = pooled_features(encoder, encoded[7:], **quiet(cache_dir=tmp_path))
    (path,) = tmp_path.glob("*/[!-]*.safetensors")
    tensors = load_file(path)
    spoil(tensors)
    save_file(tensors, path)
    sizes = count_encoded(encoder, monkeypatch)
    found = pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path))
    assert sum(sizes) == 5 and len(warnings) == 1 and re.search(reason, warnings[0])
    assert torch.equal(found["cls"][:7], first["cls"])
    torch.testing.assert_close(found["cls"][7:], second["cls"])


def test_two_runs_may_fill_one_cache_at_the_same_time(encoder, encoded, monkeypatch, tmp_path):
    monkeypatch.setattr(features_module, "_FILE_BYTES", 0)
    expected = pooled_features(encoder, encoded, **quiet())
    encode, others = encoder.encode, []

    def encode_while_another_does_all(pixels):
        if not others:
            others.append(None)
            others[0] = pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path))
        return encode(pixels)

    monkeypatch.setattr(encoder, "encode", encode_while_another_does_all)
    found = pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path))
    sizes = count_encoded(encoder, monkeypatch)
    again = pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path))
    assert sizes == [] and len(list(tmp_path.glob("*/*.safetensors"))) == 6
    for name, values in expected.items():
        assert torch.equal(found[name], values) and torch.equal(others[0][name], values)
        assert torch.equal(again[name], values)


def test_a_folder_that_cannot_be_written_is_an_error_before_the_work(encoder, encoded, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    sizes = count_encoded(encoder, monkeypatch)
    with pytest.raises(OSError, match="cannot be written to .*file.*: give another folder with --cache_dir"):
        pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path / "file"))
    pooled_features(encoder, encoded[:2], **quiet(cache_dir=tmp_path))

    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(features_module.tempfile, "TemporaryFile", refuse)  # a superuser may write everywhere
    with pytest.raises(OSError, match="Permission denied.*--no_cache"):
        pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path))
    pooled_features(encoder, encoded[:2], **quiet(cache_dir=tmp_path))  # all there: nothing to write
    assert sizes == [2]


def test_a_full_disk_keeps_what_was_written(encoder, encoded, monkeypatch, tmp_path):
    monkeypatch.setattr(features_module, "_FILE_BYTES", 0)
    resource = pytest.importorskip("resource")
    pooled_features(encoder, encoded[:2], **quiet(cache_dir=tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # of any file: writing more fails as on a full disk
    try:
        with pytest.raises(OSError, match="cannot be written to .*: give another folder with --cache_dir"):
            pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert len([path for path in tmp_path.glob("*/*") if path.name != "settings.json"]) == 1
    sizes = count_encoded(encoder, monkeypatch)
    pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path))
    assert sum(sizes) == len(encoded) - 2


def test_features_that_are_not_finite_are_an_error(encoder, encoded, tmp_path):
    encoder.model.vision_model.timm_model.norm.weight.mul_(1e6)
    pooled_features(encoder, encoded[:1], **quiet())
    with pytest.raises(ValueError, match="encoder's patches are not finite in float16.*use float32"):
        patch_features(encoder, encoded[:1], **quiet(cache_dir=tmp_path))
    assert not list(tmp_path.glob("*/*.safetensors"))


def test_an_error_while_writing_leaves_no_file(encoder, encoded, monkeypatch, tmp_path):
    def fail(tensors, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(features_module, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path))
    assert [path.name for path in tmp_path.glob("*/*")] == ["settings.json"]


def test_other_weights_transforms_kinds_and_dtypes_are_kept_apart(encoder, encoded, tmp_path, processor, config):
    base = pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path))
    default = pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path, transform="default"))
    torch.manual_seed(1)
    other = LeVLJEPAEncoder("debug", LeVLJEPAModel(config), processor)
    others = pooled_features(other, encoded, **quiet(cache_dir=tmp_path))
    patch_features(encoder, encoded, **quiet(cache_dir=tmp_path))
    patch_features(encoder, encoded, dtype=torch.float32, **quiet(cache_dir=tmp_path))
    assert len(list(tmp_path.iterdir())) == 5
    assert not torch.allclose(base["cls"], default["cls"]) and not torch.allclose(base["cls"], others["cls"])


def test_patches_are_read_from_disk_a_few_images_at_a_time(encoder, encoded, monkeypatch):
    patches = patch_features(encoder, encoded, dtype=torch.float32, **quiet())
    whole = patches[:]
    assert torch.equal(patches[torch.tensor([7, 2])], whole[[7, 2]]) and len(patches) == 12
    folder = patches._features._store.folder
    assert len(list(folder.glob("*.safetensors"))) == 1
    del patches
    assert not folder.exists()  # a temporary one goes with them


def test_the_digest_is_of_the_content(images, tmp_path):
    image = images[0].convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    forms = [
        buffer.getvalue(),
        {"bytes": buffer.getvalue()},
        str(tmp_path / "a.png"),
        {"bytes": None, "path": tmp_path / "a.png"},
    ]
    assert len({image_digest(form) for form in forms}) == 1
    changed = np.asarray(image).copy()
    changed[0, 0, 0] ^= 1
    assert image_digest(image) == image_digest(image.copy()) != image_digest(Image.fromarray(changed))
    assert image_digest(Image.new("RGB", (4, 2))) != image_digest(Image.new("RGB", (2, 4)))


def test_no_images_and_no_image_are_errors(encoder):
    with pytest.raises(ValueError, match="no images"):
        pooled_features(encoder, [], **quiet())
    with pytest.raises(ValueError, match="Image 0 does not decode: it is a int"):
        pooled_features(encoder, [3], **quiet())


def test_a_duplicate_is_encoded_once_in_a_batch(encoder, encoded, monkeypatch):
    sizes = count_encoded(encoder, monkeypatch)
    found = pooled_features(encoder, [encoded[0]] * 4, **quiet())
    assert sizes == [1] and torch.equal(found["cls"][0], found["cls"][3])
    again = pooled_features(encoder, [*encoded[:6], *encoded[3:9]], **quiet())  # and over batches of 5, 5 and 2
    assert sizes == [1, 5, 2, 2] and torch.equal(again["cls"][3:6], again["cls"][6:9])


def test_features_of_another_version_are_not_taken(encoder, encoded, monkeypatch, tmp_path):
    pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path))
    sizes = count_encoded(encoder, monkeypatch)
    installed = features_module.version
    monkeypatch.setattr(features_module, "version", lambda name: "0.9" if name == "timm" else installed(name))
    pooled_features(encoder, encoded, **quiet(cache_dir=tmp_path))
    assert sum(sizes) == len(encoded)
