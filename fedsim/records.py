"""The tables of a run: what `run.db` holds, and how it is written; `reading.py` gives it back.

docs/run-folder.md describes every column. A change of the tables raises `SCHEMA_VERSION`.
"""

import fcntl
import hashlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedsim.errors import RunFolderError

SCHEMA_VERSION = 4
HOLD_JSON = {"clients": ["metrics"], "sketches": ["vector"], "summary": ["value"], "tests": ["metrics"]}
"""Columns of text that hold JSON, by table."""

Phase = Literal["train", "evaluate"]
Status = Literal["ok", "failed"]


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
        seconds: in the worker; an equal share where several were trained at once.
        bytes_down, bytes_up: that a real network would carry.
        error: one line, when it failed.
        metrics: any others, by name.
        norm: Euclidean norm of its update; None where there is none.
        stack: clients that were trained at once; 1 is alone.
        epsilon: it has spent so far, this round included; None without privacy, in evaluation, and where the
            accountant is too slow to say it every round.
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
    norm: float | None = None
    stack: int = 1
    epsilon: float | None = None


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
        cohort_sha256: of the numbers of the clients asked to train, from `cohort_digest`; None where nobody says.
        sketches: of the updates of those that trained, by client (see `fedsim.sketches`); none in most rounds.
    """

    number: int
    seconds: float
    cohort: int
    failed: int
    metrics: Mapping[str, float]
    epsilon: float | None
    fingerprint: str
    clients: Sequence[ClientRow]
    cohort_sha256: str | None = None
    sketches: Mapping[int, Sequence[float]] = field(default_factory=dict)


class LedgerRow(NamedTuple):
    """A client's privacy account after a round, or everybody's.

    Attributes:
        client: its number; -1 for all clients, where every round charges them alike.
        participations: rounds that it was charged for.
        epsilon: of these; None where a slow accountant leaves it to the end.
        identity: of its data, the same in every run on them.
        level, relation, sampling: of the mechanism, in the words of `fedsim.privacy`.
        noise: standard deviation over the largest norm of a contribution.
        rate: with which a unit enters a release.
        steps: releases so far.

    What comes after epsilon is None in runs of an earlier version.
    """

    client: int
    participations: int
    epsilon: float | None
    identity: str | None = None
    level: str | None = None
    relation: str | None = None
    sampling: str | None = None
    noise: float | None = None
    rate: float | None = None
    steps: int | None = None


class MeasuredRow(NamedTuple):
    """The last models on a client's own test rows.

    Attributes:
        client: its number.
        rows: it has.
        loss: of the global model, mean over them; of its own where there is no other.
        metrics: the task's first, of the global model and, as `personal/...`, of its own.
    """

    client: int
    rows: int
    loss: float | None
    metrics: Mapping[str, float]


class CheckpointFiles(NamedTuple):
    """Files of `checkpoints/` that a round wrote, with their SHA-256; no states where no client's changed."""

    checkpoint: str
    sha256: str
    states: str | None
    states_sha256: str | None


class StateRow(NamedTuple):
    """From checkpoint `checkpoint` on a client's state is the one that round `made` made.

    It lies in the states file of round `checkpoint`.
    """

    client: int
    checkpoint: int
    made: int


class Event(NamedTuple):
    """What happened to a run: it was resumed, a rule ended it, clients failed in a round that was not committed."""

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
    checkpoint TEXT,
    checkpoint_sha256 TEXT,
    states TEXT,
    states_sha256 TEXT,
    committed REAL NOT NULL,
    cohort_sha256 TEXT
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
    norm REAL,
    stack INTEGER NOT NULL,
    epsilon REAL,
    PRIMARY KEY (round, client, phase)
) WITHOUT ROWID;
CREATE TABLE sketches (
    round INTEGER NOT NULL,
    client INTEGER NOT NULL,
    vector TEXT NOT NULL,
    PRIMARY KEY (round, client)
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
    identity TEXT,
    level TEXT,
    relation TEXT,
    sampling TEXT,
    noise REAL,
    rate REAL,
    steps INTEGER,
    PRIMARY KEY (round, client)
) WITHOUT ROWID;
CREATE TABLE states (
    client INTEGER NOT NULL,
    checkpoint INTEGER NOT NULL,
    made INTEGER NOT NULL,
    PRIMARY KEY (client, checkpoint)
) WITHOUT ROWID;
CREATE TABLE tests (
    client INTEGER PRIMARY KEY,
    rows INTEGER NOT NULL,
    loss REAL,
    metrics TEXT NOT NULL
);
CREATE TABLE events (
    round INTEGER NOT NULL,
    kind TEXT NOT NULL,
    message TEXT NOT NULL
);
CREATE TABLE summary (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
CREATE TABLE tags (
    name TEXT PRIMARY KEY,
    note TEXT NOT NULL,
    created REAL NOT NULL
);
PRAGMA user_version = {SCHEMA_VERSION};
"""


def create_tables(path: Path) -> None:
    """Make a database without rows."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(_TABLES)


@cache
def schema() -> Mapping[str, Mapping[str, str]]:
    """For every table, the view `failures` too, its columns with their SQL type."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(_TABLES)
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")]
        return {name: {row[1]: row[2] for row in database.execute(f"PRAGMA table_info({name})")} for name in names}


class Writer(sqlite3.Connection):
    """The database as the one process has it that writes rounds; `claim` keeps a second one out."""

    claim: int


def connect(path: Path) -> Writer:
    """The database for its one writer.

    A commit returns when it is on the disk; the write-ahead log lets others read at the same time. Rounds may be
    committed from any one thread.

    Raises:
        RunFolderError: another process is writing the run.
    """
    claim = _claim(path.parent)
    try:
        database = sqlite3.connect(path, factory=Writer, check_same_thread=False)
        database.claim = claim
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA cache_size = -256")  # KiB: rows are only appended, and pages once read are not again
    except BaseException:
        os.close(claim)
        raise
    return database


def disconnect(database: Writer) -> None:
    """Close, and leave one plain file that can be read from a read-only place too.

    While somebody else has it open the log stays beside it, which costs nothing but tidiness.
    """
    try:
        with closing(database), suppress(sqlite3.OperationalError):
            database.execute("PRAGMA busy_timeout = 0")
            database.execute("PRAGMA journal_mode = DELETE")
    finally:
        os.close(database.claim)


def being_written(folder: Path) -> bool:
    """Whether a process is writing the run, on this machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _claim(folder: Path) -> int:
    """A lock on the folder itself: it leaves no file, and ends with the process however that ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(20):  # `being_written` holds it for an instant
        if _lock(descriptor, fcntl.LOCK_EX):
            return descriptor
        time.sleep(0.05)
    os.close(descriptor)
    raise RunFolderError(f"{folder} is being written by another process; wait until that run has ended")


def _lock(descriptor: int, kind: int) -> bool:
    """Whether the lock was free, and is held now."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where the user alone must see to it
        return True
    return True


def insert_round(
    database: sqlite3.Connection,
    record: RoundRecord,
    files: CheckpointFiles | None,
    *,
    best: bool,
    ledger: Iterable[LedgerRow],
    states: Iterable[StateRow] = (),
) -> None:
    """Write a whole round in one transaction.

    Args:
        database: from `connect`.
        record: the round.
        files: its checkpoint; None for a round between two checkpoints.
        best: whether it is the best so far on validation.
        ledger: accounts that changed in the round.
        states: client states that its states file holds.
    """
    number = record.number
    with database:
        head = (number, record.seconds, record.cohort, record.failed, record.epsilon, record.fingerprint)
        values = (*head, best, *(files or (None,) * 4), time.time(), record.cohort_sha256)
        _insert(database, "rounds", [values])
        _insert(database, "clients", map(_client_values, record.clients))
        _insert(database, "sketches", ((number, *pair) for pair in _sketch_texts(record)))
        _insert(database, "metrics", ((number, *pair) for pair in record.metrics.items()))
        _insert(database, "privacy", ((number, *account) for account in ledger))
        _insert(database, "states", states)


def insert_summary(
    database: sqlite3.Connection,
    summary: Mapping[str, Any],
    *,
    ledger: Iterable[LedgerRow],
    events: Iterable[Event],
    tests: Iterable[MeasuredRow] = (),
) -> None:
    """Write what a finished run says of itself in one transaction.

    Args:
        database: from `connect`.
        summary: plain values by name.
        ledger: every account as it is at the end, charges of a round that was not committed included; it stands at
            the round after the last.
        events: why the run ended.
        tests: the last models on clients' own test rows.
    """
    with database:
        last = _last_round(database)
        _insert(database, "summary", ((name, to_json(value)) for name, value in summary.items()))
        _insert(database, "privacy", ((last + 1, *account) for account in ledger), replace=True)
        _insert(database, "events", ((last, *event) for event in events))
        _insert(database, "tests", ((*row[:-1], to_json(row.metrics)) for row in tests))


def insert_event(database: sqlite3.Connection, event: Event) -> None:
    """Record an event while the run goes on."""
    with database:
        _insert(database, "events", [(_last_round(database), *event)])


def rewind(database: sqlite3.Connection, round: int) -> None:
    """Forget, in one transaction, all that came after a round, and that the run has ended and why."""
    with database:
        database.execute("DELETE FROM rounds WHERE number > ?", (round,))
        for table in ("clients", "sketches", "metrics", "privacy"):
            database.execute(f"DELETE FROM {table} WHERE round > ?", (round,))
        database.execute("DELETE FROM events WHERE round > ? OR kind NOT IN ('resumed', 'warning')", (round,))
        database.execute("DELETE FROM states WHERE checkpoint > ?", (round,))
        database.execute("DELETE FROM summary")
        database.execute("DELETE FROM tests")


def live_states(database: sqlite3.Connection, checkpoint: int) -> list[StateRow]:
    """For every client that has one the state in force at a checkpoint, by client."""
    rows = database.execute(  # beside max(), SQLite takes the other columns from the row that has the maximum
        "SELECT client, max(checkpoint), made FROM states WHERE checkpoint <= ? GROUP BY client", (checkpoint,)
    )
    return [StateRow(*row) for row in rows]


def prune_states(database: sqlite3.Connection, kept: Sequence[int]) -> None:
    """Delete the rows that no kept checkpoint uses: one uses, of every client, the last row up to its round."""
    places = ", ".join("(?)" for _ in kept) or "(NULL)"
    with database:
        database.execute(
            f"""
            WITH kept (number) AS (VALUES {places}), spans AS (
                SELECT client, checkpoint, lead(checkpoint) OVER (PARTITION BY client ORDER BY checkpoint) AS next
                FROM states
            )
            DELETE FROM states WHERE (client, checkpoint) IN (
                SELECT client, checkpoint FROM spans WHERE NOT EXISTS (
                    SELECT 1 FROM kept WHERE number >= checkpoint AND (next IS NULL OR number < next)
                )
            )
            """,
            tuple(kept),
        )


def keep_rows(rows: Iterable[ClientRow], choice: Literal["all", "failed"] | float, seed: int) -> list[ClientRow]:
    """The rows that are recorded.

    Args:
        rows: of a round.
        choice: all, failed, or the share of clients whose every row is recorded; failed rows always are.
        seed: of the run; it says which clients the share consists of.
    """
    from fedsim.seeds import fraction  # here alone: readers start without torch

    if choice == "all":
        return list(rows)
    share = 0.0 if choice == "failed" else float(choice)
    return [row for row in rows if row.status == "failed" or fraction(seed, "records", row.client) < share]


def measured_rows(rows: Iterable[ClientRow]) -> list[MeasuredRow]:
    """What is recorded of evaluations on clients' own test rows."""
    return [MeasuredRow(row.client, row.rows, row.loss, row.metrics) for row in rows if row.status == "ok"]


def cohort_digest(clients: Iterable[int]) -> str:
    """SHA-256 of the numbers of clients, whatever their order: the same where the same ones were asked."""
    return hashlib.sha256(",".join(map(str, sorted(clients))).encode()).hexdigest()


def _insert(
    database: sqlite3.Connection, table: str, rows: Iterable[tuple[Any, ...]], *, replace: bool = False
) -> None:
    places = ", ".join("?" * len(schema()[table]))
    database.executemany(f"INSERT {'OR REPLACE ' if replace else ''}INTO {table} VALUES ({places})", rows)


def _last_round(database: sqlite3.Connection) -> int:
    last: int = database.execute("SELECT coalesce(max(number), 0) FROM rounds").fetchone()[0]
    return last


def to_json(value: Any, indent: int | None = None) -> str:
    """Standard JSON, in which numbers that are not finite are null."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """A value with None for every number in it that is not finite, as the records have it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def _sketch_texts(record: RoundRecord) -> Iterator[tuple[int, str]]:
    """Every client with its sketch as JSON, to five digits."""
    for client, sketch in record.sketches.items():
        yield client, f"[{', '.join(f'{value:.5g}' for value in sketch)}]"


def _client_values(row: ClientRow) -> tuple[Any, ...]:
    text = to_json(row.metrics) if row.metrics else "{}"
    work = (row.rows, row.loss, row.steps, row.seconds, row.bytes_down, row.bytes_up)
    return (row.round, row.client, row.phase, row.status, *work, row.error, text, row.norm, row.stack, row.epsilon)
