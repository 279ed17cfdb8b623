"""Webdataset shards read sample by sample, so that a damaged one costs what is damaged and no more.

A sample is the members of a tar that share a name up to the first dot: `000123.jpg`, `000123.txt`, `000123.json`.
"""

import itertools
import json
import logging
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import fsspec
from datasets import Features, Image, Value

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif")
TEXT_EXTENSIONS = ("txt", "text", "caption", "transcript")
SAMPLES_TO_LOOK_AT = 20


class DamagedShardError(OSError):
    """Raised at the end of a shard of which something could not be read; what could was yielded before."""


class TarShards:
    """A stream of the samples of tar files, one shard a file.

    Args:
        files: paths or URLs.
        columns: the extensions to keep beside `__key__`; by default all.
        max_samples: the first so many, as one shard.

    Raises:
        ValueError: if no file holds a sample.
    """

    def __init__(
        self,
        files: Iterable[str],
        columns: Sequence[str] | None = None,
        max_samples: int | None = None,
    ) -> None:
        self.files, self.max_samples = list(files), max_samples
        features = tar_features(self.files)
        self.columns = tuple(features if columns is None else columns)
        self.features = Features({name: features[name] for name in features if name in ("__key__", *self.columns)})

    @property
    def num_shards(self) -> int:
        return len(self.files) if self.max_samples is None else 1

    def read_shard(self, number: int) -> Iterator[dict[str, Any]]:
        """The samples of a shard.

        Raises:
            DamagedShardError: at its end, if something in it could not be read.
        """
        if self.max_samples is None:
            return read_tar_samples([self.files[number]], self.columns)
        return iter(self)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All samples; a warning names the files that are damaged."""
        samples = itertools.chain.from_iterable(map(self._forgiving, self.files))
        return itertools.islice(samples, self.max_samples)

    def _forgiving(self, file: str) -> Iterator[dict[str, Any]]:
        try:
            yield from read_tar_samples([file], self.columns)
        except DamagedShardError as error:
            logger.warning("Used as far as it can be read: %s.", error)


def tar_features(files: Iterable[str]) -> Features:
    """The columns of tar shards, by the first samples of the first file that has any.

    Raises:
        ValueError: if none has; the message says what is wrong with the first files.
    """
    reasons = []
    for file in files:
        samples = []
        try:
            for sample in read_tar_samples([file], None):
                samples.append(sample)
                if len(samples) == SAMPLES_TO_LOOK_AT:
                    break
        except OSError as error:
            reasons.append(str(error))
        if samples:
            # Several samples, as the first may lack a file that the others have.
            names = dict.fromkeys(name for sample in samples for name in sample)
            return Features({name: _feature(name, [one[name] for one in samples if name in one]) for name in names})
    raise ValueError(f"No sample in any of the tar files: {'; '.join(reasons[:3]) or 'there are none'}.")


def _feature(name: str, values: list[Any]) -> Any:
    extension = name.rsplit(".", 1)[-1]
    if extension in IMAGE_EXTENSIONS:
        return Image(decode=False)
    if any(isinstance(value, dict) for value in values):
        keys = dict.fromkeys(key for value in values if isinstance(value, dict) for key in value)
        return {
            key: _feature("", [value[key] for value in values if isinstance(value, dict) and key in value])
            for key in keys
        }
    kinds = {type(value) for value in values}
    if kinds <= {list}:
        return [_feature("", [one for value in values for one in value][:1])]
    return Value({str: "string", int: "int64", float: "float64", bool: "bool"}.get(next(iter(kinds)), "binary"))


def read_tar_samples(files: list[str], columns: tuple[str, ...] | None = None) -> Iterator[dict[str, Any]]:
    """The samples of tar files: `__key__`, images as `{"bytes", "path"}`, text as strings, JSON as it parses.

    A text that is not UTF-8 stays bytes, and JSON that does not parse is None: that sample alone suffers.

    Raises:
        DamagedShardError: at the end of a file of which something could not be read.
    """
    for file in files:
        sample: dict[str, Any] = {}
        damage = None
        for name, content in _members(file):
            if isinstance(content, DamagedShardError):
                damage = content
                continue
            folder, _, base = name.rpartition("/")
            stem, _, extension = base.partition(".")
            extension, key = extension.lower(), f"{folder}/{stem}" if folder else stem
            if not stem or not extension or (columns is not None and extension not in columns):
                continue
            # The members of a sample stand beside one another: another key begins the next one.
            if sample and sample["__key__"] != key:
                yield sample
                sample = {}
            # Every wanted column is there, if with nothing in it, as in the rows that `datasets` gives.
            sample = sample or {"__key__": key, **dict.fromkeys(name for name in columns or () if name != "__key__")}
            sample[extension] = _decoded(extension, content, f"{Path(file).name}/{name}")
        if sample:
            yield sample
        # Last, so that whoever stops at the error has had all that could be read.
        if damage is not None:
            raise damage


def _decoded(extension: str, content: bytes, path: str) -> Any:
    kind = extension.rsplit(".", 1)[-1]
    if kind in IMAGE_EXTENSIONS:
        return {"bytes": content, "path": path}
    try:
        if kind in TEXT_EXTENSIONS:
            return content.decode()
        if kind == "json":
            return json.loads(content)
        if kind in ("cls", "cls2", "index", "inx", "id"):
            return int(content)
    except ValueError:
        return None if kind == "json" else content
    return content


class _Headers(tarfile.TarInfo):
    """Headers as they are read; those that are none, and whether the mark of the end was seen, are noted."""

    broken = 0
    ended = False

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            # A header that is cut off is told by the missing end; a block of zeros alone is how an archive ends.
            if len(buf) == tarfile.BLOCKSIZE:
                if buf.count(0) == tarfile.BLOCKSIZE:
                    cls.ended = True
                else:
                    cls.broken += 1
            raise
        # Tars may be put one after the other: the mark that counts is the one behind the last header.
        cls.ended = False
        return header


def _members(file: str) -> Iterator[tuple[str, bytes | DamagedShardError]]:
    """Names and contents of a tar's files; the last may be what is wrong with it. After garbage it goes on with the
    next header that is one."""

    class Headers(_Headers):  # a class of its own, as tarfile makes the objects
        pass

    good, damage = 0, None
    try:
        handle = _opened(file)
    except DamagedShardError as error:
        yield "", error
        return
    with handle:
        try:
            # `r|` never seeks, so a URL will do; `ignore_zeros` goes on after garbage and after an inner end.
            with tarfile.open(fileobj=handle, mode="r|*", tarinfo=Headers, ignore_zeros=True, errorlevel=2) as tar:
                for member in tar:
                    if not member.isfile():
                        continue
                    content = tar.extractfile(member).read()
                    if len(content) != member.size:
                        damage = "it is cut off"
                        break
                    good += 1
                    yield member.name, content
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:  # ValueError: of compression
            damage = f"{error}"
    if damage is None and Headers.broken:
        damage = f"{Headers.broken} blocks of 512 bytes are no part of a tar"
    if damage is None and not Headers.ended:
        damage = "it is empty" if good == 0 else "it has no end-of-archive mark: it is cut off"
    if damage is not None:
        yield "", DamagedShardError(f"{file}: {damage} ({good} members could be read)")


def _opened(file: str) -> IO[bytes]:
    try:
        return fsspec.open(file, "rb").open() if "://" in file else open(file, "rb")
    except OSError as error:
        raise DamagedShardError(f"{file} does not open: {error}") from error


__all__ = ["DamagedShardError", "TarShards", "read_tar_samples", "tar_features"]
