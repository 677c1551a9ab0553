"""The wheel, installed where nothing of the working tree can be seen."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONTENT = ("fedsim", "strategies", "scenarios", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; it sees no environment variable that leads back to the working tree."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([*command], cwd=cwd, env=inherited, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that an earlier build leaves nothing in it."""
    source = tmp_path_factory.mktemp("source")
    for name in CONTENT:
        original = ROOT / name
        if original.is_dir():
            shutil.copytree(original, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(original, source)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel in it.

    The libraries are those of the environment that runs the tests: a `.pth` line adds their folder, and the
    `.pth` files in that folder, so also the one of an editable fedsim, are not read on that way.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    interpreter = folder / "bin/python"
    install = ("-m", "pip", "--python", interpreter, "install", "--quiet", "--no-deps", "--no-index", wheel)
    run(sys.executable, *install, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return interpreter


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A user's folder with packages of their own that are called like ours."""
    for name in ("strategies", "scenarios"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the user\\'s own package was imported')\n")
    return tmp_path


def test_the_wheel_has_every_strategy_scenario_and_template(wheel: Path) -> None:
    """The root's folders are links inside fedsim/; in the wheel they are folders there, and nowhere else."""
    packed = set(zipfile.ZipFile(wheel).namelist())
    strategies = {f"fedsim/strategies/{path.name}" for path in (ROOT / "strategies").glob("*.py")}
    scenarios = {f"fedsim/scenarios/{path.name}" for path in (ROOT / "scenarios").glob("*.toml")}
    papers = {f"fedsim/scenarios/papers/{path.name}" for path in (ROOT / "scenarios/papers").glob("*.*")}
    others = [*(ROOT / "fedsim/templates").rglob("*.*"), *(ROOT / "fedsim/report").glob("*.[cjb][!a]*")]
    assert strategies | scenarios | papers | {str(path.relative_to(ROOT)) for path in others} <= packed
    assert {name.split("/")[0].split("-")[0] for name in packed} == {"fedsim"}
    assert "fedsim/py.typed" in packed


def test_the_installed_package_is_the_one_that_runs(python: Path, elsewhere: Path) -> None:
    located = run(python, "-c", "import fedsim.strategies.fedavg as it; print(it.__file__)", cwd=elsewhere)
    assert Path(located.strip()).is_relative_to(python.parent.parent)


@pytest.mark.parametrize(("kind", "suffix"), [("strategies", ".py"), ("scenarios", ".toml")])
def test_the_command_lists_what_is_packed(python: Path, elsewhere: Path, kind: str, suffix: str) -> None:
    """Beside a user's own strategies/ and scenarios/."""
    listed = run(python.parent / "fedsim", "list", kind, cwd=elsewhere)
    names = [path.stem.replace("_", "-") for path in (ROOT / kind).glob(f"[!_]*{suffix}")]
    assert names and [name for name in names if name not in listed] == []
