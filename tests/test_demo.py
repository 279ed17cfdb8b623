"""`levljepa demo`: a run of a few steps end to end, what it leaves behind, and how it keeps to its time.

How well the full demo learns is not tested here: it takes minutes.
"""

import sys
from pathlib import Path

import pytest
import torch

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAProcessor, cli, demo
from levljepa_hf.encoders.embeddings import embed_images, embed_texts
from levljepa_hf.evaluation.embedding_health import effective_rank
from levljepa_hf.evaluation.zero_shot import zero_shot_accuracy
from levljepa_hf.scenes.dataset import SceneDataset
from levljepa_hf.scenes.scene import CLASS_NAMES, class_prompts


@pytest.fixture
def small(monkeypatch):
    """The demo with few test scenes and small batches."""
    monkeypatch.setattr(demo, "NUM_TEST_SCENES", 40)
    monkeypatch.setattr(demo, "TRAINING", {**demo.TRAINING, "per_device_train_batch_size": 16, "logging_steps": 1})
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the number of threads decides the rounding
    yield
    torch.set_num_threads(before)


def test_demo_trains_measures_draws_and_saves(small, tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["demo", "--output-dir", str(folder), "--steps", "3", "--scenes", "64", "--seed", "5"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    for line in ("zeroshot", "proj", "proj_text", "avg", "chance", "text to image", "image to text", "Effective rank"):
        assert line in printed
    assert f"40 unseen scenes of {len(CLASS_NAMES)} classes" in printed and "2.5%" in printed  # R@1 of chance
    for picture in ("losses.png", "patch_pca.png", "nearest.png"):
        assert (folder / picture).stat().st_size > 1000
    names = {"model.safetensors", "config.json", "processor_config.json", "tokenizer.json"}
    assert names <= {path.name for path in folder.iterdir()}

    *_, first, second, third = printed.strip().splitlines()  # the three lines that load it
    loaded: dict = {}
    exec("\n".join((first, second, third)), loaded)
    assert isinstance(loaded["model"], LeVLJEPAModel) and isinstance(loaded["processor"], LeVLJEPAProcessor)


def test_demo_returns_what_the_saved_model_gives_and_repeats_itself(small, tmp_path):
    settings = {"steps": 2, "num_scenes": 32, "max_minutes": 10, "seed": 1}
    metrics = demo.run_demo(tmp_path / "one", **settings)
    model = LeVLJEPAModel.from_pretrained(tmp_path / "one")
    processor = LeVLJEPAProcessor.from_pretrained(tmp_path / "one")
    scenes = list(SceneDataset("test", 40, 48, seed=1, pair_fraction=0))
    again = demo.measure_and_draw(model, processor, scenes, [], tmp_path / "again")
    assert again == pytest.approx(metrics, abs=1e-6)
    images = [scene["image"] for scene in scenes]
    whole = embed_images(model, processor, images, transform="processor")  # nothing of a scene is cut off
    classes = embed_texts(model, processor, class_prompts())
    accuracies = zero_shot_accuracy(whole, classes, [scene["label"] for scene in scenes])
    assert accuracies == pytest.approx({name: metrics[name] for name in accuracies}, abs=1e-6)
    assert metrics["effective_rank_vision"] == pytest.approx(effective_rank(whole.embeds), rel=1e-4)
    demo.run_demo(tmp_path / "two", **settings)
    other = LeVLJEPAModel.from_pretrained(tmp_path / "two")

    def embeds(model: LeVLJEPAModel) -> torch.Tensor:
        return embed_images(model, processor, images, transform="processor").embeds

    assert torch.equal(embeds(model), embeds(other))


def test_demo_stops_when_the_time_is_up(small, tmp_path, capsys):
    demo.run_demo(tmp_path, steps=1000, num_scenes=32, max_minutes=0, image_size=24)
    assert "The time was up after 1 of 1000 steps." in capsys.readouterr().out
    assert LeVLJEPAConfig.from_pretrained(tmp_path).vision_config.image_size == 24


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


def test_learning_rate_falls_by_steps_or_by_the_clock():
    def factor(step, elapsed=0.0):
        return demo.learning_rate_factor(step, num_steps=100, warmup_steps=10, elapsed=elapsed)

    assert factor(0) == pytest.approx(0.1, rel=1e-3) and factor(4) == pytest.approx(0.5, rel=1e-2)
    assert factor(50) == pytest.approx(0.5) and factor(100) == 0
    assert factor(20, elapsed=0.55) == pytest.approx(0.5)  # a slow machine
    assert factor(50, elapsed=0.5) == factor(50, elapsed=0.1) == factor(50)  # exactly: a run in time repeats itself
    assert factor(20, elapsed=1.0) < 0.01 and factor(20, elapsed=2.0) == 0


def test_bad_options_name_the_fix(capsys):
    with pytest.raises(SystemExit) as stop:
        demo.main(["--image-size", "50"])
    assert stop.value.code == 2 and "image_size=50 is not divisible by patch_size" in capsys.readouterr().err


def test_help_has_an_example_that_parses(capsys):
    with pytest.raises(SystemExit) as stop:
        demo.main(["--help"])
    assert stop.value.code == 0
    assert "levljepa demo --output-dir runs/demo" in capsys.readouterr().out


def test_the_recipe_is_the_demo(monkeypatch):
    """training/recipes/demo.yaml gives training/pretrain.py the demo's model and settings."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "training"))
    monkeypatch.delitem(sys.modules, "pretrain", raising=False)
    import pretrain

    model_args, data_args, args = pretrain.parse_args(["--recipe", "demo"])
    config = pretrain.build_model(model_args)[0].config
    for name, value in demo.MODEL.items():
        fields = value if isinstance(value, dict) else {name: value}
        holder = getattr(config, name) if isinstance(value, dict) else config
        assert {field: getattr(holder, field) for field in fields} == fields
    assert {name: getattr(args, name) for name in demo.TRAINING} == demo.TRAINING
    assert args.max_steps == demo.STEPS
    assert data_args.flip_probability == 0 and data_args.crop_scale == [1.0, 1.0]


def test_demo_checkpoint_is_the_demos_or_a_quick_one_trained_once(small, tmp_path, capsys):
    quick = demo.demo_checkpoint(tmp_path, steps=2, num_scenes=32)
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
