"""Recipes as options: they stand below the command line, and are written beside what it trains.

    parser = Parser((ModelArguments, TrainingArguments), prog="train.py", recipes=recipe_names())
    (model_args, args), recipe_config = parse_arguments(parser, argv)
    save_recipe(args.output_dir, (model_args, args))  # recipe.yaml, which `--recipe` reads back

An option named `config` is a list of `name=value`, fields of a model's configuration. In a recipe it is a mapping.
"""

import argparse
import dataclasses
import enum
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError

from ..model.configuration_levljepa import LeVLJEPAConfig
from ..options import Parser, nearest_option
from .shelf import RECIPES, recipe_path

RECIPE_NAME = "recipe.yaml"
DIVERGED_NAME = "diverged.txt"  # in the folder of a run whose loss was not finite: the message
# A number with an exponent, which PyYAML takes for a string without a point.
_EXPONENT = (re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


_SOURCES = {"dataset", "eval_dataset", "mixture", "model_name_or_path"}  # Hub ids, or paths


class RecipeLoader(yaml.SafeLoader):
    """YAML in which 2e-4 is a number, as it is everywhere else; PyYAML would read a string."""


class _RecipeDumper(yaml.SafeDumper):
    """The way back: strings that the loader would take for numbers are quoted."""


for _class in (RecipeLoader, _RecipeDumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", *_EXPONENT)


# ------------------------------------------------------------------------------------------------------------ reading


def parse_arguments(parser: Parser, argv: Sequence[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The groups of options, from a recipe and, over it, from the command line.

    Args:
        parser: Of the groups, with the option `--recipe`.
        argv: The command line.

    Returns:
        The groups, and the recipe's `config` as it stands there (empty without one): a group's `config` has the
        command line's fields alone, and `add_overrides` adds the two where the script has a use for them.

    Raises:
        FileNotFoundError: if there is no such recipe.
        ValueError: if the recipe or the command line has an option that does not exist or is of the wrong type.
    """
    name = parser.parse_args(argv).recipe
    recipe = {} if name is None else read_recipe(name, tuple(parser.actions))
    config = recipe.pop("config", None) or {}
    parser.set_defaults(**{key: _converted(parser.actions[key], value) for key, value in recipe.items()})
    return parser.parse_groups(argv), config


def read_recipe(name: str, options: Sequence[str], folder: str | Path = RECIPES) -> dict[str, Any]:
    """The options of a recipe.

    Args:
        name: A name in `folder`, or the path of a YAML file.
        options: Those that a recipe may name.
        folder: Where recipes are known by name.

    Raises:
        FileNotFoundError: if there is no such recipe.
        ValueError: if it has other options, or is no mapping.
    """
    path = recipe_path(name, folder)
    try:
        recipe = yaml.load(path.read_text("utf-8"), RecipeLoader) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"Recipe {path} is no YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"Recipe {path} must hold options, one a line, such as `learning_rate: 2e-4`.")
    unknown = [str(key) for key in recipe if key not in options]
    if unknown:
        close = {key: nearest_option(key, options) for key in unknown}
        hints = "".join(f" Did you mean {match!r}?" for match in close.values() if match)
        raise ValueError(
            f"Recipe {path} has unknown options: {', '.join(unknown)}.{hints} `--help` lists the known ones."
        )
    if not isinstance(recipe.get("config") or {}, dict):
        raise ValueError(
            f"Recipe {path}: config={recipe['config']!r} must hold fields, such as {{projection_dim: 128}}."
        )
    return recipe


def _converted(action: argparse.Action, value: Any) -> Any:
    """A recipe's value as the command line would read it."""
    if value is None or isinstance(value, dict):
        return value
    if action.nargs in ("*", "+") and not isinstance(value, list):
        raise ValueError(f"The recipe's {action.dest}={value!r} must be a list, such as [{value}].")
    convert = action.type or str
    try:
        if isinstance(value, list):  # mappings are for the script to read: a mixture's datasets
            converted = [one if isinstance(one, dict) and convert is str else convert(str(one)) for one in value]
        else:
            converted = convert(str(value))
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        _, is_none_of, choices = str(error).partition(" is none of ")
        reason = f"{is_none_of}{choices}" if choices else f" is of the wrong type: {error}"
        raise ValueError(f"The recipe's {action.dest}={value!r}{reason}.") from error
    return converted


def as_overrides(config: dict[str, Any]) -> list[str]:
    """{"vision_config": {"image_size": 112}} to ["vision_config.image_size=112"], as on the command line."""
    overrides = []
    for name, value in config.items():
        inner = as_overrides(value) if isinstance(value, dict) else None
        overrides += [f"{name}={json.dumps(value)}"] if inner is None else [f"{name}.{one}" for one in inner]
    return overrides


def as_config(overrides: Iterable[str]) -> dict[str, Any]:
    """The way back; where a name occurs twice, the last one counts.

    Raises:
        ValueError: if one is not `name=value`.
    """
    config: dict[str, Any] = {}
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"--config takes name=value, such as projection_dim=128, not {override!r}.")
        group, _, field_name = name.rpartition(".")
        (config.setdefault(group, {}) if group else config)[field_name] = yaml.load(value, RecipeLoader)
    return config


def add_overrides(recipe_config: dict[str, Any], overrides: Iterable[str]) -> list[str]:
    """The fields of a recipe's `config` and those of the command line, which win."""
    return as_overrides(as_config([*as_overrides(recipe_config), *overrides]))


def config_from_preset(preset: str, overrides: Sequence[str] = ()) -> LeVLJEPAConfig:
    """The configuration of a preset with its overrides, `name=value`.

    Raises:
        ValueError: if a field is unknown or its value of the wrong type; the message names it.
    """
    try:
        return LeVLJEPAConfig.from_preset(preset, **as_config(overrides))
    except (StrictDataclassError, AttributeError) as error:  # AttributeError: a dtype that torch does not have
        raise ValueError(f"A value in `config` ({' '.join(overrides)}) is of the wrong type. {error}") from error


# ------------------------------------------------------------------------------------------------------------ writing


def save_recipe(folder: str | os.PathLike, argument_groups: Iterable[Any]) -> Path:
    """Writes `recipe.yaml`: every option that differs from its default, which `--recipe` reads back.

    Left out are tokens, which are secret, and `resume_from_checkpoint`, which belongs to one start of a run. A local
    folder is written as ./FOLDER, so that nobody takes it for a Hub id elsewhere.

    Args:
        folder: Where it goes; made if need be.
        argument_groups: Dataclasses of options, such as `TrainingArguments`.

    Returns:
        The file's path.
    """
    options: dict[str, Any] = {}
    for group in argument_groups:
        options |= changed_options(group)
    for name in _SOURCES & options.keys():
        options[name] = [_local(one) for one in options[name]] if name == "mixture" else _local(options[name])
    path = Path(folder, RECIPE_NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.dump(options, Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True), "utf-8")
    return path


def _local(source: Any) -> Any:
    """OWNER/NAME with a dot before it, where that is a path."""
    if isinstance(source, dict):
        return {name: _local(one) if name == "dataset" else one for name, one in source.items()}
    is_relative = isinstance(source, str) and re.match(r"[\w-].*/", source) is not None and Path(source).exists()
    return os.path.join(os.curdir, source) if is_relative else source


def changed_options(group: Any) -> dict[str, Any]:
    """The options of a dataclass that differ from what they are by default, as plain values."""
    cls = type(group)
    # Training arguments set up the device when they are made. These take over the group's, so that nothing is reset.
    defaults = type(cls.__name__, (cls,), {"device": group.device})() if hasattr(group, "device") else cls()
    changed = {}
    for field in dataclasses.fields(group):
        value, default = (_plain(getattr(one, field.name)) for one in (group, defaults))
        if field.init and value != default and not _is_left_out(field.name):
            changed[field.name] = as_config(value) if field.name == "config" else value
    return changed


def _is_left_out(name: str) -> bool:
    return name.endswith("_token") or name == "resume_from_checkpoint"


def _plain(value: Any) -> Any:
    """A value that YAML can hold."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if dataclasses.is_dataclass(value):  # accelerate's configuration
        return _plain(dataclasses.asdict(value))
    return value


# ----------------------------------------------------------------------------------------------------------- commands


def run_script(main: Callable[[], Any], prog: str | None = None) -> None:
    """Runs a script or command. What its user can mend is printed in one line, and the status is 2.

    Args:
        main: What it does.
        prog: Its name, by default the script's.
    """
    try:
        main()
    except (ValueError, ImportError, OSError) as error:
        print(f"{prog or Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


__all__ = [
    "DIVERGED_NAME",
    "RECIPE_NAME",
    "RecipeLoader",
    "add_overrides",
    "as_config",
    "as_overrides",
    "changed_options",
    "config_from_preset",
    "parse_arguments",
    "read_recipe",
    "run_script",
    "save_recipe",
]
