"""The recipes that come with the package: YAML files beside this one, by their names and first lines."""

from pathlib import Path

from ..options import did_you_mean

RECIPES = Path(__file__).parent


def recipe_names(folder: str | Path = RECIPES) -> list[str]:
    """The recipes of a folder, which are taken by name."""
    return sorted(path.stem for path in Path(folder).glob("*.yaml"))


def recipe_path(name: str, folder: str | Path = RECIPES) -> Path:
    """The file of a recipe.

    Args:
        name: A name in `folder`, or the path of a YAML file.
        folder: Where recipes are known by name.

    Raises:
        FileNotFoundError: if there is no such recipe; the message has the names that there are.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else Path(folder, f"{name}.yaml")
    if not path.is_file():
        known = recipe_names(folder)
        hint = did_you_mean(path.stem, known)
        raise FileNotFoundError(f"No recipe {name!r}.{hint} Give a YAML file, or one of {', '.join(known)}.")
    return path


def recipe_summary(name: str, folder: str | Path = RECIPES) -> str:
    """What a recipe is for: the first line of its file, which is a comment."""
    return recipe_path(name, folder).read_text("utf-8").partition("\n")[0].removeprefix("#").strip()


__all__ = ["RECIPES", "recipe_names", "recipe_path", "recipe_summary"]
