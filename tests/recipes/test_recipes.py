"""`levljepa recipes`: what is listed is there, says what it is for, and is printed to copy."""

import pytest
import yaml

from levljepa_hf import cli
from levljepa_hf.evaluation.command import read_protocols
from levljepa_hf.recipes import RECIPES, RecipeLoader, recipe_names


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
