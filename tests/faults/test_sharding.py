"""A model sharded by torch's `fully_shard` over two gloo processes: it trains, saves and goes on as one process does.

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

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel
from levljepa_hf.distributed import convert_sync_batchnorm

pytestmark = pytest.mark.slow
STEPS, BATCH, STOP = 50, 16, 20


def build() -> LeVLJEPAModel:
    torch.manual_seed(0)
    model = LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug")).train()
    model.sigreg.seed = 0
    return model


def batch_of(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "pixel_values": torch.randn(BATCH, 3, 32, 32, generator=generator),
        "input_ids": torch.randint(0, 50_000, (BATCH, 9), generator=generator),
        "attention_mask": torch.ones(BATCH, 9, dtype=torch.long),
    }


def train(model: Any, optimizer: Any, first: int, last: int, rank: int = 0, world_size: int = 1) -> list[float]:
    """Steps `first` to `last` on this rank's part of each batch; the loss of the whole batch."""
    losses = []
    for step in range(first, last):
        part = {name: value.chunk(world_size)[rank] for name, value in batch_of(step).items()}
        loss = model(**part).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        if world_size > 1:
            dist.all_reduce(total)
        losses.append(total.item() / world_size)
    return losses


def sharded(mesh: Any) -> tuple[Any, Any]:
    model = convert_sync_batchnorm(build())
    for block in (*model.vision_model.timm_model.blocks, *model.text_model.h):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


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
    expected = train(model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), 0, STEPS)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_process, (folder,), nprocs=2)
        result = torch.load(f"{folder}/result.pt", weights_only=True)
    assert result["sharded"]
    assert result["resumed"] == result["whole"]
    torch.testing.assert_close(torch.tensor(result["whole"]), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert len(set(expected)) == STEPS
