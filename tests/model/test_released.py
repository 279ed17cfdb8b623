"""The released two-file layout and `levljepa convert`, against a checkpoint built as the released model card does.

Scope: finding and reading the layout (folder, Hub cache, `.pt` pair), the configuration inferred from shapes, every
error on damaged or contradicting files, writing it back, and the command. The reference forward is plain timm, GPT-2
and `nn.Sequential`. What the loaded models do otherwise is tested with the models.
"""

import json
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.ops import MLP
from transformers import AutoModel, GPT2Config, GPT2Model

from levljepa_hf import (
    LeVLJEPABackbone,
    LeVLJEPAConfig,
    LeVLJEPAForImageClassification,
    LeVLJEPAForSemanticSegmentation,
    LeVLJEPAModel,
    LeVLJEPAProcessor,
    LeVLJEPAVisionConfig,
    LeVLJEPAVisionModel,
)
from levljepa_hf.hub.convert import LICENSE, RELEASES, convert, main, model_card
from levljepa_hf.model import released
from levljepa_hf.model.released import (
    find_pt_pair,
    find_released_files,
    released_config,
    released_state_dict,
    save_released,
)

VISION, TEXT = "vision_encoder.safetensors", "text_encoder.safetensors"
EOS = 50256
WIDTH, DIM = 40, 16  # of the heads, of the embeddings
CONFIG = {
    "model_type": "levljepa",
    "vision_encoder": {"architecture": "vit_tiny_patch16_224", "hidden_size": 48, "num_layers": 2, "num_heads": 4},
    "text_encoder": {"architecture": "gpt2", "hidden_size": 36, "num_layers": 3, "num_heads": 3, "vocab_size": 50257},
    "embed_dim": DIM,
    "projector_width": WIDTH,
    "projector_depth": 4,
    "training": {"dataset": "datacomp", "total_steps": 200000, "batch_size": 4096},
}


# The checkpoint as the model card builds it


def pre_proj(hidden: int, embed_dim: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(hidden, width), nn.BatchNorm1d(width), nn.GELU()]
        hidden = width
    return nn.Sequential(*layers, nn.Linear(hidden, embed_dim))


def projector(embed_dim: int, widths: Sequence[int]) -> nn.Sequential:
    return MLP(embed_dim, [*widths, embed_dim], norm_layer=nn.BatchNorm1d, activation_layer=nn.GELU, dropout=0.0)


def build_towers(
    architecture: str = "vit_tiny_patch16_224",
    widths: tuple[int, int] = (48, 36),
    num_heads: tuple[int, int] = (4, 3),
    embed_dim: int = DIM,
    with_projector: bool = True,
    head_widths: Sequence[int] = (WIDTH,),
    projector_widths: Sequence[int] = (WIDTH,) * 4,
    n_inner: int | None = None,
    **vit_kwargs,
) -> dict[str, nn.ModuleDict]:
    """Both towers with random weights and BatchNorm statistics, in evaluation mode."""
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": widths[0], "depth": 2, "num_heads": num_heads[0]}
    vit = {**vit, "mlp_ratio": 3, "num_classes": 0, "dynamic_img_size": True, **vit_kwargs}
    no_dropout = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    gpt2 = GPT2Config(n_embd=widths[1], n_layer=3, n_head=num_heads[1], n_inner=n_inner or widths[1] * 4, **no_dropout)
    encoders = {"vision": timm.create_model(architecture, **vit), "text": GPT2Model(gpt2)}
    towers = {}
    for (name, encoder), width in zip(encoders.items(), widths, strict=True):
        towers[name] = nn.ModuleDict({"encoder": encoder, "pre_proj": pre_proj(width, embed_dim, head_widths)})
        if with_projector:
            towers[name]["projector"] = projector(embed_dim, projector_widths)
        for module in towers[name].modules():
            if isinstance(module, nn.BatchNorm1d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                module.num_batches_tracked.fill_(7)
    return {name: tower.eval() for name, tower in towers.items()}


def flat(tower: nn.ModuleDict) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tower.state_dict().items()}


def write(folder: Path, towers: dict[str, nn.ModuleDict], config: dict | None = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    for name, file in (("vision", VISION), ("text", TEXT)):
        save_file(flat(towers[name]), folder / file)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_pair(folder: Path, towers: dict[str, nn.ModuleDict], run: str = "run", step: int = 5) -> Path:
    """What `torch.save` leaves in a training run."""
    folder.mkdir(exist_ok=True)
    for name, tower in towers.items():
        parts = {part: module.state_dict() for part, module in tower.items()}
        torch.save(parts, folder / f"{run}_{name}_step{step}.pt")
    return folder


@dataclass
class Expected:
    tokens: Tensor
    image_embeds: Tensor
    text_embeds: Tensor
    predicted_text_embeds: Tensor | None
    predicted_image_embeds: Tensor | None


@torch.no_grad()
def reference(towers: dict[str, nn.ModuleDict], inputs: dict[str, Tensor]) -> Expected:
    """The model card's forward: the pooled ViT, and GPT-2 at the last unmasked position."""
    vision, text = towers["vision"], towers["text"]
    z_v = vision["pre_proj"](vision["encoder"](inputs["pixel_values"]))
    hidden = text["encoder"](input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    last = inputs["attention_mask"].sum(1) - 1
    z_t = text["pre_proj"](hidden[torch.arange(len(last)), last])
    return Expected(
        tokens=vision["encoder"].forward_features(inputs["pixel_values"]),
        image_embeds=z_v,
        text_embeds=z_t,
        predicted_text_embeds=vision["projector"](z_v) if "projector" in vision else None,
        predicted_image_embeds=text["projector"](z_t) if "projector" in text else None,
    )


def make_inputs(channels: int = 3) -> dict[str, Tensor]:
    """Three images and captions of 6, 4 and 2 tokens, ended and padded with EOS."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([6, 4, 2])
    mask = (torch.arange(6) < lengths[:, None]).long()
    input_ids = torch.randint(0, 50000, (3, 6), generator=generator)
    input_ids[torch.arange(6) >= lengths[:, None] - 1] = EOS
    pixel_values = torch.randn(3, channels, 32, 32, generator=generator)
    return {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": mask}


def assert_same(actual: Tensor | None, expected: Tensor | None) -> None:
    if expected is None:
        assert actual is None
    else:
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def assert_model(model: LeVLJEPAModel, towers: dict[str, nn.ModuleDict], channels: int = 3) -> None:
    """Everything that comes out of the whole model equals the reference."""
    assert not model.training
    inputs = make_inputs(channels)
    expected, output = reference(towers, inputs), model(**inputs)
    for name in ("image_embeds", "text_embeds", "predicted_text_embeds", "predicted_image_embeds"):
        assert_same(getattr(output, name), getattr(expected, name))
    num_prefix = towers["vision"]["encoder"].num_prefix_tokens
    assert_same(output.vision_model_output.last_hidden_state[:, 1:], expected.tokens[:, num_prefix:])
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert_same(model.get_image_features(inputs["pixel_values"]).pooler_output, expected.image_embeds)
    assert_same(model.get_text_features(**texts).pooler_output, expected.text_embeds)


@pytest.fixture(scope="module")
def towers() -> dict[str, nn.ModuleDict]:
    torch.manual_seed(0)
    return build_towers()


@pytest.fixture(scope="module")
def checkpoint(towers, tmp_path_factory) -> Path:
    """Read by many tests and written by none."""
    return write(tmp_path_factory.mktemp("released"), towers)


@pytest.fixture
def broken(checkpoint, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "broken"))


def edit(path: Path, **changes: Tensor | None) -> None:
    """Replaces (or with `None` removes) tensors of a file; `__` in a keyword stands for a dot."""
    tensors = load_file(path)
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, path)


# Loading


@pytest.mark.parametrize("load", [LeVLJEPAModel.from_pretrained, AutoModel.from_pretrained], ids=["model", "auto"])
def test_whole_model_equals_the_model_cards_forward(checkpoint, towers, load):
    model, info = load(checkpoint, output_loading_info=True)
    assert isinstance(model, LeVLJEPAModel)
    assert not any(info.values()), info
    assert_model(model, towers)
    text = model.config.text_config
    assert (text.attn_pdrop, text.resid_pdrop, text.embd_pdrop) == (0.0, 0.0, 0.0)


def test_vision_tower_and_heads_load_without_the_text_file(broken, towers):
    (broken / TEXT).unlink()
    inputs = make_inputs()
    expected = reference(towers, inputs)
    patches = expected.tokens[:, 1:]
    with torch.no_grad():
        model, info = LeVLJEPAVisionModel.from_pretrained(broken, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        output = model(inputs["pixel_values"])
        assert_same(output.last_hidden_state, expected.tokens)
        assert_same(output.pooler_output, expected.tokens[:, 0])
        feature_map = LeVLJEPABackbone.from_pretrained(broken)(inputs["pixel_values"]).feature_maps[-1]
        assert_same(feature_map.flatten(2).transpose(1, 2), patches)
        for head_class in (LeVLJEPAForImageClassification, LeVLJEPAForSemanticSegmentation):
            head = head_class.from_pretrained(broken, num_labels=5)
            assert head.config.num_labels == head.classifier.out_features == 5
            assert_same(head.vision_model(inputs["pixel_values"]).last_hidden_state, expected.tokens)


def test_dtype_and_attention_are_passed_on(checkpoint):
    model = LeVLJEPAModel.from_pretrained(checkpoint, dtype=torch.bfloat16, attn_implementation="eager")
    assert model.dtype == torch.bfloat16 and model.text_model.config._attn_implementation == "eager"
    assert LeVLJEPAModel.from_pretrained(checkpoint, dtype="auto").dtype == torch.float32


def test_training_the_loaded_model_leaves_the_file_alone(checkpoint):
    before = (checkpoint / VISION).read_bytes()
    model = LeVLJEPAModel.from_pretrained(checkpoint)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert (checkpoint / VISION).read_bytes() == before


def test_hub_cache_without_a_network(checkpoint, towers, tmp_path):
    repo = tmp_path / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(checkpoint, repo / "snapshots" / ("0" * 40))
    kwargs = {"cache_dir": tmp_path, "local_files_only": True}
    assert_model(LeVLJEPAModel.from_pretrained("owner/name", **kwargs), towers)
    files = find_released_files("owner/name", towers=("vision",), **kwargs)
    assert files.vision.name == VISION and files.text is None
    processor = LeVLJEPAProcessor.from_pretrained("owner/name", **kwargs)
    assert processor.image_processor.crop_size["height"] == 32


def test_unreachable_hub_id_is_left_to_transformers():
    assert find_released_files("owner/nothing", local_files_only=True) is None
    with pytest.raises(OSError, match="couldn't find them in the cached files"):
        LeVLJEPAModel.from_pretrained("owner/nothing", local_files_only=True)


def test_native_weights_have_the_last_word(broken, tmp_path):
    assert find_released_files(tmp_path) is None and find_released_files(None) is None
    assert find_released_files(broken).vision == broken / VISION
    (broken / "model.safetensors").touch()
    assert find_released_files(broken) is None


# The configuration


def test_everything_but_heads_is_read_off_the_shapes(checkpoint):
    config = released_config(find_released_files(checkpoint))
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers) == (48, 144, 2)
    assert (vision.image_size, vision.patch_size, vision.num_register_tokens) == (32, 8, 0)
    assert (text.n_embd, text.n_layer, text.vocab_size, text.n_positions) == (36, 3, 50257, 1024)
    assert (config.projection_dim, config.head_hidden_size, config.predictor_num_layers) == (DIM, WIDTH, 4)
    assert (vision.num_attention_heads, text.n_head) == (4, 3)
    assert vision.out_features == ["stage2"]


WRONG = {
    **CONFIG,
    "vision_encoder": {"architecture": "vit_base_patch16_224", "hidden_size": 770, "num_layers": 12, "num_heads": 4},
    "text_encoder": {"architecture": "gpt2", "hidden_size": 100, "num_layers": 1, "num_heads": 3, "vocab_size": 9},
    "embed_dim": 768,
    "projector_width": 512,
    "projector_depth": 1,
}


@pytest.mark.parametrize("load", [LeVLJEPAModel.from_pretrained, AutoModel.from_pretrained], ids=["model", "auto"])
def test_shapes_win_over_a_wrong_config_json(towers, tmp_path, load):
    assert_model(load(write(tmp_path / "wrong", towers, WRONG)), towers)


def test_shapes_win_over_a_given_config(checkpoint, towers):
    config = LeVLJEPAConfig.from_preset("base", projection_dim=768, logit_scale=5.0)
    before = config.to_dict()
    model = LeVLJEPAModel.from_pretrained(checkpoint, config=config)
    assert_model(model, towers)
    assert model.config.logit_scale == 5.0  # what shapes don't tell is kept
    assert config.to_dict() == before
    vision = released_config(find_released_files(checkpoint), LeVLJEPAVisionConfig(drop_path_rate=0.1))
    assert (vision.hidden_size, vision.num_attention_heads, vision.drop_path_rate) == (48, 4, 0.1)


@pytest.mark.parametrize("config", [None, {}, {"model_type": "other"}], ids=["missing", "empty", "other"])
def test_config_json_that_says_nothing(towers, tmp_path, config):
    """Nobody states the number of heads: 64 wide, as in every size of the official code, or else an error."""
    torch.manual_seed(3)
    usual = build_towers(widths=(128, 64), num_heads=(2, 1))
    assert_model(LeVLJEPAModel.from_pretrained(write(tmp_path / "usual", usual, config)), usual)
    unusual = write(tmp_path / "unusual", towers, config)
    with pytest.raises(ValueError, match=rf"{VISION} has width 48.*number of attention heads: state num_heads"):
        LeVLJEPAModel.from_pretrained(unusual)
    vision, text = {"hidden_size": 48, "num_attention_heads": 4}, {"n_embd": 36, "n_head": 3}
    given = LeVLJEPAConfig(vision_config=vision, text_config=text)
    assert_model(LeVLJEPAModel.from_pretrained(unusual, config=given), towers)


# What the official configurations call it, and the widths of head and predictor.
HEADS = {
    "widths of their own": ({"pre_proj_width": 24, "pre_proj_depth": 1, "projector_width": 40}, [24], [40] * 4),
    "deep head": ({"pre_proj_width": 24, "pre_proj_depth": 2, "projector_width": 24}, [24, 24], [24] * 4),
    "lists": ({"pre_proj_hidden_dims": [24, 20], "projector_hidden_dims": [40, 12]}, [24, 20], [40, 12]),
    "linear": ({"pre_proj_width": 40, "pre_proj_depth": 0, "projector_hidden_dims": []}, [], []),
}


@pytest.mark.parametrize("says_so", [True, False], ids=["stated", "unstated"])
@pytest.mark.parametrize("case", HEADS)
def test_heads_of_official_configurations(case, says_so, tmp_path):
    stated, head_widths, projector_widths = HEADS[case]
    config = {**CONFIG, "projector_width": WIDTH, **stated} if says_so else {**CONFIG, "projector_width": 999}
    torch.manual_seed(6)
    towers = build_towers(head_widths=head_widths, projector_widths=projector_widths)
    model = AutoModel.from_pretrained(write(tmp_path / "heads", towers, config))
    assert_model(model, towers)
    assert (model.config.head_hidden_sizes, model.config.predictor_hidden_sizes) == (head_widths, projector_widths)
    if says_so:
        of_config_json = LeVLJEPAConfig.from_pretrained(tmp_path / "heads")
        assert of_config_json.head_hidden_sizes == head_widths
        assert of_config_json.predictor_hidden_sizes == projector_widths
    save_released(model, None, tmp_path / "back")
    assert_same_tensors(tmp_path / "heads", tmp_path / "back")
    again = LeVLJEPAConfig.from_pretrained(tmp_path / "back")
    assert (again.head_hidden_sizes, again.predictor_hidden_sizes) == (head_widths, projector_widths)
    assert_model(LeVLJEPAModel.from_pretrained(convert(tmp_path / "heads", tmp_path / "native")), towers)


def test_dropouts_of_a_given_configuration_do_not_stay(checkpoint):
    """The release was trained without dropout; GPT-2's own default is 0.1."""
    given = LeVLJEPAConfig(text_config=GPT2Config(n_embd=36, n_head=3), vision_config={"num_attention_heads": 4})
    assert given.text_config.resid_pdrop == 0.1
    text = LeVLJEPAModel.from_pretrained(checkpoint, config=given).config.text_config
    assert text.resid_pdrop == text.embd_pdrop == text.attn_pdrop == 0


def test_a_revision_of_the_hub(checkpoint, towers, tmp_path):
    repo = tmp_path / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    other = build_towers()
    for revision, commit, tensors in (("main", "0" * 40, towers), ("v2", "1" * 40, other)):
        (repo / "refs" / revision).write_text(commit)
        (repo / "snapshots").mkdir(exist_ok=True)
        write(repo / "snapshots" / commit, tensors)
    kwargs = {"cache_dir": tmp_path, "local_files_only": True}
    assert_model(LeVLJEPAModel.from_pretrained("owner/name", revision="v2", **kwargs), other)
    assert_model(LeVLJEPAModel.from_pretrained("owner/name", **kwargs), towers)


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_pt_file_runs_no_code(towers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_pair(tmp_path / "pair", towers)
    torch.save({"encoder": Payload()}, folder / "run_vision_step5.pt")
    with pytest.raises(OSError, match="holds other objects than tensors"):
        convert(folder, tmp_path / "native")
    with (folder / "run_vision_step5.pt").open("wb") as file:  # not in torch's zip format
        pickle.dump(Payload(), file, protocol=2)
    with pytest.raises(OSError, match="holds other objects than tensors"):
        convert(folder, tmp_path / "native")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "native").exists()


def test_infonce_sibling_has_no_predictors(tmp_path):
    torch.manual_seed(4)
    towers = build_towers(embed_dim=24, with_projector=False)
    config = {**CONFIG, "embed_dim": 512}
    model = AutoModel.from_pretrained(write(tmp_path / "infonce", towers, config))
    assert model.config.predictor_num_layers == 0 and model.config.projection_dim == 24
    assert_model(model, towers)


@pytest.mark.parametrize(
    ("architecture", "vit_kwargs"),
    [
        ("vit_tiny_patch16_224", {"patch_size": 4, "in_chans": 1}),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}),
        ("vit_small_patch14_reg4_dinov2", {}),  # registers outside of the position embeddings, LayerScale
    ],
    ids=["patch4", "registers", "dinov2"],
)
def test_other_vision_transformers(tmp_path, architecture, vit_kwargs):
    torch.manual_seed(5)
    towers = build_towers(architecture, **vit_kwargs)
    config = {**CONFIG, "vision_encoder": {"architecture": architecture, "num_heads": 4}}
    model = LeVLJEPAModel.from_pretrained(write(tmp_path / "variant", towers, config))
    assert_model(model, towers, vit_kwargs.get("in_chans", 3))
    assert model.config.vision_config.num_register_tokens == towers["vision"]["encoder"].num_reg_tokens


def test_other_width_of_gpt2s_hidden_layers(tmp_path):
    towers = build_towers(n_inner=50)
    model = LeVLJEPAModel.from_pretrained(write(tmp_path / "narrow", towers))
    assert_model(model, towers)
    assert model.config.text_config.n_inner == 50


def test_names_left_by_wrappers_and_old_gpt2_masks(towers, tmp_path):
    folder = write(tmp_path / "wrapped", towers)
    for file, wrapper in ((VISION, "module.{}"), (TEXT, "_orig_mod.module.{}")):
        tensors = {wrapper.format(name): tensor for name, tensor in load_file(folder / file).items()}
        save_file(tensors, folder / file)
    masks = {f"encoder__h__{i}__attn__bias": torch.ones(1, 1, 8, 8, dtype=torch.bool) for i in range(3)}
    edit(folder / TEXT, encoder__h__0__attn__masked_bias=torch.tensor(-1e4), **masks)
    model, info = LeVLJEPAModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert_model(model, towers)


# Damaged and contradicting files


ERRORS = {
    "no encoder.norm.weight": (VISION, {"encoder__norm__weight": None}, r"no tensor 'encoder\.norm\.weight'"),
    "no pos_embed": (VISION, {"encoder__pos_embed": None}, r"no tensor 'encoder\.pos_embed'"),
    "no wte": (TEXT, {"encoder__wte__weight": None}, r"no tensor 'encoder\.wte\.weight'"),
    "no running_var": (TEXT, {"pre_proj__1__running_var": None}, r"no tensor 'pre_proj\.1\.running_var'"),
    "no pre_proj": (TEXT, {"pre_proj__3__weight": None}, r"no tensor 'pre_proj\.3\.weight'"),
    "a block of other width": (
        VISION,
        {"encoder__blocks__1__attn__qkv__weight": torch.zeros(90, 30)},
        r"'encoder\.blocks\.1\.attn\.qkv\.weight' has shape \(90, 30\).*make it \(144, 48\)",
    ),
    "a head for another encoder": (
        TEXT,
        {"pre_proj__0__weight": torch.zeros(WIDTH, 48)},
        r"'pre_proj\.0\.weight' has shape \(40, 48\).*make it \(40, 36\)",
    ),
    "other dimensions in one head": (
        TEXT,
        {"pre_proj__3__weight": torch.zeros(24, WIDTH), "pre_proj__3__bias": torch.zeros(24)},
        r"'projector\.0\.weight' has shape \(40, 16\), but the layer before it gives 24 numbers and not 16",
    ),
    "a predictor that ends elsewhere": (
        VISION,
        {"projector__16__weight": torch.zeros(24, WIDTH), "projector__16__bias": torch.zeros(24)},
        r"'projector\.16\.weight' has shape \(24, 40\).*'pre_proj' makes 16",
    ),
    "a predictor of another width": (
        VISION,
        {"projector__0__weight": torch.zeros(64, DIM)},
        r"'projector\.4\.weight' has shape \(40, 40\), but the layer before it gives 64 numbers",
    ),
    "a gap in the predictor": (
        VISION,
        {"projector__4__weight": None},
        r"no tensor 'projector\.4\.weight'",
    ),
    "positions of no square": (VISION, {"encoder__pos_embed": torch.zeros(1, 19, 48)}, r"'encoder\.pos_embed' has 19"),
    "a vector for a matrix": (
        TEXT,
        {"encoder__wpe__weight": torch.zeros(36)},
        r"'encoder\.wpe\.weight' has shape \(36,\)",
    ),
    "another architecture": (
        VISION,
        {"encoder__blocks__0__ls1__gamma": torch.ones(48)},
        r"no place for: 'encoder\.blocks\.0\.ls1\.gamma' \(is `vision_encoder\.architecture`",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_names_file_and_key(broken, case):
    file, changes, message = ERRORS[case]
    edit(broken / file, **changes)
    with pytest.raises(ValueError, match=f"broken.{file}.*{message}"):
        LeVLJEPAModel.from_pretrained(broken)


def test_gap_in_the_blocks(broken):
    tensors = load_file(broken / TEXT)
    save_file({name: t for name, t in tensors.items() if not name.startswith("encoder.h.1.")}, broken / TEXT)
    with pytest.raises(ValueError, match=rf"{TEXT} has no tensor 'encoder\.h\.1\.\*', but has 'encoder\.h\.2\.\*'"):
        LeVLJEPAModel.from_pretrained(broken)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"with_projector": False}, r"hidden layers of width \[40, 40, 40, 40\] in the first, None in the second"),
        ({"embed_dim": 24}, r"embeddings of 16 dimensions in the first, 24 in the second"),
    ],
    ids=["predictor", "dimension"],
)
def test_files_of_different_checkpoints(broken, other, message):
    save_file(flat(build_towers(**other)["text"]), broken / TEXT)
    with pytest.raises(ValueError, match=rf"{VISION} and {TEXT} in .*broken do not belong together.*{message}"):
        LeVLJEPAModel.from_pretrained(broken)


@pytest.mark.parametrize("missing", [VISION, TEXT])
def test_missing_file(broken, missing):
    (broken / missing).unlink()
    with pytest.raises(FileNotFoundError, match=rf"but no {missing}: .*force_download=True"):
        LeVLJEPAModel.from_pretrained(broken)


@pytest.mark.parametrize("file", [VISION, TEXT])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1000], "cut off or damaged.*force_download=True"),
        (lambda content: b"", r"\(0 bytes\).*cut off or damaged"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    ],
    ids=["truncated", "empty", "lfs"],
)
def test_unreadable_file(broken, file, damage, message):
    path = broken / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(OSError, match=f"{file}.*{message}"):
        LeVLJEPAModel.from_pretrained(broken)


def test_unreadable_config_json(broken):
    (broken / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no readable JSON.*repair it, or delete it"):
        released_config(find_released_files(broken))


# .pt pairs


def test_pt_pair_in_every_spelling(towers, tmp_path):
    folder = write_pair(tmp_path / "run", towers)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    spellings = (folder, folder / "run_vision_step5.pt", folder / "run_text_step5.pt", folder / "run_step5")
    found = [find_pt_pair(spelling) for spelling in spellings]
    assert {(pair.vision.name, pair.text.name) for pair in found} == {("run_vision_step5.pt", "run_text_step5.pt")}
    config = released_config(found[0])
    expected = {f"vision_projection.{name}": t for name, t in towers["vision"]["pre_proj"].state_dict().items()}
    state_dict = released_state_dict(found[0], config, towers=("vision",))
    for name, tensor in expected.items():
        assert torch.equal(state_dict[name], tensor)
    assert find_pt_pair(tmp_path) is None and find_pt_pair("owner/name_step5") is None


def test_errors_of_pt_pairs(towers, tmp_path):
    folder = write_pair(tmp_path / "run", towers)
    write_pair(folder, towers, step=10)
    with pytest.raises(ValueError, match=r"several checkpoints. Name one: .*run_step5, .*run_step10"):
        find_pt_pair(folder)
    (folder / "run_text_step10.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"run_text_step10\.pt is missing"):
        find_pt_pair(folder / "run_step10")
    (folder / "weights.pt").touch()
    with pytest.raises(ValueError, match=r"weights\.pt is not named like.*RUN_vision_stepN\.pt"):
        find_pt_pair(folder / "weights.pt")
    pair = find_pt_pair(folder / "run_step5")
    torch.save({"model": {}, "step": 5}, pair.vision)
    with pytest.raises(ValueError, match=r"run_vision_step5\.pt holds a dict of 'model', 'step'.*'pre_proj'"):
        released_config(pair)
    pair.vision.write_bytes(pair.text.read_bytes()[:2000])
    with pytest.raises(OSError, match=r"run_vision_step5\.pt \(2000 bytes\).*copy it again"):
        released_config(pair)


# Writing


def assert_same_tensors(folder: Path, other: Path) -> None:
    for file in (VISION, TEXT):
        tensors, others = load_file(folder / file), load_file(other / file)
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == others[name].dtype and torch.equal(tensor, others[name]), name


def test_there_and_back_is_bit_equal(checkpoint, towers, tmp_path):
    native = convert(checkpoint, tmp_path / "native")
    assert find_released_files(native) is None
    assert_model(AutoModel.from_pretrained(native), towers)
    back = convert(native, tmp_path / "back", to="released")
    assert_same_tensors(checkpoint, back)
    stated = json.loads((back / "config.json").read_text())
    assert stated == {name: value for name, value in CONFIG.items() if name != "training"}
    assert sorted(path.name for path in back.iterdir()) == ["README.md", "config.json", TEXT, VISION]
    assert (native / "model.safetensors").stat().st_size > 0 and not list(tmp_path.glob(".*"))


def test_conversion_keeps_bfloat16(broken, tmp_path):
    for file in (VISION, TEXT):
        tensors = load_file(broken / file)
        save_file({name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors.items()}, broken / file)
    back = convert(convert(broken, tmp_path / "native"), tmp_path / "back", to="released")
    assert_same_tensors(broken, back)


def test_saving_a_state_dict(checkpoint, tmp_path):
    model = LeVLJEPAModel.from_pretrained(checkpoint)
    save_released(model.state_dict(), model.config, tmp_path / "saved")
    assert_same_tensors(checkpoint, tmp_path / "saved")


def test_what_the_layout_has_no_place_for(checkpoint, tmp_path):
    model = LeVLJEPAModel.from_pretrained(checkpoint)
    state_dict = model.state_dict()
    with pytest.raises(ValueError, match="no place for 'classifier.weight'"):
        save_released({**state_dict, "classifier.weight": torch.zeros(2, 2)}, model.config, tmp_path / "saved")
    del state_dict["text_projection.3.bias"]
    with pytest.raises(ValueError, match=rf"{TEXT} has no tensor 'pre_proj.3.bias'"):
        save_released(state_dict, model.config, tmp_path / "saved")
    with pytest.raises(ValueError, match="the configuration is LeVLJEPAVisionConfig"):
        save_released(model.vision_model, None, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_failed_write_leaves_nothing_behind(checkpoint, tmp_path, monkeypatch):
    def fail_on_text(tensors, path, metadata):
        if "encoder.wte.weight" in tensors:
            path.write_bytes(b"half")
            raise OSError("No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(released, "save_file", fail_on_text)
    model = LeVLJEPAModel.from_pretrained(checkpoint)
    with pytest.raises(OSError, match="No space left"):
        save_released(model, None, tmp_path / "saved")
    assert list((tmp_path / "saved").iterdir()) == []
    with pytest.raises(OSError, match="No space left"):
        convert(checkpoint, tmp_path / "converted", to="released")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


# The command


def test_command_converts_a_pt_pair(towers, tmp_path, capsys):
    torch.manual_seed(6)
    usual = build_towers(widths=(64, 64), num_heads=(1, 1))
    folder = write_pair(tmp_path / "run", usual)
    assert main([str(folder / "run_step5"), str(tmp_path / "out"), "--license", "apache-2.0"]) == 0
    assert f"LeVLJEPAModel.from_pretrained('{tmp_path / 'out'}')" in capsys.readouterr().out
    assert_model(LeVLJEPAModel.from_pretrained(tmp_path / "out"), usual)
    processor = LeVLJEPAProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_processor.size["shortest_edge"] == 32
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.base_model is None
    assert "`run_step5`" in card.text and str(tmp_path) not in card.text


def test_target_is_never_overwritten_by_accident(checkpoint, tmp_path, capsys):
    target = tmp_path / "target"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        main([str(checkpoint), str(target)])
    assert "is there already" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(checkpoint), str(target), "--overwrite"])
    assert "holds no checkpoint" in capsys.readouterr().err
    assert (target / "notes.txt").read_text() == "mine"
    (target / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match="2"):
        main([str(checkpoint), str(target), "--overwrite"])
    assert "also holds 'notes.txt', which convert does not write" in capsys.readouterr().err
    assert (target / "notes.txt").read_text() == "mine" and (target / "config.json").read_text() == "{}"
    (target / "notes.txt").unlink()
    assert main([str(checkpoint), str(target), "--overwrite", "--to", "released"]) == 0
    assert_same_tensors(checkpoint, target)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_target_is_not_the_folder_of_the_pair(towers, tmp_path):
    folder = write_pair(tmp_path / "run", towers)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for source in (folder, folder / "run_step5", folder / "run_text_step5.pt"):
        with pytest.raises(ValueError, match="choose another target"):
            convert(source, folder, overwrite=True)


def test_source_that_can_not_be_converted(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="choose another target"):
        convert(checkpoint, checkpoint, overwrite=True)
    with pytest.raises(ValueError, match="choose another target"):
        convert(checkpoint, checkpoint.parent, overwrite=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        convert(tmp_path / "nowhere", tmp_path / "target")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no checkpoint: neither model.safetensors, nor"):
        convert(tmp_path / "empty", tmp_path / "target")
    with pytest.raises(ValueError, match="to='onnx' is no layout"):
        convert(checkpoint, tmp_path / "target", to="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert f"levljepa convert {RELEASES[0]} " in capsys.readouterr().out


# Model cards


def test_card_of_a_conversion(checkpoint, tmp_path):
    native = convert(checkpoint, tmp_path / "native", base_model=RELEASES[0])
    card = ModelCard.load(native / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["library_name"], data["base_model"]) == (LICENSE, "transformers", RELEASES[0])
    assert data["pipeline_tag"] == "zero-shot-image-classification" and "levljepa" in data["tags"]
    assert "trust_remote_code=True" in card.text and "23.15" in card.text
    assert "{{" not in card.text and "{%" not in card.text


@pytest.mark.parametrize("to", ["native", "released"])
def test_a_card_holds_no_paths_of_the_machine(checkpoint, tmp_path, to):
    card = ModelCard.load(convert(checkpoint, tmp_path / "copy", to=to) / "README.md")
    assert card.data.base_model is None
    assert f"`{checkpoint.name}`" in card.text and "copy" in card.text
    assert not any(str(folder) in str(card) for folder in (tmp_path, checkpoint, checkpoint.parent))


@pytest.mark.parametrize("release", RELEASES)
def test_finished_cards_are_the_template_rendered(release):
    config = {} if "LeVLJEPA" in release else {"projection_dim": 512, "predictor_num_layers": 0}
    config = LeVLJEPAConfig.from_preset("released", **config)
    card = model_card(config, name=release, source=release, base_model=release, native=False)
    finished = Path(__file__).parents[2] / "model_cards" / f"{release.rsplit('/', 1)[-1]}.md"
    assert finished.read_text(encoding="utf-8") == str(card)


# The processor


def test_processor_of_a_released_folder(checkpoint):
    processor = LeVLJEPAProcessor.from_pretrained(checkpoint)
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8))
    inputs = processor(images=image, text=["a cat", "a photo of two dogs."], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    assert inputs["input_ids"][:, -1].tolist() == [EOS, EOS] and inputs["attention_mask"].sum(1).tolist() == [3, 7]
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    black = processor(images=PIL.Image.new("RGB", (32, 32)), return_tensors="pt")["pixel_values"][0, :, 0, 0]
    np.testing.assert_allclose(black, -mean / std, rtol=1e-5)
    other = LeVLJEPAProcessor.from_pretrained(checkpoint, image_mean=[0.5] * 3)
    assert list(other.image_processor.image_mean) == [0.5] * 3
    output = LeVLJEPAModel.from_pretrained(checkpoint)(**inputs)
    assert output.logits_per_image.shape == (1, 2)


def test_native_weights_are_looked_for_where_the_released_ones_would_be(monkeypatch):
    """In the same revision, with the same token: of another branch they say nothing."""
    asked = []

    def has_file(source, name, **kwargs):
        asked.append((source, name, kwargs))
        return True

    monkeypatch.setattr(released, "has_file", has_file)
    where = {"revision": "two-files", "token": "secret", "cache_dir": "kept"}
    assert released.find_released_files("someone/model", subfolder="vit", **where) is None
    assert asked[0] == ("someone/model", "vit/model.safetensors", where)
