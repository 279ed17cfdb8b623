"""The models against references written here: the loss and its gradients, stop-gradient, pooling, sizes,
initialisation, attention and compilation, frozen towers, save and reload, bad input."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import MLP
from transformers import AutoModel, GPT2Config, GPT2Model

import levljepa_hf
from levljepa_hf import (
    LeVLJEPABackbone,
    LeVLJEPAConfig,
    LeVLJEPAForImageClassification,
    LeVLJEPAForSemanticSegmentation,
    LeVLJEPAModel,
    LeVLJEPATextConfig,
    LeVLJEPATextModel,
    LeVLJEPAVisionConfig,
    LeVLJEPAVisionModel,
    SIGReg,
    similarity,
)
from levljepa_hf.model.prediction_levljepa import prediction_distance


def plain_sigreg(z: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """SIGReg as the paper writes it, term by term."""
    num_samples, knots = z.shape[0], torch.linspace(0, 3, 17, dtype=z.dtype)
    phi = torch.exp(-knots.square() / 2)
    weights = torch.full_like(knots, 2 * 3 / 16)
    weights[0] = weights[-1] = 3 / 16
    x = (z @ directions)[:, :, None] * knots
    error = (x.cos().mean(0) - phi).square() + x.sin().mean(0).square()
    return num_samples * (error * weights * phi).sum(-1).mean()


def plain_loss(model: LeVLJEPAModel, inputs: dict, directions: torch.Tensor, loss_type: str) -> torch.Tensor:
    """The training loss written as in the paper, from the model's parts."""
    z_v = model.vision_projection(model.vision_model(inputs["pixel_values"]).last_hidden_state[:, 0])
    hidden = model.text_model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    lengths = inputs["attention_mask"].sum(1)
    z_t = model.text_projection(hidden[torch.arange(len(hidden)), lengths - 1])
    zhat_t, zhat_v = model.vision_predictor(z_v), model.text_predictor(z_t)

    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if loss_type == "mse":
            return ((a - b) ** 2).mean()
        return (2 - 2 * (F.normalize(a, dim=1) * F.normalize(b, dim=1)).sum(1)).mean()

    prediction = 0.5 * (distance(zhat_t, z_t.detach()) + distance(zhat_v, z_v.detach()))
    return 0.83 * prediction + 0.05 * plain_sigreg(z_v, directions) + 0.12 * plain_sigreg(z_t, directions)


@pytest.mark.parametrize("loss_type", ["mse", "cosine"])
def test_loss_and_every_gradient_equal_the_plain_equations(model, inputs, monkeypatch, loss_type):
    model = model.double().train()
    model.config.prediction_loss_type = loss_type
    model.config.sigreg_vision_weight, model.config.sigreg_text_weight = 0.05, 0.12
    inputs["pixel_values"] = inputs["pixel_values"].double()
    directions = F.normalize(torch.randn(16, 64, dtype=torch.float64), dim=0)
    reference = copy.deepcopy(model)
    original = SIGReg.forward
    calls = []

    def with_directions(self, z, *args, **kwargs):
        calls.append(z.shape)
        return original(self, z, directions.to(z.dtype))

    monkeypatch.setattr(SIGReg, "forward", with_directions)
    outputs = model(**inputs)
    outputs.loss.backward()
    plain = plain_loss(reference, inputs, directions, loss_type)
    plain.backward()

    assert len(calls) == 2
    assert outputs.loss.dtype == torch.float64
    assert outputs.loss.item() == pytest.approx(plain.item(), rel=1e-12)
    expected = {name: p.grad for name, p in reference.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_loss_is_the_weighted_sum_of_its_named_terms(model, inputs):
    outputs = model(**inputs)
    expected = 0.96 * outputs.prediction_loss + 0.02 * outputs.sigreg_vision + 0.02 * outputs.sigreg_text
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert outputs.loss.dtype == torch.float32


def test_prediction_loss_sends_no_gradient_through_its_targets():
    prediction, target = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    for loss_type in ("mse", "cosine"):
        prediction_distance(prediction, target, loss_type).backward()
        assert target.grad is None and prediction.grad.abs().sum() > 0


@pytest.mark.parametrize("loss_type", ["mse", "cosine"])
def test_without_stop_gradient_the_targets_move_too(config, inputs, loss_type):
    """What autograd gives of the plain equation, which has no `detach`; the loss itself is the same."""
    config.prediction_loss_type = loss_type
    torch.manual_seed(0)
    model = LeVLJEPAModel(config).double()
    z_v, z_t, zhat_t, zhat_v = (torch.randn(5, config.projection_dim, dtype=torch.float64) for _ in range(4))
    terms = {}
    for model.config.stop_gradient in (True, False):
        leaves = [one.clone().requires_grad_() for one in (z_v, z_t, zhat_t, zhat_v)]
        loss = model.compute_loss(*leaves)["prediction_loss"]
        terms[model.config.stop_gradient] = loss.item(), torch.autograd.grad(loss, leaves, allow_unused=True)
    assert terms[True][0] == terms[False][0] and terms[True][1][:2] == (None, None)
    leaves = [one.clone().requires_grad_() for one in (z_v, z_t, zhat_t, zhat_v)]
    plain = (
        sum((p - z).square().mean() for p, z in ((leaves[2], leaves[1]), (leaves[3], leaves[0]))) / 2
        if loss_type == "mse"
        else sum(
            (2 - 2 * F.cosine_similarity(p, z)).mean() for p, z in ((leaves[2], leaves[1]), (leaves[3], leaves[0]))
        )
        / 2
    )
    for grad, expected in zip(terms[False][1], torch.autograd.grad(plain, leaves), strict=True):
        torch.testing.assert_close(grad, expected)


def test_without_sigreg_each_tower_learns_from_its_own_branch_only(model, inputs):
    """With lv = lt = 0 and the image branch's predictor frozen at zero slope, the vision tower gets no gradient."""
    model.config.sigreg_vision_weight = model.config.sigreg_text_weight = 0.0
    torch.nn.init.zeros_(model.vision_predictor[-2].weight)
    model.train()(**inputs).loss.backward()
    vision = sum(p.grad.abs().sum() for p in model.vision_model.parameters() if p.grad is not None)
    text = sum(p.grad.abs().sum() for p in model.text_model.parameters() if p.grad is not None)
    assert vision == 0 and text > 0


def test_padding_side_and_length_do_not_change_text_features(model, processor):
    captions = ["a cat on a mat", "rain", "two dogs run along the beach at sunset"]
    tokenizer = processor.tokenizer
    right = model.get_text_features(
        **tokenizer(captions, padding=True, return_tensors="pt"), output_hidden_states=True
    )
    to_77 = model.get_text_features(**tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt"))
    left_batch = tokenizer(captions, padding=True, padding_side="left", return_tensors="pt")
    left = model.get_text_features(**left_batch, output_hidden_states=True)
    alone = [model.get_text_features(**tokenizer([c], return_tensors="pt")).pooler_output for c in captions]

    torch.testing.assert_close(right.pooler_output, torch.cat(alone), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(right.pooler_output, to_77.pooler_output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(right.pooler_output, left.pooler_output, atol=1e-5, rtol=1e-5)
    # Token outputs keep the order of the input.
    for i, length in enumerate(left_batch.attention_mask.sum(1).tolist()):
        torch.testing.assert_close(
            left.last_hidden_state[i, -length:], right.last_hidden_state[i, :length], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            left.hidden_states[1][i, -length:], right.hidden_states[1][i, :length], atol=1e-5, rtol=1e-5
        )


def test_similarity_readouts():
    torch.manual_seed(0)
    z_v, zhat_t, z_t, zhat_v = (torch.randn(n, 6) for n in (3, 3, 4, 4))

    def cosine(a, b):
        return F.cosine_similarity(a[:, None], b[None], dim=-1)

    expected = {
        "zeroshot": cosine(z_v, z_t),
        "proj": cosine(zhat_t, z_t),
        "proj_text": cosine(z_v, zhat_v),
        "avg": (cosine(zhat_t, z_t) + cosine(z_v, zhat_v)) / 2,
        "predictor_pair": cosine(zhat_t, zhat_v),
    }
    for readout, reference in expected.items():
        torch.testing.assert_close(similarity(z_v, z_t, zhat_t, zhat_v, readout), reference)
    with pytest.raises(ValueError, match="no predictors: use 'zeroshot'"):
        similarity(z_v, z_t)
    with pytest.raises(ValueError, match="Unknown readout 'best'"):
        similarity(z_v, z_t, zhat_t, zhat_v, "best")


def test_logits_are_the_scaled_avg_readout(model, inputs):
    out = model(**inputs)
    expected = 20 * similarity(
        out.image_embeds, out.text_embeds, out.predicted_text_embeds, out.predicted_image_embeds
    )
    torch.testing.assert_close(out.logits_per_image, expected)
    torch.testing.assert_close(out.logits_per_text, expected.T)


def test_without_predictors_the_embeddings_are_compared_themselves(inputs):
    model = LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug", predictor_num_layers=0)).eval()
    out = model(**inputs)
    assert out.predicted_text_embeds is None and out.predicted_image_embeds is None
    torch.testing.assert_close(
        out.logits_per_image, 20 * similarity(out.image_embeds, out.text_embeds, readout="zeroshot")
    )
    torch.testing.assert_close(out.prediction_loss, F.mse_loss(out.image_embeds, out.text_embeds))
    out.loss.backward()
    assert model.vision_projection[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("fields", [{}, {"predictor_num_layers": 0}], ids=["predictors", "none"])
def test_retrieval_features_have_the_readout_as_their_cosine(fields, inputs):
    model = LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug", **fields)).eval()
    texts = {name: inputs[name][:3] for name in ("input_ids", "attention_mask")}
    images = model.get_image_retrieval_features(inputs["pixel_values"]).pooler_output
    captions = model.get_text_retrieval_features(**texts).pooler_output
    out = model(pixel_values=inputs["pixel_values"], **texts)
    cosine = F.cosine_similarity(images[:, None], captions[None], dim=-1)
    torch.testing.assert_close(cosine, out.logits_per_image / model.config.logit_scale)
    torch.testing.assert_close(model.get_image_retrieval_features(inputs["pixel_values"])[0].squeeze(1), images)
    for side, halves in ((images, ("predicted_text", "image")), (captions, ("text", "predicted_image"))):
        embeds = [out[f"{half}_embeds"] for half in halves if f"{half}_embeds" in out]
        torch.testing.assert_close(side, torch.cat([F.normalize(z, dim=-1) for z in embeds], dim=-1))
    torch.testing.assert_close(model.get_text_retrieval_features(**texts).last_hidden_state.squeeze(1), captions)
    for half in images.unflatten(1, (-1, 16)).unbind(1):
        torch.testing.assert_close(half.norm(dim=-1), torch.ones(4))


# --- heads and predictors -------------------------------------------------------------------------------------------

HEADS = {
    "official": {},
    "widths of their own": {"head_hidden_size": 24, "predictor_hidden_size": 40},
    "deep head": {"head_hidden_size": 24, "head_num_layers": 3, "predictor_num_layers": 1},
    "lists": {"head_hidden_size": [24, 20], "predictor_hidden_size": [40, 12, 8]},
    "linear": {"head_num_layers": 0, "predictor_hidden_size": []},
}


def official_predictor(dim: int, hidden_sizes: list[int], dropout: float) -> MLP:
    return MLP(dim, [*hidden_sizes, dim], norm_layer=nn.BatchNorm1d, activation_layer=nn.GELU, dropout=dropout)


@pytest.mark.parametrize("case", HEADS)
def test_heads_and_predictors_are_the_official_ones(case, inputs, tmp_path):
    config = LeVLJEPAConfig.from_preset("debug", predictor_dropout=0.3, **HEADS[case])
    model = LeVLJEPAModel(config).train()
    for predictor in (model.vision_predictor, model.text_predictor):
        official = official_predictor(16, config.predictor_hidden_sizes, dropout=0.3)
        official.load_state_dict(predictor.state_dict())
        z = torch.randn(50, 16)
        torch.manual_seed(1)
        ours = predictor(z)
        torch.manual_seed(1)
        torch.testing.assert_close(ours, official(z))  # the same dropout masks, the last one of the output
        assert 0.15 < (ours == 0).float().mean() < 0.45

    linears = [module for module in model.text_projection if isinstance(module, nn.Linear)]
    assert [linear.out_features for linear in linears] == [*config.head_hidden_sizes, 16]
    model(**inputs).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.save_pretrained(tmp_path)
    loaded, info = LeVLJEPAModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and loaded.config.predictor_hidden_sizes == config.predictor_hidden_sizes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"predictor_hidden_size": [8, 8], "predictor_num_layers": 3}, "has 2 widths, but predictor_num_layers=3"),
        ({"head_num_layers": -1}, "head_num_layers=-1 is negative: 0 means a linear head"),
        ({"head_hidden_size": [8]}, "predictor_hidden_size=None would repeat: give predictor_hidden_size"),
        ({"head_hidden_size": [8, 0], "predictor_hidden_size": 8}, "head_hidden_size=.8, 0. must be at least 1"),
        ({"predictor_dropout": 1.0}, "predictor_dropout=1.0 must be at least 0 and less than 1"),
        ({"text_readout": "last"}, "text_readout='last' is unknown: use one of eot, pad77"),
    ],
)
def test_bad_heads_and_readouts(fields, message):
    with pytest.raises(ValueError, match=message):
        LeVLJEPAConfig.from_preset("debug", **fields)


def test_sigreg_fields_reach_the_module():
    fields = {"num_directions": 7, "num_knots": 5, "t_max": 2.5, "sample_size_scale": 64.0, "distributed": False}
    config = LeVLJEPAConfig.from_preset("debug", **{f"sigreg_{name}": value for name, value in fields.items()})
    sigreg = LeVLJEPAModel(config).sigreg
    assert {name: getattr(sigreg, name) for name in fields} == fields
    z = torch.randn(20, 16)
    expected = SIGReg(**fields).eval()(z)
    torch.testing.assert_close(sigreg.eval()(z), expected)


# --- captions -------------------------------------------------------------------------------------------------------


def test_a_caption_without_a_mask_has_no_padding(model, inputs):
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    bare = model.get_text_features(ids)
    torch.testing.assert_close(bare.pooler_output, model.get_text_features(ids, torch.ones_like(mask)).pooler_output)
    assert not torch.allclose(bare.pooler_output, model.get_text_features(ids, mask).pooler_output)


@pytest.mark.parametrize("padding", [(2, 0), (0, 2), (1, 1)], ids=["left", "right", "both"])
def test_given_positions_follow_their_tokens_under_padding(model, padding):
    ids, positions = torch.tensor([[5, 6, 7]]), torch.tensor([[4, 9, 11]])
    expected = model.text_model(ids, position_ids=positions).last_hidden_state
    bare = model.encode_text(ids, position_ids=positions)
    mask = F.pad(torch.ones_like(ids), padding)
    padded = model.encode_text(F.pad(ids, padding, value=50256), mask, position_ids=F.pad(positions, padding, value=1))
    for ours, tokens in ((bare, bare.last_hidden_state), (padded, padded.last_hidden_state[:, padding[0] :][:, :3])):
        torch.testing.assert_close(ours.pooler_output, expected[:, -1])
        torch.testing.assert_close(tokens, expected)


def test_pad77_reads_the_last_of_77_positions(model):
    model.config.text_readout = "pad77"
    ids = torch.full((2, 77), 50256)
    ids[0, :3], ids[1] = torch.tensor([5, 6, 7]), torch.arange(77)
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    expected = model.text_model(input_ids=ids, attention_mask=mask).last_hidden_state[:, -1]
    torch.testing.assert_close(model.encode_text(ids, mask).pooler_output, expected)
    torch.testing.assert_close(model.get_text_features(ids, mask).pooler_output, model.text_projection(expected))
    # Clients that pad to the longest caption get the same.
    for short, of_tokens in ((ids[:1, :5], mask[:1, :5]), (ids[:1, :3], None)):
        torch.testing.assert_close(model.encode_text(short, of_tokens).pooler_output, expected[:1])
    for wrong in ({"input_ids": ids.repeat(1, 2)}, {"input_ids": ids[:, :7], "position_ids": torch.arange(7)[None]}):
        with pytest.raises(ValueError, match=r'have (154|7) tokens, but text_readout="pad77".*max_length=77'):
            model.encode_text(**wrong)


def test_attention_maps_of_captions(config, processor, tmp_path):
    model = LeVLJEPAModel._from_config(config, attn_implementation="eager").eval()
    batch = processor.tokenizer(
        ["a cat", "two dogs on the beach"], padding=True, padding_side="left", return_tensors="pt"
    )
    outputs = model.get_text_features(**batch, output_attentions=True)
    alone = model.get_text_features(batch.input_ids[:1, -3:], output_attentions=True)
    for maps, expected in zip(outputs.attentions, alone.attentions, strict=True):
        torch.testing.assert_close(maps[:1, :, -3:, -3:], expected)
    model = LeVLJEPAModel._from_config(config, attn_implementation="sdpa")
    with pytest.raises(ValueError, match='attn_implementation=.sdpa. never makes.*attn_implementation="eager"'):
        model.get_text_features(**batch, output_attentions=True)


# --- vision tower ---------------------------------------------------------------------------------------------------


def small_vit(**kwargs) -> LeVLJEPAVisionConfig:
    defaults = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    return LeVLJEPAVisionConfig(**{**defaults, **kwargs})


def test_vision_tower_equals_timm():
    torch.manual_seed(0)
    model = LeVLJEPAVisionModel(small_vit(architecture="vit_base_patch16_224")).eval()
    reference = timm.create_model(
        "vit_base_patch16_224",
        num_classes=0,
        dynamic_img_size=True,
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
    ).eval()
    reference.load_state_dict(model.timm_model.state_dict())
    pixels = torch.randn(2, 3, 32, 48)
    outputs = model(pixels, output_hidden_states=True)
    torch.testing.assert_close(outputs.last_hidden_state, reference.forward_features(pixels), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.pooler_output, reference(pixels), atol=1e-5, rtol=1e-5)
    assert [h.shape for h in outputs.hidden_states] == [(2, 1 + 4 * 6, 32)] * 3
    torch.testing.assert_close(model.timm_model.norm(outputs.hidden_states[-1]), outputs.last_hidden_state)


def test_hidden_states_by_index_as_llava_asks(model, inputs):
    vision = model.vision_model
    everything = vision(inputs["pixel_values"], output_hidden_states=True).hidden_states
    some = vision(inputs["pixel_values"], output_hidden_states=-2).hidden_states
    torch.testing.assert_close(some[-2], everything[-2])
    assert some[0] is None and len(some) == len(everything)


@pytest.mark.parametrize(
    ("architecture", "size", "patches"),
    [
        ("vit_tiny_patch16_224", 224, 14 * 14),
        ("vit_small_patch32_384", 384, 12 * 12),
        ("vit_small_patch14_dinov2", 518, 37 * 37),
        ("vit_small_patch14_reg4_dinov2", 518, 37 * 37),
        ("vit_small_patch8_224", 224, 28 * 28),
        ("deit3_small_patch16_224", 224, 14 * 14),
    ],
)
def test_any_timm_vit(architecture, size, patches):
    """Registers are left out of the outputs: a class token, then the patches."""
    config = LeVLJEPAVisionConfig(architecture=architecture, num_hidden_layers=1)
    assert config.image_size == size and config.hidden_size in (192, 384)
    model = LeVLJEPAVisionModel(config).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, size, size)).last_hidden_state.shape == (1, 1 + patches, config.hidden_size)
        side = 5 * config.patch_size
        assert model(torch.randn(1, 3, side, 2 * side)).last_hidden_state.shape[1] == 1 + 50
    intermediate = model.timm_model.blocks[0].mlp.fc1.out_features
    assert intermediate == config.intermediate_size


def test_config_fields_drive_timm():
    config = small_vit(
        architecture="vit_base_patch16_224", intermediate_size=100, num_register_tokens=3, drop_path_rate=0.1
    )
    vit = LeVLJEPAVisionModel(config).timm_model
    assert (vit.embed_dim, len(vit.blocks), vit.num_reg_tokens, vit.blocks[0].mlp.fc1.out_features) == (32, 2, 3, 100)
    assert vit.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    assert LeVLJEPAVisionConfig(architecture="vit_small_patch16_224").hidden_size == 384


def test_backbone_gives_normalised_patch_maps(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    backbone = LeVLJEPABackbone.from_pretrained(tmp_path, out_indices=[1, 2])
    maps = backbone(inputs["pixel_values"]).feature_maps
    patches = model.vision_model(inputs["pixel_values"]).last_hidden_state[:, 1:]
    torch.testing.assert_close(maps[-1], patches.transpose(1, 2).reshape(4, 32, 4, 4))
    assert [m.shape for m in maps] == [(4, 32, 4, 4)] * 2 and backbone.channels == [32, 32]


@pytest.mark.parametrize("void", [255, 2])
def test_segmentation_loss_upsamples_and_leaves_void_out(config, void):
    config.num_labels, config.semantic_loss_ignore_index = 3, void
    torch.manual_seed(0)
    model = LeVLJEPAForSemanticSegmentation(config).eval()
    pixels, labels = torch.randn(2, 3, 32, 48), torch.randint(0, 3, (2, 30, 50))
    labels[:, :10] = void
    out = model(pixels, labels)
    assert out.logits.shape == (2, 3, 4, 6)
    upsampled = F.interpolate(out.logits, size=(30, 50), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(upsampled, labels, ignore_index=void)
    torch.testing.assert_close(out.loss, expected)
    assert model(pixels, torch.full((2, 30, 50), void)).loss == 0


def test_classification_reads_the_class_token(config):
    config.num_labels = 3
    model = LeVLJEPAForImageClassification(config).eval()
    pixels, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    out = model(pixels, labels)
    torch.testing.assert_close(out.logits, model.classifier(model.vision_model(pixels).last_hidden_state[:, 0]))
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, labels))
    model.config.problem_type = "multi_label_classification"
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    expected = F.binary_cross_entropy_with_logits(out.logits, targets)
    torch.testing.assert_close(model(pixels, targets).loss, expected)


# --- initialisation -------------------------------------------------------------------------------------------------


def test_fresh_model_has_the_official_distributions():
    torch.manual_seed(0)
    config = LeVLJEPAConfig.from_preset("tiny", vision_config={"num_hidden_layers": 3}, text_config={"n_layer": 3})
    model = LeVLJEPAModel(config)
    vit, gpt2 = model.vision_model.timm_model, model.text_model
    assert vit.blocks[1].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert vit.blocks[1].mlp.fc1.weight.abs().max() > 0.06 and vit.blocks[0].attn.qkv.bias.abs().max() == 0
    assert vit.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert vit.cls_token.std().item() == pytest.approx(1e-6, rel=0.5)
    fan_in = vit.patch_embed.proj.weight[0].numel()
    assert vit.patch_embed.proj.weight.abs().max() <= fan_in**-0.5 and vit.patch_embed.proj.bias.abs().max() > 0
    assert gpt2.wte.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert gpt2.h[0].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * 3), rel=0.05)
    linear = model.vision_projection[0]
    assert linear.weight.std().item() == pytest.approx(192**-0.5 / math.sqrt(3), rel=0.05)
    assert 0.9 * 192**-0.5 < linear.bias.abs().max() <= 192**-0.5


def test_weight_init_is_timms_also_of_missing_weights():
    config = LeVLJEPAConfig.from_preset("debug", vision_config={"hidden_size": 96, "weight_init": "jax"})
    xavier = (6 / (96 + config.vision_config.intermediate_size)) ** 0.5  # the bound of the uniform distribution
    model = LeVLJEPAModel(config)
    kept = {name: tensor for name, tensor in model.state_dict().items() if "blocks.1" not in name}
    loaded = LeVLJEPAModel.from_pretrained(None, config=config, state_dict=kept)
    for one in (model, loaded):
        weight = one.vision_model.timm_model.blocks[1].mlp.fc1.weight
        assert 0.95 * xavier < weight.abs().max() <= xavier
    assert LeVLJEPAConfig.from_preset("debug").vision_config.weight_init == ""
    with pytest.raises(ValueError, match="weight_init='xavier' is unknown: use one of '', 'jax', 'moco'"):
        LeVLJEPAConfig.from_preset("debug", vision_config={"weight_init": "xavier"})


def test_missing_weights_get_the_same_distributions():
    """Loading builds the model on the meta device, where timm's initialisation is lost."""
    torch.manual_seed(0)
    config = LeVLJEPAConfig.from_preset("tiny", vision_config={"num_hidden_layers": 2}, text_config={"n_layer": 2})
    model = LeVLJEPAModel(config)
    state = model.state_dict()
    missing = (
        "vision_model.timm_model.blocks.1",
        "vision_model.timm_model.pos_embed",
        "vision_projection",
        "text_model",
    )
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(missing)}
    loaded = LeVLJEPAModel.from_pretrained(None, config=config, state_dict=kept)
    vit = loaded.vision_model.timm_model
    torch.testing.assert_close(
        vit.blocks[0].attn.qkv.weight, state["vision_model.timm_model.blocks.0.attn.qkv.weight"]
    )
    assert vit.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert vit.blocks[1].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert vit.blocks[1].norm1.weight.min() == 1
    assert loaded.text_model.h[0].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * 2), rel=0.05)
    assert loaded.vision_projection[0].weight.std().item() == pytest.approx(192**-0.5 / math.sqrt(3), rel=0.05)
    assert loaded.sigreg.step == 0


def test_presets():
    base, released = LeVLJEPAConfig.from_preset("base"), LeVLJEPAConfig.from_preset("released")
    assert [LeVLJEPAConfig.from_preset(p).projection_dim for p in ("tiny", "small", "base")] == [192, 384, 768]
    assert released.projection_dim == 256 and released.vision_config.to_dict() == base.vision_config.to_dict()
    assert base.vision_config.hidden_size == base.text_config.hidden_size == 768 and base.projection_dim == 768
    assert base.prediction_weight == pytest.approx(0.96)
    assert base.head_hidden_sizes == [2048] and base.predictor_hidden_sizes == [2048] * 4
    assert [LeVLJEPAConfig.from_preset(p).text_config.n_head for p in ("tiny", "small", "base")] == [3, 6, 12]
    for text in (base.text_config, LeVLJEPATextConfig()):
        assert text.resid_pdrop == text.attn_pdrop == text.embd_pdrop == 0 and not text.use_cache
    with pytest.raises(ValueError, match="Unknown preset 'huge': use one of debug, tiny"):
        LeVLJEPAConfig.from_preset("huge")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"projecton_dim": 8}, "projecton_dim is no field of LeVLJEPAConfig. Did you mean 'projection_dim'"),
        (
            {"vision_config": {"num_layers": 1}},
            "vision_config.num_layers is no field.*'vision_config.num_hidden_layers'",
        ),
        ({"text_config": {"n_heads": 1}}, "text_config.n_heads is no field of GPT2Config.*text_config.n_head"),
        ({"a.b": {"c": 1}}, "a.b is no field of LeVLJEPAConfig"),
        ({"prediction_weight": 0.5}, "prediction_weight is no field of LeVLJEPAConfig"),  # follows from others
    ],
)
def test_unknown_fields_of_a_preset(overrides, message):
    with pytest.raises(ValueError, match=message):
        LeVLJEPAConfig.from_preset("debug", **overrides)


def test_a_preset_takes_every_kind_of_field():
    overrides = {"num_labels": 3, "vision_config": {"out_features": ["stage1"]}, "text_config": {"hidden_size": 64}}
    config = LeVLJEPAConfig.from_preset("debug", attn_implementation="eager", **overrides)
    assert config._attn_implementation == config.vision_config._attn_implementation == "eager"
    assert (config.num_labels, config.text_config.n_embd) == (3, 64)
    assert config.vision_config.out_features == ["stage1"]


# --- what users switch on -------------------------------------------------------------------------------------------


def test_attention_implementations_agree(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    eager = LeVLJEPAModel.from_pretrained(tmp_path, attn_implementation="eager")
    sdpa = LeVLJEPAModel.from_pretrained(tmp_path, attn_implementation="sdpa")
    out = eager(**inputs)
    assert not eager.vision_model.timm_model.blocks[0].attn.fused_attn
    torch.testing.assert_close(out.logits_per_image, sdpa(**inputs).logits_per_image, atol=1e-4, rtol=1e-4)
    assert sdpa.vision_model.timm_model.blocks[0].attn.fused_attn
    eager.set_attn_implementation("sdpa")
    eager(**inputs)
    assert eager.vision_model.timm_model.blocks[0].attn.fused_attn


def test_gradient_checkpointing_keeps_the_gradients(model, inputs):
    model.train()
    model.sigreg.step.zero_()
    model(**inputs).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert (
        model.vision_model.timm_model.blocks[0].gradient_checkpointing and model.text_model.h[0].gradient_checkpointing
    )
    model.sigreg.step.zero_()
    model(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)


def test_bfloat16_keeps_the_loss_in_float32(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    out = half(**inputs)
    assert out.image_embeds.dtype == torch.bfloat16
    assert out.loss.dtype == out.prediction_loss.dtype == out.sigreg_text.dtype == torch.float32
    assert out.loss.item() == pytest.approx(model(**inputs).loss.item(), rel=0.05)


def test_device_map(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, device_map="cpu")
    torch.testing.assert_close(loaded(**inputs).logits_per_image, model(**inputs).logits_per_image)


def test_compile_without_graph_breaks(model, inputs):
    torch._dynamo.reset()
    vision = torch.compile(model.vision_model, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        vision(inputs["pixel_values"]).last_hidden_state, model.vision_model(inputs["pixel_values"]).last_hidden_state
    )
    model.train()
    model.sigreg.step.zero_()
    expected = model(**inputs).loss
    model.sigreg.step.zero_()
    compiled = torch.compile(model, fullgraph=True, backend="eager")(**inputs)
    assert compiled.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    compiled.loss.backward()


def test_export_of_the_vision_tower(model, inputs):
    pixels = inputs["pixel_values"]
    program = torch.export.export(model.vision_model, (pixels,), strict=False)
    exported = program.module()(pixels)
    torch.testing.assert_close(exported.last_hidden_state, model.vision_model(pixels).last_hidden_state)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_frozen_tower_keeps_no_graph(model, inputs, tower):
    frozen = getattr(model, f"{tower}_model").requires_grad_(False)
    out = model.train()(**inputs)
    tower_output = getattr(out, f"{tower}_model_output").last_hidden_state
    assert not tower_output.requires_grad  # no activation is stored for a backward pass
    out.loss.backward()
    assert all(p.grad is None for p in frozen.parameters())
    assert getattr(model, f"{tower}_projection")[0].weight.grad is not None


@pytest.mark.parametrize(
    "model_class",
    [
        LeVLJEPAModel,
        LeVLJEPAVisionModel,
        LeVLJEPABackbone,
        LeVLJEPAForImageClassification,
        LeVLJEPAForSemanticSegmentation,
    ],
)
def test_save_and_reload_every_class(model_class, config, inputs, tmp_path):
    torch.manual_seed(0)
    model = model_class(config.vision_config if model_class.config_class is LeVLJEPAVisionConfig else config).eval()
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    kwargs = inputs if model_class is LeVLJEPAModel else {"pixel_values": inputs["pixel_values"]}
    for a, b in zip(model(**kwargs).to_tuple(), loaded(**kwargs).to_tuple(), strict=True):
        torch.testing.assert_close(a, b)
    assert loaded.config.to_dict()["model_type"] == model.config.model_type


def test_a_config_keeps_a_dimension_that_equals_the_default_of_another_architecture(tmp_path):
    config = LeVLJEPAVisionConfig(architecture="vit_large_patch16_224", num_hidden_layers=12)
    config.save_pretrained(tmp_path)
    assert LeVLJEPAVisionConfig.from_pretrained(tmp_path).num_hidden_layers == 12


def test_lazy_names_are_listed():
    assert {"LeVLJEPATrainer", "LeVLJEPADataCollator", "convert_sync_batchnorm"} <= set(dir(levljepa_hf))
    assert all(hasattr(levljepa_hf, name) for name in levljepa_hf.__all__)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"architecture": "vit_base_patch16_225"},
            rf"not a model of the installed timm {timm.__version__}.*vit_base_patch16_224",
        ),
        ({"architecture": "resnet18"}, "vision tower is timm's VisionTransformer"),
        ({"architecture": "swin_tiny_patch4_window7_224"}, "vision tower is timm's VisionTransformer"),
        ({"hidden_size": 100}, "hidden_size=100 is not divisible by num_attention_heads=12"),
        ({"image_size": 225}, "image_size=225 is not divisible by patch_size=16.*224 or 240"),
    ],
)
def test_bad_vision_config(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LeVLJEPAVisionConfig(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"text_config": {"n_embd": 100, "n_head": 3}}, "n_embd=100 is not divisible by n_head=3"),
        ({"prediction_loss_type": "l1"}, "prediction_loss_type='l1'"),
        ({"sigreg_vision_weight": 0.7, "sigreg_text_weight": 0.7}, "add up to at most 1"),
        ({"sigreg_text_weight": -0.1}, "at least 0"),
        ({"predictor_num_layers": -1}, "0 means no predictors"),
        ({"projection_dim": 0}, "projection_dim=0 must be at least 1"),
    ],
)
def test_bad_config(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LeVLJEPAConfig.from_preset("debug", **kwargs)


def test_bad_image_size(model):
    with pytest.raises(ValueError, match="33x40 is not divisible by patch_size=8: resize or crop to 32x40"):
        model.vision_model(torch.randn(1, 3, 33, 40))


def test_different_numbers_of_images_and_captions(model, inputs):
    fewer = {**inputs, "pixel_values": inputs["pixel_values"][:3]}
    out = model(**fewer)
    assert out.loss is None and out.logits_per_image.shape == (3, 4)
    with pytest.raises(ValueError, match="3 images and 4 texts with return_loss=True"):
        model.train()(**fewer)
    assert model(**fewer, return_loss=False).loss is None


def test_batch_of_one_in_training_mode(model, inputs):
    one = {name: tensor[:1] for name, tensor in inputs.items()}
    assert model(**one).loss.isfinite()
    linear_heads = LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug", head_num_layers=0))
    for normed in (model, linear_heads):
        with pytest.raises(ValueError, match="batch of one in training mode.*dataloader_drop_last"):
            normed.train()(**one)
    without = LeVLJEPAConfig.from_preset("debug", head_num_layers=0, predictor_num_layers=0)
    assert LeVLJEPAModel(without).train()(**one).loss.isfinite()
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="A batch of one"):
        model.train()(inputs["pixel_values"][:1], **texts, return_loss=False)


def test_missing_modality_and_long_captions(model, inputs):
    with pytest.raises(ValueError, match="got no pixel_values: .*call `get_text_features`.*LeVLJEPATextModel"):
        model(input_ids=inputs["input_ids"])
    with pytest.raises(
        ValueError,
        match="got no input_ids: .*call `get_image_features`.*LeVLJEPAVisionModel.*image-feature-extraction",
    ):
        model(pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="have 129 tokens, but the text tower has 128 positions"):
        model.get_text_features(torch.zeros(1, 129, dtype=torch.long))


def test_text_tower_is_gpt2(model):
    assert isinstance(model.text_model, GPT2Model) and isinstance(model.config.text_config, GPT2Config)


def test_unknown_arguments_are_refused(model, config, inputs):
    text_model = LeVLJEPATextModel(LeVLJEPATextConfig.from_dict(config.to_dict()))
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    images = {"pixel_values": inputs["pixel_values"]}
    methods = [(model, inputs), (model.get_text_features, texts), (model.get_text_retrieval_features, texts)]
    methods += [(model.encode_text, texts), (text_model, texts), (model.get_image_features, images)]
    methods += [(model.get_image_retrieval_features, images), (model.encode_image, images)]
    methods += [(LeVLJEPAVisionModel(config.vision_config), images), (LeVLJEPABackbone(config.vision_config), images)]
    methods += [(LeVLJEPAForImageClassification(config), images), (LeVLJEPAForSemanticSegmentation(config), images)]
    for method, arguments in methods:
        with pytest.raises(TypeError, match="got an unexpected keyword argument 'head_masks'"):
            method(**arguments, head_masks=inputs["attention_mask"])
        method(**arguments, output_hidden_states=True, inputs_embeds=None)
    with pytest.raises(
        TypeError, match=r"LeVLJEPAModel.forward\(\).*'attention_masks'. Did you mean 'attention_mask'"
    ):
        model(**images, input_ids=inputs["input_ids"], attention_masks=inputs["attention_mask"])


def test_images_that_are_not_normalised_are_refused(model, inputs):
    pixels = torch.randint(0, 256, inputs["pixel_values"].shape, dtype=torch.uint8)
    with pytest.raises(ValueError, match="pixel_values of type torch.uint8 are not normalised"):
        model.get_image_features(pixels)
