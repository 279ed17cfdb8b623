"""One text for `help()` and the command line: that of a dataclass's fields."""

import dataclasses
import inspect
import textwrap
from typing import TypeVar

T = TypeVar("T", bound=type)


def with_field_help(cls: T) -> T:
    """Appends a section `Args` to a dataclass's docstring: the `help` of its fields, but for those of other packages'
    base classes."""
    package = __name__.partition(".")[0]
    own = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == package]
    lines = ["", "", "Args:"]
    for field in dataclasses.fields(cls):
        if any(field.name in inspect.get_annotations(base) for base in own):
            text = f"{field.name}: {field.metadata['help']}"
            lines += textwrap.wrap(
                text, 110, initial_indent="    ", subsequent_indent="        ", break_on_hyphens=False
            )
    cls.__doc__ = inspect.cleandoc(cls.__doc__) + "\n".join(lines) + "\n"
    return cls


__all__ = ["with_field_help"]
