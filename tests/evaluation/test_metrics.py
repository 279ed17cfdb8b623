"""Metrics: equal to plain implementations, on random and on degenerate cases, without a network or a lasting file."""

import gc
import random

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score, top_k_accuracy_score

from levljepa_hf.evaluation.metrics import MeanIoU, RetrievalRecall, TopKAccuracy, VQAAccuracy
from levljepa_hf.evaluation.retrieval import retrieval_recall
from levljepa_hf.evaluation.vqa_metrics import gqa_accuracy, normalize_answer, pope_scores, vqa_accuracy

VOID = 255


# ------------------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("  yes.\n", "yes"),
        ("the cat", "cat"),
        ("A", ""),
        ("", ""),
        ("Two dogs", "2 dogs"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # of two apostrophes one may be missing
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("twas oclock", "'twas o'clock"),
        ("somebody'd", "somebodyd"),
        ("it's", "it's"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("well- known", "well known"),
        ("a-b- c", "ab c"),  # a mark beside a space goes wherever it is
        ("1,000", "1000"),
        ("1,000-2", "10002"),  # so does every mark where a number has a comma
        ("red,blue", "red blue"),
        ("1.5", "1.5"),
        ("no. 5.", "no 5"),
        ("u.s.a", "usa"),
        ("what?!", "what"),
        ("{(x)}", "x"),
        ("tab\there", "tab here"),
    ],
)
def test_answers_are_normalised_as_in_the_official_evaluation(answer, expected):
    assert normalize_answer(answer) == expected


def plain_vqa_accuracy(prediction: str, answers: list[str]) -> float:
    if len(set(answers)) > 1:
        prediction, answers = normalize_answer(prediction), [normalize_answer(answer) for answer in answers]
    scores = []
    for left_out in range(10):
        others = [answer for i, answer in enumerate(answers) if i != left_out]
        scores.append(min(1, sum(answer == prediction for answer in others) / 3))
    return sum(scores) / 10


def test_vqa_accuracy_is_the_mean_over_the_annotators_left_out():
    rng = random.Random(0)
    words = ["yes", "Yes.", "no", "the no", "2", "two", "", "don't", "dont"]
    for _ in range(300):
        pool = rng.sample(words, rng.randint(1, 4))
        answers = [rng.choice(pool) for _ in range(10)]
        prediction = rng.choice([*pool, "unknown"])
        assert vqa_accuracy(prediction, answers) == pytest.approx(plain_vqa_accuracy(prediction, answers))


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)])
def test_vqa_accuracy_by_number_of_matches(matches, expected):
    answers = ["yes"] * matches + ["no"] * (10 - matches)
    assert vqa_accuracy("Yes.", answers) == pytest.approx(expected)


def test_unanimous_answers_are_compared_as_they_are():
    assert vqa_accuracy("yes.", ["yes"] * 10) == 0 and vqa_accuracy(" yes\n", ["yes"] * 9 + ["yes "]) == 1
    assert vqa_accuracy(normalize_answer("Yes."), ["yes"] * 10) == 1


def test_fewer_answers_and_none():
    assert vqa_accuracy("yes", ["yes"]) == 1 and vqa_accuracy("no", ["yes"]) == 0
    assert vqa_accuracy("yes", ["yes", "yes", "yes"]) == 1
    assert vqa_accuracy("yes", ["yes", "yes", "no"]) == pytest.approx((0.5 + 0.5 + 1) / 3)
    with pytest.raises(ValueError, match="no answer to compare"):
        vqa_accuracy("yes", [])


def test_gqa_accuracy():
    assert gqa_accuracy(" Left\n", "left") == 1
    assert gqa_accuracy("left.", "left") == gqa_accuracy("", "left") == 0


def test_pope_scores():
    said = ["Yes, there is.", "No", "no, none.", "There is not a dog. Yes", "who knows", "", "NO.", "Yes. Not sure."]
    truth = ["yes", "no", "Yes", "no", "no", "yes", "yes", "no "]
    guesses = np.array([1, 0, 0, 0, 1, 1, 0, 1])  # what says nothing counts as yes
    truths = np.array([1, 0, 1, 0, 0, 1, 1, 0])
    hits = (guesses & truths).sum()
    precision, recall = hits / guesses.sum(), hits / truths.sum()
    expected = {
        "accuracy": (guesses == truths).mean(),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_rate": guesses.mean(),
    }
    assert pope_scores(said, truth) == pytest.approx(expected)


def test_pope_scores_of_constant_answers():
    zeros = {"precision": 0, "recall": 0, "f1": 0, "yes_rate": 0}
    assert pope_scores(["no", "no"], ["yes", "no"]) == {"accuracy": 0.5, **zeros}
    assert pope_scores(["no", "no"], ["no", "no"]) == {"accuracy": 1, **zeros}
    assert pope_scores(["yes"], ["no"]) == {"accuracy": 0, **zeros, "yes_rate": 1}


@pytest.mark.parametrize(
    ("said", "truth", "message"),
    [
        (["yes"], ["yes", "no"], "1 predictions for 2 references"),
        ([], [], "0 predictions"),
        (["yes"], ["maybe"], r"references\[0\] is 'maybe'"),
    ],
)
def test_pope_needs_yes_or_no_for_each_answer(said, truth, message):
    with pytest.raises(ValueError, match=message):
        pope_scores(said, truth)


# ----------------------------------------------------------------------------------------------------------- mean IoU


def plain_mean_iou(predictions, references, num_labels: int) -> dict:
    """Class by class, as the definition has it."""
    ious, accuracies, right, total = [], [], 0, 0
    for k in range(num_labels):
        hits = union = truths = 0
        for prediction, reference in zip(predictions, references, strict=True):
            counted = reference != VOID
            p, r = (prediction == k) & counted, (reference == k) & counted
            hits, union, truths = hits + (p & r).sum(), union + (p | r).sum(), truths + r.sum()
        ious.append(hits / union if union else np.nan)
        accuracies.append(hits / truths if truths else np.nan)
        right, total = right + hits, total + truths
    return {
        "mean_iou": np.nanmean(ious),
        "mean_accuracy": np.nanmean(accuracies),
        "overall_accuracy": right / total,
        "per_category_iou": np.array(ious),
        "per_category_accuracy": np.array(accuracies),
    }


@pytest.fixture
def maps() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of 7 classes: 5 is never predicted, 4 is only predicted, 6 occurs nowhere; a third is void, one map wholly."""
    rng = np.random.default_rng(0)
    predictions = [rng.integers(0, 5, shape) for shape in [(9, 7), (5, 5), (3, 8)]]
    references = [rng.choice([0, 1, 2, 3, 5, VOID, VOID], shape) for shape in [(9, 7), (5, 5), (3, 8)]]
    references[1][:] = VOID
    return predictions, references


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name)


def test_mean_iou_is_the_plain_one(maps):
    predictions, references = maps
    expected = plain_mean_iou(predictions, references, 7)
    assert np.isnan(expected["per_category_iou"]).tolist() == [False] * 6 + [True]
    assert expected["per_category_iou"][4] == 0 and np.isnan(expected["per_category_accuracy"][4])
    metric = MeanIoU()
    found = metric.compute(predictions=predictions, references=references, num_labels=7, ignore_index=VOID)
    assert_equal(found, expected)
    counted = np.concatenate([r.ravel() for r in references])
    guesses = np.concatenate([p.ravel() for p in predictions])[counted != VOID]
    reference = jaccard_score(counted[counted != VOID], guesses, average=None, labels=range(6))
    np.testing.assert_allclose(found["per_category_iou"][:6], reference)


def test_mean_iou_of_batches_and_kinds_of_maps(maps):
    predictions, references = maps
    metric = MeanIoU()
    metric.add(prediction=predictions[0].astype(np.uint8), reference=references[0].tolist())
    metric.add_batch(
        predictions=[torch.tensor(p) for p in predictions[1:]], references=[r.astype(np.uint8) for r in references[1:]]
    )
    assert_equal(metric.compute(num_labels=7, ignore_index=VOID), plain_mean_iou(predictions, references, 7))
    metric.add(prediction=predictions[2], reference=references[2])  # nothing is left of what was computed
    assert_equal(metric.compute(num_labels=7, ignore_index=VOID), plain_mean_iou(predictions[2:], references[2:], 7))


def test_mean_iou_of_nothing_but_void():
    void = np.full((1, 2, 2), VOID)
    found = MeanIoU().compute(predictions=void, references=void, num_labels=2, ignore_index=VOID)
    assert all(np.isnan(value).all() for value in found.values())


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        ([[0, 1]], [[0], [1]], r"shape \(1, 2\), and its reference \(2, 1\)"),
        ([[0, 1]], [[0, 3]], "A reference has the value 3, which is none of 3 classes"),
        ([[0, 3]], [[0, 1]], "A prediction has the value 3"),
        ([[0, -1]], [[0, 1]], "A prediction has the value -1"),
    ],
)
def test_mean_iou_refuses_what_is_no_class(prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        MeanIoU().compute(predictions=[prediction], references=[reference], num_labels=3, ignore_index=VOID)


def test_mean_iou_needs_pairs():
    with pytest.raises(ValueError, match="Nothing was added"):
        MeanIoU().compute(num_labels=3)
    with pytest.raises(ValueError, match="1 predictions for 0 references"):
        MeanIoU().add_batch(predictions=[[[0]]], references=[])


# ------------------------------------------------------------------------------------------------- retrieval, answers


@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_retrieval_recall_is_the_function(keep_in_memory):
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(8, 4, generator=generator), torch.randn(8, 4, generator=generator)
    texts[3] = texts[5]  # a tie
    metric = RetrievalRecall(keep_in_memory=keep_in_memory)
    metric.add_batch(predictions=images[:5].numpy(), references=texts[:5].numpy())
    metric.add_batch(predictions=images[5:].tolist(), references=texts[5:].tolist())
    assert metric.compute(ks=(1, 3)) == pytest.approx(retrieval_recall(images, texts, readout="zeroshot", ks=(1, 3)))


def test_retrieval_recall_of_several_texts():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(5, 4, generator=generator), torch.randn(9, 4, generator=generator)
    image_of_text = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4])
    expected = retrieval_recall(images, texts, readout="zeroshot", image_of_text=image_of_text)
    references = [texts[image_of_text == i].tolist() for i in range(5)]
    assert RetrievalRecall().compute(predictions=images.tolist(), references=references) == pytest.approx(expected)


def test_vqa_accuracy_metric():
    predictions = ["yes", "2", "", "cat"]
    references = [["yes"] * 10, ["two"] * 4 + ["3"] * 6, ["a"] * 2 + ["b"] * 8, ["dog"] * 10]
    expected = np.mean([vqa_accuracy(p, r) for p, r in zip(predictions, references, strict=True)])
    assert 0 < expected < 1
    metric = VQAAccuracy()
    assert metric.compute(predictions=predictions, references=references) == {"accuracy": pytest.approx(expected)}
    metric.add_batch(predictions=predictions[:1], references=references[:1])
    metric.add_batch(predictions=predictions[3:], references=references[3:])
    assert metric.compute() == {"accuracy": pytest.approx(0.5)}


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray, lambda one: one.tolist()])
def test_top_k_accuracy_is_the_plain_one(kind):
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(40, 7, generator=generator), torch.randint(0, 7, (40,), generator=generator)
    expected = {f"top{k}": top_k_accuracy_score(labels, scores, k=k, labels=range(7)) for k in (1, 3)}
    assert 0 < expected["top1"] < expected["top3"] < 1
    metric = TopKAccuracy(ks=(1, 3, 9))  # 9 is above the number of classes
    for _ in range(2):  # and it forgets
        for start in range(0, 40, 15):
            metric.add_batch(predictions=kind(scores[start : start + 15]), references=kind(labels[start : start + 15]))
        assert metric.compute() == pytest.approx(expected)
    assert metric.compute(predictions=kind(scores), references=kind(labels)) == pytest.approx(expected)
    metric.add(prediction=kind(scores[0]), reference=int(scores[0].argmax()))
    assert metric.compute() == {"top1": 1, "top3": 1}


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([[1.0, 2.0]], [2], "References go from 2 to 2, and there are scores of 2 classes, 0 to 1"),
        ([[1.0, 2.0]], [-100], "References go from -100"),
        ([[1.0, 2.0]], [0, 1], r"shape \(1, 2\) and references of \(2,\)"),
        ([1.0, 2.0], [0, 1], r"shape \(2,\)"),
    ],
)
def test_top_k_accuracy_refuses_what_does_not_fit(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        TopKAccuracy().compute(predictions=predictions, references=references)


def test_top_k_accuracy_needs_pairs_of_one_size():
    metric = TopKAccuracy()
    with pytest.raises(ValueError, match="Nothing was added"):
        metric.compute()
    metric.add_batch(predictions=[[1.0, 2.0]], references=[0])
    with pytest.raises(ValueError, match="Scores of 3 classes after scores of 2"):
        metric.add_batch(predictions=[[1.0, 2.0, 3.0]], references=[0])


@pytest.mark.parametrize("metric_class", [MeanIoU, RetrievalRecall, TopKAccuracy, VQAAccuracy])
def test_metrics_leave_no_file(metric_class, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    metric = metric_class()
    if metric_class is VQAAccuracy:
        metric.add_batch(predictions=["yes"], references=[["yes"]])
        assert list(tmp_path.rglob("*.arrow"))
    del metric
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    kept = metric_class(cache_dir=str(tmp_path / "here"))
    del kept
    gc.collect()
    assert (tmp_path / "here").is_dir()
