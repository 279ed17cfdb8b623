"""A LLaVA with a LeVLJEPA tower: which tokens it reads, and that a saved one loads where the package is absent."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaProcessor,
    PreTrainedModel,
)

from levljepa_hf import (
    LeVLJEPALlavaForConditionalGeneration,
    LeVLJEPAProcessor,
    LeVLJEPAVisionConfig,
    LeVLJEPAVisionModel,
    build_tokenizer,
)
from test_transformers import run_without_package

IMAGE = 63
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {"hidden_size": 32, "intermediate_size": 64, **LAYERS}

REMOTE = """
import sys
sys.modules["levljepa_hf"] = None  # `import levljepa_hf` now fails, as where it is not installed
{prelude}
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

source, target, inputs, result = sys.argv[1:]
llava = AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
assert type(processor).__name__ == "LlavaProcessor"
save_file({{"logits": llava(**load_file(inputs)).logits.contiguous()}}, result)
llava.save_pretrained(target)
processor.save_pretrained(target)
"""


def language_model(model_class=LlamaForCausalLM, config_class=LlamaConfig, **options) -> PreTrainedModel:
    torch.manual_seed(0)
    return model_class(config_class(**SIZES, vocab_size=64, initializer_range=0.2, **options)).eval()


@pytest.fixture
def tower(model) -> LeVLJEPAVisionModel:
    tower = model.vision_model.eval()
    nn.init.normal_(tower.timm_model.norm.weight)  # the tokens before and after the norm differ
    return tower


@pytest.fixture
def llava(tower) -> LeVLJEPALlavaForConditionalGeneration:
    return LeVLJEPALlavaForConditionalGeneration.from_parts(tower, language_model(), IMAGE).eval()


@pytest.fixture
def inputs(tower) -> dict[str, torch.Tensor]:
    side, patch = tower.config.image_size, tower.config.patch_size
    ids = torch.tensor([[*[IMAGE] * (side // patch) ** 2, 5, 6, 7]] * 2)
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, side, side)}


def test_it_is_the_language_model_on_mapped_tokens_after_the_final_norm(llava, tower, inputs) -> None:
    patches = tower(inputs["pixel_values"]).last_hidden_state[:, 1:]
    words = llava.get_input_embeddings()(inputs["input_ids"][:, patches.shape[1] :])
    embeds = torch.cat([llava.model.multi_modal_projector(patches), words], dim=1)
    torch.testing.assert_close(llava(**inputs).logits, language_model()(inputs_embeds=embeds).logits)


def test_its_parts_are_those_given(tower, inputs) -> None:
    text = language_model(tie_word_embeddings=True, eos_token_id=9)
    llava = LeVLJEPALlavaForConditionalGeneration.from_parts(tower, text, IMAGE)
    assert llava.model.vision_tower is tower and llava.model.language_model is text.model
    assert llava.lm_head is text.lm_head and llava.config.tie_word_embeddings
    assert llava.generation_config.eos_token_id == 9
    new = {id(one) for one in llava.parameters()} - {id(one) for part in (tower, text) for one in part.parameters()}
    assert new == {id(one) for one in llava.model.multi_modal_projector.parameters()}
    assert all(one.isfinite().all() and one.std() > 0 for one in llava.model.multi_modal_projector.parameters())


def test_a_tower_without_a_class_token_is_read_whole(inputs) -> None:
    config = LeVLJEPAVisionConfig(
        architecture="vit_base_patch16_siglip_224", image_size=32, patch_size=8, hidden_size=32, **LAYERS
    )
    tower = LeVLJEPAVisionModel(config).eval()
    llava = LeVLJEPALlavaForConditionalGeneration.from_parts(tower, language_model(), IMAGE).eval()
    seen = []
    llava.model.multi_modal_projector.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    llava(**inputs)
    torch.testing.assert_close(seen[0], tower(inputs["pixel_values"]).last_hidden_state)


def test_what_llava_cannot_do_is_refused(tower) -> None:
    with pytest.raises(ValueError, match="image_token_id=64: the language model's tokens are 0 to 63"):
        LeVLJEPALlavaForConditionalGeneration.from_parts(tower, language_model(), 64)
    gemma = language_model(Gemma2ForCausalLM, Gemma2Config, num_key_value_heads=1, head_dim=16)
    with pytest.raises(ValueError, match="logits of 'gemma2'"):
        LeVLJEPALlavaForConditionalGeneration.from_parts(tower, gemma, IMAGE)


def test_a_saved_one_loads_with_and_without_the_package(llava, processor, inputs, tmp_path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    expected = llava(**inputs).logits
    llava.save_pretrained(first)
    tokenizer = build_tokenizer()
    LlavaProcessor(
        LeVLJEPAProcessor.from_image_size(32).image_processor, tokenizer, patch_size=8, image_token="<|endoftext|>"
    ).save_pretrained(first)
    for model_class in (AutoModelForImageTextToText, LeVLJEPALlavaForConditionalGeneration):
        loaded = model_class.from_pretrained(first)
        assert type(loaded) is LeVLJEPALlavaForConditionalGeneration
        torch.testing.assert_close(loaded(**inputs).logits, expected)
    assert isinstance(AutoProcessor.from_pretrained(first), LlavaProcessor)

    save_file(inputs, tmp_path / "inputs.safetensors")
    for source, target in ((first, second), (second, tmp_path / "third")):
        arguments = [source, target, tmp_path / "inputs.safetensors", tmp_path / "result.safetensors"]
        run_without_package(REMOTE, arguments, tmp_path / "modules")
        torch.testing.assert_close(load_file(tmp_path / "result.safetensors")["logits"], expected)
    assert {"llava_levljepa.py", "modeling_levljepa.py"} <= {path.name for path in second.iterdir()}
