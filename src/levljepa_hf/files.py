"""Files that are whole or not there."""

import os
import uuid
from collections.abc import Callable
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
