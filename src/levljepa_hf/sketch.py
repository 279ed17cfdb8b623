"""Reads what a module declares (constants, dataclasses, commands) without running its imports.

Help and wrong options are to be answered at once, and the dataclasses that say what there is stand beside code that
imports torch, which takes seconds. So the source is read, and of it only what a name needs is run: assignments,
classes without their methods, and, in the same way, what they take from other modules of the package.

    read("levljepa_hf.evaluation.knn")["KNNProtocol"]  # a dataclass with its fields, defaults and help

What cannot be had so, such as functions and other packages, is `Unknown`: an annotation with it still reads.
"""

import ast
import builtins
import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

# Modules that are as light as this one are imported: their functions are called while a declaration is run.
LIGHT = (
    "levljepa_hf.evaluation.task",
    "levljepa_hf.extras",
    "levljepa_hf.options",
    "levljepa_hf.recipes.shelf",
)
# Where other packages define what ours are made of; all else of theirs is unknown.
ELSEWHERE = {
    ("huggingface_hub.constants", "HF_HOME"): "huggingface_hub.constants",
    ("transformers", "TrainingArguments"): "transformers.training_args",
    ("transformers.trainer_utils", "IntervalStrategy"): "transformers.trainer_utils",
    ("transformers.trainer_utils", "SaveStrategy"): "transformers.trainer_utils",
}


class _Anything(type):
    """Of a class that stands for whatever is not known: attributes, items and calls of it are itself."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls

    def __iter__(cls) -> Any:
        return iter(())


class Unknown(metaclass=_Anything):
    """What was not read: a function, another package, what could not be run."""


class Sketch:
    """A module as it is declared; names are run when they are first asked for.

    Args:
        name: The module's dotted name.
        path: Its source.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.names: dict[str, Any] = {"__name__": name, "__file__": str(path), "__package__": self.package}
        self.definitions: dict[str, ast.stmt] = {}
        tree = ast.parse(path.read_text("utf-8"))
        self.names["__doc__"] = ast.get_docstring(tree, clean=False)
        for statement in tree.body:
            self.definitions |= dict.fromkeys(_defined(statement), statement)

    def __getitem__(self, name: str) -> Any:
        """What the module has under that name, or `Unknown`."""
        if name not in self.names and name in self.definitions:
            self.names[name] = Unknown  # as long as it is being read: two that need each other do not go in a circle
            try:
                self._run(name, self.definitions[name])
            except Exception:  # whatever a constant may raise where functions are unknown
                self.names[name] = Unknown
        return self.names.get(name, Unknown)

    def _run(self, name: str, statement: ast.stmt) -> None:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            self.names[name] = self._imported(name, statement)
        elif isinstance(statement, ast.ClassDef):
            self._execute(self._without_methods(statement))
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
            self._execute(statement)

    def _execute(self, statement: ast.stmt) -> None:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and not hasattr(builtins, node.id):
                self.names.setdefault(node.id, self[node.id])
        exec(compile(ast.Module([statement], []), self.names["__file__"], "exec"), self.names)

    def _without_methods(self, node: ast.ClassDef) -> ast.ClassDef:
        methods = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
        kept = [one for one in node.body if isinstance(one, (ast.Assign, ast.AnnAssign, ast.Expr, ast.Pass))]
        body = [one for one in kept if not methods & {n.id for n in ast.walk(one) if isinstance(n, ast.Name)}]
        return ast.ClassDef(
            name=node.name,
            bases=[base for base in node.bases if self._value(base) is not Unknown],
            keywords=[],
            body=body or [ast.copy_location(ast.Pass(), node)],
            decorator_list=[one for one in node.decorator_list if self._value(one) is not Unknown],
            type_params=[],
            **{key: getattr(node, key) for key in ("lineno", "col_offset", "end_lineno", "end_col_offset")},
        )

    def _value(self, expression: ast.expr) -> Any:
        head = next((node for node in ast.walk(expression) if isinstance(node, ast.Name)), None)
        return Unknown if head is None else getattr(builtins, head.id, None) or self[head.id]

    def _imported(self, name: str, statement: ast.Import | ast.ImportFrom) -> Any:
        alias = next(one for one in statement.names if name in (one.asname, one.name.partition(".")[0]))
        if isinstance(statement, ast.Import):
            return importlib.import_module(name) if _is_standard(alias.name) and not alias.asname else Unknown
        module = importlib.util.resolve_name("." * statement.level + (statement.module or ""), self.package)
        module = ELSEWHERE.get((module, alias.name), module)
        if _is_standard(module) or module in LIGHT:
            return getattr(importlib.import_module(module), alias.name)
        if module.partition(".")[0] in (__package__, self.package.partition(".")[0]) or module in ELSEWHERE.values():
            return read(module)[alias.name]
        return Unknown


@functools.cache
def read(module: str) -> Sketch:
    """The sketch of a module of this package, or of another one that is installed; none of them is imported.

    Raises:
        FileNotFoundError: if there is no such source.
    """
    top, *below = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"There is no package {top!r} to read {module} from.")
    # Where the package looks for its modules, if it is imported: that may be more than one folder.
    folders = getattr(sys.modules.get(module.rpartition(".")[0]), "__path__", ())
    places = [Path(folder, below[-1]) for folder in folders if below] + [Path(spec.origin).parent.joinpath(*below)]
    path = next((one for one in places if one.is_dir() or one.with_suffix(".py").is_file()), places[-1])
    return Sketch(module, path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))


def _defined(statement: ast.stmt) -> list[str]:
    """The names that a statement at the top of a module gives."""
    match statement:
        case ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return [one.asname or one.name.partition(".")[0] for one in aliases]
    return []


def _is_standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


__all__ = ["Sketch", "Unknown", "read"]
