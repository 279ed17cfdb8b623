"""Compares objectives: the same towers, data, order, steps and seeds, one run each, and one table and picture of them.

Example, minutes on two CPU cores with captioned photos (any data that training/pretrain.py reads):

    python training/compare.py --recipe compare-photos --dataset path/to/photos --eval_split validation --max_steps 60

Streamed shards, two processes for each run, some of the objectives, three seeds:

    python training/compare.py --recipe compare-photos --dataset "shards/*.tar" --streaming --processes 2 \\
        --eval_dataset path/to/photos --eval_split validation --objectives levljepa infonce --seeds 0 1 2

A recipe names the objectives: for each, the options of pretrain.py that differ. Options that are not listed here go to
pretrain.py and hold for all runs. A second call adds what is missing, repeats nothing, and goes on where a run was
stopped. The table, as Markdown and JSON, and the curves are written to the output folder, also after each run.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import levljepa_hf  # noqa: F401  isort: skip  (before what imports torchvision)
import torch
from tqdm.auto import tqdm

import pretrain
from levljepa_hf.curves import plot_runs, read_run
from levljepa_hf.recipes import as_config, as_overrides, read_recipe, recipe_names, run_script

RECIPES = Path(__file__).parent / "recipes"
SCRIPT = Path(__file__).with_name("pretrain.py")
OPTIONS_FILE = "compared_as.json"  # in a run's folder: the options that it was started with
# Rows of figures in the table: their title, their names in a run's log, and how they are written.
ROWS = {
    "loss": (("loss",), ".4f"),
    "prediction loss": (("prediction_loss",), ".4f"),
    "SIGReg, image / text": (("sigreg_vision", "sigreg_text"), ".2f"),
    "SIGReg of Gaussian samples": (("sigreg_floor",), ".2f"),
    "squared distance of the views": (("multi_view_loss",), ".4f"),
    "contrastive loss": (("contrastive_loss",), ".4f"),
    "learned scale / bias": (("contrastive_scale", "contrastive_bias"), ".2f"),
    "effective rank, image / text": (("effective_rank_vision", "effective_rank_text"), ".1f"),
    "evaluation: effective rank, image / text": (("eval_effective_rank_vision", "eval_effective_rank_text"), ".1f"),
    "evaluation: text to image R@1 / 5 / 10, %": (tuple(f"eval_text_to_image_R@{k}" for k in (1, 5, 10)), ".1%"),
    "evaluation: image to text R@1 / 5 / 10, %": (tuple(f"eval_image_to_text_R@{k}" for k in (1, 5, 10)), ".1%"),
    "samples a second": (("train_samples_per_second",), ".1f"),
}


@dataclass(frozen=True)
class Run:
    """One training of the comparison.

    Args:
        objective: its name in the recipe.
        seed: of weights, order and augmentations.
        folder: where it goes.
        options: of pretrain.py, as they stand in a recipe.
    """

    objective: str
    seed: int
    folder: Path
    options: dict[str, Any]

    def argv(self) -> list[str]:
        """The command line of pretrain.py."""
        words = []
        for name, value in self.options.items():
            values = as_overrides(value) if name == "config" else value if isinstance(value, list) else [value]
            words += [f"--{name}", *(json.dumps(v) if isinstance(v, (dict, bool)) else str(v) for v in values)]
        return [*words, "--seed", str(self.seed), "--output_dir", str(self.folder)]

    def results(self) -> dict[str, float] | None:
        """What it measured, or None if it is not at its end.

        Raises:
            ValueError: if its folder holds a run with other options.
        """
        before = self.folder / OPTIONS_FILE
        if before.is_file() and (found := json.loads(before.read_text())) != self.options:
            changed = [key for key in {*found, *self.options} if found.get(key) != self.options.get(key)]
            lines = "; ".join(f"{key}: {found.get(key)} there, {self.options.get(key)} now" for key in sorted(changed))
            raise ValueError(
                f"{self.folder} holds a run with other options ({lines}): give another --output_dir, or remove it."
            )
        path = self.folder / "all_results.json"
        results = json.loads(path.read_text()) if path.is_file() else {}
        evaluated = "eval_split" not in self.options or any(name.startswith("eval_") for name in results)
        return results if results and evaluated else None

    def train(self, processes: int) -> None:
        """Trains from where it is to its end.

        Raises:
            RuntimeError: if the training fails.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / OPTIONS_FILE).write_text(json.dumps(self.options, indent=1))
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(launch if processes > 1 else []), str(SCRIPT), *self.argv()]
        if processes > 1 and not torch.accelerator.is_available():
            command.append("--use_cpu")
        done = subprocess.run([*command, "--resume_from_checkpoint", "auto"])
        if done.returncode:
            raise RuntimeError(
                f"The training of {self.objective}, seed {self.seed}, ended with status {done.returncode}; its "
                f"message is above. Call this script again to go on, or run it alone: {shlex.join(command)}"
            )

    def figures(self) -> dict[str, float]:
        """The last value of each figure in the log, and what was measured at the end."""
        figures: dict[str, float] = {}
        for entry in read_run(self.folder).entries:
            figures |= {name: value for name, value in entry.items() if isinstance(value, (int, float))}
        return figures | (self.results() or {})


def read_comparison(name: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]], list[int]]:
    """The options of all runs, those of each objective, and the seeds, of a recipe of this script.

    Raises:
        FileNotFoundError: if there is no such recipe.
        ValueError: if it is none.
    """
    recipe = read_recipe(name, ("pretrain", "objectives", "seeds"), RECIPES)
    objectives = recipe.get("objectives")
    if not isinstance(objectives, dict) or not objectives:
        raise ValueError(f"The recipe {name} has no `objectives`: names, and for each the options that differ.")
    return recipe.get("pretrain") or {}, {key: value or {} for key, value in objectives.items()}, recipe["seeds"]


def plan(args: argparse.Namespace, more: Sequence[str]) -> list[Run]:
    """The runs of a comparison, all of whose options exist.

    Raises:
        ValueError: if an objective is unknown; SystemExit, as by pretrain.py, if an option is.
    """
    common, objectives, seeds = read_comparison(args.recipe)
    unknown = [name for name in args.objectives or () if name not in objectives]
    if unknown:
        raise ValueError(f"The recipe has no objective {unknown[0]!r}: it has {', '.join(objectives)}.")
    common = common | _options(more)
    runs = []
    for objective in args.objectives or objectives:
        own = objectives[objective]
        config = as_config([*as_overrides(common.get("config", {})), *as_overrides(own.get("config", {}))])
        options = {**common, **own, **({"config": config} if config else {})}
        for seed in args.seeds or seeds:
            runs.append(Run(objective, seed, Path(args.output_dir, f"{objective}-{seed}"), options))
    for run in runs:
        model_args, *_ = pretrain.parse_args(run.argv())
        if model_args.model_name_or_path is None:
            pretrain.build_config(model_args)
    return runs


def _options(words: Sequence[str]) -> dict[str, Any]:
    """`--name value ...` as a recipe has them; a name alone is true."""
    options: dict[str, Any] = {}
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            options[name] = [value] if equals else []
        elif options:
            options[name].append(word)
        else:
            raise ValueError(f"{word!r} stands before any option.")
    if "config" in options:
        options["config"] = as_config(options["config"])
    return {n: v if n == "config" or len(v) > 1 else v[0] if v else True for n, v in options.items()}


def write_table(runs: Sequence[Run], output_dir: Path, command: str) -> str:
    """Writes `comparison.md`, `comparison.json` and `curves.png` of the runs that are done, and returns the table."""
    figures = [(run, run.figures()) for run in runs if run.results() is not None]
    by_objective: dict[str, list[dict[str, float]]] = {}
    for run, values in figures:
        by_objective.setdefault(run.objective, []).append(values)
    lines = [f"| | {' | '.join(by_objective)} |", "|---|" + "---|" * len(by_objective)]
    for title, (names, form) in ROWS.items():
        cells = [_cell(runs_of, names, form) for runs_of in by_objective.values()]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    counts = {name: len(values) for name, values in by_objective.items()}
    note = "Means over the seeds, and standard deviations.\n\n" if max(counts.values()) > 1 else ""
    table = "\n".join(lines) + "\n"
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "comparison.md").write_text(f"{table}\n{note}Command: `{command}`\n")
    report = {
        "command": command,
        "runs": [
            {"objective": run.objective, "seed": run.seed, "options": run.options, "figures": values}
            for run, values in figures
        ],
    }
    (output_dir / "comparison.json").write_text(json.dumps(report, indent=1))
    plot_runs([read_run(run.folder) for run, _ in figures]).savefig(output_dir / "curves.png", dpi=110)
    return table


def _cell(runs: Sequence[dict[str, float]], names: Sequence[str], form: str) -> str:
    """The means over runs, with their standard deviation where there are several; empty where a figure is missing."""
    cells = []
    for name in names:
        values = [run[name] for run in runs if name in run]
        if not values:
            continue
        scale, digits = (100, ".1f") if form.endswith("%") else (1, form)
        spread = f" +- {scale * statistics.stdev(values):{digits}}" if len(values) > 1 else ""
        cells.append(f"{scale * statistics.mean(values):{digits}}{spread}")
    return " / ".join(cells)


def main(argv: Sequence[str] | None = None) -> str:
    """Trains what is missing, writes the table and returns it."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s --recipe RECIPE [options] [options of pretrain.py]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = [name for name in recipe_names(RECIPES) if name.startswith("compare-")]
    parser.add_argument("--recipe", required=True, help=f"A YAML file, or one of: {', '.join(names)}.")
    parser.add_argument("--objectives", nargs="+", help="Some of the recipe's objectives; all by default.")
    parser.add_argument("--seeds", nargs="+", type=int, help="In place of the recipe's.")
    parser.add_argument("--processes", type=int, default=1, help="For each run, by torchrun (default: %(default)s).")
    parser.add_argument("--output_dir", default="runs/compare", help="Default: %(default)s.")
    args, more = parser.parse_known_args(argv)
    if args.processes < 1:
        parser.error(f"--processes {args.processes} must be at least 1.")
    runs, output_dir = plan(args, more), Path(args.output_dir)
    command = shlex.join(["python", "training/compare.py", *(sys.argv[1:] if argv is None else argv)])
    missing = [run for run in runs if run.results() is None]
    for run in tqdm(missing, desc="trainings", unit=" runs"):
        run.train(args.processes)
        write_table(runs, output_dir, command)
    table = write_table(runs, output_dir, command)
    print(f"{table}\nIn {output_dir}: comparison.md, comparison.json, curves.png.")
    return table


if __name__ == "__main__":
    run_script(main)
