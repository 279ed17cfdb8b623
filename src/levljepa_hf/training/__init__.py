"""Training: the Trainer, what it watches, and how a run is stopped and taken up again."""

from ..extras import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "arguments": "LeVLJEPATrainingArguments",
        "checkpoints": "last_checkpoint",
        "curves": "plot_runs read_run",
        "distributed": "convert_sync_batchnorm",
        "large_batch": "large_batch_backward",
        "metrics": "evaluation_figures loss_terms retrieval_metrics",
        "trainer": "LeVLJEPATrainer",
    },
)
