"""Fine-tunes a LeVLJEPA checkpoint to classify images: full, linear (the paper's probe as training) or LoRA.

Example, a minute on two CPU cores with the checkpoint of `levljepa demo`:

    python training/finetune_classification.py --recipe finetune-scenes-classification --model_name_or_path runs/demo

A folder of images with a folder for each class, and any other source that `datasets` loads:

    python training/finetune_classification.py --recipe finetune-classification --dataset path/to/photos

The same size from random weights, to compare:

    python training/finetune_classification.py --recipe finetune-scenes-classification \\
        --model_name_or_path runs/demo --from_scratch

The output folder has the best checkpoint (AutoModelForImageClassification loads it, and the pipeline), the figures,
confusion.png, and recipe.yaml, which repeats the run. The command line wins over the recipe.
"""

from collections.abc import Sequence
from pathlib import Path

from levljepa_hf.finetuning.command import fine_tune, parse_options
from levljepa_hf.recipes import run_script

RECIPES = Path(__file__).parent / "recipes"


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, evaluates, draws and saves; returns the figures."""
    return fine_tune("classification", *parse_options("classification", argv, __doc__, RECIPES))


if __name__ == "__main__":
    run_script(main)
