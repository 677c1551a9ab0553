"""Programs that a child had started and that outlived it: they become ours, and end."""

import ctypes
import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_GLANCE = 0.05


def adopt_orphans() -> None:
    """Become the parent of whatever a descendant leaves behind; Linux, prctl(2)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_orphans(kept: Collection[int], seconds: float) -> None:
    """End every child of this process but those that are kept: SIGTERM, and SIGKILL after so many seconds.

    Args:
        kept: process ids.
        seconds: for all of them together.
    """
    patience = time.monotonic() + seconds
    told: set[int] = set()
    while left := _children() - set(kept):
        late = time.monotonic() > patience
        for pid in left:
            if late or pid not in told:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        told |= left
        time.sleep(_GLANCE)


def _children() -> set[int]:
    """Of this process, those that have ended and are not yet waited for among them."""
    found: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()  # a program's name may hold blanks and brackets
            if int(fields[1]) == os.getpid():
                found.add(int(stat.parent.name))
    return found
