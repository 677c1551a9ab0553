"""What a scenario can name: strategies, models, data sets, partitions, attacks, and the scenarios that come along."""

import inspect
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from fedsim import adversaries, registry
from fedsim.citations import paper
from fedsim.data.partition import KINDS
from fedsim.errors import ScenarioError
from fedsim.model import Known
from fedsim.privacy import forms
from fedsim.privacy.plan import Level
from fedsim.scenario import load
from fedsim.scenario_files import shipped

FILLED_IN: Mapping[str, Collection[str]] = {
    "models": {"classes", "scenario_folder", *Known._fields},
    "data": {"folders"},
    "partitions": {"pool"},
    "adversaries": adversaries.FILLED_IN,
    "strategies": (),
}
"""Parameters that the platform fills in, of each kind."""
_PLAIN_QUICKSTART = "fedsim run quickstart --set 'privacy={}' --set train.learning_rate=1.0"


class Entry(NamedTuple):
    """One thing to name: its parameters are the keys that may stand beside its name."""

    name: str
    summary: str
    parameters: dict[str, str]


class Strategy(NamedTuple):
    """A federated algorithm to name, as the docstring of its file describes it.

    Attributes:
        name: the value of `strategy.name`.
        paper: its source, "-" where it has none.
        summary: what it changes.
        parameters: its hyper-parameters, the keys that may stand beside its name, and their defaults.
        runs: a command that runs it.
        private: by level (example, client, local) why its uploads stay private; levels it has no form for are absent.
    """

    name: str
    paper: str
    summary: str
    parameters: dict[str, str]
    runs: str
    private: dict[str, str]


def listing(what: str) -> list[Entry | Strategy]:
    """The entries of a kind: strategies, models, data, partitions, adversaries, scenarios or papers.

    Raises:
        ScenarioError: there is no such kind.
    """
    if what not in KINDS_OF_ENTRIES:
        known = [*KINDS_OF_ENTRIES, "runs"]  # which `fedsim list` takes from overview.py
        raise ScenarioError(f"there is no list of {what!r}.{registry.nearest(what, known)}")
    return list(KINDS_OF_ENTRIES[what]())


def listing_lines(what: str) -> list[str]:
    """A listing for people.

    Raises:
        ScenarioError: there is no such kind.
    """
    lines = [line for entry in listing(what) for line in _lines(entry)]
    return [*lines, *_flowers()] if what == "strategies" else lines


def _package(package: str, what: str) -> Callable[[], Iterable[Entry]]:
    def entries() -> Iterable[Entry]:
        for name in registry.members(package):
            function = registry.find(package, name, Path(), package)
            yield _entry(name, function, inspect.getmodule(function), what)

    return entries


def _strategies() -> Iterable[Strategy]:
    for name in registry.members("fedsim.strategies"):
        function = registry.find("fedsim.strategies", name, Path(), "strategies")
        text = inspect.getdoc(inspect.getmodule(function)) or ""
        entry = _entry(name, function, inspect.getmodule(function), "strategies")
        private = _private_forms(function)
        yield Strategy(name, paper(text), entry.summary, entry.parameters, command(text, name), private)


def _private_forms(function: Callable[..., Any]) -> dict[str, str]:
    """Of a strategy with its defaults, with uniform weights where it can have them."""
    algorithm = function(**({"weights": "uniform"} if _may_be_uniform(function) else {}))
    levels = {
        level: forms.argument(function() if level == "example" else algorithm, level) for level in get_args(Level)
    }
    return {level: argument for level, argument in levels.items() if argument}


def _may_be_uniform(function: Callable[..., Any]) -> bool:
    weights = inspect.signature(function).parameters.get("weights")
    return weights is not None and "uniform" in get_args(weights.annotation)


def command(docstring: str, name: str) -> str:
    """What runs an algorithm: its docstring's `Try it: fedsim run ...` at the end, or quickstart without privacy."""
    _, _, own = docstring.rpartition("\nTry it: ")
    return " ".join(own.split()) if own.startswith("fedsim run") else f"{_PLAIN_QUICKSTART} --set strategy.name={name}"


def _kinds(kinds: Mapping[str, Callable[..., Any]], what: str) -> Callable[[], Iterable[Entry]]:
    return lambda: [_entry(name, function, function, what) for name, function in sorted(kinds.items())]


def _scenarios() -> Iterable[Entry]:
    for name in shipped():
        yield Entry(name, load(name).title, {})


def _entry(name: str, function: Callable[..., Any], documented: object, what: str) -> Entry:
    parameters = {
        key: "required" if parameter.default is parameter.empty else repr(parameter.default)
        for key, parameter in inspect.signature(function).parameters.items()
        if key not in FILLED_IN[what]
    }
    return Entry(name, (inspect.getdoc(documented) or "").partition("\n")[0], parameters)


def _lines(entry: Entry | Strategy) -> list[str]:
    title = f"{entry.name:<18} {entry.summary}"
    # A key and its default stay on one line: they are joined by no-break spaces until the text is wrapped.
    keys = "  ".join(f"{key}\xa0=\xa0{default}" for key, default in entry.parameters.items())
    below = [line.replace("\xa0", " ") for line in _wrapped(keys, "    ")]
    if isinstance(entry, Entry):
        return [title, *below]
    levels = [f"    private forms: {', '.join(entry.private)}"] if entry.private else []
    paper = _wrapped(entry.paper, "    ") if entry.paper != "-" else []
    return [*_wrapped(title, "", " " * 19), *paper, *below, *levels]


def _flowers() -> list[str]:
    from fedsim import stock  # which imports Flower

    return _wrapped(f"Flower's own strategies, by the same key: {', '.join(stock.names())}.", "")


def _wrapped(text: str, first: str, indent: str | None = None) -> list[str]:
    """Lines of at most 80 columns; `first` is before the first line, `indent` before the others."""
    rest = first if indent is None else indent
    return textwrap.wrap(
        text, 80, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    )


def _papers() -> Iterable[Entry]:
    from fedsim import reproducing  # which brings along all that a comparison needs

    for name in reproducing.papers():
        about = reproducing.load(name).about
        yield Entry(name, f"{about.authors}, {about.venue}. {about.table}", {})


KINDS_OF_ENTRIES: dict[str, Callable[[], Iterable[Entry | Strategy]]] = {
    "strategies": _strategies,
    "models": _package("fedsim.models", "models"),
    "data": _package("fedsim.data.sources", "data"),
    "partitions": _kinds(KINDS, "partitions"),
    "adversaries": _kinds(adversaries.KINDS, "adversaries"),
    "scenarios": _scenarios,
    "papers": _papers,
}
