"""Prints the lower bounds of pyproject.toml as pip's constraints, for `make check-lowest`."""

import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lower_bounds(pyproject: Path = PYPROJECT) -> list[str]:
    """`name==version` for each dependency and that of each extra.

    Raises:
        ValueError: if a dependency has no lower bound.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    bounds = {}
    for requirement in map(Requirement, chain(project["dependencies"], *project["optional-dependencies"].values())):
        if canonicalize_name(requirement.name) == canonicalize_name(project["name"]):
            continue
        lowest = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        if not lowest:
            raise ValueError(f"{pyproject} gives {requirement.name!r} no lower bound: write {requirement.name}>=...")
        bounds[requirement.name] = lowest[0]
    return [f"{name}=={version}" for name, version in bounds.items()]


if __name__ == "__main__":
    print("\n".join(lower_bounds()))
