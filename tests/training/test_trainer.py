"""LeVLJEPATrainer: what it logs and evaluates, accumulation, weight decay, resuming, and what stops it."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAProcessor
from levljepa_hf.data.collator import LeVLJEPADataCollator
from levljepa_hf.data.loading import load_pretraining_dataset
from levljepa_hf.data.streams import EndlessStream
from levljepa_hf.evaluation.embedding_health import effective_rank, embedding_health, sigreg_floor
from levljepa_hf.evaluation.retrieval import retrieval_recall
from levljepa_hf.training.distributed import GlobalBatchNorm, sharding_of
from levljepa_hf.training.metrics import EMBEDDINGS, FILLED, evaluation_figures, retrieval_metrics
from levljepa_hf.training.trainer import OBJECTIVE_SETTINGS, LeVLJEPATrainer, LeVLJEPATrainingArguments

TERMS = ("prediction_loss", "sigreg_vision", "sigreg_text")


def samples(number: int) -> list[dict[str, Any]]:
    """Images of one colour each, and captions that number them."""
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (number, 3)).tolist()
    return [
        {"image": PIL.Image.new("RGB", (40, 36), tuple(color)), "captions": [f"colour {i}", f"the {i}th colour"]}
        for i, color in enumerate(colors)
    ]


def new_model(**config: Any) -> LeVLJEPAModel:
    torch.manual_seed(0)
    return LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug", **config))


def trainer(
    folder: Path, processor: LeVLJEPAProcessor, number: int = 16, model: nn.Module | None = None, **options: Any
) -> LeVLJEPATrainer:
    names = ("train_dataset", "eval_dataset", "data_collator", "eval_data_collator", "callbacks")
    data = {name: options.pop(name) for name in names if name in options}
    options = {
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "logging_steps": 2,
        "learning_rate": 1e-3,
        "health_steps": 0,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        **options,
    }
    return LeVLJEPATrainer(
        model=new_model() if model is None else model,
        args=LeVLJEPATrainingArguments(str(folder), **options),
        processing_class=processor,
        **{"train_dataset": samples(number), **data},
    )


class Recorder(nn.Module):
    """A model that keeps every output it gives in training mode."""

    def __init__(self, model: LeVLJEPAModel) -> None:
        super().__init__()
        self.model, self.config, self.sigreg = model, model.config, model.sigreg
        self.outputs: list[Any] = []

    def forward(self, **inputs: Any) -> Any:
        outputs = self.model(**inputs)
        if self.training:
            self.outputs.append(outputs)
        return outputs


# Logging


@pytest.mark.parametrize("accumulation", [1, 2])
def test_logged_terms_are_the_means_over_the_window(tmp_path: Path, processor, accumulation: int) -> None:
    model = Recorder(new_model())
    run = trainer(tmp_path, processor, model=model, gradient_accumulation_steps=accumulation, max_steps=6)
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [2, 4, 6]
    window = 2 * accumulation
    for i, entry in enumerate(logs):
        outputs = model.outputs[i * window : (i + 1) * window]
        assert len(outputs) == window
        for name in ("loss", *TERMS):
            mean = torch.stack([output[name].detach() for output in outputs]).mean().item()
            assert entry[name] == pytest.approx(mean, rel=1e-5), name


def test_health_describes_the_current_batch_without_another_forward_pass(tmp_path: Path, processor) -> None:
    model = Recorder(new_model())
    run = trainer(tmp_path, processor, model=model, health_steps=3, logging_steps=2, max_steps=6)
    run.train()
    assert len(model.outputs) == 6
    logs = {entry["step"]: entry for entry in run.state.log_history if "loss" in entry}
    assert list(logs) == [2, 3, 4, 6], "a health step is a logging step"
    for step in (3, 6):
        output = model.outputs[step - 1]
        names = ("image_embeds", "text_embeds", "predicted_text_embeds", "predicted_image_embeds")
        for name, value in embedding_health(*(output[name] for name in names)).items():
            assert logs[step][name] == pytest.approx(value, rel=1e-4), name
        assert logs[step]["sigreg_floor"] == pytest.approx(1.0, abs=0.1)
    assert "effective_rank_vision" not in logs[2] and "effective_rank_vision" not in logs[4]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_health_step_is_one_of_the_optimizer(tmp_path: Path, processor, accumulation: int) -> None:
    """With accumulation its last micro-batch is described, once."""
    model = Recorder(new_model())
    run = trainer(
        tmp_path, processor, model=model, health_steps=2, logging_steps=100, gradient_accumulation_steps=accumulation
    )
    run.train()
    logs = {entry["step"]: entry for entry in run.state.log_history if "loss" in entry}
    assert list(logs) == [2, 4]
    for step, entry in logs.items():
        embeds = model.outputs[step * accumulation - 1]["text_embeds"]
        assert entry["effective_rank_text"] == pytest.approx(effective_rank(embeds), rel=1e-4)


@pytest.mark.parametrize("distributed, rows", [(True, 8), (False, 4)])
def test_the_floor_is_that_of_the_rows_that_sigreg_sees(
    tmp_path: Path, processor, distributed: bool, rows: int
) -> None:
    """Of two ranks with 4 samples each, SIGReg sees 8 or, taken on each device alone, 4."""
    model = new_model(sigreg_distributed=distributed, sigreg_sample_size_scale=100.0)
    run = trainer(tmp_path, processor, model=model)
    run.watcher._gathered_rows = lambda embeds: torch.cat([embeds, embeds])
    batch = run.eval_data_collator(samples(4))
    floor = run.watcher.describe(model(**batch))["sigreg_floor"]
    assert floor == pytest.approx(sigreg_floor(sample_size=rows, sample_size_scale=100.0))


def test_the_terms_that_are_logged_make_up_the_loss(tmp_path: Path, processor) -> None:
    """With weights that tell the modalities apart."""
    run = trainer(tmp_path, processor, model=new_model(sigreg_vision_weight=0.05, sigreg_text_weight=0.3))
    run.train()
    for entry in (entry for entry in run.state.log_history if "loss" in entry):
        terms = 0.65 * entry["prediction_loss"] + 0.05 * entry["sigreg_vision"] + 0.3 * entry["sigreg_text"]
        assert entry["loss"] == pytest.approx(terms, rel=1e-4)
        assert abs(entry["sigreg_vision"] - entry["sigreg_text"]) > 1e-3


# Evaluation


def test_evaluation_gives_loss_terms_and_recalls_of_every_sample(tmp_path: Path, processor) -> None:
    dataset = samples(11)
    run = trainer(tmp_path, processor, eval_dataset=dataset, per_device_eval_batch_size=4)
    metrics = run.evaluate()

    collator = LeVLJEPADataCollator(processor).for_evaluation()
    with torch.no_grad():
        output = run.model.eval()(**collator(dataset))
    names = ("image_embeds", "text_embeds", "predicted_text_embeds", "predicted_image_embeds")
    embeds = [output[name] for name in names]
    for name, value in {**retrieval_recall(*embeds), **embedding_health(*embeds)}.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    assert {f"eval_{way}_R@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)} <= set(metrics)
    # the mean over batches of 4, 4 and 3 weighs each sample the same: so does the mean over all of them
    assert metrics["eval_prediction_loss"] == pytest.approx(output.prediction_loss.item(), rel=1e-4)
    assert math.isfinite(metrics["eval_loss"]) and {f"eval_{name}" for name in TERMS} <= set(metrics)


def test_evaluation_leaves_out_samples_that_do_not_decode(tmp_path: Path, processor) -> None:
    dataset = samples(120)
    run = trainer(tmp_path, processor, per_device_eval_batch_size=16)
    expected = run.evaluate([s for i, s in enumerate(dataset) if i != 5])
    broken = [{**s, "image": b"broken"} if i == 5 else s for i, s in enumerate(dataset)]
    metrics = run.evaluate(broken)
    assert metrics["eval_text_to_image_R@10"] == pytest.approx(expected["eval_text_to_image_R@10"], abs=1e-6)
    assert metrics["eval_cosine_matched"] == pytest.approx(expected["eval_cosine_matched"], abs=1e-6)
    with pytest.raises(RuntimeError, match="Of 4 samples, 1 were skipped"):
        trainer(tmp_path, processor).evaluate([dataset[0], dataset[1], dataset[2], broken[5]])


def test_repeated_and_filled_rows_count_once() -> None:
    """As several ranks leave them: samples repeated to give each as many, and rows of no sample."""
    embeds = {
        name: np.random.default_rng(i).normal(size=(4, 8)).astype("float32") for i, name in enumerate(EMBEDDINGS)
    }
    rows = {**embeds, "loss": np.array([1.0, 2.0, 3.0, 4.0])}
    expected = retrieval_metrics(EvalPrediction(rows, np.arange(4)))
    order = [2, 0, 2, 3, 1, 0, 1]
    index = np.array([2, 0, 2, FILLED, 1, 3, FILLED])  # the rows at 3 and 6 are no samples; the one at 5 is sample 3
    order[5] = 3
    repeated = retrieval_metrics(EvalPrediction({name: values[order] for name, values in rows.items()}, index))
    assert repeated == pytest.approx(expected, rel=1e-5) and expected["loss"] == 2.5


def test_a_sample_repeated_within_a_batch_counts_once(tmp_path: Path, processor) -> None:
    run = trainer(tmp_path, processor, per_device_eval_batch_size=5)
    run.model.eval()
    batch = run.eval_data_collator(samples(3))
    expected, rows, index = run.prediction_step(run.model, {**batch, "sample_index": torch.tensor([4, 2, 7])}, False)
    twice = {name: values[[0, 1, 0, 2]] for name, values in batch.items()}
    twice["sample_index"] = torch.tensor([4, 2, 4, 7])
    loss, rows_of_twice, index_of_twice = run.prediction_step(run.model, twice, False)
    assert index.tolist() == [4, 2, 7, FILLED, FILLED] and index_of_twice.tolist()[3:] == [FILLED] * 2
    order = [index_of_twice.tolist().index(i) for i in (4, 2, 7)]
    torch.testing.assert_close(loss, expected)
    for name, values in rows.items():
        torch.testing.assert_close(rows_of_twice[name][order], values[:3], msg=name)


def test_predictions_are_those_of_the_samples_in_order(tmp_path: Path, processor) -> None:
    dataset = samples(7)
    output = trainer(tmp_path, processor, per_device_eval_batch_size=4).predict(dataset)
    assert [i for i in output.label_ids if i != FILLED] == list(range(7))
    embeds = output.predictions["image_embeds"][output.label_ids != FILLED]
    batch = LeVLJEPADataCollator(processor).for_evaluation()(dataset)
    expected = new_model().eval().get_image_features(batch["pixel_values"]).pooler_output
    torch.testing.assert_close(torch.from_numpy(embeds), expected.detach(), rtol=1e-4, atol=1e-5)


def test_the_evaluation_collator_given_is_used(tmp_path: Path, processor) -> None:
    """Evaluation data with columns of other names."""
    renamed = [{"photo": s["image"], "text": s["captions"]} for s in samples(6)]
    collator = LeVLJEPADataCollator(processor, "photo", "text", training=False)
    run = trainer(tmp_path, processor, eval_dataset=renamed, eval_data_collator=collator)
    metrics, usual = run.evaluate(), trainer(tmp_path, processor, eval_dataset=samples(6)).evaluate()
    for name in ("eval_loss", "eval_effective_rank_text", "eval_cosine_matched"):
        assert metrics[name] == pytest.approx(usual[name], rel=1e-5)


@pytest.mark.parametrize("objective", ["levljepa", "levljepa_plus", "infonce", "siglip"])
def test_the_figures_of_an_evaluation_are_known_before(tmp_path: Path, processor, objective: str) -> None:
    model = new_model(objective=objective)
    metrics = trainer(tmp_path, processor, model=model, eval_dataset=samples(6)).evaluate()
    known = {f"eval_{name}" for name in evaluation_figures(model.config)}
    assert known <= metrics.keys()
    assert (
        ("eval_contrastive_loss" in known) == (objective in ("infonce", "siglip")) != ("eval_prediction_loss" in known)
    )


def test_several_evaluation_sets(tmp_path: Path, processor) -> None:
    run = trainer(tmp_path, processor, eval_dataset={"a": samples(4), "b": samples(6)})
    metrics = run.evaluate()
    assert {"eval_a_text_to_image_R@1", "eval_b_text_to_image_R@1", "eval_a_prediction_loss"} <= set(metrics)
    assert metrics["eval_a_text_to_image_R@5"] == 1.0 > metrics["eval_b_text_to_image_R@1"]


def test_the_stock_trainer_predicts_tensors(tmp_path: Path, processor) -> None:
    """transformers' own Trainer, with our collator: no whole output objects among the predictions."""
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, per_device_eval_batch_size=4, remove_unused_columns=False, report_to="none"
    )
    collator = LeVLJEPADataCollator(processor).for_evaluation()
    run = Trainer(new_model(), args, data_collator=collator)
    output = run.predict(samples(8))
    assert all(isinstance(values, np.ndarray) for values in output.predictions)
    with torch.no_grad():
        batches = [run.model.eval()(**collator(samples(8)[i : i + 4])) for i in (0, 4)]
    names = [name for name in batches[0] if name not in ("loss", "vision_model_output", "text_model_output")]
    assert len(output.predictions) == len(names) and set(TERMS) < set(names)
    for name, values in zip(names, output.predictions, strict=True):
        expected = torch.cat([torch.atleast_1d(batch[name]) for batch in batches])
        torch.testing.assert_close(torch.from_numpy(values), expected, rtol=1e-4, atol=1e-5, msg=name)
    metrics = run.evaluate(samples(8))
    assert metrics["eval_loss"] == pytest.approx(sum(batch.loss.item() for batch in batches) / 2, rel=1e-4)


# The step


class LearningRates(TrainerCallback):
    """The learning rate of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.values.append(optimizer.param_groups[0]["lr"])


def official_learning_rates(name: str, steps: int, warmup: int, decay: int, peak: float, floor: float) -> list[float]:
    """As the official code puts them together from torch's schedulers."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    stable = steps - warmup - decay if name == "warmup_stable_decay" else 0
    schedulers = [
        lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=warmup),
        lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=stable),
        lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - warmup - stable, eta_min=floor),
    ]
    milestones = [warmup, warmup + stable]
    if name != "warmup_stable_decay":
        del schedulers[1], milestones[1]
    scheduler = lr_scheduler.SequentialLR(optimizer, schedulers, milestones)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    "name, decay, options",
    [
        ("warmup_stable_decay", 3, {"lr_scheduler_kwargs": {"min_lr_ratio": 0.1}}),
        ("warmup_stable_decay", 5, {"lr_scheduler_kwargs": {"min_lr_ratio": 0.1, "num_decay_steps": 5}}),
        ("warmup_stable_decay", 8, {"lr_scheduler_kwargs": {"min_lr_ratio": 0.1}, "wsd_decay_frac": 0.4}),
        ("cosine_with_min_lr", 0, {"lr_scheduler_kwargs": {"min_lr": 2e-5}}),
    ],
)
def test_learning_rates_are_those_of_the_official_schedule(
    tmp_path: Path, processor, name: str, decay: int, options: dict[str, Any]
) -> None:
    """Of every step; and a run resumed in the warm-up or in the decay goes on with them."""
    steps, warmup = 20, 10
    expected = official_learning_rates(name, steps, warmup, decay, peak=2e-4, floor=2e-5)

    def run(resume: str | None = None) -> tuple[list[float], float]:
        rates = LearningRates()
        saving = {"save_strategy": "steps", "save_steps": 9} if resume is None else {}
        options.update(max_steps=steps, learning_rate=2e-4, warmup_steps=warmup, warmup_start_factor=0.01)
        one = trainer(tmp_path, processor, 8, callbacks=[rates], lr_scheduler_type=name, **options, **saving)
        one.train(resume_from_checkpoint=resume)
        return rates.values, one.lr_scheduler.get_last_lr()[0]

    rates, last = run()
    assert rates == pytest.approx(expected, rel=1e-9) and last == pytest.approx(2e-5, rel=1e-9)
    for step in (9, 18):
        assert run(str(tmp_path / f"checkpoint-{step}"))[0] == pytest.approx(expected[step:], rel=1e-9)


def test_schedules_that_cannot_be(tmp_path: Path, processor) -> None:
    run = trainer(tmp_path, processor, max_steps=10, lr_scheduler_type="warmup_stable_decay", warmup_steps=9)
    with pytest.raises(ValueError, match="warm-up of 9 steps .* a decay of 2 .* longer than the run of 10 steps"):
        run.train()
    run = trainer(tmp_path, processor, warmup_start_factor=0.1, warmup_steps=2)
    run.args.lr_scheduler_type = "greedy"
    run.create_optimizer()
    with pytest.raises(ValueError, match="warmup_start_factor=0.1 needs a schedule with a warm-up, and GreedyLR has"):
        run.create_scheduler(4)
    for name in ("warmup_start_factor", "wsd_decay_frac"):
        with pytest.raises(ValueError, match=f"{name}=15 is a share: it must be between 0 and 1"):
            LeVLJEPATrainingArguments(str(tmp_path), use_cpu=True, **{name: 15})


def test_a_run_with_another_length_decays_over_its_own(tmp_path: Path, processor) -> None:
    run = trainer(tmp_path, processor, lr_scheduler_type="warmup_stable_decay", wsd_decay_frac=0.5)
    for steps in (4, 8):
        rates = LearningRates()
        run.add_callback(rates)
        run.args.max_steps, run.lr_scheduler = steps, None
        run.train()
        assert rates.values[: steps // 2 + 1] == [1e-3] * (steps // 2 + 1) and rates.values[-1] < 1e-3
        run.remove_callback(rates)


@pytest.mark.parametrize("encoder_micro_batch_size", [None, 2])
def test_accumulated_gradients_are_the_mean_and_not_the_sum(
    tmp_path: Path, processor, encoder_micro_batch_size: int | None
) -> None:
    """One step of SGD over two micro-batches moves the weights by the mean of their gradients."""
    reference = new_model().train()
    reference.sigreg.seed = 42
    run = trainer(
        tmp_path,
        processor,
        number=8,
        optim="sgd",
        gradient_accumulation_steps=2,
        max_steps=1,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        logging_steps=1,
        encoder_micro_batch_size=encoder_micro_batch_size,
    )
    losses = [reference(**run.data.on_device(batch)).loss for batch in run.get_train_dataloader()]
    (sum(losses) / 2).backward()
    run.model.eval()  # training is the Trainer's to switch on
    run.train()
    assert run.state.log_history[0]["loss"] == pytest.approx(sum(losses).item() / 2, rel=1e-4)
    trained = dict(run.model.named_parameters())
    for name, parameter in reference.named_parameters():
        step = 0.1 * parameter.grad
        error = trained[name] - (parameter - step)
        # as a whole: where large terms cancel, a single element follows the order of their sum
        assert error.norm() <= 1e-4 * step.norm() + 1e-5, name


def test_weight_decay_groups(tmp_path: Path, processor) -> None:
    model = new_model(vision_config={"num_register_tokens": 2})
    run = trainer(tmp_path, processor, model=model)
    decayed = set(run.get_decay_parameter_names(model))
    for name, parameter in model.named_parameters():
        exempt = parameter.dim() <= 1 or name.endswith(("pos_embed", "cls_token", "reg_token"))
        assert (name in decayed) == (not exempt), name
    norms = {"vision_projection.1.weight", "vision_predictor.1.bias", "text_model.ln_f.weight"}
    assert not norms & decayed
    assert {"text_model.wte.weight", "vision_predictor.0.weight"} <= decayed
    groups = {group["weight_decay"]: len(group["params"]) for group in run.create_optimizer().param_groups}
    assert groups == {0.01: len(decayed), 0.0: len(list(model.parameters())) - len(decayed)}

    run = trainer(tmp_path, processor, model=model, weight_decay_parameters="all")
    assert len(run.get_decay_parameter_names(model)) == len(list(model.parameters()))


def test_seed_reaches_sigreg_and_model_init_is_prepared(tmp_path: Path, processor, monkeypatch) -> None:
    assert trainer(tmp_path, processor, seed=7).model.sigreg.seed == 7
    monkeypatch.setattr(LeVLJEPATrainingArguments, "world_size", 2)
    args = LeVLJEPATrainingArguments(str(tmp_path), use_cpu=True, seed=7)
    for run in (LeVLJEPATrainer(new_model(), args), LeVLJEPATrainer(model_init=lambda: new_model(), args=args)):
        assert run.model.sigreg.seed == 7
        assert isinstance(run.model.vision_projection[1], GlobalBatchNorm)


def test_a_frozen_tower_stays_as_it_is(tmp_path: Path, processor) -> None:
    model = new_model()
    model.vision_model.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer(tmp_path, processor, model=model).train()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("vision_model"), name


# Saving and resuming


def trajectory(run: LeVLJEPATrainer, *names: str) -> list[dict[str, float]]:
    names = names or ("step", "loss", *TERMS)
    return [{name: entry[name] for name in names} for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize("accumulation, save_at", [(1, 3), (2, 2), (1, 4), (1, 5)])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, processor, accumulation: int, save_at: int) -> None:
    """Epochs of 4 batches (16 samples), saved inside one, at its end, in the next; with dropout and augmentation."""

    def run(resume: str | None = None) -> LeVLJEPATrainer:
        model = new_model(text_config={"embd_pdrop": 0.1})
        torch.manual_seed(99 if resume else 1)  # the state outside must not matter
        options = {"save_strategy": "steps", "save_steps": save_at, "max_steps": 6, "logging_steps": 1}
        one = trainer(tmp_path, processor, model=model, gradient_accumulation_steps=accumulation, **options)
        one.train(resume_from_checkpoint=resume)
        return one

    whole = run()
    resumed = run(str(tmp_path / f"checkpoint-{save_at}"))
    assert trajectory(resumed) == trajectory(whole)
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("num_workers, save_at", [(0, 4), (2, 3), (2, 4)])
def test_a_resumed_stream_is_the_uninterrupted_one(tmp_path: Path, processor, num_workers: int, save_at: int) -> None:
    from datasets import Dataset, Features, Image, List, Value

    features = Features({"image": Image(), "captions": List(Value("string"))})
    Dataset.from_list(samples(10), features=features).save_to_disk(tmp_path / "data")

    def run(resume: str | None = None) -> LeVLJEPATrainer:
        stream = load_pretraining_dataset(str(tmp_path / "data"), streaming=True)
        options = {"save_strategy": "steps", "save_steps": save_at, "max_steps": 6, "logging_steps": 1}
        options["dataloader_num_workers"] = num_workers
        model = new_model(text_config={"embd_pdrop": 0.1})
        torch.manual_seed(99 if resume else 1)  # the state outside must not matter
        one = trainer(tmp_path / "run", processor, model=model, train_dataset=stream, stream_buffer_size=5, **options)
        assert isinstance(one.train_dataset, EndlessStream)
        one.train(resume_from_checkpoint=resume)
        return one

    whole = run()
    assert len({entry["loss"] for entry in trajectory(whole)}) == 6, "no two batches are the same"
    resumed = run(str(tmp_path / "run" / f"checkpoint-{save_at}"))
    assert trajectory(resumed) == trajectory(whole)
    assert trajectory(resumed, "step", "epoch") == trajectory(whole, "step", "epoch")


def test_options_reach_collator_stream_and_loader(tmp_path: Path, processor) -> None:
    assert trainer(tmp_path, processor, seed=7).data_collator.seed == 7
    stream = datasets.Dataset.from_dict({"image": [b"x"] * 4, "captions": ["a"] * 4}).to_iterable_dataset()
    run = trainer(tmp_path, processor, train_dataset=stream, seed=7, stream_buffer_size=3, dataloader_num_workers=2)
    assert (run.train_dataset.seed, run.train_dataset.buffer_size) == (7, 3)
    loader = run.get_train_dataloader()
    assert (loader.num_workers, loader.batch_size, loader.drop_last) == (2, 4, True)
    assert loader.collate_fn.collator.counter is run.data_collator.counter


def test_an_order_by_length_is_refused(tmp_path: Path, processor) -> None:
    run = trainer(tmp_path, processor, train_sampling_strategy="group_by_length")
    with pytest.raises(ValueError, match="'group_by_length' needs the lengths of the samples.* use random or sequent"):
        run.get_train_dataloader()


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_the_views_of_levljepa_plus_come_by_themselves(tmp_path: Path, processor, micro_batch_size) -> None:
    model = new_model(objective="levljepa_plus", views={"global": 3, "local": 1})
    run = trainer(tmp_path, processor, model=model, max_steps=2, encoder_micro_batch_size=micro_batch_size)
    batch = next(iter(run.get_train_dataloader()))
    assert batch["pixel_values"].shape == (4, 3, 3, 32, 32) and batch["local_pixel_values"].shape == (4, 1, 3, 16, 16)
    run.train()
    log = next(entry for entry in run.state.log_history if "multi_view_loss" in entry)
    assert 0 < log["multi_view_loss"] < 10 and log["prediction_loss"] > 0
    assert next(iter(run.get_eval_dataloader(samples(4))))["pixel_values"].shape == (4, 3, 32, 32)


def test_the_views_of_a_model_that_is_made_later(tmp_path: Path, processor) -> None:
    args = LeVLJEPATrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, max_steps=1, use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    run = LeVLJEPATrainer(
        args=args,
        model_init=lambda: new_model(objective="levljepa_plus"),
        train_dataset=samples(8),
        processing_class=processor,
    )
    assert run.train().training_loss > 0


def test_a_transform_that_gives_floats_is_refused(tmp_path: Path, processor) -> None:
    collator = LeVLJEPADataCollator(processor, transform=lambda image: torch.zeros(3, 32, 32))
    for normalize in (True, False):
        with pytest.raises(ValueError, match="The transform gave an image of torch.float32"):
            dataclasses.replace(collator, normalize=normalize)(samples(2))


def test_another_objective_is_refused_on_resuming(tmp_path: Path, processor, caplog) -> None:
    trainer(tmp_path, processor, max_steps=2, save_strategy="steps", save_steps=1).train()
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    other = trainer(tmp_path, processor, model=new_model(objective="infonce"), **options)
    with pytest.raises(ValueError, match=r"objective \(levljepa then, infonce now\)"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    weights = trainer(tmp_path, processor, model=new_model(sigreg_vision_weight=0.3), **options)
    weights.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert "sigreg_vision_weight (0.02 then, 0.3 now)" in caplog.text


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharding_that_the_launcher_asks_for_is_seen(tmp_path: Path, processor, monkeypatch, name: str) -> None:
    args = LeVLJEPATrainingArguments(str(tmp_path), use_cpu=True)
    assert sharding_of(args) is None
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    assert sharding_of(args) == {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed"}[name]
    if name == "FSDP":
        with pytest.raises(ValueError, match="not with FSDP"):
            trainer(tmp_path, processor, encoder_micro_batch_size=2)
        with pytest.raises(ValueError, match="fsdp has no effect on the CPU"):
            trainer(tmp_path, processor)


def test_the_scale_of_a_contrastive_loss_does_not_decay(tmp_path: Path, processor) -> None:
    model = new_model(objective="siglip")
    for choice, some in (("all", "vision_projection.0.bias"), ("matrices", "vision_projection.0.weight")):
        run = trainer(tmp_path, processor, model=model, weight_decay_parameters=choice)
        names = run.get_decay_parameter_names(model)
        assert some in names and not any(name.startswith("contrastive") for name in names)


def test_pixels_travel_as_bytes_and_are_normalised_on_arrival(tmp_path: Path, processor) -> None:
    run = trainer(tmp_path, processor, train_sampling_strategy="sequential")
    batch = next(iter(run.get_train_dataloader()))
    assert batch["pixel_values"].dtype == torch.uint8
    expected = run.data_collator([run.train_dataset[i] for i in range(4)])["pixel_values"]
    pixels = run.data.on_device(batch)["pixel_values"]
    assert pixels.dtype == torch.float32 and torch.equal(pixels, expected)
    kept = run.data.on_device({"pixel_values": expected})["pixel_values"]
    assert torch.equal(kept, expected), "what is float is left as it is"


def test_each_epoch_is_augmented_anew(tmp_path: Path, processor, monkeypatch) -> None:
    """Whatever tells the dataset: with several processes accelerate tells the sampler alone."""
    monkeypatch.setattr("accelerate.data_loader.DataLoaderShard.set_epoch", lambda self, epoch: None)
    model = Recorder(new_model())
    options = {"max_steps": 3, "learning_rate": 0.0, "lr_scheduler_type": "constant", "weight_decay": 0.0}
    trainer(tmp_path, processor, number=4, model=model, **options).train()
    ranks = [effective_rank(output["image_embeds"]) for output in model.outputs]  # the order of the rows is no part
    assert len(set(ranks)) == 3 and max(ranks) - min(ranks) > 1e-3


def test_model_and_processor_are_saved_together(tmp_path: Path, processor) -> None:
    run = trainer(tmp_path, processor)
    run.train()
    run.save_model()
    model, loaded = LeVLJEPAModel.from_pretrained(tmp_path), LeVLJEPAProcessor.from_pretrained(tmp_path)
    for (name, a), b in zip(run.model.state_dict().items(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)
    image = PIL.Image.new("RGB", (50, 40), (10, 100, 200))
    one, other = (p(images=image, text=["a b"], return_tensors="pt") for p in (processor, loaded))
    for name in one:
        torch.testing.assert_close(one[name], other[name])


# What stops it


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


class Poison(nn.Module):
    """A head whose output is not a number, from some call on."""

    def __init__(self, head: nn.Module, calls: int) -> None:
        super().__init__()
        self.head, self.calls = head, calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls -= 1
        return self.head(x if self.calls >= 0 else x * float("nan"))


def test_a_loss_that_is_not_finite_stops_with_a_sound_checkpoint(tmp_path: Path, processor) -> None:
    model = new_model()
    model.text_projection = Poison(model.text_projection, calls=2)
    run = trainer(tmp_path, processor, model=model, logging_steps=100)
    message = "Not finite since step 3: loss, prediction_loss, sigreg_text[.] .*checkpoint-2"  # and not sigreg_vision
    with pytest.raises(FloatingPointError, match=message):
        run.train()
    assert json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["global_step"] == 2
    assert (tmp_path / "checkpoint-2" / "optimizer.pt").exists()

    sound = trainer(tmp_path / "sound", processor, max_steps=4, callbacks=[StopAt(2)])
    sound.train()
    expected = sound.model.state_dict()
    for name, tensor in model.state_dict().items():  # weights, BatchNorm's statistics and SIGReg's step
        torch.testing.assert_close(tensor, expected[re.sub("text_projection.head", "text_projection", name)], msg=name)


def test_too_many_samples_skipped_stop_the_run_at_the_end_of_the_epoch(tmp_path: Path, processor) -> None:
    dataset = samples(15) + [{"image": b"broken", "captions": "x"}]
    with pytest.raises(RuntimeError, match="Of 16 samples, 1 were skipped because their image"):
        trainer(tmp_path, processor, train_dataset=dataset, max_steps=20).train()


def test_few_skipped_samples_are_reported(tmp_path: Path, processor) -> None:
    dataset = [{"image": b"broken", "captions": "x"}] + samples(300)
    options = {"per_device_train_batch_size": 100, "max_steps": 4, "train_sampling_strategy": "sequential"}
    run = trainer(tmp_path, processor, train_dataset=dataset, **options)
    metrics = run.train().metrics
    assert metrics["skipped_images"] == 2, "once in each of the two epochs that were begun"
    assert [entry["skipped_images"] for entry in trajectory(run, "skipped_images")] == [1, 2]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"per_device_train_batch_size": 1}, "per_device_train_batch_size=1 .* is a batch of one"),
        ({"per_device_train_batch_size": 17}, "has 16 samples, less than one batch .17 a process"),
    ],
)
def test_batches_that_are_too_small(tmp_path: Path, processor, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, processor, **options)


class Lossless(Recorder):
    """A model that is never asked for its loss."""

    def forward(self, **inputs: Any) -> Any:
        return super().forward(**inputs, return_loss=False)


def test_a_model_without_a_loss(tmp_path: Path, processor) -> None:
    run = trainer(tmp_path, processor, model=Lossless(new_model()))
    with pytest.raises(
        ValueError, match="returned no loss: it needs as many captions as images, and return_loss=True"
    ):
        run.train()
    metrics = run.evaluate(samples(6))
    assert "eval_loss" not in metrics and "eval_text_to_image_R@1" in metrics


@pytest.mark.parametrize("encoder_micro_batch_size", [None, 2])
def test_a_model_without_predictors_trains(tmp_path: Path, processor, encoder_micro_batch_size: int | None) -> None:
    """The embeddings themselves are compared, and evaluated with the readout `zeroshot`."""
    options = {"encoder_micro_batch_size": encoder_micro_batch_size, "eval_dataset": samples(12), "max_steps": 12}
    run = trainer(tmp_path, processor, model=new_model(predictor_num_layers=0), health_steps=12, **options)
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    assert after["eval_prediction_loss"] < before["eval_prediction_loss"]
    assert any("cosine_matched" in entry for entry in run.state.log_history)
    batch = run.eval_data_collator(samples(12))
    with torch.no_grad():
        output = run.model.eval()(**batch)
    recalls = retrieval_recall(output.image_embeds, output.text_embeds, readout="zeroshot")
    assert {f"eval_{name}": value for name, value in recalls.items()}.items() <= after.items()


def test_plain_training_arguments(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="LeVLJEPATrainingArguments, not TrainingArguments"):
        LeVLJEPATrainer(new_model(), TrainingArguments(str(tmp_path), use_cpu=True))


def test_compiles_once_for_captions_of_every_length(tmp_path: Path, processor) -> None:
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    lengths = [{"image": samples(1)[0]["image"], "captions": "cat " * (1 + i // 2)} for i in range(16)]
    args = LeVLJEPATrainingArguments(
        str(tmp_path),
        use_cpu=True,
        per_device_train_batch_size=4,
        max_steps=4,
        save_strategy="no",
        report_to="none",
        torch_compile=True,
        torch_compile_backend="eager",
    )
    LeVLJEPATrainer(new_model(), args, LeVLJEPADataCollator(processor), lengths, processing_class=processor).train()
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
def test_compiled_evaluation_without_training(tmp_path: Path, processor) -> None:
    """The whole model with its loss in eval mode, where the step of SIGReg's draw is a constant for the compiler."""
    torch._dynamo.reset()
    small = {"vision_config": {"num_hidden_layers": 1}, "text_config": {"n_layer": 1}, "predictor_num_layers": 1}
    metrics = []
    for torch_compile in (False, True):
        options = {"torch_compile": torch_compile, "per_device_eval_batch_size": 8}
        metrics.append(trainer(tmp_path, processor, model=new_model(**small), **options).evaluate(samples(8)))
    for name in ("loss", *TERMS, "cosine_matched"):
        assert metrics[1][f"eval_{name}"] == pytest.approx(metrics[0][f"eval_{name}"], rel=1e-4), name


# Numbers that can't be meant


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0 must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0 must be at least 1"),
        ({"max_steps": 0}, "max_steps=0 must be at least 1, or -1"),
        ({"max_steps": -5}, "max_steps=-5 must be at least 1, or -1"),
        ({"num_train_epochs": 0}, "num_train_epochs=0 must be larger than 0"),
        ({"learning_rate": -1e-4}, "learning_rate=-0.0001 must be at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be at least 0"),
        ({"learning_rate": float("inf")}, "learning_rate=inf must be at least 0"),
        ({"save_steps": 0}, "save_steps=0 must be larger than 0"),
        ({"eval_steps": -1}, "eval_steps=-1 must be larger than 0"),
        ({"logging_steps": 0}, "logging_steps=0 must be larger than 0"),
        ({"save_total_limit": 0}, "save_total_limit=0 must be at least 1"),
        ({"stream_buffer_size": 0}, "stream_buffer_size=0 must be at least 1"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers=-1 must be at least 0"),
        ({"encoder_micro_batch_size": 0}, "encoder_micro_batch_size=0 must be at least 1"),
        ({"adam_beta2": 1.0}, "adam_beta2=1.0 must be below 1"),
        ({"max_skipped_shards": 1.5}, "max_skipped_shards=1.5 is a share"),
    ],
)
def test_numbers_are_refused_before_any_work(options, message, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LeVLJEPATrainingArguments(str(tmp_path), use_cpu=True, **options)


def test_sharding_without_effect_is_refused(tmp_path: Path, processor) -> None:
    with pytest.raises(ValueError, match="fsdp has no effect on the CPU"):
        trainer(tmp_path, processor, fsdp=True)


def test_the_first_line_says_how_the_run_runs(tmp_path: Path, processor, capsys) -> None:
    trainer(tmp_path, processor, max_steps=1, gradient_accumulation_steps=2, bf16=True).train()
    expected = "Training: 1 process on cpu, bf16, no sharding, global batch 8 = 1 x 4 x 2 (processes x batch x accum"
    assert capsys.readouterr().out.startswith(expected)


def test_every_field_of_the_objective_is_compared_on_resuming():
    """A new field of the configuration is to be one or the other."""
    of_the_model = {"vision_config", "text_config", "projection_dim", "text_readout", "contrastive_initial_scale"}
    of_the_model |= {f"{part}_{what}" for part in ("head", "predictor") for what in ("hidden_size", "num_layers")}
    of_the_model |= {"predictor_dropout", "local_image_size", "logit_scale", "semantic_loss_ignore_index"}
    own = set(LeVLJEPAConfig.__annotations__) - {"model_type", "sub_configs", "keys_to_ignore_at_inference"}
    assert own == of_the_model | set(OBJECTIVE_SETTINGS)
