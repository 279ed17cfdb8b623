"""Watching a run: health in words on made-up logs and on real collapse, throughput, what trackers see, and probes."""

import ast
import functools
import importlib
import inspect
import json
import logging
import os
import random
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAProcessor, LeVLJEPATrainer, LeVLJEPATrainingArguments
from levljepa_hf.evaluation import LinearProbeProtocol, evaluate_linear_probe, load_encoder, load_split
from levljepa_hf.evaluation.embedding_health import sigreg_ceiling, sigreg_floor, unexplained_variance
from levljepa_hf.model.sigreg_levljepa import SIGReg
from levljepa_hf.training import throughput, watcher
from levljepa_hf.training.log_file import LogFile
from levljepa_hf.training.probing import OnlineProbes, Probes
from levljepa_hf.training.throughput import StepFlops, Throughput, peak_flops
from levljepa_hf.training.warnings import HealthLimits, HealthMonitor
from test_trainer import TERMS, new_model, samples, trainer

# Health: figures

HEALTHY = {
    "effective_rank_vision": 30.0,
    "effective_rank_text": 40.0,
    "sigreg_vision": 3.0,
    "sigreg_text": 2.0,
    "sigreg_floor": 1.0,
    "sigreg_ceiling": 51.0,
    "unexplained_vision": 0.8,
    "unexplained_text": 1.1,
}


def test_unexplained_variance() -> None:
    z = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9) + 5
    assert unexplained_variance(z, z) == 0
    assert unexplained_variance(z.mean(dim=0).expand_as(z), z) == pytest.approx(1, rel=1e-5)
    assert unexplained_variance(z[torch.randperm(500)], z) == pytest.approx(2, rel=0.1)
    assert unexplained_variance(z + 1, z + 1 - 2) == pytest.approx(4 / z.var(dim=0).mean().item(), rel=0.01)


@pytest.mark.parametrize("scale", [None, 100.0])
def test_the_ceiling_is_sigreg_of_zeros(scale: float | None) -> None:
    sigreg = SIGReg(64, num_knots=9, t_max=2.0, sample_size_scale=scale)
    ceiling = sigreg_ceiling(9, 2.0, 32, scale)
    assert sigreg(torch.zeros(32, 8)).item() == pytest.approx(ceiling, rel=1e-4)
    assert sigreg(torch.full((32, 8), 9.0)).item() > ceiling > sigreg_floor(9, 2.0, 32, scale)
    with pytest.raises(ValueError, match="ceiling depends on the batch: pass sample_size"):
        sigreg_ceiling()


# Health: judged


def judged(monitor: HealthMonitor, *lines: dict[str, float], first: int = 1) -> list[list[str]]:
    return [monitor.check({**HEALTHY, **line}, step) for step, line in enumerate(lines, start=first)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"effective_rank_text": 6.0},
            r"effective_rank_text is 6 of at most 64 \(peak 6; warned below 6.4\). The text embeddings collapse.*"
            r"Lower learning_rate.*raise sigreg_text_weight",
        ),
        ({"effective_rank_vision": float("nan")}, "effective_rank_vision is 0 of"),
        (
            {"sigreg_vision": 41.0},
            r"sigreg_vision is 41, 80% of the way from 1 \(a Gaussian\) to 51 \(one point; warned from 50%\)."
            ".*Raise sigreg_vision_weight",
        ),
        (
            {"unexplained_vision": 7.5},
            r"unexplained_vision is 7.5 \(1 is .*; warned from 2\). The text_predictor diverges",
        ),
        ({"unexplained_text": float("inf")}, "unexplained_text is inf.*The vision_predictor diverges"),
    ],
)
def test_a_state_is_told_once_and_so_is_its_end(bad: dict[str, float], message: str) -> None:
    monitor = HealthMonitor(64)
    told = judged(monitor, bad, bad, bad, bad, {}, bad, bad)
    assert [len(messages) for messages in told] == [0, 1, 0, 0, 1, 0, 1] and monitor.num_states == 1
    assert re.search(f"^Step 2: {message}", told[1][0])
    assert told[4][0].startswith("Step 5: ") and told[4][0].endswith("It has recovered.")
    assert judged(HealthMonitor(64), bad, {}, bad, {}) == [[], [], [], []], "no two in a row"


def test_modalities_are_judged_apart() -> None:
    monitor = HealthMonitor(64)
    first, second = {"sigreg_text": 50.0}, {"sigreg_text": 50.0, "sigreg_vision": 50.0}
    told = judged(monitor, first, first, second, second, {"sigreg_vision": 50.0})
    assert [len(messages) for messages in told] == [0, 1, 0, 1, 1] and monitor.num_states == 1
    assert "sigreg_vision" in told[3][0] and "sigreg_text" in told[4][0]


def test_what_is_near_its_limit_has_not_recovered() -> None:
    monitor = HealthMonitor(64, limits=HealthLimits(patience=1))
    told = judged(monitor, *({"unexplained_text": value} for value in (2.1, 1.9, 2.1, 1.9, 1.5)))
    assert [len(messages) for messages in told] == [1, 0, 0, 0, 1]


def test_a_fall_from_the_peak_and_a_rise_from_the_lowest_are_warned_of() -> None:
    ranks = HealthMonitor(64)
    told = judged(ranks, *({"effective_rank_vision": value} for value in (30, 50, 20, 24)))
    assert not any(told[:3]) and "(peak 50; warned below 25)" in told[3][0]
    rises = HealthMonitor(64)  # 4 % of the way, then 24 %, above a fifth; and 12 %, which is not
    assert not any(judged(rises, *({"sigreg_text": value} for value in (3, 7, 7, 7))))
    told = judged(HealthMonitor(64), *({"sigreg_text": value} for value in (3, 13, 13)))
    assert "24% of the way" in told[2][0] and "warned from 20%" in told[2][0]
    told = judged(HealthMonitor(64), *({"sigreg_text": value} for value in (6, 24, 24)))  # 10 %, then 46 %
    assert "warned from 40%" in told[2][0]


def test_the_warm_up_is_not_judged_and_leaves_no_peak() -> None:
    monitor = HealthMonitor(64, warmup_steps=10)
    bad = {"effective_rank_text": 60.0, "sigreg_text": 50.0, "unexplained_text": 9.0}
    assert not any(judged(monitor, *[bad] * 10))
    assert not any(judged(monitor, *[{"effective_rank_text": 25.0}] * 5, first=11)), "the peak of 60 was before"


def test_what_a_model_does_not_log_is_not_judged() -> None:
    """Contrastive objectives have neither SIGReg nor predictions; the rank is judged, and the advice fits."""
    monitor = HealthMonitor(64)
    logs = {"loss": 3.0, "contrastive_loss": 3.0, "effective_rank_vision": 40.0, "effective_rank_text": 2.0}
    told = [monitor.check(logs, step) for step in (1, 2)]
    assert len(told[1]) == 1 and "sigreg" not in told[1][0]
    assert HealthMonitor(64).check({"loss": 1.0, "eval_loss": 2.0}, 5) == []
    cosine = HealthMonitor(64, judge_predictions=False)
    assert not any(judged(cosine, *[{"unexplained_text": 99.0}] * 4))


# Health: real trainings, of seconds

# A text tower of 64 whose captions differ, and a SIGReg that holds at a batch of 16.
SOUND = {"sigreg_sample_size_scale": 64.0, "text_config": {"initializer_range": 0.125}}
SHORT = {"per_device_train_batch_size": 16, "health_steps": 4, "logging_steps": 4}


def health_of(run: LeVLJEPATrainer) -> list[dict[str, float]]:
    return [entry for entry in run.state.log_history if "health_warnings" in entry]


def trained(folder: Path, processor: Any, max_steps: int = 32, reverse: str = "", **options: Any) -> LeVLJEPATrainer:
    """A run of a small model, whose gradient of the parameters under `reverse` is turned round."""
    model = new_model(**{**SOUND, **options.pop("config", {})})
    for name, parameter in model.named_parameters():
        if reverse and name.startswith(reverse):
            parameter.register_hook(torch.neg)
    run = trainer(folder, processor, 64, model=model, max_steps=max_steps, **{**SHORT, **options})
    run.train()
    return run


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.message for record in caplog.records if record.name.startswith("levljepa_hf.training"))


def test_a_healthy_run_is_not_warned_of(tmp_path: Path, processor, caplog) -> None:
    run = trained(tmp_path, processor)
    assert warnings_of(caplog) == "" and [entry["health_warnings"] for entry in health_of(run)] == [0] * 8


def test_a_run_without_sigreg_collapses_and_is_warned_of(tmp_path: Path, processor, caplog) -> None:
    run = trained(tmp_path, processor, config={"sigreg_vision_weight": 0.0, "sigreg_text_weight": 0.0})
    text = warnings_of(caplog)
    assert text.count("Raise sigreg_vision_weight") == text.count("Raise sigreg_text_weight") == 1
    assert [entry["health_warnings"] for entry in health_of(run)][-1] == 2


def test_a_learning_rate_that_is_too_high_is_warned_of(tmp_path: Path, processor, caplog) -> None:
    run = trained(tmp_path, processor, learning_rate=1.0)
    text = warnings_of(caplog)
    assert text.count("The text embeddings collapse to few directions. Lower learning_rate") == 1
    assert "The image embeddings shrink, blow up" in text and health_of(run)[-1]["health_warnings"] >= 2


def test_a_predictor_that_diverges_is_warned_of(tmp_path: Path, processor, caplog) -> None:
    trained(tmp_path, processor, 24, reverse="text_predictor", learning_rate=2e-2)
    text = warnings_of(caplog)
    assert text.count("unexplained_vision is") == 1 and "The text_predictor diverges" in text
    assert "vision_predictor" not in text


def test_a_resumed_run_knows_what_was_told(tmp_path: Path, processor, caplog) -> None:
    options = {"config": {"sigreg_vision_weight": 0.0, "sigreg_text_weight": 0.0}, "save_strategy": "steps"}
    trained(tmp_path, processor, 24, save_steps=20, **options)
    assert "Step 16: sigreg_text" in warnings_of(caplog) or "Step 12: sigreg_text" in warnings_of(caplog)
    caplog.clear()
    model = new_model(**{**SOUND, **options["config"]})
    run = trainer(tmp_path, processor, 64, model=model, max_steps=24, **SHORT)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert "sigreg_text" not in warnings_of(caplog) and health_of(run)[-1]["health_warnings"] == 2


# What trackers see


class Tracker(TrainerCallback):
    """Keeps what a `report_to` integration is given."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.lines.append(dict(logs))


FIGURES = (*TERMS, "effective_rank_text", "unexplained_vision", "sigreg_floor", "sigreg_ceiling", "health_warnings")
FIGURES += ("samples_per_second", "data_wait")


def test_trackers_get_terms_health_and_throughput(tmp_path: Path, processor) -> None:
    tracker = Tracker()
    trainer(tmp_path, processor, health_steps=2, callbacks=[tracker]).train()
    assert {"loss", *FIGURES} <= tracker.lines[0].keys()
    assert all(isinstance(value, (int, float)) for line in tracker.lines for value in line.values())


def test_tensorboard_gets_them(tmp_path: Path, processor, monkeypatch) -> None:
    written: set[str] = set()
    try:  # as transformers finds it
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        SummaryWriter = pytest.importorskip("tensorboardX").SummaryWriter
    monkeypatch.setattr(SummaryWriter, "add_scalar", lambda self, name, *args, **kwargs: written.add(name))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer(tmp_path, processor, health_steps=2, report_to="tensorboard").train()
    assert {f"train/{name}" for name in ("loss", *FIGURES)} <= written and any((tmp_path / "board").iterdir())


def test_the_log_is_a_file_that_grows_with_the_run(tmp_path: Path, processor) -> None:
    lengths: list[int] = []

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            lengths.append(len(read()))

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]

    options = {"save_strategy": "steps", "save_steps": 3, "logging_steps": 1, "max_steps": 5}
    run = trainer(tmp_path, processor, callbacks=[Look()], **options)
    run.train()
    assert lengths == [0, 1, 2, 3, 4] and read() == run.state.log_history
    again = trainer(tmp_path, processor, **options)  # from step 3: what came after is logged anew
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [entry["step"] for entry in read() if "loss" in entry] == [1, 2, 3, 4, 5]
    assert read() == again.state.log_history


def test_a_log_that_can_not_be_written_stops_no_run(tmp_path: Path, caplog) -> None:
    file = LogFile(tmp_path)
    file.begin([])
    file.path.unlink()
    file.path.mkdir()
    for step in (1, 2):
        file.add({"step": step})
    assert warnings_of(caplog).count("log.jsonl ends here") == 1


@pytest.mark.parametrize("objective", ["infonce", "siglip", "levljepa_plus"])
def test_other_objectives_are_watched(tmp_path: Path, processor, objective: str) -> None:
    """With the terms that they have."""
    probes = {**PROBED, "probe_tasks": ["zero_shot", "online_linear"]}
    run = trainer(tmp_path, processor, model=new_model(objective=objective), health_steps=2, **probes)
    run.train()
    first, _ = health_of(run)
    assert {"effective_rank_vision", "samples_per_second"} <= first.keys()
    assert ("unexplained_text" in first) == ("sigreg_floor" in first) == (objective == "levljepa_plus")
    assert run.state.total_flos > 0
    figures = [entry for entry in run.state.log_history if "probe_zero_shot_top1" in entry]
    assert len(figures) == 2 and "probe_online_linear_top1" in figures[0]


WATCHING = ("curves", "log_file", "probing", "throughput", "warnings", "watcher")


@pytest.mark.parametrize("name", ["data.augmentation", "data.images", *(f"training.{name}" for name in WATCHING)])
def test_public_names_are_listed(name: str) -> None:
    """All that a module defines without an underscore, but its logger, is in its `__all__`."""
    module = importlib.import_module(f"levljepa_hf.{name}")
    names = set()
    for node in ast.parse(inspect.getsource(module)).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        names |= {getattr(target, "id", None) or getattr(target, "name", "_") for target in targets}
    assert {one for one in names if not one.startswith("_")} - {"logger"} == set(module.__all__)


# Throughput


@pytest.mark.parametrize("frozen", ["", "vision", "text"])
@pytest.mark.parametrize("preset", ["debug", "tiny"])
def test_flops_are_those_that_torch_counts(preset: str, frozen: str) -> None:
    config = LeVLJEPAConfig.from_preset(preset, vision_config={"num_hidden_layers": 2}, text_config={"n_layer": 3})
    model = LeVLJEPAModel(config)
    model.set_attn_implementation("eager")  # torch counts the products of the fused form only in part on the CPU
    if frozen:
        getattr(model, f"{frozen}_model").requires_grad_(False)
    side = config.vision_config.image_size
    inputs = {"pixel_values": torch.randn(3, 3, side, side), "input_ids": torch.randint(0, 1000, (3, 11))}
    with FlopCounterMode(display=False) as counter:
        model(**inputs).loss.backward()
    assert StepFlops(model)(inputs) == pytest.approx(counter.get_total_flops(), rel=3e-3)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("option", [{"gradient_checkpointing": True}, {"encoder_micro_batch_size": 2}])
def test_what_is_recomputed_is_not_counted(tmp_path: Path, processor, option: dict[str, Any]) -> None:
    plain, other = trainer(tmp_path / "plain", processor), trainer(tmp_path / "other", processor, **option)
    for run in (plain, other):
        run.train()
    assert other.state.total_flos == plain.state.total_flos > 0


def test_flops_of_views_and_of_other_models() -> None:
    model = new_model()
    flat = {"pixel_values": torch.empty(6, 3, 32, 32), "input_ids": torch.empty(6, 9)}
    views = {"pixel_values": torch.empty(6, 1, 3, 32, 32), "input_ids": torch.empty(6, 9)}
    assert StepFlops(model)(views) == StepFlops(model)(flat)
    crops = StepFlops(model)({**views, "local_pixel_values": torch.empty(6, 2, 3, 16, 16)})
    two = StepFlops(model)({**views, "pixel_values": torch.empty(6, 2, 3, 32, 32)})
    assert StepFlops(model)(flat) < crops < two
    assert StepFlops(torch.nn.Linear(2, 2))(flat) is None
    assert StepFlops(model)({"input_ids": flat["input_ids"]}) is None


@pytest.mark.parametrize(
    ("device", "half", "tf32", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", True, False, 312),
        ("NVIDIA A100-SXM4-80GB", False, True, 156),
        ("NVIDIA A100-SXM4-80GB", False, False, 19.5),
        ("NVIDIA H100 80GB HBM3", True, False, 989.4),
        ("NVIDIA H100 PCIe", True, False, 756),
        ("NVIDIA H200", True, False, 989.4),
        ("NVIDIA H200 NVL", True, False, 835.5),
        ("NVIDIA GH200 480GB", True, False, 989.4),
        ("NVIDIA B200", True, False, 2250),
        ("NVIDIA L40S", True, False, 362),
        ("NVIDIA L4", True, False, 121),
        ("Tesla V100-SXM2-16GB", False, True, 15.7),
        ("Tesla T4", True, False, 65),
        ("NVIDIA GeForce RTX 4090", True, False, 165.2),
        ("NVIDIA GeForce RTX 3090", False, False, 35.6),
        ("AMD Instinct MI300X", True, False, 1307.4),
        ("AMD Instinct MI250X/MI250", True, False, 191.5),
    ],
)
def test_peaks_of_devices(device: str, half: bool, tf32: bool, tflops: float) -> None:
    assert peak_flops(device, half, tf32) == pytest.approx(1e12 * tflops)


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA GeForce GTX 1080",
        "NVIDIA L400",
        "NVIDIA GB200",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 with Max-Q Design",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
    ],
)
def test_an_unknown_device_has_no_peak(device: str) -> None:
    assert peak_flops(device, True) is None


def test_a_cpu_has_no_peak() -> None:
    assert throughput.device_peak_flops(torch.device("cpu"), True) is None


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_throughput_of_what_is_not_excluded() -> None:
    clock, accelerator = Clock(), Accelerator(cpu=True)
    run = Throughput(peak=1e12, clock=clock)
    clock.now = 50.0  # the first step compiles
    run.add(8, 1e12)
    assert run.pop(accelerator) == {}
    run.end_step()
    assert run.pop(accelerator) == {}, "nothing since"
    for _ in range(2):
        with run.waiting():
            clock.now += 1
        clock.now += 3
        run.add(8, 1e12)
        run.end_step()
    with run.paused():
        clock.now += 100
        with run.paused():  # an evaluation that saves, say
            clock.now += 100
    figures = run.pop(accelerator)
    assert figures == pytest.approx({"samples_per_second": 2.0, "data_wait": 0.25, "mfu": 0.25})
    clock.now += 4
    run.add(8, None)
    assert run.pop(accelerator) == pytest.approx({"samples_per_second": 2.0, "data_wait": 0.0})


def test_the_run_is_clocked_without_evaluation_saving_and_the_first_step(
    tmp_path: Path, processor, monkeypatch
) -> None:
    """A step takes 10 seconds, of which 4 for its 4 samples; the first one an hour, all else a day."""
    clock = Clock()
    monkeypatch.setattr(watcher, "Throughput", functools.partial(Throughput, clock=clock))
    monkeypatch.setattr(watcher, "device_peak_flops", lambda device, half_precision: 1e9)

    class Slow(list):
        def __getitem__(self, index: int) -> Any:
            clock.now += 1
            return super().__getitem__(index)

    class Slowly(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.now += 6 if state.global_step else 3600

    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    run = trainer(
        tmp_path, processor, train_dataset=Slow(samples(16)), eval_dataset=samples(4), logging_steps=1,
        callbacks=[Slowly()], accelerator_config={"dispatch_batches": False}, **options,
    )  # fmt: skip

    def a_day(*args: Any, **kwargs: Any) -> dict[str, float]:
        clock.now += 86400
        return {"score": 1.0}

    run.compute_metrics = a_day
    monkeypatch.setattr(run, "save_position", a_day)
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    assert "samples_per_second" not in logs[0]
    # accelerate reads a batch ahead, so that the last step reads none
    assert [entry["samples_per_second"] for entry in logs[1:3]] == pytest.approx([0.4, 0.4])
    assert [entry["data_wait"] for entry in logs[1:3]] == pytest.approx([0.4, 0.4])
    flops = StepFlops(run.model)(run.eval_data_collator(samples(4)))
    assert logs[1]["mfu"] == pytest.approx(flops / 10 / 1e9, rel=0.15)  # captions differ in length
    assert run.state.total_flos == pytest.approx(4 * flops, rel=0.15)


# Probes

PROBED = {
    "probe_dataset": "scenes",
    "probe_dataset_config": "32",
    "probe_steps": 2,
    "probe_max_train_samples": 48,
    "probe_max_test_samples": 24,
    "probe_batch_size": 16,
    "probe_tasks": ["zero_shot", "linear", "online_linear", "online_attentive"],
}


def weights(run: LeVLJEPATrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture
def protocols(tmp_path: Path) -> str:
    """Few epochs."""
    (tmp_path / "protocols.yaml").write_text("linear-probe: {epochs: 3}\nattentive-probe: {epochs: 1}\n")
    return str(tmp_path / "protocols.yaml")


def with_draws(function: Any) -> Any:
    """The same function, which draws from every random state."""

    @functools.wraps(function)
    def drawing(*args: Any, **kwargs: Any) -> Any:
        torch.rand(1), np.random.rand(), random.random()
        return function(*args, **kwargs)

    return drawing


def test_probes_leave_the_run_as_it_is(tmp_path: Path, processor, protocols: str, monkeypatch) -> None:
    """Weights, BatchNorm, SIGReg's step, losses; with dropout and augmentation, which draw from random states.

    So do the probes here, though today none does.
    """
    for owner, name in ((Probes, "_run"), (OnlineProbes, "step"), (OnlineProbes, "measure")):
        monkeypatch.setattr(owner, name, with_draws(getattr(owner, name)))

    def run(name: str, **options: Any) -> LeVLJEPATrainer:
        dropout = {"text_config": {"embd_pdrop": 0.1}, "vision_config": {"drop_path_rate": 0.2}}
        model = new_model(**dropout)
        model.text_model.drop.eval()  # a module that its owner keeps out of training mode
        one = trainer(tmp_path / name, processor, model=model, max_steps=5, logging_steps=1, **options)
        random.seed(5), np.random.seed(5)
        one.train()
        states[name] = (random.random(), np.random.rand(), torch.rand(1))
        return one

    states: dict[str, Any] = {}
    tasks = ["zero_shot", "retrieval", "linear", "knn", "attentive", "online_linear", "online_attentive"]
    plain = run("plain")
    probed = run("probed", **{**PROBED, "probe_tasks": tasks, "probe_protocols": protocols})
    assert_equal(weights(plain), weights(probed))
    assert states["plain"] == states["probed"]
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (plain, probed)]
    assert losses[0] == losses[1]
    assert all(parameter.requires_grad for parameter in probed.model.parameters())

    lines = [entry for entry in probed.state.log_history if any(name.startswith("probe_") for name in entry)]
    assert [entry["step"] for entry in lines] == [2, 4]
    for name in ("zero_shot_top1", "zero_shot_top5", "retrieval_text_to_image_R@1", "linear_top1", "knn_k20_top1"):
        assert 0 <= lines[0][f"probe_{name}"] <= 1
    assert {"probe_attentive_top1", "probe_online_linear_top1", "probe_online_attentive_top5"} <= lines[0].keys()


def test_a_model_made_when_training_begins_is_the_one_that_is_probed(tmp_path: Path, processor) -> None:
    args = LeVLJEPATrainingArguments(
        str(tmp_path), use_cpu=True, max_steps=1, per_device_train_batch_size=4, save_strategy="no", **PROBED
    )
    run = LeVLJEPATrainer(
        model_init=lambda: new_model(), args=args, train_dataset=samples(8), processing_class=processor
    )
    run.train()
    assert run.watcher.probes.encoder.model is run.model
    assert run.watcher.probes.encoder.vision_model is run.model.vision_model


def test_probes_measure_what_evaluate_measures(tmp_path: Path, processor, protocols: str) -> None:
    options = {**PROBED, "probe_tasks": ["linear"], "probe_steps": 4, "probe_protocols": protocols}
    run = trainer(tmp_path / "run", processor, **options)
    run.train()
    run.save_model()
    train, test = (
        load_split("scenes", "linear-probe", split, config_name="32", max_samples=number)
        for split, number in (("train", 48), ("test", 24))
    )
    protocol = LinearProbeProtocol(epochs=3)
    expected = evaluate_linear_probe(load_encoder(tmp_path / "run"), train, test, protocol, seeds=(42,)).metrics
    (line,) = [entry for entry in run.state.log_history if "probe_linear_top1" in entry]
    assert {name: line[f"probe_linear_{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)


def online_state(run: LeVLJEPATrainer) -> dict[str, torch.Tensor]:
    found = {}
    for task, state in run.watcher.probes.online.state_dict().items():
        found |= {f"{task}.{name}": tensor.clone() for name, tensor in state["probe"].items()}
        for index, moments in state["optimizer"]["state"].items():
            found |= {f"{task}.{index}.{name}": torch.as_tensor(value).clone() for name, value in moments.items()}
    return found


@pytest.mark.parametrize("num_workers", [0, 1])
def test_online_probes_learn_and_go_on_bit_for_bit(tmp_path: Path, processor, num_workers: int) -> None:
    """48 images in batches of 16: the stop at step 4 is inside their second pass."""

    def run(resume: int | None = None) -> LeVLJEPATrainer:
        options = {**PROBED, "probe_tasks": ["online_linear", "online_attentive"], "max_steps": 6, "logging_steps": 1}
        saving = {"save_strategy": "steps", "save_steps": 4, "dataloader_num_workers": num_workers}
        one = trainer(tmp_path, processor, **options, **saving)
        one.train(resume_from_checkpoint=None if resume is None else str(tmp_path / f"checkpoint-{resume}"))
        return one

    fresh = online_state(trainer(tmp_path, processor, **PROBED))
    whole = run()
    learned = online_state(whole)
    assert all(not torch.equal(fresh[name], learned[name]) for name in fresh if name.endswith("weight"))
    assert learned["online_linear.0.num_batches_tracked"] == 6 and learned["online_linear.0.step"] == 6
    resumed = run(4)
    assert_equal(learned, online_state(resumed))
    figures = [
        [entry for entry in one.state.log_history if "probe_online_linear_top1" in entry] for one in (whole, resumed)
    ]
    assert figures[0] == figures[1] and [entry["step"] for entry in figures[0]] == [2, 4, 6]


def test_online_probes_tell_classes_apart(tmp_path: Path, processor) -> None:
    """On a model that does not change."""
    options = {"learning_rate": 0.0, "weight_decay": 0.0, "max_steps": 60, "logging_steps": 100}
    options |= {**PROBED, "probe_tasks": ["online_linear"], "probe_steps": 60, "probe_max_test_samples": 200}
    run = trainer(tmp_path, processor, **options)
    online = run.watcher.probes.online
    online.labels["test"], online.splits["test"] = online.labels["train"], online.splits["train"]
    run.train()
    assert run.state.log_history[-2]["probe_online_linear_top1"] > 0.5, "of what it has learned; chance is 0.05"


def test_a_checkpoint_without_the_probes_says_that_they_begin_anew(tmp_path: Path, processor, caplog) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, processor, **saving).train()
    run = trainer(tmp_path, processor, **PROBED, max_steps=5)
    from transformers.utils import logging as transformers_logging

    transformers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    transformers_logging.disable_propagation()
    assert "has no state of online_linear that fits: it begins anew" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe_steps": 5}, "probe_steps=5 has no effect without probe_dataset"),
        ({"probe_tasks": ["linear"]}, "probe_tasks=.*has no effect without probe_dataset"),
        ({**PROBED, "probe_tasks": ["liner"]}, "'liner' is no probe. Use some of zero_shot, retrieval, linear"),
        ({**PROBED, "probe_tasks": []}, "there are no probe_tasks"),
        ({**PROBED, "probe_steps": 0}, "probe_steps=0 must be at least 1"),
        ({**PROBED, "probe_batch_size": 1}, "probe_batch_size=1 must be at least 2"),
        ({**PROBED, "probe_test_split": "train", "probe_max_test_samples": 48}, "both learned from and measured on"),
        ({**PROBED, "probe_dataset": "scenes_pope"}, "scenes_pope is no data for zero-shot"),
    ],
)
def test_probes_that_can_not_be_are_refused_before_the_training(
    tmp_path: Path, processor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, processor, **options)


def test_probes_need_the_whole_model(tmp_path: Path, processor) -> None:
    with pytest.raises(ValueError, match="needs a LeVLJEPAModel .* not Sequential"):
        trainer(tmp_path, processor, model=torch.nn.Sequential(new_model()), **PROBED)


# Several processes


def parallel_run(folder: str, **options: Any) -> LeVLJEPATrainer:
    torch.manual_seed(0)
    options = {"max_steps": 3, "report_to": "none", "disable_tqdm": True, "logging_steps": 1} | options
    args = LeVLJEPATrainingArguments(
        folder, use_cpu=True, per_device_train_batch_size=4, save_strategy="no", **{"health_steps": 2, **options}
    )
    run = LeVLJEPATrainer(
        LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug")),
        args,
        train_dataset=samples(24),
        processing_class=LeVLJEPAProcessor.from_image_size(32),
    )
    run.train()
    return run


def rank_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "OMP_NUM_THREADS": "1"}
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/store")
    plain = parallel_run(f"{folder}/plain")
    probed = parallel_run(f"{folder}/probed", **{**PROBED, "probe_tasks": ["zero_shot", "online_linear"]})
    results = {"plain": weights(plain), "probed": weights(probed), "log": probed.state.log_history}
    try:
        broken = {**PROBED, "probe_tasks": ["zero_shot"], "learning_rate": 0.0}
        Probes.measure = fail
        parallel_run(f"{folder}/broken", **broken)
    except (ValueError, RuntimeError) as error:
        results["error"] = f"{type(error).__name__}: {error}"
    torch.save(results, f"{folder}/{rank}")


def fail(self: Any) -> dict[str, float]:
    raise ValueError("an image is broken")


@pytest.mark.slow
def test_two_processes_probe_in_step_and_train_as_without() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_worker, (folder,), nprocs=2)
        ranks = [torch.load(f"{folder}/{rank}", weights_only=False) for rank in range(2)]
        lines = [json.loads(line) for line in Path(folder, "probed", "log.jsonl").read_text().splitlines()]
    for results in ranks:
        assert_equal(results["plain"], results["probed"])
    figures = [[e for e in results["log"] if "probe_zero_shot_top1" in e] for results in ranks]
    assert figures[0] == figures[1] and figures[0][0].keys() >= {"probe_online_linear_top1"}
    assert lines == ranks[0]["log"], "the first process alone writes"
    logs = [[e for e in results["log"] if "samples_per_second" in e] for results in ranks]
    assert [e["samples_per_second"] for e in logs[0]] == [e["samples_per_second"] for e in logs[1]]
    assert ranks[0]["error"] == "ValueError: an image is broken"
    assert ranks[1]["error"] == "RuntimeError: A probe failed on the first process: ValueError: an image is broken"
