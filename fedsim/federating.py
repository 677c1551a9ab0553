"""From what a scenario or a caller gives to a federation: the corpus, split, dealt out and its inputs transformed."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fedsim import registry, seeds
from fedsim.data import given, transform
from fedsim.data.build import build
from fedsim.data.corpus import Corpus, Folders
from fedsim.data.federation import Federation
from fedsim.data.population import Population, preparation_of, prepared, spread
from fedsim.data.preprocess import Preparation
from fedsim.errors import ScenarioError, named
from fedsim.origins import reference
from fedsim.own import NOTHING, Own
from fedsim.scenario import Scenario
from fedsim.tables import Data

CorpusSource = Callable[..., Corpus | Population]
"""A function that is given `folders` and `seed`, as far as it has parameters of these names."""
DataSource = CorpusSource | Sequence[np.ndarray]
"""Such a function, or arrays (x, y) or (x, y, client)."""


def federate(scenario: Scenario, folders: Folders, data: DataSource | None = None, own: Own = NOTHING) -> Federation:
    """The scenario's corpus, split and partitioned, and its inputs transformed."""
    with named(scenario.origin):
        return _federated(scenario, folders, data, own_of(scenario, own))


def own_of(scenario: Scenario, own: Own) -> Own:
    """What a caller gives, else what the scenario names."""
    task = scenario.task
    return Own(own.loss or task.loss, own.metrics or task.metrics, own.transform or scenario.data.transform)


def _federated(scenario: Scenario, folders: Folders, data: DataSource | None, own: Own) -> Federation:
    corpus, split, least = _corpus(scenario, folders, data), scenario.data.split, scenario.data.min_rows
    shares, seed, partition = (split.train, split.validation, split.test), scenario.seed, scenario.data.partition
    fit = scenario.data.preprocess.kind if scenario.data.preprocess is not None else None
    if isinstance(corpus, Corpus):
        federation = build(
            corpus,
            seed,
            partition,
            central=split.central,
            shares=shares,
            min_rows=least,
            fit=fit,
            without=scenario.data.without,
        )
        if own.transform is None:
            return federation
        return transform.of_federation(federation, _transform(scenario, own), reference(own.transform))
    if scenario.data.without:
        raise ScenarioError(f"data.without: data {corpus.name!r} come client by client; leave it out")
    if partition != {"kind": "natural"}:
        raise ScenarioError(
            f'data.partition: data {corpus.name!r} come client by client; write partition = {{ kind = "natural" }}'
        )
    preparation = None
    if corpus.columns:
        preparation = preparation_of(corpus, seed, fit, shares=shares, min_rows=least)
    elif fit is not None:
        raise ScenarioError(f"data.preprocess: data {corpus.name!r} are no table with columns; leave it out")
    opening = partial(_population, scenario, folders, data, own, preparation)
    return spread(opening, seed, central=split.central, shares=shares, min_rows=least)


def _population(
    scenario: Scenario, folders: Folders, data: DataSource | None, own: Own, preparation: Preparation | None
) -> Population:
    """The population that a scenario names, once it is known to be one; in every process that needs its rows."""
    population = _corpus(scenario, folders, data)
    assert isinstance(population, Population)
    if preparation is not None:
        population = prepared(population, preparation)
    if own.transform is None:
        return population
    return transform.of_population(population, _transform(scenario, own), reference(own.transform))


def _transform(scenario: Scenario, own: Own) -> transform.Transform:
    if isinstance(own.transform, str):
        return registry.from_file(own.transform, scenario.folder, "data.transform")
    assert own.transform is not None
    return own.transform


def _corpus(scenario: Scenario, folders: Folders, data: DataSource | None) -> Corpus | Population:
    if data is not None and not callable(data):
        if len(data) not in (2, 3):
            raise ScenarioError(f"data: {len(data)} arrays; give (x, y) or (x, y, client)")
        return given.corpus_of(*data)
    table, told = scenario.data, {"folders": folders, "seed": scenario.seed}
    if data is None:
        _check_named(table)
        function = registry.find("fedsim.data.sources", table.name, scenario.folder, "data.name")
        settings, name = table.settings, table.name
    else:
        function, settings, name = data, {}, reference(data)
    if data is None and ":" not in name:
        del told["seed"]  # a shipped source's own key
    wanted = inspect.signature(function).parameters
    known = {key: value for key, value in told.items() if key in wanted and (key == "folders" or key not in settings)}
    arguments = registry.bind(function, settings, "data", reserved=known, own=type(table).model_fields)
    with seeds.scope(scenario.seed, "data"):
        corpus = registry.call(function, f"data {name}", **known, **arguments)
    if not isinstance(corpus, Corpus | Population):
        raise ScenarioError(f"data.name: {name} returned {type(corpus).__name__}, not a Corpus or a Population")
    return corpus


def _check_named(table: Data) -> None:
    """Refuse a scenario that names no data."""
    if not table.name:
        raise ScenarioError("data.name is missing; name a data set, or give data in Python: fedsim.run(..., data=...)")
