"""Loss curves over gloo processes, data-parallel and sharded by torch's `fully_shard`, against those of one process.

accelerate shards on accelerators only, so the training is a plain loop here.
"""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel
from levljepa_hf.training.distributed import convert_sync_batchnorm

pytestmark = pytest.mark.slow
STEPS, BATCH, STOP = 50, 16, 20
OBJECTIVES = {
    "levljepa": {},
    "cosine": {"prediction_loss_type": "cosine"},
    "levljepa_plus": {"objective": "levljepa_plus", "views": {"global": 2, "local": 2}},
    "infonce": {"objective": "infonce"},
    "siglip": {"objective": "siglip"},
}


def build(objective: str = "levljepa") -> LeVLJEPAModel:
    torch.manual_seed(0)
    return LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug", **OBJECTIVES[objective])).train()


def batch_of(step: int, several_views: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = [torch.randn(BATCH, 3, side, side, generator=generator) for side in (32, 32, 16, 16)]
    batch = {
        "pixel_values": torch.stack(images[:2], dim=1) if several_views else images[0],
        "input_ids": torch.randint(0, 50_000, (BATCH, 9), generator=generator),
        "attention_mask": torch.ones(BATCH, 9, dtype=torch.long),
    }
    return batch | ({"local_pixel_values": torch.stack(images[2:], dim=1)} if several_views else {})


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def train(model: Any, optimizer: Any, first: int, last: int, rank: int = 0, world_size: int = 1) -> list[float]:
    """Steps `first` to `last` on this rank's part of each batch; the loss of the whole batch."""
    losses = []
    several_views = getattr(model, "module", model).config.views is not None
    for step in range(first, last):
        part = {name: value.chunk(world_size)[rank] for name, value in batch_of(step, several_views).items()}
        loss = model(**part).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        if world_size > 1:
            dist.all_reduce(total)
        losses.append(total.item() / world_size)
    return losses


def sharded(mesh: Any, objective: str = "levljepa") -> tuple[Any, Any]:
    model = convert_sync_batchnorm(build(objective))
    for block in (*model.vision_model.timm_model.blocks, *model.text_model.h):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, optimizer_of(model)


def replicated(objective: str) -> tuple[Any, Any]:
    model = DistributedDataParallel(convert_sync_batchnorm(build(objective)))
    return model, optimizer_of(model)


def curve_process(rank: int, folder: str, world_size: int) -> None:
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (world_size,))
    curves = {}
    for objective in OBJECTIVES:
        curves[objective, "replicated"] = train(*replicated(objective), 0, STEPS, rank, world_size)
        curves[objective, "sharded"] = train(*sharded(mesh, objective), 0, STEPS, rank, world_size)
    if rank == 0:
        torch.save(curves, f"{folder}/curves.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.filterwarnings("ignore")  # torch's own, of experimental parts
def test_curves_of_every_objective_are_those_of_one_process(world_size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(curve_process, (folder, world_size), nprocs=world_size)
        curves = torch.load(f"{folder}/curves.pt", weights_only=True)
    for objective in OBJECTIVES:
        model = build(objective)
        expected = train(model, optimizer_of(model), 0, STEPS)
        assert len(set(expected)) == STEPS
        for kind in ("replicated", "sharded"):
            difference = (torch.tensor(curves[objective, kind]) - torch.tensor(expected)).abs().max().item()
            print(
                f"{objective}, {kind} over {world_size}: {expected[0]:.4f} to {expected[-1]:.4f}, off {difference:.1e}"
            )
            assert difference <= 2e-4 * max(expected), (objective, kind)


def rank_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))
    whole = train(*sharded(mesh), 0, STEPS, rank, 2)

    model, optimizer = sharded(mesh)
    begun = train(model, optimizer, 0, STOP, rank, 2)
    state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.save(state, checkpoint_id=f"{folder}/checkpoint")

    model, optimizer = sharded(mesh)  # as in a new process
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=f"{folder}/checkpoint")
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    gone_on = train(model, optimizer, STOP, STEPS, rank, 2)
    if rank == 0:
        num_sharded = sum(hasattr(parameter, "to_local") for parameter in model.parameters())
        result = {"whole": whole, "resumed": begun + gone_on, "sharded": num_sharded == len([*model.parameters()])}
        torch.save(result, f"{folder}/result.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # torch's own, of experimental parts
def test_two_sharded_processes_train_save_and_go_on_as_one(tmp_path: Path) -> None:
    model = build()
    expected = train(model, optimizer_of(model), 0, STEPS)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_process, (folder,), nprocs=2)
        result = torch.load(f"{folder}/result.pt", weights_only=True)
    assert result["sharded"]
    assert result["resumed"] == result["whole"]
    torch.testing.assert_close(torch.tensor(result["whole"]), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert len(set(expected)) == STEPS
