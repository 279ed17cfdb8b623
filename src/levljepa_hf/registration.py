"""Tells transformers' Auto classes of the package's own. Importing the package does it, as users rely on it.

The command line alone puts it off until a command is run, since it imports torch: see `levljepa_command`.
"""

from . import _torchvision  # noqa: F401  isort: skip  (before transformers imports torchvision)
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForSemanticSegmentation,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    GPT2Tokenizer,
)

from .model.configuration_levljepa import LeVLJEPAConfig, LeVLJEPATextConfig, LeVLJEPAVisionConfig
from .model.llava_levljepa import LeVLJEPALlavaConfig, LeVLJEPALlavaForConditionalGeneration
from .model.modeling_levljepa import (
    LeVLJEPABackbone,
    LeVLJEPAForImageClassification,
    LeVLJEPAForSemanticSegmentation,
    LeVLJEPAModel,
    LeVLJEPATextModel,
    LeVLJEPAVisionModel,
)
from .model.processing_levljepa import LeVLJEPAImageProcessor, LeVLJEPAImageProcessorPil, LeVLJEPAProcessor


def register_auto_classes() -> None:
    """Makes `AutoModel` and its like know the package's classes; a second call changes nothing."""
    image_processors = {"torchvision": LeVLJEPAImageProcessor, "pil": LeVLJEPAImageProcessorPil}
    for config_class, model_class in (
        (LeVLJEPAConfig, LeVLJEPAModel),
        (LeVLJEPATextConfig, LeVLJEPATextModel),
        (LeVLJEPAVisionConfig, LeVLJEPAVisionModel),
    ):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        config_class.register_for_auto_class()
        model_class.register_for_auto_class("AutoModel")
    for config_class in (LeVLJEPAConfig, LeVLJEPAVisionConfig):
        AutoImageProcessor.register(config_class, image_processor_classes=image_processors, exist_ok=True)
    AutoBackbone.register(LeVLJEPAVisionConfig, LeVLJEPABackbone, exist_ok=True)
    LeVLJEPABackbone.register_for_auto_class("AutoBackbone")
    AutoModelForZeroShotImageClassification.register(LeVLJEPAConfig, LeVLJEPAModel, exist_ok=True)
    for auto_class, mapping, model_class in (
        (AutoModelForImageClassification, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, LeVLJEPAForImageClassification),
        (AutoModelForSemanticSegmentation, MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING, LeVLJEPAForSemanticSegmentation),
    ):
        auto_class.register(LeVLJEPAConfig, model_class, exist_ok=True)
        # `register` wants a class of that configuration; the heads take a bare tower's and make theirs of it.
        mapping.register(LeVLJEPAVisionConfig, model_class, exist_ok=True)
        model_class.register_for_auto_class(auto_class.__name__)
    for config_class in (LeVLJEPAConfig, LeVLJEPATextConfig):
        AutoTokenizer.register(config_class, GPT2Tokenizer, exist_ok=True)
    AutoConfig.register(LeVLJEPALlavaConfig.model_type, LeVLJEPALlavaConfig, exist_ok=True)
    LeVLJEPALlavaConfig.register_for_auto_class()
    AutoModelForImageTextToText.register(LeVLJEPALlavaConfig, LeVLJEPALlavaForConditionalGeneration, exist_ok=True)
    LeVLJEPALlavaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
    AutoProcessor.register(LeVLJEPAConfig, LeVLJEPAProcessor, exist_ok=True)
    LeVLJEPAProcessor.register_for_auto_class("AutoProcessor")
    LeVLJEPAImageProcessor.register_for_auto_class("AutoImageProcessor")
    LeVLJEPAImageProcessorPil.register_for_auto_class("AutoImageProcessor")


__all__ = ["register_auto_classes"]
