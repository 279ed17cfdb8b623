"""A DataLoader's worker and signals: it leaves them to a parent that handles them, and ends with it."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from levljepa_hf.data.collator import NumberedDataset
from levljepa_hf.data.workers import prepare_worker

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")


class Numbers:
    """Samples that name the process that gives them, and fill a pipe."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> dict[str, int | str]:
        return {"pid": os.getpid(), "text": "x" * 100_000}


def batches(context: str) -> Iterator[dict[str, Any]]:
    return iter(
        torch.utils.data.DataLoader(
            NumberedDataset(Numbers()), batch_size=1, num_workers=1, multiprocessing_context=context
        )
    )


def state(pid: int) -> str | None:
    """R, S, ... or None once it is gone; Z is gone, too."""
    stat = Path(f"/proc/{pid}/stat")
    found = stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else "Z"
    return None if found == "Z" else found


def wait_for_the_end(pid: int) -> None:
    end = time.monotonic() + 60
    while state(pid) is not None and time.monotonic() < end:
        time.sleep(0.02)
    assert state(pid) is None


@contextlib.contextmanager
def sigterm_handled() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@linux
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_a_worker_leaves_signals_to_a_parent_that_handles_them(context):
    iterator = batches(context)
    pid = int(next(iterator)["pid"])
    assert pid != os.getpid()
    with sigterm_handled():
        for name in ("TERM", "INT", "USR1"):
            subprocess.run(["kill", f"-{name}", str(pid)], check=True)
        time.sleep(0.3)
        assert state(pid) is not None
        for _ in range(4):  # two were ready before
            assert int(next(iterator)["pid"]) == pid
    os.kill(pid, signal.SIGTERM)  # as at exit
    wait_for_the_end(pid)


@linux
def test_but_not_for_ever(monkeypatch):
    """A parent that still handles SIGTERM at its exit would wait for its workers."""
    monkeypatch.setattr("levljepa_hf.data.workers._GRACE_SECONDS", 1)
    iterator = batches("fork")
    pid = int(next(iterator)["pid"])
    with sigterm_handled():
        os.kill(pid, signal.SIGTERM)
        wait_for_the_end(pid)


def train_until_killed(context: str, pids: Connection) -> None:
    iterator = batches(context)
    pids.send(int(next(iterator)["pid"]))
    time.sleep(600)


@linux
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_worker_ends_with_its_parent(context):
    """Though its next batch fills the pipe, where torch's own worker would wait for ever."""
    ours, theirs = multiprocessing.Pipe()
    parent = multiprocessing.get_context("fork").Process(target=train_until_killed, args=(context, theirs))
    parent.start()
    theirs.close()
    pid = ours.recv()
    time.sleep(0.3)
    assert state(pid) is not None
    parent.kill()
    parent.join()
    wait_for_the_end(pid)


def test_elsewhere_nothing_changes():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    prepare_worker()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
