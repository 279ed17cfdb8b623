"""A small training run in a process of its own, which can be killed at any moment or at any of its file operations.

The parent forks instead of starting Python anew, so that a kill costs a second and not five. Each optimizer step is
written to `steps.jsonl` with a digest of its batch, before it is taken: that is the list of samples seen.
"""

import hashlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, Features, Image, List, Value
from torch import nn

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAProcessor
from levljepa_hf.data.loading import load_pretraining_dataset
from levljepa_hf.data.mixtures import Mixture
from levljepa_hf.training.trainer import LeVLJEPATrainer, LeVLJEPATrainingArguments

STEPS, SAVE_STEPS = 9, 2
CRASHED = 70


def make_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "image": PIL.Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((40, 36)),
            "captions": [f"picture {i}", f"the {i}th picture", f"number {i}"],
        }
        for i in range(22)
    ]
    features = Features({"image": Image(), "captions": List(Value("string"))})
    Dataset.from_list(rows, features=features).save_to_disk(folder)


class RecordingTrainer(LeVLJEPATrainer):
    """Writes down each batch, with the step that it is for."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        digest = hashlib.sha256(inputs["pixel_values"].numpy().tobytes() + inputs["input_ids"].numpy().tobytes())
        with open(self.record, "a") as file:
            file.write(json.dumps({"step": self.state.global_step + 1, "batch": digest.hexdigest()}) + "\n")
        time.sleep(self.seconds_a_step)
        loss = super().training_step(model, inputs, *args)
        if self.bad_gradient_at == self.state.global_step + 1:
            next(model.parameters()).grad[0] = float("nan")
        return loss


def load_data(folder: Path, streaming: bool, mixture: bool) -> Any:
    dataset = load_pretraining_dataset(str(folder), streaming=streaming)
    if not mixture:
        return dataset
    return Mixture({"web": dataset, "photos": load_pretraining_dataset(str(folder))}, {"web": 0.7, "photos": 0.3})


def build(folder: Path, data: Path, streaming: bool = False, mixture: bool = False, **options: Any) -> LeVLJEPATrainer:
    torch.manual_seed(0)
    model = LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug", text_config={"embd_pdrop": 0.1}))
    bad_gradient_at, seconds = options.pop("bad_gradient_at", None), options.pop("seconds_a_step", 0.0)
    options = {
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": SAVE_STEPS,
        "save_total_limit": 2,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "health_steps": 0,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "stream_buffer_size": 5,
        **options,
    }
    trainer = RecordingTrainer(
        model=model,
        args=LeVLJEPATrainingArguments(str(folder), **options),
        train_dataset=load_data(data, streaming, mixture),
        processing_class=LeVLJEPAProcessor.from_image_size(32),
    )
    rank = trainer.args.process_index if trainer.args.world_size > 1 else ""
    trainer.record, trainer.bad_gradient_at = folder.with_suffix(f".steps{rank}.jsonl"), bad_gradient_at
    trainer.seconds_a_step = seconds
    return trainer


def train(folder: Path, data: Path, resume: str | bool | None = "auto", **options: Any) -> None:
    """A whole run, or the rest of it, and the model at its end."""
    trainer = build(folder, data, **options)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_state()


def in_child(function: Callable[[], None], errors: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Runs `function` in a forked process. Returns its id; its exit status is `CRASHED` after an exception."""
    pid = os.fork()
    if pid:
        return pid
    status = CRASHED
    try:
        os.setpgid(0, 0)
        descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # pytest has its own
        prepare()
        function()
        status = 0
    except SystemExit as error:
        status = error.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def wait(pid: int, timeout: float = 60) -> int:
    """The exit status, negative for a signal."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"Process {pid} did not end within {timeout} s.")


_WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.listdir", "os.scandir")


class FileOperations:
    """Counts the file operations within a folder, and kills this process at one of them."""

    def __init__(self, folder: Path, kill_at: int | None = None, count_file: Path | None = None) -> None:
        self.folder, self.kill_at, self.count_file, self.count = str(folder), kill_at, count_file, 0

    def install(self) -> None:
        sys.addaudithook(self._hook)
        save = torch.save

        def counted_save(thing: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            self._event(str(file))
            save(thing, file, *args, **kwargs)
            self._event(str(file))

        torch.save = counted_save  # it opens its file where no audit hook sees it

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _WATCHED and args and isinstance(args[0], (str, os.PathLike)):
            self._event(os.fspath(args[0]))

    def _event(self, path: str) -> None:
        if not path.startswith(self.folder + "/"):
            return
        self.count += 1
        if self.count_file is not None:
            with open(self.count_file, "w") as file:
                file.write(str(self.count))
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def no_file_larger_than(num_bytes: int) -> None:
    """What is written beyond fails, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def outcome(folder: Path) -> dict[str, Any]:
    """What a run has left: weights, the newest checkpoint's optimizer and random states, the losses, the batches."""
    from safetensors.torch import load_file

    checkpoint = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    steps: dict[int, str] = {}
    for line in folder.with_suffix(".steps.jsonl").read_text().splitlines():
        entry = json.loads(line)
        steps[entry["step"]] = entry["batch"]  # the last time that a step was taken
    state = json.loads((folder / "trainer_state.json").read_text())
    logged = ("step", "loss", "grad_norm", "learning_rate", "prediction_loss", "sigreg_vision", "sigreg_text")
    return {
        "weights": load_file(folder / "model.safetensors"),
        "checkpoint": checkpoint.name,
        "optimizer": torch.load(checkpoint / "optimizer.pt", weights_only=True),
        "torch_state": torch.load(checkpoint / "rng_state.pth", weights_only=False)["cpu"],
        "log": [{name: e[name] for name in logged} for e in state["log_history"] if "loss" in e],
        "batches": steps,
    }


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equal to the last bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_same(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where
