"""Probes of frozen features: equal to plain training, near logistic regression, honest about what they chose."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from levljepa_hf.data.labelled import EvaluationSplit
from levljepa_hf.encoders.encoders import LeVLJEPAEncoder
from levljepa_hf.encoders.features import pooled_features
from levljepa_hf.evaluation import attentive_probe, knn
from levljepa_hf.evaluation import linear_probe as probes
from levljepa_hf.evaluation.attentive_probe import AttentiveProbeProtocol, attend_once, evaluate_attentive_probe
from levljepa_hf.evaluation.background import BackgroundProtocol, evaluate_background
from levljepa_hf.evaluation.classification import class_labels, classification_metrics, count_images, probe_features
from levljepa_hf.evaluation.knn import KNNProtocol, evaluate_knn, knn_vote
from levljepa_hf.evaluation.linear_probe import (
    LinearProbeProtocol,
    evaluate_linear_probe,
    hold_out,
    train_linear_probes,
)
from levljepa_hf.evaluation.pictures import plot_bars
from levljepa_hf.options import Parser

NAMES = ("red", "green", "blue", "white", "black", "yellow")
COLORS = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (230, 230, 230), (25, 25, 25), (210, 210, 40)]
QUIET = {"show_progress": False, "batch_size": 32}


@pytest.fixture
def encoder(model, processor) -> LeVLJEPAEncoder:
    return LeVLJEPAEncoder("debug", model, processor)


def colors(name: str, per_class: int, seed: int, names=NAMES, noise: float = 40.0) -> EvaluationSplit:
    """Noisy images of one colour each."""
    rng = np.random.default_rng(seed)
    labels = list(range(len(names))) * per_class
    pixels = [np.array(COLORS[label]) + rng.normal(0, noise, (36, 40, 3)) for label in labels]
    images = [Image.fromarray(one.clip(0, 255).astype(np.uint8)) for one in pixels]
    return EvaluationSplit(f"colors/{name}", images, labels, tuple(names))


@pytest.fixture(scope="module")
def train() -> EvaluationSplit:
    return colors("train", 8, 0)


@pytest.fixture(scope="module")
def test() -> EvaluationSplit:
    return colors("test", 4, 1)


def gaussians(num_train: int, num_test: int, size: int, num_classes: int, noise: float, seed: int = 0):
    """Features of unit length around a centre for each class, and labels: of training, then of test samples."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(num_classes, size, generator=generator)
    labels = torch.randint(num_classes, (num_train + num_test,), generator=generator)
    x = centers[labels] + noise * torch.randn(len(labels), size, generator=generator)
    x = F.normalize(x, dim=1)
    return x[:num_train], labels[:num_train], x[num_train:], labels[num_train:]


# The linear probe


@pytest.mark.parametrize("bias", [True, False])
def test_rates_trained_together_are_separate_adamw_runs(bias):
    x, y, x_test, _ = gaussians(50, 9, 6, 3, 1.0)
    rates = [0.1, 0.003, 0.02]
    protocol = LinearProbeProtocol(learning_rates=rates, batch_size=16, epochs=4, bias=bias, weight_decay=0.1)
    found = train_linear_probes(5 * x + 2, y, 3, protocol, seed=7, show_progress=False)
    mean, std = (5 * x + 2).mean(dim=0), (5 * x + 2).std(dim=0, correction=0)
    for index, rate in enumerate(rates):
        generator = torch.Generator().manual_seed(7)
        layer = torch.nn.Linear(6, 3)
        torch.nn.init.uniform_(layer.weight, -(6**-0.5), 6**-0.5, generator=generator)
        torch.nn.init.uniform_(layer.bias, -(6**-0.5), 6**-0.5, generator=generator)
        if not bias:
            layer.bias = None
        optimizer = torch.optim.AdamW(layer.parameters(), lr=rate, weight_decay=0.1)
        for _ in range(4):
            for indices in torch.randperm(50, generator=generator).split(16):
                optimizer.zero_grad()
                F.cross_entropy(layer((5 * x[indices] + 2 - mean) / std), y[indices]).backward()
                optimizer.step()
        expected = layer((5 * x_test + 2 - mean) / std)
        torch.testing.assert_close(found.scores(5 * x_test + 2, index), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("num_train", "epochs", "penalty"), [(8000, 50, 1.0), (2000, 500, np.inf)])
def test_the_linear_probe_is_within_half_a_point_of_logistic_regression(num_train, epochs, penalty):
    """By the paper's constants where data abound. Where they do not, the probe, trained on, comes to that without the
    penalty of scikit-learn's default (worth 1 to 2 points there): AdamW's decay of 1e-4 is next to none."""
    x, y, x_test, y_test = gaussians(num_train, 20_000, 64, 10, 2.9, seed=1)
    found = train_linear_probes(x, y, 10, LinearProbeProtocol(epochs=epochs), show_progress=False)
    std, mean = torch.std_mean(x, dim=0, correction=0)
    reference = LogisticRegression(C=penalty, max_iter=2000).fit(((x - mean) / std).numpy(), y.numpy())
    expected = reference.score(((x_test - mean) / std).numpy(), y_test.numpy())
    assert 0.75 < expected < 0.9 and found.top1(x_test, y_test) == pytest.approx(expected, abs=0.005)


def test_neither_scale_nor_company_changes_a_score():
    x, y, x_test, y_test = gaussians(200, 50, 8, 4, 1.0)
    protocol = LinearProbeProtocol(epochs=5)
    x[:, 3] = x_test[:, 3] = 0.25  # a dimension without spread
    scales = torch.logspace(-3, 3, 8)
    found = train_linear_probes(x, y, 4, protocol, show_progress=False)
    scaled = train_linear_probes(x * scales + 1, y, 4, protocol, show_progress=False)
    scores = found.scores(x_test)
    torch.testing.assert_close(scaled.scores(x_test * scales + 1), scores, atol=0.02, rtol=0.02)
    torch.testing.assert_close(found.scores(x_test[:1]), scores[:1])
    assert found.top1(x_test, y_test) == (scores.argmax(dim=1) == y_test).double().mean().item()


def test_scores_do_not_depend_on_the_chunks(monkeypatch):
    x, y, x_test, y_test = gaussians(100, 50, 8, 4, 1.0)
    found = train_linear_probes(x, y, 4, LinearProbeProtocol(epochs=2), show_progress=False)
    expected = found.scores(x_test), found.top1(x_test, y_test)
    monkeypatch.setattr(probes, "_CHUNK_ROWS", 7)
    torch.testing.assert_close(found.scores(x_test), expected[0])
    assert found.top1(x_test, y_test) == expected[1]


def test_every_class_gives_its_share_to_the_held_out_images():
    labels = torch.tensor([0] * 40 + [1] * 5 + [2] * 2 + [3])[torch.randperm(48, generator=torch.Generator())]
    kept, held = hold_out(labels, 0.2, seed=3)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(48))
    assert labels[held].bincount(minlength=4).tolist() == [8, 1, 1, 0]
    assert torch.equal(hold_out(labels, 0.2, seed=3)[1], held) and not torch.equal(hold_out(labels, 0.2, 4)[1], held)
    assert hold_out(labels, 0.99)[0].numel() == 4  # one of each class stays
    with pytest.raises(ValueError, match="No class has two training images"):
        hold_out(torch.arange(4), 0.5)


def test_a_rate_is_chosen_by_held_out_training_images_alone(encoder, train, test):
    protocol = LinearProbeProtocol(learning_rates=[1e-7, 0.1, 1e-6], held_out=0.25)
    found = evaluate_linear_probe(encoder, train, test, protocol, seeds=(5,), **QUIET)
    (details,) = found.details["runs"]
    assert details["learning_rate"] == 0.1 and details["num_held_out"] == 12
    assert list(details["held_out_top1"]) == list(details["top1"]["test"]) == protocol.learning_rates
    assert details["top1"]["test"][0.1] == found.metrics["top1"] > 0.9 > details["top1"]["test"][1e-7]
    alone = evaluate_linear_probe(encoder, train, test, seeds=(5,), **QUIET)  # the whole training split, at 0.1
    assert alone.runs == found.runs and "held_out_top1" not in alone.details["runs"][0]

    wrong = EvaluationSplit("wrong", test.images, [(label + 1) % 6 for label in test.labels], NAMES)
    fooled = evaluate_linear_probe(encoder, train, wrong, protocol, seeds=(5,), **QUIET)
    assert fooled.details["runs"][0]["learning_rate"] == 0.1 and fooled.metrics["top1"] < 0.1


def test_held_out_images_are_not_trained_on(encoder, train, test, monkeypatch):
    sizes = []
    fit = probes.train_linear_probes
    monkeypatch.setattr(probes, "train_linear_probes", lambda x, *rest: (sizes.append(len(x)), fit(x, *rest))[1])
    protocol = LinearProbeProtocol(learning_rates=[0.1, 0.2], held_out=0.25, epochs=1)
    evaluate_linear_probe(encoder, train, test, protocol, seeds=(0,), **QUIET)
    assert sizes == [36, 48]


def test_features_are_of_unit_length_each(encoder, train):
    pooled = pooled_features(encoder, train.images, **QUIET)
    found = probe_features(encoder, train, "both", **QUIET)
    cls, mean = (pooled[name] / pooled[name].norm(dim=1, keepdim=True) for name in ("cls", "mean"))
    torch.testing.assert_close(found, torch.cat([cls, mean], dim=1))
    torch.testing.assert_close(probe_features(encoder, train, **QUIET), cls)
    torch.testing.assert_close(probe_features(encoder, train, "mean", **QUIET), mean)


def test_images_are_prepared_as_the_split_says(encoder, train):
    split = EvaluationSplit("default", train.images[:6], train.labels[:6], NAMES, transform="default")
    expected = pooled_features(encoder, split.images, transform="default", **QUIET)["cls"]
    torch.testing.assert_close(probe_features(encoder, split, **QUIET), F.normalize(expected, dim=1))


def test_the_linear_probe_end_to_end(encoder, train, test, tmp_path):
    found = evaluate_linear_probe(encoder, train, test, seeds=(0, 1), **QUIET)
    again = evaluate_linear_probe(encoder, train, test, seeds=(1,), **QUIET)
    assert again.runs == found.runs[1:] and len(found.runs) == 2
    assert found.metrics["top1"] > 0.9 and found.details["num_test"] == {"test": 24}
    assert found.chance == {"top1": 1 / 6, "top5": 5 / 6, "mean_per_class": 1 / 6}
    assert [run["seed"] for run in json.loads(json.dumps(found.details))["runs"]] == [0, 1]
    found.pictures["confusion"](tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 5000


def test_the_mean_per_class_is_over_the_classes_that_have_images():
    scores = torch.randn(60, 7, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 0, 0, 2, 3, 6] * 10)
    found = classification_metrics(scores, labels)
    recalls = [(scores.argmax(dim=1)[labels == c] == c).double().mean().item() for c in (0, 2, 3, 6)]
    assert found["mean_per_class"] == pytest.approx(sum(recalls) / 4)
    assert abs(found["mean_per_class"] - found["top1"]) > 0.01
    assert set(classification_metrics(scores[:, :3], labels % 3)) == {"top1", "mean_per_class"}


# Splits


def test_splits_of_other_classes_are_refused(train, test):
    def other(**changes) -> EvaluationSplit:
        return EvaluationSplit(**{**vars(test), "name": "other", **changes})

    swapped = ("green", "red", *NAMES[2:])
    with pytest.raises(ValueError, match="class 0 is 'red' and 'green'"):
        class_labels(train, other(class_names=swapped))
    with pytest.raises(ValueError, match="6 classes and other has 7, and they differ .the first ones agree"):
        class_labels(train, other(class_names=(*NAMES, "grey")))
    with pytest.raises(ValueError, match="from -1 to -1, and it has 6 classes: choose a split whose labels are pub"):
        class_labels(train, other(labels=[-1] * 24))
    with pytest.raises(ValueError, match="from 0 to 6"):
        class_labels(train, other(labels=[*range(5), 6] * 4))
    with pytest.raises(ValueError, match="has 23 labels for 24 images"):
        class_labels(train, other(labels=test.labels[1:]))
    with pytest.raises(ValueError, match="other has no labels"):
        class_labels(train, other(labels=None))
    with pytest.raises(ValueError, match="other has no class names"):
        class_labels(train, other(class_names=None))
    with pytest.raises(ValueError, match="has no images"):
        class_labels(train, other(images=[], labels=[]))


def test_a_class_may_be_spelled_in_two_ways():
    """Places365 comes from two repositories, with other spaces, underscores and capitals."""
    names = ("ice skating rink outdoor", "Bakery shop", "église")
    train = EvaluationSplit("train", [b""] * 3, [0, 1, 2], names)
    spelled = ("ice_skating_rink/outdoor", "bakery-shop", "Église")
    (_, labels) = class_labels(train, EvaluationSplit("test", [b""] * 2, [2, 1], spelled))
    assert labels.tolist() == [2, 1]
    with pytest.raises(ValueError, match="class 0 is '銀' and '金'"):
        class_labels(replace(train, class_names=("銀", "b", "c")), replace(train, class_names=("金", "b", "c")))
    for others in (("ice skating rink indoor", *names[1:]), (*names[:2], "église 2"), ("銀", *names[1:])):
        with pytest.raises(ValueError, match="they differ"):
            class_labels(train, EvaluationSplit("test", [b""] * 2, [2, 1], others))


@pytest.mark.parametrize("evaluate", [evaluate_linear_probe, evaluate_knn, evaluate_attentive_probe])
def test_other_classes_are_refused_before_an_image_is_encoded(encoder, train, monkeypatch, evaluate):
    monkeypatch.setattr(encoder, "encode", None)
    with pytest.raises(ValueError, match="they differ"):
        evaluate(encoder, train, colors("five", 2, 0, NAMES[:5]), **QUIET)


def test_classes_without_training_images_are_counted(train, test):
    some = [i for i, label in enumerate(train.labels) if label not in (1, 4)]
    few = EvaluationSplit("few", [train.images[i] for i in some], [train.labels[i] for i in some], NAMES)
    found = count_images(few, {"a": test, "b": few})
    assert found["num_train"] == 32 and found["num_classes"] == 6 and found["classes_without_training_images"] == 2
    assert found["num_test"] == {"a": 24, "b": 32} and found["test_images_of_those_classes"] == {"a": 8, "b": 0}


def test_no_seeds_are_an_error(encoder, train, test):
    for evaluate in (evaluate_linear_probe, evaluate_attentive_probe):
        with pytest.raises(ValueError, match="no seeds"):
            evaluate(encoder, train, test, seeds=(), **QUIET)


# Nearest neighbours


def plain_vote(x, y, query, num_classes, k) -> np.ndarray:
    """Votes [K] of one image."""
    similarity = (x @ query).double().numpy()
    votes = np.zeros(num_classes)
    for i in sorted(range(len(x)), key=lambda i: (-similarity[i], i))[:k]:
        votes[y[i]] += np.exp(similarity[i] / 0.07)
    return votes


def test_neighbours_vote_as_in_a_plain_loop_and_in_scikit_learn():
    x, y, x_test, y_test = gaussians(120, 80, 16, 12, 1.5)
    votes = knn_vote(x, y, x_test, y_test, 12, ks=(20, 1, 7), chunk_elements=500)
    assert list(votes) == [1, 7, 20]
    for k, found in votes.items():
        reference = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(x, y)
        assert found.predicted.tolist() == reference.predict(x_test).tolist()
        for rank, label, query in zip(found.rank.tolist(), y_test.tolist(), x_test, strict=True):
            plain = plain_vote(x, y, query, 12, k)
            assert rank == ((plain > plain[label]).sum() if plain[label] else 12)


def test_ties_between_neighbours_go_to_the_first():
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(3, 4, generator=generator), dim=1)[torch.arange(90) % 3]  # 30 copies of each
    y = torch.arange(90) // 3 % 10
    votes = knn_vote(x, y, x[:3], torch.tensor([0, 1, 2]), 10, ks=(1, 2, 14), chunk_elements=90)
    assert votes[1].predicted.tolist() == [0, 0, 0]  # the first copies are of class 0
    assert votes[2].predicted.tolist() == [0, 0, 0] and votes[2].rank.tolist() == [0, 1, 10]
    assert votes[14].rank.tolist() == [0, 1, 2]  # classes 0 to 3 have two votes each, the others one
    equal = knn_vote(torch.ones(50, 2), torch.arange(50) % 5, torch.ones(1, 2), torch.tensor([3]), 5, ks=(4, 3))
    assert equal[4].rank.tolist() == [3] and equal[3].rank.tolist() == [5]  # nobody votes for class 3
    inside = knn_vote(torch.ones(50, 2), torch.arange(50) % 5, torch.ones(1, 2), torch.tensor([2]), 5, ks=(50, 3))
    assert inside[3].rank.tolist() == [2] and inside[50].rank.tolist() == [2]


def test_nearest_neighbours_end_to_end(encoder, train, test):
    found = evaluate_knn(encoder, train, test, KNNProtocol(ks=[100, 5, 48]), **QUIET)
    assert set(found.metrics) == {"k5_top1", "k5_top5", "k48_top1", "k48_top5"} == set(found.chance)
    assert found.metrics["k5_top1"] > 0.9 and found.chance["k5_top5"] == 5 / 6
    assert found.details["ks_above_the_number_of_training_images"] == [100] and not found.spread
    x, x_test = (probe_features(encoder, split, **QUIET) for split in (train, test))
    reference = KNeighborsClassifier(5, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    assert found.metrics["k5_top1"] == pytest.approx(reference.fit(x, train.labels).score(x_test, test.labels))
    with pytest.raises(ValueError, match="all above the 48 training images"):
        evaluate_knn(encoder, train, test, KNNProtocol(ks=[49]), **QUIET)


@pytest.mark.parametrize("name", ["cls", "mean", "both"])
def test_nearest_neighbours_of_the_features_asked_for(encoder, train, test, monkeypatch, name):
    seen = []
    vote = knn.knn_vote
    monkeypatch.setattr(
        knn, "knn_vote", lambda x, y, x_test, *rest: seen.append((x, x_test)) or vote(x, y, x_test, *rest)
    )
    evaluate_knn(encoder, train, test, KNNProtocol(features=name, ks=[5]), **QUIET)
    for found, split in zip(seen[0], (train, test), strict=True):
        expected = probe_features(encoder, split, name, **QUIET)
        torch.testing.assert_close(found, expected / (2**0.5 if name == "both" else 1))  # of unit length


# The attentive probe


def test_one_query_attends_as_torchs_attention_does():
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(24, 4, batch_first=True)
    torch.nn.init.normal_(attention.in_proj_bias)
    torch.nn.init.normal_(attention.out_proj.bias)
    query, tokens = torch.randn(24), torch.randn(3, 7, 24)
    expected = attention(query.expand(3, 1, -1), tokens, tokens)[0][:, 0]
    torch.testing.assert_close(attend_once(attention, query, tokens), expected)


def test_heads_divide_the_width(encoder, train, test):
    assert [attentive_probe.fitting_heads(*one) for one in [(768, 12), (1024, 12), (37, 12), (32, 1)]] == [12, 8, 1, 1]
    protocol = AttentiveProbeProtocol(augment=False, epochs=1)
    found = evaluate_attentive_probe(encoder, train, test, protocol, **QUIET)
    assert encoder.hidden_size == 32 and found.details["num_heads"] == 8


@pytest.mark.parametrize("augment", [True, False])
def test_the_attentive_probe_end_to_end(encoder, train, test, tmp_path, augment):
    protocol = AttentiveProbeProtocol(augment=augment, epochs=5, batch_size=12, learning_rate=5e-3)
    found = evaluate_attentive_probe(encoder, train, test, protocol, seeds=(0, 1), **QUIET)
    assert found.metrics["top1"] > 0.8 and found.details["final_training_loss"][0] < 1
    assert ("crops, encoded" in found.details["training_tokens"]) == augment
    torch.manual_seed(123)  # the global state takes no part
    again = evaluate_attentive_probe(encoder, train, test, protocol, seeds=(1,), **QUIET)
    assert again.details["final_training_loss"] == found.details["final_training_loss"][1:]
    assert json.dumps(found.details) and set(found.chance) == set(found.metrics)
    found.pictures["confusion"](tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 5000


def crops_of(encoder, train, seed: int = 0, num_workers: int = 0) -> dict[tuple[int, int], torch.Tensor]:
    """What the encoder is given, by step and image."""
    seen = []
    encoder.tokens = lambda pixels: (seen.append(pixels), type(encoder).tokens(encoder, pixels))[1]
    protocol = AttentiveProbeProtocol(epochs=2, batch_size=20)
    options = {"transform": "default", "batch_size": 8, "num_workers": num_workers}
    state = torch.get_rng_state()
    batches = list(attentive_probe.augmented_batches(encoder, train, protocol, seed, **options))
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(indices) for _, indices in batches] == [20, 20, 8] * 2 and max(map(len, seen)) == 8
    pixels = torch.cat(seen)
    order = [(i // 48, image) for i, image in enumerate(torch.cat([indices for _, indices in batches]).tolist())]
    assert sorted(order) == [(epoch, image) for epoch in range(2) for image in range(48)]
    for place, (patches, indices) in enumerate(batches[:2]):
        expected = type(encoder).tokens(encoder, pixels[20 * place :][: len(indices)]).patches
        torch.testing.assert_close(patches, expected)
    return dict(zip(order, pixels, strict=True))


def test_crops_follow_seed_epoch_and_image_whoever_draws_them(encoder, train):
    here = crops_of(encoder, train)
    workers = crops_of(encoder, train, num_workers=2)
    assert all(torch.equal(here[key], workers[key]) for key in here)
    other = crops_of(encoder, train, seed=1)
    assert not any(torch.equal(here[0, i], here[1, i]) for i in range(48))
    assert not any(torch.equal(here[0, i], other[0, i]) for i in range(48))


def test_crops_are_normalised_as_the_encoder_wants(encoder):
    split = EvaluationSplit("grey", [Image.new("L", (50, 40), 128)] * 20, [0, 1] * 10, ("a", "b"))
    protocol = AttentiveProbeProtocol(epochs=1)
    seen, tokens = [], encoder.tokens(torch.zeros(20, 3, 32, 32))
    encoder.tokens = lambda pixels: seen.append(pixels) or tokens
    list(attentive_probe.augmented_batches(encoder, split, protocol, 0, transform="default"))
    expected = encoder.image_processor()(split.images[0].convert("RGB"), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen[0], expected.expand(20, -1, -1, -1))


def test_the_learning_rate_goes_down_a_cosine(encoder, train, test, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def record(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    protocol = AttentiveProbeProtocol(augment=False, epochs=5, batch_size=24)
    evaluate_attentive_probe(encoder, train, test, protocol, **QUIET)
    expected = 1e-5 + (1e-3 - 1e-5) * (1 + np.cos(np.pi * np.arange(10) / 10)) / 2
    assert rates == pytest.approx(expected)


def test_what_does_not_decode_or_is_not_finite_is_an_error(encoder, train, test):
    broken = EvaluationSplit("broken", [b"no image", *train.images[1:]], train.labels, NAMES)
    with pytest.raises(ValueError, match="Image 0 does not decode"):
        evaluate_attentive_probe(encoder, broken, test, AttentiveProbeProtocol(epochs=1), **QUIET)
    with pytest.raises(ValueError, match="The loss is nan at step 2.*learning_rate=1e\\+30 is too high"):
        protocol = AttentiveProbeProtocol(augment=False, learning_rate=1e30)
        evaluate_attentive_probe(encoder, train, test, protocol, **QUIET)
    with torch.no_grad():
        encoder.vision_model.timm_model.norm.bias.fill_(float("nan"))
    for evaluate in (evaluate_attentive_probe, evaluate_linear_probe, evaluate_knn):
        with pytest.raises(ValueError, match="are not finite"):
            evaluate(encoder, train, test, **QUIET)


# Backgrounds


def test_mixed_backgrounds_cost_what_a_probe_without_bias_loses(encoder, train, test, tmp_path):
    tests = {"mixed_rand": colors("rand", 4, 2, noise=200), "original": test, "mixed_same": colors("same", 4, 3)}
    tests["mixed_same"].labels[:6] = [1, 0, 3, 2, 5, 4]  # a quarter of them cannot be right
    found = evaluate_background(encoder, train, tests, seeds=(0, 1), **QUIET)
    for run, details in zip(found.runs, found.details["runs"], strict=True):
        same, rand = run["mixed_same_top1"], run["mixed_rand_top1"]
        for name in tests:
            assert run[f"{name}_top1"] == pytest.approx(details["top1"][name][0.1])
        assert run["mixed_same_drop"] == run["original_top1"] - same > 0.15
        assert run["mixed_rand_drop"] == run["original_top1"] - rand
        assert run["bg_gap"] == same - rand
    protocol = LinearProbeProtocol(bias=False)
    plain = evaluate_linear_probe(encoder, train, tests["mixed_rand"], protocol, seeds=(0, 1), **QUIET)
    assert [run["mixed_rand_top1"] for run in found.runs] == [run["top1"] for run in plain.runs]
    assert found.chance == {f"{name}_top1": 1 / 6 for name in tests}
    found.pictures["accuracies"](tmp_path / "accuracies.png")
    assert (tmp_path / "accuracies.png").stat().st_size > 5000


def test_backgrounds_need_three_splits_of_the_same_classes(encoder, train, test):
    with pytest.raises(ValueError, match="The test splits are original, test: give original, mixed_same, mixed_rand"):
        evaluate_background(encoder, train, {"original": test, "test": test})
    five = colors("five", 2, 0, NAMES[:5])
    with pytest.raises(ValueError, match="they differ"):
        evaluate_background(encoder, train, {"original": test, "mixed_same": test, "mixed_rand": five})


def test_bars_are_drawn_without_spread_or_chance(tmp_path):
    plot_bars(["a", "b"], [0.2, 0.4], tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 5000


# Protocols


@pytest.mark.parametrize(
    ("protocol", "wrong", "message"),
    [
        (LinearProbeProtocol, {"features": "patches"}, "features='patches' is unknown: use one of cls, mean, both"),
        (LinearProbeProtocol, {"learning_rates": []}, "one or several numbers above 0"),
        (LinearProbeProtocol, {"learning_rates": [0.1, 0.0]}, "one or several numbers above 0"),
        (LinearProbeProtocol, {"learning_rates": [0.1, 0.1]}, "names one twice"),
        (LinearProbeProtocol, {"weight_decay": -1}, "weight_decay=-1 must be 0 or more"),
        (LinearProbeProtocol, {"epochs": 0}, "epochs=0 must be at least 1"),
        (BackgroundProtocol, {"batch_size": 0}, "batch_size=0"),
        (LinearProbeProtocol, {"held_out": 1.0}, "held_out=1.0 must be a share"),
        (KNNProtocol, {"ks": []}, "ks="),
        (KNNProtocol, {"features": "patches"}, "features='patches' is unknown"),
        (KNNProtocol, {"ks": [0, 3]}, "numbers from 1"),
        (KNNProtocol, {"temperature": 0}, "temperature=0 must be above 0"),
        (AttentiveProbeProtocol, {"num_heads": 0}, "num_heads=0"),
        (AttentiveProbeProtocol, {"learning_rate": 0}, "learning_rate=0"),
        (AttentiveProbeProtocol, {"final_learning_rate": 2}, "final_learning_rate=2"),
        (AttentiveProbeProtocol, {"weight_decay": -1}, "weight_decay=-1"),
        (AttentiveProbeProtocol, {"epochs": 0}, "epochs=0"),
    ],
)
def test_protocols_refuse_values_out_of_range(protocol, wrong, message):
    with pytest.raises(ValueError, match=message):
        protocol(**wrong)


def test_protocols_are_the_papers_and_become_options():
    linear, background = LinearProbeProtocol(), BackgroundProtocol()
    assert (linear.learning_rates, linear.weight_decay, linear.batch_size, linear.epochs) == ([0.1], 1e-4, 4096, 50)
    assert linear.bias and not background.bias and background.learning_rates == [0.1]
    assert (KNNProtocol().ks, KNNProtocol().temperature) == ([10, 20, 100, 200], 0.07)
    a = AttentiveProbeProtocol()
    assert (a.num_heads, a.learning_rate, a.final_learning_rate, a.weight_decay) == (12, 1e-3, 0.01, 1e-4)
    assert (a.batch_size, a.epochs, a.augment) == (256, 20, True)
    options = ["--learning_rates", "0.1", "0.01", "--bias", "false", "--features", "both"]
    (found,) = Parser([LinearProbeProtocol], prog="probe").parse_groups(options)
    assert found == LinearProbeProtocol(features="both", learning_rates=[0.1, 0.01], bias=False)
    for protocol in (LinearProbeProtocol, KNNProtocol, AttentiveProbeProtocol, BackgroundProtocol):
        assert all(field.metadata["help"] for field in fields(protocol))
        Parser([protocol], prog="probe").parse_groups([])
