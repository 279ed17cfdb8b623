"""The files that start runs at scale: accelerate's configurations, and the SLURM script with stand-ins for SLURM."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from test_data import imagefolder  # noqa: F401  (a fixture)

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "training" / "accelerate").glob("*.yaml"))
SBATCH = ROOT / "training" / "slurm" / "pretrain.sbatch"
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

RECIPE = """
preset: debug
config: {projection_dim: 8}
per_device_train_batch_size: 3
max_steps: 2
bf16: false
use_cpu: true
save_strategy: steps
save_steps: 1
report_to: none
"""

# Runs its command once for each task. Given a status, it only exits; given a path, it signals once that is there.
SRUN = """#!/bin/bash
printf '%q ' "$@" >> "$CALLS/srun.calls"
[[ -n ${STATUS:-} ]] && exit "$STATUS"
while [[ $1 == --* ]]; do shift; done
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 "$@" & tasks+=($!)
done
if [[ -n ${SIGNAL_AFTER:-} ]]; then
    until [[ -e $SIGNAL_AFTER ]]; do sleep 0.1; done
    kill -USR1 "${tasks[@]}"
fi
status=0
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit "$status"
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$CALLS/scontrol.calls"
if [[ $1 == show ]]; then echo localhost; echo other; fi
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1", **more}


def sbatch(folder: Path, *argv: str, **more: str) -> tuple[subprocess.CompletedProcess, str]:
    """Runs the script as SLURM does on the first machine; gives what it left and the calls of scontrol."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)
    python = str(Path(sys.executable).parent)
    variables = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[1-2]", "CALLS": str(folder)}
    path = os.pathsep.join([str(folder), python, os.environ["PATH"]])
    done = subprocess.run(
        ["bash", str(SBATCH), *argv],
        cwd=ROOT, env=environment(PATH=path, **variables, **more), capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    return done, (folder / "scontrol.calls").read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_every_configuration(path: Path) -> None:
    """accelerate refuses unknown keys itself, but for those of FSDP, which it leaves out."""
    config = load_config_from_file(str(path))
    assert config.num_processes == {"cpu": 1, "gpu-1": 1, "gpu-8": 8, "nodes-2x8": 16, "fsdp2": 8}[path.stem]
    assert config.num_machines == (2 if path.stem == "nodes-2x8" else 1)
    assert config.use_cpu == (path.stem == "cpu")
    options = vars(launch_command_parser().parse_args(["script.py"]))
    assert set(config.fsdp_config) <= set(options) and bool(config.fsdp_config) == (path.stem == "fsdp2")


@needs_bash
@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (138, True), (143, True), (137, False)])
def test_a_job_goes_back_into_the_queue_after_a_signal_alone(tmp_path: Path, status: int, requeued: bool) -> None:
    done, calls = sbatch(tmp_path, "--recipe", "datacomp-vit-base", "--dataset", "two words", STATUS=str(status))
    assert done.returncode == status, done.stderr
    assert ("requeue" in calls) == requeued
    assert (tmp_path / "srun.calls").read_text().endswith(r"--dataset two\ words --resume_from_checkpoint auto ")


@needs_bash
@pytest.mark.slow
def test_the_slurm_script_trains_on_two_tasks(imagefolder: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    argv = ["--recipe", str(tmp_path / "recipe.yaml"), "--dataset", str(imagefolder), "--ddp_backend", "gloo"]
    argv += ["--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "run")]
    done, calls = sbatch(tmp_path, *argv)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "show hostnames node[1-2]" in calls and "requeue" not in calls
    assert "2 processes on cpu" in done.stdout + done.stderr
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    done, _ = sbatch(tmp_path, *argv)
    assert done.returncode == 0 and "nothing is left to do" in done.stdout, done.stderr[-3000:]


@needs_bash
@pytest.mark.slow
def test_a_signal_ends_in_a_checkpoint_and_the_queue(imagefolder: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    argv = ["--recipe", str(tmp_path / "recipe.yaml"), "--dataset", str(imagefolder), "--ddp_backend", "gloo"]
    argv += ["--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "run"), "--max_steps", "2000"]
    done, calls = sbatch(tmp_path, *argv, SIGNAL_AFTER=str(tmp_path / "run" / "checkpoint-1"))
    assert done.returncode == 138 and "requeue" in calls, done.stderr[-3000:]
    assert "Stopped by SIGUSR1" in done.stderr


@pytest.mark.slow
def test_accelerate_launches_on_the_cpu(imagefolder: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    command = [accelerate, "launch", "--config_file", "training/accelerate/cpu.yaml"]
    command += ["-m", "levljepa_hf.cli", "pretrain", "--recipe", str(tmp_path / "recipe.yaml")]
    command += ["--dataset", str(imagefolder)]
    command += ["--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_the_slurm_script_passes_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    done = subprocess.run(["shellcheck", str(SBATCH)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
