"""The algorithm that a scenario's [strategy] puts together, and what it does not go with.

name              the algorithm: a file of `strategies/`, a user's own, or one of Flower's as flower:NAME
combine = {...}   another's combiner instead of its own
server = {...}    another's server half, which takes the step that its own would
"""

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedsim import registry, stock
from fedsim.algorithm import Algorithm, Combined, Server, add_update, local_update
from fedsim.cohorts import largest_size
from fedsim.combiners import mean
from fedsim.errors import ScenarioError
from fedsim.parameters import Layout, Slot
from fedsim.privacy import forms
from fedsim.privacy.plan import Level
from fedsim.scenario import Scenario
from fedsim.tables import Named
from fedsim.tables import Strategy as Table


def algorithm_of(scenario: Scenario) -> Algorithm:
    """The scenario's algorithm.

    Raises:
        ScenarioError: no such strategy, an unknown or impossible hyper-parameter, or parts that do not fit.
    """
    table = scenario.strategy
    algorithm = _named(table, scenario, "strategy")
    with _refusing("strategy.combine"):
        if table.combine is not None:
            algorithm = combined_by(algorithm, _named(table.combine, scenario, "strategy.combine"))
    with _refusing("strategy.server"):
        if table.server is not None:
            algorithm = with_server_of(algorithm, _named(table.server, scenario, "strategy.server"))
    return algorithm


def _named(table: Named, scenario: Scenario, key: str) -> Algorithm:
    """The algorithm that a table names, with the table's keys as hyper-parameters."""
    if key != "strategy" and "weights" in table.settings:
        raise ScenarioError(f"{key}.weights has no effect here; how clients count is strategy.weights")
    if table.name.startswith(stock.PREFIX):
        return stock.algorithm(table.name, table.settings, key)
    function = registry.find("fedsim.strategies", table.name, scenario.folder, f"{key}.name")
    own = Table.model_fields if key == "strategy" else type(table).model_fields
    arguments = registry.bind(function, table.settings, key, own=own)
    found = registry.call(function, f"{key} {table.name}", **arguments)
    if isinstance(found, Strategy):
        return stock.driven(table.name, lambda: registry.call(function, f"{key} {table.name}", **arguments), key)
    if not isinstance(found, Algorithm):
        raise ScenarioError(f"{key}.name: {table.name} returned {type(found).__name__}, not an Algorithm")
    return found


@contextmanager
def _refusing(key: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ScenarioError(f"{key}: {error}") from None


def combined_by(algorithm: Algorithm, other: Algorithm) -> Algorithm:
    """An algorithm whose updates become one as another's do.

    Raises:
        ValueError: they cannot be put together; says why.
    """
    if other.flower is not None:
        raise ValueError(f"{other.name} has no combiner that stands alone; name one of fedsim's own, such as median")
    if other.combine is mean:
        raise ValueError(f"{other.name} combines by the mean; leave it out, or name one that does not, such as median")
    if algorithm.scalars:
        names = ", ".join(algorithm.scalars)
        raise ValueError(
            f"{algorithm.name} reads each client's own {names}, which {other.name} does not guard; "
            "it is combined by the mean"
        )
    _composable(algorithm)
    return replace(algorithm, name=f"{algorithm.name}+{other.name}", combine=other.combine)


def with_server_of(algorithm: Algorithm, other: Algorithm) -> Algorithm:
    """An algorithm whose step of the global model is handed to another's server half as its combined update.

    Raises:
        ValueError: the other's server half does not stand alone; says why.
    """
    needs = other.shared or other.extra or other.scalars or other.flower
    if other.client is not local_update or other.server is add_update or needs:
        raise ValueError(f"{other.name} has no server half that stands alone; name one such as fedadam or fedavgm")
    _composable(algorithm)
    prefix = f"{other.name}/"

    def server(server: Server, combined: Combined) -> Server:
        theirs = {name.removeprefix(prefix): value for name, value in server.state.items() if name.startswith(prefix)}
        mine = {name: value for name, value in server.state.items() if not name.startswith(prefix)}
        moved = algorithm.server(server._replace(state=mine), combined)
        step = combined._replace(update=moved.params - server.params)
        after = other.server(Server(server.params, {}, theirs, server.round), step)
        state = {**moved.state, **{prefix + name: value for name, value in after.state.items()}}
        return moved._replace(params=after.params, state=state)

    inits = {prefix + name: init for name, init in other.server_state.items()}
    return replace(
        algorithm,
        name=f"{algorithm.name}+{other.name}",
        server=server,
        server_state={**algorithm.server_state, **inits},
    )


def _composable(algorithm: Algorithm) -> None:
    if algorithm.flower is not None or algorithm.pooled or algorithm.model or algorithm.alone:
        raise ValueError(f"{algorithm.name} is taken as it is, without another combiner or server half")


def check_algorithm(algorithm: Algorithm, scenario: Scenario, model: nn.Module, layout: Layout, clients: int) -> None:
    """Refuse what the algorithm's theory, its privacy or its guarantee do not cover.

    Args:
        algorithm: of the scenario.
        scenario: the rest of it.
        model: plain, as it will be trained.
        layout: of the model.
        clients: K.
    """
    train = scenario.train
    if train.optimizer not in algorithm.optimizers and not (train.plain and "plain sgd" in algorithm.optimizers):
        allowed = ", ".join(algorithm.optimizers)
        raise ScenarioError(
            f"train.optimizer = {scenario.train.optimizer!r} does not go with strategy {algorithm.name!r}, "
            f"whose theory covers: {allowed}"
        )
    level = scenario.privacy.level
    if level is not None and (reason := forms.refusal(algorithm, level)) is not None:
        raise ScenarioError(f"strategy {algorithm.name!r} has no private form for privacy.{level}: {reason}")
    if level in ("client", "local"):
        _check_variances(algorithm, layout, level)
    if algorithm.features and not callable(getattr(model, "features", None)):
        raise ScenarioError(
            f"strategy {algorithm.name!r} compares what the model's last layer sees, and model.name = "
            f"{scenario.model.name!r} has no method features(x)"
        )
    if algorithm.personal is not None and not any(mask.any() for mask in personal_masks(layout, algorithm.personal)):
        names = ", ".join(slot.name for slot in layout.parameters[-4:])
        raise ScenarioError(f"strategy.personal = {algorithm.personal!r} matches no parameter; there are ..., {names}")
    check_measured(algorithm, scenario)
    combiner, largest = algorithm.combine, largest_size(scenario.cohort.rule, clients)
    if largest < combiner.least:
        raise ScenarioError(
            f"strategy {algorithm.name!r}: {combiner.name} needs {combiner.needs}: {combiner.least} clients a round, "
            f"and a cohort here has at most {largest}; lower what it guards against, or enlarge the cohort"
        )


def _check_variances(algorithm: Algorithm, layout: Layout, level: Level) -> None:
    """Refuse running variances that would be sent: noise makes some of them negative."""
    kept = personal_masks(layout, algorithm.personal).buffers if algorithm.personal is not None else None
    for slot in layout.buffers:
        stays = kept is not None and bool(kept[slot.start : slot.stop].all())
        if slot.name.endswith("running_var") and not stays:
            raise ScenarioError(
                f"privacy.{level} noises what is sent, and {slot.name!r} may not become negative; set model.norm = "
                "'group', or use strategy 'fedbn', with which it stays at its client"
            )


def check_driven(algorithm: Algorithm, scenario: Scenario, able: int) -> None:
    """Refuse what a Flower Strategy, which draws its own cohorts, cannot do with so many clients.

    Args:
        algorithm: of the scenario.
        scenario: the rest of it.
        able: number of clients with train rows.
    """
    if algorithm.flower is None:
        return
    cohort, name = scenario.cohort, algorithm.name
    if set_here := [key for key in ("size", "fraction", "poisson") if getattr(cohort, key) is not None]:
        raise ScenarioError(
            f"cohort.{set_here[0]}: strategy {name!r} draws its cohorts by itself, by its fraction_train and "
            f"min_train_nodes; leave cohort.{set_here[0]} out"
        )
    strategy = algorithm.flower()
    stock.check(f"strategy {name!r}", strategy, able)
    size = stock.cohort_size(strategy, able)
    if cohort.min_replies is not None and cohort.min_replies > size:
        raise ScenarioError(
            f"cohort.min_replies = {cohort.min_replies}: a cohort of strategy {name!r} has {size} of {able} clients "
            "here; lower it, or raise fraction_train"
        )


def check_measured(algorithm: Algorithm, scenario: Scenario) -> None:
    """Refuse an algorithm without a global model where clients' own are never measured."""
    if algorithm.alone and not scenario.evaluate.clients_every:
        raise ScenarioError(
            f"{algorithm.name!r} is measured on clients' own rows alone; set evaluate.clients_every to 1"
        )


class Masks(NamedTuple):
    """Which coordinates stay with their client: `parameters` [D] and `buffers` [E], bool."""

    parameters: Tensor
    buffers: Tensor


def personal_masks(layout: Layout, pattern: str) -> Masks:
    """The coordinates whose parameter's or floating buffer's name matches the pattern (shell style)."""
    return Masks(_mask(layout.parameters, layout.size, pattern), _mask(layout.buffers, layout.buffer_size, pattern))


def _mask(slots: tuple[Slot, ...], size: int, pattern: str) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    for slot in slots:
        if fnmatch.fnmatchcase(slot.name, pattern):
            mask[slot.start : slot.stop] = True
    return mask
