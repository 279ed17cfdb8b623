"""What is measured of each run of a comparison, and kept beside it."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from levljepa_hf.encoders.encoders import load_encoder
from levljepa_hf.evaluation.command import EvaluationArguments, evaluate
from levljepa_hf.evaluation.protocols import as_words, check_names, parse_options, read_protocol
from levljepa_hf.evaluation.task import TASKS
from levljepa_hf.files import write_whole
from levljepa_hf.recipes import changed_options
from levljepa_hf.version import versions

EVALUATION_FILE = "evaluation.json"  # beside a run's weights
# Fields of EvaluationArguments that do not change a figure, or are not a recipe's to give.
_NO_SETTINGS = ("cache_dir", "no_cache", "num_workers", "encode_batch_size", "device")
_NOT_GIVEN = ("model", "output", "card", "protocols")


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
        config = self.arguments.dataset_config
        return f"{task} on {self.arguments.dataset}" + (f" ({config})" if config else "")

    def settings(self, task: str) -> dict[str, Any]:
        """All that decides a figure, but for the model and the versions."""
        skipped = (*_NO_SETTINGS, *_NOT_GIVEN)
        options = {name: value for name, value in asdict(self.arguments).items() if name not in skipped}
        return json.loads(json.dumps({"options": options, "protocol": asdict(self.protocols[task])}))

    def command(self, task: str, model: str) -> str:
        """The command that measures the same."""
        words = ["levljepa", "evaluate", task, "--model", model]
        for group in (self.arguments, self.protocols[task]):
            words += as_words(changed_options(group))
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
            protocols[task] = read_protocol(task, constants.get(task) or {}, "`evaluation`")
        arguments = parse_options(EvaluationArguments, options, "evaluation")
        evaluations.append(Evaluation(tuple(tasks), arguments, protocols))
    keys = [one.key(task) for one in evaluations for task in one.tasks]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"`evaluation` has {twice[0]} twice: leave one out.")
    return evaluations


def read_results(path: str | os.PathLike, evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """What a file of `evaluate_model` has of these evaluations with the same settings, by `Evaluation.key`."""
    found = _read(Path(path))
    wanted = {one.key(task): one.settings(task) for one in evaluations for task in one.tasks}
    return {key: found[key] for key, settings in wanted.items() if key in found and found[key]["settings"] == settings}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text("utf-8"))["results"] if path.is_file() else {}


def evaluate_model(
    model: str, evaluations: Sequence[Evaluation], path: str | os.PathLike, is_peer: bool = False
) -> dict[str, dict[str, Any]]:
    """Measures what is missing, task by task, and writes each result as it comes.

    Args:
        model: As `levljepa evaluate` takes it.
        evaluations: What to measure.
        path: JSON file of the results. What it has with the same settings is not repeated, and what it has of other
            tasks stays.
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
            # With what the file has by now of other tasks, of this call's recipe or of another call.
            kept = {**_read(path), one.key(task): results[one.key(task)]}
            text = json.dumps({"model": model, "results": kept}, indent=1) + "\n"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda part, text=text: part.write_text(text, "utf-8"))
    return results


__all__ = ["EVALUATION_FILE", "Evaluation", "evaluate_model", "read_evaluations", "read_results"]
