"""Imports what the extra `app` brings, or says how to install it. Modules that need it import this one first."""

try:
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f'The explorer needs the package {error.name!r}, which is not installed. Run: pip install "levljepa_hf[app]"'
    ) from error
