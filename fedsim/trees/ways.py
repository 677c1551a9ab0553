"""How a round's trees come together: at one of Flower's servers, in one place, at each client alone, or not at all.

    flower:FedXgbBagging  every client of a cohort grows a tree on the same forest, and all of them join it
    flower:FedXgbCyclic   one client after another adds a tree to the forest
    central               a tree on everybody's rows pooled
    local                 every client adds a tree to a forest of its own
    constant              class frequencies

Under bagging a tree's values are divided by the number of trees that join with it, so that a round is one step of
`train.learning_rate`, as it is in all the others. `train.batch_size` rows, drawn anew, grow a tree (Friedman,
"Stochastic Gradient Boosting", 2002); `central` takes as many as a cohort's clients together.
"""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedXgbBagging, Strategy

from fedsim import registry, seeds, stock
from fedsim.data.federation import Federation, Rows
from fedsim.errors import ScenarioError, one_line
from fedsim.grid import (
    CLIENT_FAILED,
    FIRST_NODE,
    Begun,
    Chunk,
    ChunkResult,
    NumberedGrid,
    Selected,
    client_number,
    failure,
    setting,
)
from fedsim.machine import cores
from fedsim.problem import Problem
from fedsim.records import ClientRow, Status
from fedsim.scenario import Scenario
from fedsim.trees.growing import Forest, Frequencies, Grown, Model, xgboost

ALONE = ("local", "central", "constant")
"""Ways that need no server."""


class Way(Protocol):
    """How models come about.

    Attributes:
        alone: whether every client has a model of its own, and there is no other.
        models: the one that there is; every client's own where it is alone.
    """

    alone: bool
    models: tuple[Model, ...]

    def round(self, number: int) -> list[ClientRow]:
        """Grow a round's trees; what each client did."""
        ...


class Growing:
    """What clients do: a tree on their own rows."""

    def __init__(self, scenario: Scenario, federation: Federation, problem: Problem) -> None:
        """Take over what a scenario says of trees.

        Raises:
            ScenarioError: an unknown or impossible setting of the model.
        """
        bound = registry.bind(xgboost, scenario.model.settings, "model", own=("name",))
        self.settings = registry.call(xgboost, f"model {stock.TREES}", **bound)
        self.federation, self.problem = federation, problem
        self.eta, self.batch = scenario.train.learning_rate, scenario.train.batch_size
        self.able = np.flatnonzero(federation.train_rows > 0).tolist()
        self.empty = Forest(b"", len(federation.classes))
        self._seed = scenario.seed
        self.workers = scenario.engine.workers or cores()

    def on(
        self, rows: Rows, batch: int, number: int, client: int, grow: Callable[..., Grown], eta: float
    ) -> tuple[Forest, ClientRow]:
        """What a tree on some of these rows makes of a forest, and what is recorded of it.

        Args:
            rows: of a client.
            batch: how many of them are drawn, if there are more.
            number: of the round.
            client: its number.
            grow: `grow` of the forest, or `tree`.
            eta: the step.
        """
        begun = time.perf_counter()
        if batch < len(rows.x):
            rng = seeds.numpy_generator(self._seed, "rows of a tree", number, client)
            chosen = np.sort(rng.choice(len(rows.x), batch, replace=False))
            rows = Rows(rows.x[chosen], rows.y[chosen])
        grown = grow(rows, self.settings, eta, seeds.integer(self._seed, "tree", number, client) % 2**31)
        loss = float(self.problem.mean_loss(grown.before, self.problem.targets(rows.y)))
        row = _row(number, client, rows=len(rows.x), loss=loss, seconds=time.perf_counter() - begun)
        return grown.forest, row

    def own(self, number: int, client: int, grow: Callable[..., Grown], eta: float) -> tuple[Forest, ClientRow]:
        """`on` a client's own rows."""
        return self.on(self.federation.rows(client, "train"), self.batch, number, client, grow, eta)

    def of_clients(self, work: Callable[[int], tuple[Forest, ClientRow]]) -> list[tuple[Forest, ClientRow]]:
        """What every client that has rows does, in their order; XGBoost lets threads work at once."""
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(work, self.able))


class AtServer:
    """One forest, which a strategy of Flower's puts together."""

    alone = False

    def __init__(self, growing: Growing, scenario: Scenario) -> None:
        """Make the strategy.

        Raises:
            ScenarioError: there is none of that name, or an argument does not fit; or bagging of several classes.
        """
        name, able = scenario.strategy.name, len(growing.able)
        self._strategy = stock.collector_of_trees(name, scenario.strategy.settings, "strategy")
        bagging = isinstance(self._strategy, FedXgbBagging)
        if bagging and growing.empty.classes > 2:
            raise ScenarioError(
                f"strategy.name: {name} takes every tree for one of the first class, so it is wrong for "
                f"{growing.empty.classes} classes; take flower:FedXgbCyclic"
            )
        stock.check(name, self._strategy, able)
        together = stock.cohort_size(self._strategy, able) if bagging else 1
        self._grid = _Clients(growing, growing.eta / together, new=bagging)
        self._nodes = [client + FIRST_NODE for client in growing.able]
        self._seed, self._empty = scenario.seed, growing.empty
        self.models: tuple[Model, ...] = (growing.empty,)

    def round(self, number: int) -> list[ClientRow]:
        """See `Way`."""
        content = np.frombuffer(self.models[0].content, dtype=np.uint8)
        with seeds.scope(self._seed, "trees", number), stock.quiet():
            sent = list(self._ask(self._strategy, number, ArrayRecord([content])))
            replies = self._grid.send_and_receive(sent)
            arrays, _ = self._strategy.aggregate_train(number, replies)
        if arrays is not None:
            self.models = (Forest(_content(arrays), self._empty.classes),)
        return [self._recorded(*pair, number, len(content)) for pair in zip(sent, replies, strict=True)]

    def _ask(self, strategy: Strategy, number: int, arrays: ArrayRecord) -> Sequence[Message]:
        return list(strategy.configure_train(number, arrays, ConfigRecord(), Selected(self._grid, self._nodes)))

    def _recorded(self, message: Message, reply: Message, number: int, down: int) -> ClientRow:
        client = client_number(message)
        if reply.has_error():
            return _row(number, client, bytes_down=down, error=str(reply.error.reason))
        figures, arrays = reply.content["metrics"], reply.content["arrays"]
        assert isinstance(figures, MetricRecord)
        assert isinstance(arrays, ArrayRecord)
        rows, loss, seconds = (figures[name] for name in ("num-examples", "loss", "seconds"))
        up = len(_content(arrays))
        return _row(number, client, int(rows), float(loss), float(seconds), down, up)  # type: ignore[arg-type]


class Pooled:
    """One forest on everybody's train rows in one place."""

    alone = False

    def __init__(self, growing: Growing, scenario: Scenario) -> None:
        """Pool the rows."""
        pooled = growing.federation.pooled()
        self._rows, self._number = pooled.rows(pooled.clients - 1, "train"), pooled.clients - 1
        self._growing, self._batch = growing, growing.batch * len(growing.able)
        self.models: tuple[Model, ...] = (growing.empty,)

    def round(self, number: int) -> list[ClientRow]:
        """See `Way`."""
        (forest,) = self.models
        assert isinstance(forest, Forest)
        growing = self._growing
        forest, row = growing.on(self._rows, self._batch, number, self._number, forest.grow, growing.eta)
        self.models = (forest,)
        return [row]


class Alone:
    """A forest for every client, on its own rows."""

    alone = True

    def __init__(self, growing: Growing, scenario: Scenario) -> None:
        """Begin with no trees."""
        self._growing = growing
        self.models: tuple[Model, ...] = (growing.empty,) * growing.federation.clients

    def round(self, number: int) -> list[ClientRow]:
        """See `Way`."""

        def one(client: int) -> tuple[Forest, ClientRow]:
            forest = self.models[client]
            assert isinstance(forest, Forest)
            return self._growing.own(number, client, forest.grow, self._growing.eta)

        done = self._growing.of_clients(one)
        models = list(self.models)
        for client, (forest, _) in zip(self._growing.able, done, strict=True):
            models[client] = forest
        self.models = tuple(models)
        return [row for _, row in done]


class Counted:
    """No trees: class frequencies."""

    alone = False

    def __init__(self, growing: Growing, scenario: Scenario) -> None:
        """Count the classes of everybody's train rows."""
        federation = growing.federation
        counts = sum(
            np.bincount(federation.rows(client, "train").y, minlength=len(federation.classes))
            for client in growing.able
        )
        self.models: tuple[Model, ...] = (Frequencies(np.asarray(counts)),)

    def round(self, number: int) -> list[ClientRow]:
        """See `Way`; nobody does anything."""
        return []


def way(growing: Growing, scenario: Scenario) -> Way:
    """The way that `strategy.name` says.

    Raises:
        ScenarioError: it says another, or it does not fit.
    """
    name, settings = scenario.strategy.name, scenario.strategy.settings
    if name not in ALONE:
        return AtServer(growing, scenario)
    if settings:
        raise ScenarioError(f"strategy.{next(iter(settings))} is not known: {name} of trees takes no keys")
    made: dict[str, Callable[[Growing, Scenario], Way]] = {"local": Alone, "central": Pooled, "constant": Counted}
    return made[name](growing, scenario)


class _Clients(NumberedGrid):
    """Clients that grow trees, in threads of this process."""

    def __init__(self, growing: Growing, eta: float, *, new: bool) -> None:
        """`new`: they send the new tree alone."""
        super().__init__(growing.federation.clients)
        self._growing, self._eta, self._new = growing, eta, new
        self._received = growing.empty

    def begin(self, chunks: Sequence[Chunk]) -> Begun:
        """Nothing yet: the work is done when results are asked for."""
        return Begun(lambda: self._done(chunks))

    def _done(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        messages = [message for chunk in chunks for message in chunk.messages]
        self._received = Forest(_received(messages[0]), self._growing.empty.classes)  # the same for all: read once
        if self._new and self._received.content:
            _ = self._received.booster
        with ThreadPoolExecutor(self._growing.workers) as threads:
            replies = iter(threads.map(self._reply, messages))
            return [ChunkResult([next(replies) for _ in chunk.messages], {}) for chunk in chunks]

    def _reply(self, message: Message) -> Message:
        number, client = int(setting(message, "server-round", 0)), client_number(message)
        grow = self._received.tree if self._new else self._received.grow
        try:
            forest, row = self._growing.own(number, client, grow, self._eta)
        except Exception as error:  # XGBoost's own; a client that fails does not end a run
            return failure(message, CLIENT_FAILED, f"round {number}, client {client}: {one_line(error)}")
        figures = MetricRecord({"num-examples": row.rows, "loss": row.loss or 0.0, "seconds": row.seconds})
        arrays = ArrayRecord([np.frombuffer(forest.content, dtype=np.uint8)])
        return Message(RecordDict({"arrays": arrays, "metrics": figures}), reply_to=message)


def _received(message: Message) -> bytes:
    """The forest that a client is sent."""
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    return _content(arrays)


def _content(arrays: ArrayRecord) -> bytes:
    """The bytes that Flower sends as one array."""
    return arrays["0"].numpy().tobytes()


def _row(
    number: int,
    client: int,
    rows: int = 0,
    loss: float | None = None,
    seconds: float = 0.0,
    bytes_down: int = 0,
    bytes_up: int = 0,
    *,
    error: str | None = None,
) -> ClientRow:
    """A client's part in a round of training: one tree."""
    finite = loss if loss is not None and math.isfinite(loss) else None
    status: Status = "failed" if error is not None else "ok"
    steps = 0 if error is not None else 1
    return ClientRow(number, client, "train", status, rows, finite, steps, seconds, bytes_down, bytes_up, error, {})
