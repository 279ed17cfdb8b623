"""Embeddings of many images or many texts: what every evaluation starts from."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..modeling_levljepa import LeVLJEPAModel
from ..processing_levljepa import evaluation_image_processor


class Embeddings(NamedTuple):
    """Embeddings of one modality on the CPU in float32, both [N, D], and what they predict of the other modality."""

    embeds: Tensor  # Z
    predictions: Tensor | None  # q(Z); None for a model without predictors


def embed_images(
    model: LeVLJEPAModel,
    processor: Callable[..., Any],
    images: Sequence[Any],
    batch_size: int = 256,
    transform: str = "evaluation",
    show_progress: bool = True,
) -> Embeddings:
    """Z_V and q_V(Z_V) of images.

    Args:
        model: Used in evaluation mode, and left in the mode it was in.
        processor: A `LeVLJEPAProcessor`.
        images: Anything the processor takes.
        batch_size: Images encoded at a time.
        transform: `"evaluation"` resizes to 256/224 of the crop, as the official zero-shot evaluation and probes do
            (`evaluation_image_processor`); `"processor"` uses the processor as it is. Evaluation during training, by
            `LeVLJEPATrainer`, uses the processor as it is.
        show_progress: Whether several batches show a progress bar.

    Raises:
        ValueError: if there are no images, or `transform` is unknown.
    """
    if transform not in ("evaluation", "processor"):
        raise ValueError(f"transform={transform!r} is unknown: use 'evaluation' or 'processor'.")
    if transform == "evaluation":
        processor = evaluation_image_processor(processor.image_processor)

    def encode(batch: Sequence[Any]) -> Tensor:
        inputs = processor(images=batch, return_tensors="pt").to(model.device)
        return model.get_image_features(inputs["pixel_values"].to(model.dtype)).pooler_output

    return _embed(model, encode, model.vision_predictor, images, batch_size, "images" if show_progress else None)


def embed_texts(
    model: LeVLJEPAModel,
    processor: Callable[..., Any],
    texts: Sequence[str],
    batch_size: int = 256,
    show_progress: bool = True,
) -> Embeddings:
    """Z_T and q_T(Z_T) of texts.

    Args:
        model: Used in evaluation mode, and left in the mode it was in.
        processor: A `LeVLJEPAProcessor`.
        texts: Captions or prompts.
        batch_size: Texts encoded at a time.
        show_progress: Whether several batches show a progress bar.

    Raises:
        ValueError: if there are no texts.
    """

    def encode(batch: Sequence[str]) -> Tensor:
        inputs = processor(text=list(batch), return_tensors="pt").to(model.device)
        return model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output

    return _embed(model, encode, model.text_predictor, texts, batch_size, "texts" if show_progress else None)


@torch.no_grad()
def _embed(
    model: LeVLJEPAModel,
    encode: Callable[[Sequence[Any]], Tensor],
    predictor: torch.nn.Module | None,
    items: Sequence[Any],
    batch_size: int,
    progress: str | None,
) -> Embeddings:
    if len(items) == 0:
        raise ValueError("Nothing to embed: the list of images or texts is empty.")
    embeds, predictions = [], []
    starts = range(0, len(items), batch_size)
    was_training = model.training
    model.eval()
    try:
        for start in tqdm(starts, f"embedding {progress}", disable=progress is None or len(starts) == 1):
            z = encode(items[start : start + batch_size])
            embeds.append(z.float().cpu())
            if predictor is not None:
                predictions.append(predictor(z).float().cpu())
    finally:
        model.train(was_training)
    return Embeddings(torch.cat(embeds), torch.cat(predictions) if predictions else None)


__all__ = ["Embeddings", "embed_images", "embed_texts"]
