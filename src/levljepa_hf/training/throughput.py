"""How fast a run is, in every line of its log: samples a second, time spent waiting for data, FLOP utilisation.

- `samples_per_second`: samples of all processes.
- `data_wait`: the share of the time in which a process waited for its next batch, the mean over the processes.
- `mfu`: FLOPs of the matrix products that the training step needs (`StepFlops`), without those done again to save
  memory, over what the devices could do at most; on devices of `PEAK_TFLOPS` alone.

Each is of the time since the last line, without evaluation, probes, the writing of checkpoints, and the first step,
which compiles. Nothing waits for the device: a line is logged when the losses have been read, and so all is done.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

# Dense peaks in TFLOPS by words of the device's name, the first that fit: of 16-bit tensor cores, of TF32 (what
# float32 products may use; None where there is none), and of float32 proper. From the vendors' data sheets: NVIDIA
# A100, H100, GH200, H200, B200, L4, L40, L40S, A10, V100, T4, RTX A6000, the GA102 and Ada white papers (GeForce with
# accumulation in float32), and AMD's of the Instinct MI250X, MI300X and MI325X. Where a sheet quotes sparse products,
# half of it, and so for the MI250X, which is two devices. V100 and T4 have float16 alone.
PEAK_TFLOPS: dict[str, tuple[float, float | None, float]] = {
    "B200": (2250.0, 1125.0, 75.0),
    "H200 NVL": (835.5, 417.7, 60.0),
    "H200": (989.4, 494.7, 66.9),
    "GH200": (989.4, 494.7, 66.9),
    "H100 PCIe": (756.0, 378.0, 51.2),
    "H100 NVL": (835.5, 417.7, 60.0),
    "H100": (989.4, 494.7, 66.9),
    "A100": (312.0, 156.0, 19.5),
    "L40S": (362.0, 183.0, 91.6),
    "L40": (181.0, 90.5, 90.5),
    "L4": (121.0, 60.0, 30.3),
    "A10G": (70.0, 35.0, 31.2),
    "A10": (125.0, 62.5, 31.2),
    "V100": (125.0, None, 15.7),
    "T4": (65.0, None, 8.1),
    "RTX A6000": (154.8, 77.4, 38.7),
    "RTX 6000 Ada": (364.2, 182.1, 91.1),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090 Ti": (80.0, 40.0, 40.0),
    "RTX 3090": (71.0, 35.6, 35.6),
    "MI325X": (1307.4, 653.7, 163.4),
    "MI300X": (1307.4, 653.7, 163.4),
    "MI250X": (191.5, None, 23.9),
}
_LESS = r"\b(Laptop|Max-Q|MIG|D)\b"  # slower than what they are named after: mobile, a slice, the RTX 4090 D


def peak_flops(device_name: str, half_precision: bool, tf32: bool = False) -> float | None:
    """What a device can do at most, in FLOPs a second, dense.

    None of one that is not in `PEAK_TFLOPS`, of a laptop's and of a slice.

    Args:
        device_name: As `torch.cuda.get_device_name` gives it.
        half_precision: Whether the products are in bf16 or float16.
        tf32: Whether those in float32 may use TF32.
    """
    if re.search(_LESS, device_name):
        return None
    for name, (half, tensor, single) in PEAK_TFLOPS.items():
        if re.search(rf"\b{name}\b", device_name):
            return 1e12 * (half if half_precision else tensor if tf32 and tensor is not None else single)
    return None


def device_peak_flops(device: torch.device, half_precision: bool) -> float | None:
    """`peak_flops` of the device that a process trains on, under torch's present settings."""
    if device.type != "cuda":
        return None
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return peak_flops(torch.cuda.get_device_name(device), half_precision, tf32)


# ---------------------------------------------------------------------------------------------------------- counting


class StepFlops:
    """FLOPs of a training step on a batch, two for each multiplication and addition of its matrix products.

        flops = StepFlops(model)(inputs)

    A linear layer of W weights takes 2 W a token, attention of width C over L tokens 4 L^2 C a layer; backward takes
    twice the forward pass, but once for the patch embedding, as pixels need no gradient. A frozen tower counts its
    forward pass alone. SIGReg, the losses and the optimizer are left out, and so is what micro-batches and gradient
    checkpointing compute again.

    Args:
        model: A `LeVLJEPAModel`; what is frozen is looked up here, once.
    """

    def __init__(self, model: nn.Module) -> None:
        vit = getattr(getattr(model, "vision_model", None), "timm_model", None)
        gpt2 = getattr(model, "text_model", None)
        self.is_known = hasattr(vit, "blocks") and hasattr(gpt2, "h")
        if not self.is_known:
            return
        self._patch_size, self._prefix = model.config.vision_config.patch_size, vit.num_prefix_tokens
        self._embedding = _passes(vit, backward=1) * 2 * vit.patch_embed.proj.weight.numel()
        self._vision = _Blocks(vit.blocks, vit.embed_dim, _passes(vit))
        self._text = _Blocks(gpt2.h, gpt2.config.n_embd, _passes(gpt2))
        heads = ("vision_projection", "vision_predictor", "text_projection", "text_predictor")
        self._heads = {name: 3 * 2 * _weights(getattr(model, name, None)) for name in heads}

    def __call__(self, inputs: dict[str, Any]) -> float | None:
        """
        Args:
            inputs: `pixel_values` `(N, C, H, W)` or, of V views, `(N, V, C, H, W)`, and so `local_pixel_values`;
                `input_ids` `(N, L)`. Their shapes alone are read.

        Returns:
            The FLOPs; None for a model without these towers, or a batch without both modalities.
        """
        if not self.is_known or not {"pixel_values", "input_ids"} <= inputs.keys():
            return None
        num_texts, length = inputs["input_ids"].shape
        flops, num_images = num_texts * self._text.flops(length), 0
        for name in ("pixel_values", "local_pixel_values"):
            if name not in inputs:
                continue
            n, height, width = _views(inputs[name])
            patches = (height // self._patch_size) * (width // self._patch_size)
            flops += n * (patches * self._embedding + self._vision.flops(patches + self._prefix))
            num_images += n
        rows = {name: num_images if name == "vision_projection" else num_texts for name in self._heads}
        return float(flops + sum(rows[name] * each for name, each in self._heads.items()))


class _Blocks:
    """Transformer blocks and how often they are passed, backward included."""

    def __init__(self, blocks: nn.Module, width: int, passes: int) -> None:
        self.linear, self.attention = passes * 2 * _weights(blocks), passes * 4 * width * len(blocks)

    def flops(self, length: int) -> int:
        """Of one sequence."""
        return length * self.linear + length**2 * self.attention


def _passes(tower: nn.Module, backward: int = 2) -> int:
    learns = any(parameter.requires_grad for parameter in tower.parameters())
    return 1 + backward if learns else 1


def _views(pixel_values: Any) -> tuple[int, int, int]:
    """Number of images, views included, height and width."""
    *leading, _, height, width = pixel_values.shape
    return (leading[0] * (leading[1] if len(leading) > 1 else 1), height, width)


def _weights(module: nn.Module | None) -> int:
    """Numbers in the weight matrices of linear layers."""
    return 0 if module is None else sum(weight.numel() for weight in module.parameters() if weight.dim() == 2)


# ------------------------------------------------------------------------------------------------------------ timing


class Throughput:
    """A clock of a run's steps, which `LeVLJEPATrainer` tells what happens.

    Args:
        peak: FLOPs a second that the device of a process can do at most; None where that is not known.
        clock: Gives seconds.
    """

    def __init__(self, peak: float | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._peak, self._clock = peak, clock
        self._start: float | None = None  # of the time that is measured; none before the first step is done
        self._reset()

    def _reset(self) -> None:
        self._samples, self._flops = 0, 0.0
        self._waited = self._paused = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While the next batch is waited for."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While something else than training goes on; it may be entered again inside."""
        start, before = self._clock(), self._paused
        try:
            yield
        finally:
            self._paused = before + self._clock() - start

    def add(self, samples: int, flops: float | None) -> None:
        """Counts a batch of this process."""
        self._samples += samples
        self._flops += flops or 0.0

    def end_step(self) -> None:
        """After each step of the optimizer; what was before the end of the first one is not measured."""
        if self._start is None:
            self._reset()
            self._start = self._clock()

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """The figures since the last call, the same on every process; none after the first step alone."""
        if self._start is None or not self._samples:
            return {}
        now = self._clock()
        seconds = max(now - self._start - self._paused, 1e-9)
        mine = torch.tensor(
            [self._samples / seconds, self._waited / seconds, 1e-12 * self._flops / seconds],
            device=accelerator.device,
        )
        samples, waited, tflops = accelerator.reduce(mine, reduction="sum").tolist()
        self._start = now
        self._reset()
        processes = accelerator.num_processes
        figures = {"samples_per_second": samples, "data_wait": waited / processes}
        if self._peak is not None and tflops > 0:
            figures["mfu"] = 1e12 * tflops / (processes * self._peak)
        return figures


__all__ = ["PEAK_TFLOPS", "StepFlops", "Throughput", "device_peak_flops", "peak_flops"]
