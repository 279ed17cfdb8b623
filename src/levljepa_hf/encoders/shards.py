"""The shards of `levljepa embed`: a file of features for some rows of a collection, whole or not there.

    shard = Shard(folder, number=0, num_rows=10_000, size=4096, file_format="parquet", dtype="float16")
    write_shards(encoder, images, [shard], shapes, key, transform="evaluation", batch_size=64, ...)
    shard.read_header(key)  # None if it is not there, not whole or of other settings

An image that does not decode has no row: the column `index` tells which rows there are, and the header which not.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.collator import IMAGE_TYPES, MIN_SAMPLES_TO_JUDGE
from ..data.images import UndecodedImageError, decoding, open_image, path_of
from ..data.loading import look_up
from ..files import write_whole
from ..model.modeling_levljepa import retrieval_embeds
from ..model.processing_levljepa import to_rgb
from .encoders import Encoder

logger = logging.get_logger(__name__)

POOLED = ("cls", "mean", "image_embeds", "predictions", "retrieval")
FEATURES = (*POOLED, "patches")
_METADATA = "levljepa"  # in a shard: JSON of the settings' digest and the rows left out (and the keys, in safetensors)
_ROW_GROUP_BYTES = 64 * 2**20


def encode_features(encoder: Encoder, pixel_values: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Features of prepared images [n, 3, S, S] by their names in `FEATURES`, [n, ...]."""
    tokens, embeddings = encoder.encode(pixel_values)
    found = {"cls": tokens.cls, "patches": tokens.patches}
    if "mean" in names:
        found["mean"] = tokens.patches.float().mean(dim=1)
    if embeddings is not None:
        z, prediction = (None if one is None else one.float() for one in embeddings)
        found |= {"image_embeds": z, "predictions": prediction, "retrieval": retrieval_embeds(prediction, z)}
    return {name: found[name] for name in names}


def available_features(encoder: Encoder) -> tuple[str, ...]:
    """The names in `FEATURES` that an encoder has."""
    missing = {"image_embeds", "predictions", "retrieval"} if not encoder.readouts else set()
    missing |= {"predictions"} if len(encoder.readouts) <= 1 else set()
    return tuple(name for name in FEATURES if name not in missing)


@dataclass(frozen=True)
class ImageCollection:
    """The images of a run, still as files, and which of their columns name them."""

    dataset: datasets.Dataset
    image_column: str
    key_column: str | None
    root: str  # which is left out of the files' names
    fingerprint: str

    @property
    def num_rows(self) -> int:
        return len(self.dataset)


class Shard:
    """A file with the features of some rows, which follow one another."""

    def __init__(self, folder: Path, number: int, num_rows: int, size: int, file_format: str, dtype: str) -> None:
        self.number, self.format, self.dtype = number, file_format, getattr(torch, dtype)
        self.rows = range(number * size, min((number + 1) * size, num_rows))
        num_shards = -(-num_rows // size)
        self.path = folder / f"features-{number:05d}-of-{num_shards:05d}.{self.format}"

    def batches(self, batch_size: int) -> list[range]:
        return [self.rows[start : start + batch_size] for start in range(0, len(self.rows), batch_size)]

    def read_header(self, key: str) -> dict[str, Any] | None:
        """What is noted in the file; `None` if it is not there, not whole or of other settings."""
        if not self.path.exists():
            return None
        try:
            if self.format == "parquet":
                with pq.ParquetFile(self.path) as file:
                    num_rows, text = file.metadata.num_rows, file.schema_arrow.metadata[_METADATA.encode()]
            else:
                with safe_open(self.path, "pt") as file:
                    num_rows, text = file.get_slice("index").get_shape()[0], file.metadata()[_METADATA]
            header = json.loads(text)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            logger.warning(f"{self.path} is no whole shard ({error}): it is written again.")
            return None
        whole = header["settings"] == key and num_rows + len(header["skipped"]) == len(self.rows)
        return header if whole else None

    def write(
        self,
        rows: Sequence[int],
        keys: Sequence[str | None],
        features: Mapping[str, Tensor],
        skipped: Sequence[tuple[int, str]],
        key: str,
    ) -> None:
        index = torch.tensor(rows, dtype=torch.int64)
        header = {"settings": key, "skipped": skipped}
        if self.format == "safetensors":
            text = json.dumps({**header, "keys": keys})
            write_whole(self.path, lambda part: save_file({"index": index, **features}, part, {_METADATA: text}))
            return
        columns = {"index": pa.array(index.numpy()), "key": pa.array(keys, pa.string())}
        table = pa.table(columns | {name: _fixed_size_lists(tensor) for name, tensor in features.items()})
        table = table.replace_schema_metadata({_METADATA: json.dumps(header)})
        # By bytes and not by rows: readers hold a group in memory, and a row may be 1 kB or 300.
        group = max(1, _ROW_GROUP_BYTES * len(rows) // max(1, table.nbytes))

        def write_table(part: Path) -> None:  # neither compression nor a dictionary gains anything on features
            with pq.ParquetWriter(part, table.schema, compression="none", use_dictionary=["key"]) as writer:
                if rows:  # `datasets` does not read a row group of no rows
                    writer.write_table(table, group)

        write_whole(self.path, write_table)


def _fixed_size_lists(tensor: Tensor) -> pa.Array:
    """A tensor [n, ...] as a column of n (nested) lists."""
    column = pa.array(tensor.numpy().reshape(-1))
    for size in reversed(tensor.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def write_shards(
    encoder: Encoder,
    images: ImageCollection,
    shards: Sequence[Shard],
    shapes: Mapping[str, tuple[int, ...]],
    key: str,
    *,
    transform: str,
    batch_size: int,
    num_workers: int,
    max_skipped_rate: float,
    show_progress: bool,
) -> None:
    """Encodes the rows of the shards, one shard after the other, and writes each when it is complete.

    Args:
        encoder: What encodes them.
        images: The collection.
        shards: Those to write.
        shapes: Of one image's features, by their names in `FEATURES`.
        key: The settings' digest, which is noted in the files.
        transform, batch_size, num_workers, max_skipped_rate: As of `EmbedArguments`.
        show_progress: Whether a bar is shown.

    Raises:
        ValueError: if a feature is not finite, or more than `max_skipped_rate` of the images do not decode.
    """
    batches = [list(rows) for shard in shards for rows in shard.batches(batch_size)]
    loader = DataLoader(
        images.dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_Collator(images, encoder.image_processor(transform)),
        pin_memory=encoder.device.type == "cuda",
    )
    # One loader for all shards, whose workers go on with the next one while this one is written.
    prepared = iter(loader)
    seen = failed = 0
    with tqdm(total=sum(map(len, batches)), desc="embedding", unit=" images", disable=not show_progress) as bar:
        for shard in shards:
            # Made once at full size: lists of batches, joined at the end, would hold everything twice.
            buffers = {name: torch.empty(len(shard.rows), *shape, dtype=shard.dtype) for name, shape in shapes.items()}
            rows: list[int] = []
            keys: list[str | None] = []
            skipped: list[tuple[int, str]] = []
            for batch in shard.batches(batch_size):
                pixel_values, names, reasons = next(prepared)
                skipped += [(row, reason) for row, reason in zip(batch, reasons, strict=True) if reason]
                good = [i for i, reason in enumerate(reasons) if not reason]
                if good:
                    features = encode_features(encoder, pixel_values, list(shapes))
                    for name, tensor in features.items():
                        buffers[name][len(rows) : len(rows) + len(good)] = tensor.to(shard.dtype)
                rows += [batch[i] for i in good]
                keys += [names[i] for i in good]
                bar.update(len(batch))
                seen, failed = seen + len(batch), failed + len(batch) - len(good)
                where = f"the last of them is {skipped[-1:]}"
                check_skipped(failed, seen, max_skipped_rate, where, MIN_SAMPLES_TO_JUDGE)
            features = {name: buffer[: len(rows)] for name, buffer in buffers.items()}
            _check_finite(features, rows)
            shard.write(rows, keys, features, skipped, key)


class _Collator:
    """Decodes and prepares samples: pixel values of those that decode, and of each its key and why it does not."""

    def __init__(self, images: ImageCollection, processor: Any) -> None:
        self.image_column, self.key_column, self.root = images.image_column, images.key_column, images.root
        self.processor = processor

    def __call__(
        self, samples: Sequence[Mapping[str, Any]]
    ) -> tuple[Tensor | None, list[str | None], list[str | None]]:
        pixels, reasons = [], []
        for sample in samples:
            value = look_up(sample, self.image_column)
            if value is not None and not isinstance(value, IMAGE_TYPES):
                raise ValueError(
                    f"Column {self.image_column!r} holds {value!r:.80} ({type(value).__name__}), which is no image: "
                    "name another --image_column."
                )
            try:
                with decoding():
                    image = to_rgb(open_image(value))
            except UndecodedImageError as error:
                reasons.append(str(error))
                continue
            pixels.append(self.processor(image, return_tensors="pt")["pixel_values"])
            reasons.append(None)
        return torch.cat(pixels) if pixels else None, [self._key(sample) for sample in samples], reasons

    def _key(self, sample: Mapping[str, Any]) -> str | None:
        if self.key_column is not None:
            key = sample[self.key_column]
            return None if key is None else str(key)
        path = path_of(look_up(sample, self.image_column))
        if path is None:
            return None
        path = Path(path)
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name


def _check_finite(features: Mapping[str, Tensor], rows: Sequence[int]) -> None:
    for name, tensor in features.items():
        bad = ~tensor.isfinite().flatten(1).all(dim=1)
        if bad.any():
            raise ValueError(
                f"{name} of image {rows[int(bad.nonzero()[0])]} is not finite in {str(tensor.dtype)[6:]}: use another "
                "--dtype or --model_dtype, or look at the weights."
            )


def check_skipped(skipped: int, total: int, max_rate: float, where: str, judged_by: int = 1) -> None:
    if skipped > max_rate * max(total, judged_by):
        raise ValueError(
            f"{skipped} of {total} images do not decode, which is more than {max_rate:.2%}; {where}. Mend them, name "
            "another --image_column or raise --max_skipped_rate."
        )


def list_skipped(folder: Path, shards: Sequence[Shard], key: str, write: bool) -> int:
    """Number of all images left out; `write` lists them in a file."""
    headers = [(shard, shard.read_header(key)) for shard in shards]
    if lost := [shard.path.name for shard, header in headers if header is None]:
        raise OSError(f"{folder} lacks {lost[0]} after it was written: do all processes see the same folder?")
    skipped = [one for _, header in headers for one in header["skipped"]]
    if write and skipped:
        lines = (json.dumps({"index": index, "reason": reason}) + "\n" for index, reason in skipped)
        text = "".join(lines)
        write_whole(folder / "skipped.jsonl", lambda part: part.write_text(text, "utf-8"))
    return len(skipped)


__all__ = [
    "ImageCollection",
    "FEATURES",
    "POOLED",
    "Shard",
    "available_features",
    "check_skipped",
    "encode_features",
    "list_skipped",
    "write_shards",
]
