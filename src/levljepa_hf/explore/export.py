"""The explorer as a folder of files: what can be computed ahead, to open from disk or to put on a static Space."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..files import whole_folder
from .search import neighbours
from .session import Session, pack
from .sigreg import trajectory
from .space import default_feature

STATIC = Path(__file__).parent / "static"
THUMBNAILS_IN_A_FOLDER = 1000
_STEPS = (*range(0, 20), *range(20, 151, 3))
_SAMPLES = 400
_NEIGHBOURS = 24
_CARD = """---
title: {title}
emoji: 🔭
colorFrom: blue
colorTo: gray
sdk: static
app_file: index.html
pinned: false
---

What {models} sees in {count} photos of {name}: a map of its space, search, SIGReg.
Made by `levljepa explore --export`.
"""


def export(session: Session, folder: str | os.PathLike, show_progress: bool = True) -> Path:
    """Writes maps, search over the session's prompts and over its photos, and SIGReg, with the page that shows them.

    Args:
        session: Its `prompts` are those that can be searched for.
        folder: Where to; it appears when it is whole. It must not be there yet, or be empty.
        show_progress: Whether a bar is shown.

    Returns:
        The page's path.

    Raises:
        ValueError: if the folder holds something.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and holds something: name another folder, or remove it.")
    with whole_folder(folder) as part:
        _write(session, part, show_progress)
    return folder / "index.html"


def _write(session: Session, folder: Path, show_progress: bool) -> None:
    (folder / "data").mkdir(parents=True)
    shutil.copytree(
        STATIC, folder / "static", ignore=lambda _, names: [name for name in names if name == "index.html"]
    )
    page = (STATIC / "index.html").read_text("utf-8")
    page = page.replace("<html ", '<html data-static="yes" ').replace(
        "<!-- data -->", '<script defer src="data/state.js"></script>'
    )
    (folder / "index.html").write_text(page, "utf-8")
    for index, data in enumerate(session.photos.thumbnails):
        path = folder / "thumbnails" / str(index // THUMBNAILS_IN_A_FOLDER) / f"{index}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    parts = _parts(session)
    for name, make in tqdm(parts.items(), "exporting", disable=not show_progress):
        text = f"LV.put({json.dumps(name)}, {json.dumps(make(), allow_nan=False)});\n"
        (folder / "data" / f"{name}.js").write_text(text, "utf-8")
    state = session.state()
    labels = " and ".join(model["label"] for model in state["models"])
    card = _CARD.format(
        title=json.dumps(f"{labels}, explored"), models=labels, count=len(session.photos), name=session.photos.name
    )
    (folder / "README.md").write_text(card, "utf-8")


def _parts(session: Session) -> dict[str, Callable[[], Any]]:
    """The files of data, and how each is computed."""
    state = session.state() | {"static": True, "runs": []}
    state["methods"] = [method for method in state["methods"] if method != "umap" or len(session.photos) <= 20_000]
    parts: dict[str, Callable[[], Any]] = {"state": lambda: state}
    for method in state["methods"]:
        parts[f"space-{method}"] = lambda method=method: session.space({"method": method})
    parts["neighbours"] = lambda: _neighbours(session)
    if any(one.encoder.readouts for one in session.seen):
        prompts = state["prompts"]
        parts["search"] = lambda: [session.search({"text": prompt, "k": _NEIGHBOURS}) for prompt in prompts]
        parts["prompts"] = lambda: session.nearest_prompts({"prompts": prompts})
    if len(session.seen) == 2:
        parts["agreement"] = lambda: session.agreement({})
    for shape in state["shapes"]:
        parts[f"sigreg-{shape.replace(' ', '-')}"] = lambda shape=shape: _descent(shape)
    for i, model in enumerate(state["models"]):
        kinds = [name for name in ("image_embeds", "predictions", "cls") if name in model["features"]]
        for kind in kinds + (["text_embeds"] if state["photos"]["has_captions"] and model["readouts"] else []):
            parts[f"directions-{i}-{kind}"] = lambda i=i, kind=kind: session.directions({"model": i, "what": kind})
    return parts


def _neighbours(session: Session) -> dict[str, Any]:
    models = []
    for one in session.seen:
        indices, scores = neighbours(one, _NEIGHBOURS)
        models.append({"indices": pack(indices.int()), "scores": pack(scores), "by": default_feature(one)})
    return {"models": models}


def _descent(shape: str) -> dict[str, Any]:
    frames, descent = trajectory(shape, _STEPS, _SAMPLES)
    return {
        "frames": [pack(frame) for frame in frames],
        "values": [descent.values[step] for step in _STEPS],
        "steps": list(_STEPS),
        "step": _STEPS[-1],
        "directions": pack(descent.directions.T),
        "all_directions": True,
        "floor": descent.floor,
    }


__all__ = ["export"]
