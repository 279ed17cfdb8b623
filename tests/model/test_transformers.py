"""At home in transformers: checkpoints that load where the package is not installed, pipelines, LLaVA, a local Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoBackbone,
    AutoModelForZeroShotImageClassification,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    pipeline,
)

from levljepa_hf import (
    LeVLJEPABackbone,
    LeVLJEPAForImageClassification,
    LeVLJEPAForSemanticSegmentation,
    LeVLJEPAImageProcessor,
    LeVLJEPAImageProcessorPil,
    LeVLJEPAModel,
    LeVLJEPAProcessor,
    LeVLJEPATextConfig,
    LeVLJEPATextModel,
    LeVLJEPAVisionConfig,
    LeVLJEPAVisionModel,
)

CODE_FILES = {"configuration_levljepa.py", "modeling_levljepa.py", "processing_levljepa.py", "sigreg_levljepa.py"}

# Loads model and processor without the package, computes, saves again.
REMOTE = """
import sys
sys.modules["levljepa_hf"] = None  # `import levljepa_hf` now fails, as where it is not installed
{prelude}
import PIL.Image, torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor

source, target, image, result = sys.argv[1:]
model = AutoModel.from_pretrained(source, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
inputs = processor(images=PIL.Image.open(image), text=["a cat", "two dogs run"], return_tensors="pt")
outputs = model(**inputs)
patches = outputs.vision_model_output.last_hidden_state
save_file({{"logits": outputs.logits_per_image.contiguous(), "patches": patches}}, result)
zero_shot = AutoModelForZeroShotImageClassification.from_pretrained(source, trust_remote_code=True)
assert zero_shot.config.model_type == "levljepa"
model.save_pretrained(target)
processor.save_pretrained(target)
"""

# Where a CPU-only torch sits beside a CUDA torchvision the package declares two operators; there is no package here.
PRELUDE = """
import torch
if {needed}:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


# Chooses the backend of an image processor without the package, and saves what it got.
REMOTE_BACKENDS = """
import sys
sys.modules["levljepa_hf"] = None
{prelude}
from transformers import AutoImageProcessor

for source, target in zip(sys.argv[1::2], sys.argv[2::2]):
    for backend, name in (("pil", "LeVLJEPAImageProcessorPil"), ("torchvision", "LeVLJEPAImageProcessor")):
        loaded = AutoImageProcessor.from_pretrained(source, backend=backend, trust_remote_code=True)
        assert (type(loaded).__name__, loaded.crop_size["height"]) == (name, 32), (backend, type(loaded))
        assert type(loaded).__module__.startswith("transformers_modules.")
        loaded.save_pretrained(target + "-" + backend)
        again = AutoImageProcessor.from_pretrained(target + "-" + backend, backend="pil", trust_remote_code=True)
        assert type(again).__name__ == "LeVLJEPAImageProcessorPil"
"""


def run_without_package(
    script: str, arguments: list[Path | str], modules: Path, environment: dict[str, str] | None = None
) -> None:
    """Runs a script that finds no `levljepa_hf`, by default without a Hub, with remote code kept in `modules`."""
    import levljepa_hf._torchvision as torchvision_fix

    script = script.format(prelude=PRELUDE.format(needed=torchvision_fix._library is not None))
    environment = environment or {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment = {**environment, "HF_MODULES_CACHE": str(modules), "PYTHONPATH": ""}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=modules.parent)
    assert done.returncode == 0, done.stderr[-3000:]


def test_remote_code_in_a_fresh_process_and_saving_again(model, processor, images, tmp_path):
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    model.save_pretrained(first)
    processor.save_pretrained(first)
    names = {path.name for path in first.iterdir()}
    assert CODE_FILES <= names and [n for n in names if n.endswith(".safetensors")] == ["model.safetensors"]
    assert (
        json.loads((first / "config.json").read_text())["auto_map"]["AutoModel"] == "modeling_levljepa.LeVLJEPAModel"
    )

    image = tmp_path / "image.png"
    images[0].save(image)
    inputs = processor(images=images[0], text=["a cat", "two dogs run"], return_tensors="pt")
    expected = model(**inputs)
    for source, target in ((first, second), (second, third)):
        run_without_package(REMOTE, [source, target, image, tmp_path / "result.safetensors"], tmp_path / "modules")
        result = load_file(tmp_path / "result.safetensors")
        torch.testing.assert_close(result["logits"], expected.logits_per_image)
        torch.testing.assert_close(result["patches"], expected.vision_model_output.last_hidden_state)
    assert CODE_FILES <= {path.name for path in third.iterdir()}
    torch.testing.assert_close(
        LeVLJEPAModel.from_pretrained(third)(**inputs).logits_per_image, expected.logits_per_image
    )


def test_remote_code_offers_both_backends_of_the_image_processor(processor, tmp_path):
    """Saved alone, within a processor, and from the PIL backend."""
    pil = LeVLJEPAImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    arguments = []
    for name, saver in (("processor", processor), ("alone", processor.image_processor), ("pil", pil)):
        saver.save_pretrained(tmp_path / name)
        arguments += [tmp_path / name, tmp_path / f"{name}-again"]
    run_without_package(REMOTE_BACKENDS, arguments, tmp_path / "modules")


def test_auto_maps_name_saved_files(model, config, processor, tmp_path):
    """Every file that an auto_map names lies beside it, for every class."""
    config.num_labels = 3
    savers = {
        "full": model,
        "vision": model.vision_model,
        "text": LeVLJEPATextModel(LeVLJEPATextConfig.from_dict(config.to_dict())),
        "classifier": LeVLJEPAForImageClassification(config),
        "segmenter": LeVLJEPAForSemanticSegmentation(config),
        "backbone": LeVLJEPABackbone(config.vision_config),
        "processor": processor,
        "image_processor": processor.image_processor,
    }
    for name, saver in savers.items():
        folder = tmp_path / name
        saver.save_pretrained(folder)
        seen = 0
        for path in folder.glob("*config.json"):
            content = json.loads(path.read_text())
            for auto_map in (content.get("auto_map", {}), content.get("image_processor", {}).get("auto_map", {})):
                for references in auto_map.values():
                    for reference in references if isinstance(references, list) else [references]:
                        assert (folder / f"{reference.split('.')[0]}.py").exists(), (name, path.name, reference)
                        seen += 1
        assert seen, name


def test_saving_with_a_push_uploads_every_file(model, tmp_path, monkeypatch):
    """transformers uploads what is new since its own start; the second time everything lies there before."""
    api = Mock()
    api.create_repo.return_value.repo_id = "someone/model"
    for module in (transformers.modeling_utils, transformers.utils.hub):
        monkeypatch.setattr(module, "hf_api", lambda: api)
    monkeypatch.setattr(transformers.modeling_utils, "create_and_tag_model_card", Mock())
    for _ in range(2):
        model.save_pretrained(tmp_path, push_to_hub=True)
        uploaded = {operation.path_in_repo for operation in api.create_commit.call_args.kwargs["operations"]}
        saved = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
        assert uploaded == saved and "1_Pooling/config.json" in saved


def test_zero_shot_pipeline(model, processor, images, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    labels = ["cat", "dog", "tree"]
    result = classify(images[0], candidate_labels=labels, hypothesis_template="a photo of a {}.")
    inputs = processor(images=images[0], text=[f"a photo of a {label}." for label in labels], return_tensors="pt")
    expected = dict(zip(labels, model(**inputs).logits_per_image.softmax(-1)[0].tolist(), strict=True))
    assert {r["label"]: pytest.approx(r["score"], abs=1e-5) for r in result} == expected
    assert isinstance(AutoModelForZeroShotImageClassification.from_pretrained(tmp_path), LeVLJEPAModel)


def test_image_feature_extraction_pipeline(model, processor, images, tmp_path):
    model.vision_model.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    features = pipeline("image-feature-extraction", model=str(tmp_path))(images[0])
    pixels = processor.image_processor(images[0], return_tensors="pt").pixel_values
    torch.testing.assert_close(
        torch.tensor(features), model.vision_model(pixels).last_hidden_state, atol=1e-4, rtol=1e-4
    )


def test_image_feature_extraction_pipeline_of_a_full_checkpoint(model, processor, images, tmp_path):
    """Given the folder it loads the whole model, which says what to load; that then works."""
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="LeVLJEPAVisionModel"):
        pipeline("image-feature-extraction", model=str(tmp_path))(images[0])
    tower = LeVLJEPAVisionModel.from_pretrained(tmp_path)
    features = pipeline("image-feature-extraction", model=tower, image_processor=str(tmp_path))(images[0])
    pixels = processor.image_processor(images[0], return_tensors="pt").pixel_values
    torch.testing.assert_close(torch.tensor(features), model.vision_model(pixels).last_hidden_state)


@pytest.mark.parametrize(
    ("task", "model_class"),
    [
        ("image-classification", LeVLJEPAForImageClassification),
        ("image-segmentation", LeVLJEPAForSemanticSegmentation),
        ("image-feature-extraction", LeVLJEPAVisionModel),
        ("zero-shot-image-classification", LeVLJEPAModel),
    ],
)
def test_pipelines_ask_nothing_and_run_no_remote_code(task, model_class, config, processor, monkeypatch, tmp_path):
    questions = []  # pipeline() swallows what an optional component raises
    monkeypatch.setattr("builtins.input", lambda prompt="": questions.append(prompt) or "n")
    model_class(config.vision_config if model_class is LeVLJEPAVisionModel else config).save_pretrained(tmp_path)
    whole = task.startswith("zero-shot")
    (processor if whole else processor.image_processor).save_pretrained(tmp_path)
    result = pipeline(task, model=str(tmp_path))
    assert type(result.model) is model_class and type(result.image_processor) is LeVLJEPAImageProcessor
    assert questions == []
    assert not any(name.startswith("transformers_modules.") for name in sys.modules)


def test_image_classification_pipeline(config, processor, images, tmp_path):
    config.id2label, config.label2id = {0: "cat", 1: "dog", 2: "tree"}, {"cat": 0, "dog": 1, "tree": 2}
    model = LeVLJEPAForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    result = pipeline("image-classification", model=str(tmp_path))(images[0])
    probabilities = model(processor.image_processor(images[0], return_tensors="pt").pixel_values).logits.softmax(-1)[0]
    assert {r["label"] for r in result} == {"cat", "dog", "tree"}
    assert result[0]["score"] == pytest.approx(probabilities.max().item(), abs=1e-5)


def test_image_segmentation_pipeline(config, images, tmp_path):
    config.id2label, config.label2id = {0: "sky", 1: "ground"}, {"sky": 0, "ground": 1}
    model = LeVLJEPAForSemanticSegmentation(config).eval()
    model.save_pretrained(tmp_path)
    LeVLJEPAImageProcessor(do_center_crop=False, size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    result = pipeline("image-segmentation", model=str(tmp_path))(images[1])
    assert {r["label"] for r in result} <= {"sky", "ground"} and result
    assert all(r["mask"].size == images[1].size for r in result)  # the whole photo, not a crop


def test_llava_trains_and_saves(tmp_path):
    torch.manual_seed(0)
    vision = LeVLJEPAVisionConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8, num_register_tokens=2
    )
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=100,
        max_position_embeddings=64,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=99)
    model = LlavaForConditionalGeneration(config)
    assert isinstance(model.model.vision_tower, LeVLJEPAVisionModel)
    input_ids = torch.cat([torch.full((2, 16), 99), torch.randint(0, 90, (2, 6))], dim=1)  # 4x4 patches, then text
    batch = {"input_ids": input_ids, "pixel_values": torch.randn(2, 3, 32, 32), "labels": input_ids}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]

    model.eval().save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, atol=1e-4, rtol=1e-4)
    assert loaded.config.vision_config.num_register_tokens == 2
    torch.testing.assert_close(
        loaded.model.vision_tower.timm_model.pos_embed, model.model.vision_tower.timm_model.pos_embed
    )


def test_llava_with_several_vision_layers():
    vision = LeVLJEPAVisionConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=100
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=99, vision_feature_layer=[-2, -1])
    model = LlavaForConditionalGeneration(config)
    input_ids = torch.cat([torch.full((1, 16), 99), torch.randint(0, 90, (1, 4))], dim=1)
    assert model(input_ids=input_ids, pixel_values=torch.randn(1, 3, 32, 32)).logits.shape == (1, 20, 100)


def test_auto_backbone_from_config():
    config = LeVLJEPAVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    assert isinstance(AutoBackbone.from_config(config), LeVLJEPABackbone)


def test_a_checkpoint_without_weights_is_an_error(model, processor, tmp_path):
    model.config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="model.safetensors"):
        LeVLJEPAModel.from_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(OSError, match="model.safetensors"):
        LeVLJEPAModel.from_pretrained(tmp_path)
    assert LeVLJEPAProcessor.from_image_size(32).image_processor.crop_size.height == 32
