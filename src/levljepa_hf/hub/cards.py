"""Model cards, for `levljepa convert`, the trainers, `levljepa evaluate --card` and `levljepa card`.

A card is made of what lies beside the weights: `config.json`, `recipe.yaml`, `trainer_state.json`, `all_results.json`
and pictures. So it can be made again from the folder, or from the repository, alone. It names no paths of the machine:
a local data set or checkpoint appears by its folder's name.
"""

import importlib.util
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import httpx
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..figures import LOSS_TERMS, plot_losses
from ..files import write_whole
from ..model.configuration_levljepa import LeVLJEPAConfig, LeVLJEPATextConfig, LeVLJEPAVisionConfig

logger = logging.get_logger(__name__)

RELEASES = ("lukaskuhndkfz/LeVLJEPA-ViT-B-DataComp-200k", "lukaskuhndkfz/InfoNCE-ViT-B-DataComp-200k")
LICENSE = "cc-by-nc-4.0"  # of the releases, and so of what is made of them
TAGS = ["levljepa", "vision-language", "self-supervised-learning", "jepa", "vit", "gpt2", "arxiv:2607.00784"]
PART_TAGS = ["levljepa", "self-supervised-learning", "jepa", "arxiv:2607.00784"]  # of a tower or a task head
CARD_NAME, RECIPE_NAME, STATE_NAME, RESULTS_NAME = "README.md", "recipe.yaml", "trainer_state.json", "all_results.json"
PICTURES = {
    "losses.png": "Losses over the steps of the training",
    "confusion.png": "Confusion matrix",
    "segmentation.png": "Images, their true classes and the predicted ones",
    "patch_pca.png": "Images, and the first three principal components of their patch features as colours",
    "nearest.png": "Captions, and the images nearest to them",
}

_CONFIGS = {one.model_type: one for one in (LeVLJEPAConfig, LeVLJEPAVisionConfig, LeVLJEPATextConfig)}
_PIPELINE_TAGS = {
    "LeVLJEPAModel": "zero-shot-image-classification",
    "LeVLJEPAForImageClassification": "image-classification",
    "LeVLJEPAForSemanticSegmentation": "image-segmentation",
    "LeVLJEPAVisionModel": "image-feature-extraction",
    "LeVLJEPABackbone": "image-feature-extraction",
    "LeVLJEPATextModel": "feature-extraction",
}
HUB_ID = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*")
# Options of a recipe that say where a run is kept and watched, not what is trained.
_PLACES = ("output_dir", "logging_dir", "cache_dir", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy")
_PLACES += ("hub_always_push", "hub_revision", "report_to", "run_name", "disable_tqdm")
# Options of the commands, whose recipes name a checkpoint if there was one.
_SAY_ALL = {"dataset", "mixture", "from_scratch"}
_BY_TRAINER = " (after training)"  # marks the figures of a trainer's own evaluation, which a new card replaces
_NO_FIGURES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
_ACCURACIES = ("top5_accuracy", "mean_per_class_accuracy", "mean_accuracy", "pixel_accuracy")  # one type to the Hub
NETWORK_ERRORS = (httpx.HTTPError, ConnectionError, TimeoutError)


def _template(name: str) -> Path:
    return Path(__file__).with_name(f"{name}_template.md")


# -------------------------------------------------------------------------------------------------- what a card says


@dataclass(frozen=True)
class Source:
    """Where something comes from: a data set, or the checkpoint that a training started from.

    Args:
        name: As a card shows it: a Hub id, or a folder's name.
        hub_id: The Hub id; of a local checkpoint, that of the checkpoint it was made of. `None` where there is none.
        license: The licence that it states.
    """

    name: str
    hub_id: str | None = None
    license: str | None = None

    @property
    def markdown(self) -> str:
        return f"[{self.name}](https://huggingface.co/{self.name})" if self.name == self.hub_id else f"`{self.name}`"


@dataclass
class Run:
    """What a folder says of the training that left it.

    Args:
        recipe: Its options that differ from their defaults.
        log: What was logged, in order.
        summary: Steps, epochs, seconds.
        figures: The last evaluation, by the metric's name; where there are test figures, those.
        pictures: The names of the pictures in the folder.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> "Run":
        """Reads what is there; a folder without any training gives an empty one."""
        folder = Path(folder)
        recipe = yaml.safe_load(_text(folder / RECIPE_NAME) or "{}") or {}
        state = json.loads(_text(folder / STATE_NAME) or "{}")
        results = json.loads(_text(folder / RESULTS_NAME) or "{}")
        log = state.get("log_history", [])
        summary = {name: state[name] for name in ("global_step", "epoch", "train_batch_size") if state.get(name)}
        summary |= {name: entry[name] for entry in log for name in ("train_runtime",) if name in entry}
        evaluations = [entry for entry in log if any(name.startswith(("eval_", "test_")) for name in entry)]
        last = {}
        for entry in evaluations:  # several at the last step: of several data sets, or of the best checkpoint again
            last |= entry if entry.get("step") == evaluations[-1].get("step") else {}
        found = {**last, **results}
        prefix = "test_" if any(name.startswith("test_") for name in found) else "eval_"
        names = sorted((name for name in found if name.startswith(prefix)), key=_by_number)
        figures = {name.removeprefix(prefix): found[name] for name in names}
        return cls(recipe, log, summary, figures, [name for name in PICTURES if (folder / name).is_file()])

    def last(self, name: str) -> float | None:
        """A figure of the last evaluation, or else the last one that was logged in training."""
        logged = [entry[name] for entry in self.log if name in entry]
        return self.figures.get(name, logged[-1] if logged else None)

    @property
    def drawn(self) -> dict[str, int]:
        """Of a mixture, the samples that each data set gave, by its name in the log."""
        logged = next((entry for entry in reversed(self.log) if any(map(_is_drawn, entry))), {})
        return {name.partition("/")[2]: count for name, count in logged.items() if _is_drawn(name)}

    @property
    def split(self) -> str | None:
        """The split of the last evaluation, if the recipe names it."""
        return self.recipe.get("eval_split") or self.recipe.get("test_split")

    @property
    def num_evaluated(self) -> int | None:
        """Samples of the last evaluation."""
        seconds, rate = self.figures.get("runtime"), self.figures.get("samples_per_second")
        return round(seconds * rate) if seconds and rate else None


def _is_drawn(name: str) -> bool:
    return name.startswith("samples/")


def _by_number(name: str) -> list[Any]:
    """A key for sorting by which R@5 is before R@10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _text(path: Path) -> str | None:
    return path.read_text("utf-8") if path.is_file() else None


def _is_hub_id(value: str) -> bool:
    """Whether a recipe's value is OWNER/NAME: a local folder is written there as ./FOLDER, or with its whole path."""
    return "/" in value and HUB_ID.fullmatch(value) is not None and not Path(value).exists()


def _shown(value: str) -> str:
    """A Hub id or an address as it is; of a path its last part, and of a pattern of files the folder too."""
    if "://" in value or _is_hub_id(value):
        return value
    *_, folder, name = ("", *Path(value).parts)
    needs_folder = any(sign in name for sign in "*?[") or name.startswith("checkpoint-")
    return f"{folder}/{name}" if needs_folder and folder not in ("", os.sep) else name


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_paths(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    return _shown(value) if isinstance(value, str) and "/" in value.replace(os.sep, "/") else value


def _dataset(value: str) -> Source:
    known = _known_datasets().get(value)
    if known is not None:
        return Source(known, known) if _is_hub_id(known) else Source(value)
    return Source(value, value) if _is_hub_id(value) else Source(_shown(value))


def _checkpoint(value: str, token: str | bool | None = None) -> Source:
    path = Path(value)
    if path.is_dir():
        folders = [path, path.parent] if path.name.startswith("checkpoint-") else [path]
        cards = [ModelCard.load(one / CARD_NAME).data for one in folders if (one / CARD_NAME).is_file()]
        base = first(cards[0].base_model) if cards else None
        return Source(_shown(value), base, (cards[0].license if cards else None) or _release_license(base))
    return Source(value, value, license_of(value, token)) if _is_hub_id(value) else Source(_shown(value))


def first(value: str | list[str] | None) -> str | None:
    return value[0] if isinstance(value, list) and value else value or None


def _known_datasets() -> dict[str, str]:
    """The repository of each data set that the evaluation knows by name; of those drawn on the spot, their name."""
    try:
        from ..data.catalogue import DATASETS
    except ImportError:  # they belong to an extra
        return {}
    return {name: name if one.generated else next(iter(one.sources.values())).repo for name, one in DATASETS.items()}


def _release_license(base_model: str | None) -> str | None:
    return LICENSE if base_model in RELEASES else None


def license_of(repo_id: str, token: str | bool | None = None) -> str | None:
    """The licence that a repository's card states; `None`, with a warning, where it can't be read."""
    if repo_id in RELEASES:
        return LICENSE
    try:
        return ModelCard.load(repo_id, token=token).data.license
    except EntryNotFoundError as error:
        if not isinstance(error, FileNotFoundError):  # there is a repository, and no card in it
            return None
    except (OSError, *NETWORK_ERRORS):
        pass
    logger.warning(f"The card of {repo_id} is not within reach, so its licence is not taken over: state it yourself.")
    return None


def take_figures_over(folder: str | os.PathLike, repo_id: str, token: str | bool | None = None) -> None:
    """Brings the figures of a repository's card into the folder's, which is going to be pushed over it."""
    path, theirs = Path(folder, CARD_NAME), card_on_hub(repo_id, token)
    if theirs is None:
        return
    card = ModelCard.load(path) if path.is_file() else theirs
    have = {_identity(one) for one in card.data.eval_results or ()}
    add_figures(card.data, [one for one in theirs.data.eval_results or () if _identity(one) not in have], repo_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, card.save)


def card_on_hub(repo_id: str, token: str | bool | None = None) -> ModelCard | None:
    """The card of a repository, or `None` if it has none or is not there."""
    try:
        return ModelCard.load(repo_id, token=token)
    except (EntryNotFoundError, RepositoryNotFoundError, *NETWORK_ERRORS):
        return None


# ------------------------------------------------------------------------------------------------------------- cards


def model_card(
    config: LeVLJEPAConfig,
    name: str,
    source: str | None,
    base_model: str | None = None,
    license: str | None = None,
    native: bool = True,
    training: str = "",
) -> ModelCard:
    """The model card of a whole model, rendered from `model_card_template.md`.

    Args:
        config: The model's configuration.
        name: What `from_pretrained` takes to load it, as the card shows it.
        source: Where the weights come from, if not from `base_model`, and if that is to be said.
        base_model: The Hub id of the source. For one of `RELEASES` that was not trained on, the card has the paper's
            figures.
        license: A licence id of the Hub; by default that of `RELEASES` for what is made of them, and else none.
        native: Whether the checkpoint is in the native layout.
        training: The sections on its training.
    """
    license = license or _release_license(base_model)
    data = ModelCardData(
        language="en",
        license=license,
        library_name="transformers",
        pipeline_tag=_PIPELINE_TAGS["LeVLJEPAModel"],
        tags=list(TAGS),
        base_model=base_model,
    )
    if base_model and not training:
        source = Source(base_model, base_model).markdown
    elif source:
        source = f"`{source}`"
    return ModelCard.from_template(
        data,
        template_path=str(_template("model_card")),
        title=name.rsplit("/", 1)[-1],
        name=name,
        source=source,
        license=license,
        config=config,
        heads=_widths(config.head_hidden_sizes),
        predictors=_widths(config.predictor_hidden_sizes),
        native=native,
        release=base_model in RELEASES and not training,
        training=training,
    )


def _widths(hidden_sizes: list[int] | None) -> str | None:
    """Hidden layers in words; `None` for no layers at all."""
    if not hidden_sizes:
        return None if hidden_sizes is None else "linear"
    *others, last = hidden_sizes
    if set(others) - {last}:
        return f"hidden layers of widths {', '.join(map(str, others))} and {last}"
    return f"{len(hidden_sizes)} hidden layer{'s' if others else ''} of width {last}"


def _part_card(
    config: PreTrainedConfig, architecture: str, name: str, base: Source | None, license: str | None, training: str
) -> ModelCard:
    """The model card of a task head or a tower, rendered from `part_card_template.md`."""
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag=_PIPELINE_TAGS[architecture],
        tags=list(PART_TAGS),
        base_model=base.hub_id if base else None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(_template("part_card")),
        title=name.rsplit("/", 1)[-1],
        name=name,
        architecture=architecture,
        config=config,
        vision=getattr(config, "vision_config", config) if architecture != "LeVLJEPATextModel" else None,
        text=getattr(config, "text_config", config) if architecture == "LeVLJEPATextModel" else None,
        classes=list(config.id2label.values()) if "For" in architecture else [],
        base=base,
        license=license,
        training=training,
    )


def checkpoint_card(
    folder: str | os.PathLike,
    *,
    name: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    dataset: str | None = None,
    datasets: Sequence[str] = (),
    dataset_config: str | None = None,
    language: str | list[str] | None = None,
    tags: Sequence[str] = (),
    pipeline_tag: str | None = None,
    token: str | bool | None = None,
) -> ModelCard:
    """The card of a checkpoint, from what lies beside its weights.

    What the folder's present card has in its metadata stays, unless the folder or an argument says otherwise; so do
    the figures of `levljepa evaluate --card`.

    Args:
        folder: Holds `config.json`, and of a training `recipe.yaml`, `trainer_state.json`, `all_results.json` and
            pictures.
        name: What loads it, a Hub id or a folder's name; by default the Hub id that the recipe pushes to, or else the
            folder's name.
        license: A licence id of the Hub; by default that of the present card, of the checkpoint that the training
            started from, or none.
        base_model: That checkpoint, a folder or Hub id; by default the recipe's, and of a folder that is not here
            what the present card's metadata says. Empty for new weights.
        dataset: What it was trained on, as the card shows it; by default the recipe's.
        datasets: Hub ids of data sets, for the metadata; by default those of the recipe.
        dataset_config: Configuration of the evaluation's data set.
        language: Of the captions.
        tags: Further ones.
        pipeline_tag: By default that of the model's class.
        token: To read the card of `base_model`, if it is on the Hub.

    Raises:
        FileNotFoundError: if the folder has no `config.json`.
        ValueError: if that is of another model.
    """
    folder = Path(folder)
    stated = read_config(folder)
    config = _CONFIGS[stated["model_type"]].from_dict(stated)
    architecture = first(stated.get("architectures")) or "LeVLJEPAModel"
    run = Run.from_folder(folder)
    old = ModelCard.load(folder / CARD_NAME).data if (folder / CARD_NAME).is_file() else ModelCardData()

    base = _base(run, base_model, old, token)
    base_id = base.hub_id if base else None
    stays = old.license if first(old.base_model) == base_id else None
    license = license or stays or (base.license if base else None)
    pushed_to = run.recipe.get("hub_model_id") if run.recipe.get("push_to_hub") else None
    name = name or pushed_to or folder.resolve().name
    trained, evaluated = _datasets(run, dataset, old)
    is_new = base is None and (base_model == "" or bool(_SAY_ALL & run.recipe.keys()))
    training = _training_sections(run, config, architecture, base, is_new, trained, evaluated)
    if architecture == "LeVLJEPAModel":
        native = "vision_encoder" not in stated
        card = model_card(config, name, None, base_id, license, native, training)
    else:
        card = _part_card(config, architecture, name, base, license, training)

    data = card.data
    for key, value in old.to_dict().items():
        if key not in data and key not in ("model-index", "base_model", "license"):
            data[key] = value
    ids = list(datasets) or list(dict.fromkeys(one.hub_id for one in (*trained, evaluated) if one and one.hub_id))
    data.datasets = ids or old.datasets
    data.language = language or old.language or (None if training else data.language)  # a run's captions may be any
    data.tags = list(dict.fromkeys([*(data.tags or ()), *tags, *(old.tags or ())]))
    data.pipeline_tag = pipeline_tag or data.pipeline_tag
    own = _figures(run, architecture, data.pipeline_tag, evaluated, dataset_config)
    data.metrics = list(dict.fromkeys([*(one.metric_type for one in own), *(old.metrics or ())])) or None
    add_figures(data, [figure for figure in old.eval_results or () if not _is_own(figure)], name)
    add_figures(data, own, name)
    return card


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """The `config.json` of a LeVLJEPA checkpoint.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is of another model.
    """
    text = _text(Path(folder, "config.json"))
    if text is None:
        raise FileNotFoundError(f"{folder} holds no checkpoint: it has no config.json.")
    config = json.loads(text)
    if config.get("model_type") not in _CONFIGS or (first(config.get("architectures")) or "LeVLJEPAModel") not in (
        _PIPELINE_TAGS
    ):
        what = config.get("architectures") or config.get("model_type")
        raise ValueError(f"{folder} holds a model of type {what!r}; cards are made for those of LeVLJEPA.")
    return config


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _base(run: Run, given: str | None, old: ModelCardData, token: str | bool | None) -> Source | None:
    """The checkpoint that the training started from, or that was converted; `None` for new weights."""
    if given is None and not run.recipe.get("from_scratch"):
        given = run.recipe.get("model_name_or_path")
    if given:
        found = _checkpoint(given, token)
        elsewhere = found.hub_id is None and not Path(given).exists()
        return Source(found.name, first(old.base_model), found.license) if elsewhere else found
    old_id = None if given is not None or _SAY_ALL & run.recipe.keys() else first(old.base_model)
    return Source(old_id, old_id, old.license or _release_license(old_id)) if old_id else None


def _datasets(run: Run, given: str | None, old: ModelCardData) -> tuple[list[Source], Source | None]:
    """What was trained on, of a mixture all of it, and what was evaluated on."""
    said_before = next((one.dataset_name for one in old.eval_results or () if _is_own(one)), None)
    mixed = [one["dataset"] if isinstance(one, dict) else one for one in run.recipe.get("mixture") or ()]
    trained = as_list(given) or mixed or as_list(run.recipe.get("dataset") or said_before)
    evaluated = run.recipe.get("eval_dataset") or (trained[0] if len(trained) == 1 else None)
    sources = list(dict.fromkeys(map(_dataset, trained)))
    return sources, None if evaluated is None else _dataset(evaluated)


def write_card(folder: str | os.PathLike, **options: Any) -> ModelCard:
    """Writes the card of a checkpoint, and the picture of its losses, into its folder.

    Args:
        folder: The checkpoint's.
        options: Those of `checkpoint_card`.
    """
    folder = Path(folder)
    terms = [*LOSS_TERMS, "eval_loss"]
    log = Run.from_folder(folder).log
    found = [term for term in terms if any(term in entry and "step" in entry for entry in log)]
    if found and importlib.util.find_spec("matplotlib") is not None:
        write_whole(folder / "losses.png", lambda path: plot_losses(log, path, found))
    card = checkpoint_card(folder, **options)
    write_whole(folder / CARD_NAME, card.save)
    return card


# The sections on the training


def _training_sections(
    run: Run,
    config: PreTrainedConfig,
    architecture: str,
    base: Source | None,
    is_new: bool,
    trained: list[Source],
    evaluated: Source | None,
) -> str:
    """What was trained on what, pictures, figures and the recipe; empty where nothing tells of a training."""
    if not (run.summary or run.recipe or run.pictures):
        return ""
    recipe = {key: _without_paths(value) for key, value in run.recipe.items() if key not in _PLACES}
    command = {
        "LeVLJEPAForImageClassification": "finetune classification",
        "LeVLJEPAForSemanticSegmentation": "finetune segmentation",
    }.get(architecture, "pretrain")
    template = jinja2.Template(_template("training").read_text("utf-8"), trim_blocks=True, lstrip_blocks=True)
    return template.render(
        run=run,
        minutes=run.summary.get("train_runtime", 0) / 60,
        base=base,
        is_new=is_new,
        trained=trained,
        evaluated=evaluated,
        split=run.split,
        recalls=_recalls(run),
        figures=_health(run, config) if architecture == "LeVLJEPAModel" else _plain_figures(run),
        pictures={name: PICTURES[name] for name in run.pictures},
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip() if recipe else "",
        command=command,
    ).strip()


def _recalls(run: Run) -> dict[str, dict[str, str]]:
    """Rows of the table of retrieval, in percent, by k."""
    rows: dict[str, dict[str, str]] = {}
    for name, value in run.figures.items():
        direction, at, k = name.rpartition("_R@")
        if at and direction in ("text_to_image", "image_to_text"):
            rows.setdefault(direction.replace("_", " "), {})[k] = f"{100 * value:.1f}"
    if rows and run.num_evaluated:
        ks = next(iter(rows.values()))
        rows["chance"] = {k: f"{100 * min(1, int(k) / run.num_evaluated):.1f}" for k in ks}
    return rows


def _health(run: Run, config: LeVLJEPAConfig) -> dict[str, str]:
    """The loss and the health of the embeddings, of the last evaluation or else of the last log."""

    def row(*names: str, digits: int) -> str | None:
        values = [run.last(name) for name in names]
        return None if None in values else " / ".join(f"{value:.{digits}f}" for value in values)

    ranks = row("effective_rank_vision", "effective_rank_text", digits=1)
    rows = {
        "loss": row("loss", digits=4),
        "prediction loss": row("prediction_loss", digits=4),
        "SIGReg, image / text": row("sigreg_vision", "sigreg_text", digits=2),
        "SIGReg of a training batch of Gaussian samples": row("sigreg_floor", digits=2),
        "squared distance of the views": row("multi_view_loss", digits=4),
        "learned scale": row("contrastive_scale", digits=2),
        "learned bias": row("contrastive_bias", digits=2),
        "effective rank, image / text": ranks and f"{ranks}, of {config.projection_dim}",
        "cosine of matched / shuffled pairs": row("cosine_matched", "cosine_shuffled", digits=2),
    }
    return {name: value for name, value in rows.items() if value is not None}


def _plain_figures(run: Run) -> dict[str, str]:
    return {
        name.replace("_", " "): f"{value:.4f}"
        for name, value in run.figures.items()
        if name not in _NO_FIGURES and isinstance(value, (int, float))
    }


# Figures in the metadata


def _figures(
    run: Run, architecture: str, task_type: str, dataset: Source | None, dataset_config: str | None
) -> list[EvalResult]:
    """The trainer's last evaluation, as the Hub reads it; none where the data set has no name."""
    if dataset is None:
        return []
    found = {}
    for name, value in run.figures.items():
        is_figure = isinstance(value, (int, float)) and math.isfinite(value)
        if architecture == "LeVLJEPAModel":
            is_figure = is_figure and "_R@" in name
        if is_figure and name not in (*_NO_FIGURES, "loss"):
            found[name] = value
    task_type = "image-text-retrieval" if architecture == "LeVLJEPAModel" else task_type
    return [
        EvalResult(
            task_type=task_type,
            task_name=task_type.replace("-", " ").capitalize(),
            dataset_type=dataset.hub_id or dataset.name,
            dataset_name=dataset.name,
            dataset_config=dataset_config or run.recipe.get("dataset_config"),
            dataset_split=run.split,
            metric_type="recall" if "_R@" in name else "accuracy" if name in _ACCURACIES else name,
            metric_name=name.replace("_", " ") + _BY_TRAINER,
            metric_value=round(value, 6),
        )
        for name, value in found.items()
    ]


def _is_own(figure: EvalResult) -> bool:
    return (figure.metric_name or "").endswith(_BY_TRAINER)


def add_figures(data: ModelCardData, figures: Sequence[EvalResult], name: str) -> None:
    """Adds figures to a card's metadata (`model-index`), in place of those of the same task, data set and metric.

    Args:
        data: The card's metadata.
        figures: The new ones.
        name: The model's, a Hub id or a folder's, if the card has none yet.
    """
    new = {_identity(one): one for one in figures}
    kept = {_identity(one): one for one in data.eval_results or () if _identity(one) not in new}
    results = [*kept.values(), *new.values()]
    if results:
        data.eval_results = results
        data.model_name = data.model_name or name.rsplit("/", 1)[-1]


def _identity(one: EvalResult) -> tuple[Any, ...]:
    return one.task_type, one.dataset_type, one.dataset_config, one.dataset_split, one.metric_name or one.metric_type


__all__ = [
    "LICENSE",
    "RELEASES",
    "Run",
    "Source",
    "add_figures",
    "card_on_hub",
    "checkpoint_card",
    "license_of",
    "model_card",
    "read_config",
    "take_figures_over",
    "write_card",
]
