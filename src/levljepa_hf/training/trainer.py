"""The Trainer: transformers' own, with an eye on the embeddings.

`LeVLJEPATrainer` logs every named loss term and the health of the embeddings, evaluates retrieval, feeds the collator
samples that it can draw reproducible randomness from, and stops before a loss that is not finite reaches the weights.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput, SchedulerType

from ..data.collator import LeVLJEPADataCollator, NumberedDataset, image_size, objective_transform
from ..data.loading import find_columns
from ..data.mixtures import MixedDataset, Mixture
from ..data.streams import SAMPLE_INDEX, Position, ResumableStream, StreamState
from ..data.tar_shards import TarShards
from ..evaluation.embedding_health import embedding_health, sigreg_ceiling, sigreg_floor
from ..hub.publishing import ModelCardMixin
from ..model.configuration_levljepa import LeVLJEPAConfig
from .arguments import LeVLJEPATrainingArguments
from .checkpoints import ResumableTrainer
from .distributed import check_sharding, convert_sync_batchnorm, describe_launch, sharding_of
from .large_batch import average_gradients, large_batch_backward
from .metrics import EMBEDDINGS, FILLED, UNNUMBERED, evaluation_figures, loss_terms, retrieval_metrics
from .order import STREAM_POSITION, DrawnSamples, WithOrigin, numbered, reproducible
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
    - `create_model_card`, which `push_to_hub` calls, says what was trained on what, and how it went (`hub.py`).
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
        _check_batch_size(args, prepared_dataset)
        _check_large_batch(args)
        check_sharding(args)
        is_default = data_collator is None and processing_class is not None
        if is_default:
            data_collator = _default_collator(processing_class, train_dataset, args.seed, model)
        kwargs.setdefault("compute_metrics", retrieval_metrics)
        super().__init__(
            model=None if model is None else _prepared(model, args),
            args=args,
            data_collator=data_collator,
            train_dataset=prepared_dataset,
            eval_dataset=numbered(eval_dataset),
            processing_class=processing_class,
            **kwargs,
        )
        if is_default and model is None:  # a `model_init` has made it by now
            self.data_collator = _default_collator(processing_class, train_dataset, args.seed, self.model)
        if eval_data_collator is None:
            collator = self.data_collator
            eval_data_collator = collator.for_evaluation() if hasattr(collator, "for_evaluation") else collator
        self.eval_data_collator = eval_data_collator
        self.model_accepts_loss_kwargs = False  # the loss is a mean: with accumulation it must be divided
        self._health: dict[str, float] = {}
        self._compiled_encoders: dict[str, Any] | None = None
        self._drawn = DrawnSamples(self.mixture.names if self.mixture else ())
        self._stream_positions: dict[int, Position] = {}  # by worker, the one whose batch was the last at the end
        self._resumed_from: Path | None = None
        self._before_step: _State | None = None
        self._data_before_step: tuple[dict[int, Position], Tensor] | None = None
        self._step_begins = True
        self._answers: tuple[list[str], Tensor, torch.cuda.Event | None] | None = None
        self._requested: int | None = None
        self.watcher = Watcher(self)
        self._list_skipped()
        self.add_callback(_Events(self))

    def _list_skipped(self) -> None:
        """Says where samples and shards that are skipped are listed."""
        file = Path(self.args.output_dir, f"skipped_{self.args.process_index}.jsonl")
        if hasattr(self.data_collator, "skipped_file"):
            self.data_collator.skipped_file = file
        if isinstance(self.train_dataset, ResumableStream):
            for part in self.train_dataset.parts:
                part.broken.file = file

    def call_model_init(self, trial: Any = None) -> nn.Module:
        return _prepared(super().call_model_init(trial), self.args)

    # Data

    @property
    def mixture(self) -> Mixture | None:
        """What is trained on, if it is several datasets."""
        return getattr(self.train_dataset, "mixture", None)

    def get_train_dataloader(self) -> DataLoader:
        collator = self.data_collator
        if isinstance(collator, LeVLJEPADataCollator):
            collator = replace(collator, normalize=False)  # on the device: see `_prepare_inputs`
        if isinstance(self.train_dataset, MixedDataset):  # it has the order, and the collator counts
            with self._loading(WithOrigin(collator), train_sampling_strategy="sequential"):
                return super().get_train_dataloader()
        if not isinstance(self.train_dataset, ResumableStream):
            with self._loading(collator):
                return super().get_train_dataloader()
        # The stream splits itself between the ranks: accelerate would have each rank read everything.
        return DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            collate_fn=WithOrigin(collator, self.train_dataset),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            prefetch_factor=self.args.dataloader_prefetch_factor,
            drop_last=True,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        with self._loading(self.eval_data_collator, dataloader_drop_last=False):  # every sample counts
            return super().get_eval_dataloader(numbered(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        with self._loading(self.eval_data_collator, dataloader_drop_last=False):  # every sample counts
            return super().get_test_dataloader(numbered(test_dataset))

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if hasattr(self.data_collator, "normalized"):
            inputs = super()._prepare_inputs(self.data_collator.normalized(inputs))  # in DeepSpeed's type, if it is on
        return inputs

    @contextlib.contextmanager
    def _loading(self, data_collator: Any, **options: Any) -> Iterator[None]:
        """While a DataLoader is made: another collator and other arguments."""
        collator, args = self.data_collator, self.args
        self.data_collator, self.args = data_collator, copy.copy(args)
        vars(self.args).update(options)
        try:
            yield
        finally:
            self.data_collator, self.args = collator, args

    # Where the data are, in checkpoints

    def run_settings(self) -> dict[str, Any]:
        """What decides the course of the run, by name: that of every run, and the data, their order and changes."""
        settings = {**super().run_settings(), "weight_decay_parameters": self.args.weight_decay_parameters}
        settings["warmup_start_factor"] = self.args.warmup_start_factor
        config = getattr(self.model, "config", None)
        settings |= {name: getattr(config, name) for name in OBJECTIVE_SETTINGS if hasattr(config, name)}
        data = self.train_dataset
        if self.mixture is not None:
            settings |= self.mixture.settings()
        if isinstance(data, ResumableStream):
            settings["num_shards"] = sum(part.dataset.num_shards for part in data.parts)
            settings["stream_buffer_size"] = self.args.stream_buffer_size
            settings["dataloader_num_workers"] = self.args.dataloader_num_workers  # they share the shards
        elif data is not None:
            settings["num_samples"] = len(data)
        collator = self.data_collator
        if isinstance(collator, LeVLJEPADataCollator):
            names = ("seed", "image_column", "caption_column", "transform", "pad_to_multiple_of")
            settings |= {f"collator_{name}": str(getattr(collator, name)) for name in names}
        return settings

    def save_position(self, folder: Path) -> None:
        """Where this rank's workers are in the stream; of a mixture, what was drawn; the probes that learn beside."""
        self._drawn.save(folder, self.accelerator)
        self.watcher.save(folder)
        if isinstance(self.train_dataset, ResumableStream):
            workers = max(1, self.args.dataloader_num_workers)
            last = next(reversed(self._stream_positions), -1)  # none, if the first step was not finite
            seen, stream = self._stream_positions, self.train_dataset
            positions = [seen.get(worker) or stream.beginning(worker, workers) for worker in range(workers)]
            state = StreamState(positions, workers, (last + 1) % workers, stream.pasts(workers))
            (folder / f"stream_{self.args.process_index}.json").write_text(state.to_json())

    def resume_position(self, checkpoint: Path) -> None:
        """Puts the stream where it was, without reading what is behind; and the probes."""
        self._drawn.load(checkpoint, self.accelerator)
        self.watcher.load(checkpoint)
        if not isinstance(self.train_dataset, ResumableStream):
            return
        files = sorted(checkpoint.glob("stream_*.json"), key=lambda path: int(path.stem.split("_")[1]))
        if not files:  # of an earlier version
            return
        ranks = [StreamState.from_json(path.read_text()) for path in files]
        state = replace(ranks[0], positions=[position for rank in ranks for position in rank.positions])
        self.train_dataset.resume(state)
        workers = max(1, self.args.dataloader_num_workers)
        if state.is_of(self.args.world_size, workers):
            first = self.args.process_index * workers
            mine = dict(enumerate(state.positions[first : first + workers]))
            last = (state.next_worker - 1) % workers
            self._stream_positions = {**{w: p for w, p in mine.items() if w != last}, last: mine[last]}
        self.args.ignore_data_skip, self._resumed_from = True, checkpoint

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        with self.watcher.throughput.waiting():
            batches = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._resumed_from is not None:  # making the iterator drew from the random state
            self._load_rng_state(str(self._resumed_from))
            self._resumed_from = None
        return batches

    # Training

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """transformers' own schedulers; `wsd_decay_frac` is a decay's length, `warmup_start_factor` where they start.

        Raises:
            ValueError: if the warm-up and the decay are longer than the run, or the scheduler has no warm-up to move.
        """
        if self.lr_scheduler is not None:
            return self.lr_scheduler
        args, steps = self.args, num_training_steps
        warmup_steps, options = args.get_warmup_steps(steps), dict(args.lr_scheduler_kwargs or {})
        if args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
            decay_steps = options.setdefault("num_decay_steps", round(args.wsd_decay_frac * steps))
            if warmup_steps + decay_steps > steps:
                raise ValueError(
                    f"A warm-up of {warmup_steps} steps (warmup_steps) and a decay of {decay_steps} (wsd_decay_frac="
                    f"{args.wsd_decay_frac}, or num_decay_steps) are longer than the run of {steps} steps: lower one."
                )
        given, args.lr_scheduler_kwargs = args.lr_scheduler_kwargs, options
        try:
            scheduler = super().create_scheduler(steps, optimizer)
        except TypeError as error:
            raise ValueError(
                f"lr_scheduler_kwargs={given} does not go with lr_scheduler_type={args.lr_scheduler_type.value!r}: "
                f"{error}."
            ) from error
        finally:
            args.lr_scheduler_kwargs = given
        if args.warmup_start_factor and warmup_steps:
            self.lr_scheduler = _with_warmup_from(args.warmup_start_factor, scheduler, warmup_steps)
        return self.lr_scheduler

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
        """Takes from a training step's outputs what is logged, and what can stop the run."""
        terms = loss_terms(outputs)
        self.watcher.terms.add(terms)
        self._watch({"loss": outputs.loss, **terms})
        if self._health_is_due():
            self._health = self._describe(outputs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        if self._step_begins:
            self._keep_state()
        if STREAM_POSITION in inputs:
            worker, position = inputs.pop(STREAM_POSITION)
            self._stream_positions.pop(worker, None)
            self._stream_positions[worker] = position
        self._drawn.take(inputs)
        self._step_begins = self.accelerator.sync_gradients  # with the next one, if this is its last
        if self.args.encoder_micro_batch_size is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self._large_batch_step(model, inputs)
        bad_terms = self._bad_terms()
        if bad_terms:
            self._stop(model, bad_terms)
        return loss

    def _keep_state(self) -> None:
        self._before_step, self._step_begins = _State(self._running_statistics()), False
        self._data_before_step = (dict(self._stream_positions), self._drawn.counts.clone())

    def _large_batch_step(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """A training step whose encoders see the batch in micro-batches (`large_batch.py`)."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        bare = self.accelerator.unwrap_model(model)
        if self.args.torch_compile and self._compiled_encoders is None:
            encoders = ("encode_image", "encode_text")
            options = self.accelerator.state.dynamo_plugin.to_kwargs()
            self._compiled_encoders = {name: torch.compile(getattr(bare, name), **options) for name in encoders}
        accumulation = self.current_gradient_accumulation_steps
        outputs = large_batch_backward(
            bare,
            inputs,
            self.args.encoder_micro_batch_size,
            backward=lambda loss: self.accelerator.backward(loss / accumulation),
            autocast=self.accelerator.autocast,
            **(self._compiled_encoders or {}),
        )
        self._record(outputs)
        if self.args.world_size > 1 and self.accelerator.sync_gradients:
            average_gradients(bare)
        return outputs.loss.detach() / accumulation

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        if self.args.weight_decay_parameters == "all":
            return [name for name, _ in model.named_parameters() if not name.startswith("contrastive.")]
        shapes = {name: parameter.dim() for name, parameter in model.named_parameters()}
        names = super().get_decay_parameter_names(model)
        return [name for name in names if shapes[name] > 1 and name.split(".")[-1] not in NO_WEIGHT_DECAY]

    def _watch(self, terms: dict[str, Tensor]) -> None:
        """Asks which terms are finite on every rank, and whether a signal came to one, without waiting."""
        finite = torch.stack([term.detach().isfinite() for term in terms.values()]).int()
        signum = finite.new_full((1,), -(self._signal or 0))
        answers = torch.cat([finite, signum])
        if self.args.world_size > 1:
            torch.distributed.all_reduce(answers, torch.distributed.ReduceOp.MIN)
        event = None
        if answers.is_cuda:
            answers = answers.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._answers = (list(terms), answers, event)

    def _bad_terms(self) -> list[str]:
        """The terms of this step that are not finite. Waits for the forward pass: the backward is queued by now."""
        names, answers, event = self._answers
        if event is not None:
            event.synchronize()
        *finite, signum = answers.tolist()
        self._requested = -signum or None
        return [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]

    def stop_requested(self) -> int | None:
        return self._requested

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the gradient. One that is not finite stops the run before it reaches the weights."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if not self.args.fp16 and not math.isfinite(grad_norm):  # fp16's scaler skips such steps by itself
            self._stop(model, ["the gradient"])
        return grad_norm

    def _stop(self, model: nn.Module, bad_terms: list[str]) -> None:
        step = self.state.global_step
        self._before_step.restore()
        self._stream_positions, self._drawn.counts = self._data_before_step
        self._save_checkpoint(model, trial=None)
        raise FloatingPointError(
            f"Not finite since step {step + 1}: {', '.join(bad_terms)}. The state before that step is in "
            f"{self.args.output_dir}/checkpoint-{step}. If only one modality's term is named, check its inputs; else "
            "a lower learning_rate, more warmup_steps or bf16 instead of fp16 often help."
        )

    def _running_statistics(self) -> list[Tensor]:
        """The buffers that a forward pass changes: BatchNorm's statistics and SIGReg's step."""
        names = ("running_mean", "running_var", "num_batches_tracked", "step")
        return [buffer for name, buffer in self.model.named_buffers() if name.split(".")[-1] in names]

    # Logging

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        """FLOPs of the training step on a batch, for `total_flos` and the throughput; called after each of them."""
        flops = self.watcher.count(inputs)
        return super().floating_point_ops(inputs) if flops is None else flops

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # a log of training steps
            logs.update(self.watcher.figures(self._health))
            self._health = {}
        if "loss" in logs or "train_runtime" in logs:
            logs.update(self._skipped())
            logs.update({f"samples/{name}": n for name, n in self._drawn.total(self.accelerator).items()})
        super().log(logs, start_time)
        self.watcher.write(self.state.log_history[-1])

    def _skipped(self) -> dict[str, int]:
        """How many samples and shards were skipped, on all ranks."""
        counter = getattr(self.data_collator, "counter", None)
        if counter is None:
            return {}
        counts = torch.tensor([counter.skipped_images, counter.skipped_captions], device=self.args.device)
        images, captions = self.accelerator.reduce(counts).tolist()
        skipped = {"skipped_images": images, "skipped_captions": captions}
        if isinstance(self.train_dataset, ResumableStream):
            for part in self.train_dataset.parts:
                broken = self.accelerator.reduce(part.broken.flags.to(self.args.device, torch.int32))
                name = "skipped_shards" if part.broken.name is None else f"skipped_shards/{part.broken.name}"
                skipped[name] = int((broken > 0).sum())  # several ranks may have met the same one
        return {name: count for name, count in skipped.items() if count}

    def _health_is_due(self) -> bool:
        due = self.args.health_steps > 0 and (self.state.global_step + 1) % self.args.health_steps == 0
        return due and self.accelerator.gradient_state.sync_gradients

    def _describe(self, outputs: Any) -> dict[str, float]:
        embeds = {name: self._gathered_rows(outputs[name].detach()) for name in EMBEDDINGS if name in outputs}
        health = embedding_health(**embeds)
        config = getattr(self.model, "config", None)
        if hasattr(config, "sigreg_num_knots") and getattr(outputs, "sigreg_vision", None) is not None:
            rows = embeds if config.sigreg_distributed else outputs
            scale, size = config.sigreg_sample_size_scale, len(rows["image_embeds"])
            knots = (config.sigreg_num_knots, config.sigreg_t_max)
            health["sigreg_floor"] = sigreg_floor(*knots, size, scale)
            health["sigreg_ceiling"] = sigreg_ceiling(*knots, size, scale)
        return health

    def _gathered_rows(self, embeds: Tensor) -> Tensor:
        """The rows of all ranks, which may have different numbers of them."""
        if self.args.world_size == 1:
            return embeds
        padded = self.accelerator.pad_across_processes(embeds.float(), dim=0, pad_index=float("nan"))
        rows = self.accelerator.gather(padded)
        return rows[~rows.isnan().any(dim=1)]

    # Evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.watcher.throughput.paused():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.watcher.throughput.paused():
            super()._save_checkpoint(model, trial)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        output = super().evaluation_loop(*args, **kwargs)
        if hasattr(self.eval_data_collator, "check_skipped"):
            self.eval_data_collator.check_skipped()
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, dict[str, Tensor] | None, Tensor | None]:
        """The loss; for each sample its embeddings and the loss terms of its batch; the samples' indices as labels.

        Samples that were skipped, and those that are repeated to give each rank as many, leave batches of different
        sizes: they are filled up, under the index `FILLED`, to be gathered.
        """
        inputs = self._prepare_inputs(inputs)
        index = inputs.pop(SAMPLE_INDEX, None)
        if index is not None:
            keep = list({i: row for row, i in reversed(list(enumerate(index.tolist())))}.values())[::-1]
            index, inputs = index[keep], {name: value[keep] for name, value in inputs.items()}
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        if prediction_loss_only:
            return outputs.loss, None, None

        size = len(outputs["image_embeds"])
        missing = max(self.args.eval_batch_size - size, 0)
        rows = {name: F.pad(outputs[name].float(), (0, 0, 0, missing)) for name in EMBEDDINGS if name in outputs}
        if outputs.loss is not None:
            terms = {"loss": outputs.loss, **loss_terms(outputs)}
            rows |= {name: term.float().repeat(size + missing) for name, term in terms.items()}
        index = torch.full((size,), UNNUMBERED, device=self.args.device) if index is None else index
        return outputs.loss, rows, F.pad(index, (0, missing), value=FILLED)


class _State:
    """What a forward pass changes: buffers, and torch's random states."""

    def __init__(self, buffers: list[Tensor]) -> None:
        self._buffers = [(buffer, buffer.clone()) for buffer in buffers]
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        for buffer, before in self._buffers:
            buffer.copy_(before)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)


class _Events(TrainerCallback):
    """Says how the run runs, tells the data which epoch it is, makes a health step a logging step, probes, judges the
    skipped samples of an epoch."""

    def __init__(self, trainer: LeVLJEPATrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            print(f"Training: {describe_launch(args)}.", flush=True)
        self.trainer.watcher.begin()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch = state.epoch or 0
        if isinstance(self.trainer.train_dataset, NumberedDataset):
            self.trainer.train_dataset.set_epoch(int(epoch))
        self.trainer._step_begins = True
        is_stream = isinstance(self.trainer.train_dataset, ResumableStream)  # it has no order that is drawn
        if epoch == int(epoch) and not is_stream:  # a checkpoint would be resumed from here, before the order is drawn
            self.trainer._keep_state()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if isinstance(self.trainer.train_dataset, ResumableStream):  # the Trainer counts from where it was resumed
            state.epoch = state.global_step / state.max_steps
        if self.trainer._health:
            control.should_log = True
        self.trainer.watcher.end_step()
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.watcher.close()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if hasattr(self.trainer.data_collator, "check_skipped"):
            self.trainer.data_collator.check_skipped()


def _with_warmup_from(start: float, scheduler: LRScheduler, warmup_steps: int) -> LambdaLR:
    """The schedule with another warm-up: linear from `start`, a share of the peak, as torch's `LinearLR` has it.

    transformers' schedules start at 0, or at their floor (`get_wsd_schedule`).
    """
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(
            f"warmup_start_factor={start} needs a schedule with a warm-up, and {type(scheduler).__name__} has none: "
            "take another lr_scheduler_type, or leave it out."
        )

    def warmed_up(factor: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: start + (1 - start) * step / warmup_steps if step < warmup_steps else factor(step)

    return LambdaLR(scheduler.optimizer, [warmed_up(factor) for factor in scheduler.lr_lambdas])


def _check_large_batch(args: LeVLJEPATrainingArguments) -> None:
    size = args.encoder_micro_batch_size
    if size is None:
        return
    if sharding_of(args) is not None or args.fp16:
        raise ValueError(
            "encoder_micro_batch_size runs the model's parts outside of its forward pass and averages the gradients "
            "by itself: it works with plain data-parallel training in float32 or bf16, not with FSDP, DeepSpeed or "
            "fp16."
        )


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


def _check_batch_size(args: LeVLJEPATrainingArguments, train_dataset: Any) -> None:
    if train_dataset is None:
        return
    per_device, processes = args.per_device_train_batch_size, args.world_size
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs. BatchNorm and SIGReg need one process for each GPU: start with "
            "`accelerate launch` or `torchrun`, or set CUDA_VISIBLE_DEVICES=0."
        )
    if per_device * processes < 2:
        raise ValueError(
            f"per_device_train_batch_size={per_device} on one process is a batch of one: BatchNorm and SIGReg take "
            "statistics of the batch. Use at least 2 (gradient accumulation does not count)."
        )
    if hasattr(train_dataset, "__len__") and args.dataloader_drop_last and len(train_dataset) < per_device * processes:
        raise ValueError(
            f"The training set has {len(train_dataset)} samples, less than one batch ({per_device} a process, "
            f"{processes} processes), and incomplete batches are dropped: use a smaller per_device_train_batch_size."
        )


__all__ = [
    "LeVLJEPATrainer",
    "LeVLJEPATrainingArguments",
    "OBJECTIVE_SETTINGS",
    "evaluation_figures",
    "loss_terms",
    "retrieval_metrics",
]
