"""Data-parallel exactness with gloo: 2 and 4 processes, of equal and unequal batches, against one process."""

import os
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from levljepa_hf.distributed import GlobalBatchNorm, convert_sync_batchnorm
from levljepa_hf.sigreg_levljepa import SIGReg

WIDTH = 6
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
    assert convert_sync_batchnorm(model)[1] is model[1]
