"""The distances that prediction minimises (arXiv 2607.00784, section 3): to targets, and of views to their mean.

SIGReg, its other term, is in `sigreg_levljepa.py`; `LeVLJEPAModel.compute_loss` adds them up. This file travels to the
Hub with a saved model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def prediction_loss(
    z_v: Tensor, z_t: Tensor, zhat_t: Tensor, zhat_v: Tensor, loss_type: str, stop_gradient: bool = True
) -> Tensor:
    """The mean of both directions: the text predicted from the image, and the image predicted from the text.

    Args:
        z_v: Z_V `(N, D)`, the target of `zhat_v` behind a stop-gradient.
        z_t: Z_T `(N, D)`, the target of `zhat_t`.
        zhat_t: Zhat_T = q_V(Z_V) `(N, D)`.
        zhat_v: Zhat_V = q_T(Z_T) `(N, D)`.
        loss_type: `"mse"` or `"cosine"`.
        stop_gradient: `False` lets the gradient into the targets too, as no run of the paper does.

    Returns:
        A scalar of float32, or of float64 if the predictions are.
    """
    to_text = prediction_distance(zhat_t, z_t, loss_type, stop_gradient)
    to_image = prediction_distance(zhat_v, z_v, loss_type, stop_gradient)
    return 0.5 * (to_text + to_image)


def prediction_distance(prediction: Tensor, target: Tensor, loss_type: str, stop_gradient: bool = True) -> Tensor:
    """Distance of predictions to targets, `(N, D)`: mean squared error, or mean of `2 - 2 cos`.

    Targets are behind a stop-gradient unless `stop_gradient` is `False`. In float32, or in float64 if predictions are.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    prediction, target = prediction.to(dtype), (target.detach() if stop_gradient else target).to(dtype)
    if loss_type == "mse":
        return F.mse_loss(prediction, target)
    return (2 - 2 * F.cosine_similarity(prediction, target, dim=-1)).mean()


def multi_view_distance(z_views: Tensor, mean: Tensor) -> Tensor:
    """Mean squared distance of the views' embeddings `(V, N, D)` from `mean` `(N, D)`, both with their gradients.

    It runs over all views, those that the mean is of included. In float32, or in float64 if the embeddings are.
    """
    dtype = torch.promote_types(z_views.dtype, torch.float32)
    return (z_views.to(dtype) - mean.to(dtype)).square().mean()


__all__ = ["multi_view_distance", "prediction_distance", "prediction_loss"]
