"""`levljepa demo`: pretrains a small LeVLJEPA on captioned scenes, in minutes on two CPU cores, and shows the outcome.

It renders scenes (see `scenes.py`), trains with `LeVLJEPATrainer`, measures zero-shot classification and retrieval on
renderings that training never saw, and leaves a checkpoint and three pictures. The recipe `demo` holds the same
settings for `levljepa pretrain`.
"""

import argparse
import contextlib
import io
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from .data.collator import LeVLJEPADataCollator
from .encoders.embeddings import Embeddings, embed_images, embed_texts
from .evaluation.embedding_health import embedding_health
from .evaluation.pictures import plot_nearest, plot_patch_pca
from .evaluation.retrieval import retrieval_chance, retrieval_recall
from .evaluation.zero_shot import zero_shot_accuracy, zero_shot_classifier
from .figures import plot_losses
from .files import whole_folder
from .model.configuration_levljepa import LeVLJEPAConfig
from .model.modeling_levljepa import READOUTS, LeVLJEPAModel, similarity
from .model.processing_levljepa import LeVLJEPAProcessor
from .scenes.dataset import SceneDataset
from .scenes.scene import CLASS_NAMES, PROMPT_TEMPLATE, with_article
from .training.trainer import LeVLJEPATrainer, LeVLJEPATrainingArguments

# Small, and of the released family: a timm ViT, a GPT-2, two heads, two predictors.
MODEL: dict[str, Any] = {
    "vision_config": {
        "architecture": "vit_tiny_patch16_224",
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 48,
        "patch_size": 12,
    },
    # gelu_pytorch_tanh is GPT-2's own activation in one kernel.
    "text_config": {
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 128,
        "activation_function": "gelu_pytorch_tanh",
        "initializer_range": 0.125,  # GPT-2's 0.02 belongs to a width of 768
    },
    "projection_dim": 64,
    "head_hidden_size": 512,
    "predictor_num_layers": 2,
    "sigreg_text_weight": 0.06,  # spreads the classes over the text embeddings early, for the images to follow
    "sigreg_num_directions": 256,
    "sigreg_sample_size_scale": 128,
}
TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": 128,
    "learning_rate": 2e-3,
    "weight_decay": 0.05,
    "adam_beta2": 0.98,
    "warmup_steps": 50,
    "max_grad_norm": 1.0,
    "logging_steps": 10,
    "health_steps": 50,
}
STEPS = 1200
NUM_TRAIN_SCENES = 16_384
NUM_TEST_SCENES = 1_000
MAX_SCENES = 1_000_000  # 7 GB at 48 pixels
CAPTIONS_TO_DRAW = (
    "a photo of a penguin.",
    "an apple in the upper left",
    "a car on the right on a blue striped background",
    "a plain yellow background with a guitar on the left",
    "a butterfly at the bottom",
)
_SECONDS_AFTER_TRAINING = 20

EXAMPLE = """example:
  levljepa demo --output-dir runs/demo

a quick look, in half a minute:
  levljepa demo --output-dir runs/quick --steps 60 --scenes 2000
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo with the command line's options, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="levljepa demo",
        description=__doc__.split("\n\n")[0].split(": ", 1)[1],
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output-dir", type=Path, default=Path("runs/demo"), help="checkpoint and pictures (default: %(default)s)")
    add("--steps", type=int, default=STEPS, help="training steps at most (default: %(default)s)")
    add("--max-minutes", type=float, default=4.5, help="training ends early to be done by then (default: %(default)s)")
    add("--scenes", type=int, default=NUM_TRAIN_SCENES, help="training scenes (default: %(default)s)")
    add("--image-size", type=int, default=48, help="side of the scenes in pixels (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the scenes, the weights and the order (default: %(default)s)")
    args = parser.parse_args(argv)
    transformers_logging.set_verbosity_error()  # the bar, then the report, and nothing between
    try:
        run_demo(args.output_dir, args.steps, args.max_minutes, args.scenes, args.image_size, args.seed)
    except (ValueError, ImportError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")
    return 0


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
    steps: int = STEPS,
    max_minutes: float = 4.5,
    num_scenes: int = NUM_TRAIN_SCENES,
    image_size: int = 48,
    seed: int = 0,
) -> dict[str, float]:
    """Renders, trains, measures, draws and saves.

    Args:
        output_dir: where the checkpoint (model and processor) and the pictures go.
        steps: length of the training. Unless the time runs out, steps and seed decide the model, up to rounding.
        max_minutes: for everything. Where the machine is too slow for `steps`, the learning rate falls by the clock.
        num_scenes: training scenes, seen several times each.
        image_size: side of the scenes in pixels, a multiple of the patch size.
        seed: of the scenes, the weights and the order.

    Returns:
        The measurements that are printed, as fractions, and the effective ranks.
    """
    _check(steps, max_minutes, num_scenes, seed)
    deadline = time.monotonic() + 60 * max_minutes - _SECONDS_AFTER_TRAINING
    output_dir = Path(output_dir)
    set_seed(seed)
    config = LeVLJEPAConfig(**{**MODEL, "vision_config": {**MODEL["vision_config"], "image_size": image_size}})
    processor = LeVLJEPAProcessor.from_image_size(image_size)
    output_dir.mkdir(parents=True, exist_ok=True)  # an error here comes before the work
    train_scenes = SceneDataset("train", num_scenes, image_size, seed, pair_fraction=0, keep_rendered=True)
    for index in tqdm(range(num_scenes), desc="rendering scenes", unit=" scenes"):
        train_scenes[index]

    model = LeVLJEPAModel(config)
    # timm's default, a standard deviation of 0.02, suits wider models. Its other one, Xavier's, learns faster here.
    model.vision_model.timm_model.init_weights("jax")
    torch.set_num_threads(fastest_num_threads(model))
    trainer = train(model, processor, train_scenes, output_dir, steps, deadline, seed)
    test_scenes = SceneDataset("test", NUM_TEST_SCENES, image_size, seed, pair_fraction=0)
    metrics = measure_and_draw(model, processor, [*test_scenes], trainer.state.log_history, output_dir)
    trainer.save_model(str(output_dir))  # model and processor
    print_report(metrics, len(test_scenes), output_dir)
    return metrics


def _check(steps: int, max_minutes: float, num_scenes: int, seed: int) -> None:
    batch = TRAINING["per_device_train_batch_size"]
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1.")
    if not max_minutes >= 0:
        raise ValueError(f"max_minutes={max_minutes} must be at least 0.")
    if not batch <= num_scenes <= MAX_SCENES:
        raise ValueError(
            f"scenes={num_scenes} must be from {batch}, a batch, to {MAX_SCENES:,}: they are drawn before the "
            "training and kept in memory."
        )
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} must be from 0 to {2**32 - 1}.")


# ----------------------------------------------------------------------------------------------------------- training


def fastest_num_threads(model: LeVLJEPAModel) -> int:
    """As many threads as torch has now if they are clearly quicker at the vision tower than one thread, else one.

    Threads wait for each other many times a step. Where something else keeps a core busy, two are slower than one.
    """
    config, before = model.config.vision_config, torch.get_num_threads()
    pixel_values = torch.randn(64, 3, config.image_size, config.image_size, device=model.device)
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


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int, elapsed: float) -> float:
    """Linear warm-up times a cosine to 0 over the share of the steps that is behind.

    Where that falls back behind the share of the time, `elapsed`, by more than 5 %, the clock leads.
    """
    progress = min(1.0, max(step / num_steps, elapsed - 0.05))
    return min(1.0, (step + 1) / max(1, warmup_steps)) * 0.5 * (1 + math.cos(math.pi * progress))


class _DemoTrainer(LeVLJEPATrainer):
    """The learning rate follows the progress, in steps or by the clock, whichever is further."""

    def __init__(self, *args: Any, deadline: float, **kwargs: Any) -> None:
        self.start, self.deadline = time.monotonic(), deadline
        super().__init__(*args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        warmup_steps = self.args.get_warmup_steps(num_training_steps)

        def factor(step: int) -> float:
            elapsed = (time.monotonic() - self.start) / max(1e-9, self.deadline - self.start)
            return learning_rate_factor(step, num_training_steps, warmup_steps, elapsed)

        self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
        return self.lr_scheduler


class _Progress(TrainerCallback):
    """One progress bar with the loss and the ranks, and the end of the training when the time is up."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(total=state.max_steps, desc="pretraining", unit=" steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)
        if time.monotonic() >= self.deadline:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        names = {"loss": "loss", "effective_rank_vision": "rank V", "effective_rank_text": "rank T"}
        self.shown |= {short: f"{logs[name]:.3g}" for name, short in names.items() if name in logs}
        self.bar.set_postfix(self.shown, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()
        if state.global_step < state.max_steps:
            print(f"The time was up after {state.global_step} of {state.max_steps} steps.")


def train(
    model: LeVLJEPAModel,
    processor: LeVLJEPAProcessor,
    scenes: SceneDataset,
    output_dir: Path,
    steps: int,
    deadline: float,
    seed: int,
) -> LeVLJEPATrainer:
    """Trains for `steps`, or until `time.monotonic()` is at `deadline`. The scenes vary enough: none is augmented."""
    args = LeVLJEPATrainingArguments(
        output_dir=str(output_dir),
        max_steps=steps,
        seed=seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,  # for a bar of its own; notebooks would have a table besides
        **TRAINING,
    )
    trainer = _DemoTrainer(
        model=model,
        args=args,
        data_collator=LeVLJEPADataCollator(processor, transform=torch.nn.Identity(), seed=seed),
        train_dataset=scenes,
        processing_class=processor,
        deadline=deadline,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Progress(deadline))
    trainer.train()
    return trainer


# ---------------------------------------------------------------------------------------------------------- measuring


def measure_and_draw(
    model: LeVLJEPAModel,
    processor: LeVLJEPAProcessor,
    items: Sequence[dict[str, Any]],
    log_history: Sequence[dict[str, Any]],
    output_dir: Path,
) -> dict[str, float]:
    """Zero-shot accuracy, retrieval (of the full captions) and health on test scenes, and the three pictures."""
    images = [item["image"] for item in items]
    # the evaluation transform would cut off the border, where some of the things are
    vision = embed_images(model, processor, images, transform="processor", show_progress=False)
    texts = embed_texts(model, processor, [item["captions"][0] for item in items], show_progress=False)
    names = [with_article(name) for name in CLASS_NAMES]
    classifier = zero_shot_classifier(model, processor, names, PROMPT_TEMPLATE)
    metrics = zero_shot_accuracy(vision, classifier, [item["label"] for item in items])
    pairs = (vision.embeds, texts.embeds, vision.predictions, texts.predictions)
    metrics |= retrieval_recall(*pairs) | embedding_health(*pairs)

    plot_losses(log_history, output_dir / "losses.png")
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


def print_report(metrics: dict[str, float], num_scenes: int, output_dir: Path) -> None:
    """The figures beside chance, and the three lines that load the checkpoint."""
    num_classes = len(CLASS_NAMES)
    print(f"\nZero-shot top-1, {num_scenes} unseen scenes of {num_classes} classes, prompt {PROMPT_TEMPLATE!r}:")
    for readout in READOUTS:
        print(f"  {readout:14s} {metrics[f'{readout}_top1']:6.1%}")
    print(f"  {'chance':14s} {1 / num_classes:6.1%}")
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
        f"of {MODEL['projection_dim']}. Cosine of matched pairs {metrics['cosine_matched']:.2f}, of shuffled pairs "
        f"{metrics['cosine_shuffled']:.2f}."
    )
    print(f"\nPictures: {', '.join(str(output_dir / f'{n}.png') for n in ('losses', 'patch_pca', 'nearest'))}")
    print("\nLoad what was trained:")
    print("from levljepa_hf import LeVLJEPAModel, LeVLJEPAProcessor")
    print(f'model = LeVLJEPAModel.from_pretrained("{output_dir}")')
    print(f'processor = LeVLJEPAProcessor.from_pretrained("{output_dir}")')


__all__ = ["demo_checkpoint", "main", "run_demo"]
