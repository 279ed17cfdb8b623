"""The released two-file layout of LeVLJEPA checkpoints: finding, reading, checking and writing it.

A released checkpoint holds `vision_encoder.safetensors` and `text_encoder.safetensors` instead of one
`model.safetensors`. Each is one tower: `encoder.*` (a timm Vision Transformer, or `GPT2Model`), `pre_proj.*` (the
head) and `projector.*` (the predictor; none in the InfoNCE sibling). Training runs leave the same three parts as
`RUN_vision_stepN.pt` and `RUN_text_stepN.pt`. The modules are those of the model, so a name translates by its prefix
alone. Everything but the number of attention heads is read off the tensors' shapes: `config.json` is
not to be trusted. This file travels to the Hub with a saved model.
"""

import copy
import json
import math
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model, PreTrainedConfig
from transformers.utils import cached_file, has_file, logging

from .configuration_levljepa import RELEASED_KEYS, LeVLJEPAConfig, LeVLJEPAVisionConfig
from .heads_levljepa import predictor, projection_head

logger = logging.get_logger(__name__)

TOWERS = ("vision", "text")
TOWER_FILES = {"vision": "vision_encoder.safetensors", "text": "text_encoder.safetensors"}
NATIVE_PREFIXES = {
    tower: {
        "encoder.": encoder,
        "pre_proj.": f"{tower}_projection.",
        "projector.": f"{tower}_predictor.",
    }
    for tower, encoder in (("vision", "vision_model.timm_model."), ("text", "text_model."))
}
NATIVE_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# `cached_file` then returns None for what is not there or can't be reached.
QUIET = {f"_raise_exceptions_for_{name}": False for name in ("gated_repo", "missing_entries", "connection_errors")}

_WRAPPERS = {"module", "_orig_mod"}  # name parts left by DistributedDataParallel and torch.compile
_CAUSAL_MASK = re.compile(r"encoder\.h\.\d+\.attn\.(masked_)?bias")  # buffers of old GPT-2 versions
_PAIR_NAME = re.compile(r"(?P<run>.+)_(?P<tower>vision|text)_step(?P<step>\d+)\.pt")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ReleasedFiles:
    """Where the files of a released checkpoint lie; `None` for one that is not there."""

    source: str
    vision: Path | None
    text: Path | None
    config: Path | None

    def path(self, tower: str) -> Path:
        """The file of `tower`, "vision" or "text".

        Raises:
            FileNotFoundError: if the checkpoint lacks it.
        """
        path = getattr(self, tower)
        if path is None:
            found = self.vision or self.text
            raise FileNotFoundError(
                f"{self.source} has {found.name if found else 'neither file'} but no {TOWER_FILES[tower]}: the whole "
                "model needs both. Download it again (with `force_download=True` for a Hub id)"
                + (", or load the vision tower alone with LeVLJEPAVisionModel." if tower == "text" else ".")
            )
        return path


# Finding


def find_released_files(
    source: str | os.PathLike | None, towers: Iterable[str] = TOWERS, **hub_kwargs: Any
) -> ReleasedFiles | None:
    """The released files of a folder or a Hub repository.

    Args:
        source: A folder or a Hub id.
        towers: The towers that are wanted; the other file is not fetched from the Hub.
        hub_kwargs: The arguments of `from_pretrained` that say how to fetch (`revision`, `token`, `subfolder`, ...).

    Returns:
        `None` where neither file is there, or where native weights are: those have the last word. Also for a Hub id
        that can't be reached: transformers then says so in its own words.
    """
    if source is None or os.path.isfile(source):
        return None
    hub_kwargs = {name: value for name, value in hub_kwargs.items() if name in HUB_KWARGS and value is not None}
    if os.path.isdir(source):
        folder = Path(source) / hub_kwargs.get("subfolder", "")
        names = {"config": "config.json", **TOWER_FILES}
        paths = {key: folder / name if (folder / name).is_file() else None for key, name in names.items()}
        found = (paths["vision"] or paths["text"]) and not has_native_weights(folder)
        return ReleasedFiles(source=str(source), **paths) if found else None
    return _find_on_hub(str(source), tuple(towers), hub_kwargs)


def has_native_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in NATIVE_WEIGHTS) or any(folder.glob("model*.safetensors"))


def _find_on_hub(source: str, towers: tuple[str, ...], hub_kwargs: dict[str, Any]) -> ReleasedFiles | None:
    if any(_exists_on_hub(source, name, hub_kwargs) for name in NATIVE_WEIGHTS):
        return None

    def fetch(name: str) -> Path | None:
        path = cached_file(source, name, **QUIET, **hub_kwargs)
        return None if path is None else Path(path)

    paths = {tower: fetch(TOWER_FILES[tower]) if tower in towers else None for tower in TOWERS}
    if not any(paths.values()):
        return None
    return ReleasedFiles(source=source, config=fetch("config.json"), **paths)


def _exists_on_hub(source: str, name: str, hub_kwargs: dict[str, Any]) -> bool:
    subfolder = hub_kwargs.get("subfolder")
    accepted = ("cache_dir", "local_files_only", "proxies", "revision", "token")
    kwargs = {key: value for key, value in hub_kwargs.items() if key in accepted}
    try:
        return has_file(source, f"{subfolder}/{name}" if subfolder else name, **kwargs)
    except Exception:  # unknown, gated, unreachable: the loading that follows reports it in transformers' own words
        return False


def find_pt_pair(source: str | os.PathLike) -> ReleasedFiles | None:
    """The pair `RUN_vision_stepN.pt`, `RUN_text_stepN.pt` that a training run has left.

    Args:
        source: A folder that holds exactly one pair, either file of the pair, or `FOLDER/RUN_stepN` for both.

    Returns:
        `None` if `source` names no such file.

    Raises:
        FileNotFoundError: if one of the two is missing.
        ValueError: if the folder holds several pairs, or the file is not named like one of a pair.
    """
    path = Path(source)
    if path.is_dir():
        found = {_pair_key(match) for file in path.iterdir() if (match := _PAIR_NAME.fullmatch(file.name))}
        if len(found) > 1:
            choices = [str(path / f"{run}_step{step}") for run, step in sorted(found, key=lambda key: int(key[1]))]
            raise ValueError(f"{path} holds several checkpoints. Name one: {', '.join(choices)}.")
        folder, key = path, next(iter(found), None)
    elif path.is_file():
        match = _PAIR_NAME.fullmatch(path.name)
        if match is None:
            raise ValueError(
                f"{path} is not named like a file of a training run: RUN_vision_stepN.pt or RUN_text_stepN.pt."
            )
        folder, key = path.parent, _pair_key(match)
    else:
        match = re.fullmatch(r"(?P<run>.+)_step(?P<step>\d+)(\.pt)?", path.name)
        folder, key = path.parent, _pair_key(match) if match else None
    if key is None:
        return None
    paths = {tower: folder / f"{key[0]}_{tower}_step{key[1]}.pt" for tower in TOWERS}
    missing = [str(file) for file in paths.values() if not file.is_file()]
    if len(missing) == len(paths):
        return None
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing: a checkpoint of a training run is a pair of files.")
    config = folder / "config.json"
    return ReleasedFiles(source=str(source), config=config if config.is_file() else None, **paths)


def _pair_key(match: re.Match) -> tuple[str, str]:
    return match["run"], match["step"]


# Reading


def released_config(
    files: ReleasedFiles, config: PreTrainedConfig | str | os.PathLike | None = None
) -> LeVLJEPAConfig | LeVLJEPAVisionConfig:
    """The configuration of a released checkpoint, every dimension read off the tensors.

    Args:
        files: What `find_released_files` or `find_pt_pair` returned.
        config: What to start from: a configuration (that of a vision tower alone comes back as one), or where to load
            one from. The default is the `config.json` among the files, or a fresh configuration.

    Returns:
        A corrected copy. The number of attention heads, which no shape tells, is that of `config` or `config.json`
        where it fits, else (with a warning) a 64th of the width.

    Raises:
        OSError: if a file can't be read.
        ValueError: if the tensors contradict each other or one that is needed is missing.
    """
    stated = _read_json(files.config)
    is_given = config is not None
    if config is None:
        config = LeVLJEPAConfig.from_dict(_without_dimensions(stated))
    elif not isinstance(config, PreTrainedConfig):
        config = LeVLJEPAConfig.from_pretrained(config)
    config = copy.deepcopy(config)
    vision_only = isinstance(config, LeVLJEPAVisionConfig)
    heads: dict[Path, dict[str, int]] = {}
    for tower in TOWERS:
        path = getattr(files, tower)
        if path is None or (vision_only and tower == "text"):
            continue
        tensors = _Tensors(path)
        heads[path] = _head_fields(tensors)
        if tower == "vision":
            _correct_vision(config if vision_only else config.vision_config, tensors, stated, is_given)
        else:
            _correct_text(config.text_config, tensors, stated, is_given)
    if not vision_only:
        for name, value in _agreed(heads).items():
            setattr(config, name, value)
    return config


def released_state_dict(
    files: ReleasedFiles, config: LeVLJEPAConfig | LeVLJEPAVisionConfig, towers: Iterable[str] = TOWERS
) -> dict[str, Tensor]:
    """The tensors of a released checkpoint under the names of `LeVLJEPAModel`.

    The tensors are memory-mapped: nothing is read before it is used, and writing to one does not reach the file.

    Args:
        files: What `find_released_files` or `find_pt_pair` returned.
        config: What `released_config` returned for them.
        towers: The towers that are wanted; the other file is not opened.

    Raises:
        FileNotFoundError: if the file of a tower that is wanted is missing.
        OSError: if a file can't be read.
        ValueError: if a tensor is missing, has a shape that contradicts the others, or has no place in the model.
    """
    state_dict = {}
    for tower in towers:
        tensors = _Tensors(files.path(tower))
        encoder_config = getattr(config, f"{tower}_config", config)
        _check_tensors(tensors, _layout(encoder_config, **_head_fields(tensors)))
        for released, native in NATIVE_PREFIXES[tower].items():
            names = [name for name in tensors if name.startswith(released)]
            state_dict.update({native + name.removeprefix(released): tensors[name] for name in names})
    return state_dict


class _Tensors(dict[str, Tensor]):
    """The tensors of one file, memory-mapped, without wrappers' name parts and old causal masks."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor] | None = None):
        self.path = path
        if tensors is None:
            tensors = _read_pt(path) if path.suffix == ".pt" else _read_safetensors(path)
        for name, tensor in tensors.items():
            name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
            if not _CAUSAL_MASK.fullmatch(name):
                self[name] = tensor

    def shape(self, name: str, num_dims: int) -> Shape:
        """The shape of the tensor `name`, or a `ValueError` that says what the file has instead."""
        if name not in self:
            raise ValueError(
                f"{self.path} has no tensor {name!r}, but {some_of(sorted(self)) or 'nothing'}. A released file has "
                "encoder.*, pre_proj.* and projector.*: download or convert it again."
            )
        shape = tuple(self[name].shape)
        if len(shape) != num_dims:
            raise ValueError(f"{self.path}: {name!r} has shape {shape}, and {num_dims} dimensions were expected.")
        return shape

    def count(self, prefix: str) -> int:
        """How many blocks `prefix0.`, `prefix1.`, ... there are, or a `ValueError` if one is left out."""
        pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
        indices = {int(match[1]) for name in self if (match := pattern.match(name))}
        gap = next(i for i in range(len(indices) + 1) if i not in indices)
        if gap < len(indices) or not indices:
            raise ValueError(
                f"{self.path} has no tensor '{prefix}{gap}.*'"
                + (f", but has '{prefix}{max(indices)}.*'" if indices else "")
                + ". The file is incomplete: download or convert it again."
            )
        return len(indices)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        with open(path, "rb") as file:
            is_pointer = file.read(40).startswith(b"version https://git-lfs")
        raise OSError(
            f"{path} ({path.stat().st_size} bytes) is no readable safetensors file ({error}). "
            + ("It is a Git LFS pointer: run `git lfs pull` in that folder." if is_pointer else AGAIN)
        ) from error


def _read_pt(path: Path) -> dict[str, Tensor]:
    try:
        # mmap needs torch's zip format
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise OSError(
            f"{path} ({path.stat().st_size} bytes) is no readable dict of tensors ({str(error).splitlines()[0]}). "
            "It is cut off, or holds other objects than tensors: copy it again from the training run."
        ) from error
    keys = list(checkpoint) if isinstance(checkpoint, dict) else []
    if not all(part in keys and isinstance(checkpoint[part], dict) for part in ("encoder", "pre_proj")):
        raise ValueError(
            f"{path} holds a {type(checkpoint).__name__} of {some_of(keys) or 'something else'}, but a checkpoint of "
            "a training run is a dict of the state dicts 'encoder', 'pre_proj' and 'projector'."
        )
    return {
        f"{part}.{name}": tensor
        for part in ("encoder", "pre_proj", "projector")
        for name, tensor in (checkpoint.get(part) or {}).items()
    }


AGAIN = "It is cut off or damaged: download it again (with `force_download=True` for a Hub id)."


def _read_json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no readable JSON ({error}): repair it, or delete it.") from error
    return content if isinstance(content, dict) else {}


def _without_dimensions(stated: dict[str, Any]) -> dict[str, Any]:
    """`config.json` without what the shapes tell, so that wrong values can't stand in the way."""
    dropped = {"model_type", *RELEASED_KEYS} - {"vision_encoder", "training", "text_readout"}
    kept = {key: value for key, value in stated.items() if key not in dropped}
    if "vision_encoder" in stated:
        vision = stated["vision_encoder"] or {}
        kept["vision_encoder"] = {key: value for key, value in vision.items() if key == "architecture"}
    return kept


# Shapes to fields


def _correct_vision(config: LeVLJEPAVisionConfig, tensors: _Tensors, stated: dict[str, Any], is_given: bool) -> None:
    _, num_positions, hidden_size = tensors.shape("encoder.pos_embed", 3)
    _, num_channels, patch_size, _ = tensors.shape("encoder.patch_embed.proj.weight", 4)
    num_register_tokens = tensors.shape("encoder.reg_token", 3)[1] if "encoder.reg_token" in tensors else 0
    num_prefix_tokens = num_register_tokens + ("encoder.cls_token" in tensors)
    fields = {
        "hidden_size": hidden_size,
        "num_hidden_layers": tensors.count("encoder.blocks."),
        "image_size": patch_size * _grid_side(tensors.path, num_positions, num_prefix_tokens),
        "patch_size": patch_size,
        "num_register_tokens": num_register_tokens,
        "num_channels": num_channels,
    }
    for name in ("encoder.blocks.0.mlp.fc1.weight", "encoder.blocks.0.mlp.fc1_g.weight"):  # plain, or gated
        if name in tensors:
            fields["intermediate_size"] = tensors.shape(name, 2)[0]
    stated_heads = (stated.get("vision_encoder") or {}).get("num_heads")
    stated_heads = stated_heads or (stated.get("vision_config") or {}).get("num_attention_heads")
    fields["num_attention_heads"] = _num_heads(tensors.path, hidden_size, config, stated_heads, is_given)
    corrected = LeVLJEPAVisionConfig(architecture=config.architecture, **fields)
    if config.num_hidden_layers != corrected.num_hidden_layers:
        config.stage_names = corrected.stage_names
        config.set_output_features_output_indices(corrected.out_features, corrected.out_indices)
    for name in fields:
        setattr(config, name, fields[name])


def _grid_side(path: Path, num_positions: int, num_prefix_tokens: int) -> int:
    """Patches along one side. timm's positions are those of all tokens, or (`no_embed_class`) of the patches alone."""
    for num_patches in (num_positions - num_prefix_tokens, num_positions):
        side = math.isqrt(max(num_patches, 0))
        if side > 0 and side * side == num_patches:
            return side
    raise ValueError(
        f"{path}: 'encoder.pos_embed' has {num_positions} positions, which is no square grid of patches beside "
        f"{num_prefix_tokens} class and register tokens. Only square images are supported."
    )


def _correct_text(config: GPT2Config, tensors: _Tensors, stated: dict[str, Any], is_given: bool) -> None:
    vocab_size, hidden_size = tensors.shape("encoder.wte.weight", 2)
    num_layers = tensors.count("encoder.h.")
    intermediate_size = tensors.shape("encoder.h.0.mlp.c_fc.weight", 2)[1]  # transformers' Conv1D: (in, out)
    stated_heads = (stated.get("text_encoder") or {}).get("num_heads")
    stated_heads = stated_heads or (stated.get("text_config") or {}).get("n_head")
    config.n_head = _num_heads(tensors.path, hidden_size, config, stated_heads, is_given)
    config.vocab_size, config.n_embd, config.n_layer = vocab_size, hidden_size, num_layers
    config.n_positions = tensors.shape("encoder.wpe.weight", 2)[0]
    config.n_inner = None if intermediate_size == 4 * hidden_size else intermediate_size
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0


def _num_heads(path: Path, width: int, config: PreTrainedConfig, stated: Any, is_given: bool) -> int:
    """The first that divides the width: the configuration's if it is made for that width, what `config.json` states,
    the 64th part as in every size of the official code, the configuration's anyway if the caller gave one."""
    of_config = config.num_attention_heads
    told = [of_config if config.hidden_size == width else None, stated]
    guessed = [width // 64 if width % 64 == 0 else None, of_config if is_given else None]
    for heads in told + guessed:
        if isinstance(heads, int) and heads > 0 and width % heads == 0:
            break
    else:
        raise ValueError(
            f"{path} has width {width}, and no shape tells the number of attention heads: state num_heads, which must "
            f"divide it, in config.json (vision_encoder, text_encoder; found {stated}), or pass `config=`."
        )
    if heads not in told:
        logger.warning(
            f"{path}: no shape tells the number of attention heads, and config.json has none that fits: {heads} is "
            f"assumed for width {width}. State num_heads in config.json (vision_encoder, text_encoder) to be sure."
        )
    return heads


def _head_fields(tensors: _Tensors) -> dict[str, Any]:
    """`projection_dim`, `head_hidden_sizes` and `predictor_hidden_sizes` of one file."""
    *head_sizes, dim = _linear_widths(tensors, "pre_proj", stride=3)
    predictor_sizes = None
    if any(name.startswith("projector.") for name in tensors):
        *predictor_sizes, predicted = _linear_widths(tensors, "projector", stride=4, in_features=dim)
        if predicted != dim:
            name = f"projector.{4 * len(predictor_sizes)}.weight"
            raise ValueError(
                f"{tensors.path}: {name!r} has shape {tuple(tensors[name].shape)}, but a predictor ends in the "
                f"dimension of the embeddings, which 'pre_proj' makes {dim}. {_MIXED}"
            )
    return {"projection_dim": dim, "head_hidden_sizes": head_sizes, "predictor_hidden_sizes": predictor_sizes}


def _linear_widths(tensors: _Tensors, part: str, stride: int, in_features: int | None = None) -> list[int]:
    """The output widths of a part's linear layers, which stand at every `stride`th index and fit each other."""
    numbered = re.compile(rf"{part}\.(\d+)\.")
    last = max((int(match[1]) for name in tensors if (match := numbered.match(name))), default=stride)
    widths = []
    for index in range(0, -(-last // stride) * stride + 1, stride):
        name = f"{part}.{index}.weight"
        width, takes = tensors.shape(name, 2)
        if in_features not in (None, takes):
            raise ValueError(
                f"{tensors.path}: {name!r} has shape {(width, takes)}, but the layer before it gives {in_features} "
                f"numbers and not {takes}. {_MIXED}"
            )
        widths.append(width)
        in_features = width
    return widths


_MIXED = "Are the parts of different checkpoints?"

_FIELD_TENSORS = {
    "projection_dim": "'pre_proj' makes embeddings of {} dimensions",
    "head_hidden_sizes": "'pre_proj' has hidden layers of width {}",
    "predictor_hidden_sizes": "'projector' has hidden layers of width {}",
}


def _agreed(heads: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """The configuration's fields of the heads, which both files must share."""
    (first, fields), *others = heads.items()
    for other, other_fields in others:
        for name, tensor in _FIELD_TENSORS.items():
            if fields[name] != other_fields[name]:
                tensor = tensor.format(fields[name])
                raise ValueError(
                    f"{first.name} and {other.name} in {first.parent} do not belong together: {tensor} in the first, "
                    f"{other_fields[name]} in the second (None is no predictor). Take both from one checkpoint."
                )
    head_size, head_layers = _size_and_number(fields["head_hidden_sizes"])
    predictor_size, predictor_layers = None, 0
    if fields["predictor_hidden_sizes"] is not None:
        predictor_size, predictor_layers = _size_and_number(fields["predictor_hidden_sizes"])
    return {
        "projection_dim": fields["projection_dim"],
        "head_hidden_size": head_size,
        "head_num_layers": head_layers,
        "predictor_hidden_size": predictor_size
        if isinstance(head_size, list) or predictor_size != head_size
        else None,
        "predictor_num_layers": predictor_layers,
    }


def _size_and_number(widths: list[int]) -> tuple[int | list[int], int]:
    """One width for all layers, where it is one; a list, where it is not."""
    return widths[0] if len(set(widths)) == 1 else widths, len(widths)


# The layout as modules


def _layout(
    encoder_config: LeVLJEPAVisionConfig | GPT2Config,
    projection_dim: int,
    head_hidden_sizes: list[int],
    predictor_hidden_sizes: list[int] | None,
) -> dict[str, Shape]:
    """The names and shapes of the tensors of one released file (no memory is allocated)."""
    from .vision_levljepa import create_vit  # imports timm

    is_text = isinstance(encoder_config, GPT2Config)
    with torch.device("meta"):
        parts = nn.ModuleDict(
            {
                "encoder": GPT2Model(encoder_config) if is_text else create_vit(encoder_config),
                "pre_proj": projection_head(encoder_config.hidden_size, head_hidden_sizes, projection_dim),
            }
        )
        if predictor_hidden_sizes is not None:
            parts["projector"] = predictor(projection_dim, predictor_hidden_sizes)
    return {name: tuple(tensor.shape) for name, tensor in parts.state_dict().items()}


def _check_tensors(tensors: _Tensors, layout: dict[str, Shape]) -> None:
    missing = [name for name in layout if name not in tensors]
    if missing:
        raise ValueError(
            f"{tensors.path} has no tensor {some_of(missing)}, which the rest of the file calls for"
            f"{_architecture_hint(missing)}. The file is incomplete: download or convert it again."
        )
    for name, shape in layout.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"{tensors.path}: {name!r} has shape {tuple(tensors[name].shape)}, but the other tensors make it "
                f"{shape}. Are the parts of different checkpoints? Download or convert the file again."
            )
    unknown = [name for name in tensors if name not in layout]
    misplaced = [name for name in unknown if name.startswith(("encoder.", "pre_proj.", "projector."))]
    if misplaced:
        raise ValueError(
            f"{tensors.path} has tensors that the model has no place for: {some_of(misplaced)}"
            f"{_architecture_hint(misplaced)}. The checkpoint is of another architecture."
        )
    if unknown:
        logger.warning(f"{tensors.path}: ignored {some_of(unknown)}, which belong to no part of the model.")


def _architecture_hint(names: list[str]) -> str:
    if not any(name.startswith("encoder.") and not name.startswith("encoder.h.") for name in names):
        return ""
    return " (is `vision_encoder.architecture` in config.json the timm name that the checkpoint was trained with?)"


def some_of(names: Iterable[str], limit: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more


# Writing


def save_released(
    model_or_state_dict: nn.Module | Mapping[str, Tensor],
    config: LeVLJEPAConfig | None,
    directory: str | os.PathLike,
) -> None:
    """Writes `vision_encoder.safetensors`, `text_encoder.safetensors` and `config.json` in the released form.

    A file appears under its name when it is complete, and none does if one can't be written. What the layout has no
    place for is left out: the weights of the loss and the step counter of SIGReg.

    Args:
        model_or_state_dict: A `LeVLJEPAModel`, or its state dict.
        config: The model's configuration; `None` for that of the model.
        directory: The folder, made if need be. Files of those three names are replaced.

    Raises:
        ValueError: if the tensors are not those of a whole `LeVLJEPAModel`.
    """
    state_dict = model_or_state_dict
    if isinstance(model_or_state_dict, nn.Module):
        config = config or model_or_state_dict.config
        state_dict = model_or_state_dict.state_dict()
    if not isinstance(config, LeVLJEPAConfig):
        raise ValueError(
            f"The released layout is that of a whole LeVLJEPAModel, but the configuration is {type(config).__name__}: "
            "pass the model, or its state dict and its LeVLJEPAConfig."
        )
    directory = Path(directory)
    contents = _released_tensors(state_dict, config, directory)
    directory.mkdir(parents=True, exist_ok=True)
    names = (*TOWER_FILES.values(), "config.json")
    staged = {directory / name: directory / f".{name}.{os.getpid()}.part" for name in names}
    try:
        for tower, tensors in contents.items():
            save_file(tensors, staged[directory / TOWER_FILES[tower]], metadata={"format": "pt"})
        text = json.dumps(released_config_dict(config), indent=2) + "\n"
        staged[directory / "config.json"].write_text(text, encoding="utf-8")
        for path, part in staged.items():
            os.replace(part, path)
    finally:
        for part in staged.values():
            part.unlink(missing_ok=True)


def _released_tensors(
    state_dict: Mapping[str, Tensor], config: LeVLJEPAConfig, directory: Path
) -> dict[str, dict[str, Tensor]]:
    natives = [native for prefixes in NATIVE_PREFIXES.values() for native in prefixes.values()]
    strangers = [name for name in state_dict if not name.startswith((*natives, "sigreg."))]
    if strangers:
        raise ValueError(
            f"The released layout has no place for {some_of(strangers)}: pass a whole LeVLJEPAModel, no single tower "
            "and no task head."
        )
    contents = {}
    for tower, prefixes in NATIVE_PREFIXES.items():
        tensors = {
            released + name.removeprefix(native): tensor.detach().contiguous()
            for released, native in prefixes.items()
            for name, tensor in state_dict.items()
            if name.startswith(native)
        }
        layout = _layout(
            getattr(config, f"{tower}_config"),
            config.projection_dim,
            config.head_hidden_sizes,
            config.predictor_hidden_sizes,
        )
        _check_tensors(_Tensors(directory / TOWER_FILES[tower], tensors), layout)
        contents[tower] = tensors
    return contents


def released_config_dict(config: LeVLJEPAConfig) -> dict[str, Any]:
    """The `config.json` of a released checkpoint."""
    vision, text = config.vision_config, config.text_config
    return {
        "model_type": config.model_type,
        "vision_encoder": {
            "architecture": vision.architecture,
            "hidden_size": vision.hidden_size,
            "num_layers": vision.num_hidden_layers,
            "num_heads": vision.num_attention_heads,
        },
        "text_encoder": {
            "architecture": "gpt2",
            "hidden_size": text.n_embd,
            "num_layers": text.n_layer,
            "num_heads": text.n_head,
            "vocab_size": text.vocab_size,
        },
        "embed_dim": config.projection_dim,
        **_stated_heads(config),
        **({} if config.text_readout == "eot" else {"text_readout": config.text_readout}),
    }


def _stated_heads(config: LeVLJEPAConfig) -> dict[str, Any]:
    """The fields of heads and predictors under the official code's names; `pre_proj_*` only where it is not usual."""
    head_sizes, predictor_sizes = config.head_hidden_sizes, config.predictor_hidden_sizes or []
    head_size, head_layers = _size_and_number(head_sizes)
    size, layers = _size_and_number(predictor_sizes) if predictor_sizes else (head_size, 0)
    stated: dict[str, Any] = {"projector_width": size, "projector_depth": layers}
    if isinstance(size, list) or config.predictor_hidden_sizes == []:
        stated = {"projector_hidden_dims": predictor_sizes}
    if isinstance(head_size, list):
        stated["pre_proj_hidden_dims"] = head_size
    elif (head_size, head_layers) != (size, 1):
        stated |= {"pre_proj_width": head_size, "pre_proj_depth": head_layers}
    return stated
