"""The real rounds of a job, in this process, on a `Work` whose algorithm an audit may watch or add to."""

import time
from collections.abc import Sequence

from flwr.app import ConfigRecord

from fedsim.driving import Driven
from fedsim.errors import StoppedByPolicy
from fedsim.grid import Begun, Chunk, NumberedGrid
from fedsim.local import Work, one_thread
from fedsim.parameters import to_record
from fedsim.past import PATIENCE
from fedsim.privacy.ledger import Ledger
from fedsim.progress import Progress
from fedsim.worker import chunk_program


class WorkGrid(NumberedGrid):
    """Chunks one after another on a work that is there already."""

    def __init__(self, work: Work) -> None:
        super().__init__(work.job.federation.clients)
        self._program = chunk_program(work)

    def begin(self, chunks: Sequence[Chunk]) -> Begun:
        """Nothing yet: the chunks' work is done in order when results are asked for."""
        return Begun(lambda: [self._program(chunk) for chunk in chunks])


@one_thread()
def train(work: Work, strategy: Driven, ledger: Ledger, progress: Progress) -> int:
    """Train a job's rounds, as a run would, and charge them.

    Args:
        work: on the job.
        strategy: of the work, before round 1.
        ledger: is charged before each round, as a run's.
        progress: is told how long it will take.

    Returns:
        Rounds done; fewer than the scenario's where the budget is spent.

    Raises:
        StoppedByPolicy: the audited client failed.
    """
    grid, rounds, began = WorkGrid(work), work.job.scenario.rounds, time.perf_counter()
    for number in range(1, rounds + 1):
        if ledger.exhausted:
            return number - 1
        spent = time.perf_counter() - began
        left = f": about {spent / (number - 1) * (rounds - number + 1):.0f} s left" if spent > PATIENCE else ""
        progress.phase(f"auditing, round {number} of {rounds}{left}")
        arrays = to_record(work.layout, strategy.weights)
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        ledger.charge(strategy.drawn)
        replies = strategy.received(number, grid.send_and_receive(messages=messages))
        if ledger.plan.level == "example" and all(reply.has_error() for reply in replies):
            raise StoppedByPolicy(str(replies[0].error.reason))
        strategy.aggregate_train(number, replies)
        grid.states.settle(strategy.accepted)
    progress.phase("")
    return rounds
