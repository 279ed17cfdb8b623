"""Stands in for what transformers' common tests import and its source distribution lacks.

- `utils.test_configuration_utils`: a value other than the default for every field that all configurations share
- `generation.test_utils`, `exporters.test_export`: empty mixins (no class here generates; the project tests exporting)
- `fetch_hub_objects_for_ci`: the test photos of the Hub become drawn pictures, so that nothing needs a network
"""

import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from fetch import PACKAGE, fetched_folder

CONFIG_COMMON_KWARGS = {
    "architectures": ["LeVLJEPAModel"],
    "chunk_size_feed_forward": 5,
    "dtype": "float16",
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}


@cache
def _pictures() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="levljepa-peer-")


def url_to_local_path(url: str, return_url_if_not_found: bool = True) -> str:
    """A drawn picture in place of the one at `url`: a photo-like one (`.jpg`, or any other), or a map of labels."""
    name = url.rsplit("/", 1)[-1]
    path = Path(_pictures().name) / Path(name).with_suffix(".png").name
    is_label_map = name.startswith("ADE_val") and name.endswith(".png")
    if is_label_map:
        path = path.with_name(f"labels-{path.name}")
    if not path.exists():
        (draw_labels if is_label_map else draw_photo)().save(path)
    return str(path)


def draw_photo(width: int = 640, height: int = 480) -> Image.Image:
    """Smooth shades, a disc and a textured band: what a resize of a photo meets."""
    y, x = np.mgrid[:height, :width]
    shades = np.stack([x / width, y / height, 0.5 + 0.5 * np.sin(x / 40) * np.cos(y / 30)], axis=-1)
    shades[(x - width / 3) ** 2 + (y - height / 2) ** 2 < (height / 4) ** 2] = (0.9, 0.6, 0.2)
    texture = np.random.default_rng(0).uniform(0, 1, (height // 6, width, 3))
    shades[-len(texture) :] = 0.5 * shades[-len(texture) :] + 0.5 * texture
    return Image.fromarray((255 * shades).astype(np.uint8))


def draw_labels(width: int = 640, height: int = 480) -> Image.Image:
    """A map of 150 labels in blocks."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(((x // 40 + 16 * (y // 40)) % 150).astype(np.uint8))


def install() -> Path:
    """Makes `transformers_tests` importable, stand-ins included, and returns its folder.

    Raises:
        RuntimeError: if the common tests of the installed transformers are not fetched.
    """
    folder = fetched_folder() / PACKAGE
    if not folder.is_dir():
        raise RuntimeError(f"{folder} is missing: fetch it with `python tests/peer/fetch.py` (needs a network).")
    sys.path.insert(0, str(fetched_folder()))
    _add_module("fetch_hub_objects_for_ci", url_to_local_path=url_to_local_path)
    _add_module(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs=CONFIG_COMMON_KWARGS)
    _add_module(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    _add_module(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    return folder


def _add_module(name: str, **contents: Any) -> None:
    parent = name.rpartition(".")[0]
    if parent and parent != PACKAGE:
        sys.modules[parent] = ModuleType(parent)
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(contents)
