"""Clients on Ray: persistent actors that are started once and take chunks as they become idle.

A federation is placed in Ray's object store once for each machine and mapped by every worker; so is a round's model.
A worker that dies is replaced and its chunks run again, which gives the same bits.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import Message

from fedsim.engine.actor import Worker
from fedsim.engine.cluster import check_address, check_alike, no_cluster, own_code
from fedsim.engine.habits import MEMORY, QUIET
from fedsim.engine.parcels import Store
from fedsim.engine.schedule import ATTEMPTS, Queue
from fedsim.environment import numerics
from fedsim.errors import FedsimError, ScenarioError, one_line
from fedsim.grid import Chunk, ChunkResult, SimulatedGrid, client_number, setting
from fedsim.job import Job
from fedsim.scenario import Engine as Settings
from fedsim.signals import deferred
from fedsim.states import ClientStates
from fedsim.worker import PARTS

os.environ.update({**MEMORY, **QUIET, **os.environ})  # before Ray is loaded; what the user has set stays

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

GRACE_SECONDS = 60.0
"""Beyond its clients' time limits, after which a worker counts as stuck in native code."""
NOTICE_SECONDS = 5.0
"""After which it is said what a run waits for."""
STARTING_SECONDS = 30.0
"""That a worker may take to start on a busy machine."""

FULL = "Ray's object store is full; raise engine.object_store_memory, or make room in /dev/shm and in Ray's folder"

Ref = Any
"""What Ray gives for a value that is not there yet."""


class RayEngine:
    """Workers of this machine or of a cluster; started once, used for any number of jobs."""

    def __init__(
        self,
        workers: int | None,
        settings: Settings | None = None,
        tell: Callable[[str], None] = lambda text: None,
        abandoned: threading.Event | None = None,
    ) -> None:
        """Start the workers, or wait until a cluster has room for them.

        Args:
            workers: how many; None for one on every CPU of the cluster.
            settings: what they may use, and where they are.
            tell: is told what it waits for.
            abandoned: once set, nobody waits for the workers any more.

        Raises:
            ScenarioError: there is no such cluster, or its machines would give other bits.
        """
        self.settings, self.tell = settings or Settings(), tell
        self._abandoned = abandoned or threading.Event()
        self._joined = not ray.is_initialized()
        self._group: PlacementGroup | None = None
        self.actors: list[Any] = []
        if self._joined:
            _join(self.settings, workers)
        try:
            self.workers = workers or _cpus()
            self._actor: Any = ray.remote(**self._options())(Worker)
            self.actors = [self.start_worker(number) for number in range(self.workers)]
            if self.settings.address is not None:
                self._check_machines()
        except BaseException:
            self.close()
            raise

    @property
    def description(self) -> str:
        """Who works."""
        where = f" at {self.settings.address}" if self.settings.address is not None else ""
        return f"Ray{where}, {self.workers} worker{'s' if self.workers != 1 else ''}"

    def grid(self, job: Job, states: ClientStates | None = None) -> SimulatedGrid:
        """A grid that does a job's work on these workers."""
        return RayGrid(self, job, states)

    def start_worker(self, number: int) -> Any:
        """A new worker at a place, from 0; it may have to wait for a CPU."""
        return self._actor.remote(number, self.settings.memory)

    def close(self) -> None:
        """Stop the workers, and Ray if it was started here; a cluster and what others do there go on."""
        with deferred():
            for actor in self.actors:
                with suppress(Exception):
                    ray.kill(actor)
            self.actors = []
            if self._group is not None:
                with suppress(Exception):
                    remove_placement_group(self._group)
            if self._joined and ray.is_initialized():
                ray.shutdown()

    def _options(self) -> dict[str, Any]:
        """What every worker is given; of a cluster all workers' share is reserved first, all of it or nothing."""
        if self.settings.address is None:
            return {"num_cpus": 1}
        share: dict[str, float] = {"CPU": 1}
        if self.settings.memory is not None:
            share["memory"] = self.settings.memory * 1e9
        if any(name.startswith("cuda") for name in self.settings.devices or ()):
            share["GPU"] = 1 / self.settings.workers_per_gpu
        self._group = placement_group([share] * self.workers, strategy="SPREAD")
        said, waited = "", 0.0
        while not self._group.wait(1):
            if self._abandoned.is_set():
                raise KeyboardInterrupt
            waited += 1
            free = int(ray.available_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
            text = f"waiting for {self.workers} CPUs of {self.settings.address}; {free} of {_cpus()} are free"
            if waited >= NOTICE_SECONDS and text != said:
                self.tell(said := text)
        return {
            "num_cpus": 1,
            "num_gpus": share.get("GPU"),
            "memory": share.get("memory"),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group),
            "runtime_env": {"env_vars": MEMORY},
        }

    def _check_machines(self) -> None:
        """Refuse workers that would give other bits than the driver."""
        try:
            machines = ray.get([actor.numerics.remote() for actor in self.actors])
        except (ray.exceptions.RayTaskError, ray.exceptions.RayActorError) as error:
            text = "install the same fedsim and packages on all machines of the cluster"
            raise ScenarioError(f"engine.address: a worker cannot start; {text}: {_cause(error)}") from error
        if self.settings.bits == "guaranteed":
            check_alike(numerics(), machines)


class RayGrid(SimulatedGrid):
    """Chunks to idle workers, those with most rows first.

    Attributes:
        crew: the workers' places.
    """

    def __init__(self, engine: RayEngine, job: Job, states: ClientStates | None = None) -> None:
        super().__init__(job.federation.clients, states)
        self._engine = engine
        self._client_timeout = job.scenario.cohort.client_timeout
        self._store = Store(_put)
        self._sizes = {part: job.federation.sizes(part) for part in PARTS.values()}
        self._federation = _put(job.federation)
        self._job = _put(replace(job, federation=job.federation.emptied()))
        self._code = own_code(job.scenario)
        self.crew = [Place(number, self._install(actor)) for number, actor in enumerate(engine.actors)]
        self._dispatch([]).ready()

    def _install(self, actor: Any) -> Ref:
        return actor.install.remote(self._job, self._code, self._federation)

    def run_chunks(self, chunks: Sequence[Chunk], timeout: float | None) -> list[ChunkResult]:
        """Keep every worker busy until all chunks are done."""
        return self._dispatch(chunks).results()

    def _dispatch(self, chunks: Sequence[Chunk]) -> "Dispatch":
        queue = Queue(chunks, self._store.parcels(chunks), self._rows)
        return Dispatch(self._engine, self._install, self.crew, queue, self._store.refs, self._client_timeout)

    def _rows(self, message: Message) -> float:
        """Rows that a message's work goes over."""
        kind = message.metadata.message_type
        if kind == "evaluate.central":
            return float(int(setting(message, "stop", 1)) - int(setting(message, "start", 0)))
        part = PARTS[str(setting(message, "part", "validation"))] if kind == "evaluate" else "train"
        return float(self._sizes[part][client_number(message)])


@dataclass
class Place:
    """A worker's place.

    Attributes:
        number: among the engine's actors.
        installing: the call that makes a new worker ready; None when it is.
        held: the calls that it was given, in order, and their chunks.
        knows: names of the arrays that it got last.
        since: when it began its call.
        deaths: workers that died here before they were ready, one after another.
    """

    number: int
    installing: Ref | None
    held: dict[Ref, list[int]] = field(default_factory=dict)
    knows: tuple[str, ...] = ()
    since: float = 0.0
    deaths: int = 0


class Dispatch:
    """Chunks of one call on their way to workers, and what came back.

    A worker holds the call that it works on and, while more are waiting, the next one too, so that it need not wait
    for the driver in between. One that died is replaced while the others go on.
    """

    def __init__(
        self,
        engine: RayEngine,
        install: Callable[[Any], Ref],
        crew: Sequence[Place],
        queue: Queue,
        records: Mapping[str, Ref],
        client_timeout: float | None,
    ) -> None:
        self._engine, self._install, self._crew, self._queue = engine, install, crew, queue
        self._records, self._client_timeout = records, client_timeout
        self._idle_since = time.monotonic()

    def ready(self) -> None:
        """Wait until every worker is."""
        while any(place.installing is not None for place in self._crew):
            self._wait()

    def results(self) -> list[ChunkResult]:
        """Hand out all chunks and wait for them; results in the order of the chunks."""
        while self._queue or any(place.held for place in self._crew):
            self._hand_out()
            self._wait()
            self._end_stuck()
        return self._queue.results()

    def _wait(self) -> None:
        calls = [ref for place in self._crew for ref in place.held]
        starting = [place.installing for place in self._crew if place.installing is not None]
        done, _ = ray.wait(calls + starting, num_returns=1, timeout=self._patience(bool(calls)))
        for ref in done:
            self._take_back(ref)
        if calls:
            self._idle_since = time.monotonic()
        elif self._queue and time.monotonic() - self._idle_since > NOTICE_SECONDS + STARTING_SECONDS:
            self._idle_since = float("inf")
            self._engine.tell("waiting for a CPU: no worker is left, and none could be started in its place")

    def _take_back(self, ref: Ref) -> None:
        place = next(place for place in self._crew if ref == place.installing or ref in place.held)
        try:
            returned = ray.get(ref)
        except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
            raise FedsimError(FULL) from error
        except ray.exceptions.RayTaskError as error:
            if ref == place.installing:
                text = f"a worker cannot be made ready{self._within_memory()}: {_cause(error.cause)}"
                raise FedsimError(text) from error
            if isinstance(error.cause, FedsimError):
                raise error.cause from None  # as one line; Ray's own error holds a traceback
            raise
        except ray.exceptions.RayError as error:  # its process, its machine or its memory was lost
            self._replace(place, _cause(error))
            return
        if ref == place.installing:
            place.installing, place.deaths = None, 0
            return
        place.since = time.monotonic()
        for number, result in zip(place.held.pop(ref), returned, strict=True):
            self._queue.finish(number, result.unpacked())

    def _patience(self, working: bool) -> float | None:
        """Seconds after which some worker may have to be ended, or something said."""
        if not working:
            return NOTICE_SECONDS
        return None if self._client_timeout is None else max(1.0, min(self._client_timeout, GRACE_SECONDS))

    def _end_stuck(self) -> None:
        """End workers that do not even heed their clients' time limit; they are replaced as if they had died."""
        if self._client_timeout is None:
            return
        for place in self._crew:
            clients = self._queue.clients(next(iter(place.held.values()), []))
            if place.held and time.monotonic() - place.since > clients * self._client_timeout + GRACE_SECONDS:
                self._replace(place, "it did not heed cohort.client_timeout")

    def _hand_out(self) -> None:
        ready = [place for place in self._crew if place.installing is None]
        for depth in (1, 2):
            for place in ready:
                enough = depth == 1 or len(self._queue) > len(ready)
                if self._queue and enough and len(place.held) < depth:
                    if not place.held:
                        place.since = time.monotonic()
                    numbers = self._queue.take(len(ready))
                    place.held[self._call(place, numbers)] = numbers

    def _within_memory(self) -> str:
        """The limit that may be why a worker cannot work at all."""
        memory = self._engine.settings.memory
        return f" (engine.memory = {memory:g} GB may be too little)" if memory is not None else ""

    def _call(self, place: Place, numbers: Sequence[int]) -> Ref:
        names = tuple(self._records)
        new = names if names != place.knows else ()
        place.knows = names
        actor = self._engine.actors[place.number]
        return actor.run.remote(self._queue.parcels(numbers), new, *(self._records[name] for name in new))

    def _replace(self, place: Place, reason: str) -> None:
        """Start a worker in the place of one that died, and have what it held done again."""
        calls = list(place.held.values())
        place.deaths += place.installing is not None
        if place.deaths >= ATTEMPTS:
            raise FedsimError(f"a worker died, and so did those in its place{self._within_memory()}: {reason}")
        with suppress(Exception):
            ray.kill(self._engine.actors[place.number])  # it may still live, out of reach
        self._engine.actors[place.number] = actor = self._engine.start_worker(place.number)
        place.held.clear()
        place.installing, place.knows = self._install(actor), ()
        if calls:
            self._queue.lose(calls, reason)


def _join(settings: Settings, workers: int | None) -> None:
    """Become a driver: of a cluster that is there, or of a Ray of one's own without log lines and dashboard."""
    own: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False}
    if settings.object_store_memory is not None:
        own["object_store_memory"] = int(settings.object_store_memory * 1e9)
    place = {"address": settings.address} if settings.address is not None else {"address": "local", **own}
    if settings.address is not None:
        check_address(settings.address)
    try:
        with deferred(), alone():
            ray.init(**place, configure_logging=True, logging_level=logging.ERROR, log_to_driver=False)
    except KeyboardInterrupt:
        ray.shutdown()
        raise
    except (ConnectionError, RuntimeError, ValueError) as error:
        if settings.address is None:
            asked = settings.object_store_memory
            given = f" with engine.object_store_memory = {asked:g}" if asked is not None else ""
            raise FedsimError(f"Ray does not start{given}: {one_line(error)}") from error
        raise no_cluster(settings.address, error) from error
    # Long lines about workers that died, and are replaced: they would stand in what --json prints. There is no
    # public switch for them, and where this one is gone they are back.
    ray._private.worker._worker_logs_enabled = False


@contextmanager
def alone() -> Iterator[None]:
    """Start no process of Ray's that only serves dashboards, logs or autoscaling: each loads Ray beside the workers.

    There is no public switch for them, and where these are gone they start.
    """
    node = ray._private.node.Node
    idle = [name for name in ("start_log_monitor", "start_monitor", "start_api_server") if hasattr(node, name)]
    usual = {name: getattr(node, name) for name in idle}
    for name in idle:
        setattr(node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in usual.items():
            setattr(node, name, method)


def _put(value: object) -> Ref:
    """Place a value in the object store."""
    try:
        return ray.put(value)
    except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
        raise FedsimError(FULL) from error


def _cpus() -> int:
    """CPUs of all machines that Ray has."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]


def _cause(reason: object) -> str:
    return " ".join(str(reason).split())[:200]
