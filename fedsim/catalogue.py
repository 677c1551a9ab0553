"""What a scenario can name: strategies, models, data sets, partitions, and the scenarios that come along."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from fedsim import registry
from fedsim.data.partition import KINDS
from fedsim.errors import ScenarioError
from fedsim.scenario import load
from fedsim.scenario_files import shipped

FILLED_IN = {"folders", "pool", "shape", "classes", "task"}
"""Parameters that the platform fills in."""


class Entry(NamedTuple):
    """One thing to name: its parameters are the keys that may stand beside its name."""

    name: str
    summary: str
    parameters: dict[str, str]


def listing(what: str) -> list[Entry]:
    """The entries of a kind: strategies, models, data, partitions or scenarios.

    Raises:
        ScenarioError: there is no such kind.
    """
    if what not in KINDS_OF_ENTRIES:
        known = [*KINDS_OF_ENTRIES, "runs"]  # which `fedsim list` takes from overview.py
        raise ScenarioError(f"there is no list of {what!r}.{registry.nearest(what, known)}")
    return list(KINDS_OF_ENTRIES[what]())


def _package(package: str) -> Callable[[], Iterable[Entry]]:
    def entries() -> Iterable[Entry]:
        for name in registry.members(package):
            function = registry.find(package, name, Path(), package)
            yield _entry(name, function, inspect.getmodule(function))

    return entries


def _partitions() -> Iterable[Entry]:
    return [_entry(name, function, function) for name, function in sorted(KINDS.items())]


def _scenarios() -> Iterable[Entry]:
    for name in shipped():
        yield Entry(name, load(name).title, {})


def _entry(name: str, function: Callable[..., Any], documented: object) -> Entry:
    parameters = {
        key: "required" if parameter.default is parameter.empty else repr(parameter.default)
        for key, parameter in inspect.signature(function).parameters.items()
        if key not in FILLED_IN
    }
    return Entry(name, (inspect.getdoc(documented) or "").partition("\n")[0], parameters)


KINDS_OF_ENTRIES: dict[str, Callable[[], Iterable[Entry]]] = {
    "strategies": _package("fedsim.strategies"),
    "models": _package("fedsim.models"),
    "data": _package("fedsim.data.sources"),
    "partitions": _partitions,
    "scenarios": _scenarios,
}
