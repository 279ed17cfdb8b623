"""The command `levljepa card`: prints or writes a checkpoint's model card."""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, constants, snapshot_download
from huggingface_hub.errors import (
    RepositoryNotFoundError,
)

from ..options import Command, option
from .cards import (
    CARD_NAME,
    HUB_ID,
    NETWORK_ERRORS,
    PICTURES,
    RECIPE_NAME,
    RESULTS_NAME,
    STATE_NAME,
    checkpoint_card,
    write_card,
)
from .publishing import check_push

EPILOG = """examples:
  levljepa card runs/demo
  levljepa card runs/demo --write --license apache-2.0
  levljepa card someone/model --write
"""


@dataclass
class CardArguments:
    """Whose card it is, and what it says."""

    checkpoint: str = option(help="A folder or a Hub id.", positional=True, kind="checkpoint")
    write: bool = option(
        False,
        help="Write the card, and the picture of the losses, into the folder, or push them to the Hub. The text is "
        "made anew; of the metadata, figures of `levljepa evaluate --card` and what is not known better stay.",
    )
    name: str | None = option(
        None,
        help="What loads it, as the card shows it; by default the Hub id of its recipe, or its folder's name.",
    )
    license: str | None = option(
        None,
        help="Licence id of the Hub; by default the present card's, or that of the checkpoint it started from.",
    )
    base_model: str | None = option(
        None,
        help="What the training started from; by default what the recipe says, if that is an id or a folder here.",
        metavar="ID",
    )
    datasets: list[str] = option(
        default_factory=list, help="Hub ids of the data sets; by default the recipe's.", metavar="ID"
    )
    token: str | None = option(None, help="Of the Hub; by default that of `hf auth login`.")


COMMAND = Command(
    "levljepa card",
    "Print the model card of a checkpoint, made of what lies beside its weights; or write it.",
    (CardArguments,),
    more=EPILOG,
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `levljepa card`. Returns the exit status."""
    return COMMAND.run(argv, _card)


def _card(arguments: CardArguments) -> None:
    options = vars(arguments).copy()
    checkpoint, write = options.pop("checkpoint"), options.pop("write")
    try:
        if Path(checkpoint).is_dir():
            card = (write_card if write else checkpoint_card)(checkpoint, **options)
            place = Path(checkpoint, CARD_NAME)
        else:
            card = _card_of_repository(checkpoint, write, **options)
            place = f"{constants.ENDPOINT}/{checkpoint}"
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{checkpoint} is no folder, and no repository of the Hub that the token may read."
        ) from error
    except NETWORK_ERRORS as error:
        raise OSError(str(error)) from error
    print(f"Wrote {place}" if write else card)


def _card_of_repository(repo_id: str, write: bool, token: str | None, **options: Any) -> ModelCard:
    """The card of a repository, from its small files; pushed back if it is to be written."""
    if not HUB_ID.fullmatch(repo_id):
        raise FileNotFoundError(f"{repo_id} is no folder, and no Hub id either (NAME or OWNER/NAME).")
    if write:
        repo_id = check_push(repo_id, token)
    with tempfile.TemporaryDirectory() as folder:
        files = ["config.json", CARD_NAME, RECIPE_NAME, STATE_NAME, RESULTS_NAME, *PICTURES]
        snapshot_download(repo_id, local_dir=folder, allow_patterns=files, token=token)
        options = {**options, "name": options.get("name") or repo_id, "token": token}
        if not write:
            return checkpoint_card(folder, **options)
        card = write_card(folder, **options)
        api = HfApi(token=token)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[CARD_NAME, *PICTURES],
            commit_message="Update model card",
        )
    return card


__all__ = ["COMMAND", "main"]


if __name__ == "__main__":
    sys.exit(main())
