"""BatchNorm over the global batch, so that data-parallel training equals one process (CUDA and CPU)."""

import os
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainingArguments

from ..model.sigreg_levljepa import AllReduce

if TYPE_CHECKING:
    from .arguments import LeVLJEPATrainingArguments


_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class GlobalBatchNorm(nn.BatchNorm3d):
    """BatchNorm over the samples of all ranks in plain tensor operations, for the CPU, where torch has none.

    Input (N, C, ...). In training mode with more than one rank, mean and variance run over the samples of all ranks
    (ranks may hold different numbers, none included), and so do the running statistics. Elsewhere it is BatchNorm.
    It works on any device, so a model may be converted before it is moved.

    Not a `SyncBatchNorm`, which DistributedDataParallel refuses on the CPU.

    Raises:
        ValueError: for input of less than 2 dimensions, or a single value per channel in training mode.
    """

    def __init__(self, *args, process_group: dist.ProcessGroup | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.process_group = process_group

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2:
            raise ValueError(f"BatchNorm needs input of shape (N, C, ...), got {tuple(input.shape)}.")
        ranks = dist.get_world_size(self.process_group) if dist.is_available() and dist.is_initialized() else 1
        if ranks == 1 or not self.training:  # the base class's, for any number of dimensions
            return super().forward(input[(..., *[None] * (5 - input.dim()))]).view_as(input)
        return self._forward_over_ranks(input)

    def _forward_over_ranks(self, input: Tensor) -> Tensor:
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.new_full((1,), x.numel() // x.shape[1])
        sums = AllReduce.apply(torch.cat([x.sum(axes), count]), self.process_group)
        count = sums[-1].detach()
        if count <= 1:
            raise ValueError(f"BatchNorm in training mode needs more than 1 value per channel, got {int(count)}.")
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = AllReduce.apply(centred.square().sum(axes), self.process_group) / count
        self._update_running_stats(mean, variance, count)
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            out = out * self.weight.view(shape)
        if self.bias is not None:
            out = out + self.bias.view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _update_running_stats(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """As BatchNorm: an exponential (or, with momentum None, cumulative) average, of the unbiased variance."""
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), momentum)


def convert_sync_batchnorm(model: nn.Module, process_group: dist.ProcessGroup | None = None) -> nn.Module:
    """Replaces every BatchNorm of `model` by one with statistics over the samples of all ranks, and returns the model.

    A BatchNorm on a CUDA device becomes a `torch.nn.SyncBatchNorm`, any other a `GlobalBatchNorm`. Parameters and
    buffers stay the same tensors under the same names, so optimizers and state dicts remain valid. The model is
    changed in place, unless it is itself a BatchNorm: use the value returned.
    """
    if isinstance(model, _KINDS) and not isinstance(model, GlobalBatchNorm):
        return _converted(model, process_group)
    for name, child in model.named_children():
        setattr(model, name, convert_sync_batchnorm(child, process_group))
    return model


def _converted(norm: nn.Module, process_group: dist.ProcessGroup | None) -> nn.Module:
    tensors = [*norm.parameters(), *norm.buffers()]
    kind = nn.SyncBatchNorm if tensors and tensors[0].is_cuda else GlobalBatchNorm
    arguments = (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    new = kind(*arguments, process_group=process_group, device="meta")
    for name, parameter in norm.named_parameters():
        new.register_parameter(name, parameter)
    for name, buffer in norm.named_buffers():
        new.register_buffer(name, buffer)
    return new.train(norm.training)


def sharding_of(args: TrainingArguments) -> str | None:
    """What splits the model over processes: "FSDP", "DeepSpeed", or None.

    The arguments ask for it, or a configuration of `accelerate launch`, which the arguments do not show.
    """
    asked = {name: os.environ.get(f"ACCELERATE_USE_{name.upper()}") == "true" for name in ("FSDP", "DeepSpeed")}
    if args.fsdp or asked["FSDP"]:
        return "FSDP"
    return "DeepSpeed" if args.deepspeed or asked["DeepSpeed"] else None


def check_sharding(args: "LeVLJEPATrainingArguments") -> None:
    """Refuses FSDP on the CPU, where accelerate leaves it out in silence, and micro-batches of a model in shards.

    Raises:
        ValueError: with what to leave out.
    """
    sharding = sharding_of(args)
    if args.encoder_micro_batch_size is not None and (sharding is not None or args.fp16):
        raise ValueError(
            "encoder_micro_batch_size runs the model's parts outside of its forward pass and averages the gradients "
            "by itself: it works with plain data-parallel training in float32 or bf16, not with FSDP, DeepSpeed or "
            "fp16."
        )
    if sharding == "FSDP" and args.device.type == "cpu":
        raise ValueError(
            "fsdp has no effect on the CPU: accelerate shards on accelerators only. Leave it out, or run on a GPU."
        )


def check_launch(args: TrainingArguments) -> None:
    """Refuses to be one of several processes that take no notice of each other.

    On a CPU accelerate does not see the others that `torchrun` starts, unless the CPU is asked for: each would train
    alone, into the same folder.

    Raises:
        ValueError: with what makes them one run.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if args.world_size == 1 and started > 1:
        raise ValueError(
            f"{started} processes were started, and each would train alone: no accelerator was found, and the CPU was "
            "not asked for. Add --use_cpu to train on it."
        )


def describe_launch(args: TrainingArguments) -> str:
    """How a run runs: processes, devices, precision, sharding and the global batch, in a line."""
    processes, accumulation = args.world_size, args.gradient_accumulation_steps
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "float32"
    sharding = sharding_of(args) or "no sharding"
    samples = args.per_device_train_batch_size * processes * accumulation
    factors = f"{processes} x {args.per_device_train_batch_size}" + (f" x {accumulation}" if accumulation > 1 else "")
    return (
        f"{processes} process{'es' if processes > 1 else ''} on {args.device.type}, {precision}, {sharding}, global "
        f"batch {samples} = {factors}{' (processes x batch x accumulation)' if accumulation > 1 else ''}"
    )


__all__ = [
    "GlobalBatchNorm",
    "check_launch",
    "check_sharding",
    "convert_sync_batchnorm",
    "describe_launch",
    "sharding_of",
]
