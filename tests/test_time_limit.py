"""A client that takes longer than `cohort.client_timeout` is a recorded failure; the round goes on without it."""

import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedsim.engine import Engine
from fedsim.engine.ray import RayGrid
from fedsim.errors import ClientError
from fedsim.local import Work
from fedsim.parameters import to_record
from fedsim.signals import time_limit
from fedsim.stored import open_run
from tests import small

if TYPE_CHECKING:
    from fedsim.engine.ray import RayEngine

SLOW = """
import time
from torch import nn

class Slow(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int):
        super().__init__()
        self.layer = nn.Linear(3, classes)

    def forward(self, x):
        while self.training and x[0, 2] > 0:
            time.sleep(0.01)
        return self.layer(x)
"""
STUBBORN = SLOW.replace("import time", "import signal, time").replace(
    "time.sleep", "signal.signal(signal.SIGALRM, signal.SIG_IGN); time.sleep"
)
"""As code that no alarm can reach. Code that swallows exceptions is reached now and then, between two of its tries."""
LIMIT = 1.0


def run(code: str, folder: Path, engine: Engine) -> list[tuple[int, str, str | None]]:
    """Status and error of every client in a round in which the marked one does not come to an end."""
    (folder / "slow.py").write_text(code)
    changes = {**small.POINTS, "rounds": 1, "model": {"name": "slow.py:Slow"}, "cohort.client_timeout": LIMIT}
    small.run(small.job(changes, folder, data=small.points(1.0)), folder / "run", engine)
    with closing(open_run(folder / "run")) as records:
        return [(row.client, row.status, row.error) for row in records.clients() if row.phase == "train"]


def test_a_slow_client_fails_alone(tmp_path: Path, engine: Engine) -> None:
    rows = run(SLOW, tmp_path, engine)
    assert [status for _, status, _ in rows] == ["failed" if client == small.ODD else "ok" for client, *_ in rows]
    error = rows[small.ODD][2]
    assert error == f"round 1, client {small.ODD}: took longer than cohort.client_timeout = {LIMIT:g} s"


def test_a_worker_that_does_not_heed_the_limit_is_ended(
    tmp_path: Path, ray_engine: "RayEngine", monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code takes the alarm away: the worker is replaced, and only that client is lost."""
    monkeypatch.setattr("fedsim.engine.crew.GRACE_SECONDS", 1.0)
    rows = run(STUBBORN, tmp_path, ray_engine)
    assert [status for _, status, _ in rows] == ["failed" if client == small.ODD else "ok" for client, *_ in rows]
    assert "did not heed cohort.client_timeout" in str(rows[small.ODD][2])


def test_a_result_that_waits_for_the_driver_is_not_late(ray_engine: "RayEngine") -> None:
    """Workers train while the driver commits and observers look on: what has come back in the meantime counts."""
    import ray

    job = small.job({**small.POINTS, "cohort.client_timeout": 60}, data=small.points(1.0))
    grid, work = ray_engine.grid(job), Work(job)
    assert isinstance(grid, RayGrid)
    arrays = to_record(work.layout, work.initial)
    messages = [
        Message(RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})}), node, "train")
        for node in grid.get_node_ids()
    ]
    workers = list(ray_engine.actors)
    pushed = grid.push_messages(messages)
    for place in grid.crew.places:
        ray.wait(list(place.held), num_returns=len(place.held))
        place.since -= 1e6  # the driver was away for days
    assert not any(reply.has_error() for reply in grid.pull_messages(pushed))
    assert ray_engine.actors == workers


def test_the_limit_ends_with_its_block() -> None:
    with time_limit(0.05, "it"):
        pass
    time.sleep(0.1)
    with pytest.raises(ClientError, match=r"^took longer than it = 0\.05 s$"), time_limit(0.05, "it"):
        time.sleep(5)


def test_without_an_alarm_clock_there_is_no_limit() -> None:
    """Only the main thread has one; elsewhere the work is done as ever."""
    done: list[bool] = []

    def work() -> None:
        with time_limit(0.01, "it"):
            time.sleep(0.05)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
