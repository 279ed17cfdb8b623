"""Labelled data: splits of data sets known by name (`catalogue`) or of any source, with what is read of them.

    test = read_split("pets", "labels", "test")
    test = read_split("photos/folder", "masks", "validation", class_names="classes.json")

Images stay encoded and masks on disk until they are asked for. A sample without a label or an answer is left out and
counted; everything else that does not fit is an error.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset
from transformers.utils import logging

from .catalogue import DATASETS, CatalogueEntry, Source
from .images import UnreadImage, decoding, open_image
from .loading import FILE_BUILDERS, USUAL_COLUMNS, column_addresses, find_column, look_up, root_column
from .masks import check_mask
from .scene_splits import load_scene_split
from .sources import Column, column_values, encoded, open_any, open_entry, open_images
from .splits import COLUMNS, EvaluationSplit, Question, Subsample, class_key

logger = logging.get_logger(__name__)

_OPTIONAL_COLUMNS = {"questions": ("kind", "image_id")}  # read where they are there


def read_split(
    dataset: str,
    reads: str,
    split: str,
    *,
    columns: Mapping[str, str] | None = None,
    path: str | None = None,
    config_name: str | None = None,
    class_names: str | None = None,
    max_samples: int | None = None,
    seed: int = 0,
    transform: str = "evaluation",
    scenes: str = "objects",
) -> EvaluationSplit:
    """A split with its images, and what is asked for beside them.

    Args:
        dataset: A name of `DATASETS`, or any source of `levljepa_hf.data.load_source`.
        reads: labels, captions, masks or questions.
        split: A role ("train", "test"), for which the catalogue has the split, or a split's own name. Of a source that
            is not in the catalogue, "test" is its split `test`, or without one `validation`.
        columns: Names of columns, by role: image, label, caption, mask, question, answer. By default those of the
            catalogue, or the usual names.
        path: A copy of a data set of the catalogue: a clone of its repository, what `save_to_disk` wrote, or the
            official archive in the layout that the catalogue describes. Of several repositories, a folder that holds
            the clones.
        config_name: Configuration of a source that has several. Of the scenes, the images' side in pixels. "halves" of
            ImageNet-9 trains and tests on halves of Original's test images.
        class_names: JSON file (a list, or an object with `names`) or text file (one a line) of the names of the
            classes, in the order of the labels or of the masks' values.
        max_samples: Samples at most, drawn at random; of questions, so many questions.
        seed: Of that draw, which is the same for every call.
        transform: How images are prepared, see `EvaluationSplit`; of the data sets of the catalogue it is known.
        scenes: Of the scenes, which: `objects` or `backgrounds` (`scene_splits.load_scene_split`).

    Raises:
        ValueError: if a split, column, label or name does not fit.
        OSError: if the source is not within reach.
    """
    entry = DATASETS.get(dataset)
    _check(dataset, reads, path, max_samples, entry)
    subsample = Subsample(max_samples, seed)
    if entry and entry.generated:
        if columns or path or class_names:
            raise ValueError(f"{dataset} is drawn on the spot: it takes no column, --dataset_path or --class_names.")
        return load_scene_split(dataset, entry, reads, split, config_name, subsample, scenes)
    if entry:
        source = entry.sources.get(split) or replace(_main_source(entry), split=split, local_split=None)
        rows, source = open_entry(dataset, entry, source, split, path, config_name)
        name = f"{source.borrowed or dataset}/{source.local_split or source.split}"
    else:
        entry = CatalogueEntry({}, licence="", home="", transform=transform)
        rows, split = open_any(dataset, split, config_name)
        source = Source(dataset, split)
        name = f"{Path(dataset).name}/{split}"
    name += f" ({config_name})" if config_name else ""
    found = _find_columns(rows, reads, columns or {}, source, name, lenient=path is not None)
    names = _read_names(class_names) if class_names else entry.class_names
    loader = {
        "labels": _load_labels,
        "captions": _load_captions,
        "masks": _load_masks,
        "questions": _load_questions,
    }
    images = open_images(dataset, entry, source, path) if source.images else None
    return loader[reads](name, rows, found, entry, names, subsample, images)


def dataset_id(dataset: str) -> str:
    """Where a data set comes from, for results and model cards: a repository, or a folder's name."""
    if dataset in DATASETS:
        return _main_source(DATASETS[dataset]).repo
    is_path = Path(dataset).exists() or Path(dataset).suffix in FILE_BUILDERS
    return Path(dataset).name if is_path else dataset


def _main_source(entry: CatalogueEntry) -> Source:
    return entry.sources.get("test") or entry.sources["original"]


def _check(dataset: str, reads: str, path: str | None, max_samples: int | None, entry: CatalogueEntry | None) -> None:
    if reads not in COLUMNS:
        raise ValueError(f"reads={reads!r} is unknown: it is one of {', '.join(COLUMNS)}.")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples={max_samples} leaves nothing: it must be at least 1.")
    if entry is None and path is not None:
        raise ValueError(
            f"--dataset_path is for copies of {', '.join(DATASETS)}, and {dataset!r} is none of them: give the folder "
            f"as --dataset {path}."
        )
    if path is not None and not Path(path).exists():
        raise ValueError(f"--dataset_path {path} does not exist.")


# ------------------------------------------------------------------------------------------------- finding columns


def _find_columns(
    rows: Dataset, reads: str, given: Mapping[str, str], source: Source, name: str, lenient: bool
) -> dict[str, str]:
    """The columns by role. In a local copy (`lenient`) those of the table may have another of the usual names."""
    addresses = column_addresses(rows.features)
    found: dict[str, str] = {}
    for role in (*COLUMNS[reads], *(() if source.images else ("image",))):
        column = given.get(role) or source.columns.get(role)
        if lenient and role not in given and column not in addresses:
            column = None
        found[role] = find_column(rows.features, role, column, name, taken=found.values())
    for role in _OPTIONAL_COLUMNS.get(reads, ()):
        usual = (source.columns[role],) if role in source.columns else USUAL_COLUMNS[role]
        column = next((one for one in usual if one in addresses), None)
        if column:
            found[role] = column
    return found


# ------------------------------------------------------------------------------------------------ what is read of it


def _load_labels(
    name: str,
    rows: Dataset,
    columns: dict[str, str],
    entry: CatalogueEntry,
    names: tuple[str, ...] | None,
    subsample: Subsample,
    _: Any,
) -> EvaluationSplit:
    labels, names = _labels(rows, columns["label"], names, name)
    labelled = np.flatnonzero(labels >= 0)
    if len(labelled) == 0:
        raise ValueError(
            f"The split {name} has no labels (its column {columns['label']!r} holds none but -1 or nothing): choose "
            "another with --test_split, such as validation."
        )
    if entry.sort_classes and names:
        order = sorted(range(len(names)), key=lambda label: class_key(names[label]))
        labels = np.argsort(order)[labels]
        names = tuple(names[label] for label in order)
    keep = subsample(labelled.tolist())
    return EvaluationSplit(
        name,
        Column(encoded(rows, columns["image"]).select(keep), columns["image"]),
        labels=labels[keep].tolist(),
        class_names=names,
        prompts=entry.prompts,
        transform=entry.transform,
        dropped=_dropped(name, len(rows) - len(labelled), "label"),
    )


def _labels(
    rows: Dataset, column: str, names: tuple[str, ...] | None, split: str
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """The class of each row, -1 without one, and the names of the classes where they are known."""
    feature: Any = rows.features
    for part in (root := root_column(rows.column_names, column), *column[len(root) + 1 :].split(".")):
        feature = feature[part] if part else feature
    values = [-1 if value is None else value for value in column_values(rows, column)]
    kinds = {type(value) for value in values if value != -1}
    if kinds == {str}:
        unique = sorted({value for value in values if value != -1})
        unknown = [value for value in unique if names and value not in names]
        if unknown:
            raise ValueError(
                f"{split} has labels that are no class names, {len(unknown)} such as {unknown[0]!r}: the names begin "
                f"with {', '.join(map(repr, names[:3]))}. Mend --class_names."
            )
        index = {value: label for label, value in enumerate(names or unique)}
        return np.array([index.get(value, -1) for value in values]), readable(names or tuple(unique))
    if kinds - {int, bool}:
        raise ValueError(
            f"The labels of {split} (column {column!r}) are to be integers or names, and some are "
            f"{', '.join(sorted(kind.__name__ for kind in kinds - {int, bool}))}: name another with --label_column."
        )
    known = tuple(feature.names) if isinstance(feature, ClassLabel) else None
    if known and names and len(known) != len(names):
        raise ValueError(
            f"There are {len(names)} class names, and the column {column!r} of {split} has {len(known)} classes: give "
            "one name for each with --class_names."
        )
    names = names or (readable(known) if known else None)
    labels = np.array(values)
    if names and labels.max() >= len(names):
        raise ValueError(
            f"The labels of {split} go up to {labels.max()}, and there are {len(names)} class names: labels count "
            "from 0. Give a name for each with --class_names."
        )
    return labels, names


def readable(names: tuple[str, ...], one_word: bool = False) -> tuple[str, ...]:
    """WordNet ids, which are ImageNet's folders, as words (all synonyms, or the first); other names as they are."""
    if not all(re.fullmatch(r"n\d{8}", name) for name in names):
        return names
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    words = (info.label_name_to_description(name) for name in names)
    return tuple(text.split(",")[0] if one_word else text for text in words)


def _read_names(file: str) -> tuple[str, ...]:
    """Class names of a JSON or text file."""
    try:
        text = Path(file).read_text("utf-8")
    except OSError as error:
        raise ValueError(f"--class_names {file} does not open: {error}") from error
    if Path(file).suffix != ".json":
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    names = json.loads(text)
    names = names.get("names") if isinstance(names, dict) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'--class_names {file} is to be a JSON list of names, or an object with one as "names".')
    return tuple(names)


def _dropped(name: str, count: int, what: str) -> int:
    if count:
        logger.warning(f"{count} samples of {name} have no {what} and are left out.")
    return count


def _load_captions(
    name: str, rows: Dataset, columns: dict[str, str], entry: CatalogueEntry, names: Any, subsample: Subsample, _: Any
) -> EvaluationSplit:
    rows = rows.select(subsample(range(len(rows))))
    captions = [_captions(value) for value in column_values(rows, columns["caption"])]
    if not any(captions):
        raise ValueError(f"{name} has no caption in its column {columns['caption']!r}: name another.")
    images = Column(encoded(rows, columns["image"]), columns["image"])
    return EvaluationSplit(name, images, captions=captions, prompts=entry.prompts, transform=entry.transform)


def _captions(value: Any) -> tuple[str, ...]:
    """A list of captions, or a text with one a line."""
    lines = value.splitlines() if isinstance(value, str) else value or ()
    if not all(isinstance(line, str) for line in lines):
        raise ValueError(
            f"Captions are to be texts, and here is {value!r}: name another column with --caption_column."
        )
    return tuple(line.strip() for line in lines if line.strip())


def _load_masks(
    name: str,
    rows: Dataset,
    columns: dict[str, str],
    entry: CatalogueEntry,
    names: tuple[str, ...] | None,
    subsample: Subsample,
    _: Any,
) -> EvaluationSplit:
    rows = rows.select(subsample(range(len(rows))))
    image, mask = columns["image"], columns["mask"]
    return EvaluationSplit(
        name,
        Column(encoded(rows, image), image),
        class_names=names,
        masks=_Masks(name, encoded(rows, image, mask), image, mask, entry.mask_values, entry.void, names),
        void=entry.void,
        transform=entry.transform,
    )


class _Masks(Sequence):
    """Masks, decoded and checked one by one: integers [H, W]. Pickles, for workers."""

    def __init__(
        self,
        name: str,
        rows: Dataset,
        image: str,
        mask: str,
        values: Sequence[int] | None,
        void: int | None,
        class_names: Sequence[str] | None,
    ) -> None:
        self.name, self.rows, self.image, self.mask = name, rows, image, mask
        self.values, self.void = values, void
        self.num_classes = len(class_names) if class_names else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        row = self.rows[int(index)]
        where = f"Mask {index} of {self.name}"
        with decoding(where):
            mask = _decode_mask(look_up(row, self.mask))
        size = UnreadImage(look_up(row, self.image)).size[::-1]
        is_void = check_mask(mask, where, len(self.values) if self.values else self.num_classes, self.void, size)
        if self.values is None:
            return mask
        table = np.asarray(self.values, dtype=mask.dtype)  # from the file's values to classes
        return np.where(is_void, self.void, table[np.where(is_void, 0, mask)]).astype(mask.dtype)


def _decode_mask(value: Any) -> np.ndarray:
    """An image of one channel, of indices into a palette, or grey ones kept as colours; or an array: [H, W]."""
    mask = np.array(value if isinstance(value, (list, np.ndarray)) else open_image(value))  # a copy: torch writes
    if mask.ndim == 3 and (mask == mask[..., :1]).all():
        mask = mask[..., 0]
    return mask.astype(np.uint8) if mask.dtype == bool else mask


def _load_questions(
    name: str,
    rows: Dataset,
    columns: dict[str, str],
    entry: CatalogueEntry,
    names: Any,
    subsample: Subsample,
    images: tuple[Dataset, dict[Any, int]] | None,
) -> EvaluationSplit:
    rows = rows.select(subsample(range(len(rows))))
    texts = column_values(rows, columns["question"])
    answers = [_answers(value) for value in column_values(rows, columns["answer"])]
    kinds = column_values(rows, columns["kind"]) if "kind" in columns else [None] * len(rows)
    ids = column_values(rows, columns["image_id"]) if "image_id" in columns else list(range(len(rows)))
    kept = [row for row, given in enumerate(answers) if given]
    if not kept:
        raise ValueError(
            f"The split {name} has no answers in its column {columns['answer']!r}: choose another split with "
            "--test_split, such as validation, or name another column with --answer_column."
        )
    if images is None:  # an image is in the rows of all its questions: the first of them will do
        pictures, address = encoded(rows, columns["image"]), columns["image"]
        row_of_id = {value: row for row, value in reversed(list(enumerate(ids)))}
    else:
        (pictures, row_of_id), address = images, images[0].column_names[0]
        missing = {ids[row] for row in kept} - row_of_id.keys()
        if missing:
            raise ValueError(f"{name} asks about {len(missing)} images that are not there, such as {min(missing)!r}.")
    index = {value: i for i, value in enumerate(dict.fromkeys(ids[row] for row in kept))}
    return EvaluationSplit(
        name,
        Column(pictures.select([row_of_id[value] for value in index]), address),
        questions=[Question(index[ids[row]], texts[row], answers[row], kinds[row]) for row in kept],
        transform=entry.transform,
        dropped=_dropped(name, len(rows) - len(kept), "answer"),
    )


def _answers(value: Any) -> tuple[str, ...]:
    """One text, a list of them, or of VQAv2's records, kept by row or by field."""
    if isinstance(value, Mapping):
        value = value.get("answer")
    if value is None or isinstance(value, str):
        return (value,) if value else ()
    return tuple(one["answer"] if isinstance(one, Mapping) else str(one) for one in value)


__all__ = ["EvaluationSplit", "Question", "dataset_id", "read_split", "readable"]
