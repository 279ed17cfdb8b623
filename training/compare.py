"""Compares objectives: the same towers, data, order, steps and seeds, and one table, curves and picture of them.

Every objective on the scenes that come with the package, within the hour on two CPU cores:

    python -m levljepa_hf.scenes runs/scenes-64 --image_size 64 --seed 1
    python training/compare.py --recipe compare-quick --output_dir runs/compare-quick

Training figures alone, with captioned photos (any data that `levljepa pretrain` reads):

    python training/compare.py --recipe compare-photos --dataset path/to/photos --eval_split validation --max_steps 60

Streamed shards, two processes for each run, some of the objectives, three seeds:

    python training/compare.py --recipe compare-photos --dataset "shards/*.tar" --streaming --processes 2 \\
        --eval_dataset path/to/photos --eval_split validation --objectives levljepa infonce --seeds 0 1 2

Options that are not listed here go to pretrain.py and hold for all runs. A recipe of this script has the keys

    pretrain     options of pretrain.py that hold for all runs
    objectives   names, and for each the options that differ
    seeds        of weights, order and augmentations: a run for each objective and seed
    evaluation   a list; each entry has `tasks`, `protocols` (for each task the constants that differ) and options of
                 `levljepa evaluate`. They measure every run, fresh weights (`random`) for each seed, and --peers
    tuning       `grid`: for each objective a list of options of pretrain.py to try, equally many for all; `metrics`:
                 recalls of pretrain.py's evaluation, of which the mean chooses; `pretrain`: options of these runs,
                 such as max_steps. It sees the split that pretrain.py evaluates on, and never what `evaluation`
                 measures on; the recipe's first seed is used
    sweeps       for each name a figure of the table against a setting: `axis`, its words; `series`, for each line its
                 objective, or for each place on the axis one; `rows`, titles of rows, or for each place one
    paper        `source`, and `figures`: by the row's title, for each objective what a paper reports in percent

all of which may be left out but `objectives` and `seeds`. Two calls with different --objectives may share a folder at
the same time, and a last one without writes the whole table. A second call adds what is missing, repeats nothing, and
goes on where a run was stopped. Tables (Markdown and JSON), curves and pictures are written to the output folder after
each run. With runs that are probed while they train (`probe_dataset`) they say which logged figure tells the result.
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # an exception, which ends a training too
    words = sys.argv[1:]
    own, more = split_options(words)
    sys.exit(COMMAND.run(own, lambda arguments: run(arguments, more, words)))
