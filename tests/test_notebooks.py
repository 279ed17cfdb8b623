"""The notebooks run from their committed source, on a checkpoint trained in seconds, and show what they show there.

Each runs in a kernel of the running interpreter, in a copy of the folder. How well a checkpoint does is not tested.
"""

import ast
import base64
import importlib
import io
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import numpy as np
import PIL.Image
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SLOW = {"5_pretrain", "6_language_model"}  # those that take more than 40 seconds on one core
MAX_BYTES = 500_000
MACHINE_PATH = re.compile(
    r"/(?:home|root|tmp|work|opt|Users|private|mnt|usr|var)/\w|[A-Z]:\\\w|site-packages|0x[0-9a-f]{8}"
)

tools = SimpleNamespace(**runpy.run_path(str(ROOT / "notebooks" / "execute.py")))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the notebooks read, with a quick checkpoint where they look for one."""
    root = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "training"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    notebook = notebook_of(
        "from levljepa_hf.demo import demo_checkpoint\nassert demo_checkpoint('../runs', 4, 128).name == 'quick'"
    )
    tools.execute(notebook, root / "notebooks")
    tools.clean(notebook)
    assert notebook.cells[0].outputs == [], "the first notebook trains with a progress bar and prints nothing else"
    return root


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in SLOW), id=path.stem) for path in NOTEBOOKS],
)
def test_a_notebook_runs(path: Path, copy: Path) -> None:
    """Without an error, and with outputs of the kinds that are saved."""
    saved = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    tools.execute(notebook, copy / "notebooks")
    tools.clean(notebook, copy)
    for number, (ours, theirs) in enumerate(zip(code_cells(notebook), code_cells(saved), strict=True), 1):
        assert kinds(ours) == kinds(theirs), f"code cell {number}: execute the notebook again\n{ours.source}"


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: NotebookNode) -> list[list[str]]:
    return [sorted(output.get("data", [output.get("name", "error")])) for output in cell.outputs]


@each_notebook
def test_saved_outputs_are_whole_small_and_of_no_machine(path: Path) -> None:
    assert path.stat().st_size < MAX_BYTES, f"{path.stat().st_size} bytes: draw fewer or smaller pictures"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    executed = [cell.execution_count for cell in cells]
    assert executed == list(range(1, len(cells) + 1)), "python notebooks/execute.py leaves the outputs of a clean run"
    found = [kind for cell in cells for kind_list in kinds(cell) for kind in kind_list]
    assert "image/png" in found, "a notebook shows a picture"
    assert not {"stderr", "error"} & set(found), "warnings and errors are mended, not saved"
    for text in [text for cell in cells for output in cell.outputs for text in texts(output)]:
        assert not MACHINE_PATH.search(text), text


def texts(output: NotebookNode) -> list[str]:
    data = output.get("data", {"text/plain": output.get("text", "")})
    return ["".join(content) for kind, content in data.items() if kind.startswith("text/")]


@each_notebook
def test_only_public_names_are_used(path: Path) -> None:
    for cell in code_cells(nbformat.read(path, as_version=4)):
        assert private_names(cell.source) == [], cell.source


def private_names(source: str) -> list[str]:
    """What a cell takes of this package that is not in the `__all__` of its module, and private attributes."""
    found = []
    for node in ast.walk(ast.parse(TransformerManager().transform_cell(source))):
        if isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr):
            found.append(node.attr)
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
            if node.module.partition(".")[0] == "levljepa_hf":
                module = importlib.import_module(node.module)
                found += [alias.name for alias in node.names if not is_public(module, alias.name)]
        found += [name for name in modules if re.search(r"^levljepa_hf(\.\w+)*\._", name)]
    return found


def is_public(module: ModuleType, name: str) -> bool:
    is_module = getattr(getattr(module, name, None), "__name__", None) == f"{module.__name__}.{name}"
    return name in module.__all__ or (is_module and not name.startswith("_"))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from levljepa_hf import SIGReg\n%matplotlib inline\nSIGReg().train()", []),
        ("from levljepa_hf.evaluation import pictures\npictures.plot_bars", []),
        ("from levljepa_hf.model.sigreg_levljepa import _statistic", ["_statistic"]),
        ("from levljepa_hf.evaluation.embedding_health import F", ["F"]),
        ("import levljepa_hf._torchvision", ["levljepa_hf._torchvision"]),
        ("from levljepa_hf import _torchvision as t", ["_torchvision"]),
        ("model.vision_model._pos_embed(x)", ["_pos_embed"]),
        ("model.__class__", []),
    ],
)
def test_private_names_are_found(source: str, found: list[str]) -> None:
    assert private_names(source) == found


# ------------------------------------------------------------------------------------------------------ execute.py


def notebook_of(*sources: str) -> NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def test_execute_uses_this_python_and_keeps_nothing_of_the_machine(tmp_path: Path) -> None:
    notebook = notebook_of(
        "import sys, os\nfrom pathlib import Path\nprint(sys.executable)",
        "Path('file').resolve()",
        "from tqdm.auto import tqdm\nfor _ in tqdm(range(3), desc='steps', unit=' s'): pass",
        "for _ in tqdm(iter('abc')): pass",
        "import warnings\nwarnings.warn('look')",
    )
    tools.execute(notebook, tmp_path)
    assert notebook.cells[0].outputs[0].text.strip() == sys.executable
    assert notebook.cells[2].outputs[0].name == "stderr"
    tools.clean(notebook, tmp_path.resolve())
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3, 4, 5]
    assert "('../file')" in notebook.cells[1].outputs[0].data["text/plain"]
    assert notebook.cells[2].outputs == notebook.cells[3].outputs == []
    assert "look" in notebook.cells[4].outputs[0].text  # a warning is shown
    assert all(not cell.metadata for cell in notebook.cells)
    assert notebook.metadata.language_info == {"name": "python"}


def test_clean_keeps_the_trainers_table_without_its_bar() -> None:
    bar = "\n  <div>\n  <progress value='3' max='3'></progress>\n  [3/3 00:15, Epoch 3/3]\n  </div>\n  "
    notebook = notebook_of("trainer.train()")
    notebook.cells[0].outputs = [
        nbformat.v4.new_output("display_data", {"text/html": html, "text/plain": "<HTML object>"})
        for html in (bar + "<table><td>0.5</td></table>", bar, "<div>all</div>")
    ]
    tools.clean(notebook)
    kept = [output.data["text/html"] for output in notebook.cells[0].outputs]
    assert kept == ["<table><td>0.5</td></table>", "<div>all</div>"]


def test_clean_joins_texts_shrinks_pictures_and_drops_widgets(tmp_path: Path) -> None:
    notebook = notebook_of(
        "print(1, flush=True)\nprint(2, flush=True)",
        "from IPython.display import display\ndisplay({'application/vnd.jupyter.widget-view+json': {}}, raw=True)",
        "from PIL import Image\nramp = Image.linear_gradient('L')\n"
        "Image.merge('RGB', [ramp, ramp.rotate(90), Image.effect_noise(ramp.size, 20)])",
    )
    tools.execute(notebook, tmp_path)
    png = base64.b64decode(notebook.cells[2].outputs[0].data["image/png"])
    tools.clean(notebook)
    assert [output.text for output in notebook.cells[0].outputs] == ["1\n2\n"]
    assert notebook.cells[1].outputs == []
    small = base64.b64decode(notebook.cells[2].outputs[0].data["image/png"])
    assert len(small) < len(png)
    pictures = [np.asarray(PIL.Image.open(io.BytesIO(one)).convert("RGB"), dtype=float) for one in (png, small)]
    assert np.abs(pictures[0] - pictures[1]).mean() < 10


def test_a_failing_notebook_is_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.ipynb"
    nbformat.write(notebook_of("1 + 1", "raise RuntimeError('broken')"), path)
    before = path.read_bytes()
    with pytest.raises(SystemExit) as stop:
        tools.main([str(path)])
    assert stop.value.code == 1 and path.read_bytes() == before
    assert "broken.ipynb failed" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        tools.main([str(tmp_path / "none.ipynb")])
    assert stop.value.code == 2 and "there is no notebook" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- the README's pictures


@each_notebook
def test_the_readme_has_a_small_picture_of_the_notebook(path: Path) -> None:
    picture = ROOT / "assets" / f"{path.stem}.png"
    assert picture.is_file(), "run: python assets/draw.py"
    assert picture.stat().st_size < 40_000


def test_the_tagged_picture_or_the_last_is_drawn(tmp_path: Path) -> None:
    draw = runpy.run_path(str(ROOT / "assets" / "draw.py"))
    notebook = notebook_of("1", "2", "3")
    for cell, color, number in zip(notebook.cells, ("red", "green", "blue"), (1, 2, 3), strict=True):
        buffer = io.BytesIO()
        PIL.Image.new("RGB", (1000, 500), color).save(buffer, "PNG")
        data = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": str(number)}
        cell.outputs = [nbformat.v4.new_output("display_data", data)]
    path = tmp_path / "x.ipynb"
    nbformat.write(notebook, path)
    picture = draw["picture_of"](path)
    assert picture.size == (400, 200) and picture.getpixel((5, 5)) == (0, 0, 255)
    notebook.cells[0].metadata.tags = ["readme"]
    tools.clean(notebook)  # the tag stays
    nbformat.write(notebook, path)
    assert draw["picture_of"](path).getpixel((5, 5)) == (255, 0, 0)
    nbformat.write(notebook_of("1"), path)
    with pytest.raises(ValueError, match="execute it first"):
        draw["picture_of"](path)


def test_features_are_drawn_of_a_checkpoint(copy: Path) -> None:
    draw = runpy.run_path(str(ROOT / "assets" / "draw.py"))
    figure = draw["draw_features"](copy / "runs" / "quick", image_size=48, num_images=3)
    assert [axis.get_images()[0].get_array().shape[:2] for axis in figure.axes] == [(192, 192)] * 3 + [(4, 4)] * 6
    assert (ROOT / "assets" / "features.png").stat().st_size < 150_000
