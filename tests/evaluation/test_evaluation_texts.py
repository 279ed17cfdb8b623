"""Zero-shot classification and retrieval as tasks: on splits, with every readout, peers without text, and pictures."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from datasets import Image, load_dataset

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAVisionModel
from levljepa_hf.data.labelled import EvaluationSplit
from levljepa_hf.encoders.encoders import LeVLJEPAEncoder
from levljepa_hf.evaluation.pictures import plot_confusion
from levljepa_hf.evaluation.retrieval import RetrievalProtocol, evaluate_retrieval
from levljepa_hf.evaluation.zero_shot import ZeroShotProtocol, evaluate_zero_shot, prompt_ensemble, top_k_accuracy
from levljepa_hf.model.modeling_levljepa import READOUTS

SHARED = Path(__file__).parents[3] / "shared" / "data"
CAPTIONS = (
    ("a cat on a mat", "an animal"),
    ("two dogs run", "dogs on a beach", "a dog and another dog"),
    (),
    ("rain", "clouds", "a grey sky", "wet weather", "a storm", "a sixth caption"),
)


@pytest.fixture
def encoder(model, processor) -> LeVLJEPAEncoder:
    return LeVLJEPAEncoder("debug", model, processor)


@pytest.fixture
def split(images) -> EvaluationSplit:
    names = ("cat", "big_dog", "car", "rain", "tree", "house", "boat")
    return EvaluationSplit("photos/test", images, [0, 1, 2, 3], names, ("a {}.", "{}, seen"), CAPTIONS)


def embed(model, processor, images, texts):
    """Z_V, q_V(Z_V), Z_T, q_T(Z_T), plainly."""
    inputs = processor(images=images, text=texts, return_tensors="pt")
    with torch.no_grad():
        z_v = model.get_image_features(inputs["pixel_values"]).pooler_output
        z_t = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        return z_v, model.vision_predictor(z_v), z_t, model.text_predictor(z_t)


def cosines(a, b):
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T


def plain_scores(z_v, q_v, z_t, q_t):
    """[images, texts] under each readout (design of the official evaluation)."""
    return {
        "zeroshot": cosines(z_v, z_t),
        "proj": cosines(q_v, z_t),
        "proj_text": cosines(z_v, q_t),
        "avg": (cosines(q_v, z_t) + cosines(z_v, q_t)) / 2,
        "predictor_pair": cosines(q_v, q_t),
    }


def test_zero_shot_is_the_plain_computation(encoder, split, model, processor):
    split.transform = "default"
    result = evaluate_zero_shot(encoder, split, show_progress=False)
    names = [name.replace("_", " ") for name in split.class_names]
    embedded = [embed(model, processor, split.images, [t.format(n) for n in names]) for t in split.prompts]
    z_t, q_t = (F.normalize(torch.stack([e[i] for e in embedded]), dim=-1).mean(dim=0) for i in (2, 3))
    scores = plain_scores(*embedded[0][:2], z_t, q_t)
    assert set(scores) == set(READOUTS)
    for readout, of_readout in scores.items():
        order = of_readout.argsort(dim=1, descending=True)
        for k in (1, 5):
            expected = sum(label in row[:k] for label, row in zip(split.labels, order.tolist(), strict=True)) / 4
            assert result.metrics[f"{readout}_top{k}"] == pytest.approx(expected)
    assert result.chance["avg_top5"] == pytest.approx(5 / 7) and result.details["prompts"] == list(split.prompts)


def test_zero_shot_prompts_and_readouts_can_be_chosen(encoder, split):
    protocol = ZeroShotProtocol(prompts=["{} alone"], readouts=["proj"])
    result = evaluate_zero_shot(encoder, split, protocol, show_progress=False)
    assert list(result.metrics) == ["proj_top1", "proj_top5"] and result.details["prompts"] == ["{} alone"]


def test_the_ensemble_gives_every_prompt_the_same_weight():
    from levljepa_hf.encoders.embeddings import Embeddings

    z = torch.tensor([[10.0, 0], [0, 1], [0, 3], [0, 5]])
    mean = prompt_ensemble(Embeddings(z, None), 2)
    torch.testing.assert_close(mean.embeds, torch.tensor([[0.5, 0.5], [0, 1]]))
    assert mean.predictions is None


def test_retrieval_is_the_plain_computation(encoder, split, model, processor):
    split.transform = "default"
    result = evaluate_retrieval(encoder, split, RetrievalProtocol(ks=[1, 2]), show_progress=False)
    texts = [caption for captions in CAPTIONS for caption in captions[:5]]
    owner = torch.tensor([i for i, captions in enumerate(CAPTIONS) for _ in captions[:5]])
    for readout, scores in plain_scores(*embed(model, processor, split.images, texts)).items():
        for k in (1, 2):
            to_image = scores.topk(k, dim=0).indices.T == owner[:, None]
            assert result.metrics[f"{readout}_text_to_image_R@{k}"] == pytest.approx(
                to_image.any(1).float().mean().item()
            )
            to_text = owner[scores.topk(k, dim=1).indices] == torch.arange(4)[:, None]
            expected = to_text.any(1)[[0, 1, 3]].float().mean().item()  # one image has no caption
            assert result.metrics[f"{readout}_image_to_text_R@{k}"] == pytest.approx(expected)
    assert result.details == {"num_images": 4, "num_texts": 10, "images_without_captions": 1}


def test_retrieval_chance_counts_the_captions_of_an_image(encoder, split):
    chance = evaluate_retrieval(encoder, split, RetrievalProtocol(ks=[1, 2]), show_progress=False).chance
    assert chance["avg_text_to_image_R@2"] == pytest.approx(2 / 4)
    # of 10 captions an image has 2, 3 or 5: two draws miss all of them in C(10 - n, 2) of C(10, 2) cases
    missed = [math.comb(10 - n, 2) / math.comb(10, 2) for n in (2, 3, 5)]
    assert chance["avg_image_to_text_R@2"] == pytest.approx(1 - sum(missed) / 3)


def test_a_tower_and_a_model_without_predictors_are_refused_with_the_way_on(split, model, processor):
    tower = LeVLJEPAVisionModel(model.config.vision_config)
    for evaluate in (evaluate_zero_shot, evaluate_retrieval):
        with pytest.raises(ValueError, match="debug has no text tower.*give a whole model"):
            evaluate(LeVLJEPAEncoder("debug", tower, processor), split)
    plain = LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug", predictor_num_layers=0))
    encoder = LeVLJEPAEncoder("plain", plain, processor)
    with pytest.raises(ValueError, match="'avg' needs predictors, and plain has none: use zeroshot"):
        evaluate_zero_shot(encoder, split, ZeroShotProtocol(readouts=["avg"]))
    assert list(evaluate_zero_shot(encoder, split, show_progress=False).metrics) == ["zeroshot_top1", "zeroshot_top5"]


@pytest.mark.parametrize("protocol", [ZeroShotProtocol, RetrievalProtocol])
def test_unknown_readouts_are_refused_before_anything_runs(protocol):
    with pytest.raises(ValueError, match="Unknown readout 'average': use some of zeroshot"):
        protocol(readouts=["average"])


def test_what_a_split_lacks_is_named(encoder, images):
    bare = EvaluationSplit("photos/test", images)
    with pytest.raises(ValueError, match="photos/test has no labels.*--label_column"):
        evaluate_zero_shot(encoder, bare)
    with pytest.raises(ValueError, match="photos/test has no captions.*--caption_column"):
        evaluate_retrieval(encoder, bare)
    bare.captions = [()] * len(images)
    with pytest.raises(ValueError, match="no caption for any image"):
        evaluate_retrieval(encoder, bare)


def test_pictures_are_drawn(encoder, split, tmp_path):
    for evaluate in (evaluate_zero_shot, evaluate_retrieval):
        for name, draw in evaluate(encoder, split, show_progress=False).pictures.items():
            draw(tmp_path / f"{name}.png")
    assert {path.name for path in tmp_path.iterdir()} == {"confusion.png", "nearest.png"}


def test_confusion_shows_the_classes_with_most_mistakes(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    imshow = Axes.imshow

    def record(self, data, **kwargs):
        drawn.append(torch.tensor(data))
        return imshow(self, data, **kwargs)

    monkeypatch.setattr(Axes, "imshow", record)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    predicted = torch.tensor([0, 0, 1, 0, 2, 1, 1])
    plot_confusion(labels, predicted, ["a", "b", "c"], tmp_path / "all.png")
    plot_confusion(labels, predicted, ["a", "b", "c"], tmp_path / "two.png", max_classes=2)
    torch.testing.assert_close(drawn[0], torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0, 2 / 3, 1 / 3]]))
    torch.testing.assert_close(drawn[1], drawn[0][1:, 1:])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the photos to try things on are not there")
@pytest.mark.parametrize("model_name, accuracy", [("levljepa", 0.944), ("clip", 0.970)])
def test_scores_published_for_the_released_checkpoints(model_name, accuracy, tmp_path):
    published = json.loads((SHARED / "imagenette-500" / "released_scores.json").read_text())
    column = {one["imagefolder_label"]: k for k, one in enumerate(published["classes"])}
    labels, scores = [], []
    photos = load_dataset("imagefolder", data_dir=str(SHARED / "imagenette-500"), cache_dir=str(tmp_path))
    for of_split in photos.cast_column("image", Image(decode=False)).values():
        for row in of_split:
            labels.append(column[row["label"]])
            scores.append(published["images"][Path(row["image"]["path"]).stem]["scores"][model_name])
    assert len(labels) == 500
    assert top_k_accuracy(torch.tensor(scores), labels)["top1"] == pytest.approx(accuracy, abs=1e-6)
