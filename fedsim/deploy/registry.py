"""Which nodes a site admitted, under which key and number, and how far each node's ledger has come."""

import datetime
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Literal, NamedTuple

from fedsim.deploy import private_files
from fedsim.deploy.keys import Public
from fedsim.deploy.site import Site
from fedsim.errors import DeployError

Status = Literal["admitted", "revoked"]

_SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS nodes (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE, fingerprint TEXT NOT NULL UNIQUE,
    public_key TEXT NOT NULL, node_id TEXT, status TEXT NOT NULL, since TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS ended (fingerprint TEXT PRIMARY KEY, name TEXT NOT NULL, since TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY COLLATE NOCASE, counter INTEGER NOT NULL) STRICT;
"""


class Node(NamedTuple):
    """A node that was admitted once.

    Attributes:
        number: 0, 1, ... in the order of admission; a node keeps it for ever.
        name: as the coordinator calls it.
        fingerprint, public_key: of its key; the key as one line of OpenSSH's form.
        node_id: Flower's, or None before the SuperLink knows the key.
        status: admitted, or revoked by the coordinator.
        since: when the status began, ISO 8601.
    """

    number: int
    name: str
    fingerprint: str
    public_key: str
    node_id: int | None
    status: Status
    since: str


class Registry:
    """A site's table of nodes; every call is one transaction, also while others write."""

    def __init__(self, site: Site) -> None:
        """Open it, or make it.

        Raises:
            DeployError: it cannot be opened.
        """
        self._path = site.database
        if not self._path.exists():
            private_files.create(self._path, b"")
        with self._open() as database:
            database.executescript(_SCHEMA)

    def nodes(self) -> list[Node]:
        """All of them, by number."""
        with self._open() as database:
            rows = database.execute("SELECT * FROM nodes ORDER BY number").fetchall()
        return [_node(row) for row in rows]

    def admit(self, name: str, key: Public) -> Node:
        """Admit a new node, or one that was revoked, which keeps its number and needs a new key.

        Raises:
            DeployError: the name is another node's, or the key is or was in use.
        """
        checked_name(name)
        with self._open() as database:
            _refuse_used(database, name, key.fingerprint)
            before = _find(database, name)
            if before is not None and before.status == "admitted":
                raise DeployError(f"{before.name} is admitted already; a new key of it is `fedsim deploy rotate`")
            if before is not None:
                _end(database, before)
                _change(database, before.name, key)
            else:
                number = database.execute("SELECT coalesce(max(number) + 1, 0) FROM nodes").fetchone()[0]
                database.execute(
                    "INSERT INTO nodes VALUES (?, ?, ?, ?, NULL, 'admitted', ?)",
                    (number, name, key.fingerprint, key.text, _now()),
                )
            return _named(database, name)

    def rotate(self, name: str, key: Public) -> Node:
        """Give a node a new key; its old one ends for good.

        Raises:
            DeployError: the node is not admitted, or the key is or was in use.
        """
        with self._open() as database:
            node = _named(database, name)
            if node.status != "admitted":
                raise DeployError(f"{node.name} is {node.status}; let it in again with `fedsim deploy admit`")
            _refuse_used(database, node.name, key.fingerprint)
            _end(database, node)
            _change(database, node.name, key)
            return _named(database, node.name)

    def revoke(self, name: str) -> Node:
        """End a node's admission; its key will not be admitted again.

        Raises:
            DeployError: there is none of that name.
        """
        with self._open() as database:
            node = _named(database, name)
            if node.status == "admitted":
                database.execute("UPDATE nodes SET status = 'revoked', since = ? WHERE name = ?", (_now(), node.name))
            return _named(database, node.name)

    def formerly(self, fingerprint: str) -> str | None:
        """Whose key it was that has been replaced; None for a key that was nobody's."""
        with self._open() as database:
            row = database.execute("SELECT name FROM ended WHERE fingerprint = ?", (fingerprint,)).fetchone()
        return None if row is None else str(row[0])

    def set_node_id(self, name: str, node_id: int | None) -> None:
        """Keep the number by which Flower knows a node."""
        with self._open() as database:
            stored = None if node_id is None else str(node_id)  # of 64 bits without a sign, which SQLite has not
            database.execute("UPDATE nodes SET node_id = ? WHERE name = ?", (stored, name))

    def counter(self, name: str) -> int:
        """The largest counter of a node's ledger that was seen; 0 before the first."""
        with self._open() as database:
            row = database.execute("SELECT counter FROM counters WHERE name = ?", (name,)).fetchone()
        return 0 if row is None else int(row[0])

    def saw(self, name: str, counter: int) -> None:
        """Keep a counter of a node's ledger, if it is the largest so far."""
        with self._open() as database:
            database.execute(
                "INSERT INTO counters VALUES (?, ?) "
                "ON CONFLICT (name) DO UPDATE SET counter = max(counter, excluded.counter)",
                (name, counter),
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=30)) as database:
                database.execute("PRAGMA synchronous = FULL")
                with database:
                    database.execute("BEGIN IMMEDIATE")
                    yield database
        except sqlite3.Error as error:
            raise DeployError(f"{self._path} cannot be used: {error}") from error


def checked_name(name: str) -> str:
    """A node's name, fit for a file's.

    Raises:
        DeployError: it is not.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", name):
        raise DeployError(f"a node cannot be called {name!r}: letters, digits, '.', '_' and '-', at most 40 of them")
    return name


def _refuse_used(database: sqlite3.Connection, name: str, fingerprint: str) -> None:
    row = database.execute("SELECT name, status FROM nodes WHERE fingerprint = ?", (fingerprint,)).fetchone()
    if row is not None and row[1] == "admitted":
        if row[0].lower() == name.lower():
            raise DeployError(f"{row[0]} is admitted with this key already")
        raise DeployError(f"this key is {row[0]}'s; every node makes one of its own with `fedsim deploy join`")
    ended = row or database.execute("SELECT name FROM ended WHERE fingerprint = ?", (fingerprint,)).fetchone()
    if ended is not None:
        # Flower's SuperLink takes no key a second time either.
        raise DeployError(
            f"this key has ended, it was {ended[0]}'s; a new one is made by `fedsim deploy rotate --node`"
        )


def _find(database: sqlite3.Connection, name: str) -> Node | None:
    row = database.execute("SELECT * FROM nodes WHERE name = ?", (name,)).fetchone()
    return None if row is None else _node(row)


def _named(database: sqlite3.Connection, name: str) -> Node:
    node = _find(database, name)
    if node is None:
        known = ", ".join(row[0] for row in database.execute("SELECT name FROM nodes ORDER BY number")) or "none yet"
        raise DeployError(f"no node is called {name}; admitted so far: {known}")
    return node


def _end(database: sqlite3.Connection, node: Node) -> None:
    database.execute("INSERT OR IGNORE INTO ended VALUES (?, ?, ?)", (node.fingerprint, node.name, _now()))


def _change(database: sqlite3.Connection, name: str, key: Public) -> None:
    database.execute(
        "UPDATE nodes SET fingerprint = ?, public_key = ?, node_id = NULL, status = 'admitted', since = ? "
        "WHERE name = ?",
        (key.fingerprint, key.text, _now(), name),
    )


def _node(row: tuple[int, str, str, str, str | None, Status, str]) -> Node:
    number, name, fingerprint, public_key, node_id, status, since = row
    return Node(number, name, fingerprint, public_key, None if node_id is None else int(node_id), status, since)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
