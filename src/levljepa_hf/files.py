"""Files and folders that are whole or not there."""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a file beside `path`, which takes its name when it is whole and on disk."""
    part = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")  # with its suffix, from which some tell the format
    try:
        write(part)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Where to make a folder, beside `folder`, whose name it takes when the block ends without an error.

    What another process has put there in the meantime stays.

    Raises:
        OSError: if the folder can't be put in its place.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        part = Path(scratch, folder.name)
        yield part
        try:
            os.replace(part, folder)  # an empty folder gives way
        except OSError:
            if not folder.is_dir():
                raise


__all__ = ["whole_folder", "write_whole"]
