"""A scenario: what is run, as typed values read from TOML.

`load` takes the tables that `scenario_files.py` reads and checks every key. `Scenario.to_toml` writes the
resolved snapshot back: every default filled in.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedsim.cohorts import CohortRule
from fedsim.errors import ScenarioError
from fedsim.privacy.plan import Level
from fedsim.registry import as_path, is_file, nearest
from fedsim.scenario_files import check_values, locate, named_files, override, read

Positive = Field(gt=0)
MOST = 10**9
"""Of anything that is counted: at a millisecond each it takes eleven days, and the product of two has 63 bits."""
Count = Annotated[int, Field(ge=1, le=MOST)]


class Table(BaseModel):
    """A table of a scenario; unknown keys and wrong types are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )


class Named(Table):
    """A table whose further keys belong to the function it names, which checks them."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, ser_json_inf_nan="constants")
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
    min_rows: int = Field(5, ge=0, le=MOST, description="rows a client must have before its own split")


class Model(Named):
    """Which model; further keys go to its factory."""


class Part(Named):
    """A strategy of which one part is used; further keys are its hyper-parameters."""


class Strategy(Named):
    """Which federated algorithm; further keys are its hyper-parameters."""

    name: str = "fedavg"
    combine: Part | None = Field(None, description="name of the strategy whose combiner is used, and its keys")
    server: Part | None = Field(None, description="name of the strategy whose server half takes the step, and its keys")

    @field_validator("combine", "server", mode="before")
    @classmethod
    def _table(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str):
            raise ValueError(f"write it as a table: {info.field_name} = {{ name = {value!r} }}")
        return value


class Attack(Named):
    """What some clients do instead of honest work; further keys belong to the attack."""

    fraction: float | None = Field(None, gt=0, lt=1, description="share of the clients with train rows, at least one")
    clients: list[Annotated[int, Field(ge=0, le=MOST)]] | None = Field(
        None, min_length=1, description="numbers of the clients that attack, instead of fraction"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.fraction is None) == (self.clients is None):
            meant = [key for key in self.settings if difflib.get_close_matches(key, ("fraction", "clients"))]
            raise ValueError("give fraction or clients, one of them" + "".join(f"; {key} is neither" for key in meant))
        return self


class Schedule(Table):
    """How the learning rate changes over rounds."""

    kind: Literal["step", "cosine"] = "step"
    every: Count = Field(1, description="rounds between two steps (step)")
    factor: float = Field(1.0, gt=0, description="what the rate is multiplied with at a step (step)")

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.kind == "cosine" and (self.every, self.factor) != (1, 1.0):
            raise ValueError("every and factor belong to kind step; cosine takes neither")
        if self.kind == "step" and self.factor == 1:
            raise ValueError("with factor 1 nothing changes; give factor, or leave the schedule out")
        return self


class Train(Table):
    """What a client does in a round."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Positive
    batch_size: Count
    epochs: Count | None = Field(None, description="passes over the client's rows; 1 unless steps is set")
    steps: Count | None = Field(None, description="optimiser steps, instead of epochs")
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float | None = Field(None, gt=0, description="largest norm of a step's gradient, after noise and correction")
    schedule: Schedule | None = None
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: forward and backward pass in 16 bits where torch's autocast does so"
    )

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

    size: Count | None = Field(None, description="clients a round")
    fraction: float | None = Field(None, gt=0, le=1, description="a fixed share of all clients, at least one")
    poisson: float | None = Field(None, gt=0, le=1, description="probability of each client, independently")
    dropout: float = Field(0.0, ge=0, lt=1, description="probability that a client that was drawn does not answer")
    on_client_error: Literal["skip", "fail"] = Field("skip", description="whether one failed client ends the run")
    min_replies: Count | None = Field(None, description="with fewer sound replies in a round the run stops")
    client_timeout: float | None = Field(
        None, gt=0, le=MOST, description="seconds; a client that takes longer has failed"
    )

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


class Budget(Table):
    """What all levels of privacy ask alike: exactly one of epsilon and noise_multiplier."""

    epsilon: float | None = Field(None, gt=0, description="target; the noise is solved for it")
    noise_multiplier: float | None = Field(None, gt=0, description="noise over clip, instead of epsilon")
    delta: float = Field(gt=0, lt=1)
    max_participations: Count | None = Field(None, description="rounds a client may take part in, enforced")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give epsilon or noise_multiplier, one of them")
        return self


class ExamplePrivacy(Budget):
    """Differential privacy of single rows (or text windows, or persons), in every client's local steps."""

    max_grad_norm: float = Field(gt=0, description="clip of one unit's gradient")
    accountant: Literal["rdp", "prv", "pld"] = "rdp"
    unit: str | None = Field(None, description="what groups the rows that are protected together; a row if not given")
    relation: Literal["zero-out", "replace"] = "zero-out"
    clipping: Literal["flat", "per-layer"] = Field("flat", description="one bound, or one for each parameter")


class AdaptiveClipping(Table):
    """A clip norm that follows a quantile of the updates' norms, privately."""

    quantile: float = Field(0.5, gt=0, lt=1, description="share of clients that are to stay unclipped")
    rate: float = Field(0.2, gt=0, description="how fast the clip follows")
    bit_noise: float | None = Field(
        None, gt=0, description="noise on the count of unclipped clients; a twentieth of a cohort"
    )


class ClientPrivacy(Budget):
    """Differential privacy of whole clients, by the server's noise on a cohort's clipped sum."""

    clip: float = Field(gt=0, description="largest norm of a client's upload; the first, where it adapts")
    adaptive: AdaptiveClipping | None = None
    mechanism: Literal["gaussian", "tree"] = Field("gaussian", description="tree: DP-FTRL, for cohorts nobody draws")
    min_separation: Count | None = Field(
        None, description="rounds of a tree, and between two participations of a client"
    )
    accountant: Literal["rdp", "prv", "pld", "exact"] | None = Field(
        None, description="rdp where chance hides who takes part, exact where it does not"
    )
    relation: Literal["zero-out", "replace"] = "zero-out"
    amplified: bool = Field(False, description="charge a fixed-size cohort as drawn by chance; needs relation replace")


class LocalPrivacy(Budget):
    """Differential privacy of a client's rows by its own noise on its clipped upload."""

    clip: float = Field(gt=0, description="largest norm of an upload before noise")


class Privacy(Table):
    """Which privacy is promised; none unless a level is given."""

    example: ExamplePrivacy | None = None
    client: ClientPrivacy | None = None
    local: LocalPrivacy | None = None
    without: dict[str, Any] | None = Field(
        None, description="run the scenario without privacy too, with these keys changed, and print both"
    )

    @model_validator(mode="after")
    def _without(self) -> Self:
        if self.without is not None and self.level is None:
            raise ValueError("without needs example, client or local: there is no privacy to do without")
        for key in self.changes:
            if key.partition(".")[0] not in ("rounds", "train", "evaluate", "stop"):
                raise ValueError(f"without cannot change {key}; only rounds, train, evaluate and stop may differ")
        return self

    @model_validator(mode="after")
    def _one_level(self) -> Self:
        if len(self._levels) > 1:
            raise ValueError(
                f"give one of {' and '.join(self._levels)}: they protect something else from somebody else, and their "
                "epsilons are never added up"
            )
        return self

    @property
    def _levels(self) -> list[Level]:
        levels: tuple[Level, ...] = ("example", "client", "local")
        return [level for level in levels if getattr(self, level) is not None]

    @property
    def level(self) -> Level | None:
        """The level at which something is promised."""
        return next(iter(self._levels), None)

    @property
    def changes(self) -> dict[str, Any]:
        """What `without` changes, by dotted keys; TOML's `train.learning_rate` without quotes is a table in one."""
        changes: dict[str, Any] = {}
        for key, value in (self.without or {}).items():
            inner = value if isinstance(value, Mapping) and "." not in key else {}
            changes |= {f"{key}.{name}": part for name, part in inner.items()} or {key: value}
        return changes


class Evaluate(Table):
    """What is measured, and when."""

    every: Count = Field(1, description="rounds between two evaluations on the central validation set")
    clients_every: int = Field(
        1, ge=0, le=MOST, description="rounds between two evaluations on clients' own rows; 0: never"
    )
    clients: Count | None = Field(
        None, description="how many clients are asked for it, the same in every round, drawn by chance; all by default"
    )
    min_rows: Count = Field(5, description="held-out rows a client needs to count in the worst 10 %")
    batch_size: Count = 500
    metric: str | None = Field(None, description="validation metric that chooses the best round")


class Stop(Table):
    """When a run ends before its last round. Only validation metrics may decide."""

    metric: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    patience: Count | None = Field(None, description="evaluations without a better value of the metric")
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
    workers: Count | None = Field(None, description="Ray workers; by default the cores of this machine or cluster")
    memory: Annotated[float, Field(gt=0)] | None = Field(
        None, description="GB of its own that a worker may use; a client that needs more fails; no limit by default"
    )
    object_store_memory: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="GB that workers of this machine may share: rows, models, updates; by default a third of all",
    )
    address: str | None = Field(None, description="of a Ray cluster whose machines work, host:port or auto")
    stack: Count | None = Field(
        None, description="clients that are trained at once, as one computation; on a CPU 1, which is one by one"
    )
    devices: list[str] | None = Field(
        None, description='["cpu"] or ["cuda:0", ...], where stacks are trained; all GPUs by default, else the cores'
    )
    workers_per_gpu: Count = Field(1, description="Ray workers that share a GPU")
    gpu_memory: Annotated[float, Field(gt=0)] | None = Field(
        None, description="GB of its GPU that a worker may use; no limit by default"
    )
    compile: bool = Field(
        False, description="the local step is compiled to C++ before the run: 20 s once, then faster; rounds otherwise"
    )
    bits: Literal["guaranteed", "not guaranteed"] = Field(
        "guaranteed",
        description="not guaranteed: a run may be resumed on another processor or with other package versions",
    )

    @model_validator(mode="after")
    def _where(self) -> Self:
        if self.stack == 1 and self.devices not in (None, ["cpu"]):
            raise ValueError("devices are for stacks, and stack = 1 makes none; leave one of them out")
        return self


class Checkpoint(Table):
    """What a run keeps on disk to be resumed from."""

    every: Count = Field(
        1, description="rounds between two checkpoints; a kill loses at most the rounds since the last one"
    )
    keep: Count = Field(2, description="checkpoints kept, newest first, the best round's besides")


class Records(Table):
    """What is written down of single clients; their failures always are."""

    clients: Literal["all", "failed"] | float = Field(
        "all", description="all, failed, or the share of clients whose every round is recorded"
    )

    @field_validator("clients", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        share = isinstance(value, float) and 0 < value < 1
        if not share and (not isinstance(value, str) or value not in ("all", "failed")):
            raise ValueError("should be 'all', 'failed' or a share between 0 and 1")
        return value


class Scenario(Table):
    """One run, described."""

    title: str
    description: str = ""
    seed: int = Field(ge=0)
    rounds: Count
    references: list[str] = Field([], description="strategies that are run beside this one, everything else equal")
    data: Data
    model: Model
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
