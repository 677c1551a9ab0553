"""SIGKILL of the server and of a node in the middle of a run: it ends whole, and more is charged than released."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from fedsim.data.corpus import Folders
from fedsim.deploy import running
from fedsim.deploy.node.ledger import Ledger
from fedsim.deploy.rehearse import deal, everybody
from fedsim.deploy.stage import SERVER, Stage, staged
from fedsim.errors import FedsimError
from fedsim.federating import federate
from fedsim.progress import Silent
from fedsim.rounds import run
from fedsim.scenario import Scenario
from fedsim.stored import open_run
from tests import small
from tests.deploy import served

pytestmark = [pytest.mark.timeout(400), pytest.mark.skipif(bool(served.MISSING), reason=served.MISSING)]
NODES, ROUNDS = 3, 4
PRIVATE = {
    "rounds": ROUNDS,
    "model": {"name": "mlp", "hidden": [8]},
    "privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0, "max_participations": 40},
    "evaluate.clients_every": 0,
}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """A private one, whose coins are seeded here, so that what is to be the same can be compared to the bit."""
    return everybody(small.scenario(PRIVATE), NODES)


@pytest.fixture(scope="module")
def stage(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A server and three nodes."""
    folder = tmp_path_factory.mktemp("stage")
    names = deal(federate(scenario, Folders.of(None, folder)), folder)
    with staged(folder, names, seeded_coins=True) as made:
        yield made


def test_the_server_is_killed(stage: Stage, scenario: Scenario, tmp_path: Path) -> None:
    """The run goes on from its last round with the nodes that it had; the model is that of one that never stopped."""
    before = charged(stage)
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(deploy, stage, scenario, tmp_path)
        served.wait_until(lambda: committed(tmp_path / "run") >= 2, seconds=120)
        kill(stage, SERVER)
        with pytest.raises(FedsimError, match="fedsim resume"):
            going.result(60)
    stage.start(SERVER)
    result = running.resume(tmp_path / "run", Silent())
    simulated = run(scenario, out=tmp_path / "simulated")
    assert (result.status, result.fingerprint) == ("done", simulated.fingerprint)
    for name, count in charged(stage).items():
        assert ROUNDS <= count - before[name] <= ROUNDS + 1, name


def test_a_node_is_killed(stage: Stage, scenario: Scenario, tmp_path: Path) -> None:
    """The others go on, it takes part again when it is back, and whoever was not killed is charged what was sent."""
    before, rounds = charged(stage), 12
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(deploy, stage, scenario.changed({"rounds": rounds}), tmp_path)
        served.wait_until(lambda: committed(tmp_path / "run") >= 1, seconds=120)
        kill(stage, "node-1")
        stage.start("node-1")
        result = going.result(250)
    assert result.status == "done"
    with closing(open_run(tmp_path / "run")) as records:
        rows = [row for row in records.clients() if row.phase == "train"]
    sound = [stage.nodes[row.client] for row in rows if row.status == "ok"]
    answered = {name: sound.count(name) for name in stage.nodes}
    spent = {name: count - before[name] for name, count in charged(stage).items()}
    assert answered["node-0"] == answered["node-2"] == spent["node-0"] == spent["node-2"] == rounds
    assert answered["node-1"] <= spent["node-1"] <= rounds
    assert 2 <= answered["node-1"] < rounds, "it was away, and came back"


def deploy(stage: Stage, scenario: Scenario, folder: Path) -> running.Deployed:
    """Run a scenario on the stage's nodes."""
    return running.deploy(
        scenario, stage.site, nodes=NODES, wait=120, out=folder / "run", progress=Silent(), seeded_coins=True
    )


def kill(stage: Stage, name: str) -> None:
    """End a process with SIGKILL; what it had started ends by itself."""
    child = stage.running[name]
    os.kill(child.pid, signal.SIGKILL)
    child.stop()


def charged(stage: Stage) -> dict[str, int]:
    """How often each node's ledger was charged."""
    found = {}
    for name in stage.nodes:
        with closing(Ledger(stage.home(name) / "ledger.db")) as ledger:
            found[name] = ledger.counter
    return found


def committed(folder: Path) -> int:
    """Rounds of a run that are in its records; 0 while there are none."""
    if not (folder / "run.db").is_file():
        return 0
    with closing(open_run(folder)) as records:
        return max((row.number for row in records.rounds()), default=0)
