"""A comparison as it is written: `comparison.toml`, `--vary key=a,b,c`, or a Python program's values."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from fedsim import ranges
from fedsim import scenario as scenarios
from fedsim.comparison.candidates import Candidate, Condition, crossed
from fedsim.comparison.plan import REFERENCES, Comparison, Target, Tuning, left_out_name, reference_name, untuned_name
from fedsim.errors import ScenarioError
from fedsim.registry import is_file, members, nearest
from fedsim.scenario import Scenario
from fedsim.scenario_files import assignments, check_values, override, read
from fedsim.tables import Count, Table

TUNING_SEED = 1001
"""On whose validation rows candidates are tuned, unless told otherwise; no comparison counts that far."""
_Seed = Annotated[int, Field(ge=0, lt=2**63)]
_EITHER = {
    "base": "give a scenario's name or file, or its tables",
    "seeds": "give a number from 1, for 1, 2, ..., or a list of whole numbers from 0",
}


class CandidateTable(Table):
    """One candidate."""

    name: str = Field(min_length=1)
    set: dict[str, Any] = {}
    tune: dict[str, Any] = {}


class ConditionTable(Table):
    """One condition."""

    name: str
    set: dict[str, Any] = {}


class TargetTable(Table):
    """What runs are to reach."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give at_least or at_most, one of them")
        return self


class TuneTable(Table):
    """How candidates are tuned."""

    trials: Count = 16
    seeds: list[_Seed] = Field([TUNING_SEED], min_length=1)


class TunedTable(Table):
    """What tuning chose; written by fedsim."""

    condition: str
    candidate: str
    set: dict[str, Any]


class ComparisonTable(Table):
    """A comparison's file; the last six keys are written by fedsim."""

    base: str | dict[str, Any] = Field(description="name or file of a scenario, or a scenario's tables")
    title: str | None = None
    seeds: Count | list[_Seed] = Field(5, description="a number, for 1, 2, ..., or a list")
    metric: str | None = Field(None, description="full name of the test metric on which verdicts rest")
    reference: str | None = Field(None, description="the candidate with which others are compared; the first")
    references: list[str] = Field(list(REFERENCES), description="strategies that are shown beside the candidates")
    leave_one_out: bool = False
    target: TargetTable | None = None
    candidate: list[CandidateTable] = []
    condition: list[ConditionTable] = []
    vary: dict[str, list[Any]] = {}
    together: list[dict[str, list[Any]]] = []
    tune: TuneTable | None = None
    name: str | None = None
    base_name: str | None = None
    base_folder: str | None = None
    clients: dict[str, Count] = {}
    tuned: list[TunedTable] = []
    objects: str = ""


def is_comparison(name: str) -> bool:
    """Whether a file is a comparison's: it says on which base."""
    path = Path(name)
    return path.suffix == ".toml" and is_file(path) and "base" in read(path)


def load(name: str | Path, changes: Mapping[str, Any] = {}, settings: Sequence[str] = ()) -> Comparison:
    """Read a comparison's file.

    Args:
        name: the file, or a comparison's folder.
        changes: keys of the file with other values: {"seeds": 3}.
        settings: "rounds=20" and the like, for its base.

    Raises:
        ScenarioError: names the file and the key.
    """
    path = Path(name)
    path = path / "comparison.toml" if path.is_dir() else path
    if not is_file(path):
        raise ScenarioError(f"{path}: there is no such file")
    return parse({**read(path), **changes}, path.resolve().parent, str(path), settings)


def varied(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Lists of values by key, of texts such as "train.learning_rate=0.1,0.2".

    Raises:
        ScenarioError: a text that names no values, or a key twice.
    """
    lists: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not key or not values.strip():
            raise ScenarioError(f"--vary {text}: write it as key=a,b,c, e.g. --vary strategy.name=fedavg,fedprox")
        if key in lists:
            raise ScenarioError(f"--vary {text}: {key} is varied twice; give all its values at once")
        lists[key] = [assignments([f"value={part}"])["value"] for part in _parts(values)]
    return lists


def parse(content: Mapping[str, Any], folder: Path, origin: str, settings: Sequence[str] = ()) -> Comparison:
    """A comparison from plain values.

    Args:
        content: as in the file; its base may be a `Scenario` too.
        folder: where files that it names are looked for.
        origin: what errors call it.
        settings: for the base.
    """
    given = content.get("base")
    try:
        base = given.changed(assignments(settings)) if isinstance(given, Scenario) else None
        plain = {**content, "base": {}} if base is not None else dict(content)
        check_values(plain)
        table = ComparisonTable.model_validate(plain)
        if base is None:
            base = _base(table, folder, origin, settings)
        return _comparison(table, base, origin)
    except ValidationError as error:
        raise ScenarioError(f"{origin}: {_reason(error)}") from None
    except ScenarioError as error:
        text = str(error)
        raise ScenarioError(text if text.startswith((origin, str(given))) else f"{origin}: {text}") from None


def _base(table: ComparisonTable, folder: Path, origin: str, settings: Sequence[str]) -> Scenario:
    if isinstance(table.base, str):
        beside = folder / table.base
        return scenarios.load(os.path.relpath(beside) if is_file(beside) else table.base, settings)
    place = Path(table.base_folder) if table.base_folder is not None else folder
    content = override(table.base, assignments(settings))
    return scenarios.parse(content, place, table.base_name or f"{origin}: base")


def _comparison(table: ComparisonTable, base: Scenario, origin: str) -> Comparison:
    candidates, conditions = crossed(
        [_candidate(each) for each in table.candidate],
        [Condition(each.name, each.set) for each in table.condition],
        table.vary,
        table.together,
        base,
    )
    names = [each.name for each in candidates]
    beside = (reference_name(""), untuned_name(""), left_out_name(0)[:-1])
    if taken := [name for name in names if name.startswith(beside)]:
        raise ScenarioError(
            f"candidate {taken[0]!r}: such names are those of references, untuned runs and clients left out"
        )
    if (reference := table.reference or names[0]) not in names:
        raise ScenarioError(f"reference = {reference!r}: there is no such candidate.{nearest(reference, names)}")
    known = members("fedsim.strategies")
    if wrong := [name for name in table.references if ":" not in name and name not in known]:
        raise ScenarioError(f"references: there is no strategy {wrong[0]!r}.{nearest(wrong[0], known)}")
    target, tune = table.target, table.tune
    comparison = Comparison(
        title=table.title or base.title,
        name=table.name or _name(origin, base),
        base=base,
        candidates=tuple(candidates),
        conditions=tuple(conditions),
        reference=reference,
        seeds=_seeds(table),
        metric=table.metric,
        target=Target(target.metric, target.at_least, target.at_most) if target is not None else None,
        references=tuple(dict.fromkeys(table.references)),
        leave_one_out=table.leave_one_out,
        tune=Tuning(tune.trials, tuple(tune.seeds)) if tune is not None else None,
        tuned={(each.condition, each.candidate): each.set for each in table.tuned},
        clients=table.clients,
        objects=table.objects,
        origin=origin,
    )
    comparison.cells()  # every scenario is made, and so checked
    return comparison


def _candidate(table: CandidateTable) -> Candidate:
    where = f"candidate {table.name!r}: tune"
    tune = {key: ranges.read(each, f"{where}.{key}") for key, each in table.tune.items()}
    return Candidate(table.name, table.set, tune)


def _seeds(table: ComparisonTable) -> tuple[int, ...]:
    seeds = tuple(range(1, table.seeds + 1)) if isinstance(table.seeds, int) else tuple(table.seeds)
    if not seeds:
        raise ScenarioError("seeds: give at least one")
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise ScenarioError(f"seeds: {twice[0]} is there twice, and the same run again tells nothing new")
    if table.tune is not None and (shared := sorted({*seeds} & {*table.tune.seeds})):
        raise ScenarioError(
            f"tune.seeds: {shared[0]} is one of seeds; tune on others, or verdicts favour what was tuned"
        )
    return seeds


def _name(origin: str, base: Scenario) -> str:
    """The file's, unless all comparisons are called so."""
    stem = Path(origin).stem
    return stem if stem != "comparison" else Path(base.origin).stem


def _parts(values: str) -> list[str]:
    """Texts between commas that are in no brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for sign in values:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        depth += (sign in "[{") - (sign in "]}") if not quote else 0
        if sign == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    *tables, last = map(str, first["loc"]) if first["loc"] else [""]
    key = ".".join([*tables, last])
    if first["type"] == "extra_forbidden":
        return f"{key} is not known.{nearest(last, _fields(tables))}"
    if first["type"] == "missing":
        return f"{key} is missing"
    if tables and tables[0] in _EITHER:
        return f"{tables[0]}: {_EITHER[tables[0]]}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message[:1].lower()}{message[1:]}" if key else message


def _fields(tables: Sequence[str]) -> list[str]:
    known: Mapping[str, type[BaseModel]] = {
        "candidate": CandidateTable,
        "condition": ConditionTable,
        "target": TargetTable,
        "tune": TuneTable,
    }
    return list(known.get(tables[0] if tables else "", ComparisonTable).model_fields)
