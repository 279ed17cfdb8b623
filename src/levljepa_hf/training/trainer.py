"""The Trainer: transformers' own, with an eye on the embeddings.

A step, as `LeVLJEPATrainer` takes it, is in `training_step`, from the top:

- what the batch says of its origin is noted (`order.py`), and its pixels become floats on the device;
- the model gives its loss, a mean of named terms, by `compute_loss` or in micro-batches (`large_batch.py`);
- the terms are recorded for the log (`watcher.py`), and one that is not finite ends the run, with the state before the
  step in a checkpoint, before it reaches the weights (`stopping.py`).

The loop around it is transformers'. It tells the three objects of those files, which are callbacks, when epochs and
steps begin and end; `checkpoints.py` has how a run is saved and taken up again.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from ..data.collator import LeVLJEPADataCollator, image_size, objective_transform
from ..data.loading import find_columns
from ..data.streams import SAMPLE_INDEX
from ..data.tar_shards import TarShards
from ..hub.publishing import ModelCardMixin
from ..model.configuration_levljepa import LeVLJEPAConfig
from .arguments import LeVLJEPATrainingArguments
from .checkpoints import ResumableTrainer
from .distributed import check_sharding, convert_sync_batchnorm
from .large_batch import LargeBatchStep
from .metrics import evaluation_figures, evaluation_rows, loss_terms, retrieval_metrics
from .order import TrainingData, check_batch, data_loader, numbered, reproducible, train_batch_size
from .schedule import schedule_options, with_warmup_from
from .stopping import StepGuard, not_finite_error
from .watcher import Watcher

OBJECTIVE_SETTINGS = (
    *("objective", "prediction_loss_type", "stop_gradient", "views", "multi_view_weight"),
    *(
        "sigreg_vision_weight",
        "sigreg_text_weight",
        "sigreg_num_directions",
        "sigreg_num_knots",
        "sigreg_t_max",
        "sigreg_sample_size_scale",
        "sigreg_distributed",
    ),
)  # of a model's configuration
NO_WEIGHT_DECAY = ("pos_embed", "cls_token", "reg_token", "dist_token")  # timm's convention


class LeVLJEPATrainer(ModelCardMixin, ResumableTrainer):
    """Trains a `LeVLJEPAModel`, or any model whose output names `loss` and the terms it consists of.

    - Each scalar of the model's output is logged: the mean over the steps since the last log, and over all ranks.
    - Every `health_steps` steps the embeddings of the current batch (of all ranks) are described, without another
      forward pass; collapse and divergence are warned of in words (`training/warnings.py`).
    - Each line of the log has the throughput (`training/throughput.py`), and stands in `log.jsonl` too.
    - With a `probe_dataset` the model is probed on labelled data while it is trained (`training/probing.py`).
    - Evaluation gives the loss, its terms and retrieval recalls, such as `eval_text_to_image_R@10`. Images go through
      the processor as it is, not the official evaluation transform (`evaluation_image_processor`).
    - Samples are numbered (`NumberedDataset`) and streams repeated without end (`EndlessStream`), so that what the
      collator draws follows from the seed, and a resumed run continues as if it had not stopped. Of a `Mixture` it
      logs how many samples each dataset gave since the first step, over all ranks (`samples/NAME`).
    - With several processes BatchNorm takes its statistics over all ranks, and so does SIGReg unless the model's
      `config.sigreg_distributed` is `False`.
    - `create_model_card`, which `push_to_hub` calls, says what was trained on what, and how it went (`hub/cards.py`).
    - A loss that is not finite stops the run: a checkpoint of the state before that step is written, and an error
      names the terms.

    With gradient accumulation each micro-batch is a batch of its own for BatchNorm and SIGReg; the loss is their mean.

    Args:
        model: the model; or `model_init` among `kwargs`.
        args: `LeVLJEPATrainingArguments`.
        data_collator: a `LeVLJEPADataCollator`; by default one of `processing_class` and the usual column names.
        eval_data_collator: the one for evaluation; by default `data_collator.for_evaluation()`.
        train_dataset: samples of images and captions, or a `Mixture` of several datasets; with a
            `datasets.IterableDataset` it needs `max_steps`.
        eval_dataset: a map-style dataset, or a dict of several.
        processing_class: the processor, saved beside the model.
        kwargs: further arguments of `Trainer`.

    Raises:
        ValueError: for a batch of one, or a training set smaller than a batch.
        FloatingPointError: in `train`, if a loss term is not finite.
        RuntimeError: in `train`, if more than 1 % of the samples had to be skipped.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: LeVLJEPATrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        eval_data_collator: Any = None,
        **kwargs: Any,
    ) -> None:
        args = LeVLJEPATrainingArguments() if args is None else args
        if not isinstance(args, LeVLJEPATrainingArguments):
            raise TypeError(f"args must be LeVLJEPATrainingArguments, not {type(args).__name__}.")
        prepared_dataset = reproducible(train_dataset, args)
        check_batch(args, prepared_dataset)
        check_sharding(args)
        kwargs.setdefault("compute_metrics", retrieval_metrics)
        super().__init__(
            model=None if model is None else _prepared(model, args),
            args=args,
            data_collator=data_collator,
            train_dataset=prepared_dataset,
            eval_dataset=numbered(eval_dataset),
            processing_class=processing_class,
            stopping=StepGuard(),
            **kwargs,
        )
        if data_collator is None and processing_class is not None:  # the model, by now, says which views it takes
            self.data_collator = _default_collator(processing_class, train_dataset, args.seed, self.model)
        self.eval_data_collator = eval_data_collator or _for_evaluation(self.data_collator)
        self.model_accepts_loss_kwargs = False  # the loss is a mean: with accumulation it must be divided
        self.data = TrainingData(prepared_dataset, self.data_collator, args, self.accelerator)
        self.watcher = Watcher(args, self.accelerator, self.model, processing_class, self.log)
        size = args.encoder_micro_batch_size
        self.large_batch = None if size is None else LargeBatchStep(self.accelerator, size, args.torch_compile)
        self.add_callback(self.data)
        self.add_callback(self.watcher)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        return _prepared(super().call_model_init(trial), self.args)

    # The data

    def get_train_dataloader(self) -> DataLoader:
        return self.data.loader(train_batch_size(self))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        if eval_dataset is None:
            eval_dataset = self.eval_dataset
        elif isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        if eval_dataset is None:
            raise ValueError("There is nothing to evaluate on: give an eval_dataset.")
        return self.get_test_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Every sample once, in order: none is dropped. The workers end with the evaluation."""
        options = {"batch_size": self.args.eval_batch_size, "persistent_workers": False}
        loader = data_loader(self.args, numbered(test_dataset), self.eval_data_collator, **options)
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        with self.watcher.throughput.waiting():
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    # A step

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        self.data.take(inputs)
        inputs = self.data.on_device(send_to_device(inputs, self.args.device))
        if self.large_batch is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            accumulation = self.current_gradient_accumulation_steps
            outputs = self.large_batch(model, inputs, accumulation)
            self._record(outputs)
            loss = outputs.loss.detach() / accumulation
        bad_terms = self.stopping.bad_terms()
        if bad_terms:
            self._stop(model, bad_terms)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        if self.args.torch_compile:  # one compilation for captions of every length
            for name in ("input_ids", "attention_mask"):
                torch._dynamo.maybe_mark_dynamic(inputs[name], 1)
        outputs = model(**inputs)
        if outputs.loss is None:
            raise ValueError(
                "The model returned no loss: it needs as many captions as images, and return_loss=True, which is the "
                "default."
            )
        if model.training:
            self._record(outputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _record(self, outputs: Any) -> None:
        """Takes from a training step's outputs what can stop the run, and what is logged."""
        terms = loss_terms(outputs)
        self.stopping.ask({"loss": outputs.loss, **terms})  # answered while the backward pass goes on
        self.watcher.record(outputs, terms, step=self.state.global_step + 1)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the gradient. One that is not finite stops the run before it reaches the weights."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if not self.args.fp16 and not math.isfinite(grad_norm):  # fp16's scaler skips such steps by itself
            self._stop(model, ["the gradient"])
        return grad_norm

    def _stop(self, model: nn.Module, bad_terms: list[str]) -> None:
        self.stopping.go_back()
        self.data.go_back()
        self._save_checkpoint(model, trial=None)
        raise not_finite_error(bad_terms, self.state.global_step, self.args.output_dir)

    # Optimizer and schedule

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        if self.args.weight_decay_parameters == "all":
            return [name for name, _ in model.named_parameters() if not name.startswith("contrastive.")]
        shapes = {name: parameter.dim() for name, parameter in model.named_parameters()}
        names = super().get_decay_parameter_names(model)
        return [name for name in names if shapes[name] > 1 and name.split(".")[-1] not in NO_WEIGHT_DECAY]

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """transformers' own schedulers; `wsd_decay_frac` is a decay's length, `warmup_start_factor` where they start.

        Raises:
            ValueError: if the warm-up and the decay are longer than the run, or the scheduler has no warm-up to move.
        """
        if self.lr_scheduler is not None:
            return self.lr_scheduler
        args, given = self.args, self.args.lr_scheduler_kwargs
        args.lr_scheduler_kwargs = schedule_options(args, num_training_steps)  # which the base class reads
        try:
            scheduler = super().create_scheduler(num_training_steps, optimizer)
        except TypeError as error:
            raise ValueError(
                f"lr_scheduler_kwargs={given} does not go with lr_scheduler_type={args.lr_scheduler_type.value!r}: "
                f"{error}."
            ) from error
        finally:
            args.lr_scheduler_kwargs = given
        warmup_steps = args.get_warmup_steps(num_training_steps)
        if args.warmup_start_factor and warmup_steps:
            self.lr_scheduler = with_warmup_from(args.warmup_start_factor, scheduler, warmup_steps)
        return self.lr_scheduler

    # Checkpoints

    def run_settings(self) -> dict[str, Any]:
        """What decides the course of the run, by name: that of every run, the objective's, and the data's."""
        settings = {**super().run_settings(), "weight_decay_parameters": self.args.weight_decay_parameters}
        settings["warmup_start_factor"] = self.args.warmup_start_factor
        config = getattr(self.model, "config", None)
        if isinstance(config, LeVLJEPAConfig):
            settings |= {name: getattr(config, name) for name in OBJECTIVE_SETTINGS}
        return {**settings, **self.data.settings()}

    def save_position(self, folder: Path) -> None:
        self.data.save(folder)
        self.watcher.save(folder)

    def resume_position(self, checkpoint: Path) -> None:
        self.data.load(checkpoint)
        self.watcher.load(checkpoint)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.watcher.throughput.paused():
            super()._save_checkpoint(model, trial)

    # The log

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        """FLOPs of the training step on a batch, for `total_flos` and the throughput; called after each of them."""
        flops = self.watcher.count(inputs)
        return super().floating_point_ops(inputs) if flops is None else flops

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # a log of training steps
            logs.update(self.watcher.figures(self.state.global_step))
        if "loss" in logs or "train_runtime" in logs:
            logs.update(self.data.figures())
        super().log(logs, start_time)

    # Evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.watcher.throughput.paused():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        output = super().evaluation_loop(*args, **kwargs)
        if isinstance(self.eval_data_collator, LeVLJEPADataCollator):
            self.eval_data_collator.check_skipped()
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, dict[str, Tensor] | None, Tensor | None]:
        """The loss; for each sample its embeddings and the loss terms of its batch; the samples' indices as labels."""
        inputs = send_to_device(inputs, self.args.device)
        index = inputs.pop(SAMPLE_INDEX, None)
        if index is not None:  # a sample that is repeated, to give each rank as many, counts once
            keep = list({i: row for row, i in reversed(list(enumerate(index.tolist())))}.values())[::-1]
            index, inputs = index[keep], {name: value[keep] for name, value in inputs.items()}
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        if prediction_loss_only:
            return outputs.loss, None, None
        return outputs.loss, *evaluation_rows(outputs, index, self.args.eval_batch_size)


def _prepared(model: nn.Module, args: TrainingArguments) -> nn.Module:
    """SIGReg's directions follow the run's seed, and BatchNorm spans the ranks."""
    if getattr(model, "sigreg", None) is not None:
        model.sigreg.seed = args.seed
    # on its device: there torch's SyncBatchNorm can stand in on CUDA
    return convert_sync_batchnorm(model.to(args.device)) if args.world_size > 1 else model


def _default_collator(processor: Any, dataset: Any, seed: int, model: nn.Module | None) -> LeVLJEPADataCollator:
    """Of the usual columns and, where the model says what it is trained for, its objective's augmentations."""
    known = isinstance(dataset, (datasets.Dataset, datasets.IterableDataset, TarShards))
    config = getattr(model, "config", None)
    transform = objective_transform(config, image_size(processor)) if isinstance(config, LeVLJEPAConfig) else None
    return LeVLJEPADataCollator(processor, *(find_columns(dataset) if known else ()), transform=transform, seed=seed)


def _for_evaluation(collator: Any) -> Any:
    return collator.for_evaluation() if isinstance(collator, LeVLJEPADataCollator) else collator


__all__ = [
    "LeVLJEPATrainer",
    "LeVLJEPATrainingArguments",
    "OBJECTIVE_SETTINGS",
    "evaluation_figures",
    "loss_terms",
    "retrieval_metrics",
]
