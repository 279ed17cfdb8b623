"""`levljepa finetune classification` as a script, for launchers that want a file."""

import sys
from collections.abc import Sequence

from levljepa_command import run


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, evaluates, draws and saves; returns the figures."""
    from levljepa_hf.finetuning.command import fine_tune, parse_options

    return fine_tune("classification", *parse_options("classification", argv))


if __name__ == "__main__":
    sys.exit(run("finetuning.command", "finetune_classification.py", ["classification", *sys.argv[1:]]))
