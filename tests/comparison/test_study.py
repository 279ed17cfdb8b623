"""training/RESULTS.md: its tables are those of the JSON files beside it, which training/compare.py wrote."""

import json
import re
from pathlib import Path

import pytest

import comparison
from comparison import command as compare
from levljepa_hf.training.curves import RunLog

TRAINING = Path(__file__).parents[2] / "training"
RESULTS = (TRAINING / "RESULTS.md").read_text("utf-8")
FILES = sorted((TRAINING / "results").glob("*.json"))


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def test_there_is_a_file_for_each_part_of_the_study():
    assert [path.stem for path in FILES] == ["compare-ablations", "compare-captions", "compare-scenes"]
    assert all(path.stat().st_size < 200_000 for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_table_is_of_the_json(path: Path):
    """And the recipe of today is the one that was run."""
    content, recipe = read(path), compare.read_comparison(path.stem)
    rows = [comparison.Row(**row) for row in content["evaluation"]["rows"]]
    tables = [comparison.format_sweep(sweep, rows) for sweep in recipe.sweeps]
    if path.stem == "compare-scenes":
        tables.append(comparison.format_rows(rows, "levljepa"))
    logs = [RunLog(name, Path(name), entries) for name, entries in content["probes"].items()]
    tables += [comparison.format_health(logs)] if logs else []
    assert tables and all(tables)
    for table in tables:
        assert table in RESULTS
    assert f"\n{content['command']}\n" in RESULTS
    for objective, options in recipe.objectives.items():
        assert objective in content["options"]
        merged = compare.merged(recipe.pretrain, options, content["chosen"].get(objective, {}))
        assert content["options"][objective] == merged


def test_every_row_has_every_objective_and_seed():
    content = read(TRAINING / "results" / "compare-scenes.json")
    assert {len(values) for row in content["evaluation"]["rows"] for values in row["values"].values()} == {3}
    assert {len(row["values"]) for row in content["evaluation"]["rows"]} == {6}
    assert {len(tried) for tried in content["tuning"].values()} == {4}
    for objective, tried in content["tuning"].items():
        best = max(tried, key=lambda point: -1 if point["diverged"] else point["score"])
        assert best["options"] == content["chosen"][objective]
        for point in tried if not any(point["diverged"] for point in tried) else ():
            assert re.search(rf"\| {100 * point['score']:.1f} \|", RESULTS)


def test_every_picture_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", RESULTS):
        if not target.startswith("http"):
            assert (TRAINING / target).exists(), target
