"""What a person sees while a comparison runs: a line for every run that has ended, and how long the rest will take."""

import math
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.comparison.candidates import joined
from fedsim.comparison.plan import Cell, Comparison
from fedsim.progress import Progress, Silent, clock, shortened
from fedsim.records import RoundRecord

_NAME = 38


class View:
    """A comparison's progress on that of a program or a terminal; a `Progress` itself, of the run that goes on.

    A run's heading, rounds and closing block are not shown. Its rounds are on the passing line, and what its user
    should know is said once, also where several runs say it.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress or Silent()
        self._noted: set[str] = set()
        self._seconds: dict[tuple[str, str], list[float]] = {}
        self._waiting: list[Cell] = []
        self._total = self._ended = self._rounds = 0
        self._metric: str | None = None
        self._name = ""
        self._began = time.monotonic()

    def planned(self, comparison: Comparison, cells: Sequence[Cell], known: Mapping[Path, float]) -> None:
        """All runs, and the seconds that those took that are there already, by folder."""
        waiting = [cell for cell in cells if cell.folder not in known]
        self._total, self._waiting, self._metric = len(cells), waiting, comparison.metric
        self._ended = len(cells) - len(waiting)
        for cell in cells:
            if cell.folder in known:
                self._seconds.setdefault((cell.condition, cell.candidate), []).append(known[cell.folder])
        seeds = f"{len(comparison.seeds)} seed{'s' if len(comparison.seeds) > 1 else ''}"
        count = len(comparison.candidates)
        parts = [f"{count} candidate{'s' if count > 1 else ''}", seeds]
        if len(comparison.conditions) > 1:
            parts.insert(1, f"{len(comparison.conditions)} conditions")
        there = f", {self._ended} of them there already" if self._ended else ""
        self._progress.end([f"{comparison.title} · {' · '.join(parts)} · {self._total} runs{there}"])
        if waiting:
            self._progress.end([f"{'run':>9}  {'':<{_NAME}}{'last round':>11}{'rounds':>7}{'s':>7}{'left':>8}"])

    def running(self, cell: Cell) -> None:
        """A run begins, or goes on."""
        self._name = _named(cell)
        self._began, self._rounds = time.monotonic(), cell.scenario.rounds
        self.phase("preparing")

    def ended(self, cell: Cell, values: Mapping[str, Any]) -> None:
        """A run has ended, as its summary says."""
        seconds = time.monotonic() - self._began
        self._seconds.setdefault((cell.condition, cell.candidate), []).append(seconds)
        self._waiting = [each for each in self._waiting if each.folder != cell.folder]
        self._ended += 1
        count = f"{self._ended}/{self._total}"
        left = clock(self._left()) if self._waiting else ""
        name = shortened(_named(cell), _NAME)
        figure = _figure(self._metric, values)
        self._progress.end([f"{count:>9}  {name:<{_NAME}}{figure:>11}{values['rounds']:>7}{seconds:>7.1f}{left:>8}"])

    def _left(self) -> float:
        """Seconds until the last run ends, by those that have ended."""
        every = statistics.fmean(each for known in self._seconds.values() for each in known)
        return sum(
            statistics.fmean(self._seconds.get((cell.condition, cell.candidate), [every])) for cell in self._waiting
        )

    def line(self, text: str) -> None:
        """A line that stays."""
        self._progress.end([text])

    def begin(self, title: str, facts: Sequence[str], notes: Sequence[str], rounds: int) -> None:
        """Say its notes."""
        for note in notes:
            self.note(note)

    def phase(self, text: str) -> None:
        """Show a passing line."""
        self._progress.phase(f"{self._name}: {text}" if self._name and text else text)

    def note(self, text: str) -> None:
        """Say it once, also where another run says it with other numbers."""
        said = re.sub(r"\d[\d.]*", "#", text)
        if said not in self._noted:
            self._noted.add(said)
            self._progress.note(text)

    def round(self, record: RoundRecord, shown: Mapping[str, float | None]) -> None:
        """Show which on the passing line, and how long everything will take."""
        if not self._seconds:
            left = ""
        else:
            spent = time.monotonic() - self._began
            left = f", {clock(max(0.0, self._left() - spent))} left"
        which = f" · run {self._ended + 1} of {self._total}" if self._total else ""
        self._progress.phase(f"{self._name}: round {record.number} of {self._rounds}{which}{left}")

    def end(self, lines: Sequence[str]) -> None:
        """Not shown."""


def _named(cell: Cell) -> str:
    return f"{joined(cell.condition, cell.candidate)}, seed {cell.seed}"


def _figure(metric: str | None, values: Mapping[str, Any]) -> str:
    """The primary metric after the last round, or that by which the run is judged; or how it ended."""
    if values["status"] != "done":
        return str(values["stop"]["kind"]) if values["stop"]["kind"] == "diverged" else "stopped"
    last = values["metrics_last_round"]
    value = last.get(metric, last.get(values["headline"]["metric"]))
    return f"{value:.4f}" if value is not None and math.isfinite(value) else "-"
