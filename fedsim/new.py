"""A first scenario or strategy of one's own, from the templates beside this file."""

import keyword
import re
import sys
from collections.abc import Sequence
from importlib.metadata import packages_distributions
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from shlex import quote

from fedsim.errors import ScenarioError

_NAME = "my_strategy"
"""What the templates call the strategy."""


def create(path: Path, *, folder: bool = False) -> list[Path]:
    """Write a commented scenario, or a folder with a scenario, a model and data of one's own.

    Args:
        path: the scenario's file, ending in .toml; with `folder` the folder, which must not exist yet.
        folder: whether a folder is wanted.

    Returns:
        The files written. Each scenario among them runs as it is.

    Raises:
        ScenarioError: `path` exists already, cannot be written, or is no .toml file.
    """
    if path.exists():
        raise ScenarioError(f"{path} exists already and is left as it is; give another name")
    if not folder and path.suffix != ".toml":
        raise ScenarioError(f"{path}: a scenario's name ends in .toml; write {path}.toml or add --folder")
    templates = files("fedsim") / "templates"
    try:
        if not folder:
            return [_copy(templates / "scenario.toml", path)]
        path.mkdir(parents=True)
        originals = [entry for entry in (templates / "folder").iterdir() if entry.is_file()]
        return sorted(_copy(original, path / original.name) for original in originals)
    except OSError as error:
        raise ScenarioError(f"{path} cannot be written: {error.strerror}") from error


def create_strategy(path: Path) -> list[Path]:
    """Write a commented strategy and its test.

    Args:
        path: folder and name of the strategy; `experiments/mine` gives experiments/mine.py, with a function `mine`,
            and experiments/test_mine.py.

    Returns:
        The strategy's file and its test's.

    Raises:
        ScenarioError: the name does not do for a function in a file of its own, or a file exists or cannot be written.
    """
    templates = files("fedsim") / "templates"
    _check_name(path.name, (templates / "strategy.py").read_text(encoding="utf-8"))
    copies = {"strategy.py": f"{path.name}.py", "test_strategy.py": f"test_{path.name}.py"}
    try:
        for file in map(path.with_name, copies.values()):
            if file.exists():
                raise ScenarioError(f"{file} exists already and is left as it is; give another name")
        return [_copy(templates / original, path.with_name(copy), path.name) for original, copy in copies.items()]
    except OSError as error:
        raise ScenarioError(f"{path}.py cannot be written: {error.strerror}") from error


def scenario_advice(files: Sequence[Path]) -> list[str]:
    """What to do with the files that `create` wrote: the command that runs them."""
    return [f"next: fedsim run {quote(str(file))}" for file in files if file.suffix == ".toml"]


def strategy_advice(path: Path) -> list[str]:
    """What to do with a strategy that was written: how to test it, how to name it, a command that runs it."""
    name = path.name
    reference = quote(f"{path}.py:{name}")
    plain = "--set 'privacy={}' --set train.learning_rate=1.0"
    return [
        f"test it: pytest {quote(str(path.with_name(f'test_{name}.py')))}",
        f'name it in a scenario beside it: [strategy] name = "{name}.py:{name}"',
        f"next: fedsim run quickstart {plain} --set strategy.name={reference}",
    ]


def _check_name(name: str, template: str) -> None:
    """Refuse a name under which the strategy or its test could not be imported, or would hide what they import."""
    if not name.isascii() or not name.isidentifier() or keyword.iskeyword(name):
        raise ScenarioError(f"--strategy {name}: give the name of a Python function, such as my_fedavg")
    if name != _NAME and name in re.findall(r"\w+", template):
        raise ScenarioError(f"--strategy {name}: the strategy itself uses this word; give another name")
    if name in sys.stdlib_module_names or name in packages_distributions():
        raise ScenarioError(f"--strategy {name}: {name}.py would hide the Python package {name!r}; give another name")


def _copy(original: Traversable, copy: Path, name: str = _NAME) -> Path:
    copy.write_text(original.read_text(encoding="utf-8").replace(_NAME, name), encoding="utf-8")
    return copy
