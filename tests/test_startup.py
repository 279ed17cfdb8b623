"""A start that takes no time: help and wrong options come without torch, also where an extra is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from levljepa_hf.cli import COMMANDS

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "transformers", "timm", "datasets", "matplotlib", "starlette", "peft")

# Answers each line of its input, so that one start of Python does for all. Nothing heavy can be imported in it, which
# also stands for extras that are not there.
SERVER = f"""
import contextlib, io, json, os, sys
import levljepa_command
assert not set({HEAVY}) & set(sys.modules), sorted(set({HEAVY}) & set(sys.modules))
for name in set({HEAVY}) - {{"timm", "transformers"}}:  # the source of these two is read, and they need torch
    sys.modules[name] = None
for line in sys.stdin:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = levljepa_command.main(json.loads(line))
        except SystemExit as stop:
            status = stop.code
        except ImportError as error:
            status = repr(error)
    print(json.dumps([status, said.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def answer():
    """Runs `levljepa` with the given words where nothing heavy can be imported; gives its status and what it said."""
    command = [sys.executable, "-c", SERVER]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment, cwd=ROOT) as process:

        def ask(*words: str) -> tuple[int | str, str]:
            process.stdin.write(json.dumps(words) + "\n")
            process.stdin.flush()
            return tuple(json.loads(process.stdout.readline()))

        yield ask
        process.stdin.close()


def test_every_command_helps_at_once(answer) -> None:
    assert answer("--help")[0] == 0
    for command in COMMANDS:
        status, text = answer(command, "--help")
        assert status == 0 and text.startswith(f"usage: levljepa {command}"), text
        assert f"levljepa {command} " in text.partition("\n\n")[2], f"{command} --help has no example"
    for words, extra in (
        (("explore",), "app"),
        (("evaluate", "knn"), "eval"),
        (("finetune", "segmentation"), "lora"),
        (("pretrain",), "train"),
    ):
        status, text = answer(*words, "--help")
        assert status == 0 and f'pip install "levljepa_hf[{extra}]"' in text, text


def test_transformers_options_are_behind_an_option_of_their_own(answer) -> None:
    short, long = answer("pretrain", "--help")[1], answer("pretrain", "--help-all")[1]
    assert "--output_dir" in short and "--learning_rate" in short and "--ddp_timeout" not in short
    assert "--ddp_timeout" in long and "Unknown" not in long


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("pretrain --lr 1", "there is no option --lr. Did you mean --learning_rate?"),
        ("pretrain --output-dirr x", "there is no option --output_dirr. Did you mean --output_dir?"),
        ("pretrain --fdsp x", "there is no option --fdsp. Did you mean --fsdp?"),
        ("pretrain --epochs 1", "there is no option --epochs. Did you mean --num_train_epochs?"),
        ("pretrain --recipe flicker8k", "No recipe 'flicker8k'. Did you mean 'flickr8k'?"),
        ("pretrain --model_name_or_path ./nowhere/x", "--model_name_or_path ./nowhere/x is no folder here."),
        ("finetune segmentaton", "there is no task 'segmentaton'. Did you mean 'segmentation'?"),
        ("evaluate zeroshot", "there is no task 'zeroshot'. Did you mean 'zero-shot'?"),
        ("evaluate knn --model random --dataset imagnet", "Did you mean 'imagenet'?"),
        ("evaluate knn --model random --kss 1", "there is no option --kss. Did you mean --ks?"),
        ("evaluate knn --model random --ks many", "argument --ks: invalid int value: 'many'"),
        ("explore vit_tiny_patch16_224", "Did you mean 'timm:vit_tiny_patch16_224'?"),
        ("explore timm:vit_tny_patch16_224", "is no model of timm. Did you mean 'timm:vit_tiny_patch16_224'?"),
        ("explore tim:vit_tiny_patch16_224", "is no model. Did you mean 'timm:vit_tiny_patch16_224'?"),
        ("explore src/levljepa_hg", "is no folder here. Did you mean 'src/levljepa_hf'?"),
        ("embed --model random --dataset ./photoss --output x", "--dataset ./photoss is no folder or file here."),
        ("plot tests/trainning", "tests/trainning is no folder here. Did you mean 'tests/training'?"),
        ("convert ./nowhere x", "./nowhere is no folder here."),
        ("convert a/b c --to nativ", "'nativ' is none of native, released. Did you mean 'native'?"),
        ("recipes sho demo", "'sho' is none of list, show. Did you mean 'show'?"),
        ("evaluat", "there is no command 'evaluat'. Did you mean 'evaluate'?"),
    ],
)
def test_what_is_mistyped_is_one_line_with_the_nearest_name(answer, words: str, said: str) -> None:
    status, text = answer(*words.split())
    assert status == 2 and text.count("\n") == 1 and said in text, (status, text)


@pytest.mark.parametrize("script", ["pretrain", "finetune_classification", "finetune_segmentation", "compare"])
def test_scripts_help_without_torch(script: str) -> None:
    path = ROOT / "training" / f"{script}.py"
    command = [sys.executable, "-X", "importtime", path, "--help"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, timeout=60
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "levljepa_hf.cli" in imported and not imported & set(HEAVY)


def test_importing_the_package_leaves_what_is_not_used() -> None:
    """transformers itself imports torchvision for its Auto classes."""
    check = (
        "import sys, levljepa_hf; from levljepa_hf import LeVLJEPAVisionModel; from transformers import AutoConfig;"
        "assert not {'timm', 'datasets', 'matplotlib', 'sklearn'} & set(sys.modules), sys.modules.keys();"
        "assert AutoConfig.for_model('levljepa_vision_model').hidden_size == 768 and 'timm' in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
