"""A run's records as they are read: rounds, clients, failures, metrics, accounts, events; also while it goes on.

An older schema is shown as the newest, with NULL where it says nothing.
"""

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.errors import RunFolderError
from fedsim.records import SCHEMA_VERSION, ClientRow, LedgerRow, MeasuredRow, Phase, StateRow, live_states, schema


class RoundRow(NamedTuple):
    """A committed round as it is read back.

    Attributes:
        number, seconds, cohort, failed, epsilon, fingerprint: as in `RoundRecord`.
        best: whether it was the best so far on validation.
        checkpoint, checkpoint_sha256: a file of `checkpoints/`, there as long as it is kept, and its hash; None for
            a round between two checkpoints.
        states, states_sha256: likewise the file of client states; None where none changed.
        committed: Unix time.
        cohort_sha256: as in `RoundRecord`; None in runs of an earlier version.
    """

    number: int
    seconds: float
    cohort: int
    failed: int
    epsilon: float | None
    fingerprint: str
    best: bool
    checkpoint: str | None
    checkpoint_sha256: str | None
    states: str | None
    states_sha256: str | None
    committed: float
    cohort_sha256: str | None = None


class EventRow(NamedTuple):
    """An event as it is read back, with the last committed round (0 before the first)."""

    round: int
    kind: str
    message: str


class FailureRow(NamedTuple):
    """A client's failure that a round went on without."""

    round: int
    client: int
    phase: Phase
    error: str


class TagRow(NamedTuple):
    """A name that a person gave a run, and when (Unix time)."""

    name: str
    note: str
    created: float


class Records:
    """A run's tables, read-only. Every call sees the rounds committed when it is made.

    Attributes:
        version: of the schema in which the run was written; whatever it is, the newest is what is read.
    """

    def __init__(self, path: Path) -> None:
        """Open `run.db`, also while another process writes it.

        Raises:
            RunFolderError: no database of a run, or one of a newer schema.
        """
        self._path = path
        self._database, self.version = open_database(path)
        try:
            _show_as_newest(self._database, self.version)
            self._database.row_factory = sqlite3.Row
            self._database.execute("PRAGMA query_only = ON")
        except sqlite3.DatabaseError as error:
            self.close()
            raise _unreadable(path, error) from error

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def rounds(self) -> list[RoundRow]:
        """Committed rounds in order."""
        rows = self.select(f"SELECT {', '.join(RoundRow._fields)} FROM rounds ORDER BY number")
        return [row._replace(best=bool(row.best)) for row in map(RoundRow._make, rows)]

    def clients(self, round: int | None = None, client: int | None = None) -> list[ClientRow]:
        """Every client's part in one round or in all, or one client's, by (round, client, phase)."""
        given = {"round": round, "client": client}
        chosen = {name: value for name, value in given.items() if value is not None}
        # with the rounds listed, SQLite finds one client's rows by the primary key
        conditions = ["round IN (SELECT number FROM rounds)", *(f"{name} = ?" for name in chosen)]
        columns = ", ".join(field.name for field in fields(ClientRow))
        query = f"SELECT {columns} FROM clients WHERE {' AND '.join(conditions)} ORDER BY round, client, phase"
        return [_client_row(row) for row in self.select(query, *chosen.values())]

    def failures(self) -> list[FailureRow]:
        """Failures of clients that rounds went on without."""
        return [FailureRow._make(row) for row in self.select("SELECT round, client, phase, error FROM failures")]

    def metrics(self) -> dict[str, dict[int, float]]:
        """For every metric's full name its value by round; nan where it was not finite."""
        series: dict[str, dict[int, float]] = {}
        for number, name, value in self.select("SELECT round, name, value FROM metrics ORDER BY round, name"):
            series.setdefault(name, {})[number] = math.nan if value is None else value
        return series

    def privacy(self, round: int | None = None) -> list[LedgerRow]:
        """Every charged client's account as it stood after a round, by default after the last."""
        accounts = self.select(  # beside max(), SQLite takes the other columns from the row that has the maximum
            f"SELECT {', '.join(LedgerRow._fields)}, max(round) FROM privacy WHERE round <= ? GROUP BY client",
            math.inf if round is None else round,
        )
        return [LedgerRow(*row[:-1]) for row in accounts]

    def tests(self) -> list[MeasuredRow]:
        """The last models on clients' own test rows, by client; empty before the run has finished."""
        rows = self.select(f"SELECT {', '.join(MeasuredRow._fields)} FROM tests ORDER BY client")
        return [MeasuredRow(row[0], row[1], row[2], _numbers(json.loads(row[3]))) for row in rows]

    def live_states(self, checkpoint: int) -> list[StateRow]:
        """For every client that has one the state in force at a checkpoint, by client."""
        return live_states(self._database, checkpoint)

    def events(self) -> list[EventRow]:
        """Events in the order in which they were recorded."""
        return [EventRow(*row) for row in self.select("SELECT round, kind, message FROM events ORDER BY rowid")]

    def summary(self) -> dict[str, Any]:
        """What the run said at its end; empty when it has not finished."""
        return {
            name: json.loads(value) for name, value in self.select("SELECT name, value FROM summary ORDER BY rowid")
        }

    def tags(self) -> list[TagRow]:
        """Names that people gave the run, by name."""
        return [TagRow._make(row) for row in self.select("SELECT name, note, created FROM tags ORDER BY name")]

    def select(self, query: str, *values: Any) -> Iterator[sqlite3.Row]:
        """The rows of any query over the tables, one at a time; a row is a tuple, and `dict` names its columns."""
        try:
            for row in self._database.execute(query, values):  # noqa: UP028  it would close the cursor too late
                yield row
        except sqlite3.DatabaseError as error:
            raise _unreadable(self._path, error) from error


def open_database(path: Path) -> tuple[sqlite3.Connection, int]:
    """A run's database and the version of its schema.

    Raises:
        RunFolderError: no database of a run, or one of a newer schema.
    """
    if not path.is_file():
        raise RunFolderError(f"{path.parent} is not a run folder: it has no run.db")
    try:
        # Not mode=ro: after a kill the reader may have to put the file in order, which is writing.
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True)
        version: int = database.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise _unreadable(path, error) from error
    if not 1 <= version <= SCHEMA_VERSION:
        database.close()
        raise RunFolderError(
            f"{path} has schema {version}, this fedsim reads 1 to {SCHEMA_VERSION}; use the version that wrote it"
        )
    return database, version


def _unreadable(path: Path, error: Exception) -> RunFolderError:
    return RunFolderError(f"{path} cannot be read as the records of a run: {error}")


_SINCE: Mapping[int, Mapping[str, Mapping[str, str]]] = {
    2: {
        "rounds": {"states": "NULL", "states_sha256": "NULL"},
        "clients": {"norm": "NULL", "stack": "1", "epsilon": "NULL"},
    },
    3: {"privacy": dict.fromkeys(("identity", "level", "relation", "sampling", "noise", "rate", "steps"), "NULL")},
    4: {"rounds": {"cohort_sha256": "NULL"}},
}
"""Columns that versions before one lack, and what stands for them."""
_TABLES_SINCE: Mapping[int, Sequence[str]] = {2: ("states", "tags"), 4: ("tests", "sketches")}


def _show_as_newest(database: sqlite3.Connection, version: int) -> None:
    """Lay views of this connection alone over the tables of an older version."""
    added: dict[str, dict[str, str]] = {}
    for since, tables in _SINCE.items():
        for table, columns in tables.items() if version < since else ():
            added.setdefault(table, {}).update(columns)
    for table, stands in added.items():
        shown = [f"{stands[name]} AS {name}" if name in stands else name for name in schema()[table]]
        database.execute(f"CREATE TEMP VIEW {table} AS SELECT {', '.join(shown)} FROM main.{table}")
    for table in [table for since, tables in _TABLES_SINCE.items() if version < since for table in tables]:
        shown = [f"NULL AS {name}" for name in schema()[table]]
        database.execute(f"CREATE TEMP VIEW {table} AS SELECT {', '.join(shown)} WHERE FALSE")


def _client_row(row: sqlite3.Row) -> ClientRow:
    return ClientRow(**{**dict(row), "metrics": _numbers(json.loads(row["metrics"]))})


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in values.items()}
