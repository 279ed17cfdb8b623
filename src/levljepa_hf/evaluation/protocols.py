"""Options from a mapping, as a YAML file or a recipe has them: the constants of protocols, and any other dataclass."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..options import Parser, did_you_mean
from ..recipes import recipe_path
from .task import TASKS


def read_protocols(file: str | Path) -> dict[str, Any]:
    """Protocols by task, from a YAML file with the constants that differ from the defaults: `knn: {ks: [10, 20]}`.

    Args:
        file: A path, or the name of a recipe that comes with the package.

    Raises:
        ValueError: if a task or a constant does not exist, or a value does not fit.
        OSError: if the file does not open.
    """
    path = Path(file)
    content = yaml.safe_load((path if path.is_file() else recipe_path(str(file))).read_text("utf-8"))
    if not isinstance(content, Mapping) or not all(isinstance(one, Mapping) for one in content.values()):
        raise ValueError(f"{file} is to name tasks, and for each its constants, such as knn: {{ks: [10, 20]}}.")
    check_names(content, TASKS, f"task of {file}")
    return {task: read_protocol(task, constants, str(file)) for task, constants in content.items()}


def read_protocol(task: str, constants: Mapping[str, Any], where: str) -> Any:
    """The protocol of a task with the constants that differ from its defaults.

    Args:
        task: Its name.
        constants: By name.
        where: They are from, for messages.

    Raises:
        ValueError: if a constant does not exist, or a value does not fit.
    """
    protocol = TASKS[task].protocol
    check_names(constants, protocol.__dataclass_fields__, f"constant of {task} in {where}")
    return parse_options(protocol, constants, f"{where}, {task}")


def parse_options(group: Any, given: Mapping[str, Any], where: str) -> Any:
    """A dataclass of options from a mapping, with values such as the command line takes: 1e-3 is a number.

    Raises:
        ValueError: if a value does not fit.
    """
    (parsed,) = Parser([group], prog=where, raises=True).parse_groups(as_words(given))
    return parsed


def as_words(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line."""
    words = []
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def check_names(names: Iterable[Any], known: Iterable[str], what: str) -> None:
    """Raises `ValueError` with a hint if a name is none of those that are known."""
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is no {what}.{did_you_mean(name, known)} There are {', '.join(known)}.")


__all__ = ["as_words", "check_names", "parse_options", "read_protocol", "read_protocols"]
