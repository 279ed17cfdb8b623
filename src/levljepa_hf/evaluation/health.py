"""Health of the embeddings: signs of collapse that cost little enough to be computed while training.

Healthy training raises the effective ranks towards D, keeps matched pairs well above shuffled ones, and holds SIGReg
near its floor.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def effective_rank(z: Tensor) -> float:
    """exp(entropy of the normalised singular values) of the centred z [N, D]: 1 on a line, D on a sphere.

    The effective rank of Roy and Vetterli (EUSIPCO 2007), as the official code logs it. (The eigenvalues of the
    covariance, the squares of the singular values, give a lower one.) At most min(N - 1, D); nan where all rows are
    equal or some are not finite.
    """
    z = _flat(z).cpu().double()  # the roots of eigenvalues near 0 need the digits, which not every device has
    z = z - z.mean(dim=0)
    gram = z.T @ z if z.shape[0] >= z.shape[1] else z @ z.T  # the same non-zero eigenvalues
    if not torch.isfinite(gram).all():
        return float("nan")
    singular_values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    p = singular_values / singular_values.sum()
    return torch.special.entr(p).sum().exp().item()


@torch.no_grad()
def matched_and_shuffled_cosine(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean cosine of the pairs (a_i, b_i) and of all other pairs (a_i, b_j), i != j, for a, b [N, D]."""
    a, b = F.normalize(_flat(a), dim=-1), F.normalize(_flat(b), dim=-1)
    n = len(a)
    matched = (a * b).sum()
    everything = a.sum(dim=0) @ b.sum(dim=0)
    shuffled = (everything - matched) / (n * (n - 1)) if n > 1 else matched.new_tensor(float("nan"))
    return (matched / n).item(), shuffled.item()


def embedding_health(
    image_embeds: Tensor,
    text_embeds: Tensor,
    predicted_text_embeds: Tensor | None = None,
    predicted_image_embeds: Tensor | None = None,
) -> dict[str, float]:
    """Effective rank per modality, and the cosine of matched and of shuffled pairs, of N paired embeddings.

    Args:
        image_embeds: Z_V [N, D] (leading dimensions are flattened).
        text_embeds: Z_T [N, D].
        predicted_text_embeds: q_V(Z_V) [N, D].
        predicted_image_embeds: q_T(Z_T) [N, D].

    Returns:
        `effective_rank_vision`, `effective_rank_text`, `cosine_matched`, `cosine_shuffled`. The cosines are those of
        the `avg` readout (prediction with its target, mean of both directions), or of Z_V with Z_T without them.
    """
    pairs = [(predicted_text_embeds, text_embeds), (image_embeds, predicted_image_embeds)]
    if predicted_text_embeds is None or predicted_image_embeds is None:
        pairs = [(image_embeds, text_embeds)]
    cosines = [matched_and_shuffled_cosine(a, b) for a, b in pairs]
    matched, shuffled = (sum(values) / len(pairs) for values in zip(*cosines, strict=True))
    return {
        "effective_rank_vision": effective_rank(image_embeds),
        "effective_rank_text": effective_rank(text_embeds),
        "cosine_matched": matched,
        "cosine_shuffled": shuffled,
    }


def sigreg_floor(
    num_knots: int = 17,
    t_max: float = 3.0,
    sample_size: int | None = None,
    sample_size_scale: float | None = None,
) -> float:
    """What SIGReg is expected to be on exact N(0, I): sum_k w_k phi_k (1 - phi_k^2), about 1 and free of N.

    It follows from var(cos(t x)) + var(sin(t x)) = 1 - phi(t)^2. Where a `sample_size_scale` stands in for the factor
    N, the floor at a batch of `sample_size` is that times `sample_size_scale / sample_size`.
    """
    t = torch.linspace(0, t_max, num_knots, dtype=torch.float64)
    phi = torch.exp(-t.square() / 2)
    weights = torch.full_like(t, 2 * t_max / (num_knots - 1))
    weights[[0, -1]] /= 2
    floor = (weights * phi * (1 - phi.square())).sum().item()
    if sample_size_scale is None:
        return floor
    if sample_size is None:
        raise ValueError("With a sample_size_scale the floor depends on the batch: pass sample_size, its rows.")
    return floor * sample_size_scale / sample_size


def _flat(z: Tensor) -> Tensor:
    """Detached float32 [N, D]."""
    return z.detach().float().reshape(-1, z.shape[-1])


__all__ = ["effective_rank", "embedding_health", "matched_and_shuffled_cosine", "sigreg_floor"]
