"""Flower's Grid over the clients of one federation.

The one seam between coordination and work: `push_messages` and `pull_messages`. An engine fills in `begin`; everything
else that Flower's abstract Grid wants is here, and so are the private names of Flower that a simulation
needs (a test watches their version).
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count, groupby
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsim.errors import StoppedByPolicy
from fedsim.states import ClientStates, State

FIRST_NODE = 2
"""Flower reserves node ids 0 and 1; on a numbered grid a client's node id is its number + 2."""
CLIENT_FAILED = 2
DROPPED_OUT = 5
WORKER_LOST = 8
"""Flower's error codes for a ClientApp that raised, for a node out of reach, and for one whose process died."""
_message_ids = count(1)


class Chunk(NamedTuple):
    """Messages that one worker handles together, and the states of their clients that have any."""

    messages: list[Message]
    states: Mapping[int, State | None]


class ChunkResult(NamedTuple):
    """A reply for every message of a chunk, in order, and the new states by client.

    Attributes:
        seconds: that each reply took, from a program that measures it.
    """

    replies: list[Message]
    states: Mapping[int, State]
    seconds: Sequence[float] = ()


ChunkProgram = Callable[[Chunk], ChunkResult]
"""What a worker runs."""


class Begun(NamedTuple):
    """Chunks whose work goes on.

    Attributes:
        results: waits for all of them; results in the order of the chunks. To be called once.
        drop: have them not done, as far as they are not yet, instead of asking for results.
    """

    results: Callable[[], list[ChunkResult]]
    drop: Callable[[], None] = lambda: None


Begin = Callable[[Sequence[Chunk]], Begun]
"""Begins chunks' work; what was begun before comes first, where workers are short."""


class _Pushed(NamedTuple):
    """Messages that were pushed together, as chunks, and their work."""

    chunks: Sequence[Chunk]
    begun: Begun


class RunGrid(Grid):
    """What Flower's abstract Grid wants besides sending messages: a run, and a way to make them."""

    def __init__(self, run: Run | None = None) -> None:
        """In a run that Flower knows, or in one of our own."""
        self._run = begin_run() if run is None else run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node; Flower deprecates this in favour of `Message(...)`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def set_run(self, run: Run) -> None:
        """Take over Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run


class NumberedGrid(RunGrid):
    """A grid whose nodes are the clients of a federation, by number: those of a simulation, or deployed ones.

    Messages with the same chunk number in their config, one after another, go to one worker together; a
    message without a number is a chunk of its own. Replies come back one per message, in order.

    Attributes:
        population: K.
        states: what clients keep between rounds, where they do not keep it themselves.
        sums: whether one worker has all clients of a chunk, and can send their sum.
    """

    sums = True

    def __init__(self, population: int, states: ClientStates | None = None, run: Run | None = None) -> None:
        """Of so many clients, in a run that Flower knows, or in one of our own."""
        super().__init__(run)
        self.population = population
        self.states = states if states is not None else ClientStates(population)
        self._pushed: dict[str, _Pushed] = {}
        self._replies: dict[str, Message] = {}

    @abstractmethod
    def begin(self, chunks: Sequence[Chunk]) -> Begun:
        """Begin chunks' work; what was begun before comes first, where workers are short."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver messages; what clients do goes on until their replies are pulled, or dropped."""
        sent = list(messages)
        if not sent:  # nobody would pull it, so that its work would never end
            return []
        for message in sent:
            stamp(message, str(next(_message_ids)))
        chunks = [self._chunk(list(group)) for _, group in groupby(enumerate(sent), _chunk_key)]
        pushed, names = _Pushed(chunks, self.begin(chunks)), [message.metadata.message_id for message in sent]
        self._pushed |= dict.fromkeys(names, pushed)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies to messages that were pushed and not yet pulled, in order; waits for them."""
        names = list(message_ids)
        for name in names:
            if (pushed := self._pushed.get(name)) is not None:
                self._receive(pushed)
        return [self._replies.pop(name) for name in names if name in self._replies]

    def drop_messages(self, message_ids: Iterable[str]) -> None:
        """Have nobody answer messages that were pushed, nor any that were pushed with them."""
        for name in message_ids:
            if (pushed := self._pushed.get(name)) is not None:
                pushed.begun.drop()
                self._forget(pushed)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Deliver messages to clients and wait for their replies."""
        return self.pull_messages(self.push_messages(messages))

    def _receive(self, pushed: _Pushed) -> None:
        """Wait for all replies to what was pushed together, and keep them and the clients' states."""
        self._forget(pushed)
        for chunk, result in zip(pushed.chunks, pushed.begun.results(), strict=True):
            for number, state in result.states.items():
                self.states.put(number, _round(chunk.messages[0]), state)
            self._replies |= {reply.metadata.reply_to_message_id: reply for reply in result.replies}

    def _forget(self, pushed: _Pushed) -> None:
        for chunk in pushed.chunks:
            for message in chunk.messages:
                del self._pushed[message.metadata.message_id]

    def _chunk(self, numbered: list[tuple[int, Message]]) -> Chunk:
        messages = [message for _, message in numbered]
        accepted = {client_number(message): accepted_round(message) for message in messages}
        states = {number: self.states.get(number, round) for number, round in accepted.items() if round is not None}
        return Chunk(messages, states)

    def get_node_ids(self) -> list[int]:
        """Node ids of all clients, in order."""
        return list(range(FIRST_NODE, self.population + FIRST_NODE))


class Selected(Grid):
    """Some nodes of a grid, in a fixed order, to draw from: who asks sends by returning messages, never by itself."""

    def __init__(self, grid: Grid, nodes: list[int]) -> None:
        self._grid, self._ids = grid, nodes

    def get_node_ids(self) -> list[int]:
        """The nodes."""
        return list(self._ids)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a client."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Refused: what is sent past the loop is neither recorded nor resumed."""
        raise StoppedByPolicy("it sends messages by itself; return them from configure_train")

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Refused, as `send_and_receive`."""
        return [reply.metadata.reply_to_message_id for reply in self.send_and_receive(messages)]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Refused, as `send_and_receive`."""
        return self.send_and_receive(())

    def set_run(self, run: Run) -> None:
        """Take over Flower's description of the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._grid.run


def addressed(
    kind: str,
    nodes: Sequence[int],
    arrays: Mapping[str, ArrayRecord],
    common: Mapping[str, Any],
    own: Mapping[str, Sequence[int | float]],
) -> list[Message]:
    """A message for each node: records that all share, and a "config" with some values of its own.

    Records are copied: Flower checks every value of a new one, which takes ten times as long.

    Args:
        kind: of the messages.
        nodes: whom they are for.
        arrays: records of arrays by name, the same in all messages.
        common: values of all configs by name.
        own: by name the value of each node's config.
    """
    config, messages = ConfigRecord({**common}), []
    content = RecordDict({**arrays, "config": config})
    for node, *values in zip(nodes, *own.values(), strict=True):
        told, mine = config.copy(), content.copy()
        for name, value in zip(own, values, strict=True):
            told[name] = value
        mine["config"] = told
        messages.append(Message(mine, node, kind))
    return messages


class Asked:
    """Messages on their way to a cohort, some of whose clients do no work."""

    def __init__(
        self, grid: NumberedGrid, messages: Sequence[Message], absent: Mapping[int, str], *, stacked: bool = False
    ) -> None:
        """Deliver messages, one for each client.

        Args:
            grid: where the clients are.
            messages: one for each.
            absent: clients that do no work, and why.
            stacked: whether clients are trained in stacks, in which absent ones keep their places.
        """
        self._grid, self._messages, self._absent, self._stacked = grid, messages, absent, stacked
        self._sent = grid.push_messages(
            silenced(message) if client_number(message) in absent else message
            for message in messages
            if stacked or client_number(message) not in absent
        )

    def answers(self) -> list[Message]:
        """A reply to every message, in order; those of absent clients are failures for their reason."""
        replies = iter(self._grid.pull_messages(self._sent))
        answered = []
        for message in self._messages:
            reason = self._absent.get(client_number(message))
            if reason is None or self._stacked:
                reply = next(replies)
            answered.append(reply if reason is None else failure(message, DROPPED_OUT, reason))
        return answered

    def drop(self) -> None:
        """Have nobody answer."""
        self._grid.drop_messages(self._sent)


def silenced(message: Message) -> Message:
    """A message whose client keeps its place in its stack and is not trained."""
    config = message.content["config"]
    assert isinstance(config, ConfigRecord)
    return with_content(message, RecordDict({**message.content, "config": ConfigRecord({**config, "silent": True})}))


def client_number(message: Message) -> int:
    """The client that a message on a numbered grid is for."""
    return message.metadata.dst_node_id - FIRST_NODE


def setting(message: Message, name: str, default: int | float | str) -> int | float | str:
    """A scalar of the message's "config" record."""
    config = message.content.get("config")  # `config_records` would copy all records at every call
    value = config.get(name, default) if isinstance(config, ConfigRecord) else default
    return value if isinstance(value, int | float | str) else default


def accepted_round(message: Message) -> int | None:
    """The last round of the client that counted, 0 for none; None in a message that needs no state of it."""
    round = int(setting(message, "accepted-round", -1))
    return None if round < 0 else round


def with_content(message: Message, content: RecordDict) -> Message:
    """The same message (id, addresses) with another content."""
    return Message(metadata=message.metadata, content=content)  # type: ignore[call-overload,no-any-return]


def failure(message: Message, code: int, reason: str) -> Message:
    """The reply of a client that could not do what a message asked."""
    return Message(Error(code, reason), reply_to=message)


def _round(message: Message) -> int:
    return int(setting(message, "server-round", 0))


def _chunk_key(numbered: tuple[int, Message]) -> tuple[str, int | float | str]:
    position, message = numbered
    return message.metadata.message_type, setting(message, "chunk", f"alone {position}")


def begin_run() -> Run:
    """Tell Flower that this process coordinates a run; without it no message can be made."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    return Run.create_empty(1)


def stamp(message: Message, name: str) -> None:
    """Give a message its id, which its reply refers to."""
    message.metadata.__dict__["_message_id"] = name


def has_main(app: ServerApp) -> bool:
    """Whether a ServerApp has a main function; without one it is of Flower's older form, which knows no messages."""
    return getattr(app, "_main", app) is not None
