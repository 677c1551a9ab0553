"""The command that waits for a run in another process: it passes Ctrl-C on, and notices that the process is gone."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsim.deploy.control import Control, Started
from fedsim.deploy.following import Following, Ticket
from fedsim.deploy.running import _Follower
from fedsim.deploy.site import Site
from fedsim.errors import DeployError
from fedsim.progress import Silent
from tests.deploy.served import site_with

NUMBER = 5
PROCESS = """
import signal, sys, time
from pathlib import Path
from fedsim.deploy.following import Following
following = Following(Path(sys.argv[1]), sys.argv[2])
def asked(number, frame):
    following.tell("finished", status="interrupted", folder="", reason="after its round", result={})
    sys.exit()
signal.signal(signal.SIGINT, asked)
following.tell("started", pid=__import__("os").getpid(), flower_run="1")
time.sleep(60)
"""


class Answers(Control):
    """A SuperLink that says of the run what it is told to; None: it does not answer."""

    def __init__(self, site: Site, runs: list[Started] | None) -> None:
        super().__init__(site)
        self._runs, self.stopped = runs, list[int]()

    def runs(self) -> list[Started]:
        if self._runs is None:
            raise DeployError("the SuperLink does not answer")
        return self._runs

    def stop(self, run_id: int) -> None:
        self.stopped.append(run_id)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return site_with(tmp_path)


@pytest.fixture
def ticket(site: Site) -> str:
    return Ticket(purpose="run", run="0" * 16, scenario="").write(site.runs)


@pytest.fixture
def process(site: Site, ticket: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The server's half, which ends when it is asked to."""
    started = subprocess.Popen([sys.executable, "-c", PROCESS, str(site.runs), ticket])
    yield started
    started.kill()
    started.wait()


def test_ctrl_c_goes_to_the_process_that_runs(site: Site, ticket: str, process: "subprocess.Popen[bytes]") -> None:
    """It ends the run after its round and says so; the command waits for that."""
    follower = _Follower(site, Answers(site, None), ticket, NUMBER, Silent())

    def interrupt() -> None:
        while follower._process is None:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    last = follower.follow()
    assert (last["status"], last["reason"]) == ("interrupted", "after its round")


def test_a_process_that_is_gone_is_noticed(site: Site, ticket: str) -> None:
    """A server that was killed takes its runs along, which then say nothing any more."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    Following(site.runs, ticket).tell("started", pid=gone.pid, flower_run="1")
    last = _Follower(site, Answers(site, None), ticket, NUMBER, Silent()).follow()
    assert (last["status"], last["reason"]) == ("failed", "the server has ended the run")


def test_a_run_that_the_superlink_has_ended_is_noticed(
    site: Site, ticket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its process never came to say a word, with the SuperLink's reason."""
    monkeypatch.setattr("fedsim.deploy.running._ASKING", 0.2)
    ended = Started(NUMBER, ticket, "finished", "failed", "no such module", 0.0)
    last = _Follower(site, Answers(site, [ended]), ticket, NUMBER, Silent()).follow()
    assert last["reason"] == "the server has ended the run: no such module"


def test_a_process_that_never_starts_is_not_waited_for_for_ever(
    site: Site, ticket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.deploy.running._STARTING", 0.2)
    control = Answers(site, None)
    last = _Follower(site, control, ticket, NUMBER, Silent()).follow()
    assert "started nothing in 0.2 s" in last["reason"] and control.stopped == [NUMBER]


def test_ctrl_c_before_the_process_is_there_stops_the_run(site: Site, ticket: str) -> None:
    control = Answers(site, None)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    last = _Follower(site, control, ticket, NUMBER, Silent()).follow()
    assert last["status"] == "interrupted" and control.stopped == [NUMBER]
