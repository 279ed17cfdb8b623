"""Every class from every kind of checkpoint (full, a bare tower, the released files), and what loading reports."""

import json
import logging
import re

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from levljepa_hf import (
    LeVLJEPABackbone,
    LeVLJEPAConfig,
    LeVLJEPAForImageClassification,
    LeVLJEPAForSemanticSegmentation,
    LeVLJEPAModel,
    LeVLJEPAProcessor,
    LeVLJEPATextConfig,
    LeVLJEPATextModel,
    LeVLJEPAVisionConfig,
    LeVLJEPAVisionModel,
)
from levljepa_hf.model.released import save_released

HEADS = (LeVLJEPAForImageClassification, LeVLJEPAForSemanticSegmentation)
CLASSES = (LeVLJEPAModel, LeVLJEPAVisionModel, LeVLJEPATextModel, LeVLJEPABackbone, *HEADS)
SOURCES = ("full", "vision", "text", "released", "head")
REFUSED = {(LeVLJEPATextModel, "vision")} | {(c, "text") for c in CLASSES[1:] if c is not LeVLJEPATextModel}
PAIRS = [(c, s) for c in CLASSES for s in SOURCES if not (c is LeVLJEPATextModel and s == "head")]


def text_tower(model: LeVLJEPAModel) -> LeVLJEPATextModel:
    tower = LeVLJEPATextModel(LeVLJEPATextConfig.from_dict(model.config.to_dict())).to(model.dtype)
    tower.text_model.load_state_dict(model.text_model.state_dict())
    return tower.eval()


def head(model: LeVLJEPAModel) -> LeVLJEPAForImageClassification:
    head = LeVLJEPAForImageClassification(model.config)
    head.vision_model.load_state_dict(model.vision_model.state_dict())
    return head


@pytest.fixture
def save(model, tmp_path):
    """Writes a checkpoint of the given kind with the weights of `model`."""

    def save(source: str):
        folder = tmp_path / source
        if source == "released":
            save_released(model, None, folder)
        else:
            parts = {"full": lambda m: m, "vision": lambda m: m.vision_model, "text": text_tower, "head": head}
            parts[source](model).save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize(("model_class", "source"), PAIRS, ids=lambda value: getattr(value, "__name__", value))
def test_each_class_loads_from_each_source_or_says_why_not(model_class, source, model, save):
    folder = save(source)
    if (model_class, source) in REFUSED:
        message = f"{re.escape(str(folder))} holds a {source} tower alone.*LeVLJEPA{source.capitalize()}Model"
        with pytest.raises(ValueError, match=message):
            model_class.from_pretrained(folder)
        return
    loaded, info = model_class.from_pretrained(folder, output_loading_info=True)
    towers = {"vision": "vision_model", "text": "text_model"}
    expected = {
        f"{attribute}.{name}": tensor
        for tower, attribute in towers.items()
        if source in (tower, "full", "released") or (source == "head" and tower == "vision")
        for name, tensor in getattr(model, attribute).state_dict().items()
    }
    prefix = "vision_model." if model_class is LeVLJEPAVisionModel else ""
    state = {prefix + name: tensor for name, tensor in loaded.state_dict().items()}
    shared = expected.keys() & state.keys()
    assert shared and all(torch.equal(expected[name], state[name]) for name in shared)
    new = {name for name in state if name not in expected and "head" != name.split(".")[0]}
    if model_class is LeVLJEPAModel and source in ("vision", "text", "head"):
        assert info["missing_keys"] == new - {"sigreg.step"}  # each of them reported
    else:
        assert not any(info.values()), info


def test_a_whole_model_around_a_bare_tower_works(model, inputs, save):
    loaded = LeVLJEPAModel.from_pretrained(save("vision"), text_config=model.config.text_config.to_dict()).eval()
    ours = loaded.get_image_features(inputs["pixel_values"]).last_hidden_state
    torch.testing.assert_close(ours, model.get_image_features(inputs["pixel_values"]).last_hidden_state)
    assert torch.isfinite(loaded(**inputs).loss)
    assert loaded.text_model.wte.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_text_tower_gives_the_whole_models_feature(model, inputs, save):
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    expected = model.encode_text(**texts)
    for source in ("full", "text", "released"):
        loaded = LeVLJEPATextModel.from_pretrained(save(source))
        assert not loaded.training and type(loaded.config) is LeVLJEPATextConfig
        torch.testing.assert_close(loaded(**texts).pooler_output, expected.pooler_output)
        torch.testing.assert_close(loaded(**texts).last_hidden_state, expected.last_hidden_state)
    auto = AutoModel.from_pretrained(save("text"))
    assert type(auto) is LeVLJEPATextModel and type(AutoConfig.from_pretrained(save("text"))) is LeVLJEPATextConfig


def test_text_readout_travels_with_every_layout(model, save):
    model.config.text_readout = "pad77"
    texts = {"input_ids": torch.full((1, 77), 50256), "attention_mask": torch.arange(77)[None] < 5}
    for source in ("full", "text", "released"):
        folder = save(source)
        tower = LeVLJEPATextModel.from_pretrained(folder)
        torch.testing.assert_close(tower(**texts).pooler_output, model.encode_text(**texts).pooler_output)
        assert LeVLJEPAModel.from_pretrained(folder).config.text_readout == "pad77"


@pytest.mark.parametrize("source", SOURCES)
def test_a_processor_is_made_for_each_source_with_images(source, save):
    folder = save(source)
    if source == "text":
        with pytest.raises((OSError, ValueError)):
            LeVLJEPAProcessor.from_pretrained(folder)
    else:
        assert LeVLJEPAProcessor.from_pretrained(folder).image_processor.crop_size["height"] == 32


def test_tokenizer_of_a_text_tower(model, processor, save):
    folder = save("text")
    processor.tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("a cat").input_ids[-1] == 50256


@pytest.mark.parametrize("source", ["full", "vision", "released"])
@pytest.mark.parametrize(
    ("auto_class", "model_class"),
    [
        (AutoModelForImageClassification, LeVLJEPAForImageClassification),
        (AutoModelForSemanticSegmentation, LeVLJEPAForSemanticSegmentation),
    ],
)
def test_auto_heads(auto_class, model_class, source, model, inputs, save, tmp_path):
    folder = save(source)
    head = auto_class.from_pretrained(folder, num_labels=3)
    assert type(head) is model_class and head.config.num_labels == 3
    assert head(inputs["pixel_values"]).logits.shape[1] == 3
    for name, tensor in model.vision_model.state_dict().items():
        assert torch.equal(tensor, head.vision_model.state_dict()[name]), name
    assert model_class.from_pretrained(folder, num_labels=3).classifier.out_features == 3
    assert head.name_or_path == head.config.name_or_path == str(folder)
    eager = auto_class.from_pretrained(folder, attn_implementation="eager")
    assert eager.vision_model.config._attn_implementation == "eager"
    head.save_pretrained(tmp_path / "tuned")
    again = auto_class.from_pretrained(tmp_path / "tuned")
    assert torch.equal(again.classifier.weight, head.classifier.weight)


@pytest.mark.parametrize("auto_class", [AutoModelForImageClassification, AutoModelForSemanticSegmentation])
def test_auto_heads_from_the_configuration_of_a_tower(auto_class, config):
    config.vision_config.id2label = {0: "cat", 1: "dog", 2: "bird"}
    config.vision_config.problem_type = "multi_label_classification"
    head = auto_class.from_config(config.vision_config)
    assert head.classifier.out_features == 3 and head.config.id2label[2] == "bird"
    assert head.config.problem_type == "multi_label_classification"
    assert type(head.config.vision_config) is LeVLJEPAVisionConfig


@pytest.mark.parametrize("source", ["full", "vision", "text"])
def test_a_checkpoint_keeps_its_dtype_in_every_class(source, model, save):
    model.to(torch.bfloat16)
    folder = save(source)
    for model_class in CLASSES:
        if (model_class, source) not in REFUSED:
            loaded = model_class.from_pretrained(folder)
            assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}, model_class


@pytest.fixture
def report(caplog):
    """What transformers logs while something is loaded."""
    transformers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING, logger="transformers"):
        yield lambda: caplog.text
    transformers_logging.disable_propagation()


@pytest.mark.parametrize("source", ["full", "vision", "released"])
@pytest.mark.parametrize("model_class", [LeVLJEPAVisionModel, LeVLJEPABackbone, *HEADS])
def test_expected_differences_are_quiet(model_class, source, save, report):
    model_class.from_pretrained(save(source))
    assert report() == ""


def test_unexpected_differences_are_reported(model, save, report):
    folder = save("full")
    state = {**model.state_dict(), "text_model.h.9.ln_1.weight": torch.ones(32), "stranger": torch.ones(1)}
    del state["vision_predictor.0.weight"]
    LeVLJEPAModel(model.config).save_pretrained(folder, state_dict=state)
    LeVLJEPAModel.from_pretrained(folder)
    assert re.search(r"vision_predictor.0.weight\s*\|\s*MISSING", report())
    assert re.search(r"text_model.h.9.ln_1.weight\s*\|\s*UNEXPECTED", report())
    assert re.search(r"stranger\s*\|\s*UNEXPECTED", report())


def test_a_fine_tuned_checkpoint_without_its_classifier_is_reported(model, save, report):
    folder = save("head")
    head = LeVLJEPAForImageClassification.from_pretrained(folder)
    state = {name: tensor for name, tensor in head.state_dict().items() if name != "classifier.weight"}
    head.save_pretrained(folder, state_dict=state)
    LeVLJEPAForImageClassification.from_pretrained(folder)
    assert re.search(r"classifier.weight\s*\|\s*MISSING", report())


@pytest.mark.parametrize("model_class", [LeVLJEPAVisionModel, LeVLJEPATextModel])
def test_a_tower_is_not_taken_from_quantised_weights(model_class, save):
    """They would be read as they are: as 8-bit numbers without their scale."""
    folder = save("full")
    stated = json.loads((folder / "config.json").read_text())
    quantised = {**stated, "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    (folder / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(ValueError, match=f"{re.escape(str(folder))} holds quantised weights.*take its tower"):
        model_class.from_pretrained(folder)


def test_only_the_main_process_writes(model, tmp_path):
    model.save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("fields", [{}, {"predictor_num_layers": 0}], ids=["predictors", "none"])
def test_files_for_sentence_transformers_state_the_size(fields, inputs, tmp_path):
    model = LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug", **fields)).eval()
    model.save_pretrained(tmp_path)
    size = model.get_image_retrieval_features(inputs["pixel_values"]).pooler_output.shape[1]
    assert json.loads((tmp_path / "1_Pooling/config.json").read_text())["embedding_dimension"] == size
    described = json.loads((tmp_path / "sentence_bert_config.json").read_text())["modality_config"]
    assert all(hasattr(model, modality["method"]) for modality in described.values())
