"""A scenario: what is run, as typed values read from TOML.

`load` takes the tables that `scenario_files.py` reads and checks every key. `Scenario.to_toml` writes the
resolved snapshot back: every default filled in.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from fedsim.errors import ScenarioError
from fedsim.privacy_tables import Privacy
from fedsim.registry import as_path, is_file, nearest
from fedsim.scenario_files import check_values, locate, named_files, override, read
from fedsim.tables import (
    Attack,
    Checkpoint,
    Cohort,
    Count,
    Data,
    Engine,
    Evaluate,
    Model,
    Records,
    Stop,
    Strategy,
    Table,
    TaskTable,
    Train,
)


class Scenario(Table):
    """One run, described."""

    title: str
    description: str = ""
    seed: int = Field(ge=0)
    rounds: Count
    references: list[str] = Field([], description="strategies that are run beside this one, everything else equal")
    data: Data
    model: Model
    task: TaskTable = TaskTable()
    train: Train
    strategy: Strategy = Strategy()
    adversary: Attack | None = None
    cohort: Cohort = Cohort()
    privacy: Privacy = Privacy()
    evaluate: Evaluate = Evaluate()
    stop: Stop = Stop()
    engine: Engine = Engine()
    checkpoint: Checkpoint = Checkpoint()
    records: Records = Records()
    _folder: Path = PrivateAttr(Path())
    _origin: str = PrivateAttr("scenario")

    @model_validator(mode="after")
    def _spends(self) -> Self:
        if self.stop.epsilon is not None and self.privacy.level is None:
            raise ValueError("stop.epsilon needs privacy.example, client or local: else no epsilon is spent")
        return self

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if self.engine.compile and self.privacy.example is not None:
            raise ValueError("engine.compile does not go with privacy.example, whose clipped gradients are made apart")
        if self.engine.compile and ((self.engine.stack or 1) > 1 or self.engine.devices not in (None, ["cpu"])):
            raise ValueError("engine.compile trains one client at a time on a core; leave engine.stack and devices out")
        return self

    @model_validator(mode="after")
    def _rounds(self) -> Self:
        if self.train.precision == "fp32":
            return self
        if self.privacy.example is not None:
            raise ValueError("train.precision = 'bf16' does not go with privacy.example, whose clip is proved for fp32")
        if self.engine.compile or (self.engine.stack or 1) > 1 or self.engine.devices not in (None, ["cpu"]):
            raise ValueError(
                "train.precision = 'bf16' trains clients one by one on a core; leave engine.stack, devices, compile out"
            )
        return self

    @model_validator(mode="after")
    def _releases_always(self) -> Self:
        usual = {"min_replies": None, "on_client_error": "skip"}
        reading = [key for key, value in usual.items() if getattr(self.cohort, key) != value]
        if self.privacy.client is not None and reading:
            raise ValueError(
                f"cohort.{reading[0]} ends a run for what clients did, which privacy.client does not cover: a round is "
                f"released whoever answers. Leave cohort.{reading[0]} out"
            )
        return self

    @model_validator(mode="after")
    def _refers(self) -> Self:
        if self.references and self.privacy.level is not None:
            raise ValueError(
                f"references promise no privacy, so they do not go with privacy.{self.privacy.level}; privacy.without "
                "runs the scenario without it"
            )
        places = [as_path(name) for name in self.references]
        if twice := [name for name, place in zip(self.references, places, strict=True) if places.count(place) > 1]:
            raise ValueError(f"references name {twice[0]!r} twice; name each once")
        strategy = self.strategy
        plain = not (strategy.settings or strategy.combine or strategy.server)
        if plain and as_path(strategy.name) in places:
            raise ValueError(f"references name {strategy.name!r}, which is strategy.name itself; leave it out")
        return self

    @property
    def folder(self) -> Path:
        """Where its file lies; own code and files are taken from there."""
        return self._folder

    @property
    def origin(self) -> str:
        """What errors call it."""
        return self._origin

    def to_toml(self) -> str:
        """The resolved snapshot: every default filled in, absent alternatives left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def changed(self, changes: Mapping[str, Any], origin: str | None = None) -> "Scenario":
        """This scenario with some keys changed, e.g. {"privacy": {}} or {"train.learning_rate": 0.1}."""
        origin = origin or self.origin
        try:
            content = override(self.model_dump(exclude_none=True), changes)
        except ScenarioError as error:
            raise ScenarioError(f"{origin}: {error}") from None
        return parse(content, self.folder, origin)

    def own_files(self) -> list[Path]:
        """The user's own Python and data files that this scenario names."""
        found = named_files(self.model_dump())
        names = [value if key.endswith("path") else value.partition(":")[0] for key, value in found]
        return [path for name in dict.fromkeys(names) if is_file(path := self.folder / name)]


def load(name: str, overrides: Sequence[str] = ()) -> Scenario:
    """Read, derive, override and check a scenario.

    Args:
        name: a .toml file or the name of a shipped scenario.
        overrides: "train.learning_rate=0.05", values as in TOML; a bare word is a string.

    Raises:
        ScenarioError: names file and key, and the nearest valid name.
    """
    path = locate(name)
    return parse(read(path, overrides), path.resolve().parent, name)


def parse(content: Mapping[str, Any], folder: Path, origin: str) -> Scenario:
    """A scenario from plain values; `origin` is named in errors."""
    try:
        check_values(content)
        scenario = Scenario.model_validate(content)
    except ScenarioError as error:
        raise ScenarioError(f"{origin}: {error}") from None
    except ValidationError as error:
        raise ScenarioError(f"{origin}: {_reason(error)}") from None
    scenario._folder, scenario._origin = folder, origin
    return scenario


def _reason(error: ValidationError) -> str:
    """The most telling of a scenario's mistakes: of a typo in a required key pydantic also says that it is missing."""
    errors = error.errors()
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    *table, last = map(str, first["loc"]) if first["loc"] else [""]
    key = ".".join([*table, last])
    if first["type"] == "extra_forbidden":
        return f"{key} is not known.{nearest(last, _fields(table))}"
    if first["type"] == "missing":
        close = difflib.get_close_matches(last, set(first["input"]) - set(_fields(table)), n=1)
        return f"{'.'.join([*table, *close])} is not known. Did you mean {last}?" if close else f"{key} is missing"
    message = first["msg"].removeprefix("Value error, ")
    if not key:
        return message
    given = first.get("input")
    value = f" = {given!r}" if isinstance(given, str | int | float | bool) else ""
    return f"{key}{value}: {message[:1].lower()}{message[1:]}"


def _fields(location: Sequence[str]) -> list[str]:
    """The known keys of the table at `location`."""
    table: type[BaseModel] = Scenario
    for part in location:
        annotation = table.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        table = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return list(table.model_fields)
