"""The photos that are explored, and what models make of them.

    photos = load_photos("path/to/photos")  # or a Hub id, "scenes", ...
    seen = embed_photos(load_encoder("runs/demo"), photos)
    seen.features["cls"]  # [N, C]

A photo that does not decode is left out and named in `photos.broken`.
"""

import io
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Value
from PIL import Image as PILImage
from torch import Tensor
from tqdm.auto import tqdm

from ..data.images import UndecodedImageError, content_of, decoding, open_image, path_of
from ..data.labelled import readable
from ..data.loading import FILE_BUILDERS, USUAL_COLUMNS, find_column, guess_column, look_up
from ..data.sources import Column, SourceFiles, column_values, encoded
from ..data.splits import EvaluationSplit, Subsample
from ..encoders.embeddings import Embeddings
from ..encoders.encoders import Encoder
from ..encoders.features import image_digest, pooled_features
from ..evaluation.task import load_split
from ..evaluation.zero_shot import offered_readouts
from ..files import write_whole
from ..model.modeling_levljepa import similarity
from ..model.processing_levljepa import to_rgb

THUMBNAIL_SIDE = 160
MAX_PIXELS = 100_000_000
_SCENES_SIDE = "128"


@dataclass
class Photos(EvaluationSplit):
    """A split whose photos all decode, each with a small picture of it.

        Photos("mine", images=["a.jpg", "b.jpg"])

    Args:
        name: Of dataset and split.
        images: N images as `levljepa_hf.data.images.open_image` takes them.
        labels: The class of each, an index into `class_names`; -1 without one.
        class_names: C names.
        prompts: Templates of zero-shot prompts.
        captions: The captions of each photo, none or more.
        masks, void, questions: As in `EvaluationSplit`; the explorer reads none of them.
        transform: How photos are prepared for the pooled features.
        dropped: How many samples were left out.
        file_names: What each photo is called, by default its number.
        thumbnails: A WebP of each, the longer side `THUMBNAIL_SIDE`; made where there are none.
        broken: Name and reason of each photo that was left out as it does not decode.
    """

    file_names: Sequence[str] = ()
    thumbnails: Sequence[bytes] = ()
    broken: Sequence[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.file_names = self.file_names or [str(i) for i in range(len(self.images))]
        self.thumbnails = self.thumbnails or [thumbnail(open_image(image)) for image in self.images]

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int) -> PILImage.Image:
        """Photo number `index`, RGB."""
        return to_rgb(open_image(self.images[index]))


def load_photos(
    dataset: str,
    split: str | None = None,
    *,
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    max_photos: int | None = None,
    seed: int = 0,
    transform: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    show_progress: bool = True,
) -> Photos:
    """Photos with what is known of them.

    Args:
        dataset: A folder of images (the folders in it are classes, `metadata.jsonl` may hold captions), a file or any
            other source of `levljepa_hf.data.load_source`, or `scenes`, which are drawn on the spot.
        split: One, or several as in `train+validation`. By default all of a folder or file, and the scenes' `test`.
            Of a Hub id it must be named.
        config_name: Configuration of a source that has several; of the scenes, their side in pixels.
        image_column, label_column: Found by themselves where they are left out.
        max_photos: At most so many, drawn at random.
        seed: Of that draw.
        transform: How photos are prepared for the pooled features, see `Encoder.image_processor`. By default
            "evaluation", and "default" for the scenes.
        cache_dir: Beside it thumbnails are kept by content, as in `extract`; `None` keeps none.
        show_progress: Whether a bar is shown.

    Raises:
        ValueError: if there are no images, none decodes, or a split or column does not exist.
        OSError: if the source is not within reach.
    """
    if max_photos is not None and max_photos < 1:
        raise ValueError(f"max_photos={max_photos} leaves nothing: it must be at least 1.")
    load = _load_scenes if dataset == "scenes" else _load_source
    found = load(dataset, split, config_name, image_column, label_column, Subsample(max_photos, seed))
    if transform is not None:
        found["transform"] = transform
    return _with_thumbnails(found, cache_dir, show_progress)


def _load_scenes(_: str, split: str | None, config_name: str | None, *others: Any) -> dict[str, Any]:
    subsample: Subsample = others[-1]
    options = {"config_name": config_name or _SCENES_SIDE, **vars(subsample)}
    scenes = load_split("scenes", "zero-shot", split or "test", **options)
    captions = load_split("scenes", "retrieval", split or "test", **options).captions
    fields = ("name", "images", "labels", "class_names", "prompts", "transform")
    return {name: getattr(scenes, name) for name in fields} | {
        "captions": captions,
        "file_names": [f"scene {i}" for i in range(len(scenes.images))],
    }


def _load_source(
    dataset: str,
    split: str | None,
    config_name: str | None,
    image_column: str | None,
    label_column: str | None,
    subsample: Subsample,
) -> dict[str, Any]:
    path = Path(dataset)
    is_local = path.exists() or path.suffix in FILE_BUILDERS
    try:
        files = SourceFiles(dataset, config_name)
    except FileNotFoundError as error:  # also of a folder without data
        where = "holds no images" if path.is_dir() else "is no folder or file here, and no data set within reach"
        raise ValueError(f"{dataset} {where}: name a folder of photos, a file or `scenes`. ({error})") from error
    if split is None and not is_local:
        raise ValueError(f"Which split of {dataset}? Name one with --split: {', '.join(map(str, files.splits))}.")
    split = split or "+".join(map(str, files.splits))
    rows = files.load(files.find(split))
    address = find_column(rows.features, "image", image_column, dataset)
    if label_column is not None:
        label_column = find_column(rows.features, "label", label_column, dataset)
    else:  # photos need no labels, and what is no class may be anything
        classes = (one for one in USUAL_COLUMNS["label"] if isinstance(rows.features.get(one), ClassLabel))
        label_column = next(classes, None)
    rows = rows.select(subsample(range(len(rows))))
    if len(rows) == 0:
        raise ValueError(f"{dataset} ({split}) holds no images.")
    caption_column = guess_column(rows.features, "caption")
    images = encoded(rows, address)
    paths = [path_of(look_up(row, address)) for row in images]
    return {
        "name": f"{path.name or dataset}/{split}",
        "images": Column(images, address),
        **_labels(rows, label_column),
        "captions": None if caption_column is None else [_texts(one) for one in column_values(rows, caption_column)],
        "file_names": [path.rsplit("/", 1)[-1] if path else str(i) for i, path in enumerate(paths)],
    }


def _labels(rows: Any, column: str | None) -> dict[str, Any]:
    if column is None:
        return {}
    values = [-1 if value is None else value for value in column_values(rows, column)]
    feature = rows.features.get(column)
    if isinstance(feature, ClassLabel):
        names = tuple(feature.names)
    elif isinstance(feature, Value):
        names = tuple(str(one) for one in sorted({value for value in values if value != -1}))
        values = [names.index(str(value)) if value != -1 else -1 for value in values]
    else:
        raise ValueError(f"label_column={column!r} holds neither classes nor values ({feature}): name another.")
    return {"labels": values, "class_names": readable(names, one_word=True)}


def _texts(value: Any) -> tuple[str, ...]:
    lines = value.splitlines() if isinstance(value, str) else value or ()
    return tuple(line for line in lines if isinstance(line, str))


class _Chosen(Sequence):
    """Some items of a sequence. Pickles, for workers."""

    def __init__(self, items: Sequence[Any], chosen: Sequence[int]) -> None:
        self.items, self.chosen = items, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Any:
        return self.items[self.chosen[index]]


# ---------------------------------------------------------------------------------------------------------- thumbnails


def thumbnail(image: PILImage.Image, side: int = THUMBNAIL_SIDE) -> bytes:
    """A WebP of at most `side` x `side` pixels."""
    image = to_rgb(image)
    image.thumbnail((side, side), PILImage.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "webp", quality=78)
    return buffer.getvalue()


def _with_thumbnails(found: dict[str, Any], cache_dir: str | os.PathLike | None, show_progress: bool) -> Photos:
    """The photos that decode; looks at each."""
    images = found["images"]
    folder = None if cache_dir is None else Path(cache_dir).with_name(f"thumbnails-{THUMBNAIL_SIDE}")
    lock = threading.Lock()

    def look(index: int) -> bytes | str:
        with lock:  # rows of `datasets` are not made for several threads
            value = images[index]
        try:
            return _cached_thumbnail(value, folder)
        except UndecodedImageError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(look, range(len(images)))
        bar = tqdm(results, "reading photos", len(images), unit=" photos", disable=not show_progress)
        looked = list(bar)
    good = [i for i, one in enumerate(looked) if isinstance(one, bytes)]
    broken = [(found["file_names"][i], one) for i, one in enumerate(looked) if isinstance(one, str)]
    if not good:
        name, reason = broken[0]
        raise ValueError(f"None of the {len(broken)} images of {found['name']} decodes; {name}: {reason}.")
    columns = ("labels", "captions", "file_names")
    chosen = {name: [found[name][i] for i in good] for name in columns if found.get(name) is not None}
    return Photos(
        **{**found, **chosen, "images": images if len(good) == len(images) else _Chosen(images, good)},
        dropped=len(broken),
        thumbnails=[looked[i] for i in good],
        broken=broken,
    )


def _cached_thumbnail(value: Any, folder: Path | None) -> bytes:
    with decoding():
        value = content_of(value)
        digest = None if folder is None else image_digest(value).hex()
    kept = None if digest is None else folder / digest[:2] / f"{digest[2:]}.webp"
    if kept is not None and kept.exists():
        return kept.read_bytes()
    with decoding():
        made = thumbnail(open_image(value, draft_size=THUMBNAIL_SIDE, max_pixels=MAX_PIXELS))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, lambda part: part.write_bytes(made))
    return made


# ---------------------------------------------------------------------------------------------------------- embeddings


@dataclass(frozen=True)
class PhotoFeatures:
    """A model, and what it makes of some photos. `embed_photos` makes it.

    Args:
        encoder: The model.
        features: Of N photos: `cls` and `mean` (of the patch tokens) [N, C]; of a whole model also `image_embeds`
            (Z_V) and, with predictors, `predictions` (q_V(Z_V)) [N, D].
    """

    encoder: Encoder
    features: dict[str, Tensor]

    @cached_property
    def embeddings(self) -> Embeddings | None:
        """Z_V and q_V(Z_V), or `None` without a text tower."""
        if "image_embeds" not in self.features:
            return None
        return Embeddings(self.features["image_embeds"], self.features.get("predictions"))

    @property
    def best_readout(self) -> str | None:
        """The readout to quote, or `None` without a text tower."""
        readouts = self.encoder.readouts
        return "avg" if "avg" in readouts else readouts[0] if readouts else None


Seen = PhotoFeatures  # the name it had before


def embed_photos(encoder: Encoder, photos: Photos, **options: Any) -> PhotoFeatures:
    """Encodes the photos that the cache lacks.

    Args:
        encoder: Of `levljepa_hf.evaluation.load_encoder`.
        photos: Of `load_photos`.
        options: Those of `levljepa_hf.encoders.features.extract`: `batch_size`, `num_workers`, `cache_dir`, ...
    """
    return PhotoFeatures(
        encoder, pooled_features(encoder, photos.images, **{"transform": photos.transform, **options})
    )


def text_similarity(seen: PhotoFeatures, texts: Sequence[str], readout: str | None = None) -> Tensor:
    """Similarity of every photo with every text, [N, M], under a readout; by default the one to quote.

    Raises:
        ValueError: if the model has no text tower or lacks the readout.
    """
    return similarity_with(seen, seen.encoder.embed_texts(texts, show_progress=False), readout)


def similarity_with(seen: PhotoFeatures, texts: Embeddings, readout: str | None = None) -> Tensor:
    """`text_similarity` of texts that are embedded already.

    Raises:
        ValueError: as `text_similarity`.
    """
    (readout, *_) = offered_readouts(seen.encoder, [readout] if readout else [seen.best_readout or ""])
    with torch.no_grad():
        images = seen.embeddings
        return similarity(images.embeds, texts.embeds, images.predictions, texts.predictions, readout)


__all__ = [
    "MAX_PIXELS",
    "PhotoFeatures",
    "Photos",
    "Seen",
    "THUMBNAIL_SIDE",
    "embed_photos",
    "load_photos",
    "similarity_with",
    "text_similarity",
    "thumbnail",
]
