"""Flower's own strategies by name, `flower:Krum`, and a user's: which there are, and what of them a scenario can set.

Such a strategy is the server half, and draws its cohorts by itself: `strategy.fraction_train` of the clients, at least
`strategy.min_train_nodes`. Clients train as under FedAvg; under flower:FedProx with its proximal term, and under
flower:QFedAvg they report the loss of the model that they received, F_k(w_t) of its paper. Weights are as the strategy
takes them: by examples, or (Krum, Bulyan, median, trimmed mean, q-FedAvg) all the same. No private form is declared,
because Flower states none. `driving.py` runs them.
"""

import difflib
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flwr.serverapp.strategy as flowers
from flwr.serverapp.strategy import (
    Bulyan,
    FedAvg,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)

from fedsim import attributes, registry
from fedsim.algorithm import Algorithm, ClientHalf, Local, Upload, add_update, local_update
from fedsim.errors import ScenarioError
from fedsim.strategies.fedprox import fedprox

PREFIX = "flower:"
TREES = "xgboost"
"""The name of the model that is no net but trees; `fedsim/trees` grows them."""
RECEIVED_LOSS = "train_loss"
"""What QFedAvg wants of every client, as its own default names it."""

_REFUSED = {
    "DifferentialPrivacy": "is refused: its noise assumes equal weights and that every client answers, and an update "
    "of zero ends it; set [privacy.example] under a strategy of fedsim's",
    "FedXgb": "is refused: it collects trees, and clients here train a model of PyTorch's; for trees set "
    'model.name = "xgboost"',
}
"""Beginnings of names, and why none of these can be driven."""

_EVALUATED = "fedsim evaluates by itself; set [evaluate]"
_NAMED = "fedsim names what is in messages; leave it out"
_FUNCTION = (
    "a scenario cannot write a function; name a file.py:function of yours that returns the strategy, if you need it"
)
_NOT_HERE = {
    "fraction_evaluate": _EVALUATED,
    "min_evaluate_nodes": _EVALUATED,
    "evaluate_metrics_aggr_fn": _EVALUATED,
    "train_metrics_aggr_fn": "fedsim records clients' metrics by itself; leave it out",
    "selection_rule": _FUNCTION,
    "weighted_by_key": _NAMED,
    "arrayrecord_key": _NAMED,
    "configrecord_key": _NAMED,
    "train_loss_key": _NAMED,
    "eta_l": "Flower does not use it; clients step by train.learning_rate",
}
"""Arguments that would change nothing here, and what to do instead."""

_ABOVE_ZERO = (lambda value: 0 < value < math.inf, "give a number above 0")
_NOT_NEGATIVE = (lambda value: 0 <= value < math.inf, "give a number of at least 0")
_DECAY = (lambda value: 0 <= value < 1, "give a number of at least 0 and below 1")
_COUNT = (lambda value: value >= 1, "give at least 1")
_LIMITS: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "fraction_train": (lambda value: 0 < value <= 1, "give a share above 0 and at most 1"),
    "min_train_nodes": _COUNT,
    "min_available_nodes": _COUNT,
    "num_malicious_nodes": _NOT_NEGATIVE,
    "num_nodes_to_select": _COUNT,
    "eta": _ABOVE_ZERO,
    "tau": _ABOVE_ZERO,
    "beta": (lambda value: 0 <= value < 0.5, "give a number of at least 0 and below 0.5"),
    "beta_1": _DECAY,
    "beta_2": _DECAY,
    "server_learning_rate": _ABOVE_ZERO,
    "server_momentum": _DECAY,
    "client_learning_rate": _ABOVE_ZERO,
    "q": _NOT_NEGATIVE,
    "proximal_mu": _NOT_NEGATIVE,
}
"""Arguments by the values that they can have; Flower checks few of them."""


def names() -> list[str]:
    """Every strategy of Flower's that a scenario can name, sorted."""
    return sorted(PREFIX + name for name in _classes())


def algorithm(name: str, settings: Mapping[str, Any], key: str) -> Algorithm:
    """The algorithm whose server half is one of Flower's strategies.

    Args:
        name: such as "flower:Krum".
        settings: arguments of its class.
        key: the scenario's table, for messages.

    Raises:
        ScenarioError: no such strategy, one that cannot be driven, or an unknown, missing or impossible argument.
    """
    word, known = name.removeprefix(PREFIX), _classes()
    _refuse(word, f"{key}.name: {name}")
    if word not in known:
        close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
        hint = f"Did you mean {PREFIX}{close[0]}?" if close else f"Known: {', '.join(names())}."
        raise ScenarioError(f"{key}.name: there is no {name!r}. {hint}")
    return driven(name, _maker(known[word], name, settings, key), key)


def collector_of_trees(name: str, settings: Mapping[str, Any], key: str) -> Strategy:
    """Flower's strategy that collects trees.

    Args:
        name: "flower:FedXgbBagging" or "flower:FedXgbCyclic".
        settings: arguments of its class.
        key: the scenario's table, for messages.

    Raises:
        ScenarioError: another name, or an unknown or impossible argument.
    """
    known = {PREFIX + each.__name__: each for each in (FedXgbBagging, FedXgbCyclic)}
    if name not in known:
        raise ScenarioError(f"{key}.name: {name!r} collects no trees.{registry.nearest(name, known)}")
    with quiet():
        return _maker(known[name], name, settings, key)()


def driven(name: str, make: Callable[[], Strategy], key: str) -> Algorithm:
    """The algorithm whose server half is a Flower Strategy.

    Args:
        name: in reports.
        make: makes the strategy, a new one at every call.
        key: the scenario's table, for messages.

    Raises:
        ScenarioError: it cannot be driven; says why.
    """

    def quietly() -> Strategy:
        with quiet():
            return make()

    strategy = quietly()
    for each in type(strategy).__mro__:
        if each.__module__.startswith(flowers.__name__):
            _refuse(each.__name__, f"{key}.name: {name}: {each.__name__}")
    if quietly() is strategy:
        raise ScenarioError(f"{key}.name: {name} returns the same strategy at every call; make a new one")
    try:
        attributes.tensors_of(strategy)
        client, scalars = _client_half(strategy)
    except ValueError as error:
        raise ScenarioError(f"{key} {name}: {error}") from error
    return Algorithm(
        name,
        client,
        add_update,
        "uniform" if isinstance(strategy, Bulyan | FedMedian | FedTrimmedAvg | Krum | QFedAvg) else "examples",
        scalars=scalars,
        optimizers=("plain sgd",) if isinstance(strategy, QFedAvg) else Algorithm.optimizers,
        flower=quietly,
    )


def check(name: str, strategy: Strategy, able: int) -> None:
    """Refuse a strategy that would wait for ever, or whose guarantee does not hold with so few clients.

    Args:
        name: of the strategy, for messages.
        strategy: as it was made.
        able: number of clients with train rows.

    Raises:
        ScenarioError: names what to change.
    """
    if not isinstance(strategy, FedAvg):
        return
    if not strategy.fraction_train > 0:
        raise ScenarioError(f"{name}: fraction_train = {strategy.fraction_train:g}, so nobody would train; raise it")
    for argument in ("min_train_nodes", "min_available_nodes"):
        if (wanted := getattr(strategy, argument)) > able:
            raise ScenarioError(
                f"{name}: {argument} = {wanted}, and the number of clients with train rows is {able}, so it would wait "
                f"for ever; lower {argument}"
            )
    size, (least, condition) = cohort_size(strategy, able), _least(strategy)
    if not least <= size <= able:
        raise ScenarioError(
            f"{name}: a cohort has {size} of {able} clients that can take part, and needs {condition}: {least}; change "
            "fraction_train, min_train_nodes or what it guards against"
        )


def cohort_size(strategy: Strategy, able: int) -> int:
    """How many of `able` clients a strategy draws each round; of one that is no FedAvg, the most that it can."""
    return max(int(able * strategy.fraction_train), strategy.min_train_nodes) if isinstance(strategy, FedAvg) else able


@contextmanager
def quiet() -> Iterator[None]:
    """Flower's notes of every round are not shown; what matters of them is recorded."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def received_loss(local: Local) -> Upload:
    """FedAvg's client half that also tells the loss of the model it received, before it trains."""
    loss = local.loss(local.received)
    return local_update(local)._replace(scalars={RECEIVED_LOSS: loss})


def _maker(made: type[FedAvg], name: str, settings: Mapping[str, Any], key: str) -> Callable[[], Strategy]:
    """Makes one of Flower's strategies, whose arguments have been checked."""
    for argument in settings:
        if argument in _NOT_HERE and argument in inspect.signature(made).parameters:
            raise ScenarioError(f"{key}.{argument}: {_NOT_HERE[argument]}")
    arguments = registry.bind(made, settings, key, reserved=_NOT_HERE)
    for argument, value in arguments.items():
        possible, advice = _LIMITS.get(argument, (None, ""))
        if possible is not None and not possible(value):
            raise ScenarioError(f"{key}.{argument} = {value:g}: {advice}")
    return lambda: registry.call(made, f"{key} {name}", **arguments)


def _classes() -> dict[str, type[FedAvg]]:
    """Flower's strategies that can be driven, by their names there."""
    found = {name: getattr(flowers, name) for name in flowers.__all__ if not name.startswith(tuple(_REFUSED))}
    return {name: each for name, each in found.items() if issubclass(each, FedAvg)}


def _refuse(word: str, what: str) -> None:
    for beginning, reason in _REFUSED.items():
        if word.startswith(beginning):
            raise ScenarioError(f"{what} {reason}")


def _client_half(strategy: Strategy) -> tuple[ClientHalf, tuple[str, ...]]:
    """What clients do under a strategy, and the scalars that they report for it."""
    if isinstance(strategy, FedProx):
        return fedprox(strategy.proximal_mu).client, ()
    if isinstance(strategy, QFedAvg):
        return received_loss, (RECEIVED_LOSS,)
    return local_update, ()


def _least(strategy: Strategy) -> tuple[int, str]:
    """The smallest cohort for which a strategy's guarantee holds, and the condition for people."""
    if isinstance(strategy, MultiKrum):
        least, taken = 2 * strategy.num_malicious_nodes + 3, strategy.num_nodes_to_select + strategy.num_malicious_nodes
        if taken > least:
            return taken, "num_nodes_to_select + num_malicious_nodes"
        return least, "2 num_malicious_nodes + 3"
    if isinstance(strategy, Bulyan):
        return 4 * strategy.num_malicious_nodes + 3, "4 num_malicious_nodes + 3"
    return 1, "one"
