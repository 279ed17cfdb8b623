"""Evaluation: the paper's protocols on any frozen encoder, one task a file; `levljepa evaluate TASK` runs them.

    from levljepa_hf.evaluation import evaluate_linear_probe, load_encoder, load_split

    encoder = load_encoder("runs/demo")  # or "timm:NAME", "hf:NAME", "random"
    train, test = (load_split("scenes", "linear-probe", split) for split in ("train", "test"))
    evaluate_linear_probe(encoder, train, test).metrics

Names are imported when they are first used: the figures of a run of training need no more than the extra `train`.
"""

from ..extras import lazy
from .task import declarations

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        **{name.replace("-", "_"): f"{task.protocol} {task.run}" for name, task in declarations().items()},
        "results": "EvaluationRecord TaskResult",
        "task": "load_split",
        # Of the rooms below: what every task is given.
        ".data.splits": "EvaluationSplit Question",
        ".encoders.encoders": "Encoder load_encoder",
    },
)
