"""LeVLJEPA for Hugging Face: vision-language pretraining without negatives (arXiv 2607.00784).

Importing the package registers every Auto class. What trains or evaluates is imported when it is first used.
"""

from typing import TYPE_CHECKING

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

from .extras import lazy
from .model.configuration_levljepa import LeVLJEPAConfig, LeVLJEPATextConfig, LeVLJEPAVisionConfig
from .model.llava_levljepa import LeVLJEPALlavaConfig, LeVLJEPALlavaForConditionalGeneration
from .model.modeling_levljepa import (
    LeVLJEPABackbone,
    LeVLJEPAForImageClassification,
    LeVLJEPAForSemanticSegmentation,
    LeVLJEPAModel,
    LeVLJEPAOutput,
    LeVLJEPAPreTrainedModel,
    LeVLJEPATextModel,
    LeVLJEPAVisionModel,
    retrieval_embeds,
    similarity,
)
from .model.processing_levljepa import (
    LeVLJEPAImageProcessor,
    LeVLJEPAImageProcessorPil,
    LeVLJEPAProcessor,
    build_tokenizer,
    evaluation_image_processor,
)
from .model.sigreg_levljepa import SIGReg
from .version import __version__

if TYPE_CHECKING:
    from .data.collator import LeVLJEPADataCollator
    from .training.arguments import LeVLJEPATrainingArguments
    from .training.distributed import convert_sync_batchnorm
    from .training.trainer import LeVLJEPATrainer

__getattr__, _names, _ = lazy(
    __name__,
    {
        "data.collator": "LeVLJEPADataCollator",
        "training.arguments": "LeVLJEPATrainingArguments",
        "training.distributed": "convert_sync_batchnorm",
        "training.trainer": "LeVLJEPATrainer",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *_names()})


def _register_auto_classes() -> None:
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


_register_auto_classes()


__all__ = [
    "LeVLJEPABackbone",
    "LeVLJEPAConfig",
    "LeVLJEPADataCollator",
    "LeVLJEPAForImageClassification",
    "LeVLJEPAForSemanticSegmentation",
    "LeVLJEPAImageProcessor",
    "LeVLJEPAImageProcessorPil",
    "LeVLJEPALlavaConfig",
    "LeVLJEPALlavaForConditionalGeneration",
    "LeVLJEPAModel",
    "LeVLJEPAOutput",
    "LeVLJEPAPreTrainedModel",
    "LeVLJEPAProcessor",
    "LeVLJEPATextConfig",
    "LeVLJEPATextModel",
    "LeVLJEPATrainer",
    "LeVLJEPATrainingArguments",
    "LeVLJEPAVisionConfig",
    "LeVLJEPAVisionModel",
    "SIGReg",
    "__version__",
    "build_tokenizer",
    "convert_sync_batchnorm",
    "evaluation_image_processor",
    "retrieval_embeds",
    "similarity",
]
