"""The version, where the build reads it without importing the package."""

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("torch", "torchvision", "transformers", "timm", "datasets", "torchmetrics", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of what decides the figures."""
    found = {"levljepa_hf": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


__version__ = "0.1.0"


__all__ = ["versions"]
