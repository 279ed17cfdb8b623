"""The figures of an evaluation on a model card, here or on the Hub."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.constants import REPOCARD_NAME

from ..files import write_whole
from ..hub.cards import add_figures
from ..hub.publishing import check_push
from .results import EvaluationRecord
from .task import declarations


def write_to_card(checkpoint: str | Path, records: Sequence[EvaluationRecord]) -> None:
    """Writes the figures into the metadata (`model-index`) of a checkpoint's model card.

    A figure of the same task, data set, split and metric takes the place of the older one; others stay. The card of a
    Hub id is pushed back.

    Args:
        checkpoint: A folder or a Hub id.
        records: Their figures, of this checkpoint.

    Raises:
        FileNotFoundError: if the folder has no card (`README.md`).
    """
    check_card([checkpoint])
    path, is_local = Path(checkpoint) / REPOCARD_NAME, Path(checkpoint).is_dir()
    card = ModelCard.load(path if is_local else checkpoint)
    add_figures(card.data, [one for record in records for one in _eval_results(record)], _name(checkpoint))
    if is_local:
        write_whole(path, card.save)
    else:
        card.push_to_hub(str(checkpoint), commit_message="Add evaluation results")


def check_card(checkpoints: Sequence[str | Path]) -> None:
    """Sees before the work whether there is a card to write to.

    Raises:
        ValueError: if there is no checkpoint.
        OSError: if a folder or a repository of the Hub has no card (`README.md`), or it is not within reach, or may
            not be written.
    """
    if not checkpoints:
        raise ValueError("A model card belongs to a checkpoint, and none is measured: give its folder or Hub id.")
    for checkpoint in checkpoints:
        if not Path(checkpoint).is_dir():
            check_push(str(checkpoint))
            ModelCard.load(str(checkpoint))
        elif not (Path(checkpoint) / REPOCARD_NAME).is_file():
            raise FileNotFoundError(
                f"{checkpoint} has no model card to write to: add a {REPOCARD_NAME} with "
                f"`levljepa card {checkpoint} --write`."
            )


def _eval_results(record: EvaluationRecord) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=(task_type := declarations()[record.task].hub_task),
            task_name=task_type.replace("-", " ").capitalize(),  # one for all figures of a type and data set
            dataset_type=record.dataset_id,
            dataset_name=record.dataset,
            dataset_split=record.splits.get("test", "").rpartition("/")[2] or None,  # "pets/test" is its name here
            metric_type=name,
            metric_name=f"{record.task} {name}",
            metric_value=round(value, 6),
        )
        for name, value in record.result.metrics.items()
    ]


def _name(checkpoint: str | Path) -> str:
    return Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else str(checkpoint)


__all__ = ["check_card", "write_to_card"]
