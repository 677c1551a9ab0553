"""What of a candidate is tuned, and between which values.

The clients' rate, from a tenth to ten times its value, and what its strategy declares a range for: the server's rate
and parameters of its own. A comparison may give other ranges and further keys. What candidates differ in is compared,
not tuned, unless a range is given for it; what changes the number of gradient steps is not tuned at all.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from fedsim import registry
from fedsim.composition import algorithm_of
from fedsim.errors import ScenarioError, named
from fedsim.ranges import Range
from fedsim.scenario import Scenario
from fedsim.stock import PREFIX
from fedsim.tables import Named

RATE = "train.learning_rate"
_TABLES = ("train", "strategy", "model")
_CLIPS = ("privacy.example.max_grad_norm", "privacy.client.clip", "privacy.local.clip")
_STEPS = ("rounds", "train.epochs", "train.steps", "train.batch_size")


def space(scenario: Scenario, given: Mapping[str, Range], compared: Mapping[str, Any]) -> dict[str, Range]:
    """The ranges of what is tuned of a scenario, by key.

    Args:
        scenario: the candidate's, untuned.
        given: ranges that the comparison gives it.
        compared: the settings in which it differs from the others.

    Raises:
        ScenarioError: a key that cannot be tuned, or a range with a value that the scenario cannot have.
    """
    declared = {**_rate(scenario), **_of_strategy(scenario)}
    fixed = set(_flat(compared))
    ranges = {key: each for key, each in declared.items() if key not in fixed} | dict(given)
    with named(scenario.origin):
        for key in given:
            _check_key(key)
    for key, each in ranges.items():
        _check_ends(scenario, key, each)
    return ranges


def own_values(scenario: Scenario, ranges: Mapping[str, Range]) -> dict[str, Any]:
    """The values that a scenario itself has for tuned keys; without those that are unknown, or no number or text."""
    tables, defaults = scenario.model_dump(), _defaults(scenario)
    found = {key: _flat(tables).get(key, defaults.get(key)) for key in ranges}
    return {key: value for key, value in found.items() if isinstance(value, int | float | str)}


def _rate(scenario: Scenario) -> dict[str, Range]:
    rate = scenario.train.learning_rate
    return {RATE: Range(rate / 10, rate * 10, log=True)} if rate > 0 else {}


def _of_strategy(scenario: Scenario) -> dict[str, Range]:
    """What the strategy, and those of which it has parts, declare ranges for."""
    return {
        f"{key}.{name}": declared
        for key, table in _parts(scenario)
        for name, declared in registry.ranges(_function(table, scenario, key), f"{key}.name").items()
    }


def _defaults(scenario: Scenario) -> dict[str, Any]:
    return {
        f"{key}.{name}": parameter.default
        for key, table in _parts(scenario)
        for name, parameter in inspect.signature(_function(table, scenario, key)).parameters.items()
    }


def _parts(scenario: Scenario) -> Iterator[tuple[str, Named]]:
    """The tables that name a strategy in Python; those of Flower declare no ranges."""
    strategy = scenario.strategy
    tables = {"strategy": strategy, "strategy.combine": strategy.combine, "strategy.server": strategy.server}
    for key, table in tables.items():
        if table is not None and not table.name.startswith(PREFIX):
            yield key, table


def _function(table: Named, scenario: Scenario, key: str) -> Any:
    return registry.find("fedsim.strategies", table.name, scenario.folder, f"{key}.name")


def _check_key(key: str) -> None:
    table, _, last = key.partition(".")
    if key in _STEPS or table == "cohort":
        raise ScenarioError(
            f"tune.{key} changes how many gradient steps a trial takes, and every trial gets equal ones; compare its "
            "values in [vary] instead"
        )
    if (table not in _TABLES and key not in _CLIPS) or not last or key.endswith(".name"):
        raise ScenarioError(
            f"tune.{key} cannot be tuned; what can are numbers of train, strategy and model, and the clip of privacy. "
            "Set it in the base, or compare its values in [vary]"
        )


def _check_ends(scenario: Scenario, key: str, given: Range) -> None:
    """Try the ends of a range before anything trains."""
    passes = algorithm_of(scenario).private_passes
    for value in given.ends:
        changed = scenario.changed({key: value}, f"{scenario.origin}: tune.{key}")
        with named(changed.origin):
            if algorithm_of(changed).private_passes != passes:
                raise ScenarioError(
                    f"{key} = {value} changes how many gradient steps a trial takes, and every trial gets equal ones; "
                    "compare its values in [vary] instead"
                )


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in tables.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
