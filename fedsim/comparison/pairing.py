"""What two runs have in common and what not: which are one candidate, and which seeds may be paired.

Nothing is taken for granted: partition, initial model and cohorts are compared as the runs recorded them. Only what
the candidates' own settings change (another model begins as another model) is no reason against a pair.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedsim.comparison.facts import RunFacts
from fedsim.environment import NUMERICAL

CONDITIONS = ("data", "task", "adversary")
"""Tables whose keys say what is learned: runs that differ there are of different conditions."""
_NO_PART = ("title", "seed", "engine", "records", "checkpoint", "references", "privacy.without")
"""Keys that say nothing about what a run computes; bits that `engine` changes are too small to make a candidate."""
_FIRST = ("strategy.name", "data.name", "model.name")
_TREES = "xgboost"


def flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested tables under dotted keys."""
    for name, value in table.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{key}.")
        else:
            yield key, value


def settings(run: RunFacts) -> dict[str, Any]:
    """What a run computes, apart from its seed: dotted keys, the user's own files, what was given from Python."""
    kept = {key: value for key, value in flat(run.scenario) if not _of(key, _NO_PART)}
    own = {f"own file {name}": digest[:8] for name, digest in (run.environment.get("sources") or {}).items()}
    given = {}
    for key, where in (("model", "model.name"), ("data", "data.name"), ("loss", "task.loss")):
        told = run.environment.get(key)
        if isinstance(told, str) and ":" in told and told != kept.get(where):
            given[f"{key} from Python"] = told
    return {**kept, **own, **given}


def differing(runs: Sequence[RunFacts]) -> dict[str, list[Any]]:
    """For every setting that is not the same in all runs its value in each, None where a run has none."""
    each = [settings(run) for run in runs]
    keys = dict.fromkeys(key for values in each for key in values)
    ordered = sorted(keys, key=lambda key: (key not in _FIRST, key))
    columns = {key: [values.get(key) for values in each] for key in ordered}
    return {key: column for key, column in columns.items() if len({repr(value) for value in column}) > 1}


def differing_lines(runs: Sequence[RunFacts]) -> list[str]:
    """The same for people, one line each, with how many runs have which value; a value that a run lacks is left out."""
    lines = []
    for key, column in differing(runs).items():
        given = [str(value) for value in column if value is not None]
        lines.append(f"{key}: {_counted(given)}")
    return lines


def grouped(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """The same runs, those that differ in their seed alone under one candidate and condition, named by what differs."""
    columns = differing(runs)
    conditions = {key: column for key, column in columns.items() if _of(key, (*CONDITIONS, "data from Python"))}
    candidates = {key: column for key, column in columns.items() if key not in conditions}
    names = zip(_names(conditions, len(runs)), _names(candidates, len(runs)), strict=True)
    return [
        replace(run, condition=condition, candidate=candidate or "all runs")
        for run, (condition, candidate) in zip(runs, names, strict=True)
    ]


def obstacle(one: RunFacts, other: RunFacts) -> str | None:
    """Why two runs of one seed and condition cannot be compared as a pair; None where they can."""
    if one.federation != other.federation or not one.federation:
        return "their data or the partition of them differ"
    changed = differing([one, other])
    if (reason := _initial(one, other, changed)) is not None:
        return reason
    if any(_of(key, ("cohort", "privacy")) for key in changed) or _draws(one) or _draws(other):
        return None
    for number, (mine, theirs) in enumerate(zip(one.cohorts, other.cohorts, strict=False), 1):
        if not (mine and theirs):
            return "their cohorts were not recorded"
        if mine != theirs:
            return f"their cohorts differ from round {number} on"
    return None


def own_ways(one: RunFacts, other: RunFacts) -> list[str]:
    """Where two runs that can be paired differ all the same, by their own settings."""
    ways = ["initial models"] if one.initial != other.initial else []
    together = min(len(one.cohorts), len(other.cohorts))
    return [*ways, *(["cohorts"] if one.cohorts[:together] != other.cohorts[:together] else [])]


def surroundings(runs: Sequence[RunFacts]) -> list[str]:
    """What bits depend on besides settings and is not the same in all runs, one line each, with how many have what."""
    columns: dict[str, list[str]] = {}
    for run in runs:
        about = run.environment
        packages = about.get("packages") or {}
        values = {key: about.get(key) for key in ("python", "processor", "cpu_capability", "gpus")}
        values |= {name: packages.get(name) for name in NUMERICAL}
        for key, value in values.items():
            listed = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            columns.setdefault(key, []).append(listed or "none")
    return [f"{key}: {_counted(column)}" for key, column in columns.items() if len(set(column)) > 1]


def data_of(runs: Sequence[RunFacts]) -> list[str]:
    """Seeds of a condition whose runs do not all have the same rows at the same clients, one line each."""
    digests: dict[tuple[str, int], dict[str, list[str]]] = {}
    for run in runs:
        digests.setdefault((run.condition, run.seed), {}).setdefault(run.federation, []).append(run.candidate)
    return [
        f"{f'{condition}, ' if condition else ''}seed {seed}: other rows, or at other clients: "
        + " | ".join(", ".join(names) for names in found.values())
        for (condition, seed), found in digests.items()
        if len(found) > 1
    ]


def _initial(one: RunFacts, other: RunFacts, changed: Mapping[str, Any]) -> str | None:
    if any(_of(key, ("model", "model from Python")) or key.startswith("own file ") for key in changed):
        return None
    if all(run.scenario.get("model", {}).get("name") == _TREES for run in (one, other)):
        return None
    if not (one.initial and other.initial):
        return "the model before training was not recorded"
    return "their models before training differ" if one.initial != other.initial else None


def _draws(run: RunFacts) -> bool:
    """Whether its strategy draws cohorts by a rule of its own."""
    return str(run.scenario.get("strategy", {}).get("name", "")).startswith("flower:")


def _names(columns: Mapping[str, Sequence[Any]], count: int) -> list[str]:
    """A name for each run by the settings that tell groups apart: those that others tell already are left out."""
    groups: list[tuple[Any, ...]] = [() for _ in range(count)]
    told: dict[str, Sequence[Any]] = {}
    for key, column in columns.items():
        finer = [(*group, repr(value)) for group, value in zip(groups, column, strict=True)]
        if len(set(finer)) > len(set(groups)):
            groups, told[key] = finer, column
    names: dict[str, tuple[Any, ...]] = {}
    named = []
    for place, group in enumerate(groups):
        name = plain = _name({key: column[place] for key, column in told.items()})
        number = 1
        while names.setdefault(name, group) != group:  # values that look alike, such as 1 and "1"
            name = f"{plain} ({(number := number + 1)})"
        named.append(name)
    return named


def _name(values: Mapping[str, Any]) -> str:
    """The values after the last part of their keys; what has a name is called by it."""
    return ", ".join(
        str(value)
        if isinstance(value, str) and key.endswith(("name", "kind"))
        else f"{key.rpartition('.')[2]}={_short(value)}"
        for key, value in values.items()
        if value is not None
    ) or (f"no {next(iter(values))}" if values else "")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _counted(column: Sequence[str]) -> str:
    return ", ".join(f"{value} ({column.count(value)})" for value in dict.fromkeys(column))


def _of(key: str, tables: Sequence[str]) -> bool:
    return any(key == table or key.startswith(f"{table}.") for table in tables)
