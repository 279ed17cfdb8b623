"""`levljepa finetune segmentation` as a script, for launchers that want a file."""

from collections.abc import Sequence

from levljepa_hf.finetuning.command import fine_tune, parse_options
from levljepa_hf.recipes import run_script


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, evaluates, draws and saves; returns the figures."""
    return fine_tune("segmentation", *parse_options("segmentation", argv))


if __name__ == "__main__":
    run_script(main)
