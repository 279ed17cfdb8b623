"""Features of a large collection of images, as sharded files, over any number of processes.

    levljepa embed --model MODEL --dataset photos --output features
    accelerate launch --num_processes 8 -m levljepa_hf.cli embed --model MODEL --dataset photos --output features
    torchrun --nproc_per_node 2 -m levljepa_hf.cli embed --model MODEL --dataset photos --output features  # on CPUs

Shard k holds the rows k S to (k + 1) S - 1 of the collection, whoever writes it, and has its name from when it is
whole. A run writes the shards that are missing, so it goes on where another one stopped, with any number of processes.
Batches never cross shards: on the same device, with the same number of threads, the files are the same bit for bit.

    features = datasets.load_dataset("parquet", data_files="features/*.parquet", split="train")
    tensors = safetensors.torch.load_file("features/features-00000-of-00010.safetensors")
"""

import datetime
import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.collator import IMAGE_TYPES, MAX_SKIPPED_RATE, MIN_SAMPLES_TO_JUDGE
from ..data.images import open_image
from ..data.loading import find_image_column, load_source, look_up
from ..files import write_whole
from ..model.modeling_levljepa import retrieval_embeds
from ..model.processing_levljepa import to_rgb
from ..options import Command, option
from ..version import versions
from .encoders import TRANSFORMS, Encoder, load_encoder

logger = logging.get_logger(__name__)

POOLED = ("cls", "mean", "image_embeds", "predictions", "retrieval")
FEATURES = (*POOLED, "patches")
DTYPES = ("float16", "float32", "bfloat16")
FORMATS = ("parquet", "safetensors")
KEY_COLUMNS = ("__key__", "key", "id", "image_id", "file_name", "filename", "path", "url")

_NAMES = ("model", "dataset", "versions")  # settings that are noted and not compared: fingerprints tell what they hold
_METADATA = "levljepa"  # in a shard: JSON of the settings' digest and the rows left out (and the keys, in safetensors)
_ROW_GROUP_BYTES = 64 * 2**20
_TIMEOUT = datetime.timedelta(days=7)  # ranks wait for the slowest one's last shard

EPILOG = """features:
  cls           the class token after the final norm          [C]
  mean          mean of the patch tokens                      [C]
  image_embeds  Z_V                                           [D]
  predictions   q_V(Z_V), the text predicted from the image   [D]
  retrieval     both, each of unit length; the cosine with a text's retrieval feature is the avg readout  [2 D]
  patches       the patch tokens; safetensors writes and reads them many times faster than parquet  [P, C]

examples:
  levljepa embed --model random:debug --dataset photos --output features
  accelerate launch --num_processes 8 -m levljepa_hf.cli embed --model runs/demo --dataset photos --output features
  torchrun --nproc_per_node 2 -m levljepa_hf.cli embed --model runs/demo --dataset photos --output features  (on CPUs)
"""


@dataclass
class EmbedArguments:
    """What is encoded, by what, and what is written."""

    model: str = option(help="A folder or Hub id of LeVLJEPA, timm:NAME, hf:NAME or random.", kind="model")
    dataset: str = option(
        help="A Hub id, a folder (images, webdataset or parquet shards, what save_to_disk wrote), a file or a glob.",
        kind="dataset",
    )
    output: str = option(help="The folder to write to. The shards that it has already are kept.")
    split: str = option(default="train", help="The split.")
    dataset_config: str | None = option(default=None, help="Configuration of a data set that has several.")
    image_column: str | None = option(default=None, help="Column of the images, found by itself where it is left out.")
    key_column: str | None = option(
        default=None, help="Column that names the images; by default __key__, id, ... or else the name of the file."
    )
    max_samples: int | None = option(default=None, help="The first so many images.")
    format: str = option(default="parquet", help="Of the files.", choices=FORMATS)
    features: list[str] = option(
        default_factory=list,
        help="What is written (below); by default all but patches that the model has.",
        choices=FEATURES,
    )
    dtype: str = option(default="float16", help="Of the features; bfloat16 in safetensors alone.", choices=DTYPES)
    model_dtype: str = option(
        default="float32", help="Of the weights, in which features are computed.", choices=DTYPES
    )
    transform: str = option(
        default="evaluation",
        help="How images are prepared: evaluation (short side 256/224 of the crop) or default (no margin).",
        choices=TRANSFORMS,
    )
    shard_size: int = option(default=4096, help="Images in a shard; each process holds the features of one in memory.")
    batch_size: int = option(default=64, help="Images encoded at a time.")
    num_workers: int = option(
        default=0, help="Processes that decode and prepare images, for each process that encodes."
    )
    max_skipped_rate: float = option(default=MAX_SKIPPED_RATE, help="The share of the images that may fail to decode.")
    device: str | None = option(
        default=None, help="Where the model runs, by default the process's GPU where there is one."
    )

    def __post_init__(self) -> None:
        for name, choices in (("format", FORMATS), ("dtype", DTYPES), ("model_dtype", DTYPES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown: use one of {', '.join(choices)}.")
        if unknown := [name for name in self.features if name not in FEATURES]:
            raise ValueError(f"features={unknown} are unknown: use some of {', '.join(FEATURES)}.")
        if self.dtype == "bfloat16" and self.format == "parquet":
            raise ValueError(
                "dtype='bfloat16' is no type of Parquet's: use float16 or float32, or format='safetensors'."
            )
        for name, least in (("shard_size", 1), ("batch_size", 1), ("num_workers", 0), ("max_samples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} is too small: use {least} or more.")
        if not 0 <= self.max_skipped_rate <= 1:
            raise ValueError(f"max_skipped_rate={self.max_skipped_rate} is no share: use 0 to 1.")
        try:
            torch.device(self.device or "cpu")
        except RuntimeError as error:
            raise ValueError(f"device={self.device!r} is none of torch's: use cpu, cuda, ...") from error


@dataclass(frozen=True)
class EmbedReport:
    """What a run did."""

    images: int  # of the shards that this run wrote
    kept_shards: int  # which were there already
    num_shards: int
    skipped: int  # images of the whole collection that do not decode
    seconds: float  # from the first batch to the last file, on the slowest process
    num_processes: int
    device: str
    model_dtype: str
    dtype: str

    def __str__(self) -> str:
        rate = self.images / self.seconds
        return (
            f"{self.images} images in {self.seconds:.1f} s: {rate:.1f} images/s, {rate / self.num_processes:.1f} a "
            f"process ({self.num_processes} x {self.device}, weights {self.model_dtype}, features {self.dtype}); "
            f"{self.kept_shards} of {self.num_shards} shards were there; {self.skipped} images skipped"
        )


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


def embed(arguments: EmbedArguments) -> EmbedReport:
    """Writes the shards that the output folder lacks. Called by every process alike.

    Beside the shards, the folder has `settings.json` (all that decides the features, and the versions) and, where
    images did not decode, `skipped.jsonl` (index and reason of each). Such an image has no row in its shard: the
    column `index` tells which rows there are.

    Raises:
        ValueError: if the folder holds features of other settings, the model lacks a feature, a column is missing, the
            disk has too little room, a feature is not finite in `dtype`, or more than `max_skipped_rate` of the images
            do not decode.
        OSError: if the model or the data are not within reach.
    """
    cpu = arguments.device == "cpu" or not torch.accelerator.is_available()  # else processes on CPUs are not joined
    state = PartialState(cpu=cpu, timeout=_TIMEOUT)
    if not state.is_main_process:
        logging.disable_progress_bar()
        datasets.disable_progress_bars()
    folder = Path(arguments.output)
    with state.main_process_first():  # which downloads, prepares and notes the settings; the others read
        images = _load_images(arguments)
        encoder = load_encoder(arguments.model, _device(arguments, state), getattr(torch, arguments.model_dtype))
        settings = _settings(arguments, encoder, images)
        key = _claim(folder, settings, clean=state.is_main_process)
    shards = [_Shard(folder, arguments, images.num_rows, number) for number in range(settings["num_shards"])]
    missing = [shard.number for shard in shards if shard.read_header(key) is None] if state.is_main_process else None
    (missing,) = broadcast_object_list([missing])
    todo = [shards[number] for number in missing]
    shapes = _shapes(encoder, settings["features"])
    _check_room(folder, sum(len(shard.rows) for shard in todo), shapes, arguments.dtype)

    start = time.perf_counter()
    mine = todo[state.process_index :: state.num_processes]
    _write_shards(arguments, encoder, images, mine, shapes, key, show_progress=state.is_main_process)
    state.wait_for_everyone()
    report = EmbedReport(
        images=sum(len(shard.rows) for shard in todo),
        kept_shards=len(shards) - len(todo),
        num_shards=len(shards),
        skipped=_list_skipped(folder, shards, key, write=state.is_main_process),
        seconds=time.perf_counter() - start,
        num_processes=state.num_processes,
        device=encoder.device.type,
        model_dtype=arguments.model_dtype,
        dtype=arguments.dtype,
    )
    _check_skipped(
        report.skipped, images.num_rows, arguments.max_skipped_rate, f"{folder / 'skipped.jsonl'} lists them"
    )
    return report


def _device(arguments: EmbedArguments, state: PartialState) -> torch.device:
    asked = torch.device(arguments.device or state.device)
    if asked.type == state.device.type and asked.index is None:
        return state.device
    if state.num_processes > 1 and asked != state.device:
        raise ValueError(
            f"device={arguments.device!r} is one device for {state.num_processes} processes: leave it out, or start "
            "one process."
        )
    return asked


@dataclass(frozen=True)
class _Images:
    """The collection, images encoded."""

    dataset: datasets.Dataset
    image_column: str
    key_column: str | None
    root: str  # which is left out of the files' names
    fingerprint: str

    @property
    def num_rows(self) -> int:
        return len(self.dataset)


def _load_images(arguments: EmbedArguments) -> _Images:
    dataset = load_source(arguments.dataset, arguments.split, config_name=arguments.dataset_config)
    fingerprint = dataset._fingerprint
    image_column = find_image_column(dataset.features, arguments.image_column)
    key_column = arguments.key_column or next((name for name in KEY_COLUMNS if name in dataset.features), None)
    if key_column is not None and key_column not in dataset.features:
        raise ValueError(f"key_column={key_column!r} is none of the columns {', '.join(dataset.column_names)}.")
    if arguments.max_samples is not None:
        dataset = dataset.select(range(min(arguments.max_samples, len(dataset))))
    if len(dataset) == 0:
        raise ValueError(f"{arguments.dataset} ({arguments.split}) has no images.")
    if isinstance(dataset.features.get(image_column), datasets.Image):
        dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    roots = {image_column if image_column in dataset.features else image_column.split(".")[0], key_column} - {None}
    dataset = dataset.select_columns(sorted(roots))
    return _Images(dataset, image_column, key_column, str(Path(arguments.dataset).absolute()), fingerprint)


def _settings(arguments: EmbedArguments, encoder: Encoder, images: _Images) -> dict[str, Any]:
    available = available_features(encoder)
    if missing := [name for name in arguments.features if name not in available]:
        raise ValueError(f"{encoder.name} has no {', '.join(missing)}: it has {', '.join(available)}.")
    names = list(dict.fromkeys(arguments.features)) or [name for name in available if name in POOLED]
    processor = encoder.image_processor(arguments.transform)
    settings = {
        "model": arguments.model,
        "model_fingerprint": encoder.fingerprint,
        "model_dtype": arguments.model_dtype,
        "features": names,
        "dtype": arguments.dtype,
        "format": arguments.format,
        "transform": arguments.transform,
        "image_processor": {k: v for k, v in sorted(processor.to_dict().items()) if k != "auto_map"},
        "dataset": arguments.dataset,
        "dataset_config": arguments.dataset_config,
        "split": arguments.split,
        "dataset_fingerprint": images.fingerprint,
        "image_column": images.image_column,
        "key_column": images.key_column,
        "num_rows": images.num_rows,
        "shard_size": arguments.shard_size,
        "num_shards": -(-images.num_rows // arguments.shard_size),
        "batch_size": arguments.batch_size,
        "versions": versions(),
    }
    return json.loads(json.dumps(settings, default=str))


def _claim(folder: Path, settings: dict[str, Any], clean: bool) -> str:
    """Notes the settings in a new folder, or compares them with those of one that has some. Returns their digest."""
    path = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    compared = {name: value for name, value in settings.items() if name not in _NAMES}
    if path.exists():
        there = json.loads(path.read_text("utf-8"))
        differ = [name for name in compared if there.get(name) != compared[name]]
        if differ:
            values = "; ".join(f"{name} {there.get(name)!r} there, {compared[name]!r} now" for name in differ)
            raise ValueError(
                f"{folder} holds features of other settings ({values}): use another folder, or remove it."
            )
    else:
        text = json.dumps(settings, indent=1) + "\n"
        write_whole(path, lambda part: part.write_text(text, "utf-8"))
    for part in folder.glob(".????????-*") if clean else ():  # of a run that was killed
        part.unlink(missing_ok=True)
    return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:16]


def _shapes(encoder: Encoder, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Of one image's features."""
    side = encoder.image_size
    features = encode_features(encoder, torch.zeros(1, 3, side, side), names)
    return {name: tuple(tensor.shape[1:]) for name, tensor in features.items()}


def _check_room(folder: Path, num_images: int, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
    needed = num_images * getattr(torch, dtype).itemsize * sum(torch.Size(shape).numel() for shape in shapes.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"The features of {num_images} images take {needed / 2**30:.1f} GiB, and {folder} has "
            f"{free / 2**30:.1f} GiB free: use another folder, fewer --features or a smaller --dtype."
        )


class _Shard:
    """A file with the features of some rows, which follow one another."""

    def __init__(self, folder: Path, arguments: EmbedArguments, num_rows: int, number: int) -> None:
        size = arguments.shard_size
        self.number, self.format, self.dtype = number, arguments.format, getattr(torch, arguments.dtype)
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


def _write_shards(
    arguments: EmbedArguments,
    encoder: Encoder,
    images: _Images,
    shards: Sequence[_Shard],
    shapes: Mapping[str, tuple[int, ...]],
    key: str,
    show_progress: bool,
) -> None:
    batches = [list(rows) for shard in shards for rows in shard.batches(arguments.batch_size)]
    loader = DataLoader(
        images.dataset,
        batch_sampler=batches,
        num_workers=arguments.num_workers,
        collate_fn=_Collator(images, encoder.image_processor(arguments.transform)),
        pin_memory=encoder.device.type == "cuda",
    )
    prepared = iter(loader)
    seen = failed = 0
    with tqdm(total=sum(map(len, batches)), desc="embedding", unit=" images", disable=not show_progress) as bar:
        for shard in shards:
            buffers = {name: torch.empty(len(shard.rows), *shape, dtype=shard.dtype) for name, shape in shapes.items()}
            rows: list[int] = []
            keys: list[str | None] = []
            skipped: list[tuple[int, str]] = []
            for batch in shard.batches(arguments.batch_size):
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
                _check_skipped(failed, seen, arguments.max_skipped_rate, where, MIN_SAMPLES_TO_JUDGE)
            features = {name: buffer[: len(rows)] for name, buffer in buffers.items()}
            _check_finite(features, rows)
            shard.write(rows, keys, features, skipped, key)


class _Collator:
    """Decodes and prepares samples: pixel values of those that decode, and of each its key and why it does not."""

    def __init__(self, images: _Images, processor: Any) -> None:
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
                image = to_rgb(open_image(value))
            except Exception as error:  # PIL raises all kinds of them on broken files
                reasons.append(re.sub(r" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {error}"))
                continue
            pixels.append(self.processor(image, return_tensors="pt")["pixel_values"])
            reasons.append(None)
        return torch.cat(pixels) if pixels else None, [self._key(sample) for sample in samples], reasons

    def _key(self, sample: Mapping[str, Any]) -> str | None:
        if self.key_column is not None:
            key = sample[self.key_column]
            return None if key is None else str(key)
        value = look_up(sample, self.image_column)
        path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) else None
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


def _check_skipped(skipped: int, total: int, max_rate: float, where: str, judged_by: int = 1) -> None:
    if skipped > max_rate * max(total, judged_by):
        raise ValueError(
            f"{skipped} of {total} images do not decode, which is more than {max_rate:.2%}; {where}. Mend them, name "
            "another --image_column or raise --max_skipped_rate."
        )


def _list_skipped(folder: Path, shards: Sequence[_Shard], key: str, write: bool) -> int:
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


COMMAND = Command(
    "levljepa embed",
    "Write the features of a large collection of images to sharded files. A second run goes on.",
    (EmbedArguments,),
    more=EPILOG,
    extra="train",
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `levljepa embed`. Returns the exit status."""
    return COMMAND.run(argv, _embed_and_report)


def _embed_and_report(arguments: EmbedArguments) -> None:
    report = embed(arguments)
    state = PartialState()
    if state.is_main_process:
        print(report)
    if state.num_processes > 1:
        state.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())


__all__ = ["COMMAND", "EmbedArguments", "EmbedReport", "available_features", "embed", "encode_features", "main"]
