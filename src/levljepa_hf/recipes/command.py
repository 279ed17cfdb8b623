"""`levljepa recipes`: the recipes that come with the package, and one of them to copy."""

import argparse
from collections.abc import Sequence

from .shelf import recipe_names, recipe_path, recipe_summary

EPILOG = """`levljepa pretrain` and `levljepa finetune` take a name or a YAML file as --recipe, and
`levljepa evaluate all` as --protocols. One of your own begins as a copy:

  levljepa recipes show flickr8k > mine.yaml
  levljepa pretrain --recipe mine.yaml --dataset path/to/photos
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Lists the recipes, or prints one, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="levljepa recipes",
        description="List the recipes that come with the package, or print one to copy.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", nargs="?", choices=("list", "show"), default="list", help="(default: list)")
    parser.add_argument("name", nargs="?", help="of the recipe to show")
    args = parser.parse_args(argv)
    if (args.action == "show") != (args.name is not None):
        parser.error("`show` takes the name of a recipe, and `list` none: levljepa recipes show demo")
    if args.action == "show":
        try:
            print(recipe_path(args.name).read_text("utf-8"), end="")
        except OSError as error:
            parser.exit(2, f"{parser.prog}: {error}\n")
        return 0
    names = recipe_names()
    for name in names:
        print(f"{name:{max(map(len, names))}s}  {recipe_summary(name)}")
    return 0


__all__ = ["main"]
