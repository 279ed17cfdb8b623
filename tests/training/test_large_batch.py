"""Large batches in micro-batches of the encoders: the whole batch's gradients, alone, over processes and in the
trainer; and the whole model over processes without them."""

import copy

import numpy as np
import PIL.Image
import pytest
import torch

from levljepa_hf import (
    LeVLJEPAConfig,
    LeVLJEPADataCollator,
    LeVLJEPAModel,
    LeVLJEPATrainer,
    LeVLJEPATrainingArguments,
    convert_sync_batchnorm,
)
from levljepa_hf.training.large_batch import average_gradients, large_batch_backward


def batch(size: int = 10) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    mask = (torch.arange(9)[None] < torch.randint(1, 10, (size, 1))).long()
    return {
        "pixel_values": torch.randn(size, 3, 32, 32),
        "input_ids": torch.randint(0, 50000, (size, 9)),
        "attention_mask": mask,
    }


@pytest.fixture
def train_model(config):
    torch.manual_seed(0)
    return LeVLJEPAModel(config).train()


@pytest.mark.parametrize("micro_batch_size", [1, 3, 5, 10, 64])
def test_gradients_equal_the_whole_batch(train_model, micro_batch_size):
    reference, inputs = copy.deepcopy(train_model), batch()
    expected = reference(**inputs)
    expected.loss.backward()
    outputs = large_batch_backward(train_model, inputs, micro_batch_size)
    assert outputs.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    expected_gradients = {name: p.grad for name, p in reference.named_parameters()}
    for name, parameter in train_model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected_gradients[name], rtol=1e-4, atol=1e-6)
    # BatchNorm's running statistics and SIGReg's step have moved once.
    for name, buffer in train_model.named_buffers():
        torch.testing.assert_close(buffer, reference.get_buffer(name))


def test_accumulating_micro_batches_is_another_objective(train_model):
    """What the module is for: the sum of micro-batch gradients differs."""
    reference, inputs = copy.deepcopy(train_model), batch()
    reference(**inputs).loss.backward()
    for start in (0, 5):
        (train_model(**{k: v[start : start + 5] for k, v in inputs.items()}).loss / 2).backward()
    expected = reference.vision_projection[0].weight.grad
    assert (train_model.vision_projection[0].weight.grad - expected).norm() > 0.1 * expected.norm()


def test_bfloat16_autocast(train_model):
    reference, inputs = copy.deepcopy(train_model), batch()

    def autocast():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    with autocast():
        expected = reference(**inputs)
    expected.loss.backward()
    outputs = large_batch_backward(train_model, inputs, 5, autocast=autocast)
    assert outputs.loss.item() == pytest.approx(expected.loss.item(), rel=1e-3)
    for name, parameter in train_model.named_parameters():
        gradient = reference.get_parameter(name).grad
        # bfloat16 rounds sums over 5 and over 10 samples differently.
        assert (parameter.grad - gradient).norm() <= 0.05 * gradient.norm() + 1e-6, name


def test_dropout_masks_are_those_of_the_first_pass():
    """The second pass repeats the first pass's masks, and the random state goes on as usual."""
    config = LeVLJEPAConfig.from_preset(
        "debug", text_config={"embd_pdrop": 0.5}, vision_config={"drop_path_rate": 0.5}
    )
    torch.manual_seed(0)
    model = LeVLJEPAModel(config).train()
    reference, inputs = copy.deepcopy(model), batch()
    torch.manual_seed(3)
    reference(**inputs).loss.backward()
    after = torch.rand(3)
    torch.manual_seed(3)
    large_batch_backward(model, inputs, 10)
    torch.testing.assert_close(torch.rand(3), after)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


def test_dropout_masks_of_several_micro_batches_are_those_of_the_first_pass():
    dropouts = {"text_config": {"embd_pdrop": 0.5}, "vision_config": {"drop_path_rate": 0.5}, "predictor_dropout": 0.2}
    torch.manual_seed(0)
    model = LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug", **dropouts)).train()
    reference, inputs = copy.deepcopy(model), batch()
    images = inputs.pop("pixel_values")
    parts = zip(*(tensor.split(4) for tensor in inputs.values()), strict=True)
    torch.manual_seed(3)
    image_features = [reference.encode_image(part).pooler_output for part in images.split(4)]
    text_features = [reference.encode_text(*part).pooler_output for part in parts]
    reference.forward_heads(torch.cat(image_features), torch.cat(text_features)).loss.backward()
    after = torch.rand(3)
    torch.manual_seed(3)
    large_batch_backward(model, {"pixel_values": images, **inputs}, 4)
    torch.testing.assert_close(torch.rand(3), after)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad, rtol=1e-4, atol=1e-6, msg=name)


def test_position_ids_that_are_given_are_used(train_model):
    inputs = batch()
    inputs["position_ids"] = torch.randint(0, 40, (10, 9))
    reference = copy.deepcopy(train_model)
    expected = reference(**inputs)
    expected.loss.backward()
    outputs = large_batch_backward(train_model, inputs, 4)
    torch.testing.assert_close(outputs.text_embeds, expected.text_embeds, rtol=1e-4, atol=1e-5)
    gradient = train_model.text_model.wpe.weight.grad
    torch.testing.assert_close(gradient, reference.text_model.wpe.weight.grad, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_composes(train_model):
    reference, inputs = copy.deepcopy(train_model), batch()
    reference(**inputs).loss.backward()
    train_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    large_batch_backward(train_model, inputs, 4)
    for name, parameter in train_model.named_parameters():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


def test_frozen_tower_is_encoded_once(train_model, monkeypatch):
    train_model.vision_model.requires_grad_(False)
    calls = []
    encode_image = train_model.encode_image
    monkeypatch.setattr(train_model, "encode_image", lambda **kw: calls.append(1) or encode_image(**kw))
    large_batch_backward(train_model, batch(), 5)
    assert len(calls) == 2
    assert all(p.grad is None for p in train_model.vision_model.parameters())
    assert train_model.text_model.wpe.weight.grad is not None


def test_partly_frozen_tower_learns_the_rest(train_model):
    train_model.vision_model.timm_model.patch_embed.requires_grad_(False)
    train_model.text_model.wte.requires_grad_(False)
    reference = copy.deepcopy(train_model)
    reference(**batch()).loss.backward()
    large_batch_backward(train_model, batch(), 4)
    for name, parameter in train_model.named_parameters():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad, rtol=1e-4, atol=1e-6, msg=name)


def test_no_graph_holds_more_than_a_micro_batch(train_model):
    """The encoders, here given ones, never see the whole batch while gradients are recorded."""
    calls = []

    def spied(name, encode):
        def spy(**inputs):
            calls.append((name, len(next(iter(inputs.values()))), torch.is_grad_enabled()))
            return encode(**inputs)

        return spy

    names = ("encode_image", "encode_text")
    encoders = {name: spied(name, getattr(train_model, name)) for name in names}
    large_batch_backward(train_model, batch(), 4, **encoders)
    expected = [(name, size, grad) for grad in (False, True) for name in names for size in (4, 4, 2)]
    assert calls == expected


def test_bad_input(train_model):
    with pytest.raises(ValueError, match="micro_batch_size=0"):
        large_batch_backward(train_model, batch(), 0)
    with pytest.raises(ValueError, match=r"Unknown inputs \['attention_masks'\]: the encoders take pixel_values, "):
        large_batch_backward(train_model, {**batch(), "attention_masks": torch.ones(10, 9)}, 5)
    unpaired = {**batch(), "pixel_values": batch()["pixel_values"][:-1]}
    with pytest.raises(ValueError, match="Got 9 images and 10 texts"):
        large_batch_backward(train_model, unpaired, 5)


def test_without_predictors(train_model):
    model = LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug", predictor_num_layers=0)).train()
    whole = copy.deepcopy(model)
    whole(**batch()).loss.backward()
    large_batch_backward(model, batch(), 4)
    for (name, ours), expected in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


# --- with data-parallel: the whole model, 2 processes against one ---------------------------------------------------


def whole_model_step(rank: int, sizes: tuple[int, ...], micro_batch_size: int | None) -> dict[str, torch.Tensor]:
    """Gradients and BatchNorm statistics after one training step on a rank's share of the batch."""
    torch.manual_seed(0)
    model = convert_sync_batchnorm(LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug"))).train()
    inputs = {name: tensor.split(sizes)[rank] for name, tensor in batch(12).items()}
    if micro_batch_size is not None:
        large_batch_backward(model, inputs, micro_batch_size)
        average_gradients(model)
    else:
        parallel = torch.nn.parallel.DistributedDataParallel(model) if len(sizes) > 1 else model
        parallel(**inputs).loss.backward()
    result = {name: parameter.grad for name, parameter in model.named_parameters()}
    return result | {"mean": model.vision_projection[1].running_mean, "step": model.sigreg.step}


def worker(rank: int, sizes: tuple[int, ...], folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=len(sizes))
    results = {str(micro): whole_model_step(rank, sizes, micro) for micro in (None, 4)}
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_equal_one_process(world_size, tmp_path):
    sizes = (12 // world_size,) * world_size
    torch.multiprocessing.spawn(worker, (sizes, str(tmp_path)), nprocs=world_size)
    one = whole_model_step(0, (12,), None)
    largest = max(gradient.norm() for gradient in one.values() if gradient.is_floating_point())
    for micro, many in torch.load(tmp_path / "results.pt", weights_only=True).items():
        for name, expected in one.items():
            message = f"{name} differs with encoder micro-batches of {micro}"
            torch.testing.assert_close(many[name], expected, rtol=1e-4, atol=1e-5 * float(largest), msg=message)


# --- in the trainer -------------------------------------------------------------------------------------------------


def train(model: LeVLJEPAModel, processor, folder, **options) -> LeVLJEPATrainer:
    rng = np.random.default_rng(0)
    samples = [
        {"image": PIL.Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)), "captions": f"number {i}"}
        for i in range(16)
    ]
    arguments = {
        "save_strategy": "no",
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "report_to": "none",
        "optim": "sgd",
        "max_grad_norm": 0.0,  # clipping would hide a wrong scale
    }
    args = LeVLJEPATrainingArguments(str(folder), use_cpu=True, **{**arguments, **options})
    trainer = LeVLJEPATrainer(model, args, LeVLJEPADataCollator(processor), samples, processing_class=processor)
    trainer.train()
    return trainer


@pytest.mark.parametrize("accumulation", [1, 2])
def test_trainer_takes_the_same_steps_in_micro_batches(train_model, processor, tmp_path, accumulation):
    reference = copy.deepcopy(train_model)
    options = {"gradient_accumulation_steps": accumulation, "logging_steps": 1, "learning_rate": 0.1}
    expected = train(reference, processor, tmp_path, **options)
    micro = train(train_model, processor, tmp_path, encoder_micro_batch_size=3, **options)
    losses = [[log["loss"] for log in run.state.log_history if "loss" in log] for run in (expected, micro)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and len(losses[0]) == 3
    assert "sigreg_vision" in micro.state.log_history[0]
    for name, parameter in train_model.named_parameters():
        torch.testing.assert_close(parameter, reference.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_trainer_runs_micro_batches_in_bfloat16(train_model, processor, tmp_path):
    seen = set()
    for name in ("vision_model", "text_model", "vision_projection", "text_predictor"):
        module = getattr(train_model, name)
        module.register_forward_hook(lambda *_, name=name: seen.add((name, torch.is_autocast_enabled("cpu"))))
    train(train_model, processor, tmp_path, encoder_micro_batch_size=3, bf16=True, max_steps=1)
    assert len(seen) == 4 and all(under_autocast for _, under_autocast in seen)


@pytest.mark.slow
def test_trainer_compiles_the_encoders(train_model, processor, tmp_path):
    reference = copy.deepcopy(train_model)
    train(reference, processor, tmp_path, encoder_micro_batch_size=4, max_steps=1)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    options = {"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 1}
    train(train_model, processor, tmp_path, encoder_micro_batch_size=4, **options)
    assert counters["stats"]["unique_graphs"] >= 2
    for name, parameter in train_model.named_parameters():
        torch.testing.assert_close(parameter, reference.get_parameter(name), rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_micro_batch_size": 0}, "encoder_micro_batch_size=0"),
        ({"fp16": True}, "not with FSDP, DeepSpeed"),
    ],
)
def test_trainer_refuses(train_model, processor, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(train_model, processor, tmp_path, **{"encoder_micro_batch_size": 4, **options})
