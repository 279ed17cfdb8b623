"""Fixtures shared by the tests: the smallest model, its processor, images made on the spot. Nothing is downloaded."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
if processes := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # they and what they start share the cores
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // int(processes))))

import levljepa_hf  # noqa: F401  isort: skip  (registers the Auto classes, and comes before other imports of timm)
import numpy as np
import PIL.Image
import pytest
import torch

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAProcessor

CAPTIONS = ["a cat on a mat", "two dogs run along the beach", "", "rain"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is marked `gpu` where there is none, so that the summary names it."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and torch sees none"))


@pytest.fixture
def config() -> LeVLJEPAConfig:
    return LeVLJEPAConfig.from_preset("debug")


@pytest.fixture
def model(config: LeVLJEPAConfig) -> LeVLJEPAModel:
    """A debug model with BatchNorm statistics that are not those of a fresh one."""
    torch.manual_seed(0)
    model = LeVLJEPAModel(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="session")
def processor() -> LeVLJEPAProcessor:
    return LeVLJEPAProcessor.from_image_size(32)


@pytest.fixture(scope="session")
def images() -> list[PIL.Image.Image]:
    """Four smooth RGB images of different sizes."""
    rng = np.random.default_rng(0)
    sizes = [(48, 40), (40, 64), (33, 47), (90, 35)]
    coarse = [PIL.Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in sizes]
    return [image.resize(size, PIL.Image.Resampling.BICUBIC) for image, size in zip(coarse, sizes, strict=True)]


@pytest.fixture
def inputs(processor: LeVLJEPAProcessor, images: list[PIL.Image.Image]) -> dict[str, torch.Tensor]:
    return dict(processor(images=images, text=CAPTIONS, return_tensors="pt"))
