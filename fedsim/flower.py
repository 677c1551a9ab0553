"""Between fedsim and Flower: an algorithm as a Flower Strategy, local work as a Flower ClientApp.

A round's messages, one per client of the cohort:
    down  "arrays" the model by name, "shared" the algorithm's vectors, "config" round, weight, chunk, reply
    up    "metrics", and as config["reply"] asks
          "model"   "arrays": what the client's model became (what Flower's own strategies need; the default)
          "update"  "update": the client's contribution, not weighted
          "sum"     "update" only in the last sound reply of a chunk: the chunk's weighted sum
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedsim import metrics, seeds
from fedsim.algorithm import Combined, Server
from fedsim.checkpoints import Snapshot
from fedsim.cohorts import sample
from fedsim.combiners import Fold, chunk_numbers
from fedsim.data.federation import CentralPart, Part, Rows
from fedsim.errors import FedsimError, RunFolderError, ScenarioError, StoppedByPolicy, one_line
from fedsim.evaluation import client_metrics
from fedsim.grid import (
    CLIENT_FAILED,
    FIRST_NODE,
    Chunk,
    ChunkProgram,
    ChunkResult,
    SimulatedGrid,
    client_number,
    failure,
    setting,
)
from fedsim.local import Contribution, Received, Work
from fedsim.parameters import Weights, encode, is_finite, to_record, view
from fedsim.replies import arrays_of, metrics_of, statistics_of, training_figures, vector_of
from fedsim.states import ContextStates, State

Figure = int | float | list[int] | list[float]
"""A value of Flower's MetricRecord."""
PARTS: Mapping[str, Part] = {"train": "train", "validation": "validation", "test": "test"}


class AlgorithmStrategy(Strategy):
    """One of our algorithms, as a Flower Strategy.

    Attributes:
        server: the algorithm's server side after the last round.
        buffers: [E] the model's floating buffers.
        participations: [K] rounds that each client was selected in.
        cohort: clients selected in the current round, sorted.
    """

    def __init__(self, work: Work) -> None:
        """Before round 1 of a job, whose model, algorithm and problem `work` has built."""
        job = work.job
        self.algorithm = work.algorithm
        self.server: Server = work.algorithm.start(work.initial.vector, job.federation.clients)
        self.buffers = work.initial.buffers
        self.participations = np.zeros(job.federation.clients, dtype=np.int64)
        self.cohort: list[int] = []
        self._problem, self._layout, self._federation = work.problem, work.layout, job.federation
        self._rule, self._seed = job.scenario.cohort.rule, job.scenario.seed
        self._contribution_size = work.contribution_size
        self._able = job.federation.train_rows > 0
        self._limit = job.privacy.max_participations if job.privacy is not None else None
        self._min_rows = job.scenario.evaluate.min_rows
        self._accepted = np.zeros(job.federation.clients, dtype=np.int64)
        self._nodes: dict[int, int] = {}
        self._part: Part = "validation"

    @property
    def weights(self) -> Weights:
        """The global model."""
        return Weights(self.server.params, self.buffers)

    @property
    def vectors(self) -> dict[str, Tensor]:
        """What the server keeps besides the model, by name."""
        shared = {f"shared/{name}": vector for name, vector in self.server.shared.items()}
        return shared | {f"state/{name}": tensor for name, tensor in self.server.state.items()}

    @property
    def accepted(self) -> np.ndarray:
        """[K] the last round of each client that counted; 0 for none."""
        return self._accepted

    def restore(self, round: int, snapshot: Snapshot) -> None:
        """Go on as after a round whose snapshot this is."""
        own: dict[str, dict[str, Tensor]] = {"shared": {}, "state": {}}
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
        self.buffers = snapshot.weights.buffers
        self.participations, self._accepted = snapshot.participations.copy(), snapshot.accepted.copy()

    def snapshot(self) -> Snapshot:
        """What the next round depends on, as it is now."""
        return Snapshot(self.weights, self.vectors, self.participations.copy(), self._accepted.copy())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample the cohort and address a message to each of its clients."""
        nodes = self._nodes or self._find_nodes(grid)
        self.cohort = sample(self._rule, self._seed, server_round, self.participations, self._limit, able=self._able)
        self.participations[self.cohort] += 1
        shared = ArrayRecord({name: encode(vector.numpy()) for name, vector in self.server.shared.items()})
        rows = [int(self._federation.train_rows[number]) for number in self.cohort]
        reply = "sum" if self.algorithm.linear and isinstance(grid, SimulatedGrid) else "update"
        messages = []
        for number, size, chunk in zip(self.cohort, rows, chunk_numbers(rows), strict=True):
            settings = ConfigRecord(
                {
                    **config,
                    "server-round": server_round,
                    "reply": reply,
                    "chunk": chunk,
                    "weight": self._weight(size),
                    "accepted-round": int(self._accepted[number]),
                }
            )
            content = RecordDict({"arrays": arrays, "shared": shared, "config": settings})
            messages.append(Message(content, nodes[number], "train"))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold what the cohort sent, in the order of client numbers, and take the server step."""
        numbers = {node: number for number, node in self._nodes.items()}
        sound = {numbers[reply.metadata.src_node_id]: reply for reply in replies if self._is_sound(reply)}
        answered = [number for number in self.cohort if number in sound]
        if not answered:
            return None, None
        reported = [metrics_of(sound[number]) for number in answered]
        combined = self._combined(answered, sound)
        if not is_finite(combined):
            raise StoppedByPolicy(f"round {server_round}: the cohort's sum is not finite; lower train.learning_rate")
        size = self._layout.size
        self.buffers = self.buffers + combined[size : size + self._layout.buffer_size]
        extras = combined[size + self._layout.buffer_size :].split(size)  # type: ignore[no-untyped-call]
        names = [key for key in reported[0] if key.startswith("scalar/")]
        cohort = Combined(
            update=combined[:size],
            extra=dict(zip(self.algorithm.extra, extras, strict=False)),
            scalars={name.removeprefix("scalar/"): torch.tensor([m[name] for m in reported]) for name in names},
            numbers=torch.tensor(answered),
            share_of_population=len(answered) / self._federation.clients,
        )
        self.server = self._stepped(server_round, cohort)
        self._accepted[answered] = server_round
        return to_record(self._layout, self.weights), training_figures(reported)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Ask every client with held-out rows to measure the model on them; config["part"] says which."""
        nodes = self._nodes or self._find_nodes(grid)
        self._part = PARTS[str(config.get("part", "validation"))]
        sizes = [len(self._federation.rows(number, self._part).x) for number in range(self._federation.clients)]
        asked = [number for number, size in enumerate(sizes) if size]
        messages = []
        for number, chunk in zip(asked, chunk_numbers([sizes[number] for number in asked]), strict=True):
            settings = ConfigRecord({**config, "server-round": server_round, "part": self._part, "chunk": chunk})
            messages.append(Message(RecordDict({"arrays": arrays, "config": settings}), nodes[number], "evaluate"))
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The model's metrics over clients' own rows, under their full names."""
        statistics = statistics_of(replies)
        if not statistics:
            return None
        return MetricRecord({**client_metrics(self._problem, statistics, self._part, self._min_rows)})

    def summary(self) -> None:
        """Nothing: a run's summary comes from its records."""

    def _stepped(self, round: int, cohort: Combined) -> Server:
        """The server after its step; what it was before is still being written to the disk, so it must stay."""
        before = {"params": self.server.params, **self.vectors}
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
        return after

    def _is_sound(self, reply: Message) -> bool:
        """Whether a reply counts: no error, an update of the right size, and finite where it is one client's own."""
        if reply.has_error() or not isinstance(reply.content.get("metrics"), MetricRecord):
            return False
        vector, summed = vector_of(reply), bool(metrics_of(reply).get("summed"))
        if vector is None:
            return summed
        return len(vector) == self._contribution_size and (summed or is_finite(vector))

    def _weight(self, rows: int) -> float:
        return float(rows) if self.algorithm.weights == "examples" else 1.0

    def _combined(self, answered: list[int], sound: Mapping[int, Message]) -> Tensor:
        """[D + E + extras] what the cohort's contributions become."""
        weights = {number: self._weight(int(self._federation.train_rows[number])) for number in answered}
        if not self.algorithm.linear:
            updates = torch.stack([vector for number in answered if (vector := vector_of(sound[number])) is not None])
            return self.algorithm.combine(updates, torch.tensor(list(weights.values())))
        chunks = chunk_numbers([int(self._federation.train_rows[number]) for number in self.cohort])
        folds = [Fold() for _ in range(chunks[-1] + 1)]
        for number, chunk in zip(self.cohort, chunks, strict=True):
            if number in sound and (vector := vector_of(sound[number])) is not None:
                folds[chunk].add(vector, 1.0 if metrics_of(sound[number])["summed"] else weights[number])
        total = Fold()
        for fold in folds:
            if fold.total is not None:
                total.add(fold.total)
        assert total.total is not None
        return total.total / sum(weights.values())

    def _find_nodes(self, grid: Grid) -> dict[int, int]:
        """Node id of every client: known on our grids, asked for once on any other."""
        if isinstance(grid, SimulatedGrid):
            self._nodes = {number: number + FIRST_NODE for number in range(self._federation.clients)}
            return self._nodes
        queries = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
        for reply in grid.send_and_receive(messages=queries):
            if not reply.has_error():
                self._nodes[int(metrics_of(reply)["number"])] = reply.metadata.src_node_id  # type: ignore[arg-type]
        if absent := sorted(set(range(self._federation.clients)) - set(self._nodes)):
            raise ScenarioError(f"clients {', '.join(map(str, absent[:5]))} have no node; start one for each client")
        return self._nodes


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


class Answer(NamedTuple):
    """What came of one message's work: a reply's content, before it is a reply.

    Attributes:
        figures: the reply's metrics.
        arrays: the reply's arrays, by record.
        contribution: what training gave, where the message asked for training.
    """

    figures: dict[str, Figure]
    arrays: dict[str, ArrayRecord]
    contribution: Contribution | None = None

    def reply(self, message: Message) -> Message:
        """The reply to the message that asked."""
        return Message(RecordDict({**self.arrays, "metrics": MetricRecord({**self.figures})}), reply_to=message)


def chunk_program(work: Work) -> ChunkProgram:
    """What a simulated worker runs: each client's work in order, a client's failure being its reply."""

    @seeds.preserved()
    def run(chunk: Chunk) -> ChunkResult:
        answers: list[Answer | FedsimError] = []
        kept: dict[int, State] = {}
        running = Fold()
        carrier: Answer | None = None
        for message in chunk.messages:
            number = client_number(message)
            try:
                answer = _answer(work, number, message, chunk.states.get(number))
            except FedsimError as error:
                answers.append(error)
                continue
            done = answer.contribution
            if done is not None and done.state:
                kept[number] = done.state
            if done is not None and setting(message, "reply", "model") == "sum":
                running.add(done.vector, float(setting(message, "weight", 1.0)))
                carrier = answer = answer._replace(contribution=None)
            answers.append(answer)
        if carrier is not None and running.total is not None:
            carrier.arrays["update"] = ArrayRecord({"vector": encode(running.total.numpy())})
        # Replies are built when all have trained: in between, their code would push the nets out of the cache.
        return ChunkResult(list(map(_reply, chunk.messages, answers)), kept)

    return run


def _reply(message: Message, answer: Answer | FedsimError) -> Message:
    if isinstance(answer, FedsimError):
        return failure(message, CLIENT_FAILED, str(answer))
    return answer.reply(message)


def client_app(make_work: Callable[[], Work]) -> ClientApp:
    """Local work as a ClientApp, for Flower's own simulation and for deployed nodes.

    Args:
        make_work: builds this process' work; called for every message, so it should remember its result.
    """
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        states = ContextStates(context)
        training = message.metadata.message_type == "train"  # no other message names an accepted round
        state = states.get(number, int(setting(message, "accepted-round", 0))) if training else None
        with seeds.preserved():
            answer = _answer(make_work(), number, message, state)
        if answer.contribution is not None:
            states.put(number, int(setting(message, "server-round", 0)), answer.contribution.state)
        return answer.reply(message)

    for register in (app.train(), app.evaluate(), app.query()):
        register(handle)
    return app


def central_messages(arrays: ArrayRecord, part: CentralPart, rows: int, block: int) -> list[Message]:
    """Messages that measure the model on a central set, one per block of rows, for whichever worker is free."""
    starts = range(0, rows, block)
    config = [ConfigRecord({"part": part, "start": start, "stop": min(start + block, rows)}) for start in starts]
    return [
        Message(RecordDict({"arrays": arrays, "config": settings}), number + FIRST_NODE, "evaluate.central")
        for number, settings in enumerate(config)
    ]


def _answer(work: Work, number: int, message: Message, state: State | None) -> Answer:
    """One message's work."""
    kind = message.metadata.message_type
    if kind == "train":
        return _trained(work, number, message, state)
    if kind == "query":
        return Answer({"number": number, "num-examples": int(work.federation.train_rows[number])}, {})
    return _measured(work, number, message)


def _measured(work: Work, number: int, message: Message) -> Answer:
    started = time.perf_counter()
    part = str(setting(message, "part", "validation"))
    limit: AbstractContextManager[None] = nullcontext()
    if message.metadata.message_type == "evaluate.central":
        central = work.federation.central["test" if part == "test" else "validation"]
        block = slice(int(setting(message, "start", 0)), int(setting(message, "stop", len(central.x))))
        rows, what = Rows(central.x[block], central.y[block]), f"central {part} set"
    else:
        rows = work.federation.rows(number, PARTS[part])
        what = f"round {setting(message, 'server-round', 0)}, client {number}"
        limit = work.limited()
    weights = work.received(arrays_of(message, "arrays"))
    with limit:
        measured = metrics.to_record(work.evaluate(weights, rows, what))
    return Answer({**measured, "num-examples": len(rows.x), "seconds": time.perf_counter() - started}, {})


def _trained(work: Work, number: int, message: Message, state: State | None) -> Answer:
    started = time.perf_counter()
    weights = work.received(arrays_of(message, "arrays"))
    shared = arrays_of(message, "shared")
    vectors = {name: torch.from_numpy(view(array).copy()) for name, array in shared.items()}
    done = work.train(number, int(setting(message, "server-round", 0)), Received(weights, vectors), state)
    reply, arrays = setting(message, "reply", "model"), {}
    if reply == "model":
        size, end = work.layout.size, work.layout.size + work.layout.buffer_size
        became = Weights(weights.vector + done.vector[:size], weights.buffers + done.vector[size:end])
        arrays["arrays"] = to_record(work.layout, became)
    elif reply == "update":
        arrays["update"] = ArrayRecord({"vector": encode(done.vector.numpy())})
    figures: dict[str, Figure] = {
        "num-examples": int(work.federation.train_rows[number]),
        "loss": done.loss,
        "norm": done.norm,
        "steps": done.steps,
        "seconds": time.perf_counter() - started,
        "summed": int(reply == "sum"),
    }
    return Answer(figures | {f"scalar/{name}": value for name, value in done.scalars.items()}, arrays, done)
