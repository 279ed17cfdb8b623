"""The command `levljepa card`: prints or writes a checkpoint's model card."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, constants, snapshot_download
from huggingface_hub.errors import (
    RepositoryNotFoundError,
)

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


def main(argv: Sequence[str] | None = None) -> int:
    """The command `levljepa card`. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="levljepa card",
        description="Print the model card of a checkpoint, made of what lies beside its weights; or write it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", help="a folder or a Hub id")
    add(
        "--write",
        action="store_true",
        help="write the card, and the picture of the losses, into the folder, or push them to the Hub. The text is "
        "made anew; of the metadata, figures of `levljepa evaluate --card` and what is not known better stay",
    )
    add(
        "--name",
        help="what loads it, as the card shows it (default: the Hub id of its recipe, or its folder's name)",
    )
    add(
        "--license",
        help="licence id of the Hub (default: the present card's, or that of the checkpoint it started from)",
    )
    add(
        "--base_model",
        metavar="ID",
        help="what the training started from (default: what the recipe says, if that is an id or a folder here)",
    )
    add("--datasets", nargs="+", default=[], metavar="ID", help="Hub ids of the data sets (default: the recipe's)")
    add("--token", help="of the Hub (default: that of `hf auth login`)")
    args = parser.parse_args(argv)
    options = {name: getattr(args, name) for name in ("name", "license", "base_model", "datasets", "token")}
    try:
        if Path(args.checkpoint).is_dir():
            card = (write_card if args.write else checkpoint_card)(args.checkpoint, **options)
            place = Path(args.checkpoint, CARD_NAME)
        else:
            card = _card_of_repository(args.checkpoint, args.write, **options)
            place = f"{constants.ENDPOINT}/{args.checkpoint}"
    except RepositoryNotFoundError:
        print(
            f"levljepa card: {args.checkpoint} is no folder, and no repository of the Hub that the token may read.",
            file=sys.stderr,
        )
        return 2
    except (OSError, ValueError, *NETWORK_ERRORS) as error:
        print(f"levljepa card: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"Wrote {place}" if args.write else card)
    return 0


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


__all__ = ["main"]


if __name__ == "__main__":
    sys.exit(main())
