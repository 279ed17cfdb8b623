"""Embeddings of many images or many texts: what every evaluation starts from."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..modeling_levljepa import LeVLJEPAModel


class Embeddings(NamedTuple):
    """Embeddings of one modality on the CPU in float32, both [N, D], and what they predict of the other modality."""

    embeds: Tensor  # Z
    predictions: Tensor | None  # q(Z); None for a model without predictors


def embed_images(
    model: LeVLJEPAModel, processor: Callable[..., Any], images: Sequence[Any], batch_size: int = 256
) -> Embeddings:
    """Z_V and q_V(Z_V) of `images`, anything the processor takes. The model is used in evaluation mode."""

    def encode(batch: Sequence[Any]) -> Tensor:
        inputs = processor(images=batch, return_tensors="pt").to(model.device)
        return model.get_image_features(inputs["pixel_values"].to(model.dtype)).pooler_output

    return _embed(model, encode, model.vision_predictor, images, batch_size)


def embed_texts(
    model: LeVLJEPAModel, processor: Callable[..., Any], texts: Sequence[str], batch_size: int = 256
) -> Embeddings:
    """Z_T and q_T(Z_T) of `texts`. The model is used in evaluation mode."""

    def encode(batch: Sequence[str]) -> Tensor:
        inputs = processor(text=list(batch), return_tensors="pt").to(model.device)
        return model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output

    return _embed(model, encode, model.text_predictor, texts, batch_size)


@torch.no_grad()
def _embed(
    model: LeVLJEPAModel,
    encode: Callable[[Sequence[Any]], Tensor],
    predictor: torch.nn.Module | None,
    items: Sequence[Any],
    batch_size: int,
) -> Embeddings:
    if len(items) == 0:
        raise ValueError("Nothing to embed: the list of images or texts is empty.")
    was_training = model.training
    model.eval()
    try:
        embeds = [encode(items[start : start + batch_size]) for start in range(0, len(items), batch_size)]
        predictions = None if predictor is None else torch.cat([predictor(z).float().cpu() for z in embeds])
    finally:
        model.train(was_training)
    return Embeddings(torch.cat([z.float().cpu() for z in embeds]), predictions)


__all__ = ["Embeddings", "embed_images", "embed_texts"]
