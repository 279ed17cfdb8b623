"""The nearest of known names, for messages. This file travels to the Hub with a saved model."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6, prefix: str = "") -> str:
    """`" Did you mean 'depth' or 'width'?"` for a name like some of those known, the nearest first; else nothing."""
    close = difflib.get_close_matches(name, known, n=most, cutoff=cutoff)
    return f" Did you mean {' or '.join(repr(prefix + one) for one in close)}?" if close else ""
