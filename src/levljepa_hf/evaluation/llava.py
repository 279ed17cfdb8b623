"""LLaVA around a frozen language model: its bridge reads the tokens of any encoder, and answers are read out of it.

llava = build_llava(language_model, hidden_size=encoder.hidden_size, image_token_id=...)
reset_bridge(llava, seed=0)
optimizer = torch.optim.AdamW(bridge_parameters(llava), lr=1e-3)  # nothing else has gradients

A LLaVA of one's own, with a tower in it, is `LeVLJEPALlavaForConditionalGeneration` of `levljepa_hf`. transformers'
class reads what a LeVLJEPA tower gives before its final norm, as it does of CLIP; `read_normed_tokens` makes it read
what comes after, as the paper's figures do.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..model.llava_levljepa import check_logits, read_normed_tokens

IGNORED = -100  # label of what the loss leaves out


class TokenTower(nn.Module):
    """Stands in LLaVA's vision tower, and passes on the tokens [N, P, C] that an encoder gave before.

    The tower is frozen, so each image is encoded once and not in every step; all else is LLaVA's own code.
    """

    def forward(self, pixel_values: Tensor, **kwargs: object) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=pixel_values, hidden_states=(pixel_values,))


def build_llava(
    language_model: PreTrainedModel, hidden_size: int, image_token_id: int
) -> LlavaForConditionalGeneration:
    """LLaVA whose `pixel_values` are tokens [N, P, C]; all frozen but for its bridge, which `reset_bridge` fills.

    Args:
        language_model: A causal language model; its modules are used as they are.
        hidden_size: C, the width of the tokens.
        image_token_id: A token of the vocabulary that no text has: in its places the images' tokens go.

    Raises:
        ValueError: if the model makes its logits otherwise than by a linear layer on the last hidden state, as LLaVA
            does.
    """
    config = LlavaConfig(
        # Of the tower, which is put aside below, the bridge asks for the width alone.
        vision_config=CLIPVisionConfig(
            hidden_size=hidden_size, num_hidden_layers=1, num_attention_heads=1, intermediate_size=1
        ),
        text_config=language_model.config,
        image_token_index=image_token_id,
        vision_feature_layer=-1,  # the one layer that `TokenTower` has
        vision_feature_select_strategy="full",  # "default" would drop a class token, and there is none among them
    )
    config.tie_word_embeddings = False  # the language model's own modules come in, tied or not
    with torch.device("meta"):  # all modules but the bridge are replaced, so none needs memory
        llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower = TokenTower()
    llava.model.language_model = language_model.base_model
    llava.lm_head = language_model.get_output_embeddings()
    llava.model.multi_modal_projector.float().to_empty(device=language_model.device)
    llava.generation_config = GenerationConfig()  # none of the rules that a text configuration may bring
    llava.eval().requires_grad_(False)
    llava.model.multi_modal_projector.requires_grad_(True)
    check_logits(llava, language_model)
    return llava


def reset_bridge(llava: LlavaForConditionalGeneration, seed: int) -> None:
    """New weights for the bridge (two linear layers, GELU between), as torch draws them; the same on every device."""
    bridge = llava.model.multi_modal_projector
    device = bridge.linear_1.weight.device
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        bridge.cpu()  # where generators draw the same on every machine
        bridge.linear_1.reset_parameters()
        bridge.linear_2.reset_parameters()
    bridge.to(device)


def bridge_parameters(llava: LlavaForConditionalGeneration) -> list[nn.Parameter]:
    """What is trained.

    Raises:
        RuntimeError: if anything but the bridge would be trained too, or is in training mode.
    """
    bridge = list(llava.model.multi_modal_projector.parameters())
    own = {id(parameter) for parameter in bridge}
    for name, parameter in llava.named_parameters():
        if parameter.requires_grad != (id(parameter) in own):
            raise RuntimeError(f"{name} has requires_grad={parameter.requires_grad}: the bridge alone is trained.")
    for name, module in llava.named_modules():
        if module.training:
            raise RuntimeError(f"{name or 'LLaVA'} is in training mode: all that is frozen must be as in evaluation.")
    return bridge


class Batch(NamedTuple):
    """Sequences that end together, padded on the left."""

    input_ids: Tensor  # [B, L]
    attention_mask: Tensor  # [B, L], 1 where there is a token
    position_ids: Tensor  # [B, L], from 0 at the first token


def pad_left(sequences: Sequence[Sequence[int]], padding: int, device: torch.device | str = "cpu") -> Batch:
    """A batch of sequences of token ids. The token `padding` fills; no attention is paid to it.

    On the left, so that answers stand together at the end: logits of the last positions are enough to train on, and
    what is generated goes on there.
    """
    length = max(map(len, sequences))
    input_ids = torch.full((len(sequences), length), padding)
    mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(sequences):
        input_ids[row, length - len(sequence) :] = torch.tensor(sequence)
        mask[row, length - len(sequence) :] = 1
    return Batch(*(one.to(device) for one in (input_ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0))))


def answer_loss(
    llava: LlavaForConditionalGeneration,
    prefixes: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    tokens: Tensor,
    padding: int,
    num_tokens: int | None = None,
) -> Tensor:
    """LLaVA's loss: the cross entropy of the answers' tokens, a mean over all of them.

    The vocabulary's logits are computed for the last positions alone, which hold the answers.

    Args:
        llava: From `build_llava`.
        prefixes: B prompts as token ids, each with P times the image token.
        answers: B answers as token ids, EOS included.
        tokens: [B, P, C] of the images.
        padding: A token that is not the image token.
        num_tokens: What the sum is divided by, where the batch is a part of a larger one.
    """
    device = llava.lm_head.weight.device
    sequences = [[*prefix, *answer] for prefix, answer in zip(prefixes, answers, strict=True)]
    batch = pad_left(sequences, padding, device)
    kept = max(map(len, answers)) + 1  # a token is predicted where the one before it stands
    labels = pad_left(answers, IGNORED, device).input_ids
    labels = nn.functional.pad(labels, (1, 0), value=IGNORED)  # [B, kept]; LLaVA shifts them against its logits
    return llava(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        pixel_values=tokens.to(device),
        labels=labels,
        logits_to_keep=_last(kept, batch.input_ids),
        num_items_in_batch=num_tokens or sum(map(len, answers)),  # parts of a batch add up to its mean
        use_cache=False,
    ).loss


def _last(num: int, input_ids: Tensor) -> Tensor:
    """The last positions. Their number alone would have LLaVA take a view, which costs a copy of the head a row."""
    return torch.arange(input_ids.shape[1] - num, input_ids.shape[1], device=input_ids.device)


@torch.no_grad()
def generate_answers(
    llava: LlavaForConditionalGeneration,
    prefixes: Sequence[Sequence[int]],
    tokens: Tensor,
    padding: int,
    eos: int,
    max_new_tokens: int,
) -> list[list[int]]:
    """Token ids of the answers, decoded greedily; without EOS and what would follow it. Arguments as `answer_loss`."""
    device = llava.lm_head.weight.device
    batch = pad_left(prefixes, padding, device)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=eos, pad_token_id=padding, use_cache=True
    )
    found = llava.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,  # the position ids follow from it
        pixel_values=tokens.to(device),
        generation_config=config,
    )
    answers = found[:, batch.input_ids.shape[1] :].tolist()
    return [answer[: answer.index(eos)] if eos in answer else answer for answer in answers]


class AnswerTree:
    """Candidate answers as token ids, merged where they begin alike, so that one pass scores all of them.

    The tree's nodes follow the prompt in one sequence; each pays attention to the prompt, to the nodes before it in
    its own answers, and to itself. That equals a pass of each answer on its own; what they share is computed once.

    Args:
        candidates: K answers as token ids.
        eos: The token that ends each.
    """

    def __init__(self, candidates: Sequence[Sequence[int]], eos: int) -> None:
        # A node is a token in its place behind others: answers share it as long as they agree from the first token on.
        nodes: dict[tuple[int, ...], int] = {}  # by their path from the prompt, which is node -1
        for candidate in candidates:
            for length in range(1, len(candidate) + 1):
                nodes.setdefault(tuple(candidate[:length]), len(nodes))
        self.input_ids = torch.tensor([path[-1] for path in nodes], dtype=torch.long)  # [M]
        self.depth = torch.tensor([len(path) - 1 for path in nodes], dtype=torch.long)  # [M], from 0
        self.sees = torch.eye(len(nodes), dtype=torch.bool)  # [M, M], a node's own and those before it
        for path, node in nodes.items():
            if len(path) > 1:  # the parent comes first in `nodes`, so that its row is complete
                self.sees[node] |= self.sees[nodes[path[:-1]]]
        # Of candidate k the token t is predicted at row `at[k][t]` of the logits, where row 0 is the prompt's last.
        self.at = [[0, *(nodes[tuple(one[: i + 1])] + 1 for i in range(len(one)))] for one in candidates]
        self.targets = [[*one, eos] for one in candidates]

    @torch.no_grad()
    def log_likelihoods(
        self,
        llava: LlavaForConditionalGeneration,
        prefixes: Sequence[Sequence[int]],
        tokens: Tensor,
        padding: int,
    ) -> Tensor:
        """log p(answer and EOS | prompt and image) of each candidate, [B, K] float32 on the CPU.

        Arguments as `answer_loss`.
        """
        embeddings = llava.get_input_embeddings().weight
        batch = pad_left(prefixes, padding, embeddings.device)
        num, length = batch.input_ids.shape
        size = len(self.input_ids)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        # The prompt's rows are causal and see no node. A node sees the prompt and its own path, but no other branch.
        sees = torch.zeros(num, length + size, length + size, dtype=torch.bool)
        sees[:, :, :length] = batch.attention_mask.bool().cpu()[:, None]
        sees[:, :length, :length] &= causal
        sees[:, :length, :length] |= torch.eye(length, dtype=torch.bool)  # padding sees itself: a softmax needs one
        sees[:, length:, length:] = self.sees
        mask = torch.zeros(sees.shape, dtype=embeddings.dtype).masked_fill(~sees, torch.finfo(embeddings.dtype).min)
        node_ids, depth = (one.to(embeddings.device).expand(num, -1) for one in (self.input_ids, self.depth))
        input_ids = torch.cat([batch.input_ids, node_ids], dim=1)
        logits = llava(
            input_ids=input_ids,
            attention_mask=mask[:, None].to(embeddings.device),
            # A node stands where it would stand if its answer alone followed the prompt: branches share positions.
            position_ids=torch.cat([batch.position_ids, batch.attention_mask.sum(dim=1, keepdim=True) + depth], dim=1),
            pixel_values=tokens.to(embeddings.device),
            logits_to_keep=_last(size + 1, input_ids),
            use_cache=False,
        ).logits
        rows = torch.tensor([row for at in self.at for row in at], device=logits.device)
        targets = torch.tensor([token for one in self.targets for token in one], device=logits.device)
        ends = torch.tensor([len(one) for one in self.targets]).cumsum(dim=0)
        # The tokens of all candidates, one candidate after another; a candidate's sum is the difference of the running
        # sums at its end and at that of the one before. In float64, as differences of long sums lose digits.
        found = []
        for of_one in logits:  # [M + 1, vocabulary], one at a time: in float32 they are large
            each = of_one.float().log_softmax(dim=-1)[rows, targets].double().cumsum(dim=0).cpu()
            found.append(each[ends - 1].diff(prepend=torch.zeros(1, dtype=torch.double)))
        return torch.stack(found).float()


__all__ = [
    "AnswerTree",
    "Batch",
    "answer_loss",
    "bridge_parameters",
    "build_llava",
    "generate_answers",
    "pad_left",
    "read_normed_tokens",
    "reset_bridge",
]
