"""Two ranks, of which one is killed, or one is told to stop. Part of `make faults`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from levljepa_hf.training.checkpoints import find_checkpoints, why_incomplete

from .victim import STEPS, assert_same, make_data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pictures"
    make_data(folder)
    return folder


def launch(folder: Path, data: Path, kind: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += [str(Path(__file__).with_name("rank.py")), str(folder), str(data), *kind.split()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def steps_of(folder: Path, rank: int) -> list[str]:
    record = folder.with_suffix(f".steps{rank}.jsonl")
    return record.read_text().splitlines() if record.exists() else []


def wait_for_step(folder: Path, step: int) -> None:
    end = time.monotonic() + 120
    while len(steps_of(folder, 0)) < step:
        assert time.monotonic() < end
        time.sleep(0.01)


KINDS = {"map": "", "stream": "--streaming", "mixture": "--mixture", "streamed mixture": "--mixture --streaming"}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def reference(request, data, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("reference") / "run"
    process = launch(folder, data, request.param)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors[-3000:]
    return request.param, folder


def finish(folder: Path, data: Path, kind: str, reference: Path) -> None:
    process = launch(folder, data, kind)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors[-3000:]
    assert_same(load_file(folder / "model.safetensors"), load_file(reference / "model.safetensors"))
    for rank in (0, 1):
        last = dict(map(lambda line: line.split('"batch"'), steps_of(folder, rank)))  # the last time of each step
        assert last == dict(map(lambda line: line.split('"batch"'), steps_of(reference, rank)))


def test_one_rank_killed(reference, data, tmp_path):
    kind, whole = reference
    folder = tmp_path / "run"
    process = launch(folder, data, kind)
    wait_for_step(folder, 5)
    os.kill(int(folder.with_suffix(".pid1").read_text()), signal.SIGKILL)
    start = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 10
    assert process.returncode != 0 and "local_rank: 1" in errors and "SIGKILL" in errors
    assert all(why_incomplete(path) is None for path in find_checkpoints(folder))
    finish(folder, data, kind, whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_told_to_stop(rank, reference, data, tmp_path):
    kind, whole = reference
    folder = tmp_path / "run"
    process = launch(folder, data, kind)
    wait_for_step(folder, 3)
    os.kill(int(folder.with_suffix(f".pid{rank}").read_text()), signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "Stopped by SIGUSR1" in errors
    assert 'trainer.py", line' not in errors  # torchrun's own traceback is the only one
    last = find_checkpoints(folder)[-1]
    assert why_incomplete(last) is None and last.name in errors
    assert {len(steps_of(folder, one)) for one in (0, 1)} == {int(last.name.split("-")[1])}
    assert int(last.name.split("-")[1]) < STEPS
    finish(folder, data, kind, whole)
