"""A user's own table in a CSV file: numbers are standardised, or taken as they are, texts one-hot."""

import math
from collections.abc import Mapping, Sequence
from csv import Error, reader
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources._files import contents
from fedsim.errors import DataError, ScenarioError
from fedsim.registry import nearest

_MOST_VALUES = 1000
_MISSING = frozenset({"", "?", "-", ".", "na", "n/a", "#n/a", "nan", "null", "none"})


def csv(
    folders: Folders,
    *,
    path: str,
    label: str,
    client: str | None = None,
    group: str | None = None,
    delimiter: str = ",",
    standardise: bool = True,
) -> Corpus:
    """A corpus of a table's rows: UTF-8 with or without a byte order mark, a header line, quoted fields allowed.

    A column whose values are all numbers becomes one float32 feature; any other becomes one feature per value, 0 or 1.
    Space around values does not count.

    Args:
        folders: `path` is relative to `folders.scenario`.
        path: of the file.
        label: column with the class; classes are sorted, as numbers where all are.
        client: column with the natural client, no feature.
        group: column with the person or unit whose rows stay in one part, no feature; its name is that of the unit
            which `privacy.example.unit` protects.
        delimiter: between fields, one character.
        standardise: whether numbers get mean 0 and standard deviation 1 over all rows, or stay as they are in the file.
            Under privacy they must stay: else a row of one client would move the rows of all others.

    Raises:
        ScenarioError: a key names no column, or one column twice.
        DataError: no such file, not such a table, a value missing; names line and column.
    """
    table = _read(folders.scenario / path, delimiter)
    special = {"label": label, "client": client, "group": group}
    for key, column in special.items():
        if column is not None and column not in table.columns:
            raise ScenarioError(f"data.{key}: {table.path} has no column {column!r}.{nearest(column, table.columns)}")
    if label in (client, group):
        raise ScenarioError(f"data.label: column {label!r} cannot also be the client or group")
    blocks, features = _features(table, [name for name in table.columns if name not in special.values()], standardise)
    classes, y = _distinct(table, label)
    if len(classes) < 2:
        raise DataError(f"{table.path}: column {label!r} is {classes[0]!r} in every row; there is nothing to learn")
    clients = _distinct(table, client, most=len(table.lines)) if client is not None else None
    return Corpus(
        name=table.path.stem,
        task="classification",
        x=np.concatenate(blocks, axis=1),
        y=y,
        classes=classes,
        preprocessing={"kind": "table", "fitted_on_rows": standardise, "columns": features},
        clients=clients[1] if clients is not None else None,
        client_names=clients[0] if clients is not None else (),
        groups=np.array(_complete(table, group)) if group is not None else None,
        group_name=group or "",
    )


@dataclass(frozen=True)
class _Table:
    path: Path
    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int]
    """The line of the file on which every row ends."""


def _read(path: Path, delimiter: str) -> _Table:
    try:
        text = contents(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the table as UTF-8") from error
    if len(delimiter) != 1:
        raise ScenarioError(f"data.delimiter = {delimiter!r}: give one character")
    header: list[str] = []
    rows, lines = [], []
    parser = reader(StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for fields in parser:
            values = [field.strip() for field in fields]
            if not any(values):
                continue
            if not header:
                header = _header(path, values)
                continue
            if len(values) != len(header):
                where = f"{path}, line {parser.line_num}"
                raise DataError(f"{where}: {len(values)} fields where the header has {len(header)}; mend the line")
            rows.append(values)
            lines.append(parser.line_num)
    except Error as error:
        raise DataError(f"{path}, line {parser.line_num}: {error}; check the quotes there") from error
    if not rows:
        raise DataError(f"{path}: no rows under a header line; the first line must name the columns")
    return _Table(path, dict(zip(header, zip(*rows, strict=True), strict=True)), lines)


def _header(path: Path, names: list[str]) -> list[str]:
    twice = [name for position, name in enumerate(names) if name in names[:position]]
    if "" in names or twice:
        reason = f"names {twice[0]!r} twice" if twice else f"leaves column {names.index('') + 1} without a name"
        raise DataError(f"{path}: the header {reason}; give every column one name of its own")
    other = [mark for mark in ";\t|" if len(names) == 1 and mark in names[0]]
    if other:
        raise DataError(f"{path}: the header is one field; set data.delimiter = {other[0]!r}")
    return names


def _features(table: _Table, names: Sequence[str], standardise: bool) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """[N, columns] of every feature column, and how each was made."""
    if not names:
        raise DataError(f"{table.path}: no column is left for features; the table needs more than its label")
    made = [_numbers(table, name, standardise) if _is_numeric(table, name) else _one_hot(table, name) for name in names]
    return [block for block, _ in made], [feature for _, feature in made]


def _is_numeric(table: _Table, name: str) -> bool:
    """Whether all values that are there are numbers."""
    present = [value for value in table.columns[name] if value.lower() not in _MISSING]
    return all(_number(value) is not None for value in present) and bool(present)


def _number(value: str) -> float | None:
    try:
        return None if "_" in value else float(value)
    except ValueError:
        return None


def _numbers(table: _Table, name: str, standardise: bool) -> tuple[np.ndarray, dict[str, Any]]:
    values = np.array(_complete(table, name), dtype=np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        line = table.lines[int(np.argmin(finite))]
        raise DataError(f"{table.path}, line {line}: column {name!r} is not finite; mend or drop the row")
    mean, std = (float(values.mean()), float(values.std())) if standardise else (0.0, 1.0)
    if not math.isfinite(std):
        raise DataError(f"{table.path}: column {name!r} is too large to be standardised; rescale it")
    scale = std if std > 0 else 1.0
    feature = {"name": name, "kind": "number", "mean": mean, "std": scale}
    return ((values - mean) / scale)[:, None].astype(np.float32), feature


def _one_hot(table: _Table, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    values, numbers = _distinct(table, name)
    return np.eye(len(values), dtype=np.float32)[numbers], {"name": name, "kind": "text", "values": list(values)}


def _distinct(table: _Table, name: str, most: int = _MOST_VALUES) -> tuple[tuple[str, ...], np.ndarray]:
    """A column's sorted values, and [N] the number of every row's value among them."""
    column = _complete(table, name)
    values = set(column)
    if len(values) > most:
        raise DataError(
            f"{table.path}: column {name!r} has {len(values)} different values, more than {most}; leave it out or "
            "put its values into fewer kinds"
        )
    numeric = all(_number(value) is not None for value in values)
    ordered = sorted(values, key=(lambda value: (float(value), value)) if numeric else (lambda value: (0.0, value)))
    number = {value: position for position, value in enumerate(ordered)}
    return tuple(ordered), np.array([number[value] for value in column], dtype=np.int64)


def _complete(table: _Table, name: str) -> Sequence[str]:
    """A column in which nothing is missing; "NA" and the like are missing among numbers, a value among texts."""
    column = table.columns[name]
    missing = _MISSING if _is_numeric(table, name) else {""}
    for value, line in zip(column, table.lines, strict=True):
        if value.lower() in missing:
            shown = f" ({value!r})" if value else ""
            raise DataError(f"{table.path}, line {line}: column {name!r} is missing{shown}; fill it in or drop the row")
    return column
