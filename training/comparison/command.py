"""Compares objectives: plans the runs of a recipe, tunes, trains, measures, and writes what came out."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import set_seed

from levljepa_hf import LeVLJEPAModel
from levljepa_hf.evaluation.protocols import check_names
from levljepa_hf.files import whole_folder
from levljepa_hf.recipes import as_config, as_overrides, read_recipe
from levljepa_hf.training import command as pretrain
from levljepa_hf.training.metrics import evaluation_figures

from .evaluations import EVALUATION_FILE, Evaluation, evaluate_model, read_evaluations
from .options import RECIPES, CompareArguments
from .report import Report
from .runs import OPTIONS_FILE, Comparison, Run, Tuning, check_folder, score
from .sweeps import read_sweeps
from .tables import row_titles

SCRIPT = Path(__file__).parents[1] / "pretrain.py"


def read_comparison(name: str) -> Comparison:
    """A recipe of this script.

    Raises:
        FileNotFoundError: if there is no such recipe.
        ValueError: if it is none.
    """
    keys = ("pretrain", "objectives", "seeds", "evaluation", "tuning", "sweeps", "paper")
    recipe = read_recipe(name, keys, RECIPES)
    objectives = recipe.get("objectives")
    if not isinstance(objectives, dict) or not objectives:
        raise ValueError(f"The recipe {name} has no `objectives`: names, and for each the options that differ.")
    if not isinstance(recipe.get("seeds"), list) or not recipe["seeds"]:
        raise ValueError(f"The recipe {name} has no `seeds`: a list of numbers, such as [0, 1, 2].")
    evaluations = read_evaluations(recipe["evaluation"]) if recipe.get("evaluation") else []
    paper = recipe.get("paper") or {}
    check_names(paper, ("source", "figures"), "key of `paper`")
    for title, figures in (paper.get("figures") or {}).items():
        check_names([title], row_titles(evaluations), "row of this comparison, so `paper` cannot name it")
        check_names(figures, objectives, f"objective of this comparison ({title} of `paper`)")
    tuning = read_tuning(recipe["tuning"], objectives) if recipe.get("tuning") else None
    objectives = {key: value or {} for key, value in objectives.items()}
    sweeps = read_sweeps(recipe.get("sweeps") or {}, objectives, row_titles(evaluations))
    return Comparison(recipe.get("pretrain") or {}, objectives, recipe["seeds"], evaluations, tuning, paper, sweeps)


def read_tuning(tuning: Any, objectives: Mapping[str, Any]) -> Tuning:
    """The part `tuning` of a recipe.

    Raises:
        ValueError: if it is none, or the objectives have different numbers of points.
    """
    check_names(tuning, ("grid", "metrics", "pretrain"), "key of `tuning`")
    grid, metrics = tuning.get("grid") or {}, tuning.get("metrics") or []
    check_names(grid, objectives, "objective of this recipe (`tuning`, `grid`)")
    counts = {objective: len(grid.get(objective) or ()) for objective in objectives}
    if len(set(counts.values())) > 1 or not all(counts.values()):
        listed = ", ".join(f"{objective} {count}" for objective, count in counts.items())
        raise ValueError(f"`tuning` must try as many points for each objective, at least one, and it has {listed}.")
    recalls = [name for name in evaluation_figures() if "_R@" in name]
    check_names(metrics, recalls, "recall of pretrain.py's evaluation (`tuning`, `metrics`)")
    if not metrics:
        raise ValueError(f"`tuning` has no `metrics` that choose: some of {', '.join(recalls)}.")
    return Tuning(grid, metrics, tuning.get("pretrain") or {})


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Options of pretrain.py, the later ones over the earlier; fields of `config` one by one."""
    options = {name: value for layer in layers for name, value in layer.items()}
    config = as_config(word for layer in layers for word in as_overrides(layer.get("config") or {}))
    return {**options, **({"config": config} if config else {})}


def plan(
    comparison: Comparison,
    args: CompareArguments,
    more: Sequence[str],
    chosen: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Run]:
    """The runs of a comparison, seed by seed, all of whose options exist.

    Args:
        comparison: The recipe.
        args: The command line: objectives, seeds, output_dir.
        more: The rest of it, options of pretrain.py.
        chosen: For each objective the options that tuning chose.

    Raises:
        ValueError: if an objective is unknown; SystemExit, as by pretrain.py, if an option is.
    """
    common, objectives = merged(comparison.pretrain, _options(more)), comparison.objectives
    unknown = [name for name in args.objectives or () if name not in objectives]
    if unknown:
        raise ValueError(f"The recipe has no objective {unknown[0]!r}: it has {', '.join(objectives)}.")
    runs = []
    for seed in args.seeds or comparison.seeds:
        for objective in args.objectives or objectives:
            options = merged(common, objectives[objective], (chosen or {}).get(objective, {}))
            runs.append(_checked(Run(objective, seed, Path(args.output_dir, f"{objective}-{seed}"), options)))
    return runs


def plan_tuning(comparison: Comparison, args: CompareArguments, more: Sequence[str]) -> dict[str, list[Run]]:
    """For each objective the runs that try its points, none without tuning.

    Raises:
        ValueError: if they are not evaluated; else as `plan`.
    """
    tuning = comparison.tuning
    if tuning is None:
        return {}
    runs: dict[str, list[Run]] = {}
    for objective in args.objectives or comparison.objectives:
        for i, point in enumerate(tuning.grid[objective]):
            folder = Path(args.output_dir, "tuning", f"{objective}-{i}")
            options = merged(
                comparison.pretrain, _options(more), comparison.objectives[objective], tuning.pretrain, point
            )
            run = _checked(Run(objective, comparison.seeds[0], folder, options))
            if "eval_split" not in run.options:
                raise ValueError(
                    "`tuning` chooses by what pretrain.py evaluates: give --eval_split, and no test data."
                )
            runs.setdefault(objective, []).append(run)
    return runs


def _checked(run: Run) -> Run:
    """The run, whose options exist, with the split that it evaluates on among them."""
    model_args, data_args, _ = pretrain.parse_args(run.argv())
    if model_args.model_name_or_path is None:
        pretrain.build_config(model_args)
    if data_args.eval_split is not None:
        run.options["eval_split"] = data_args.eval_split
    return run


def choose(comparison: Comparison, runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, Any]]:
    """For each objective the best point of its grid, the first of equals; all of its runs are done.

    Raises:
        ValueError: if all points of an objective diverged.
    """
    chosen = {}
    for objective, tried in runs.items():
        scores = [score(run, comparison.tuning.metrics) for run in tried]
        if max(scores) == -math.inf:
            raise ValueError(f"All {len(tried)} points that {objective} tried diverged: give smaller learning rates.")
        chosen[objective] = comparison.tuning.grid[objective][scores.index(max(scores))]
    return chosen


def only(evaluations: Sequence[Evaluation], tasks: Sequence[str] | None) -> list[Evaluation]:
    """The evaluations of some tasks; of all without a choice.

    Raises:
        ValueError: if the recipe has no such task.
    """
    check_names(tasks or (), {task: None for one in evaluations for task in one.tasks}, "task of this recipe")
    kept = [replace(one, tasks=tuple(t for t in one.tasks if not tasks or t in tasks)) for one in evaluations]
    return [one for one in kept if one.tasks]


def random_model(comparison: Comparison, more: Sequence[str], seed: int, folder: Path) -> Path:
    """A checkpoint of fresh weights, of the recipe's first objective.

    Raises:
        ValueError: if the folder holds one with other options.
    """
    options = merged(comparison.pretrain, _options(more), next(iter(comparison.objectives.values())))
    model_args, *_ = pretrain.parse_args(Run("random", seed, folder, options).argv())
    options = {"preset": model_args.preset, "config": model_args.config, "model": model_args.model_name_or_path}
    check_folder(folder, options)
    if not folder.is_dir():
        model, processor = pretrain.build_model(model_args)
        set_seed(seed)
        with whole_folder(folder) as unfinished:
            for part in (LeVLJEPAModel(model.config), processor):
                part.save_pretrained(unfinished)
            Path(unfinished, OPTIONS_FILE).write_text(json.dumps(options, indent=1))
        check_folder(folder, options)  # another call may have been faster, with the same weights or others
    return folder


def peer_file(output_dir: Path, peer: str) -> Path:
    """Where the figures of a peer are kept."""
    return output_dir / "peers" / ("".join(c if c.isalnum() or c in "-._" else "-" for c in peer) + ".json")


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


def compare(args: CompareArguments, more: Sequence[str], argv: Sequence[str]) -> str:
    """Trains and evaluates what is missing, writes the tables and returns them.

    Args:
        args: The options of the comparison.
        more: Those of pretrain.py, for all runs.
        argv: The whole command line, for the report.

    Raises:
        ValueError: if the recipe or an option does not fit, before anything is trained.
    """
    comparison, output_dir = read_comparison(args.recipe), Path(args.output_dir)
    evaluations = only(comparison.evaluations, args.tasks)
    if args.peers and not evaluations:
        raise ValueError("--peers are for recipes with `evaluation`, which this one has not.")
    command = shlex.join(["python", "training/compare.py", *argv])
    runs, tuning = plan(comparison, args, more), plan_tuning(comparison, args, more)

    # What needs no training comes first: a wrong data set or name is an error now and not after hours.
    baselines = {}
    for seed in dict.fromkeys(run.seed for run in runs) if evaluations else ():
        folder = random_model(comparison, more, seed, output_dir / f"random-{seed}")
        evaluate_model(str(folder), evaluations, folder / EVALUATION_FILE)
        baselines.setdefault("random", []).append(folder / EVALUATION_FILE)
    for peer in args.peers:
        baselines[peer] = [peer_file(output_dir, peer)]
        evaluate_model(peer, evaluations, *baselines[peer], is_peer=True)

    tried = [run for runs_of in tuning.values() for run in runs_of]
    left = [run for run in tried if run.results() is None and not run.diverged()]
    for run in tqdm(left, desc="tuning", unit=" runs"):
        try:
            run.train(SCRIPT, args.processes)
        except FloatingPointError as error:  # as good an answer as a score
            tqdm.write(f"Not to be chosen: {error}")
    chosen = choose(comparison, tuning)
    runs = plan(comparison, args, more, chosen)
    report = Report(comparison, output_dir, command, runs, tuning, chosen, baselines)
    table = ""
    undone = [run for run in runs if run.results() is None or not run.is_measured(evaluations)]
    for run in tqdm([run for run in undone if not run.diverged()], desc="runs", unit=" runs"):
        if run.results() is None:
            try:
                run.train(SCRIPT, args.processes)
            except FloatingPointError as error:  # the others go on
                tqdm.write(f"Not in the tables: {error}")
                continue
        evaluate_model(str(run.folder), evaluations, run.folder / EVALUATION_FILE)
        table = report.write()
    table = table or report.write()
    print(f"{table}\nIn {output_dir}: {', '.join(sorted(p.name for p in output_dir.glob('*.*') if p.is_file()))}.")
    return table
