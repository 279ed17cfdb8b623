"""The explorer: what a checkpoint sees in photos. `levljepa explore MODEL` shows it in a browser; here are the parts.

    from levljepa_hf.evaluation import load_encoder
    from levljepa_hf.explore import embed_photos, load_photos, plot_patches, plot_search, plot_space

    photos = load_photos("path/to/photos")  # or "scenes"
    seen = [embed_photos(load_encoder(name), photos) for name in ("runs/a", "runs/b")]
    plot_space(seen, photos, "tsne")
    plot_search(seen, photos, "a dog on a beach")

Each tab of the page is a function that returns a matplotlib figure, on top of others that return what is drawn. Names
are imported when they are first used.
"""

from importlib import import_module
from typing import Any

_LAZY = {
    "Descent": "sigreg",
    "Directions": "sigreg",
    "PatchTokens": "patches",
    "Photos": "photos",
    "Seen": "photos",
    "ZeroShotResult": "zero_shot",
    "agreement": "space",
    "classify": "zero_shot",
    "embed_photos": "photos",
    "least_gaussian_directions": "sigreg",
    "load_photos": "photos",
    "make_cloud": "sigreg",
    "nearest_photos": "search",
    "neighbours": "search",
    "patch_tokens": "patches",
    "pca_pictures": "patches",
    "plot_directions": "sigreg",
    "plot_patches": "patches",
    "plot_run": "run",
    "plot_search": "search",
    "plot_sigreg": "sigreg",
    "plot_space": "space",
    "plot_zero_shot": "zero_shot",
    "project": "space",
    "read_curves": "run",
    "search_scores": "search",
    "similar_patches": "patches",
    "text_on_patches": "patches",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


__all__ = list(_LAZY)
