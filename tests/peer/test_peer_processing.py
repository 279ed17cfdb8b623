"""transformers' common tests of processors and image processors: the processor, and both backends of images."""

import unittest
from typing import Any

import torch
from transformers.image_utils import OPENAI_CLIP_STD
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers_tests.test_image_processing_common import (
    ImageProcessingTester,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
)
from transformers_tests.test_processing_common import ProcessorTesterMixin

from levljepa_hf import LeVLJEPAImageProcessor, LeVLJEPAImageProcessorPil, LeVLJEPAProcessor, build_tokenizer

BACKENDS = {"torchvision": LeVLJEPAImageProcessor, "pil": LeVLJEPAImageProcessorPil}
SIZES = {"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 18}}


class BothBackendsTester(ImageProcessingTester):
    """Small images. transformers finds the classes by the folder of the model; here they are named."""

    batch_size = 7
    num_channels = 3
    num_labels = 5
    min_resolution = 30
    max_resolution = 400
    size = SIZES["size"]
    crop_size = SIZES["crop_size"]
    image_processing_classes = BACKENDS

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent

    def prepare_image_processor_dict(self) -> dict[str, Any]:
        return SIZES

    def prepare_post_process_semantic_segmentation_inputs(self) -> tuple[dict[str, Any], dict[str, Any]]:
        outputs = SemanticSegmenterOutput(logits=torch.randn(self.batch_size, self.num_labels, 6, 9))
        return {"outputs": outputs}, {"num_labels": self.num_labels, "height": 6, "width": 9}


class ImageProcessorsTest(ImageProcessingTestMixin, PostProcessSemanticSegmentationTestMixin, unittest.TestCase):
    image_processing_classes = BACKENDS
    image_processor_dict = SIZES
    backend_equivalence_atol = 1.01 / 255 / min(OPENAI_CLIP_STD)  # one step of rounding, normalised

    def setUp(self) -> None:
        self.image_processor_tester = BothBackendsTester(self)


class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = LeVLJEPAProcessor

    @classmethod
    def _setup_image_processor(cls) -> LeVLJEPAImageProcessor:
        return LeVLJEPAImageProcessor(**SIZES)

    @classmethod
    def _setup_tokenizer(cls):
        return build_tokenizer()
