"""What a comparison would take: runs, hours, disk and epsilon, from a few rounds of each candidate."""

import math
import statistics
import tempfile
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.comparison.candidates import joined
from fedsim.comparison.execution import Bench
from fedsim.comparison.plan import Cell, reference_name, untuned_name
from fedsim.comparison.view import View
from fedsim.forecast import disk_bytes, size
from fedsim.local import Work
from fedsim.privacy.accountant import rounded_up
from fedsim.progress import clock, shortened
from fedsim.records import RoundRecord

_ROUNDS = 3
_NAME = 34


class Estimate(NamedTuple):
    """What the runs of a candidate, a reference or the reference without a client take.

    Attributes:
        condition, candidate: of the runs.
        runs: how many.
        rounds: of each.
        round_seconds: of one round, measured; nan where the measured run diverged at once.
        seconds: of one run.
        disk: bytes of one run, at most.
        epsilon: spent in one run; None without privacy.
        delta: that it is at.
    """

    condition: str
    candidate: str
    runs: int
    rounds: int
    round_seconds: float
    seconds: float
    disk: int
    epsilon: float | None
    delta: float | None


def estimates(cells: Sequence[Cell], bench: Bench, view: View) -> list[Estimate]:
    """Run three rounds of each candidate and reference, in a folder that does not stay.

    Args:
        cells: the runs that are to be made; of those that differ in their seed alone the first is measured.
        bench: where they will run.
        view: is told what is measured.

    Raises:
        FedsimError: a run cannot be run as it is.
    """
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.condition, cell.candidate), []).append(cell)
    with tempfile.TemporaryDirectory() as place:
        return [
            _estimate(mine, bench, Path(place) / str(number), view) for number, mine in enumerate(groups.values(), 1)
        ]


def total_seconds(found: Sequence[Estimate]) -> float:
    """Of all runs."""
    return sum(each.seconds * each.runs for each in found)


def trials(found: Sequence[Estimate], first: Sequence[Cell], count: int) -> list[Estimate]:
    """What tuning takes: `count` times the runs of everybody's first trial, each as long as a run of the comparison."""
    known = {(each.condition, each.candidate): each for each in found}
    runs = Counter((cell.condition, cell.candidate) for cell in first)
    return [
        known[key]._replace(candidate=f"tuning {key[1]}", runs=count * number)
        for key, number in runs.items()
        if key in known
    ]


def untuned(found: Sequence[Estimate], keys: Collection[tuple[str, str]]) -> list[Estimate]:
    """The runs at most that show candidates before tuning: as many as theirs, of those whose settings it changes.

    Args:
        found: of the comparison's runs.
        keys: condition and name of who is tuned; references have no such runs.
    """
    changed = [each for each in found if (each.condition, each.candidate) in keys]
    return [
        each._replace(candidate=untuned_name(each.candidate))
        for each in changed
        if not each.candidate.startswith(reference_name(""))
    ]


def as_data(found: Sequence[Estimate]) -> dict[str, Any]:
    """For programs."""
    return {
        "runs": sum(each.runs for each in found),
        "seconds": total_seconds(found),
        "disk": sum(each.disk * each.runs for each in found),
        "candidates": [each._asdict() for each in found],
    }


def lines(found: Sequence[Estimate]) -> list[str]:
    """For people, at most 80 columns."""
    rows = [f"{'':<{_NAME}}{'runs':>5}{'rounds':>7}{'s/round':>9}{'each':>8}{'disk':>9}{'epsilon':>8}"]
    for each in found:
        name = shortened(joined(each.condition, each.candidate), _NAME - 1)
        epsilon = f"{rounded_up(each.epsilon)}" if each.epsilon is not None else "-"
        rows.append(
            f"{name:<{_NAME}}{each.runs:>5}{each.rounds:>7}{each.round_seconds:>9.2f}{clock(each.seconds):>8}"
            f"{size(each.disk):>9}{epsilon:>8}"
        )
    told = as_data(found)
    most = "at most " if any(each.candidate.startswith(untuned_name("")) for each in found) else ""
    total = f"{most}{told['runs']} runs, {clock(told['seconds'])} in all ({told['seconds'] / 3600:.2f} hours)"
    return [*rows, f"{total}, at most {size(told['disk'])} of disk"]


def _estimate(cells: Sequence[Cell], bench: Bench, folder: Path, view: View) -> Estimate:
    cell = cells[0]
    view.phase(f"measuring {cell.candidate}")
    job = bench.jobs.of(cell)
    rounds = min(_ROUNDS, cell.scenario.rounds)
    timed = _Timed()
    values = bench.measured(cell, rounds, folder, timed)
    plan = job.privacy
    later = timed.seconds[1:] or timed.seconds or [math.nan]  # the first round also pays for allocations
    each, beside = statistics.fmean(later), max(0.0, float(values["seconds"]) - sum(timed.seconds))
    return Estimate(
        cell.condition,
        cell.candidate,
        len(cells),
        cell.scenario.rounds,
        each,
        each * cell.scenario.rounds + beside,
        disk_bytes(Work(job)),
        plan.epsilon if plan is not None else None,
        plan.delta if plan is not None else None,
    )


class _Timed:
    """An observer that notes how long rounds take."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def round_finished(self, record: RoundRecord) -> None:
        self.seconds.append(record.seconds)

    def run_finished(self, result: Any) -> None:
        """Nothing more."""
