"""A run that is killed at any instant and resumed ends as one that was never interrupted.

To the bit: the model, every table apart from wall-clock times, the exported models, the clients' states. Processes are
really killed, with SIGKILL, at named points of a commit and at random times, also while they resume.
"""

import multiprocessing
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import wraps
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fedsim import checkpoints, records
from fedsim.reading import Records
from fedsim.resuming import resume
from fedsim.rounds import Run
from fedsim.rounds import run as run_scenario
from fedsim.runs import RunFolder
from fedsim.states import StateFiles
from fedsim.stored import open_run
from tests import small
from tests.test_interrupt import MARK, left_behind

PRELOADED = ("fedsim.engine.inline", "fedsim.privacy.example", "scipy.stats", "sklearn.datasets", "torch._dynamo")
"""What a run imports late, beside what this file imports."""
ON_RAY = ("written", "recorded", "between rounds", "removed", "recording")
"""Where runs on Ray are killed, one after the other."""

FEDADAM = '''
"""FedAdam (Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2): the server keeps moments."""

import torch

from fedsim.algorithm import Algorithm, Combined, Local, Server, Upload, zeros


def fedadam(server_lr: float = 0.05, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> Algorithm:
    def client(local: Local) -> Upload:
        return Upload(local.train(local.received).params - local.received)

    def server(server: Server, combined: Combined) -> Server:
        m = beta1 * server.state["m"] + (1 - beta1) * combined.update
        v = beta2 * server.state["v"] + (1 - beta2) * combined.update.square()
        params = server.params + server_lr * m / (v.sqrt() + tau)
        return server._replace(params=params, state={"m": m, "v": v, "steps": server.state["steps"] + 1})

    steps = lambda params, population: torch.zeros((), dtype=torch.int64)
    return Algorithm("fedadam", client, server, server_state={"m": zeros, "v": zeros, "steps": steps})
'''

SCAFFOLD: small.Changes = {"strategy": {"name": "scaffold"}, "cohort.size": 3, "rounds": 10}
ADAM: small.Changes = {"strategy": {"name": "adam.py:fedadam"}, "rounds": 10}
SCENARIOS: dict[str, small.Changes] = {
    "private": {
        "privacy.example": {"epsilon": 8.0, "delta": 1e-3, "max_grad_norm": 1.0},
        "cohort.size": 3,
        "rounds": 8,
    },
    "client level, adaptive clip": {
        "strategy": {"name": "fedavg", "weights": "uniform"},
        "privacy.client": {"noise_multiplier": 1.0, "delta": 1e-3, "clip": 0.3, "adaptive": {}},
        "cohort.poisson": 0.5,
        "rounds": 8,
    },
    "dp-ftrl": {
        "strategy": {"name": "fedavg", "weights": "uniform"},
        "privacy.client": {
            "noise_multiplier": 4.0,
            "delta": 1e-3,
            "clip": 0.3,
            "mechanism": "tree",
            "min_separation": 2,
        },
        "cohort.size": 2,
        "rounds": 8,
    },
    "scaffold": SCAFFOLD,
    "scaffold, checkpoints apart": {**SCAFFOLD, "rounds": 11, "checkpoint": {"every": 3, "keep": 1}},
    "fedadam": {**ADAM, "cohort.size": 4, "checkpoint.every": 1},
    "fedadam, poisson cohorts": {**ADAM, "rounds": 12, "cohort.poisson": 0.5, "checkpoint.every": 3},
    "failures recorded": {
        **SCAFFOLD,
        "model": {"name": "picky.py:Picky", "above": 24.0},
        "records.clients": "failed",
        "checkpoint.keep": 3,
    },
}
BESIDE = ("references/local", "references/central")
COMPARED: small.Changes = {"rounds": 3, "cohort.size": 3, "references": ["local", "central"]}

POINTS = (
    "half written",  # a file's content, under a temporary name
    "written",  # all of it
    "synced",  # to the disk
    "renamed",  # to its name
    "states written",  # and not yet the checkpoint that they belong to
    "unrecorded",  # all files are there, and no row
    "recording",  # rows are inserted, and not committed
    "recorded",  # right after SQLite's commit
    "removing",  # before old checkpoints go
    "pruned",  # rows of old states have gone, and not their files
    "removed",  # one old file
    "between rounds",  # as the driver sees them; the commit may be going on
)


class Kill(NamedTuple):
    """When a process kills itself: at a point, after so many commits of its own, passing it so many times before."""

    point: str
    commits: int
    passes: int


class Life(NamedTuple):
    """One process: a run, or a run resumed, and what ends it before its end."""

    out: Path
    scenario: str | None
    kill: Kill | None
    engine: str = "inline"
    mark: str = ""
    setting: str = ""


# In the processes that are killed


def serve(descriptor: int) -> None:
    """Fork a process for every life that is asked for; what takes long to import is there already."""
    torch.set_num_threads(1)
    for name in PRELOADED:
        import_module(name)
    if not torch.cuda.is_available():  # where there is a GPU, no gradient may be taken before a fork
        small.job(SCENARIOS["private"])  # every process remembers what solving for the noise has found
    connection = Connection(descriptor)
    connection.send("ready")
    while True:
        try:
            life: Life = connection.recv()
        except EOFError:
            return
        process = os.fork()
        if not process:
            live(life)
        connection.send(process)
        connection.send(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


def live(life: Life) -> None:
    """Run or resume in this process, and end it."""
    status = 1
    try:
        if life.mark:
            os.environ[MARK] = life.mark
        if life.kill is not None:
            arm(life.kill)
        if life.scenario is None:
            resume(life.out, settings=[f"engine.kind={life.engine}", *filter(None, [life.setting])])
        else:
            changes = {
                **{**SCENARIOS, "compared": COMPARED}[life.scenario],
                "engine": {"kind": life.engine, "workers": 2},
            }
            run_scenario(small.scenario(changes, life.out.parent), out=life.out)
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def arm(kill: Kill) -> None:
    """Have this process kill itself, from around the functions that a commit calls."""
    commits, passes = 0, 0

    def reached(point: str, file: Path | None = None) -> None:
        nonlocal passes
        if point == kill.point and commits >= kill.commits:
            passes += 1
            if passes > kill.passes:
                if file is not None:
                    os.truncate(file, file.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

    def committed() -> None:
        nonlocal commits
        commits += 1
        reached("recorded")

    def recording(*arguments: Any, **_: Any) -> None:
        arguments[0].set_trace_callback(lambda statement: reached("recording") if statement == "COMMIT" else None)
        reached("unrecorded")

    def regular(descriptor: int) -> bool:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)

    def at_file(point: str) -> Callable[[int], None]:
        return lambda file: reached(point) if regular(file) else None

    around(checkpoints, "save_file", after=lambda tensors, file, *_: reached("half written", file))
    around(Path, "write_bytes", after=lambda file, *_: reached("half written", file))
    around(os, "fsync", at_file("written"), at_file("synced"))
    around(Path, "replace", after=lambda *_: reached("renamed"))
    around(Path, "unlink", after=lambda *_, **__: reached("removed"))
    around(checkpoints, "save", after=lambda path, *_: reached("states written") if "states" in path.name else None)
    around(records, "insert_round", recording, after=lambda *_, **__: committed())
    around(records, "prune_states", after=lambda *_: reached("pruned"))
    around(RunFolder, "_remove_old_checkpoints", lambda *_: reached("removing"))
    around(Run, "round", after=lambda *_: reached("between rounds"))


def around(
    owner: Any,
    name: str,
    before: Callable[..., None] = lambda *_, **__: None,
    after: Callable[..., None] = lambda *_, **__: None,
) -> None:
    """Call something before and after a function, with its arguments."""
    function = getattr(owner, name)

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        before(*arguments, **named)
        result = function(*arguments, **named)
        after(*arguments, **named)
        return result

    setattr(owner, name, call)


# In the test's own process


class Server:
    """The process that has imported everything and forks others."""

    def __init__(self) -> None:
        self._connection, there = multiprocessing.Pipe()
        code = f"from {__name__} import serve; serve({there.fileno()})"
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen([sys.executable, "-c", code], cwd=root, pass_fds=[there.fileno()])
        there.close()
        self._connection.recv()

    def live(self, life: Life, seconds: float | None = None) -> int:
        """A life to its end, perhaps killed so long after its first commit; its status, -9 if it was killed."""
        self._connection.send(life)
        process = self._connection.recv()
        if seconds is not None:
            while not self._connection.poll(0.005) and not progress(life.out)[0]:
                pass
            if not self._connection.poll(seconds):
                os.kill(process, signal.SIGKILL)  # nobody has asked for its status yet, so it is there
        status: int = self._connection.recv()
        return status

    def close(self) -> None:
        self._connection.close()
        self._process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.close()


class Whole(NamedTuple):
    """A run that nothing interrupted, and its seconds from the first commit to the last."""

    out: Path
    seconds: float


@pytest.fixture(scope="module")
def wholes(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    found: dict[str, Whole] = {}

    def whole(name: str) -> Whole:
        if name not in found:
            out = place(tmp_path_factory.mktemp("whole"))
            assert server.live(Life(out, name, None)) == 0
            with closing(open_run(out)) as read:
                first, *_, last = (row.committed for row in read.rounds())
            found[name] = Whole(out, last - first)
        return found[name]

    return whole


def place(folder: Path) -> Path:
    """Where a run may be, beside the user's own files."""
    (folder / "adam.py").write_text(FEDADAM)
    (folder / "picky.py").write_text(small.PICKY)
    return folder / "run"


def progress(out: Path) -> tuple[int, bool]:
    """Committed rounds, and whether the run has ended."""
    if not out.exists():
        return 0, False
    with closing(open_run(out)) as read:
        return len(read.rounds()), bool(read.summary())


def contents(out: Path) -> dict[str, Any]:
    """All that a run leaves, apart from times and from what is said of kills themselves."""
    with closing(open_run(out)) as read:
        tables = {table: rows_of(read, table) for table in records.schema()}
        last = read.rounds()[-1].number
        places = read.live_states(last)
    tables["summary"] = [row for row in tables["summary"] if row[0] not in ("seconds", "seconds_per_round", "folder")]
    tables["events"] = [row for row in tables["events"] if row[1] != "resumed"]
    files, kept = StateFiles(out / "checkpoints"), {}
    for client, checkpoint, made in places:
        state = files.read(checkpoint, client)
        kept[client] = made, {name: vector.tolist() for name, vector in state.items()}
    models = {file.name: file.read_bytes() for file in (out / "model").iterdir()}
    checkpoints = {file.name: file.read_bytes() for file in (out / "checkpoints").iterdir()}
    return {**tables, "clients' states": kept, "models": models, "checkpoints": checkpoints}


def rows_of(read: Records, table: str) -> list[tuple[Any, ...]]:
    columns = [name for name in records.schema()[table] if name not in ("seconds", "committed")]
    return [tuple(row) for row in read.select(f"SELECT {', '.join(columns)} FROM {table}")]


def check_same(out: Path, whole: Whole) -> None:
    expected, found = contents(whole.out), contents(out)
    assert expected["rounds"] and expected["metrics"] and expected["models"]
    different = [name for name in expected if found[name] != expected[name]]
    tables = records.schema().keys() | {"clients' states"}
    assert not different, (different, {name: (found[name], expected[name]) for name in different if name in tables})


class Killer:
    """Draws how runs of one scenario are killed, and counts those that really were."""

    def __init__(self, server: Server, name: str, whole: Whole, seed: int) -> None:
        self.server, self.name, self.whole = server, name, whole
        self.draw = random.Random(f"{name} {seed}")
        self.hits = 0
        stateful = SCENARIOS[name].get("strategy") == SCAFFOLD["strategy"]
        self.points = [point for point in POINTS if point != "states written" or stateful]
        self.rounds = int(small.scenario(SCENARIOS[name], whole.out.parent).rounds)

    def kill_until_hit(self, out: Path, point: str | None) -> None:
        """Run until a kill falls after the first commit and before the end; a miss makes random times shorter."""
        for trial in range(20):
            shutil.rmtree(out, ignore_errors=True)
            kill = Kill(point, self.draw.randint(1, self.rounds - 1), self.draw.randrange(3)) if point else None
            seconds = None if point else self.draw.uniform(0, self.whole.seconds) * 0.7**trial
            if self.hit(Life(out, self.name, kill), seconds):
                return
        pytest.fail(f"{self.name}: no kill at {point or 'a random time'} fell while rounds were run")

    def kill_resuming(self, out: Path, point: str | None) -> None:
        """Resume, and kill again; the run may end before."""
        kill = Kill(point, self.draw.randrange(2), self.draw.randrange(3)) if point else None
        self.hit(Life(out, None, kill), None if point else self.draw.uniform(0, 2 * self.whole.seconds))

    def hit(self, life: Life, seconds: float | None = None) -> bool:
        """Live it; whether it was killed after a commit and before the end of the run."""
        status = self.server.live(life, seconds)
        assert status in (0, -signal.SIGKILL), f"it ended by itself, with status {status}"
        rounds, ended = progress(life.out)
        hit = status == -signal.SIGKILL and rounds > 0 and not ended
        self.hits += hit
        return hit


def check_kills(server: Server, name: str, whole: Whole, folder: Path, wanted: int, seed: int) -> int:
    """Kill and resume runs of a scenario until so many kills hit; every third run is killed as it resumes, too."""
    killer = Killer(server, name, whole, seed)
    order = [*killer.points, None, None, None]
    killer.draw.shuffle(order)
    trial = 0
    while killer.hits < wanted:
        out = place(made(folder / f"{trial}"))
        killer.kill_until_hit(out, order[trial % len(order)])
        if trial % 3 == 0:
            killer.kill_resuming(out, killer.draw.choice(order))
        if not progress(out)[1]:
            assert server.live(Life(out, None, None)) == 0
        check_same(out, whole)
        shutil.rmtree(out.parent)
        trial += 1
    print(f"{name}: {killer.hits} kills hit, of {trial} runs")
    return killer.hits


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_killed_run_goes_on_to_the_same_end(
    name: str, server: Server, wholes: Callable[[str], Whole], tmp_path: Path
) -> None:
    assert check_kills(server, name, wholes(name), tmp_path, wanted=8, seed=1) >= 8


@pytest.mark.proof
@pytest.mark.parametrize("name", SCENARIOS)
def test_however_often_it_is_killed(name: str, server: Server, wholes: Callable[[str], Whole], tmp_path: Path) -> None:
    """Together with those above and below more than 200."""
    assert check_kills(server, name, wholes(name), tmp_path, wanted=34, seed=2) >= 34


@pytest.mark.parametrize("point", ["half written", "unrecorded", "recorded"])
def test_a_run_killed_while_one_beside_it_runs_goes_on_there(
    point: str, server: Server, wholes: Callable[[str], Whole], tmp_path: Path
) -> None:
    """In the first of them, and, resumed, in the second."""
    out, whole = place(tmp_path), wholes("compared")
    assert server.live(Life(out, "compared", Kill(point, 4, 0))) == -signal.SIGKILL
    assert progress(out) == (3, True) and not progress(out / BESIDE[0])[1]
    assert server.live(Life(out, None, Kill(point, 3, 0))) == -signal.SIGKILL
    assert progress(out / BESIDE[0])[1] and not progress(out / BESIDE[1])[1]
    assert server.live(Life(out, None, None)) == 0
    for place_of in ("", *BESIDE):
        check_same(out / place_of, whole._replace(out=whole.out / place_of))


def test_a_kill_leaves_the_scenario_as_it_was_or_as_it_is_to_be(
    server: Server, wholes: Callable[[str], Whole], tmp_path: Path
) -> None:
    """What a run is resumed with is written over what it began with; half of it would be the end of the run."""
    out, whole = place(tmp_path), wholes("fedadam")
    killer = Killer(server, "fedadam", whole, seed=4)
    killer.kill_until_hit(out, "recorded")
    for point in ("half written", "written", "synced", "renamed"):
        assert killer.hit(Life(out, None, Kill(point, 0, 0), setting=f"stop.max_seconds={len(point)}000"))
    assert server.live(Life(out, None, None)) == 0
    check_same(out, whole)


def test_the_scenarios_do_what_they_are_for(wholes: Callable[[str], Whole]) -> None:
    """Clients have failed, cohorts differ, states are kept, epsilon is spent: else the law would hold of nothing."""
    failures, adam = contents(wholes("failures recorded").out), contents(wholes("fedadam, poisson cohorts").out)
    assert len(failures["clients"]) == len(failures["failures"]) > 3
    assert len({row[1] for row in adam["rounds"]}) > 2
    assert len(contents(wholes("scaffold, checkpoints apart").out)["clients' states"]) == 5
    assert len(contents(wholes("private").out)["privacy"]) > 8


def test_a_run_on_ray_goes_on_too_and_leaves_no_process(
    server: Server, wholes: Callable[[str], Whole], tmp_path: Path
) -> None:
    """Killed five times, it ends on Ray with the bits of one process."""
    whole, out, mark = wholes("scaffold"), place(tmp_path), uuid.uuid4().hex
    killer = Killer(server, "scaffold", whole, seed=3)
    for point in ON_RAY:
        name = None if out.exists() else "scaffold"
        assert killer.hit(Life(out, name, Kill(point, 1, 0), "ray", mark)), point
    assert server.live(Life(out, None, None, "ray", mark)) == 0
    check_same(out, whole)
    assert left_behind(mark, seconds=30) == {}
    print(f"scaffold on Ray: {killer.hits} kills hit, of 1 run")
    assert killer.hits == len(ON_RAY)
