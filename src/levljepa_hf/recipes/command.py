"""`levljepa recipes`: the recipes that come with the package, and one of them to copy."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..options import Command, option
from .shelf import recipe_names, recipe_path, recipe_summary

EPILOG = """`levljepa pretrain` and `levljepa finetune` take a name or a YAML file as --recipe, and
`levljepa evaluate all` as --protocols. One of your own begins as a copy:

  levljepa recipes show flickr8k > mine.yaml
  levljepa pretrain --recipe mine.yaml --dataset path/to/photos
"""


@dataclass
class RecipesArguments:
    """What is printed."""

    action: str = option("list", help="list or show.", choices=("list", "show"), positional=True)
    name: str | None = option(None, help="Of the recipe to show.", positional=True)

    def __post_init__(self) -> None:
        if (self.action == "show") != (self.name is not None):
            raise ValueError("`show` takes the name of a recipe, and `list` none: levljepa recipes show demo")


COMMAND = Command(
    "levljepa recipes",
    "List the recipes that come with the package, or print one to copy.",
    (RecipesArguments,),
    more=EPILOG,
    models=False,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Lists the recipes, or prints one, and returns the exit status."""
    return COMMAND.run(argv, _print)


def _print(arguments: RecipesArguments) -> None:
    if arguments.name is not None:
        print(recipe_path(arguments.name).read_text("utf-8"), end="")
        return
    names = recipe_names()
    for name in names:
        print(f"{name:{max(map(len, names))}s}  {recipe_summary(name)}")


__all__ = ["COMMAND", "main"]
