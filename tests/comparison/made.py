"""Runs of a comparison that were never run: facts as a folder would tell them, with scores that a test chooses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.comparison.facts import RunFacts

METRIC = "global/central-test/rows/accuracy"
WORST = "global/client-test/worst-10%/accuracy"
VALIDATION = "global/central-validation/rows/accuracy"


def facts(candidate: str, seed: int, score: float, condition: str = "", **changes: Any) -> RunFacts:
    """A run of three rounds that has ended with a score; a name of a strategy is its candidate's."""
    scenario = {"seed": seed, "rounds": 3, "strategy": {"name": candidate}, "model": {"name": "mlp"}}
    values: dict[str, Any] = {
        "condition": condition,
        "candidate": candidate,
        "seed": seed,
        "folder": Path("runs") / f"{candidate}-{seed}",
        "status": "done",
        "reason": None,
        "rounds_planned": 3,
        "rounds": np.array([1, 2, 3]),
        "metrics": {VALIDATION: np.array([score / 3, score / 2, score])},
        "last": {METRIC: score, WORST: score / 2},
        "best": {METRIC: score},
        "headline": METRIC,
        "lower": frozenset({"loss"}),
        "seconds": np.array([1.0, 2.0, 3.0]),
        "bytes": np.array([1e6, 2e6, 3e6]),
        "epsilon": None,
        "delta": None,
        "own_figures": {},
        "federation": f"rows of seed {seed}",
        "initial": f"model of seed {seed}",
        "cohorts": tuple(f"seed {seed}, round {number}" for number in (1, 2, 3)),
        "fingerprint": f"{candidate} {seed} {score}",
        "scenario": scenario,
        "environment": {"packages": {"torch": "2.8"}},
    }
    return RunFacts(**{**values, **changes})


def runs(scores: Mapping[str, Sequence[float]], condition: str = "") -> list[RunFacts]:
    """Candidates' runs by their scores at seeds 1, 2, ..."""
    return [
        facts(candidate, seed, score, condition)
        for candidate, values in scores.items()
        for seed, score in enumerate(values, 1)
    ]
