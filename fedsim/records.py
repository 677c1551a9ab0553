"""The tables of a run: what `run.db` holds, how it is written and how it is read back.

docs/run-folder.md describes every column. A change of the tables raises `SCHEMA_VERSION`.
"""

import json
import math
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedsim.errors import RunFolderError

SCHEMA_VERSION = 1

Phase = Literal["train", "evaluate"]
Status = Literal["ok", "failed"]
Account = tuple[int, int, float | None]
"""As in `LedgerRow`: client, participations, epsilon."""


@dataclass(frozen=True)
class ClientRow:
    """One client's part in one round.

    Attributes:
        round, client: their numbers; rounds count from 1, clients from 0.
        phase: what it was asked for.
        status: whether its reply counts.
        rows: it worked on, and with `phase` "train" its weight by examples.
        loss: mean over those rows; None where there is none.
        steps: of the local optimiser.
        seconds: in the worker.
        bytes_down, bytes_up: that a real network would carry.
        error: one line, when it failed.
        metrics: any others, by name.
    """

    round: int
    client: int
    phase: Phase
    status: Status
    rows: int
    loss: float | None
    steps: int
    seconds: float
    bytes_down: int
    bytes_up: int
    error: str | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RoundRecord:
    """One committed round.

    Attributes:
        number: from 1.
        seconds: from sampling the cohort to the end of evaluation.
        cohort: clients asked to train.
        failed: of those.
        metrics: by full name (model/data/weighting/metric).
        epsilon: spent so far by the client that spent most; None without privacy.
        fingerprint: of the model after the round.
        clients: a row for every client and phase.
    """

    number: int
    seconds: float
    cohort: int
    failed: int
    metrics: Mapping[str, float]
    epsilon: float | None
    fingerprint: str
    clients: Sequence[ClientRow]


class LedgerRow(NamedTuple):
    """A client's privacy account after a round; epsilon is None where a slow accountant leaves it to the end."""

    client: int
    participations: int
    epsilon: float | None


class Event(NamedTuple):
    """Why a run ended early: its stop rule, and the client failures of a round that it did not commit for them."""

    kind: str
    message: str


class RoundRow(NamedTuple):
    """A committed round as it is read back.

    Attributes:
        number, seconds, cohort, failed, epsilon, fingerprint: as in `RoundRecord`.
        best: whether it was the best so far on validation.
        checkpoint, checkpoint_sha256: a file of `checkpoints/`, there as long as it is kept, and its hash.
        committed: Unix time.
    """

    number: int
    seconds: float
    cohort: int
    failed: int
    epsilon: float | None
    fingerprint: str
    best: bool
    checkpoint: str
    checkpoint_sha256: str
    committed: float


class EventRow(NamedTuple):
    """An event as it is read back, with the last committed round (0 before the first)."""

    round: int
    kind: str
    message: str


_TABLES = f"""
CREATE TABLE rounds (
    number INTEGER PRIMARY KEY,
    seconds REAL NOT NULL,
    cohort INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    epsilon REAL,
    fingerprint TEXT NOT NULL,
    best INTEGER NOT NULL,
    checkpoint TEXT NOT NULL,
    checkpoint_sha256 TEXT NOT NULL,
    committed REAL NOT NULL
);
CREATE TABLE clients (
    round INTEGER NOT NULL,
    client INTEGER NOT NULL,
    phase TEXT NOT NULL,
    status TEXT NOT NULL,
    rows INTEGER NOT NULL,
    loss REAL,
    steps INTEGER NOT NULL,
    seconds REAL NOT NULL,
    bytes_down INTEGER NOT NULL,
    bytes_up INTEGER NOT NULL,
    error TEXT,
    metrics TEXT NOT NULL,
    PRIMARY KEY (round, client, phase)
) WITHOUT ROWID;
CREATE VIEW failures AS SELECT round, client, phase, error FROM clients WHERE status = 'failed';
CREATE TABLE metrics (
    round INTEGER NOT NULL,
    name TEXT NOT NULL,
    value REAL,
    PRIMARY KEY (round, name)
) WITHOUT ROWID;
CREATE TABLE privacy (
    round INTEGER NOT NULL,
    client INTEGER NOT NULL,
    participations INTEGER NOT NULL,
    epsilon REAL,
    PRIMARY KEY (round, client)
) WITHOUT ROWID;
CREATE TABLE events (
    round INTEGER NOT NULL,
    kind TEXT NOT NULL,
    message TEXT NOT NULL
);
CREATE TABLE summary (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
PRAGMA user_version = {SCHEMA_VERSION};
"""


def create_tables(path: Path) -> None:
    """Make a database without rows."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(_TABLES)


def connect(path: Path) -> sqlite3.Connection:
    """The database for its one writer.

    A commit returns when it is on the disk; the write-ahead log lets others read at the same time.
    """
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    return database


def disconnect(database: sqlite3.Connection) -> None:
    """Close, and leave one plain file that can be read from a read-only place too.

    While somebody else has it open the log stays beside it, which costs nothing but tidiness.
    """
    with closing(database), suppress(sqlite3.OperationalError):
        database.execute("PRAGMA busy_timeout = 0")
        database.execute("PRAGMA journal_mode = DELETE")


def insert_round(
    database: sqlite3.Connection,
    record: RoundRecord,
    checkpoint: tuple[str, str],
    *,
    best: bool,
    ledger: Iterable[Account],
) -> None:
    """Write a whole round in one transaction.

    Args:
        database: from `connect`.
        record: the round.
        checkpoint: its file's name and SHA-256.
        best: whether it is the best so far on validation.
        ledger: accounts that changed in the round.
    """
    number = record.number
    with database:
        head = (number, record.seconds, record.cohort, record.failed, record.epsilon, record.fingerprint)
        values = (*head, best, *checkpoint, time.time())
        database.execute("INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        database.executemany(
            "INSERT INTO clients VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_client_values, record.clients)
        )
        database.executemany(
            "INSERT INTO metrics VALUES (?, ?, ?)", [(number, *pair) for pair in record.metrics.items()]
        )
        database.executemany("INSERT INTO privacy VALUES (?, ?, ?, ?)", ((number, *account) for account in ledger))


def insert_summary(
    database: sqlite3.Connection, summary: Mapping[str, Any], *, ledger: Iterable[Account], events: Iterable[Event]
) -> None:
    """Write what a finished run says of itself in one transaction.

    Args:
        database: from `connect`.
        summary: plain values by name.
        ledger: every account as it is at the end; it takes the place of what the last round wrote.
        events: why the run ended.
    """
    with database:
        last = database.execute("SELECT coalesce(max(number), 0) FROM rounds").fetchone()[0]
        database.executemany(
            "INSERT INTO summary VALUES (?, ?)", [(name, to_json(value)) for name, value in summary.items()]
        )
        database.executemany(
            "INSERT OR REPLACE INTO privacy VALUES (?, ?, ?, ?)", [(last, *account) for account in ledger]
        )
        database.executemany("INSERT INTO events VALUES (?, ?, ?)", [(last, *event) for event in events])


def to_json(value: Any, indent: int | None = None) -> str:
    """Standard JSON, in which numbers that are not finite are null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _client_values(row: ClientRow) -> tuple[Any, ...]:
    text = to_json(row.metrics) if row.metrics else "{}"
    work = (row.rows, row.loss, row.steps, row.seconds, row.bytes_down, row.bytes_up)
    return (row.round, row.client, row.phase, row.status, *work, row.error, text)


class Records:
    """A run's tables, read-only. Every call sees the rounds committed when it is made."""

    def __init__(self, path: Path) -> None:
        """Open `run.db`, also while another process writes it.

        Raises:
            RunFolderError: no database of a run, or one of another schema.
        """
        try:
            # Not mode=ro: after a kill the reader may have to put the file in order, which is writing.
            self._database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True)
            self._database.execute("PRAGMA query_only = ON")
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise RunFolderError(f"{path} cannot be read as the records of a run: {error}") from error
        if version != SCHEMA_VERSION:
            self.close()
            raise RunFolderError(
                f"{path} has schema {version}, this fedsim reads {SCHEMA_VERSION}; use the version that wrote it"
            )

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def rounds(self) -> list[RoundRow]:
        """Committed rounds in order."""
        return [RoundRow(*row)._replace(best=bool(row[6])) for row in self._all("SELECT * FROM rounds ORDER BY number")]

    def clients(self, round: int | None = None) -> list[ClientRow]:
        """Every client's part in one round, or in all, by (round, client, phase)."""
        where, values = ("", ()) if round is None else ("WHERE round = ?", (round,))
        rows = self._all(f"SELECT * FROM clients {where} ORDER BY round, client, phase", *values)
        return [ClientRow(*(*row[:-1], _numbers(json.loads(row[-1])))) for row in rows]

    def metrics(self) -> dict[str, dict[int, float]]:
        """For every metric's full name its value by round; nan where it was not finite."""
        series: dict[str, dict[int, float]] = {}
        for number, name, value in self._all("SELECT round, name, value FROM metrics ORDER BY round, name"):
            series.setdefault(name, {})[number] = math.nan if value is None else value
        return series

    def privacy(self, round: int | None = None) -> list[LedgerRow]:
        """Every charged client's account as it stood after a round, by default after the last."""
        accounts = self._all(  # beside max(), SQLite takes the other columns from the row that has the maximum
            "SELECT client, participations, epsilon, max(round) FROM privacy WHERE round <= ? GROUP BY client",
            math.inf if round is None else round,
        )
        return [LedgerRow(*row[:3]) for row in accounts]

    def events(self) -> list[EventRow]:
        """Events in the order in which they were recorded."""
        return [EventRow(*row) for row in self._all("SELECT round, kind, message FROM events ORDER BY rowid")]

    def summary(self) -> dict[str, Any]:
        """What the run said at its end; empty when it has not finished."""
        return {name: json.loads(value) for name, value in self._all("SELECT name, value FROM summary ORDER BY rowid")}

    def _all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._database.execute(query, values).fetchall()


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in values.items()}
