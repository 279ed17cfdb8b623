"""Imports what the extra `train` brings, or says how to install it. Modules that need it import this one first."""

try:
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import fsspec  # noqa: F401
    import simplejpeg  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f"Training and its data need the package {error.name!r}, which is not installed. "
        'Run: pip install "levljepa_hf[train]"'
    ) from error
