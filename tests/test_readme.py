"""What the documents show: the README's Python blocks run, and the commands of README and CONTRIBUTING exist."""

import contextlib
import io
import re
import runpy
import shlex
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAProcessor, cli

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PROGRAMS = ("accelerate", "levljepa", "make", "pip", "pytest", "python")


def fenced_blocks(text: str, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language, each with the number of its first line."""
    pattern = rf"^```{language}\n(.*?)^```$"
    matches = re.finditer(pattern, text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in matches]


def test_the_python_blocks_run(images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after another in one namespace, beside the checkpoint and the photos that they name."""
    blocks = fenced_blocks(README.read_text("utf-8"), "python")
    assert len(blocks) >= 2
    monkeypatch.chdir(tmp_path)
    LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug")).save_pretrained("runs/demo")
    LeVLJEPAProcessor.from_image_size(32).save_pretrained("runs/demo")
    for name in re.findall(r'"([\w/.-]+\.(?:jpg|png))"', "".join(block for _, block in blocks)):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        images[0].save(name)

    namespace = {"__name__": "readme"}
    for line, block in blocks:
        code = "\n" * (line - 1) + block  # errors name the README's line
        exec(compile(code, str(README), "exec"), namespace)


def commands_of(text: str) -> list[str]:
    """The commands of the bash blocks, and those set as code within the text."""
    lines = [line for _, block in fenced_blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(rf"`((?:{'|'.join(PROGRAMS)}) [^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M))
    commands = [part.strip() for line in lines for part in line.partition(" #")[0].split("&&")]
    return [command for command in commands + inline if command and not command.startswith("#")]


DOCUMENTED = [
    pytest.param(command, id=f"{document}: {command}")
    for document in ("README.md", "CONTRIBUTING.md")
    for command in dict.fromkeys(commands_of((ROOT / document).read_text("utf-8")))
]


@pytest.mark.parametrize("command", DOCUMENTED)
def test_a_command_exists_with_its_options(command: str) -> None:
    check_command(command)


def check_command(command: str) -> None:
    """Fails if the program, the sub-command or script, or an option of `command` does not exist."""
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    program, arguments = words[0], words[1:]
    assert program in PROGRAMS, f"{program!r} is not checked by this test: add how"
    if program == "pip":
        check_requirements(arguments)
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text("utf-8")
        assert all(f"\n{target}:" in makefile for target in arguments), arguments
    elif program == "levljepa":
        own = arguments[0] in ("evaluate", "finetune")  # each task has its own options
        check_options(arguments[1:], help_of(cli.main, [*arguments[: 1 + own], "--help"]))
    elif program == "python":
        check_script(arguments)
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert arguments[0] == "launch"
        launch = launch_command_parser().parse_args(arguments[1:])
        module = ["-m"] if launch.module else []
        check_script([*module, launch.training_script, *launch.training_script_args])


def check_requirements(arguments: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert arguments[0] == "install"
    for argument in arguments[1:]:
        if argument.startswith("."):
            assert Requirement(f"levljepa_hf{argument[1:]}").extras <= set(extras), argument


def check_script(arguments: list[str]) -> None:
    if arguments[:2] == ["-m", "levljepa_hf.cli"]:
        return check_command(shlex.join(["levljepa", *arguments[2:]]))
    if arguments[0] == "-m":
        module = import_module(arguments[1])
        if hasattr(module, "__path__"):
            module = import_module(f"{arguments[1]}.__main__")
        return check_options(arguments[2:], help_of(module.main, ["--help"]))
    script = ROOT / arguments[0]
    help_text = help_of(lambda argv: runpy.run_path(str(script), run_name="__main__"), ["--help"], str(script))
    check_options(arguments[1:], help_text)


def help_of(main, argv: list[str], program: str = "") -> str:
    """What `main(argv)` prints, with `argv` on the command line too."""
    path, line = list(sys.path), sys.argv
    sys.argv = [program, *argv]
    sys.path.insert(0, str(Path(program).parent))  # as Python does for a script
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stop:
            main(argv)
    finally:
        sys.path[:], sys.argv = path, line
    assert stop.value.code in (0, None), f"{program} {argv} failed"
    return printed.getvalue()


def check_options(arguments: list[str], help_text: str) -> None:
    for word in arguments:
        option = word.partition("=")[0]
        if re.match(r"--?[a-zA-Z]", option):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text), f"no option {option}"


@pytest.mark.parametrize(
    "command",
    [
        "levljepa demonstrate",
        "levljepa convert a b --overwrit",
        "levljepa evaluate knn --readouts avg",
        "levljepa evaluate linear --model runs/demo",
        "accelerate launch -m levljepa_hf.encoders.command --folder photos",
        "levljepa finetune segmentation --data photos",
        "levljepa pretrain --data photos",
        "python training/finetune.py",
        "python training/pretrain.py --data photos",
        "python -m levljepa_hf.scenes runs/scenes --size 48",
        "accelerate launch --num_processes 2 training/pretrain.py --data photos",
        "accelerate launch --num_processes 2 -m levljepa_hf.cli pretrain --data photos",
        'pip install ".[all]"',
        "make tests",
        "conda install torch",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    with pytest.raises((AssertionError, OSError)):
        check_command(command)
