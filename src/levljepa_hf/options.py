"""Options of the commands: how they are declared, shown, read and mistyped. It imports no other package.

    @dataclass
    class PlotArguments:
        "What is drawn."
        runs: list[str] = option(help="Folders of trainings.", positional=True)
        smooth: float = option(0.0, help="Weight of the past in a running mean.")

    COMMAND = Command("levljepa plot", "Draw curves.", (PlotArguments,), more="example:\n  levljepa plot runs/demo")
    (arguments,) = COMMAND.parse(argv)

Options are spelt with underscores; hyphens are read as the same.
"""

import argparse
import dataclasses
import difflib
import enum
import importlib.util
import inspect
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .sketch import read

T = TypeVar("T", bound=type)
# Options of transformers' TrainingArguments that `--help` shows too.
USUAL = (
    "output_dir",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "warmup_steps",
    "bf16",
    "dataloader_num_workers",
    "eval_strategy",
    "logging_steps",
    "save_steps",
    "seed",
    "report_to",
    "push_to_hub",
    "resume_from_checkpoint",
)
PACKAGE = __name__.partition(".")[0]


# -------------------------------------------------------------------------------------------------------- declaration


def option(
    default: Any = MISSING,
    *,
    help: str,
    default_factory: Callable[[], Any] = MISSING,
    choices: Sequence[str] | None = None,
    kind: str | None = None,
    known: Iterable[str] = (),
    positional: bool = False,
    metavar: str | None = None,
) -> Any:
    """A field of a dataclass of options. Without a default it has to be given.

    Args:
        default, default_factory: As of `dataclasses.field`.
        help: What it is, for the command line and `help()`.
        choices: What it may be.
        kind: What its value names, one of `KINDS`: what is not there is refused before any work.
        known: Names that it may be beside what `kind` says, such as data sets.
        positional: Given without its name.
        metavar: What stands for the value in the help.
    """
    metadata = {"help": help}
    more = {"choices": choices, "kind": kind, "known": tuple(known), "positional": positional, "metavar": metavar}
    metadata |= {name: value for name, value in more.items() if value}
    return field(default=default, default_factory=default_factory, metadata=metadata)


def with_field_help(cls: T) -> T:
    """Appends a section `Args` to a dataclass's docstring: the `help` of its own fields."""
    lines = ["", "", "Args:"]
    for one in dataclasses.fields(cls):
        if _is_own(cls, one.name):
            text = f"{one.name}: {one.metadata['help']}"
            lines += textwrap.wrap(
                text, 110, initial_indent="    ", subsequent_indent="        ", break_on_hyphens=False
            )
    cls.__doc__ = inspect.cleandoc(cls.__doc__) + "\n".join(lines) + "\n"
    return cls


def _is_own(cls: type, name: str) -> bool:
    """Whether a field is declared in this package (or by its user), and not by another package's base class."""
    foreign = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "transformers"]
    declared = [base for base in cls.__mro__ if name in inspect.get_annotations(base)]
    return any(base not in foreign for base in declared)


@dataclass(frozen=True)
class Command:
    """A command as it is declared: `levljepa` answers `--help` and wrong options from it, before torch is imported.

    Args:
        name: As it is typed: "levljepa plot".
        about: What it does, for the help.
        groups: Dataclasses of its options, or where they are, as "levljepa_hf.evaluation.knn:KNNProtocol".
        more: What stands below the options: examples.
        extra: The extra of the package that it needs.
        recipes: Names of the recipes that `--recipe` takes; `None` for a command that takes none.
        parts: Commands below it, by name; it has no options of its own then.
        models: Whether it has to do with models, so that the Auto classes are to know ours.
    """

    name: str
    about: str
    groups: tuple[Any, ...] = ()
    more: str = ""
    extra: str | None = None
    recipes: tuple[str, ...] | None = None
    parts: Mapping[str, "Command"] = field(default_factory=dict)
    models: bool = True

    def parser(self, sketched: bool = False) -> "Parser":
        """The parser; with `sketched`, groups that are named by their place are read and not imported."""
        needs = f'\n\nNeeds: pip install "levljepa_hf[{self.extra}]"' if self.extra else ""
        return Parser(
            [_resolved(group, sketched) for group in self.groups],
            prog=self.name,
            description=self.about + needs,
            epilog=self.more,
            recipes=self.recipes,
            sketched=sketched,
        )

    def part(self, argv: Sequence[str]) -> tuple["Command", list[str]]:
        """The command below this one that is meant, and what follows its name.

        Raises:
            SystemExit: after the help, or after a message where there is no such part.
        """
        if not self.parts:
            return self, list(argv)
        name = argv[0] if argv else "--help"
        if name in ("-h", "--help", "--help_all", "--help-all"):
            width = max(map(len, self.parts))
            print(f"usage: {self.name} {{{','.join(self.parts)}}} [options]\n\n{self.about}\n")
            print(*(f"  {name:{width}}  {part.about.splitlines()[0]}" for name, part in self.parts.items()), sep="\n")
            print(f"\noptions: {self.name} {next(iter(self.parts))} --help\n\n{self.more}".rstrip())
            raise SystemExit(0 if argv else 2)
        if name not in self.parts:
            hint = did_you_mean(name, self.parts)
            print(f"{self.name}: there is no task {name!r}.{hint} One of {', '.join(self.parts)}.", file=sys.stderr)
            raise SystemExit(2)
        return self.parts[name].part(argv[1:])

    def check(self, argv: Sequence[str]) -> None:
        """Answers `--help` and what is wrong with the options as they stand.

        Raises:
            SystemExit: after either.
        """
        command, rest = self.part(argv)
        command.parser(sketched=True).parse_args(rest)

    def parse(self, argv: Sequence[str] | None) -> tuple[Any, ...]:
        """The groups of options as the command line, `sys.argv` by default, has them."""
        return self.parser().parse_groups(sys.argv[1:] if argv is None else argv)

    def run(self, argv: Sequence[str] | None, function: Callable[..., Any]) -> int:
        """Calls `function` with the groups; returns the exit status, 0.

        Raises:
            SystemExit: with status 2, after a line that says what the user can mend.
        """
        try:
            function(*self.parse(argv))
        except (ValueError, ImportError, OSError) as error:
            print(f"{self.name}: {' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(2) from error
        return 0


def _resolved(group: Any, sketched: bool) -> type:
    if not isinstance(group, str):
        return group
    module, _, name = group.partition(":")
    return read(module)[name] if sketched else getattr(import_module(module), name)


# ------------------------------------------------------------------------------------------------------------ parsing


class _Help(argparse.RawDescriptionHelpFormatter):
    """Descriptions and examples as they are written."""


class _HelpAll(argparse.Action):
    """`--help_all`: the help with what other packages' classes declare."""

    def __call__(self, parser: "Parser", *_: Any) -> NoReturn:
        for action, text in parser.hidden:
            action.help = text
        parser.print_help()
        parser.exit()


class Parser(argparse.ArgumentParser):
    """Reads dataclasses of options from a command line.

    Args:
        groups: Dataclasses, a section of the help each. Fields of other packages' base classes are in `--help_all`.
        prog, description, epilog: As of `argparse.ArgumentParser`.
        recipes: Names that `--recipe` takes; `None` leaves the option out.
        raises: Whether what is wrong is a `ValueError` in place of a line on stderr and exit status 2.
        sketched: Whether the groups were read and not imported; what other packages compute is not known then.
    """

    def __init__(
        self,
        groups: Sequence[type],
        prog: str,
        description: str | None = None,
        epilog: str | None = None,
        recipes: Sequence[str] | None = None,
        raises: bool = False,
        sketched: bool = False,
    ) -> None:
        usage = [_usage(one) for group in groups for one in dataclasses.fields(group) if _is_shown_first(one)]
        super().__init__(
            prog=prog,
            usage=" ".join([prog.replace("%", "%%"), *usage, "[options]"]),
            description=description,
            epilog=epilog,
            formatter_class=_Help,
            allow_abbrev=False,
        )
        self.groups, self.recipes, self.raises, self.sketched = tuple(groups), recipes, raises, sketched
        self.actions: dict[str, argparse.Action] = {}  # by name of the field
        self.fields: dict[str, dataclasses.Field] = {}
        self.hidden: list[tuple[argparse.Action, str]] = []  # those of `--help_all`, and their help
        self.flags = {"--help": False}  # and whether they are in `--help_all` alone
        if recipes is not None:
            text = f"A YAML file, or one of: {', '.join(recipes)}. The command line wins."
            self.actions["recipe"] = self.add_argument("--recipe", help=text)
            self.flags["--recipe"] = False
        for group in groups:
            self._add(group)
        if self.hidden:
            self.add_argument("--help_all", nargs=0, action=_HelpAll, help="show the options of transformers too")
            self.flags["--help_all"] = False

    def _add(self, group: type) -> None:
        title = (inspect.getdoc(group) or group.__name__).partition("\n")[0].rstrip(".")
        if not all(_is_own(group, one.name) for one in dataclasses.fields(group)):
            title = "Training"  # its docstring says what it adds to transformers' class
        hints = typing.get_type_hints(group)
        own = self.add_argument_group(title)
        usual = self.add_argument_group("Of transformers' options the most used; --help_all shows all")
        others = self.add_argument_group("Of transformers")
        for one in dataclasses.fields(group):
            if not one.init:
                continue
            is_own = _is_own(group, one.name)
            is_hidden = not is_own and one.name not in USUAL
            computed = () if self.sketched and not is_own else one.metadata.get("choices", ())
            keywords, negation = _keywords(one, hints[one.name], computed)
            text = keywords["help"]
            target = own if is_own else others if is_hidden else usual
            if is_hidden:
                keywords["help"] = argparse.SUPPRESS
            if one.metadata.get("positional"):
                action = target.add_argument(one.name, **keywords)
            else:
                names = [one.name, *([negation] if negation else ())]
                self.flags |= {f"--{name}": not is_own for name in names}
                action = target.add_argument(f"--{one.name}", **keywords)
            if negation:
                target.add_argument(
                    f"--{negation}", dest=one.name, action="store_false", default=True, help=argparse.SUPPRESS
                )
            if is_hidden:
                self.hidden.append((action, text))
            self.actions[one.name], self.fields[one.name] = action, one

    def parse_groups(self, args: Sequence[str]) -> tuple[Any, ...]:
        """The groups, as instances of their dataclasses.

        Raises:
            SystemExit: after the help, or after a line that says what is wrong.
            ValueError: if a group refuses its values.
        """
        values = vars(self.parse_args(args))
        return tuple(
            group(**{f.name: values[f.name] for f in dataclasses.fields(group) if f.init}) for group in self.groups
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """As argparse's, with either spelling, the nearest option for one that is unknown, and names looked up."""
        args = [_spelt(one) for one in (sys.argv[1:] if args is None else args)]
        given = args[: args.index("--")] if "--" in args else args
        if not {"-h", "--help", "--help_all"} & set(given):
            for flag in (one.partition("=")[0] for one in given if one.startswith("--")):
                if flag not in self.flags:
                    known = sorted(self.flags, key=lambda flag: (self.flags[flag], len(flag)))
                    close = nearest_option(flag.removeprefix("--"), [name.removeprefix("--") for name in known])
                    hint = f" Did you mean --{close}?" if close else " --help lists what there is."
                    self.error(f"there is no option {flag}.{hint}")
        namespace = super().parse_args(args, namespace)
        recipe = None if self.recipes is None else namespace.recipe
        if recipe is not None and (wrong := _wrong_recipe(recipe, self.recipes)):
            self.error(wrong)
        for name, one in self.fields.items():
            value = getattr(namespace, name)
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, str) and (wrong := wrong_name(item, one.metadata)):
                    self.error(f"{item} {wrong}" if one.metadata.get("positional") else f"--{name} {item} {wrong}")
        return namespace

    def error(self, message: str) -> NoReturn:
        """One line, and exit status 2."""
        if self.raises:
            raise ValueError(f"{self.prog}: {message}")
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def _keywords(one: dataclasses.Field, hint: Any, choices: Iterable[Any]) -> tuple[dict[str, Any], str | None]:
    """What `add_argument` is given for a field, and the name of the flag that turns it off, where there is one."""
    convert, is_list, named = _type_of(hint)
    choices = tuple(choices) or named
    required = _is_required(one)
    default = None if required else one.default if one.default is not MISSING else one.default_factory()
    keywords: dict[str, Any] = {"default": default, "type": _one_of(choices) if choices else convert}
    metavar = one.metadata.get("metavar") or {int: "N", float: "X"}.get(convert)
    if choices and not one.metadata.get("metavar"):
        metavar = f"{{{','.join(map(str, choices))}}}"
    if metavar:
        keywords["metavar"] = metavar
    if is_list:
        keywords["nargs"] = "+"
    elif one.metadata.get("positional") and not required:
        keywords["nargs"] = "?"
    elif convert in (_truth, _truth_or_word):
        keywords |= {"nargs": "?", "const": True, "metavar": "BOOL"}
    if required and not one.metadata.get("positional"):
        keywords["required"] = True
    negation = f"no_{one.name}" if convert is _truth and default is True else None
    keywords["help"] = _help(one, default, negation)
    return keywords, negation


def _type_of(hint: Any) -> tuple[Callable[[str], Any], bool, Sequence[Any] | None]:
    """How a word becomes a value of an annotation, whether there may be several, and what they may be."""
    options = [hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [one for one in typing.get_args(hint) if one is not types.NoneType]
    for one in options:
        if typing.get_origin(one) is typing.Literal:
            return str, False, typing.get_args(one)
        if isinstance(one, type) and issubclass(one, enum.Enum):
            return str, False, [member.value for member in one]
    first = options[0]
    if len(options) == 1 and typing.get_origin(first) is list:
        convert, _, choices = _type_of(typing.get_args(first)[0])
        return convert, True, choices
    if options == [bool]:
        return _truth, False, None
    if set(options) == {bool, str}:
        return _truth_or_word, False, None
    return (first if len(options) == 1 and first in (int, float, Path) else str), False, None


def _truth(word: str) -> bool:
    if word.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if word.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")


def _truth_or_word(word: str) -> bool | str:
    try:
        return _truth(word)
    except argparse.ArgumentTypeError:
        return word


def _one_of(choices: Sequence[Any]) -> Callable[[str], Any]:
    values = {str(one): one for one in choices}

    def chosen(word: str) -> Any:
        if word not in values:
            hint = did_you_mean(word, values)
            raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(values)}{'.' if hint else ''}{hint}")
        return values[word]

    return chosen


def _help(one: dataclasses.Field, default: Any, negation: str | None) -> str:
    text = one.metadata.get("help") or ""
    text = text if isinstance(text, str) else ""
    default = getattr(default, "value", default)
    if negation:
        text += f" (default: yes; --{negation} turns it off)"
    elif default not in (None, False, "", []) and "default" not in text:
        text += f" (default: {' '.join(map(str, default)) if isinstance(default, list) else default})"
    return text.replace("%%", "%").replace("%", "%%")


def _is_required(one: dataclasses.Field) -> bool:
    return one.init and one.default is MISSING and one.default_factory is MISSING


def _is_shown_first(one: dataclasses.Field) -> bool:
    return _is_required(one) or bool(one.metadata.get("positional"))


def _usage(one: dataclasses.Field) -> str:
    name = one.metadata.get("metavar") or one.name.upper()
    return f"{name}" if one.metadata.get("positional") else f"--{one.name} {name}"


def _spelt(word: str) -> str:
    """An option with underscores, and anything else as it is."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}" if name else word


# -------------------------------------------------------------------------------------------------------------- names


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'knn'?"` for a name like a known one, else nothing; hyphens and underscores are alike."""
    close = nearest(name, known)
    return f" Did you mean {close!r}?" if close else ""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like another one, if any is like it."""
    spelt = {one.replace("-", "_").lower(): one for one in map(str, known)}
    close = difflib.get_close_matches(str(name).replace("-", "_").lower(), spelt, n=1, cutoff=cutoff)
    return spelt[close[0]] if close else None


def nearest_option(name: str, known: Iterable[str]) -> str | None:
    """As `nearest`, and `lr` is `learning_rate` by its initials, `epochs` is `num_train_epochs` as a part of it.

    Of several the first one.
    """
    known = list(known)
    words = name.split("_")
    initials = [one for one in known if len(name) > 1 and "".join(word[0] for word in one.split("_") if word) == name]
    parts = [one for one in known if set(words) <= set(one.split("_"))]
    for found in (nearest(name, known, 0.85), *initials, *parts, nearest(name, known)):
        if found:
            return found
    return None


def wrong_name(value: str, metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with the value of an option that names a model, data or a folder, in words that follow the value;
    `None` if nothing is."""
    kind, known = metadata.get("kind"), metadata.get("known", ())
    if kind is None or value in known or os.path.exists(os.path.expanduser(value)):
        return None
    return KINDS[kind](value, known)


def missing_path(value: str, what: str = "folder or file") -> str | None:
    """That nothing is where a path points, with what is nearest to it; `None` where it could be an id of the Hub."""
    first, *rest = Path(value).parts or ("",)
    is_local = value.startswith((".", "~", "/")) or len(rest) > 1 or (bool(rest) and os.path.isdir(first))
    if os.path.exists(os.path.expanduser(value)) or not (is_local or Path(value).is_absolute() or "\\" in value):
        return None
    folder = Path(os.path.expanduser(value))
    below: list[str] = []
    while not folder.exists() and folder != folder.parent:
        below.append(folder.name)
        folder = folder.parent
    hint = ""
    if folder.is_dir() and below and (close := nearest(below[-1], os.listdir(folder))):
        whole = folder.joinpath(close, *below[-2::-1])
        hint = f" Did you mean '{whole if whole.exists() else folder / close}'?"
    return f"is no {what} here.{hint}"


def _wrong_checkpoint(value: str, known: Sequence[str]) -> str | None:
    if wrong := missing_path(value, "folder"):
        return wrong
    if "/" in value:
        return None
    hint = did_you_mean(value, (*known, *os.listdir()))
    return f"is no folder here, and no id of the Hub, which is OWNER/NAME.{hint}"


def _wrong_pair(value: str, known: Sequence[str]) -> str | None:
    """A released pair is named by what its two files share, which is no file: FOLDER/RUN_stepN."""
    parent, name = os.path.split(os.path.expanduser(value))
    has_pair = os.path.isdir(parent or ".") and re.search(r"_step\d+$", name)
    return None if has_pair else _wrong_checkpoint(value, known)


def _wrong_model(value: str, known: Sequence[str]) -> str | None:
    """A checkpoint, or one of the towers that `load_encoder` knows by a prefix."""
    prefix, colon, name = value.partition(":")
    if prefix == "random":
        return None
    if prefix == "hf" and colon:
        return missing_path(name, "folder")
    architecture = (name if colon else value).partition(".")[0]
    if prefix == "timm" and colon:
        folder = name.removeprefix("local-dir:")
        if folder != name:
            return missing_path(folder, "folder")
        if "/" in name or architecture in timm_names() or not timm_names():
            return None
        close = nearest(architecture, timm_names())
        return "is no model of timm." + (f" Did you mean 'timm:{close}'?" if close else "")
    if colon and len(prefix) > 1 and "/" not in prefix:  # C: is a drive
        close = nearest(prefix, ("timm", "hf", "random"))
        return "is no model." + (f" Did you mean '{close}:{name}'?" if close else " Use timm:NAME, hf:NAME or random.")
    if "/" not in value and (close := nearest(architecture, timm_names(), 0.9)):
        tag = value.removeprefix(architecture) if close == architecture else ""
        return f"is no folder here. Did you mean 'timm:{close}{tag}'?"
    return _wrong_checkpoint(value, known)


def _wrong_dataset(value: str, known: Sequence[str]) -> str | None:
    if "://" in value or any(character in value for character in "*?[{"):
        return None
    if wrong := missing_path(value):
        return wrong
    close = nearest(value, known, 0.75) if "/" not in value else None
    if close is None or re.findall(r"\d+", close) != re.findall(r"\d+", value):  # cifar100 is no slip for cifar10
        return None
    return f"is no folder or file here, and no data set is known by that name. Did you mean {close!r}?"


def _wrong_folder(value: str, known: Sequence[str]) -> str:
    return missing_path(value, "folder") or f"is no folder here.{did_you_mean(value, (*known, *os.listdir()))}"


def _wrong_recipe(value: str, known: Sequence[str]) -> str | None:
    if value in known or os.path.isfile(value):
        return None
    hint = did_you_mean(value, known)
    if value.endswith((".yaml", ".yml")):
        return f"No recipe {value!r}: it {missing_path(value) or 'is no file here.' + hint}"
    return f"No recipe {value!r}.{hint} Give a YAML file, or one of {', '.join(known)}."


KINDS: dict[str, Callable[[str, Sequence[str]], str | None]] = {
    "checkpoint": _wrong_checkpoint,
    "dataset": _wrong_dataset,
    "folder": _wrong_folder,
    "model": _wrong_model,
    "pair": _wrong_pair,
}


@cache
def timm_names() -> frozenset[str]:
    """The models of the installed timm, from its source: importing it takes seconds."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        return frozenset()
    sources = Path(spec.origin).parent.glob("models/*.py")
    return frozenset(
        name for path in sources for name in re.findall(r"^def (\w+)\(pretrained", path.read_text("utf-8"), re.M)
    )


__all__ = [
    "Command",
    "KINDS",
    "Parser",
    "did_you_mean",
    "missing_path",
    "nearest",
    "nearest_option",
    "option",
    "timm_names",
    "with_field_help",
    "wrong_name",
]
