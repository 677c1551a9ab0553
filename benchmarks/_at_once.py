"""A bare contender's rounds in several processes at once, none of which waits for another."""

import multiprocessing
import sys
from collections.abc import Callable

from _rows import report

Rounds = Callable[[int, Callable[[], object]], tuple[list[float], float]]
"""One process' share, given its number and what it waits in until all are ready: when each round ended, and how far
the model has moved."""
READY_SECONDS = 120


def at_once(processes: int, rounds: Rounds) -> None:
    """Run a share of the rounds in each process and report when each ended, on average over the processes.

    Args:
        processes: their number; they are forked, so torch must have run nothing yet, which would have threads to lose.
        rounds: a process' share.
    """
    context = multiprocessing.get_context("fork")
    barrier, reports = context.Barrier(processes, timeout=READY_SECONDS), context.SimpleQueue()

    def work(number: int) -> None:
        reports.put(rounds(number, barrier.wait))

    workers = [context.Process(target=work, args=(number,)) for number in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()  # before what it reports is read, which a failed one never sends
        if worker.exitcode:
            sys.exit("a process of a bare contender has failed")
    found = [reports.get() for _ in workers]
    report([sum(times) / processes for times in zip(*(ended for ended, _ in found), strict=True)], found[0][1])
