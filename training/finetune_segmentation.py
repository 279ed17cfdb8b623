"""`levljepa finetune segmentation` as a script, for launchers that want a file."""

import sys
from collections.abc import Sequence

from levljepa_command import run


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, evaluates, draws and saves; returns the figures."""
    from levljepa_hf.finetuning.command import fine_tune, parse_options

    return fine_tune("segmentation", *parse_options("segmentation", argv))


if __name__ == "__main__":
    sys.exit(run("finetuning.command", "finetune_segmentation.py", ["segmentation", *sys.argv[1:]]))
