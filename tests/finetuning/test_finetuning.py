"""Fine-tuning, piece by piece: transforms, datasets, what each mode trains, rates, weights, figures, bad input."""

import copy

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, jaccard_score, top_k_accuracy_score
from sklearn.utils.class_weight import compute_class_weight
from timm.optim import param_groups_layer_decay
from torch.nn import functional as F
from transformers import EvalPrediction

from levljepa_hf import (
    LeVLJEPAConfig,
    LeVLJEPAForImageClassification,
    LeVLJEPAForSemanticSegmentation,
    LeVLJEPAImageProcessor,
    LeVLJEPAVisionModel,
)
from levljepa_hf.evaluation import EvaluationSplit, load_split
from levljepa_hf.finetuning import (
    ClassificationArguments,
    ClassificationDataset,
    ClassificationMetrics,
    FineTuningCollator,
    SegmentationArguments,
    SegmentationDataset,
    SegmentationMetrics,
    add_lora,
    build_trainer,
    check_classes,
    check_train_classes,
    classification_transform,
    count_classes,
    draw_confusion,
    draw_segmentation,
    freeze_tower,
    layer_decay_groups,
    load_model,
    predicted_maps,
    segmentation_transform,
)
from levljepa_hf.finetuning.data import ClassBalancedSampler
from levljepa_hf.finetuning.modes import WeightedLoss, class_weights
from levljepa_hf.model.released import save_released

SIDE = 32
NAMES = ("red", "green", "blue")
COLORS = ((220, 30, 30), (30, 220, 30), (30, 30, 220))


@pytest.fixture
def image_processor() -> LeVLJEPAImageProcessor:
    return LeVLJEPAImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


@pytest.fixture
def square_processor() -> LeVLJEPAImageProcessor:
    return LeVLJEPAImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False)


def labelled(labels=(0, 1, 2, 0, 1, 2), name: str = "colors/train", **fields) -> EvaluationSplit:
    """Plain images, whose colours are their classes."""
    rng = np.random.default_rng(len(labels))
    images = []
    for label in labels:
        pixels = np.clip(np.array(COLORS[label % 3]) + rng.normal(0, 20, (40, 48, 3)), 0, 255)
        images.append(Image.fromarray(pixels.astype(np.uint8)))
    return EvaluationSplit(name, images, labels=list(labels), **{"class_names": NAMES, **fields})


def masked(count: int = 4, name: str = "halves/train", **fields) -> EvaluationSplit:
    """The colours of two classes side by side, and a corner that is void."""
    images, masks = [], []
    for i in range(count):
        mask = np.full((40, 48), i % 3, dtype=np.uint8)
        mask[:, 24:] = (i + 1) % 3
        images.append(Image.fromarray(np.array(COLORS, dtype=np.uint8)[mask]))
        mask[:4, :4] = 255
        masks.append(mask)
    return EvaluationSplit(name, images, masks=masks, **{"class_names": NAMES, **fields})


def arguments(tmp_path, task: str = "classification", **changes):
    argument_class = {"classification": ClassificationArguments, "segmentation": SegmentationArguments}[task]
    defaults = {"per_device_train_batch_size": 2, "max_steps": 1, "use_cpu": True, "report_to": "none"}
    defaults |= {"disable_tqdm": True, "logging_steps": 1}
    return argument_class(str(tmp_path / "run"), **{**defaults, **changes})


def config_of(**vision) -> LeVLJEPAConfig:
    return LeVLJEPAConfig.from_preset("debug", vision_config=vision)


def new_model(task: str = "classification", **vision):
    torch.manual_seed(0)
    return load_model(task, None, NAMES, config=config_of(**vision))


# ---------------------------------------------------------------------------------------------------------- transforms


def test_image_and_mask_are_cropped_and_flipped_as_one(square_processor):
    """The image spells out its mask, so after the transform it still does, pixel by pixel."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 12, (SIDE, SIDE), dtype=np.uint8)
    image = Image.fromarray(np.stack([mask * 20] * 3, axis=-1))
    names = tuple("abcdefghijkl")
    split = EvaluationSplit("spelled", [image] * 16, masks=[mask] * 16, class_names=names)
    transform = segmentation_transform(square_processor, (1.0, 1.0), photometric_probability=0)
    flipped = 0
    for sample in (SegmentationDataset(split, square_processor, transform)[i] for i in range(16)):
        mean, std = (torch.tensor(v)[:, None, None] for v in (square_processor.image_mean, square_processor.image_std))
        spelled = ((sample["pixel_values"] * std + mean) * 255 / 20).round().long()
        assert torch.equal(spelled, sample["labels"].expand(3, -1, -1))
        flipped += bool((sample["labels"].numpy() == mask[:, ::-1]).all())
    assert 2 < flipped < 14


def test_scale_jitter_pads_with_void_and_the_mean(square_processor):
    split = masked(1)
    found = set()
    for epoch in range(30):
        transform = segmentation_transform(square_processor, (0.4, 2.5), photometric_probability=0, void=255)
        dataset = SegmentationDataset(split, square_processor, transform)
        dataset.set_epoch(epoch)
        sample = dataset[0]
        pixels, labels = sample["pixel_values"], sample["labels"]
        assert pixels.shape == (3, SIDE, SIDE) and labels.shape == (SIDE, SIDE)
        assert set(labels.unique().tolist()) <= {0, 1, 255}
        padding = (pixels.abs() < 0.02).all(dim=0)  # the mean, normalised
        assert (labels[padding] == 255).all()
        found.add(bool(padding.any()))
        color = pixels[:2].argmax(dim=0)  # red or green, but for the border that is resampled
        assert (color == labels)[labels != 255].float().mean() > 0.9
    assert found == {True, False}


def test_classification_transforms(image_processor):
    image = labelled().images[0]
    for augmentation in ("none", "trivial", "randaugment"):
        transform = classification_transform(image_processor, augmentation=augmentation)
        sample = ClassificationDataset(labelled(), image_processor, transform)[0]
        assert type(sample["pixel_values"]) is torch.Tensor and sample["pixel_values"].shape == (3, SIDE, SIDE)
    plain = classification_transform(image_processor, (1.0, 1.0), 0, "none")
    dataset = ClassificationDataset(labelled(), image_processor, plain)
    prepared = image_processor(image, return_tensors="pt")["pixel_values"][0]
    assert (dataset[0]["pixel_values"].mean(dim=(1, 2)) - prepared.mean(dim=(1, 2))).abs().max() < 0.05


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (classification_transform, {"crop_scale": (0.5, 1.5)}, "crop_scale=.0.5, 1.5. must be two shares"),
        (
            classification_transform,
            {"augmentation": "auto"},
            "augmentation='auto' is unknown: use one of none, trivial",
        ),
        (classification_transform, {"flip_probability": 2}, "flip_probability=2 must be between 0 and 1"),
        (segmentation_transform, {"scale_range": (2, 1)}, "scale_range=.2, 1. must be two factors"),
        (segmentation_transform, {"photometric_probability": -1}, "photometric_probability=-1 must be between"),
    ],
)
def test_options_of_the_transforms_are_checked(image_processor, build, options, message):
    with pytest.raises(ValueError, match=message):
        build(image_processor, **options)


# ------------------------------------------------------------------------------------------------------------ datasets


def test_what_is_random_follows_from_seed_epoch_and_sample(image_processor):
    transform = classification_transform(image_processor)
    first, second, other = (ClassificationDataset(labelled(), image_processor, transform, seed) for seed in (0, 0, 1))
    state = torch.get_rng_state()
    a = first[3]["pixel_values"]
    assert torch.equal(torch.get_rng_state(), state), "the state outside has not changed"
    torch.rand(5)
    assert torch.equal(second[3]["pixel_values"], a)
    assert not torch.equal(other[3]["pixel_values"], a)
    assert not torch.equal(first[2]["pixel_values"], a)
    first.set_epoch(1)
    assert not torch.equal(first[3]["pixel_values"], a)


def test_without_a_transform_the_processor_prepares(image_processor, square_processor):
    split = labelled()
    sample = ClassificationDataset(split, image_processor)[4]
    expected = image_processor(split.images[4], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(sample["pixel_values"], expected) and sample["labels"] == 1 and len(sample) == 2

    split = masked(name="halves/test")
    sample = SegmentationDataset(split, square_processor)[1]
    expected = square_processor(split.images[1], segmentation_maps=split.masks[1], return_tensors="pt")
    assert torch.equal(sample["pixel_values"], expected["pixel_values"][0])
    assert torch.equal(sample["labels"], expected["labels"][0]) and set(sample["labels"].unique().tolist()) == {
        1,
        2,
        255,
    }


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_images_of_any_mode_become_rgb(image_processor, mode):
    split = labelled((0, 1))
    split.images = [
        image.convert("L").convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
        for image in split.images
    ]
    train = ClassificationDataset(split, image_processor, classification_transform(image_processor))
    test = ClassificationDataset(split, image_processor)
    assert train[0]["pixel_values"].shape == test[0]["pixel_values"].shape == (3, SIDE, SIDE)


def test_images_are_turned_upright(square_processor, tmp_path):
    split = masked(1)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    split.images[0].rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    split.images = [str(tmp_path / "turned.png")]
    assert torch.equal(
        SegmentationDataset(split, square_processor)[0]["pixel_values"],
        SegmentationDataset(masked(1), square_processor)[0]["pixel_values"],
    )


def test_void_of_the_split_becomes_that_of_the_model(square_processor):
    split = masked(1, void=9)
    split.masks = [np.where(split.masks[0] == 255, 9, split.masks[0])]
    assert set(SegmentationDataset(split, square_processor, void=-100)[0]["labels"].unique().tolist()) == {0, 1, -100}
    split.masks, split.void = [np.clip(split.masks[0], 0, 2)], None
    assert set(SegmentationDataset(split, square_processor)[0]["labels"].unique().tolist()) == {0, 1, 2}


def test_training_batches_are_mixed_and_others_not(image_processor):
    split = labelled()
    train = ClassificationDataset(split, image_processor, classification_transform(image_processor))
    test = ClassificationDataset(split, image_processor)
    collate = FineTuningCollator(3, mixup_alpha=1.0, cutmix_alpha=1.0)
    batch, again = (collate([train[i] for i in range(6)]) for _ in range(2))
    assert set(batch) == {"pixel_values", "labels"} and batch["labels"].shape == (6, 3)
    torch.testing.assert_close(batch["labels"].sum(dim=1), torch.ones(6))
    assert torch.equal(batch["pixel_values"], again["pixel_values"])
    plain = FineTuningCollator(3)([train[i] for i in range(6)])
    assert plain["labels"].tolist() == split.labels and not torch.equal(plain["pixel_values"], batch["pixel_values"])
    assert collate([test[i] for i in range(6)])["labels"].tolist() == split.labels
    with pytest.raises(ValueError, match="mixup_alpha=-1 and cutmix_alpha=0.0 must be 0 or more"):
        FineTuningCollator(3, mixup_alpha=-1)


def test_classes_are_drawn_equally_often():
    labels = [0] * 900 + [1] * 90 + [4] * 10
    sampler = ClassBalancedSampler(labels, seed=1)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 1000 and drawn == list(ClassBalancedSampler(labels, seed=1))
    counts = np.bincount(np.array(labels)[drawn], minlength=5)
    assert counts[[2, 3]].sum() == 0 and (abs(counts[[0, 1, 4]] - 1000 / 3) < 60).all()
    assert set(np.array(drawn)[np.array(labels)[drawn] == 4]) == set(range(990, 1000)), "each sample of a class"
    sampler.set_epoch(1)
    assert list(sampler) != drawn


def test_counts_of_classes():
    assert count_classes(labelled((0, 2, 2))).tolist() == [1, 0, 2]
    counts = count_classes(masked(1), show_progress=False)
    assert counts.tolist() == [40 * 24 - 16, 40 * 24, 0]


# --------------------------------------------------------------------------------------------------------------- modes


def saved_numbers(model, batch) -> int:
    """How many numbers a forward pass keeps for the backward pass, but for parameters."""
    own, kept = {p.data_ptr() for p in model.parameters()}, []

    def keep(tensor):
        if tensor.data_ptr() not in own:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**batch).loss.backward()
    return sum(kept)


def test_a_frozen_tower_keeps_no_activations_and_drops_nothing():
    model, _ = new_model(drop_path_rate=0.5)
    batch = {"pixel_values": torch.randn(4, 3, SIDE, SIDE), "labels": torch.tensor([0, 1, 2, 0])}
    full = saved_numbers(model.train(), batch)
    frozen = freeze_tower(copy.deepcopy(model)).train()
    hidden = model.config.vision_config.hidden_size
    assert saved_numbers(frozen, batch) < 4 * (hidden + 40) < full / 20
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]
    first, second = (frozen.train()(batch["pixel_values"]).logits for _ in range(2))
    assert torch.equal(first, second), "no drop path in training mode"
    assert not torch.equal(*(model.train()(batch["pixel_values"]).logits for _ in range(2)))
    assert frozen.classifier.training and not frozen.vision_model.timm_model.blocks[0].training


def test_lora_adapts_every_linear_layer_and_trains_the_classifier(tmp_path):
    peft = pytest.importorskip("peft")
    model, _ = new_model()
    base = copy.deepcopy(model)
    tuned = add_lora(model, rank=2, alpha=4, dropout=0.1)
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    adapted = {name.split(".lora_A")[0].split("vision_model.")[-1] for name in trained if "lora_A" in name}
    linear = {n for n, m in base.vision_model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert adapted == linear and len(linear) == 4 * base.config.vision_config.num_hidden_layers
    assert {name for name in trained if "lora_" not in name} == {
        f"base_model.model.classifier.modules_to_save.default.{name}" for name in ("weight", "bias")
    }
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    pixels, labels = torch.randn(4, 3, SIDE, SIDE), torch.tensor([0, 1, 2, 0])
    for _ in range(3):
        tuned.train()(pixel_values=pixels, labels=labels).loss.backward()
        optimizer.step()
    expected = tuned.eval()(pixel_values=pixels).logits
    assert (expected - base.eval()(pixels).logits).abs().max() > 0.1
    tuned.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(pixel_values=pixels).logits, expected)
    merged = tuned.merge_and_unload()
    assert type(merged) is LeVLJEPAForImageClassification
    torch.testing.assert_close(merged(pixels).logits, expected, atol=1e-4, rtol=1e-4)


def rates(groups, model) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_layer_decay_is_a_factor_from_block_to_block():
    model, _ = new_model(num_hidden_layers=3, num_register_tokens=2)
    found = rates(layer_decay_groups(model, 0.1, 0.05, 0.5), model)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    for name, (rate, decay) in found.items():
        if name.startswith("classifier"):
            layers_below = 0
        elif ".blocks." in name:
            layers_below = 3 - int(name.split(".blocks.")[1].split(".")[0])
        else:
            layers_below = 1 if ".timm_model.norm." in name else 4
        assert rate == pytest.approx(0.1 * 0.5**layers_below), name
        is_matrix = name.endswith("weight") and "norm" not in name
        if not name.endswith("reg_token"):  # versions of timm differ
            assert decay == (0.05 if is_matrix else 0), name


def test_layer_decay_is_timms_own():
    model, _ = new_model()
    vision = model.config.vision_config
    vit = timm.create_model(
        vision.architecture,
        num_classes=3,
        img_size=vision.image_size,
        patch_size=vision.patch_size,
        embed_dim=vision.hidden_size,
        depth=vision.num_hidden_layers,
        num_heads=vision.num_attention_heads,
    )
    groups = param_groups_layer_decay(vit, 0.05, vit.no_weight_decay(), layer_decay=0.7)
    expected = rates([{**group, "lr": group["lr_scale"]} for group in groups], vit)
    found = rates(layer_decay_groups(model, 1.0, 0.05, 0.7), model)
    assert expected == {
        name.replace("vision_model.timm_model.", "").replace("classifier", "head"): value
        for name, value in found.items()
    }


def test_the_trainer_follows_layer_decay(tmp_path):
    model, processor = new_model()
    args = arguments(
        tmp_path, layer_decay=0.5, learning_rate=0.1, adam_beta2=0.9, lr_scheduler_type="linear", max_steps=4
    )
    trainer = build_trainer(model, processor, args, labelled(), labelled(name="colors/test"))
    optimizer = trainer.create_optimizer()
    trainer.create_scheduler(4)
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["betas"] == (0.9, 0.9)
    assert rates(optimizer.param_groups, model)["classifier.weight"][0] == 0.1
    depth = model.config.vision_config.num_hidden_layers
    stem = "vision_model.timm_model.patch_embed.proj.weight"
    assert rates(optimizer.param_groups, model)[stem][0] == pytest.approx(0.1 * 0.5 ** (depth + 1))
    optimizer.step()
    trainer.lr_scheduler.step()
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0.075), "logged is the classifier's"
    assert rates(optimizer.param_groups, model)[stem][0] == pytest.approx(0.075 * 0.5 ** (depth + 1))


@pytest.mark.parametrize("mode", ["linear", "lora"])
def test_other_modes_train_nothing_of_the_tower(tmp_path, mode):
    model, processor = new_model()
    before = {name: p.clone() for name, p in model.vision_model.named_parameters()}
    args = arguments(
        tmp_path, mode=mode, learning_rate=0.1, max_steps=2, save_strategy="no", load_best_model_at_end=False
    )
    trainer = build_trainer(model, processor, args, labelled(), labelled(name="colors/test"))
    weight = dict(model.named_parameters())
    classifier = next(p for name, p in weight.items() if name.startswith("classifier") and p.requires_grad)
    initial = classifier.clone()
    trainer.train()
    assert not torch.equal(classifier, initial)
    after = {
        name.replace("base_layer.", ""): p for name, p in model.vision_model.named_parameters() if "lora_" not in name
    }
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


# ---------------------------------------------------------------------------------------------------------------- loss


def test_class_weights_are_the_usual_balanced_ones():
    labels = np.array([0] * 7 + [1] * 2 + [3])
    weights = class_weights(torch.bincount(torch.from_numpy(labels), minlength=5))
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    np.testing.assert_allclose(weights[[0, 1, 3]], expected)
    assert weights[[2, 4]].tolist() == [0, 0]
    assert weights[torch.from_numpy(labels)].mean() == pytest.approx(1)


def test_the_weighted_loss_is_the_plain_sum():
    torch.manual_seed(0)
    weights, logits, labels = torch.tensor([0.5, 1, 3]), torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    log_p = logits.double().log_softmax(dim=1)
    plain = -sum(weights[label].item() * log_p[i, label] for i, label in enumerate(labels))
    loss = WeightedLoss(weights)
    assert loss({"logits": logits}, labels).item() == pytest.approx(plain.item() / 6, rel=1e-5)
    assert loss({"logits": logits}, labels, num_items_in_batch=24).item() == pytest.approx(plain.item() / 24, rel=1e-5)

    shares = torch.softmax(torch.randn(6, 3), dim=1)
    plain = -(shares.double() * weights * log_p).sum()
    assert loss({"logits": logits}, shares).item() == pytest.approx(plain.item() / 6, rel=1e-5)
    assert loss({"logits": logits}, shares, num_items_in_batch=72).item() == pytest.approx(plain.item() / 24, rel=1e-5)

    maps, truth = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    truth[0, :2] = 255
    log_p = F.interpolate(maps, size=(8, 8), mode="bilinear").double().log_softmax(dim=1)
    plain = -sum(
        weights[truth[n, y, x]].item() * log_p[n, truth[n, y, x], y, x]
        for n, y, x in (truth != 255).nonzero().tolist()
    )
    assert WeightedLoss(weights, 255)({"logits": maps}, truth).item() == pytest.approx(plain.item() / 128, rel=1e-5)
    smooth = WeightedLoss(None, label_smoothing=0.1)({"logits": logits}, labels)
    assert smooth.item() == pytest.approx(F.cross_entropy(logits, labels, label_smoothing=0.1).item(), rel=1e-5)


@pytest.mark.parametrize("case", ["plain", "weights", "mixed", "masks", "masks with weights"])
def test_accumulated_batches_give_the_gradients_of_one(tmp_path, case):
    """One step of SGD on 6 samples at once, and on 3 times 2."""
    after = []
    masks = case.startswith("masks")
    for size, steps in ((6, 1), (2, 3)):
        model, processor = new_model("segmentation" if masks else "classification")
        train = masked(6) if masks else labelled((0, 0, 0, 0, 1, 2))
        args = arguments(
            tmp_path,
            "segmentation" if masks else "classification",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            learning_rate=0.5,
            weight_decay=0,
            optim="sgd",
            max_grad_norm=0,
            lr_scheduler_type="constant",
            class_balance="weights" if "weights" in case else "none",
            save_strategy="no",
            load_best_model_at_end=False,
        )
        transform = None
        if masks:  # the same void in every image, as the plain loss is a mean of means
            transform = segmentation_transform(processor, (2.0, 2.0), 0, 0)
        alpha = 1.0 if case == "mixed" else 0.0
        trainer = build_trainer(
            model, processor, args, train, train_copy(train), transform=transform, mixup_alpha=alpha
        )
        if case == "mixed":  # labels of shares, but the same ones for every size of batch
            trainer.data_collator.mix = share_labels
        trainer.train()
        after.append({name: p.detach().clone() for name, p in model.named_parameters()})
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        after[-1]["loss"] = torch.tensor(logged)
    for name in after[0]:
        if case == "masks":
            torch.testing.assert_close(after[0][name], after[1][name], atol=2e-3, rtol=2e-2, msg=name)
        else:
            torch.testing.assert_close(after[0][name], after[1][name], atol=1e-5, rtol=1e-4, msg=name)


def share_labels(pixels, labels):
    return pixels, 0.7 * F.one_hot(labels, 3).float() + 0.1


def train_copy(split: EvaluationSplit) -> EvaluationSplit:
    test = copy.copy(split)
    test.name = split.name.replace("train", "test")
    return test


def test_mixed_batches_train_with_their_shares(tmp_path):
    model, processor = new_model()
    args = arguments(tmp_path, per_device_train_batch_size=6, save_strategy="no", load_best_model_at_end=False)
    trainer = build_trainer(
        model, processor, args, labelled(), labelled(name="colors/test"), mixup_alpha=1.0, cutmix_alpha=1.0
    )
    trainer.train()
    assert model.config.problem_type == "single_label_classification", "and not several labels an image"
    assert 0.3 < trainer.state.log_history[0]["loss"] < 3


def test_the_sampler_feeds_the_trainer(tmp_path):
    model, processor = new_model()
    args = arguments(tmp_path, class_balance="sampler", per_device_train_batch_size=10)
    train = labelled([0] * 40 + [1] * 5 + [2] * 5)
    trainer = build_trainer(model, processor, args, train, labelled(name="colors/test"))
    batches = [batch["labels"] for batch in trainer.get_train_dataloader()]
    assert len(batches) == 5 and torch.bincount(torch.cat(batches)).min() >= 8
    args = arguments(tmp_path)
    trainer = build_trainer(new_model()[0], processor, args, train, labelled(name="colors/test"))
    drawn = torch.cat([batch["labels"] for batch in trainer.get_train_dataloader()])
    assert torch.bincount(drawn).tolist() == [40, 5, 5], "without it each sample once"


# ------------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")
def test_figures_of_classification(as_array):
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 8), torch.randint(0, 7, (50,))  # no sample of class 7
    metrics = ClassificationMetrics(8)
    for _ in range(2):  # the second evaluation knows nothing of the first
        for start in range(0, 50, 20):
            pair = logits[start : start + 20], labels[start : start + 20]
            pair = tuple(one.numpy() for one in pair) if as_array else pair
            figures = metrics(EvalPrediction(*pair), compute_result=start == 40)
            assert bool(figures) == (start == 40)
    assert figures == {
        "accuracy": pytest.approx((logits.argmax(dim=1) == labels).float().mean().item()),
        "top5_accuracy": pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(8))),
        "mean_per_class_accuracy": pytest.approx(balanced_accuracy_score(labels, logits.argmax(dim=1))),
    }
    assert torch.equal(metrics.labels, labels) and torch.equal(metrics.predicted, logits.argmax(dim=1))
    assert "top5_accuracy" not in ClassificationMetrics(5)(EvalPrediction(logits[:, :5], labels % 5))


def test_figures_of_segmentation():
    """Over the classes of the labels: class 3 is only predicted, and class 4 is nowhere."""
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (6, 8, 8))
    labels[:, 0] = 255
    maps = torch.where(torch.rand(labels.shape) < 0.5, labels % 255, torch.randint(0, 4, labels.shape))
    metrics = SegmentationMetrics(5, 255)
    for _ in range(2):
        assert metrics(EvalPrediction(maps[:4], labels[:4]), compute_result=False) == {}
        figures = metrics(EvalPrediction(maps[4:], labels[4:]), compute_result=True)
    truth, guess = labels[labels != 255], maps[labels != 255]
    assert figures == {
        "mean_iou": pytest.approx(jaccard_score(truth, guess, labels=range(3), average="macro")),
        "mean_accuracy": pytest.approx(np.mean([(guess[truth == k] == k).float().mean() for k in range(3)])),
        "pixel_accuracy": pytest.approx((truth == guess).float().mean().item()),
    }
    logits = torch.randn(2, 5, 2, 2)
    expected = F.interpolate(logits, size=(8, 8), mode="bilinear", align_corners=False).argmax(dim=1)
    assert torch.equal(predicted_maps(logits, labels[:2]), expected)


def test_an_evaluation_scores_what_the_model_says(tmp_path):
    """The Trainer's figures, over uneven batches, are those of the plain predictions."""
    model, processor = new_model("segmentation")
    test = masked(5, "halves/test")
    args = arguments(tmp_path, "segmentation", per_device_eval_batch_size=2)
    trainer = build_trainer(model, processor, args, masked(4), test)
    figures = trainer.evaluate()
    samples = [SegmentationDataset(test, processor)[i] for i in range(5)]
    labels = torch.stack([sample["labels"] for sample in samples])
    with torch.no_grad():
        outputs = model.eval()(torch.stack([sample["pixel_values"] for sample in samples]), labels=labels)
    guess = F.interpolate(outputs.logits, size=(SIDE, SIDE), mode="bilinear").argmax(dim=1)
    valid = labels != 255
    expected = jaccard_score(labels[valid], guess[valid], average=None, labels=[0, 1, 2])
    assert figures["eval_mean_iou"] == pytest.approx(expected.mean())
    draw_segmentation(model, processor, test, tmp_path / "segmentation.png", num_images=2)
    assert (tmp_path / "segmentation.png").stat().st_size > 5000

    model, processor = new_model()
    trainer = build_trainer(model, processor, arguments(tmp_path), labelled(), labelled(name="colors/test"))
    figures = trainer.evaluate()
    pixels = processor(labelled().images, return_tensors="pt")["pixel_values"]
    right = (model.eval()(pixels).logits.argmax(dim=1) == torch.tensor(labelled().labels)).float().mean().item()
    assert figures["eval_accuracy"] == pytest.approx(right)
    draw_confusion(trainer, tmp_path / "confusion.png")
    assert trainer.compute_metrics.labels.tolist() == labelled().labels and (tmp_path / "confusion.png").exists()


# --------------------------------------------------------------------------------------------------------------- model


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_a_model_from_any_checkpoint(model, processor, tmp_path, task):
    model.save_pretrained(tmp_path / "full")
    processor.save_pretrained(tmp_path / "full")
    model.vision_model.save_pretrained(tmp_path / "tower")
    save_released(model, None, tmp_path / "released")
    for name in ("full", "tower", "released"):
        tuned, image_processor = load_model(task, tmp_path / name, NAMES)
        assert tuned.config.id2label == dict(enumerate(NAMES)) and tuned.config.label2id["blue"] == 2
        assert tuned.classifier.out_features == 3
        for key, value in model.vision_model.state_dict().items():
            assert torch.equal(tuned.vision_model.state_dict()[key], value)
        crops = task == "classification"
        assert image_processor.do_center_crop == crops
        pixels = image_processor(Image.new("RGB", (60, 40)), return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 3, SIDE, SIDE)

    scratch, _ = load_model(task, tmp_path / "full", NAMES, from_scratch=True)
    assert scratch.config.vision_config.hidden_size == 32 and scratch.config.name_or_path == ""
    key = "timm_model.blocks.0.attn.qkv.weight"
    assert not torch.equal(scratch.vision_model.state_dict()[key], model.vision_model.state_dict()[key])

    larger = load_model(task, tmp_path / "full", NAMES, image_size=48)[1]
    pixels = larger(Image.new("RGB", (60, 40)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 48, 48) and tuned(pixels).logits.shape[:2] == (1, 3)


def test_a_classifier_is_kept_for_its_own_classes_alone(tmp_path, caplog):
    model, processor = new_model()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert torch.equal(load_model("classification", tmp_path, NAMES)[0].classifier.weight, model.classifier.weight)
    again, _ = load_model("classification", tmp_path, ("cat", "dog", "tree"))
    assert not torch.equal(again.classifier.weight, model.classifier.weight)
    assert again.config.id2label[0] == "cat" and again.classifier.weight.abs().max() > 0
    assert load_model("classification", tmp_path, (*NAMES, "grey"))[0].classifier.out_features == 4
    segmenter, square = load_model("segmentation", tmp_path, NAMES)
    assert not torch.equal(segmenter.classifier.weight, model.classifier.weight)
    assert isinstance(segmenter, LeVLJEPAForSemanticSegmentation) and not square.do_center_crop
    assert torch.equal(
        segmenter.vision_model.timm_model.pos_embed, LeVLJEPAVisionModel.from_pretrained(tmp_path).timm_model.pos_embed
    )


def test_many_classes_leave_room_for_void():
    model, _ = load_model("segmentation", None, [str(i) for i in range(300)], config=config_of())
    assert model.config.semantic_loss_ignore_index == -100
    assert new_model("segmentation")[0].config.semantic_loss_ignore_index == 255


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "detection"}, "Unknown task 'detection': it is one of classification, segmentation"),
        ({"class_names": ["a"]}, "There is one class .'a'., and nothing to tell apart"),
        ({"class_names": []}, "There are no classes"),
        ({"class_names": ["a", "b", "a"]}, "Class names must differ, and 'a' occurs twice"),
        ({"image_size": 50}, "image_size=50 is not divisible by the patch size 8: take 48"),
        ({"config": None}, "Give a checkpoint to start from, or the configuration of a new model, and not both"),
        ({"model_name_or_path": "x"}, "Give a checkpoint to start from, or the configuration of a new model, and not"),
    ],
)
def test_wrong_models_are_refused(options, message):
    given = {"task": "classification", "model_name_or_path": None, "class_names": NAMES, "config": config_of()}
    with pytest.raises(ValueError, match=message):
        load_model(**{**given, **options})


# ----------------------------------------------------------------------------------------------------------- bad input


def test_labels_without_names_are_to_be_contiguous():
    splits = [labelled(labels, name, class_names=None) for labels, name in (((0, 1), "a"), ((2,), "b"), ((1,), "c"))]
    assert check_classes(*splits) == ("0", "1", "2")
    assert all(split.class_names == ("0", "1", "2") for split in splits)
    train, test = (labelled((0, 1, 5), name, class_names=None) for name in ("a/train", "a/test"))
    with pytest.raises(ValueError, match="have no names and are not 0 to 2: they go from 0 to 5.*--class_names"):
        check_classes(train, test)


def test_splits_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="class 2 is 'blue' and 'grey'.*--class_names"):
        check_classes(labelled(), labelled(name="t", class_names=("red", "green", "grey")))
    with pytest.raises(ValueError, match="has no class names: name where they are with --class_names"):
        check_classes(masked(class_names=None), masked(name="t", class_names=None))


def test_classes_without_a_sample_are_named(caplog, monkeypatch):
    warned = []
    monkeypatch.setattr("levljepa_hf.finetuning.trainer.logger.warning", warned.append)
    assert check_train_classes(labelled((0, 2))).tolist() == [1, 0, 1]
    assert warned == ["1 of 3 classes have no sample in colors/train and cannot be learned: green."]
    check_train_classes(labelled())
    assert len(warned) == 1
    with pytest.raises(ValueError, match="colors/train has 1 of 3 classes: training needs two or more"):
        check_train_classes(labelled((1, 1)))
    single = masked(1)
    single.masks = [np.zeros((40, 48), dtype=np.uint8)]
    with pytest.raises(ValueError, match="halves/train has 1 of 3 classes"):
        check_train_classes(single, show_progress=False)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.full((40, 48), 3, dtype=np.uint8),
            "Mask 1 of halves/train has the value 3: they go from 0 to 2",
        ),
        (np.full((40, 48), -1), "has the value -1"),
        (np.zeros((40, 48)), "Mask 1 of halves/train is float64 .40, 48.: it is to have one class number"),
        (np.zeros((40, 48, 3), dtype=np.uint8), "is uint8 .40, 48, 3."),
    ],
)
def test_wrong_masks_stop_before_training(tmp_path, mask, message):
    model, processor = new_model("segmentation")
    train = masked()
    train.masks[1] = mask
    with pytest.raises(ValueError, match=message):
        build_trainer(model, processor, arguments(tmp_path, "segmentation"), train, masked(name="halves/test"))
    good, bad = masked(), train_copy(train)
    with pytest.raises(ValueError, match=message.replace("train", "test")):
        build_trainer(model, processor, arguments(tmp_path, "segmentation"), good, bad)


def test_a_mask_of_another_size_and_an_image_that_does_not_decode(square_processor, image_processor):
    split = masked()
    split.masks[2] = split.masks[2][:, :20]
    with pytest.raises(ValueError, match="Mask 2 of halves/train is 40 x 20 .height x width., and its image 40 x 48"):
        SegmentationDataset(split, square_processor)[2]
    split = labelled()
    split.images[1] = b"no image"
    with pytest.raises(ValueError, match="Image 1 of colors/train does not decode.*Leave it out or replace it"):
        ClassificationDataset(split, image_processor)[1]


def test_wrong_labels_stop_before_training():
    with pytest.raises(
        ValueError, match="colors/train has the label 7, and there are 3 classes: labels go from 0 to 2"
    ):
        count_classes(labelled((0, 7)))


def test_a_model_of_other_classes_is_refused(tmp_path):
    model, processor = load_model("classification", None, ("a", "b"), config=config_of())
    with pytest.raises(ValueError, match="The model tells 2 classes apart, and not the 3 of colors/train"):
        build_trainer(model, processor, arguments(tmp_path), labelled(), labelled(name="colors/test"))


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("classification", {"mode": "adapter"}, "mode='adapter' is unknown: use one of full, linear, lora"),
        ("classification", {"mode": "linear", "layer_decay": 0.5}, "layer_decay=0.5 has no effect with mode='linear'"),
        ("classification", {"layer_decay": 1.5}, "layer_decay=1.5 must be above 0 and at most 1"),
        (
            "classification",
            {"metric_for_best_model": "mean_iou"},
            "'mean_iou' is no figure of the evaluation: use one",
        ),
        ("classification", {"class_balance": "both"}, "class_balance='both' is unknown"),
        (
            "classification",
            {"early_stopping_patience": 2, "load_best_model_at_end": False},
            "early_stopping_patience=2 needs load_best_model_at_end",
        ),
        ("segmentation", {"class_balance": "sampler"}, "class_balance='sampler' draws images by their class"),
        ("segmentation", {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1: transformers smooths no maps"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, task, options, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, task, **options)


def test_the_best_checkpoint_is_the_one_of_the_highest_figure(tmp_path):
    args = arguments(tmp_path)
    assert (args.metric_for_best_model, args.greater_is_better) == ("accuracy", True)
    args = arguments(tmp_path, "segmentation", metric_for_best_model="loss")
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)


def test_lora_without_peft_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match=r'pip install "levljepa_hf\[lora\]"'):
        add_lora(new_model()[0])


def test_splits_that_evaluation_loads_can_be_trained_on(tmp_path):
    """Scenes, which have masks and no void."""
    train, test = (load_split("scenes", "segmentation", split, max_samples=4) for split in ("train", "test"))
    model, processor = load_model("segmentation", None, train.class_names, config=config_of())
    args = arguments(tmp_path, "segmentation", save_strategy="no", load_best_model_at_end=False)
    trainer = build_trainer(model, processor, args, train, test)
    trainer.train()
    assert 0 <= trainer.evaluate()["eval_mean_iou"] < 0.5
