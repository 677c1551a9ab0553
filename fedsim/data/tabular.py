"""A corpus of tables that a schema describes."""

from collections.abc import Collection, Sequence

import numpy as np

from fedsim.data.corpus import Corpus
from fedsim.data.schema import Column, Columns, features, kept, named, names, sorted_values, texts, values
from fedsim.data.table import Table
from fedsim.errors import DataError, ScenarioError


def tabular(
    name: str,
    task: str,
    tables: Sequence[Table],
    columns: Columns,
    *,
    owners: Sequence[str] = (),
    test: Sequence[bool] = (),
    unseen: Collection[str] = (),
    group: str | None = None,
    known: bool = True,
) -> Corpus:
    """The corpus of some tables with the same columns; its rows are raw, and made ready once they are split.

    Args:
        name: of the data set.
        task: classification (one label with categories), regression (labels that are numbers) or multi-label (labels of
            two categories each, of which the second says that it is there).
        tables: of one data set.
        columns: the schema.
        owners: the client that each table belongs to, where a table is a client.
        test: which of the tables are the set's own test set.
        unseen: clients who never train: their rows are the set's own test set.
        group: column with the unit whose rows stay in one part, where none is of kind group: the client's, perhaps.
        known: whether categories and classes were declared, and not taken from the rows.

    Raises:
        DataError: names file, line and column of what the schema does not allow.
        ScenarioError: the schema does not fit the task.
    """
    sound = [kept(named(table, columns), columns) for table in tables]
    labels = {column: columns[column] for column in names(columns, "label")}
    shown = features(columns)
    if not shown:
        raise DataError(f"{tables[0].path}: no column is left for features; the table needs more than its label")
    _check_task(task, labels)
    owner = {column: columns[column] for column in names(columns, "client")}
    whole = np.concatenate([values(table, {**labels, **shown, **owner}) for table in sound])
    y, classes, target = _targets(task, labels, whole[:, : len(labels)])
    clients, client_names = _clients(sound, columns, owners, unseen)
    group = next(names(columns, "group"), group)
    return Corpus(
        name=name,
        task=task,
        x=whole[:, len(labels) :],
        y=y,
        classes=classes,
        preprocessing={"kind": "table", "declared": known, **({"target": target} if target else {})},
        clients=clients,
        client_names=client_names,
        groups=_groups(sound, group, columns),
        group_name=group or "",
        own_test=_own_test(sound, test, clients),
        test_units=_owners(sound, columns) if unseen else None,
        columns=shown,
    )


def _check_task(task: str, labels: Columns) -> None:
    kinds = {
        "classification": (len(labels) == 1, True, "one label with categories"),
        "regression": (len(labels) >= 1, False, "labels that are numbers, without categories"),
        "multi-label": (len(labels) >= 2, True, "two labels or more, each with two categories"),
    }
    if task not in kinds:
        raise ScenarioError(f"data.task = {task!r}: a table is for one of {', '.join(kinds)}")
    enough, named_values, wanted = kinds[task]
    fit = all((column.categories is not None) == named_values for column in labels.values())
    pairs = task != "multi-label" or all(len(column.categories or ()) == 2 for column in labels.values())
    if not (enough and fit and pairs):
        listed = f"; data.schema has {', '.join(labels)}" if labels else "; data.schema has none"
        raise ScenarioError(f"data.task = {task!r} needs {wanted}{listed}")


def _targets(task: str, labels: Columns, raw: np.ndarray) -> tuple[np.ndarray, tuple[str, ...], dict[str, object]]:
    """Targets as the task takes them, names of classes, and what is declared of numbers."""
    if task == "classification":
        return raw[:, 0].astype(np.int64), tuple(next(iter(labels.values())).categories or ()), {}
    if task == "multi-label":
        return raw.astype(np.uint8), tuple(labels), {}
    with np.errstate(over="ignore"):  # which is told with the row
        y = raw.astype(np.float32)
    return (y[:, 0] if len(labels) == 1 else y), (), _declared(labels)


def _declared(labels: Columns) -> dict[str, object]:
    """What `fedsim.tasks.regression` is told: names, units, constants, and the range where all have one."""
    columns: list[Column] = list(labels.values())
    ranges = [list(column.range) for column in columns if column.range is not None]
    return {
        "names": list(labels),
        "units": [column.unit for column in columns],
        "mean": [column.constants[0] for column in columns],
        "std": [column.constants[1] for column in columns],
        **({"range": ranges} if len(ranges) == len(columns) else {}),
    }


def _groups(tables: Sequence[Table], group: str | None, columns: Columns) -> np.ndarray | None:
    """[N] every row's group, as it is called."""
    if group is None:
        return None
    return np.array([value for table in tables for value in texts(table, group, columns[group])])


def _owners(tables: Sequence[Table], columns: Columns) -> np.ndarray:
    """[N] whose every row is, as it is called."""
    column = next(names(columns, "client"))
    return np.array([value for table in tables for value in texts(table, column, columns[column])])


def _clients(
    tables: Sequence[Table], columns: Columns, owners: Sequence[str], unseen: Collection[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """[N] number of every row's client, -1 of those who never train, and the others' names.

    Names are sorted as numbers where all are, else as texts.
    """
    column = next(names(columns, "client"), None)
    if column is None:
        if not owners:
            return None, ()
        return np.repeat(np.arange(len(tables)), [len(table) for table in tables]), tuple(owners)
    given = _owners(tables, columns).tolist()
    ordered = sorted_values(set(given) - set(unseen))
    number = {value: place for place, value in enumerate(ordered)}
    return np.array([number.get(value, -1) for value in given], dtype=np.int64), tuple(ordered)


def _own_test(tables: Sequence[Table], test: Sequence[bool], clients: np.ndarray | None) -> np.ndarray | None:
    if test:
        return np.repeat(np.array(test, dtype=bool), [len(table) for table in tables])
    return clients < 0 if clients is not None and (clients < 0).any() else None
