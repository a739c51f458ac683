"""The arrows between the packages: cli -> server, client -> strategies -> fedprompt; and no pickle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("fedprompt", "strategies", "client", "server")
FORBIDDEN = {
    "fedprompt": {"flwr", "strategies", "client", "server", "fedprompt.cli"},
    "fedprompt/cli": set(),
    "strategies": {"client", "server", "fedprompt.cli"},
    "client": {"server", "fedprompt.cli"},
    "server": {"client", "fedprompt.cli"},
}
SERIALISERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def layer(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    return "fedprompt/cli" if name.startswith("fedprompt/cli/") else name.split("/")[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a tree imports; of `from a import b` both `a` and `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_module_level(tree: ast.Module) -> Iterator[str]:
    """What importing the module imports: not what is inside functions or for type checkers alone."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield from imports(node)


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_arrows_run_one_way(path: Path) -> None:
    tree = ast.parse(path.read_text())
    wrong = {name for name in imports(tree) if within(name, FORBIDDEN[layer(path)])}
    assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"
    if layer(path) in ("server", "strategies") or path == ROOT / "client" / "app.py":
        assert not any(within(name, {"torch"}) for name in at_module_level(tree))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_pickled(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not [name for name in imports(tree) if within(name, SERIALISERS)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("torch.load", "torch.save", "np.load", "numpy.load"), node.lineno
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False, f"{path}:{node.value.lineno}"


def test_the_sides_of_the_federation_start_without_torch() -> None:
    code = "import sys, strategies, strategies.wire, server.loop, client.app; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == "False"


def test_every_package_is_there() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)
