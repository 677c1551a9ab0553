"""Clients one after another in this process: for debugging, and the oracle of the Ray engine."""

from collections.abc import Callable, Sequence

from flwr.app import Message

from fedsim import seeds
from fedsim.grid import Begin, Begun, Chunk, ChunkProgram, ChunkResult, NumberedGrid
from fedsim.job import Job
from fedsim.local import Work, one_thread
from fedsim.states import ClientStates
from fedsim.worker import chunk_program


class InlineEngine:
    """No workers but this process."""

    description = "inline"

    def grid(self, job: Job, states: ClientStates | None = None) -> NumberedGrid:
        """A grid that does a job's work here."""
        return InlineGrid(job, states)

    def program(self, make: Callable[[], ChunkProgram], cost: Callable[[Message], float]) -> Begin:
        """Have this process run a program of another kind than a job's."""
        run = seeds.preserved()(one_thread()(make()))
        return lambda chunks: Begun(lambda: [run(chunk) for chunk in chunks])

    def close(self) -> None:
        """Nothing is held."""


class InlineGrid(NumberedGrid):
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
