"""The log of a run as a file that grows with it, so that it can be looked at while the run is going on."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_whole

logger = logging.getLogger(__name__)

LOG_NAME = "log.jsonl"  # in the output folder: what `trainer_state.json` has as `log_history`, a line an entry


class LogFile:
    """`log.jsonl` of a run, which one process writes.

    Args:
        folder: The output folder of the run.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.path = Path(folder, LOG_NAME)
        self._begun = False

    def begin(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Starts anew, or from the history of the checkpoint that the run goes on from: later lines are dropped."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, lambda part: part.write_text("".join(map(_line, history)), "utf-8"))
        self._begun = True

    def add(self, entry: Mapping[str, Any]) -> None:
        """A line more, if the run has begun. Where it can't be written, as on a full disk, the run goes on without."""
        if self._begun:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(_line(entry))
            except OSError as error:
                self._begun = False
                logger.warning("%s ends here (%s): checkpoints have the whole log.", self.path, error)


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry) + "\n"


__all__ = ["LOG_NAME", "LogFile"]
