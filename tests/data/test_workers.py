"""A DataLoader's worker and signals: it leaves those of others alone, and obeys its parent's."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from levljepa_hf.data.collator import NumberedDataset
from levljepa_hf.data.workers import prepare_worker


class Numbers:
    """Samples that name the process that gives them."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"pid": os.getpid()}


def state(pid: int) -> str | None:
    """R, S, ... or None once it is gone; Z is gone, too."""
    stat = Path(f"/proc/{pid}/stat")
    found = stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else "Z"
    return None if found == "Z" else found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_worker_obeys_its_parent_alone(context):
    loader = torch.utils.data.DataLoader(
        NumberedDataset(Numbers()), batch_size=1, num_workers=1, multiprocessing_context=context
    )
    iterator = iter(loader)
    pid = int(next(iterator)["pid"])
    assert pid != os.getpid()
    for name in ("TERM", "INT", "USR1"):
        subprocess.run(["kill", f"-{name}", str(pid)], check=True)
    time.sleep(0.3)
    assert state(pid) is not None
    assert int(next(iterator)["pid"]) == pid
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 5
    while state(pid) is not None and time.monotonic() < end:
        time.sleep(0.02)
    assert state(pid) is None


def test_elsewhere_nothing_changes():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    prepare_worker()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
