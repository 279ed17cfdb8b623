"""What the Trainer's evaluation measures: loss terms, retrieval and health, from the rows that it gathers."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EvalPrediction

from ..evaluation.embedding_health import embedding_health
from ..evaluation.retrieval import retrieval_recall
from ..model.configuration_levljepa import LeVLJEPAConfig

EMBEDDINGS = ("image_embeds", "text_embeds", "predicted_text_embeds", "predicted_image_embeds")
FILLED, UNNUMBERED = -1, -2  # indices of rows that are no sample, and of samples without a number


def retrieval_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """The loss and its terms, recalls at 1, 5, 10 (`avg` readout, or `zeroshot` without predictors), and the health.

    Args:
        prediction: `predictions` holds rows of samples by name: embeddings (N, D), and the loss terms of each sample's
            batch (N,), which are averaged. `label_ids` holds the samples' indices: repeated samples count once.
    """
    index = prediction.label_ids
    keep = np.flatnonzero(index == UNNUMBERED)
    if len(keep) == 0:
        first = np.sort(np.unique(index, return_index=True)[1])
        keep = first[index[first] != FILLED]
    rows = {name: torch.from_numpy(values[keep]) for name, values in prediction.predictions.items()}
    embeds = {name: rows.pop(name) for name in EMBEDDINGS if name in rows}
    readout = "avg" if "predicted_text_embeds" in embeds else "zeroshot"
    terms = {name: values.double().mean().item() for name, values in rows.items()}
    return {**terms, **retrieval_recall(**embeds, readout=readout), **embedding_health(**embeds)}


def evaluation_rows(outputs: Any, index: Tensor | None, size: int) -> tuple[dict[str, Tensor], Tensor]:
    """What an evaluation gathers of a batch of N samples: rows by name, and the samples' numbers, (size,).

    Samples that were skipped, and those that are repeated to give each rank as many, leave batches of different
    sizes: they are filled up to `size`, under the number `FILLED`, to be gathered.

    Args:
        outputs: Of the model: embeddings (N, D), and terms of the loss, which each sample gets.
        index: The samples' numbers (N,), where they have any.
        size: Rows of a whole batch.
    """
    n, device = len(outputs["image_embeds"]), outputs["image_embeds"].device
    missing = max(size - n, 0)
    rows = {name: F.pad(outputs[name].float(), (0, 0, 0, missing)) for name in EMBEDDINGS if name in outputs}
    if outputs.loss is not None:
        terms = {"loss": outputs.loss, **loss_terms(outputs)}
        rows |= {name: term.float().repeat(n + missing) for name, term in terms.items()}
    index = torch.full((n,), UNNUMBERED, device=device) if index is None else index
    return rows, F.pad(index, (0, missing), value=FILLED)


def evaluation_figures(config: LeVLJEPAConfig | None = None) -> list[str]:
    """The names of what an evaluation measures, among which `metric_for_best_model` chooses.

    Args:
        config: of the model; by default one of the objective `levljepa`.
    """
    is_contrastive = config is not None and config.is_contrastive
    embeddings = EMBEDDINGS[:2] if is_contrastive else EMBEDDINGS  # without the predicted ones
    rows = dict.fromkeys(embeddings, np.eye(2, dtype=np.float32))
    names = ("contrastive_loss",) if is_contrastive else ("prediction_loss", "sigreg_vision", "sigreg_text")
    terms = dict.fromkeys(("loss", *names), np.zeros(2, dtype=np.float32))
    return list(retrieval_metrics(EvalPrediction({**rows, **terms}, np.arange(2))))


def loss_terms(outputs: Any) -> dict[str, Tensor]:
    """The named scalars of a model's output, the loss itself left out."""
    return {
        name: value.detach()
        for name, value in outputs.items()
        if name != "loss" and isinstance(value, Tensor) and value.dim() == 0
    }


__all__ = [
    "EMBEDDINGS",
    "FILLED",
    "UNNUMBERED",
    "evaluation_figures",
    "evaluation_rows",
    "loss_terms",
    "retrieval_metrics",
]
