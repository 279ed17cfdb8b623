"""A DataLoader's workers and signals: they leave the end of a run to its process, and end with it."""

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading

from torch.utils.data import get_worker_info

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


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
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_says, daemon=True).start()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library without it
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_when_the_parent_says() -> None:
    """SIGTERM from the parent, which so ends workers that it is done with, is obeyed; from others it is not."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


__all__ = ["prepare_worker"]
