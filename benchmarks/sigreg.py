"""Time and memory of SIGReg, forward and backward, beside the plain form and beside its two matrix products alone.

    python benchmarks/sigreg.py
    python benchmarks/sigreg.py --samples 4096 --device cuda --json > sigreg.json
    python benchmarks/sigreg.py --threads 1 --clock cpu    # on a machine that is busy with other things

All forms run in one process, in turns, so that whatever else the machine does meets them alike; figures are medians,
ratios medians over the turns. Every form but the products draws its directions anew, as a training step does.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import measure
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


def take_turns(
    forms: dict[str, Callable[[], object]], repeats: int, device: torch.device, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each form in each turn."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, run in forms.items():
            measure.synchronize(device)
            start = clock()
            run()
            measure.synchronize(device)
            times[name].append(clock() - start)
    return times


def benchmark(args: argparse.Namespace) -> dict:
    device = torch.device(args.device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    z = torch.randn(args.samples, args.dim, device=device, requires_grad=True)
    forms = {name: run for name, run in make_forms(args, z).items() if name not in args.skip}
    peaks = {name: measure.peak_memory(run, device) for name, run in forms.items()}  # compiles and warms up, too
    times = take_turns(forms, args.repeats, device, time.process_time if args.clock == "cpu" else time.perf_counter)
    rows = {
        name: {
            "median_ms": 1e3 * statistics.median(times[name]),
            "best_ms": 1e3 * min(times[name]),
            "times_faster_than_plain": measure.median_ratio(times["plain"], times[name]),
            "peak_extra_mib": peaks[name] / 2**20,
        }
        for name in forms
    }
    sizes = {name: getattr(args, name) for name in ("samples", "dim", "directions", "knots", "repeats", "clock")}
    return sizes | measure.environment(device) | {"forms": rows}


def print_table(result: dict) -> None:
    sizes = ", ".join(f"{name}={result[name]}" for name in ("samples", "dim", "directions", "knots"))
    print(f"SIGReg forward + backward, {sizes}")
    print(f"{result['device']}, torch {result['torch']}, {result['clock']} time, {result['repeats']} turns\n")
    print(f"{'':16}{'median ms':>11}{'best ms':>10}{'x plain':>9}{'peak MiB':>10}")
    for name, row in result["forms"].items():
        times = f"{row['median_ms']:11.2f}{row['best_ms']:10.2f}{row['times_faster_than_plain']:9.1f}"
        print(f"{name:16}{times}{row['peak_extra_mib']:10.1f}")


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
    result = benchmark(args)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print_table(result)


if __name__ == "__main__":
    main()
