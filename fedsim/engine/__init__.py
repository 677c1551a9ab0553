"""Where clients run: an engine holds the workers and gives every job a grid."""

from typing import Protocol

from fedsim.grid import SimulatedGrid
from fedsim.job import Job
from fedsim.machine import cores
from fedsim.scenario import Engine as Settings
from fedsim.states import ClientStates


class Engine(Protocol):
    """Workers that are started once and used for any number of jobs."""

    description: str

    def grid(self, job: Job, states: ClientStates | None = None) -> SimulatedGrid:
        """A grid that does a job's work on these workers; clients' states are in memory unless given."""
        ...

    def close(self) -> None:
        """Stop everything that was started."""
        ...


def start_engine(settings: Settings) -> Engine:
    """The engine that a scenario asks for; Ray is imported only where it is used."""
    if settings.kind == "inline":
        from fedsim.engine.inline import InlineEngine

        return InlineEngine()
    from fedsim.engine.ray import RayEngine

    return RayEngine(settings.workers or cores())
