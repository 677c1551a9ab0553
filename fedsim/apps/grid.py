"""Flower's Grid over the simulated nodes of an app.

What a ServerApp sees: nodes in a fixed order, one reply for every message, in the order in which they were pushed.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from flwr.app import Message

from fedsim.errors import FedsimError
from fedsim.grid import DROPPED_OUT, FIRST_NODE, Begin, Begun, Chunk, RunGrid, client_number, failure, stamp
from fedsim.states import State

PATIENCE_SECONDS, PATIENCE_CALLS = 8.0, 8
"""Who asks so long and so often for nodes, and sends nothing, waits for more than there are."""


class Batch(NamedTuple):
    """Messages that were begun together, and what came of them.

    Attributes:
        number: from 1.
        messages: in order.
        replies: one for each.
        seconds: that each took in its worker; none where nobody measured it.
        wall: seconds from the beginning until all replies were there.
    """

    number: int
    messages: Sequence[Message]
    replies: Sequence[Message]
    seconds: Sequence[float]
    wall: float


class _Sent(NamedTuple):
    """Messages that were begun together; those to nodes that there are not have no chunk."""

    number: int
    messages: list[Message]
    reachable: list[Message]
    begun: Begun
    since: float


class AppGrid(RunGrid):
    """A grid of nodes that keep contexts, for any number of threads; node ids are the client numbers + 2.

    A node has one message at a time: one that is pushed while it works on another waits for that one's reply, so that
    it finds the context that this one left. Contexts are here, as bytes, whoever is alive.
    """

    def __init__(self, nodes: int, begin: Begin, sent: Callable[[Sequence[Message]], None]) -> None:
        """Nothing has been sent.

        Args:
            nodes: how many there are.
            begin: of the engine.
            sent: is told of messages before they go out.
        """
        super().__init__()
        self._nodes, self._begin, self._told = nodes, begin, sent
        self.received: Callable[[Batch], None] = lambda batch: None
        self._contexts: dict[int, State] = {}
        self._counts: Counter[int] = Counter()
        self._batches, self._waiting, self._replies = 0, dict[str, _Sent](), dict[str, Message]()
        self._lock = threading.RLock()
        self._asked: list[float] = []

    def get_node_ids(self) -> list[int]:
        """All nodes, in order.

        Raises:
            FedsimError: the ServerApp waits for more.
        """
        self._asked = [] if self._waiting else [*self._asked, time.monotonic()]
        if len(self._asked) > PATIENCE_CALLS and self._asked[-1] - self._asked[0] > PATIENCE_SECONDS:
            raise FedsimError(f"the ServerApp waits for more nodes than the {self._nodes} that there are; give --nodes")
        return list(range(FIRST_NODE, self._nodes + FIRST_NODE))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver messages; their ids, under which replies may be pulled."""
        with self._lock:
            names = []
            for wave in _waves(list(messages)):
                names += self._push(wave)
            return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies to messages that were pushed and not yet pulled, in the order in which they were; waits for them."""
        with self._lock:
            names = set(message_ids)
            for sent in _different(sent for name, sent in self._waiting.items() if name in names):
                self._receive(sent)
            return [self._replies.pop(name) for name in [name for name in self._replies if name in names]]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Deliver messages and wait for their replies.

        Args:
            messages: to nodes.
            timeout: seconds that a client may take for its message. As it counts from when a worker takes it up, it
                does not matter how many workers there are, or how busy.
        """
        sent = list(messages)
        if timeout is not None:
            for message in sent:
                message.metadata.ttl = min(message.metadata.ttl, timeout)
        with self._lock:
            return self.pull_messages(self.push_messages(sent))

    def close(self) -> None:
        """Have nobody answer what was pushed and not pulled."""
        for sent in _different(self._waiting.values()):
            sent.begun.drop()
        self._waiting.clear()

    def _push(self, messages: list[Message]) -> list[str]:
        """Begin messages to different nodes."""
        self._asked.clear()
        nodes = {message.metadata.dst_node_id for message in messages}
        for sent in _different(self._waiting.values()):
            if any(message.metadata.dst_node_id in nodes for message in sent.messages):
                self._receive(sent)
        for message in messages:
            node = message.metadata.dst_node_id
            self._counts[node] += 1
            stamp(message, f"{node}:{self._counts[node]}")
        self._told(messages)
        reachable = [message for message in messages if 0 <= client_number(message) < self._nodes]
        self._batches += 1
        chunks = [Chunk([message], self._context(client_number(message))) for message in reachable]
        begun = self._begin(chunks) if chunks else Begun(list)
        sent = _Sent(self._batches, messages, reachable, begun, time.perf_counter())
        names = [message.metadata.message_id for message in messages]
        self._waiting |= dict.fromkeys(names, sent)
        return names

    def _context(self, client: int) -> dict[int, State | None]:
        kept = self._contexts.get(client)
        return {} if kept is None else {client: kept}

    def _receive(self, sent: _Sent) -> None:
        """Wait for all replies to what was begun together, and keep them and the contexts."""
        seconds: dict[str, float] = {}
        answers: dict[str, Message] = {}
        for message, result in zip(sent.reachable, sent.begun.results(), strict=True):
            name = message.metadata.message_id
            (answers[name],) = result.replies
            seconds[name] = result.seconds[0] if result.seconds else 0.0
            self._contexts |= result.states
        for message in sent.messages:
            name = message.metadata.message_id
            reply = answers.get(name) or failure(
                message, DROPPED_OUT, f"there is no node {message.metadata.dst_node_id}"
            )
            stamp(reply, f"{name}:reply")
            self._replies[name] = reply
        names = [message.metadata.message_id for message in sent.messages]
        self._waiting = {name: other for name, other in self._waiting.items() if other is not sent}
        replies = [self._replies[name] for name in names]
        took = [seconds.get(name, 0.0) for name in names]
        self.received(Batch(sent.number, sent.messages, replies, took, time.perf_counter() - sent.since))


def _different(all_sent: Iterable[_Sent]) -> list[_Sent]:
    """Each once, in the order of their beginnings."""
    return sorted({sent.number: sent for sent in all_sent}.values(), key=lambda sent: sent.number)


def _waves(messages: list[Message]) -> Iterator[list[Message]]:
    """Messages in as many parts as the node has that gets most of them, so that none gets two in a part."""
    counts: Counter[int] = Counter()
    waves: list[list[Message]] = []
    for message in messages:
        node = message.metadata.dst_node_id
        if counts[node] == len(waves):
            waves.append([])
        waves[counts[node]].append(message)
        counts[node] += 1
    yield from waves
