"""The rooms of the code: imports run one way, nothing private crosses a wall, and no module stands outside a room."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
PACKAGE = "levljepa_hf"
COMMAND = "levljepa_command"  # the console script: the one module beside the package

# From the ground up: a floor may import from those before it, and not from its own.
FLOORS = (
    ("version", "files", "figures", "extras", "sketch", "_torchvision"),
    ("options",),
    ("model",),
    ("registration",),
    ("recipes", "scenes"),
    ("data",),
    ("encoders", "hub"),
    ("evaluation",),
    ("training",),
    ("finetuning", "explore"),
    ("demo",),
    ("cli", "__init__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(parts: list[str] | tuple[str, ...]) -> str:
    """The room of a module or a name, by its dotted path below the package."""
    return parts[0] if parts else "__init__"


def imports(path: Path, src: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Line, the module that is named, and the whole path below the package of each name that a file takes from it."""
    package = list(path.relative_to(src / PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                head, *below = alias.name.split(".")
                if head == PACKAGE:
                    yield node.lineno, ".".join(below), below
        elif isinstance(node, ast.ImportFrom):
            head, *below = (node.module or "").split(".")
            if node.level:
                base = package[: len(package) + 1 - node.level] + [part for part in (head, *below) if part]
            elif head == PACKAGE:
                base = below
            else:
                continue
            for alias in node.names:
                yield node.lineno, ".".join(base), [*base, alias.name]


def violations(src: Path) -> list[str]:
    """What is against the plan, a line each."""
    found = []
    modules: dict[str, set[str]] = {}  # what each module imports, by dotted path below the package
    found += [f"{path.name} stands beside the package" for path in src.glob("*.py") if path.stem != COMMAND]
    paths = {path: path.relative_to(src / PACKAGE).with_suffix("").parts for path in (src / PACKAGE).rglob("*.py")}
    names = {".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in paths.values()}
    for path, parts in sorted(paths.items()):
        here = room_of(parts)
        if here not in FLOOR:
            found.append(f"{path.relative_to(src)} is in no room of the plan")
            continue
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        for line, base, whole in imports(path, src):
            there = room_of(whole)
            place = f"{path.relative_to(src)}:{line}"
            if there not in FLOOR:
                found.append(f"{place} imports from {there}, which is no room")
            elif there != here and FLOOR[there] >= FLOOR[here]:
                found.append(f"{place} imports {'.'.join(whole)}, which is not below {here}")
            name = whole[-1]
            if there != here and any(part.startswith("_") and not part.startswith("__") for part in whole[1:]):
                found.append(f"{place} takes the private {name} from {there}")
            target = ".".join(whole) if ".".join(whole) in names else base
            if target in names and target != module:
                modules.setdefault(module, set()).add(target)
        if here == "model":
            tree = ast.walk(ast.parse(path.read_text("utf-8")))
            up = [node.lineno for node in tree if isinstance(node, ast.ImportFrom) and node.level > 1]
            found += [f"{path.relative_to(src)}:{line} imports from above model/, which travels alone" for line in up]
    return found + [f"circle: {' -> '.join(circle)}" for circle in circles(modules)]


def circles(imported: dict[str, set[str]]) -> list[list[str]]:
    """A path through each circle that a walk of the imports comes back to."""
    found, done, way = [], set(), []

    def walk(module: str) -> None:
        if module in way:
            found.append([*way[way.index(module) :], module])
        elif module not in done:
            way.append(module)
            for target in sorted(imported.get(module, ())):
                walk(target)
            done.add(way.pop())

    for module in sorted(imported):
        walk(module)
    return found


def test_the_rooms_are_as_planned() -> None:
    assert not violations(SRC), "\n".join(violations(SRC))


@pytest.mark.parametrize(
    ("path", "line", "message"),
    [
        ("data/images.py", "from ..training.order import numbered", "not below data"),
        ("encoders/features.py", "import levljepa_hf.hub.cards", "not below encoders"),
        ("data/images.py", "from ..model.released import _shapes", "private _shapes"),
        ("data/images.py", "from ..model._secret import some", "private some"),
        ("model/heads_levljepa.py", "from ..files import write_whole", "travels alone"),
        ("data/splits.py", "def late():\n    from .labelled import read_split", "circle: "),
        ("elsewhere.py", "x = 1", "in no room"),
        ("data/images.py", "from ..elsewhere import x", "no room"),
    ],
)
def test_what_is_against_the_plan_is_found(path: str, line: str, message: str, tmp_path: Path) -> None:
    """The real tree, with one line added."""
    for file in SRC.rglob("*.py"):
        copy = tmp_path / file.relative_to(SRC)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text("utf-8"))
    changed = tmp_path / PACKAGE / path
    changed.write_text((changed.read_text("utf-8") if changed.exists() else "") + f"\n{line}\n")
    found = violations(tmp_path)
    assert any(message in one for one in found), found


def test_a_room_hands_on_no_name_of_a_module_of_its_own() -> None:
    """Such a name would be the module or what it defines, by what was imported before."""
    for path in sorted((SRC / PACKAGE).glob("*/__init__.py")):
        room = importlib.import_module(f"{PACKAGE}.{path.parent.name}")
        modules = {one.name for one in pkgutil.iter_modules(room.__path__)}
        assert room.__doc__ and not modules & set(room.__all__), path
        assert all(hasattr(room, name) for name in room.__all__)
