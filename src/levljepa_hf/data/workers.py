"""A DataLoader's workers and signals: they leave the end of a run to its process, and end with it."""

import functools
import multiprocessing
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

from torch.utils.data import get_worker_info

_GRACE_SECONDS = 120  # from SIGTERM on; schedulers kill sooner than that


def prepare_worker() -> None:
    """In a worker, once: signals that stop a run, which terminals and schedulers send to all processes, are left to
    the process that trains; and the worker ends with that process, however it ends. Elsewhere it does nothing."""
    if get_worker_info() is not None:
        _prepare(os.getpid())


@functools.cache
def _prepare(pid: int) -> None:  # the number tells a forked process from its parent, whose cache it inherits
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _obey_or_wait)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _obey_or_wait(*_: Any) -> None:
    """SIGTERM is for the parent to answer if it has a handler for it, as the Trainer has while it trains.

    Who sent it can't be told: only a mask in every thread would keep it for `sigwaitinfo`, and in a spawned worker
    numpy has threads before this package is imported. It can't be ignored for good either: by it, at its exit, the
    parent ends workers that it still has, and waits for them.
    """
    if not _handles_sigterm(multiprocessing.parent_process().pid):
        os._exit(0)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.alarm(_GRACE_SECONDS)


def _handles_sigterm(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # gone, or a system without /proc
        return False
    caught = int(re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)[1], base=16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def _end_with_parent() -> None:
    """torch's workers look for their parent too, but not while a batch of theirs waits in a full pipe."""
    multiprocessing.parent_process().join()
    os._exit(0)


__all__ = ["prepare_worker"]
