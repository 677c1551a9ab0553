"""What `fedsim run --dry-run` forecasts, against what runs take."""

from pathlib import Path
from typing import Any

import pytest

from fedsim import planning, rounds
from fedsim.scenario import Scenario
from tests import small

WITHOUT = {"privacy.without": {"train.learning_rate": 0.1}}
KINDS: dict[str, small.Changes] = {
    "plain": {},
    "one round": {"rounds": 1},
    "private, and without": {**small.PRIVATE, **WITHOUT, "rounds": 8},
    "many rounds, few records": {"rounds": 40, "records.clients": "failed", "evaluate.clients_every": 7},
    "states": {"strategy.name": "scaffold", "rounds": 8, "cohort.size": 2},
    "rare checkpoints of a larger model": {
        "model": {"name": "mlp", "hidden": [300]},
        "rounds": 9,
        "checkpoint": {"every": 4, "keep": 1},
    },
}


def size_of(folder: Path) -> int:
    """Bytes of a folder and all in it, as `du -sb` counts them."""
    return sum(path.stat().st_size for path in [folder, *folder.rglob("*")])


def forecast(scenario: Scenario) -> dict[str, Any]:
    return {line.name: line.value for line in planning.forecast(scenario, None)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_takes_no_more_disk_than_forecast_and_a_third_of_it_at_least(kind: str, tmp_path: Path) -> None:
    """Who reads a forecast has room for the run, and is not put off one that fits."""
    scenario = small.scenario(KINDS[kind])
    rounds.run(scenario, out=tmp_path / "run")
    taken, disk = size_of(tmp_path / "run"), forecast(scenario)["disk"]
    assert taken <= disk <= 3 * taken, (taken, disk)


def test_the_run_without_privacy_is_forecast_too() -> None:
    """It costs about as much again: nearly the same rounds, the same model, and records."""
    alone = forecast(small.scenario(small.PRIVATE))
    both = forecast(small.scenario({**small.PRIVATE, **WITHOUT}))
    assert 1.5 * alone["disk"] < both["disk"] < 2.1 * alone["disk"]


def test_disk_and_seconds_grow_with_the_rounds() -> None:
    """Time is measured, so it only lies within a factor; disk beyond what is fixed grows with the rounds alone."""
    few, many, more = (forecast(small.scenario({"rounds": count})) for count in (10, 50, 90))
    assert many["disk"] - few["disk"] == pytest.approx(more["disk"] - many["disk"], rel=0.01)
    assert many["seconds"] > 2 * few["seconds"] > 0
