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
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from fedsim.errors import FedsimError, ScenarioError, one_line
from fedsim.ranges import Range

_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the closest known name, else ' Known: ...'."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else f" Known: {', '.join(names)}."


def members(package: str) -> list[str]:
    """Names of a package's entries: its public files, dashes for underscores."""
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return sorted(entry.name.replace("_", "-") for entry in found if not entry.name.startswith("_"))


def as_path(name: str) -> str:
    """A scenario's word as one part of a path, the same for dashes and underscores: mine.py-alone of mine.py:alone."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name)


def is_file(path: Path) -> bool:
    """Whether there is such a file; what no system takes for a path (too long, a NUL in it) names none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def from_file(reference: str, folder: Path, what: str) -> Callable[..., Any]:
    """The function or class that `file.py:name` names, loaded by location and never through sys.path.

    Raises:
        ScenarioError: no such file or name, the file cannot be imported, or the name is nothing to call.
    """
    found = written_in(reference, folder, what)
    if not callable(found):
        raise ScenarioError(f"{what}: {reference!r} is of type {type(found).__name__}; name a function or class")
    return cast(Callable[..., Any], found)


def written_in(reference: str, folder: Path, what: str) -> Any:
    """Whatever `file.py:name` names.

    Raises:
        ScenarioError: no such file or name, or the file cannot be imported.
    """
    file, _, attribute = reference.partition(":")
    if not is_file(folder / file) or not attribute:
        raise ScenarioError(f"{what}: {reference!r} should be file.py:name, and there is no file {folder / file}")
    path = (folder / file).resolve()
    module = _load(path, what)
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise ScenarioError(f"{what}: {path.name} defines no {attribute!r}.{nearest(attribute, public)}")
    return getattr(module, attribute)


def _load(path: Path, what: str) -> ModuleType:
    try:
        code = path.read_bytes()
    except OSError as error:
        raise ScenarioError(f"{what}: {path} cannot be read: {error.strerror}") from error
    name = f"fedsim_user_{hashlib.sha256(str(path).encode() + code).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ScenarioError(f"{what}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ScenarioError(f"{what}: {path} cannot be imported: {one_line(error)}") from error
    return module


def find(package: str, name: str, folder: Path, what: str) -> Callable[..., Any]:
    """The function `name` of the file of that name in `package`, or a user's own `file.py:name`.

    Args:
        package: such as "fedsim.strategies".
        name: the scenario's word, with dashes or underscores.
        folder: where a user's own file is looked for.
        what: the scenario's key, for messages.
    """
    if ":" in name:
        return from_file(name, folder, what)
    known = members(package)
    if name.replace("_", "-") not in known:
        raise ScenarioError(f"{what}: there is no {name!r}.{nearest(name, known)}")
    function = name.replace("-", "_")
    entry: Callable[..., Any] = getattr(importlib.import_module(f"{package}.{function}"), function)
    return entry


def bind(
    function: Callable[..., Any],
    given: Mapping[str, Any],
    what: str,
    reserved: Iterable[str] = (),
    own: Iterable[str] = (),
) -> dict[str, Any]:
    """Check the scenario's keys against a function's parameters and convert them to the annotated types.

    Args:
        function: its annotated parameters are the allowed keys.
        given: keys and values from the scenario.
        what: the scenario's table, for messages: "strategy" gives "strategy.server_lr".
        reserved: parameters that the platform fills in and a scenario may not.
        own: keys that the platform itself has in this table; a typo may have meant one of them.

    Returns:
        Keyword arguments; parameters that were not given keep their defaults and are left out.

    Raises:
        ScenarioError: an unknown key, a wrong type or a required parameter without a value.
    """
    reserved = set(reserved)
    hints = _hints(function, what)
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in reserved and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    bound: dict[str, Any] = {}
    for key, value in given.items():
        if key not in parameters:
            known = [*parameters, *own]
            raise ScenarioError(f"{what}.{key} is not known.{nearest(key, known) if known else ' It takes no keys.'}")
        bound[key] = _typed(hints.get(key, Any), value, f"{what}.{key}")
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in bound]
    if missing:
        raise ScenarioError(f"{what}.{missing[0]} is missing")
    return bound


def ranges(function: Callable[..., Any], what: str) -> dict[str, Range]:
    """The ranges that a function declares for its parameters, by name: `mu: Annotated[float, Range(0.0, 1.0)]`.

    Args:
        function: its parameters are annotated.
        what: the scenario's key that names it, for messages.
    """
    notes = {name: getattr(hint, "__metadata__", ()) for name, hint in _hints(function, what).items()}
    return {name: note for name, found in notes.items() for note in found if isinstance(note, Range)}


def _hints(function: Callable[..., Any], what: str) -> dict[str, Any]:
    """A function's or class's annotated types."""
    plain = getattr(function, "func", function)  # a functools.partial keeps its annotations there
    try:
        return get_type_hints(plain.__init__ if inspect.isclass(plain) else plain, include_extras=True)
    except Exception as error:
        raise ScenarioError(f"{what}: a parameter's type cannot be resolved: {one_line(error)}") from error


def _typed(annotation: Any, value: Any, key: str) -> Any:
    """The value as annotated, and no other type taken for it; by way of JSON, whose arrays may be tuples."""
    try:
        written = to_json(value, inf_nan_mode="constants")
        return TypeAdapter(annotation, config=_STRICT).validate_json(written)
    except (ValidationError, PydanticSerializationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ScenarioError(f"{key} = {value!r}: {reason.removeprefix('Value error, ')}") from error


def call(function: Callable[..., Any], what: str, /, **arguments: Any) -> Any:
    """Call a bound function, perhaps a user's own; whatever it raises becomes a ScenarioError that names `what`."""
    try:
        return function(**arguments)
    except FedsimError:
        raise
    except ValueError as error:  # the way in which a function says what is wrong with its arguments
        raise ScenarioError(f"{what}: {' '.join(str(error).split())}") from error
    except (Exception, SystemExit) as error:
        raise ScenarioError(f"{what}: {one_line(error)}") from error
