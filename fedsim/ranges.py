"""Where the best value of a setting is looked for.

A strategy declares the range of a hyper-parameter beside its type, `mu: Annotated[float, Range(1e-3, 1.0, log=True)]`;
a comparison may give another: `{ low = 1e-3, high = 1.0, log = true }`, `{ low = 1, high = 8, whole = true }` or
`{ choices = [0.0, 0.01, 0.1] }`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from fedsim.errors import ScenarioError

_NEAR = 0.05


@dataclass(frozen=True)
class Range:
    """From low to high, both included; or one of some choices.

    Attributes:
        low, high: finite, low < high.
        log: whether values are looked for evenly by their logarithm; low is then above 0.
        whole: whether they are whole numbers.
        choices: values instead, numbers or texts, two at least.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: Sequence[Any] = ()

    def __post_init__(self) -> None:
        if self.choices:
            if len(set(map(repr, self.choices))) < max(2, len(self.choices)):
                raise ValueError("choices should be two values at least, each named once")
            if self.low or self.high or self.log or self.whole:
                raise ValueError("give choices, or low and high, not both")
            return
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low = {self.low:g} should be below high = {self.high:g}, and both finite")
        if self.log and not self.low > 0:
            raise ValueError(f"low = {self.low:g} should be above 0 where log is true")
        if self.whole and (self.low != int(self.low) or self.high != int(self.high)):
            raise ValueError(f"low = {self.low:g} and high = {self.high:g} should be whole numbers, as whole is true")

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to be tried before a search: every choice, or low and high."""
        if self.choices:
            return tuple(self.choices)
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def contains(self, value: object) -> bool:
        """Whether a value can be found here."""
        if self.choices:
            return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in self.choices)
        return _number(value) and self.low <= value <= self.high and (not self.whole or value == int(value))

    def edge(self, value: Any) -> Literal["lower", "upper"] | None:
        """The end near which a value lies: within a twentieth of the range's width, of its logarithm with `log`."""
        if self.choices:
            return None
        low, high, at = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        place = (at - low) / (high - low)
        if place <= _NEAR:
            return "lower"
        return "upper" if place >= 1 - _NEAR else None

    def table(self) -> dict[str, Any]:
        """As it is written in a file: what `read` reads."""
        if self.choices:
            return {"choices": list(self.choices)}
        flags = {name: True for name in ("log", "whole") if getattr(self, name)}
        return {"low": self.ends[0], "high": self.ends[1], **flags}


def read(table: object, key: str) -> Range:
    """A range as a comparison gives it.

    Raises:
        ScenarioError: it is none; names the key.
    """
    example = f"{key}: write a range as {{ low = 0.01, high = 1.0, log = true }} or {{ choices = [0.0, 0.1] }}"
    if not isinstance(table, Mapping) or not table:
        raise ScenarioError(example)
    kinds = {"low": _number, "high": _number, "log": _flag, "whole": _flag, "choices": _list}
    if any(name not in kinds or not kinds[name](value) for name, value in table.items()):
        raise ScenarioError(example)
    if "choices" not in table and not {"low", "high"} <= set(table):
        raise ScenarioError(example)
    if "choices" in table and not table["choices"]:
        raise ScenarioError(f"{key}: choices should be two values at least, each named once")
    try:
        return Range(**table)
    except ValueError as error:
        raise ScenarioError(f"{key}: {error}") from None


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _list(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, int | float | str) for each in value)
