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

from ..extras import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "patches": "PatchTokens patch_tokens pca_pictures plot_patches similar_patches text_on_patches",
        "photos": "PhotoFeatures Photos Seen embed_photos load_photos",
        "run": "plot_run read_curves",
        "search": "nearest_photos neighbours plot_search search_scores",
        "sigreg": "Descent Directions least_gaussian_directions make_cloud plot_directions plot_sigreg",
        "space": "agreement plot_space project",
        "zero_shot": "ZeroShotResult classify plot_zero_shot",
    },
)
