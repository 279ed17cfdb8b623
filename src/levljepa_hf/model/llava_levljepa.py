"""LLaVA with a LeVLJEPA tower, as one checkpoint: it reads the tokens after the final norm, and carries its code."""

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_levljepa import LeVLJEPAVisionConfig
from .modeling_levljepa import LeVLJEPAVisionModel

# LLaVA makes its tower from the tower's configuration. Where this file travels, nobody else has registered the two.
AutoConfig.register(LeVLJEPAVisionConfig.model_type, LeVLJEPAVisionConfig, exist_ok=True)
AutoModel.register(LeVLJEPAVisionConfig, LeVLJEPAVisionModel, exist_ok=True)


class LeVLJEPALlavaConfig(LlavaConfig):
    """Configuration of `LeVLJEPALlavaForConditionalGeneration`: the fields of `LlavaConfig`, of another `model_type`.

    Args:
        vision_config: of the tower, a `LeVLJEPAVisionConfig`.
        text_config: of the language model, such as a `LlamaConfig`.
        image_token_index: the token in whose places the image's patch tokens go, one for each.
        image_seq_length: patches of an image; `LlavaForConditionalGeneration` does not read it.
        projector_hidden_act: the activation between the bridge's two linear layers.
        vision_feature_select_strategy: "default" leaves out the class token, "full" keeps it.
        vision_feature_layer: the hidden states of the tower that are read; -1 is what follows its final norm.
        multimodal_projector_bias: whether the bridge's layers have biases.
        tie_word_embeddings: whether the language model's head shares its word embeddings.
    """

    model_type = "levljepa_llava"


class LeVLJEPALlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """LLaVA with a LeVLJEPA tower: patch tokens, through a bridge of two linear layers, into a language model.

    transformers' own LLaVA reads a tower's last block (`vision_feature_layer=-1`) before the final norm; this one
    reads the tokens after it, as the evaluation does. A saved one holds the code that loads it:

        llava = LeVLJEPALlavaForConditionalGeneration.from_parts(vision_model, language_model, image_token_id)
        llava.save_pretrained("my-llava")
        AutoModelForImageTextToText.from_pretrained("my-llava", trust_remote_code=True)  # package or no package

    Args:
        config: a `LeVLJEPALlavaConfig`.
    """

    config: LeVLJEPALlavaConfig
    config_class = LeVLJEPALlavaConfig

    def __init__(self, config: LeVLJEPALlavaConfig) -> None:
        super().__init__(config)
        read_normed_tokens(self)

    @classmethod
    def from_parts(
        cls, vision_model: LeVLJEPAVisionModel, language_model: PreTrainedModel, image_token_id: int
    ) -> "LeVLJEPALlavaForConditionalGeneration":
        """A tower and a language model, used as they are, with a new bridge between them.

        Args:
            vision_model: The tower.
            language_model: A causal language model; its modules are used as they are.
            image_token_id: A token of its vocabulary that no text has.

        Raises:
            ValueError: if the vocabulary has no such token, or the model makes its logits otherwise than by a linear
                layer on the last hidden state, as LLaVA does.
        """
        size = language_model.config.vocab_size
        if not 0 <= image_token_id < size:
            raise ValueError(f"image_token_id={image_token_id}: the language model's tokens are 0 to {size - 1}.")
        config = LeVLJEPALlavaConfig(
            vision_config=vision_model.config,
            text_config=language_model.config,
            image_token_index=image_token_id,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default" if vision_model.timm_model.has_class_token else "full",
            tie_word_embeddings=language_model.config.tie_word_embeddings,
        )
        # On meta, as tower and language model are put in below: real weights would take their memory twice.
        with torch.device("meta"):
            llava = cls(config)
        bridge = llava.model.multi_modal_projector.to_empty(device=language_model.device)
        for layer in (bridge.linear_1, bridge.linear_2):
            layer.reset_parameters()
        llava.model.vision_tower = vision_model
        llava.model.language_model = language_model.base_model
        llava.lm_head = language_model.get_output_embeddings()
        llava.generation_config = GenerationConfig.from_model_config(language_model.config)
        # The hook of `__init__` went with the tower that was replaced, so the new one gets its own.
        read_normed_tokens(llava)
        check_logits(llava, language_model)
        return llava


def read_normed_tokens(llava: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """Makes a LLaVA with a LeVLJEPA tower read the tokens after the tower's final norm; returns the same model.

    `vision_feature_layer=-1` alone reads the last block's output, before that norm. Nothing is added to the weights,
    so checkpoints are LLaVA's own; call it again after loading one. It serves every tower whose `last_hidden_state`
    is after the final norm, as SigLIP's, DINOv2's and ViT's; CLIP's is not.

    Raises:
        ValueError: if the configuration does not read the last layer.
    """
    layers = llava.config.vision_feature_layer
    if -1 not in ([layers] if isinstance(layers, int) else layers):
        raise ValueError(
            f"vision_feature_layer={layers} does not read the last layer, which the final norm follows: set it to -1."
        )
    llava.model.vision_tower.register_forward_hook(_put_normed_last)
    return llava


def _put_normed_last(
    tower: nn.Module, inputs: tuple, outputs: BaseModelOutputWithPooling
) -> BaseModelOutputWithPooling:
    # LLaVA asks for hidden states and takes the last; other callers of the tower may not ask.
    if outputs.hidden_states is not None:
        outputs.hidden_states = (*outputs.hidden_states[:-1], outputs.last_hidden_state)
    return outputs


@torch.no_grad()
def check_logits(llava: LlavaForConditionalGeneration, language_model: PreTrainedModel) -> None:
    """Compares what the two make of a text.

    Raises:
        ValueError: if LLaVA does not give the logits of its language model.
    """
    # A few tokens show it: soft caps, scales and biases of logits change every position.
    text = torch.arange(min(8, language_model.config.vocab_size), device=language_model.device)[None]
    if not torch.allclose(llava(input_ids=text).logits, language_model(input_ids=text).logits):
        raise ValueError(
            f"LLaVA does not give the logits of {language_model.config.model_type!r}, which does more than a linear "
            "layer on its last hidden state: take a language model such as Llama, Qwen2 or SmolLM2."
        )


__all__ = ["LeVLJEPALlavaConfig", "LeVLJEPALlavaForConditionalGeneration", "check_logits", "read_normed_tokens"]
