"""Writes scenes as a folder of images: `python -m levljepa_hf.scenes`."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..options import Command, option
from .dataset import save_scenes
from .scene import CAPTION_KINDS


@dataclass
class ScenesArguments:
    """What is written, and where it goes."""

    output: str = option(help="Folder to write to.", positional=True)
    num_scenes: list[int] = option(
        default_factory=lambda: [16384, 1000, 1000], help="Of each split, in order: train, validation, test."
    )
    image_size: int = option(48, help="Side in pixels.")
    pair_fraction: float = option(0.0, help="Share of scenes with two objects.")
    scale_range: list[float] = option(
        default_factory=lambda: [0.45, 0.75], help="An object's longest side, as a fraction of the image's."
    )
    captions: list[str] = option(
        default_factory=lambda: list(CAPTION_KINDS), help="Kinds to write.", choices=CAPTION_KINDS
    )
    seed: int = option(0, help="Another seed, other scenes.")

    def __post_init__(self) -> None:
        for name, number in (("num_scenes", 3), ("scale_range", 2)):
            if len(getattr(self, name)) != number:
                raise ValueError(f"--{name} takes {number} numbers, not {getattr(self, name)}.")


COMMAND = Command(
    "python -m levljepa_hf.scenes",
    "Write captioned scenes as a dataset on disk, with the splits train, validation and test.",
    (ScenesArguments,),
    more="example:\n  python -m levljepa_hf.scenes runs/scenes --num_scenes 10000 500 500 --image_size 48",
    extra="demo",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the three splits, and returns the exit status."""
    return COMMAND.run(argv, _write)


def _write(arguments: ScenesArguments) -> None:
    save_scenes(
        arguments.output,
        arguments.num_scenes,
        arguments.image_size,
        arguments.seed,
        pair_fraction=arguments.pair_fraction,
        scale_range=tuple(arguments.scale_range),
        caption_kinds=arguments.captions,
    )


if __name__ == "__main__":
    raise SystemExit(main())
