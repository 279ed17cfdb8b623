"""Embeddings of many images or many texts: what every evaluation starts from."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..model.modeling_levljepa import LeVLJEPAModel
from ..model.processing_levljepa import evaluation_image_processor


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

    def encode(batch: Sequence[Any]) -> Embeddings:
        inputs = processor(images=batch, return_tensors="pt").to(model.device)
        z = model.get_image_features(inputs["pixel_values"].to(model.dtype)).pooler_output
        return Embeddings(z, None if model.vision_predictor is None else model.vision_predictor(z))

    with _evaluating(model):
        return embed_in_batches(encode, images, batch_size, "images" if show_progress else None)


def embed_texts(
    model: LeVLJEPAModel,
    processor: Callable[..., Any],
    texts: Sequence[str],
    batch_size: int = 256,
    show_progress: bool = True,
) -> Embeddings:
    """Z_T and q_T(Z_T) of texts. Equal texts are embedded once, and texts of like length together.

    Args:
        model: Used in evaluation mode, and left in the mode it was in.
        processor: A `LeVLJEPAProcessor`.
        texts: Captions or prompts.
        batch_size: Texts encoded at a time.
        show_progress: Whether several batches show a progress bar.

    Raises:
        ValueError: if there are no texts.
    """

    def encode(batch: Sequence[str]) -> Embeddings:
        inputs = processor(text=list(batch), return_tensors="pt").to(model.device)
        z = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        return Embeddings(z, None if model.text_predictor is None else model.text_predictor(z))

    with _evaluating(model):
        return embed_distinct(encode, texts, batch_size, "texts" if show_progress else None)


def embed_distinct(
    encode: Callable[[Sequence[str]], Embeddings], texts: Sequence[str], batch_size: int, progress: str | None
) -> Embeddings:
    """`embed_in_batches` of texts: equal ones once, and those of like length together, which need little padding."""
    distinct = sorted(set(texts), key=len)
    embeddings = embed_in_batches(encode, distinct, batch_size, progress)
    row = {text: i for i, text in enumerate(distinct)}
    rows = [row[text] for text in texts]
    return Embeddings(*(None if one is None else one[rows] for one in embeddings))


@torch.no_grad()
def embed_in_batches(
    encode: Callable[[Sequence[Any]], Embeddings], items: Sequence[Any], batch_size: int, progress: str | None
) -> Embeddings:
    """`encode` of all items, `batch_size` at a time, on the CPU in float32; `progress` names the bar, or is `None`.

    Raises:
        ValueError: if there are no items.
    """
    if len(items) == 0:
        raise ValueError("Nothing to embed: the list of images or texts is empty.")
    starts = range(0, len(items), batch_size)
    batches = [
        encode(items[start : start + batch_size])
        for start in tqdm(starts, f"embedding {progress}", disable=progress is None or len(starts) == 1)
    ]
    columns = zip(*batches, strict=True)
    return Embeddings(*(None if one[0] is None else torch.cat([z.float().cpu() for z in one]) for one in columns))


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


__all__ = ["Embeddings", "embed_distinct", "embed_images", "embed_in_batches", "embed_texts"]
