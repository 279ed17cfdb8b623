"""Fine-tunes a LeVLJEPA checkpoint to segment images: full, linear (the paper's protocol as training) or LoRA.

Example, a minute or two on two CPU cores with the checkpoint of `levljepa demo`:

    python training/finetune_segmentation.py --recipe finetune-scenes-segmentation --model_name_or_path runs/demo

Images and masks of your own (a class a pixel, 255 is void), from any source that `datasets` loads:

    python training/finetune_segmentation.py --recipe finetune-segmentation --dataset path/to/photos \\
        --mask_column mask --class_names path/to/classes.json

The output folder has the best checkpoint (AutoModelForSemanticSegmentation loads it, and the pipeline), the figures,
segmentation.png, and recipe.yaml, which repeats the run. The command line wins over the recipe.
"""

from collections.abc import Sequence
from pathlib import Path

from levljepa_hf.finetuning.command import fine_tune, parse_options
from levljepa_hf.recipes import run_script

RECIPES = Path(__file__).parent / "recipes"


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, evaluates, draws and saves; returns the figures."""
    return fine_tune("segmentation", *parse_options("segmentation", argv, __doc__, RECIPES))


if __name__ == "__main__":
    run_script(main)
