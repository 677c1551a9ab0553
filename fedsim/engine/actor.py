"""What a Ray worker does: the work of one job, chunk after chunk."""

import gc
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord

from fedsim.data.federation import Federation
from fedsim.engine.cluster import at_hand
from fedsim.engine.habits import named_limit
from fedsim.engine.parcels import Mapped, Parcel, Returned, unpack
from fedsim.environment import numerics
from fedsim.grid import Chunk, ChunkProgram, ChunkResult
from fedsim.job import Job
from fedsim.local import Work
from fedsim.machine import limit_memory
from fedsim.worker import chunk_program


class Worker:
    """Does the work of one job, chunk after chunk, on one thread."""

    def __init__(self, number: int, memory: float | None) -> None:
        """Load what any job needs.

        Args:
            number: its place among the workers, from 0, which says on what device it trains stacks.
            memory: GB of its own that it may use.
        """
        torch.set_num_threads(1)
        if memory is not None:
            limit_memory(memory)
        self._number, self._memory = number, memory
        self._program: ChunkProgram | None = None
        self._records: dict[str, ArrayRecord] = {}

    def numerics(self) -> tuple[str, dict[str, Any]]:
        """The machine's name, and what bits depend on there."""
        return platform.node(), numerics()

    def install(self, job: Job, code: Mapping[str, bytes], federation: Federation) -> None:
        """Build model and algorithm of a job whose arrays come from the object store, and its own code along."""
        self.load(lambda: chunk_program(Work(replace(at_hand(job, code), federation=federation), self._number)))

    def load(self, make: Callable[[], ChunkProgram]) -> None:
        """Take up another program."""
        self._program = make()
        self._records.clear()
        gc.collect()
        gc.freeze()  # what is loaded by now stays: searching it again and again would cost more than many a client

    def run(
        self, parcels: Sequence[Parcel], names: Sequence[str], *arrays: Mapping[str, Mapped]
    ) -> tuple[list[Returned], float]:
        """Do some chunks, one after another.

        Args:
            parcels: the chunks.
            names: of the arrays that come along; the chunks need these, or those of the calls since some last came.
            arrays: from the object store, one for each name.

        Returns:
            What came of each, and the seconds that all took.
        """
        started = time.perf_counter()
        if names:
            self._records = {name: unpack(mapped) for name, mapped in zip(names, arrays, strict=True)}
        results = [Returned.of(self._done(parcel.opened(self._records))) for parcel in parcels]
        return results, time.perf_counter() - started

    def _done(self, chunk: Chunk) -> ChunkResult:
        assert self._program is not None
        result = self._program(chunk)
        if self._memory is None:
            return result
        return result._replace(replies=[named_limit(reply, self._memory) for reply in result.replies])
