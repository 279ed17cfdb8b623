"""Time and memory of SIGReg, forward and backward, beside the plain form and beside its two matrix products alone.

    python benchmarks/sigreg.py
    python benchmarks/sigreg.py --samples 4096 --device cuda --json > sigreg.json
    python benchmarks/sigreg.py --threads 1 --clock cpu    # on a machine that is busy with other things

All forms run in one process, in turns, so that whatever else the machine does meets them alike; figures are medians,
ratios medians over the turns. Every form but the products draws its directions anew, as a training step does.
"""

import argparse
import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from levljepa_hf.sigreg_levljepa import SIGReg


def plain_sigreg(z: Tensor, num_directions: int, num_knots: int = 17, t_max: float = 3.0) -> Tensor:
    """SIGReg of z (N, D), written as the equation is."""
    directions = torch.randn(z.shape[1], num_directions, device=z.device)
    directions = directions / directions.norm(dim=0)
    t = torch.linspace(0, t_max, num_knots, device=z.device)
    spacing = t_max / (num_knots - 1)
    weights = torch.full((num_knots,), 2 * spacing, device=z.device)
    weights[0] = weights[-1] = spacing
    phi = torch.exp(-(t**2) / 2)
    x = (z @ directions).unsqueeze(-1) * t  # (N, S, K)
    error = (x.cos().mean(0) - phi).square() + x.sin().mean(0).square()
    return (z.shape[0] * (error @ (weights * phi))).mean()


def two_products(z: Tensor, directions: Tensor) -> Tensor:
    """What no implementation can do without: the projections, and the gradient taken back to z."""
    with torch.no_grad():
        return (z @ directions) @ directions.t()


def make_forms(args: argparse.Namespace, z: Tensor) -> dict[str, Callable[[], object]]:
    ours = SIGReg(args.directions, args.knots, implementation=args.implementation).to(z.device)
    compiled_ours = torch.compile(SIGReg(args.directions, args.knots, implementation=args.implementation).to(z.device))
    compiled_plain = torch.compile(plain_sigreg)
    directions = torch.randn(args.dim, args.directions, device=z.device)

    def step(loss: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), z)

    return {
        "plain": step(lambda: plain_sigreg(z, args.directions, args.knots)),
        "plain compiled": step(lambda: compiled_plain(z, args.directions, args.knots)),
        "ours": step(lambda: ours(z)),
        "ours compiled": step(lambda: compiled_ours(z)),
        "two products": lambda: two_products(z, directions),
    }


def seconds(run: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def _resident(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def peak_extra_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """Peak memory of one run beyond what was held before; None where the platform doesn't tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # so that memory freed earlier is not used unseen
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")  # resets the high-water mark
        before = _resident("VmRSS")
        run()
        return _resident("VmHWM") - before
    except OSError:
        return None


def measure(args: argparse.Namespace) -> dict:
    device = torch.device(args.device)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    z = torch.randn(args.samples, args.dim, device=device, requires_grad=True)
    forms = {name: run for name, run in make_forms(args, z).items() if name not in args.skip}
    for run in forms.values():
        run()  # compiles, and warms up
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(args.repeats):
        for name, run in forms.items():
            times[name].append(seconds(run, device, clock))
    rows = {}
    for name, run in forms.items():
        ratio = statistics.median(a / b for a, b in zip(times["plain"], times[name], strict=True))
        rows[name] = {
            "median_ms": 1e3 * statistics.median(times[name]),
            "best_ms": 1e3 * min(times[name]),
            "times_faster_than_plain": ratio,
            "peak_extra_mib": None if (peak := peak_extra_bytes(run, device)) is None else peak / 2**20,
        }
    return {
        "samples": args.samples,
        "dim": args.dim,
        "directions": args.directions,
        "knots": args.knots,
        "repeats": args.repeats,
        "clock": args.clock,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "machine": platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "forms": rows,
    }


def print_table(result: dict) -> None:
    sizes = ", ".join(f"{name}={result[name]}" for name in ("samples", "dim", "directions", "knots"))
    print(f"SIGReg forward + backward, {sizes}")
    print(f"{result['device']}, torch {result['torch']}, {result['clock']} time, {result['repeats']} turns\n")
    print(f"{'':16}{'median ms':>11}{'best ms':>10}{'x plain':>9}{'peak MiB':>10}")
    for name, row in result["forms"].items():
        peak = "-" if row["peak_extra_mib"] is None else f"{row['peak_extra_mib']:.0f}"
        speed = f"{row['times_faster_than_plain']:.1f}"
        print(f"{name:16}{row['median_ms']:11.2f}{row['best_ms']:10.2f}{speed:>9}{peak:>10}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1024, help="N (default %(default)s)")
    parser.add_argument("--dim", type=int, default=256, help="D (default %(default)s)")
    parser.add_argument("--directions", type=int, default=4096, help="S (default %(default)s)")
    parser.add_argument("--knots", type=int, default=17, help="K (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="turns (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default %(default)s")
    parser.add_argument(
        "--implementation", default="auto", help="of ours: auto, tiled or triton (default %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: time of this process alone")
    parser.add_argument("--skip", nargs="*", default=[], help="forms to leave out, such as 'plain compiled'")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    result = measure(args)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print_table(result)


if __name__ == "__main__":
    main()
