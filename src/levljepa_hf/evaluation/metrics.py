"""`evaluate`'s metrics without a network: `evaluate.load` fetches even the plainest one.

metric = MeanIoU()
metric.add_batch(predictions=maps, references=masks)
metric.compute(num_labels=150, ignore_index=255)["mean_iou"]
"""

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torchmetrics.classification import MulticlassAccuracy

from .retrieval import retrieval_recall
from .segmentation import iou_per_class
from .vqa_metrics import vqa_accuracy


class _Metric(evaluate.Metric):
    """What is added stays in a temporary folder that goes with the metric, unless `cache_dir` names one."""

    def __init__(self, *args: Any, cache_dir: str | None = None, **kwargs: Any) -> None:
        if cache_dir is None:
            cache_dir = tempfile.mkdtemp(prefix="levljepa-metric-")
            weakref.finalize(self, shutil.rmtree, cache_dir, ignore_errors=True)
        super().__init__(*args, cache_dir=cache_dir, **kwargs)


def _tensor(values: Any) -> torch.Tensor:
    """Arrays, tensors, numbers, and lists of any of these, as one tensor."""
    return values if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values))


class MeanIoU(_Metric):
    """Mean intersection over union of label maps, as `evaluate`'s `mean_iou`; memory does not grow with their number.

    What is added is only counted: pairs of classes. Maps (H, W) may differ in size; arrays, tensors and lists will do.

    `compute(num_labels=K, ignore_index=None)` gives

    - `mean_iou`: mean over the classes that occur in predictions or references. A class that is only predicted counts
      as 0 here; `levljepa_hf.evaluation.segmentation` averages over the classes of the references;
    - `mean_accuracy`: mean over the classes that occur in the references;
    - `overall_accuracy`: share of the pixels that are right;
    - `per_category_iou`, `per_category_accuracy`: arrays [K], NaN for a class that the mean leaves out.

    Pixels whose reference is `ignore_index` do not count. Where none is left all figures are NaN.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._pairs: Counter[tuple[int, int]] = Counter()  # (reference, prediction): pixels
        super().__init__(*args, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description="Mean intersection over union of label maps.",
            citation="",
            inputs_description="Predictions and references are label maps (H, W) of equal sizes.",
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def add(self, *, prediction: Any, reference: Any) -> None:
        """Adds one label map and its reference.

        Raises:
            ValueError: if their shapes differ.
        """
        prediction, reference = np.asarray(prediction), np.asarray(reference)
        if prediction.shape != reference.shape:
            raise ValueError(
                f"A prediction has the shape {prediction.shape}, and its reference {reference.shape}: resize the "
                "logits to the reference before taking the class."
            )
        if not reference.size:
            return
        low = min(reference.min(), prediction.min())
        base = int(max(reference.max(), prediction.max())) - int(low) + 1
        # One number a pixel: unique rows would take many times as long.
        codes = (reference.astype(np.int64) - low) * base + (prediction.astype(np.int64) - low)
        codes, pixels = np.unique(codes, return_counts=True)
        pairs = zip((codes // base + low).tolist(), (codes % base + low).tolist(), strict=True)
        self._pairs.update(dict(zip(pairs, pixels.tolist(), strict=True)))

    def add_batch(self, *, predictions: Sequence[Any], references: Sequence[Any]) -> None:
        """Adds label maps and their references.

        Raises:
            ValueError: if they are not as many, or the shapes of a pair differ.
        """
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions for {len(references)} references: give one for each.")
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def compute(
        self,
        *,
        predictions: Sequence[Any] | None = None,
        references: Sequence[Any] | None = None,
        num_labels: int,
        ignore_index: int | None = None,
    ) -> dict[str, Any]:
        """The figures of what was added, these maps included, and forgets it.

        Raises:
            ValueError: if nothing was added, or a map has values that are no class.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if not self._pairs:
            raise ValueError("Nothing was added: give predictions and references here, or by add_batch before.")
        pairs, self._pairs = self._pairs, Counter()
        confusion = torch.zeros(num_labels, num_labels, dtype=torch.int64)
        for (reference, prediction), pixels in pairs.items():
            if reference == ignore_index:
                continue
            for kind, value in (("reference", reference), ("prediction", prediction)):
                if not 0 <= value < num_labels:
                    raise ValueError(
                        f"A {kind} has the value {value}, which is none of {num_labels} classes (0 to "
                        f"{num_labels - 1}) nor ignore_index={ignore_index}."
                    )
            confusion[reference, prediction] = pixels
        iou = iou_per_class(confusion)
        hits, frequency = confusion.diagonal().double(), confusion.sum(dim=1)
        accuracy = hits / frequency
        return {
            "mean_iou": iou.nanmean().item(),
            "mean_accuracy": accuracy.nanmean().item(),
            "overall_accuracy": (hits.sum() / frequency.sum()).item(),
            "per_category_iou": iou.numpy(),
            "per_category_accuracy": accuracy.numpy(),
        }


class TopKAccuracy(_Metric):
    """Share of samples whose class is among the k of highest score; memory does not grow with their number.

    Predictions are scores [C] (logits will do), references classes. What is added is only counted, by torchmetrics.

        metric = TopKAccuracy(ks=(1, 5))
        metric.add_batch(predictions=logits, references=labels)
        metric.compute()  # {"top1": 0.8, "top5": 0.95}

    Args:
        ks: The k of top-k; those above C are left out.
        args, kwargs: Of `evaluate.Metric`.
    """

    def __init__(self, *args: Any, ks: Sequence[int] = (1, 5), **kwargs: Any) -> None:
        self.ks = tuple(ks)
        self._counters: dict[int, MulticlassAccuracy] = {}  # by k, made at the first scores
        super().__init__(*args, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Top-k accuracy.",
            citation="",
            inputs_description="Predictions are scores of the classes, references the right classes.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def add(self, *, prediction: Any, reference: Any) -> None:
        """Adds the scores [C] of one sample and its class.

        Raises:
            ValueError: as `add_batch`.
        """
        self.add_batch(predictions=_tensor(prediction)[None], references=_tensor(reference)[None])

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """Adds scores [N, C] and classes [N]; arrays, tensors and lists will do.

        Raises:
            ValueError: if they are not as many, the number of classes changes, or a reference is no class.
        """
        scores, classes = _tensor(predictions).float(), _tensor(references)
        if scores.ndim != 2 or classes.shape != scores.shape[:1]:
            raise ValueError(
                f"Predictions of shape {tuple(scores.shape)} and references of {tuple(classes.shape)}: give scores "
                "[N, C] and one class for each, [N]."
            )
        num_classes = scores.shape[1]
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
            raise ValueError(
                f"References go from {classes.min()} to {classes.max()}, and there are scores of {num_classes} "
                f"classes, 0 to {num_classes - 1}."
            )
        if not self._counters:
            ks = [k for k in self.ks if k <= num_classes]
            self._counters = {
                k: MulticlassAccuracy(num_classes, top_k=k, average="micro", validate_args=False).to(scores.device)
                for k in ks
            }
        for counter in self._counters.values():
            if counter.num_classes != num_classes:
                raise ValueError(f"Scores of {num_classes} classes after scores of {counter.num_classes}.")
            counter.update(scores, classes)

    def compute(self, *, predictions: Any = None, references: Any = None) -> dict[str, float]:
        """`top1`, `top5` and so on of what was added, these included, as fractions; forgets it.

        Raises:
            ValueError: if nothing was added.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if not self._counters:
            raise ValueError("Nothing was added: give predictions and references here, or by add_batch before.")
        counters, self._counters = self._counters, {}
        return {f"top{k}": counter.compute().item() for k, counter in counters.items()}


class RetrievalRecall(_Metric):
    """Recall at k of image-text retrieval by cosine, both directions: `levljepa_hf.evaluation.retrieval`.

    Predictions are embeddings of images [D]; the reference of each is the embedding of its text [D], or those of its
    texts [K, D]. The retrieval features of a LeVLJEPA model (`get_image_retrieval_features`, `..._text_...`) give the
    `avg` readout. `compute(ks=(1, 5, 10))` gives `text_to_image_R@1` and so on.
    """

    def _info(self) -> evaluate.MetricInfo:
        vector = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description="Recall at k of image-text retrieval.",
            citation="",
            inputs_description="Predictions are image embeddings, references those of their text or texts.",
            features=[
                datasets.Features({"predictions": vector, "references": vector}),
                datasets.Features({"predictions": vector, "references": datasets.Sequence(vector)}),
            ],
        )

    def _compute(
        self, *, predictions: Sequence[Any], references: Sequence[Any], ks: Sequence[int] = (1, 5, 10)
    ) -> dict[str, float]:
        texts = [
            torch.tensor(reference, dtype=torch.float32).view(-1, len(predictions[0])) for reference in references
        ]
        return retrieval_recall(
            torch.tensor(predictions, dtype=torch.float32),
            torch.cat(texts),
            readout="zeroshot",
            ks=ks,
            image_of_text=torch.tensor([i for i, of_image in enumerate(texts) for _ in of_image]),
        )


class VQAAccuracy(_Metric):
    """VQAv2's accuracy: `levljepa_hf.evaluation.vqa_metrics.vqa_accuracy`, mean over the questions.

    Predictions are answers, references the annotators' answers to each question. `compute()` gives `accuracy` in 0..1.
    """

    def _info(self) -> evaluate.MetricInfo:
        answer = datasets.Value("string")
        return evaluate.MetricInfo(
            description="VQAv2's accuracy.",
            citation="",
            inputs_description="Predictions are answers, references the annotators' answers to each question.",
            features=datasets.Features({"predictions": answer, "references": datasets.Sequence(answer)}),
        )

    def _compute(self, *, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        scores = map(vqa_accuracy, predictions, references)
        return {"accuracy": sum(scores) / len(predictions)}


__all__ = ["MeanIoU", "RetrievalRecall", "TopKAccuracy", "VQAAccuracy"]
