"""training/compare.py: what it plans, trains, repeats, refuses and writes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from levljepa_hf import comparison
from test_data import captions, imagefolder  # noqa: F401  (fixtures)

SCRIPTS = Path(__file__).parents[1] / "training"


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


pretrain, compare = _load("pretrain"), _load("compare")

SMALL = {
    "preset": "debug",
    "config": {"projection_dim": 8, "vision_config": {"num_hidden_layers": 1}},
    "per_device_train_batch_size": 4,
    "max_steps": 2,
    "logging_steps": 1,
    "health_steps": 2,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}
OBJECTIVES = {
    "levljepa": None,
    "cosine": {"config": {"prediction_loss_type": "cosine"}},
    "siglip": {"config": {"objective": "siglip"}, "learning_rate": 1e-3},
}


@pytest.fixture
def recipe(tmp_path: Path, imagefolder: Path) -> Path:  # noqa: F811
    path = tmp_path / "recipe.yaml"
    common = {**SMALL, "dataset": str(imagefolder), "cache_dir": str(tmp_path / "cache")}
    path.write_text(yaml.safe_dump({"pretrain": common, "objectives": OBJECTIVES, "seeds": [0]}, sort_keys=False))
    return path


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """The command lines of the trainings, which run in this process."""
    commands: list[list[str]] = []

    def run(command: list[str]) -> subprocess.CompletedProcess:
        commands.append(command)
        if command[-1] == "fails":
            return subprocess.CompletedProcess(command, 143)
        pretrain.main(command[command.index(str(compare.SCRIPT)) + 1 :])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(comparison.subprocess, "run", run)
    return commands


def test_objectives_side_by_side(recipe: Path, started, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "runs"
    argv = ["--recipe", str(recipe), "--output_dir", str(folder), "--eval_split", "validation"]
    compare.main([*argv, "--objectives", "levljepa", "siglip"])
    assert len(started) == 2
    table = (folder / "comparison.md").read_text()
    header, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert header[-2:] == ["levljepa", "siglip"]
    rows = {title.strip(): cells for title, *cells in rows}
    results = [json.loads((folder / f"{name}-0" / "all_results.json").read_text()) for name in ("levljepa", "siglip")]
    recalls = [[f"{100 * one[f'eval_text_to_image_R@{k}']:.1f}" for k in (1, 5, 10)] for one in results]
    assert rows["evaluation: text to image R@1 / 5 / 10, %"] == [" / ".join(one) for one in recalls]
    assert rows["contrastive loss"][0] == "" and float(rows["contrastive loss"][1]) > 0
    assert rows["prediction loss"][1:] in ([], [""]) and " / " in rows["SIGReg, image / text"][0]
    assert "samples a second" in rows and str(recipe) in table and "Command" in table
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert "| evaluation: text to image" in printed

    # What is there is not repeated; another objective and seed are added.
    compare.main([*argv, "--objectives", "levljepa", "siglip"])
    assert len(started) == 2
    compare.main([*argv, "--objectives", "levljepa", "--seeds", "0", "1"])
    assert len(started) == 3 and "levljepa-1" in " ".join(started[-1])
    assert " +- " in (folder / "comparison.md").read_text()
    runs = json.loads((folder / "comparison.json").read_text())["runs"]
    assert [(run["objective"], run["seed"]) for run in runs] == [("levljepa", 0), ("levljepa", 1)]


def test_all_runs_share_what_does_not_differ(recipe: Path, tmp_path: Path) -> None:
    args = compare.argparse.Namespace(recipe=str(recipe), objectives=None, seeds=[3], output_dir=str(tmp_path))
    runs = {run.objective: run for run in compare.plan(compare.read_comparison(args.recipe), args, ["--max_steps", "5", "--config", "projection_dim=16"])}
    assert list(runs) == list(OBJECTIVES)
    parsed = {name: pretrain.parse_args(run.argv()) for name, run in runs.items()}
    configs = {name: pretrain.build_config(groups[0]).to_dict() for name, groups in parsed.items()}
    assert {name: config["objective"] for name, config in configs.items()} == {
        "levljepa": "levljepa", "cosine": "levljepa", "siglip": "siglip"
    }  # fmt: skip
    assert configs["cosine"]["prediction_loss_type"] == "cosine"
    different = {"objective", "prediction_loss_type", "predictor_num_layers"}
    shared = [{k: v for k, v in config.items() if k not in different} for config in configs.values()]
    assert shared[0] == shared[1] == shared[2] and shared[0]["projection_dim"] == 16
    for _, data_args, training in parsed.values():
        assert (training.max_steps, training.seed, data_args.dataset) == (5, 3, parsed["siglip"][1].dataset)
    assert parsed["siglip"][2].learning_rate == 1e-3 != parsed["levljepa"][2].learning_rate


def test_options_of_the_command_line_as_a_recipe_has_them() -> None:
    words = "--streaming --max_steps 3 --dataset=x --crop_scale 0.4 1.0 --config a=1 views.local=2".split()
    assert compare._options(words) == {
        "streaming": True,
        "max_steps": "3",
        "dataset": "x",
        "crop_scale": ["0.4", "1.0"],
        "config": {"a": 1, "views": {"local": 2}},
    }
    with pytest.raises(ValueError, match="'x' stands before any option"):
        compare._options(["x"])


def test_a_run_that_was_stopped_is_gone_on_with(recipe: Path, started, tmp_path: Path) -> None:
    """Several processes are started by torchrun; a run that fails ends the comparison, and says how to go on."""
    argv = ["--recipe", str(recipe), "--output_dir", str(tmp_path / "runs"), "--objectives", "levljepa"]
    args = compare.argparse.Namespace(
        recipe=str(recipe), objectives=["levljepa"], seeds=None, output_dir=str(tmp_path / "runs")
    )
    (run,) = compare.plan(compare.read_comparison(str(recipe)), args, [])
    assert run.results() is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            comparison.subprocess,
            "run",
            lambda command: started.append(command) or subprocess.CompletedProcess([], 143),
        )
        with pytest.raises(RuntimeError, match="levljepa, seed 0, ended with status 143"):
            compare.main([*argv, "--processes", "2"])
    words = " ".join(started[-1])
    assert "torch.distributed.run --standalone --nproc_per_node=2" in words
    assert words.endswith("--resume_from_checkpoint auto")
    compare.main(argv)
    assert run.results()["train_loss"] > 0


def test_a_folder_with_other_runs_is_refused(recipe: Path, started, tmp_path: Path) -> None:
    argv = ["--recipe", str(recipe), "--output_dir", str(tmp_path / "runs"), "--objectives", "levljepa"]
    compare.main(argv)
    with pytest.raises(ValueError, match="other options .max_steps: 2 there, 3 now."):
        compare.main([*argv, "--max_steps", "3"])
    assert len(started) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--objectives", "clip"], "no objective 'clip': it has levljepa, cosine, siglip"),
        (["--config", "objectiv=siglip"], "objectiv is no field"),
        (["--max_stepz", "3"], "max_stepz"),
        (["--processes", "0"], "--processes 0 must be at least 1"),
    ],
)
def test_what_does_not_exist_stops_it_first(recipe: Path, started, more, message, tmp_path, capsys) -> None:
    with pytest.raises((ValueError, SystemExit)) as raised:
        compare.main(["--recipe", str(recipe), "--output_dir", str(tmp_path / "runs"), *more])
    assert message in str(raised.value) + capsys.readouterr().err
    assert not started and not (tmp_path / "runs").exists()


def test_a_recipe_without_objectives(tmp_path: Path) -> None:
    (tmp_path / "none.yaml").write_text("seeds: [0]\n")
    with pytest.raises(ValueError, match="has no `objectives`"):
        compare.read_comparison(str(tmp_path / "none.yaml"))


def test_the_recipes_here_are_whole() -> None:
    for name in ("compare-photos",):
        args = compare.argparse.Namespace(recipe=name, objectives=None, seeds=None, output_dir="runs/x")
        runs = compare.plan(compare.read_comparison(name), args, ["--dataset", "x", "--use_cpu"])
        objectives = {pretrain.build_config(pretrain.parse_args(run.argv())[0]).objective for run in runs}
        assert objectives == {"levljepa", "levljepa_plus", "infonce", "siglip"} and len(runs) == 5
