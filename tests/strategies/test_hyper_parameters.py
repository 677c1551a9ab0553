"""Numbers that no strategy can do anything with, whichever of its hyper-parameters they are given for."""

import math
from pathlib import Path
from typing import get_type_hints

import pytest

from fedsim import registry

FLOATS = [
    (strategy, name)
    for strategy in registry.members("fedsim.strategies")
    for name, kind in get_type_hints(registry.find("fedsim.strategies", strategy, Path(), "name")).items()
    if kind in (float, float | None)
]
"""Every strategy's name with each of its parameters that is a float."""


def test_there_are_such_parameters() -> None:
    """Else the law below would hold of nothing."""
    assert {("scaffold", "server_lr"), ("ditto", "lamda"), ("norm-bounding", "bound"), ("rfa", "nu")} < set(FLOATS)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
@pytest.mark.parametrize(("strategy", "key"), FLOATS)
def test_a_number_that_is_not_finite_or_below_zero_is_refused(strategy: str, key: str, value: float) -> None:
    """In one line that names the key and the value, before a model of NaNs has been trained."""
    function = registry.find("fedsim.strategies", strategy, Path(), "name")
    with pytest.raises(ValueError, match=rf"\b{key} = {value} .*(should|above|be)") as refusal:
        function(**{key: value})
    assert "\n" not in str(refusal.value)
