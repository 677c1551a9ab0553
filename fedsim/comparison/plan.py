"""A comparison: candidates under conditions over seeds, each combination a cell, which is one ordinary run.

Written as `comparison.toml`, or as `--vary key=a,b,c`. docs/compare.md describes the file.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from fedsim import companions, records
from fedsim.comparison.candidates import Candidate, Condition, applied, joined, told
from fedsim.errors import ScenarioError
from fedsim.registry import as_path
from fedsim.scenario import Scenario
from fedsim.stored import source_hashes

REFERENCES = ("local", "central", "constant")
"""What every comparison shows beside its candidates: everybody alone, all rows in one place, no learning."""
MOST_LEFT_OUT = 20
"""Clients of a comparison that leaves them out one at a time."""
_BITS = ("stack", "devices", "compile")  # keys of [engine] on which trained bits depend
_LONGEST_FOLDER = 60


class Target(NamedTuple):
    """What a run is to reach: a validation metric of at least, or at most, a value."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None


class Tuning(NamedTuple):
    """Trials that every candidate gets, and the seeds on whose validation rows they are judged."""

    trials: int
    seeds: tuple[int, ...]


class Cell(NamedTuple):
    """One run of a comparison; `folder` is relative to the comparison's."""

    condition: str
    candidate: str
    seed: int
    scenario: Scenario
    folder: Path

    @property
    def is_reference(self) -> bool:
        """Whether it is of a reference strategy, which promises nothing and gets no verdict."""
        return self.candidate.startswith(reference_name(""))


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        title: for people.
        name: for folders.
        base: the scenario that candidates and conditions change.
        candidates: what is compared.
        conditions: problems under which it is.
        reference: the candidate with which the others are compared.
        seeds: of the runs.
        metric: full name of the test metric on which verdicts rest; None for the one by which the task is judged.
        target: to be reached, for rounds, bytes and seconds until then.
        references: strategies shown beside the candidates, without verdict.
        leave_one_out: whether the reference is also run without each client.
        tune: how candidates are tuned before; None for not at all.
        tuned: what tuning chose, by (condition, candidate).
        clients: how many clients there are, by condition; empty before anything was loaded.
        objects: SHA-256 of what a Python program gave instead of names; empty where it gave nothing.
        origin: what errors call it.
    """

    title: str
    name: str
    base: Scenario
    candidates: tuple[Candidate, ...]
    conditions: tuple[Condition, ...]
    reference: str
    seeds: tuple[int, ...]
    metric: str | None = None
    target: Target | None = None
    references: tuple[str, ...] = REFERENCES
    leave_one_out: bool = False
    tune: Tuning | None = None
    tuned: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    clients: Mapping[str, int] = field(default_factory=dict)
    objects: str = ""
    origin: str = "comparison"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides results, the user's own files included; not of where and how it is run."""
        base = self.base.model_dump(mode="json", exclude_none=True)
        base["engine"] = {key: value for key, value in base["engine"].items() if key in _BITS}
        files = {path: digest for cell in self.cells() for path, digest in _hashes(cell.scenario).items()}
        decided = {**self._decided(), "base": _without(base, "title", "description", "seed"), "files": files}
        return hashlib.sha256(records.to_json(decided).encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """Where it lies unless told otherwise."""
        return Path("comparisons") / f"{_slug(self.name)}-{self.digest[:8]}"

    @cached_property
    def _cells(self) -> list[Cell]:
        """All of them; read by `cells`."""
        return [cell for seed in self.seeds for cell in self._of_seed(seed)]

    def cells(self) -> list[Cell]:
        """All runs, seed by seed; those without a client only once it is known how many clients there are."""
        return self._cells

    def beside(self, condition: str) -> list[str]:
        """Names of the cells of a condition that are no candidates: untuned ones, references, ones without a client."""
        untuned = [untuned_name(each.name) for each in self.candidates if self.tuned.get((condition, each.name))]
        alone = range(self.clients.get(condition, 0)) if self.leave_one_out else ()
        return [*untuned, *map(reference_name, self.references), *map(left_out_name, alone)]

    def unfit(self) -> list[str]:
        """What is to be said of references that do not go with the base, and are left out."""
        seed, said = self.seeds[0], dict[str, None]()
        for condition, name in ((each, name) for each in self.conditions for name in self.references):
            try:
                self._reference(condition, name, seed)
            except ScenarioError as error:
                said.setdefault(f"{reference_name(name)} is left out: {error}")
        return list(said)

    def counted(self, clients: Mapping[str, int]) -> "Comparison":
        """The same once it is known how many clients each condition has."""
        return replace(self, clients=dict(clients))

    def to_toml(self) -> str:
        """The resolved comparison: `load` reads it to the same cells, wherever it is put."""
        tables = {
            "title": self.title,
            "name": self.name,
            **self._decided(),
            "clients": dict(self.clients),
            "tuned": [
                {"condition": condition, "candidate": candidate, "set": dict(settings)}
                for (condition, candidate), settings in self.tuned.items()
            ],
            "base_name": self.base.origin,
            "base_folder": str(self.base.folder.resolve()),
            "base": self.base.model_dump(mode="json", exclude_none=True),
        }
        return tomli_w.dumps(_plain(tables))

    def _decided(self) -> dict[str, Any]:
        """As the file has it, what was asked for."""
        return {
            "reference": self.reference,
            "seeds": list(self.seeds),
            "metric": self.metric,
            "target": self.target._asdict() if self.target is not None else None,
            "references": list(self.references),
            "leave_one_out": self.leave_one_out,
            "objects": self.objects or None,
            "tune": {"trials": self.tune.trials, "seeds": list(self.tune.seeds)} if self.tune is not None else None,
            "candidate": [
                {
                    "name": each.name,
                    "set": dict(each.settings),
                    "tune": {key: range_.table() for key, range_ in each.tune.items()},
                }
                for each in self.candidates
            ],
            "condition": [{"name": each.name, "set": dict(each.settings)} for each in self.conditions],
        }

    def _of_seed(self, seed: int) -> Iterator[Cell]:
        for condition in self.conditions:
            for candidate in self.candidates:
                yield self._cell(condition, candidate.name, seed, self.scenario(condition, candidate, seed))
                if self.tuned.get((condition.name, candidate.name)):
                    plain = replace(self, tuned={}).scenario(condition, candidate, seed)
                    yield self._cell(condition, untuned_name(candidate.name), seed, plain)
            for name, reference in self._fitting(condition, seed).items():
                yield self._cell(condition, reference_name(name), seed, reference)
            if self.leave_one_out:
                whole = self.scenario(condition, self._named(self.reference), seed)
                for client in range(self.clients.get(condition.name, 0)):
                    yield self._cell(condition, left_out_name(client), seed, left_out(whole, client))

    def _cell(self, condition: Condition, name: str, seed: int, scenario: Scenario) -> Cell:
        return Cell(condition.name, name, seed, scenario, self._folders[condition.name, name] / f"seed-{seed}")

    def scenario(self, condition: Condition, candidate: Candidate, seed: int) -> Scenario:
        """What a candidate's run is: the base, changed by the condition, the candidate, and what tuning chose."""
        tuned = self.tuned.get((condition.name, candidate.name), {})
        called = joined(self.base.title, condition.name, candidate.name)
        alone = {"seed": seed, "title": called, "references": [], "privacy.without": None}
        where = joined(told(candidate, "candidate"), told(condition, "condition") if condition.name else "")
        return applied(
            self.base, {**condition.settings, **candidate.settings, **tuned, **alone}, f"{self.origin}: {where}"
        )

    def _named(self, name: str) -> Candidate:
        return next(each for each in self.candidates if each.name == name)

    def _fitting(self, condition: Condition, seed: int) -> dict[str, Scenario]:
        found = {}
        for name in self.references:
            with suppress(ScenarioError):  # `unfit` says why
                found[name] = self._reference(condition, name, seed)
        return found

    def _reference(self, condition: Condition, name: str, seed: int) -> Scenario:
        """The base with a strategy that promises nothing, and so without privacy; nobody attacks it."""
        called = joined(self.base.title, condition.name)
        alone = {"seed": seed, "title": called, "references": []}
        scenario = applied(self.base, {**condition.settings, **alone}, self.origin)
        if scenario.privacy.level is not None:
            scenario = companions.without_privacy(scenario)
        tuned = self.tuned.get((condition.name, reference_name(name)), {})
        return companions.reference(scenario, name).changed(tuned)

    @cached_property
    def _folders(self) -> dict[tuple[str, str], Path]:
        """For every condition and name the folder of its runs, each a part of a path that all systems take."""
        keys = [
            (condition.name, name)
            for condition in self.conditions
            for name in [*(each.name for each in self.candidates), *self.beside(condition.name)]
        ]
        slugs = {key: _slug("-".join(filter(None, key))) for key in keys}
        used = list(slugs.values())
        return {
            key: Path("runs") / (slug if used.count(slug) == 1 else f"{slug}-{_short_hash(repr(key))}")
            for key, slug in slugs.items()
        }


def reference_name(strategy: str) -> str:
    """What the cells of a reference are called."""
    return f"reference: {strategy}"


def untuned_name(candidate: str) -> str:
    """What the cells of a candidate are called whose settings tuning has left as they were."""
    return f"untuned: {candidate}"


def left_out_name(client: int) -> str:
    """What the cells without a client are called."""
    return f"without client {client}"


def left_out(scenario: Scenario, client: int) -> Scenario:
    """The same run as if one client had never come."""
    without = sorted({*scenario.data.without, client})
    return scenario.changed({"data.without": without, "title": f"{scenario.title}, without client {client}"})


def _hashes(scenario: Scenario) -> dict[str, str]:
    return source_hashes(scenario.own_files())


def _without(table: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in keys}


def _plain(value: Any) -> Any:
    """As TOML has it: no None, and lists for tuples."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items() if inner is not None}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _slug(name: str) -> str:
    """A name as one part of a path; one that is long or has other signs alone ends in a hash."""
    text = as_path(name).strip("-.")
    return text if 0 < len(text) <= _LONGEST_FOLDER else f"{text[:_LONGEST_FOLDER]}-{_short_hash(name)}".lstrip("-")


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
