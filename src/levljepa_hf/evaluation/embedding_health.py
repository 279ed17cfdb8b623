"""Health of the embeddings: signs of collapse that cost little enough to be computed while training.

Healthy training raises the effective ranks towards D, keeps matched pairs well above shuffled ones, holds SIGReg near
its floor, and leaves less and less of the embeddings unexplained by the predictions. Where it does not,
`levljepa_hf.training.warnings` says so in words.
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


@torch.no_grad()
def unexplained_variance(prediction: Tensor, target: Tensor) -> float:
    """The mean squared error of a prediction as a share of the target's variance, for both [N, D].

    0 is a perfect prediction, 1 as good as predicting the mean of the target, more is worse than that; inf or nan for
    targets that are all equal.
    """
    prediction, target = _flat(prediction), _flat(target)
    return ((prediction - target).square().mean() / target.var(dim=0, correction=0).mean()).item()


def embedding_health(
    image_embeds: Tensor,
    text_embeds: Tensor,
    predicted_text_embeds: Tensor | None = None,
    predicted_image_embeds: Tensor | None = None,
) -> dict[str, float]:
    """Effective ranks, cosines of matched and shuffled pairs, unexplained variance, of N paired embeddings.

    Args:
        image_embeds: Z_V [N, D] (leading dimensions are flattened).
        text_embeds: Z_T [N, D].
        predicted_text_embeds: q_V(Z_V) [N, D].
        predicted_image_embeds: q_T(Z_T) [N, D].

    Returns:
        `effective_rank_vision`, `effective_rank_text`, `cosine_matched`, `cosine_shuffled`. The cosines are those of
        the `avg` readout (prediction with its target, mean of both directions), or of Z_V with Z_T without them.
        With predictions also `unexplained_vision` and `unexplained_text`, the share of each modality's variance that
        its prediction from the other leaves (`unexplained_variance`).
    """
    unexplained = {}
    if predicted_text_embeds is None or predicted_image_embeds is None:
        pairs = [(image_embeds, text_embeds)]
    else:
        pairs = [(predicted_text_embeds, text_embeds), (image_embeds, predicted_image_embeds)]
        unexplained = {
            "unexplained_vision": unexplained_variance(predicted_image_embeds, image_embeds),
            "unexplained_text": unexplained_variance(predicted_text_embeds, text_embeds),
        }
    cosines = [matched_and_shuffled_cosine(a, b) for a, b in pairs]
    matched, shuffled = (sum(values) / len(pairs) for values in zip(*cosines, strict=True))
    return {
        "effective_rank_vision": effective_rank(image_embeds),
        "effective_rank_text": effective_rank(text_embeds),
        "cosine_matched": matched,
        "cosine_shuffled": shuffled,
        **unexplained,
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
    phi, weights = _knots(num_knots, t_max)
    floor = (weights * phi * (1 - phi.square())).sum().item()
    if sample_size_scale is None:
        return floor
    if sample_size is None:
        raise ValueError("With a sample_size_scale the floor depends on the batch: pass sample_size, its rows.")
    return floor * sample_size_scale / sample_size


def sigreg_ceiling(
    num_knots: int = 17,
    t_max: float = 3.0,
    sample_size: int | None = None,
    sample_size_scale: float | None = None,
) -> float:
    """What SIGReg is when all embeddings are 0: N sum_k w_k phi_k (1 - phi_k)^2, with `sample_size_scale` for N.

    Between it and the floor lies what SIGReg can say whatever the batch: 0 is N(0, I), 1 a collapse to the origin, and
    a point elsewhere lies above.

    Raises:
        ValueError: without both sample sizes.
    """
    size = sample_size if sample_size_scale is None else sample_size_scale
    if size is None:
        raise ValueError("The ceiling depends on the batch: pass sample_size, its rows.")
    phi, weights = _knots(num_knots, t_max)
    return size * (weights * phi * (1 - phi).square()).sum().item()


def _knots(num_knots: int, t_max: float) -> tuple[Tensor, Tensor]:
    """SIGReg's phi_k and w_k [K], float64."""
    phi = torch.exp(-torch.linspace(0, t_max, num_knots, dtype=torch.float64).square() / 2)
    weights = torch.full_like(phi, 2 * t_max / (num_knots - 1))
    weights[[0, -1]] /= 2
    return phi, weights


def _flat(z: Tensor) -> Tensor:
    """Detached float32 [N, D]."""
    return z.detach().float().reshape(-1, z.shape[-1])


__all__ = [
    "effective_rank",
    "embedding_health",
    "matched_and_shuffled_cosine",
    "sigreg_ceiling",
    "sigreg_floor",
    "unexplained_variance",
]
