"""Compares objectives: the same towers, data, order, steps and seeds, and one table, curves and picture of them.

What it takes, and what the keys of its recipes mean, is in comparison/options.py; what it does, in command.py there.

    python -m levljepa_hf.scenes runs/scenes-64 --image_size 64 --seed 1
    python training/compare.py --recipe compare-quick --output_dir runs/compare-quick
"""

import signal
import sys
from collections.abc import Sequence

import levljepa_command  # noqa: F401  (first: the help then waits for no torch)
from comparison.options import COMMAND, RECIPES, CompareArguments, split_options
from levljepa_hf.recipes.shelf import recipe_path


def main(argv: Sequence[str] | None = None) -> str:
    """Trains and evaluates what is missing, writes the tables and returns them."""
    argv = list(sys.argv[1:] if argv is None else argv)
    own, more = split_options(argv)
    return run(*COMMAND.parse(own), more, argv)


def run(arguments: CompareArguments, more: Sequence[str], argv: Sequence[str]) -> str:
    recipe_path(arguments.recipe, RECIPES)  # an error now, and not after seconds of imports
    from comparison.command import compare
    from levljepa_hf.registration import register_auto_classes

    register_auto_classes()
    return compare(arguments, more, argv)


if __name__ == "__main__":
    words = sys.argv[1:]
    own, more = split_options(words)
    COMMAND.check(own)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # an exception, which ends a training too
    sys.exit(COMMAND.run(own, lambda arguments: run(arguments, more, words)))
