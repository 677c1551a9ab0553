"""Ctrl-C and SIGTERM, whenever they come: once the round in progress is finished, twice the run stops at once.

Status 130, one line, what was committed can be read and resumed, and no process is left behind; nor is one when
the driver itself is killed.
"""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import tomli_w

from fedsim.scenario_files import override
from fedsim.signals import SIGNALS, Interrupts, deferred
from fedsim.stored import open_run
from tests import small

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
PATIENCE = 120
"""Seconds after which something counts as hanging; on a busy machine Ray starts slowly."""
ROUND = 2.0
"""Seconds that a round takes on Ray; in one process twice as many, which train one after the other."""
SLOW = """
import time
from torch import nn

class Slow(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int, seconds: float):
        super().__init__()
        self.seconds, self.layer = seconds, nn.Linear(64, classes)

    def forward(self, x):
        if self.training:
            time.sleep(self.seconds)
        return self.layer(x.flatten(1))
"""
CHANGES: small.Changes = {
    "rounds": 100_000,
    "model": {"name": "slow.py:Slow", "seconds": ROUND},
    "train": {"learning_rate": 0.1, "batch_size": 32, "steps": 1},
    "cohort.size": 2,
    "engine": {"workers": 2},
}


MARK = "FEDSIM_TEST_MARK"
"""The variable of the environment by which a test knows the processes that descend from its own."""


def marked(mark: str) -> dict[int, str]:
    """Command lines of all living processes with a mark, however they were started, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            theirs = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes()
            zombie = ") Z " in (folder / "stat").read_text()
            if theirs and not zombie:
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
    return found


def left_behind(mark: str, seconds: float = 10) -> dict[int, str]:
    """Those that still live after some seconds."""
    deadline = time.monotonic() + seconds
    while (found := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


class Running:
    """A `fedsim run` in a process group of its own, all of whose offspring carry a mark in their environment."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.mark = uuid.uuid4().hex
        (folder / "slow.py").write_text(SLOW)
        (folder / "slow.toml").write_text(tomli_w.dumps(override(small.SMALL, CHANGES)))
        self.out = folder / "run"
        self.process = subprocess.Popen(
            [Path(sys.executable).parent / "fedsim", "run", "slow.toml", "--out", "run", "--engine", engine],
            cwd=folder,
            env={**os.environ, MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def offspring(self) -> dict[int, str]:
        """Command lines of all living processes that descend from it, by process id."""
        return {number: command for number, command in marked(self.mark).items() if number != self.process.pid}

    def wait_for(self, event: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not event():
            assert self.process.poll() is None, self.process.communicate()[1]
            there = [command[:60].strip() for command in self.offspring().values()]
            assert time.monotonic() < deadline, f"{committed(self.out)} rounds, and {there}"
            time.sleep(0.05)

    def press(self, key: signal.Signals) -> None:
        """Ctrl-C as a terminal does it, which signals the whole group; SIGTERM to the one process, as `kill` does."""
        (os.killpg if key == signal.SIGINT else os.kill)(self.process.pid, key)

    def end_of(self) -> tuple[int, str, str]:
        """Status, and what was printed on standard output and on standard error."""
        printed, complained = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, printed, complained

    def end(self) -> None:
        """Leave nothing, whatever the test found."""
        for number in [*self.offspring(), *([self.process.pid] if self.process.poll() is None else [])]:
            os.kill(number, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def running(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    started = Running(tmp_path, getattr(request, "param", "ray"))
    yield started
    started.end()


def committed(out: Path) -> int:
    if not (out / "run.db").exists():
        return 0
    records = open_run(out)
    count = len(records.rounds())
    records.close()
    return count


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("running", "key"), [("ray", signal.SIGINT), ("inline", signal.SIGTERM)], indirect=["running"])
def test_once_ends_after_the_round_and_twice_at_once(times: int, key: signal.Signals, running: Running) -> None:
    """The second comes soon after the first, as an impatient person presses it."""
    running.wait_for(lambda: committed(running.out) == 1)
    for _ in range(times):
        running.press(key)
        time.sleep(0.2)
    pressed = time.monotonic()
    status, printed, complained = running.end_of()
    kept = 1 if times == 2 else 2
    assert committed(running.out) == kept, time.monotonic() - pressed
    assert status == 130
    assert complained.count("\n") == 1, complained
    assert complained == (
        f"error: interrupted; {running.out} keeps {kept} committed rounds; go on with: fedsim resume {running.out}\n"
    )
    notes = printed.count("note: finishing the round in progress")
    assert notes == 1 or (times == 2 and notes == 0), "whoever presses twice at once needs no advice"
    assert left_behind(running.mark) == {}


@pytest.mark.parametrize("moment", ["raylet", "ray::Worker"])
def test_starting_up_can_be_interrupted(moment: str, running: Running) -> None:
    """While Ray starts its own processes, and while its workers install the job."""
    running.wait_for(lambda: any(moment in command for command in running.offspring().values()))
    running.press(signal.SIGINT)
    for _ in range(2):  # a library may swallow one; a person would press again
        with suppress(subprocess.TimeoutExpired):
            running.process.wait(timeout=25)
            break
        running.press(signal.SIGINT)
    status, _, complained = running.end_of()
    assert status == 130
    assert complained.count("\n") == 1, complained
    assert complained.startswith("error: interrupted")
    assert committed(running.out) == 0
    assert left_behind(running.mark) == {}


def test_when_the_driver_is_killed_ray_ends_too(running: Running) -> None:
    """Nobody is there to stop it: no memory, core or port stays taken."""
    running.wait_for(lambda: committed(running.out) == 1)
    assert any("raylet" in command for command in running.offspring().values())
    running.process.kill()
    running.end_of()
    assert left_behind(running.mark, seconds=30) == {}, "Ray's agents look for their parent every other second"


# The signals themselves, in this process


def usual() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_one_signal_asks_and_the_next_interrupts(number: int) -> None:
    before, told, interrupts = usual(), list[str](), Interrupts()
    with interrupts.listening(told.append):
        assert not interrupts.asked
        signal.raise_signal(number)
        assert interrupts.asked and len(told) == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert usual() == before


def test_two_signals_of_which_python_sees_one_interrupt() -> None:
    """While other code than Python's runs, as when Ray waits, its handler is called once for both."""

    def press_twice() -> None:
        for _ in range(2):
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

    before, told = signal.set_wakeup_fd(-1), list[str]()
    presses = threading.Thread(target=press_twice)
    with pytest.raises(KeyboardInterrupt), Interrupts().listening(told.append):
        presses.start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)
        time.sleep(5)
    presses.join()
    assert told == []
    assert signal.set_wakeup_fd(before) == -1


def test_a_signal_while_a_line_is_printed_asks_all_the_same() -> None:
    """Printing from a handler, Python refuses to enter the stream a second time."""

    def busy(text: str) -> None:
        raise RuntimeError("reentrant call")

    interrupts = Interrupts()
    with interrupts.listening(busy):
        signal.raise_signal(signal.SIGINT)
    assert interrupts.asked


def test_outside_the_main_thread_signals_do_what_they_usually_do() -> None:
    """Only the main thread may say what they do: a run in another one is ended as its program decides."""
    before, seen = usual(), list[list[object]]()

    def listen() -> None:
        with Interrupts().listening(print), deferred():
            seen.append(usual())

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_waits_for_the_end_of_the_block(number: int) -> None:
    before, steps = usual(), list[str]()
    with pytest.raises(KeyboardInterrupt), deferred():
        signal.raise_signal(number)
        steps.append("done all the same")
    assert steps == ["done all the same"]
    assert usual() == before
