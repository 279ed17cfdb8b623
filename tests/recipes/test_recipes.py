"""`levljepa recipes`: what is listed is there, says what it is for, and is printed to copy."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from levljepa_hf import cli
from levljepa_hf.evaluation.command import read_protocols
from levljepa_hf.recipes import RECIPES, RecipeLoader, recipe_names, save_recipe


def test_every_recipe_is_listed_with_a_line_of_its_own(capsys) -> None:
    assert cli.main(["recipes"]) == 0
    listed = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert list(listed) == recipe_names() and "demo" in listed
    for name, summary in listed.items():
        assert summary.strip().endswith("."), f"the first line of {name}.yaml is a sentence that says what it is for"


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_shown_as_it_is(name: str, capsys) -> None:
    assert cli.main(["recipes", "show", name]) == 0
    printed = capsys.readouterr().out
    assert printed == (RECIPES / f"{name}.yaml").read_text("utf-8") and yaml.load(printed, RecipeLoader)


def test_protocols_have_names_too() -> None:
    assert read_protocols("evaluate-scenes")["retrieval"].max_captions == 1
    with pytest.raises(FileNotFoundError, match="Did you mean 'evaluate-scenes'?"):
        read_protocols("evaluate-scene")


@dataclass
class Options:
    """Those that name a source, and one that does not."""

    dataset: str = ""
    mixture: list[Any] = field(default_factory=list)
    image_column: str = ""


def test_a_local_folder_is_written_as_a_path(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "data" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    mixture = ["some/set", "data/photos", {"dataset": "data/photos", "weight": 1}, str(tmp_path / "data")]
    path = save_recipe(tmp_path, [Options("data/photos", mixture, "data/photos")])
    assert yaml.safe_load(path.read_text("utf-8")) == {
        "dataset": "./data/photos",
        "mixture": ["some/set", "./data/photos", {"dataset": "./data/photos", "weight": 1}, str(tmp_path / "data")],
        "image_column": "data/photos",
    }
