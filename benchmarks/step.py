"""One training step: ours against the plain form, side by side in one process.

The plain form is written straightforwardly, the way the official code does it: captions padded to 77 with an attention
mask, SIGReg by its equation with its (N, S, K) tensors, AdamW as it comes. Ours pads to the longest caption, needs no
mask, and takes the package's SIGReg and the fused AdamW. Both have the same weights, batch and precision.

    python benchmarks/step.py --preset debug --batch_size 8 --repeats 3            # seconds
    python benchmarks/step.py --preset tiny --batch_size 32 --repeats 5
    python benchmarks/step.py --preset base --batch_size 512 --compile --json      # on a GPU
"""

import argparse
import copy
import statistics
from collections.abc import Callable

import measure
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, from the makers' data sheets


def plain_loss(model: LeVLJEPAModel, batch: dict[str, Tensor]) -> Tensor:
    """The loss by its equations, captions padded to 77."""
    config = model.config
    z_v = model.vision_projection(model.vision_model.timm_model(batch["pixel_values"]))
    hidden = model.text_model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    last = batch["attention_mask"].sum(1) - 1
    z_t = model.text_projection(hidden[torch.arange(len(hidden), device=hidden.device), last])
    prediction = 0.5 * (
        F.mse_loss(model.vision_predictor(z_v).float(), z_t.detach().float())
        + F.mse_loss(model.text_predictor(z_t).float(), z_v.detach().float())
    )
    with torch.autocast(z_v.device.type, enabled=False):
        sigreg = [measure.plain_sigreg(z, config.sigreg_num_directions) for z in (z_v, z_t)]
    return config.prediction_weight * prediction + 0.02 * sigreg[0] + 0.02 * sigreg[1]


def make_batch(config: LeVLJEPAConfig, size: int, device: torch.device, lengths: tuple[int, int]) -> dict[str, Tensor]:
    """Images of the model's size and captions of random lengths (EOS included), padded to the longest."""
    length = torch.randint(lengths[0], lengths[1] + 1, (size, 1))
    mask = (torch.arange(int(length.max()))[None] < length).long()
    tokens = torch.randint(0, 50256, mask.shape).where(torch.arange(mask.shape[1])[None] < length - 1, 50256)
    side = config.vision_config.image_size
    batch = {"pixel_values": torch.randn(size, 3, side, side), "input_ids": tokens, "attention_mask": mask}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def padded_to_77(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    missing = 77 - batch["input_ids"].shape[1]
    ids, mask = F.pad(batch["input_ids"], (0, missing), value=50256), F.pad(batch["attention_mask"], (0, missing))
    return {**batch, "input_ids": ids, "attention_mask": mask}


def training_step(
    model: LeVLJEPAModel, loss: Callable[[], Tensor], fused: bool, dtype: torch.dtype | None
) -> measure.Step:
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, fused=True if fused else None)

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", help="size of the model: debug, tiny, small, base (default: tiny)")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--min_tokens", type=int, default=8, help="shortest caption, EOS included (default: 8)")
    parser.add_argument("--max_tokens", type=int, default=40, help="longest caption (default: 40)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--compile", action="store_true", help="also time ours under torch.compile")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    dtype = None if name == "float32" else torch.bfloat16
    torch.manual_seed(0)
    config = LeVLJEPAConfig.from_preset(args.preset)
    plain = LeVLJEPAModel(config).to(device).train()
    ours = copy.deepcopy(plain)
    batch = make_batch(config, args.batch_size, device, (args.min_tokens, args.max_tokens))
    padded = padded_to_77(batch)

    forms = {
        "plain": training_step(plain, lambda: plain_loss(plain, padded), False, dtype),
        "ours": training_step(ours, lambda: ours(**batch).loss, True, dtype),
    }
    if args.compile:
        compiled_model = copy.deepcopy(plain)
        compiled = torch.compile(compiled_model)
        forms["ours, compiled"] = training_step(compiled_model, lambda: compiled(**batch).loss, True, dtype)
    with FlopCounterMode(display=False) as counter:
        ours(**batch).loss.backward()
    ours.zero_grad()

    seconds = measure.interleaved(forms, args.repeats, device)
    embeds = torch.randn(args.batch_size, config.projection_dim, device=device, requires_grad=True)
    sigreg = measure.interleaved({"sigreg": lambda: ours.sigreg(embeds).backward()}, args.repeats, device)["sigreg"]
    result = {"benchmark": "step", **vars(args), "dtype": name, **measure.environment(device)}
    peak_flops = next((flops for key, flops in PEAK_FLOPS.items() if key in result["device"]), None)
    for form, times in seconds.items():
        median = statistics.median(times)
        result[f"{form}: seconds"] = round(median, 5)
        result[f"{form}: peak MiB"] = round(measure.peak_memory(forms[form], device) / 2**20, 1)
        result[f"{form}: times faster"] = round(measure.median_ratio(seconds["plain"], times), 3)
        if form != "plain":
            result[f"{form}: SIGReg share"] = round(2 * statistics.median(sigreg) / median, 4)
            if peak_flops:
                result[f"{form}: model FLOP utilisation"] = round(counter.get_total_flops() / median / peak_flops, 3)
    measure.report(result, args.json)
    return result


if __name__ == "__main__":
    main()
