"""`levljepa demo`: a run of a few steps end to end, what it says, what it leaves behind, and what can follow it.

How well the full demo learns is not tested here: it takes minutes.
"""

import re
import shlex

import pytest
import torch

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAProcessor, cli, demo
from levljepa_hf.encoders.embeddings import embed_images, embed_texts
from levljepa_hf.evaluation.embedding_health import effective_rank
from levljepa_hf.evaluation.zero_shot import zero_shot_accuracy
from levljepa_hf.scenes.dataset import SceneDataset
from levljepa_hf.scenes.scene import CLASS_NAMES, class_prompts
from levljepa_hf.training import command

ARGUMENTS = ["--steps", "3", "--scenes", "128"]


@pytest.fixture
def small(monkeypatch):
    """The demo with few test scenes, whose length is told after the second step."""
    monkeypatch.setattr(demo, "NUM_TEST_SCENES", 40)
    monkeypatch.setattr(demo._Progress, "timed_steps", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the number of threads decides the rounding
    yield
    torch.set_num_threads(before)


def test_demo_trains_measures_draws_and_saves(small, tmp_path, capsys):
    folder = tmp_path / "run"
    assert cli.main(["demo", "--output-dir", str(folder), *ARGUMENTS, "--seed", "5"]) == 0
    printed, bars = capsys.readouterr()
    for line in ("zeroshot", "proj", "proj_text", "avg", "chance", "text to image", "image to text", "Effective rank"):
        assert line in printed
    assert f"40 unseen scenes of {len(CLASS_NAMES)} classes" in printed and "2.5%" in printed  # R@1 of chance
    assert re.search(r"3 steps will take about \d+ (seconds|minutes)", printed) and "3/3" in bars
    assert "This is near chance" in printed, "after three steps"
    for picture in ("losses.png", "patch_pca.png", "nearest.png"):
        assert (folder / picture).stat().st_size > 1000

    lines = printed.strip().splitlines()
    start = lines.index("Load what was trained:") + 1  # three lines
    loaded: dict = {}
    exec("\n".join(lines[start : start + 3]), loaded)
    assert isinstance(loaded["model"], LeVLJEPAModel) and isinstance(loaded["processor"], LeVLJEPAProcessor)

    plot, evaluate, finetune = map(shlex.split, lines[lines.index("Next:") + 1 :])
    assert cli.main(plot[1:]) == 0 and (folder / "curves.png").is_file()
    less = ["--max_samples", "20", "--max_train_samples", "120"]
    assert cli.main([*evaluate[1:], *less, "--cache_dir", str(tmp_path / "cache")]) == 0
    assert "random" in capsys.readouterr().out
    less += ["--max_steps", "1", "--output_dir", str(tmp_path / "head")]
    assert cli.main([*finetune[1:], *less]) == 0 and (tmp_path / "head" / "confusion.png").is_file()
    with pytest.raises(SystemExit) as stop:
        demo.main(["--output-dir", str(folder), *ARGUMENTS])
    assert stop.value.code == 2 and "holds a run already" in capsys.readouterr().err


def test_it_leaves_what_every_run_leaves_and_its_recipe_repeats_it(small, tmp_path):
    demo.run_demo(tmp_path / "run", steps=2, num_scenes=128, image_size=24)
    names = {"recipe.yaml", "trainer_state.json", "log.jsonl", "all_results.json", "README.md"}
    names |= {"model.safetensors", "config.json", "processor_config.json", "tokenizer.json"}
    assert names <= {path.name for path in (tmp_path / "run").iterdir()}
    card = (tmp_path / "run" / "README.md").read_text()
    for words in ("2 steps", "text to image", "](losses.png)", "](patch_pca.png)", "](nearest.png)", "image_size: 24"):
        assert words in card, words
    argv = ["--recipe", str(tmp_path / "run" / "recipe.yaml"), "--output_dir", str(tmp_path / "again")]
    command.pretrain(*command.parse_args(argv))
    one, other = (LeVLJEPAModel.from_pretrained(tmp_path / name).state_dict() for name in ("run", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_demo_returns_what_the_saved_model_gives(small, tmp_path):
    metrics = demo.run_demo(tmp_path / "one", steps=2, num_scenes=128, seed=1)
    model = LeVLJEPAModel.from_pretrained(tmp_path / "one")
    processor = LeVLJEPAProcessor.from_pretrained(tmp_path / "one")
    scenes = list(SceneDataset("test", 40, 48, seed=1, pair_fraction=0))
    again = demo.measure_and_draw(model, processor, scenes, tmp_path)
    assert again == pytest.approx(metrics, abs=1e-6)
    images = [scene["image"] for scene in scenes]
    whole = embed_images(model, processor, images, transform="processor")  # nothing of a scene is cut off
    classes = embed_texts(model, processor, class_prompts())
    accuracies = zero_shot_accuracy(whole, classes, [scene["label"] for scene in scenes])
    assert accuracies == pytest.approx({name: metrics[name] for name in accuracies}, abs=1e-6)
    assert metrics["effective_rank_vision"] == pytest.approx(effective_rank(whole.embeds), rel=1e-4)


@pytest.mark.parametrize(("accuracy", "near"), [(0.017, True), (0.04, True), (0.045, False), (0.6, False)])
def test_a_result_near_chance_is_said_to_be_that(accuracy, near):
    """The standard error of 1/60 among 1000 scenes is 0.4 %; 4.0 % was once the outcome of 57 steps."""
    words = demo.near_chance(accuracy, 1 / 60, 1000)
    assert bool(words) == near and (not near or "guessing gives 1.7% with a standard error of 0.4%" in words)


def test_the_quicker_number_of_threads_is_taken(monkeypatch):
    """With a clock that runs slower or faster in two threads than in one."""
    model = LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug"))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for cost, expected in (({1: 3.0, 2: 2.0}, 2), ({1: 3.0, 2: 30.0}, 1)):
            now = [0.0]

            def clock(cost=cost, now=now):
                now[0] += cost[torch.get_num_threads()]
                return now[0]

            monkeypatch.setattr(demo.time, "perf_counter", clock)
            assert demo.fastest_num_threads(model) == expected
            assert torch.get_num_threads() == 2 and all(p.grad is None for p in model.parameters())
    finally:
        torch.set_num_threads(before)


def test_bad_options_name_the_fix(capsys):
    with pytest.raises(SystemExit) as stop:
        demo.main(["--image-size", "50"])
    assert stop.value.code == 2 and "image_size=50 is not divisible by patch_size" in capsys.readouterr().err


def test_help_has_an_example_that_parses(capsys):
    with pytest.raises(SystemExit) as stop:
        demo.main(["--help"])
    assert stop.value.code == 0
    assert "levljepa demo --output_dir runs/demo" in capsys.readouterr().out


def test_demo_checkpoint_is_the_demos_or_a_quick_one_trained_once(small, tmp_path, capsys):
    quick = demo.demo_checkpoint(tmp_path, steps=2, num_scenes=128)
    assert quick == tmp_path / "quick" and [path.name for path in tmp_path.iterdir()] == ["quick"]
    assert "Zero-shot" not in capsys.readouterr().out
    written = (quick / "model.safetensors").stat().st_mtime_ns
    assert demo.demo_checkpoint(tmp_path) == quick
    assert (quick / "model.safetensors").stat().st_mtime_ns == written
    (tmp_path / "demo").mkdir()  # without weights it is none
    assert demo.demo_checkpoint(tmp_path) == quick
    LeVLJEPAModel.from_pretrained(quick).save_pretrained(tmp_path / "demo")
    LeVLJEPAProcessor.from_pretrained(quick).save_pretrained(tmp_path / "demo")
    assert demo.demo_checkpoint(tmp_path) == tmp_path / "demo"
