"""Work in a thread of its own, one call after another."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager


class InOrder:
    """Calls in a thread of their own, one after another: what must reach the disk while the next round trains."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "commit")
        self._last: Future[None] | None = None

    def start(self, call: Callable[[], None]) -> None:
        """Begin a call when the one before has ended; raises what that one raised."""
        self.wait()
        self._last = self._thread.submit(short_turns()(call))

    def wait(self) -> None:
        """Wait for the last call; raises what it raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Let the last call end, however it does."""
        self._thread.shutdown()


@contextmanager
def short_turns() -> Iterator[None]:
    """Python's threads take turns of half a millisecond inside the block; for its usual five a worker would be idle."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(5e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
