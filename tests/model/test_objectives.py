"""The objectives beside LeVLJEPA's own: InfoNCE and SigLIP against their formulas, LeVLJEPA+ against its equation."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAProcessor, LeVLJEPAVisionModel, SIGReg
from levljepa_hf.model import contrastive_levljepa
from levljepa_hf.model.contrastive_levljepa import ContrastiveLoss
from levljepa_hf.model.sigreg_levljepa import draw_directions
from levljepa_hf.training.large_batch import large_batch_backward

OBJECTIVES = ("levljepa", "levljepa_plus", "infonce", "siglip")
CONTRASTIVE = ("infonce", "siglip")


def plain_infonce(u, v, scale, bias=None):
    """The mean of both cross entropies over the N x N matrix, as in the CLIP paper's listing."""
    x = scale * F.normalize(u, dim=-1) @ F.normalize(v, dim=-1).T
    labels = torch.arange(len(u))
    return (F.cross_entropy(x, labels) + F.cross_entropy(x.T, labels)) / 2


def plain_siglip(u, v, scale, bias):
    """The sum over all pairs of -log sigmoid(+-x), divided by N, as in the SigLIP paper's listing."""
    x = scale * F.normalize(u, dim=-1) @ F.normalize(v, dim=-1).T + bias
    return -F.logsigmoid((2 * torch.eye(len(u), dtype=x.dtype) - 1) * x).sum() / len(u)


def plain(objective, u, v, module):
    loss = plain_siglip if objective == "siglip" else plain_infonce
    return loss(u, v, module.logit_scale.to(u.dtype).exp(), module.logit_bias)


def embeddings(count=10, dim=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, dim, generator=generator, dtype=dtype).requires_grad_() for _ in range(2)]


def value_and_gradients(loss, u, v, module):
    return loss, *torch.autograd.grad(loss, [u, v, *module.parameters()])


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 64])
@pytest.mark.parametrize("objective", CONTRASTIVE)
def test_contrastive_losses_equal_their_formulas(objective, chunk_size):
    u, v = embeddings()
    module = ContrastiveLoss(objective, chunk_size).double()
    with torch.no_grad():
        module.logit_scale.fill_(math.log(3.7))
        if module.logit_bias is not None:
            module.logit_bias.fill_(-1.3)
    ours = value_and_gradients(module(u, v), u, v, module)
    expected = value_and_gradients(plain(objective, u, v, module), u, v, module)
    assert len(ours) == (5 if objective == "siglip" else 4)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert b.abs().max() > 1e-3
    # What flows back into the loss is passed on.
    doubled = torch.autograd.grad(2 * module(u, v), [u])
    torch.testing.assert_close(doubled[0], 2 * expected[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("objective", CONTRASTIVE)
def test_contrastive_losses_at_the_largest_scale_in_float32(objective):
    """Logits from -100 to 100, some rows and chunks without any near 100: nothing overflows or vanishes."""
    u, v = embeddings(40, 2, torch.float32)
    module = ContrastiveLoss(objective, chunk_size=1)
    with torch.no_grad():
        module.logit_scale.fill_(math.log(100.0))
        u[:4] = -v[:4]
    ours = value_and_gradients(module(u, v), u, v, module)
    exact_u, exact_v = (x.detach().double().requires_grad_() for x in (u, v))
    exact = copy.deepcopy(module).double()
    expected = value_and_gradients(plain(objective, exact_u, exact_v, exact), exact_u, exact_v, exact)
    for a, b in zip((value.detach() for value in ours), (value.detach() for value in expected), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-4, atol=1e-5 * b.abs().max().item())


def test_chunks_are_as_many_rows_as_make_the_allowance(monkeypatch):
    u, v = embeddings(10)
    held = []
    logits = contrastive_levljepa._Rows.logits
    monkeypatch.setattr(contrastive_levljepa._Rows, "logits", lambda *args: held.append(logits(*args)) or held[-1])
    monkeypatch.setattr(contrastive_levljepa, "_CHUNK_ELEMENTS", 35)
    ContrastiveLoss("siglip").double()(u, v)
    assert [tuple(x.shape) for x in held] == [(3, 10), (3, 10), (3, 10), (1, 10)]
    monkeypatch.setattr(contrastive_levljepa, "_CHUNK_ELEMENTS", 5)
    held.clear()
    ContrastiveLoss("siglip").double()(u, v)
    assert len(held) == 10, "at least a row"


def test_initial_scale_and_bias_are_those_of_the_papers():
    assert ContrastiveLoss("infonce").scale().item() == pytest.approx(1 / 0.07)
    assert ContrastiveLoss("infonce").logit_bias is None
    siglip = ContrastiveLoss("siglip")
    assert (siglip.scale().item(), siglip.logit_bias.item()) == (pytest.approx(10), -10)


@pytest.mark.parametrize("objective", CONTRASTIVE)
def test_the_first_scale_can_be_chosen(objective):
    assert ContrastiveLoss(objective, initial_scale=5).scale().item() == pytest.approx(5)
    model = model_of(objective, contrastive_initial_scale=7)
    assert model.contrastive.scale().item() == pytest.approx(7)
    kept = {name: tensor for name, tensor in model.state_dict().items() if "logit_scale" not in name}
    loaded = LeVLJEPAModel.from_pretrained(None, config=model.config, state_dict=kept)
    assert loaded.contrastive.scale().item() == pytest.approx(7), "of a weight that is missing too"
    for wrong in (0, 101):
        with pytest.raises(ValueError, match=f"initial_scale={wrong} must be above 0 and at most 100"):
            ContrastiveLoss(objective, initial_scale=wrong)
        with pytest.raises(ValueError, match=f"contrastive_initial_scale={wrong} must be"):
            config_of(objective, contrastive_initial_scale=wrong)


def test_scale_stays_below_its_bound_and_comes_back():
    module = ContrastiveLoss("infonce")
    with torch.no_grad():
        module.logit_scale.fill_(5.0)  # exp(5) = 148
    scale = module.scale()
    assert scale.item() == pytest.approx(100)
    (up,) = torch.autograd.grad(-scale, module.logit_scale, retain_graph=True)
    (down,) = torch.autograd.grad(scale, module.logit_scale)
    assert up == 0, "a step down its gradient would raise the scale further"
    assert down.item() == pytest.approx(100)
    with torch.no_grad():
        module.logit_scale.fill_(1.0)
    (below,) = torch.autograd.grad(-module.scale(), module.logit_scale)
    assert below.item() == pytest.approx(-math.e)


@pytest.mark.parametrize("objective", CONTRASTIVE)
def test_contrastive_losses_are_float32_under_autocast(objective):
    u, v = embeddings(dtype=torch.float32)
    module = ContrastiveLoss(objective)
    expected = module(u, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(u, v).item() == pytest.approx(expected.item(), rel=1e-6)
        low = module(u.bfloat16(), v.bfloat16())
    assert low.dtype == torch.float32 and low.item() == pytest.approx(expected.item(), rel=0.02)


def test_contrastive_loss_refuses_what_it_cannot_pair():
    module = ContrastiveLoss("infonce")
    with pytest.raises(ValueError, match=r"images \(3, 4\) and texts \(2, 4\)"):
        module(torch.randn(3, 4), torch.randn(2, 4))
    with pytest.raises(ValueError, match="empty batch"):
        module(torch.randn(0, 4), torch.randn(0, 4))
    with pytest.raises(ValueError, match="choose one of infonce, siglip"):
        ContrastiveLoss("clip")
    with pytest.raises(ValueError, match="chunk_size=0"):
        ContrastiveLoss("infonce", chunk_size=0)


# --- in the model ---


def config_of(objective, **fields):
    return LeVLJEPAConfig.from_preset("debug", objective=objective, **fields)


def model_of(objective, **fields):
    torch.manual_seed(0)
    return LeVLJEPAModel(config_of(objective, **fields))


def batch(objective, size=10, local=True):
    generator = torch.Generator().manual_seed(1)
    views = (2,) if objective == "levljepa_plus" else ()
    inputs = {
        "pixel_values": torch.randn(size, *views, 3, 32, 32, generator=generator),
        "input_ids": torch.randint(0, 50000, (size, 9), generator=generator),
        "attention_mask": (torch.arange(9) < torch.randint(1, 10, (size, 1), generator=generator)).long(),
    }
    if views and local:
        inputs["local_pixel_values"] = torch.randn(size, 4, 3, 16, 16, generator=generator)
    return inputs


@pytest.mark.parametrize("objective", CONTRASTIVE)
def test_contrastive_models_align_the_embeddings_themselves(objective):
    model = model_of(objective).train()
    with torch.no_grad():
        model.contrastive.logit_scale.fill_(1.5)
    outputs = model(**batch(objective))
    assert model.vision_predictor is None and outputs.predicted_text_embeds is None and model.sigreg is None
    expected = plain(objective, outputs.image_embeds, outputs.text_embeds, model.contrastive)
    torch.testing.assert_close(outputs.loss, expected)
    torch.testing.assert_close(outputs.contrastive_loss, outputs.loss)
    assert outputs.contrastive_scale.item() == pytest.approx(math.exp(1.5))
    assert (outputs.contrastive_bias is None) == (objective == "infonce")
    assert outputs.prediction_loss is None and outputs.sigreg_vision is None
    # The logits are those that were learned with, in the zero-shot readout.
    cosine = F.normalize(outputs.image_embeds, dim=-1) @ F.normalize(outputs.text_embeds, dim=-1).T
    bias = 0 if objective == "infonce" else -10
    torch.testing.assert_close(outputs.logits_per_image, math.exp(1.5) * cosine + bias, rtol=1e-4, atol=1e-4)
    outputs.loss.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []


def plain_levljepa_plus(model, inputs):
    """The equation of section 1, view by view, over the model's own towers and heads."""
    images, local = inputs["pixel_values"], inputs["local_pixel_values"]
    views = [model.vision_model(images[:, v]).pooler_output for v in range(images.shape[1])]
    views += [model.vision_model(local[:, v]).pooler_output for v in range(local.shape[1])]
    count, size = len(views), len(images)
    rows = model.vision_projection(torch.cat(views))  # one call: the statistics of BatchNorm are of all views
    z = [rows[v * size : (v + 1) * size] for v in range(count)]
    mean = (z[0] + z[1]) / 2
    z_t = model.text_projection(model.encode_text(inputs["input_ids"], inputs["attention_mask"]).pooler_output)
    zhat_t, zhat_v = model.vision_predictor(mean), model.text_predictor(z_t)
    cross = ((zhat_t - z_t.detach()) ** 2).mean() / 2 + ((zhat_v - mean.detach()) ** 2).mean() / 2
    multi = sum(((view - mean) ** 2).mean() for view in z) / count
    sigreg = SIGReg(model.config.sigreg_num_directions, implementation="plain")
    directions = [draw_directions(0, torch.tensor(step), 16, sigreg.num_directions).T for step in (0, 1)]
    sigreg_v = sum(sigreg(view, directions[0]) for view in z) / count  # all views share the first draw
    sigreg_t = sigreg(z_t, directions[1])
    return {
        "loss": 0.76 * cross + 0.02 * sigreg_v + 0.02 * sigreg_t + 0.2 * multi,
        "prediction_loss": cross,
        "sigreg_vision": sigreg_v,
        "sigreg_text": sigreg_t,
        "multi_view_loss": multi,
    }


def test_levljepa_plus_equals_its_equation():
    model = model_of("levljepa_plus").train()
    reference, inputs = copy.deepcopy(model), batch("levljepa_plus")
    outputs = model(**inputs)
    outputs.loss.backward()
    expected = plain_levljepa_plus(reference, inputs)
    expected["loss"].backward()
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name], value, rtol=1e-5, atol=1e-6, msg=name)
        assert value > 0.01
    largest = max(float(p.grad.abs().max()) for p in reference.parameters())
    for name, parameter in model.named_parameters():
        gradient = reference.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)
    assert outputs.image_embeds.shape == (10, 16) and outputs.vision_model_output.last_hidden_state.shape[0] == 20


def test_levljepa_plus_of_one_view_in_evaluation_is_the_base_model():
    """Evaluation sees whole images: the same towers, heads and predictors, and no multi-view term."""
    model, inputs = model_of("levljepa_plus").eval(), batch("levljepa")
    base = model_of("levljepa").eval()
    base.load_state_dict(model.state_dict())
    outputs, expected = model(**inputs), base(**inputs)
    torch.testing.assert_close(outputs.image_embeds, expected.image_embeds)
    torch.testing.assert_close(outputs.logits_per_image, expected.logits_per_image)
    assert outputs.multi_view_loss is None
    assert outputs.loss.item() == pytest.approx(
        0.76 * outputs.prediction_loss.item() + 0.02 * (outputs.sigreg_vision + outputs.sigreg_text).item()
    )
    several = model(**batch("levljepa_plus"))
    assert several.multi_view_loss > 0 and several.loss.isfinite()


def test_views_that_do_not_fit_the_objective_are_refused():
    plus, base = model_of("levljepa_plus").train(), model_of("levljepa").train()
    with pytest.raises(ValueError, match="takes one view an image"):
        base(**batch("levljepa_plus"))
    with pytest.raises(ValueError, match="takes one view an image"):
        base(**batch("levljepa"), local_pixel_values=torch.randn(10, 4, 3, 16, 16))
    with pytest.raises(ValueError, match="takes several views of each image"):
        plus(**batch("levljepa"))
    inputs = batch("levljepa_plus")
    with pytest.raises(ValueError, match="views of 10 images and local views of 9"):
        plus(**{**inputs, "local_pixel_values": inputs["local_pixel_values"][:9]})
    with pytest.raises(ValueError, match="have 3 views an image"):
        plus(**{**inputs, "pixel_values": torch.randn(10, 3, 3, 32, 32)})
    with pytest.raises(ValueError, match=r"Got 0 local views an image, but config.views\['local'\]=4"):
        plus(**batch("levljepa_plus", local=False))
    with pytest.raises(ValueError, match="Got 1 local views"):
        plus(**{**inputs, "local_pixel_values": inputs["local_pixel_values"][:, :1]})
    with pytest.raises(ValueError, match=r"shape \(10, 2, 3, 32, 32\): one view of each image"):
        plus.get_image_features(inputs["pixel_values"])
    alone = model_of("levljepa_plus", views={"local": 0}).train()
    assert alone(**batch("levljepa_plus", local=False)).loss.isfinite(), "global views alone"


@pytest.mark.parametrize("micro_batch_size", [3, 10])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_micro_batches_of_the_encoders_give_the_gradients_of_the_batch(objective, micro_batch_size):
    model, inputs = model_of(objective).train(), batch(objective)
    reference = copy.deepcopy(model)
    expected = reference(**inputs)
    expected.loss.backward()
    outputs = large_batch_backward(model, inputs, micro_batch_size)
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=1e-5, atol=1e-6)
    largest = max(p.grad.abs().max().item() for p in reference.parameters())
    for name, parameter in model.named_parameters():
        gradient = reference.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_frozen_towers_leave_a_loss_to_learn_from(objective):
    model = model_of(objective).train()
    model.vision_model.requires_grad_(False), model.text_model.requires_grad_(False)
    model(**batch(objective)).loss.backward()
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learning and all(model.get_parameter(name).grad is not None for name in learning)
    assert all(p.grad is None for p in model.vision_model.parameters())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_checkpoints_hold_the_objective_and_what_it_learned(objective, tmp_path, recwarn, caplog):
    model = model_of(objective).eval()
    if model.contrastive is not None:
        with torch.no_grad():
            model.contrastive.logit_scale.fill_(0.7)
    model.save_pretrained(tmp_path)
    loaded, info = LeVLJEPAModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.objective == objective
    torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()))
    _, info = LeVLJEPAVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), "what the tower has no use for is its due"


def test_contrastive_weights_are_new_where_a_checkpoint_has_none(tmp_path):
    model_of("levljepa").save_pretrained(tmp_path)
    loaded, info = LeVLJEPAModel.from_pretrained(tmp_path, objective="siglip", output_loading_info=True)
    assert sorted(info["missing_keys"]) == ["contrastive.logit_bias", "contrastive.logit_scale"]
    assert (loaded.contrastive.scale().item(), loaded.contrastive.logit_bias.item()) == (pytest.approx(10), -10)


@pytest.mark.parametrize("before", OBJECTIVES)
@pytest.mark.parametrize("after", OBJECTIVES)
def test_a_checkpoint_is_loaded_for_another_objective(before, after, tmp_path):
    model_of(before).save_pretrained(tmp_path)
    model = LeVLJEPAModel.from_pretrained(tmp_path, objective=after).train()
    config = model.config
    assert config.objective == after and (config.views is not None) == (after == "levljepa_plus")
    assert config.prediction_weight == pytest.approx(0.76 if after == "levljepa_plus" else 0.96)
    assert (model.contrastive is not None) == (after in CONTRASTIVE) == (model.sigreg is None)
    if after in CONTRASTIVE:
        assert model.vision_predictor is None
    model(**batch(after)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    model.save_pretrained(tmp_path / "again")
    assert LeVLJEPAModel.from_pretrained(tmp_path / "again").config.objective == after


def test_other_fields_beside_the_dict_are_taken(tmp_path):
    model_of("levljepa_plus").save_pretrained(tmp_path)
    config = LeVLJEPAConfig.from_pretrained(tmp_path, views={"global": 3}, logit_scale=5, unknown=1)
    assert (config.views, config.logit_scale, config.local_image_size) == ({"global": 3, "local": 4}, 5, 16)
    _, unused = LeVLJEPAConfig.from_pretrained(tmp_path, num_labels=7, strange=1, return_unused_kwargs=True)
    assert unused == {"strange": 1}


@pytest.mark.parametrize(("before", "after"), [("levljepa", "levljepa_plus"), ("levljepa", "infonce")])
def test_an_objective_set_on_a_finished_configuration_is_refused(before, after):
    config = config_of(before)
    config.objective = after
    with pytest.raises(ValueError, match=f"objective='{after}' was set on a configuration that was made for another"):
        LeVLJEPAModel(config)


# --- the configuration ---


def test_one_argument_makes_the_comparison():
    for preset in ("debug", "tiny", "base", "released"):
        base, clip = (LeVLJEPAConfig.from_preset(preset, objective=name) for name in ("levljepa", "infonce"))
        assert clip.predictor_hidden_sizes is None and clip.predictor_num_layers == 0 and clip.is_contrastive
        assert base.head_hidden_sizes == clip.head_hidden_sizes and base.projection_dim == clip.projection_dim
    listed = config_of("siglip", predictor_hidden_size=[8, 8], predictor_num_layers=None)
    assert listed.predictor_hidden_sizes is None
    assert LeVLJEPAConfig.from_dict(listed.to_dict()).to_dict() == listed.to_dict()


def test_views_and_their_sizes():
    assert config_of("levljepa").views is None and config_of("levljepa").prediction_weight == pytest.approx(0.96)
    plus = LeVLJEPAConfig.from_preset("base", objective="levljepa_plus")
    assert (plus.views, plus.local_image_size) == ({"global": 2, "local": 4}, 96)
    assert plus.prediction_weight == pytest.approx(0.76) and plus.multi_view_weight == 0.2
    assert LeVLJEPAConfig.from_dict(plus.to_dict()).to_dict() == plus.to_dict()
    assert config_of("levljepa_plus").local_image_size == 16  # 32 * 96 / 224 = 13.7, in patches of 8
    some = config_of("levljepa_plus", views={"local": 0}, local_image_size=24)
    assert (some.views, some.local_image_size) == ({"global": 2, "local": 0}, 24)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "clip"}, "use one of levljepa, levljepa_plus, infonce, siglip"),
        ({"objective": "infonce", "views": {"global": 2}}, r"no effect with objective='infonce'"),
        ({"local_image_size": 16}, "no effect with objective='levljepa'"),
        ({"objective": "levljepa_plus", "views": {"globals": 2}}, "give the numbers of global and local views"),
        ({"objective": "levljepa_plus", "views": {"global": "2"}}, "give the numbers of global and local views"),
        ({"objective": "levljepa_plus", "views": {"global": 0}}, "at least 1 global view"),
        ({"objective": "levljepa_plus", "views": {"global": 1, "local": 0}}, "2 in all"),
        ({"objective": "levljepa_plus", "views": {"local": -1}}, "at least 1 global view"),
        ({"objective": "levljepa_plus", "local_image_size": 20}, "multiple of patch_size=8, such as 16"),
        ({"objective": "levljepa_plus", "multi_view_weight": 0.97}, "add up to at most 1"),
        ({"objective": "levljepa_plus", "multi_view_weight": -0.1}, "multi_view_weight=-0.1 must be at least 0"),
    ],
)
def test_settings_that_make_no_objective_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LeVLJEPAConfig.from_preset("debug", **fields)


def test_processor_is_the_same_for_every_objective(tmp_path):
    """What evaluates a model does not ask how it was trained."""
    config = config_of("levljepa_plus")
    processor = LeVLJEPAProcessor.from_image_size(config.vision_config.image_size)
    model_of("levljepa_plus").save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    inputs = LeVLJEPAProcessor.from_pretrained(tmp_path)(text=["a cat"], return_tensors="pt")
    features = LeVLJEPAModel.from_pretrained(tmp_path).get_text_retrieval_features(**inputs).pooler_output
    assert features.shape == (1, 32)
