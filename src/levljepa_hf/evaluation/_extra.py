"""Imports what the extra `eval` brings, or says how to install it. Modules that need it import this one first."""

try:
    import datasets  # noqa: F401
    import evaluate  # noqa: F401
    import sklearn  # noqa: F401
    import torchmetrics  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f'Evaluation needs the package {error.name!r}, which is not installed. Run: pip install "levljepa_hf[eval]"'
    ) from error
