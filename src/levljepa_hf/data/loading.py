"""Finding captioned images: a data set of the Hub, files, a folder; and its columns."""

import glob
import itertools
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    ReadInstruction,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError

from ..options import did_you_mean
from .streams import SAMPLE_DATASET, SAMPLE_EPOCH, SAMPLE_INDEX
from .tar_shards import TarShards

logger = logging.getLogger(__name__)

USUAL_COLUMNS = {
    "image": ("image", "jpg", "jpeg", "png", "webp", "img", "pixel_values"),
    "caption": ("captions", "caption", "text", "txt", "sentences", "sentence", "json.captions", "json.caption"),
    "label": ("label", "labels", "fine_label", "cls", "class", "target"),
    "mask": ("mask", "annotation", "segmentation", "label_map", "segmentation_mask"),
    "question": ("question",),
    "answer": ("answers", "answer", "multiple_choice_answer"),
    "kind": ("answer_type", "question_type"),
    "image_id": ("image_id", "imageId"),
}
FILE_BUILDERS = {".tar": "webdataset", ".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
_FIRST_SAMPLES = 5  # of a stream of JSON or CSV, which tell its columns


# Loading


def load_pretraining_dataset(
    name_or_path: str,
    split: str = "train",
    image_column: str | None = None,
    caption_column: str | None = None,
    streaming: bool = False,
    max_samples: int | None = None,
    config_name: str | None = None,
    data_files: str | list[str] | None = None,
    cache_dir: str | None = None,
) -> Dataset | IterableDataset | TarShards:
    """Loads captioned images with `datasets`, leaves the images encoded and drops every other column.

    Args:
        name_or_path: a Hub id; a folder (images with a `metadata.jsonl`, webdataset or parquet shards, or what
            `save_to_disk` wrote); a file or a glob of files (`"shards/train-*.tar"`, `"*.parquet"`); or the name of a
            builder, with `data_files`.
        split: the split; slices such as `"train[:90%]"` work where nothing is streamed.
        image_column: column of the images (encoded bytes, paths or decoded), found by itself where left out.
        caption_column: column of the caption, or of the list of captions, of each image. Fields of a nested column are
            addressed with dots: `"json.captions"` is the field `captions` of the `.json` files of a webdataset.
        streaming: read the files as they are needed instead of preparing them all; returns an `IterableDataset`, or
            `TarShards` of a webdataset.
        max_samples: keep the first so many.
        config_name: the configuration of a Hub dataset that has several.
        data_files: files to read, passed on to `datasets.load_dataset`.
        cache_dir: where `datasets` keeps what it prepares.

    Raises:
        ValueError: if the split or a column does not exist (it lists those there are).
        FileNotFoundError: if a path does not exist.
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples={max_samples} leaves nothing: it must be at least 1.")
    report = caption_column is None
    if streaming and (files := tar_files(name_or_path, split, config_name, data_files, cache_dir)):
        shards = TarShards(files)
        columns = find_columns(shards, image_column, caption_column)
        if report:
            _name_other_captions(shards.features, columns[1])
        return TarShards(files, [root_column(shards.columns, name) for name in columns], max_samples)
    dataset = load_source(name_or_path, split, streaming, config_name, data_files, cache_dir)
    dataset = _with_features(dataset)
    image_column, caption_column = find_columns(dataset, image_column, caption_column)
    if report:
        _name_other_captions(dataset.features, caption_column)
    wanted = {root_column(dataset.column_names, name) for name in (image_column, caption_column)} | {"__key__"}
    dataset = dataset.select_columns([name for name in dataset.column_names if name in wanted])
    if isinstance(dataset.features.get(image_column), Image):
        dataset = dataset.cast_column(image_column, Image(decode=False))
    if max_samples is not None:
        dataset = dataset.take(max_samples) if streaming else dataset.select(range(min(max_samples, len(dataset))))
    return dataset


def _name_other_captions(features: Mapping[str, Any], chosen: str) -> None:
    """Says which column was taken, where others would have done."""
    usual = [name for name in column_addresses(features) if name in USUAL_COLUMNS["caption"] and name != chosen]
    if usual:
        others = ", ".join(map(repr, usual))
        logger.warning("Captions are taken from the column %r. Choose with caption_column: %s.", chosen, others)


def load_source(
    name_or_path: str,
    split: str = "train",
    streaming: bool = False,
    config_name: str | None = None,
    data_files: str | list[str] | None = None,
    cache_dir: str | None = None,
) -> Dataset | IterableDataset:
    """Loads a dataset with `datasets`, all its columns as they are. Arguments as in `load_pretraining_dataset`.

    Raises:
        ValueError: if the split does not exist, or a file can't be read.
        FileNotFoundError: if a path does not exist.
    """
    path = Path(name_or_path)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _load_saved(path, split, streaming)
    _check_files(name_or_path)
    builder = FILE_BUILDERS.get(path.suffix)
    if builder is not None and data_files is None:
        name_or_path, data_files = builder, str(path)
    if isinstance(data_files, (str, list)):
        data_files = {split.split("[")[0]: data_files}
    try:
        return load_dataset(
            name_or_path, config_name, split=split, data_files=data_files, streaming=streaming, cache_dir=cache_dir
        )
    except DatasetGenerationError as error:
        raise ValueError(
            f"{path.name} can't be prepared: {error.__cause__ or error}. Mend or remove the file; or read it as a "
            "stream (--streaming), which uses what is whole of broken shards."
        ) from error


def tar_files(
    name_or_path: str,
    split: str = "train",
    config_name: str | None = None,
    data_files: str | list[str] | None = None,
    cache_dir: str | None = None,
) -> list[str] | None:
    """The webdataset shards of a split, or None if the source is of another kind. Arguments as in `load_source`.

    Raises:
        ValueError: if the split does not exist.
        FileNotFoundError: if a path does not exist.
    """
    path = Path(name_or_path)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return None
    _check_files(name_or_path)
    if path.suffix in FILE_BUILDERS and data_files is None:
        name_or_path, data_files = FILE_BUILDERS[path.suffix], str(path)
    if isinstance(data_files, (str, list)):
        data_files = {split: data_files}
    builder = load_dataset_builder(name_or_path, config_name, data_files=data_files, cache_dir=cache_dir)
    if builder.name != "webdataset":
        return None
    found = builder.config.data_files
    if split not in found:
        raise ValueError(f"{name_or_path} has no split {split!r}: it has {', '.join(found)}.")
    return [str(file) for file in found[split]]


def _check_files(name_or_path: str) -> None:
    """Says of a file or a pattern of files, which no Hub id is, that there is none."""
    if "://" in name_or_path or Path(name_or_path).suffix not in FILE_BUILDERS:
        return
    if not glob.glob(name_or_path, recursive=True):
        raise FileNotFoundError(f"No file matches {name_or_path!r}: look at the path, relative to {Path.cwd()}.")


def _load_saved(path: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    dataset = load_from_disk(str(path))
    name = split.split("[")[0]
    if isinstance(dataset, DatasetDict):
        if name not in dataset:
            raise ValueError(f"{path} has no split {name!r}: it has {', '.join(dataset)}.")
        dataset = dataset[name]
    if name != split:
        (part,) = ReadInstruction.from_spec(split).to_absolute({name: len(dataset)})
        dataset = dataset.select(range(part.from_, part.to))
    return dataset.to_iterable_dataset(num_shards=min(64, len(dataset))) if streaming else dataset


def _with_features(dataset: Dataset | IterableDataset | TarShards) -> Dataset | IterableDataset | TarShards:
    """The data set; a stream that does not say what it holds before it is read is told, by its first samples."""
    if dataset.features is not None:
        return dataset
    head = list(dataset.take(_FIRST_SAMPLES))
    names = dict.fromkeys(name for sample in head for name in sample)
    return dataset.cast(Dataset.from_dict({name: [one.get(name) for one in head] for name in names}).features)


def find_columns(
    dataset: Dataset | IterableDataset | TarShards, image_column: str | None = None, caption_column: str | None = None
) -> tuple[str, str]:
    """Checks the two names against the columns of a dataset, and finds those left out.

    Raises:
        ValueError: if a column does not exist or can not be found; the message lists those there are.
    """
    features = _with_features(dataset).features
    return find_column(features, "image", image_column), find_column(features, "caption", caption_column)


def find_image_column(features: Mapping[str, Any], image_column: str | None = None) -> str:
    """`find_column` of the images."""
    return find_column(features, "image", image_column)


def find_column(
    features: Mapping[str, Any],
    role: str,
    name: str | None = None,
    dataset: str = "this data set",
    taken: Collection[str] = (),
) -> str:
    """Checks a column's name against a data set's features, and finds the column where the name is left out.

    Args:
        features: Of the data set.
        role: What the column holds, one of `USUAL_COLUMNS`; the option that names it is `--ROLE_column`.
        name: Its name, or that of a field in a column, as of `column_addresses`.
        dataset: What the message calls the data set.
        taken: Columns of images that hold something else.

    Raises:
        ValueError: if the column does not exist or can not be found; the message lists those there are.
    """
    name = name or guess_column(features, role, taken)
    if name is None:
        raise ValueError(
            f"Which column of {dataset} holds the {role}s? Name it with --{role}_column. {list_columns(features)}"
        )
    addresses = column_addresses(features)
    if name not in addresses:
        raise ValueError(
            f"{dataset} has no column {name!r} of {role}s.{did_you_mean(name, addresses)} Name one with "
            f"--{role}_column. {list_columns(features)}"
        )
    return name


def guess_column(features: Mapping[str, Any], role: str, taken: Collection[str] = ()) -> str | None:
    """Of images, the only column of their type, whatever its name; else the first that has a usual name."""
    images = [name for name in features if isinstance(features[name], Image) and name not in taken]
    if role == "image" and len(images) == 1:
        return images[0]
    names = images if role == "image" and images else column_addresses(features)
    return next((name for name in USUAL_COLUMNS[role] if name in names), None)


def column_addresses(features: Mapping[str, Any]) -> list[str]:
    """Names of the columns and, with dots, of the fields inside them."""
    names = list(features)
    for name, feature in features.items():
        if isinstance(feature, (dict, Features)):
            names += [f"{name}.{field_name}" for field_name in column_addresses(feature)]
    return names


def list_columns(features: Mapping[str, Any]) -> str:
    columns = ", ".join(f"{name!r} ({_short(feature)})" for name, feature in features.items())
    return f"Its columns: {columns}."


def _short(feature: Any) -> str:
    text = type(feature).__name__ if isinstance(feature, Image) else str(feature)
    return text if len(text) <= 80 else text[:77] + "..."


def look_up(sample: Mapping[str, Any], address: str) -> Any:
    """The value of the column `address`, or of a field inside a column: `"json.captions"` (None if `json` is None).

    Raises:
        ValueError: if there is none; the message lists the columns.
    """
    root = root_column(sample, address)
    value = None if root is None else sample[root]
    if root is None or (root != address and value is not None and not isinstance(value, Mapping)):
        columns = ", ".join(repr(name) for name in sample if name not in (SAMPLE_INDEX, SAMPLE_EPOCH, SAMPLE_DATASET))
        raise ValueError(f"A sample has no column {address!r}. Its columns: {columns}.")
    return value if root == address or value is None else look_up(value, address[len(root) + 1 :])


def root_column(columns: Iterable[str], address: str) -> str | None:
    """The column that holds `address`: itself, or `json` for `json.captions`."""
    roots = list(itertools.accumulate(address.split("."), "{}.{}".format))
    return next((root for root in reversed(roots) if root in columns), None)


__all__ = [
    "USUAL_COLUMNS",
    "column_addresses",
    "find_column",
    "find_columns",
    "find_image_column",
    "guess_column",
    "list_columns",
    "load_pretraining_dataset",
    "load_source",
    "look_up",
    "root_column",
]
