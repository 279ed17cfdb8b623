"""`levljepa explore`: what a checkpoint sees, in the browser."""

import argparse
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from ..encoders.encoders import TRANSFORMS, Encoder, load_encoder
from ..encoders.features import DEFAULT_CACHE
from ..training.curves import read_run
from .export import export
from .photos import embed_photos, load_photos
from .server import bind, serve
from .session import Session

DTYPES = ("float32", "bfloat16", "float16")

EPILOG = """examples:
  levljepa explore runs/demo
  levljepa explore runs/demo runs/other --dataset path/to/photos --runs runs/demo runs/other
  levljepa explore runs/demo --dataset path/to/photos --prompts "a dog" "a beach" --export explored

The page is served to this machine alone, and nothing is sent to another one. There is no sharing over the internet; a
folder that --export writes can be put on any static host. Stop it with Ctrl-C.
"""


@dataclass
class ExploreArguments:
    """Which photos are explored, and where the page is served or written."""

    dataset: str = HfArg(
        default="scenes",
        help="A folder of photos (folders in it are classes, metadata.jsonl may hold captions), a file, a Hub id, or "
        "scenes, which come with the package.",
    )
    split: str | None = HfArg(
        default=None, help="The split, or several: train+validation. By default all of a folder."
    )
    dataset_config: str | None = HfArg(
        default=None, help="Configuration of a data set that has several; of the scenes, their side in pixels."
    )
    image_column: str | None = HfArg(default=None, help="Column of the images, found by itself where it is left out.")
    label_column: str | None = HfArg(default=None, help="Column of the labels, found by itself where it is left out.")
    max_photos: int = HfArg(default=10_000, help="Photos at most, drawn at random.")
    transform: str | None = HfArg(
        default=None,
        help="How photos are prepared for maps, search and zero-shot: by default evaluation, of the scenes default.",
        metadata={"choices": TRANSFORMS},
    )
    prompts: list[str] = HfArg(
        default_factory=list, help="Texts that the page offers first, and those that --export can be searched for."
    )
    runs: list[str] = HfArg(
        default_factory=list, help="Folders of training runs, for their curves; by default those of the models."
    )
    export: str | None = HfArg(
        default=None, help="Write what can be computed ahead to this folder, which opens from disk, and serve nothing."
    )
    host: str = HfArg(default="127.0.0.1", help="Address to serve; 0.0.0.0 lets the whole network in, unasked.")
    port: int = HfArg(default=7860, help="Port to serve; 0 takes any that is free.")
    open_browser: bool = HfArg(default=True, help="Open the page in the browser.")
    batch_size: int = HfArg(default=64, help="Photos encoded at a time.")
    num_workers: int = HfArg(default=0, help="Processes that decode and prepare photos.")
    cache_dir: str = HfArg(
        default=str(DEFAULT_CACHE),
        help="Where features are kept by content, and beside it thumbnails and projections.",
    )
    device: str | None = HfArg(default=None, help="Where the models run, by default a GPU where there is one.")
    dtype: str = HfArg(default="float32", help="Of the weights.", metadata={"choices": DTYPES})


def build_session(models: Sequence[str], arguments: ExploreArguments) -> Session:
    """Loads models and photos, and encodes what the cache lacks, with progress bars.

    Raises:
        ValueError: if there are not one or two models, or as `load_encoder`, `load_photos` and `embed_photos`.
        OSError: if a model or the photos are not within reach.
    """
    if not 1 <= len(models) <= 2:
        raise ValueError(f"The explorer shows one model or two, not {len(models)}: levljepa explore MODEL [MODEL_B].")
    encoders = [_load_encoder(name, arguments) for name in models]
    photos = load_photos(
        arguments.dataset,
        arguments.split,
        config_name=arguments.dataset_config,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        max_photos=arguments.max_photos,
        transform=arguments.transform,
        cache_dir=arguments.cache_dir,
    )
    if photos.broken:
        name, reason = photos.broken[0]
        print(f"{len(photos.broken)} images do not decode and are left out, such as {name}: {reason}.")
    options = {"batch_size": arguments.batch_size, "num_workers": arguments.num_workers}
    seen = [embed_photos(encoder, photos, cache_dir=arguments.cache_dir, **options) for encoder in encoders]
    runs = arguments.runs or [name for name in models if _is_run(Path(name))]
    return Session(seen, photos, runs, arguments.prompts, arguments.cache_dir)


def _load_encoder(name: str, arguments: ExploreArguments) -> Encoder:
    try:
        return load_encoder(name, arguments.device, getattr(torch, arguments.dtype))
    except OSError as error:
        if Path(name).exists() or ":" in name:
            raise
        raise OSError(f"{name} is no folder here, and as a Hub id it is not within reach: {error}") from error


def _is_run(folder: Path) -> bool:
    try:
        read_run(folder)
    except ValueError:
        return False
    return True


def run(models: Sequence[str], arguments: ExploreArguments) -> None:
    """Serves the page until Ctrl-C, or writes it."""
    if arguments.export is not None:
        target = Path(arguments.export)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):  # before the work
            raise ValueError(f"{target} is there already and holds something: name another folder, or remove it.")
        page = export(build_session(models, arguments), target)
        print(f"Open {page.absolute()} in a browser, or put the folder on a static host.")
        return
    with bind(arguments.host, arguments.port) as listening:  # before the work too
        session = build_session(models, arguments)
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        address = f"http://{host}:{listening.getsockname()[1]}"
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        if arguments.host not in ("127.0.0.1", "localhost", "::1"):
            print("Everyone who reaches this machine can use the page and see the photos: it has no password.")
        if arguments.open_browser:
            webbrowser.open(address)
        serve(session, listening, arguments.host)


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Examples as they are written, and the defaults."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command `levljepa explore`. Returns the exit status."""
    parser = HfArgumentParser(
        [ExploreArguments],
        prog="levljepa explore",
        description="Look at it: what a checkpoint sees in photos, in the browser.",
        epilog=EPILOG,
        formatter_class=_Help,
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="One or two: a folder or Hub id of LeVLJEPA, timm:NAME, hf:NAME."
    )
    try:
        arguments, rest = parser.parse_args_into_dataclasses(
            list(sys.argv[1:] if argv is None else argv), look_for_args_file=False
        )
        run(rest.models, arguments)
    except (ValueError, ImportError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())


__all__ = ["ExploreArguments", "build_session", "main", "run"]
