"""Some clients attack: the mean falls, and robust combiners with their defaults hold."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from fedsim.data.corpus import Folders
from fedsim.job import prepare
from tests import small

TEST = "global/central-test/rows/accuracy"
FLIPPED = {"name": "sign-flip", "scale": 10.0, "fraction": 0.2}
HOLDING = ["median", "trimmed-mean", "rfa", "centred-clipping"]
CROWD: small.Changes = {
    "data.partition": {"kind": "iid", "clients": 20},
    "evaluate.clients_every": 0,
    "records.clients": "failed",
}


TRAIN: dict[str, small.Changes] = {
    "digits": {"learning_rate": 0.2, "batch_size": 8, "epochs": 2},
    "mnist": {"learning_rate": 0.1, "batch_size": 32, "steps": 20},
}


@cache
def accuracy(strategy: str, data: str, attacked: bool, rounds: int, folder: Path | None = None) -> float:
    """Test accuracy of the last model; 20 clients, of whom a fifth send their negated update times ten."""
    changes: dict[str, Any] = {**CROWD, "data.name": data, "train": TRAIN[data], "strategy": {"name": strategy}}
    changes["rounds"] = rounds
    changes |= {"adversary": FLIPPED} if attacked else {}
    job = prepare(small.scenario(changes), Folders.of(folder, Path()))
    with TemporaryDirectory() as place:
        metrics: Mapping[str, float] = small.run(job, Path(place) / "run").values["metrics_last_round"]
    return metrics[TEST]


@pytest.mark.parametrize("strategy", HOLDING)
def test_a_fifth_that_sends_its_negated_update(strategy: str) -> None:
    """Digits; FedAvg loses at least 20 points, the defences less than 5."""
    free = accuracy("fedavg", "digits", False, 25)
    assert accuracy("fedavg", "digits", True, 25) < free - 0.2
    assert accuracy(strategy, "digits", True, 25) > free - 0.05


@pytest.mark.proof
@pytest.mark.parametrize("strategy", HOLDING)
def test_a_fifth_that_sends_its_negated_update_on_mnist(strategy: str, data_dir: Path) -> None:
    free = accuracy("fedavg", "mnist", False, 20, data_dir)
    assert accuracy("fedavg", "mnist", True, 20, data_dir) < free - 0.2
    found = accuracy(strategy, "mnist", True, 20, data_dir)
    print(f"\nmnist: FedAvg unattacked {free:.4f}; {strategy} under attack {found:.4f}")
    assert found > free - 0.05
