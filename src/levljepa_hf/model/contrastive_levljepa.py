"""The contrastive objectives that LeVLJEPA is compared with: InfoNCE (CLIP) and the pairwise sigmoid loss (SigLIP).

Both compare every image of the global batch with every text, and pull the pairs (i, i) together. Neither builds the
N x N matrix: it is made a few rows at a time, and the gradient with it. This file travels to the Hub with a saved
model, which has the learned scale and bias. From the top: the rows of all ranks, the two losses, the module.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CONTRASTIVE_OBJECTIVES = ("infonce", "siglip")
MAX_SCALE = 100.0  # CLIP's bound of 1 / temperature
INITIAL_SCALE = {"infonce": 1 / 0.07, "siglip": 10.0}  # CLIP's and SigLIP's
INITIAL_BIAS = -10.0  # SigLIP's: nearly all pairs are negatives
_CHUNK_ELEMENTS = 1 << 22  # of the N x N matrix, held at a time


# --- all ranks -------------------------------------------------------------------------------------------------------


class _GatherRows(torch.autograd.Function):
    """(n, D) of each rank, which may differ in n, to the rows of all (N, D); every rank's loss depends on them."""

    @staticmethod
    def forward(ctx, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = F.pad(rows, (0, 0, 0, max(sizes) - len(rows))).contiguous()
        gathered = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(gathered, padded)
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(grad)
        return grad.split(ctx.sizes)[torch.distributed.get_rank()], None


def _sizes_of_all_ranks(rows: Tensor) -> list[int]:
    sizes = [torch.empty(1, dtype=torch.int64, device=rows.device) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(sizes, torch.full_like(sizes[0], len(rows)))
    return torch.cat(sizes).tolist()


# --- the losses ------------------------------------------------------------------------------------------------------
#
# With unit vectors u_i of images and v_j of texts, x_ij = scale u_i . v_j + bias, over all N images and N texts:
#
#     InfoNCE = 1/2N sum_i [ log sum_j exp x_ij - x_ii ] + 1/2N sum_j [ log sum_i exp x_ij - x_jj ]
#     SigLIP  = 1/N sum_ij softplus(x_ij) - 1/N sum_i x_ii,      as -log sigmoid(-x) = softplus(x) = x - log sigmoid(x)
#
# A rank has the rows of x that belong to its images, against the texts of all ranks. Its rows are complete; what runs
# along columns (InfoNCE's second sum) is joined over the ranks, as vectors of N numbers.


class _Contrastive(torch.autograd.Function):
    """The loss of the global batch, the same on every rank. The forward pass makes the gradient too."""

    @staticmethod
    def forward(
        ctx, u: Tensor, v: Tensor, scale: Tensor, bias: Tensor | None, first: int, over_ranks: bool, chunk: int
    ) -> Tensor:
        rows = _Rows(u, v, scale, bias, first, over_ranks, chunk)
        wanted = any(ctx.needs_input_grad[:4])
        loss, gradients = (_siglip if bias is not None else _infonce)(rows, wanted)
        ctx.over_ranks = over_ranks
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.over_ranks:  # the sum of all ranks' losses, each of which is this one
            grad = grad.clone()
            torch.distributed.all_reduce(grad)
        u, v, scale, *bias = (grad * gradient for gradient in ctx.saved_tensors)
        return u, v, scale, *(bias or [None]), None, None, None


class _Rows:
    """The rows of x that are this rank's, a chunk at a time, and the gradients that grow with them."""

    def __init__(
        self, u: Tensor, v: Tensor, scale: Tensor, bias: Tensor | None, first: int, over_ranks: bool, chunk: int
    ) -> None:
        self.u, self.v, self.scale, self.bias = u, v, scale, bias
        self.first, self.over_ranks = first, over_ranks
        self.count = len(v)  # N: as many images as texts
        self.own = slice(first, first + len(u))  # the columns of this rank's texts
        self.chunks = [slice(start, min(start + chunk, len(u))) for start in range(0, len(u), chunk)]

    def logits(self, chunk: slice) -> Tensor:
        """x of some of this rank's images against all texts, (chunk, N)."""
        x = self.scale * self.u[chunk] @ self.v.T
        return x if self.bias is None else x.add_(self.bias)

    def positives(self) -> Tensor:
        """x_ii of this rank's images (n,)."""
        x = self.scale * (self.u * self.v[self.own]).sum(-1)
        return x if self.bias is None else x + self.bias

    def joined(self, values: Tensor, op: "torch.distributed.ReduceOp | None" = None) -> Tensor:
        """Their sum, or what `op` makes of them, over the ranks."""
        if self.over_ranks:
            torch.distributed.all_reduce(values, torch.distributed.ReduceOp.SUM if op is None else op)
        return values

    def start_gradients(self) -> None:
        self.grad_u, self.grad_v = torch.empty_like(self.u), torch.zeros_like(self.v)
        self.grad_scale = self.u.new_zeros(1)
        self.grad_bias = None if self.bias is None else self.u.new_zeros(1)

    def add_gradient(self, chunk: slice, grad: Tensor, positive: float) -> None:
        """Takes dL/dx of a chunk (chunk, N), to whose pairs (i, i) `positive` is still to be added, to the inputs."""
        grad.diagonal(self.first + chunk.start).add_(positive)
        products = torch.mm(grad, self.v, out=self.grad_u[chunk])  # per unit of scale
        self.grad_scale += (self.u[chunk] * products).sum()
        products.mul_(self.scale)
        self.grad_v.addmm_(grad.T, self.u[chunk] * self.scale)
        if self.grad_bias is not None:
            self.grad_bias += grad.sum()

    def gradients(self) -> list[Tensor]:
        return [self.grad_u, self.grad_v, self.grad_scale, *([] if self.grad_bias is None else [self.grad_bias])]


def _infonce(rows: _Rows, with_gradient: bool) -> tuple[Tensor, list[Tensor]]:
    count, v = rows.count, rows.v
    row_lse = v.new_empty(len(rows.u))
    column_max, column_sum = v.new_full((count,), -math.inf), v.new_zeros(count)
    x = None
    for chunk in rows.chunks:
        x = rows.logits(chunk)
        row_lse[chunk] = x.logsumexp(1)
        largest = torch.maximum(column_max, x.amax(0))
        column_sum = column_sum * torch.exp(column_max - largest) + torch.exp(x - largest).sum(0)
        column_max = largest
    largest = rows.joined(column_max.clone(), torch.distributed.ReduceOp.MAX if rows.over_ranks else None)
    column_lse = largest + rows.joined(column_sum * torch.exp(column_max - largest)).log()

    loss = row_lse.sum() + column_lse[rows.own].sum() - 2 * rows.positives().sum()
    loss = rows.joined(loss) / (2 * count)
    if not with_gradient:
        return loss, []
    rows.start_gradients()
    for chunk in rows.chunks:
        x = x if len(rows.chunks) == 1 else rows.logits(chunk)
        grad = torch.exp(x - column_lse)
        grad += x.sub_(row_lse[chunk, None]).exp_()
        rows.add_gradient(chunk, grad.div_(2 * count), -1 / count)
    return loss, rows.gradients()


def _siglip(rows: _Rows, with_gradient: bool) -> tuple[Tensor, list[Tensor]]:
    loss = -rows.positives().sum()
    if with_gradient:
        rows.start_gradients()
    for chunk in rows.chunks:
        x = rows.logits(chunk)
        loss = loss + F.softplus(x).sum()
        if with_gradient:
            rows.add_gradient(chunk, x.sigmoid_().div_(rows.count), -1 / rows.count)
    return rows.joined(loss) / rows.count, rows.gradients() if with_gradient else []


# --- the module ------------------------------------------------------------------------------------------------------


class _UpperBound(torch.autograd.Function):
    """min(x, bound), whose gradient still leads back below the bound."""

    @staticmethod
    def forward(ctx, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(max=bound)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.where((x <= ctx.bound) | (grad > 0), grad, 0.0), None


class ContrastiveLoss(nn.Module):
    """InfoNCE with a learned temperature (Radford et al., 2021, arXiv 2103.00020), or the pairwise sigmoid loss with
    learned scale and bias (Zhai et al., 2023, arXiv 2303.15343), of embeddings that are compared by their cosine.

    In training mode under torch.distributed the loss is that of the global batch, the same on every rank: after DDP's
    averaging of gradients, many ranks equal one process on the joined batch. Ranks may hold different numbers of pairs
    (also none). The texts' embeddings and two vectors of N numbers travel, not the images' and no N x N matrix.

    Args:
        objective: `"infonce"` or `"siglip"`.
        chunk_size: Images whose row of the N x N matrix is held at a time; by default as many as make some 16 MB.
        initial_scale: Where the scale, 1 / temperature, begins; by default CLIP's 1 / 0.07 and SigLIP's 10.

    Raises:
        ValueError: if the objective is unknown, the chunk size is not positive, or the scale not in (0, 100].
    """

    def __init__(self, objective: str, chunk_size: int | None = None, initial_scale: float | None = None) -> None:
        super().__init__()
        if objective not in CONTRASTIVE_OBJECTIVES:
            raise ValueError(f"objective={objective!r}: choose one of {', '.join(CONTRASTIVE_OBJECTIVES)}.")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size} must be at least 1.")
        self.objective, self.chunk_size = objective, chunk_size
        self.initial_scale = INITIAL_SCALE[objective] if initial_scale is None else initial_scale
        if not 0 < self.initial_scale <= MAX_SCALE:
            raise ValueError(f"initial_scale={initial_scale} must be above 0 and at most {MAX_SCALE:g}.")
        # The logarithm of the scale. Of one element, as sharding takes no parameter without dimensions.
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(self.initial_scale)))
        bias = nn.Parameter(torch.full((1,), INITIAL_BIAS)) if objective == "siglip" else None
        self.register_parameter("logit_bias", bias)

    def extra_repr(self) -> str:
        return f"objective={self.objective!r}"

    def scale(self) -> Tensor:
        """The factor of the cosines, (1,): 1 / temperature, at most 100."""
        return _UpperBound.apply(self.logit_scale, math.log(MAX_SCALE)).exp()

    def logits(self, similarity: Tensor) -> Tensor:
        """From cosines to logits: for a softmax over texts (InfoNCE), or a sigmoid of each pair (SigLIP)."""
        logits = self.scale() * similarity
        return logits if self.logit_bias is None else logits + self.logit_bias

    @torch.compiler.disable  # chunks and collectives, of sizes that the data decide
    def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """The loss, in float32 also under autocast (in float64 if the embeddings are).

        Args:
            image_embeds: Z_V `(N, D)`, not normalised.
            text_embeds: Z_T `(N, D)`, of the same pairs.

        Returns:
            A scalar.

        Raises:
            ValueError: for an empty batch (except where other ranks have some), or shapes that differ.
        """
        if image_embeds.dim() != 2 or image_embeds.shape != text_embeds.shape:
            raise ValueError(
                f"Embeddings of images {tuple(image_embeds.shape)} and texts {tuple(text_embeds.shape)}: the loss "
                "takes as many of each, of the same width, as (N, D)."
            )
        over_ranks = self._over_ranks()
        sizes = _sizes_of_all_ranks(text_embeds) if over_ranks else [len(text_embeds)]
        if sum(sizes) == 0:
            raise ValueError("The loss of an empty batch: it needs a pair.")
        dtype = torch.promote_types(image_embeds.dtype, torch.float32)
        device_type = image_embeds.device.type
        with torch.autocast(device_type, enabled=False):
            u, v = (F.normalize(embeds.to(dtype), dim=-1) for embeds in (image_embeds, text_embeds))
            first = 0
            if over_ranks:
                v, first = _GatherRows.apply(v, sizes), sum(sizes[: torch.distributed.get_rank()])
            bias = None if self.logit_bias is None else self.logit_bias.to(dtype)
            chunk = self.chunk_size or max(1, _CHUNK_ELEMENTS // sum(sizes))
            return _Contrastive.apply(u, v, self.scale().to(dtype), bias, first, over_ranks, chunk)

    def _over_ranks(self) -> bool:
        if not (self.training and torch.distributed.is_available() and torch.distributed.is_initialized()):
            return False
        return torch.distributed.get_world_size() > 1


__all__ = ["ContrastiveLoss"]
