"""Checkpoints: which are complete, where a run goes on, what it refuses, and what it says."""

import json
import signal
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset, Features, Image, List, Value
from transformers import TrainerCallback

from levljepa_hf.data.collator import LeVLJEPADataCollator, training_transform
from levljepa_hf.data.loading import load_pretraining_dataset
from levljepa_hf.training.checkpoints import SETTINGS, STAGING, find_checkpoints, last_checkpoint, why_incomplete
from test_trainer import samples, trainer

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


@pytest.fixture
def run(tmp_path, processor) -> Path:
    """The folder of a run of 4 steps with checkpoints at 2 and 4."""
    one = trainer(tmp_path / "run", processor, **SAVING)
    one.train(resume_from_checkpoint="auto")  # nothing is there yet
    return tmp_path / "run"


def names(folder: Path) -> list[str]:
    return [path.name for path in find_checkpoints(folder)]


def test_checkpoints_are_found_in_the_order_of_their_steps(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-x", "checkpoint-3-old", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-11").touch()
    assert names(tmp_path) == ["checkpoint-9", "checkpoint-10"]


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "trainer_state.json").unlink(), "no trainer_state.json"),
        (lambda folder: cut_off(folder / "trainer_state.json"), "trainer_state.json does not parse"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: cut_off(folder / "model.safetensors"), "model.safetensors is cut off"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "no optimizer.pt"),
        (lambda folder: cut_off(folder / "optimizer.pt"), "optimizer.pt is cut off"),
        (lambda folder: cut_off(folder / "scheduler.pt"), "scheduler.pt is cut off"),
        (lambda folder: (folder / "rng_state.pth").unlink(), "no random states"),
        (lambda folder: cut_off(folder / "rng_state.pth"), "rng_state.pth is cut off"),
    ],
)
def test_an_incomplete_checkpoint_is_passed_over_and_named(damage, reason, run, caplog):
    assert why_incomplete(run / "checkpoint-4") is None
    damage(run / "checkpoint-4")
    assert reason in why_incomplete(run / "checkpoint-4")
    assert last_checkpoint(run) == run / "checkpoint-2"
    assert "Passed over" in caplog.text and "checkpoint-4" in caplog.text and reason in caplog.text


def test_auto_goes_on_from_the_newest_complete_checkpoint(run, processor):
    (run / "checkpoint-4" / "optimizer.pt").unlink()
    again = trainer(run, processor, **{**SAVING, "max_steps": 6})
    steps = []

    class Steps(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    again.add_callback(Steps())
    again.train(resume_from_checkpoint="auto")
    assert steps == [2, 3, 4, 5]
    assert names(run) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert all(why_incomplete(path) is None for path in find_checkpoints(run))  # 4 was written anew


@pytest.mark.parametrize("wanted", [True, "true", "True"])
def test_true_wants_a_checkpoint(wanted, tmp_path, processor):
    with pytest.raises(ValueError, match="no complete checkpoint in .*'auto' to begin"):
        trainer(tmp_path / "run", processor).train(resume_from_checkpoint=wanted)


def test_a_checkpoint_that_can_not_be_resumed_is_refused(run, processor, tmp_path):
    again = trainer(run, processor, **SAVING)
    with pytest.raises(ValueError, match="there is no such folder"):
        again.train(resume_from_checkpoint=str(run / "checkpoint-3"))
    cut_off(run / "checkpoint-4" / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors is cut off.*'auto'"):
        again.train(resume_from_checkpoint=str(run / "checkpoint-4"))


def test_a_new_run_does_not_begin_among_the_checkpoints_of_another(run, processor):
    before = (run / "checkpoint-4" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds checkpoint-4 of another run.*'auto'.*another output_dir.*overwrite"):
        trainer(run, processor, **SAVING).train()
    assert names(run) == ["checkpoint-2", "checkpoint-4"]
    assert (run / "checkpoint-4" / "model.safetensors").read_bytes() == before
    trainer(run, processor, **{**SAVING, "max_steps": 2}, overwrite_output_dir=True).train()
    assert names(run) == ["checkpoint-2"]


def test_what_a_killed_run_left_is_removed(run, processor):
    leftover = run / STAGING / "checkpoint-6"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    trainer(run, processor, max_steps=5).train(resume_from_checkpoint="auto")  # which saves no checkpoint itself
    assert not (run / STAGING).exists() and names(run) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize("length", [{"max_steps": 4}, {"max_steps": -1, "num_train_epochs": 1}])
def test_a_finished_run_is_not_trained_further(length, tmp_path, processor, caplog):
    options = {**SAVING, **length}
    first = trainer(tmp_path, processor, **options)
    first.train()  # 16 samples, 4 a batch: both lengths are 4 steps
    changed = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = trainer(tmp_path, processor, **options)
    torch.nn.init.zeros_(
        again.model.logit_scale if hasattr(again.model, "logit_scale") else again.model.text_model.wpe.weight
    )
    output = again.train(resume_from_checkpoint="auto")
    assert output.global_step == 4 and again.was_finished and "nothing is left to train" in caplog.text
    for (name, a), b in zip(first.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name  # the weights are those of the checkpoint
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == changed
    assert not first.was_finished


def test_settings_that_a_resumed_run_can_not_follow_are_refused(run, processor):
    for options, named in (
        ({"learning_rate": 2e-3}, r"learning_rate \(0.001 then, 0.002 now\)"),
        ({"weight_decay": 0.5}, r"weight_decay \(0.01 then, 0.5 now\)"),
        ({"per_device_train_batch_size": 8}, r"global_batch_size \(4 then, 8 now\)"),
        ({"gradient_accumulation_steps": 2}, r"global_batch_size \(4 then, 8 now\)"),
        ({"lr_scheduler_type": "cosine"}, r"lr_scheduler_type \(linear then, cosine now\)"),
    ):
        with pytest.raises(
            ValueError, match=f"can't follow other values of {named}.*begin a new run from the weights"
        ):
            trainer(run, processor, **{**SAVING, "max_steps": 6, **options}).train(resume_from_checkpoint="auto")
    assert names(run) == ["checkpoint-2", "checkpoint-4"]


def test_settings_that_make_a_resumed_run_another_one_are_named(run, processor, caplog):
    options = {**SAVING, "max_steps": 5, "seed": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer(run, processor, **options).train(resume_from_checkpoint="auto")
    assert "not the one that would have gone on" in caplog.text
    for change in (
        "seed (42 then, 3 now)",
        "per_device_train_batch_size (4 then, 2 now)",
        "max_steps (4 then, 5 now)",
    ):
        assert change in caplog.text
    assert "learning_rate" not in caplog.text and "num_processes" not in caplog.text


def test_a_checkpoint_of_before_says_that_it_can_not_be_compared(run, processor, caplog):
    (run / "checkpoint-4" / SETTINGS).unlink()
    trainer(run, processor, **{**SAVING, "max_steps": 5}).train(resume_from_checkpoint="auto")
    assert "they are not compared" in caplog.text


@pytest.mark.parametrize("limit", [1, 2])
def test_rotation_keeps_the_newest_and_the_best(limit, tmp_path, processor):
    options = {
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_total_limit": limit,
        "load_best_model_at_end": True,
        "metric_for_best_model": "score",
        "greater_is_better": True,
    }
    scores = iter([0.1, 0.9, 0.2, 0.3])
    one = trainer(tmp_path, processor, eval_dataset=samples(4), **options)
    one.compute_metrics = lambda prediction: {"score": next(scores)}
    seen = []

    class Saved(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append(names(tmp_path))

    one.add_callback(Saved())
    one.train()
    expected = [[4], [4, 6], [4, 8]] if limit == 1 else [[2, 4], [4, 6], [4, 8]]
    assert seen == [["checkpoint-2"], *([f"checkpoint-{step}" for step in steps] for steps in expected)]
    for path in find_checkpoints(tmp_path):  # where it was at that time, not where it was written
        state = json.loads((path / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-4")
    assert one.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")


def test_saving_the_model_replaces_each_file_whole(tmp_path, processor, monkeypatch):
    one = trainer(tmp_path, processor)
    one.save_model()
    before = (tmp_path / "model.safetensors").read_bytes()
    torch.nn.init.zeros_(one.model.text_model.wpe.weight)

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(one.processing_class), "save_pretrained", full)
        with pytest.raises(OSError, match="No space"):
            one.save_model()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    one.save_model()
    assert (tmp_path / "model.safetensors").read_bytes() != before
    assert not (tmp_path / STAGING).exists()


def test_the_weights_come_last(tmp_path, processor, monkeypatch):
    placed, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: placed.append(self.name) or replace(self, target))
    trainer(tmp_path, processor).save_model()
    assert placed[-1] == "model.safetensors" and {"config.json", "tokenizer.json"} < set(placed)


def test_signals_mean_after_the_training_what_they_meant_before(tmp_path, processor):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    during = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            during.append([signal.getsignal(number) for number in numbers])

    one = trainer(tmp_path, processor, max_steps=1)
    one.add_callback(Look())
    one.train()
    assert [signal.getsignal(number) for number in numbers] == before
    assert not set(during[0]) & set(before)


def test_changes_of_the_data_are_named(tmp_path, processor, caplog):
    def run(number: int, probability: float, **options):
        collator = LeVLJEPADataCollator(processor, transform=training_transform(32, flip_probability=probability))
        one = trainer(tmp_path, processor, number, data_collator=collator, **{**SAVING, **options})
        one.train(resume_from_checkpoint="auto")

    run(16, 0.5)
    run(16, 0.5, max_steps=5, dataloader_num_workers=1)
    assert "max_steps" in caplog.text and "collator" not in caplog.text and "num_workers" not in caplog.text
    run(12, 0.0, max_steps=6)
    assert "num_samples (16 then, 12 now)" in caplog.text and "collator_transform" in caplog.text


def test_changes_of_a_stream_are_named(tmp_path, processor, caplog):
    Dataset.from_list(
        [{"image": one["image"], "captions": one["captions"]} for one in samples(12)],
        features=Features({"image": Image(), "captions": List(Value("string"))}),
    ).save_to_disk(tmp_path / "data")

    def run(**options):
        stream = load_pretraining_dataset(str(tmp_path / "data"), streaming=True)
        trainer(tmp_path / "run", processor, train_dataset=stream, **{**SAVING, **options}).train("auto")

    run()
    run(max_steps=6, stream_buffer_size=7, dataloader_num_workers=1)
    assert "stream_buffer_size (1000 then, 7 now), dataloader_num_workers (0 then, 1 now)" in caplog.text


def test_with_other_processes_a_step_has_the_same_samples():
    """The position in a map-style dataset is a count of global batches, whose size must stay: no sample doubles."""
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0)).tolist()

    def steps(processes: int, batch: int) -> list[set[int]]:
        sampler = torch.utils.data.BatchSampler(order, batch, drop_last=True)
        ranks = [list(BatchSamplerShard(sampler, processes, rank)) for rank in range(processes)]
        return [{index for rank in step for index in rank} for step in zip(*ranks, strict=True)]

    assert steps(1, 8) == steps(2, 4) == steps(4, 2)
