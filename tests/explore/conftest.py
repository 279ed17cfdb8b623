"""Fixtures of the explorer's tests: a folder of photos in two classes, small models, a session. All is made once."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAProcessor
from levljepa_hf.encoders.encoders import LeVLJEPAEncoder
from levljepa_hf.explore import PhotoFeatures, Photos, embed_photos, load_photos
from levljepa_hf.explore.session import Session

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


def photo(seed: int, size: tuple[int, int] = (60, 44)) -> PIL.Image.Image:
    rng = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return coarse.resize(size, PIL.Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photos, of classes `red_fox` and `owl`."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(24):
        place = root / ("red_fox" if i % 2 else "owl")
        place.mkdir(exist_ok=True)
        photo(i).save(place / f"{i:02d}.png")
    return root


def make_model(seed: int, **options) -> LeVLJEPAModel:
    """A debug model with BatchNorm statistics that are not those of a fresh one."""
    torch.manual_seed(seed)
    model = LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug", **options))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="session")
def encoders(processor: LeVLJEPAProcessor) -> dict[str, LeVLJEPAEncoder]:
    """`a` and `b` of the same size, `coarse` of larger patches, `tower` without texts, `bare` without predictors."""
    models = {
        "a": make_model(0),
        "b": make_model(1),
        "coarse": make_model(2, vision_config={"patch_size": 16}),
        "tower": make_model(3).vision_model,
        "bare": make_model(4, predictor_num_layers=0),
    }
    return {name: LeVLJEPAEncoder(name, model, processor) for name, model in models.items()}


@pytest.fixture(scope="session")
def checkpoints(encoders, processor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`a` and `tower` on disk."""
    root = tmp_path_factory.mktemp("models")
    for name in ("a", "tower"):
        encoders[name].model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return {name: root / name for name in ("a", "tower")}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "features"


@pytest.fixture(scope="session")
def photos(folder: Path, cache: Path) -> Photos:
    return load_photos(str(folder), cache_dir=cache, show_progress=False)


@pytest.fixture(scope="session")
def seen(encoders: dict[str, LeVLJEPAEncoder], photos: Photos, cache: Path) -> dict[str, PhotoFeatures]:
    return {
        name: embed_photos(encoder, photos, cache_dir=cache, show_progress=False) for name, encoder in encoders.items()
    }


@pytest.fixture
def session(seen: dict[str, PhotoFeatures], photos: Photos, cache: Path) -> Session:
    return Session([seen["a"], seen["b"]], photos, cache_dir=cache)
