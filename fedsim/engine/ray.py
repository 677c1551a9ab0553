"""Clients on Ray: persistent actors that are started once and take chunks as they become idle.

A federation is placed in Ray's object store once and mapped by every worker; a round's model is placed
there once. A worker that dies is replaced and its chunk run again, which gives the same bits.
"""

import gc
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord

from fedsim.data.federation import Federation
from fedsim.engine.parcels import Flat, Parcel, Returned, Store, alone, arrays_of_state, taken_out, tensors, unpack
from fedsim.errors import FedsimError
from fedsim.grid import (
    WORKER_LOST,
    Chunk,
    ChunkProgram,
    ChunkResult,
    SimulatedGrid,
    failure,
)
from fedsim.job import Job
from fedsim.signals import deferred
from fedsim.states import ClientStates
from fedsim.worker import chunk_program

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_task_events_report_interval_ms", "0")  # a history of calls, for the absent dashboard
# On one machine nobody restarts Ray's store of facts: what waits for it once the driver was killed waits in vain.
os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
# Ray would run workers at nice 15, and whatever else the machine does would slow them down several times.
os.environ.setdefault("RAY_worker_niceness", "0")
# What a worker frees it soon needs again: it keeps its memory instead of asking the system anew for every client.
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**30))
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**25))
# Vectors on large pages: a small net's step touches some thousand pages of 4 KiB, more than a core remembers.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

import ray

ATTEMPTS = 3
"""How often a chunk is given to a worker before its clients count as failed."""
GRACE_SECONDS = 60.0
"""Beyond its clients' time limits, after which a worker counts as stuck in native code."""


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
        gc.collect()
        gc.freeze()  # what is loaded by now stays: searching it again and again would cost more than many a client

    def run(self, parcels: Sequence[Parcel], names: Sequence[str], *arrays: Mapping[str, Flat]) -> list[Returned]:
        """Do some chunks, one after another.

        Args:
            parcels: the chunks.
            names: of the arrays that come along; the chunks need these, or those of the calls since some last came.
            arrays: from the object store, one for each name.
        """
        if names:
            self._records = {name: unpack(flat) for name, flat in zip(names, arrays, strict=True)}
        return [self._run(parcel) for parcel in parcels]

    def _run(self, parcel: Parcel) -> Returned:
        assert self._program is not None
        for message, records in zip(parcel.messages, parcel.records, strict=True):
            for key, name in records.items():
                message.content[key] = self._records[name]
        states = {client: tensors(state) if state is not None else None for client, state in parcel.states.items()}
        result = self._program(Chunk(parcel.messages, states))
        packed = [taken_out(reply) for reply in result.replies]
        kept = {client: arrays_of_state(state) for client, state in result.states.items()}
        return Returned(result.replies, packed, kept)


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

    def grid(self, job: Job, states: ClientStates | None = None) -> SimulatedGrid:
        """A grid that does a job's work on these workers."""
        return RayGrid(self, job, states)

    def start_worker(self) -> Any:
        """A new worker, in place of one that died."""
        return self._actor.remote()

    def close(self) -> None:
        """Stop the workers, and Ray if it was started here."""
        with deferred():
            for actor in self.actors:
                with suppress(Exception):
                    ray.kill(actor)
            self.actors = []
            if self._owned and ray.is_initialized():
                ray.shutdown()


class RayGrid(SimulatedGrid):
    """Chunks to idle workers, those with most messages first."""

    def __init__(self, engine: RayEngine, job: Job, states: ClientStates | None = None) -> None:
        super().__init__(job.federation.clients, states)
        self._engine = engine
        self._client_timeout = job.scenario.cohort.client_timeout
        self._store = Store(ray.put)
        self._federation = ray.put(job.federation)
        self._job = ray.put(replace(job, federation=_without_rows(job.federation)))
        ray.get([self._install(actor) for actor in engine.actors])

    def _install(self, actor: Any) -> Any:
        return actor.install.remote(self._job, self._federation)

    def run_chunks(self, chunks: Sequence[Chunk], timeout: float | None) -> list[ChunkResult]:
        """Keep every worker busy until all chunks are done."""
        parcels = self._store.parcels(chunks)
        limit = self._client_timeout
        return Dispatch(self._engine, self._install, chunks, parcels, self._store.refs, limit).results()


class Dispatch:
    """Chunks on their way to workers, and what came back.

    A worker is given several chunks in one call, many at first and one by one towards the end, since a call costs
    as much as training a small client. It holds the call that it works on and, while more are waiting, the next
    one too, so that it need not wait for the driver in between.
    """

    def __init__(
        self,
        engine: RayEngine,
        install: Callable[[Any], Any],
        chunks: Sequence[Chunk],
        parcels: Sequence[Parcel],
        records: Mapping[str, "ray.ObjectRef[Any]"],
        client_timeout: float | None,
    ) -> None:
        self._engine, self._install = engine, install
        self._asked, self._chunks, self._parcels = len(chunks), list(chunks), list(parcels)
        self._parts: dict[int, range] = {}
        self._records, self._client_timeout = records, client_timeout
        self._waiting = deque(sorted(range(len(chunks)), key=lambda number: -len(chunks[number].messages)))
        self._held: list[dict[Any, list[int]]] = [{} for _ in engine.actors]
        self._knows = [False] * len(engine.actors)
        self._since = [0.0] * len(engine.actors)
        self._attempts = [0] * len(chunks)
        self._done: dict[int, ChunkResult] = {}

    def results(self) -> list[ChunkResult]:
        """Hand out all chunks and wait for them; results in the order of the chunks."""
        while self._waiting or any(self._held):
            self._hand_out()
            done, _ = ray.wait([ref for held in self._held for ref in held], num_returns=1, timeout=self._patience())
            for ref in done:
                self._take_back(ref)
            self._end_stuck()
        return [self._result(number) for number in range(self._asked)]

    def _result(self, number: int) -> ChunkResult:
        if number not in self._parts:
            return self._done[number]
        parts = [self._done[part] for part in self._parts[number]]
        states = {client: state for part in parts for client, state in part.states.items()}
        return ChunkResult([reply for part in parts for reply in part.replies], states)

    def _take_back(self, ref: Any) -> None:
        worker = next(worker for worker, held in enumerate(self._held) if ref in held)
        try:
            returned = ray.get(ref)
        except ray.exceptions.RayActorError as error:
            self._replace(worker, str(error))
        else:
            self._since[worker] = time.monotonic()
            for number, result in zip(self._held[worker].pop(ref), returned, strict=True):
                self._done[number] = result.unpacked()

    def _patience(self) -> float | None:
        """Seconds after which some worker may have to be ended."""
        return None if self._client_timeout is None else max(1.0, min(self._client_timeout, GRACE_SECONDS))

    def _end_stuck(self) -> None:
        """End workers that do not even heed their clients' time limit; they are replaced as if they had died."""
        if self._client_timeout is None:
            return
        for worker, held in enumerate(self._held):
            clients = sum(len(self._chunks[number].messages) for number in next(iter(held.values()), []))
            if held and time.monotonic() - self._since[worker] > clients * self._client_timeout + GRACE_SECONDS:
                ray.kill(self._engine.actors[worker])
                self._replace(worker, "it did not heed cohort.client_timeout")

    def _hand_out(self) -> None:
        for depth in (1, 2):
            for worker, held in enumerate(self._held):
                enough = depth == 1 or len(self._waiting) > len(self._held)
                if self._waiting and enough and len(held) < depth:
                    numbers = self._next()
                    if not held:
                        self._since[worker] = time.monotonic()
                    held[self._call(worker, [self._parcels[number] for number in numbers])] = numbers

    def _next(self) -> list[int]:
        """The chunks of the next call; one that was lost with its worker goes alone, as it may be what killed it."""
        wanted = -(-len(self._waiting) // (2 * len(self._held)))
        numbers = [self._waiting.popleft()]
        suspect = self._attempts[numbers[0]]
        while self._waiting and len(numbers) < wanted and not (suspect or self._attempts[self._waiting[0]]):
            numbers.append(self._waiting.popleft())
        return numbers

    def _call(self, worker: int, parcels: list[Parcel]) -> Any:
        names = [] if self._knows[worker] else list(self._records)
        self._knows[worker] = True
        return self._engine.actors[worker].run.remote(parcels, names, *(self._records[name] for name in names))

    def _replace(self, worker: int, reason: str) -> None:
        """Start a worker in the place of one that died, and do again what it held."""
        calls = list(self._held[worker].values())
        self._held[worker].clear()
        self._engine.actors[worker] = actor = self._engine.start_worker()
        self._knows[worker] = False
        try:
            ray.get(self._install(actor))
        except ray.exceptions.RayActorError as error:
            raise FedsimError(f"a worker died, and so did the one in its place: {_shortened(error)}") from error
        for number in calls[0]:
            self._attempts[number] += 1
        if len(calls[0]) == 1 and self._attempts[calls[0][0]] >= ATTEMPTS:
            self._give_up(calls.pop(0)[0], reason)
        self._waiting.extendleft(reversed([number for call in calls for number in call]))

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
        self._attempts += [ATTEMPTS - 1] * len(chunk.messages)


def _start_ray(workers: int) -> None:
    """Ray without dashboard, log lines or a look at other clusters on this machine."""
    try:
        with deferred():
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                configure_logging=True,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except KeyboardInterrupt:
        ray.shutdown()
        raise
    # Long lines about workers that died, and are replaced: they would stand in what --json prints. There is no
    # public switch for them, and where this one is gone they are back.
    ray._private.worker._worker_logs_enabled = False


def _lost(chunk: Chunk, reason: str) -> ChunkResult:
    text = f"the worker died {ATTEMPTS} times while it ran this client's chunk: {_shortened(reason)}"
    return ChunkResult([failure(message, WORKER_LOST, text) for message in chunk.messages], {})


def _shortened(reason: object) -> str:
    return " ".join(str(reason).split())[:200]


def _without_rows(federation: Federation) -> Federation:
    """The federation's description alone; its arrays travel through the object store."""
    empty = federation.x[:0], federation.y[:0]
    return replace(federation, x=empty[0], y=empty[1], central={})
