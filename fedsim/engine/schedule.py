"""Which chunk is done when: large ones first, several in a call, and those of a dead worker again."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from flwr.app import Message

from fedsim.engine.parcels import Parcel, alone
from fedsim.grid import WORKER_LOST, Chunk, ChunkResult, failure

ATTEMPTS = 3
"""How often a chunk is given to a worker before its clients count as failed."""
SHARES = 2
"""Into how many calls the chunks that wait would be dealt to each worker; the more, the more even is the end."""

HELD = 2
"""Calls that a worker holds at most: what it was not given, another may do."""


def next_worker(now: float, since: Sequence[float], held: Sequence[Sequence[float]]) -> int | None:
    """Who gets the next call: the worker that should be done first; None while that one holds enough.

    Args:
        now: the time, in seconds.
        since: when each worker began the first of its calls.
        held: for each worker the seconds that each of its calls is expected to take, in order.
    """

    def done(worker: int) -> tuple[float, int]:
        calls = held[worker]
        left = abs(since[worker] + calls[0] - now) if calls else 0.0  # who is late may be so as long again
        return left + sum(calls[1:]), len(calls)

    first = min(range(len(held)), key=done)
    return first if len(held[first]) < HELD else None


class Queue:
    """Chunks on their way to workers, and what came of them.

    A worker is given several chunks in one call, many at first and one by one towards the end, since a call costs as
    much as training a small client.
    """

    def __init__(self, chunks: Sequence[Chunk], parcels: Sequence[Parcel], cost: Callable[[Message], float]) -> None:
        """Nothing is done yet.

        Args:
            chunks: what is to be done.
            parcels: the same chunks as they travel.
            cost: of a message; how long its work takes, in any unit.
        """
        self._asked, self._chunks, self._parcels = len(chunks), list(chunks), list(parcels)
        self._costs = [sum(map(cost, chunk.messages)) for chunk in chunks]
        self._waiting = deque(sorted(range(len(chunks)), key=lambda number: -self._costs[number]))
        self._parts: dict[int, range] = {}
        self._attempts = [0] * len(chunks)
        self._done: dict[int, ChunkResult] = {}

    def __len__(self) -> int:
        """How many chunks wait for a worker."""
        return len(self._waiting)

    def take(self, workers: int) -> list[int]:
        """The chunks of the next call; one that was lost with its worker goes alone, as it may be what killed it."""
        share = self.cost(self._waiting) / (SHARES * workers)
        numbers = [self._waiting.popleft()]
        taken, suspect = self._costs[numbers[0]], self._attempts[numbers[0]]
        while self._waiting and not (suspect or self._attempts[self._waiting[0]]):
            if taken + self._costs[self._waiting[0]] / 2 > share:
                break
            numbers.append(self._waiting.popleft())
            taken += self._costs[numbers[-1]]
        return numbers

    def parcels(self, numbers: Sequence[int]) -> list[Parcel]:
        """What travels of these chunks."""
        return [self._parcels[number] for number in numbers]

    def cost(self, numbers: Iterable[int]) -> float:
        """Of these chunks together."""
        return sum(self._costs[number] for number in numbers)

    def clients(self, numbers: Sequence[int]) -> int:
        """How many messages these chunks have."""
        return sum(len(self._chunks[number].messages) for number in numbers)

    def finish(self, number: int, result: ChunkResult) -> None:
        """Take a chunk's result."""
        self._done[number] = result

    @property
    def unfinished(self) -> bool:
        """Whether any chunk is still to be done."""
        return len(self._done) + len(self._parts) < len(self._chunks)

    def again(self, numbers: Sequence[int]) -> None:
        """Have chunks done again, before all others, that a worker held when it died."""
        self._waiting.extendleft(reversed(numbers))

    def lose(self, numbers: Sequence[int], reason: str) -> None:
        """Have the chunks done again that a worker worked on when it died, if they are not why it did."""
        for number in numbers:
            self._attempts[number] += 1
        if len(numbers) == 1 and self._attempts[numbers[0]] >= ATTEMPTS:
            self._give_up(numbers[0], reason)
        else:
            self.again(numbers)

    def results(self) -> list[ChunkResult]:
        """What came of all chunks, in the order in which they were asked."""
        return [self._result(number) for number in range(self._asked)]

    def _result(self, number: int) -> ChunkResult:
        if number not in self._parts:
            return self._done[number]
        parts = [self._done[part] for part in self._parts[number]]
        states = {client: state for part in parts for client, state in part.states.items()}
        return ChunkResult([reply for part in parts for reply in part.replies], states)

    def _give_up(self, number: int, reason: str) -> None:
        """Of a chunk that has ended several workers try each client alone; a client that does so by itself is lost."""
        chunk = self._chunks[number]
        if len(chunk.messages) == 1:
            self._done[number] = _lost(chunk, reason)
            return
        self._parts[number] = range(len(self._chunks), len(self._chunks) + len(chunk.messages))
        self._waiting.extendleft(self._parts[number])
        self._chunks += [Chunk([message], {}) for message in chunk.messages]
        self._parcels += [alone(self._parcels[number], place) for place in range(len(chunk.messages))]
        self._costs += [self._costs[number] / len(chunk.messages)] * len(chunk.messages)
        self._attempts += [ATTEMPTS - 1] * len(chunk.messages)


def _lost(chunk: Chunk, reason: str) -> ChunkResult:
    text = f"the worker died {ATTEMPTS} times while it ran this client's chunk: {reason}"
    return ChunkResult([failure(message, WORKER_LOST, text) for message in chunk.messages], {})
