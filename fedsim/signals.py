"""Ctrl-C and SIGTERM while rounds run: once, the run ends after the round in progress; twice, at once.

And the time limit of one client's work, which the system's alarm clock enforces.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from fedsim.errors import ClientError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_early: list[int] = []  # signals that came before the rounds, of this process


class Interrupts:
    """Listens to the two signals.

    Attributes:
        asked: whether the run should end after its round.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Listen inside the block; only the main thread can, in any other the signals do what they usually do.

        Args:
            tell: is told what happens now, for a person to read.
        """

        def interrupt(number: int, frame: FrameType | None) -> None:
            again, self.asked = came() > 1 or self.asked, True
            if again:
                raise KeyboardInterrupt
            with suppress(RuntimeError):  # the signal came while a line was being printed
                tell("finishing the round in progress; interrupt again to stop at once")

        with counted() as came, signals_to(interrupt):
            if _early:
                raise KeyboardInterrupt
            yield


@contextmanager
def signals_to(
    handle: Callable[[int, FrameType | None], None], signals: Sequence[signal.Signals] = SIGNALS
) -> Iterator[None]:
    """Send signals to `handle` inside the block; nothing changes outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Count the signals that came since the last call, inside the block; 0 outside the main thread.

    Python runs a handler once for all that came while it was busy elsewhere; Ray waits for up to a second so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)

    def came() -> int:
        with suppress(BlockingIOError):
            return sum(number in SIGNALS for number in os.read(reading, 4096))
        return 0

    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield came
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


@contextmanager
def deferred() -> Iterator[None]:
    """Let both signals wait until the block is done: half of what it starts or stops could not be undone."""
    came: list[int] = []
    with signals_to(lambda number, frame: came.append(number)):
        yield
    if came:
        raise KeyboardInterrupt


def terminate_as_interrupt() -> None:
    """Let both signals raise KeyboardInterrupt, for a command that has not yet begun its rounds.

    A library may swallow it (in a callback, say); then it is raised again where the rounds begin.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        _early.append(number)
        raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, interrupt)


@contextmanager
def time_limit(seconds: float | None, what: str) -> Iterator[None]:
    """Raise ClientError when the block takes longer; `what` names the limit. None: it may take for ever.

    Python code is interrupted wherever it is, a library's native code when it returns. Only a main thread, which a
    Ray worker's is, has an alarm clock; in any other there is no limit.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    running = True

    def ring(number: int, frame: FrameType | None) -> None:
        if running:
            raise ClientError(f"took longer than {what} = {seconds:g} s")

    usual = signal.signal(signal.SIGALRM, ring)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again every second, for code that catches all it can
            yield
        finally:
            running = False
    finally:  # also when it rings just as the block ends
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)


@contextmanager
def alarm_deferred() -> Iterator[None]:
    """Hold back the alarm of `time_limit` inside the block, and ring it after it.

    By another handler, as a signal that this thread blocks is given to another one of the process.
    """
    came: list[int] = []
    with signals_to(lambda number, frame: came.append(number), (signal.SIGALRM,)):
        yield
    if came:
        signal.raise_signal(signal.SIGALRM)
