"""Writes scenes as a folder of images: `python -m levljepa_hf.scenes`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .dataset import save_scenes
from .scene import CAPTION_KINDS


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the three splits, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m levljepa_hf.scenes",
        description="Writes captioned scenes as a dataset on disk, with the splits train, validation and test.",
        epilog="example: python -m levljepa_hf.scenes runs/scenes --num-scenes 10000 500 500 --image-size 48",
    )
    add = parser.add_argument
    add("output", type=Path, help="folder to write to")
    add("--num-scenes", type=int, nargs=3, default=[16384, 1000, 1000], metavar="N", help="of each split, in order")
    add("--image-size", type=int, default=48, help="side in pixels (default: %(default)s)")
    add("--pair-fraction", type=float, default=0.0, help="share of scenes with two objects (default: %(default)s)")
    add(
        "--scale-range",
        type=float,
        nargs=2,
        default=[0.45, 0.75],
        metavar="SCALE",
        help="an object's longest side, as a fraction of the image's (default: %(default)s)",
    )
    add("--captions", nargs="+", choices=CAPTION_KINDS, default=CAPTION_KINDS, help="kinds to write (default: all)")
    add("--seed", type=int, default=0, help="another seed, other scenes (default: %(default)s)")
    args = parser.parse_args(argv)
    options = {
        "pair_fraction": args.pair_fraction,
        "scale_range": tuple(args.scale_range),
        "caption_kinds": args.captions,
    }
    try:
        save_scenes(args.output, args.num_scenes, args.image_size, args.seed, **options)
    except (ValueError, ImportError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
