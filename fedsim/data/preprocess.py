"""From a table's values to a model's features: scales that are declared, or fitted on train rows.

A number becomes (value - mean) / std, after log(1 + value) where the schema says so; a category becomes one feature per
value, 0 or 1; what is missing becomes what its rule says. Statistics are sums over train rows, so that clients can add
theirs and nobody sees a row. Knows NumPy and pydantic alone, so that a model takes its preparation along.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from fedsim.data.schema import Column, named, values
from fedsim.data.table import Table
from fedsim.errors import DataError

Fit = Literal["constants", "per-client", "federated"]
EVERYBODY = ""
"""Whose scales are everybody's; a client's own stand under its name."""
_FAR = 1e-6
"""A variance of less than so much of the squared mean has lost digits as a difference of sums: they are made once more,
of distances from the mean."""
_SAME = 8 * float(np.finfo(np.float64).eps)
"""Values that differ by less than so much of their mean are all the same."""


class Scale(NamedTuple):
    """What is subtracted from a number, and what it is then divided by."""

    mean: float
    std: float


class Preparation(BaseModel):
    """How rows were made ready: stored with a model, and applied again to new rows.

    Attributes:
        kind: of the stored form.
        fit: where the scales come from.
        declared: whether categories and classes are the schema's, and not taken from the rows.
        columns: of the features, by name.
        scales: whose -> column -> scale of numbers.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    kind: Literal["table"] = "table"
    fit: Fit
    declared: bool
    columns: dict[str, Column]
    scales: dict[str, dict[str, Scale]]

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """From its stored form, `preprocessing` of a federation or of a model's card.

        Raises:
            ValueError: it is none.
        """
        return cls.model_validate_json(json.dumps(dict(stored)))

    def stored(self) -> dict[str, Any]:
        """Its stored form, plain values."""
        fitted = {"fitted_on_rows": self.fit != "constants"}
        return {**self.model_dump(mode="json", exclude_defaults=True), "kind": self.kind, **fitted}

    @property
    def features(self) -> list[str]:
        """Names of the F features."""
        return [name for column in self.columns for name in _names(column, self.columns[column])]

    def read(self, table: Table) -> np.ndarray:
        """[n, C] float64 of a table's rows, nan where a value is missing; label, client and others may be there.

        Raises:
            DataError: a column is missing, a unit is another, or a value is not what the schema allows.
        """
        others = [header for header in table.columns if header not in self._headers(table)]
        mine = {header: texts for header, texts in table.columns.items() if header not in others}
        return values(named(Table(table.path, mine, table.lines), self.columns), self.columns)

    def _headers(self, table: Table) -> set[str]:
        return {
            header for header in table.columns if header in self.columns or header.split("[")[0].strip() in self.columns
        }

    def apply(self, raw: np.ndarray, client: str | None = None) -> np.ndarray:
        """Features [n, F] float32 of values [n, C] as `read` gives them; a row's features depend on that row alone.

        Args:
            raw: columns in the order of `columns`.
            client: whose rows they are; needed where every client has scales of its own.

        Raises:
            DataError: there are no scales for this client, or a value is beyond float32 once it is scaled.
        """
        whose = client if self.fit == "per-client" and client is not None else EVERYBODY
        if whose not in self.scales:
            known = f"no client {client!r}" if client is not None else "rows of a client that is not named"
            raise DataError(
                f"every client has scales of its own, and there are none for {known}; name one it was fitted on"
            )
        blocks = [
            _feature(raw[:, place], column, self.scales[whose].get(name, Scale(0.0, 1.0)))
            for place, (name, column) in enumerate(self.columns.items())
        ]
        with np.errstate(over="ignore"):
            made = np.concatenate(blocks, axis=1).astype(np.float32)
        finite = np.isfinite(made).all(axis=0)
        if not finite.all():
            name = self.features[int(np.argmin(finite))]
            raise DataError(
                f"column {name!r}: a value is too large once it is scaled; rescale the column or set its range"
            )
        return made


def declared(columns: Mapping[str, Column], known: bool) -> Preparation:
    """Scales by the schema's constants alone; `known` as `Preparation.declared`."""
    scales = {name: Scale(*column.constants) for name, column in _numeric(columns)}
    return Preparation(fit="constants", declared=known, columns=dict(columns), scales={EVERYBODY: scales})


def federated(columns: Mapping[str, Column], known: bool, parts: Iterable[np.ndarray]) -> Preparation:
    """One scale for everybody, of sums that each client makes of its train rows alone.

    Args:
        columns, known: as for `declared`.
        parts: raw train rows [n, C] of every client, in the clients' order; gone through twice at most.
    """
    scales = {EVERYBODY: _fitted(columns, parts)}
    return Preparation(fit="federated", declared=known, columns=dict(columns), scales=scales)


def per_client(columns: Mapping[str, Column], known: bool, parts: Mapping[str, np.ndarray]) -> Preparation:
    """A scale for every client, of its own train rows; `parts` as for `federated`, by the clients' names."""
    scales = {name: _fitted(columns, [rows]) for name, rows in parts.items()}
    return Preparation(fit="per-client", declared=known, columns=dict(columns), scales=scales)


def statistics(columns: Mapping[str, Column], raw: np.ndarray, about: np.ndarray) -> np.ndarray:
    """[3, C]: how many values of each column are there, the sum of their distances from `about` [C], and that of the
    squared ones; clients' add.
    """
    found = np.zeros((3, len(columns)))
    for place, column in enumerate(columns.values()):
        if column.kind == "number":
            there = _logged(raw[:, place], column)
            there = there[np.isfinite(there)] - about[place]
            with np.errstate(over="ignore"):  # which `scale_of` tells
                found[:, place] = len(there), there.sum(), (there**2).sum()
    return found


def moments(columns: Mapping[str, Column], parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[C] counts, means and variances of the numbers in all clients' rows; `parts` as for `federated`."""
    counts, means, variances = _moments(columns, parts, np.zeros(len(columns)))
    with np.errstate(over="ignore", invalid="ignore"):  # which `scale_of` tells
        far = variances < _FAR * means * means
    return _moments(columns, parts, np.where(far, means, 0.0)) if far.any() else (counts, means, variances)


def _fitted(columns: Mapping[str, Column], parts: Iterable[np.ndarray]) -> dict[str, Scale]:
    """Mean and deviation of every number."""
    counts, means, variances = moments(columns, parts)
    places = {name: place for place, name in enumerate(columns)}
    return {
        name: scale_of(name, column, *(float(each[places[name]]) for each in (counts, means, variances)))
        for name, column in _numeric(columns)
    }


def _moments(
    columns: Mapping[str, Column], parts: Iterable[np.ndarray], about: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[C] counts, means and variances of all clients' sums."""
    total = sum((statistics(columns, rows, about) for rows in parts), start=np.zeros((3, len(columns))))
    counts = np.maximum(total[0], 1)
    with np.errstate(over="ignore", invalid="ignore"):  # which `scale_of` tells
        shift = total[1] / counts
        return total[0], about + shift, total[2] / counts - shift * shift


def scale_of(name: str, column: Column, count: float, mean: float, variance: float) -> Scale:
    """The scale of a number with these moments; the schema's constants for what cannot be known: no values, or all the
    same.

    Raises:
        DataError: the values are too large.
    """
    constant = Scale(*column.constants)
    if not count:
        return constant
    if not math.isfinite(variance):
        raise DataError(f"column {name!r}: values are too large to be standardised; rescale the column")
    return Scale(mean, math.sqrt(variance) if variance > max((_SAME * mean) ** 2, 1e-212) else constant.std)


def _numeric(columns: Mapping[str, Column]) -> list[tuple[str, Column]]:
    return [(name, column) for name, column in columns.items() if column.kind == "number"]


def _logged(column_values: np.ndarray, column: Column) -> np.ndarray:
    return np.log1p(column_values) if column.log else column_values


def _feature(column_values: np.ndarray, column: Column, scale: Scale) -> np.ndarray:
    """[n, 1 or more] features of one column."""
    missing = np.isnan(column_values)
    if column.categories is not None:
        places = np.where(missing, len(column.categories), column_values).astype(np.int64)
        slots = np.eye(len(column.categories) + 1)[places]
        return slots if column.rule == "indicator" else slots[:, :-1]
    fill = (column.logged(column.rule) - scale.mean) / scale.std if isinstance(column.rule, int | float) else 0.0
    scaled = np.where(missing, fill, (_logged(column_values, column) - scale.mean) / scale.std)
    return np.stack([scaled, missing], axis=1) if column.rule == "indicator" else scaled[:, None]


def _names(name: str, column: Column) -> list[str]:
    lacking = [f"{name} is missing"] if column.rule == "indicator" else []
    return [*([f"{name} = {value}" for value in column.categories] if column.categories else [name]), *lacking]
