"""The heads of each modality: the projection of a tower's feature to the embedding, and the predictor of the other's.

Plain `nn.Sequential`s with the indices of the released files. This file travels to the Hub with a saved model.
"""

from collections.abc import Sequence

from torch import nn


def projection_head(in_features: int, hidden_sizes: Sequence[int], out_features: int) -> nn.Sequential:
    """The pre-projection head: pooled features `(N, in_features)` to embeddings `(N, D)`. Indices as released."""
    layers: list[nn.Module] = []
    for width in hidden_sizes:
        layers += [nn.Linear(in_features, width), nn.BatchNorm1d(width), nn.GELU()]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, out_features))


def predictor(dim: int, hidden_sizes: Sequence[int] | None, dropout: float = 0.0) -> nn.Sequential | None:
    """A predictor q: embeddings of one modality to predictions of the other's, both `(N, D)`. Indices as released.

    The official code's is `torchvision.ops.MLP`, whose dropout follows every linear layer, the last one too.
    """
    if hidden_sizes is None:
        return None
    layers: list[nn.Module] = []
    in_features = dim
    for width in hidden_sizes:
        layers += [nn.Linear(in_features, width), nn.BatchNorm1d(width), nn.GELU(), nn.Dropout(dropout)]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, dim), nn.Dropout(dropout))


__all__ = ["predictor", "projection_head"]
