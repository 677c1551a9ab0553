"""Accountants against independent ones over a grid of settings, those of `python benchmarks/accountants.py`."""

import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

BENCHMARK: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "accountants.py"))
BOUNDS: dict[str, tuple[float, float]] = BENCHMARK["BOUNDS"]
PRV, CURVE, Deviation = BENCHMARK["PRV"], BENCHMARK["CURVE"], BENCHMARK["Deviation"]


@cache
def measured(parts: int) -> list[Any]:
    """Deviations of one part in `parts` of the grid."""
    mechanisms = BENCHMARK["grid"]()
    chosen = BENCHMARK["sample"](mechanisms, len(mechanisms) // parts) if parts > 1 else mechanisms
    return list(BENCHMARK["deviations"](chosen))


def within_bounds(comparison: str, found: list[Any]) -> None:
    """All settings of a comparison, and there are some."""
    of_one = [one for one in found if one.comparison == comparison]
    assert of_one
    assert [one for one in of_one if not one.room >= 0] == []


@pytest.mark.parametrize("comparison", BOUNDS)
def test_a_quarter_of_the_grid_is_within_its_bounds(comparison: str) -> None:
    within_bounds(comparison, measured(4))


@pytest.mark.proof
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("comparison", BOUNDS)
def test_the_grid_is_within_its_bounds(comparison: str) -> None:
    within_bounds(comparison, measured(1))


@pytest.mark.proof
@pytest.mark.timeout(1200)
def test_the_grid_has_at_least_two_hundred_settings() -> None:
    assert sum(one.comparison == PRV for one in measured(1)) >= 200


def test_the_table_shows_the_worst_of_each_comparison_in_eighty_columns() -> None:
    inside, outside = Deviation(PRV, "10/0.001/10000/1e-07", 0.01), Deviation(PRV, "0.8/0.001/10000/1e-07", -0.00123)
    lines = BENCHMARK["table"]([inside, outside, Deviation(CURVE, "1/0.1/1", 1e-9)])
    assert [line.split()[0] for line in lines] == ["comparison", "PRV", "integral"]
    assert outside.setting in lines[1]
    assert max(map(len, lines)) <= 80
