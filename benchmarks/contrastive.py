"""Time and memory of the contrastive losses, forward and backward, beside the plain form with its N x N matrices.

    python benchmarks/contrastive.py --samples 2048 --repeats 3     # seconds
    python benchmarks/contrastive.py --objective siglip --samples 4096
    python benchmarks/contrastive.py --samples 16384 --repeats 3    # some minutes, and 7 GB for the plain form
    python benchmarks/contrastive.py --samples 32768 --device cuda --json

Both run in one process, in turns; figures are medians, the ratio is the median over the turns.
"""

import argparse
import statistics
import time

import measure
import torch
import torch.nn.functional as F
from torch import Tensor

from levljepa_hf.model.contrastive_levljepa import CONTRASTIVE_OBJECTIVES, ContrastiveLoss


def plain_loss(module: ContrastiveLoss, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """The formulas, over the matrix of all pairs."""
    x = module.logits(F.normalize(image_embeds, dim=-1) @ F.normalize(text_embeds, dim=-1).T)
    labels = torch.arange(len(x), device=x.device)
    if module.objective == "infonce":
        return (F.cross_entropy(x, labels) + F.cross_entropy(x.T, labels)) / 2
    signs = torch.full_like(x, -1.0).index_put((labels, labels), x.new_ones(()))
    return -F.logsigmoid(signs * x).sum() / len(x)


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", choices=CONTRASTIVE_OBJECTIVES, default="infonce", help="default %(default)s")
    parser.add_argument("--samples", type=int, default=4096, help="N (default %(default)s)")
    parser.add_argument("--dim", type=int, default=256, help="D (default %(default)s)")
    parser.add_argument(
        "--chunk_size", type=int, help="images whose row is held at a time (default: the module's own)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default %(default)s")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: time of this process alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)

    device = torch.device(args.device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    module = ContrastiveLoss(args.objective, args.chunk_size).to(device)
    embeds = [torch.randn(args.samples, args.dim, device=device, requires_grad=True) for _ in range(2)]
    wanted = [*embeds, *module.parameters()]
    forms = {
        "plain": lambda: torch.autograd.grad(plain_loss(module, *embeds), wanted),
        "ours": lambda: torch.autograd.grad(module(*embeds), wanted),
    }
    peaks = {name: measure.peak_memory(form, device) for name, form in forms.items()}  # warms up, too
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    seconds = measure.interleaved(forms, args.repeats, device, warmup=0, clock=clock)
    result = {"benchmark": "contrastive", **vars(args), **measure.environment(device)}
    for name, times in seconds.items():
        result[f"{name}: seconds"] = round(statistics.median(times), 4)
        result[f"{name}: peak MiB"] = round(peaks[name] / 2**20, 1)
    result["ours: times the time of plain"] = round(measure.median_ratio(seconds["ours"], seconds["plain"]), 3)
    result["ours: times the memory of plain"] = round(peaks["ours"] / peaks["plain"], 4)
    measure.report(result, args.json)
    return result


if __name__ == "__main__":
    main()
