"""The command `levljepa`: one sub-command a module, which declares it as `COMMAND` and has a `main(argv)`.

What a command declares is read before its module is imported, so that `--help` and a wrong option are answered at
once, and the help of a command is there without the extra that it needs.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from .extras import missing
from .options import did_you_mean
from .sketch import read

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

HELP = """usage: levljepa COMMAND [options]

LeVLJEPA: vision-language pretraining without negatives.

{commands}

options: levljepa COMMAND --help
example: levljepa demo --output_dir runs/demo
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a sub-command with the arguments after it, and returns its exit status.

    Raises:
        SystemExit: after a help, or after a line that says what is wrong with the options.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("", "-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {name:10}{text}" for name, (_, text) in COMMANDS.items())), end="")
        return 0 if name else 2
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        print(f"levljepa: there is no command {name!r}.{hint} One of {', '.join(COMMANDS)}.", file=sys.stderr)
        raise SystemExit(2)
    return run(COMMANDS[name][0], f"levljepa {name}", rest)


def run(module: str, name: str, argv: Sequence[str]) -> int:
    """Runs the command of a module of the package; returns the exit status.

    Raises:
        SystemExit: after the help, or after a line that says what is wrong with the options.
    """
    declared = read(f"{__package__}.{module}")["COMMAND"]
    declared.check(argv)
    try:
        if declared.models:
            from .registration import register_auto_classes

            register_auto_classes()
        command = import_module(f".{module}", __package__).main
    except ModuleNotFoundError as error:  # an extra is missing
        print(f"{name}: {missing(error)}", file=sys.stderr)
        return 1
    return command(argv) or 0


if __name__ == "__main__":
    sys.exit(main())
