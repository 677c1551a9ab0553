"""Programs that a supervisor starts, ends and starts again; none of them outlives it."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fedsim.errors import DeployError

_PR_SET_PDEATHSIG = 1
_TAIL = 64_000  # bytes of a log that are looked through for its last lines
_LARGEST_LOG = 16_000_000
_GLANCE = 0.02  # seconds between two looks


class Child:
    """A program in a process group of its own, whose output goes to a log file.

    It is sent SIGTERM when the thread that started it ends, also by SIGKILL, so start it in the main thread.

    Attributes:
        name: what people call it.
        log: the file.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path, files: Sequence[int] = ()
    ) -> None:
        """Start the program.

        Args:
            name: what people call it.
            command: the program and its arguments.
            environment: all of its environment.
            log: appended to; the one before is kept as NAME.1 once it is large.
            files: descriptors that it inherits.

        Raises:
            DeployError: there is no such program, or the log cannot be written.
        """
        self.name, self.log = name, log
        try:
            if log.exists() and log.stat().st_size > _LARGEST_LOG:
                log.replace(log.with_name(f"{log.name}.1"))
            with log.open("ab") as output:
                self._start = self._seen = output.tell()
                self._process = subprocess.Popen(
                    command,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=files,
                    process_group=0,
                    preexec_fn=_end_with_parent(),  # noqa: PLW1509  one system call, which takes no lock
                )
        except OSError as error:
            raise DeployError(f"{name} cannot be started: {error.strerror}: {error.filename}") from error

    @property
    def pid(self) -> int:
        """Of the program."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it. Whatever it had started ends with it."""
        if self._process.returncode is None and self._over():
            self._signal(signal.SIGKILL)  # before it is reaped: until then nobody else can have its number
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """The exit code, waited for so long at most."""
        until = time.monotonic() + seconds
        while (code := self.exit_code) is None and time.monotonic() < until:
            time.sleep(_GLANCE)
        return code

    def output(self) -> str:
        """What this program has written so far, its last 64 kB."""
        with suppress(OSError), self.log.open("rb") as file:
            size = self.log.stat().st_size
            begun = self._start if self._start <= size else 0  # it was shortened meanwhile
            file.seek(max(begun, size - _TAIL))
            return file.read().decode(errors="replace")
        return ""

    def news(self) -> str:
        """What it has written since this was last asked."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(self._seen)
            written = file.read()
            self._seen += len(written)
            return written.decode(errors="replace")
        return ""

    def last_lines(self, count: int = 5) -> list[str]:
        """The last lines that it wrote, without empty ones."""
        return [line for line in self.output().splitlines() if line.strip()][-count:]

    def stop(self, seconds: float = 10.0) -> None:
        """End it and whatever it has started: SIGTERM, and SIGKILL after so many seconds."""
        if self.exit_code is None:
            self._signal(signal.SIGTERM)
            if self.wait(seconds) is None:
                self._signal(signal.SIGKILL)
                self._process.wait()

    def _over(self) -> bool:
        """Whether it has ended; it keeps its number until it is reaped."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class Restarts:
    """How often something that ended may be started again: with growing pauses, until it has ended too often in a row.

    Attributes:
        count: ends in a row.
    """

    def __init__(self, most: int, sound_after: float, longest: float = 60.0) -> None:
        """Nothing has ended.

        Args:
            most: ends in a row that are borne.
            sound_after: seconds of life after which an end begins a new row.
            longest: of the pauses, in seconds; they grow from 1 s by doubling.
        """
        self.most, self.sound_after, self.longest = most, sound_after, longest
        self.count = 0
        self._begun = time.monotonic()

    def began(self) -> None:
        """It was started."""
        self._begun = time.monotonic()

    def worked(self) -> None:
        """It did what it is there for, so that the row of ends is over."""
        self.count = 0

    def ended(self) -> float | None:
        """It ended: seconds to wait before it is started again, or None for no more."""
        if time.monotonic() - self._begun > self.sound_after:
            self.count = 0
        self.count += 1
        return None if self.count > self.most else min(2.0 ** (self.count - 1), self.longest)


def _end_with_parent() -> Callable[[], None]:
    """What a child calls before its program begins."""
    library, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

    def call() -> None:
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended in between
            os._exit(1)

    return call
