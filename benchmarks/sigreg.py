"""Time and memory of SIGReg, forward and backward, beside the plain form and beside its two matrix products alone.

    python benchmarks/sigreg.py
    python benchmarks/sigreg.py --samples 64 --directions 128 --repeats 3 --skip "plain compiled" "ours compiled"
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

from levljepa_hf.model.sigreg_levljepa import IMPLEMENTATIONS, SIGReg


def two_products(z: Tensor, directions: Tensor) -> Tensor:
    """What no implementation can do without: the projections, and the gradient taken back to z."""
    with torch.no_grad():
        return (z @ directions) @ directions.t()


def make_forms(args: argparse.Namespace, z: Tensor) -> dict[str, Callable[[], object]]:
    ours = SIGReg(args.directions, args.knots, implementation=args.implementation).to(z.device)
    compiled_ours = torch.compile(SIGReg(args.directions, args.knots, implementation=args.implementation).to(z.device))
    compiled_plain = torch.compile(measure.plain_sigreg)
    directions = torch.randn(args.dim, args.directions, device=z.device)

    def step(loss: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), z)

    return {
        "plain": step(lambda: measure.plain_sigreg(z, args.directions, args.knots)),
        "plain compiled": step(lambda: compiled_plain(z, args.directions, args.knots)),
        "ours": step(lambda: ours(z)),
        "ours compiled": step(lambda: compiled_ours(z)),
        "two products": lambda: two_products(z, directions),
    }


def benchmark(args: argparse.Namespace) -> dict:
    device = torch.device(args.device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    z = torch.randn(args.samples, args.dim, device=device, requires_grad=True)
    forms = {name: run for name, run in make_forms(args, z).items() if name not in args.skip}
    peaks = {name: measure.peak_memory(run, device) for name, run in forms.items()}  # compiles and warms up, too
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    times = measure.interleaved(forms, args.repeats, device, warmup=0, clock=clock)
    rows = {
        name: {
            "median_ms": 1e3 * statistics.median(times[name]),
            "best_ms": 1e3 * min(times[name]),
            "times_faster_than_plain": measure.median_ratio(times["plain"], times[name]) if "plain" in times else None,
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
        faster = row["times_faster_than_plain"]
        times = f"{row['median_ms']:11.2f}{row['best_ms']:10.2f}{'' if faster is None else f'{faster:.1f}':>9}"
        print(f"{name:16}{times}{row['peak_extra_mib']:10.1f}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1024, help="N (default %(default)s)")
    parser.add_argument("--dim", type=int, default=256, help="D (default %(default)s)")
    parser.add_argument("--directions", type=int, default=4096, help="S (default %(default)s)")
    parser.add_argument("--knots", type=int, default=17, help="K (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="turns (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default %(default)s")
    parser.add_argument("--implementation", default="auto", choices=IMPLEMENTATIONS, help="of ours (default auto)")
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
