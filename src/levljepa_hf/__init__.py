"""LeVLJEPA for Hugging Face: vision-language pretraining without negatives (arXiv 2607.00784).

Importing the package registers every Auto class. What trains or evaluates is imported when it is first used.
"""

import multiprocessing
import sys
from typing import TYPE_CHECKING

from .extras import lazy
from .version import __version__

if TYPE_CHECKING:
    from .data.collator import LeVLJEPADataCollator
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
    from .training.arguments import LeVLJEPATrainingArguments
    from .training.distributed import convert_sync_batchnorm
    from .training.trainer import LeVLJEPATrainer

__getattr__, _names, _ = lazy(
    __name__,
    {
        "data.collator": "LeVLJEPADataCollator",
        "model.configuration_levljepa": "LeVLJEPAConfig LeVLJEPATextConfig LeVLJEPAVisionConfig",
        "model.llava_levljepa": "LeVLJEPALlavaConfig LeVLJEPALlavaForConditionalGeneration",
        "model.modeling_levljepa": (
            "LeVLJEPABackbone LeVLJEPAForImageClassification LeVLJEPAForSemanticSegmentation LeVLJEPAModel "
            "LeVLJEPAOutput LeVLJEPAPreTrainedModel LeVLJEPATextModel LeVLJEPAVisionModel retrieval_embeds similarity"
        ),
        "model.processing_levljepa": (
            "LeVLJEPAImageProcessor LeVLJEPAImageProcessorPil LeVLJEPAProcessor build_tokenizer "
            "evaluation_image_processor"
        ),
        "model.sigreg_levljepa": "SIGReg",
        "training.arguments": "LeVLJEPATrainingArguments",
        "training.distributed": "convert_sync_batchnorm",
        "training.trainer": "LeVLJEPATrainer",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *_names()})


# The command line answers `--help` without torch, and registers before it runs a command. A worker that it spawned has
# its main module too, but no command to run.
if "levljepa_command" not in sys.modules or multiprocessing.parent_process() is not None:
    from .registration import register_auto_classes

    register_auto_classes()


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
