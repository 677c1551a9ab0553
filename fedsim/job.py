"""A job: everything that is needed to do any client's work, checked before anything trains.

`prepare` turns a scenario into a job and refuses what cannot be combined. A job travels to every worker,
which builds model and algorithm from it by itself; the federation's arrays are shared memory there.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fedsim import registry, seeds
from fedsim.adversaries import Adversary, attackers, make_adversary
from fedsim.algorithm import Algorithm
from fedsim.cohorts import CohortRule, Cohorts, dropouts, expected_size, largest_size
from fedsim.compiled import Libraries, libraries_of
from fedsim.composition import algorithm_of, check_algorithm, check_driven
from fedsim.data import given
from fedsim.data.corpus import PREDICTS_NEXT, Folders
from fedsim.data.federation import Federation, Rows
from fedsim.errors import DataError, PrivacyError, ScenarioError, named
from fedsim.federating import DataSource, federate, own_of
from fedsim.machine import available_memory
from fedsim.model import Known, check_model, check_size, make_model, model_name
from fedsim.origins import Origin, origins, reference
from fedsim.own import NOTHING, Own, OwnProblem, with_own
from fedsim.own_trial import check_own
from fedsim.parameters import layout_of
from fedsim.privacy.example import private_module
from fedsim.privacy.ledger import EVERYBODY
from fedsim.privacy.levels import plan_client, plan_example, plan_local
from fedsim.privacy.plan import Plan
from fedsim.privacy.requests import AdaptiveClipping, ClientPrivacy, ExamplePrivacy, LocalPrivacy
from fedsim.problem import Problem, problem_for
from fedsim.scenario import Scenario
from fedsim.stock import TREES
from fedsim.tables import Engine

ModelSource = str | Callable[..., nn.Module]
_TRIED = 64  # rows on which own losses and metrics are tried
_WORKER_BYTES = 150_000_000  # of its own that a process has once torch is imported; 170 MB were measured


@dataclass(frozen=True)
class Job:
    """A checked scenario with its data.

    Attributes:
        scenario: what is run.
        federation: every client's rows.
        model: name or factory of the model.
        data: where the data came from: the scenario's word for it, or a Python function's name.
        privacy: what is promised, with its noise solved, or None.
        attackers: clients that follow the adversary, sorted.
        apart: [K] everybody's train rows before one client got them all, for a pooled algorithm; else None.
        compiled: the local step under `engine.compile`, else None.
        own: the user's loss, metrics and transform, as they were given.
        lengths: of what own metrics sum up.
        origins: where what is the user's own was written, with its reference.
        coins: of the mechanism of privacy: its noise, its Poisson batches, and cohorts where they are part of it.
    """

    scenario: Scenario
    federation: Federation
    model: ModelSource
    data: str
    privacy: Plan | None
    attackers: tuple[int, ...] = ()
    apart: np.ndarray | None = None
    compiled: Libraries | None = None
    own: Own = NOTHING
    lengths: Mapping[str, int] = field(default_factory=dict)
    origins: Sequence[tuple[str, Origin]] = ()
    coins: seeds.Coins = seeds.numpy_generator

    @property
    def rule(self) -> CohortRule:
        """Who is drawn each round; of pooled rows the one client that has them, always."""
        return self.scenario.cohort.rule if self.apart is None else CohortRule(fraction=1.0)

    def absent(self, round: int, cohort: Sequence[int]) -> dict[int, str]:
        """The clients of a round's cohort that drop out, and what is recorded of them; pooled rows never do."""
        rate = self.scenario.cohort.dropout if self.apart is None else 0.0
        dropped = dropouts(rate, self.scenario.seed, round, cohort)
        return {number: f"round {round}, client {number}: dropped out (cohort.dropout)" for number in dropped}

    def cohorts(self) -> Cohorts:
        """Who is drawn, from round 1 on."""
        able, plan = self.federation.train_rows > 0, self.privacy
        if plan is None:
            return Cohorts(self.rule, self.scenario.seed, able)
        hidden = plan.level == "client" and plan.by_round  # chance is then part of the proof
        return Cohorts(
            self.rule,
            self.scenario.seed,
            able,
            plan.max_participations,
            plan.separation,
            registered=plan.level == "client",
            coins=self.coins if hidden else seeds.numpy_generator,
        )

    def identity(self, client: int) -> str:
        """Whose data a client has: in all runs the same for a natural client, and for parts that are dealt alike.

        `EVERYBODY` stands for the whole corpus.
        """
        if client == EVERYBODY:
            name = f"corpus {self.federation.corpus}"
        elif self.scenario.data.partition["kind"] == "natural":
            name = f"client {self.federation.names[client]} of {self.federation.corpus}"
        else:
            name = f"client {client} of {self.federation.digest}"
        return seeds.digest(name).hex()[:16]

    def draws(self, purpose: str, number: int) -> seeds.Draw:
        """The coins of the server's noise: of one purpose and one round or node."""
        return self.coins(self.scenario.seed, purpose, number, 0)

    def local_steps(self, client: int) -> int:
        """Optimiser steps of a client in a round; on pooled rows as many as a cohort's clients take together."""
        if self.apart is None:
            return _steps_on(self.scenario, int(self.federation.train_rows[client]))
        able = self.apart[self.apart > 0]
        share = expected_size(self.scenario.cohort.rule, len(self.apart)) / len(self.apart)
        return max(1, round(min(share, 1.0) * sum(_steps_on(self.scenario, int(rows)) for rows in able)))

    @property
    def model_title(self) -> str:
        """What people call the model."""
        return model_name(self.model)

    def build_model(self) -> nn.Module:
        """The plain model with its initial values, the same wherever it is built."""
        return _model(self.scenario, self.model, self.federation)

    def build_algorithm(self) -> Algorithm:
        """The algorithm, from its name and hyper-parameters."""
        return algorithm_of(self.scenario)

    def build_adversary(self) -> Adversary | None:
        """What attackers do."""
        return _adversary(self.scenario, self.federation)

    def build_problem(self) -> Problem:
        """Loss, statistics and metrics of the task."""
        return with_own(
            problem_of(self.federation, self.scenario.folder),
            self.own,
            self.scenario.task.headline,
            self.scenario.folder,
            self.lengths,
        )


def prepare(
    scenario: Scenario,
    folders: Folders,
    model: ModelSource | None = None,
    data: DataSource | None = None,
    own: Own = NOTHING,
) -> Job:
    """Load the data, split them over clients, and check that everything fits together.

    Args:
        scenario: what to run.
        folders: where data files are looked for.
        model: a factory or class to use instead of the scenario's model.
        data: a function or arrays to use instead of the scenario's data source.
        own: loss, metrics and transform instead of the scenario's.

    Raises:
        FedsimError: the first thing that does not fit, in one line.
    """
    return prepare_on(federate(scenario, folders, data, own), scenario, model, data, own)


def prepare_on(
    federation: Federation,
    scenario: Scenario,
    model: ModelSource | None = None,
    data: DataSource | None = None,
    own: Own = NOTHING,
    *,
    draws_cohorts: bool = True,
) -> Job:
    """`prepare` with data that are loaded and split already, as `federate` gives them.

    A node has one client's rows and draws no cohorts: it cannot tell whether they are large enough for a strategy.
    """
    with named(scenario.origin):
        job = _prepared(federation, scenario, model, data, own_of(scenario, own))
        if draws_cohorts:
            check_driven(job.build_algorithm(), scenario, int((job.federation.train_rows > 0).sum()))
        return job


def with_secret_coins(job: Job) -> Job:
    """The same job, with coins of the mechanism that nobody can draw again: what a promise to people needs.

    Two runs of one seed then differ in noise, Poisson batches and Poisson cohorts. So does a run that is resumed: its
    committed rounds stay as they were, charges included, and later ones are drawn anew. All else follows the seed as
    before: the first model, the order of batches, dropout.

    Raises:
        PrivacyError: the mechanism needs its noise again in later rounds.
    """
    plan = job.privacy
    if plan is not None and plan.level == "client" and plan.separation > 1:
        raise PrivacyError(
            "privacy.client.mechanism = 'tree' takes noise of earlier rounds off again, so secret noise would have to "
            "be kept with the models, where whoever reads it could take it off them; use mechanism = 'gaussian'"
        )
    return replace(job, coins=seeds.secret)


def _prepared(
    federation: Federation, scenario: Scenario, model: ModelSource | None, data: DataSource | None, own: Own
) -> Job:
    if model is None and scenario.model.name == TREES:
        raise ScenarioError(
            f"model.name = {TREES!r}: only `fedsim run` grows trees; there is no checkpoint to go on from, no round to "
            "look at again and nothing to forecast"
        )
    check_cohort(scenario, federation.clients)
    algorithm, apart = algorithm_of(scenario), None
    if algorithm.pooled:
        apart, federation = federation.train_rows, federation.pooled()
    source = algorithm.model or (model if model is not None else scenario.model.name)
    _check_machine(scenario, source, federation)
    module = _model(scenario, source, federation)
    problem = with_own(problem_of(federation, scenario.folder), own, scenario.task.headline, scenario.folder)
    check_rows(problem, federation)
    few = federation.first_rows
    check_model(model_name(source), module, problem, *_with_largest_token(federation))
    lengths = check_own(problem, own, module, *_some_rows(federation)) if isinstance(problem, OwnProblem) else {}
    check_algorithm(algorithm, scenario, module, layout_of(module), federation.clients)
    privacy = plan_of(scenario, federation, algorithm)
    named_data = scenario.data.name if data is None else _named(data)
    if privacy is not None and federation.preprocessing.get("fitted_on_rows"):
        raise PrivacyError(
            f"privacy.{privacy.level}: data {named_data!r} scale columns by clients' rows, so that one row "
            "moves others and what is saved with the model, which epsilon does not cover; declare ranges in "
            'data.schema and set data.preprocess.kind = "constants"'
        )
    if scenario.privacy.example is not None and federation.preprocessing.get("overlapping"):
        raise PrivacyError(
            f"privacy.example: rows of {named_data!r} are windows that share measurements, and to protect one "
            "row protects no measurement; use privacy.client"
        )
    if scenario.privacy.example is not None:
        twin = private_module(module, model_name(source))
        twin.module(problem.inputs(few.x[:1]))  # the first pass tries its per-example gradients
    attacking = _attackers(scenario, federation, algorithm)
    compiled = None
    if scenario.engine.compile:
        most = federation.rows(int(np.argmax(federation.train_rows)), "train")  # one row would mix with itself alone
        compiled = _compiled(scenario, algorithm, module, model_name(source), problem, federation, most)
    written = _written(scenario, [source, data if callable(data) else scenario.data.name, federation.task], own)
    return Job(
        scenario,
        federation,
        source,
        named_data,
        privacy,
        attacking,
        apart,
        compiled,
        own=own,
        lengths=lengths,
        origins=written,
    )


def _named(data: DataSource) -> str:
    return reference(data) if callable(data) else given.NAME


def _some_rows(federation: Federation) -> Rows:
    """Rows of many clients, as far as they are in memory."""
    if federation.source is not None:
        return federation.first_rows
    places = np.unique(np.linspace(0, len(federation.x) - 1, _TRIED).astype(int))
    return Rows(federation.x[places], federation.y[places])


def _written(scenario: Scenario, parts: Sequence[object], own: Own) -> list[tuple[str, Origin]]:
    """Where what is the user's own was written."""
    found: list[tuple[str, Origin]] = []
    for name, part in [*((reference(part), part) for part in parts), *own.parts()]:
        if isinstance(part, str):
            file = scenario.folder / part.partition(":")[0]
            found += [(name, file)] if ":" in part and registry.is_file(file) else []
        else:
            found += [(name, origin) for origin in origins(part)]
    return found


def _compiled(
    scenario: Scenario,
    algorithm: Algorithm,
    module: nn.Module,
    name: str,
    problem: Problem,
    federation: Federation,
    rows: Rows,
) -> Libraries | None:
    """The local step under `engine.compile`; None for an algorithm whose own model counts and does not train."""
    if algorithm.features:
        raise ScenarioError(
            f"engine.compile: strategy {algorithm.name!r} adds a term to the loss, which cannot be compiled; "
            "set engine.compile = false"
        )
    if algorithm.model:
        return None
    size = scenario.train.batch_size
    inputs, targets = problem.inputs(rows.x[:size]), problem.targets(rows.y[:size])
    clients = Counter[int]()
    for own, count in zip(*np.unique(federation.train_rows, return_counts=True), strict=True):
        clients[_steps_on(scenario, int(own))] += int(count)
    return libraries_of(module, name, problem, inputs, targets, size, plain=scenario.train.plain, clients=clients)


def _steps_on(scenario: Scenario, rows: int) -> int:
    """Optimiser steps of a client in a round on its own rows."""
    train = scenario.train
    return train.steps or (train.epochs or 1) * -(-rows // train.batch_size)


def check_cohort(scenario: Scenario, clients: int) -> None:
    """Refuse a cohort of more clients than there are, and more replies than a cohort can give."""
    size, needed = scenario.cohort.size, scenario.cohort.min_replies
    if size is not None and size > clients:
        raise ScenarioError(
            f"cohort.size = {size}: the number of clients is {clients}; lower it, or leave it out for everyone"
        )
    largest = largest_size(scenario.cohort.rule, clients)
    if needed is not None and needed > largest:
        raise ScenarioError(
            f"cohort.min_replies = {needed}: a cohort here has at most {largest} of {clients} clients; "
            "lower it, or enlarge the cohort"
        )


def problem_of(federation: Federation, folder: Path) -> Problem:
    """Loss, statistics and metrics of what is learned from a federation's rows."""
    shapes = tuple(federation.x.shape[1:]), tuple(federation.y.shape[1:])
    return problem_for(federation.task, federation.classes, *shapes, folder, federation.preprocessing.get("target"))


def _with_largest_token(federation: Federation) -> Rows:
    """A few rows, of tokens one with the largest, so that too small an embedding fails now and not at a client."""
    if federation.vocabulary is None:
        return federation.first_rows
    if federation.source is not None:
        few = federation.first_rows
        return Rows(np.full_like(few.x, federation.vocabulary - 1), few.y)
    largest = int(federation.x.reshape(len(federation.x), -1).max(axis=1).argmax())
    return Rows(federation.x[[largest, 0]], federation.y[[largest, 0]])


def check_rows(problem: Problem, federation: Federation) -> None:
    """Refuse rows that the task cannot use; of a population the first that there are."""
    every = Rows(federation.x, federation.y) if federation.source is None else federation.first_rows
    for rows in (every, *federation.central.values()):
        try:
            problem.check_rows(rows.x, rows.y)
        except DataError as error:
            raise DataError(f"data set {federation.corpus!r} has {error}") from error


def _check_machine(scenario: Scenario, source: ModelSource, federation: Federation) -> None:
    """Refuse a model or a number of workers for which this machine has no memory, before any is taken."""
    check_size(*_asked(scenario, source, federation))
    check_workers(scenario.engine)


def check_workers(engine: Engine) -> None:
    """Refuse more workers than this machine has memory for; a cluster's machines are not this one."""
    workers, free = engine.workers or 1, available_memory()
    here = engine.kind == "ray" and engine.address is None
    if here and free is not None and workers * _WORKER_BYTES > free:
        raise ScenarioError(
            f"engine.workers = {workers}: each is a process of at least {_WORKER_BYTES / 1e6:.0f} MB, and "
            f"{free / 1e9:.3g} GB of memory are free; lower it, or leave it out for one per core"
        )


def _asked(
    scenario: Scenario, source: ModelSource, federation: Federation
) -> tuple[ModelSource, Mapping[str, Any], Known, Path]:
    """The model that a scenario asks for, as `check_size` and `make_model` take it."""
    settings: Mapping[str, Any] = scenario.model.settings if source == scenario.model.name else {}
    outputs = problem_of(federation, scenario.folder).outputs
    padding = federation.preprocessing.get("padding") if federation.vocabulary is not None else None
    known = Known(tuple(federation.x.shape[1:]), outputs, federation.task, federation.vocabulary, padding)
    return source, settings, known, scenario.folder


def _model(scenario: Scenario, source: ModelSource, federation: Federation) -> nn.Module:
    return make_model(*_asked(scenario, source, federation), scenario.seed)


def _attackers(scenario: Scenario, federation: Federation, algorithm: Algorithm) -> tuple[int, ...]:
    """The clients that attack, once it is clear that the attack fits."""
    if (adversary := _adversary(scenario, federation)) is None:
        return ()
    assert scenario.adversary is not None
    if algorithm.pooled:
        raise ScenarioError(f"adversary: strategy {algorithm.name!r} has one client with all rows; leave it out")
    if adversary.rows is not None and not (federation.labelled or federation.task in PREDICTS_NEXT):
        raise ScenarioError(
            f"adversary.name = {adversary.name!r} changes classes of rows, and those of {federation.corpus!r} have none"
        )
    if adversary.collude is not None and scenario.privacy.client is not None:
        raise PrivacyError(
            f"adversary.name = {adversary.name!r}: its attackers make their uploads of other clients', before "
            "noise, so that one client would move many, which privacy.client does not cover; use one without collusion"
        )
    if adversary.target is not None and not 0 <= adversary.target < len(federation.classes):
        raise ScenarioError(f"adversary.target = {adversary.target}: there are {len(federation.classes)} classes")
    return tuple(attackers(scenario.adversary, scenario.seed, federation.train_rows > 0))


def _adversary(scenario: Scenario, federation: Federation) -> Adversary | None:
    table = scenario.adversary
    if table is None:
        return None
    return make_adversary(table, federation, scenario.folder)


def plan_of(scenario: Scenario, federation: Federation, algorithm: Algorithm) -> Plan | None:
    """What the scenario promises, with its noise solved."""
    asked, rule, rounds = scenario.privacy, scenario.cohort.rule, scenario.rounds
    if asked.client is not None:
        table = asked.client.model_dump()
        adaptive = table.pop("adaptive")
        request = ClientPrivacy(**table, adaptive=AdaptiveClipping(**adaptive) if adaptive is not None else None)
        return plan_client(request, federation.clients, rule, rounds)
    if asked.local is not None:
        return plan_local(LocalPrivacy(**asked.local.model_dump()), federation.train_rows > 0, rule, rounds)
    if asked.example is not None:
        return _example_plan(scenario, federation, algorithm)
    return None


def _example_plan(scenario: Scenario, federation: Federation, algorithm: Algorithm) -> Plan:
    assert scenario.privacy.example is not None
    table = scenario.privacy.example.model_dump()
    unit = table.pop("unit")
    name = unit or ("row" if federation.task not in PREDICTS_NEXT else f"window of {federation.x.shape[1] + 1} tokens")
    return plan_example(
        ExamplePrivacy(**table),
        federation.train_rows if unit is None else _units(federation, unit),
        rule=scenario.cohort.rule,
        rounds=scenario.rounds,
        batch_size=scenario.train.batch_size,
        epochs=scenario.train.epochs or 1,
        steps=scenario.train.steps,
        passes=algorithm.private_passes,
        unit=name,
        grouped=unit is not None,
    )


def _units(federation: Federation, unit: str) -> np.ndarray:
    """[K] how many groups of rows each client has for training."""
    if federation.group_name != unit:
        known = (
            f"rows of these data are grouped by {federation.group_name!r}"
            if federation.group_name
            else ("rows of these data have no groups; name a column by data.group")
        )
        raise ScenarioError(f"privacy.example.unit = {unit!r}: {known}")
    return federation.train_units()
