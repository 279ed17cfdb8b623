"""What other libraries do with the classes: offloading, quantisation, attention maps, depth and segmentation heads,
LoRA, sentence-transformers. Tests of libraries that are not installed are skipped."""

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path

import accelerate
import pytest
import timm
import torch
import torch.nn.functional as F
from transformers import (
    AutoModel,
    AutoProcessor,
    BitsAndBytesConfig,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DPTConfig,
    DPTForDepthEstimation,
    PreTrainedModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from levljepa_hf import (
    LeVLJEPABackbone,
    LeVLJEPAConfig,
    LeVLJEPAForImageClassification,
    LeVLJEPAModel,
    LeVLJEPATextConfig,
    LeVLJEPATextModel,
    LeVLJEPAVisionConfig,
    LeVLJEPAVisionModel,
)
from levljepa_hf.model import vision_levljepa

# Registers; no class token and attention pooling; no class token and mean pooling; the same with registers; two class
# tokens; other blocks and mean pooling; a norm before the blocks.
ARCHITECTURES = {
    "vit_tiny_patch16_224": 1,
    "vit_small_patch14_reg4_dinov2": 1,
    "vit_base_patch16_siglip_224": 0,
    "vit_base_patch16_gap_224": 0,
    "vit_medium_patch16_reg4_gap_256": 0,
    "deit_tiny_distilled_patch16_224": 1,
    "vit_base_patch16_rpn_224": 0,
    "vit_small_patch16_18x2_224": 1,
    "vit_base_patch16_clip_224": 1,
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def vision_config(architecture: str = "vit_tiny_patch16_224", **kwargs) -> LeVLJEPAVisionConfig:
    return LeVLJEPAVisionConfig(**{**SIZES, "architecture": architecture, **kwargs})


def tower(architecture: str = "vit_tiny_patch16_224", **kwargs) -> LeVLJEPAVisionModel:
    """A tower whose every tensor counts: timm starts class token, biases and the like at nearly 0."""
    torch.manual_seed(0)
    model = LeVLJEPAVisionModel(vision_config(architecture, **kwargs)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


# --- every architecture of timm's VisionTransformer -----------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_and_pooling_of_every_kind_are_those_of_timm(architecture, pixels):
    model = tower(architecture)
    names = {"hidden_size": "embed_dim", "num_hidden_layers": "depth", "num_attention_heads": "num_heads"}
    kwargs = {names[name]: SIZES[name] for name in names}
    reference = timm.create_model(
        architecture, num_classes=0, dynamic_img_size=True, img_size=32, patch_size=8, mlp_ratio=2, **kwargs
    ).eval()
    reference.load_state_dict(model.timm_model.state_dict())
    outputs = model(pixels, output_hidden_states=True)

    num_class, tokens = ARCHITECTURES[architecture], reference.forward_features(pixels)
    torch.testing.assert_close(outputs.pooler_output, reference(pixels))
    torch.testing.assert_close(outputs.last_hidden_state[:, :num_class], tokens[:, :num_class])
    torch.testing.assert_close(outputs.last_hidden_state[:, num_class:], tokens[:, reference.num_prefix_tokens :])
    assert [h.shape for h in outputs.hidden_states] == [(2, num_class + 4 * 6, 32)] * 4
    _, intermediates = reference.forward_intermediates(pixels, output_fmt="NLC")
    for hidden, expected in zip(outputs.hidden_states[1:], intermediates, strict=True):
        torch.testing.assert_close(hidden[:, num_class:], expected)
    torch.testing.assert_close(model.timm_model(pixels), reference(pixels))  # called alone it is timm's own


@pytest.mark.parametrize("architecture", ["vit_medium_patch16_reg4_gap_256", "vit_small_patch14_reg4_dinov2"])
def test_registers_never_reach_the_maps(architecture, pixels):
    torch.manual_seed(0)
    backbone = LeVLJEPABackbone(vision_config(architecture, out_indices=[1, 3])).eval()
    maps = backbone(pixels).feature_maps
    assert [m.shape for m in maps] == [(2, 32, 4, 6)] * 2
    patches = backbone.vision_model.timm_model.forward_features(pixels)[:, -24:]
    torch.testing.assert_close(maps[-1], patches.transpose(1, 2).reshape(2, 32, 4, 6))


def test_the_tower_of_another_architecture_is_copied_pickled_and_exported(pixels, tmp_path):
    for architecture in ("vit_base_patch16_siglip_224", "deit_tiny_distilled_patch16_224"):
        model = tower(architecture)
        expected = model(pixels).pooler_output
        torch.testing.assert_close(copy.deepcopy(model)(pixels).pooler_output, expected)
        torch.save(model, tmp_path / "model.pt")
        loaded = torch.load(tmp_path / "model.pt", weights_only=False)
        torch.testing.assert_close(loaded(pixels).pooler_output, expected)
        program = torch.export.export(model, (pixels,), strict=False)
        torch.testing.assert_close(program.module()(pixels).pooler_output, expected)


def test_pixels_take_the_dtype_of_the_weights(pixels):
    assert tower().to(torch.bfloat16)(pixels).pooler_output.dtype == torch.bfloat16


def test_images_of_other_channels():
    model = tower(num_channels=1)
    assert model(torch.randn(2, 1, 32, 32)).pooler_output.shape == (2, 32)


# --- offloading -----------------------------------------------------------------------------------------------------


def _from_disk(cls: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    return cls.from_pretrained(folder, device_map={"": "disk"}, offload_folder=folder / "offload")


def _cpu_offload(cls: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    return accelerate.cpu_offload(cls.from_pretrained(folder), execution_device="cpu")


def _disk_offload(cls: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    return accelerate.disk_offload(cls.from_pretrained(folder), folder / "offload", execution_device="cpu")


def _tight_memory(cls: type[PreTrainedModel], folder: Path) -> PreTrainedModel:
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    model = cls.from_pretrained(
        folder, device_map="auto", max_memory={"cpu": size // 2}, offload_folder=folder / "offload"
    )
    assert "disk" in model.hf_device_map.values()
    return model


OFFLOADS = (_from_disk, _cpu_offload, _disk_offload, _tight_memory)


def offloaded(test: Callable) -> Callable:
    """Runs a test with every way of offloading. accelerate finds it odd that parameters have a place of their own."""
    test = pytest.mark.parametrize("offload", OFFLOADS, ids=lambda offload: offload.__name__)(test)
    return pytest.mark.filterwarnings("ignore:The following device_map keys")(test)


@offloaded
@pytest.mark.parametrize("architecture", ["vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224"])
def test_an_offloaded_tower_gives_the_same_features(architecture, offload: Callable, pixels, tmp_path):
    model = tower(architecture)
    model.save_pretrained(tmp_path)
    offloaded = offload(LeVLJEPAVisionModel, tmp_path).eval()
    assert any(parameter.device.type == "meta" for parameter in offloaded.parameters())
    expected, outputs = model(pixels, output_hidden_states=True), offloaded(pixels, output_hidden_states=True)
    for a, b in zip(outputs.to_tuple(), expected.to_tuple(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_tower_is_whole_on_one_device_however_little_memory_there_is(pixels, tmp_path):
    """Its position embeddings would stay behind where a device has room for the class token alone."""
    model = tower()
    model.save_pretrained(tmp_path)
    expected = model(pixels).pooler_output
    size = (tmp_path / "model.safetensors").stat().st_size
    for share in range(1, 20):
        limits = {"cpu": size * share // 20}
        split = LeVLJEPAVisionModel.from_pretrained(
            tmp_path, device_map="auto", max_memory=limits, offload_folder=tmp_path / "offload"
        )
        assert len(set(split.hf_device_map.values())) == 1
        torch.testing.assert_close(split(pixels).pooler_output, expected)


def test_modules_that_stay_whole_are_those_of_the_model(config, model):
    """accelerate's FSDP refuses a name that the model has no module of."""
    text_model = LeVLJEPATextModel(LeVLJEPATextConfig.from_dict(config.to_dict()))
    models = (model, text_model, LeVLJEPAForImageClassification(config), tower("deit_tiny_distilled_patch16_224"))
    for one in models:
        names = {type(module).__name__ for module in one.modules()}
        assert one._no_split_modules and one._no_split_modules <= names
    assert {"GPT2Block", "LeVLJEPAVisionLayer"} <= model._no_split_modules  # what FSDP wraps


@offloaded
def test_an_offloaded_model_gives_the_same_outputs(offload: Callable, tmp_path):
    torch.manual_seed(0)
    model = LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug", text_config={"vocab_size": 99})).eval()
    model.save_pretrained(tmp_path)
    offloaded = offload(LeVLJEPAModel, tmp_path).eval()
    inputs = {"pixel_values": torch.randn(3, 3, 32, 32), "input_ids": torch.randint(0, 99, (3, 7))}
    outputs, expected = offloaded(**inputs), model(**inputs)
    torch.testing.assert_close(outputs.logits_per_image, expected.logits_per_image)
    torch.testing.assert_close(outputs.prediction_loss, expected.prediction_loss)


@offloaded
@pytest.mark.parametrize("model_class", [LeVLJEPAForImageClassification, LeVLJEPABackbone])
def test_an_offloaded_head_gives_the_same_outputs(model_class, offload: Callable, config, inputs, tmp_path):
    torch.manual_seed(0)
    model = model_class(config.vision_config if model_class is LeVLJEPABackbone else config).eval()
    model.save_pretrained(tmp_path)
    expected = model(inputs["pixel_values"]).to_tuple()[0]
    outputs = offload(model_class, tmp_path).eval()(inputs["pixel_values"]).to_tuple()[0]
    torch.testing.assert_close(outputs, expected)


# --- initialisation and quantisation --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224"])
def test_what_is_missing_is_initialised_and_what_is_loaded_is_kept(architecture):
    model = tower(architecture)
    state = model.state_dict()
    lost = {
        name: tensor for name, tensor in state.items() if ".blocks.1." in name or "pool" in name or "token" in name
    }
    kept = {name: tensor for name, tensor in state.items() if name not in lost}
    loaded = LeVLJEPAVisionModel.from_pretrained(None, config=model.config, state_dict=kept).state_dict()
    for name, tensor in kept.items():
        assert torch.equal(loaded[name], tensor), name
    for name in lost:
        assert loaded[name].isfinite().all() and not torch.equal(loaded[name], lost[name]), name
    assert loaded["timm_model.blocks.1.mlp.fc1.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert loaded["timm_model.blocks.1.norm1.weight"].eq(1).all()


def test_loading_a_complete_checkpoint_builds_the_tower_once(model, tmp_path, monkeypatch):
    model.vision_model.save_pretrained(tmp_path)
    calls, create_vit = [], vision_levljepa.create_vit
    monkeypatch.setattr(vision_levljepa, "create_vit", lambda config: calls.append(1) or create_vit(config))
    LeVLJEPAVisionModel.from_pretrained(tmp_path)
    assert len(calls) == 1


def test_tensors_that_a_fresh_tower_lacks_are_left_alone(config):
    """As of a quantised layer: its own names stay, the rest is initialised."""
    torch.manual_seed(0)
    model = LeVLJEPAVisionModel(config.vision_config)
    block = model.timm_model.blocks[0]
    block.attn.qkv.register_buffer("weight_scale", torch.full((3,), 7.0))
    block.mlp.fc1.extra = torch.nn.Parameter(torch.full((2,), 5.0))
    old = block.mlp.fc2.weight.clone()
    model._init_weights(model.timm_model)
    assert block.attn.qkv.weight_scale.eq(7).all() and block.mlp.fc1.extra.eq(5).all()
    assert not torch.equal(block.mlp.fc2.weight, old)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("bits", "least"), [(8, 0.999), (4, 0.97)])
@pytest.mark.parametrize("model_class", [LeVLJEPAVisionModel, LeVLJEPAModel, LeVLJEPAForImageClassification])
def test_bitsandbytes(model_class, bits, least, processor, images, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    config = LeVLJEPAConfig.from_preset(
        "debug", vision_config={"hidden_size": 64, "intermediate_size": 128}, text_config={"n_embd": 64}
    )
    torch.manual_seed(0)
    whole = LeVLJEPAModel(config).eval()
    whole.save_pretrained(tmp_path)
    quantized = model_class.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    ).eval()
    layer = bitsandbytes.nn.Linear8bitLt if bits == 8 else bitsandbytes.nn.Linear4bit
    vision = quantized if model_class is LeVLJEPAVisionModel else quantized.vision_model
    assert isinstance(vision.timm_model.blocks[0].attn.qkv, layer)
    inputs = processor(images=images, text=["a cat", "two dogs run", "rain", "a house"], return_tensors="pt")
    features = vision(inputs["pixel_values"]).last_hidden_state
    expected = whole.vision_model(inputs["pixel_values"]).last_hidden_state
    assert F.cosine_similarity(features, expected, dim=-1).min() > least
    assert torch.equal(vision.timm_model.pos_embed, whole.vision_model.timm_model.pos_embed)
    if model_class is LeVLJEPAModel:
        outputs = quantized(**inputs)
        cosines = (outputs.logits_per_image - whole(**inputs).logits_per_image) / config.logit_scale
        assert cosines.abs().max() < (0.01 if bits == 8 else 0.1) and outputs.loss.isfinite()


# --- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "num_tokens"),
    [
        ("vit_tiny_patch16_224", 1 + 24),
        ("vit_small_patch14_reg4_dinov2", 5 + 24),
        ("vit_base_patch16_siglip_224", 24),
        ("deit_tiny_distilled_patch16_224", 2 + 24),
    ],
)
def test_attention_maps_of_every_block(architecture, num_tokens, pixels):
    model = tower(architecture)
    expected = model(pixels).last_hidden_state
    model.set_attn_implementation("eager")
    outputs = model(pixels, output_attentions=True)
    torch.testing.assert_close(outputs.last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    assert [a.shape for a in outputs.attentions] == [(2, 2, num_tokens, num_tokens)] * 3
    vit = model.timm_model
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixels)))
    for block, attention in zip(vit.blocks, outputs.attentions, strict=True):
        q, k, _ = block.attn.qkv(block.norm1(x)).reshape(2, num_tokens, 3, 2, 16).permute(2, 0, 3, 1, 4)
        torch.testing.assert_close(attention, (q @ k.transpose(-2, -1) / 4).softmax(-1), atol=1e-5, rtol=1e-4)
        x = block(x)
    assert model(pixels).attentions is None and not vit.blocks[0].attn.attn_drop._forward_pre_hooks

    model.config.output_attentions = True
    assert len(model(pixels).attentions) == 3
    outputs = model.train()(pixels)
    outputs.attentions[0][..., 0].sum().backward()
    assert vit.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_attention_maps_of_the_backbone_and_the_whole_model(config, model, inputs):
    model.set_attn_implementation("eager")
    outputs = model(**inputs, output_attentions=True)
    attentions = outputs.vision_model_output.attentions
    assert [a.shape for a in attentions] == [(4, 2, 17, 17)] * 2 and len(outputs.text_model_output.attentions) == 2
    backbone = LeVLJEPABackbone._from_config(config.vision_config, attn_implementation="eager").eval()
    backbone.vision_model.load_state_dict(model.vision_model.state_dict())
    torch.testing.assert_close(backbone(inputs["pixel_values"], output_attentions=True).attentions, attentions)


def test_attention_maps_where_there_are_none(pixels):
    model = tower()
    with pytest.raises(ValueError, match="'sdpa', which has no attention maps: .*attn_implementation=\"eager\""):
        model(pixels, output_attentions=True)
    model.set_attn_implementation("eager")
    model.train().gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing, .*gradient_checkpointing_disable"):
        model(pixels, output_attentions=True)
    assert len(model.eval()(pixels, output_attentions=True).attentions) == 3
    for architecture in ("vit_small_patch16_18x2_224", "vit_base_patch16_xp_224"):
        other = LeVLJEPAVisionModel._from_config(vision_config(architecture), attn_implementation="eager")
        with pytest.raises(ValueError, match=f"architecture='{architecture}', whose blocks"):
            other(pixels, output_attentions=True)


@torch.no_grad()
def test_attention_maps_of_a_compiled_tower(pixels):
    model = tower()
    model.set_attn_implementation("eager")
    expected = model(pixels, output_attentions=True).attentions
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(pixels, output_attentions=True).attentions, expected)


def test_attention_implementations_by_tower(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    eager = {"vision_config": "eager", "text_config": "sdpa"}
    loaded = LeVLJEPAModel.from_pretrained(tmp_path, attn_implementation=eager)
    assert loaded.config.vision_config._attn_implementation == "eager"
    assert loaded.config.text_config._attn_implementation == "sdpa"
    torch.testing.assert_close(
        loaded(**inputs).logits_per_image, model(**inputs).logits_per_image, atol=1e-4, rtol=1e-4
    )


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_flash_attention_is_for_the_text_tower(model, tmp_path):
    model.save_pretrained(tmp_path)
    for model_class in (LeVLJEPAModel, LeVLJEPAVisionModel, LeVLJEPAForImageClassification):
        with pytest.raises(ValueError, match='"text_config": \'flash_attention_2\'.*vision tower keeps "sdpa"'):
            model_class.from_pretrained(tmp_path, attn_implementation="flash_attention_2")
    with pytest.raises(ValueError, match="for the text tower alone"):
        model.set_attn_implementation("flash_attention_2")
    with pytest.raises(ImportError, match="FlashAttention2"):  # reached GPT-2, which asks for the package
        LeVLJEPAModel.from_pretrained(tmp_path, attn_implementation={"text_config": "flash_attention_2"})
    with pytest.raises(ImportError, match="FlashAttention2"):
        LeVLJEPATextModel.from_pretrained(tmp_path, attn_implementation="flash_attention_2")
    with pytest.raises(ValueError, match="not supported"):
        model.set_attn_implementation("fast")


# --- heads of transformers on the backbone --------------------------------------------------------------------------

NECK = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8, "head_hidden_size": 8}


def backbone_config(**kwargs) -> LeVLJEPAVisionConfig:
    kwargs = {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], **kwargs}
    return vision_config("vit_small_patch14_reg4_dinov2", **kwargs)


def _dpt() -> PreTrainedModel:
    config = backbone_config(reshape_hidden_states=False)
    return DPTForDepthEstimation(DPTConfig(backbone_config=config, **NECK, readout_type="project", hidden_size=32))


def _depth_anything() -> PreTrainedModel:
    config = backbone_config(reshape_hidden_states=False)
    return DepthAnythingForDepthEstimation(
        DepthAnythingConfig(backbone_config=config, **NECK, patch_size=8, reassemble_hidden_size=32)
    )


def _upernet() -> PreTrainedModel:
    return UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=backbone_config(),
            hidden_size=8,
            auxiliary_in_channels=32,
            num_labels=3,
            pool_scales=[1, 2],
        )
    )


@pytest.mark.parametrize("head", [_dpt, _depth_anything, _upernet], ids=lambda head: head.__name__)
def test_heads_of_transformers_train_and_reload(head: Callable, pixels, tmp_path):
    torch.manual_seed(0)
    model = head()
    prediction = model(pixels)[0]
    assert prediction.shape[0] == 2 and prediction.isfinite().all()
    prediction.square().mean().backward()
    grads = {name: p.grad for name, p in model.backbone.named_parameters()}
    assert grads["vision_model.timm_model.patch_embed.proj.weight"].abs().sum() > 0
    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert loaded.config.backbone_config.reshape_hidden_states is (head is _upernet)
    torch.testing.assert_close(loaded(pixels)[0], model(pixels)[0])


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("reshaped", [True, False])
def test_feature_maps_as_the_configuration_says(reshaped, normed, pixels):
    torch.manual_seed(0)
    config = backbone_config(out_indices=[0, 2, 4], reshape_hidden_states=reshaped, apply_layernorm=normed)
    backbone = LeVLJEPABackbone(config).eval()
    torch.nn.init.normal_(backbone.vision_model.timm_model.norm.bias)
    maps = backbone(pixels).feature_maps
    hidden_states = backbone.vision_model(pixels, output_hidden_states=True).hidden_states
    for feature_map, index in zip(maps, (0, 2, 4), strict=True):
        expected = hidden_states[index]  # (2, 1 + 24, 32)
        if normed:
            expected = backbone.vision_model.timm_model.norm(expected)
        if reshaped:
            expected = expected[:, 1:].transpose(1, 2).reshape(2, 32, 4, 6)
        torch.testing.assert_close(feature_map, expected)


def test_a_backbone_told_to_return_tuples(pixels):
    backbone = LeVLJEPABackbone(backbone_config(return_dict=False)).eval()
    assert [m.shape for m in backbone(pixels)[0]] == [(2, 32, 4, 6)] * 4


def test_tokens_need_a_class_token():
    config = vision_config("vit_base_patch16_siglip_224", reshape_hidden_states=False)
    with pytest.raises(
        ValueError, match="reshape_hidden_states=False with architecture='vit_base_patch16_siglip_224'"
    ):
        LeVLJEPABackbone(config)


# --- LoRA -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_lora_keeps_the_heads(model, inputs, tmp_path):
    """The heads are trained whole and saved with the adapter: their BatchNorm statistics are no weights of LoRA's."""
    peft = pytest.importorskip("peft")
    model.save_pretrained(tmp_path / "base")
    heads = ["vision_projection", "text_projection", "vision_predictor", "text_predictor"]
    lora = peft.LoraConfig(r=4, target_modules="all-linear", modules_to_save=heads)
    tuned = peft.get_peft_model(model, lora).train()
    adapted = {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in tuned.named_parameters() if "lora_A" in name}
    with pytest.raises(ValueError, match="batch of one in training mode"):
        tuned(**{name: tensor[:1] for name, tensor in inputs.items()})
    assert adapted == {"qkv", "proj", "fc1", "fc2", "c_attn", "c_proj", "c_fc"}
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    before = tuned.eval()(**inputs).logits_per_image
    for _ in range(3):
        tuned.train()(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = tuned.eval()(**inputs).logits_per_image
    assert (expected - before).abs().max() > 1
    tuned.save_pretrained(tmp_path / "adapter")

    base = LeVLJEPAModel.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(**inputs).logits_per_image, expected)
    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = LeVLJEPAModel.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(**inputs).logits_per_image, expected, atol=1e-3, rtol=1e-3)


# --- sentence-transformers ------------------------------------------------------------------------------------------


def test_sentence_transformers_scores_the_avg_readout(model, processor, images, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6.0")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    captions = ["a cat on a mat", "two dogs run along the beach", ""]
    with torch.no_grad():
        expected = model(**processor(images=images, text=captions, return_tensors="pt")).logits_per_image / 20

    encoder = sentence_transformers.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    encoder.save(str(tmp_path / "again"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "again"), device="cpu")
    for loaded in (encoder, again):
        image_embeddings = loaded.encode(images, convert_to_tensor=True)
        text_embeddings = loaded.encode(captions, convert_to_tensor=True)
        torch.testing.assert_close(loaded.similarity(image_embeddings, text_embeddings), expected)
        torch.testing.assert_close(image_embeddings @ text_embeddings.T / 2, expected)
        assert loaded.get_embedding_dimension() == image_embeddings.shape[1] == 2 * model.config.projection_dim
    assert isinstance(AutoModel.from_pretrained(tmp_path / "model"), LeVLJEPAModel)
    assert type(AutoProcessor.from_pretrained(tmp_path / "model")) is type(processor)
