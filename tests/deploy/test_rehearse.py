"""A rehearsal: real server, proxy and nodes on this machine come to the model of the simulation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.deploy.rehearse import Rehearsed, everybody, lines, rehearse
from fedsim.errors import DeployError, PrivacyError, ScenarioError
from fedsim.progress import Silent
from tests import small
from tests.deploy import served
from tests.small import Changes

pytestmark = [
    pytest.mark.skipif(bool(served.MISSING), reason=served.MISSING),
    pytest.mark.timeout(300),
]
FEDSIM = Path(sys.executable).parent / "fedsim"
SHORT: Changes = {"rounds": 2, "cohort.size": 1, "references": ["local"]}


def test_the_command_compares_to_the_bit(tmp_path: Path) -> None:
    """Example-level privacy included, since both draw the seed's coins; keys and copies of rows are gone afterwards."""
    options = ["--set", "rounds=2", "--nodes", "2"]
    options += ["--seeded-coins", "--out", "rehearsal", "--json"]
    command = [str(FEDSIM), "deploy", "rehearse", "quickstart", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["same"] and values["comparable"] and values["apart"] == 0 < values["norm"]
    assert values["deployed"] == values["simulated"]
    assert not (tmp_path / "rehearsal").stat().st_mode & 0o077, "rows were in it"
    kept = {path.name for path in (tmp_path / "rehearsal").rglob("*")}
    assert {"deployed", "simulated", "server.log", "node.log"} <= kept
    assert not kept & {"ca.key", "server.key", "key", "rows.npz", "ledger.db"}


@pytest.mark.proof
@pytest.mark.parametrize("strategy", ["scaffold", "fedbn", "krum", "flower:FedAdam"])
def test_strategies_come_to_the_same(strategy: str, tmp_path: Path) -> None:
    """States and personal parts stay on the nodes, and single updates are combined as a simulation does."""
    changes = {"rounds": 3, "strategy.name": strategy, "model": {"name": "cnn", "preset": "small", "norm": "batch"}}
    found = rehearse(small.scenario(changes), 5, progress=Silent(), out=tmp_path / "out")
    assert found.same and found.comparable


@pytest.mark.proof
def test_secret_coins_come_to_another_model(tmp_path: Path) -> None:
    """Nodes draw their noise where no seed reaches, so the models differ by about the noise and that is no failure."""
    found = rehearse(small.scenario({**small.PRIVATE, "rounds": 1}), 2, progress=Silent(), out=tmp_path / "out")
    assert not found.same and not found.comparable and 0 < found.apart < found.norm
    assert any("--seeded-coins" in line for line in lines(found))


def test_everybody_takes_part_and_nothing_runs_beside() -> None:
    """Else the two runs could not be compared: nodes are few, and a simulation may have many clients."""
    scenario = everybody(small.scenario(SHORT), 3)
    assert scenario.data.partition["clients"] == 3 and scenario.references == []
    assert (scenario.cohort.size, scenario.cohort.fraction, scenario.cohort.poisson) == (None, None, None)
    assert everybody(small.scenario({"cohort.dropout": 0.1}), 3).cohort.dropout == 0.1


def test_what_cannot_be_rehearsed_is_said_before_anything_starts(tmp_path: Path) -> None:
    """Processes and keys for nothing would be left to clean up."""
    (tmp_path / "there").mkdir()
    with pytest.raises(DeployError, match="exists already"):
        rehearse(small.scenario(), 2, progress=Silent(), out=tmp_path / "there")
    with pytest.raises(DeployError, match=r"no\.toml cannot be read"):
        rehearse(small.scenario(), 2, progress=Silent(), out=tmp_path / "out", rules=tmp_path / "no.toml")
    natural = small.scenario(
        {"data": {"name": "python-source", "partition": {"kind": "natural"}}, "model": {"name": "lstm"}}
    )
    with pytest.raises(ScenarioError, match=r"gives \d+ clients; use --nodes \d+"):
        rehearse(natural, 2, progress=Silent(), out=tmp_path / "out")
    with pytest.raises(ScenarioError, match=r"model\.preset"):
        rehearse(small.scenario({"model": {"name": "mlp", "preset": "no"}}), 2, progress=Silent(), out=tmp_path / "out")
    private = {
        "data.split.central": 0.0,
        "privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0},
    }
    with pytest.raises(PrivacyError, match=r"data\.split\.central above 0"):
        rehearse(small.scenario(private), 2, progress=Silent(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_that_should_be_the_same_and_are_not_are_told() -> None:
    """That is what a rehearsal is for."""
    found = Rehearsed(Path("out"), "a" * 64, "b" * 64, 0.5, 2.0, 5.0, 20.0, 4.5, True)
    assert not found.same and "should be the same" in lines(found)[-1]
    assert "to the bit" in lines(found._replace(simulated="a" * 64))[-1]
