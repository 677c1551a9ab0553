"""A user's own table in a CSV file, with a schema or read as it looks."""

import logging
from typing import Any, Literal

from fedsim.data.corpus import Corpus, Folders
from fedsim.data.schema import Column, columns_of, sorted_values
from fedsim.data.table import Table, read
from fedsim.data.tabular import tabular
from fedsim.errors import DataError, ScenarioError
from fedsim.registry import nearest

_LOG = logging.getLogger(__name__)
_MOST_VALUES = 1000
_MISSING = frozenset({"?", "-", ".", "na", "n/a", "#n/a", "nan", "null", "none"})


def csv(
    folders: Folders,
    *,
    path: str,
    task: Literal["classification", "regression", "multi-label"] = "classification",
    schema: dict[str, dict[str, Any]] | None = None,
    label: str | None = None,
    client: str | None = None,
    group: str | None = None,
    delimiter: str = ",",
) -> Corpus:
    """A corpus of a table's rows: UTF-8 with or without a byte order mark, a header line, quoted fields allowed.

    With a schema its columns say what they are. Without one, a column whose values are all numbers is a number and any
    other a category, with the values that its rows have: so are the classes. That is logged, since it takes names
    from clients' rows. Space around values does not count.

    Args:
        folders: `path` is relative to `folders.scenario`.
        path: of the file.
        task: what is learned.
        schema: column -> what it is, see `fedsim.data.schema`; then label, client and group are left out.
        label: column with the class, or with the number under regression.
        client: column with the natural client, no feature.
        group: column with the person or unit whose rows stay in one part, no feature; its name is that of the unit
            which `privacy.example.unit` protects.
        delimiter: between fields, one character.

    Raises:
        ScenarioError: a key names no column, or one column twice; the schema is none.
        DataError: no such file, not such a table, a value that the schema does not allow; names line and column.
    """
    table = read(folders.scenario / path, delimiter)
    special = {"label": label, "client": client, "group": group}
    if schema is None:
        columns = _seen(table, special, task)
    elif given := [key for key, column in special.items() if column is not None]:
        raise ScenarioError(f'data.{given[0]}: data.schema is there too; give that column kind = "{given[0]}" in it')
    else:
        columns = columns_of(schema)
    return tabular(table.path.stem, task, [table], columns, group=group, known=schema is not None)


def _seen(table: Table, special: dict[str, str | None], task: str) -> dict[str, Column]:
    """A schema of a table as it looks."""
    if special["label"] is None:
        raise ScenarioError("data.label is missing; name the column to be learned, or declare columns in data.schema")
    if task == "multi-label":
        raise ScenarioError('data.task = "multi-label" needs data.schema, in which two columns or more are labels')
    for key, column in special.items():
        if column is not None and column not in table.columns:
            raise ScenarioError(f"data.{key}: {table.path} has no column {column!r}.{nearest(column, table.columns)}")
    label, client, group = special.values()
    if label in (client, group):
        raise ScenarioError(f"data.label: column {label!r} cannot also be the client or group")
    kinds = {label: "label", group: "group", client: "client"}
    columns = {name: _column(table, name, kinds.get(name), task) for name in table.columns}
    _tell(table, columns)
    return columns


def _column(table: Table, name: str, kind: str | None, task: str) -> Column:
    """What one column looks like."""
    if kind in ("client", "group"):
        return Column(kind="client" if kind == "client" else "group")
    given = set(table.columns[name])
    missing = {value for value in given if value.lower() in _MISSING}
    numeric = _numeric(given - missing - {""})
    codes = sorted(missing) if numeric else []
    if kind is None and numeric:
        return Column(kind="number", missing=codes)
    if kind == "label" and task == "regression":
        return Column(kind="label", missing=codes)
    return _category(table, name, given - {"", *codes}, "category" if kind is None else "label", codes)


def _category(table: Table, name: str, given: set[str], kind: Literal["category", "label"], codes: list[str]) -> Column:
    if len(given) > _MOST_VALUES:
        raise DataError(
            f"{table.path}: column {name!r} has {len(given)} different values, more than {_MOST_VALUES}; leave it out "
            "or put its values into fewer kinds"
        )
    if kind == "label" and len(given) < 2:
        only = next(iter(given), "")
        raise DataError(f"{table.path}: column {name!r} is {only!r} in every row; there is nothing to learn")
    if not given:
        raise DataError(f"{table.path}: column {name!r} is empty in every row; leave it out")
    return Column(kind=kind, categories=sorted_values(given), missing=codes)


def _numeric(given: set[str]) -> bool:
    """Whether there are values, and all are numbers."""
    try:
        return bool(given) and all("_" not in value and isinstance(float(value), float) for value in given)
    except ValueError:
        return False


def _tell(table: Table, columns: dict[str, Column]) -> None:
    """Say what was taken from the rows."""
    seen = [name for name, column in columns.items() if column.categories is not None]
    if seen:
        _LOG.warning(
            "%s: values of %s were taken from the rows of all clients; declare them in data.schema if rows are private",
            table.path,
            ", ".join(map(repr, seen)),
        )
