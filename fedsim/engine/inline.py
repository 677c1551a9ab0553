"""Clients one after another in this process: for debugging, and the oracle of the Ray engine."""

from collections.abc import Sequence

from fedsim.grid import Begun, Chunk, ChunkResult, SimulatedGrid
from fedsim.job import Job
from fedsim.local import Work, one_thread
from fedsim.states import ClientStates
from fedsim.worker import chunk_program


class InlineEngine:
    """No workers but this process."""

    description = "inline"

    def grid(self, job: Job, states: ClientStates | None = None) -> SimulatedGrid:
        """A grid that does a job's work here."""
        return InlineGrid(job, states)

    def close(self) -> None:
        """Nothing is held."""


class InlineGrid(SimulatedGrid):
    """Chunks one after another, on one thread: with more, sums would be bracketed otherwise than in workers."""

    def __init__(self, job: Job, states: ClientStates | None = None) -> None:
        super().__init__(job.federation.clients, states)
        self._program = chunk_program(Work(job))

    def begin(self, chunks: Sequence[Chunk]) -> Begun:
        """Nothing yet: the chunks' work is done in order when results are asked for."""
        return Begun(lambda: self._done(chunks))

    @one_thread()
    def _done(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        return [self._program(chunk) for chunk in chunks]
