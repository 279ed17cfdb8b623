"""`levljepa pretrain` as a script, for launchers that want a file: `accelerate launch training/pretrain.py`."""

import sys
from collections.abc import Sequence

from levljepa_command import run


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, evaluates and saves; returns the metrics."""
    from levljepa_hf.training.command import parse_args, pretrain

    return pretrain(*parse_args(argv))


if __name__ == "__main__":
    sys.exit(run("training.command", "pretrain.py", sys.argv[1:]))
