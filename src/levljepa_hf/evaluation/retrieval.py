"""Text-image retrieval: recall at k in both directions, from embeddings, under any readout of a LeVLJEPA model.

Recall at k is the share of queries that find their own partner among the k most similar candidates (the protocol of
CLIP, arXiv 2103.00020, on Flickr and COCO). The readouts are those of `similarity`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ..data.images import open_image
from ..encoders.encoders import Encoder
from ..model.modeling_levljepa import similarity
from ..options import option, with_field_help
from .pictures import plot_nearest
from .results import TaskResult
from .task import Task
from .zero_shot import check_readouts, image_embeddings, offered_readouts

if TYPE_CHECKING:
    from ..data.splits import EvaluationSplit


@torch.no_grad()
def retrieval_recall(
    image_embeds: Tensor,
    text_embeds: Tensor,
    predicted_text_embeds: Tensor | None = None,
    predicted_image_embeds: Tensor | None = None,
    readout: str = "avg",
    ks: Sequence[int] = (1, 5, 10),
    image_of_text: Tensor | None = None,
    chunk_size: int = 1024,
) -> dict[str, float]:
    """Recall at k of text-to-image and image-to-text retrieval.

    An image with several captions counts as found when any of them is. Equal similarities count at their expected
    value under a random order, so that a collapsed model scores at chance (`retrieval_chance`) and not at 1, and
    so does one whose embeddings are not finite: similarities that are NaN come last.

    Args:
        image_embeds: Z_V [N_images, D].
        text_embeds: Z_T [N_texts, D].
        predicted_text_embeds: q_V(Z_V) [N_images, D]; not needed for the readouts without it.
        predicted_image_embeds: q_T(Z_T) [N_texts, D]; the same.
        readout: how similarity is read, see `similarity`.
        ks: the k of recall at k.
        image_of_text: [N_texts] index of the image each text belongs to; by default text i belongs to image i.
        chunk_size: queries compared at once; memory grows with chunk_size x N.

    Returns:
        Fractions named `text_to_image_R@1`, `image_to_text_R@1` and so on.
    """
    num_images, num_texts = len(image_embeds), len(text_embeds)
    if image_of_text is None:
        if num_images != num_texts:
            raise ValueError(
                f"{num_images} images and {num_texts} texts do not pair up one to one: pass `image_of_text`, the "
                "index of the image that each text belongs to."
            )
        image_of_text = torch.arange(num_texts)
    image_of_text = image_of_text.to(image_embeds.device)
    if len(image_of_text) != num_texts or image_of_text.min() < 0 or image_of_text.max() >= num_images:
        raise ValueError(f"image_of_text must hold one index below {num_images} for each of the {num_texts} texts.")

    def similarities(images: slice, texts: slice) -> Tensor:
        predicted_texts = None if predicted_text_embeds is None else predicted_text_embeds[images]
        predicted_images = None if predicted_image_embeds is None else predicted_image_embeds[texts]
        return similarity(image_embeds[images], text_embeds[texts], predicted_texts, predicted_images, readout).float()

    everything = slice(None)
    text_hits, image_hits = [], []
    for start in range(0, num_texts, chunk_size):
        chunk = slice(start, start + chunk_size)
        owners = image_of_text[chunk]
        scores = similarities(everything, chunk).T  # [texts of the chunk, images]
        own = owners[:, None] == torch.arange(num_images, device=owners.device)
        text_hits.append(_hits(scores, own, ks))
    for start in range(0, num_images, chunk_size):
        chunk = slice(start, start + chunk_size)
        scores = similarities(chunk, everything)  # [images of the chunk, texts]
        own = torch.arange(num_images, device=image_of_text.device)[chunk, None] == image_of_text
        captioned = own.any(dim=1)
        image_hits.append(_hits(scores[captioned], own[captioned], ks))
    recalls = {"text_to_image": torch.cat(text_hits).mean(dim=0), "image_to_text": torch.cat(image_hits).mean(dim=0)}
    return {f"{way}_R@{k}": recall[i].item() for way, recall in recalls.items() for i, k in enumerate(ks)}


def _hits(scores: Tensor, own: Tensor, ks: Sequence[int]) -> Tensor:
    """Chance in 0..1 [queries, len(ks)] that the best own candidate is among the first k, with ties in random order.

    `scores` [queries, candidates]; `own` marks each query's own candidates, which do not stand in each other's way.
    """
    scores = scores.masked_fill(scores.isnan(), -math.inf)  # NaN compares as equal to nothing: it would be found first
    # Of n that tie with the best own one, it is equally likely to come first, second, ... or last among them: it is
    # within k with the chance (k - ahead) / (1 + n).
    best = scores.masked_fill(~own, -math.inf).amax(dim=1, keepdim=True)
    ahead = ((scores > best) & ~own).sum(dim=1, keepdim=True)
    tied = ((scores == best) & ~own).sum(dim=1, keepdim=True)
    k = torch.tensor(ks, device=scores.device)
    return ((k - ahead) / (1 + tied)).clamp(0, 1)


def retrieval_chance(num_candidates: int, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall at k of a random order, `R@k` = k / num_candidates, with one partner a query among the candidates."""
    return {f"R@{k}": min(1.0, k / num_candidates) for k in ks}


@with_field_help
@dataclass(frozen=True)
class RetrievalProtocol:
    """Recall at k in both directions, every readout, all captions of an image.

    `levljepa evaluate retrieval` makes options of the fields.
    """

    ks: list[int] = option(default_factory=lambda: [1, 5, 10], help="The k of recall at k.")
    max_captions: int = option(default=5, help="Captions of an image that take part, the first so many.")
    readouts: list[str] = option(
        default_factory=list,
        help="Of zeroshot, proj, proj_text, avg, predictor_pair; by default all that the model has.",
    )

    def __post_init__(self) -> None:
        check_readouts(self.readouts)
        if not self.ks or min(self.ks) < 1 or self.max_captions < 1:
            raise ValueError(f"ks={self.ks} and max_captions={self.max_captions}: all must be 1 or more.")


def evaluate_retrieval(
    encoder: Encoder, test: "EvaluationSplit", protocol: RetrievalProtocol | None = None, **feature_options: Any
) -> TaskResult:
    """Recall at k of text-to-image and image-to-text retrieval under each readout.

    Args:
        encoder: A whole model.
        test: Images with captions.
        protocol: By default five captions an image, k = 1, 5, 10.
        feature_options: Those of `levljepa_hf.encoders.features.extract`.

    Raises:
        ValueError: if the split has no captions, or the encoder lacks a readout.
    """
    protocol = protocol or RetrievalProtocol()
    readouts = offered_readouts(encoder, protocol.readouts)
    captions = [of_image[: protocol.max_captions] for of_image in test.require("captions")]
    texts = [caption for of_image in captions for caption in of_image]
    if not texts:
        raise ValueError(f"{test.name} has no caption for any image: is it the right column?")
    image_of_text = torch.tensor([i for i, of_image in enumerate(captions) for _ in of_image])
    text_embeds = encoder.embed_texts(texts)
    images = image_embeddings(encoder, test, **feature_options)
    pairs = (images.embeds, text_embeds.embeds, images.predictions, text_embeds.predictions)
    metrics: dict[str, float] = {}
    for readout in readouts:
        recalls = retrieval_recall(*pairs, readout, protocol.ks, image_of_text)
        metrics |= {f"{readout}_{name}": value for name, value in recalls.items()}

    def draw(path: Any = None) -> Any:
        rows = torch.linspace(0, len(texts) - 1, min(6, len(texts))).long().tolist()
        some = (pairs[0], pairs[1][rows], pairs[2], None if pairs[3] is None else pairs[3][rows])
        scores = similarity(*some, "avg" if "avg" in readouts else readouts[0])
        return plot_nearest([texts[row] for row in rows], _Decoded(test.images), scores, path)

    return TaskResult(
        runs=[metrics],
        details={
            "num_images": len(captions),
            "num_texts": len(texts),
            "images_without_captions": sum(not of_image for of_image in captions),
        },
        chance=_chance(readouts, captions, protocol.ks),
        pictures={"nearest": draw},
    )


def _chance(readouts: Sequence[str], captions: Sequence[Sequence[str]], ks: Sequence[int]) -> dict[str, float]:
    """Of a random order: an image with several captions finds one of them more often than a text its image."""
    num_texts = sum(map(len, captions))
    num_own = [len(of_image) for of_image in captions if of_image]
    chance = {}
    for k in ks:
        to_image = retrieval_chance(len(captions), [k])[f"R@{k}"]
        drawn = min(k, num_texts)
        missed = [math.comb(num_texts - own, drawn) / math.comb(num_texts, drawn) for own in num_own]
        for readout in readouts:
            chance[f"{readout}_text_to_image_R@{k}"] = to_image
            chance[f"{readout}_image_to_text_R@{k}"] = 1 - sum(missed) / len(missed)
    return chance


class _Decoded(Sequence):
    """The images of a sequence, decoded when they are asked for."""

    def __init__(self, images: Sequence[Any]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        return open_image(self.images[index])


TASK = Task(
    help="image-text recall at 1, 5, 10",
    protocol=RetrievalProtocol,
    run=evaluate_retrieval,
    reads="captions",
    headlines={
        "text to image R@1": ("avg_text_to_image_R@1", "zeroshot_text_to_image_R@1"),
        "image to text R@1": ("avg_image_to_text_R@1", "zeroshot_image_to_text_R@1"),
    },
    train=False,
    seeds=(),
    hub_task="image-text-retrieval",
    probe="retrieval",
    position=20,
)


__all__ = ["RetrievalProtocol", "evaluate_retrieval", "retrieval_chance", "retrieval_recall"]
