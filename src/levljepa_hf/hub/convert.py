"""`levljepa convert`: the released two-file layout or a `.pt` pair to a native checkpoint, and back.

A native checkpoint is one `model.safetensors` with configuration, code, processor and model card.
"""

import glob
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..model.configuration_levljepa import TEXT_READOUTS, LeVLJEPAConfig
from ..model.modeling_levljepa import LeVLJEPAModel, sentence_transformers_files
from ..model.processing_levljepa import LeVLJEPAProcessor, build_tokenizer
from ..model.released import (
    AGAIN,
    NATIVE_PREFIXES,
    NATIVE_WEIGHTS,
    TOWER_FILES,
    find_pt_pair,
    find_released_files,
    has_native_weights,
    released_config,
    released_state_dict,
    save_released,
    some_of,
)
from ..options import Command, option
from .cards import CARD_NAME, LICENSE, RELEASES, add_figures, card_on_hub, license_of, model_card
from .publishing import check_push, push_folder

logger = logging.get_logger(__name__)

_MODEL = Path(__file__).parents[1] / "model"  # its files are the code that travels with a checkpoint

# What `convert` writes, in either layout, beside the code files. A folder with anything else is not replaced.
WRITTEN = (CARD_NAME, "config.json", "model.safetensors", *TOWER_FILES.values())
WRITTEN += ("processor_config.json", "tokenizer.json", "tokenizer_config.json", *sentence_transformers_files(0))


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    to: str = "native",
    *,
    overwrite: bool = False,
    base_model: str | None = None,
    license: str | None = None,
    text_readout: str | None = None,
    push_to_hub: str | None = None,
    private: bool | None = None,
    **hub_kwargs: Any,
) -> Path:
    """Writes the checkpoint `source` to the folder `target` in the other layout.

    Weights keep their values and their dtype. The folder appears, or takes the place of the old one, when it is
    complete: an error on the way leaves what was there.

    Args:
        source: A folder or a Hub id, released or native; or a `.pt` pair of a training run: either file, the folder
            that holds the one pair, or `FOLDER/RUN_stepN`.
        target: The folder to write.
        to: "native" (model, code, processor, card) or "released" (two towers, `config.json`, card).
        overwrite: Whether to replace a checkpoint that is there already. A folder with files that `convert` does not
            write (a training run with its `checkpoint-*`, notes) is never replaced.
        base_model: The Hub id that the card names as source; by default `source`, if it is one.
        license: The licence that the card states; by default the source's, if its card states one. The released
            checkpoints have CC BY-NC 4.0, which their conversions keep.
        text_readout: Where the text feature is read (see `LeVLJEPAConfig`), whatever the source says: `"pad77"` for
            `.pt` pairs of older official code, which say nothing. The default is the source's, or `"eot"`.
        push_to_hub: The Hub id to push the folder to. Whether that may be written is seen first.
        private: Whether a new repository is private.
        hub_kwargs: How to fetch from the Hub: `revision`, `token` (with which it also pushes), `cache_dir`, ...

    Returns:
        The folder.

    Raises:
        ConnectionError, PermissionError: if the repository to push to can't be written.
        FileExistsError: if `target` is there and `overwrite` is false, or holds no checkpoint, or other files too.
        OSError: if a file is missing or can't be read.
        ValueError: if `source` and `target` overlap, `target` is the current folder, tensors of the whole model are
            missing or of other shapes, or they contradict each other (see `released.py`).
    """
    if to not in ("native", "released"):
        raise ValueError(f"to={to!r} is no layout: use 'native' or 'released'.")
    if text_readout not in (None, *TEXT_READOUTS):
        raise ValueError(f"text_readout={text_readout!r} is unknown: use one of {', '.join(TEXT_READOUTS)}.")
    if not str(source):
        raise ValueError("The source is empty: name a folder, a Hub id or a pair of .pt files.")
    target = Path(target).resolve()
    _check_target(source, target, overwrite)
    token = hub_kwargs.get("token")
    if push_to_hub is not None:
        push_to_hub = check_push(push_to_hub, token)
    model, processor = _load(source, with_processor=to == "native", **hub_kwargs)
    if text_readout is not None:
        model.config.text_readout = text_readout
        if processor is not None:
            tokenizer = build_tokenizer(text_readout=text_readout)
            processor = LeVLJEPAProcessor(processor.image_processor, tokenizer, text_readout)
    card = _card(model.config, source, push_to_hub or target.name, base_model, license, to, token)
    if push_to_hub is not None and (present := card_on_hub(push_to_hub, token)) is not None:
        add_figures(card.data, present.data.eval_results or [], push_to_hub)
    with _staged(target, overwrite) as folder:
        if to == "native":
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        else:
            save_released(model, None, folder)
        card.save(folder / CARD_NAME)
    if push_to_hub is not None:
        other_layout = [*NATIVE_WEIGHTS, "model-*.safetensors", *TOWER_FILES.values()]
        push_folder(target, push_to_hub, private=private, token=token, message="Convert", delete_patterns=other_layout)
    return target


def _card(
    config: LeVLJEPAConfig,
    source: str | os.PathLike,
    name: str,
    base_model: str | None,
    license: str | None,
    to: str,
    token: str | bool | None,
) -> ModelCard:
    """The card, with what the source's own states: its source, if that is on the Hub, and its licence."""
    present = Path(source, CARD_NAME)
    if not _is_local(source):
        base_model = base_model or str(source)
        license = license or license_of(str(source), token)
    elif present.is_file():
        stated = ModelCard.load(present).data
        base_model = base_model or (stated.base_model if isinstance(stated.base_model, str) else None)
        license = license or stated.license
    source_name = Path(source).resolve().name  # no paths of this machine on the card
    return model_card(config, name, source_name, base_model, license, native=to == "native")


def _load(
    source: str | os.PathLike, with_processor: bool, **hub_kwargs: Any
) -> tuple[LeVLJEPAModel, LeVLJEPAProcessor | None]:
    folder = Path(source) / (hub_kwargs.get("subfolder") or "")
    whole = folder.is_dir() and (has_native_weights(folder) or find_released_files(source, **hub_kwargs) is not None)
    pair = None if whole else find_pt_pair(source)
    processor = None
    if pair is not None:
        config = released_config(pair)
        state_dict = released_state_dict(pair, config)
        model = LeVLJEPAModel.from_pretrained(None, config=config, state_dict=state_dict, dtype="auto")
        if with_processor:
            processor = LeVLJEPAProcessor.from_image_size(
                config.vision_config.image_size, text_readout=config.text_readout
            )
        return model, processor
    if not os.path.exists(source) and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(source)):
        raise FileNotFoundError(f"{source} does not exist, and is no Hub id (NAME or OWNER/NAME) either.")
    if folder.is_dir() and not whole:
        raise FileNotFoundError(
            f"{folder} holds no checkpoint: neither model.safetensors, nor vision_encoder.safetensors and "
            "text_encoder.safetensors, nor a pair RUN_vision_stepN.pt and RUN_text_stepN.pt."
        )
    if folder.is_dir() and has_native_weights(folder):
        _check_model_type(folder)
    loading = {"dtype": "auto", "output_loading_info": True, "ignore_mismatched_sizes": True}  # refused just below
    try:
        model, info = LeVLJEPAModel.from_pretrained(source, **loading, **hub_kwargs)
    except OSError as error:
        if folder.is_dir() or str(source) in str(error):
            raise
        raise OSError(f"{source}: {error}") from error  # the Hub is not within reach
    except SafetensorError as error:
        raise OSError(
            f"{source} has a file of weights that is no readable safetensors file ({error}). {AGAIN}"
        ) from error
    _check_loaded(source, info)
    if with_processor:
        processor = LeVLJEPAProcessor.from_pretrained(source, **hub_kwargs)
    return model, processor


def _check_loaded(source: str | os.PathLike, info: dict[str, Any]) -> None:
    """Holds a native checkpoint to the rule of the released layout: all tensors of the model's parts, and no others.

    Raises:
        ValueError: if tensors are missing, have other shapes, or belong to a part that has no place for them.
    """
    if info["missing_keys"]:
        raise ValueError(
            f"{source} has no tensor {some_of(sorted(info['missing_keys']))}, which the whole model needs. The file "
            "is incomplete (download or copy it again), or that of a tower or a task head, which is not converted."
        )
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise ValueError(
            f"{source}: {name!r} has shape {tuple(found)}, but config.json makes it {tuple(expected)}. Are the files "
            "of different checkpoints? Download or copy them again."
        )
    parts = tuple(part for prefixes in NATIVE_PREFIXES.values() for part in prefixes.values())
    misplaced = sorted(name for name in info["unexpected_keys"] if name.startswith(parts))
    if misplaced:
        raise ValueError(
            f"{source} has tensors that its config.json has no place for: {some_of(misplaced)}. Are the files of "
            "different checkpoints? Download or copy them again."
        )
    if info["unexpected_keys"]:
        unknown = some_of(sorted(info["unexpected_keys"]))
        logger.warning(f"{source}: ignored {unknown}, which belong to no part of the model.")


def _check_model_type(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has weights but no config.json, which says what they are: copy it there too."
        )
    model_type = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    if model_type != LeVLJEPAConfig.model_type:
        raise ValueError(
            f"{folder} holds a model of type {model_type!r}, and convert takes whole LeVLJEPA models, of type "
            f"{LeVLJEPAConfig.model_type!r}."
        )


def _is_local(source: str | os.PathLike) -> bool:
    return os.path.exists(source) or find_pt_pair(source) is not None


def _check_target(source: str | os.PathLike, target: Path, overwrite: bool) -> None:
    if target == Path.cwd():
        raise ValueError("The target is the current folder: name another one, which convert makes.")
    if _is_local(source):
        place = Path(source).resolve()
        if target == place or target in place.parents:
            raise ValueError(f"The target {target} is the source's own folder or contains it: choose another target.")
    _check_replaceable(target, overwrite)


def _check_replaceable(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{target} is there already: choose another target, or pass --overwrite to replace it.")
    if not (target / "config.json").is_file():
        raise FileExistsError(
            f"{target} holds no checkpoint (no config.json), so --overwrite does not replace it: choose another "
            "target, or empty it yourself."
        )
    foreign = sorted(path.name for path in target.iterdir() if not _is_written(path, target))
    if foreign:
        raise FileExistsError(
            f"{target} also holds {some_of(foreign)}, which convert does not write, so --overwrite does not replace "
            "it: choose another target, or move these away yourself."
        )


def _is_written(path: Path, target: Path) -> bool:
    if path.is_dir():
        inside = list(path.iterdir())
        return bool(inside) and all(_is_written(one, target) for one in inside)
    is_code = path.suffix == ".py" and (_MODEL / path.name).is_file()
    return path.relative_to(target).as_posix() in WRITTEN or (is_code and path.parent == target)


def _remove_leftovers(target: Path) -> None:
    """Removes what calls for the same target left when they were killed."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}.*.*"):
        number = folder.name.removeprefix(f".{target.name}.").split(".")[0]
        if number.isdigit() and not _is_running(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


@contextmanager
def _staged(target: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside `target` that takes its place when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.{os.getpid()}.", dir=target.parent) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        yield new
        try:
            if target.exists():
                _check_replaceable(target, overwrite)  # again: loading took its time
                target.rename(old)
            new.rename(target)
        except BaseException:
            if old.exists() and not target.exists():
                old.rename(target)
            raise


EPILOG = f"""examples:
  levljepa convert {RELEASES[0]} levljepa-vit-b
  levljepa convert runs/cc12m_step200000 levljepa-cc12m
  levljepa convert runs/older_step200000 levljepa-older --text_readout pad77
  levljepa convert levljepa-vit-b levljepa-vit-b-released --to released
  levljepa convert runs/cc12m_step200000 levljepa-cc12m --push_to_hub someone/levljepa-cc12m --private
"""


@dataclass
class ConvertArguments:
    """What is converted, and where it goes."""

    source: str = option(
        help="A folder or a Hub id; or a .pt pair: either file, its folder, or FOLDER/RUN_stepN for "
        "RUN_vision_stepN.pt and RUN_text_stepN.pt.",
        positional=True,
        kind="pair",
    )
    target: str = option(help="The folder to write.", positional=True)
    to: str = option("native", help="The layout.", choices=("native", "released"))
    overwrite: bool = option(
        False,
        help="Replace a checkpoint that is there already; a folder that holds anything else too, such as checkpoint-* "
        "or notes, is left alone with an error that names it.",
    )
    license: str | None = option(
        None,
        help=f"Licence that the model card states; by default that of the source's card, {LICENSE} for the releases.",
    )
    base_model: str | None = option(None, help="Hub id that the model card names as source.")
    text_readout: str | None = option(
        None,
        help="Where the text feature is read, whatever the source says: pad77 for pairs of older official code.",
        choices=TEXT_READOUTS,
    )
    revision: str | None = option(None, help="Branch, tag or commit of a Hub source.")
    push_to_hub: str | None = option(None, help="Push what was written to this repository of the Hub.", metavar="ID")
    private: bool | None = option(None, help="Make a new repository a private one; by default as its owner has it.")
    token: str | None = option(None, help="Of the Hub, to fetch and to push; by default that of `hf auth login`.")

    def __post_init__(self) -> None:
        if self.private and self.push_to_hub is None:
            raise ValueError("--private is for the repository that --push_to_hub names.")


COMMAND = Command(
    "levljepa convert",
    "Convert a LeVLJEPA checkpoint between the released two-file layout and the native one.",
    (ConvertArguments,),
    more=EPILOG,
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `levljepa convert`. Returns the exit status."""
    return COMMAND.run(argv, _convert)


def _convert(arguments: ConvertArguments) -> None:
    target = convert(**{name: value for name, value in vars(arguments).items() if value is not None})
    pushed = arguments.push_to_hub
    print(f"Wrote {target}{f' and pushed it to {pushed}' if pushed else ''}. Load it with:\n")
    print("from levljepa_hf import LeVLJEPAModel, LeVLJEPAProcessor")
    print(f"model = LeVLJEPAModel.from_pretrained({str(target)!r})")
    print(f"processor = LeVLJEPAProcessor.from_pretrained({str(target)!r})")


if __name__ == "__main__":
    sys.exit(main())
