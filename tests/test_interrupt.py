"""Ctrl-C, whenever it comes: status 130, one line, what was committed can be read, and no process is left behind."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w

from fedsim.runs import open_run
from tests import small

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
PATIENCE = 120
"""Seconds after which something counts as hanging; on a busy machine Ray starts slowly."""


class Running:
    """A `fedsim run` on Ray in a process group of its own, all of whose offspring carry a mark in their environment."""

    def __init__(self, folder: Path) -> None:
        self.mark = f"FEDSIM_TEST_MARK={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        (folder / "long.toml").write_text(tomli_w.dumps({**small.SMALL, "rounds": 100_000, "engine": {"workers": 2}}))
        self.out = folder / "run"
        self.process = subprocess.Popen(
            [Path(sys.executable).parent / "fedsim", "run", "long.toml", "--out", "run", "--engine", "ray"],
            cwd=folder,
            env={**os.environ, name: value},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def offspring(self) -> dict[int, str]:
        """Command lines of all living processes that descend from it, however they were started, by process id."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = self.mark.encode() in (folder / "environ").read_bytes()
                zombie = ") Z " in (folder / "stat").read_text()
                if marked and not zombie and int(folder.name) != self.process.pid:
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:  # it ended meanwhile, or is somebody else's
                continue
        return found

    def wait_for(self, event: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not event():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, self.offspring()
            time.sleep(0.05)

    def interrupt(self) -> tuple[int, str]:
        """Press Ctrl-C: a terminal signals the whole group. Gives status and standard error."""
        os.killpg(self.process.pid, signal.SIGINT)
        _, printed = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, printed

    def left_behind(self) -> dict[int, str]:
        """Offspring that still lives a few seconds after the end."""
        for _ in range(100):
            if not self.offspring():
                break
            time.sleep(0.1)
        return self.offspring()

    def end(self) -> None:
        """Leave nothing, whatever the test found."""
        for number in [*self.offspring(), *([self.process.pid] if self.process.poll() is None else [])]:
            os.kill(number, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    started = Running(tmp_path)
    yield started
    started.end()


def committed(out: Path) -> int:
    if not (out / "run.db").exists():
        return 0
    records = open_run(out)
    count = len(records.rounds())
    records.close()
    return count


def test_a_run_keeps_its_committed_rounds(running: Running) -> None:
    running.wait_for(lambda: committed(running.out) >= 2)
    status, printed = running.interrupt()
    assert status == 130
    assert printed.count("\n") == 1, printed
    kept = committed(running.out)
    assert printed.startswith("error: interrupted; ")
    assert printed.endswith(f"keeps {kept} committed rounds\n")
    assert running.left_behind() == {}


@pytest.mark.parametrize("moment", ["raylet", "ray::Worker"])
def test_starting_up_can_be_interrupted(moment: str, running: Running) -> None:
    """While Ray starts its own processes, and while its workers install the job."""
    running.wait_for(lambda: any(moment in command for command in running.offspring().values()))
    status, printed = running.interrupt()
    assert status == 130
    assert printed.count("\n") == 1, printed
    assert printed.startswith("error: interrupted")
    assert committed(running.out) == 0
    assert running.left_behind() == {}
