"""Options of the commands: how they are declared, read and mistyped."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'knn'?"` for a name like a known one, else nothing; hyphens and underscores are alike."""
    spelt = {one.replace("-", "_").lower(): one for one in map(str, known)}
    close = difflib.get_close_matches(str(name).replace("-", "_").lower(), spelt, n=1)
    return f" Did you mean {spelt[close[0]]!r}?" if close else ""


__all__ = ["did_you_mean"]
