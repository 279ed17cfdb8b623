"""transformers' common tests of models, backbones and configurations on every model class, at the `debug` size."""

import unittest
from collections.abc import Callable
from typing import Any

import torch
from transformers_tests.test_backbone_common import BackboneTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor

from levljepa_hf import (
    LeVLJEPABackbone,
    LeVLJEPAConfig,
    LeVLJEPAForImageClassification,
    LeVLJEPAForSemanticSegmentation,
    LeVLJEPAModel,
    LeVLJEPATextConfig,
    LeVLJEPATextModel,
    LeVLJEPAVisionConfig,
    LeVLJEPAVisionModel,
)


class ImageModelTester:
    """Configuration and inputs of the vision tower and the backbone."""

    batch_size = 3
    image_size = 32
    patch_size = 8
    num_channels = 3
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 2
    is_training = True
    attn_implementation = None
    seq_length = 1 + (image_size // patch_size) ** 2

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent

    def get_config(self) -> LeVLJEPAVisionConfig:
        return LeVLJEPAConfig.from_preset("debug").vision_config

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        pixel_values = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        config = self.get_config()
        config._attn_implementation = self.attn_implementation
        return config, {"pixel_values": pixel_values}


class RegistersModelTester(ImageModelTester):
    """A tower with register tokens, LayerScale and position embeddings for the patches alone, as in DINOv2."""

    def get_config(self) -> LeVLJEPAVisionConfig:
        debug = super().get_config()
        return LeVLJEPAVisionConfig(
            architecture="vit_small_patch14_reg4_dinov2",
            hidden_size=debug.hidden_size,
            intermediate_size=debug.intermediate_size,
            num_hidden_layers=debug.num_hidden_layers,
            num_attention_heads=debug.num_attention_heads,
            image_size=debug.image_size,
            patch_size=debug.patch_size,
        )


class HeadModelTester(ImageModelTester):
    """The same with the configuration of the whole model, as the task heads take it."""

    def get_config(self) -> LeVLJEPAConfig:
        return LeVLJEPAConfig.from_preset("debug", text_config={"vocab_size": 99})


class FullModelTester(HeadModelTester):
    """The same with captions, and a scale of logits that suits the common tolerances in bfloat16."""

    def get_config(self) -> LeVLJEPAConfig:
        return LeVLJEPAConfig.from_preset("debug", text_config={"vocab_size": 99}, logit_scale=5.0)

    def prepare_config_and_inputs_for_common(self) -> tuple[LeVLJEPAConfig, dict[str, torch.Tensor]]:
        config, inputs = super().prepare_config_and_inputs_for_common()
        input_ids = ids_tensor([self.batch_size, 7], config.text_config.vocab_size)
        attention_mask = torch.ones_like(input_ids)
        attention_mask[0, 5:] = 0
        return config, {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}


class TextModelTester(FullModelTester):
    """Captions alone."""

    seq_length = 7
    is_training = False

    def get_config(self) -> LeVLJEPATextConfig:
        return LeVLJEPATextConfig.from_dict(super().get_config().to_dict())

    def prepare_config_and_inputs_for_common(self) -> tuple[LeVLJEPATextConfig, dict[str, torch.Tensor]]:
        input_ids = ids_tensor([self.batch_size, self.seq_length], 99)
        attention_mask = torch.ones_like(input_ids)
        attention_mask[0, 5:] = 0
        config = self.get_config()
        config._attn_implementation = self.attn_implementation
        return config, {"input_ids": input_ids, "attention_mask": attention_mask}


def skip(**reasons: str) -> Callable[[type], type]:
    """Skips the named tests of a class, each for its reason."""

    def decorate(cls: type) -> type:
        for name, reason in reasons.items():
            setattr(cls, name, unittest.skip(reason)(getattr(cls, name)))
        return cls

    return decorate


class CommonTests(ModelTesterMixin):
    model_tester_class = ImageModelTester
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True  # the file headers give no year

    def setUp(self) -> None:
        self.model_tester = self.model_tester_class(self)

    def test_model_outputs_equivalence(self) -> None:
        """With the attention that has attention maps."""
        self.model_tester.attn_implementation = "eager"
        super().test_model_outputs_equivalence()

    def test_capture_outputs_decorator(self) -> None:
        """With the attention that has attention maps."""
        self.model_tester.attn_implementation = "eager"
        super().test_capture_outputs_decorator()


@skip(
    test_eager_matches_sdpa_inference_24_fp32_pad_left_output_attentions="attention maps of SDPA are an error here",
    test_model_get_set_embeddings="the input embeddings are patches, not an nn.Embedding",
)
class ImageTests(CommonTests):
    """The classes that take images alone."""


class VisionModelTest(ImageTests, unittest.TestCase):
    all_model_classes = (LeVLJEPAVisionModel,)


@skip(test_retain_grad_hidden_states_attentions="without its register tokens a hidden state is a copy")
class RegistersVisionModelTest(ImageTests, unittest.TestCase):
    all_model_classes = (LeVLJEPAVisionModel,)
    model_tester_class = RegistersModelTester

    def test_attention_outputs(self) -> None:
        """The maps hold the registers, which the hidden states leave out."""
        self.model_tester.seq_length += 4
        super().test_attention_outputs()


@skip(test_retain_grad_hidden_states_attentions="the first output is a tuple of feature maps")
class BackboneModelTest(ImageTests, unittest.TestCase):
    all_model_classes = (LeVLJEPABackbone,)


@skip(test_correct_missing_keys="that the classifier is new is expected, and so not reported")
class HeadTests(ImageTests):
    """The task heads."""

    model_tester_class = HeadModelTester


class ImageClassificationTest(HeadTests, unittest.TestCase):
    all_model_classes = (LeVLJEPAForImageClassification,)


class SemanticSegmentationTest(HeadTests, unittest.TestCase):
    all_model_classes = (LeVLJEPAForSemanticSegmentation,)


@skip(
    test_eager_matches_sdpa_inference_24_fp32_pad_left_output_attentions="attention maps of SDPA are an error here",
    test_attention_outputs="the towers' outputs hold them, as in CLIP",
    test_hidden_states_output="the towers' outputs hold them, as in CLIP",
    test_retain_grad_hidden_states_attentions="the towers' outputs hold them, as in CLIP",
)
class FullModelTest(CommonTests, unittest.TestCase):
    all_model_classes = (LeVLJEPAModel,)
    model_tester_class = FullModelTester
    additional_model_inputs = ["input_ids"]
    test_resize_embeddings = True
    _is_composite = True


@skip(
    test_eager_matches_sdpa_inference_24_fp32_pad_left_output_attentions="attention maps of SDPA are an error here",
    test_retain_grad_hidden_states_attentions="in the order of the input a hidden state is a copy",
)
class TextModelTest(CommonTests, unittest.TestCase):
    all_model_classes = (LeVLJEPATextModel,)
    model_tester_class = TextModelTester
    test_resize_embeddings = True


class BackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (LeVLJEPABackbone,)
    config_class = LeVLJEPAVisionConfig

    def setUp(self) -> None:
        self.model_tester = ImageModelTester(self)
        self.model_tester.attn_implementation = "eager"


class ConfigTest(unittest.TestCase):
    def test_vision_config(self) -> None:
        tester = ConfigTester(self, LeVLJEPAVisionConfig, has_text_modality=False, hidden_size=96)
        tester.run_common_tests()

    def test_text_config(self) -> None:
        ConfigTester(self, LeVLJEPATextConfig, n_embd=96).run_common_tests()

    def test_config(self) -> None:
        self.model_tester = FullModelTester(self)
        tester = ConfigTester(self, LeVLJEPAConfig, has_text_modality=False, projection_dim=37)
        tester.run_common_tests()
