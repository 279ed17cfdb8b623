"""What training/compare.py makes of its runs: evaluations beside them, means and spreads over seeds, tables, picture.

evaluations = read_evaluations([{"tasks": ["knn"], "dataset": "scenes", "protocols": {"knn": {"ks": [20]}}}])
results = evaluate_model("runs/compare/levljepa-0", evaluations, "runs/compare/levljepa-0/evaluation.json")
rows = comparison_rows(evaluations, {"levljepa": [results]})
print(format_rows(rows, reference="levljepa"))
"""

import argparse
import difflib
import fnmatch
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .evaluation import _extra  # noqa: F401  isort: skip  (says what to install)
import torch
from scipy.special import stdtrit
from transformers import HfArgumentParser

from .curves import plot_runs, read_run
from .evaluation.command import TASKS, EvaluationArguments, evaluate
from .evaluation.encoders import load_encoder
from .evaluation.features import write_whole
from .evaluation.pictures import _figure, _save
from .evaluation.results import versions
from .recipes import as_overrides, changed_options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVALUATION_FILE = "evaluation.json"  # beside a run's weights
CONFIDENCE = 0.95
# The figures of a task that stand in the table: what they are called, and their names, the first that a model has.
# With predictors a model is read by `avg`, without by `zeroshot`.
HEADLINES: dict[str, dict[str, tuple[str, ...]]] = {
    "zero-shot": {"top-1": ("avg_top1", "zeroshot_top1")},
    "retrieval": {
        "text to image R@1": ("avg_text_to_image_R@1", "zeroshot_text_to_image_R@1"),
        "image to text R@1": ("avg_image_to_text_R@1", "zeroshot_image_to_text_R@1"),
    },
    "linear-probe": {"top-1": ("top1",)},
    "knn": {"top-1": ("k20_top1", "k*_top1")},
    "attentive-probe": {"top-1": ("top1",)},
    "background": {
        "top-1": ("original_top1",),
        "drop, Mixed-Same": ("mixed_same_drop",),
        "drop, Mixed-Rand": ("mixed_rand_drop",),
    },
    "segmentation": {"mean IoU": ("mean_iou",)},
    "vlm": {"accuracy": ("accuracy",), "gain": ("gain",)},
}
# Fields of EvaluationArguments that do not change a figure, or are not a recipe's to give.
_NO_SETTINGS = ("cache_dir", "no_cache", "num_workers", "encode_batch_size", "device")
_NOT_GIVEN = ("model", "output", "card", "protocols")

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

# --------------------------------------------------------------------------------------------------------- evaluating


@dataclass(frozen=True)
class Evaluation:
    """Tasks on one data set.

    Args:
        tasks: Their names.
        arguments: Data set and options, without a model.
        protocols: The constants of each task.
    """

    tasks: tuple[str, ...]
    arguments: EvaluationArguments
    protocols: dict[str, Any]

    def key(self, task: str) -> str:
        """What its results are called."""
        return f"{task} on {self.arguments.dataset}"

    def settings(self, task: str) -> dict[str, Any]:
        """All that decides a figure, but for the model and the versions."""
        skipped = (*_NO_SETTINGS, *_NOT_GIVEN)
        options = {name: value for name, value in asdict(self.arguments).items() if name not in skipped}
        return json.loads(json.dumps({"options": options, "protocol": asdict(self.protocols[task])}))

    def command(self, task: str, model: str) -> str:
        """The command that measures the same."""
        words = ["levljepa", "evaluate", task, "--model", model]
        for group in (self.arguments, self.protocols[task]):
            words += _words(changed_options(group))
        return shlex.join(words)


def read_evaluations(entries: Any) -> list[Evaluation]:
    """The evaluations of a recipe.

    Args:
        entries: A list of mappings: `tasks`, a list; `protocols`, for each task the constants that differ; and options
            of `levljepa evaluate`.

    Raises:
        ValueError: if a task, an option or a constant is unknown or of the wrong type, or a task occurs twice on a
            data set.
    """
    if not isinstance(entries, list) or not all(isinstance(one, Mapping) for one in entries):
        raise ValueError("`evaluation` must be a list of mappings, such as - {tasks: [knn], dataset: scenes}.")
    evaluations: list[Evaluation] = []
    for entry in entries:
        options = {name: value for name, value in entry.items() if name not in ("tasks", "protocols")}
        known = [name for name in EvaluationArguments.__dataclass_fields__ if name not in _NOT_GIVEN]
        check_names(options, [*known, "tasks", "protocols"], "option of `evaluation`")
        tasks, constants = entry.get("tasks") or [], entry.get("protocols") or {}
        if not isinstance(tasks, list) or not tasks:
            raise ValueError(f"An entry of `evaluation` has no list of tasks: tasks: [{', '.join(TASKS)}], or some.")
        check_names(tasks, TASKS, "task")
        check_names(constants, tasks, "task of this entry, so `protocols` cannot name it")
        protocols = {}
        for task in tasks:
            protocol_class, given = TASKS[task].protocol_class(), constants.get(task) or {}
            check_names(given, protocol_class.__dataclass_fields__, f"constant of {task}")
            protocols[task] = _parse(protocol_class, given, f"protocols, {task}")
        evaluations.append(Evaluation(tuple(tasks), _parse(EvaluationArguments, options, "evaluation"), protocols))
    keys = [one.key(task) for one in evaluations for task in one.tasks]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"`evaluation` has {twice[0]} twice: leave one out.")
    return evaluations


def _parse(group: Any, given: Mapping[str, Any], what: str) -> Any:
    """A dataclass of options from a mapping, read as the command line would be."""
    parser = HfArgumentParser([group], prog=what, exit_on_error=False)
    try:
        (parsed,) = parser.parse_args_into_dataclasses(_words(given), look_for_args_file=False)
    except argparse.ArgumentError as error:
        raise ValueError(f"{what}: {error}") from error
    return parsed


def _words(options: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def check_names(names: Iterable[Any], known: Iterable[str], what: str) -> None:
    """Raises `ValueError` with a hint if a name is none of those that are known."""
    known = list(known)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{name!r} is no {what}.{hint} There are {', '.join(known)}.")


def read_results(path: str | os.PathLike, evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """What a file of `evaluate_model` has of these evaluations with the same settings, by `Evaluation.key`."""
    path = Path(path)
    found = json.loads(path.read_text("utf-8"))["results"] if path.is_file() else {}
    wanted = {one.key(task): one.settings(task) for one in evaluations for task in one.tasks}
    return {key: found[key] for key, settings in wanted.items() if key in found and found[key]["settings"] == settings}


def evaluate_model(
    model: str, evaluations: Sequence[Evaluation], path: str | os.PathLike, is_peer: bool = False
) -> dict[str, dict[str, Any]]:
    """Measures what is missing, task by task, and writes each result as it comes.

    Args:
        model: As `levljepa evaluate` takes it.
        evaluations: What to measure.
        path: JSON file of the results. What it has with the same settings is not repeated.
        is_peer: Whether a task that the model does not serve (one without a text tower) is noted as left out.

    Returns:
        For each `Evaluation.key` the record of `levljepa evaluate`, or, of a peer, `left_out` with the reason.

    Raises:
        ValueError: if the model's name is wrong, or it does not serve a task and is no peer.
        OSError: if a model or data set is not within reach.
    """
    results, path = read_results(path, evaluations), Path(path)
    if is_peer and any(one.key(task) not in results for one in evaluations for task in one.tasks):
        load_encoder(model, "cpu")  # a wrong name is an error, where a task that it does not serve is none
    for one in evaluations:
        for task in one.tasks:
            if one.key(task) in results:
                continue
            try:
                records = evaluate(replace(one.arguments, model=[model]), {task: TASKS[task]}, one.protocols)
                result = next(record for record in records if record.model == model).to_dict()
            except ValueError as error:
                if not is_peer:
                    raise
                result = {"left_out": str(error)}
            results[one.key(task)] = {"settings": one.settings(task), "versions": versions(), **result}
            text = json.dumps({"model": model, "results": results}, indent=1) + "\n"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda part, text=text: part.write_text(text, "utf-8"))
    return results


# ---------------------------------------------------------------------------------------------------------- comparing


@dataclass
class Row:
    """One figure of several models.

    Args:
        title: Task, data set and figure.
        values: For each model its figure for each seed, in 0..1.
        chance: What guessing scores, where that is known.
        paper: What a paper reports of models of the same names, in percent.
        missing: Why a model has no figure.
    """

    title: str
    values: dict[str, list[float]]
    chance: float | None = None
    paper: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def row_titles(evaluations: Sequence[Evaluation]) -> list[str]:
    """The titles of the rows that these evaluations give."""
    return [title for title, *_ in _headlines(evaluations)]


def _headlines(evaluations: Sequence[Evaluation]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Title, key of the result, and names of the figure."""
    return [
        (f"{one.key(task)}, {title}", one.key(task), names)
        for one in evaluations
        for task in one.tasks
        for title, names in HEADLINES[task].items()
    ]


def comparison_rows(
    evaluations: Sequence[Evaluation],
    results: Mapping[str, Sequence[Mapping[str, dict[str, Any]]]],
    paper: Mapping[str, dict[str, float]] | None = None,
) -> list[Row]:
    """The rows of the table; those of which no model has a figure are left out.

    Args:
        evaluations: What was measured.
        results: For each model what `evaluate_model` returned, one for each seed.
        paper: By title (`row_titles`), for each model what a paper reports, in percent.
    """
    rows = []
    for title, key, names in _headlines(evaluations):
        row = Row(title, {}, paper=dict((paper or {}).get(title, {})))
        for model, of_seeds in results.items():
            records = [one[key] for one in of_seeds if key in one]
            if why := next((one["left_out"] for one in records if "left_out" in one), None):
                row.missing[model] = why
                continue
            found = [(one, _first(names, one["metrics"])) for one in records]
            values = [one["metrics"][name] for one, name in found if name is not None]
            if values:
                row.values[model] = values
                chances = [one["chance"][name] for one, name in found if name in one["chance"]]
                row.chance = chances[0] if row.chance is None and chances else row.chance
        if row.values:
            rows.append(row)
    return rows


def _first(patterns: Sequence[str], names: Iterable[str]) -> str | None:
    return next((name for pattern in patterns for name in fnmatch.filter(names, pattern)), None)


def differs(ours: Sequence[float], theirs: Sequence[float], confidence: float = CONFIDENCE) -> bool:
    """Whether two means differ by more than the spreads over seeds explain: Welch's t interval of the difference.

    Args:
        ours, theirs: Figures of two models, one for each seed.
        confidence: Of the interval, which is two-sided.

    Returns:
        False where one of them has a single seed.
    """
    if len(ours) < 2 or len(theirs) < 2:
        return False
    parts = [statistics.variance(one) / len(one) for one in (ours, theirs)]
    difference = abs(statistics.fmean(ours) - statistics.fmean(theirs))
    error = sum(parts)
    if error == 0:
        return difference > 0
    freedom = error**2 / sum(part**2 / (len(one) - 1) for part, one in zip(parts, (ours, theirs), strict=True))
    return difference > float(stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(error)


def format_rows(rows: Sequence[Row], reference: str | None = None) -> str:
    """A table in Markdown: a row for each figure in percent, a column for each model, and chance.

    Where there are several seeds the standard deviation follows, and a star where the difference from the model
    `reference` exceeds the spread (`differs`). A paper's figures have a row of their own below.
    """
    models = list(dict.fromkeys(model for row in rows for model in row.values))
    lines = [f"| % | {' | '.join(models)} | chance |", "|---|" + "---|" * (len(models) + 1)]
    for row in rows:
        cells = [_cell(row.values.get(model), row.values.get(reference or "")) for model in models]
        lines.append(
            f"| {row.title} | {' | '.join(cells)} | {'' if row.chance is None else f'{row.chance:.1%}'[:-1]} |"
        )
        if row.paper:
            cells = [f"{row.paper[model]:.2f}" if model in row.paper else "" for model in models]
            lines.append(f"| *the same in the paper* | {' | '.join(cells)} | |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float] | None, reference: Sequence[float] | None) -> str:
    if not values:
        return ""
    spread = f" +- {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    star = " \\*" if reference and differs(values, reference) else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}{star}"


def plot_rows(
    rows: Sequence[Row], path: str | os.PathLike | None = None, lines: Sequence[str] = ("random",)
) -> "Figure":
    """A panel for each row: the models' means with the standard deviation over seeds, baselines and chance as lines.

    Args:
        rows: Of `comparison_rows`; at least one.
        path: Where to write the picture, if anywhere.
        lines: The models that are drawn as lines.
    """
    figure, axes = _figure(len(rows), columns=min(len(rows), 4), side=3.0, aspect=1.15)
    for axis in axes[len(rows) :]:
        axis.remove()
    models = [m for m in dict.fromkeys(model for row in rows for model in row.values) if m not in lines]
    for axis, row in zip(axes, rows, strict=False):
        for i, model in enumerate(models):
            if values := row.values.get(model):
                spread = 100 * statistics.stdev(values) if len(values) > 1 else 0
                mean = 100 * statistics.fmean(values)
                axis.errorbar(i, mean, yerr=spread or None, fmt="o", color=f"C{i % 10}", capsize=4)
        for place, name in enumerate(name for name in lines if name in row.values):
            mean = 100 * statistics.fmean(row.values[name])
            axis.axhline(mean, color="0.4", linestyle=("--", "-.")[place % 2], label=name)
        if row.chance is not None:
            axis.axhline(100 * row.chance, color="0.4", linestyle=":", label="chance")
        axis.set_title(row.title.replace(", ", "\n", 1), fontsize="small")
        axis.set_xticks(range(len(models)), models, rotation=30, ha="right", fontsize="x-small")
        axis.set(xlim=(-0.5, len(models) - 0.5), ylabel="%")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="x-small", framealpha=0.6)
    return _save(figure, None if path is None else Path(path))


def rounded(value: Any, digits: int = 5) -> Any:
    """The numbers within mappings and lists, to so many significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {name: rounded(one, digits) for name, one in value.items()}
    return [rounded(one, digits) for one in value] if isinstance(value, (list, tuple)) else value


# ----------------------------------------------------------------------------------------------------- runs and report


def check_folder(folder: Path, options: dict[str, Any]) -> None:
    """Raises `ValueError` if a folder holds a run with other options."""
    before = folder / OPTIONS_FILE
    if before.is_file() and (found := json.loads(before.read_text())) != options:
        changed = [key for key in {*found, *options} if found.get(key) != options.get(key)]
        lines = "; ".join(f"{key}: {found.get(key)} there, {options.get(key)} now" for key in sorted(changed))
        raise ValueError(
            f"{folder} holds a run with other options ({lines}): give another --output_dir, or remove it."
        )


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
        """The command line of pretrain.py; what is null is left to its default."""
        words = []
        for name, value in self.options.items():
            if value is None:
                continue
            values = as_overrides(value) if name == "config" else value if isinstance(value, list) else [value]
            words += [f"--{name}", *(json.dumps(v) if isinstance(v, (dict, bool)) else str(v) for v in values)]
        return [*words, "--seed", str(self.seed), "--output_dir", str(self.folder)]

    def results(self) -> dict[str, float] | None:
        """What it measured, or None if it is not at its end.

        Raises:
            ValueError: if its folder holds a run with other options.
        """
        check_folder(self.folder, self.options)
        path = self.folder / "all_results.json"
        results = json.loads(path.read_text()) if path.is_file() else {}
        evaluated = "eval_split" not in self.options or any(name.startswith("eval_") for name in results)
        return results if results and evaluated else None

    def is_measured(self, evaluations: Sequence[Evaluation]) -> bool:
        """Whether `evaluate_model` would find nothing to do."""
        found = read_results(self.folder / EVALUATION_FILE, evaluations)
        return all(one.key(task) in found for one in evaluations for task in one.tasks)

    def train(self, script: Path, processes: int) -> None:
        """Trains with pretrain.py, `script`, from where it is to its end.

        Raises:
            RuntimeError: if the training fails.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / OPTIONS_FILE).write_text(json.dumps(self.options, indent=1))
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(launch if processes > 1 else []), str(script), *self.argv()]
        if processes > 1 and not torch.accelerator.is_available():
            command.append("--use_cpu")
        status = _call([*command, "--resume_from_checkpoint", "auto"])
        if status:
            raise RuntimeError(
                f"The training of {self.objective}, seed {self.seed}, ended with status {status}; its "
                f"message is above. Call this script again to go on, or run it alone: {shlex.join(command)}"
            )

    def figures(self) -> dict[str, float]:
        """The last value of each figure in the log, and what was measured at the end."""
        figures: dict[str, float] = {}
        for entry in read_run(self.folder).entries:
            figures |= {name: value for name, value in entry.items() if isinstance(value, (int, float))}
        return figures | (self.results() or {})


def _call(command: Sequence[str]) -> int:
    """Runs a command and returns its status. What ends this process ends it too, by SIGTERM: with a checkpoint."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


@dataclass(frozen=True)
class Tuning:
    """How options are chosen.

    Args:
        grid: For each objective the points, as many for each.
        metrics: Figures of pretrain.py's evaluation whose mean decides.
        pretrain: Options of the runs that try.
    """

    grid: dict[str, list[dict[str, Any]]]
    metrics: list[str]
    pretrain: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A recipe of this script; see the head of this file.

    Args:
        pretrain: Options of all runs.
        objectives: For each the options that differ.
        seeds: A run for each.
        evaluations: What is measured of each run.
        tuning: How options are chosen, if they are.
        paper: Source and figures of a paper.
    """

    pretrain: dict[str, Any]
    objectives: dict[str, dict[str, Any]]
    seeds: list[int]
    evaluations: list[Evaluation] = field(default_factory=list)
    tuning: Tuning | None = None
    paper: dict[str, Any] = field(default_factory=dict)


def score(run: Run, metrics: Sequence[str]) -> float:
    """The mean of the figures that choose, of a run that is done."""
    results = run.results() or {}
    return statistics.fmean(results[f"eval_{name}"] for name in metrics)


@dataclass(frozen=True)
class Report:
    """What is written of a comparison, with what is there at the time.

    Args:
        comparison: The recipe.
        output_dir: Where it goes.
        command: The command line.
        runs: Those planned.
        tuning: For each objective the runs that tried options.
        chosen: What they chose.
        baselines: For each model that is not trained the files of its evaluations.
    """

    comparison: Comparison
    output_dir: Path
    command: str
    runs: Sequence[Run] = ()
    tuning: Mapping[str, Sequence[Run]] = field(default_factory=dict)
    chosen: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    baselines: Mapping[str, Sequence[Path]] = field(default_factory=dict)

    def write(self) -> str:
        """Writes `comparison.md`, `comparison.json`, `comparison.png` and `curves.png`; returns the tables."""
        figures = [(run, run.figures()) for run in self.runs if run.results() is not None]
        by_objective: dict[str, list[dict[str, float]]] = {}
        for run, values in figures:
            by_objective.setdefault(run.objective, []).append(values)
        rows, reference = self.rows(), self.reference(by_objective)
        lines = [f"| | {' | '.join(by_objective)} |", "|---|" + "---|" * len(by_objective)]
        for title, (names, form) in ROWS.items():
            cells = [_training_cell(runs_of, names, form) for runs_of in by_objective.values()]
            if any(cells):
                lines.append(f"| {title} | {' | '.join(cells)} |")
        training = "\n".join(lines) + "\n" if figures else ""
        several = max(map(len, by_objective.values()), default=0) > 1
        table = "\n".join(part for part in (format_rows(rows, reference) if rows else "", training) if part)
        sections = [
            *(["## Evaluation\n", format_rows(rows, reference), self.notes(rows, reference, several)] if rows else []),
            *(["## Training\n", training] if training else []),
            *(["Means over the seeds, and standard deviations.\n"] if several and training else []),
            *(["## Chosen options\n", *self.tuned()] if self.tuning else []),
            "## Commands and versions\n",
            f"Command: `{self.command}`\n",
            f"Versions: {', '.join(f'{name} {version}' for name, version in versions().items())}\n",
            *self.commands(),
        ]
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.put("comparison.md", "\n".join(sections))
        self.put("comparison.json", json.dumps(rounded(self.content(figures, rows)), separators=(",", ":")))
        if figures:
            plot_runs([read_run(run.folder) for run, _ in figures]).savefig(self.output_dir / "curves.png", dpi=110)
        if rows:
            plot_rows(rows, self.output_dir / "comparison.png")
        return table

    def put(self, name: str, text: str) -> None:
        write_whole(self.output_dir / name, lambda part: part.write_text(text, "utf-8"))

    def results(self) -> dict[str, list[dict[str, Any]]]:
        """What has been evaluated, by model, a mapping for each seed."""
        files: dict[str, list[Path]] = {}
        for run in self.runs:
            files.setdefault(run.objective, []).append(run.folder / EVALUATION_FILE)
        files |= {name: list(paths) for name, paths in self.baselines.items()}
        return {
            name: found
            for name, paths in files.items()
            if (found := [one for path in paths if (one := read_results(path, self.comparison.evaluations))])
        }

    def rows(self) -> list[Row]:
        return comparison_rows(self.comparison.evaluations, self.results(), self.comparison.paper.get("figures"))

    def reference(self, objectives: Mapping[str, Any]) -> str | None:
        """The objective that others are compared with."""
        return "levljepa" if "levljepa" in objectives else next(iter(objectives), None)

    def notes(self, rows: Sequence[Row], reference: str | None, several: bool) -> str:
        """What the figures mean."""
        notes = ["Drops are better when they are lower, all else when it is higher."]
        if several:
            notes.append(
                f"Means over the seeds and standard deviations. \\* differs from {reference} by more than the seeds' "
                f"spread explains: 0 is outside Welch's {CONFIDENCE:.0%} t interval of the difference. Each figure is "
                f"tested alone: where nothing differs, 1 in {1 / (1 - CONFIDENCE):.0f} gets a star by chance."
            )
        else:
            notes.append("One seed: what may be called a difference is not known.")
        if "random" in self.baselines:
            notes.append("random: fresh weights of the same size, for each seed.")
        if any(row.paper for row in rows):
            notes.append(f"Rows of the paper are its own figures: {self.comparison.paper.get('source', 'no source')}.")
        missing = {why: name for row in rows for name, why in row.missing.items()}
        notes += [f"{name} lacks figures: {why}" for why, name in missing.items()]
        return "\n".join(f"- {note}" for note in notes) + "\n"

    def tuned(self) -> list[str]:
        """Which options were tried, with their scores, and chosen."""
        tuning = self.comparison.tuning
        lines = [
            f"By the mean of {', '.join(tuning.metrics)} (%) of pretrain.py's evaluation, not of the test data:\n"
        ]
        for objective, runs in self.tuning.items():
            lines += [f"| {objective} | |", "|---|---|"]
            for point, run in zip(tuning.grid[objective], runs, strict=True):
                words = " ".join(as_overrides(point)).replace("config.", "")
                result = "" if run.results() is None else f"{100 * score(run, tuning.metrics):.1f}"
                lines.append(f"| {f'**{words}**' if self.chosen.get(objective) == point else words} | {result} |")
            lines.append("")
        return lines

    def commands(self) -> list[str]:
        """The commands that repeat each run and its evaluation."""
        lines = ["```bash"]
        for run in self.runs:
            lines.append(shlex.join(["python", "training/pretrain.py", *run.argv()]))
        for one in self.comparison.evaluations:
            lines += [one.command(task, str(self.runs[0].folder)) for task in one.tasks]
        return [*lines, "```\n"]

    def content(self, figures: Sequence[tuple[Run, dict[str, float]]], rows: Sequence[Row]) -> dict[str, Any]:
        """For JSON."""
        measured = {
            model: [{key: one.get("metrics", one.get("left_out")) for key, one in each.items()} for each in of_seeds]
            for model, of_seeds in self.results().items()
        }
        return {
            "command": self.command,
            "versions": versions(),
            "options": {run.objective: run.options for run in self.runs},
            "tuning": {
                objective: [
                    {"options": point, "score": None if run.results() is None else score(run, tuning.metrics)}
                    for point, run in zip(tuning.grid[objective], runs, strict=True)
                ]
                for objective, runs in self.tuning.items()
                if (tuning := self.comparison.tuning)
            },
            "chosen": dict(self.chosen),
            "runs": [{"objective": run.objective, "seed": run.seed, "figures": values} for run, values in figures],
            "evaluation": {
                "settings": {
                    one.key(task): one.settings(task) for one in self.comparison.evaluations for task in one.tasks
                },
                "metrics": measured,
                "rows": [vars(row) for row in rows],
            },
            "paper": self.comparison.paper,
        }


def _training_cell(runs: Sequence[dict[str, float]], names: Sequence[str], form: str) -> str:
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


__all__ = [
    "CONFIDENCE",
    "EVALUATION_FILE",
    "HEADLINES",
    "OPTIONS_FILE",
    "ROWS",
    "Comparison",
    "Evaluation",
    "Report",
    "Row",
    "Run",
    "Tuning",
    "check_folder",
    "check_names",
    "comparison_rows",
    "differs",
    "evaluate_model",
    "format_rows",
    "plot_rows",
    "read_evaluations",
    "read_results",
    "row_titles",
    "rounded",
    "score",
]
