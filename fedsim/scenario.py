"""A scenario: what is run, as typed values read from TOML.

`load` reads a file (or the name of one that comes with fedsim), follows `extends`, applies `--set` overrides
and checks every key. `Scenario.to_toml` writes the resolved snapshot back: every default filled in.
"""

import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedsim.cohorts import CohortRule
from fedsim.errors import ScenarioError
from fedsim.registry import nearest

Positive = Field(gt=0)
ALTERNATIVES = (
    ("cohort", ("size", "fraction", "poisson")),
    ("train", ("epochs", "steps")),
    ("privacy.example", ("epsilon", "noise_multiplier")),
)
"""Keys of which a table has one: setting one in a derived scenario or by --set drops the others."""


class Table(BaseModel):
    """A table of a scenario; unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Named(Table):
    """A table whose further keys belong to the function it names, which checks them."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that belong to the named function."""
        return dict(self.model_extra or {})


class Split(Table):
    """Shares of rows: held out centrally, and each client's own parts."""

    central: float = Field(0.2, ge=0, lt=1, description="share given up for the central validation and test set")
    train: float = Field(0.7, gt=0, le=1, description="share of a client's rows")
    validation: float = Field(0.15, ge=0, lt=1)
    test: float = Field(0.15, ge=0, lt=1)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError("train, validation and test must add up to 1")
        return self


class Data(Named):
    """Which corpus, and how it is spread over clients; further keys go to the data source."""

    partition: dict[str, Any] = Field(description="kind, and what that kind takes")
    split: Split = Split()
    min_rows: int = Field(5, ge=0, description="rows a client must have before its own split")


class Model(Named):
    """Which model; further keys go to its factory."""


class Strategy(Named):
    """Which federated algorithm; further keys are its hyper-parameters."""

    name: str = "fedavg"


class Schedule(Table):
    """How the learning rate changes over rounds."""

    kind: Literal["step", "cosine"] = "step"
    every: int = Field(1, ge=1, description="rounds between two steps (step)")
    factor: float = Field(1.0, gt=0, description="what the rate is multiplied with at a step (step)")


class Train(Table):
    """What a client does in a round."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Positive
    batch_size: int = Field(ge=1)
    epochs: int | None = Field(None, ge=1, description="passes over the client's rows; 1 unless steps is set")
    steps: int | None = Field(None, ge=1, description="optimiser steps, instead of epochs")
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float | None = Field(None, gt=0, description="largest norm of a step's gradient, after noise and correction")
    schedule: Schedule | None = None

    @model_validator(mode="after")
    def _amount(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum belongs to sgd; {self.optimizer} has its own")
        return self

    @property
    def plain(self) -> bool:
        """Whether a step is learning rate times gradient and nothing else."""
        return self.optimizer == "sgd" and not self.momentum and not self.weight_decay and self.clip is None


class Cohort(Table):
    """Who takes part in a round: exactly one of size, fraction, poisson; everyone when none is given."""

    size: int | None = Field(None, ge=1, description="clients a round")
    fraction: float | None = Field(None, gt=0, le=1, description="a fixed share of all clients, at least one")
    poisson: float | None = Field(None, gt=0, le=1, description="probability of each client, independently")
    on_client_error: Literal["skip", "fail"] = "skip"

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(key is not None for key in (self.size, self.fraction, self.poisson)) > 1:
            raise ValueError("give one of size, fraction and poisson")
        return self

    @property
    def rule(self) -> CohortRule:
        """The sampling rule."""
        everyone = self.size is None and self.fraction is None and self.poisson is None
        return CohortRule(size=self.size, fraction=1.0 if everyone else self.fraction, poisson=self.poisson)


class ExamplePrivacy(Table):
    """Differential privacy of single rows (or text windows), in every client's local steps."""

    epsilon: float | None = Field(None, gt=0, description="target; the noise is solved for it")
    noise_multiplier: float | None = Field(None, gt=0, description="noise over clip, instead of epsilon")
    delta: float = Field(gt=0, lt=1)
    max_grad_norm: float = Field(gt=0, description="clip of one row's gradient")
    max_participations: int | None = Field(None, ge=1, description="rounds a client may take part in, enforced")
    accountant: Literal["rdp", "prv"] = "rdp"

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give epsilon or noise_multiplier, one of them")
        return self


class Privacy(Table):
    """Which privacy is promised; none unless a level is given."""

    example: ExamplePrivacy | None = None
    without: dict[str, Any] | None = Field(
        None, description="run the scenario without privacy too, with these keys changed, and print both"
    )


class Evaluate(Table):
    """What is measured, and when."""

    every: int = Field(1, ge=1, description="rounds between two evaluations on the central validation set")
    clients_every: int = Field(1, ge=0, description="rounds between two evaluations on clients' own rows; 0: never")
    min_rows: int = Field(5, ge=1, description="held-out rows a client needs to count in the worst 10 %")
    batch_size: int = Field(500, ge=1)
    metric: str | None = Field(None, description="validation metric that chooses the best round")


class Stop(Table):
    """When a run ends before its last round. Only validation metrics may decide."""

    metric: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    patience: int | None = Field(None, ge=1, description="evaluations without a better value of the metric")
    diverged_above: float | None = Field(None, gt=0, description="validation loss beyond which a run has diverged")
    max_seconds: float | None = Field(None, gt=0)
    epsilon: float | None = Field(None, gt=0, description="no round is run that would exceed it")

    @model_validator(mode="after")
    def _target(self) -> Self:
        targets = [key for key in (self.at_least, self.at_most) if key is not None]
        if len(targets) == 2:
            raise ValueError("give at_least or at_most, not both")
        if targets and self.metric is None:
            raise ValueError("at_least and at_most need metric")
        return self


class Engine(Table):
    """Where clients run."""

    kind: Literal["ray", "inline"] = "ray"
    workers: int | None = Field(None, ge=1, description="Ray workers; the cores of this machine by default")


class Checkpoint(Table):
    """What a run keeps on disk."""

    keep: int = Field(2, ge=1, description="rounds whose model is kept, newest first")


class Scenario(Table):
    """One run, described. `folder` is where its file lies; own code and files are taken from there."""

    title: str
    description: str = ""
    seed: int = Field(ge=0)
    rounds: int = Field(ge=1)
    data: Data
    model: Model
    train: Train
    strategy: Strategy = Strategy()
    cohort: Cohort = Cohort()
    privacy: Privacy = Privacy()
    evaluate: Evaluate = Evaluate()
    stop: Stop = Stop()
    engine: Engine = Engine()
    checkpoint: Checkpoint = Checkpoint()
    folder: Path = Field(Path(), exclude=True)
    origin: str = Field("scenario", exclude=True, description="what errors call it")

    def to_toml(self) -> str:
        """The resolved snapshot: every default filled in, absent alternatives left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def changed(self, changes: Mapping[str, Any]) -> "Scenario":
        """This scenario with some keys changed, e.g. {"privacy": {}} or {"train.learning_rate": 0.1}."""
        return parse(override(self.model_dump(mode="python", exclude_none=True), changes), self.folder, self.origin)

    def own_files(self) -> list[Path]:
        """The user's own Python and data files that this scenario names."""
        names = [table.name.partition(":")[0] for table in (self.data, self.model, self.strategy) if ":" in table.name]
        if isinstance(path := self.data.settings.get("path"), str):
            names.append(path)
        return [path for name in dict.fromkeys(names) if (path := self.folder / name).is_file()]


def shipped() -> list[str]:
    """Names of the scenarios that come with fedsim."""
    return sorted(
        Path(entry.name).stem for entry in files("fedsim.scenarios").iterdir() if entry.name.endswith(".toml")
    )


def locate(name: str) -> Path:
    """The file of a scenario given as a path or as the name of one that comes with fedsim.

    Raises:
        ScenarioError: there is neither.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise ScenarioError(f"{name}: there is no such file")
        return path
    if name in shipped():
        return Path(str(files("fedsim.scenarios") / f"{name}.toml"))
    raise ScenarioError(f"there is no scenario {name!r}.{nearest(name, shipped())} Or give a .toml file.")


def load(name: str, overrides: Sequence[str] = ()) -> Scenario:
    """Read, derive, override and check a scenario.

    Args:
        name: a .toml file or the name of a shipped scenario.
        overrides: "train.learning_rate=0.05", values as in TOML; a bare word is a string.

    Raises:
        ScenarioError: names file and key, and the nearest valid name.
    """
    path = locate(name)
    content = _read(path, ())
    content = override(content, dict(_assignment(text) for text in overrides))
    return parse(content, path.resolve().parent, name)


def parse(content: Mapping[str, Any], folder: Path, origin: str) -> Scenario:
    """A scenario from plain values; `origin` is named in errors."""
    try:
        return Scenario.model_validate({**content, "folder": folder, "origin": origin})
    except ValidationError as error:
        raise ScenarioError(f"{origin}: {_reason(error)}") from None


def override(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested tables with dotted keys set; of alternatives, the one that is set replaces the others."""
    result: dict[str, Any] = {key: _copied(value) for key, value in content.items()}
    for dotted, value in changes.items():
        *tables, last = dotted.split(".")
        table = result
        for name in tables:
            inner = table.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ScenarioError(f"{dotted} cannot be set: {name} is not a table")
            table = inner
        prefix = ".".join(tables)
        # One that is set along with this one stays, so that the check refuses both.
        _drop_alternatives(
            table, prefix, {key.rpartition(".")[2] for key in changes if key.rpartition(".")[0] == prefix}
        )
        table[last] = value
    return result


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ScenarioError(f"{path}: extends leads back to itself")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from None
    if "extends" not in content:
        return content
    parent = content.pop("extends")
    if not isinstance(parent, str):
        raise ScenarioError(f"{path}: extends should be the name or file of one scenario")
    return _derive(_read(_base(path, parent), (*seen, path.resolve())), content)


def _base(path: Path, parent: str) -> Path:
    """The file that `path` extends: one beside it, else as `locate` finds it."""
    beside = path.parent / parent
    if beside.is_file():
        return beside
    try:
        return locate(parent)
    except ScenarioError as error:
        raise ScenarioError(f"{path}: extends: {error}") from None


def _derive(base: dict[str, Any], changes: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Merge tables; one that names another function (`name`, `kind`) replaces the base's whole table."""
    result = dict(base)
    _drop_alternatives(result, prefix, set(changes))
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not _renamed(old, value):
            result[key] = _derive(old, value, f"{prefix}.{key}" if prefix else key)
        else:
            result[key] = value
    return result


def _renamed(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return any(key in new and new[key] != old.get(key) for key in ("name", "kind"))


def _drop_alternatives(table: dict[str, Any], prefix: str, setting: set[str]) -> None:
    for name, keys in ALTERNATIVES:
        if name == prefix and setting & set(keys):
            for key in set(keys) - setting:
                table.pop(key, None)


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ScenarioError(f"--set {text}: write it as key=value, e.g. --set train.learning_rate=0.05")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{key} is not known.{nearest(str(first['loc'][-1]), _fields(first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"{key} is missing"
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    value = f" = {given!r}" if isinstance(given, str | int | float | bool) else ""
    return f"{key}{value}: {message[:1].lower()}{message[1:]}"


def _fields(location: Sequence[int | str]) -> list[str]:
    """The known keys of the table at `location`."""
    table: type[BaseModel] = Scenario
    for part in location:
        annotation = table.model_fields[str(part)].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        table = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return [name for name in table.model_fields if name not in ("folder", "origin")]
