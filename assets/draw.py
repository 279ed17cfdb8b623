"""Draws the README's pictures: `features.png` from scenes, and a small one of each notebook from its saved outputs.

    python assets/draw.py                        # of the demo's checkpoint (levljepa demo)
    python assets/draw.py --checkpoint lukaskuhndkfz/LeVLJEPA-ViT-B-DataComp-200k --image_size 448

A notebook's picture is the one of its cell with the tag `readme`, or else its last. The drawings in the scenes are
OpenMoji's (CC BY-SA 4.0).
"""

import argparse
import base64
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from levljepa_hf import LeVLJEPAProcessor, LeVLJEPAVisionModel
from levljepa_hf.evaluation.pictures import patch_pca, patch_similarity
from levljepa_hf.scenes.dataset import SceneDataset

FOLDER = Path(__file__).resolve().parent
NOTEBOOK_WIDTH = 400  # pixels of a notebook's picture, shown smaller


def draw_features(checkpoint: str | Path, image_size: int, num_images: int = 8) -> Figure:
    """Scenes; the principal components of their patch features; how similar the patches are to one of the first."""
    model = LeVLJEPAVisionModel.from_pretrained(checkpoint)
    scenes = SceneDataset("test", num_scenes=1000, image_size=192, pair_fraction=0)
    thing = scenes.scene(0).objects[0]
    same = next(i for i in range(1, len(scenes)) if scenes.scene(i).objects[0].label == thing.label)
    images = [scenes[i]["image"] for i in (0, same, *range(1, num_images - 1))]
    inputs = LeVLJEPAProcessor.from_image_size(image_size)(images=images, return_tensors="pt")
    with torch.no_grad():
        patches = model(**inputs).last_hidden_state[:, 1:]  # (N, P, C)

    side = image_size // model.config.patch_size
    column, row = (int(side * c) for c in thing.center)
    colors = patch_pca(patches).unflatten(1, (side, side))
    cosines = patch_similarity(patches, 0, row * side + column).unflatten(1, (side, side))
    figure = Figure(figsize=(1.1 * num_images, 3.4), layout="constrained")
    axes = figure.subplots(3, num_images)
    for i, image in enumerate(images):
        axes[0, i].imshow(image, extent=(0, side, side, 0))
        axes[1, i].imshow(colors[i].numpy(), extent=(0, side, side, 0))
        axes[2, i].imshow(cosines[i].numpy(), extent=(0, side, side, 0), vmin=cosines.min(), vmax=1)
    for axis in axes[:, 0]:
        axis.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="red", linewidth=1.5))
    for axis, label in zip(axes[:, 0], ("image", "PCA", "like the patch"), strict=True):
        axis.set_ylabel(label, fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    return figure


def picture_of(notebook: Path) -> Image.Image:
    """The picture of the cell with the tag `readme`, or the last one, `NOTEBOOK_WIDTH` pixels wide at most.

    Raises:
        ValueError: if the notebook holds none.
    """
    found: list[tuple[bool, str]] = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        pngs = [
            output.data["image/png"] for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
        ]
        found += [("readme" in cell.metadata.get("tags", []), png) for png in pngs]
    if not found:
        raise ValueError(f"{notebook.name} holds no picture: execute it first (python notebooks/execute.py).")
    _, png = max(enumerate(found), key=lambda item: (item[1][0], item[0]))[1]
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.thumbnail((NOTEBOOK_WIDTH, NOTEBOOK_WIDTH), Image.Resampling.LANCZOS)
    return picture


def save(picture: Image.Image, path: Path, colors: int) -> None:
    """With a palette of few colours, which makes it small."""
    picture.convert("RGB").quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name:36s} {path.stat().st_size / 1000:4.0f} kB")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="runs/demo", help="of LeVLJEPA (default: %(default)s)")
    parser.add_argument("--image_size", type=int, default=192, help="side for the encoder (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        buffer = io.BytesIO()
        draw_features(args.checkpoint, args.image_size).savefig(buffer, dpi=110)
        save(Image.open(buffer), FOLDER / "features.png", 256)
        for notebook in sorted((FOLDER.parent / "notebooks").glob("*.ipynb")):
            save(picture_of(notebook), FOLDER / f"{notebook.stem}.png", 128)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
