"""`levljepa pretrain` as a script, for launchers that want a file: `accelerate launch training/pretrain.py`."""

from collections.abc import Sequence

from levljepa_hf.recipes import run_script
from levljepa_hf.training.command import parse_args, pretrain


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, evaluates and saves; returns the metrics."""
    return pretrain(*parse_args(argv))


if __name__ == "__main__":
    run_script(main)
