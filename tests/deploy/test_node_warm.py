"""The process that works stays warm, survives what messages do, and is replaced when it dies.

With real processes and a SuperNode's Runtime API, but no server.
"""

import importlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Message
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from fedsim.deploy import _flower
from fedsim.deploy._flower import CRASHED, Runtime
from fedsim.deploy.node import log as logs
from fedsim.deploy.node.hands import Worker, attend
from fedsim.errors import DeployError
from fedsim.local import Work
from tests import small
from tests.deploy.node_messages import Played
from tests.deploy.supernode import SuperNode
from tests.deploy.test_node_handling import EXAMPLE, arrays, metrics


class Running:
    """A node of real processes, whose supervisor is the test."""

    def __init__(self, at: Path) -> None:
        self.played = Played(small.job(EXAMPLE), at)
        self.work = Work(self.played.job)
        self.supernode = SuperNode(self.played.fab)
        self.runtime = Runtime(self.supernode.address, self.supernode.secret)
        self.lines: list[str] = []
        self.worker = self.started()
        self._round = 0

    def started(self) -> Worker:
        """A warm process that is ready."""
        worker = Worker(self.played.folder, self.played.data, self.played.folder / "worker.log", seeded_coins=True)
        worker.wait(lambda: False)
        return worker

    def message(self) -> Message:
        """The next round's."""
        self._round += 1
        return self.played.train(self.work, round=self._round)

    def ask(self, message: Message) -> Message:
        """The answer to one message, through SuperNode, supervisor and warm process."""
        self.supernode.put(message)
        task = self.runtime.next()
        assert task is not None
        attend(task, self.worker, "north", self.lines.append, lambda: False)
        answer = self.supernode.answer()
        assert answer is not None and answer.metadata.reply_to_message_id == message.metadata.message_id
        return answer

    def close(self) -> None:
        """End everything."""
        self.runtime.close()
        self.worker.stop()
        self.supernode.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("warm"))
    yield running
    running.close()


def test_a_message_goes_through_all_processes_and_comes_back_as_in_one(running: Running) -> None:
    """The same bits as the node gives in this process, with the ledger's charge."""
    message = running.message()
    answer = running.ask(message)
    assert metrics(answer)["counter"] == 1 and running.played.node.ledger.counter == 1
    stored = running.played.ask(message)
    assert arrays(answer) == arrays(stored)
    assert running.lines[-1].startswith("answered: train, round 1")


def test_the_second_message_finds_the_data_loaded(running: Running) -> None:
    """It is answered though the rows' file is damaged by then; a process that was just started would read it."""
    running.ask(running.message())
    rows = running.played.data / "rows.npz"
    found = rows.stat()
    content = rows.read_bytes()
    rows.write_bytes(b"x" * len(content))  # whoever reads it again would fail
    os.utime(rows, ns=(found.st_atime_ns, found.st_mtime_ns))
    try:
        assert not running.ask(running.message()).has_error()
    finally:
        rows.write_bytes(content)
        os.utime(rows, ns=(found.st_atime_ns, found.st_mtime_ns))


def test_only_who_knows_the_secret_is_given_tasks(running: Running) -> None:
    """Somebody else on the node's machine could otherwise take a message and answer it in the node's name."""
    message = running.message()
    running.supernode.put(message)
    stranger = Runtime(running.supernode.address, b"guessed")
    assert stranger.next() is None
    stranger.close()
    task = running.runtime.next()
    assert task is not None
    attend(task, running.worker, "north", running.lines.append, lambda: False)
    assert running.supernode.answer() is not None


def test_a_process_that_dies_costs_its_message_alone(running: Running) -> None:
    """SIGKILL over a message: its answer is an error at once, and the next process answers the same message again."""
    os.kill(running.worker.child.pid, signal.SIGSTOP)
    message = running.message()
    running.supernode.put(message)
    task = running.runtime.next()
    assert task is not None
    killed = running.worker.child.pid

    def ending() -> bool:
        os.kill(killed, signal.SIGKILL)  # while the message is with it
        return False

    began = time.monotonic()
    attend(task, running.worker, "north", running.lines.append, ending)
    answer = running.supernode.answer()
    assert answer is not None and answer.error.code == CRASHED and "signal 9" in str(answer.error.reason)
    log = str(running.worker.child.log)
    assert log in running.lines[-1] and log not in str(answer.error.reason)  # the owner's paths are the owner's
    assert time.monotonic() - began < 30  # Flower itself would notice after 60 s
    running.worker.stop()
    running.worker = running.started()
    before = running.played.node.ledger.counter
    answered = running.ask(running.message())
    assert metrics(answered)["counter"] == running.played.node.ledger.counter == before + 1


def test_what_the_log_says_is_whole_after_a_kill(running: Running) -> None:
    """Its chain of hashes, and an entry for each answer."""
    log = running.played.folder / "log.jsonl"
    assert logs.verify(log) == []
    assert sum(entry["kind"] == "answered" for entry in logs.entries(log)) >= 4


def test_flower_is_of_a_version_whose_inside_is_known() -> None:
    """`_flower.py` uses names that Flower may move: look at it before allowing another version in pyproject.toml."""
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (wanted,) = [each for each in project["dependencies"] if each.startswith("flwr")]
    allowed = SpecifierSet(wanted.removeprefix("flwr"))
    assert Version(importlib.metadata.version("flwr")) in allowed
    assert [f"1.{minor}" for minor in range(30, 60) if f"1.{minor}.0" in allowed] == ["1.41", "1.42"]
    client = vars(_flower)["RuntimeHttpClient"]
    assert all(hasattr(client, name) for name in ("AcquireTask", "PullTaskInput", "PullMessages", "PushTaskOutput"))


def test_damaged_rows_are_told_before_anybody_asks(running: Running, tmp_path: Path) -> None:
    """In one line, by a process that then ends."""
    rows = tmp_path / "rows"
    shutil.copytree(running.played.data, rows)
    (rows / "rows.npz").write_bytes(b"no arrays")
    worker = Worker(running.played.folder, rows, tmp_path / "worker.log")
    with pytest.raises(DeployError, match=r"rows.npz: is damaged"):
        worker.wait(lambda: False)
    assert worker.child.wait(10) == 0
    worker.stop()
