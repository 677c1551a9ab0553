"""The runs of a comparison, one after another on one engine, in its folder; what is there already is kept.

A run that was interrupted goes on from its last checkpoint. One that ends by its failure rules or diverges is a fact
of the comparison, and the next one begins.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from fedsim import checkpoints
from fedsim.comparison.checks import Jobs
from fedsim.comparison.plan import Cell, Comparison
from fedsim.comparison.resampling import FILE, save_resampled
from fedsim.comparison.view import View
from fedsim.comparison.written import load
from fedsim.composition import algorithm_of
from fedsim.engine import Engine
from fedsim.errors import Interrupted, RunFolderError
from fedsim.job import Job
from fedsim.observers import Observer
from fedsim.resuming import begun_or_resumed
from fedsim.signals import Interrupts
from fedsim.stored import is_run, open_run, reading

PLAN = "comparison.toml"


class Executed(NamedTuple):
    """What was run.

    Attributes:
        seeds: all of whose runs have ended.
        notes: what is to be said of those that were not begun.
    """

    seeds: tuple[int, ...]
    notes: tuple[str, ...]


def opened(comparison: Comparison, out: Path | None) -> tuple[Path, Comparison]:
    """The folder of a comparison, made or found, and the comparison with what was settled there before.

    Raises:
        RunFolderError: it has another comparison, is no comparison's, or cannot be written.
    """
    folder = (comparison.folder if out is None else out).absolute()
    try:
        if not (folder / PLAN).is_file():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise RunFolderError(f"{folder} exists already and is no comparison's; choose another with --out")
            folder.mkdir(parents=True, exist_ok=True)
            write_plan(comparison, folder)
        return folder, settled_before(comparison, folder)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be written ({error.strerror}); choose another with --out") from error


def settled_before(comparison: Comparison, folder: Path) -> Comparison:
    """The comparison with what its folder says of clients and of tuning; as it is where there is none.

    Raises:
        RunFolderError: the folder has another comparison.
    """
    if not (folder / PLAN).is_file():
        return comparison
    there = load(folder)
    if there.digest != comparison.digest:
        raise RunFolderError(f"{folder} has another comparison; choose another folder with --out")
    return replace(comparison, clients=there.clients, tuned=there.tuned)


def write_plan(comparison: Comparison, folder: Path) -> None:
    """Leave the comparison, as far as it is resolved, in its folder."""
    checkpoints.write(folder / PLAN, comparison.to_toml().encode())


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes out of a comparison's folder; the lock ends with the process, however that ends.

    Raises:
        RunFolderError: another one is at it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = f"{folder} is being run by another process; wait until that has ended"
            raise RunFolderError(text) from None
        yield
    finally:
        os.close(descriptor)


def ended(folder: Path) -> bool:
    """Whether a run has its summary."""
    return bool(summary(folder))


def summary(folder: Path) -> dict[str, Any]:
    """What a run that has ended says of itself; nothing of one that has not, or is not there.

    Raises:
        RunFolderError: it cannot be read.
    """
    if not is_run(folder):
        return {}
    with closing(open_run(folder)) as records, reading(folder):
        return dict(records.summary())


class Bench:
    """An engine and what runs on it, one run after another.

    Attributes:
        jobs: of the runs.
        interrupts: of all of them; once asked for, no other begins.
    """

    def __init__(self, engine: Engine, jobs: Jobs, view: View) -> None:
        self.jobs, self.interrupts = jobs, Interrupts()
        self._engine, self._view = engine, view

    def run(self, cell: Cell, folder: Path) -> dict[str, Any]:
        """Run a cell in its place in a comparison's folder, or what is left of it; its summary.

        One that has ended is left as it is.

        Raises:
            FedsimError: it cannot be run, or the disk is full.
            KeyboardInterrupt: asked for; the folder can be gone on with.
        """
        path = folder / cell.folder
        if values := summary(path):
            return values
        self._view.running(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        return self._run(self.jobs.of(cell), path)

    def measured(self, cell: Cell, rounds: int, folder: Path, observer: Observer) -> dict[str, Any]:
        """The summary of the first rounds of a run, for an observer that wants to know how long they take.

        Stop rules do not count, and noise is that of so few rounds; a round takes as long.
        """
        scenario = cell.scenario.changed({"rounds": rounds, "stop": {}})
        return self._run(self.jobs.made(scenario, reference=cell.is_reference), folder, [observer])

    def _run(self, job: Job, folder: Path, observers: Sequence[Observer] = ()) -> dict[str, Any]:
        try:
            result = begun_or_resumed(job, self._engine, folder, self._view, observers, interrupts=self.interrupts)
        except Interrupted:
            raise KeyboardInterrupt from None
        if self.interrupts.asked:
            raise KeyboardInterrupt
        return result.values


def execute(
    comparison: Comparison,
    folder: Path,
    cells: Sequence[Cell],
    bench: Bench,
    view: View,
    budget: float | None = None,
    first: float = 0.0,
) -> Executed:
    """Run what is not there yet, seed by seed.

    Args:
        comparison: of the runs.
        folder: its own.
        cells: all of its runs, those that are there too.
        bench: where they run.
        view: is told of every run.
        budget: seconds; another seed is begun only if all of its runs will end in time, by the slowest so far.
        first: seconds that the first seed will take, by a forecast.

    Raises:
        FedsimError: a run cannot be run as it is.
        KeyboardInterrupt: asked for; everything goes on where it was.
    """
    began, slowest, done = monotonic(), 0.0, list[int]()
    there = {cell.folder: values for cell in cells if (values := summary(folder / cell.folder))}
    waiting = {cell.folder for cell in cells} - set(there)
    view.planned(comparison, cells, {place: float(values["seconds"]) for place, values in there.items()})
    for seed in comparison.seeds:
        mine = [cell for cell in cells if cell.seed == seed]
        share = sum(cell.folder in waiting for cell in mine) / max(len(mine), 1)
        if budget is not None and share and monotonic() - began + share * (slowest or first) > budget:
            text = f"the budget was enough for {len(done)} of {len(comparison.seeds)} seeds; the others were not begun"
            return Executed(tuple(done), (text,))
        begun = monotonic()
        for cell in mine:
            _run(cell, folder, bench, view, there.get(cell.folder, {}))
        if share:
            slowest = max(slowest, (monotonic() - begun) / share)
        done.append(seed)
    return Executed(tuple(done), ())


def _run(cell: Cell, folder: Path, bench: Bench, view: View, values: Mapping[str, Any]) -> None:
    """One run, unless its summary is there, and its scores on drawn test rows, unless they are."""
    path = folder / cell.folder
    if not values:
        values = bench.run(cell, folder)
        view.ended(cell, values)
    if values["status"] == "done" and not (path / FILE).exists() and not algorithm_of(cell.scenario).alone:
        save_resampled(bench.jobs.of(cell), path)
