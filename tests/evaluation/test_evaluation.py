"""Evaluation: recalls, accuracies and health against values known by hand or found another way; pictures are written.

Embeddings are made up; the functions that run a model run a `debug` one, on random pixels and a stand-in processor.
"""

import math

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvF

from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, SIGReg
from levljepa_hf.data.catalogue import PROMPTS
from levljepa_hf.encoders.embeddings import Embeddings, embed_images, embed_texts
from levljepa_hf.evaluation.embedding_health import (
    effective_rank,
    embedding_health,
    matched_and_shuffled_cosine,
    sigreg_floor,
)
from levljepa_hf.evaluation.pictures import (
    patch_pca,
    patch_similarity,
    plot_nearest,
    plot_patch_pca,
    plot_patch_similarity,
)
from levljepa_hf.evaluation.retrieval import retrieval_chance, retrieval_recall
from levljepa_hf.evaluation.zero_shot import zero_shot_accuracy, zero_shot_classifier
from levljepa_hf.figures import plot_losses
from levljepa_hf.model.modeling_levljepa import READOUTS


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


# ---------------------------------------------------------------------------------------------------------- retrieval


def test_retrieval_of_equal_embeddings_is_perfect(generator):
    z = torch.randn(50, 16, generator=generator)
    recalls = retrieval_recall(z, z, z, z)
    assert list(recalls) == [f"{way}_R@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
    assert set(recalls.values()) == {1.0}


def test_retrieval_matches_a_sort(generator):
    z_v, z_t = torch.randn(2, 60, 8, generator=generator)
    recalls = retrieval_recall(z_v, z_t, readout="zeroshot", ks=(1, 7), chunk_size=13)
    scores = torch.nn.functional.normalize(z_v, dim=1) @ torch.nn.functional.normalize(z_t, dim=1).T  # [images, texts]
    for way, matrix in (("image_to_text", scores), ("text_to_image", scores.T)):
        order = matrix.argsort(dim=1, descending=True)
        for k in (1, 7):
            expected = (order[:, :k] == torch.arange(60)[:, None]).any(dim=1).float().mean()
            assert recalls[f"{way}_R@{k}"] == pytest.approx(expected.item())


def test_retrieval_uses_the_readout(generator):
    z_v, z_t = torch.randn(2, 40, 32, generator=generator)
    perfect = {"proj": (z_t, z_t), "proj_text": (z_v, z_v)}  # a prediction that equals its target
    for readout, (predicted_text, predicted_image) in perfect.items():
        assert retrieval_recall(z_v, z_t, predicted_text, predicted_image, readout)["text_to_image_R@1"] == 1
    assert retrieval_recall(z_v, z_t, z_t, z_v)["image_to_text_R@1"] == 1  # avg, the default
    assert retrieval_recall(z_v, z_t, z_t, z_v, "zeroshot")["image_to_text_R@1"] < 0.3


def test_collapsed_embeddings_score_at_chance():
    ones = torch.ones(20, 4)
    recalls = retrieval_recall(ones, ones, ones, ones)
    for k, chance in ((1, 0.05), (5, 0.25), (10, 0.5)):
        assert recalls[f"text_to_image_R@{k}"] == recalls[f"image_to_text_R@{k}"] == pytest.approx(chance)
        assert retrieval_chance(20)[f"R@{k}"] == chance
    assert retrieval_chance(4)["R@10"] == 1


def test_embeddings_that_are_not_finite_come_last(generator):
    z = torch.randn(8, 4, generator=generator)
    some, none = z.clone(), torch.full_like(z, float("nan"))
    some[3] = float("nan")
    recalls = retrieval_recall(some, z, readout="zeroshot", ks=(1, 7, 8))
    assert recalls["text_to_image_R@1"] == recalls["text_to_image_R@7"] == 7 / 8 and recalls["text_to_image_R@8"] == 1
    assert recalls["image_to_text_R@1"] == pytest.approx((7 + 1 / 8) / 8)  # to that image all texts are the same
    assert retrieval_recall(none, z, readout="zeroshot", ks=(1,))["text_to_image_R@1"] == pytest.approx(1 / 8)


def test_several_captions_an_image():
    """Three images, five captions: an image is found by its best caption, and each caption looks for its image."""
    images = torch.eye(3)
    texts = torch.tensor([[1, 0, 0], [0, 1.0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0.1]])
    owners = torch.tensor([0, 0, 1, 2, 2])
    recalls = retrieval_recall(images, texts, readout="zeroshot", ks=(1,), image_of_text=owners)
    # Caption 1 belongs to image 0 and points at image 1, caption 4 belongs to image 2 and points at image 0.
    assert recalls["text_to_image_R@1"] == pytest.approx(3 / 5)
    # Image 1 has one caption of its own and one foreign one at the same similarity: half a hit.
    assert recalls["image_to_text_R@1"] == pytest.approx((1 + 0.5 + 1) / 3)


def test_images_without_captions_are_in_the_way_and_no_queries(generator):
    """As among the photos of a split of which some lost their captions."""
    z_v, z_t = torch.randn(9, 8, generator=generator), torch.randn(5, 8, generator=generator)
    owners = torch.tensor([0, 3, 3, 8, 5])  # images 1, 2, 4, 6 and 7 have none
    recalls = retrieval_recall(z_v, z_t, readout="zeroshot", ks=(1, 2), image_of_text=owners, chunk_size=3)
    scores = torch.nn.functional.cosine_similarity(z_v[:, None], z_t[None], dim=-1)  # [images, texts]
    for k in (1, 2):
        among_images = [owner in scores[:, i].topk(k).indices for i, owner in enumerate(owners)]
        assert recalls[f"text_to_image_R@{k}"] == pytest.approx(sum(among_images) / 5)
        first = {image: owners[scores[image].topk(k).indices] for image in (0, 3, 5, 8)}
        assert recalls[f"image_to_text_R@{k}"] == pytest.approx(sum(i in found for i, found in first.items()) / 4)
    # alone, without those images, the captions find theirs more easily
    fewer = retrieval_recall(
        z_v[[0, 3, 5, 8]], z_t, readout="zeroshot", ks=(2,), image_of_text=torch.tensor([0, 1, 1, 3, 2])
    )
    assert fewer["text_to_image_R@2"] > recalls["text_to_image_R@2"]
    assert fewer["image_to_text_R@2"] == pytest.approx(recalls["image_to_text_R@2"])


def test_retrieval_errors(generator):
    z = torch.randn(5, 4, generator=generator)
    with pytest.raises(ValueError, match="5 images and 3 texts do not pair up one to one: pass `image_of_text`"):
        retrieval_recall(z, z[:3], readout="zeroshot")
    with pytest.raises(ValueError, match="one index below 5 for each of the 3 texts"):
        retrieval_recall(z, z[:3], readout="zeroshot", image_of_text=torch.tensor([0, 1, 5]))
    with pytest.raises(ValueError, match="needs predictions"):
        retrieval_recall(z, z)


# ---------------------------------------------------------------------------------------------------------- zero-shot


def test_zero_shot_accuracy_under_each_readout(generator):
    classes = torch.eye(6)
    labels = torch.tensor([0, 1, 2, 3])
    wrong = classes[[5, 5, 5, 5]]
    images = Embeddings(embeds=wrong, predictions=classes[labels])  # Z_V points elsewhere, q_V(Z_V) at the class
    accuracies = zero_shot_accuracy(images, Embeddings(classes, classes), labels)
    assert list(accuracies) == [f"{r}_top{k}" for r in READOUTS for k in (1, 5)]
    assert accuracies["proj_top1"] == 1 and accuracies["zeroshot_top1"] == 0 and accuracies["proj_text_top1"] == 0
    assert accuracies["predictor_pair_top1"] == 1 and accuracies["avg_top5"] == 1
    only = zero_shot_accuracy(images, Embeddings(classes, classes), labels, readouts=["avg"], ks=[1])
    assert list(only) == ["avg_top1"]


def test_zero_shot_top5_counts_the_first_five():
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1]]).repeat(6, 1)  # cosine with the basis keeps this order
    images = Embeddings(scores, None)
    accuracies = zero_shot_accuracy(images, Embeddings(torch.eye(6), None), list(range(6)))
    assert accuracies == pytest.approx({"zeroshot_top1": 1 / 6, "zeroshot_top5": 5 / 6})


def test_zero_shot_with_fewer_than_five_classes():
    images = Embeddings(torch.eye(3), None)
    assert zero_shot_accuracy(images, Embeddings(torch.eye(3), None), [0, 1, 2]) == {"zeroshot_top1": 1}


def test_zero_shot_errors():
    three = Embeddings(torch.eye(3), None)
    with pytest.raises(ValueError, match="2 labels for 3 images"):
        zero_shot_accuracy(three, three, [0, 1])
    with pytest.raises(ValueError, match="Labels run from 0 to 3, but the classifier has 3 classes"):
        zero_shot_accuracy(three, three, [0, 1, 3])
    with pytest.raises(ValueError, match="'a photo' has no place for the class name"):
        zero_shot_classifier(None, None, ["cat"], template="a photo")


# --------------------------------------------------------------------------------------------------------- embeddings


class StubProcessor:
    """Lengths and colours instead of a vocabulary and pixels: no file is needed."""

    def __call__(self, images=None, text=None, return_tensors="pt"):
        from transformers import BatchFeature

        if images is not None:
            return BatchFeature({"pixel_values": torch.stack(list(images))})
        ids = [[len(word) for word in caption.split()] + [0] for caption in text]
        length = max(map(len, ids))
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
        return BatchFeature(
            {"input_ids": torch.tensor([row + [0] * (length - len(row)) for row in ids]), "attention_mask": mask}
        )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug", text_config={"vocab_size": 64}))


def test_embeddings_are_those_of_the_model_and_leave_its_mode_alone(model, generator):
    images = torch.randn(5, 3, 32, 32, generator=generator)
    texts = ["a cat", "a dog on a red mat", "two", "an owl", "it is"]
    model.train()
    vision = embed_images(model, StubProcessor(), images, batch_size=2, transform="processor")
    text = embed_texts(model, StubProcessor(), texts, batch_size=3)
    assert model.training
    model.eval()
    with torch.no_grad():
        expected = model(pixel_values=images, **StubProcessor()(text=texts))
    torch.testing.assert_close(vision.embeds, expected.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vision.predictions, expected.predicted_text_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text.embeds, expected.text_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text.predictions, expected.predicted_image_embeds, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="Nothing to embed"):
        embed_texts(model, StubProcessor(), [])
    assert not model.training
    for tensor in (*vision, *text):
        assert not tensor.requires_grad and tensor.dtype == torch.float32 and tensor.device.type == "cpu"
    model.train()
    with pytest.raises(KeyError, match="pixel_values"):
        embed_images(model, lambda images, return_tensors: StubProcessor()(text=["a"]), images, transform="processor")
    assert model.training, "also after an error"
    model.eval()


def test_images_are_embedded_with_the_evaluation_transform(model, processor, images):
    """The official one, in proportion: the short side 37 = round(32 * 256 / 224), of whose centre 32 are seen."""
    expected = []
    for image in images:
        scale = 37 / min(image.size)
        size = [37 if side == min(image.size) else int(side * scale) for side in image.size]
        pixels = tvF.resize(tvF.pil_to_tensor(image), size[::-1], antialias=True)
        pixels = tvF.center_crop(pixels, [32, 32]).float() / 255
        mean, std = (torch.tensor(getattr(processor.image_processor, f"image_{n}")) for n in ("mean", "std"))
        expected.append((pixels - mean[:, None, None]) / std[:, None, None])
    reference = embed_images(model, StubProcessor(), expected, transform="processor")
    embeddings = embed_images(model, processor, images)
    torch.testing.assert_close(embeddings.embeds, reference.embeds, rtol=1e-3, atol=1e-3)
    as_it_is = embed_images(model, processor, images, transform="processor")
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(as_it_is.embeds, model.get_image_features(pixel_values).pooler_output.detach())
    assert (as_it_is.embeds - embeddings.embeds).abs().max() > 0.01
    assert processor.image_processor.size["shortest_edge"] == 32, "the processor stays as it is"
    with pytest.raises(ValueError, match="transform='crop' is unknown: use 'evaluation' or 'processor'"):
        embed_images(model, processor, images, transform="crop")


def test_long_embedding_shows_its_progress(model, capsys):
    texts = ["a b", "c", "d e f"]
    embed_texts(model, StubProcessor(), texts, batch_size=2)
    assert "embedding texts: 100%" in capsys.readouterr().err
    embed_images(model, StubProcessor(), torch.zeros(3, 3, 32, 32), batch_size=1, transform="processor")
    assert "embedding images: 100%" in capsys.readouterr().err
    embed_texts(model, StubProcessor(), texts)  # a single batch
    embed_texts(model, StubProcessor(), texts, batch_size=2, show_progress=False)
    embed_images(model, StubProcessor(), torch.zeros(2, 3, 32, 32), 1, transform="processor", show_progress=False)
    assert capsys.readouterr().err == ""


def test_zero_shot_classifier_fills_the_template(model):
    classifier = zero_shot_classifier(model, StubProcessor(), ["cat", "zebra"])
    prompts = embed_texts(model, StubProcessor(), ["a photo of a cat.", "a photo of a zebra."])
    assert torch.equal(classifier.embeds, prompts.embeds) and torch.equal(classifier.predictions, prompts.predictions)


def test_prompts_are_those_of_the_official_evaluation(monkeypatch):
    seen = []

    def embed(model, processor, texts):
        seen.extend(texts)
        return Embeddings(torch.zeros(len(texts), 1), None)

    monkeypatch.setattr("levljepa_hf.evaluation.zero_shot.embed_texts", embed)
    zero_shot_classifier(None, None, ["great_white_shark", " tench\n"])
    zero_shot_classifier(None, None, ["707-320"], PROMPTS["aircraft"])
    zero_shot_classifier(None, None, ["american_pit_bull_terrier"], PROMPTS["pets"])
    zero_shot_classifier(None, None, ["golf_ball"], PROMPTS["imagenet_online"])
    zero_shot_classifier(None, None, ["airfield"], PROMPTS["places365"])
    assert seen == [
        "a photo of a great white shark.",
        "a photo of a tench.",
        "a photo of a 707-320, a type of aircraft.",
        "a photo of a american pit bull terrier, a type of pet.",
        "a photo of a golf ball",
        "a photo of a airfield.",
    ]


def test_embeddings_without_predictors():
    model = LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug", predictor_num_layers=0, text_config={"vocab_size": 64}))
    texts = embed_texts(model, StubProcessor(), ["a b", "c"])
    assert texts.predictions is None and texts.embeds.shape == (2, 16)


# ------------------------------------------------------------------------------------------------------------- health


def test_effective_rank_of_known_spectra(generator):
    basis = torch.cat([torch.eye(6), -torch.eye(6)])  # six equal singular values
    assert effective_rank(basis) == pytest.approx(6, rel=1e-4)
    assert effective_rank(basis * torch.tensor([1.0, 1, 1, 0, 0, 0])) == pytest.approx(3, rel=1e-4)
    assert effective_rank(torch.arange(10.0)[:, None] * torch.ones(4)) == pytest.approx(1, rel=1e-3)
    # Two singular values in the ratio 4 : 1.
    unequal = basis * torch.tensor([4.0, 1, 0, 0, 0, 0])
    assert effective_rank(unequal) == pytest.approx(math.exp(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2))), rel=1e-5)


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (50, 50)])
def test_effective_rank_is_the_official_figure(generator, shape):
    """A decaying spectrum under rotations, through a singular value decomposition as the official code has it."""
    rows, columns = shape
    spectrum = 0.9 ** torch.arange(min(shape))
    left = torch.linalg.qr(torch.randn(rows, min(shape), generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, min(shape), generator=generator)).Q
    z = left * spectrum @ right.T + 7
    s = torch.linalg.svdvals(z - z.mean(dim=0))
    p = s / s.sum()
    assert effective_rank(z) == pytest.approx((-(p * (p + 1e-7).log()).sum()).exp().item(), rel=2e-4)


def test_effective_rank_of_few_large_directions_is_not_raised_by_rounding(generator):
    z = torch.randn(4000, 2, generator=generator) @ torch.randn(2, 256, generator=generator)
    s = torch.linalg.svdvals((z - z.mean(dim=0)).double())[:2]
    assert effective_rank(z) == pytest.approx(torch.special.entr(s / s.sum()).sum().exp().item(), rel=1e-3)


def test_effective_rank_is_invariant_and_the_same_for_few_and_many_rows(generator):
    z = torch.randn(40, 12, generator=generator)
    rank = effective_rank(z)
    assert effective_rank(3 * z + 5) == pytest.approx(rank, rel=1e-3)
    assert effective_rank(z.T) != pytest.approx(rank)  # rows and columns are not alike
    padded = torch.cat([z, torch.zeros(40, 50)], dim=1)  # more columns than rows: through the other Gram matrix
    assert effective_rank(padded) == pytest.approx(rank, rel=1e-3)
    assert math.isnan(effective_rank(torch.ones(8, 4)))
    assert math.isnan(effective_rank(torch.full((8, 4), float("inf"))))


def test_matched_and_shuffled_cosine_against_all_pairs(generator):
    a, b = torch.randn(2, 30, 5, generator=generator) + 0.3
    cosines = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    matched, shuffled = matched_and_shuffled_cosine(a, b)
    assert matched == pytest.approx(cosines.diagonal().mean().item(), abs=1e-5)
    off_diagonal = cosines[~torch.eye(30, dtype=torch.bool)]
    assert shuffled == pytest.approx(off_diagonal.mean().item(), abs=1e-5)


def test_embedding_health(generator):
    z_v, z_t = torch.randn(2, 200, 8, generator=generator)
    health = embedding_health(z_v.requires_grad_(), z_t, z_t.bfloat16(), z_v)  # perfect predictions
    names = ["effective_rank_vision", "effective_rank_text", "cosine_matched", "cosine_shuffled"]
    assert list(health) == [*names, "unexplained_vision", "unexplained_text"]
    assert health["unexplained_vision"] == 0 and 0 < health["unexplained_text"] < 1e-4  # bfloat16's rounding
    assert health["cosine_matched"] == pytest.approx(1, abs=1e-3) and abs(health["cosine_shuffled"]) < 0.05
    assert 7 < health["effective_rank_vision"] <= 8
    half = embedding_health(z_v, z_t, z_t, -z_t)["cosine_matched"]  # one direction perfect, the other unrelated
    assert half == pytest.approx(0.5, abs=0.05)
    assert embedding_health(z_v, z_t, -z_v, z_v)["cosine_matched"] == pytest.approx(0.5, abs=0.05)
    without = embedding_health(z_v, z_t)
    assert list(without) == names
    assert without["cosine_matched"] == pytest.approx(matched_and_shuffled_cosine(z_v, z_t)[0])


def test_sigreg_floor_is_what_sigreg_gives_on_a_gaussian(generator):
    z = torch.randn(4000, 8, generator=generator)
    sigreg = SIGReg(num_directions=2048).eval()
    assert sigreg_floor() == pytest.approx(1, abs=0.1)
    assert sigreg(z).item() == pytest.approx(sigreg_floor(), rel=0.25)  # one sample of N(0, I), so not exact
    scaled = SIGReg(num_directions=512, sample_size_scale=100.0).eval()(z[:200]).item()
    plain = SIGReg(num_directions=512).eval()(z[:200]).item()
    floor = sigreg_floor(sample_size=200, sample_size_scale=100.0)
    assert scaled / plain == pytest.approx(floor / sigreg_floor(), rel=1e-4)
    with pytest.raises(ValueError, match="pass sample_size"):
        sigreg_floor(sample_size_scale=100.0)


# ----------------------------------------------------------------------------------------------------------- pictures


def test_patch_pca_separates_two_kinds_of_patches(generator):
    direction = torch.randn(32, generator=generator)
    kind = (torch.arange(4 * 9) % 2).view(4, 9, 1)
    features = 5 * kind * direction + 0.1 * torch.randn(4, 9, 32, generator=generator)
    colors = patch_pca(features)
    assert colors.shape == (4, 9, 3) and 0 <= colors.min() and colors.max() <= 1
    first = colors[..., 0]
    gap = (first[kind.squeeze(-1) == 0].mean() - first[kind.squeeze(-1) == 1].mean()).abs()
    assert gap > 0.9


def test_patch_pca_runs_from_the_first_to_the_last_percentile():
    ramp = torch.arange(1000.0)[:, None] * torch.tensor([3.0, 4.0])
    first = patch_pca(ramp.view(10, 100, 2), num_components=1).flatten()
    assert first.eq(0).sum() == first.eq(1).sum() == 10
    assert first[(first > 0) & (first < 1)].diff().abs().max() < 0.0011


def test_pictures_are_written(tmp_path, generator):
    images = [Image.new("RGB", (16, 16), color) for color in ("red", "green", "blue")]
    log_history = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"eval_loss": 1.0}]
    plot_losses(log_history, tmp_path / "new" / "loss.png")
    plot_patch_pca(images, torch.randn(3, 6, 8, generator=generator), tmp_path / "pca.png", grid=(2, 3))
    plot_nearest(["a", "b"], images, torch.randn(3, 2, generator=generator), tmp_path / "nearest.png")
    for name in ("new/loss.png", "pca.png", "nearest.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100 and len(picture.convert("RGB").getcolors(1 << 20)) > 2
    with pytest.raises(ValueError, match="6 patches do not fill a grid of 2 x 2"):
        plot_patch_pca(images, torch.randn(3, 6, 8, generator=generator), tmp_path / "pca.png")


def test_patch_similarity_is_the_cosine_with_the_patch(generator):
    features = torch.randn(2, 6, 8, generator=generator)
    found = patch_similarity(features, image=1, patch=4)
    for image in range(2):
        for patch in range(6):
            expected = torch.cosine_similarity(features[image, patch], features[1, 4], dim=0)
            assert found[image, patch].item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_patch_is_outlined_above_what_is_similar_to_it(tmp_path, generator):
    images = [Image.new("RGB", (30, 20), color) for color in ("red", "green")]
    features = torch.randn(2, 6, 8, generator=generator)
    figure = plot_patch_similarity(images, features, (1, 1), tmp_path / "similarity.png", grid=(2, 3))
    assert (tmp_path / "similarity.png").stat().st_size > 1000
    *pictures, scale = figure.axes
    assert scale.axison and scale.get_ylabel() == "cosine"
    shown = torch.stack([torch.from_numpy(axis.images[0].get_array().data) for axis in pictures[2:]])
    torch.testing.assert_close(shown.flatten(1), patch_similarity(features, 0, 4))
    outlines = [[patch.get_bbox().bounds for patch in axis.patches] for axis in pictures]
    assert outlines == [[(9.5, 9.5, 10, 10)], [], [(0.5, 0.5, 1, 1)], []]
    for patch in ((2, 0), (0, 3), (-1, 0)):
        with pytest.raises(ValueError, match=r"There is no patch \(.*\) in a grid of 2 x 3"):
            plot_patch_similarity(images, features, patch, grid=(2, 3))
    with pytest.raises(ValueError, match="6 patches do not fill a grid of 2 x 2"):
        plot_patch_similarity(images, features, (0, 0))


def test_nearest_images_are_in_order():
    images = [Image.new("RGB", (2, 2), (i, 0, 0)) for i in range(3)]
    caption = "a caption that is longer than its image is wide"
    figure = plot_nearest([caption, "b"], images, torch.tensor([[0.1, 0.9], [0.5, 0.2], [0.3, 0.4]]))
    figure.draw_without_rendering()
    drawn = figure.axes
    shown = [int(axis.images[0].get_array()[0, 0, 0]) for axis in drawn]
    assert shown == [1, 2, 0, 0, 2, 1]
    assert [axis.texts[0].get_text() for axis in (drawn[0], drawn[3])] == [caption, "b"]
    # the caption makes no room between columns, and belongs to what notebooks show
    left = [axis.get_position().x0 for axis in drawn[:3]]
    assert left[1] - left[0] == pytest.approx(left[2] - left[1])
    assert drawn[0].texts[0].get_in_layout()
