"""training/compare.py: what it plans, trains, repeats, refuses and writes."""

import json
import math
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure
from scipy.stats import spearmanr, ttest_ind

import comparison
from compare import main
from comparison import command as compare
from levljepa_hf import LeVLJEPAConfig, LeVLJEPAProcessor, LeVLJEPAVisionModel
from levljepa_hf.recipes import RecipeLoader, recipe_names
from levljepa_hf.training import command as pretrain
from levljepa_hf.training.curves import RunLog
from test_data import captions, imagefolder  # noqa: F401  (fixtures)

SCRIPTS = Path(__file__).parents[2] / "training"

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

    def call(command: list[str]) -> int:
        commands.append(command)
        pretrain.pretrain(*pretrain.parse_args(command[command.index(str(compare.SCRIPT)) + 1 :]))
        return 0

    monkeypatch.setattr(comparison.runs, "_call", call)
    return commands


def test_objectives_side_by_side(recipe: Path, started, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "runs"
    argv = ["--recipe", str(recipe), "--output_dir", str(folder), "--eval_split", "validation"]
    main([*argv, "--objectives", "levljepa", "siglip"])
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
    main([*argv, "--objectives", "levljepa", "siglip"])
    assert len(started) == 2
    main([*argv, "--objectives", "levljepa", "--seeds", "0", "1"])
    assert len(started) == 3 and "levljepa-1" in " ".join(started[-1])
    assert " +- " in (folder / "comparison.md").read_text()
    runs = json.loads((folder / "comparison.json").read_text())["runs"]
    assert [(run["objective"], run["seed"]) for run in runs] == [("levljepa", 0), ("levljepa", 1)]


def test_all_runs_share_what_does_not_differ(recipe: Path, tmp_path: Path) -> None:
    args = SimpleNamespace(recipe=str(recipe), objectives=None, seeds=[3], output_dir=str(tmp_path))
    words = ["--max_steps", "5", "--config", "projection_dim=16"]
    runs = {run.objective: run for run in compare.plan(compare.read_comparison(str(recipe)), args, words)}
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
    args = SimpleNamespace(recipe=str(recipe), objectives=["levljepa"], seeds=None, output_dir=str(tmp_path / "runs"))
    (run,) = compare.plan(compare.read_comparison(str(recipe)), args, [])
    assert run.results() is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison.runs, "_call", lambda command: started.append(command) or 143)
        with pytest.raises(RuntimeError, match="levljepa, seed 0, ended with status 143"):
            main([*argv, "--processes", "2"])
    words = " ".join(started[-1])
    assert "torch.distributed.run --standalone --nproc_per_node=2" in words
    assert words.endswith("--resume_from_checkpoint auto")
    main(argv)
    assert run.results()["train_loss"] > 0


def test_what_ends_the_comparison_ends_the_training() -> None:
    """By SIGTERM, at which a training writes a checkpoint."""

    def stop(*_: Any) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGALRM, stop)
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); time.sleep(60)"
    processes: list[subprocess.Popen] = []
    with pytest.MonkeyPatch.context() as patch:
        popen = subprocess.Popen
        patch.setattr(
            comparison.runs.subprocess, "Popen", lambda command: processes.append(popen(command)) or processes[0]
        )
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        try:
            with pytest.raises(SystemExit):
                comparison.runs._call([sys.executable, "-c", code])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert processes[0].returncode in (7, -signal.SIGTERM)
    assert comparison.runs._call([sys.executable, "-c", "raise SystemExit(3)"]) == 3


def test_a_folder_with_other_runs_is_refused(recipe: Path, started, tmp_path: Path) -> None:
    argv = ["--recipe", str(recipe), "--output_dir", str(tmp_path / "runs"), "--objectives", "levljepa"]
    main(argv)
    with pytest.raises(ValueError, match="other options .max_steps: 2 there, 3 now."):
        main([*argv, "--max_steps", "3"])
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
        main(["--recipe", str(recipe), "--output_dir", str(tmp_path / "runs"), *more])
    assert message in str(raised.value) + capsys.readouterr().err
    assert not started and not (tmp_path / "runs").exists()


def test_a_recipe_without_objectives(tmp_path: Path) -> None:
    (tmp_path / "none.yaml").write_text("seeds: [0]\n")
    with pytest.raises(ValueError, match="has no `objectives`"):
        compare.read_comparison(str(tmp_path / "none.yaml"))


def test_a_split_of_the_recipe_below_counts(recipe: Path, tmp_path: Path) -> None:
    """A run is not at its end before its evaluation, wherever that was asked for."""
    change(recipe, pretrain={"recipe": "demo", "dataset": str(tmp_path), "use_cpu": True})
    args = SimpleNamespace(recipe=str(recipe), objectives=["siglip"], seeds=None, output_dir=str(tmp_path))
    (run,) = compare.plan(compare.read_comparison(str(recipe)), args, [])
    run.folder.mkdir()
    (run.folder / "all_results.json").write_text('{"train_loss": 1}')
    assert run.results() is None
    (run.folder / "all_results.json").write_text('{"train_loss": 1, "eval_loss": 2}')
    assert run.results() == {"train_loss": 1, "eval_loss": 2}


SWEPT = ("compare-ablations", "compare-captions")
COMPARED = {  # by the paper's protocols; a task that comes later is in a recipe when it has been run
    *("zero-shot", "retrieval", "linear-probe", "knn", "attentive-probe", "background", "segmentation", "vlm")
}
OBJECTIVES_HERE = ["levljepa", "levljepa-cosine", "levljepa_plus", "infonce", "siglip"]


def _each(one: str | dict[str, str]) -> list[str]:
    return [one] if isinstance(one, str) else list(one.values())


@pytest.mark.parametrize("name", [name for name in recipe_names(compare.RECIPES) if name.startswith("compare-")])
def test_the_recipes_here_are_whole(name: str, tmp_path: Path, monkeypatch) -> None:
    for folder in ("scenes-64", "scenes-64-class", "scenes-64-sizes"):  # the data that recipes name
        (tmp_path / "runs" / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    args = SimpleNamespace(recipe=name, objectives=None, seeds=None, output_dir="runs/x")
    words = ["--dataset", "x", "--eval_dataset", "y", "--eval_split", "validation", "--use_cpu", "--bf16", "false"]
    read = compare.read_comparison(name)
    runs, tuning = compare.plan(read, args, words), compare.plan_tuning(read, args, words)
    configs = [pretrain.build_config(pretrain.parse_args(run.argv())[0]) for run in runs]
    for config in configs if "scenes" in name or name in SWEPT or name == "compare-quick" else ():
        assert (config.vision_config.image_size // config.vision_config.patch_size) ** 2 == 64
    if name in SWEPT:
        drawn = {one for sweep in read.sweeps for line in sweep.series.values() for one in _each(line)}
        assert drawn == set(read.objectives) and not tuning
        different = {
            json.dumps(config.to_dict(), sort_keys=True)
            + str(run.options.get("dataset"))
            + str(run.options["per_device_train_batch_size"] if "per_device_train_batch_size" in run.options else "")
            for config, run in zip(configs, runs, strict=True)
        }
        assert len(different) == len(runs)
        return
    assert {config.objective for config in configs} == {"levljepa", "levljepa_plus", "infonce", "siglip"}
    assert list(read.objectives) == OBJECTIVES_HERE and len(runs) == 5 * len(read.seeds)
    tasks = [task for one in read.evaluations for task in one.tasks]
    if name == "compare-photos":
        assert not tasks and not tuning
    elif name == "compare-quick":
        assert not tuning and set(tasks) == COMPARED - {"vlm"} and len(read.seeds) == 1
    else:
        assert set(tasks) == COMPARED and len(read.seeds) == 3
        assert {len(tried) for tried in tuning.values()} == {4} and list(tuning) == OBJECTIVES_HERE


# ------------------------------------------------------------------------------------------------ tuned and evaluated

EVALUATION = [
    {
        "dataset": "scenes",
        "dataset_config": "32",
        "max_samples": 20,
        "max_train_samples": 30,
        "tasks": ["zero-shot", "knn"],
        "protocols": {"knn": {"ks": [10]}},
    }
]
GRID = {name: [{"learning_rate": 1e-5}, {"learning_rate": 1e-3, "config": {"logit_scale": 10}}] for name in OBJECTIVES}
TUNING = {"metrics": ["text_to_image_R@1"], "pretrain": {"max_steps": 1}, "grid": GRID}


@pytest.fixture
def no_curves(monkeypatch) -> None:
    """Without the curves, which take long to draw."""
    monkeypatch.setattr(comparison.report, "plot_runs", lambda runs: Figure())


def change(recipe: Path, **keys: Any) -> Path:
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), **keys}, sort_keys=False))
    return recipe


@pytest.fixture
def evaluated(recipe: Path, tmp_path: Path) -> Path:
    """The recipe with an evaluation of two tasks."""
    return change(recipe, evaluation=[EVALUATION[0] | {"cache_dir": str(tmp_path / "features")}])


def test_every_model_is_evaluated_once(evaluated: Path, no_curves, started, tmp_path: Path, monkeypatch) -> None:
    measured: list[tuple[str, str]] = []

    def evaluate(arguments, tasks, protocols):
        measured.append((Path(arguments.model[0]).name, *tasks))
        if measured[-1] == ("siglip-0", "knn") and len(measured) == 8:
            raise KeyboardInterrupt
        return real(arguments, tasks, protocols)

    real = comparison.evaluations.evaluate
    monkeypatch.setattr(comparison.evaluations, "evaluate", evaluate)
    change(evaluated, paper={"source": "a page", "figures": {"zero-shot on scenes (32), top-1": {"siglip": 12.3}}})
    folder = tmp_path / "runs"
    argv = ["--recipe", str(evaluated), "--output_dir", str(folder), "--objectives", "levljepa", "siglip"]
    argv += ["--peers", "random:debug"]
    with pytest.raises(KeyboardInterrupt):  # a killed call goes on where it was
        main(argv)
    assert len(started) == 2 and not list(folder.glob(".*"))
    table = main(argv)
    names = ("random-0", "random:debug", "levljepa-0", "siglip-0")
    assert sorted(measured) == sorted([(n, t) for n in names for t in ("zero-shot", "knn")] + [("siglip-0", "knn")])
    assert main(argv) == table and len(measured) == 9 and len(started) == 2

    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()]
    assert rows[0] == ["%", "levljepa", "siglip", "random", "random:debug", "chance"]
    kept = json.loads((folder / "levljepa-0" / "evaluation.json").read_text())["results"]
    assert rows[2][:2] == [
        "zero-shot on scenes (32), top-1",
        f"{100 * kept['zero-shot on scenes (32)']['metrics']['avg_top1']:.1f}",
    ]
    assert rows[3][2] == "12.30" and rows[4][0] == "knn on scenes (32), top-1" and rows[2][-1] == "1.7"
    assert kept["knn on scenes (32)"]["settings"]["protocol"]["ks"] == [10]
    written = (folder / "comparison.md").read_text()
    for text in (
        "a page",
        "One seed",
        "torch ",
        "levljepa evaluate knn",
        "--ks 10",
        "training/pretrain.py",
        "--peers",
    ):
        assert text in written
    content = json.loads((folder / "comparison.json").read_text())
    assert set(content["evaluation"]["metrics"]) == {"levljepa", "siglip", "random", "random:debug"}
    assert (folder / "comparison.json").stat().st_size < 20_000
    for picture in ("comparison.png", "curves.png"):
        assert (folder / picture).read_bytes()[:4] == b"\x89PNG"

    # What is measured otherwise is measured again; what is trained stays.
    entry = yaml.safe_load(evaluated.read_text())["evaluation"][0] | {"protocols": {"knn": {"ks": [5]}}}
    change(evaluated, evaluation=[entry])
    main(argv)
    assert measured[9:] == [(name, "knn") for name in names] and len(started) == 2


def test_random_weights_are_those_of_the_seed(evaluated: Path, tmp_path: Path) -> None:
    read = compare.read_comparison(str(evaluated))
    digests = {}
    for seed, folder in ((0, "a"), (0, "b"), (1, "c")):
        place = compare.random_model(read, [], seed, tmp_path / folder)
        digests[folder] = (place / "model.safetensors").read_bytes()
    assert digests["a"] == digests["b"] != digests["c"]
    with pytest.raises(ValueError, match="other options"):
        compare.random_model(read, ["--config", "projection_dim=16"], 0, tmp_path / "a")


def test_random_weights_of_two_calls_at_a_time(evaluated: Path, tmp_path: Path, monkeypatch) -> None:
    read, real = compare.read_comparison(str(evaluated)), compare.set_seed

    def faster(seed: int) -> None:
        monkeypatch.setattr(compare, "set_seed", real)
        compare.random_model(read, [], seed, tmp_path / "random-0")
        real(seed)

    monkeypatch.setattr(compare, "set_seed", faster)
    folder = compare.random_model(read, [], 0, tmp_path / "random-0")
    assert (folder / "model.safetensors").is_file() and not list(tmp_path.glob(".random*"))


def test_tuning_chooses_on_validation(recipe: Path, no_curves, started, tmp_path: Path, monkeypatch) -> None:
    change(recipe, tuning=TUNING)
    scores = {"levljepa-0": 0.2, "levljepa-1": 0.3, "siglip-0": 0.4, "siglip-1": 0.4}
    monkeypatch.setattr(compare, "score", lambda run, metrics: scores[run.folder.name])
    folder = tmp_path / "runs"
    argv = ["--recipe", str(recipe), "--output_dir", str(folder), "--objectives", "levljepa", "siglip"]
    with pytest.raises(ValueError, match="give --eval_split, and no test data"):
        main(argv)
    assert not started
    argv += ["--eval_split", "validation"]
    main(argv)
    assert len(started) == 6
    options = {p.name: json.loads((p / "compared_as.json").read_text()) for p in folder.glob("*-0")}
    assert options["levljepa-0"]["learning_rate"] == 1e-3 and options["levljepa-0"]["config"]["logit_scale"] == 10
    assert options["levljepa-0"]["config"]["projection_dim"] == 8  # beside what holds for all
    assert options["siglip-0"]["learning_rate"] == 1e-5  # the first of equals
    assert (options["levljepa-0"]["max_steps"], options["siglip-0"]["eval_split"]) == (2, "validation")
    tried = json.loads((folder / "tuning" / "siglip-1" / "compared_as.json").read_text())
    assert (tried["max_steps"], tried["learning_rate"]) == (1, 1e-3)
    written = (folder / "comparison.md").read_text()
    assert "**learning_rate=0.001 logit_scale=10**" in written and "text_to_image_R@1" in written
    assert json.loads((folder / "comparison.json").read_text())["chosen"]["siglip"] == {"learning_rate": 1e-5}
    main(argv)
    assert len(started) == 6


def test_a_point_that_diverges_is_not_chosen(recipe: Path, no_curves, started, tmp_path: Path, monkeypatch) -> None:
    """It is not tried again either; a run of the table that diverges is an error with the Trainer's message."""
    real = pretrain.LeVLJEPATrainer.train

    def train(self, **options: Any) -> Any:
        if self.args.learning_rate == 1e-3:
            raise FloatingPointError("Not finite since step 1: loss.")
        return real(self, **options)

    def call(command: list[str]) -> int:
        started.append(command)
        try:
            pretrain.pretrain(*pretrain.parse_args(command[command.index(str(compare.SCRIPT)) + 1 :]))
        except FloatingPointError:
            return 1
        return 0

    monkeypatch.setattr(pretrain.LeVLJEPATrainer, "train", train)
    monkeypatch.setattr(comparison.runs, "_call", call)
    monkeypatch.setattr(
        compare, "score", lambda run, metrics: 0.1 if not run.diverged() else comparison.score(run, ())
    )
    change(recipe, tuning=TUNING)
    folder = tmp_path / "runs"
    argv = ["--recipe", str(recipe), "--output_dir", str(folder), "--eval_split", "validation"]
    main([*argv, "--objectives", "levljepa"])
    written = (folder / "comparison.md").read_text()
    assert "| learning_rate=0.001 logit_scale=10 | diverged |" in written and "**learning_rate=1e-05**" in written
    assert json.loads((folder / "comparison.json").read_text())["tuning"]["levljepa"][1]["diverged"] is True
    assert (folder / "tuning" / "levljepa-1" / "diverged.txt").read_text() == "Not finite since step 1: loss.\n"
    main([*argv, "--objectives", "levljepa"])
    assert len(started) == 3
    change(recipe, tuning=TUNING | {"grid": {name: [{"learning_rate": 1e-3}] for name in OBJECTIVES}})
    with pytest.raises(ValueError, match="All 1 points that cosine tried diverged"):
        main([*argv, "--objectives", "cosine"])
    change(recipe, tuning=None)
    # A run of the table does not stop the others either, and is not repeated.
    main([*argv, "--objectives", "siglip", "cosine", "--seeds", "0", "1"])
    count = len(started)
    written = (folder / "comparison.md").read_text()
    assert "Not in the tables: siglip, seed 1, diverged." in written and "| | cosine |" in written
    main([*argv, "--objectives", "siglip", "cosine", "--seeds", "0", "1"])
    assert len(started) == count
    args = SimpleNamespace(objectives=["siglip"], seeds=[0], output_dir=str(folder))
    (run,) = compare.plan(compare.read_comparison(str(recipe)), args, ["--eval_split", "validation"])
    with pytest.raises(FloatingPointError, match="siglip, seed 0: Not finite since step 1: loss"):
        run.train(compare.SCRIPT, 1)
    monkeypatch.setattr(comparison.runs, "_call", lambda command: 143)
    with pytest.raises(RuntimeError, match="ended with status 143"):  # what was is not taken for what is
        run.train(compare.SCRIPT, 1)


def test_a_score_is_the_mean_of_its_metrics(tmp_path: Path) -> None:
    (tmp_path / "all_results.json").write_text(json.dumps({"eval_a": 0.2, "eval_b": 0.4, "train_loss": 7}))
    assert comparison.score(comparison.Run("x", 0, tmp_path, {}), ["a", "b"]) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seedz": [0]}, "seedz. Did you mean 'seeds'"),
        ({"seeds": []}, "has no `seeds`"),
        ({"evaluation": {"tasks": ["knn"]}}, "must be a list of mappings"),
        ({"evaluation": [{"dataset": "scenes"}]}, "no list of tasks"),
        ({"evaluation": [{"tasks": ["kn"]}]}, "'kn' is no task. Did you mean 'knn'"),
        ({"evaluation": [{"tasks": ["knn"], "datset": "scenes"}]}, "'datset' is no option.* Did you mean 'dataset'"),
        ({"evaluation": [{"tasks": ["knn"], "model": "x"}]}, "'model' is no option"),
        ({"evaluation": [{"tasks": ["knn"], "protocols": {"knn": {"k": 1}}}]}, "'k' is no constant of knn"),
        ({"evaluation": [{"tasks": ["knn"], "protocols": {"vlm": {}}}]}, "'vlm' is no task of this entry"),
        ({"evaluation": [{"tasks": ["knn"], "max_samples": "few"}]}, "evaluation: argument --max_samples"),
        ({"evaluation": [{"tasks": ["knn"]}, {"tasks": ["knn"]}]}, "has knn on scenes twice"),
        ({"tuning": TUNING | {"metric": "x"}}, "'metric' is no key of `tuning`. Did you mean 'metrics'"),
        ({"tuning": TUNING | {"metrics": []}}, "no `metrics`"),
        ({"tuning": TUNING | {"metrics": ["loss"]}}, "'loss' is no recall"),
        ({"tuning": TUNING | {"grid": GRID | {"siglip": [{}]}}}, "as many points .* levljepa 2, cosine 2, siglip 1"),
        ({"tuning": TUNING | {"grid": {}}}, "levljepa 0"),
        ({"tuning": TUNING | {"grid": GRID | {"clip": [{}]}}}, "'clip' is no objective"),
        ({"paper": {"sources": "x"}}, "'sources' is no key of `paper`"),
        (
            {"paper": {"figures": {"knn on moon, top-1": {}}}, "evaluation": EVALUATION},
            "no row.* Did you mean 'knn on sc",
        ),
        (
            {"paper": {"figures": {"knn on scenes (32), top-1": {"clip": 1}}}, "evaluation": EVALUATION},
            "'clip' is no obj",
        ),
    ],
)
def test_a_recipe_that_is_wrong_says_where(recipe: Path, keys: dict, message: str) -> None:
    change(recipe, **keys)
    with pytest.raises(ValueError, match=message):
        compare.read_comparison(str(recipe))


def test_a_point_that_does_not_exist_stops_it_first(recipe: Path, started, tmp_path: Path, capsys) -> None:
    change(recipe, tuning=TUNING | {"grid": GRID | {"siglip": [{"learning_rat": 1}, {}]}})
    with pytest.raises((SystemExit, ValueError)) as raised:
        main(["--recipe", str(recipe), "--output_dir", str(tmp_path / "runs"), "--eval_split", "validation"])
    assert "learning_rat" in str(raised.value) + capsys.readouterr().err and not started


def test_a_peer_without_texts(evaluated: Path, no_curves, started, tmp_path: Path, monkeypatch) -> None:
    """Its name is an error before any training; a task that it does not serve is noted, once."""
    argv = ["--recipe", str(evaluated), "--output_dir", str(tmp_path / "runs"), "--objectives", "levljepa"]
    with pytest.raises(ValueError, match="no known kind"):
        main([*argv, "--peers", "tim:vit_tiny"])
    assert not started
    tower = str(tmp_path / "tower")
    LeVLJEPAVisionModel(LeVLJEPAConfig.from_preset("debug").vision_config).save_pretrained(tower)
    LeVLJEPAProcessor.from_image_size(32).save_pretrained(tower)
    table = main([*argv, "--peers", tower])
    row = next(line for line in table.splitlines() if line.startswith("| zero-shot"))
    assert row.split("|")[4].strip() == "" and "| knn on scenes (32), top-1 | " in table
    assert "lacks figures" in (tmp_path / "runs" / "comparison.md").read_text()
    monkeypatch.setattr(comparison.evaluations, "evaluate", None)
    assert main([*argv, "--peers", tower]) == table
    with pytest.raises(ValueError, match="--peers are for recipes with `evaluation`"):
        main(["--recipe", "compare-photos", "--dataset", "x", "--peers", tower])


def test_a_difference_is_what_exceeds_the_spread() -> None:
    rng = random.Random(0)
    seen = set()
    for shift in [0, 1, 2, 3] * 100:
        ours, theirs = ([rng.gauss(mean, width) for _ in range(n)] for mean, width, n in ((0, 1, 2), (shift, 0.5, 3)))
        expected = bool(ttest_ind(ours, theirs, equal_var=False).pvalue < 0.05)
        assert comparison.differs(ours, theirs) is comparison.differs(theirs, ours) is expected
        seen.add(expected)
    assert seen == {True, False}
    assert not comparison.differs([0.1], [0.9]) and not comparison.differs([0.1, 0.2], [0.9])
    assert comparison.differs([0.1, 0.1], [0.2, 0.2]) and not comparison.differs([0.1, 0.1], [0.1, 0.1])


def test_means_spreads_stars_and_the_paper_in_a_table() -> None:
    far, near = [0.5, 0.52, 0.51], [0.21, 0.3, 0.1]
    rows = [
        comparison.Row("a, b", {"levljepa": [0.2, 0.22, 0.21], "x": far, "y": near}, 0.1, {"x": 47.32}),
        comparison.Row("c", {"levljepa": [0.2, 0.3, 0.4], "random": [0.1]}),
    ]
    assert comparison.format_rows(rows, "levljepa").splitlines() == [
        "| % | levljepa | x | y | random | chance |",
        "|---|---|---|---|---|---|",
        "| a, b | 21.0 +- 1.0 | 51.0 +- 1.0 \\* | 20.3 +- 10.0 |  | 10.0 |",
        "| *the same in the paper* |  | 47.32 |  |  | |",
        "| c | 30.0 +- 10.0 |  |  | 10.0 |  |",
    ]
    figure = comparison.plot_rows(rows)
    panel, other = figure.axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["levljepa", "x", "y"]
    points = [one.lines[0].get_ydata()[0] for one in panel.containers]
    assert points == pytest.approx([21, 51, 20.33], abs=0.01)
    assert [line.get_label() for line in other.get_lines() if line.get_linestyle() == "--"] == ["random"]


def test_only_some_tasks_now(evaluated: Path, no_curves, started, tmp_path: Path) -> None:
    argv = ["--recipe", str(evaluated), "--output_dir", str(tmp_path / "runs"), "--objectives", "levljepa"]
    with pytest.raises(ValueError, match="'segmentation' is no task of this recipe"):
        main([*argv, "--tasks", "segmentation"])
    assert not started
    first = main([*argv, "--tasks", "zero-shot"])
    assert "| zero-shot on scenes (32), top-1 |" in first and "knn" not in first
    both = main(argv)
    assert "| knn on scenes (32), top-1 |" in both and len(started) == 1
    assert first.splitlines()[2] == both.splitlines()[2]
    assert main([*argv, "--tasks", "knn"]) == both  # what was measured stays
    for file in (tmp_path / "runs").glob("*/evaluation.json"):
        content = json.loads(file.read_text())
        content["results"] = {key: one for key, one in content["results"].items() if "zero" in key}
        file.write_text(json.dumps(content))
    assert main([*argv, "--tasks", "knn"]) == both  # also where only the other is measured again


# ------------------------------------------------------------------------------------------------ sweeps and health

TITLES = ("knn on scenes (32), top-1", "zero-shot on scenes (32), top-1")
SWEEPS = {
    "weight": {"axis": "weight", "rows": [TITLES[0]], "series": {"ours": {0: "none", 0.5: "half", 1: "levljepa"}}},
    "task": {
        "axis": "task",
        "rows": {"accuracy": {"kNN": TITLES[0], "zero-shot": TITLES[1]}},
        "series": {"ours": "levljepa", "theirs": "siglip"},
    },
}


def test_a_sweep_as_table_and_picture() -> None:
    names = ["none", "half", "levljepa", "siglip"]
    weight, task = comparison.read_sweeps(SWEEPS, names, TITLES)
    rows = [
        comparison.Row(TITLES[0], {"none": [0.1], "levljepa": [0.3, 0.5], "siglip": [0.2]}, chance=0.02),
        comparison.Row(TITLES[1], {"levljepa": [0.6]}),
    ]
    assert comparison.format_sweep(weight, rows).splitlines() == [
        "| weight | 0 | 0.5 | 1 |",
        "|---|---|---|---|",
        "| knn on scenes (32), top-1: ours | 10.0 |  | 40.0 +- 14.1 |",
    ]
    assert comparison.format_sweep(task, rows).splitlines()[2:] == [
        "| accuracy: ours | 40.0 +- 14.1 | 60.0 |",
        "| accuracy: theirs | 20.0 |  |",
    ]
    assert comparison.format_sweep(weight, rows[1:]) == ""
    both = {"ours": {0: "none", 1: "levljepa"}, "theirs": {2: "siglip", 1: "none"}}
    (weights,) = comparison.read_sweeps({"w": SWEEPS["weight"] | {"series": both}}, names, TITLES)
    assert weights.places() == ["0", "1", "2"]
    assert comparison.format_sweep(weights, rows).splitlines()[2:] == [
        "| knn on scenes (32), top-1: ours | 10.0 | 40.0 +- 14.1 |  |",
        "| knn on scenes (32), top-1: theirs |  | 10.0 | 20.0 |",
    ]
    (panel,) = comparison.plot_sweep(weight, rows).axes
    line = panel.containers[0].lines[0]
    assert list(line.get_xdata()) == [0, 2] and list(line.get_ydata()) == pytest.approx([10, 40])
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0", "0.5", "1"]
    (panel,) = comparison.plot_sweep(task, rows).axes
    assert [one.get_label() for one in panel.containers] == ["ours", "theirs"] and panel.get_xlabel() == "task"


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ([], "must be a mapping"),
        ({"w": {"axes": "x"}}, "'axes' is no key of a sweep .w.. Did you mean 'axis'"),
        ({"w": {"axis": "x", "rows": [TITLES[0]]}}, "sweep w has no series"),
        ({"w": SWEEPS["weight"] | {"series": {"a": {1: "clip"}}}}, "'clip' is no objective of this recipe"),
        ({"w": SWEEPS["weight"] | {"rows": ["knn on moon"]}}, "'knn on moon' is no row of this comparison"),
        ({"w": SWEEPS["weight"] | {"series": {"a": "levljepa"}}}, "varies nothing"),
        ({"w": SWEEPS["weight"] | {"series": ["levljepa"]}}, "`series` must be a mapping"),
        ({"w": SWEEPS["weight"] | {"rows": TITLES[0]}}, "`rows` a list of titles"),
        ({"a/b": SWEEPS["weight"]}, "called 'a/b', and so is its picture"),
    ],
)
def test_a_sweep_that_is_wrong_says_where(sweep: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        comparison.read_sweeps(sweep, ["none", "half", "levljepa", "siglip"], TITLES)


def test_sweeps_of_a_recipe_are_drawn(evaluated: Path, no_curves, started, tmp_path: Path) -> None:
    sweeps = {
        "type": {"axis": "distance", "rows": [TITLES[0]], "series": {"ours": {"mse": "levljepa", "cos": "cosine"}}}
    }
    change(evaluated, sweeps=sweeps)
    argv = ["--recipe", str(evaluated), "--output_dir", str(tmp_path / "runs"), "--objectives", "levljepa", "cosine"]
    main([*argv, "--tasks", "zero-shot"])
    assert not list((tmp_path / "runs").glob("sweep-*"))
    main(argv)
    written = (tmp_path / "runs" / "comparison.md").read_text()
    kept = [json.loads((tmp_path / "runs" / f"{n}-0" / "evaluation.json").read_text()) for n in ("levljepa", "cosine")]
    cells = " | ".join(f"{100 * one['results']['knn on scenes (32)']['metrics']['k10_top1']:.1f}" for one in kept)
    assert f"## Sweep: type\n\n| distance | mse | cos |\n|---|---|---|\n| {TITLES[0]}: ours | {cells} |" in written
    assert (tmp_path / "runs" / "sweep-type.png").read_bytes()[:4] == b"\x89PNG"


def _log(name: str, ranks: list[float], accuracies: list[float], figure: str = "effective_rank_vision") -> RunLog:
    """Lines of health at every step, probes at every second."""
    lines = [{"step": step, figure: rank} for step, rank in enumerate(ranks, start=1)]
    lines += [{"step": 2 * i, "probe_knn_k20_top1": value} for i, value in enumerate(accuracies, start=1)]
    return RunLog(name, Path(name), sorted(lines, key=lambda line: line["step"]))


def test_which_figure_tells_the_result() -> None:
    rng = random.Random(3)
    runs = [_log(f"run-{i}", [rng.random() for _ in range(12)], [rng.random() for _ in range(6)]) for i in range(8)]
    paths = comparison.trajectories(runs, "effective_rank_vision", "probe_knn_*top1")
    assert [path.steps for path in paths] == [[2, 4, 6, 8, 10, 12]] * 8
    ranks = [run.series("effective_rank_vision")[1] for run in runs]
    results = [run.series("probe_knn_k20_top1")[1] for run in runs]
    along = [spearmanr(rank[1::2], result).statistic for rank, result in zip(ranks, results, strict=True)]
    ends = [result[-1] for result in results]
    found = comparison.rank_correlations(paths)
    assert found[0] == pytest.approx(sum(along) / 8)
    assert found[1] == pytest.approx(spearmanr([rank[-1] for rank in ranks], ends).statistic)
    assert found[2] == pytest.approx(spearmanr([rank[3] for rank in ranks], ends).statistic)  # step 4 of 12
    table = comparison.format_health(runs)
    cells = " / ".join(f"{value:+.2f}" for value in found)
    assert f"| effective rank, image | - / - / - | {cells} | 8 |" in table and "SIGReg" not in table
    assert comparison.rank_correlations(paths[:3])[1:] == (None, None)  # too few runs
    short = comparison.probed([*runs, _log("no probes", [1.0, 2.0], [])])
    assert comparison.format_health(short) == table
    assert short[0].entries[1] == {
        "step": 4, "effective_rank_vision": ranks[0][3], "probe_knn_k20_top1": results[0][1]
    } and len(short) == 8  # fmt: skip
    figure = comparison.plot_health(runs, figures=["effective_rank_vision"])
    line, end = figure.axes[0].get_lines()[:2]
    assert list(line.get_xdata()) == ranks[0][1::2] and list(line.get_ydata()) == [100 * v for v in results[0]]
    assert list(end.get_xdata()) == [ranks[0][-1]]


def test_the_ticks_of_a_logarithmic_axis_do_not_overlap() -> None:
    runs = [_log(str(i), [1.2 * (i + 1), 60.0 * (i + 1)] * 2, [0.1, 0.2], figure="sigreg_text") for i in range(3)]
    figure = comparison.plot_health(runs, figures=["sigreg_text"])
    figure.canvas.draw()
    axis = figure.axes[0].xaxis
    boxes = [one.get_window_extent() for one in axis.get_majorticklabels() if one.get_text()]
    assert axis.get_scale() == "log" and len(boxes) > 2
    assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:], strict=False))
    assert not any(one.get_text() for one in axis.get_minorticklabels())


def test_health_without_probes_or_change() -> None:
    assert comparison.format_health([]) == ""
    assert comparison.format_health([_log("a", [1, 2, 3], [])]) == ""
    flat = [_log(str(i), [1.0] * 6, [0.1, 0.2, 0.3]) for i in range(5)]
    assert comparison.format_health(flat) == ""
    late = _log("late", [math.nan, math.nan, 2.0, 3.0], [0.1, 0.2])
    (path,) = comparison.trajectories([late], "effective_rank_vision", "probe_knn_*top1")
    assert math.isnan(path.figures[0]) and path.figures[1] == 3.0


def test_a_run_shorter_than_its_logging_steps(recipe: Path, started, tmp_path: Path) -> None:
    argv = ["--recipe", str(recipe), "--output_dir", str(tmp_path / "runs"), "--objectives", "levljepa"]
    main([*argv, "--logging_steps", "50", "--health_steps", "50"])
    assert "| samples a second |" in (tmp_path / "runs" / "comparison.md").read_text()


def test_figures_are_rounded() -> None:
    assert comparison.rounded({"a": [0.123456789, 1234567.0, 3, "x"], "b": True}) == {
        "a": [0.12346, 1234600.0, 3, "x"],
        "b": True,
    }


@pytest.mark.slow
def test_a_whole_comparison_on_scenes(tmp_path: Path) -> None:
    """`compare-quick` in small, by its commands: scenes on disk, three objectives, two seeds, every task but `vlm`."""
    recipe = yaml.load((compare.RECIPES / "compare-quick.yaml").read_text(), RecipeLoader)
    recipe["pretrain"] |= {
        "max_steps": 3,
        "logging_steps": 1,
        "per_device_train_batch_size": 16,
        "warmup_steps": 1,
        "disable_tqdm": True,
    }
    recipe["pretrain"] |= {"dataset": str(tmp_path / "scenes"), "use_cpu": True, "max_eval_samples": 20}
    recipe["evaluation"][0] |= {"max_samples": 30, "max_train_samples": 60, "cache_dir": str(tmp_path / "features")}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(recipe | {"seeds": [0, 1]}, sort_keys=False))
    sizes = ["--num-scenes", "64", "20", "20", "--image-size", "64", "--seed", "1"]
    subprocess.run([sys.executable, "-m", "levljepa_hf.scenes", str(tmp_path / "scenes"), *sizes], check=True)
    objectives = ["levljepa", "levljepa_plus", "siglip"]
    command = [sys.executable, str(SCRIPTS / "compare.py"), "--recipe", str(path)]
    command += ["--output_dir", str(tmp_path / "runs"), "--objectives", *objectives]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "runs" / "comparison.json").read_text())
    tasks = COMPARED - {"vlm"}
    assert {key.partition(" on ")[0] for key in content["evaluation"]["settings"]} == tasks
    for row in content["evaluation"]["rows"]:
        assert {name: len(values) for name, values in row["values"].items()} == dict.fromkeys(
            [*objectives, "random"], 2
        )
    assert (tmp_path / "runs" / "comparison.json").stat().st_size < 200_000
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and "probe" not in again.stderr and "eval_loss" not in again.stdout


def test_what_a_recipe_leaves_empty_is_left_out() -> None:
    run = compare.Run("levljepa", 0, Path("x"), {"image_column": None, "streaming": True, "max_train_samples": None})
    assert run.argv() == ["--streaming", "true", "--seed", "0", "--output_dir", "x"]
