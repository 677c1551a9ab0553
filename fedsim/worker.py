"""What a worker or a node does with messages: a client's training, or measuring a model on its rows.

`chunk_program` is what simulated workers run, `client_app` the same work as a Flower ClientApp; what is in the
messages stands in `flower.py`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim import metrics, seeds
from fedsim.arrays import encode, recorded, view
from fedsim.combiners import Fold
from fedsim.data.federation import CentralPart, Part, Rows
from fedsim.errors import FedsimError
from fedsim.grid import (
    CLIENT_FAILED,
    Chunk,
    ChunkProgram,
    ChunkResult,
    accepted_round,
    client_number,
    failure,
    setting,
)
from fedsim.local import Contribution, Received, Work
from fedsim.parameters import Weights, to_record
from fedsim.replies import arrays_of
from fedsim.sketches import due
from fedsim.states import ContextStates, State
from fedsim.together import Member, train_together

Figure = int | float | list[int] | list[float]
"""A value of Flower's MetricRecord."""
PARTS: Mapping[str, Part] = {"train": "train", "validation": "validation", "test": "test"}


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
        sketched = _sketched(chunk.messages[0])
        carrier: Answer | None = None
        for message, answer in _answers(work, chunk):
            if isinstance(answer, FedsimError):
                answers.append(answer)
                continue
            done = answer.contribution
            if done is not None and sketched:
                answer.figures["sketch"] = work.sketcher(done.vector[: work.layout.size])
            if done is not None and done.state:
                kept[client_number(message)] = done.state
            if done is None or setting(message, "reply", "model") != "sum":
                answers.append(answer)
                continue
            running.add(done.vector, float(setting(message, "weight", 1.0)))
            carrier = answer._replace(contribution=None)
            answers.append(carrier)
        if carrier is not None and running.total is not None:
            carrier.arrays["update"] = recorded({"vector": encode(running.total.numpy())})
        # Replies are built when all have trained: in between, their code would push the nets out of the cache.
        return ChunkResult(list(map(_reply, chunk.messages, answers)), kept)

    return run


def _sketched(message: Message) -> bool:
    """Whether updates of a message's round are sketched; a Flower Strategy might trip over a figure more."""
    ours = setting(message, "reply", "model") != "model"
    return ours and due(int(setting(message, "server-round", 0)))


def _answers(work: Work, chunk: Chunk) -> Iterator[tuple[Message, Answer | FedsimError]]:
    """Each message of a chunk in order, and what came of it: one after another, or W at once."""
    if work.width > 1 and chunk.messages[0].metadata.message_type == "train":
        for start in range(0, len(chunk.messages), work.width):
            together = chunk.messages[start : start + work.width]
            yield from zip(together, _trained_together(work, together, chunk.states), strict=True)
        return
    for message in chunk.messages:
        number = client_number(message)
        try:
            yield message, answered(work, number, message, chunk.states.get(number))
        except FedsimError as error:
            yield message, error


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
        accepted = accepted_round(message)
        state = states.get(number, accepted) if accepted is not None else None
        with seeds.preserved():
            answer = answered(make_work(), number, message, state)
        if answer.contribution is not None:
            states.put(number, int(setting(message, "server-round", 0)), answer.contribution.state)
        return answer.reply(message)

    for register in (app.train(), app.evaluate(), app.query()):
        register(handle)
    return app


def answered(work: Work, number: int, message: Message, state: State | None) -> Answer:
    """One message's work for a client; draws from global generators are seeded, so call it inside `seeds.preserved`.

    Args:
        work: of the job.
        number: the client.
        message: train, evaluate, query, or evaluate.central.
        state: the client's own vectors, None before its first accepted round.

    Raises:
        ClientError: what the client failed in, one line.
    """
    kind = message.metadata.message_type
    if kind == "train":
        return _trained(work, number, message, state)
    if kind == "query":
        return Answer({"number": number, "num-examples": int(work.federation.train_rows[number])}, {})
    if kind == "evaluate.central":
        return _measured_centrally(work, message)
    return _measured(work, number, message, state)


def _measured_centrally(work: Work, message: Message) -> Answer:
    """The global model on a block of a central set, perhaps with the backdoor's trigger in its rows."""
    started = time.perf_counter()
    part: CentralPart = "test" if setting(message, "part", "validation") == "test" else "validation"
    central = work.federation.central[part]
    block = slice(int(setting(message, "start", 0)), int(setting(message, "stop", len(central.x))))
    rows = Rows(central.x[block], central.y[block])
    if setting(message, "triggered", False):
        rows = work.triggered(rows)
    measured = work.evaluate(work.received(arrays_of(message, "arrays")), rows, f"central {part} set")
    return _figures(metrics.to_record(measured), rows, started)


def _measured(work: Work, number: int, message: Message, state: State | None) -> Answer:
    """The global model, and the client's own if asked for, on the client's rows."""
    started = time.perf_counter()
    round = int(setting(message, "server-round", 0))
    rows = work.federation.rows(number, PARTS[str(setting(message, "part", "validation"))])
    what = f"round {round}, client {number}"
    received = Received(work.received(arrays_of(message, "arrays")), _shared(message))
    with work.limited():
        measured = metrics.to_record(work.evaluate(received.weights, rows, what))
        if setting(message, "personal", False):
            own = work.own_model(number, round, received, state)
            measured = MetricRecord({**measured, **metrics.to_record(work.evaluate(own, rows, what), "personal")})
    return _figures(measured, rows, started)


def _figures(measured: MetricRecord, rows: Rows, started: float) -> Answer:
    return Answer({**measured, "num-examples": len(rows.x), "seconds": time.perf_counter() - started}, {})


def _shared(message: Message) -> dict[str, torch.Tensor]:
    """The algorithm's vectors that came with a message."""
    return {name: torch.from_numpy(view(array).copy()) for name, array in arrays_of(message, "shared").items()}


def _trained(work: Work, number: int, message: Message, state: State | None) -> Answer:
    started = time.perf_counter()
    received = _received(work, message)
    done = work.train(number, int(setting(message, "server-round", 0)), received, state)
    return _uploaded(work, number, message, received, done, seconds=time.perf_counter() - started)


def _trained_together(
    work: Work, messages: Sequence[Message], states: Mapping[int, State | None]
) -> list[Answer | FedsimError]:
    """What comes of the clients of one stack, whose messages tell them the same; each has an equal share of the time.

    A message whose config says "silent" stands for a client that is not asked, so that the others keep their places;
    one that was taken out of its chunk names under "beside" the chunk's clients, whose places stay as if they were.
    """
    started = time.perf_counter()
    asked = {client_number(message): message for message in messages if not setting(message, "silent", False)}
    places = _places(messages, work.width)
    members = [Member(number, states.get(number), number not in asked) for number in places]
    received = _received(work, messages[0])
    results = train_together(work, members, int(setting(messages[0], "server-round", 0)), received)
    seconds = (time.perf_counter() - started) / max(len(asked), 1)
    of = dict(zip(places, results, strict=True))
    return [
        _uploaded(work, number, message, received, done, seconds, len(asked))
        if isinstance(done := of[number := client_number(message)], Contribution)
        else done
        for message in messages
    ]


def _places(messages: Sequence[Message], width: int) -> list[int]:
    """The clients of a stack by number, in order, whether or not they have a message."""
    numbers, config = [client_number(message) for message in messages], messages[0].content.get("config")
    beside = config.get("beside") if isinstance(config, ConfigRecord) else None
    if not isinstance(beside, list):
        return numbers
    chunk = [int(number) for number in beside]
    first = chunk.index(numbers[0]) // width * width
    return chunk[first : first + width]


def _received(work: Work, message: Message) -> Received:
    clip = float(setting(message, "clip", 0.0))
    return Received(work.received(arrays_of(message, "arrays")), _shared(message), clip or None)


def _uploaded(
    work: Work, number: int, message: Message, received: Received, done: Contribution, seconds: float, stack: int = 1
) -> Answer:
    """A contribution as the message asks for it."""
    reply, arrays, weights = setting(message, "reply", "model"), {}, received.weights
    if reply == "model":
        size, end = work.layout.size, work.layout.size + work.layout.buffer_size
        became = Weights(weights.vector + done.vector[:size], weights.buffers + done.vector[size:end])
        arrays["arrays"] = to_record(work.layout, became)
    elif reply == "update":
        arrays["update"] = recorded({"vector": encode(done.vector.numpy())})
    figures: dict[str, Figure] = {
        "num-examples": int(work.federation.train_rows[number]),
        "loss": done.loss,
        "norm": done.norm,
        "steps": done.steps,
        "seconds": seconds,
        "summed": int(reply == "sum"),
        **({"stack": stack} if work.width > 1 else {}),
    }
    return Answer(figures | {f"scalar/{name}": value for name, value in done.scalars.items()}, arrays, done)
