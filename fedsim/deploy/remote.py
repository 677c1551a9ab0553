"""A run's clients as nodes behind Flower's Grid, for the loop that knows clients by number.

Messages go to the nodes that were chosen when the run began, under Flower's node ids, with what a node needs to know
of the run. Whatever comes back, or does not, is one reply for each message: a node that cannot be reached, is late,
refuses, or answers something else has failed in that round, and is asked again in the next.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.arrays import sendable
from fedsim.deploy.replies import Expected, Unsound, counter_of, plain
from fedsim.errors import DeployError, one_line
from fedsim.grid import (
    CLIENT_FAILED,
    WORKER_LOST,
    Begun,
    Chunk,
    ChunkResult,
    NumberedGrid,
    client_number,
    failure,
    setting,
)
from fedsim.job import Job
from fedsim.local import Work
from fedsim.states import ClientStates
from fedsim.worker import chunk_program

PAUSE = 0.2
"""Seconds between two looks for replies."""
MARGIN = 60.0
"""Seconds that a message may take beside the work: the way there and back, and the start of a process."""
USUAL_LIMIT = 3600.0
"""Seconds that a node may work where the scenario has no cohort.client_timeout."""
PATIENCE = 120.0
"""Seconds to wait where no node is there at all."""
_ATTEMPTS = 3  # to open a reply
_AT_ONCE = 10  # messages that are asked for in a pause; of more the pause is longer
_AWAY, _REFUSED = "it is not connected", "the SuperLink did not take its message"


class Member(NamedTuple):
    """A node of a run.

    Attributes:
        name: as the coordinator calls it.
        node: Flower's id of it.
    """

    name: str
    node: int


class Counters(Protocol):
    """Where the largest counter of every node's ledger is kept, by the node's name."""

    def counter(self, name: str) -> int:
        """The largest that was seen; 0 before the first."""
        ...

    def saw(self, name: str, counter: int) -> None:
        """Keep one."""
        ...


class Silence(NamedTuple):
    """In the place of a reply that did not come."""

    reason: str


@dataclass
class _Sent:
    """A message on its way.

    Attributes:
        name: Flower's of the message; None where it could not be sent.
        node: whom it is for.
        until: when it counts as lost, by this process' clock.
        answer: what came of it.
    """

    name: str | None
    node: int
    until: float
    answer: Message | Silence | None = None
    failures: int = 0


@dataclass
class Post:
    """Sends messages over Flower's Grid and collects replies, for ever patient with nobody.

    Attributes:
        grid: Flower's.
        limit: seconds that a node may work on a message.
        pause: seconds between two looks.
        patience: seconds to wait for the first node to come back, where all are away.
        margin: seconds that a message may take beside the work.
    """

    grid: Grid
    limit: float = USUAL_LIMIT
    pause: float = PAUSE
    patience: float = PATIENCE
    margin: float = MARGIN
    _waiting: Counter[int] = field(default_factory=Counter)

    def connected(self) -> set[int]:
        """Ids of the nodes that are there now."""
        return set(self.grid.get_node_ids())

    def send(self, messages: Sequence[Message]) -> list[_Sent]:
        """Send messages; one to a node that is away is lost at once, unless all are: then it waits a while for one.

        Raises:
            DeployError: the SuperLink does not take them.
        """
        asked = {message.metadata.dst_node_id for message in messages}
        waited_for(lambda: len(asked & self.connected()), 1, self.patience, self.pause)
        there = self.connected()
        going = [message for message in messages if message.metadata.dst_node_id in there]
        try:
            names = iter(list(self.grid.push_messages(going)) if going else [])
        except Exception as error:
            raise DeployError(f"the SuperLink takes no messages: {one_line(error)}") from error
        return [
            self._sent(message, next(names, None) if message.metadata.dst_node_id in there else None, there)
            for message in messages
        ]

    def _sent(self, message: Message, name: str | None, there: Collection[int]) -> _Sent:
        node = message.metadata.dst_node_id
        if name is None:
            return _Sent(None, node, 0.0, Silence(_REFUSED if node in there else _AWAY))
        self._waiting[node] += 1
        return _Sent(name, node, time.monotonic() + self._waiting[node] * self.limit + self.margin)

    def answers(self, sent: Sequence[_Sent]) -> list[Message | Silence]:
        """What came of messages, in order; waits for it."""
        while waiting := [each for each in sent if each.answer is None]:
            for each in waiting:
                self._look(each)
            if any(each.answer is None for each in waiting):
                time.sleep(self.pause * max(1.0, len(waiting) / _AT_ONCE))
        self.drop(sent)
        return [each.answer or Silence(_AWAY) for each in sent]

    def drop(self, sent: Sequence[_Sent]) -> None:
        """Wait for these no more."""
        for each in sent:
            if each.name is not None:
                self._waiting[each.node] -= 1
                each.name = None

    def _look(self, sent: _Sent) -> None:
        """See whether a reply is there. Each is fetched alone: one that cannot be opened spoils no other."""
        assert sent.name is not None
        try:
            replies = list(self.grid.pull_messages([sent.name]))
        except Exception as error:  # a node's bytes may be anything; a SuperLink that is gone ends this process
            sent.failures += 1
            if sent.failures >= _ATTEMPTS:
                sent.answer = Silence(f"its reply cannot be opened ({type(error).__name__})")
            return
        found = next((reply for reply in replies if reply.metadata.reply_to_message_id == sent.name), None)
        if found is not None:
            sent.answer = found
        elif time.monotonic() > sent.until:
            sent.answer = Silence(f"it has not answered in {self.limit:g} s (cohort.client_timeout)")


class RemoteGrid(NumberedGrid):
    """Nodes as the clients of a run, by number; what is measured centrally is measured here."""

    sums = False

    def __init__(
        self,
        job: Job,
        post: Post,
        members: Sequence[Member],
        told: Mapping[str, str],
        counters: Counters,
        states: ClientStates | None = None,
    ) -> None:
        """A grid of these nodes.

        Args:
            job: the server's.
            post: brings messages to them.
            members: [K] the nodes, by number.
            told: with every message: the assignment's digest, the run, fedsim's version.
            counters: of their ledgers.
            states: of clients, which keep them themselves: nothing is ever in it.
        """
        super().__init__(len(members), states, run=post.grid.run)
        work = Work(job)
        self._expected, self._here = Expected.of(work), chunk_program(work)
        self._post, self._members, self._told, self._counters = post, members, told, counters
        self._rows = job.federation.train_rows

    def begin(self, chunks: Sequence[Chunk]) -> Begun:
        """Send every message to its node."""
        messages = [message for chunk in chunks for message in chunk.messages]
        if messages[0].metadata.message_type == "evaluate.central":
            return Begun(lambda: [self._here(chunk) for chunk in chunks])
        travelling: dict[int, ArrayRecord] = {}  # one for all messages, so that Flower hashes and sends it once
        sent = self._post.send([self._addressed(message, travelling) for message in messages])

        def results() -> list[ChunkResult]:
            answers = iter(self._post.answers(sent))
            return [ChunkResult([self._judged(each, answers) for each in chunk.messages], {}) for chunk in chunks]

        return Begun(results, lambda: self._post.drop(sent))

    def _addressed(self, message: Message, travelling: dict[int, ArrayRecord]) -> Message:
        """A message as it travels, with records of `travelling` in the place of those that were there before."""
        number = client_number(message)
        name, node = self._members[number]
        content = RecordDict()
        for key, record in message.content.items():
            if isinstance(record, ArrayRecord) and id(record) not in travelling:
                travelling[id(record)] = sendable(RecordDict({key: record})).array_records[key]
            content[key] = travelling.get(id(record), record)
        return letter(
            node,
            message.metadata.message_type,
            content,
            {
                **self._told,
                "number": number,
                "clients": self.population,
                "rows": int(self._rows[number]),
                "counter": self._counters.counter(name),
            },
        )

    def _judged(self, message: Message, answers: Iterator[Message | Silence]) -> Message:
        """The reply to a message, of what its node answered."""
        number, answer = client_number(message), next(answers)
        name, node = self._members[number]
        what = f"round {setting(message, 'server-round', 0)}, {name}"
        if isinstance(answer, Silence):
            return failure(message, WORKER_LOST, f"{what}: {answer.reason}")
        if answer.has_error():
            return failure(message, CLIENT_FAILED, f"{what}: {told_by(answer, name)}")
        if answer.metadata.src_node_id != node:
            return failure(message, CLIENT_FAILED, f"{what}: another node has answered in its place")
        if (counter := counter_of(answer)) is not None:
            self._counters.saw(name, counter)
        try:
            return Message(self._expected.content(message, number, answer), reply_to=message)
        except Unsound as error:
            return failure(message, CLIENT_FAILED, f"{what}: {error}")


@dataclass(frozen=True)
class RemoteWorkforce:
    """The nodes of a run, as the loop asks for them.

    Attributes:
        post, members, told, counters: as of `RemoteGrid`.
    """

    post: Post
    members: Sequence[Member]
    told: Mapping[str, str]
    counters: Counters

    @property
    def description(self) -> str:
        """Who works."""
        return f"deployed, {len(self.members)} node{'s' if len(self.members) != 1 else ''}"

    def grid(self, job: Job, states: ClientStates | None = None) -> NumberedGrid:
        """A grid of the nodes."""
        return RemoteGrid(job, self.post, self.members, self.told, self.counters, states)


def letter(node: int, kind: str, content: RecordDict, told: Mapping[str, str | int]) -> Message:
    """A message to a node, with something more in its "config"."""
    config = content.get("config")
    before = dict(config) if isinstance(config, ConfigRecord) else {}
    return Message(RecordDict({**content, "config": ConfigRecord({**before, **told})}), node, kind)


def told_by(answer: Message, name: str) -> str:
    """What a node says of its failure, or Flower in its place, in one line."""
    return plain(answer.error.reason).removeprefix(f"{name}: ") or f"Flower's error {answer.error.code}"


def waited_for(there: Callable[[], int], enough: int, seconds: float, pause: float = PAUSE) -> bool:
    """Wait until enough nodes are there; whether they are.

    Args:
        there: how many are.
        enough: how many there should be.
        seconds: for which to wait.
        pause: seconds between two looks.
    """
    until = time.monotonic() + seconds
    while there() < enough:
        if time.monotonic() > until:
            return False
        time.sleep(pause)
    return True
