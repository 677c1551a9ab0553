"""What docs/architecture.md says of imports and randomness, where import-linter has no words for it."""

import ast
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedsim

ROOT = Path(__file__).resolve().parent.parent
ROOMS = sorted(module.name for module in pkgutil.walk_packages(fedsim.__path__, "fedsim."))
SOURCES = sorted(path for path in (ROOT / "fedsim").rglob("*.py")) + sorted((ROOT / "strategies").glob("*.py"))
INSIDERS = ("fedsim/grid.py", "fedsim/deploy/_flower.py", "fedsim/deploy/_control.py")
FLOWER_INSIDE = ("supercore", "common", "server", "client", "simulation", "compat", "superlink", "supernode")
EXPLICIT_GENERATORS = {"Generator", "PCG64", "SeedSequence"}


def run_python(program: str, *arguments: str) -> str:
    """What a program prints in a fresh interpreter."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a file imports; `from a import b` gives both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def called(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a file calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            yield ast.unparse(node.func)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


FORKING_IMPORTER = """
import importlib, os, sys, traceback
import numpy, torch, pydantic, flwr.app, flwr.clientapp, flwr.serverapp.strategy, opacus, ray
import matplotlib.figure, safetensors.torch, scipy.stats, sklearn.datasets, typer

assert not any(name.split(".")[0] == "fedsim" for name in sys.modules)
for room in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(room)
        except BaseException:
            print(room, traceback.format_exc(), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        print(room, "ended with status", status, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each import starts in a fork, which this system lacks")
def test_every_module_can_be_imported_first() -> None:
    """A cycle shows only from some ends. Each import starts from libraries alone, with no fedsim module loaded."""
    assert run_python(FORKING_IMPORTER, *ROOMS) == ""


@pytest.mark.parametrize("start", ["import fedsim", "from fedsim import flower, local"])
def test_a_node_needs_neither_engine_nor_pictures(start: str) -> None:
    """A deployed node installs none of these, and `fedsim --help` should not wait for them."""
    heavy = ["ray", "plotly", "sklearn", "matplotlib"]
    loaded = run_python(f"{start}\nimport sys\nprint(*[name for name in {heavy} if name in sys.modules])")
    assert loaded.split() == []


def test_the_strategies_package_imports_nothing() -> None:
    """The registry lists files and imports the one that a scenario names."""
    tree = ast.parse((ROOT / "strategies/__init__.py").read_text())
    assert list(imports(tree)) == []


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_few_files_know_the_inside_of_flower(path: Path) -> None:
    """Flower may move its private modules in any release; then these are to be mended, and no others."""
    inside = tuple(f"flwr.{name}" for name in FLOWER_INSIDE)
    known = [name for name in imports(ast.parse(path.read_text())) if re.match(rf"({'|'.join(inside)})(\.|$)", name)]
    assert named(path) in INSIDERS or not known


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_every_draw_comes_from_seeds(path: Path) -> None:
    """A draw from a global generator depends on what was drawn before it, so on the worker and the order."""
    tree = ast.parse(path.read_text())
    draws = [
        name
        for name in called(tree)
        if re.match(r"(np|numpy)\.random\.|random\.|torch\.(manual_seed|seed$|cuda\.manual_seed)|secrets\.", name)
        and name.rpartition(".")[2] not in EXPLICIT_GENERATORS
    ]
    borrowed = {"random", "secrets", "numpy.random.default_rng"} & set(imports(tree))
    assert path == ROOT / "fedsim/seeds.py" or not (draws or borrowed)


def test_no_file_names_a_folder_of_one_machine() -> None:
    """A path that exists on one machine only fails on every other."""
    homes = re.compile(r"(?<![\w.])/(home|root|work|Users|mnt|media)/\w")
    folders = ("fedsim", "strategies", "scenarios", "tests", "benchmarks", "docs", ".ci")
    kinds = {".py", ".toml", ".md", ".cff", ".yml", ""}
    inside = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    texts = [path for path in (*ROOT.iterdir(), *inside) if path.is_file() and path.suffix in kinds]
    assert [named(path) for path in texts if homes.search(path.read_text(encoding="utf-8"))] == []
