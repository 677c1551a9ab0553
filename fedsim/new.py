"""A first scenario, strategy or Flower app of one's own, from the templates beside this file."""

import keyword
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import packages_distributions
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from shlex import quote

from fedsim.errors import ScenarioError

_NAME = "my_strategy"
"""What the templates call the strategy."""
_APP = "my-app"
"""What the templates call the Flower app; its package has an underscore for each hyphen."""
_NOT_IN_BUNDLES = {"build", "eggs", "env", "lib", "lib64", "parts", "venv"}
"""Folders that `flwr build` leaves out of every app."""


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
        return [
            _copy(templates / original, path.with_name(copy), {_NAME: path.name}) for original, copy in copies.items()
        ]
    except OSError as error:
        raise ScenarioError(f"{path}.py cannot be written: {error.strerror}") from error


def create_app(path: Path) -> list[Path]:
    """Write a Flower app that runs as it is, with `fedsim flower` and with `flwr run`.

    Args:
        path: the app's folder, which must not exist yet. Its name is the app's; the package in it has underscores in
            the place of hyphens.

    Returns:
        The files written.

    Raises:
        ScenarioError: Flower would not take the name, the package would hide another, or the folder exists or cannot
            be written.
    """
    package = path.name.replace("-", "_").lower()
    _check_app_name(path.name, package)
    if path.exists():
        raise ScenarioError(f"{path} exists already and is left as it is; give another name")
    templates = files("fedsim") / "templates" / "flower"
    names = {_APP: path.name, _APP.replace("-", "_"): package}
    try:
        (path / package).mkdir(parents=True)
        return [
            *_copies(templates, path, names),
            *_copies(templates / _APP.replace("-", "_"), path / package, names),
        ]
    except OSError as error:
        raise ScenarioError(f"{path} cannot be written: {error.strerror}") from error


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


def app_advice(path: Path) -> list[str]:
    """What to do with a Flower app that was written: the command that runs it, and what to change."""
    package = path.name.replace("-", "_").lower()
    return [
        f"your own net and data belong into {path / package / 'task.py'}",
        f"next: fedsim flower {quote(str(path))} --nodes 10",
    ]


def _check_app_name(name: str, package: str) -> None:
    """Refuse a name that Flower's `build` would, or under which the app's package could not be imported."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,31}", name) or name.endswith("-"):
        rule = "letters, digits and hyphens, 32 at most, a letter first and no hyphen at the end"
        raise ScenarioError(f"--flower {name}: Flower's names of apps are {rule}, such as my-app")
    if keyword.iskeyword(package):
        raise ScenarioError(f"--flower {name}: {package} is a word of Python; give another name")
    if package in _NOT_IN_BUNDLES:
        raise ScenarioError(f"--flower {name}: flwr build leaves out folders called {package}; give another name")
    if package in sys.stdlib_module_names or package in packages_distributions():
        raise ScenarioError(f"--flower {name}: it would hide the Python package {package!r}; give another name")


def _copies(originals: Traversable, folder: Path, names: Mapping[str, str]) -> list[Path]:
    """Copy the files of a folder, with other names in them."""
    found = sorted((entry for entry in originals.iterdir() if entry.is_file()), key=lambda entry: entry.name)
    return [_copy(original, folder / original.name, names) for original in found]


def _check_name(name: str, template: str) -> None:
    """Refuse a name under which the strategy or its test could not be imported, or would hide what they import."""
    if not name.isascii() or not name.isidentifier() or keyword.iskeyword(name):
        raise ScenarioError(f"--strategy {name}: give the name of a Python function, such as my_fedavg")
    if name != _NAME and name in re.findall(r"\w+", template):
        raise ScenarioError(f"--strategy {name}: the strategy itself uses this word; give another name")
    if name in sys.stdlib_module_names or name in packages_distributions():
        raise ScenarioError(f"--strategy {name}: {name}.py would hide the Python package {name!r}; give another name")


def _copy(original: Traversable, copy: Path, names: Mapping[str, str] = {}) -> Path:
    text = original.read_text(encoding="utf-8")
    for name, new in names.items():
        text = text.replace(name, new)
    copy.write_text(text, encoding="utf-8")
    return copy
