"""A run on a cluster: on all its machines, to the bits of one process, also when one of them is lost.

The cluster is two Ray nodes on this machine; docs/cluster.md says what was tried besides.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.engine import start_engine
from fedsim.engine.cluster import at_hand, check_alike, own_code
from fedsim.environment import numerics
from fedsim.errors import ScenarioError
from fedsim.local import Work
from fedsim.tables import Engine
from tests import small

ROOT = Path(__file__).resolve().parents[2]
SOON = {"RAY_health_check_period_ms": "500", "RAY_health_check_timeout_ms": "500"}
"""After which Ray counts a node as lost."""


def on_two_machines(folder: Path, *how: str) -> dict[str, Any]:
    """What the job came to on the cluster; in a process of its own, since one process is in one cluster at a time."""
    command = [sys.executable, "-m", "tests.laws.two_machines", str(folder), *how]
    environment = {**os.environ, **SOON}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def test_two_machines_give_the_bits_of_one_process(tmp_path: Path) -> None:
    """One worker on every CPU of every machine; clients' states travel to whichever is free; then all is free."""
    found = on_two_machines(tmp_path)
    assert found["places"] == [2, 2]
    assert found["both"] == found["inline"]
    assert found["free"] == 2


@pytest.mark.proof
def test_a_machine_lost_in_mid_round_changes_nothing(tmp_path: Path) -> None:
    """Its chunks run again on the other, though no worker can be started in the place of the lost one.

    The next run asks for two, says that it waits, and goes on when another machine joins.
    """
    found = on_two_machines(tmp_path, "whole")
    assert found["alive"] == 1
    assert found["lost"] == found["inline"]
    assert found["told"][0].startswith("waiting for 2 CPUs of ")
    assert found["told"][0].endswith("; 1 of 1 are free")
    assert found["waited"] == found["inline"]
    assert found["free"] == 2


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:99999"])
def test_an_address_at_which_nobody_answers_is_one_line(address: str) -> None:
    with pytest.raises(ScenarioError, match=r"^engine\.address = .* ray start --address"):
        start_engine(Engine(address=address))


OWN = """
from torch import nn

class Own(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int, hidden: int = 4):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.Linear(hidden, classes))

    def forward(self, x):
        return self.layers(x)
"""


@pytest.mark.parametrize("there", [None, "raise SystemExit"])
def test_the_users_code_comes_along(there: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a machine that has no such file, or another one at its place."""
    here = tmp_path / "here/models"
    here.mkdir(parents=True)
    (here / "own.py").write_text(OWN)
    job = small.job({"model": {"name": "models/own.py:Own", "hidden": 5}}, here.parent)
    code, expected = own_code(job.scenario), Work(job).initial.vector
    if there is None:
        (here / "own.py").unlink()
    else:
        (here / "own.py").write_text(there)
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "there"))
    moved = at_hand(job, code)
    assert torch.equal(Work(moved).initial.vector, expected)
    (here / "own.py").write_text(OWN)
    assert at_hand(job, code) is job
    assert len(list((tmp_path / "there").iterdir())) == 1  # where the code is at hand nothing is left behind


def test_machines_that_are_not_alike_are_refused() -> None:
    """Another processor or version gives other bits."""
    here = numerics()
    check_alike(here, [("10.0.0.2", here)])
    with pytest.raises(ScenarioError, match=r"on 10\.0\.0\.3 bits would differ: cpu_capability .* here, none there"):
        check_alike(here, [("10.0.0.2", here), ("10.0.0.3", {**here, "cpu_capability": "none"})])
