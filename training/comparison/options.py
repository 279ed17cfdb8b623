"""The options of training/compare.py. Nothing is imported here that a help would wait for."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from levljepa_hf.options import Command, nearest_option, option
from levljepa_hf.recipes.shelf import recipe_names
from levljepa_hf.sketch import read

RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = tuple(name for name in recipe_names(RECIPES) if name.startswith("compare-"))


@dataclass
class CompareArguments:
    """What is compared."""

    recipe: str = option(help=f"A YAML file, or one of: {', '.join(NAMES)}.")
    objectives: list[str] = option(default_factory=list, help="Some of the recipe's objectives; all by default.")
    seeds: list[int] = option(default_factory=list, help="In place of the recipe's.")
    tasks: list[str] = option(
        default_factory=list,
        help="Measure only these of the recipe's tasks now; all by default. Others keep figures.",
    )
    peers: list[str] = option(
        default_factory=list,
        help="Also measure timm:NAME, hf:NAME, or other checkpoints; see levljepa evaluate.",
    )
    processes: int = option(1, help="For each run, by torchrun.")
    output_dir: str = option("runs/compare", help="Where runs, tables and pictures go.")

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"--processes {self.processes} must be at least 1.")


COMMAND = Command(
    "compare.py",
    "Compares objectives: the same towers, data, order, steps and seeds, and one table, curves and picture of them.",
    (CompareArguments,),
    more="""Every objective on the scenes that come with the package, within the hour on two CPU cores:

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
""",
    extra="eval",
)


def split_options(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What of a command line is of this script, and what is of `levljepa pretrain`.

    Raises:
        SystemExit: with a line that names the nearest option, for one that neither has.
    """
    own, more = {one.name for one in fields(CompareArguments)} | {"help", "help_all"}, []
    pretrain = read("levljepa_hf.training.command")["COMMAND"].parser(sketched=True)
    mine, words = [], more
    for word in argv:
        if word.startswith("--") or word == "-h":
            name = word.lstrip("-").partition("=")[0].replace("-", "_")
            if word != "-h" and name not in own and f"--{name}" not in pretrain.flags:
                close = nearest_option(name, [*sorted(own), *(flag.removeprefix("--") for flag in pretrain.flags)])
                hint = f" Did you mean --{close}?" if close else " --help lists what there is."
                COMMAND.parser(sketched=True).error(f"there is no option --{name}.{hint}")
            words = mine if word == "-h" or name in own else more
        words.append(word)
    return mine, more


__all__ = ["COMMAND", "RECIPES", "CompareArguments", "split_options"]
