"""A task in one place: what its file declares is all that the rest is told of it."""

import dataclasses
import re
import sys
import textwrap
from pathlib import Path

import pytest

import levljepa_hf.evaluation
from levljepa_hf import cli, sketch
from levljepa_hf.data.catalogue import DATASETS
from levljepa_hf.evaluation import command
from levljepa_hf.evaluation.task import TASKS, declarations, load_split, serves
from levljepa_hf.evaluation.zero_shot import PROMPT_ENSEMBLES
from levljepa_hf.model.modeling_levljepa import READOUTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", TASKS)
def test_a_declaration_says_what_the_file_means(name):
    task, declared = TASKS[name], declarations()[name]
    for field in dataclasses.fields(task):
        value = getattr(task, field.name)
        assert getattr(declared, field.name) == (value.__name__ if callable(value) else value)
    assert getattr(levljepa_hf.evaluation, declared.run) is task.run
    assert getattr(levljepa_hf.evaluation, declared.protocol) is task.protocol


def test_what_takes_long_runs_last():
    assert list(TASKS)[0] == "zero-shot" and list(TASKS)[-1] == "vlm"


@pytest.fixture
def add_task(tmp_path, monkeypatch):
    """Puts a file beside those of the tasks, as far as Python can tell."""
    folder = tmp_path / "evaluation"
    folder.mkdir()
    monkeypatch.setattr(levljepa_hf.evaluation, "__path__", [*levljepa_hf.evaluation.__path__, str(folder)])

    def add(name: str, text: str) -> None:
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
        forget()
        # The command has its parts from when it was imported.
        monkeypatch.setattr(levljepa_hf.evaluation, "command", command)
        monkeypatch.delitem(sys.modules, command.__name__)

    def forget() -> None:
        declarations.cache_clear()
        sketch.read.cache_clear()

    yield add
    monkeypatch.undo()
    forget()


DULL = """
    from dataclasses import dataclass

    from levljepa_hf.evaluation.results import TaskResult
    from levljepa_hf.evaluation.task import Task


    @dataclass(frozen=True)
    class DullProtocol:
        answer: int = 0


    def evaluate_dull(encoder, train, test, protocol, seeds, **_):
        right = [label == protocol.answer for label in test.labels]
        return TaskResult([{"top1": sum(right) / len(right)}])


    TASK = Task(
        help="the share of one class",
        protocol=DullProtocol,
        run=evaluate_dull,
        headlines={"share": ("top1",)},
        seeds=(0,),
        probe="dull",
        position=0,
    )
"""


def test_a_file_is_all_that_a_task_needs(add_task, tmp_path, capsys):
    add_task("dull_guess", DULL)
    assert next(iter(TASKS)) == "dull-guess"
    served = {name for name in DATASETS if serves(name, "dull-guess")}
    assert {"imagenet", "pets", "scenes", "scenes_position"} <= served and not served & {"imagenet9", "vqav2"}
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    assert re.search(r"  dull-guess +[Tt]he share of one class", capsys.readouterr().out)
    labels = load_split("scenes", "dull-guess", "test", config_name="32", max_samples=50).labels
    words = ["--model", "random", "--dataset", "scenes", "--dataset_config", "32", "--max_samples", "50"]
    words += ["--cache_dir", str(tmp_path / "cache"), "--answer", str(labels[0])]
    assert cli.main(["evaluate", "dull-guess", *words]) == 0
    assert re.search(rf"top1 +{100 * labels.count(labels[0]) / 50:.1f}\n", capsys.readouterr().out)


def test_a_declaration_is_read_without_running_the_file(add_task):
    add_task("broken", "raise RuntimeError\n" + textwrap.dedent(DULL))
    assert declarations()["broken"].probe == "dull" and declarations()["broken"].run == "evaluate_dull"
    with pytest.raises(RuntimeError):
        TASKS["broken"]


def test_a_task_that_does_not_exist_is_told_with_the_nearest_that_does():
    with pytest.raises(ValueError, match="Unknown task 'linear_probe'.* Did you mean 'linear-probe'"):
        load_split("scenes", "linear_probe", "test")
    assert "linear" not in TASKS and TASKS.get("linear") is None


def test_the_readme_lists_every_task_and_its_data_sets():
    table = re.search(r"\| task \| what is measured \|.*?\n\n", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)[0]
    listed = {}
    for line in table.strip().splitlines()[2:]:
        names, _, data = line.strip("| ").split(" | ")
        listed |= {name: set(re.findall(r"`(\S+)`", data)) for name in re.findall(r"`(\S+)`", names)}
    drawn = {name for name, entry in DATASETS.items() if entry.generated}
    assert listed == {task: {name for name in DATASETS if serves(name, task)} - drawn for task in TASKS}


def test_help_that_lists_names_lists_those_there_are():
    """It is written out, to be read without importing the names."""
    fields = {name: TASKS[name].protocol.__dataclass_fields__ for name in ("zero-shot", "retrieval")}
    for of_task in fields.values():
        assert ", ".join(READOUTS) in of_task["readouts"].metadata["help"]
    assert ", ".join(PROMPT_ENSEMBLES) in fields["zero-shot"]["prompts"].metadata["help"]
