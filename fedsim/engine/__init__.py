"""Where clients run: an engine holds the workers and gives every job a grid."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Protocol

from flwr.app import Message

from fedsim.devices import gpus_of
from fedsim.engine.habits import MEMORY, QUIET
from fedsim.errors import ScenarioError
from fedsim.grid import Begin, ChunkProgram, NumberedGrid
from fedsim.job import Job, check_workers
from fedsim.machine import cores
from fedsim.signals import deferred
from fedsim.states import ClientStates
from fedsim.tables import Engine as Settings

os.environ.update({**MEMORY, **QUIET, **os.environ})  # before Ray is loaded; what the user has set stays


class Workforce(Protocol):
    """Whoever does clients' work: workers of a simulation, or the clients themselves."""

    @property
    def description(self) -> str:
        """Who works."""
        ...

    def grid(self, job: Job, states: ClientStates | None = None) -> NumberedGrid:
        """A grid that has a job's work done by them; clients' states are in memory unless given."""
        ...


class Engine(Workforce, Protocol):
    """Workers that are started once and used for any number of jobs."""

    def program(self, make: Callable[[], ChunkProgram], cost: Callable[[Message], float]) -> Begin:
        """Have these workers run a program of another kind than a job's.

        Args:
            make: makes the program, in each worker, whose global generators it may leave as it likes.
            cost: of a message; how long its work takes, in any unit.

        Returns:
            What begins chunks of the program.
        """
        ...

    def close(self) -> None:
        """Stop everything that was started."""
        ...


def start_engine(
    settings: Settings,
    tell: Callable[[str], None] = lambda text: None,
    abandoned: threading.Event | None = None,
) -> Engine:
    """The engine that a scenario asks for; Ray is imported only where it is used.

    Args:
        settings: of the scenario.
        tell: is told what the engine waits for.
        abandoned: once set, the engine is not wanted any more.

    Raises:
        FedsimError: it cannot be had.
    """
    if settings.address is not None and settings.kind == "inline":
        raise ScenarioError("engine.address: engine.kind = 'inline' works in this process; leave one of them out")
    if settings.address is not None and settings.object_store_memory is not None:
        raise ScenarioError("engine.object_store_memory: a cluster has its own; leave that or engine.address out")
    if settings.kind == "inline":
        from fedsim.engine.inline import InlineEngine

        return InlineEngine()
    check_workers(settings)
    from fedsim.engine.ray import RayEngine

    return RayEngine(settings.workers or _usual_workers(settings), settings, tell, abandoned)


def _usual_workers(settings: Settings) -> int | None:
    """One for each core, or as many as share the GPUs on which stacks are trained; of a cluster all it has."""
    if settings.address is not None:
        return None
    gpus = 0 if settings.compile or settings.stack == 1 else gpus_of(settings.devices)
    return gpus * settings.workers_per_gpu or cores()


@contextmanager
def starting(settings: Settings, tell: Callable[[str], None]) -> Iterator[Callable[[], Engine]]:
    """An engine that starts while the block goes on; the function waits for it. After the block it is closed.

    Raises:
        FedsimError: from the function, it cannot be had.
    """
    abandoned = threading.Event()
    with ThreadPoolExecutor(1, "engine") as thread:
        coming = thread.submit(start_engine, settings, tell, abandoned)
        try:
            yield coming.result
        finally:
            abandoned.set()
            with deferred(), suppress(Exception, KeyboardInterrupt):
                coming.result().close()
