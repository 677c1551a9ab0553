"""Clients on Ray: persistent actors that are started once and take chunks as they become idle.

A federation is placed in Ray's object store once for each machine and mapped by every worker; so is a round's model.
A worker that dies is replaced and its chunks run again, which gives the same bits.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
from flwr.app import Message
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedsim.engine.actor import Worker
from fedsim.engine.cluster import check_address, check_alike, no_cluster, own_code
from fedsim.engine.crew import FULL, NOTICE_SECONDS, Batch, Crew, Ref, cause
from fedsim.engine.habits import MEMORY
from fedsim.engine.parcels import Store
from fedsim.engine.schedule import Queue
from fedsim.environment import numerics
from fedsim.errors import FedsimError, ScenarioError, one_line
from fedsim.grid import Begin, Begun, Chunk, ChunkProgram, NumberedGrid, client_number, setting
from fedsim.job import Job
from fedsim.signals import deferred
from fedsim.states import ClientStates
from fedsim.tables import Engine as Settings
from fedsim.worker import PARTS


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
        if self.settings.address is not None:
            check_address(self.settings.address)
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

    def grid(self, job: Job, states: ClientStates | None = None) -> NumberedGrid:
        """A grid that does a job's work on these workers."""
        return RayGrid(self, job, states)

    def program(self, make: Callable[[], ChunkProgram], cost: Callable[[Message], float]) -> Begin:
        """Have these workers run a program of another kind than a job's."""
        return Shift(self, lambda actor: actor.load.remote(make), None, cost).begin

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
            raise ScenarioError(f"engine.address: a worker cannot start; {text}: {cause(error)}") from error
        if self.settings.bits == "guaranteed":
            check_alike(numerics(), machines)


class Shift:
    """A crew with one program, and the arrays that it has been sent.

    Attributes:
        crew: the workers.
    """

    def __init__(
        self,
        engine: RayEngine,
        install: Callable[[Any], Ref],
        client_timeout: float | None,
        cost: Callable[[Message], float],
    ) -> None:
        """Wait until every worker has the program.

        Args:
            engine: whose workers they are.
            install: gives a worker the program.
            client_timeout: seconds that a client may take.
            cost: of a message; how long its work takes, in any unit.
        """
        self._store, self._cost = Store(_put), cost
        self.crew = Crew(engine, install, client_timeout)
        self.crew.wait_until_ready()

    def begin(self, chunks: Sequence[Chunk]) -> Begun:
        """Give workers that are idle their first chunks, those of the largest cost first."""
        queue = Queue(chunks, self._store.parcels(chunks), self._cost)
        return self.crew.begin(Batch(queue, self._store.refs, chunks[0].messages[0].metadata.message_type))


class RayGrid(NumberedGrid):
    """Chunks to idle workers, those with most rows first.

    Attributes:
        crew: the workers.
    """

    def __init__(self, engine: RayEngine, job: Job, states: ClientStates | None = None) -> None:
        super().__init__(job.federation.clients, states)
        self._sizes = {part: job.federation.sizes(part) for part in PARTS.values()}
        federation, whole = _put(job.federation), _put(replace(job, federation=job.federation.emptied()))
        code = own_code(job.scenario)
        self._shift = Shift(
            engine,
            lambda actor: actor.install.remote(whole, code, federation),
            job.scenario.cohort.client_timeout,
            self._rows,
        )
        self.crew = self._shift.crew

    def begin(self, chunks: Sequence[Chunk]) -> Begun:
        """Give workers that are idle their first chunks."""
        return self._shift.begin(chunks)

    def _rows(self, message: Message) -> float:
        """Rows that a message's work goes over."""
        kind = message.metadata.message_type
        if kind == "evaluate.central":
            return float(int(setting(message, "stop", 1)) - int(setting(message, "start", 0)))
        part = PARTS[str(setting(message, "part", "validation"))] if kind == "evaluate" else "train"
        return float(self._sizes[part][client_number(message)])


def _join(settings: Settings, workers: int | None) -> None:
    """Become a driver: of a cluster that is there, or of a Ray of one's own without log lines and dashboard."""
    own: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False}
    if settings.object_store_memory is not None:
        own["object_store_memory"] = int(settings.object_store_memory * 1e9)
    place = {"address": settings.address} if settings.address is not None else {"address": "local", **own}
    try:
        with deferred(), alone():
            ray.init(**place, configure_logging=True, logging_level=logging.ERROR, log_to_driver=False)
    except KeyboardInterrupt:
        ray.shutdown()
        raise
    except Exception as error:  # Ray raises a plain one where its processes do not start in time
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
