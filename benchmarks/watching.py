"""What it costs to watch a run: the clock and the count of FLOPs in each step, and a step of the online probes.

Plain is a training step of the model (forward, backward, AdamW) on images and captions that are ready; in turns with
it run the calls that `LeVLJEPATrainer` adds to each step, and a step of both online probes on as many labelled images.

    python benchmarks/watching.py --threads 1 --clock cpu
    python benchmarks/watching.py --preset base --batch_size 256   # on a GPU
"""

import argparse
import statistics
import time

import measure
import torch

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAProcessor, LeVLJEPATrainingArguments
from levljepa_hf.evaluation import EvaluationSplit
from levljepa_hf.training.probing import OnlineProbes, _ModelInTraining
from levljepa_hf.training.throughput import StepFlops, Throughput

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", help="of the model")
    parser.add_argument("--batch_size", type=int, default=16, help="of the training, and of the labelled images")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: processor time, less disturbed by others"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LeVLJEPAModel(LeVLJEPAConfig.from_preset(args.preset)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    side, n = model.config.vision_config.image_size, args.batch_size
    inputs = {"pixel_values": torch.randn(n, 3, side, side), "input_ids": torch.randint(0, 1000, (n, 20))}
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    clock, flops = Throughput(), StepFlops(model)

    def step() -> None:
        model.train()(**inputs).loss.backward()
        optimizer.step()
        model.zero_grad()

    def watched() -> None:
        with clock.waiting():
            pass
        clock.add(n, flops(inputs))
        clock.end_step()

    probes = make_probes(model, n)
    numbers = iter(range(10**9))

    def online() -> None:
        model.eval()
        probes.step(next(numbers))
        model.train()

    seconds = measure.interleaved(
        {"step": step, "watched": watched, "online": online}, args.repeats, device, clock=CLOCKS[args.clock]
    )
    median = {name: statistics.median(values) for name, values in seconds.items()}
    measure.report(
        {
            "preset, batch": f"{args.preset}, {n}",
            "training step": f"{1e3 * median['step']:.1f} ms",
            "clock and FLOPs": f"{1e3 * median['watched']:.3f} ms, {median['watched'] / median['step']:.3%} of a step",
            "online probes": f"{1e3 * median['online']:.1f} ms, {median['online'] / median['step']:.1%} of a step",
            **measure.environment(device),
        },
        args.json,
    )


def make_probes(model: LeVLJEPAModel, batch_size: int) -> OnlineProbes:
    """Both, on noise of two classes, decoded already."""
    side = model.config.vision_config.image_size
    images = torch.randint(0, 256, (2 * batch_size, 3, side, side), dtype=torch.uint8)
    names = {"labels": [0, 1] * batch_size, "class_names": ("a", "b"), "transform": "default"}
    splits = {
        role: EvaluationSplit(role, list(images.numpy().transpose(0, 2, 3, 1)), **names) for role in ("train", "test")
    }
    args = LeVLJEPATrainingArguments(
        "runs/none", report_to="none", probe_dataset="scenes", probe_batch_size=batch_size
    )
    encoder = _ModelInTraining(model, LeVLJEPAProcessor.from_image_size(side))
    return OnlineProbes(("online_linear", "online_attentive"), args, encoder, splits)


if __name__ == "__main__":
    main()
