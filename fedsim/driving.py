"""A Flower Strategy in the place of one of our algorithms, driven by our loop.

It draws cohorts, and makes a model of what they send; everything else is ours, as under `AlgorithmStrategy`: seeds,
evaluation, failures, checkpoints. Its messages are written anew, and of replies it sees copies of what was judged:
    down  "arrays" the run's model, "config" what the strategy put there, round and chunk
    up    "arrays" what the client's model became
          "metrics" "num-examples" the client's train rows, "loss" the mean over its steps, the algorithm's scalars
"""

import gc
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvgM
from threadpoolctl import ThreadpoolController
from torch import Tensor

from fedsim import attributes, seeds
from fedsim.algorithm import Server
from fedsim.checkpoints import Snapshot
from fedsim.combiners import chunk_numbers
from fedsim.errors import FedsimError, ModelError, RunFolderError, StoppedByPolicy, one_line
from fedsim.flower import AlgorithmStrategy, agreed_on, judged
from fedsim.grid import Selected, with_content
from fedsim.local import Work
from fedsim.parameters import Weights, from_record, is_finite, to_record
from fedsim.replies import arrays_of, metrics_of, training_figures
from fedsim.stock import quiet

FIGURES = frozenset({"num-examples", "loss", "norm", "steps", "seconds", "summed"})
"""The metrics of every reply to a training message, the algorithm's scalars apart."""
_KEPT = "stock/"
"""Beginning of the names of the strategy's own tensors in a snapshot."""


class StockStrategy:
    """A Flower Strategy, as `rounds.py` uses one of ours.

    Attributes:
        cohort: clients selected in the current round, sorted.
        unused: why the last round left the model as it was, though clients answered; else None.
    """

    def __init__(self, work: Work) -> None:
        """Before round 1 of a job, whose algorithm makes a Flower Strategy."""
        assert work.algorithm.flower is not None
        self.cohort: list[int] = []
        self.unused: str | None = None
        self._name, self._strategy = work.algorithm.name, work.algorithm.flower()
        self._ours = AlgorithmStrategy(work)  # evaluates, and keeps model and counts
        self._own = attributes.tensors_of(self._strategy)
        self._layout, self._federation, self._seed = work.layout, work.federation, work.job.scenario.seed
        self._width = work.width
        self._adversary, self._attackers = work.adversary, frozenset(work.job.attackers)
        self._scalars = tuple(work.algorithm.scalars)
        self._figures = FIGURES | {f"scalar/{name}" for name in self._scalars}
        if work.width > 1:
            self._figures |= {"stack"}

    @property
    def server(self) -> Server:
        """The model after the last round; what else the strategy keeps is its own."""
        return self._ours.server

    @property
    def weights(self) -> Weights:
        """The global model."""
        return self._ours.weights

    @property
    def vectors(self) -> dict[str, Tensor]:
        """What the strategy keeps, by name."""
        return {_KEPT + name: tensor for name, tensor in self._own.items()}

    @property
    def drawn(self) -> list[int]:
        """Who was drawn: the cohort."""
        return self.cohort

    @property
    def accepted(self) -> np.ndarray:
        """[K] the last round of each client that counted; 0 for none."""
        return self._ours.accepted

    def restore(self, round: int, snapshot: Snapshot) -> None:
        """Go on as after a round whose snapshot this is."""
        self._ours.restore(round, replace(snapshot, vectors={}))
        self._own = {name.removeprefix(_KEPT): tensor for name, tensor in snapshot.vectors.items()}
        try:
            attributes.restore(self._strategy, self._own)
        except ValueError as error:
            raise RunFolderError(f"the checkpoint of round {round} does not fit {self._name}: {error}") from error

    def snapshot(self) -> Snapshot:
        """What the next round depends on, as it is now."""
        return replace(self._ours.snapshot(), vectors=self.vectors)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Have the strategy draw a cohort, and address a message to each of its clients.

        Raises:
            StoppedByPolicy: the strategy failed, or asks for what fedsim's clients do not do.
        """
        nodes = self._ours.nodes(grid)
        able = [nodes[number] for number in np.flatnonzero(self._federation.train_rows).tolist()]
        if isinstance(self._strategy, FedAvgM):  # it takes its own last result for the model
            self._strategy.current_arrays = arrays.copy()
        clients = Selected(grid, able)
        with self._asked(server_round, "stock strategy"):
            drawn = list(self._strategy.configure_train(server_round, arrays.copy(), config.copy(), clients))
            configs = self._checked(drawn, arrays, set(able))
        self.cohort = sorted(configs)
        self._ours.cohorts.participations[self.cohort] += 1
        messages = []
        rows = [int(self._federation.train_rows[number]) for number in self.cohort]
        for number, chunk in zip(self.cohort, chunk_numbers(rows, self._width), strict=True):
            settings = ConfigRecord(
                {
                    **configs[number],
                    "server-round": server_round,
                    "reply": "model",
                    "chunk": chunk,
                    "accepted-round": int(self.accepted[number]),
                }
            )
            messages.append(Message(RecordDict({"arrays": arrays, "config": settings}), nodes[number], "train"))
        return messages

    def received(self, server_round: int, replies: Iterable[Message]) -> list[Message]:
        """Replies as they count: one that cannot is its client's failure, and attackers send what they agreed on."""
        once = judged(server_round, replies, self._number, self._fault)
        if self._adversary is None or self._adversary.collude is None:
            return once
        return judged(server_round, self._colluded(once, self._adversary.collude), self._number, self._fault)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Have the strategy make the next model of replies that `received` has judged.

        Raises:
            StoppedByPolicy: the strategy failed, or what it made is no model of this run.
        """
        everything = list(replies)
        sound = sorted((reply for reply in everything if not reply.has_error()), key=self._number)
        shown = [self._shown(reply) for reply in sound]
        with self._asked(server_round, "stock strategy's step"):
            failures = [reply for reply in everything if reply.has_error()]
            arrays, _ = self._strategy.aggregate_train(server_round, [*shown, *failures])
            self._own = attributes.tensors_of(self._strategy)
            weights = self._received(arrays) if arrays is not None else None  # FedAdam and QFedAvg make float64
        self.unused = None
        if weights is None:
            if sound:
                reason = f"{self._name} made no model of the {len(sound)} replies that came"
                self.unused = f"round {server_round}: {reason}; the model stays as it was"
            return None, None
        if not is_finite(weights.vector) or not is_finite(weights.buffers):
            raise StoppedByPolicy(f"round {server_round}: the model that {self._name} made is not finite")
        self._ours.server = Server(weights.vector, {}, {}, server_round)
        self._ours.buffers = weights.buffers
        self.accepted[[self._number(reply) for reply in sound]] = server_round
        return to_record(self._layout, weights), training_figures([metrics_of(reply) for reply in sound])

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask every client with held-out rows to measure the model on them; the strategy is not asked."""
        return self._ours.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The metrics of the global model under their full names; the strategy is not asked."""
        return self._ours.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Nothing: a run's summary comes from its records."""

    @contextmanager
    def _asked(self, round: int, purpose: str) -> Iterator[None]:
        """The strategy's own code at work: its draws are this round's, and what it raises ends the run."""
        try:
            with seeds.scope(self._seed, purpose, round), quiet(), _one_thread(), quick_collections():
                yield
        except FedsimError as error:
            raise StoppedByPolicy(f"round {round}: {self._name}: {error}") from error
        except Exception as error:
            raise StoppedByPolicy(f"round {round}: {self._name} failed: {one_line(error)}") from error

    def _checked(self, drawn: list[Message], arrays: ArrayRecord, able: Collection[int]) -> dict[int, ConfigRecord]:
        """What the strategy tells each client of its cohort, by client."""
        model = {name: array.data for name, array in arrays.items()}
        configs: dict[int, ConfigRecord] = {}
        for message in drawn:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            if node not in able or kind != "train":
                raise StoppedByPolicy(f"it sends a {kind!r} message to node {node}; clients with rows can be trained")
            number = self._ours.number(node)
            if number in configs:
                raise StoppedByPolicy(f"it sends client {number} two messages; one a round is answered")
            sent = [each for each in message.content.values() if isinstance(each, ArrayRecord)]
            if [{name: array.data for name, array in each.items()} for each in sent] != [model]:
                raise StoppedByPolicy(
                    f"it sends client {number} other arrays than the run's model, once; change the model that "
                    "aggregate_train returns instead"
                )
            told = [each for each in message.content.values() if isinstance(each, ConfigRecord)]
            configs[number] = ConfigRecord({key: value for each in told for key, value in each.items()})
        return configs

    def _fault(self, reply: Message) -> str | None:
        """Why a reply does not count; None where it does."""
        reported = reply.content.get("metrics")
        if not isinstance(reported, MetricRecord):
            return "the reply has no metrics"
        if odd := sorted(self._figures ^ set(reported)):
            return f"the reply's metrics have {'no' if odd[0] in self._figures else 'an unknown'} {odd[0]}"
        for name in ("num-examples", "loss", *(f"scalar/{name}" for name in self._scalars)):
            value = reported[name]
            if not (isinstance(value, int | float) and math.isfinite(value)):
                return f"the reply's {name} is not a finite number"
        try:
            weights = self._received(arrays_of(reply, "arrays"))
        except ModelError as error:
            return f"the reply has no model: {error}"
        except Exception as error:  # its bytes may be anything
            return f"the reply's arrays cannot be read: {one_line(error)}"
        return None if is_finite(weights.vector) and is_finite(weights.buffers) else "the model is not finite"

    def _received(self, record: ArrayRecord) -> Weights:
        """A model that came, in the run's own floating type."""
        kind = self.weights.vector.dtype
        return Weights(*(part.to(kind) for part in from_record(self._layout, record)))

    def _shown(self, reply: Message) -> Message:
        """What the strategy sees of a sound reply: a copy, since some take replies apart."""
        reported = metrics_of(reply)
        figures = {
            "num-examples": int(self._federation.train_rows[self._number(reply)]),
            "loss": reported["loss"],
            **{name: reported[f"scalar/{name}"] for name in self._scalars},
        }
        arrays = to_record(self._layout, self._received(arrays_of(reply, "arrays")))
        return with_content(reply, RecordDict({"arrays": arrays, "metrics": MetricRecord(figures)}))

    def _number(self, reply: Message) -> int:
        """The client that a reply is from."""
        return self._ours.number(reply.metadata.src_node_id)

    def _colluded(self, replies: list[Message], collude: Callable[[Tensor, Tensor], Tensor]) -> list[Message]:
        """Replies in which all attackers send what they agree on, given everybody's updates."""
        start = torch.cat(self.weights)
        models = {self._number(reply): self._received(arrays_of(reply, "arrays")) for reply in replies if _sound(reply)}
        agreed = agreed_on(
            collude, self._attackers, {number: torch.cat(model) - start for number, model in models.items()}
        )
        if agreed is None:
            return replies
        return [
            self._with_update(reply, agreed) if _sound(reply) and self._number(reply) in self._attackers else reply
            for reply in replies
        ]

    def _with_update(self, reply: Message, update: Tensor) -> Message:
        """A reply with the model that another update [D + E] makes."""
        size = self._layout.size
        became = Weights(self.weights.vector + update[:size], self.weights.buffers + update[size:])
        figures = MetricRecord({**metrics_of(reply), "norm": float(update.double().norm())})
        return with_content(reply, RecordDict({"arrays": to_record(self._layout, became), "metrics": figures}))


Driven = AlgorithmStrategy | StockStrategy
"""What configures and aggregates rounds."""


def strategy_for(work: Work) -> Driven:
    """What configures and aggregates the rounds of a job."""
    return AlgorithmStrategy(work) if work.algorithm.flower is None else StockStrategy(work)


def _one_thread() -> AbstractContextManager[object]:
    """One thread for NumPy's products: with more, sums are bracketed otherwise (Krum's distances are such)."""
    limited: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return limited


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def quick_collections() -> Iterator[None]:
    """Garbage is looked for among new objects only: Flower has all of it collected for each reply it takes apart."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _sound(reply: Message) -> bool:
    return not reply.has_error()
