"""Results of evaluation: mean and spread over runs, the JSON file, the table, and the metadata of the model card."""

import json
import statistics

import pytest
from huggingface_hub import ModelCard

from levljepa_hf import __version__
from levljepa_hf.evaluation.card import check_card, write_to_card
from levljepa_hf.evaluation.results import EvaluationRecord, TaskResult, format_table, save_records

CARD = """---
license: apache-2.0
tags:
- vision
---
# A model

Prose that stays.
"""


def make_record(task="linear-probe", model="runs/mine", dataset="pets", runs=((0.5, 0.9), (0.7, 0.9)), **fields):
    result = TaskResult([dict(zip(("top1", "top5"), run, strict=True)) for run in runs], chance={"top1": 0.1})
    fields = {"dataset_id": f"hub/{dataset}", "splits": {"train": "pets/train", "test": "pets/validation"}} | fields
    return EvaluationRecord(
        task, model, dataset, protocol={"lr": 0.1}, features={}, seeds=[0, 1], result=result, **fields
    )


def test_mean_and_spread_over_the_runs():
    result = make_record(runs=((0.5, 0.9), (0.7, 0.9), (0.9, 0.9))).result
    assert result.metrics == pytest.approx({"top1": 0.7, "top5": 0.9})
    assert result.spread == pytest.approx({"top1": statistics.stdev([0.5, 0.7, 0.9]), "top5": 0})
    assert make_record(runs=((0.5, 0.9),)).result.spread == {}


def test_the_json_file_holds_what_it_takes_to_repeat(tmp_path):
    path = tmp_path / "new" / "results.json"
    save_records([make_record()], path, {"vlm": "a package is missing"})
    content = json.loads(path.read_text())
    assert content["versions"]["levljepa_hf"] == __version__ and {"torch", "timm"} <= content["versions"].keys()
    assert content["left_out"] == {"vlm": "a package is missing"}
    (result,) = content["results"]
    assert result["protocol"] == {"lr": 0.1} and result["seeds"] == [0, 1] and result["dataset_id"] == "hub/pets"
    assert result["metrics"] == pytest.approx({"top1": 0.6, "top5": 0.9}) and len(result["runs"]) == 2
    assert result["chance"] == {"top1": 0.1} and result["spread"]["top1"] == pytest.approx(0.1 * 2**0.5)
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "results.json"
    save_records([make_record()], path)
    before = path.read_text()
    with pytest.raises(TypeError):
        save_records([make_record(splits={"test": object()})], path)
    assert path.read_text() == before and [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_the_table_sets_models_side_by_side():
    records = [
        make_record(),
        make_record(model="random", runs=((0.25, 0.5),)),
        make_record("knn", runs=((0.125, 0.375),)),
        make_record(model="timm:" + "x" * 40, runs=((1, 1),)),
    ]
    first, second = format_table(records).split("\n\n")
    header, top1, top5 = first.splitlines()
    assert header.split()[:5] == ["linear-probe", "on", "pets", "runs/mine", "random"]
    assert header.endswith("..." + "x" * 25 + "  chance")
    assert top1.split() == ["top1", "60.0", "+-", "14.1", "25.0", "100.0", "10.0"]
    assert top5.split() == ["top5", "90.0", "+-", "0.0", "50.0", "100.0"]
    assert second.splitlines()[1].split() == ["top1", "12.5", "10.0"]


def test_figures_on_the_card_replace_their_older_selves_alone(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    write_to_card(tmp_path, [make_record(), make_record("knn"), make_record("zero-shot", dataset="aircraft")])
    write_to_card(tmp_path, [make_record("knn", runs=((0.25, 0.5),))])
    write_to_card(tmp_path, [make_record("knn", runs=((0.25, 0.5),))])
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text.strip() == "# A model\n\nProse that stays." and card.data.tags == ["vision"]
    assert card.data.model_name == tmp_path.name
    found = {(one.dataset_type, one.metric_name): one for one in card.data.eval_results}
    assert len(found) == len(card.data.eval_results) == 6
    assert found["hub/pets", "knn top1"].metric_value == 0.25
    assert found["hub/pets", "linear-probe top1"].metric_value == pytest.approx(0.6)
    assert found["hub/pets", "linear-probe top1"].task_type == "image-classification"
    assert found["hub/aircraft", "zero-shot top1"].task_type == "zero-shot-image-classification"
    assert found["hub/pets", "linear-probe top5"].dataset_split == "validation"
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


def test_figures_of_another_split_stay(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    write_to_card(tmp_path, [make_record()])
    write_to_card(tmp_path, [make_record(splits={"test": "pets/test"})])
    splits = [one.dataset_split for one in ModelCard.load(tmp_path / "README.md").data.eval_results]
    assert sorted(splits) == ["test", "test", "validation", "validation"]


def test_a_checkpoint_without_a_card_is_refused_before_the_work(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model card.*README.md with `levljepa card .* --write`"):
        check_card([tmp_path])
    with pytest.raises(FileNotFoundError, match="no model card"):
        write_to_card(tmp_path, [make_record()])
    with pytest.raises(ValueError, match="belongs to a checkpoint"):
        check_card([])
    with pytest.raises(OSError):
        check_card(["someone/without-a-card"])  # no Hub is within reach here
