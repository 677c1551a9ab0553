"""Clients on Ray: persistent actors that are started once and take chunks as they become idle.

A federation is placed in Ray's object store once and mapped by every worker; a round's model is placed
there once. A worker that dies is replaced and its chunk run again, which gives the same bits.
"""

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedsim.data.federation import Federation
from fedsim.flower import chunk_program
from fedsim.grid import WORKER_LOST, Chunk, ChunkProgram, ChunkResult, SimulatedGrid, failure, with_content
from fedsim.job import Job
from fedsim.states import State

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# What a worker frees it soon needs again: it keeps its memory instead of asking the system anew for every client.
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**30))
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**25))

import ray

ATTEMPTS = 3
"""How often a chunk is given to a worker before its clients count as failed."""


class Flat(NamedTuple):
    """An array as Ray maps it without a copy: the bytes that Flower would send, as a NumPy array."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: np.ndarray


class Parcel(NamedTuple):
    """A chunk without its arrays; `records` says which object of the store belongs where."""

    messages: list[Message]
    records: list[dict[str, "ray.ObjectRef[Any]"]]
    states: Mapping[int, State | None]


class Returned(NamedTuple):
    """A chunk's result with its arrays apart, so that Ray maps them instead of pickling them."""

    replies: list[Message]
    records: list[dict[str, dict[str, Flat]]]
    states: Mapping[int, State]

    def unpacked(self) -> ChunkResult:
        """The replies with their arrays back in place."""
        for reply, records in zip(self.replies, self.records, strict=True):
            for key, flat in records.items():
                reply.content[key] = _unpack(flat)
        return ChunkResult(self.replies, self.states)


class Placed(NamedTuple):
    """A record and where it lies in the object store; holding the record keeps its `id` its own."""

    record: ArrayRecord
    ref: "ray.ObjectRef[Any]"


class Store:
    """Records in Ray's object store, each placed once for as long as calls go on naming it."""

    def __init__(self) -> None:
        self._placed: dict[int, Placed] = {}

    def parcels(self, chunks: Sequence[Chunk]) -> list[Parcel]:
        """Chunks without their arrays; what the last call placed and this one does not name is let go."""
        used: dict[int, Placed] = {}
        parcels = [self._parcel(chunk, used) for chunk in chunks]
        self._placed = used
        return parcels

    def _parcel(self, chunk: Chunk, used: dict[int, Placed]) -> Parcel:
        messages, records = [], []
        for message in chunk.messages:
            refs, content = {}, RecordDict()
            for key, record in message.content.items():
                if isinstance(record, ArrayRecord):
                    placed = used.get(id(record)) or self._placed.get(id(record))
                    used[id(record)] = placed or Placed(record, ray.put(_pack(record)))
                    refs[key] = used[id(record)].ref
                else:
                    content[key] = record
            messages.append(with_content(message, content))
            records.append(refs)
        return Parcel(messages, records, chunk.states)


class Worker:
    """An actor: does the work of one job, chunk after chunk, on one thread."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._program: ChunkProgram | None = None
        self._records: dict[str, ArrayRecord] = {}

    def install(self, job: Job, federation: Federation) -> None:
        """Build model and algorithm of a job whose arrays come from the object store."""
        from fedsim.local import Work

        self._program = chunk_program(Work(replace(job, federation=federation)))
        self._records.clear()

    def run(self, parcel: Parcel) -> Returned:
        """Do one chunk."""
        assert self._program is not None
        wanted = {ref.hex(): ref for records in parcel.records for ref in records.values()}
        known = {name: record for name, record in self._records.items() if name in wanted}
        self._records = known | {name: _unpack(ray.get(ref)) for name, ref in wanted.items() if name not in known}
        for message, records in zip(parcel.messages, parcel.records, strict=True):
            for key, ref in records.items():
                message.content[key] = self._records[ref.hex()]
        result = self._program(Chunk(parcel.messages, parcel.states))
        packed = [_taken_out(reply) for reply in result.replies]
        return Returned(result.replies, packed, result.states)


class RayEngine:
    """Workers of this machine; started once, used for any number of jobs."""

    def __init__(self, workers: int) -> None:
        self._owned = not ray.is_initialized()
        if self._owned:
            _start_ray(workers)
        self.workers = workers
        self.description = f"Ray, {workers} worker{'s' if workers != 1 else ''}"
        self._actor: Any = ray.remote(num_cpus=1)(Worker)
        self.actors: list[Any] = [self._actor.remote() for _ in range(workers)]

    def grid(self, job: Job) -> SimulatedGrid:
        """A grid that does a job's work on these workers."""
        return RayGrid(self, job)

    def start_worker(self) -> Any:
        """A new worker, in place of one that died."""
        return self._actor.remote()

    def close(self) -> None:
        """Stop the workers, and Ray if it was started here."""
        for actor in self.actors:
            with suppress(Exception):
                ray.kill(actor)
        self.actors = []
        if self._owned and ray.is_initialized():
            ray.shutdown()


class RayGrid(SimulatedGrid):
    """Chunks to idle workers, those with most messages first."""

    def __init__(self, engine: RayEngine, job: Job) -> None:
        super().__init__(job.federation.clients)
        self._engine = engine
        self._store = Store()
        self._federation = ray.put(job.federation)
        self._job = ray.put(replace(job, federation=_without_rows(job.federation)))
        ray.get([self._install(actor) for actor in engine.actors])

    def _install(self, actor: Any) -> Any:
        return actor.install.remote(self._job, self._federation)

    def run_chunks(self, chunks: Sequence[Chunk], timeout: float | None) -> list[ChunkResult]:
        """Keep every worker busy until all chunks are done."""
        return Dispatch(self._engine, self._install, chunks, self._store.parcels(chunks)).results()


class Dispatch:
    """Chunks on their way to workers, and what came back.

    A worker holds the chunk that it works on and, while more are waiting than there are workers, the next one
    too, so that it need not wait for the driver between small chunks.
    """

    def __init__(
        self,
        engine: RayEngine,
        install: Callable[[Any], Any],
        chunks: Sequence[Chunk],
        parcels: Sequence[Parcel],
    ) -> None:
        self._engine, self._install, self._chunks, self._parcels = engine, install, chunks, parcels
        self._waiting = deque(sorted(range(len(chunks)), key=lambda number: -len(chunks[number].messages)))
        self._held: list[dict[Any, int]] = [{} for _ in engine.actors]
        self._attempts = [0] * len(chunks)
        self._lost: dict[int, ChunkResult] = {}

    def results(self) -> list[ChunkResult]:
        """Hand out all chunks and wait for them; results in the order of the chunks."""
        returned: dict[int, Returned] = {}
        while self._waiting or any(self._held):
            self._hand_out()
            (done,), _ = ray.wait([ref for held in self._held for ref in held], num_returns=1)
            worker = next(worker for worker, held in enumerate(self._held) if done in held)
            try:
                result = ray.get(done)
            except ray.exceptions.RayActorError as error:
                self._replace(worker, str(error))
            else:
                returned[self._held[worker].pop(done)] = result
        unpacked = {number: result.unpacked() for number, result in returned.items()} | self._lost
        return [unpacked[number] for number in range(len(self._chunks))]

    def _hand_out(self) -> None:
        for depth in (1, 2):
            for worker, held in enumerate(self._held):
                enough = depth == 1 or len(self._waiting) > len(self._held)
                if self._waiting and enough and len(held) < depth:
                    number = self._waiting.popleft()
                    held[self._engine.actors[worker].run.remote(self._parcels[number])] = number

    def _replace(self, worker: int, reason: str) -> None:
        """Start a worker in the place of one that died; the chunk it worked on may be what killed it."""
        numbers = list(self._held[worker].values())
        self._held[worker].clear()
        self._engine.actors[worker] = actor = self._engine.start_worker()
        ray.get(self._install(actor))
        self._attempts[numbers[0]] += 1
        if self._attempts[numbers[0]] == ATTEMPTS:
            self._lost[numbers[0]] = _lost(self._chunks[numbers[0]], reason)
            numbers = numbers[1:]
        self._waiting.extendleft(reversed(numbers))


def _start_ray(workers: int) -> None:
    """Ray without dashboard, log lines or a look at other clusters on this machine."""
    with _interrupts_deferred():
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done: half-started, Ray could not stop all that it started."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread is interrupted
        yield
        return
    pressed = threading.Event()
    usual = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if pressed.is_set():
        ray.shutdown()
        raise KeyboardInterrupt


def _lost(chunk: Chunk, reason: str) -> ChunkResult:
    text = f"the worker died {ATTEMPTS} times while it ran this client's chunk: {' '.join(reason.split())[:200]}"
    return ChunkResult([failure(message, WORKER_LOST, text) for message in chunk.messages], {})


def _taken_out(reply: Message) -> dict[str, dict[str, Flat]]:
    """A reply's arrays, which it then has no longer."""
    content = {} if reply.has_error() else dict(reply.content.items())
    arrays = {key: _pack(record) for key, record in content.items() if isinstance(record, ArrayRecord)}
    for key in arrays:
        del reply.content[key]
    return arrays


def _pack(record: ArrayRecord) -> dict[str, Flat]:
    return {
        name: Flat(array.dtype, tuple(array.shape), array.stype, np.frombuffer(array.data, dtype=np.uint8))
        for name, array in record.items()
    }


def _unpack(flat: Mapping[str, Flat]) -> ArrayRecord:
    return ArrayRecord(
        {name: Array(each.dtype, each.shape, each.stype, each.data.tobytes()) for name, each in flat.items()}
    )


def _without_rows(federation: Federation) -> Federation:
    """The federation's description alone; its arrays travel through the object store."""
    empty = federation.x[:0], federation.y[:0]
    return replace(federation, x=empty[0], y=empty[1], central={})
