"""A large batch in micro-batches of the encoders, against the same samples as plain micro-batches.

Plain micro-batches accumulate gradients of another objective (BatchNorm and SIGReg see the micro-batch alone); they
are what fits in memory otherwise, and so the measure of time. The whole batch at once is the measure of the gradients.

    python benchmarks/large_batch.py --batch_size 32 --micro_batch_size 8 --repeats 2                # seconds
    python benchmarks/large_batch.py --preset debug --batch_size 512 --micro_batch_size 64
    python benchmarks/large_batch.py --preset base --batch_size 4096 --micro_batch_size 256 --json     # on a GPU
"""

import argparse
import copy
import statistics

import measure
import torch
from step import make_batch

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel
from levljepa_hf.training.large_batch import large_batch_backward


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preset", default="debug", help="size of the model: debug, tiny, small, base (default: debug)"
    )
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--micro_batch_size", type=int, default=64)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no_whole", action="store_true", help="leave out the whole batch at once (it may not fit)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    torch.manual_seed(0)
    model = LeVLJEPAModel(LeVLJEPAConfig.from_preset(args.preset)).to(device).train()
    batch = make_batch(model.config, args.batch_size, device, (8, 40))

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == "bfloat16")

    def ours() -> None:
        model.zero_grad()
        large_batch_backward(model, batch, args.micro_batch_size, autocast=autocast)

    def plain_micro_batches() -> None:
        model.zero_grad()
        for start in range(0, args.batch_size, args.micro_batch_size):
            with autocast():
                loss = model(**{k: v[start : start + args.micro_batch_size] for k, v in batch.items()}).loss
            (loss * args.micro_batch_size / args.batch_size).backward()

    def whole() -> None:
        model.zero_grad()
        with autocast():
            loss = model(**batch).loss
        loss.backward()

    forms = {"plain micro-batches": plain_micro_batches, "ours": ours}
    if not args.no_whole:
        forms["whole batch"] = whole
    seconds = measure.interleaved(forms, args.repeats, device, warmup=1)
    result = {"benchmark": "large_batch", **vars(args), "dtype": name, **measure.environment(device)}
    for form, times in seconds.items():
        result[f"{form}: seconds"] = round(statistics.median(times), 5)
        result[f"{form}: peak MiB"] = round(measure.peak_memory(forms[form], device) / 2**20, 1)
    result["ours: times the time of plain"] = round(
        measure.median_ratio(seconds["ours"], seconds["plain micro-batches"]), 3
    )
    if not args.no_whole:
        result["largest relative gradient error"] = gradient_error(model, ours, whole)
    measure.report(result, args.json)
    return result


def gradient_error(model: LeVLJEPAModel, ours: measure.Step, whole: measure.Step) -> float:
    """The largest |ours - whole| / |whole| over the parameters, from the same SIGReg directions."""
    gradients = []
    for form in (ours, whole):
        model.sigreg.step.zero_()
        form()
        gradients.append({name: copy.deepcopy(p.grad) for name, p in model.named_parameters()})
    scale = max(g.norm() for g in gradients[1].values()).item()
    errors = [
        (gradients[0][n] - g).norm().item() / max(g.norm().item(), 1e-3 * scale) for n, g in gradients[1].items()
    ]
    return float(f"{max(errors):.3g}")


if __name__ == "__main__":
    main()
