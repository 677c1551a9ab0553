"""What is compared and under which conditions, from lists of values of a scenario's keys.

A key of [data], [task] or [adversary] is part of the problem, so its values make conditions; those of any other key
make candidates. Values that are listed together change in step, all else is multiplied out.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from fedsim.errors import ScenarioError
from fedsim.ranges import Range
from fedsim.scenario import Scenario
from fedsim.tables import Attack, Data, Model, Part, Strategy

PROBLEM = ("data", "task", "adversary")
"""Tables that say what is learned and from whom: their keys make conditions."""
FIXED = ("engine", "records", "checkpoint", "seed", "title", "description", "references")
"""What cannot differ between candidates: it decides no result, or is what runs are paired by."""
_OWN_KEYS: Mapping[str, Iterable[str]] = {
    "data": Data.model_fields,
    "model": Model.model_fields,
    "strategy": Strategy.model_fields,
    "strategy.combine": Part.model_fields,
    "strategy.server": Part.model_fields,
    "adversary": Attack.model_fields,
}
_LONGEST = 40  # of a value in a name


class Candidate(NamedTuple):
    """What is compared: scenario keys, dotted, with their values, and what of it may be tuned."""

    name: str
    settings: Mapping[str, Any]
    tune: Mapping[str, Range] = {}


class Condition(NamedTuple):
    """A problem under which candidates are compared; the only one has no name."""

    name: str
    settings: Mapping[str, Any]


def crossed(
    candidates: Sequence[Candidate],
    conditions: Sequence[Condition],
    vary: Mapping[str, Sequence[Any]],
    together: Sequence[Mapping[str, Sequence[Any]]],
    base: Scenario,
) -> tuple[list[Candidate], list[Condition]]:
    """All candidates and conditions, the varied values multiplied out.

    Args:
        candidates, conditions: that are named one by one.
        vary: values by key.
        together: likewise, but the values of one table change in step.
        base: the scenario; where nothing is varied its strategy is the one candidate.

    Raises:
        ScenarioError: a key that cannot be varied, or lists that are empty or of unequal lengths.
    """
    tables = [{key: values} for key, values in vary.items()] + list(together)
    for table in tables:
        _check_table(table)
    kinds = [_kind(table) for table in tables]
    varied = _combinations([table for table, kind in zip(tables, kinds, strict=True) if kind == "candidate"])
    problems = _combinations([table for table, kind in zip(tables, kinds, strict=True) if kind == "condition"])
    for each in candidates:
        check_settings(each.settings, f"candidate {each.name!r}", PROBLEM)
    for problem in conditions:
        check_settings(problem.settings, f"condition {problem.name!r}")
        if others := [key for key in problem.settings if key.partition(".")[0] not in PROBLEM]:
            raise ScenarioError(f"condition {problem.name!r}: {others[0]} belongs to a candidate; set it there")
    lists = {key for table in tables for key in table}
    named = [(each.name, each.settings) for each in candidates] + [(each.name, each.settings) for each in conditions]
    for name, settings in named:
        if both := [key for key in settings if key in lists]:
            raise ScenarioError(f"{name!r} sets {both[0]}, which is varied too; leave one of them out")
    labels = _labels([key for table in tables for key in table])
    plain = base.strategy.name if not candidates and varied == [{}] else ""
    crossed_candidates = [
        Candidate(joined(each.name, _named(change, labels)), {**each.settings, **change}, each.tune)
        for each in candidates or [Candidate(plain, {})]
        for change in varied
    ]
    crossed_conditions = [
        Condition(joined(each.name, _named(change, labels)), {**each.settings, **change})
        for each in conditions or [Condition("", {})]
        for change in problems
    ]
    _check_distinct(crossed_candidates, "candidates")
    _check_distinct(crossed_conditions, "conditions")
    return crossed_candidates, crossed_conditions


def check_settings(settings: Mapping[str, Any], what: str, refused: Sequence[str] = ()) -> None:
    """Refuse keys that cannot differ; `refused` are tables that cannot either.

    Raises:
        ScenarioError: names the key.
    """
    for key in settings:
        table = key.partition(".")[0]
        if table in FIXED:
            raise ScenarioError(f"{what}: {key} cannot be varied; set it in the base, the same for all")
        if table in refused:
            raise ScenarioError(
                f"{what}: {key} makes another problem, on which figures cannot be compared; put it in [vary] or a "
                "[[condition]]"
            )


def applied(scenario: Scenario, changes: Mapping[str, Any], origin: str) -> Scenario:
    """A scenario with dotted keys changed; what belonged to another function of that name or kind goes.

    Raises:
        ScenarioError: names `origin` and the key.
    """
    content = scenario.model_dump(exclude_none=True)
    dropped: dict[str, Any] = {}
    for key, value in changes.items():
        table, _, last = key.rpartition(".")
        if last in ("name", "kind") and (inner := _table(content, table)) and inner.get(last) != value:
            kept = {last, *_OWN_KEYS.get(table, ())}
            dropped[table] = {name: part for name, part in inner.items() if name in kept}
    return scenario.changed({**dict(sorted(dropped.items())), **changes}, origin)


def told(entry: Candidate | Condition, kind: str) -> str:
    """What messages call one: by its name, or by the values that were varied, where its name is made of these."""
    if entry.settings and entry.name == _named(entry.settings, _labels(list(entry.settings))):
        return "varied " + ", ".join(f"{key}={_written(value)}" for key, value in entry.settings.items())
    return f"{kind} {entry.name!r}"


def joined(*parts: str) -> str:
    """For people, such as a condition and a candidate; the only condition has no name, which is left out."""
    return ", ".join(part for part in parts if part)


def _table(content: Mapping[str, Any], dotted: str) -> Mapping[str, Any] | None:
    found: Any = content
    for name in dotted.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else None


def _check_table(table: Mapping[str, Sequence[Any]]) -> None:
    what = "[vary]" if len(table) == 1 else "[[together]]"
    check_settings(table, what)
    if not table:
        raise ScenarioError("[[together]] names no key; give lists of values by key")
    lengths = {key: len(values) for key, values in table.items()}
    if empty := [key for key, length in lengths.items() if not length]:
        raise ScenarioError(f"{what}: {empty[0]} has no values; give at least one")
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise ScenarioError(f"[[together]]: its keys change in step, so give as many values for each: {counts}")
    for key, values in table.items():
        if len({_written(value) for value in values}) < len(values) and len(table) == 1:
            raise ScenarioError(f"{what}: {key} has a value twice; name each once")


def _kind(table: Mapping[str, Sequence[Any]]) -> str:
    kinds = {"condition" if key.partition(".")[0] in PROBLEM else "candidate" for key in table}
    if len(kinds) > 1:
        keys = ", ".join(table)
        raise ScenarioError(f"[[together]]: {keys} are partly of the problem and partly of what is compared; part them")
    return kinds.pop()


def _combinations(tables: Sequence[Mapping[str, Sequence[Any]]]) -> list[dict[str, Any]]:
    """Settings for every combination, the first table changing slowest."""
    steps = [
        [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)] for table in tables
    ]
    return [{key: value for part in parts for key, value in part.items()} for parts in product(*steps)]


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """What each key is called in names: its last part, or all of it where two end alike."""
    ends = Counter(key.rpartition(".")[2] for key in dict.fromkeys(keys))
    return {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in keys}


def _named(change: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    return ", ".join(
        str(value)
        if key.rpartition(".")[2] in ("name", "kind") and isinstance(value, str)
        else f"{labels[key]}={_written(value)}"
        for key, value in change.items()
    )


def _written(value: Any) -> str:
    """A value as short as it can be told apart."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, Mapping):
        text = " ".join(f"{key}={_written(inner)}" for key, inner in value.items())
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return json.dumps(value)


def _check_distinct(entries: Sequence[Candidate] | Sequence[Condition], what: str) -> None:
    names = Counter(each.name for each in entries)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ScenarioError(f"two {what} are called {twice[0]!r}; give each a name of its own")
    if "" in names and len(names) > 1:
        raise ScenarioError(f"one of the {what} has no name; give it one")
    settings: dict[str, str] = {}
    for each in entries:
        text = json.dumps(each.settings, sort_keys=True, default=str)
        if (other := settings.setdefault(text, each.name)) != each.name:
            raise ScenarioError(f"{what} {other!r} and {each.name!r} have the same settings; leave one of them out")
