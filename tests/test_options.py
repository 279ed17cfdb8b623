"""Options: that what is read without imports is what is imported, and how a parser reads dataclasses."""

import dataclasses
import typing
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import pytest

from levljepa_hf.cli import COMMANDS
from levljepa_hf.evaluation.command import TASKS
from levljepa_hf.options import Command, Parser, missing_path, nearest_option, option
from levljepa_hf.sketch import Sketch, Unknown, read


def leaves(command: Command) -> list[Command]:
    return [leaf for part in command.parts.values() for leaf in leaves(part)] if command.parts else [command]


def declared(groups: tuple[type, ...]) -> list[tuple[Any, ...]]:
    """Names, types, defaults and texts of the fields of dataclasses."""
    found = []
    for group in groups:
        hints = typing.get_type_hints(group)
        for one in dataclasses.fields(group):
            default = one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default
            found.append((one.name, str(hints[one.name]), default, dict(one.metadata)))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_read_as_it_is_imported(name: str) -> None:
    module = f"levljepa_hf.{COMMANDS[name][0]}"
    sketched, real = read(module)["COMMAND"], import_module(module).COMMAND
    assert isinstance(sketched, Command), f"{module} has no COMMAND that can be read"
    for ours, theirs in zip(leaves(sketched), leaves(real), strict=True):
        assert (ours.name, ours.about, ours.more, ours.extra, ours.recipes) == (
            theirs.name,
            theirs.about,
            theirs.more,
            theirs.extra,
            theirs.recipes,
        )
        quick, whole = ours.parser(sketched=True), theirs.parser()
        assert quick.flags == whole.flags
        for mine, yours in zip(quick.groups, whole.groups, strict=True):
            foreign = {one.name for one in dataclasses.fields(yours) if quick.flags.get(f"--{one.name}")}
            both = [[one for one in declared((group,)) if one[0] not in foreign] for group in (mine, yours)]
            assert both[0] == both[1]


def test_protocols_are_read_as_they_are_imported() -> None:
    for name, task in TASKS.items():
        sketched = read(task.protocol.__module__)[task.protocol.__name__]
        assert declared((sketched,)) == declared((task.protocol,)), name
        assert sketched is not task.protocol


def test_a_sketch_runs_nothing_but_declarations(tmp_path) -> None:
    file = tmp_path / "some.py"
    file.write_text(
        "import torch\nfrom dataclasses import dataclass, field\n"
        "SIZE = 3\nLATER = [WIDTH * i for i in range(SIZE)]\nWIDTH = 2\nBROKEN = torch.cuda.count() + missing()\n"
        "raise RuntimeError('run')\n"
        "@torch.compile\n@dataclass\nclass A(torch.nn.Module):\n"
        "    x: int | torch.Tensor = WIDTH\n    def __post_init__(self):\n        raise ValueError\n"
        "def f():\n    return 1\nCALLED = f()\n"
    )
    sketch = Sketch("some", file)
    assert sketch["LATER"] == [0, 2, 4] and sketch["A"]().x == 2
    assert sketch["BROKEN"] is Unknown and sketch["CALLED"] is Unknown and sketch["nothing"] is Unknown


@dataclass
class Arguments:
    """Some options."""

    runs: list[str] = option(default_factory=list, help="Runs.", positional=True)
    output_dir: str = option("here", help="A folder, 100 % of it.")
    rate: float | None = option(None, help="A rate.")
    sizes: list[int] = option(default_factory=lambda: [1, 2], help="Sizes.")
    fused: bool = option(True, help="Fused or not.")
    quick: bool = option(False, help="Quick or not.")
    kind: Literal["a", "b"] = option("a", help="A kind.")
    level: str = option("low", help="A level.", choices=("low", "high"))


def parse(*words: str) -> Arguments:
    (arguments,) = Parser([Arguments], prog="some", raises=True).parse_groups(words)
    return arguments


def test_a_dataclass_is_parsed() -> None:
    assert parse("x") == Arguments(["x"])
    words = "x y --output-dir=z-z --rate 1e-3 --sizes 4 --no-fused --quick --kind b --level high"
    assert parse(*words.split()) == Arguments(["x", "y"], "z-z", 1e-3, [4], False, True, "b", "high")
    assert parse("x", "--fused", "false", "--quick", "no") == Arguments(["x"], fused=False)
    text = Parser([Arguments], prog="some").format_help()
    assert text.startswith("usage: some RUNS [options]") and "--output_dir" in text and "--output-dir" not in text
    assert "100 % of it. (default: here)" in text and "--no_fused turns it off" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("x --outptu_dir y", "some: there is no option --outptu_dir. Did you mean --output_dir?"),
        ("x --level hihg", "'hihg' is none of low, high. Did you mean 'high'?"),
        ("x --rate fast", "invalid float value: 'fast'"),
        ("x --quick perhaps", "'perhaps' is neither true nor false"),
        ("--quick", "the following arguments are required: runs"),
        ("x --out y", "there is no option --out"),
    ],
)
def test_a_wrong_option_is_refused(words: str, message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        parse(*words.split())
    assert message in str(refusal.value)


def test_nearest_options() -> None:
    known = ["learning_rate", "local_rank", "num_train_epochs", "weight_decay", "output_dir"]
    for name, expected in (
        ("lr", "learning_rate"),
        ("wd", "weight_decay"),
        ("epochs", "num_train_epochs"),
        ("outputdir", "output_dir"),
        ("zzz", None),
    ):
        assert nearest_option(name, known) == expected


def test_paths_that_are_not_there(tmp_path, monkeypatch) -> None:
    (tmp_path / "runs" / "demo" / "checkpoint-1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for value, expected in (
        ("owner/name", None),  # an id of the Hub
        ("name", None),
        ("runs/demo", None),
        ("runs/dmeo", "is no folder here. Did you mean 'runs/demo'?"),
        ("runs/dmeo/checkpoint-1", "is no folder here. Did you mean 'runs/demo/checkpoint-1'?"),
        ("./nothing/like/it", "is no folder here."),
        ("~/nothing/like/it", "is no folder here."),
        ("one/two/three", "is no folder here."),
    ):
        assert missing_path(value, "folder") == expected
