"""Encoders of evaluation: each kind gives the tokens that its library gives; what is not whole is refused."""

import json

import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    IJepaConfig,
    IJepaModel,
    MLCDVisionConfig,
    MLCDVisionModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAForImageClassification, LeVLJEPAModel, LeVLJEPAVisionModel
from levljepa_hf.encoders.encoders import load_encoder, patch_grid
from levljepa_hf.model.modeling_levljepa import READOUTS
from levljepa_hf.model.released import save_released

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture
def checkpoint(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_whole_checkpoint_gives_tokens_embeddings_and_predictions(checkpoint, model, pixel_values):
    encoder = load_encoder(checkpoint)
    assert encoder.name == str(checkpoint)  # a word in files and tables, also where a path was given
    tokens, embeddings = encoder.encode(pixel_values)
    with torch.no_grad():
        expected = model.vision_model(pixel_values)
        z = model.get_image_features(pixel_values).pooler_output
        torch.testing.assert_close(embeddings.predictions, model.vision_predictor(z))
    torch.testing.assert_close(tokens.cls, expected.pooler_output)
    torch.testing.assert_close(tokens.patches, expected.last_hidden_state[:, 1:])
    torch.testing.assert_close(embeddings.embeds, z)
    assert encoder.readouts == READOUTS and (encoder.image_size, encoder.hidden_size) == (32, tokens.cls.shape[1])
    assert tokens.grid[0] * tokens.grid[1] == tokens.patches.shape[1]
    assert not any(p.requires_grad for p in encoder.model.parameters()) and not encoder.model.training


def test_texts_are_embedded_once_each_and_in_their_order(checkpoint, model, processor):
    texts = ["a long caption about two dogs on a beach", "a cat", "a long caption about two dogs on a beach", ""]
    found = load_encoder(str(checkpoint)).embed_texts(texts, batch_size=2)
    for i, text in enumerate(texts):
        inputs = processor(text=[text], return_tensors="pt")
        with torch.no_grad():
            expected = model.get_text_features(**inputs).pooler_output
            predicted = model.text_predictor(expected)
        torch.testing.assert_close(found.embeds[i : i + 1], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.predictions[i : i + 1], predicted, atol=1e-5, rtol=1e-4)


def test_towers_heads_and_released_files_load(checkpoint, model, pixel_values, tmp_path):
    expected = load_encoder(str(checkpoint)).tokens(pixel_values)
    LeVLJEPAVisionModel.from_pretrained(checkpoint).save_pretrained(tmp_path / "tower")
    LeVLJEPAForImageClassification.from_pretrained(checkpoint, num_labels=3).save_pretrained(tmp_path / "head")
    save_released(model, None, tmp_path / "released")
    for kind, readouts in (("tower", ()), ("head", ()), ("released", READOUTS)):
        encoder = load_encoder(str(tmp_path / kind))
        torch.testing.assert_close(encoder.tokens(pixel_values).patches, expected.patches)
        assert encoder.readouts == readouts
        if not readouts:
            with pytest.raises(ValueError, match="no text tower"):
                encoder.embed_texts(["a cat"])


def test_a_model_without_predictors_has_one_readout(tmp_path, processor, pixel_values):
    config = LeVLJEPAConfig.from_preset("debug", predictor_num_layers=0)
    LeVLJEPAModel(config).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert encoder.readouts == ("zeroshot",)
    assert encoder.encode(pixel_values)[1].predictions is None


def test_an_incomplete_tower_is_refused(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    name = next(name for name in weights if name.startswith("vision_model") and name.endswith("qkv.weight"))
    save_file({k: v for k, v in weights.items() if k != name}, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 tensors of the vision tower .*qkv.weight.* would be random"):
        load_encoder(str(checkpoint))


def test_the_fingerprint_follows_what_images_meet(checkpoint, tmp_path):
    first = load_encoder(str(checkpoint)).fingerprint
    assert load_encoder(str(checkpoint)).fingerprint == first
    assert load_encoder(str(checkpoint), dtype=torch.bfloat16).fingerprint != first
    weights = load_file(checkpoint / "model.safetensors")
    for prefix, changes in (("text_model", False), ("vision_projection", True), ("vision_model", True)):
        name = next(name for name in weights if name.startswith(prefix) and name.endswith("weight"))
        changed = {**weights, name: weights[name] + 1}
        save_file(changed, checkpoint / "model.safetensors", {"format": "pt"})
        assert (load_encoder(str(checkpoint)).fingerprint != first) == changes


def test_a_random_encoder_has_the_size_of_another_and_follows_its_seed(checkpoint, pixel_values):
    like = load_encoder(str(checkpoint))
    random, again, other = (load_encoder("random", like=like, seed=seed) for seed in (0, 0, 1))
    assert random.tokens(pixel_values).patches.shape == like.tokens(pixel_values).patches.shape
    assert random.fingerprint == again.fingerprint != other.fingerprint
    assert random.fingerprint != like.fingerprint and random.readouts == like.readouts
    assert load_encoder("random:debug").image_size == 32


def test_timm_models_give_their_normalised_tokens(tmp_path, pixel_values, monkeypatch):
    names = {
        "vit_tiny_patch16_224.augreg_in21k": {"img_size": 32, "patch_size": 8},
        "vit_medium_patch16_reg4_gap_256": {"img_size": 32, "patch_size": 8},
        "resnet18": {},
    }
    real = timm.create_model
    for name, kwargs in names.items():
        torch.manual_seed(0)
        reference = real(name.partition(".")[0], pretrained=False, num_classes=0, **kwargs).eval()
        reference.pretrained_cfg = {**reference.pretrained_cfg, "input_size": (3, 32, 32)}
        monkeypatch.setattr(timm, "create_model", lambda *args, model=reference, **kwargs: model)
        encoder = load_encoder(f"timm:{name}")
        cls, patches, grid = encoder.tokens(pixel_values)
        with torch.no_grad():
            features = reference.forward_features(pixel_values)
            pooled = reference.forward_head(features, pre_logits=True)
        if name == "resnet18":
            torch.testing.assert_close(patches, features.flatten(2).mT)
        elif "reg4" in name:  # no class token, four registers, and a norm after the pooling
            normed = reference.fc_norm(features) if isinstance(reference.norm, torch.nn.Identity) else features
            torch.testing.assert_close(patches, normed[:, 4:])
        else:
            torch.testing.assert_close(patches, features[:, 1:])
        torch.testing.assert_close(cls, pooled)
        assert grid == ((1, 1) if name == "resnet18" else (4, 4))
        processor = encoder.image_processor()
        assert list(processor.image_mean) == list(reference.pretrained_cfg["mean"])
        assert processor.crop_size["height"] == 32 and processor.size["shortest_edge"] == round(32 * 256 / 224)


@pytest.mark.parametrize("name", ["mixer_s32_224", "crossvit_tiny_240"])
def test_a_timm_model_whose_tokens_are_of_no_known_kind_is_refused(name, monkeypatch):
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **_: real(name, num_classes=0))
    encoder = load_encoder(f"timm:{name}")
    with pytest.raises(ValueError, match=f"timm:{name} does not say which of its tokens are patches"):
        encoder.tokens(torch.zeros(1, 3, encoder.image_size, encoder.image_size))


def test_timm_weights_that_are_not_at_hand_are_an_error():
    with pytest.raises(OSError, match="no pretrained model 'vit_tiny_patch16_225'.*local-dir"):
        load_encoder("timm:vit_tiny_patch16_225")


def test_a_timm_model_in_a_folder_loads(tmp_path, pixel_values):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0).eval()
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0], "input_size": [3, 32, 32], "num_classes": 0}
    arguments = {"img_size": 32, "patch_size": 8}
    content = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "model_args": arguments,
        "pretrained_cfg": cfg,
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = load_encoder(f"timm:local-dir:{tmp_path}")
    with torch.no_grad():
        torch.testing.assert_close(encoder.tokens(pixel_values).patches, model.forward_features(pixel_values)[:, 1:])
    assert list(encoder.image_processor().image_mean) == [0.1, 0.2, 0.3]


def test_clip_gives_normalised_patches_and_embeddings(tmp_path, pixel_values, processor):
    text = {k: SMALL[k] for k in SMALL if k not in ("image_size", "patch_size")} | {"vocab_size": 50257}
    model = CLIPModel(
        CLIPConfig(text_config={**text, "eos_token_id": 50256}, vision_config=SMALL, projection_dim=8)
    ).eval()
    model.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    encoder = load_encoder(f"hf:{tmp_path}")
    (cls, patches, grid), embeddings = encoder.encode(pixel_values)
    with torch.no_grad():
        outputs = model.vision_model(pixel_values)
        torch.testing.assert_close(patches, model.vision_model.post_layernorm(outputs.last_hidden_state)[:, 1:])
        torch.testing.assert_close(embeddings.embeds, model.get_image_features(pixel_values).pooler_output)
        ids = AutoTokenizer.from_pretrained(tmp_path)(["a cat"], return_tensors="pt")
        expected = model.get_text_features(**ids).pooler_output
    torch.testing.assert_close(cls, outputs.pooler_output)
    torch.testing.assert_close(encoder.embed_texts(["two dogs run", "a cat"]).embeds[1:], expected)
    assert encoder.readouts == ("zeroshot",) and grid == (4, 4)


def test_towers_of_transformers_give_their_tokens(tmp_path, pixel_values):
    cases = {
        "siglip": (
            SiglipVisionModel(SiglipVisionConfig(**SMALL)),
            SiglipImageProcessor(size={"height": 32, "width": 32}),
            0,
        ),
        "dino": (
            Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL, num_register_tokens=3)),
            ViTImageProcessor(size={"height": 32, "width": 32}),
            4,
        ),
    }
    for name, (model, image_processor, num_prefix) in cases.items():
        model.eval().save_pretrained(tmp_path / name)
        image_processor.save_pretrained(tmp_path / name)
        cls, patches, grid = load_encoder(f"hf:{tmp_path / name}").tokens(pixel_values)
        with torch.no_grad():
            outputs = model(pixel_values)
        torch.testing.assert_close(patches, outputs.last_hidden_state[:, num_prefix:])
        torch.testing.assert_close(cls, outputs.last_hidden_state[:, 0] if num_prefix else outputs.pooler_output)
        assert grid == (4, 4)
    net = ConvNextModel(ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=32)).eval()
    net.save_pretrained(tmp_path / "convnext")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "convnext")
    encoder = load_encoder(f"hf:{tmp_path / 'convnext'}")
    assert encoder.tokens(pixel_values).patches.shape == (2, 16, 16) and encoder.hidden_size == 16


def save_tower(model, folder, image_processor=None):
    model.eval().save_pretrained(folder)
    (image_processor or ViTImageProcessor(size={"height": 32, "width": 32})).save_pretrained(folder)
    return load_encoder(f"hf:{folder}")


def test_a_tower_without_a_pooler_loads_and_keeps_its_fingerprint(tmp_path, pixel_values):
    model = ViTModel(ViTConfig(**SMALL), add_pooling_layer=False)  # as DINO's checkpoints
    encoder = save_tower(model, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(encoder.tokens(pixel_values).cls, model(pixel_values).last_hidden_state[:, 0])
    assert load_encoder(f"hf:{tmp_path}").fingerprint == encoder.fingerprint
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "layernorm.bias"}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lacks 3 tensors .the first is layernorm.bias.* would be random"):
        load_encoder(f"hf:{tmp_path}")


def test_tokens_of_towers_that_pool_and_norm_in_their_own_way(tmp_path, pixel_values):
    model = IJepaModel(IJepaConfig(**SMALL))  # neither a class token nor a pooler
    cls, patches, _ = save_tower(model, tmp_path / "ijepa").tokens(pixel_values)
    with torch.no_grad():
        torch.testing.assert_close(patches, model(pixel_values).last_hidden_state)
    torch.testing.assert_close(cls, patches.mean(dim=1))

    sizes = {"hidden_sizes": [4, 4, 8, 16], "depths": [1, 1, 1, 1], "image_size": 32}
    model = DINOv3ConvNextModel(DINOv3ConvNextConfig(**sizes))  # its pooling stands before the positions
    pixels = torch.randn(2, 3, 64, 64)
    cls, patches, grid = save_tower(model, tmp_path / "convnext").tokens(pixels)
    with torch.no_grad():
        outputs = model(pixels)
    torch.testing.assert_close(cls, outputs.pooler_output)
    torch.testing.assert_close(patches, outputs.last_hidden_state[:, 1:])
    assert grid == (2, 2)

    model = MLCDVisionModel(MLCDVisionConfig(**SMALL))  # the final norm meets its class token alone
    torch.nn.init.normal_(model.post_layernorm.weight)
    cls, patches, _ = save_tower(model, tmp_path / "mlcd").tokens(pixel_values)
    with torch.no_grad():
        outputs = model(pixel_values)
        torch.testing.assert_close(patches, model.post_layernorm(outputs.last_hidden_state[:, 1:]))
    torch.testing.assert_close(cls, outputs.pooler_output)


def test_a_tower_that_hides_patches_is_refused(tmp_path, pixel_values):
    encoder = save_tower(ViTMAEModel(ViTMAEConfig(**SMALL)), tmp_path)  # masks three quarters at random
    with pytest.raises(ValueError, match="gives 5 tokens for 16 patches.*vit_mae"):
        encoder.tokens(pixel_values)


def test_the_side_is_the_one_that_the_image_processor_gives(tmp_path):
    crop = BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    encoder = save_tower(Dinov2Model(Dinov2Config(**{**SMALL, "image_size": 64})), tmp_path, crop)
    assert encoder.image_size == 32
    assert encoder.image_processor("default").crop_size["height"] == 32


def test_siglip_reads_texts_of_full_length_without_a_mask(tmp_path, processor):
    text = {k: SMALL[k] for k in SMALL if k not in ("image_size", "patch_size")} | {"max_position_embeddings": 12}
    model = SiglipModel(SiglipConfig(text_config={**text, "vocab_size": 50257}, vision_config=SMALL))
    processor.tokenizer.save_pretrained(tmp_path)
    encoder = save_tower(model, tmp_path)
    assert encoder.tokenizer.model_max_length > 12 and "attention_mask" in encoder.tokenizer.model_input_names
    texts = ["a cat", "two dogs " * 20]
    ids = encoder.tokenizer(texts, padding="max_length", max_length=12, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model.get_text_features(ids).pooler_output
    torch.testing.assert_close(encoder.embed_texts(texts).embeds, expected)


def test_other_names_are_refused_with_the_way_on(tmp_path, pixel_values):
    SiglipVisionModel(SiglipVisionConfig(**SMALL)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"type 'siglip_vision_model'.*hf:{tmp_path}"):
        load_encoder(str(tmp_path))
    with pytest.raises(ValueError, match="'torch:resnet18' is of no known kind"):
        load_encoder("torch:resnet18")
    with pytest.raises(OSError):
        load_encoder(str(tmp_path / "nowhere"))


def test_a_levljepa_checkpoint_by_hf_is_the_same(checkpoint, pixel_values):
    torch.testing.assert_close(
        load_encoder(f"hf:{checkpoint}").tokens(pixel_values), load_encoder(str(checkpoint)).tokens(pixel_values)
    )


def test_transforms(checkpoint):
    encoder = load_encoder(str(checkpoint))
    assert encoder.image_processor("default").size["shortest_edge"] == 32
    assert encoder.image_processor("evaluation").size["shortest_edge"] == 37
    own = encoder.image_processor("default").resample
    for transform in ("default-bicubic", "evaluation-bicubic"):
        bicubic = encoder.image_processor(transform)
        assert bicubic.resample == PIL.Image.Resampling.BICUBIC != own
        assert bicubic.size == encoder.image_processor(transform.partition("-")[0]).size
    photo = PIL.Image.effect_noise((80, 60), 90).convert("RGB")
    pixels = [
        encoder.image_processor(t)(photo, return_tensors="pt")["pixel_values"] for t in ("default", "default-bicubic")
    ]
    assert not torch.allclose(*pixels, atol=0.05)
    with pytest.raises(ValueError, match="transform='centre' is unknown"):
        encoder.image_processor("centre")


def test_patch_grid_of_other_shapes():
    assert patch_grid(196, 224, 224) == (14, 14)
    assert patch_grid(8 * 4, 64, 32) == (8, 4)


def test_images_need_no_tokenizer(tmp_path, pixel_values, monkeypatch):
    """SigLIP's wants a package of its own."""
    config = CLIPConfig(
        text_config={**SMALL, "vocab_size": 99, "eos_token_id": 2}, vision_config=SMALL, projection_dim=8
    )
    CLIPModel(config).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)

    def missing(*args, **kwargs):
        raise ImportError("sentencepiece is not installed")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", missing)
    encoder = load_encoder(f"hf:{tmp_path}")
    assert encoder.tokens(pixel_values).patches.shape == (2, 16, 16)
    with pytest.raises(ImportError, match="sentencepiece"):
        encoder.embed_texts(["a cat"])
