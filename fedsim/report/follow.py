"""A report that is rewritten while its run goes on."""

import time
from collections.abc import Callable
from pathlib import Path

from fedsim.report.chronicle import Chronicle
from fedsim.report.run import report

PAUSE = 5.0
"""Seconds between two looks; a page reloads as often."""
_SHARE = 0.1
"""Of a core, at most, that following takes from the run."""


def follow(
    folder: Path,
    out: Path | None = None,
    told: Callable[[Chronicle], None] = lambda seen: None,
    pause: float = PAUSE,
    sleep: Callable[[float], None] = time.sleep,
) -> Chronicle:
    """Write a run's report again and again until the run, and those made beside it, have ended; as they are then.

    Args:
        folder: of the run.
        out: the file, `report.html` in the folder if not given.
        told: is called after every writing.
        pause: seconds between two looks, more where one takes long.
        sleep: waits for them.

    Raises:
        RunFolderError: not a run folder, or the file cannot be written.
    """
    while True:
        begun = time.perf_counter()
        seen = report(folder, out, reload_seconds=pause)
        told(seen)
        if not seen.going_on:
            return seen
        sleep(max(pause, (time.perf_counter() - begun) / _SHARE))
