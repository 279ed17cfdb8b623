"""What the tabs show, as functions: each compared with its plain form, and each figure drawn."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from explore.conftest import photo
from levljepa_hf import SIGReg
from levljepa_hf.evaluation import load_encoder
from levljepa_hf.evaluation.zero_shot import zero_shot_accuracy
from levljepa_hf.explore import (
    Descent,
    agreement,
    classify,
    least_gaussian_directions,
    make_cloud,
    nearest_photos,
    neighbours,
    patch_tokens,
    pca_pictures,
    plot_directions,
    plot_patches,
    plot_run,
    plot_search,
    plot_sigreg,
    plot_space,
    plot_zero_shot,
    project,
    read_curves,
    search_scores,
    similar_patches,
    space,
    text_on_patches,
)
from levljepa_hf.explore.sigreg import SHAPES, characteristic_function, direction_statistics, trajectory
from levljepa_hf.explore.zero_shot import classifier, classify_image, logit_scale
from levljepa_hf.model.modeling_levljepa import similarity


def drawn(figure: Figure) -> int:
    """The number of its axes, after it was drawn."""
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    return len(figure.axes)


# ------------------------------------------------------------------------------------------------------------ patches


def test_patches_see_the_whole_photo_in_its_proportions(seen) -> None:
    tokens = patch_tokens(seen["a"].encoder, photo(0, (120, 60)), 64)
    assert tokens.size == (32, 64) and tokens.grid == (4, 8) and tokens.keeps_aspect
    model, processor = seen["a"].encoder.vision_model, seen["a"].encoder.image_processor("default")
    pixels = processor(
        photo(0, (120, 60)).resize((64, 32), 2), do_resize=False, do_center_crop=False, return_tensors="pt"
    )
    with torch.no_grad():
        plain = model(pixels["pixel_values"]).last_hidden_state[0, 1:]
    torch.testing.assert_close(tokens.tokens, plain, atol=0.15, rtol=0)  # resized by other code
    assert patch_tokens(seen["a"].encoder, photo(0, (120, 60))).size == (16, 32)  # the model's own size
    assert patch_tokens(seen["coarse"].encoder, photo(0, (120, 60)), 64).grid == (2, 4)
    assert patch_tokens(seen["a"].encoder, photo(0, (120, 60)), 60).size == (32, 64)  # the nearest whole patches
    with pytest.raises(ValueError, match="size=4096: .*16 to 2048"):
        patch_tokens(seen["a"].encoder, photo(0), 4096)


def test_a_model_of_one_size_sees_the_photo_squeezed(tmp_path) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)
    tokens = patch_tokens(load_encoder(f"hf:{tmp_path}"), photo(0, (120, 60)), 64)
    assert tokens.grid == (4, 4) and tokens.size == (32, 32) and not tokens.keeps_aspect


def test_similar_patches_are_cosines_with_the_one_at_the_point(seen) -> None:
    encoder = seen["a"].encoder
    photos = [patch_tokens(encoder, photo(i, size), 64) for i, size in ((0, (60, 44)), (1, (40, 60)))]
    maps = similar_patches(photos, (0.99, 0.3))
    rows, columns = photos[0].grid
    assert photos[0].patch_at((0.99, 0.3)) == (int(0.3 * rows), columns - 1)
    here = photos[0].tokens[int(0.3 * rows) * columns + columns - 1]
    for one, found in zip(photos, maps, strict=True):
        assert found.shape == one.grid
        torch.testing.assert_close(found.flatten(), F.cosine_similarity(one.tokens, here[None]))
    assert maps[0].max() == maps[0][int(0.3 * rows), columns - 1]
    assert [one.shape for one in pca_pictures(photos)] == [(*one.grid, 3) for one in photos]
    with pytest.raises(ValueError, match="outside"):
        similar_patches(photos, (1.2, 0))


def test_words_meet_patches_through_the_heads(seen) -> None:
    encoder = seen["a"].encoder
    tokens = patch_tokens(encoder, photo(0), 64)
    (found,) = text_on_patches(encoder, [tokens], "a red fox")
    model = encoder.model
    with torch.no_grad():
        z, text = model.vision_projection(tokens.tokens), encoder.embed_texts(["a red fox"])
    torch.testing.assert_close(found.flatten(), F.cosine_similarity(z, text.predictions))
    (plain,) = text_on_patches(seen["bare"].encoder, [patch_tokens(seen["bare"].encoder, photo(0), 64)], "a red fox")
    assert plain.shape == tokens.grid  # without predictors, by the readout zeroshot
    for name, error in (("tower", "no text tower"), ("a", "no words")):
        with pytest.raises(ValueError, match=error):
            text_on_patches(seen[name].encoder, [tokens], "a fox" if name == "tower" else " ")


def test_the_figure_of_patches(seen) -> None:
    encoders = [seen["a"].encoder, seen["coarse"].encoder]
    assert drawn(plot_patches(encoders, [photo(0), photo(1)], (0.2, 0.7), 48)) == 5 * 2 + 2
    assert drawn(plot_patches(encoders[:1], [photo(0)], text="a fox")) == 3 + 1


# -------------------------------------------------------------------------------------------------------------- space


def test_a_projection_is_kept_by_content(seen, tmp_path, monkeypatch) -> None:
    features = seen["a"].features["cls"]
    cache = tmp_path / "features"
    first = {method: project(features, method, cache_dir=cache) for method in ("pca", "tsne")}
    assert all(points.shape == (24, 2) and points.abs().max() <= 1 for points in first.values())
    monkeypatch.setattr(space, "_computed", lambda *_: pytest.fail("it was there"))
    for method, points in first.items():
        assert torch.equal(project(features.clone(), method, cache_dir=cache), points)
    monkeypatch.undo()
    assert not torch.equal(project(features.flip(0), cache_dir=cache), first["pca"])
    for path in (tmp_path / "projections").iterdir():
        path.write_bytes(b"broken")
    torch.testing.assert_close(project(features, cache_dir=cache), first["pca"])
    with pytest.raises(ValueError, match="method='ica' is not at hand: use one of pca, tsne"):
        project(features, "ica")
    with pytest.raises(ValueError, match="at least 3"):
        project(features[:2])


def test_pca_is_that_of_the_covariance(seen) -> None:
    unit = F.normalize(seen["a"].features["cls"], dim=1).double()
    centred = unit - unit.mean(0)
    plain = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
    found = project(seen["a"].features["cls"], cache_dir=None).double()
    for axis in range(2):
        assert abs(torch.corrcoef(torch.stack([plain[:, axis], found[:, axis]]))[0, 1]) > 0.999


def test_a_second_map_is_turned_like_the_first() -> None:
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    like = project(features, cache_dir=None)
    mirrored = like.flip(1) * torch.tensor([1.0, -1.0])
    turned = project(features, like=mirrored, cache_dir=None)
    cosine = F.cosine_similarity((turned - turned.mean(0)).flatten(), (mirrored - mirrored.mean(0)).flatten(), dim=0)
    assert cosine > 0.999


def test_agreement_is_the_share_of_common_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 30, 6, generator=generator)
    near = [F.cosine_similarity(z[:, None], z[None], dim=2).fill_diagonal_(-9).topk(5).indices for z in (a, b)]
    plain = [len(set(x) & set(y)) / 5 for x, y in zip(near[0].tolist(), near[1].tolist(), strict=True)]
    assert agreement(a, b, 5, chunk_size=7).tolist() == pytest.approx(plain)
    assert agreement(a, 3 * a).tolist() == [1.0] * 30


def test_the_nearest_prompt(seen) -> None:
    prompts = ["an owl", "a red fox", "rain"]
    one, texts = seen["a"], seen["a"].encoder.embed_texts(prompts)
    plain = similarity(*one.embeddings[:1], texts.embeds, one.embeddings.predictions, texts.predictions, "avg")
    assert torch.equal(space.nearest_prompt(one, prompts), plain.argmax(1))
    with pytest.raises(ValueError, match="no prompts"):
        space.nearest_prompt(one, [])
    with pytest.raises(ValueError, match="no text tower"):
        space.nearest_prompt(seen["tower"], prompts)


def test_the_figures_of_space(seen, photos) -> None:
    pair = [seen["a"], seen["b"]]
    for options in ({}, {"color": "prompt", "prompts": ["owl", "fox"]}, {"feature": "mean"}):
        assert drawn(plot_space(pair, photos, cache_dir=None, **options)) == 2
    assert drawn(plot_space(pair, photos, color="agreement", cache_dir=None)) == 3
    for options, error in (
        ({"color": "size"}, "color='size'"),
        ({"feature": "image_embeds"}, "has no image_embeds"),
        ({"color": "agreement"}, "two models"),
    ):
        with pytest.raises(ValueError, match=error):
            plot_space([seen["tower"]], photos, cache_dir=None, **options)


# ------------------------------------------------------------------------------------------------------------- search


def test_search_ranks_by_similarity(seen, photos) -> None:
    one, text = seen["a"], seen["a"].encoder.embed_texts(["a red fox"])
    plain = similarity(one.embeddings.embeds, text.embeds, one.embeddings.predictions, text.predictions, "proj")[:, 0]
    indices, scores = nearest_photos(one, "a red fox", 5, readout="proj")
    assert indices.tolist() == plain.argsort(descending=True)[:5].tolist()
    torch.testing.assert_close(scores, plain.sort(descending=True).values[:5])
    indices, scores = nearest_photos(one, 7, 3)
    assert indices[0] == 7 and scores[0] == pytest.approx(1)
    other = search_scores(one, photos.open(7), transform=photos.transform)  # as if it were uploaded
    torch.testing.assert_close(other, search_scores(one, 7), atol=1e-5, rtol=0)
    cropped = search_scores(one, photos.open(7), transform="default")
    assert (cropped - other).abs().max() > 1e-3
    near, cosines = neighbours(one, 4, chunk_size=5)
    alike = search_scores(one, 7)
    alike[7] = -9
    assert near[7].tolist() == alike.argsort(descending=True)[:4].tolist()
    torch.testing.assert_close(cosines[7], alike.sort(descending=True).values[:4])


@pytest.mark.parametrize(
    ("model", "query", "options", "error"),
    [
        ("a", "  ", {}, "nothing to search for"),
        ("a", 99, {}, "There is no photo 99"),
        ("tower", "a fox", {}, "no text tower"),
        ("bare", "a fox", {"readout": "avg"}, "'avg' needs predictors"),
        ("bare", 0, {"feature": "predictions"}, "has no predictions: it has"),
    ],
)
def test_what_cannot_be_searched_is_said(seen, model, query, options, error) -> None:
    with pytest.raises(ValueError, match=error):
        nearest_photos(seen[model], query, **options)


def test_the_figure_of_search(seen, photos) -> None:
    assert drawn(plot_search([seen["a"], seen["bare"]], photos, "a red fox", 4)) == 8
    assert drawn(plot_search([seen["tower"]], photos, photo(0), 4)) == 4


# ---------------------------------------------------------------------------------------------------------- zero-shot


def test_zero_shot_is_that_of_the_evaluation(seen, photos) -> None:
    one = seen["a"]
    result = classify(one, photos, ["a red fox", "Red Fox", "owl"][1:], "a drawing of a {}.", "proj_text")
    texts = classifier(one.encoder, ["owl", "red_fox"], "a drawing of a {}.")
    plain = zero_shot_accuracy(one.embeddings, texts, photos.labels, ["proj_text"], (1,))
    assert result.accuracy == pytest.approx(plain["proj_text_top1"])
    assert result.class_names == ("Red Fox", "owl") and result.labels.tolist() == [1] * 12 + [0] * 12
    guessed = result.probabilities.argmax(1)
    plain = [[int(((result.labels == i) & (guessed == j)).sum()) for j in range(2)] for i in range(2)]
    assert result.confusion.tolist() == plain
    scores = similarity(
        one.embeddings.embeds, *[classifier(one.encoder, ["Red Fox", "owl"]).embeds], readout="zeroshot"
    )
    found = classify(one, photos, ["Red Fox", "owl"], readout="zeroshot").probabilities
    torch.testing.assert_close(found, (20.0 * scores).softmax(1))
    single = classify_image(one.encoder, photos.open(3), ["Red Fox", "owl"], readout="zeroshot")
    torch.testing.assert_close(single, found[3], atol=1e-4, rtol=0)


def test_photos_of_other_classes_do_not_count(seen, photos) -> None:
    result = classify(seen["a"], photos, ["owl", "badger", "newt"])
    assert result.labels.tolist() == [0] * 12 + [-1] * 12 and result.confusion.sum() == 12
    none = classify(seen["a"], photos, ["badger", "newt"])
    assert none.accuracy is None and none.confusion is None and none.labels is None
    for names, template, error in (
        (["owl"], "a {}", "at least two different"),
        (["owl", "Owl "], "a {}", "at least two different"),
        (["owl", "fox"], "a photo", "no place for the class name"),
    ):
        with pytest.raises(ValueError, match=error):
            classify(seen["a"], photos, names, template)


def test_the_scale_is_the_models(seen) -> None:
    assert logit_scale(seen["a"].encoder) == seen["a"].encoder.model.config.logit_scale
    assert logit_scale(seen["tower"].encoder) == 20


def test_the_figures_of_zero_shot(seen, photos) -> None:
    assert drawn(plot_zero_shot(seen["a"], photos)) == 2
    assert drawn(plot_zero_shot(seen["a"], photos, ["badger", "owl"], photo=3)) == 1
    with pytest.raises(ValueError, match="name a photo"):
        plot_zero_shot(seen["a"], photos, ["badger", "newt"])


# ------------------------------------------------------------------------------------------------------------- SIGReg


def test_a_step_is_one_down_the_gradient_of_sigreg() -> None:
    descent = Descent(make_cloud("ring", 50), num_directions=8, num_knots=9, step_size=0.3)
    before, floor = descent.cloud.clone(), descent.floor
    (frame,) = descent.run(1)
    z = before.requires_grad_()
    SIGReg(8, 9, implementation="plain")(z, descent.directions).backward()
    torch.testing.assert_close(descent.cloud, (before - 0.3 * z.grad).detach())
    assert torch.equal(frame, descent.cloud) and len(descent.values) == 2
    assert descent.values[1] == pytest.approx(SIGReg(512, 9).eval()(descent.cloud).item())
    directions = descent.directions
    descent.run(1)
    assert not torch.equal(descent.directions, directions)  # fresh ones
    assert 0.9 < floor < 1.2


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_becomes_normal(shape: str) -> None:
    cloud = make_cloud(shape, 300)
    assert cloud.shape == (300, 2) and torch.equal(cloud, make_cloud(shape, 300))
    frames, descent = trajectory(shape, (0, 5, 60), 300)
    assert len(frames) == 3 and descent.values[-1] < (2.5 if shape == "heavy tails" else 1)
    assert descent.values[-1] < descent.values[0]


def test_a_cloud_of_more_dimensions_is_shown_in_two() -> None:
    cloud = make_cloud("line", 100, dim=8)
    descent = Descent(cloud)
    assert descent.shown().shape == (100, 2)
    assert descent.shown().var(0).sum() > 0.9 * cloud.var(0).sum()  # the plane of the shape, wherever it was turned to


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: make_cloud("star"), "shape='star'"),
        (lambda: make_cloud("ring", 5000), "num_samples=5000 must be from 8 to 4000"),
        (lambda: Descent(make_cloud("ring"), step_size=0), "step_size=0"),
        (lambda: Descent(make_cloud("ring"), num_knots=1), "num_knots=1"),
        (lambda: Descent(torch.full((8, 2), math.inf)).run(1), "take a smaller one"),
        (lambda: least_gaussian_directions(torch.randn(2, 4)), "at least 3"),
    ],
)
def test_what_is_no_cloud(make, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        make()


def test_the_statistic_of_each_direction() -> None:
    z = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) ** 3
    directions = F.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(1)), dim=0)
    plain = [SIGReg(1)(z, directions[:, [s]]).item() for s in range(7)]
    assert direction_statistics(z, directions).tolist() == pytest.approx(plain, rel=1e-4)
    real, imaginary = characteristic_function(z[:, 0], 5, 2.0)
    assert real[0] == 1 and imaginary[2] == pytest.approx(z[:, 0].sin().mean().item(), abs=1e-6)


def test_the_least_gaussian_direction_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(600, 12, generator=generator)
    z[:, 3] = z[:, 3].sign()  # two spikes, as wide as the normal
    turn = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    found = least_gaussian_directions(z @ turn, k=3, num_random=128)
    assert abs(found.directions[:, 0] @ turn[3]) > 0.95
    assert found.statistics[0] > 3 * found.random.max() and found.statistics.tolist() == sorted(
        found.statistics.tolist(), reverse=True
    )
    torch.testing.assert_close(found.directions.T @ found.directions, torch.eye(3), atol=1e-4, rtol=0)
    assert found.projections.shape == (600, 3) and drawn(plot_directions(found)) == 4


def test_the_figure_of_sigreg() -> None:
    descent = Descent(make_cloud("spiral", 100, dim=4))
    descent.run(3)
    assert drawn(plot_sigreg(descent)) == 4


# ---------------------------------------------------------------------------------------------------------------- run


def test_the_curves_of_runs(tmp_path) -> None:
    history = [{"step": i, "epoch": 0.1, "loss": 3 - i / 100, "sigreg_text": math.nan} for i in (20, 40)]
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        state = {"global_step": 40, "max_steps": 60, "log_history": history}
        (tmp_path / name / "trainer_state.json").write_text(json.dumps(state))
    found = read_curves([tmp_path / "one", tmp_path / "none"])
    one, none = found["runs"]
    assert one["curves"]["loss"] == ([20, 40], [2.8, 2.6]) and "sigreg_text" not in one["curves"]
    assert one["step"] == 40 and one["max_steps"] == 60 and "is no folder" in none["error"]
    assert found["panels"]["Loss and terms"] == {"names": ["loss"], "logarithmic": False}
    assert read_curves([tmp_path / "none"])["panels"] == {}
    assert drawn(plot_run([tmp_path / "one", tmp_path / "other"])) == 1
    with pytest.raises(ValueError, match="is no folder"):
        plot_run([tmp_path / "none"])
