"""Finding a function by the name a scenario gives, and fitting a scenario's keys to its parameters.

Strategies, models, data sources and partitions are plain functions with annotated keyword parameters. The
built-in ones are found by file or function name; a user's own is `file.py:name`, relative to the scenario.
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedsim.errors import FedsimError, ScenarioError

_STRICT = ConfigDict(strict=False, arbitrary_types_allowed=True)


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the closest known name, else ' Known: ...'."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else f" Known: {', '.join(names)}."


def members(package: str) -> list[str]:
    """Names of a package's entries: its public files, dashes for underscores."""
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return sorted(entry.name.replace("_", "-") for entry in found if not entry.name.startswith("_"))


def from_file(reference: str, folder: Path, what: str) -> Any:
    """The object that `file.py:name` names, loaded by location and never through sys.path.

    Raises:
        ScenarioError: no such file or name, or the file cannot be imported.
    """
    file, _, attribute = reference.partition(":")
    path = (folder / file).resolve()
    if not path.is_file() or not attribute:
        raise ScenarioError(f"{what}: {reference!r} should be file.py:name, and there is no file {folder / file}")
    module = _load(path, what)
    if not hasattr(module, attribute):
        raise ScenarioError(f"{what}: {path.name} defines no {attribute!r}.{nearest(attribute, vars(module))}")
    return getattr(module, attribute)


def _load(path: Path, what: str) -> ModuleType:
    name = f"fedsim_user_{hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ScenarioError(f"{what}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ScenarioError(f"{what}: {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def find(package: str, name: str, folder: Path, what: str, hidden: Iterable[str] = ()) -> Callable[..., Any]:
    """The function `name` of the file of that name in `package`, or a user's own `file.py:name`.

    Args:
        package: such as "fedsim.strategies".
        name: the scenario's word, with dashes or underscores.
        folder: where a user's own file is looked for.
        what: the scenario's key, for messages.
        hidden: files of the package that are not entries.
    """
    if ":" in name:
        found: Callable[..., Any] = from_file(name, folder, what)
        return found
    known = [member for member in members(package) if member not in set(hidden)]
    if name.replace("_", "-") not in known:
        raise ScenarioError(f"{what}: there is no {name!r}.{nearest(name, known)}")
    function = name.replace("-", "_")
    entry: Callable[..., Any] = getattr(importlib.import_module(f"{package}.{function}"), function)
    return entry


def bind(
    function: Callable[..., Any], given: Mapping[str, Any], what: str, reserved: Iterable[str] = ()
) -> dict[str, Any]:
    """Check the scenario's keys against a function's parameters and convert them to the annotated types.

    Args:
        function: its annotated parameters are the allowed keys.
        given: keys and values from the scenario.
        what: the scenario's table, for messages: "strategy" gives "strategy.server_lr".
        reserved: parameters that the platform fills in and a scenario may not.

    Returns:
        Keyword arguments; parameters that were not given keep their defaults and are left out.

    Raises:
        ScenarioError: an unknown key, a wrong type or a required parameter without a value.
    """
    reserved = set(reserved)
    plain = getattr(function, "func", function)  # a functools.partial keeps its annotations there
    hints = get_type_hints(plain.__init__ if inspect.isclass(plain) else plain, include_extras=True)
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in reserved and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    bound: dict[str, Any] = {}
    for key, value in given.items():
        if key not in parameters:
            hint = nearest(key, parameters) if parameters else " It takes no keys."
            raise ScenarioError(f"{what}.{key} is not known.{hint}")
        try:
            bound[key] = TypeAdapter(hints.get(key, Any), config=_STRICT).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ScenarioError(f"{what}.{key} = {value!r}: {reason}") from error
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in bound]
    if missing:
        raise ScenarioError(f"{what}.{missing[0]} is missing")
    return bound


def call(function: Callable[..., Any], what: str, **arguments: Any) -> Any:
    """Call a bound function; a ValueError or TypeError of it becomes a ScenarioError that names `what`."""
    try:
        return function(**arguments)
    except FedsimError:
        raise
    except (ValueError, TypeError) as error:
        raise ScenarioError(f"{what}: {error}") from error
