"""One scenario, one result to the bit: on any engine, with any number of workers, in any order, after a kill."""

import random
import threading
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
import torch

from fedsim.engine import Workforce
from fedsim.engine.inline import InlineEngine, InlineGrid
from fedsim.grid import Begun, Chunk, ChunkResult, NumberedGrid
from fedsim.job import Job
from fedsim.states import ClientStates
from fedsim.stored import open_run
from tests import small

if TYPE_CHECKING:
    from fedsim.engine.ray import RayEngine

JOBS: dict[str, small.Changes] = {
    "plain": {"rounds": 2},
    "private": small.PRIVATE,
    "scaffold": {"strategy": {"name": "scaffold"}, "cohort.size": 3},
    "ditto": {"strategy": {"name": "ditto"}, "train.momentum": 0.9, "cohort.size": 3},
    "fedrep": {"strategy": {"name": "fedrep"}, "cohort.size": 3},
    # more clients than chunks, so that several clients share one, and empty cohorts happen
    "crowd": {
        "data.partition": {"kind": "iid", "clients": 90},
        "strategy": {"name": "scaffold"},
        "cohort": {"poisson": 0.8},
        "evaluate.clients_every": 0,
    },
}

REDUCING = """
from fedsim.algorithm import Algorithm, Local, Server, Upload, Combined

def reducing() -> Algorithm:
    def client(local: Local) -> Upload:
        return Upload(local.train(local.received).params - local.received)

    def server(server: Server, combined: Combined) -> Server:
        return server._replace(params=server.params + combined.update / (1 + combined.update @ combined.update))

    return Algorithm("reducing", client, server)
"""

MORTAL = """
import os
from pathlib import Path
from torch import nn

class Mortal(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int, grave: str):
        super().__init__()
        self.grave, self.layer = Path(grave), nn.Linear(64, classes)

    def forward(self, x):
        if self.training and not self.grave.exists():
            self.grave.touch()
            os._exit(1)
        return self.layer(x.flatten(1))
"""


def fingerprint(job: Job, engine: Workforce | None = None) -> str:
    with TemporaryDirectory() as folder:
        return small.run(job, Path(folder) / "run", engine).fingerprint


@cache
def prepared(name: str) -> Job:
    return small.job(JOBS[name])


@cache
def inline(name: str) -> str:
    return fingerprint(prepared(name))


@pytest.mark.parametrize("name", JOBS)
def test_ray_gives_the_bits_of_one_process(name: str, ray_engine: "RayEngine") -> None:
    """Clients' states included: they are kept by the driver and travel to whichever worker is free."""
    assert fingerprint(prepared(name), ray_engine) == inline(name)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("name", ["plain", "private"])
def test_bits_do_not_depend_on_workers(name: str, workers: int, ray_engine: "RayEngine") -> None:
    """Chunks and the order of sums depend on the cohort alone."""
    assert fingerprint(prepared(name), small.with_workers(ray_engine, workers)) == inline(name)


@pytest.mark.parametrize("name", JOBS)
def test_a_second_run_gives_the_same_bits(name: str) -> None:
    """Also when the job is prepared anew: partition, initial model and noise are drawn from the seed."""
    assert fingerprint(small.job(JOBS[name])) == inline(name)


def test_another_seed_gives_other_bits() -> None:
    assert fingerprint(small.job({**JOBS["plain"], "seed": 2})) != inline("plain")


class BackToFront(InlineEngine):
    """Does the chunks of every call from the last to the first."""

    def grid(self, job: Job, states: ClientStates | None = None) -> InlineGrid:
        return BackToFrontGrid(job, states)


class BackToFrontGrid(InlineGrid):
    def begin(self, chunks: Sequence[Chunk]) -> Begun:
        begun = super().begin(chunks[::-1])
        return begun._replace(results=lambda: begun.results()[::-1])


@pytest.mark.parametrize("name", JOBS)
def test_the_order_of_chunks_does_not_matter(name: str) -> None:
    """A client's work leaves nothing behind in its worker that the next client could see."""
    assert fingerprint(prepared(name), BackToFront()) == inline(name)


def test_a_worker_killed_in_mid_round_changes_nothing(tmp_path: Path, ray_engine: "RayEngine") -> None:
    """It is replaced, and its chunk run again: no client fails."""
    (tmp_path / "mortal.py").write_text(MORTAL)
    grave = tmp_path / "grave"
    job = small.job({"rounds": 2, "model": {"name": "mortal.py:Mortal", "grave": str(grave)}}, tmp_path)
    killed = small.run(job, tmp_path / "killed", ray_engine)
    assert grave.exists()
    assert killed.fingerprint == fingerprint(job)


DEADLY = """
import os
from torch import nn

class Deadly(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int, kills: bool):
        super().__init__()
        self.kills, self.layer = kills, nn.Linear(3, classes)

    def forward(self, x):
        if self.training and x[0, 2] > 0:
            if self.kills:
                os._exit(1)
            raise RuntimeError("odd")
        return self.layer(x)
"""


def test_a_client_that_kills_every_worker_is_lost_alone(tmp_path: Path, ray_engine: "RayEngine") -> None:
    """The others of its chunk count as if it had only failed: the same bits."""
    (tmp_path / "deadly.py").write_text(DEADLY)
    fingerprints = []
    for kills, engine in ((True, ray_engine), (False, InlineEngine())):
        model = {"name": "deadly.py:Deadly", "kills": kills}
        changes = {**small.POINTS, "rounds": 1, "model": model, "evaluate.clients_every": 0}
        job = small.job(changes, tmp_path, data=small.points(1.0, clients=40, rows=10))
        result = small.run(job, tmp_path / str(kills), engine)
        fingerprints.append(result.fingerprint)
        with closing(open_run(result.folder)) as records:
            assert [row.client for row in records.clients() if row.status == "failed"] == [small.ODD]
    assert fingerprints[0] == fingerprints[1]


class Struck:
    """Ray, one of whose workers is killed when the job has been installed on all."""

    description = "Ray, struck"

    def __init__(self, engine: "RayEngine") -> None:
        self.engine = engine

    def grid(self, job: Job, states: ClientStates | None = None) -> NumberedGrid:
        import ray

        grid = self.engine.grid(job, states)
        ray.kill(self.engine.actors[0])
        return grid

    def close(self) -> None:
        """The session's Ray goes on."""


def test_a_worker_killed_from_outside_changes_nothing(ray_engine: "RayEngine") -> None:
    """As a system short of memory kills it."""
    assert fingerprint(prepared("plain"), Struck(ray_engine)) == inline("plain")


class Harassed(Struck):
    """Ray, of which a worker that is at work is killed whenever chunks have been handed out."""

    description = "Ray, harassed"

    def grid(self, job: Job, states: ClientStates | None = None) -> NumberedGrid:
        import ray

        from fedsim.engine.ray import RayGrid

        grid, draws = RayGrid(self.engine, job, states), random.Random(1)
        begin = grid.begin

        def harassed(chunks: Sequence[Chunk]) -> Begun:
            ready = [place.number for place in grid.crew.places if place.installing is None]
            victims = [self.engine.actors[draws.choice(ready)]] if ready else []
            killing = threading.Timer(draws.uniform(0, 0.05), lambda: [ray.kill(victim) for victim in victims])
            killing.start()
            begun = begin(chunks)

            def results() -> list[ChunkResult]:
                try:
                    return begun.results()
                finally:
                    killing.join()

            return begun._replace(results=results)

        grid.begin = harassed  # type: ignore[method-assign]
        return grid


OFTEN = [pytest.param(name, marks=pytest.mark.proof) for name in ("scaffold", "ditto", "crowd")]
"""Starting a worker takes seconds, and here one starts in nearly every round."""


@pytest.mark.parametrize("name", ["plain", *OFTEN])
def test_a_random_worker_killed_every_round_changes_nothing(name: str, ray_engine: "RayEngine") -> None:
    """Chunks that were lost are done again, whatever else the dead worker held, and by whoever is there."""
    assert fingerprint(prepared(name), Harassed(ray_engine)) == inline(name)


def test_a_server_half_that_sums_has_the_same_bits_on_ray(ray_engine: "RayEngine", tmp_path: Path) -> None:
    """The driver runs it on one thread on either engine; with two, a dot product has other brackets."""
    (tmp_path / "own.py").write_text(REDUCING)
    changes = {"strategy": {"name": "own.py:reducing"}, "model": {"name": "mlp", "hidden": [600, 600]}, "rounds": 2}
    job = small.job(changes, tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert fingerprint(job, ray_engine) == fingerprint(job)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
