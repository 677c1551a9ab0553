"""What my_strategy.py promises. After every change: pytest test_my_strategy.py (once before: pip install pytest)."""

from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.errors import ScenarioError

MINE = f"{Path(__file__).resolve().with_name('my_strategy.py')}:my_strategy"
SMALL: dict[str, Any] = {
    "title": "Small",
    "seed": 1,
    "rounds": 12,
    "data": {"name": "digits", "partition": {"kind": "dirichlet", "clients": 6, "alpha": 0.5}},
    "model": {"name": "mlp", "hidden": [32]},
    "train": {"learning_rate": 0.2, "batch_size": 16, "epochs": 1},
    "cohort": {"fraction": 0.5},
    "engine": {"kind": "inline"},  # in this process: a breakpoint in a client half works
}
ACCURACY = "global/central-test/rows/accuracy"


def run(folder: Path, **strategy: Any) -> fedsim.Result:
    """Run the small scenario with a strategy, given by its keys in `[strategy]`."""
    return fedsim.run({**SMALL, "strategy": strategy}, out=folder / "run")


def test_without_memory_it_is_fedavg(tmp_path: Path) -> None:
    """To the bit: the two models have the same fingerprint."""
    (tmp_path / "fedavg").mkdir()
    assert run(tmp_path, name=MINE, memory=0.0).fingerprint == run(tmp_path / "fedavg", name="fedavg").fingerprint


def test_it_learns(tmp_path: Path) -> None:
    """Ten digits: a guess is right once in ten times."""
    assert run(tmp_path, name=MINE).values["metrics"][ACCURACY] > 0.5


@pytest.mark.parametrize("memory", [-0.1, 1.0, float("nan")])
def test_an_impossible_memory_is_refused(tmp_path: Path, memory: float) -> None:
    """Before anything is trained or written."""
    with pytest.raises(ScenarioError, match="give a number of at least 0 and below 1"):
        run(tmp_path, name=MINE, memory=memory)
    assert not (tmp_path / "run").exists()
