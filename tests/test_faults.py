"""Too little memory: a client's recorded failure, and the round goes on; too small an object store: nothing.

Other faults: tests/test_time_limit.py, tests/laws/test_repeatable.py (workers that die), test_faulty_parts.py.
"""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import tomli_w

from fedsim.engine import Engine
from fedsim.errors import FedsimError
from fedsim.scenario_files import override
from fedsim.stored import open_run
from tests import small

OWN = """
import numpy as np
import torch
from torch import nn
from fedsim.data.corpus import Corpus

def large(folders):
    rng = np.random.default_rng(0)
    x = rng.random((1800, 1, 110, 110), dtype=np.float32)
    x[::97, 0, 0, 0] = 2.0
    return Corpus("large", "classification", x, rng.integers(0, 3, len(x)), ("a", "b", "c"))

class Hungry(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int, gigabytes: float):
        super().__init__()
        self.gigabytes, self.layer = gigabytes, nn.Linear(110 * 110, classes)

    def forward(self, x):
        if self.training and x[:, 0, 0, 0].max() > 1:
            if not self.gigabytes:
                raise RuntimeError("hungry")
            torch.ones(int(self.gigabytes * 2.5e8))
        return self.layer(x.flatten(1))
"""
CHANGES: small.Changes = {
    "data": {"name": "own.py:large", "partition": {"kind": "iid", "clients": 12}},
    "train": {"learning_rate": 0.01, "batch_size": 8, "steps": 2},
    "rounds": 3,
    "engine": {"kind": "ray", "workers": 1, "memory": 0.4, "object_store_memory": 0.08},
}
"""87 MB of rows in an object store of 80; 1 GB for some clients of a worker that may use 0.4."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux limits a process' own memory")
def test_a_client_beyond_the_memory_limit_fails_alone(tmp_path: Path) -> None:
    """The key is named, and the others count as if that client had raised: the same bits.

    Rows for which the object store is too small lie on the disk meanwhile.
    """
    (tmp_path / "own.py").write_text(OWN)
    model = {"name": "own.py:Hungry", "gigabytes": 1.0}
    (tmp_path / "hungry.toml").write_text(tomli_w.dumps(override(small.SMALL, {**CHANGES, "model": model})))
    command = [str(Path(sys.executable).parent / "fedsim"), "run", "hungry.toml", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    raising = small.job({**CHANGES, "model": {**model, "gigabytes": 0.0}}, tmp_path)
    expected = small.run(raising, tmp_path / "raising")
    failed = []
    for run in (tmp_path / "run", expected.folder):
        with closing(open_run(run)) as records:
            failed.append([(row.round, row.client, str(row.error)) for row in records.clients() if row.error])
            fingerprints = {row.fingerprint for row in records.rounds()}
        assert expected.fingerprint in fingerprints
    assert failed[0] and [row[:2] for row in failed[0]] == [row[:2] for row in failed[1]]
    assert all(error.endswith("engine.memory = 0.4 GB is too little for this client") for *_, error in failed[0])


ELSEWHERE = """
import sys
from torch import nn

class Elsewhere(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int):
        super().__init__()
        if "default_worker" in sys.argv[0]:
            raise RuntimeError("not here")
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

    def forward(self, x):
        return self.layers(x)
"""


def test_a_worker_that_cannot_build_its_model_is_one_line(ray_engine: Engine, tmp_path: Path) -> None:
    """Ray's own error would be the worker's traceback."""
    (tmp_path / "own.py").write_text(ELSEWHERE)
    job = small.job({"model": {"name": "own.py:Elsewhere"}}, tmp_path)
    with pytest.raises(FedsimError) as caught:
        ray_engine.grid(job)
    assert str(caught.value).startswith("a worker cannot be made ready: model 'own.py:Elsewhere' cannot be built")
    assert "\n" not in str(caught.value)
