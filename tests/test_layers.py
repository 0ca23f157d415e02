"""The import direction quant <- device <- update <- cli, and what chatting must never load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "quant": set(),
    "device": {"quant"},
    "update": {"quant", "device"},
    "cli": {"quant", "device", "update"},
}
FILES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))
NOT_INSTALLED = sorted(path for folder in ("bench", "tests") for path in (ROOT / folder).rglob("*.py"))
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNPICKLING_CALLS = {"torch.load", "torch.serialization.load", "pandas.read_pickle"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=relative)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every absolute dotted name `path` imports, and whether that happens inside a function."""
    package = ("engrain", *path.relative_to(ROOT).parent.parts)

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                parent = package[: len(package) - child.level + 1] if child.level else ()
                module = ".".join((*parent, *([child.module] if child.module else [])))
                yield from ((f"{module}.{alias.name}", inside) for alias in child.names)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, inside or function)

    return walk(ast.parse(path.read_text(encoding="utf-8"), str(path)), False)


def top(name: str) -> str:
    return name.partition(".")[0]


@each(FILES)
def test_import_direction(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    for name, inside in imports(path):
        assert top(name) not in MAY_IMPORT, f"{relative(path)} imports {name}: write engrain.{name}"
        if top(name) != "engrain":
            continue
        other = [*name.split("."), ""][1]
        assert other in MAY_IMPORT, f"{relative(path)} imports {name}, which names no folder of ours"
        assert other == folder or other in MAY_IMPORT[folder], f"{relative(path)} must not import {name}"
        if folder == "cli" and other == "update":
            assert inside, f"{relative(path)} imports {name} at the top; import it inside the command"


@each(FILES)
def test_heavy_imports_have_one_home(path: Path) -> None:
    names = {top(name) for name, _ in imports(path)}
    if path.relative_to(ROOT).parts[0] != "update" and relative(path) != "quant/blocks.py":
        assert "torch" not in names, f"{relative(path)} imports torch"
    if relative(path) not in ("device/llama_model.py", "device/context.py"):
        assert "llama_cpp" not in names, f"{relative(path)} imports llama_cpp"


@each(FILES + NOT_INSTALLED)
def test_nothing_unpickles(path: Path) -> None:
    found = {top(name) for name, _ in imports(path)} & PICKLES
    assert not found, f"{relative(path)} imports {found}"
    for name, _ in imports(path):
        assert name not in UNPICKLING_CALLS, f"{relative(path)} imports {name}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in UNPICKLING_CALLS, f"{relative(path)}:{node.lineno} may unpickle"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False", f"{relative(path)}:{node.value.lineno} allows pickle"


@pytest.mark.parametrize(
    "module", ["engrain.cli.main", "engrain.device.chat", "engrain.quant.peft", "engrain.quant.gguf_lora"]
)
def test_chatting_never_loads_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "tests")
    assert done.returncode == 0, done.stderr or f"import {module} brings torch"


def test_no_folder_shadows_the_package() -> None:
    assert not (ROOT / "engrain").exists(), "a folder engrain/ at the root hides the installed package"
