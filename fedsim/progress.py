"""What a person sees while a run goes on: a heading, one line per round, and a block at the end."""

import shutil
import sys
import textwrap
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TextIO

from fedsim.privacy.accountant import rounded_up
from fedsim.records import RoundRecord

WIDTH = 80


class Progress(Protocol):
    """Is told what a run does."""

    def begin(self, title: str, facts: Sequence[str], notes: Sequence[str], rounds: int) -> None:
        """A run starts: its facts, and what its user should know."""

    def phase(self, text: str) -> None:
        """Something begins that may take a while."""

    def note(self, text: str) -> None:
        """Something that its user should know, at once."""

    def round(self, record: RoundRecord, shown: Mapping[str, float | None]) -> None:
        """A round has been committed."""

    def end(self, lines: Sequence[str]) -> None:
        """A run has ended."""


class Silent:
    """Says nothing: for programs."""

    def begin(self, title: str, facts: Sequence[str], notes: Sequence[str], rounds: int) -> None:
        """Ignore it."""

    def phase(self, text: str) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""

    def round(self, record: RoundRecord, shown: Mapping[str, float | None]) -> None:
        """Ignore it."""

    def end(self, lines: Sequence[str]) -> None:
        """Ignore it."""


class Lines:
    """Plain lines of at most 80 columns; on a terminal a passing line says what is going on."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._passing = self._stream.isatty()
        self._rounds = 0
        self._seconds, self._lines = 0.0, 0
        self._columns: tuple[str, ...] = ()
        self._width = 11
        self._lock = threading.RLock()  # a round's line comes from the thread that has committed it

    def begin(self, title: str, facts: Sequence[str], notes: Sequence[str], rounds: int) -> None:
        """Print the heading, wrapped at facts, and the notes."""
        self._rounds, self._seconds, self._lines, self._columns = rounds, 0.0, 0, ()
        self._print(*heading_lines(title, facts))
        for note in notes:
            self.note(note)

    def phase(self, text: str) -> None:
        """Show a passing line on a terminal."""
        if not self._passing:
            return
        with self._lock:
            width = min(WIDTH, shutil.get_terminal_size().columns - 1)
            print(f"\r\x1b[2K{text[:width]}", end="", file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """Print it, wrapped."""
        self._print(*wrapped(f"note: {text}"))

    def round(self, record: RoundRecord, shown: Mapping[str, float | None]) -> None:
        """Print the round's line, and the columns' names before the first."""
        if not self._lines:
            self._columns = tuple(shown)
            self._width = 11 if len(shown) < 4 else 10
            heads = "".join(f"{shortened(name, self._width - 1):>{self._width}}" for name in self._columns)
            epsilon = " epsilon" if record.epsilon is not None else ""
            self._print(f" round{heads}  failed{epsilon}   s/round    left")
        self._seconds, self._lines = self._seconds + record.seconds, self._lines + 1
        left = self._seconds / self._lines * (self._rounds - record.number)
        cells = "".join(f"{_number(shown.get(name)):>{self._width}}" for name in self._columns)
        epsilon = f" {rounded_up(record.epsilon):>7}" if record.epsilon is not None else ""
        self._print(f"{record.number:6d}{cells}  {record.failed:6d}{epsilon}   {record.seconds:7.2f} {clock(left):>7}")

    def end(self, lines: Sequence[str]) -> None:
        """Print the closing block."""
        self._print(*lines)

    def _print(self, *lines: str) -> None:
        with self._lock:
            self.phase("")
            for line in lines:
                print(line, file=self._stream, flush=True)


def wrapped(text: str, indent: int = 0) -> list[str]:
    """A text as lines of at most 80 columns; those after the first are indented by two more."""
    first, others = " " * indent, " " * (indent + 2)
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)


def heading_lines(title: str, facts: Sequence[str]) -> list[str]:
    """A title and facts in lines of at most 80 columns, broken between facts."""
    lines = [title]
    for fact in facts:
        if len(lines[-1]) + len(fact) + 3 > WIDTH:
            lines.append(f"  {fact}")
        else:
            lines[-1] += f" · {fact}"
    return lines


def short_path(path: Path) -> Path:
    """Relative to the current folder where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def shortened(text: str, width: int) -> str:
    """A text of at most so many columns."""
    return text if len(text) <= width else text[: width - 1] + "…"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, from an hour on with hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
