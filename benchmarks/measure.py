"""What the benchmarks share: the plain form, interleaved timing, peak memory, and the line that says where it ran."""

import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

Step = Callable[[], Any]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plain_sigreg(z: Tensor, num_directions: int, num_knots: int = 17, t_max: float = 3.0) -> Tensor:
    """SIGReg of z (N, D), written as the equation is, with its (N, S, K) tensors."""
    z = z.float()
    directions = torch.nn.functional.normalize(torch.randn(z.shape[1], num_directions, device=z.device), dim=0)
    t = torch.linspace(0, t_max, num_knots, device=z.device)
    spacing = t_max / (num_knots - 1)
    weights = torch.full_like(t, 2 * spacing)
    weights[0] = weights[-1] = spacing
    phi = torch.exp(-t.square() / 2)
    x = (z @ directions).unsqueeze(-1) * t  # (N, S, K)
    error = (x.cos().mean(0) - phi).square() + x.sin().mean(0).square()
    return (z.shape[0] * (error @ (weights * phi))).mean()


def interleaved(
    forms: dict[str, Step],
    repeats: int,
    device: torch.device,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each form, `repeats` times. The forms take turns, so that other load meets them all."""
    for form in forms.values():
        for _ in range(warmup):
            form()
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, form in forms.items():
            synchronize(device)
            start = clock()
            form()
            synchronize(device)
            seconds[name].append(clock() - start)
    return seconds


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """The median over turns of how many times faster `fast` was than `slow` in the same turn."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def peak_memory(form: Step, device: torch.device) -> int:
    """Bytes that torch holds at most while the form runs, beyond what it held before."""
    gc.collect()
    form()
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        form()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        form()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def environment(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.processor() or 'CPU'}"
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {"device": name + threads, **versions}


def report(result: dict[str, Any], as_json: bool) -> None:
    """Prints a result as one JSON object, or a line for each entry."""
    if as_json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:>28}  {value}")
