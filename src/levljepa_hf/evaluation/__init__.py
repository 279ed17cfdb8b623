"""Evaluation: the paper's protocols on any frozen encoder, one protocol a file; `levljepa evaluate TASK` runs them.

    from levljepa_hf.evaluation import evaluate_linear_probe, load_encoder, load_split

    encoder = load_encoder("runs/demo")  # or "timm:NAME", "hf:NAME", "random"
    train, test = (load_split("scenes", "linear-probe", split) for split in ("train", "test"))
    evaluate_linear_probe(encoder, train, test).metrics

Names are imported when they are first used: the figures of a run of training need no more than the extra `train`.
"""

from importlib import import_module
from typing import Any

_LAZY = {
    "AttentiveProbeProtocol": "attentive",
    "BackgroundProtocol": "background",
    "Encoder": "encoders",
    "EvaluationRecord": "results",
    "EvaluationSplit": "datasets",
    "KNNProtocol": "probes",
    "LinearProbeProtocol": "probes",
    "Question": "datasets",
    "RetrievalProtocol": "retrieval",
    "SegmentationProtocol": "segmentation",
    "TaskResult": "results",
    "VLMProtocol": "vlm",
    "ZeroShotProtocol": "zero_shot",
    "evaluate_attentive_probe": "attentive",
    "evaluate_background": "background",
    "evaluate_knn": "probes",
    "evaluate_linear_probe": "probes",
    "evaluate_retrieval": "retrieval",
    "evaluate_segmentation": "segmentation",
    "evaluate_vlm": "vlm",
    "evaluate_zero_shot": "zero_shot",
    "load_encoder": "encoders",
    "load_split": "datasets",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


__all__ = list(_LAZY)
