"""What the columns of a table mean: `[data.schema]`, and a table read by it.

    [data.schema]
    age = { kind = "number", unit = "years", range = [0, 120] }
    chol = { kind = "number", unit = "mg/dl", missing = ["?", "0"], rule = "indicator" }
    sex = { kind = "category", categories = ["female", "male"] }
    hospital = { kind = "client" }
    ill = { kind = "label", categories = ["no", "yes"] }

Knows NumPy and pydantic alone, so that new rows can be read the same way where a model is used.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import to_json

from fedsim.data.table import Table
from fedsim.errors import DataError, ScenarioError
from fedsim.registry import nearest

Rule = Literal["error", "indicator", "mean", "drop"]


class Column(BaseModel):
    """What one column of a table is."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    kind: Literal["number", "category", "label", "client", "group", "ignore"]
    unit: str = Field("", description='of a number; a header "age [months]" must name the same')
    range: tuple[float, float] | None = Field(None, description="least and greatest number that is sound")
    categories: list[str] | None = Field(None, min_length=1, description="all values of a category, or the classes")
    missing: list[str] = Field([], description="values that mean missing; an empty field always does")
    rule: Rule | float = Field(
        "error",
        description="of missing values: error; mean; indicator (mean and a feature that says so); drop; a number",
    )
    log: bool = Field(False, description="log(1 + value) is taken of numbers first")
    mean: float | None = Field(
        None, description="a constant to subtract; of features used where data.preprocess is constants"
    )
    std: float | None = Field(None, gt=0, description="a constant to divide by, as mean")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        numeric = {
            "range": self.range,
            "log": self.log or None,
            "mean": self.mean,
            "std": self.std,
            "unit": self.unit or None,
        }
        if self.kind not in ("number", "label") and (
            given := [key for key, value in numeric.items() if value is not None]
        ):
            raise ValueError(f"{given[0]} belongs to numbers")
        if self.categories is not None and self.kind not in ("category", "label"):
            raise ValueError("categories belong to a category or a label")
        if self.kind == "label" and self.categories is not None and len(self.categories) < 2:
            raise ValueError("a label needs two categories, or none where it is a number")
        if self.kind == "category" and self.categories is None:
            raise ValueError("name its categories; values that are not known cannot be turned into features")
        if self.categories is not None and len(set(self.categories)) < len(self.categories):
            raise ValueError("categories name one value twice")
        if self.kind == "category" and not isinstance(self.rule, str):
            raise ValueError("a number cannot stand for a missing category; use indicator, drop or error")
        if self.kind == "category" and self.rule == "mean":
            raise ValueError("categories have no mean; use indicator, drop or error")
        if self.kind not in ("number", "category") and self.rule not in ("error", "drop"):
            raise ValueError("only features can be filled in; use drop or error")
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError("range should be [least, greatest]")
        if self.log and self.kind == "label":
            raise ValueError("log is for features; metrics of a label are in its own unit")
        if self.log and self.range is not None and self.range[0] <= -1:
            raise ValueError("log needs values above -1")
        if self.log and isinstance(self.rule, float) and self.rule <= -1:
            raise ValueError("log needs a value above -1 for what is missing, too")
        return self

    @property
    def constants(self) -> tuple[float, float]:
        """Mean and standard deviation that are declared: else by the range, which becomes -1 to 1; else 0 and 1."""
        low, high = (self.logged(bound) for bound in self.range) if self.range is not None else (-1.0, 1.0)
        mean = self.mean if self.mean is not None else (low + high) / 2 if self.std is None else 0.0
        return mean, self.std if self.std is not None else (high - low) / 2 if self.mean is None else 1.0

    def logged(self, value: float) -> float:
        """A value on the scale on which it is standardised."""
        return math.log1p(value) if self.log else value


Columns = Mapping[str, Column]
"""By name, in the order of features."""


def columns_of(given: Mapping[str, Mapping[str, Any]]) -> dict[str, Column]:
    """A scenario's `[data.schema]`, checked.

    Raises:
        ScenarioError: names column and key.
    """
    found = {}
    for name, table in given.items():
        try:
            found[name] = Column.model_validate_json(to_json(table, inf_nan_mode="constants"))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(["data.schema", name, *map(str, first["loc"][:1])])  # further parts are pydantic's own
            if first["type"] == "extra_forbidden":
                raise ScenarioError(
                    f"{key} is not known.{nearest(str(first['loc'][-1]), Column.model_fields)}"
                ) from None
            reason = first["msg"].removeprefix("Value error, ")
            raise ScenarioError(f"{key}: {reason[:1].lower()}{reason[1:]}") from None
    for kind in ("client", "group"):
        if len(same := [name for name, column in found.items() if column.kind == kind]) > 1:
            raise ScenarioError(f"data.schema: {same[0]} and {same[1]} are both of kind {kind}; one column can be")
    return found


def named(table: Table, columns: Columns) -> Table:
    """The table with the schema's names, where its header gives units in brackets: `age [years]` is `age`.

    Raises:
        DataError: a column is missing or not declared, or its unit is another.
    """
    renamed = {}
    for header, values in table.columns.items():
        name, unit = header, ""
        if header not in columns and (found := re.fullmatch(r"(.*\S)\s*\[(.*)\]", header)):
            name, unit = found[1], found[2].strip()
        declared = columns.get(name)
        if declared is None:
            raise DataError(
                f"{table.path}: column {header!r} is not in data.schema.{nearest(name, columns)} Else ignore it there"
            )
        if unit and declared.kind in ("number", "label") and unit != declared.unit:
            stated = f"declares {declared.unit!r}" if declared.unit else "declares none"
            raise DataError(f"{table.path}: column {name!r} is in {unit!r}, data.schema {stated}; convert the column")
        if name in renamed:
            raise DataError(f"{table.path}: two columns are {name!r} for data.schema, {header!r} is one; leave one out")
        renamed[name] = values
    for name, column in columns.items():
        if name not in renamed and column.kind != "ignore":
            raise DataError(f"{table.path}: there is no column {name!r}, which data.schema declares; add it")
    return Table(table.path, renamed, table.lines)


def features(columns: Columns) -> dict[str, Column]:
    """The columns that a model sees."""
    return {name: column for name, column in columns.items() if column.kind in ("number", "category")}


def values(table: Table, columns: Columns) -> np.ndarray:
    """[N, columns] float64 of a table's numbers as they are, categories and labels by place, nan where missing.

    Args:
        table: with the schema's names.
        columns: in the order of the result; clients and the like are no values, but named in messages.

    Raises:
        DataError: names file, line and column (and client) of the first value that the schema does not allow.
    """
    valued = [(name, column) for name, column in columns.items() if column.kind in ("number", "category", "label")]
    found = [_column(table, name, column, columns) for name, column in valued]
    return np.stack(found, axis=1) if found else np.zeros((len(table), 0))


def kept(table: Table, columns: Columns) -> Table:
    """The table without the rows that lack a value which the schema says to drop them for."""
    dropping = {name: column for name, column in columns.items() if column.rule == "drop" and name in table.columns}
    lacking = np.zeros(len(table), dtype=bool)
    for name, column in dropping.items():
        absent = _absent(column)
        lacking |= np.array([value in absent for value in table.columns[name]])
    if not lacking.any():
        return table
    if lacking.all():
        raise DataError(f"{table.path}: every row lacks one of {', '.join(dropping)}; none is left")
    rows = np.flatnonzero(~lacking).tolist()
    picked = {name: [texts[row] for row in rows] for name, texts in table.columns.items()}
    return Table(table.path, picked, [table.lines[row] for row in rows])


def texts(table: Table, name: str, column: Column | None = None) -> list[str]:
    """A column of names, all there: clients, groups; `column` says what means missing beside an empty field."""
    absent = _absent(column) if column is not None else frozenset({""})
    for value, line in zip(table.columns[name], table.lines, strict=True):
        if value in absent:
            raise DataError(f"{table.path}, line {line}: column {name!r} is missing; fill it in or drop the row")
    return list(table.columns[name])


def _absent(column: Column) -> frozenset[str]:
    return frozenset({"", *column.missing})


def _column(table: Table, name: str, column: Column, columns: Columns) -> np.ndarray:
    """[N] of one column."""
    absent, given = _absent(column), table.columns[name]
    read = _numbers(given, absent) if column.categories is None else _places(given, column.categories, absent)
    odd = ~np.isfinite(read)
    missing = np.array([value in absent for value in given])
    if column.rule == "error":
        missing = np.zeros(len(given), dtype=bool)
    low, high = column.range if column.range is not None else (-math.inf, math.inf)
    sunk = column.log and column.categories is None  # has no logarithm
    with np.errstate(invalid="ignore"):
        outside = ~odd & ((read < low) | (read > high) | (sunk & (read <= -1)))
    wrong = (odd | outside) & ~missing
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(_wrong(table, row, name, column, bool(outside[row])) + _owner(table, row, columns))
    return read


def _numbers(given: Sequence[str], absent: frozenset[str]) -> np.ndarray:
    """[N] as numbers; nan where one is missing, inf where it is no number."""
    return np.array([math.nan if value in absent else _number(value) for value in given], dtype=np.float64)


def _number(value: str) -> float:
    try:
        found = math.inf if "_" in value else float(value)
    except ValueError:
        return math.inf
    return found if math.isfinite(found) else math.inf


def _places(given: Sequence[str], categories: Sequence[str], absent: frozenset[str]) -> np.ndarray:
    """[N] places among the categories, which are compared as numbers where all are; inf where a value is none."""
    place: dict[str, float] = {category: float(number) for number, category in enumerate(categories)}
    as_numbers = {_number(category): float(number) for number, category in enumerate(categories)}
    if math.inf in as_numbers:
        as_numbers = {}
    for value in set(given) - set(place):
        place[value] = math.nan if value in absent else as_numbers.get(_number(value), math.inf)
    for value in absent:
        place[value] = math.nan
    return np.array([place[value] for value in given])


def _wrong(table: Table, row: int, name: str, column: Column, outside: bool) -> str:
    value = table.columns[name][row]
    where = f"{table.path}, line {table.lines[row]}: column {name!r}"
    if value in _absent(column):
        shown = f" ({value!r})" if value else ""
        return f"{where} is missing{shown}; fill it in, drop the row, or give data.schema a rule"
    if column.categories is not None:
        return f"{where} is {value!r}, none of {', '.join(column.categories)}; mend it or add it to data.schema"
    if outside:
        least, greatest = column.range if column.range is not None else (-1, math.inf)
        unit = f" {column.unit}" if column.unit else ""
        return f"{where} is {value}, outside {least:g} to {greatest:g}{unit}; mend it or the range in data.schema"
    return f"{where} is {value!r}, no finite number; mend it, or declare it as missing in data.schema"


def _owner(table: Table, row: int, columns: Columns) -> str:
    owner = next((name for name, column in columns.items() if column.kind == "client"), None)
    return f" (client {table.columns[owner][row]!r})" if owner is not None and owner in table.columns else ""


def sorted_values(given: Collection[str]) -> list[str]:
    """As numbers where all are numbers, else as texts."""
    if math.inf in map(_number, given):
        return sorted(given)
    return sorted(given, key=lambda value: (float(value), value))


def names(columns: Columns, kind: str) -> Iterator[str]:
    """Names of the columns of a kind."""
    return (name for name, column in columns.items() if column.kind == kind)
