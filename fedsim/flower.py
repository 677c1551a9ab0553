"""An algorithm as a Flower Strategy, and what its messages hold.

A round's messages, one per client of the cohort:
    down  "arrays" the model by name, "shared" the algorithm's vectors, "config" round, weight, chunk, reply
    up    "metrics", and as config["reply"] asks
          "model"   "arrays": what the client's model became (what Flower's own strategies need; the default)
          "update"  "update": the client's contribution, not weighted
          "sum"     "update" only in the last sound reply of a chunk: the chunk's weighted sum
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import get_args

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedsim.algorithm import Combined, Server
from fedsim.arrays import encode, recorded
from fedsim.checkpoints import Snapshot
from fedsim.combiners import Fold, chunk_numbers
from fedsim.data.federation import CentralPart, Part
from fedsim.errors import RunFolderError, ScenarioError, StoppedByPolicy, one_line
from fedsim.evaluation import asked, client_metrics
from fedsim.grid import CLIENT_FAILED, FIRST_NODE, NumberedGrid, addressed, with_content
from fedsim.local import Work
from fedsim.metrics import EvaluatedModel
from fedsim.parameters import Weights, is_finite, to_record
from fedsim.privacy.client import Releasing
from fedsim.privacy.plan import ExampleMechanism
from fedsim.privacy.uploads import clipped
from fedsim.replies import metrics_of, statistics_of, training_figures, vector_of
from fedsim.worker import PARTS


class AlgorithmStrategy(Strategy):
    """One of our algorithms, as a Flower Strategy.

    Attributes:
        server: the algorithm's server side after the last round.
        buffers: [E] the model's floating buffers.
        cohorts: who is drawn, and was.
        cohort: clients selected in the current round, sorted.
        unused: why the last round left the model as it was, though clients answered; else None.
    """

    def __init__(self, work: Work) -> None:
        """Before round 1 of a job, whose model, algorithm and problem `work` has built."""
        job = work.job
        self.algorithm = work.algorithm
        self.server: Server = work.algorithm.start(work.initial.vector, job.federation.clients)
        self.buffers = work.initial.buffers
        self.cohorts = job.cohorts()
        self.cohort: list[int] = []
        self.unused: str | None = None
        self._problem, self._layout, self._federation = work.problem, work.layout, job.federation
        self._adversary, self._attackers = work.adversary, frozenset(job.attackers)
        self._contribution_size = work.contribution_size
        self._previous = torch.zeros(work.contribution_size, dtype=work.initial.vector.dtype)
        self._weights: dict[int, float] = {}
        self._plan = plan = job.privacy
        grouped = plan is not None and isinstance(plan.mechanism, ExampleMechanism) and plan.mechanism.grouped
        self._declared = job.federation.train_units() if grouped else job.federation.train_rows
        self._releasing = Releasing.of(plan, work.leaving, job.draws) if plan and plan.level == "client" else None
        self._clip = plan.clip if plan is not None else math.inf
        self._scenario, self._width = job.scenario, work.width
        self._accepted = np.zeros(job.federation.clients, dtype=np.int64)
        self._nodes: Sequence[int] = ()
        self._numbers: Mapping[int, int] | None = None
        self._part: Part = "validation"

    @property
    def weights(self) -> Weights:
        """The global model."""
        return Weights(self.server.params, self.buffers)

    @property
    def vectors(self) -> dict[str, Tensor]:
        """What the server keeps besides the model, by name."""
        vectors = {f"shared/{name}": vector for name, vector in self.server.shared.items()}
        vectors |= {f"state/{name}": tensor for name, tensor in self.server.state.items()}
        if self.algorithm.combine.remembers:
            vectors["combiner/previous"] = self._previous
        if self.clip is not None:
            vectors["privacy/clip"] = torch.tensor([self.clip], dtype=torch.float64)
        if self._plan is not None and self._plan.separation > 1:
            vectors["privacy/last"] = torch.from_numpy(self.cohorts.last.copy())
        return vectors

    @property
    def clip(self) -> float | None:
        """The clip norm that the next round's clients get, where it follows their updates."""
        return self._clip if self._plan is not None and self._plan.adaptive is not None else None

    @property
    def drawn(self) -> list[int]:
        """Who is charged for the round: the cohort, and registered clients that have no rows to send anything of."""
        return self.cohorts.drawn

    @property
    def accepted(self) -> np.ndarray:
        """[K] the last round of each client that counted; 0 for none."""
        return self._accepted

    def restore(self, round: int, snapshot: Snapshot) -> None:
        """Go on as after a round whose snapshot this is."""
        own: dict[str, dict[str, Tensor]] = {"shared": {}, "state": {}, "combiner": {}, "privacy": {}}
        kinds = {name: _kind(tensor) for name, tensor in self.vectors.items()}
        found = {name: _kind(tensor) for name, tensor in snapshot.vectors.items()}
        if odd := sorted(name for name in kinds.keys() | found.keys() if kinds.get(name) != found.get(name)):
            has, wants = (table.get(odd[0], "absent") for table in (found, kinds))
            text = f"the checkpoint of round {round} does not fit {self.algorithm.name}: {odd[0]} is {has}, not {wants}"
            raise RunFolderError(text)
        for name, tensor in snapshot.vectors.items():
            table, _, key = name.partition("/")
            own[table][key] = tensor
        self.server = Server(snapshot.weights.vector, own["shared"], own["state"], round)
        self._previous = own["combiner"].get("previous", self._previous)
        self.buffers = snapshot.weights.buffers
        self._accepted = snapshot.accepted.copy()
        last = own["privacy"].get("last")
        self.cohorts.restore(snapshot.participations, last.numpy() if last is not None else None)
        if "clip" in own["privacy"]:
            self._clip = float(own["privacy"]["clip"])

    def snapshot(self) -> Snapshot:
        """What the next round depends on, as it is now."""
        return Snapshot(self.weights, self.vectors, self.cohorts.participations.copy(), self._accepted.copy())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample the cohort and address a message to each of its clients."""
        nodes = self.nodes(grid)
        self.cohort = cohort = self.cohorts.draw(server_round)
        self._weights = self._weighed(cohort)
        return addressed(
            "train",
            [nodes[number] for number in cohort],
            {"arrays": arrays, "shared": self._shared()},
            {
                **config,
                "server-round": server_round,
                "reply": "sum" if self._summed(grid) else "update",
                **({"clip": self.clip} if self.clip is not None else {}),
            },
            {
                "chunk": self._chunks(),
                "weight": list(self._weights.values()),
                "accepted-round": self._accepted[cohort].tolist(),
            },
        )

    def received(self, server_round: int, replies: Iterable[Message]) -> list[Message]:
        """Replies as they count: one that cannot is its client's failure, and attackers send what they agreed on."""
        once = judged(server_round, replies, self._number, self._fault)
        if self._adversary is None or self._adversary.collude is None:
            return once
        return judged(server_round, self._colluded(once, self._adversary.collude), self._number, self._fault)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine what the cohort sent, in the order of client numbers, and take the server step."""
        sound = {self._number(reply): reply for reply in replies if not reply.has_error() and not self._fault(reply)}
        answered = [number for number in self.cohort if number in sound]
        if self._releasing is None and (reason := self._useless(answered)) is not None:
            self.unused = f"round {server_round}: {reason}; the model stays as it was" if answered else None
            return None, None
        self.unused = None
        reported = [metrics_of(sound[number]) for number in answered]
        combined = self._combined(server_round, answered, sound)
        if not is_finite(combined):
            advice = "lower train.learning_rate" if self._adversary is None else "the attack may have overflowed"
            raise StoppedByPolicy(f"round {server_round}: the cohort's sum is not finite; {advice}")
        size = self._layout.size
        self.buffers = self.buffers + combined[size : size + self._layout.buffer_size]
        extras = combined[size + self._layout.buffer_size :].split(size)  # type: ignore[no-untyped-call]
        cohort = Combined(
            update=combined[:size],
            extra=dict(zip(self.algorithm.extra, extras, strict=False)),
            scalars={name: torch.tensor([m[f"scalar/{name}"] for m in reported]) for name in self.algorithm.scalars},
            numbers=torch.tensor(answered),
            weights=torch.tensor([self._weights[number] for number in answered]),
            share_of_population=len(answered) / self._federation.clients,
        )
        if self._releasing is not None:  # who answered, and how many, is not released
            nobody, share = torch.tensor([], dtype=torch.int64), self._releasing.size / self._federation.clients
            cohort = cohort._replace(numbers=nobody, weights=torch.tensor([]), share_of_population=share)
        self.server = self._stepped(server_round, cohort)
        if self.algorithm.combine.remembers:
            self._previous = combined
        self._accepted[answered] = server_round
        return to_record(self._layout, self.weights), training_figures(reported)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask clients with held-out rows, all or some, to measure the model on them; config["part"] says which."""
        nodes = self.nodes(grid)
        self._part = PARTS[str(config.get("part", "validation"))]
        numbers = asked(self._scenario, self._federation, self._part, self._attackers)
        personal = bool(config.get("personal", self.algorithm.personalised))
        return addressed(
            "evaluate",
            [nodes[number] for number in numbers.tolist()],
            {"arrays": arrays, "shared": self._shared() if personal else ArrayRecord()},
            {**config, "personal": personal, "server-round": server_round, "part": self._part},
            {
                "chunk": chunk_numbers(self._federation.sizes(self._part)[numbers].tolist()),
                **({"accepted-round": self._accepted[numbers].tolist()} if personal else {}),
            },
        )

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The metrics of the global model, and of clients' own, over their rows, under their full names."""
        answered, models = list(replies), get_args(EvaluatedModel)
        named: dict[str, float] = {}
        for model in models:
            if statistics := statistics_of(answered, model):
                named |= client_metrics(self._problem, statistics, self._part, self._scenario.evaluate.min_rows, model)
        return MetricRecord({**named}) if named else None

    def summary(self) -> None:
        """Nothing: a run's summary comes from its records."""

    def nodes(self, grid: Grid) -> Sequence[int]:
        """[K] node id of every client: known on our grids, asked for once on any other."""
        if not self._nodes:
            self._find_nodes(grid)
        return self._nodes

    def number(self, node: int) -> int:
        """The client of a node id."""
        return node - FIRST_NODE if self._numbers is None else self._numbers[node]

    def _stepped(self, round: int, cohort: Combined) -> Server:
        """The server after its step; what it was before is still being written to the disk, so it must stay."""
        before = {"params": self.server.params, "combined.update": cohort.update, **self.vectors}
        versions = {name: tensor._version for name, tensor in before.items()}
        try:
            after = self.algorithm.server(self.server._replace(round=round), cohort)
        except Exception as error:
            reason = one_line(error)
            raise StoppedByPolicy(f"round {round}: the strategy's server half failed: {reason}") from error
        if changed := [name for name, tensor in before.items() if tensor._version != versions[name]]:
            raise StoppedByPolicy(
                f"round {round}: the strategy's server half changed {changed[0]} in place; compute a new tensor"
            )
        if (fault := self._server_fault(after)) is not None:
            raise StoppedByPolicy(f"round {round}: the strategy's server half {fault}")
        return after

    def _server_fault(self, after: object) -> str | None:
        """What is wrong with what a server half gave."""
        if not isinstance(after, Server):
            return f"gave a {type(after).__name__}, not a Server; end it with server._replace(...)"
        for name, now, then in (
            ("params", {"params": after.params}, {"params": self.server.params}),
            ("shared", after.shared, self.server.shared),
            ("state", after.state, self.server.state),
        ):
            found, kinds = ({key: _kind(tensor) for key, tensor in vectors.items()} for vectors in (now, then))
            if found != kinds:
                return f"made {name} {found}, and it was declared {kinds}"
        return None if is_finite(after.params) else "made a model that is not finite"

    def _shared(self) -> ArrayRecord:
        return recorded({name: encode(vector.numpy()) for name, vector in self.server.shared.items()})

    def _summed(self, grid: Grid) -> bool:
        """Whether workers sum their chunks: where nobody needs a single update."""
        colluding = self._adversary is not None and self._adversary.collude is not None
        return self.algorithm.linear and not colluding and isinstance(grid, NumberedGrid) and grid.sums

    def _fault(self, reply: Message) -> str | None:
        """Why a reply does not count; None where it does. A chunk's sum is judged as a whole, later."""
        if not isinstance(reply.content.get("metrics"), MetricRecord):
            return "the reply has no metrics"
        reported, vector = metrics_of(reply), vector_of(reply)
        summed = bool(reported.get("summed"))
        if vector is None:
            return None if summed else "the reply has no update"
        if len(vector) != self._contribution_size:
            return f"the update has {len(vector)} values, not {self._contribution_size}"
        if not summed and not is_finite(vector):
            return "the update is not finite"
        odd = [name for name in self.algorithm.scalars if not _finite(reported.get(f"scalar/{name}"))]
        return f"the reply's {odd[0]} is not a finite number" if odd else None

    def _useless(self, answered: Sequence[int]) -> str | None:
        """Why nothing can be made of a round's answers; None where something can."""
        combiner = self.algorithm.combine
        if len(answered) < combiner.least:
            return f"{combiner.name} needs {combiner.needs}: {combiner.least} updates, and {len(answered)} came"
        return None if sum(self._weights[number] for number in answered) > 0 else "all weights are zero"

    def _weighed(self, numbers: Sequence[int]) -> dict[int, float]:
        """How each client of the cohort counts."""
        rule = self.algorithm.weights
        if rule == "uniform":
            return dict.fromkeys(numbers, 1.0)
        if rule == "examples":
            return dict(zip(numbers, self._declared[numbers].astype(float).tolist(), strict=True))
        try:
            weights = dict(zip(numbers, map(float, rule(self.server, torch.tensor(numbers))), strict=True))
        except Exception as error:
            raise StoppedByPolicy(f"the strategy's weights failed: {one_line(error)}") from error
        if odd := [number for number, weight in weights.items() if not (math.isfinite(weight) and weight >= 0)]:
            raise StoppedByPolicy(f"the strategy's weight of client {odd[0]} is {weights[odd[0]]}; use 0 or more")
        return weights

    def _number(self, reply: Message) -> int:
        """The client that a reply is from."""
        return self.number(reply.metadata.src_node_id)

    def _chunks(self) -> list[int]:
        """The chunk of every client of the cohort."""
        return chunk_numbers(self._federation.train_rows[self.cohort].tolist(), self._width)

    def _colluded(self, replies: list[Message], collude: Callable[[Tensor, Tensor], Tensor]) -> list[Message]:
        """Replies in which all attackers send what they agree on, given everybody's updates."""
        vectors = {self._number(reply): vector_of(reply) for reply in replies if not reply.has_error()}
        known = {number: vector for number, vector in vectors.items() if vector is not None}
        agreed = agreed_on(collude, self._attackers, known)
        if agreed is None:
            return replies
        return [with_update(reply, agreed) if self._number(reply) in self._attackers else reply for reply in replies]

    def _combined(self, round: int, answered: list[int], sound: Mapping[int, Message]) -> Tensor:
        """[D + E + extras] what the cohort's contributions become."""
        weights = {number: self._weights[number] for number in answered}
        if not self.algorithm.linear:
            updates = torch.stack([vector for number in answered if (vector := vector_of(sound[number])) is not None])
            return self._together(updates, torch.tensor(list(weights.values())))
        total = self._added_up(sound, weights)
        if self._releasing is None:
            assert total is not None
            return total / sum(weights.values())
        nothing = torch.zeros(self._contribution_size, dtype=self.server.params.dtype)
        release = self._releasing(nothing if total is None else total, round, self._clip)
        self._clip = release.clip
        return release.estimate

    def _added_up(self, sound: Mapping[int, Message], weights: Mapping[int, float]) -> Tensor | None:
        """The weighted sum of the cohort's contributions, in fixed brackets; None where nobody answered."""
        if not self.cohort:
            return None
        chunks = self._chunks()
        folds = [Fold() for _ in range(chunks[-1] + 1)]
        for number, chunk in zip(self.cohort, chunks, strict=True):
            if number in sound and (vector := vector_of(sound[number])) is not None:
                if metrics_of(sound[number])["summed"]:
                    folds[chunk].add(vector)
                else:
                    folds[chunk].add(self._bounded(vector), weights[number])
        total = Fold()
        for fold in folds:
            if fold.total is not None:
                total.add(fold.total)
        return total.total

    def _bounded(self, vector: Tensor) -> Tensor:
        """A single client's contribution as it may enter the sum: clipped again where the sum is noised for a clip."""
        if self._releasing is None:
            return vector
        if self.clip is None:
            return clipped(vector, self._clip)
        return torch.cat([clipped(vector[:-1], self._clip), vector[-1:].sign() / 2])

    def _together(self, updates: Tensor, weights: Tensor) -> Tensor:
        """What the combiner makes of updates [n, P]."""
        combiner = self.algorithm.combine
        try:
            combined = combiner(updates, weights, self._previous)
        except Exception as error:
            raise StoppedByPolicy(f"the combiner {combiner.name} failed: {one_line(error)}") from error
        if not isinstance(combined, Tensor) or combined.shape != updates[0].shape:
            raise StoppedByPolicy(f"the combiner {combiner.name} should give a vector {list(updates[0].shape)}")
        return combined

    def _find_nodes(self, grid: Grid) -> None:
        clients = range(self._federation.clients)
        if isinstance(grid, NumberedGrid):
            self._nodes = range(FIRST_NODE, len(clients) + FIRST_NODE)
            return
        queries = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
        sound = [reply for reply in grid.send_and_receive(messages=queries) if not reply.has_error()]
        found = {int(metrics_of(reply)["number"]): reply.metadata.src_node_id for reply in sound}  # type: ignore[arg-type]
        if absent := sorted(set(clients) - set(found)):
            raise ScenarioError(f"clients {', '.join(map(str, absent[:5]))} have no node; start one for each client")
        self._nodes = [found[number] for number in clients]
        self._numbers = {node: number for number, node in found.items()}


def agreed_on(
    collude: Callable[[Tensor, Tensor], Tensor], attackers: Collection[int], contributions: Mapping[int, Tensor]
) -> Tensor | None:
    """What all attackers of a cohort send, given everybody's contributions [P] by client; None without attackers."""
    own = [vector for number, vector in contributions.items() if number in attackers]
    others = [vector for number, vector in contributions.items() if number not in attackers]
    if not own:
        return None
    try:
        agreed = collude(torch.stack(own), torch.stack(others) if others else own[0].new_empty(0, len(own[0])))
    except Exception as error:
        raise StoppedByPolicy(f"the adversary's collude failed: {one_line(error)}") from error
    if not isinstance(agreed, Tensor) or agreed.shape != own[0].shape:
        raise StoppedByPolicy(f"the adversary's collude should give a vector [{len(own[0])}]")
    return agreed


def central_block(rows: int, most: int) -> int:
    """Rows of a central set of so many that are measured together, at most `most`.

    An eighth, so that workers share in it; of a small set 50 or more, as fewer cost hardly less.
    """
    return max(1, min(most, math.ceil(rows / min(8, max(1, rows // 50)))))


def central_messages(
    arrays: ArrayRecord, part: CentralPart, rows: int, most: int, *, triggered: bool = False
) -> list[Message]:
    """Messages that measure the model on a central set, one per block of rows, for whichever worker is free.

    Args:
        arrays: the model.
        part: which set.
        rows: how many it has.
        most: rows of a block at most.
        triggered: whether the rows carry the adversary's trigger.
    """
    messages, block = [], central_block(rows, most)
    for number, start in enumerate(range(0, rows, block)):
        settings = {"part": part, "start": start, "stop": min(start + block, rows), "triggered": triggered}
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({**settings})})
        messages.append(Message(content, number + FIRST_NODE, "evaluate.central"))
    return messages


def judged(
    round: int,
    replies: Iterable[Message],
    number: Callable[[Message], int],
    fault: Callable[[Message], str | None],
) -> list[Message]:
    """Replies of a round, of which one that cannot count is its client's failure.

    Args:
        round: of the messages.
        replies: as they came.
        number: the client that a reply is from.
        fault: why a reply without an error does not count; None where it does.
    """
    counted = []
    for reply in replies:
        reason = None if reply.has_error() else fault(reply)
        text = f"round {round}, client {number(reply)}: {reason}" if reason is not None else ""
        counted.append(failed(reply, text) if text else reply)
    return counted


def failed(reply: Message, reason: str) -> Message:
    """A failure of the client that sent a reply, in its place."""
    return Message(metadata=reply.metadata, error=Error(CLIENT_FAILED, reason))  # type: ignore[call-overload,no-any-return]


def with_update(reply: Message, vector: Tensor) -> Message:
    """A reply that brings another update; one that failed still has."""
    if reply.has_error():
        return reply
    figures = MetricRecord({**metrics_of(reply), "norm": float(vector.double().norm())})
    content = {**reply.content, "update": recorded({"vector": encode(vector.numpy())}), "metrics": figures}
    return with_content(reply, RecordDict(content))


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= torch.finfo(torch.float32).max


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
