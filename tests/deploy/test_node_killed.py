"""SIGKILL of a node over a private message, at every step of it: what was charged covers what left."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from fedsim.deploy.node import log as logs
from fedsim.deploy.node.ledger import Ledger
from fedsim.local import Work
from tests import small
from tests.deploy.node_messages import Played
from tests.deploy.test_node_handling import EXAMPLE, arrays, metrics

CHARGE, WORK = "fedsim.deploy.node.ledger.Ledger.charge", "fedsim.deploy.node.handling.answered"
KEEP, WRITE = "fedsim.deploy.node.kept.Replies.put", "fedsim.deploy.node.log.Log.write"
POINTS: list[tuple[str, bool, int, int]] = [
    (CHARGE, False, 0, 1),
    (CHARGE, True, 1, 2),  # charged for nothing: that is never taken back
    (WORK, False, 1, 2),
    (WORK, True, 1, 2),
    (KEEP, False, 1, 2),
    (KEEP, True, 1, 1),  # the same noise, the same bytes: one release
    (WRITE, False, 1, 1),
    (WRITE, True, 1, 1),
]
"""What a node is killed at, whether after it; charges then, and once the message was answered after all."""


def killing(work: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    """The same, ended by SIGKILL before or after it is done."""

    def killed(*given: Any, **named: Any) -> Any:
        if after:
            work(*given, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    return killed


def in_child(work: Callable[[], None]) -> int:
    """Run something in a process of its own; the signal that ended it as a negative number, else 0."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Played, Work]:
    """A node over a private job that has answered round 1, so that data and work are loaded."""
    played = Played(small.job(EXAMPLE), tmp_path_factory.mktemp("killed"))
    work = Work(played.job)
    assert metrics(played.ask(played.train(work)))["counter"] == 1
    return played, work


@pytest.mark.parametrize(("name", "after", "charged", "at_last"), POINTS)
def test_killed_over_a_message(
    warm: tuple[Played, Work], monkeypatch: pytest.MonkeyPatch, name: str, after: bool, charged: int, at_last: int
) -> None:
    """Charges are never fewer than replies with noise of their own, and the log's chain stays whole."""
    played, work = warm
    ledger, log, out = (played.folder / file for file in ("ledger.db", "log.jsonl", f"{name}-{after}"))
    before, round = Ledger(ledger).counter, 2 + POINTS.index((name, after, charged, at_last))
    message = played.train(work, round)

    def asked() -> None:
        # SQLite's connections are not for two processes; data and work are.
        played.node = replace(played.node, ledger=Ledger(ledger), log=logs.Log(log))
        out.write_bytes(b"".join(arrays(played.ask(message)).values()))

    holder, _, last = name.rpartition(".")
    with monkeypatch.context() as patched:
        patched.setattr(name, killing(getattr(resolve_name(holder), last), after=after))
        assert in_child(asked) == -signal.SIGKILL
    assert Ledger(ledger).counter - before == charged and not out.exists()  # nothing left before it was charged
    assert in_child(asked) == 0
    assert out.stat().st_size > 0 and Ledger(ledger).counter - before == at_last
    assert logs.verify(log) == []
    assert [each["kind"] for each in logs.entries(log) if each["round"] == round][-1] == "answered"


def test_charges_are_replies_where_nobody_is_killed(tmp_path: Path) -> None:
    """Equal, not only covered."""
    played = Played(small.job(EXAMPLE), tmp_path)
    work = Work(played.job)
    for round in (1, 2, 3):
        assert metrics(played.ask(played.train(work, round)))["counter"] == round
    assert Ledger(played.folder / "ledger.db").counter == 3
