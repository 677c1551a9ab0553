"""Runs on a user's own table: every task, its schema kept in the run, and privacy that fits nothing to rows."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data.preprocess import Preparation
from fedsim.errors import PrivacyError
from fedsim.scenario import parse
from tests import small

LABELS = {"kind": "label", "categories": ["0", "1"]}
SCHEMA: dict[str, dict[str, Any]] = {
    "site": {"kind": "client"},
    "a": {"kind": "number", "unit": "m", "range": [-5, 5]},
    "b": {"kind": "number", "missing": ["?"], "rule": "indicator"},
    "sum": {"kind": "ignore"},
    "high": {"kind": "ignore"},
    "low": {"kind": "ignore"},
}
TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "classification": {"high": LABELS},
    "regression": {"sum": {"kind": "label", "unit": "m", "mean": 100.0, "std": 2.0, "range": [80, 120]}},
    "multi-label": {"high": LABELS, "low": LABELS},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table in which everything follows from a and b."""
    rng = np.random.default_rng(0)
    lines = []
    for row, (a, b) in enumerate(rng.normal(size=(400, 2)).clip(-4.9, 4.9)):
        shown = "?" if row % 40 == 0 else f"{b:.3f}"
        lines.append(f"s{row % 4},{a:.3f},{shown},{100 + a + b:.3f},{int(a + b > 0)},{int(a < 0)}")
    (tmp_path / "t.csv").write_text("\n".join(["site,a [m],b,sum,high,low", *lines]))
    return tmp_path


def changes(task: str, **data: Any) -> dict[str, Any]:
    table = {"name": "csv", "path": "t.csv", "task": task, "schema": {**SCHEMA, **TASKS[task]}, **data}
    return {"data": {**table, "partition": {"kind": "natural"}}, "rounds": 25}


@pytest.mark.parametrize(
    ("task", "metric", "bound"),
    [("classification", "accuracy", 0.9), ("regression", "rmse", 0.6), ("multi-label", "micro-f1", 0.85)],
)
def test_every_task_is_learned(task: str, metric: str, bound: float, folder: Path) -> None:
    """The spread of the sum is 1.4: what is beyond the bound has learned it."""
    result = small.run(small.job(changes(task), folder), folder / "run")
    headline = result.values["headline"]
    assert headline["metric"] == f"global/central-test/rows/{metric}"
    better = headline["value"] < bound if headline["lower_is_better"] else headline["value"] > bound
    assert better, headline


def test_a_run_keeps_schema_and_preparation(folder: Path) -> None:
    asked = small.scenario(changes("regression", preprocess={"kind": "constants"}), folder)
    again = parse(tomllib.loads(asked.to_toml()), folder, "again")
    assert again.data == asked.data
    federation = small.job(changes("regression", preprocess={"kind": "constants"}), folder).federation
    made = Preparation.of(federation.preprocessing)
    assert made.features == ["a", "b", "b is missing"]
    assert made.columns["a"].unit == "m" and made.scales[""]["a"] == (0, 5)
    assert federation.preprocessing["target"]["mean"] == [100.0]


@pytest.mark.parametrize("kind", ["per-client", "federated"])
@pytest.mark.parametrize(
    "level",
    [
        {"privacy.example": {"epsilon": 8.0, "delta": 1e-3, "max_grad_norm": 1.0}},
        {
            "privacy.client": {"noise_multiplier": 1.0, "delta": 1e-3, "clip": 1.0},
            "cohort": {"poisson": 0.5},
            "strategy": {"name": "fedavg", "weights": "uniform"},
        },
    ],
    ids=["example", "client"],
)
def test_privacy_fits_nothing_to_rows(kind: str, level: dict[str, Any], folder: Path) -> None:
    """A mean that is saved with the model tells of the rows it was taken from."""
    asked = {**changes("classification", preprocess={"kind": kind}, split={"central": 0.0}), **level}
    with pytest.raises(
        PrivacyError, match=r"declare ranges in data\.schema and set data\.preprocess\.kind = \"constants\"$"
    ):
        small.job(asked, folder)
    small.job({**asked, "data.preprocess.kind": "constants"}, folder)
