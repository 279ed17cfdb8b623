"""Exact large batches on small memory: the encoders in micro-batches, heads and losses once on the whole batch.

The loss couples the samples of a batch in the heads' BatchNorm and in SIGReg, so accumulating gradients over
micro-batches is another objective. The encoders, however, treat each sample alone. So (as GradCache does for
contrastive losses, Gao et al., 2021, arXiv 2101.06983)

    h_i = encoder(x_i)                       micro-batch by micro-batch, keeping the pooled features only
    g_i = d loss(h_1 ... h_N) / d h_i        heads and losses, once on the whole batch
    encoder(x_i) again, backward from g_i    micro-batch by micro-batch

gives the gradients of the whole batch, for one more forward pass of the encoders. Memory grows with the batch by the
features, their gradients and the heads' activations alone.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..model.modeling_levljepa import LeVLJEPAModel, LeVLJEPAOutput

Encoder = Callable[..., object]
_IMAGE, _TEXT = ("pixel_values", "local_pixel_values"), ("input_ids", "attention_mask", "position_ids")


def large_batch_backward(
    model: LeVLJEPAModel,
    inputs: dict[str, Tensor],
    micro_batch_size: int,
    backward: Callable[[Tensor], None] = Tensor.backward,
    autocast: Callable[[], AbstractContextManager] = contextlib.nullcontext,
    encode_image: Encoder | None = None,
    encode_text: Encoder | None = None,
) -> LeVLJEPAOutput:
    """Adds the gradients of the whole batch to the parameters, as `backward(model(**inputs).loss)` would.

    Args:
        model: The model, not wrapped for data-parallel: see `average_gradients`.
        inputs: `pixel_values` `(N, C, H, W)`, or of several views `(N, V, C, H, W)` beside `local_pixel_values`;
            `input_ids` `(N, L)`; also `attention_mask`, `position_ids` `(N, L)`.
        micro_batch_size: Samples that the encoders hold activations of at a time.
        backward: What to call on the loss (a scaled one, say); the encoders' gradients carry on from it.
        autocast: Makes the context that forward passes run in.
        encode_image: Replaces `model.encode_image`, by a compiled one for instance.
        encode_text: Replaces `model.encode_text`.

    Returns:
        The output of the heads: loss, terms and embeddings, without the encoders' outputs.

    Raises:
        ValueError: if the micro-batch size is not positive, an input is unknown, or images and captions differ in
            number.
    """
    if micro_batch_size < 1:
        raise ValueError(f"micro_batch_size={micro_batch_size} must be at least 1.")
    unknown = inputs.keys() - {*_IMAGE, *_TEXT}
    if unknown:
        raise ValueError(f"Unknown inputs {sorted(unknown)}: the encoders take {', '.join(_IMAGE + _TEXT)}.")
    images, local = inputs["pixel_values"], inputs.get("local_pixel_values")
    model._check_batch(inputs["input_ids"], images, return_loss=True, local_pixel_values=local)
    image_tower = _Tower(model.vision_model, encode_image or model.encode_image, inputs, _IMAGE, micro_batch_size)
    text_tower = _Tower(model.text_model, encode_text or model.encode_text, inputs, _TEXT, micro_batch_size)

    with autocast():
        image_features, text_features = image_tower.features(), text_tower.features()
        outputs = model.forward_heads(image_features, text_features)
    backward(outputs.loss)
    image_tower.backward(image_features.grad, autocast)
    text_tower.backward(text_features.grad, autocast)
    return outputs


class LargeBatchStep:
    """Forward and backward pass of a Trainer's step, the encoders in micro-batches.

    Args:
        accelerator: Of the run.
        micro_batch_size: As in `large_batch_backward`.
        compiles: Whether the encoders are compiled, as the run's `torch_compile` wants it.
    """

    def __init__(self, accelerator: Accelerator, micro_batch_size: int, compiles: bool = False) -> None:
        self.accelerator, self.micro_batch_size, self.compiles = accelerator, micro_batch_size, compiles
        self._encoders: dict[str, Encoder] = {}
        self._compiled_of: nn.Module | None = None

    def __call__(self, model: nn.Module, inputs: dict[str, Tensor], accumulation: int) -> LeVLJEPAOutput:
        """Adds to the gradients those of a batch, one of so many that a step accumulates."""
        model.train()
        bare = self.accelerator.unwrap_model(model)
        if self.compiles and self._compiled_of is not bare:
            options = self.accelerator.state.dynamo_plugin.to_kwargs()
            names = ("encode_image", "encode_text")
            self._encoders = {name: torch.compile(getattr(bare, name), **options) for name in names}
            self._compiled_of = bare
        outputs = large_batch_backward(
            bare,
            inputs,
            self.micro_batch_size,
            backward=lambda loss: self.accelerator.backward(loss / accumulation),
            autocast=self.accelerator.autocast,
            **self._encoders,
        )
        if self.accelerator.num_processes > 1 and self.accelerator.sync_gradients:
            average_gradients(bare)
        return outputs


class _Tower:
    """One encoder over one batch: features without a graph, then the graph again, a micro-batch at a time."""

    def __init__(
        self,
        module: nn.Module,
        encode: Encoder,
        inputs: dict[str, Tensor],
        names: tuple[str, ...],
        micro_batch_size: int,
    ) -> None:
        names = tuple(name for name in names if inputs.get(name) is not None)
        parts = zip(*(inputs[name].split(micro_batch_size) for name in names), strict=True)
        self.encode, self.micro_batch_size = encode, micro_batch_size
        self.micro_batches = [dict(zip(names, part, strict=True)) for part in parts]
        self.learns = any(parameter.requires_grad for parameter in module.parameters())
        self.random_states: list[tuple[Tensor, Tensor | None]] = []

    @torch.no_grad()
    def features(self) -> Tensor:
        """Pooled features of the whole batch `(..., N, hidden_size)`, a leaf that collects its gradient."""
        pooled = []
        for micro_batch in self.micro_batches:
            self.random_states.append(_random_state(micro_batch))
            pooled.append(self.encode(**micro_batch).pooler_output)
        return torch.cat(pooled, dim=-2).requires_grad_(self.learns)

    def backward(self, gradient: Tensor | None, autocast: Callable[[], AbstractContextManager]) -> None:
        """Encodes again, with the same dropout masks, and goes back from the gradient of the features."""
        if not self.learns:
            return
        parts = zip(self.micro_batches, self.random_states, gradient.split(self.micro_batch_size, dim=-2), strict=True)
        for micro_batch, random_state, part in parts:
            with _with_random_state(random_state, micro_batch), autocast():
                pooled = self.encode(**micro_batch).pooler_output
            pooled.backward(part)


def _device(micro_batch: dict[str, Tensor]) -> torch.device:
    return next(iter(micro_batch.values())).device


def _random_state(micro_batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    device = _device(micro_batch)
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextlib.contextmanager
def _with_random_state(state: tuple[Tensor, Tensor | None], micro_batch: dict[str, Tensor]) -> Iterator[None]:
    """Inside, random numbers come as after `state`; afterwards they go on as if nothing had happened."""
    device = _device(micro_batch)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield


def average_gradients(model: nn.Module, process_group: torch.distributed.ProcessGroup | None = None) -> None:
    """Averages the gradients over the processes, as DistributedDataParallel does in its backward pass.

    The encoders and heads run outside of DistributedDataParallel's forward here, so its own averaging does not start.
    Gradients travel in one flat tensor per dtype.
    """
    world_size = torch.distributed.get_world_size(process_group)
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in model.parameters():
        if parameter.grad is not None:
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat, group=process_group)
        flat /= world_size
        for gradient, averaged in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(averaged.view_as(gradient))


__all__ = ["LargeBatchStep", "average_gradients", "large_batch_backward"]
