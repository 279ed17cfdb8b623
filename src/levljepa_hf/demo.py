"""`levljepa demo`: pretrains a small LeVLJEPA on captioned scenes, in minutes on two CPU cores, and shows the outcome.

It renders scenes (see `levljepa_hf.scenes`), trains by the recipe `demo` as `levljepa pretrain` does, measures
zero-shot classification and retrieval on scenes that training never saw, and leaves what every run leaves.
"""

import contextlib
import io
import math
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from .encoders.embeddings import Embeddings, embed_images, embed_texts
from .evaluation.embedding_health import embedding_health
from .evaluation.pictures import plot_nearest, plot_patch_pca
from .evaluation.retrieval import retrieval_chance, retrieval_recall
from .evaluation.zero_shot import zero_shot_accuracy, zero_shot_classifier
from .files import whole_folder
from .model.modeling_levljepa import READOUTS, LeVLJEPAModel, similarity
from .model.processing_levljepa import LeVLJEPAProcessor
from .options import Command, option
from .scenes.dataset import save_scenes
from .scenes.scene import CLASS_NAMES, PROMPT_TEMPLATE, with_article
from .training.checkpoints import find_checkpoints
from .training.command import build_config, build_trainer, parse_args, run

NUM_TRAIN_SCENES = 16_384
NUM_TEST_SCENES = 1_000
MAX_SCENES = 1_000_000  # 10 GB at 48 pixels, in memory until they are written
CAPTIONS_TO_DRAW = (
    "a photo of a penguin.",
    "an apple in the upper left",
    "a car on the right on a blue striped background",
    "a plain yellow background with a guitar on the left",
    "a butterfly at the bottom",
)

EXAMPLE = """example:
  levljepa demo --output_dir runs/demo

a quick look, in half a minute:
  levljepa demo --output_dir runs/quick --steps 60 --scenes 2000
"""


@dataclass
class DemoArguments:
    """What is trained, and where it goes."""

    output_dir: str = option("runs/demo", help="A new folder for it all.")
    steps: int | None = option(None, help="Training steps; by default those of the recipe, 1200.")
    scenes: int = option(NUM_TRAIN_SCENES, help="Training scenes.")
    image_size: int = option(48, help="Side of the scenes in pixels.")
    seed: int = option(0, help="Of the scenes, the weights and the order.")


COMMAND = Command(
    "levljepa demo",
    "Pretrain a small LeVLJEPA on captioned scenes, in minutes on two CPU cores, and show the outcome.",
    (DemoArguments,),
    more=EXAMPLE,
    extra="demo",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo with the command line's options, and returns the exit status."""
    return COMMAND.run(argv, _demo)


def _demo(arguments: DemoArguments) -> None:
    transformers_logging.set_verbosity_error()  # the bars, then the report, and nothing between
    datasets.disable_progress_bars()
    run_demo(arguments.output_dir, arguments.steps, arguments.scenes, arguments.image_size, arguments.seed)


def demo_checkpoint(folder: str | Path = "runs", steps: int = 150, num_scenes: int = 4096) -> Path:
    """A checkpoint to try things on: `FOLDER/demo`, what `levljepa demo` left, or else `FOLDER/quick`, trained once.

    The quick one takes about half a minute on two CPU cores and tells little apart: the full demo, 1200 steps, does.

    Args:
        folder: where the runs are.
        steps: length of the quick training.
        num_scenes: its training scenes.

    Returns:
        The folder of the checkpoint (model and processor).
    """
    full, quick = Path(folder, "demo"), Path(folder, "quick")
    for place in (full, quick):
        if (place / "model.safetensors").is_file() and (place / "processor_config.json").is_file():
            return place
    with whole_folder(quick) as part, _bars_only():
        run_demo(part, steps=steps, num_scenes=num_scenes)
    return quick


@contextlib.contextmanager
def _bars_only() -> Iterator[None]:
    """Inside, neither transformers' notes are shown nor the report, which names a folder that moves."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def run_demo(
    output_dir: str | Path,
    steps: int | None = None,
    num_scenes: int = NUM_TRAIN_SCENES,
    image_size: int = 48,
    seed: int = 0,
) -> dict[str, float]:
    """Renders, trains, measures, draws and saves.

    Args:
        output_dir: a new folder for the run (checkpoint, recipe, log, card, pictures) and its scenes.
        steps: length of the training, by default the recipe's.
        num_scenes: training scenes, seen several times each.
        image_size: side of the scenes in pixels, a multiple of the patch size.
        seed: of the scenes, the weights and the order.

    Returns:
        The measurements that are printed, as fractions, and the effective ranks.

    Raises:
        ValueError: if an argument is out of range, or the folder holds a run.
    """
    output_dir = Path(output_dir)
    _check(output_dir, steps, num_scenes, seed)
    # Data that are not there are refused, and the scenes are not there yet: `.` stands for them.
    argv = ["--recipe", "demo", "--dataset", ".", "--output_dir", str(output_dir)]
    argv += ["--seed", str(seed), "--config", f"vision_config.image_size={image_size}"]
    argv += ["--disable_tqdm", "True"]  # for a bar of its own
    model_args, data_args, args = parse_args([*argv, *([] if steps is None else ["--max_steps", str(steps)])])
    data_args.dataset = str(output_dir / "scenes")
    build_config(model_args)  # an error here, or in the folder's name, comes before the work
    output_dir.mkdir(parents=True, exist_ok=True)
    counts = (num_scenes, NUM_TEST_SCENES, NUM_TEST_SCENES)
    save_scenes(output_dir / "scenes", counts, image_size, seed, pair_fraction=0)
    trainer = build_trainer(model_args, data_args, args)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Progress())
    torch.set_num_threads(fastest_num_threads(trainer.model))
    run(trainer, model_args, data_args)
    test_scenes = datasets.load_from_disk(output_dir / "scenes")["test"]
    metrics = measure_and_draw(trainer.model, trainer.processing_class, [*test_scenes], output_dir)
    trainer.create_model_card()  # again, with the pictures
    print_report(metrics, len(test_scenes), trainer.model.config.projection_dim, output_dir)
    return metrics


def _check(output_dir: Path, steps: int | None, num_scenes: int, seed: int) -> None:
    batch = 128  # of the recipe
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps} must be at least 1.")
    if not batch <= num_scenes <= MAX_SCENES:
        raise ValueError(
            f"scenes={num_scenes} must be from {batch}, a batch, to {MAX_SCENES:,}: they are drawn before the "
            "training and kept in memory until then."
        )
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} must be from 0 to {2**32 - 1}.")
    if find_checkpoints(output_dir) or (output_dir / "model.safetensors").exists():
        raise ValueError(f"{output_dir} holds a run already: give another --output_dir, or remove it.")


def fastest_num_threads(model: LeVLJEPAModel) -> int:
    """As many threads as torch has now if they are clearly quicker at the vision tower than one thread, else one.

    Threads wait for each other many times a step. Where something else keeps a core busy, two are slower than one.
    """
    config, before = model.config.vision_config, torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)  # the training draws what it would draw without this
    pixel_values = torch.randn(64, 3, config.image_size, config.image_size, generator=generator).to(model.device)
    seconds = {1: 0.0, before: 0.0}
    try:
        for num_threads in (1, before) * 2:  # in turns, so that both meet what else is running
            torch.set_num_threads(num_threads)
            model.vision_model(pixel_values)  # warm-up
            start = time.perf_counter()
            for _ in range(2):
                model.vision_model(pixel_values).pooler_output.sum().backward()
            seconds[num_threads] += time.perf_counter() - start
    finally:
        torch.set_num_threads(before)
        model.zero_grad()
    return before if 1.3 * seconds[before] < seconds[1] else 1


class _Progress(TrainerCallback):
    """One progress bar with the loss and the ranks, and after some steps how long all of them will take."""

    timed_steps = 20

    def __init__(self) -> None:
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(total=state.max_steps, desc="pretraining", unit=" steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)
        if state.global_step == 1:  # which is slower than the others
            self.start = time.monotonic()
        elif state.global_step == 1 + self.timed_steps:
            seconds = (time.monotonic() - self.start) / self.timed_steps * state.max_steps
            length = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
            self.bar.write(f"{state.max_steps} steps will take about {length}; with --steps fewer are done.")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        names = {"loss": "loss", "effective_rank_vision": "rank V", "effective_rank_text": "rank T"}
        self.shown |= {short: f"{logs[name]:.3g}" for name, short in names.items() if name in logs}
        self.bar.set_postfix(self.shown, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


# ---------------------------------------------------------------------------------------------------------- measuring


def measure_and_draw(
    model: LeVLJEPAModel,
    processor: LeVLJEPAProcessor,
    items: Sequence[dict[str, Any]],
    output_dir: Path,
) -> dict[str, float]:
    """Zero-shot accuracy, retrieval (of the full captions) and health on test scenes, and two pictures."""
    images = [item["image"] for item in items]
    # the evaluation transform would cut off the border, where some of the things are
    vision = embed_images(model, processor, images, transform="processor", show_progress=False)
    texts = embed_texts(model, processor, [item["captions"][0] for item in items], show_progress=False)
    names = [with_article(name) for name in CLASS_NAMES]
    classifier = zero_shot_classifier(model, processor, names, PROMPT_TEMPLATE)
    metrics = zero_shot_accuracy(vision, classifier, [item["label"] for item in items])
    pairs = (vision.embeds, texts.embeds, vision.predictions, texts.predictions)
    metrics |= retrieval_recall(*pairs) | embedding_health(*pairs)

    plot_patch_pca(images[:12], _patch_features(model, processor, images[:12]), output_dir / "patch_pca.png")
    queries = embed_texts(model, processor, CAPTIONS_TO_DRAW)
    plot_nearest(CAPTIONS_TO_DRAW, images, _avg_similarity(vision, queries), output_dir / "nearest.png")
    return metrics


def _avg_similarity(images: Embeddings, texts: Embeddings) -> torch.Tensor:
    return similarity(images.embeds, texts.embeds, images.predictions, texts.predictions, readout="avg")


@torch.no_grad()
def _patch_features(model: LeVLJEPAModel, processor: LeVLJEPAProcessor, images: Sequence[Any]) -> torch.Tensor:
    """Post-norm patch tokens [N, patches, hidden_size]."""
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"].to(model.device)
    return model.eval().vision_model(pixel_values).last_hidden_state[:, 1:].float().cpu()


def print_report(metrics: dict[str, float], num_scenes: int, projection_dim: int, output_dir: Path) -> None:
    """The figures beside chance, in words where they are near it, and what to do with the checkpoint next."""
    num_classes = len(CLASS_NAMES)
    print(f"\nZero-shot top-1, {num_scenes} unseen scenes of {num_classes} classes, prompt {PROMPT_TEMPLATE!r}:")
    for readout in READOUTS:
        print(f"  {readout:14s} {metrics[f'{readout}_top1']:6.1%}")
    print(f"  {'chance':14s} {1 / num_classes:6.1%}")
    if words := near_chance(metrics["avg_top1"], 1 / num_classes, num_scenes):
        print(words)
    print(f"\nRetrieval among {num_scenes} unseen scenes (readout avg):    R@1    R@5   R@10")
    chance = retrieval_chance(num_scenes)
    for name, values, prefix in (
        ("text to image", metrics, "text_to_image_"),
        ("image to text", metrics, "image_to_text_"),
        ("chance", chance, ""),
    ):
        print(f"  {name:46s}" + " ".join(f"{values[f'{prefix}R@{k}']:6.1%}" for k in (1, 5, 10)))
    print(
        f"\nEffective rank: vision {metrics['effective_rank_vision']:.1f}, text {metrics['effective_rank_text']:.1f} "
        f"of {projection_dim}. Cosine of matched pairs {metrics['cosine_matched']:.2f}, of shuffled pairs "
        f"{metrics['cosine_shuffled']:.2f}."
    )
    print(f"\nPictures: {', '.join(str(output_dir / f'{n}.png') for n in ('losses', 'patch_pca', 'nearest'))}")
    print(f"Model card: {output_dir / 'README.md'}")
    print("\nLoad what was trained:")
    print("from levljepa_hf import LeVLJEPAModel, LeVLJEPAProcessor")
    print(f'model = LeVLJEPAModel.from_pretrained("{output_dir}")')
    print(f'processor = LeVLJEPAProcessor.from_pretrained("{output_dir}")')
    print("\nNext:")
    for command in next_commands(output_dir):
        print(command)


def near_chance(accuracy: float, chance: float, num_samples: int) -> str:
    """What an accuracy that is not clearly twice chance says in words; nothing for a higher one."""
    error = math.sqrt(chance * (1 - chance) / num_samples)
    if accuracy >= 2 * (chance + error):
        return ""
    return (
        f"\nThis is near chance: {accuracy:.1%} (avg), and guessing gives {chance:.1%} with a standard error of "
        f"{error:.1%}. The\nmodel has learned next to nothing, and whatever is tried on it will show little. Take "
        "more --steps."
    )


def next_commands(output_dir: Path) -> list[str]:
    """Three commands that work on the demo's checkpoint, with the extra `demo` and no other."""
    model = shlex.quote(str(output_dir))
    return [
        f"levljepa plot {model}",
        f"levljepa evaluate knn --model {model} random --dataset scenes --max_train_samples 2000 --max_samples 500",
        f"levljepa finetune classification --recipe finetune-scenes-classification --model_name_or_path {model}",
    ]


__all__ = ["COMMAND", "demo_checkpoint", "main", "run_demo"]
