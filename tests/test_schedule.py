"""Which chunk is done when: everything once and in order, large chunks first, whoever dies."""

from collections.abc import Iterator

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedsim.engine.inline import InlineEngine
from fedsim.engine.parcels import Store
from fedsim.engine.schedule import ATTEMPTS, HELD, Queue, next_worker
from fedsim.grid import FIRST_NODE, WORKER_LOST, Chunk, ChunkResult, client_number
from tests import small

Sizes = list[list[int]]
"""Rows of every client of every chunk; clients are numbered through."""
SIZES: st.SearchStrategy[Sizes] = st.lists(st.lists(st.integers(1, 100), min_size=1, max_size=4), max_size=20)
WORKERS = st.integers(1, 5)


@pytest.fixture(scope="module", autouse=True)
def _messages_can_be_made() -> None:
    """Flower makes none before a grid is there."""
    InlineEngine().grid(small.job())


class World:
    """A queue, and workers of which each holds up to two calls."""

    def __init__(self, sizes: Sizes, workers: int) -> None:
        self.rows = [row for chunk in sizes for row in chunk]
        numbers = iter(range(len(self.rows)))
        self.chunks = [Chunk([_message(next(numbers)) for _ in chunk], {}) for chunk in sizes]
        parcels = Store(lambda value: value).parcels(self.chunks)
        self.queue = Queue(self.chunks, parcels, lambda sent: self.rows[client_number(sent)])
        self.held: list[list[list[int]]] = [[] for _ in range(workers)]

    def hand_out(self) -> None:
        for calls in self.held:
            while len(self.queue) and len(calls) < 2:
                calls.append(self.queue.take(len(self.held)))

    def clients(self, number: int) -> list[int]:
        """Who is in a chunk, as the worker sees it."""
        parcel = self.queue.parcels([number])[0]
        return [client_number(message) for message in parcel.opened({}).messages]

    def finish(self, worker: int) -> None:
        for number in self.held[worker].pop(0):
            messages = self.queue.parcels([number])[0].opened({}).messages
            self.queue.finish(number, ChunkResult(messages, {}))

    def kill(self, worker: int) -> None:
        (first, *others), self.held[worker] = self.held[worker], []
        for numbers in reversed(others):
            self.queue.again(numbers)
        self.queue.lose(first, "killed")

    def lost(self) -> set[int]:
        """Clients whose reply is that they were lost; every chunk must have one reply a client, in order."""
        assert not self.queue.unfinished
        replies = [reply for result in self.queue.results() for reply in result.replies]
        errors = [reply.has_error() and reply.error.code == WORKER_LOST for reply in replies]
        nodes = [
            reply.metadata.src_node_id if error else reply.metadata.dst_node_id
            for reply, error in zip(replies, errors, strict=True)
        ]
        assert nodes == [FIRST_NODE + client for client in range(len(self.rows))]
        return {client for client, error in enumerate(errors) if error}


def _message(client: int) -> Message:
    return Message(RecordDict({"config": ConfigRecord({"reply": "sum"})}), client + FIRST_NODE, "train")


def _busy(world: World) -> Iterator[list[int]]:
    """Workers that have something to do, for as long as any has."""
    while True:
        world.hand_out()
        busy = [worker for worker, calls in enumerate(world.held) if calls]
        if not busy:
            return
        yield busy


@given(SIZES, WORKERS, st.data())
def test_nothing_is_lost_when_workers_die_now_and_then(sizes: Sizes, workers: int, data: st.DataObject) -> None:
    """Whichever die whenever, less often than a chunk is tried: each chunk is done, and replies are in order."""
    world, deaths = World(sizes, workers), ATTEMPTS - 1
    for busy in _busy(world):
        worker = data.draw(st.sampled_from(busy))
        if deaths and data.draw(st.booleans()):
            deaths -= 1
            world.kill(worker)
        else:
            world.finish(worker)
    assert world.lost() == set()


@given(SIZES, WORKERS, st.data())
def test_a_client_that_kills_is_lost_alone(sizes: Sizes, workers: int, data: st.DataObject) -> None:
    """However many there are; the others of their chunks and calls are not."""
    world = World(sizes, workers)
    deadly = data.draw(st.sets(st.integers(0, max(0, len(world.rows) - 1)), max_size=3)) if world.rows else set()
    for busy in _busy(world):
        worker = data.draw(st.sampled_from(busy))
        working_on = {client for number in world.held[worker][0] for client in world.clients(number)}
        (world.kill if working_on & deadly else world.finish)(worker)
    assert world.lost() == deadly


@given(SIZES, WORKERS)
def test_large_chunks_come_first_and_calls_shrink(sizes: Sizes, workers: int) -> None:
    """A large chunk that comes last would keep one worker busy while the others wait."""
    world = World(sizes, workers)
    order: list[int] = []
    while len(world.queue):
        left = sum(map(sum, sizes)) - sum(sum(sizes[number]) for number in order)
        numbers = world.queue.take(workers)
        rows = sum(sum(sizes[number]) for number in numbers)
        assert len(numbers) == 1 or rows <= left / (2 * workers) + sum(sizes[numbers[-1]])
        order += numbers
    assert [sum(sizes[number]) for number in order] == sorted(map(sum, sizes), reverse=True)


def test_few_calls_for_many_equal_chunks() -> None:
    """A call costs as much as a small client: 16 chunks on two workers take 9, not 16."""
    world, calls = World([[5] * 4] * 16, 2), 0
    while len(world.queue):
        world.queue.take(2)
        calls += 1
    assert calls <= 9


@given(st.lists(st.integers(1, 100), max_size=30), WORKERS)
def test_to_hold_a_second_call_makes_nobody_wait(seconds: list[int], workers: int) -> None:
    """Where calls take as long as expected, all is done when it would be if whoever is idle took the next call."""
    free = [0.0] * workers
    for each in seconds:
        free[free.index(min(free))] += each
    assert max(free) == _last_end(seconds, workers)


def _last_end(seconds: list[int], workers: int) -> float:
    """When the last call ends of workers that are given theirs by `next_worker`."""
    waiting, now = list(seconds), 0.0
    since, held = [0.0] * workers, [[] for _ in range(workers)]  # type: tuple[list[float], list[list[float]]]
    while True:
        while waiting and (worker := next_worker(now, since, held)) is not None:
            if not held[worker]:
                since[worker] = now
            held[worker].append(float(waiting.pop(0)))
            assert len(held[worker]) <= HELD
        busy = [worker for worker in range(workers) if held[worker]]
        if not busy:
            return now
        worker = min(busy, key=lambda worker: since[worker] + held[worker][0])
        now = since[worker] = since[worker] + held[worker].pop(0)


def test_a_worker_that_takes_longer_than_expected_is_not_given_more() -> None:
    """It may hang; one that is idle, or busy as expected, comes first."""
    assert next_worker(10.0, [0.0, 0.0], [[1.0], []]) == 1
    assert next_worker(10.0, [0.0, 9.0], [[1.0], [4.0]]) == 1
    assert next_worker(10.0, [0.0, 9.0], [[1.0], [4.0, 1.0]]) is None
    assert next_worker(10.0, [0.0, 9.0], [[12.0], [4.0]]) == 0
