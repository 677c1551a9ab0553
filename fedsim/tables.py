"""The tables of a scenario as typed values, but for privacy: what each key is, and what it may be."""

import difflib
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedsim.cohorts import CohortRule

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


class Preprocess(Table):
    """How a table's numbers are scaled."""

    kind: Literal["constants", "per-client", "federated"] = Field(
        description="by the schema's constants; by each client's own train rows; by sums over all clients' train rows. "
        "The last two use the schema's mean, std and range only for columns of which nothing is known"
    )


class Data(Named):
    """Which corpus, and how it is spread over clients; further keys go to the data source."""

    name: str = Field("", description="of a source, or file.py:name; left out where data are given in Python")
    partition: dict[str, Any] = Field(description="kind, and what that kind takes")
    split: Split = Split()
    preprocess: Preprocess | None = Field(None, description="of a table; federated by default")
    min_rows: int = Field(5, ge=0, le=MOST, description="rows a client must have before its own split")
    without: list[Annotated[int, Field(ge=0, le=MOST)]] = Field(
        [], description="numbers of clients that are left out, as if they had never come"
    )
    transform: str | None = Field(None, description="file.py:name of a function of your own, x -> x, row by row")

    @model_validator(mode="after")
    def _spelt(self) -> Self:
        if not self.name and (meant := difflib.get_close_matches("name", self.settings, n=1)):
            raise ValueError(f"{meant[0]} is not known. Did you mean name?")
        return self


class TaskTable(Table):
    """What of the task is one's own; what is learned and how it is judged otherwise follows from the data."""

    loss: str | None = Field(None, description="file.py:name of a function (output, target) -> each row's loss")
    metrics: list[str] = Field([], description="file.py:name of every fedsim.Metric that is measured besides")
    headline: str | None = Field(None, description="the metric by which runs are judged, instead of the task's")

    @model_validator(mode="after")
    def _files(self) -> Self:
        for key, value in (("loss", self.loss), *(("metrics", each) for each in self.metrics)):
            if value is not None and ":" not in value:
                raise ValueError(f"{key} = {value!r}: write it as file.py:name")
        return self


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
        False,
        description="the local step is compiled to C++ before the run: 25 to 45 s once, then faster; rounds otherwise",
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
