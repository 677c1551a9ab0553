"""A long run needs no more than a short one: neither memory nor open files grow with its rounds."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

from fedsim.data.corpus import Corpus, Folders
from fedsim.engine.inline import InlineEngine
from fedsim.local import Work
from fedsim.progress import Silent
from fedsim.records import RoundRecord
from fedsim.rounds import run_job
from fedsim.summary import Result
from tests import small

if TYPE_CHECKING:
    from fedsim.engine.ray import RayEngine

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
PAGE = os.sysconf("SC_PAGE_SIZE")
SCENARIO: small.Changes = {
    "strategy": {"name": "scaffold"},
    "cohort.size": 3,
    "model.hidden": [64],
    "evaluate": {"every": 10, "clients_every": 10},
}


class Usage(NamedTuple):
    """Of one process: bytes of its own that are resident (not what it shares with others), and open files."""

    memory: int
    files: int


def usage(process: int) -> Usage:
    _, resident, shared, *_ = map(int, Path(f"/proc/{process}/statm").read_text().split())
    return Usage((resident - shared) * PAGE, len(list(Path(f"/proc/{process}/fd").iterdir())))


class Scale:
    """Weighs driver and workers after every round.

    What the driver's allocator holds back for later is given back first: in the first hundreds of rounds it comes to
    some megabytes, then to no more, and it would hide a leak.
    """

    def __init__(self, processes: Sequence[int]) -> None:
        self._processes = processes
        self.weighed: list[list[Usage]] = []

    def round_finished(self, record: RoundRecord) -> None:
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)
        self.weighed.append([usage(process) for process in self._processes])

    def run_finished(self, result: Result) -> None:
        """The last round has been weighed."""


def weighed(engine: "RayEngine", rounds: int, folder: Path) -> list[list[Usage]]:
    import ray

    pids = ray.get([actor.__ray_call__.remote(lambda worker: os.getpid()) for actor in engine.actors])
    scale = Scale([os.getpid(), *pids])
    run_job(small.job({**SCENARIO, "rounds": rounds}), engine, folder / "run", Silent(), [scale])
    return scale.weighed


def growth(before: Sequence[Sequence[Usage]], after: Sequence[Sequence[Usage]]) -> list[float]:
    """For every process the share by which its memory has grown, from the largest of some rounds to that of others."""
    pairs = zip(zip(*before, strict=True), zip(*after, strict=True), strict=True)
    return [max(use.memory for use in late) / max(use.memory for use in early) - 1 for early, late in pairs]


def check(rounds: Sequence[Sequence[Usage]], early: slice, most: float) -> None:
    grown = growth(rounds[early], rounds[-20:])
    print(f"\nmemory grew by {', '.join(f'{100 * share:.2f} %' for share in grown)} (driver, workers)")
    assert max(grown) < most
    files = [[use.files for use in round] for round in rounds]
    assert all(last <= first + 2 for first, last in zip(files[early][-1], files[-1], strict=True))


def test_two_hundred_rounds(ray_engine: "RayEngine", tmp_path: Path) -> None:
    """A leak of a kilobyte a round and client would pass; one of the model or of Ray's references would not."""
    check(weighed(small.with_workers(ray_engine, 2), 200, tmp_path), slice(60, 80), 0.02)


@pytest.mark.proof
def test_a_thousand_rounds(ray_engine: "RayEngine", tmp_path: Path) -> None:
    check(weighed(small.with_workers(ray_engine, 2), 1000, tmp_path), slice(80, 100), 0.01)


CROWD: small.Changes = {
    "strategy": {"name": "scaffold"},
    "data": {"name": "crowd", "partition": {"kind": "natural"}, "split": {"central": 0.0}, "min_rows": 2},
    "model.hidden": [100],
    "train": {"learning_rate": 0.1, "batch_size": 8},
    "evaluate.clients_every": 0,
    "records.clients": "failed",
    "checkpoint.keep": 1,
}
ROWS = 4


def crowd(clients: int) -> Corpus:
    """Many clients of a few points each."""
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(clients), ROWS)
    y = rng.integers(0, 2, len(owners))
    x = (rng.normal(0, 1, (len(owners), 20)) + y[:, None]).astype(np.float32)
    names = tuple(map(str, range(clients)))
    classes = ("low", "high")
    return Corpus("crowd", "classification", x, y.astype(np.int64), classes, clients=owners, client_names=names)


def check_crowd(clients: int, cohort: int, rounds: int, folder: Path) -> None:
    """Clients' controls are on the disk: the driver grows by far less than they take."""

    def data(folders: Folders) -> Corpus:
        return crowd(clients)

    job = small.job({**CROWD, "cohort.size": cohort, "rounds": rounds}, data=data)
    scale = Scale([os.getpid()])
    run_job(job, InlineEngine(), folder / "run", Silent(), [scale])
    grown = max(use[0].memory for use in scale.weighed[3:]) - scale.weighed[2][0].memory
    written = 0.8 * cohort * rounds * 4 * Work(job).layout.size
    kept = sum(file.stat().st_size for file in (folder / "run" / "checkpoints").glob("states-*"))
    print(f"\n{clients} clients: {kept / 1e6:.0f} MB of states on the disk, the driver grew by {grown / 1e6:.1f} MB")
    assert kept > written / 2, "some clients took part twice, and their old states have gone"
    assert grown < kept / 4


def test_states_of_many_clients_are_not_held(tmp_path: Path) -> None:
    """SCAFFOLD keeps a vector for every client; what was trained earlier is read from the disk when it is asked for."""
    check_crowd(10_000, 800, 10, tmp_path)


@pytest.mark.proof
def test_states_of_100_000_clients(tmp_path: Path) -> None:
    check_crowd(100_000, 2_500, 40, tmp_path)
