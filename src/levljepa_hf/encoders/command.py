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
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers.utils import logging

from ..data.collator import MAX_SKIPPED_RATE
from ..data.loading import find_image_column, load_source
from ..data.sources import encoded
from ..files import write_whole
from ..options import Command, option
from ..version import versions
from .encoders import TRANSFORMS, Encoder, load_encoder
from .shards import (
    FEATURES,
    POOLED,
    ImageCollection,
    Shard,
    available_features,
    check_skipped,
    encode_features,
    list_skipped,
    write_shards,
)

logger = logging.get_logger(__name__)

DTYPES = ("float16", "float32", "bfloat16")
FORMATS = ("parquet", "safetensors")
KEY_COLUMNS = ("__key__", "key", "id", "image_id", "file_name", "filename", "path", "url")

_NAMES = ("model", "dataset", "versions")  # settings that are noted and not compared: fingerprints tell what they hold
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
    # What a shard holds follows from its number alone, so any process can write any of them, now or in a later run.
    shards = [
        Shard(folder, number, images.num_rows, arguments.shard_size, arguments.format, arguments.dtype)
        for number in range(settings["num_shards"])
    ]
    # One process looks and tells the others: each on its own could see files appear that others are writing.
    missing = [shard.number for shard in shards if shard.read_header(key) is None] if state.is_main_process else None
    (missing,) = broadcast_object_list([missing])
    todo = [shards[number] for number in missing]
    shapes = _shapes(encoder, settings["features"])
    _check_room(folder, sum(len(shard.rows) for shard in todo), shapes, arguments.dtype)

    start = time.perf_counter()
    # Every n-th, as neighbours are alike: a run of large photos is shared among all processes.
    mine = todo[state.process_index :: state.num_processes]
    write_shards(
        encoder,
        images,
        mine,
        shapes,
        key,
        transform=arguments.transform,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        max_skipped_rate=arguments.max_skipped_rate,
        show_progress=state.is_main_process,
    )
    state.wait_for_everyone()
    report = EmbedReport(
        images=sum(len(shard.rows) for shard in todo),
        kept_shards=len(shards) - len(todo),
        num_shards=len(shards),
        skipped=list_skipped(folder, shards, key, write=state.is_main_process),
        seconds=time.perf_counter() - start,
        num_processes=state.num_processes,
        device=encoder.device.type,
        model_dtype=arguments.model_dtype,
        dtype=arguments.dtype,
    )
    check_skipped(
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


def _load_images(arguments: EmbedArguments) -> ImageCollection:
    dataset = load_source(arguments.dataset, arguments.split, config_name=arguments.dataset_config)
    # Before columns are left out and rows drawn, which are compared by settings of their own.
    fingerprint = dataset._fingerprint
    image_column = find_image_column(dataset.features, arguments.image_column)
    key_column = arguments.key_column or next((name for name in KEY_COLUMNS if name in dataset.features), None)
    if key_column is not None and key_column not in dataset.features:
        raise ValueError(f"key_column={key_column!r} is none of the columns {', '.join(dataset.column_names)}.")
    if arguments.max_samples is not None:
        dataset = dataset.select(range(min(arguments.max_samples, len(dataset))))
    if len(dataset) == 0:
        raise ValueError(f"{arguments.dataset} ({arguments.split}) has no images.")
    dataset = encoded(dataset, image_column, *([key_column] if key_column else []))
    return ImageCollection(dataset, image_column, key_column, str(Path(arguments.dataset).absolute()), fingerprint)


def _settings(arguments: EmbedArguments, encoder: Encoder, images: ImageCollection) -> dict[str, Any]:
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
    # As they will be read again, where tuples are lists: the two are compared.
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


__all__ = ["COMMAND", "EmbedArguments", "EmbedReport", "embed", "main"]
