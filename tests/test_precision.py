"""Steps in 16 bits: another rounding, of which nothing is random, and in which nets still learn."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim.errors import ScenarioError
from tests import small

BF16: dict[str, Any] = {"train.precision": "bf16", "train.epochs": 3}


@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [64]}, {"name": "cnn", "preset": "small"}])
def test_it_repeats_and_learns(model: dict[str, Any], tmp_path: Path) -> None:
    changes = {**BF16, "model": model, "rounds": 5}
    first, second = (small.run(small.job(changes), tmp_path / name) for name in ("first", "second"))
    other = small.run(small.job({**changes, "train.precision": "fp32"}), tmp_path / "other")
    assert first.fingerprint == second.fingerprint != other.fingerprint
    assert first.weights.vector.dtype == torch.float32
    accuracy = [run.values["metrics"]["global/central-test/rows/accuracy"] for run in (first, other)]
    assert accuracy[0] > 0.7  # by chance: 0.1
    assert abs(accuracy[0] - accuracy[1]) < 0.05


@pytest.mark.parametrize(
    "other", [small.PRIVATE, {"engine.stack": 2}, {"engine.compile": True}, {"engine.devices": ["cuda:0"]}]
)
def test_what_needs_full_precision_refuses_it(other: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError, match=r"train\.precision = 'bf16'"):
        small.scenario({**BF16, **other})
