"""The command `levljepa`: one sub-command a module, each with its own `main(argv)` and `--help`."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from .extras import missing
from .options import did_you_mean

COMMANDS = {
    "demo": ("demo", "pretrain a small model on captioned scenes, evaluate it and draw what it sees"),
    "pretrain": ("training.command", "train a model on captioned images: a recipe, a data set, options"),
    "finetune": ("finetuning.command", "fine-tune a checkpoint to classify or to segment images"),
    "recipes": ("recipes.command", "list the recipes that come with the package, or print one to copy"),
    "evaluate": ("evaluation.command", "measure frozen features: zero-shot, retrieval, probes, segmentation, VLM"),
    "explore": ("explore.command", "look at what a checkpoint sees in photos, in the browser"),
    "plot": ("training.curves", "draw the curves of runs, finished or still going, as one picture"),
    "embed": ("encoders.command", "write the features of a large collection of images to sharded files"),
    "convert": (
        "hub.convert",
        "turn a released checkpoint (two files, or a .pt pair) into the native layout or back",
    ),
    "card": ("hub.command", "print or write a checkpoint's model card: training, recipe, figures, pictures"),
}

EPILOG = """commands:
{commands}

example:
  levljepa demo --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sub-command with the arguments after it, and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="levljepa",
        description="LeVLJEPA: vision-language pretraining without negatives.",
        epilog=EPILOG.format(commands="\n".join(f"  {name:10}{text}" for name, (_, text) in COMMANDS.items())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="command", help="what to do: see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the command's own arguments")
    args = parser.parse_args(argv)
    if args.command not in COMMANDS:
        parser.error(f"no command {args.command!r}.{did_you_mean(args.command, COMMANDS)} See levljepa --help.")
    module, _ = COMMANDS[args.command]
    try:
        command = import_module(f".{module}", __package__).main
    except ModuleNotFoundError as error:  # an extra is missing
        print(f"levljepa {args.command}: {missing(error)}", file=sys.stderr)
        return 1
    return command(args.arguments) or 0


if __name__ == "__main__":
    sys.exit(main())
