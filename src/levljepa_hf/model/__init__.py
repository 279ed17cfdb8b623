"""The model: what travels to the Hub with a checkpoint, in flat files that import their siblings alone."""

from levljepa_hf.extras import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "configuration_levljepa": "LeVLJEPAConfig LeVLJEPATextConfig LeVLJEPAVisionConfig",
        "modeling_levljepa": (
            "LeVLJEPABackbone LeVLJEPAForImageClassification LeVLJEPAForSemanticSegmentation "
            "LeVLJEPAModel LeVLJEPAOutput LeVLJEPAPreTrainedModel LeVLJEPATextModel "
            "LeVLJEPAVisionModel READOUTS retrieval_embeds similarity "
        ),
        "llava_levljepa": "LeVLJEPALlavaConfig LeVLJEPALlavaForConditionalGeneration",
        "processing_levljepa": (
            "LeVLJEPAImageProcessor LeVLJEPAImageProcessorPil LeVLJEPAProcessor build_tokenizer "
            "evaluation_image_processor "
        ),
        "sigreg_levljepa": "SIGReg",
    },
)
