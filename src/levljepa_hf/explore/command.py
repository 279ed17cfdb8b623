"""`levljepa explore`: what a checkpoint sees, in the browser."""

import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..encoders.encoders import TRANSFORMS, Encoder, load_encoder
from ..encoders.features import DEFAULT_CACHE
from ..options import Command, option
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

    models: list[str] = option(
        default_factory=list,
        help="One or two: a folder or Hub id of LeVLJEPA, timm:NAME, hf:NAME.",
        positional=True,
        metavar="MODEL",
        kind="model",
    )
    dataset: str = option(
        default="scenes",
        help="A folder of photos (folders in it are classes, metadata.jsonl may hold captions), a file, a Hub id, or "
        "scenes, which come with the package.",
        kind="dataset",
        known=("scenes",),
    )
    split: str | None = option(
        default=None, help="The split, or several: train+validation. By default all of a folder."
    )
    dataset_config: str | None = option(
        default=None, help="Configuration of a data set that has several; of the scenes, their side in pixels."
    )
    image_column: str | None = option(default=None, help="Column of the images, found by itself where it is left out.")
    label_column: str | None = option(default=None, help="Column of the labels, found by itself where it is left out.")
    max_photos: int = option(default=10_000, help="Photos at most, drawn at random.")
    transform: str | None = option(
        default=None,
        help="How photos are prepared for maps, search and zero-shot: by default evaluation, of the scenes default.",
        choices=TRANSFORMS,
    )
    prompts: list[str] = option(
        default_factory=list, help="Texts that the page offers first, and those that --export can be searched for."
    )
    runs: list[str] = option(
        default_factory=list, help="Folders of training runs, for their curves; by default those of the models."
    )
    export: str | None = option(
        default=None, help="Write what can be computed ahead to this folder, which opens from disk, and serve nothing."
    )
    host: str = option(default="127.0.0.1", help="Address to serve; 0.0.0.0 lets the whole network in, unasked.")
    port: int = option(default=7860, help="Port to serve; 0 takes any that is free.")
    open_browser: bool = option(default=True, help="Open the page in the browser.")
    batch_size: int = option(default=64, help="Photos encoded at a time.")
    num_workers: int = option(default=0, help="Processes that decode and prepare photos.")
    cache_dir: str = option(
        default=str(DEFAULT_CACHE),
        help="Where features are kept by content, and beside it thumbnails and projections.",
    )
    device: str | None = option(default=None, help="Where the models run, by default a GPU where there is one.")
    dtype: str = option(default="float32", help="Of the weights.", choices=DTYPES)


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


COMMAND = Command(
    "levljepa explore",
    "Look at it: what a checkpoint sees in photos, in the browser.",
    (ExploreArguments,),
    more=EPILOG,
    extra="app",
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `levljepa explore`. Returns the exit status."""
    return COMMAND.run(argv, lambda arguments: run(arguments.models, arguments))


if __name__ == "__main__":
    sys.exit(main())


__all__ = ["COMMAND", "ExploreArguments", "build_session", "main", "run"]
