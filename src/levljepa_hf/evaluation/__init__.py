"""Evaluation: the paper's protocols on any frozen encoder, one protocol a file; `levljepa evaluate TASK` runs them.

    from levljepa_hf.evaluation import evaluate_linear_probe, load_encoder, load_split

    encoder = load_encoder("runs/demo")  # or "timm:NAME", "hf:NAME", "random"
    train, test = (load_split("scenes", "linear-probe", split) for split in ("train", "test"))
    evaluate_linear_probe(encoder, train, test).metrics

Names are imported when they are first used: the figures of a run of training need no more than the extra `train`.
"""

from ..extras import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "attentive": "AttentiveProbeProtocol evaluate_attentive_probe",
        "background": "BackgroundProtocol evaluate_background",
        "knn": "KNNProtocol evaluate_knn",
        "linear_probe": "LinearProbeProtocol evaluate_linear_probe",
        "results": "EvaluationRecord TaskResult",
        "retrieval": "RetrievalProtocol evaluate_retrieval",
        "segmentation": "SegmentationProtocol evaluate_segmentation",
        "vlm": "VLMProtocol evaluate_vlm",
        "zero_shot": "ZeroShotProtocol evaluate_zero_shot",
        # Of the rooms below: what every task is given.
        ".data.labelled": "load_split",
        ".data.splits": "EvaluationSplit Question",
        ".encoders.encoders": "Encoder load_encoder",
    },
)
