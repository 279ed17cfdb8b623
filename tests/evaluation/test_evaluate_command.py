"""`levljepa evaluate`: real tasks on scenes with the smallest model, and what the command does around a task."""

import json
import shlex
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from PIL import Image

from levljepa_hf import LeVLJEPAVisionModel, cli
from levljepa_hf.evaluation import command, language_models
from levljepa_hf.evaluation.command import EvaluationArguments, evaluate
from levljepa_hf.evaluation.protocols import read_protocols
from levljepa_hf.evaluation.results import TaskResult
from levljepa_hf.evaluation.task import TASKS, Task

SCENES = ["--dataset", "scenes", "--dataset_config", "32", "--max_samples", "30", "--max_train_samples", "40"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, request):
    from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAProcessor

    folder = tmp_path_factory.mktemp("checkpoint")
    LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug")).save_pretrained(folder)
    LeVLJEPAProcessor.from_image_size(32).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA card.\n")
    return folder


@dataclass(frozen=True)
class Protocol:
    steps: int = field(default=3, metadata={"help": "Steps."})


def make_task(run, **fields) -> Task:
    """A task that does what `run(encoder, *splits, protocol, seeds, ...)` does."""
    fields = {"train": False, "seeds": (), **fields}
    return Task(help="made up", protocol=Protocol, run=run, headlines={}, **fields)


@pytest.fixture
def arguments(checkpoint, tmp_path):
    def make(**fields):
        given = {"model": [str(checkpoint)], "dataset_config": "32", "max_samples": 5, "max_train_samples": 5}
        return EvaluationArguments(**given | {"cache_dir": str(tmp_path / "cache")} | fields)

    return make


def run_command(*words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", *map(str, words)])
    return stop.value.code, capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- the tasks


def test_every_task_runs_on_scenes_and_leaves_figures_pictures_and_a_card(checkpoint, tmp_path, capsys, monkeypatch):
    def missing():
        raise ImportError("not installed")

    monkeypatch.setattr(language_models, "packaged_language_model", missing)  # tests/test_vlm.py has a tiny one
    draw, figures = command._draw, {}

    def draw_twice(record, path):
        figures[record.task] = [drawn() for drawn in record.result.pictures.values()]  # as in a notebook
        draw(record, path)

    monkeypatch.setattr(command, "_draw", draw_twice)
    output = tmp_path / "results.json"
    options = ["--output", str(output), "--cache_dir", str(tmp_path / "cache"), "--card"]
    assert cli.main(["evaluate", "all", "--model", str(checkpoint), "random", *SCENES, *options]) == 0
    content = json.loads(output.read_text())
    measured = {(one["task"], one["model"]) for one in content["results"]}
    models = (str(checkpoint), "random")
    assert measured == {(task, model) for task in TASKS for model in models if task != "vlm"}
    assert content["left_out"] == {f"vlm of {model}": "not installed" for model in models}
    assert all(
        0 <= value <= 1 for one in content["results"] for name, value in one["metrics"].items() if "_R@" in name
    )
    table = capsys.readouterr().out
    assert all(f"{task} on scenes" in table for task in TASKS if task != "vlm")
    for one in content["results"]:
        assert one["protocol"] and one["features"]["fingerprint"] and one["dataset_id"]
        assert len(one["runs"]) == max(1, len(one["seeds"]))
    for picture in tmp_path.glob("results-*.png"):
        with Image.open(picture) as drawn:
            drawn.load()
    tasks_with_pictures = {p.name.split("results-")[1].split(checkpoint.name)[0] for p in tmp_path.glob("*.png")}
    assert len(tasks_with_pictures) >= 6
    drawn = [figure for task, of_task in figures.items() for figure in of_task]
    assert len(drawn) >= 6 and all(isinstance(figure, Figure) for figure in drawn)
    card = ModelCard.load(checkpoint / "README.md")
    assert {one.metric_name.split()[0] for one in card.data.eval_results} == {task for task, _ in measured}
    assert card.text.strip() == "A card."


def test_options_of_a_task_reach_its_protocol(checkpoint, tmp_path):
    output = tmp_path / "knn.json"
    words = ["--model", str(checkpoint), *SCENES, "--output", str(output), "--no_cache", "--ks", "3", "7"]
    assert cli.main(["evaluate", "knn", *words]) == 0
    (result,) = json.loads(output.read_text())["results"]
    assert result["protocol"]["ks"] == [3, 7] and {"k3_top1", "k7_top1"} <= result["metrics"].keys()
    assert result["splits"].keys() == {"train", "test"}


def test_constants_of_several_tasks_come_from_a_file(checkpoint, tmp_path, monkeypatch):
    file, output = tmp_path / "protocols.yaml", tmp_path / "results.json"
    file.write_text("knn: {ks: [2, 4], temperature: 5e-1}\nlinear-probe: {epochs: 3}\n")
    monkeypatch.setattr(command, "TASKS", {name: TASKS[name] for name in ("knn", "linear-probe")})
    words = ["--model", str(checkpoint), *SCENES, "--output", str(output), "--no_cache", "--protocols", str(file)]
    assert cli.main(["evaluate", "all", *words]) == 0
    knn, probe = json.loads(output.read_text())["results"]
    assert knn["protocol"] == {"features": "cls", "ks": [2, 4], "temperature": 0.5}
    assert probe["protocol"]["epochs"] == 3 and probe["protocol"]["learning_rates"] == [0.1]


@pytest.mark.parametrize(
    "content, message",
    [
        ("kn: {ks: [2]}", "'kn' is no task of .*Did you mean 'knn'.*zero-shot"),
        ("knn: {k: [2]}", "'k' is no constant of knn in .*There are features, ks, temperature"),
        ("knn: {ks: [two]}", "knn: argument --ks: invalid int value: 'two'"),
        ("knn: {ks: [0]}", r"ks=\[0\] must be"),
        ("- knn", "is to name tasks"),
        ("knn: 3", "is to name tasks"),
    ],
)
def test_a_file_of_constants_that_do_not_fit_is_refused(tmp_path, content, message):
    file = tmp_path / "protocols.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_protocols(file)


def test_the_constants_for_scenes_are_read():
    assert set(read_protocols("evaluate-scenes")) <= set(TASKS)


def test_features_are_shared_by_tasks_and_runs(checkpoint, tmp_path, monkeypatch):
    from levljepa_hf.encoders import features

    asked = []
    extract = features.extract
    monkeypatch.setattr(
        features, "extract", lambda *args, **kwargs: (asked.append(kwargs), extract(*args, **kwargs))[1]
    )
    for task in ("knn", "linear-probe"):
        words = ["--model", str(checkpoint), *SCENES, "--cache_dir", str(tmp_path / "kept")]
        assert cli.main(["evaluate", task, *words]) == 0
    assert {kwargs["cache_dir"] for kwargs in asked} == {str(tmp_path / "kept")}
    assert len(list((tmp_path / "kept").iterdir())) == 1


# --------------------------------------------------------------------------------------------------- around the tasks


def test_a_random_encoder_comes_last_with_the_size_of_the_first_model(checkpoint, arguments):
    met = []

    def run(encoder, test, protocol, **options):
        met.append(encoder)
        return TaskResult([{"top1": 0.5}])

    evaluate(arguments(model=["random", str(checkpoint)]), {"zero-shot": make_task(run)})
    assert [one.name for one in met] == [str(checkpoint), "random"]
    assert met[1].hidden_size == met[0].hidden_size and met[1].fingerprint != met[0].fingerprint


@pytest.mark.parametrize("models", [[], ["random"]])
def test_the_gain_is_over_the_random_encoder_run_by_run(checkpoint, arguments, tmp_path, models):
    def run(encoder, train, test, protocol, seeds, **options):
        base = 0.2 if encoder.name == "random" else 0.5
        return TaskResult([{"accuracy": base + 0.1 * seed * (encoder.name != "random")} for seed in seeds])

    task = make_task(run, train=True, seeds=(0, 1), gain="accuracy")
    output = tmp_path / "gain.json"
    given = arguments(model=[str(checkpoint), *models], output=str(output))
    mine, random = evaluate(given, {"vlm": task})
    assert [one["gain"] for one in mine.result.runs] == pytest.approx([0.3, 0.4]) and random.model == "random"
    assert "gain" not in random.result.metrics
    saved = json.loads(output.read_text())["results"]
    assert saved[0]["metrics"]["gain"] == pytest.approx(0.35) and saved[0]["details"]["gain_over"] == "random"


def test_what_was_measured_before_an_error_is_kept(checkpoint, arguments, tmp_path):
    def run(encoder, test, protocol, **options):
        if encoder.name == "random":
            raise RuntimeError("the disk is full")
        return TaskResult([{"top1": 0.5}])

    output = tmp_path / "results.json"
    with pytest.raises(RuntimeError, match="disk is full"):
        evaluate(arguments(model=[str(checkpoint), "random"], output=str(output)), {"zero-shot": make_task(run)})
    assert [one["model"] for one in json.loads(output.read_text())["results"]] == [str(checkpoint)]


def test_seeds_protocol_and_features_options_are_passed_on(arguments):
    seen = {}

    def run(encoder, train, test, **options):
        seen.update(options, sizes=(len(train.images), len(test.images)))
        return TaskResult([{"top1": 1.0} for _ in options["seeds"]])

    task = make_task(run, train=True, seeds=(0, 1, 2))
    given = arguments(seeds=[7, 8], encode_batch_size=3, transform="evaluation", max_train_samples=6)
    (record,) = evaluate(given, {"linear-probe": task})
    assert seen["seeds"] == [7, 8] and seen["batch_size"] == 3 and seen["transform"] == "evaluation"
    assert seen["protocol"] == Protocol() and seen["sizes"] == (6, 5) and record.protocol == {"steps": 3}
    assert record.seeds == [7, 8] and record.features["transform"] == "evaluation"


def test_figures_are_kept_where_a_picture_fails(arguments, tmp_path):
    def fail(path):
        raise ImportError("no matplotlib")

    task = make_task(lambda *args, **kwargs: TaskResult([{"top1": 1.0}], pictures={"confusion": fail}))
    output = tmp_path / "new" / "results.json"
    with pytest.raises(ImportError, match="no matplotlib"):
        evaluate(arguments(output=str(output)), {"zero-shot": task})
    assert json.loads(output.read_text())["results"][0]["metrics"] == {"top1": 1.0}
    assert evaluate(arguments(), {"zero-shot": task})  # nothing is drawn where there is no output


def test_what_is_learned_from_is_not_measured_on(arguments):
    task = make_task(lambda *args, **kwargs: TaskResult([{"top1": 1.0}]), train=True)
    with pytest.raises(ValueError, match=r"scenes/test \(32\) would be both learned from and measured on"):
        evaluate(arguments(train_split="test"), {"knn": task})
    assert evaluate(arguments(train_split="validation"), {"knn": task})


def test_samples_without_a_label_are_counted_in_the_details(arguments, tmp_path):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": Value("int64")})
    rows = {"image": [Image.new("RGB", (8, 8))] * 4, "label": [0, -1, 1, None]}
    Dataset.from_dict(rows, features).to_parquet(tmp_path / "photos.parquet")
    task = make_task(lambda *args, **kwargs: TaskResult([{"top1": 1.0}]))
    given = arguments(dataset=str(tmp_path / "photos.parquet"), dataset_config=None, test_split="train")
    (record,) = evaluate(given, {"zero-shot": task})
    assert record.result.details == {"dropped_test": 2}


def test_one_task_that_fails_does_not_end_several(arguments, tmp_path):
    def fail(*args, **kwargs):
        raise ValueError("no such thing")

    good = make_task(lambda *args, **kwargs: TaskResult([{"top1": 1.0}]))
    output = tmp_path / "results.json"
    (record,) = evaluate(arguments(output=str(output)), {"retrieval": make_task(fail), "zero-shot": good})
    assert record.task == "zero-shot"
    (reason,) = json.loads(output.read_text())["left_out"].items()
    assert reason[0].startswith("retrieval of ") and reason[1] == "no such thing"
    with pytest.raises(ValueError, match="no such thing"):
        evaluate(arguments(), {"retrieval": make_task(fail)})
    with pytest.raises(ValueError, match="Nothing could be measured: .*no such thing"):
        evaluate(arguments(), {"retrieval": make_task(fail), "zero-shot": make_task(fail)})


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "words, message",
    [
        (["knn"], "no model to measure"),
        (["knn", "--model", "CHECKPOINT", "--dtype", "float8"], "dtype='float8' is unknown"),
        (["knn", "--model", "CHECKPOINT", "--output", "results.csv"], "end in .json"),
        (["knn", "--model", "torch:resnet18"], "is no model. Use timm:NAME, hf:NAME or random"),
        (["knn", "--model", "random", "--card"], "belongs to a checkpoint"),
        (["knn", "--model", "CHECKPOINT", "--dataset", "petz"], "pets"),
        (["retrieval", "--model", "CHECKPOINT", "--dataset", "pets"], "pets is no data for retrieval"),
        (["zero-shot", "--model", "CHECKPOINT", "--readouts", "mean"], "Unknown readout 'mean'"),
        (["linear-probe", "--model", "CHECKPOINT", "--learning_rates", "-1"], "above 0"),
        (["knn", "--model", "CHECKPOINT", "--protocols", "knn.yaml"], "--protocols is for all"),
        (["all", "--model", "CHECKPOINT", "--protocols", "nowhere.yaml"], "nowhere.yaml"),
        (["knn", "--model", "CHECKPOINT", "--transform", "crop"], "transform='crop' is unknown"),
        (["knn", "--model", "CHECKPOINT", "--dataset", "scenes", "--max_samples", "0"], "at least 1"),
    ],
)
def test_bad_input_is_a_message_and_nothing_is_written(checkpoint, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    words = [str(checkpoint) if word == "CHECKPOINT" else word for word in words]
    if "--dataset" not in words:
        words += SCENES
    code, printed = run_command(*words, "--cache_dir", tmp_path / "cache", capsys=capsys)
    assert code == 2 and message in printed and "Traceback" not in printed
    assert printed.strip().splitlines()[-1].startswith(f"levljepa evaluate {words[0]}: ")
    assert list(tmp_path.glob("*")) in ([], [tmp_path / "cache"])


def test_a_checkpoint_without_a_card_is_refused_before_the_work(checkpoint, tmp_path, capsys):
    LeVLJEPAVisionModel.from_pretrained(checkpoint).save_pretrained(tmp_path)
    code, printed = run_command("knn", "--model", tmp_path, "--card", *SCENES, capsys=capsys)
    assert code == 2 and "no model card" in printed and "encoding" not in printed


def test_an_unknown_task_names_those_there_are(capsys):
    code, printed = run_command("linear", "--model", "x", capsys=capsys)
    assert code == 2 and "linear-probe" in printed


# -------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("task", [*TASKS, "all"])
def test_help_shows_options_and_an_example_that_parses(task, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where runs/demo may be an id of the Hub
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", task, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "--max_samples" in text
    example = text.rpartition("example:")[2]
    words = shlex.split(example.replace("\n", " "))
    assert words[:3] == ["levljepa", "evaluate", task]
    parsed = []
    monkeypatch.setattr(command, "evaluate", lambda arguments, *rest: parsed.append(arguments) or [])
    monkeypatch.setattr(command, "format_table", lambda records: "")
    assert cli.main(words[1:]) == 0
    assert parsed[0].model == ["runs/demo", "random"] and parsed[0].dataset == "scenes"


def test_help_lists_the_tasks(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    text = capsys.readouterr().out
    assert all(f"  {task} " in text for task in (*TASKS, "all"))


def test_no_protocol_takes_the_name_of_a_common_option():
    common = set(EvaluationArguments.__dataclass_fields__)
    for name, task in TASKS.items():
        assert not common & set(task.protocol.__dataclass_fields__), name


def test_pictures_of_models_with_paths_have_plain_names(tmp_path):
    result = SimpleNamespace(pictures={"confusion": lambda path: path.write_bytes(b"png")})
    command._draw(SimpleNamespace(task="knn", model="../runs/my model", result=result), tmp_path / "a.json")
    assert [p.name for p in tmp_path.iterdir()] == ["a-knn-runs-my-model-confusion.png"]
