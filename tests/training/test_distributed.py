"""Data-parallel exactness with gloo: 2 and 4 processes, of equal and unequal batches, against one process."""

import datetime
import os
import tempfile

import PIL.Image
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAProcessor, LeVLJEPATrainer, LeVLJEPATrainingArguments
from levljepa_hf.model.contrastive_levljepa import ContrastiveLoss
from levljepa_hf.model.sigreg_levljepa import SIGReg
from levljepa_hf.training.distributed import GlobalBatchNorm, check_launch, convert_sync_batchnorm

WIDTH = 6
CONTRASTIVE = ("infonce", "siglip")
OBJECTIVES = ("levljepa", "levljepa_plus", *CONTRASTIVE)
BATCHES = {2: [(8, 8), (11, 5), (16, 0)], 4: [(4, 4, 4, 4), (7, 1, 0, 8)]}


class Heads(nn.Module):
    """Two heads with BatchNorm, as the model's, under SIGReg: the embeddings of both modalities."""

    def __init__(self, **arguments):
        super().__init__()
        layers = [nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, WIDTH)]
        self.first, self.second = nn.Sequential(*layers), nn.Linear(WIDTH, WIDTH)
        self.sigreg = SIGReg(32, **arguments)

    def forward(self, x):
        return self.sigreg(self.first(x)) + 2 * self.sigreg(self.second(x))


def make(**arguments):
    torch.manual_seed(0)
    model, x = Heads(**arguments), 2 * torch.randn(16, WIDTH) + 1
    return convert_sync_batchnorm(model), x


def step(model, x):
    """Loss, gradients and buffers after one training step."""
    loss = model(x)
    loss.backward()
    model = getattr(model, "module", model)
    result = {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters()}
    return result | {name: buffer.clone() for name, buffer in model.named_buffers()}


def shard(x, batches, rank):
    return x.split(batches)[rank]


def compiled_step(rank, batches):
    """SIGReg over the ranks in a graph without breaks, in DDP."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(WIDTH, WIDTH), SIGReg(32)), torch.randn(16, WIDTH)
    parallel = DistributedDataParallel(torch.compile(model, fullgraph=True, backend="aot_eager"))
    loss = parallel(shard(x, batches, rank))
    loss.backward()
    return {"loss": loss.detach(), "weight": model[0].weight.grad}


class Contrast(nn.Module):
    """Both modalities' heads, without BatchNorm, under a contrastive loss."""

    def __init__(self, objective):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.contrastive = ContrastiveLoss(objective, chunk_size=3)

    def forward(self, x):
        return self.contrastive(self.first(x), self.second(x))


def make_contrast(objective):
    torch.manual_seed(0)
    return Contrast(objective), 2 * torch.randn(16, WIDTH) + 1


def cumulative_batch_norm(batches, rank):
    """BatchNorm of (N, C, L) in double, with a cumulative average, from a loss that differs between samples."""
    torch.manual_seed(0)
    norm = convert_sync_batchnorm(nn.BatchNorm1d(3, momentum=None, dtype=torch.float64))
    x, weight = torch.randn(2, 16, 3, 4, dtype=torch.float64)
    x = shard(x, batches, rank).requires_grad_()
    out = norm(x)
    (out.square() * shard(weight, batches, rank)).sum().backward()
    return {"out": out.detach(), "grad": x.grad} | dict(norm.named_buffers())


def worker(rank, world_size, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    results = {}
    for batches in BATCHES[world_size]:
        model, x = make()
        results["global", batches] = step(DistributedDataParallel(model), shard(x, batches, rank))
        results["norm", batches] = cumulative_batch_norm(batches, rank)
        for objective in CONTRASTIVE:
            model, x = make_contrast(objective)
            results[objective, batches] = step(DistributedDataParallel(model), shard(x, batches, rank))
    for objective in CONTRASTIVE:
        model, x = make_contrast(objective)
        results[objective, "eval"] = model.eval()(shard(x, BATCHES[world_size][0], rank)).detach()
        with torch.no_grad():
            results[objective, "no gradient"] = model.train()(shard(x, BATCHES[world_size][0], rank))
    model, x = make(distributed=False, sample_size_scale=10)
    results["local"] = step(model.sigreg, shard(x, BATCHES[world_size][0], rank).requires_grad_())
    model, x = make()
    results["eval"] = model.eval()(shard(x, BATCHES[world_size][0], rank)).detach()
    if world_size == 2:
        results["compiled"] = compiled_step(rank, BATCHES[2][1])
        results["too few"] = error_of(lambda: convert_sync_batchnorm(nn.BatchNorm1d(3))(torch.ones(1 - rank, 3)))
    torch.save(results, f"{folder}/{rank}")
    dist.destroy_process_group()


def error_of(function):
    try:
        return str(function())
    except ValueError as error:
        return str(error)


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request):
    """The results of every rank; one start of the processes serves all tests."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (request.param, folder), nprocs=request.param)
        return [torch.load(os.path.join(folder, str(rank))) for rank in range(request.param)]


def test_loss_gradients_and_buffers_equal_one_process(ranks):
    model, x = make()
    assert isinstance(model.first[1], GlobalBatchNorm)
    expected = step(model, x)
    for batches in BATCHES[len(ranks)]:
        for results in ranks:
            torch.testing.assert_close(results["global", batches], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", CONTRASTIVE)
def test_contrastive_losses_and_gradients_equal_one_process(ranks, objective):
    """On every rank the loss is that of all pairs, also where a rank has none of them."""
    expected = step(*make_contrast(objective))
    assert len(expected) == (7 if objective == "siglip" else 6)
    for batches in BATCHES[len(ranks)]:
        for results in ranks:
            torch.testing.assert_close(results[objective, batches], expected, rtol=1e-4, atol=1e-6)
    for results in ranks:
        torch.testing.assert_close(results[objective, "no gradient"], expected["loss"])


@pytest.mark.parametrize("objective", CONTRASTIVE)
def test_contrastive_losses_in_eval_mode_stay_on_their_rank(ranks, objective):
    model, x = make_contrast(objective)
    for rank, results in enumerate(ranks):
        expected = model.eval()(shard(x, BATCHES[len(ranks)][0], rank))
        torch.testing.assert_close(results[objective, "eval"], expected.detach())


def test_batch_norm_equals_one_process(ranks):
    expected = cumulative_batch_norm((16,), 0)
    for batches in BATCHES[len(ranks)]:
        for rank, results in enumerate(ranks):
            result = results["norm", batches]
            for name in ("out", "grad"):
                torch.testing.assert_close(result.pop(name), shard(expected[name], batches, rank))
            torch.testing.assert_close(result, {name: expected[name] for name in result})


def test_statistics_of_each_rank_when_not_distributed(ranks):
    model, x = make(distributed=False, sample_size_scale=10)
    for rank, results in enumerate(ranks):
        model.sigreg.step.zero_()
        expected = step(model.sigreg, shard(x, BATCHES[len(ranks)][0], rank).requires_grad_())
        torch.testing.assert_close(results["local"], expected)


def test_eval_mode_stays_on_its_rank(ranks):
    model, x = make()
    for rank, results in enumerate(ranks):
        expected = model.eval()(shard(x, BATCHES[len(ranks)][0], rank))
        torch.testing.assert_close(results["eval"], expected.detach())


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_compiled_in_ddp(ranks):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(WIDTH, WIDTH), SIGReg(32)), torch.randn(16, WIDTH)
    loss = model(x)
    loss.backward()
    for results in ranks:
        expected = {"loss": loss.detach(), "weight": model[0].weight.grad}
        torch.testing.assert_close(results["compiled"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_one_sample_over_all_ranks_is_refused(ranks):
    assert all("more than 1 value per channel, got 1" in results["too few"] for results in ranks)


# --- the whole model and the Trainer, 2 processes against one ---


def whole_model_step(inputs, parallel=lambda model: model, regrouped=False, **config):
    """One training step; `regrouped` has SIGReg take its statistics for each half of the batch alone."""
    torch.manual_seed(0)
    model = convert_sync_batchnorm(LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug", **config))).train()
    if regrouped:  # as two views, which share their directions
        model.sigreg.register_forward_pre_hook(lambda module, args: (args[0].unflatten(0, (2, -1)),))
    wrapped = parallel(model)  # kept until the backward pass, in which it averages
    outputs = wrapped(**inputs)
    outputs.loss.backward()
    result = {name: parameter.grad for name, parameter in model.named_parameters()}
    result |= {"running_mean": model.vision_projection[1].running_mean, "loss": outputs.loss.detach()}
    names = ("image_embeds", "sigreg_vision", "contrastive_loss", "multi_view_loss")
    return result | {name: outputs[name].detach() for name in names if name in outputs}


def whole_batch(objective="levljepa"):
    generator = torch.Generator().manual_seed(1)
    batch = {
        "pixel_values": torch.randn(12, 3, 32, 32, generator=generator),
        "input_ids": torch.randint(0, 50000, (12, 7), generator=generator),
    }
    if objective == "levljepa_plus":
        batch["pixel_values"] = torch.randn(12, 2, 3, 32, 32, generator=generator)
        batch["local_pixel_values"] = torch.randn(12, 4, 3, 16, 16, generator=generator)
    return batch


def frozen_step(inputs, parallel=lambda model: model, **config):
    """One training step of what is left of the model where both towers are frozen."""
    torch.manual_seed(0)
    model = convert_sync_batchnorm(LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug", **config))).train()
    model.vision_model.requires_grad_(False), model.text_model.requires_grad_(False)
    wrapped = parallel(model)
    for _ in range(2):  # a second forward pass is refused where the first left a parameter without a gradient
        model.zero_grad()
        wrapped(**inputs).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def samples(number):
    return [
        {"image": PIL.Image.new("RGB", (40, 36), (i * 7 % 256, i * 31 % 256, i * 97 % 256)), "captions": f"number {i}"}
        for i in range(number)
    ]


def trainer(folder, dataset, model=None, **options):
    torch.manual_seed(0)
    options = {"max_steps": 2, "save_strategy": "no", "report_to": "none", "disable_tqdm": True} | options
    options |= {"train_sampling_strategy": "sequential", "use_cpu": True, "health_steps": 0}
    return LeVLJEPATrainer(
        LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug")) if model is None else model,
        LeVLJEPATrainingArguments(str(folder), **options),
        train_dataset=dataset,
        processing_class=LeVLJEPAProcessor.from_image_size(32),
    )


def weights_after_large_batches(folder, per_device):
    """Two steps of SGD, of two accumulated batches each, whose scale no clipping hides."""
    sgd = {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "lr_scheduler_type": "constant"}
    sizes = {"per_device_train_batch_size": per_device, "encoder_micro_batch_size": 3}
    run = trainer(folder, samples(32), max_grad_norm=0.0, gradient_accumulation_steps=2, **sgd, **sizes)
    run.train()
    return {name: parameter.detach() for name, parameter in run.model.named_parameters()}


def evaluation(folder, leave_out):
    """139 samples, no multiple of 2 ranks times 64, so that some are repeated; one of the last does not decode."""
    dataset = samples(139)
    if leave_out:
        del dataset[130]
    else:
        dataset[130]["image"] = b"broken"
    metrics = trainer(folder, samples(32), per_device_eval_batch_size=64).evaluate(dataset)
    return {name: value for name, value in metrics.items() if "R@" in name or "rank" in name or "cosine" in name}


def skipped(folder):
    """The first batch of the second rank has an image that does not decode."""
    dataset = samples(240)
    dataset[115]["image"] = b"broken"
    return trainer(folder, dataset, per_device_train_batch_size=110, max_steps=1).train().metrics["skipped_images"]


class NotANumber(nn.Module):
    """A predictor that, on one rank, fails at its second call."""

    def __init__(self, predictor, fails):
        super().__init__()
        self.predictor, self.fails, self.calls = predictor, fails, 0

    def forward(self, x):
        self.calls += 1
        x = self.predictor(x)
        return x * float("nan") if self.fails and self.calls == 2 else x


def not_a_number(folder, fails):
    torch.manual_seed(0)
    model = LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug"))
    model.text_predictor = NotANumber(model.text_predictor, fails)
    trainer(folder, samples(32), model=model, max_steps=3, per_device_train_batch_size=4).train()


def trainer_worker(rank, folder):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "OMP_NUM_THREADS": "1"}
    group = {"init_method": f"file://{folder}/store", "timeout": datetime.timedelta(seconds=60)}
    dist.init_process_group("gloo", rank=rank, world_size=2, **group)
    share = {name: tensor.chunk(2)[rank] for name, tensor in whole_batch().items()}
    results = {
        "global": whole_model_step(share, DistributedDataParallel),
        "per rank": whole_model_step(share, DistributedDataParallel, sigreg_distributed=False),
        "large batches": weights_after_large_batches(f"{folder}/large", per_device=4),
        "evaluation": evaluation(f"{folder}/evaluation", leave_out=False),
        "skipped": skipped(f"{folder}/skipped"),
    }
    for objective in OBJECTIVES:
        share = {name: tensor.chunk(2)[rank] for name, tensor in whole_batch(objective).items()}
        results[objective] = whole_model_step(share, DistributedDataParallel, objective=objective)
        results["frozen", objective] = frozen_step(share, DistributedDataParallel, objective=objective)
    try:
        not_a_number(f"{folder}/nan", fails=rank == 1)
    except FloatingPointError as error:
        results["error"] = str(error)
    torch.save(results, f"{folder}/{rank}")


@pytest.fixture(scope="module")
def two_ranks():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(trainer_worker, (folder,), nprocs=2)
        yield [torch.load(os.path.join(folder, str(rank))) for rank in range(2)]


@pytest.mark.parametrize("over_ranks", [True, False])
def test_whole_model_with_sigreg_over_ranks_and_on_each(two_ranks, over_ranks):
    """On each, the averaged gradient is the mean of the ranks' own, while BatchNorm stays global."""
    results = [rank["global" if over_ranks else "per rank"] for rank in two_ranks]
    expected = whole_model_step(whole_batch(), regrouped=not over_ranks)
    other = whole_model_step(whole_batch(), regrouped=over_ranks)
    names = [name for name in expected if "." in name] + ["running_mean"]
    largest = max(expected[name].norm() for name in names)
    for name in names:
        for result in results:
            torch.testing.assert_close(result[name], expected[name], rtol=1e-4, atol=1e-5 * float(largest), msg=name)
    assert any((expected[name] - other[name]).norm() > 0.01 * largest for name in names)
    torch.testing.assert_close((results[0]["loss"] + results[1]["loss"]) / 2, expected["loss"])
    for result, embeds in zip(results, expected["image_embeds"].chunk(2), strict=True):
        torch.testing.assert_close(result["image_embeds"], embeds, rtol=1e-4, atol=1e-5)
        sigreg = SIGReg(LeVLJEPAConfig.from_preset("debug").sigreg_num_directions)
        own = sigreg(expected["image_embeds"] if over_ranks else embeds)
        torch.testing.assert_close(result["sigreg_vision"], own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_whole_model_with_every_objective(two_ranks, objective):
    expected = whole_model_step(whole_batch(objective), objective=objective)
    names = [name for name in expected if "." in name]
    largest = max(expected[name].norm() for name in names).item()
    for results in (rank[objective] for rank in two_ranks):
        for name in names:
            torch.testing.assert_close(results[name], expected[name], rtol=1e-4, atol=1e-5 * largest, msg=name)
    # The prediction and the multi-view term are means of each rank's pairs, all others are of all pairs on each rank.
    for name in ("loss", "contrastive_loss", "multi_view_loss", "sigreg_vision"):
        if name in expected:
            values = [rank[objective][name] for rank in two_ranks]
            torch.testing.assert_close(sum(values) / 2, expected[name], rtol=1e-4, atol=1e-6)
            if name in ("contrastive_loss", "sigreg_vision"):
                torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_frozen_towers_train_without_unused_parameters(two_ranks, objective):
    expected = frozen_step(whole_batch(objective), objective=objective)
    largest = max(gradient.norm() for gradient in expected.values()).item()
    for results in two_ranks:
        assert results["frozen", objective].keys() == expected.keys()
        for name, gradient in expected.items():
            result = results["frozen", objective][name]
            torch.testing.assert_close(result, gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)


def test_large_batches_over_ranks_take_the_steps_of_one_process(two_ranks, tmp_path):
    expected = weights_after_large_batches(tmp_path, per_device=8)
    for results in two_ranks:
        for name, weight in expected.items():
            torch.testing.assert_close(results["large batches"][name], weight, rtol=1e-4, atol=1e-5, msg=name)


def test_samples_that_are_repeated_over_ranks_count_once(two_ranks, tmp_path):
    expected = evaluation(tmp_path, leave_out=True)
    assert len(expected) > 6
    for results in two_ranks:
        assert results["evaluation"] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_samples_skipped_on_another_rank_are_counted(two_ranks):
    assert [results["skipped"] for results in two_ranks] == [1, 1]


def test_one_rank_that_is_not_finite_stops_all(two_ranks):
    for results in two_ranks:
        assert "Not finite since step 2: loss, prediction_loss. The state before" in results["error"]


# --- one process ---


@pytest.mark.parametrize("training", [True, False])
def test_converted_batch_norm_is_batch_norm_in_one_process(training):
    torch.manual_seed(0)
    plain = nn.BatchNorm1d(5, eps=1e-3, momentum=0.3)
    nn.init.normal_(plain.weight)
    plain.running_mean.normal_()
    converted = convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(5, eps=1e-3, momentum=0.3)))[0]
    converted.load_state_dict(plain.state_dict())
    x = torch.randn(7, 5)
    torch.testing.assert_close(converted.train(training)(x), plain.train(training)(x))
    torch.testing.assert_close(converted.state_dict(), plain.state_dict())


def test_conversion_keeps_tensors_names_and_mode():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Sequential(nn.BatchNorm1d(4))).eval()
    before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert convert_sync_batchnorm(model) is model
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)
    assert isinstance(model[1], GlobalBatchNorm) and not model[1].training and model[1].weight is None
    norm = model[1]
    assert convert_sync_batchnorm(model)[1] is norm, "converted once only"
    group = object()
    inner = convert_sync_batchnorm(nn.Sequential(nn.Sequential(nn.BatchNorm1d(4))), group)[0][0]
    assert inner.process_group is group


def test_processes_that_would_each_train_alone_are_refused(tmp_path, monkeypatch):
    args = LeVLJEPATrainingArguments(str(tmp_path), use_cpu=True)
    check_launch(args)
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun has it, where accelerate did not take notice
    with pytest.raises(ValueError, match="2 processes were started, and each would train alone.*--use_cpu"):
        check_launch(args)
