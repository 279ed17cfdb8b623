"""Opening what holds a data set: repositories of the Hub, their clones, official archives, sources of `datasets`."""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import (
    ClassLabel,
    Dataset,
    Features,
    Image,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)

from ..options import did_you_mean
from .catalogue import DATASETS, CatalogueEntry, Source
from .loading import FILE_BUILDERS, load_source, look_up, root_column

_USUAL_SPLITS = {"test": ("test", "validation", "val"), "train": ("train",)}


def open_entry(
    dataset: str, entry: CatalogueEntry, source: Source, role: str, path: str | None, config_name: str | None
) -> tuple[Dataset, Source]:
    """The rows, and the source with the split that it was in the end."""
    config = config_name or source.config
    folder = Path(path) if path else None
    if folder and (copy := _clone(folder, source)):
        files = _open_copy(copy, config)
        return files.load(files.find(source.split)), source
    # A borrowed split is another repository's, which only a clone of that one (above) can hold.
    if folder and not source.borrowed:
        # The official archive first: `datasets` would take its folders for classes and make something else of it.
        rows = LAYOUTS[entry.layout](folder, source.split, config_name) if entry.layout else None
        if rows is not None:
            return rows, source
        if not entry.on_hub and not _is_saved(folder):
            raise ValueError(f"{path} is no copy of {dataset} ({entry.home}). It must hold {entry.layout_help}.")
        files = _open_copy(folder, config)
        split = files.find(source.local_split or source.split, source.split, role)
        return files.load(split), replace(source, split=split, local_split=None)
    if not entry.on_hub:
        raise ValueError(
            f"{dataset} is not on the Hub as data files. Get it from {entry.home} and name the folder with "
            f"--dataset_path. It must hold {entry.layout_help}."
        )
    try:
        files = SourceFiles(source.repo, config)
        return files.load(files.find(source.split)), source
    except OSError as error:
        terms = f"accept its terms at https://huggingface.co/datasets/{source.repo}, `hf auth login`, or "
        raise OSError(
            f"{dataset} ({source.repo}) is not within reach: {error} To mend it, {terms if entry.gated else ''}"
            "name a local copy with --dataset_path."
        ) from error


class SourceFiles:
    """A source, of which the names of the splits are known before their rows are read.

    Raises:
        OSError, ValueError: of `datasets`, if there is no such source or configuration.
    """

    def __init__(self, source: str | Path, config_name: str | None) -> None:
        self.source, self.builder = str(source), None
        path = Path(source)
        if (path / "dataset_dict.json").exists():
            self.splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
        elif _is_saved(path):
            self.splits = [str(load_from_disk(self.source).split or "train")]
        elif path.suffix in FILE_BUILDERS:
            self.splits = ["train"]
        else:
            self.builder = load_dataset_builder(self.source, config_name)
            self.splits = list(self.builder.config.data_files or self.builder.info.splits or ())

    def find(self, *wanted: str) -> str:
        """The first of these splits, or parts of splits, that there is."""
        for split in wanted:
            # Of `train[:80%]` and of `train+validation` the first name tells; `datasets` reads the rest.
            if re.split(r"[\[+]", split)[0] in self.splits:
                return split
        raise ValueError(
            f"{self.source} has no split {wanted[0]!r}: it has {', '.join(map(str, self.splits))}. Choose with "
            "--train_split and --test_split; parts of one are written like train[:80%] and train[80%:]."
        )

    def load(self, split: str) -> Dataset:
        """Its rows. Of a repository the files of this split alone are fetched; `load_dataset` fetches those of all."""
        if self.builder is None:
            return load_source(self.source, split)
        files = self.builder.config.data_files or {}  # none of a repository that is read from the cache
        name = split.split("[")[0]
        if len(files) > 1 and name in files and "+" not in split and not Path(self.source).exists():
            features = self.builder.info.features
            return load_dataset(
                self.builder.name, data_files={name: list(files[name])}, split=split, features=features
            )
        self.builder.download_and_prepare()
        return self.builder.as_dataset(split=split)


def open_images(
    dataset: str, entry: CatalogueEntry, source: Source, path: str | None
) -> tuple[Dataset, dict[Any, int]]:
    """The images that are in a configuration of their own, and the row of each id."""
    place = replace(source, config=source.images.config, columns={}, images=None)
    rows, _ = open_entry(dataset, entry, place, source.split, path, None)
    return (
        encoded(rows, source.images.image_column),
        {value: row for row, value in enumerate(column_values(rows, source.images.id_column))},
    )


def _clone(folder: Path, source: Source) -> Path | None:
    """The clone of the source's repository, where `folder` holds those of several."""
    clone = folder / source.repo.rsplit("/", 1)[-1]
    return clone if clone.is_dir() else None


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _open_copy(folder: Path, config: str | None) -> SourceFiles:
    """A folder, or the one in it in which a configuration was saved."""
    saved = folder / config if config and _is_saved(folder / config) else folder
    return SourceFiles(saved, None if _is_saved(saved) else config)


def open_any(dataset: str, split: str, config_name: str | None) -> tuple[Dataset, str]:
    """The rows of a source that is not in the table, and the split that it was in the end."""
    try:
        files = SourceFiles(dataset, config_name)
        split = files.find(split, *_USUAL_SPLITS.get(split, ()))
        return files.load(split), split
    except OSError as error:
        hint = did_you_mean(dataset, DATASETS)
        raise OSError(f"No data set {dataset!r}: {error}{hint} Known by name: {', '.join(DATASETS)}.") from error


# ------------------------------------------------------------------------------------------------ official archives


def _class_folders(folder: Path) -> Dataset:
    """Images in a folder for each class, as a data set of their paths."""
    classes = sorted(one for one in folder.iterdir() if one.is_dir())
    files = [(str(file), label) for label, one in enumerate(classes) for file in sorted(one.iterdir())]
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=[one.name for one in classes])})
    return Dataset.from_dict({"image": [file for file, _ in files], "label": [label for _, label in files]}, features)


def _image_and_mask_folders(images: Path, masks: Path, mask_column: str) -> Dataset:
    """Images and the masks of the same names, as a data set of their paths."""
    pairs = [(file, masks / f"{file.stem}.png") for file in sorted(images.iterdir())]
    missing = [file.name for file, mask in pairs if not mask.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} images of {images} have no mask in {masks}, such as {missing[0]}.")
    features = Features({"image": Image(decode=False), mask_column: Image(decode=False)})
    return Dataset.from_dict(
        {"image": [str(file) for file, _ in pairs], mask_column: [str(mask) for _, mask in pairs]}, features
    )


def _imagenet9(folder: Path, split: str, config_name: str | None) -> Dataset | None:
    if config_name not in (None, "halves"):
        raise ValueError(f"--dataset_config {config_name}: imagenet9 has none but 'halves'.")
    folder = folder / "bg_challenge" if (folder / "bg_challenge").is_dir() else folder
    halved = config_name and split in ("original/train", "original/val")
    place = folder / ("original/val" if halved else split)
    if not place.is_dir():
        return None
    rows = _class_folders(place)
    if not halved:
        return rows
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    labels = rows["label"][:]
    order.sort(key=lambda row: labels[row])  # by class, and in it at random
    first = order[::2]
    return rows.select(sorted(first if split == "original/train" else set(order) - set(first)))


def _ade20k(folder: Path, split: str, config_name: str | None) -> Dataset | None:
    folder = folder / "ADEChallengeData2016" if (folder / "ADEChallengeData2016").is_dir() else folder
    part = {"train": "training"}.get(split, split)
    images, masks = folder / "images" / part, folder / "annotations" / part
    return _image_and_mask_folders(images, masks, "annotation") if images.is_dir() and masks.is_dir() else None


def _coco_stuff(folder: Path, split: str, config_name: str | None) -> Dataset | None:
    images, masks = folder / split, folder / "stuffthingmaps" / split
    return _image_and_mask_folders(images, masks, "mask") if images.is_dir() and masks.is_dir() else None


# Readers of official archives: (folder, split, configuration) to rows, or None where the folder is no such archive.
LAYOUTS: dict[str, Callable[[Path, str, str | None], Dataset | None]] = {
    "imagenet9": _imagenet9,
    "ade20k": _ade20k,
    "coco_stuff": _coco_stuff,
}


# ---------------------------------------------------------------------------------------------------- columns of rows


def column_values(rows: Dataset, address: str) -> list[Any]:
    """A column, read as a whole; not for images."""
    # The one column and no other, as reading a row decodes all that it has.
    root = root_column(rows.column_names, address)
    return [look_up({root: value}, address) for value in rows.select_columns([root])[:][root]]


class Column(Sequence):
    """A column, read row by row. Pickles, for workers."""

    def __init__(self, rows: Dataset, address: str) -> None:
        self.rows, self.address = rows, address

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return look_up(self.rows[int(index)], self.address)


def encoded(rows: Dataset, *addresses: str) -> Dataset:
    """Columns of images, left encoded; the others are dropped, as reading a row reads them all."""
    roots = list(dict.fromkeys(root_column(rows.column_names, address) for address in addresses))
    rows = rows.select_columns(roots)
    for root in roots:
        if isinstance(rows.features[root], Image):
            rows = rows.cast_column(root, Image(decode=False))
    return rows


__all__ = ["Column", "LAYOUTS", "column_values", "encoded", "open_any", "open_entry", "open_images"]
