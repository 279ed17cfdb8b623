"""Runs that are killed, stopped or starved of disk, and started again by the same command until they are done.

What they leave must be that of the run that nothing happened to, bit for bit. `make faults` runs all of it.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from levljepa_hf.training.checkpoints import STAGING, find_checkpoints, why_incomplete

from .victim import (
    CRASHED,
    STEPS,
    FileOperations,
    assert_same,
    in_child,
    make_data,
    no_file_larger_than,
    outcome,
    train,
    wait,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

KINDS = {
    "map": {},
    "map, accumulation": {"gradient_accumulation_steps": 2, "max_steps": 7},
    "map, 2 workers": {"dataloader_num_workers": 2},
    "stream": {"streaming": True},
    "stream, 2 workers": {"streaming": True, "dataloader_num_workers": 2},
    "mixture": {"mixture": True},
    "streamed mixture, 2 workers": {"mixture": True, "streaming": True, "dataloader_num_workers": 2},
    "micro-batches": {"encoder_micro_batch_size": 2},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A forked process has no threads of its parent's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pictures"
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def references(data, tmp_path_factory) -> dict:
    """What the uninterrupted runs leave, each made when it is first asked for."""

    class Runs(dict):
        def __missing__(self, kind: str):
            folder = tmp_path_factory.mktemp("reference") / "run"
            count = folder.with_suffix(".count")
            operations = FileOperations(folder, count_file=count)
            pid = in_child(lambda: train(folder, data, **KINDS[kind]), folder.with_suffix(".err"), operations.install)
            assert wait(pid) == 0, folder.with_suffix(".err").read_text()
            self[kind] = outcome(folder) | {"operations": int(count.read_text())}
            return self[kind]

    return Runs()


def expected(references: dict, kind: str) -> dict:
    return {name: value for name, value in references[kind].items() if name != "operations"}


def check_folder(folder: Path) -> None:
    """After any end: every checkpoint that is there is complete."""
    for checkpoint in find_checkpoints(folder):
        assert why_incomplete(checkpoint) is None, checkpoint


def finish(folder: Path, data: Path, kind: str) -> None:
    errors = folder.with_suffix(".err")
    assert wait(in_child(lambda: train(folder, data, **KINDS[kind]), errors)) == 0, errors.read_text()
    assert not (folder / STAGING).exists()


def killed_at(folder: Path, data: Path, kind: str, operation: int) -> int:
    operations = FileOperations(folder, kill_at=operation)
    pid = in_child(lambda: train(folder, data, **KINDS[kind]), folder.with_suffix(".err"), operations.install)
    return wait(pid)


def test_killed_at_a_file_operation(references, data, tmp_path):
    """A few of the points within one checkpoint and one rotation; `make faults` takes them all."""
    total = references["map"]["operations"]
    for i, operation in enumerate(range(total // 2, total // 2 + 40, 10)):
        folder = tmp_path / str(i) / "run"
        folder.parent.mkdir()
        assert killed_at(folder, data, "map", operation) == -signal.SIGKILL
        check_folder(folder)
        finish(folder, data, "map")
        assert_same(outcome(folder), expected(references, "map"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_many_file_operations(kind, references, data, tmp_path):
    total = references[kind]["operations"]
    rng = random.Random(kind)
    for i in range(10):
        folder = tmp_path / str(i) / "run"
        folder.parent.mkdir()
        kills = 0
        for operation in (rng.randrange(1, total), rng.randrange(1, 60)):  # and once more, soon after it goes on
            kills += killed_at(folder, data, kind, operation) == -signal.SIGKILL
            check_folder(folder)
        assert kills
        finish(folder, data, kind)
        assert_same(outcome(folder), expected(references, kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_times(kind, references, data, tmp_path):
    references[kind]
    rng = random.Random(kind)
    for i in range(6):
        folder = tmp_path / str(i) / "run"
        folder.parent.mkdir()
        for _ in range(3):
            pid = in_child(lambda f=folder: train(f, data, **KINDS[kind]), folder.with_suffix(".err"))
            time.sleep(rng.uniform(0.05, 1.0))
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            check_folder(folder)
        finish(folder, data, kind)
        assert_same(outcome(folder), expected(references, kind))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_ends_with_a_checkpoint_and_its_status(name, references, data, tmp_path):
    folder, errors = tmp_path / "run", tmp_path / "run.err"
    kind = "map, 2 workers"
    pid = in_child(lambda: train(folder, data, **KINDS[kind]), errors)
    record = folder.with_suffix(".steps.jsonl")
    while not record.exists() or record.read_text().count("\n") < 3:
        time.sleep(0.005)
    number = getattr(signal, name)
    os.killpg(pid, number)  # to the workers too, as a terminal and some schedulers do
    assert wait(pid) == 128 + number, errors.read_text()
    printed = errors.read_text()
    last = find_checkpoints(folder)[-1]
    assert f"Stopped by {name}" in printed and last.name in printed and "Traceback" not in printed
    assert why_incomplete(last) is None and int(last.name.split("-")[1]) < STEPS
    finish(folder, data, kind)
    assert_same(outcome(folder)["weights"], references[kind]["weights"])
    assert_same(outcome(folder)["batches"], references[kind]["batches"])


def test_a_second_interrupt_ends_at_once(data, tmp_path):
    folder, record = tmp_path / "run", tmp_path / "run.steps.jsonl"
    pid = in_child(lambda: train(folder, data, seconds_a_step=60.0), tmp_path / "run.err")
    while not record.exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.2)
    os.kill(pid, signal.SIGINT)
    assert wait(pid, timeout=30) == -signal.SIGINT, "sooner than the step ends"


def test_workers_end_with_their_process(data, tmp_path):
    folder, record = tmp_path / "run", tmp_path / "run.steps.jsonl"
    options = {"seconds_a_step": 5.0, "dataloader_num_workers": 2}
    pid = in_child(lambda: train(folder, data, **options), tmp_path / "run.err")
    while not record.exists():
        time.sleep(0.01)
    workers = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert len(workers) >= 2
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    end = time.monotonic() + 60
    while running(workers) and time.monotonic() < end:
        time.sleep(0.02)
    assert not running(workers)


def running(pids: list[int]) -> list[int]:
    """Without those that have ended: without a parent they are the first process's, which may bury them late."""
    stats = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return [
        pid for pid, stat in stats.items() if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    ]


def test_a_full_disk_leaves_the_older_checkpoint(references, data, tmp_path):
    folder, errors = tmp_path / "run", tmp_path / "run.err"
    kind = "map"

    def starve() -> None:
        no_file_larger_than(100_000)  # less than the weights

    assert wait(in_child(lambda: train(folder, data, max_steps=STEPS), errors, starve)) == CRASHED
    assert find_checkpoints(folder) == [] and not (folder / STAGING).exists()
    assert "checkpoint-2 could not be written" in errors.read_text()
    finish(folder, data, kind)
    assert_same(outcome(folder), expected(references, kind))


def test_a_disk_that_fills_up(references, data, tmp_path):
    """A real one, small, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=120m tmpfs {disk} 2>/dev/null"):
        pytest.skip("mounts a small file system, which takes root")
    try:
        folder, errors = disk / "run", tmp_path / "run.err"
        (disk / "ballast").write_bytes(bytes(60_000_000))
        status = wait(in_child(lambda: train(folder, data), errors))
        assert status == CRASHED and "could not be written" in errors.read_text()
        check_folder(folder)
        assert [path.name for path in find_checkpoints(folder)] == ["checkpoint-2", "checkpoint-4"]
        (disk / "ballast").unlink()
        finish(folder, data, "map")
        assert_same(outcome(folder), expected(references, "map"))
    finally:
        os.system(f"umount {disk}")


def test_a_gradient_that_is_not_finite_leaves_finite_weights(references, data, tmp_path):
    folder, errors = tmp_path / "run", tmp_path / "run.err"
    assert wait(in_child(lambda: train(folder, data, bad_gradient_at=6), errors)) == CRASHED
    assert "Not finite since step 6: the gradient" in errors.read_text()
    assert find_checkpoints(folder)[-1].name == "checkpoint-5"
    finish(folder, data, "map")  # without the defect
    assert_same(outcome(folder)["weights"], references["map"]["weights"])
