"""Checkpoints that are complete or not there, and runs that go on where they were.

`ResumableTrainer` is transformers' `Trainer` with other ways to save, to resume and to stop; what it trains is not its
business. A checkpoint is written into `OUTPUT_DIR/_saving`, synced, and renamed to `checkpoint-N`: a process that is
killed, or a disk that is full, leaves the older ones as they were.
"""

import json
import logging
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import Trainer, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from .stopping import AUTO, StopSignals, TrainingStopped

logger = logging.getLogger(__name__)

STAGING = "_saving"  # in the output folder; pushes to the Hub leave out what begins with an underscore
SETTINGS = "run_settings.json"  # in each checkpoint: what a resumed run is compared with


# ----------------------------------------------------------------------------------------- which checkpoints there are


def find_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """The folders `checkpoint-N` of a run, complete or not, oldest first."""
    numbered = []
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)
        if match and path.is_dir():
            numbered.append((int(match[1]), path))
    return [path for _, path in sorted(numbered)]


def last_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    """The newest complete checkpoint of a run; what is passed over is named in a warning."""
    for path in reversed(find_checkpoints(output_dir)):
        defect = why_incomplete(path)
        if defect is None:
            return path
        logger.warning("Passed over %s, which is incomplete: %s.", path, defect)
    return None


def why_incomplete(checkpoint: str | os.PathLike) -> str | None:
    """Why a checkpoint can't be resumed, or None if it can. Reads the ends of its files and none of the tensors."""
    folder = Path(checkpoint)
    try:
        TrainerState.load_from_json(str(folder / "trainer_state.json"))
    except FileNotFoundError:
        return "it has no trainer_state.json"
    except (ValueError, TypeError) as error:
        return f"its trainer_state.json does not parse ({error})"
    sharded = any(folder.glob("pytorch_model_fsdp_*")) or any(folder.glob("global_step*"))  # FSDP, DeepSpeed
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and not sharded:
        return "it has no weights"
    for path in weights:
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            return f"its {path.name} is cut off ({error})"
    if not sharded and not (folder / "optimizer.pt").is_file():
        return "it has no optimizer.pt (save_only_model leaves none)"
    for path in (*folder.glob("*.pt"), *folder.glob("rng_state*.pth")):
        if path.name != "training_args.bin" and not zipfile.is_zipfile(path):
            return f"its {path.name} is cut off"
    if not any(folder.glob("rng_state*.pth")):
        return "it has no random states"
    return None


def refuse_used_folder(output_dir: str | os.PathLike) -> None:
    """Keeps a new run out of the folder of another, whose checkpoints it would rotate away and mix with its own.

    Raises:
        ValueError: if there are any.
    """
    checkpoints = find_checkpoints(output_dir)
    if checkpoints:
        raise ValueError(
            f"{output_dir} holds {checkpoints[-1].name} of another run. To go on from it: resume_from_checkpoint="
            f"'{AUTO}'. To begin anew: another output_dir, or overwrite_output_dir=True, which removes the old "
            "checkpoints."
        )


def sync(*paths: Path) -> None:
    """Has the system write files, and the names in folders, to the disk."""
    for path in paths:
        if os.name == "nt" and path.is_dir():  # Windows opens no folders
            continue
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_folder(folder: Path, staging: Path) -> None:
    """Deletes a checkpoint so that a process killed meanwhile leaves none that is half there."""
    staging.mkdir(exist_ok=True)
    trash = staging / f"old-{folder.name}"
    shutil.rmtree(trash, ignore_errors=True)
    folder.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


# -------------------------------------------------------------------------------------------------------- the Trainer


class ResumableTrainer(Trainer):
    """transformers' `Trainer`, whose checkpoints are complete or not there, and whose runs stop and go on cleanly.

    - A checkpoint appears under its name when all ranks have written their part and it is on the disk. Rotation takes
      the name away before it deletes.
    - `train(resume_from_checkpoint="auto")` goes on from the newest complete checkpoint, or begins where there is
      none; `True` wants one. What is passed over is named.
    - A new run does not begin in a folder that holds checkpoints, unless `args.overwrite_output_dir`.
    - A run that has reached its end is not trained any further.
    - SIGTERM, SIGUSR1 and SIGINT end the run after the step at hand, on every rank, with a checkpoint and the exit
      status 128 + the signal's number (`TrainingStopped`). A second SIGINT ends it at once.

    Args:
        stopping: what asks for the end.
        args, kwargs: of `Trainer`.
    """

    _staging: Path | None = None  # where a checkpoint is being written
    was_finished = False  # whether `train` found nothing left to do

    def __init__(self, *args: Any, stopping: StopSignals | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stopping = stopping or StopSignals()
        self.add_callback(self.stopping)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains, or goes on.

        Args:
            resume_from_checkpoint: the folder of a checkpoint; `True`, for the newest complete one of `output_dir`; or
                `"auto"`, for that one or, where there is none, a new run.
            trial: of a hyperparameter search.
            ignore_keys_for_eval: as in `Trainer.train`.

        Raises:
            ValueError: if the checkpoint is incomplete or there is none; if a new run would begin among the
                checkpoints of another; if the settings have changed in a way that a resumed run can't follow.
            TrainingStopped: after a signal.
        """
        checkpoint = None if trial is not None else self.find_start(resume_from_checkpoint)
        if checkpoint is not None and self.is_finished(checkpoint):
            return self._finished(checkpoint)
        self.accelerator.wait_for_everyone()  # every rank has looked before one changes the folder
        if trial is None:
            self._clean(begins=checkpoint is None)
        if checkpoint is not None:
            self.resume_position(checkpoint)
        with self.stopping.caught():
            resume = None if checkpoint is None else str(checkpoint)
            output = super().train(resume, trial=trial, ignore_keys_for_eval=ignore_keys_for_eval)
        if self.stopping.stopped_by is not None:
            stopped = TrainingStopped(self.stopping.stopped_by, self._folder_of_step(Path(self.args.output_dir)))
            if self.is_world_process_zero():
                print(stopped, file=sys.stderr, flush=True)
            raise stopped
        return output

    # Beginning and going on

    def find_start(self, resume_from_checkpoint: str | bool | None = None) -> Path | None:
        """The checkpoint that `train` would go on from, or None for a new run. Nothing is changed.

        Raises:
            ValueError: as `train`.
        """
        checkpoint = self._checkpoint_to_resume(resume_from_checkpoint)
        if checkpoint is not None:
            self._compare_settings(checkpoint)
        elif not getattr(self.args, "overwrite_output_dir", False):
            refuse_used_folder(self.args.output_dir)
        return checkpoint

    def _checkpoint_to_resume(self, wanted: str | bool | None) -> Path | None:
        folder = Path(self.args.output_dir)
        latest = wanted is True or str(wanted).lower() == "true"  # as it comes from a command line
        if latest or wanted == AUTO:
            found = last_checkpoint(folder)
            if found is None and latest:
                raise ValueError(
                    f"There is no complete checkpoint in {folder}: give the folder of one, or '{AUTO}' to begin where "
                    "there is none."
                )
            return found
        if not wanted:
            return None
        defect = why_incomplete(wanted) if Path(wanted).is_dir() else "there is no such folder"
        if defect is not None:
            raise ValueError(
                f"resume_from_checkpoint={wanted}: {defect}. Give the folder of a complete checkpoint, or '{AUTO}' "
                f"for the newest one of {folder}."
            )
        return Path(wanted)

    def _clean(self, begins: bool) -> None:
        """Removes what killed runs left and, where a run begins anew, the checkpoints of the one before."""
        folder = Path(self.args.output_dir)
        if self.args.should_save:
            for other in find_checkpoints(folder) if begins else ():
                remove_folder(other, folder / STAGING)
            shutil.rmtree(folder / STAGING, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def is_finished(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is the end of the run that the arguments describe."""
        args, state = self.args, TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if args.max_steps > 0:
            return state.global_step >= args.max_steps
        return state.epoch is not None and state.epoch >= args.num_train_epochs

    def _finished(self, checkpoint: Path) -> TrainOutput:
        """The state and the weights of a run that had reached its end; nothing is trained."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        step = self.state.global_step
        logger.warning("%s is the end of the run (step %d): nothing is left to train.", checkpoint, step)
        self._load_from_checkpoint(str(checkpoint))
        self.was_finished = True
        losses = [entry["train_loss"] for entry in self.state.log_history if "train_loss" in entry]
        return TrainOutput(step, losses[-1] if losses else float("nan"), {})

    # Settings, compared on resuming

    def run_settings(self) -> dict[str, Any]:
        """What decides the course of the run, by name. A subclass adds what it knows."""
        args = self.args
        return {
            "learning_rate": args.learning_rate,
            "weight_decay": args.weight_decay,
            "adam_beta1": args.adam_beta1,
            "adam_beta2": args.adam_beta2,
            "adam_epsilon": args.adam_epsilon,
            "optim": str(getattr(args.optim, "value", args.optim)),
            "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
            "lr_scheduler_kwargs": args.lr_scheduler_kwargs or {},
            "warmup_steps": args.warmup_steps,
            "max_grad_norm": args.max_grad_norm,
            "max_steps": args.max_steps,
            "num_train_epochs": args.num_train_epochs,
            "global_batch_size": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "num_processes": args.world_size,
            "seed": args.seed,
            "data_seed": args.seed if args.data_seed is None else args.data_seed,
            "bf16": args.bf16,
            "fp16": args.fp16,
        }

    # An optimizer and its schedule go on as the checkpoint has them: other values would be ignored. And the position
    # in the data is counted in batches.
    _FIXED = (
        *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim"),
        *("lr_scheduler_type", "global_batch_size", "objective"),
    )

    def _compare_settings(self, checkpoint: Path) -> None:
        path = checkpoint / SETTINGS
        if not path.is_file():
            logger.warning("%s does not say with which settings it was made: they are not compared.", checkpoint)
            return
        before, now = json.loads(path.read_text()), json.loads(json.dumps(self.run_settings()))
        changed = [name for name in now if name in before and before[name] != now[name]]
        fixed = [name for name in changed if name in self._FIXED]

        def listed(names: list[str]) -> str:
            return ", ".join(f"{name} ({before[name]} then, {now[name]} now)" for name in names)

        if fixed:
            raise ValueError(
                f"A resumed run keeps what {checkpoint} was trained with, and can't follow other values of "
                f"{listed(fixed)}. Set them back; or begin a new run from the weights in that folder."
            )
        if changed:
            logger.warning(
                "Changed since %s: %s. The run goes on, but it is not the one that would have gone on without a stop.",
                checkpoint,
                listed(changed),
            )

    # Saving

    def save_position(self, folder: Path) -> None:
        """Hook: writes into a checkpoint where this rank is in the data, if the count of steps does not say it."""

    def resume_position(self, checkpoint: Path) -> None:
        """Hook: goes there."""

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return folder if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_dir = Path(self._get_output_dir(trial))
        final = self._folder_of_step(run_dir)
        staging, name = run_dir / STAGING, final.name
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)
            self.save_position(staging / name)
            self.accelerator.wait_for_everyone()  # every rank has written its part
        except BaseException as error:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
            last = find_checkpoints(run_dir)
            kept = f"{last[-1].name} is the last one" if last else "there is none yet"
            error.add_note(f"{final} could not be written and is not there; {kept}.")
            raise
        finally:
            self._staging = None
        self._name_best(run_dir, final)
        if self.args.should_save:
            self.state.save_to_json(str(staging / name / "trainer_state.json"))
            (staging / name / SETTINGS).write_text(json.dumps(self.run_settings(), indent=2))
            sync(*(staging / name).rglob("*"), staging / name)
            if final.exists():
                remove_folder(final, staging)
            (staging / name).rename(final)
            sync(run_dir)
            self._rotate(run_dir)
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _folder_of_step(self, run_dir: Path) -> Path:
        return run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Writes the model aside and puts each file in its place whole."""
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        if self._staging is not None:
            super()._save(str(folder), state_dict)
            return
        staging = folder / STAGING
        super()._save(str(staging), state_dict)
        if self.args.should_save:
            files = [path for path in staging.rglob("*") if path.is_file()]
            sync(*files)
            for path in sorted(files, key=lambda path: path.suffix == ".safetensors"):  # the weights last
                target = folder / path.relative_to(staging)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
            shutil.rmtree(staging)
            sync(folder)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:  # else it is not yet where it will be
            super()._push_from_checkpoint(checkpoint_folder)

    def _name_best(self, run_dir: Path, final: Path) -> None:
        if self.state.best_global_step:
            best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            if best == final or best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def _rotate(self, run_dir: Path) -> None:
        """Removes the oldest checkpoints beyond `save_total_limit`, never the newest or the best."""
        limit = self.args.save_total_limit
        if not limit or limit < 1:
            return
        checkpoints = find_checkpoints(run_dir)
        protected = {checkpoints[-1], Path(self.state.best_model_checkpoint or checkpoints[-1])}
        removable = [path for path in checkpoints if path not in protected]
        for path in removable[: max(0, len(checkpoints) - max(limit, len(protected)))]:
            remove_folder(path, run_dir / STAGING)


__all__ = [
    "ResumableTrainer",
    "find_checkpoints",
    "last_checkpoint",
    "refuse_used_folder",
    "why_incomplete",
]
