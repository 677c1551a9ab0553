"""What a node has spent of its rows' privacy, over all runs: charged and synced before any row is touched.

One SQLite file, a row per participation, each the Gaussian releases that it may make. Nothing is ever taken back: a
participation that failed, or a message that is answered anew because the node died over it, stays charged. So at any
instant, also after a kill or a power cut, what was charged covers what was released.

Runs of different relations compose because a Gaussian release has a guarantee under each: all are then accounted under
"replace", whose pairs of data sets include those of "zero-out". Runs that protect rows and runs that protect persons
compose to a promise about rows, the smaller of the two.
"""

import math
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedsim.deploy import private_files
from fedsim.errors import DeployError, Refused
from fedsim.privacy.accountant import Accountant, Charge, composed, epsilon, refusal

Level = Literal["example", "local"]
CAUGHT_UP = "caught-up"
"""In the place of a run: charges for participations that a restored backup does not know."""
_SCHEMA = """
CREATE TABLE charges (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- the counter after it
    run TEXT NOT NULL, round INTEGER NOT NULL, digest TEXT NOT NULL, level TEXT NOT NULL, time REAL NOT NULL,
    noise REAL NOT NULL, rate REAL NOT NULL, steps INTEGER NOT NULL, relation TEXT NOT NULL, sampling TEXT NOT NULL
) STRICT;
PRAGMA user_version = 1;
"""
_COLUMNS = "run, round, digest, level, time, noise, rate, steps, relation, sampling"
_RELEASES = "noise, rate, sum(steps), relation, sampling"
_QUICK: tuple[Accountant, ...] = ("rdp", "exact")
_SLOW: tuple[Accountant, ...] = ("rdp", "exact", "prv")
_MOST_MISSING = 1_000_000  # of which each is a row
_BUSY = 30.0  # seconds that another process of the same owner is waited for


class Spent(NamedTuple):
    """Epsilon of all runs together before and after a charge, and the counter after it."""

    before: float
    after: float
    counter: int


class RunSpent(NamedTuple):
    """What one run spent.

    Attributes:
        run: its name.
        level: of its promise.
        participations: charged.
        first, last: Unix time of the first and last.
        epsilon: of it alone.
    """

    run: str
    level: str
    participations: int
    first: float
    last: float
    epsilon: float


class Ledger:
    """An owner's ledger, opened or begun."""

    def __init__(self, file: Path) -> None:
        """Open a ledger, or begin one where there is no file.

        Raises:
            DeployError: the file cannot be written, is damaged, or open to other users.
        """
        self._file = file
        if not file.exists():
            private_files.create(file, b"")
        private_files.check(file)
        with self._told():
            self._database = sqlite3.connect(file, timeout=_BUSY, isolation_level=None)
            # EXTRA is FULL, and syncs the folder once the journal is gone: no power cut undoes a commit.
            self._database.execute("PRAGMA synchronous = EXTRA")
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._begin()
        elif version != 1:
            raise DeployError(f"{file} is of version {version}; use the fedsim that wrote it")

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    @property
    def counter(self) -> int:
        """Charges so far."""
        with self._told():
            found: int = self._database.execute("SELECT coalesce(max(number), 0) FROM charges").fetchone()[0]
        return found

    def require(self, seen: int) -> None:
        """Refuse to go on with a ledger that knows less than the coordinator: a restored backup, or one of two copies.

        Raises:
            Refused: it has fewer charges than `seen`.
        """
        if (counter := self.counter) < seen:
            raise Refused(
                f"this node's ledger has {counter} charges and has had {seen}: it was restored from a backup, or "
                "another node works with a copy of its key. Its owner goes on with `fedsim deploy ledger DIR "
                f"--catch-up {seen}`, and where there is a copy first with `fedsim deploy rotate --node DIR`"
            )

    def charge(
        self, run: str, round: int, digest: str, charge: Charge, level: Level, largest: float, delta: float
    ) -> Spent:
        """Charge one participation, on disk when this returns; call before data are touched.

        Args:
            run: its name.
            round: of the run.
            digest: of the message that asks for it.
            charge: the releases that it may make.
            level: of the run's promise.
            largest: epsilon that all runs together may come to.
            delta: at which.

        Raises:
            Refused: it would come to more; nothing is charged then.
            DeployError: the ledger cannot be written; nothing is charged then.
        """
        with self._transaction():
            known = self._charges()
            before, after = _epsilons(known, [*known, charge], largest, delta)
            if not after <= largest:
                raise Refused(
                    f"rules.toml largest_epsilon: the owner allows {largest:g} at delta {delta:g} over all runs; "
                    f"{before:.3g} are spent, and this round would make it {after:.3g}"
                )
            counter = self._insert(run, round, digest, charge, level)
        return Spent(before, after, counter)

    def spent(self, delta: float, largest: float = math.inf) -> float:
        """Epsilon of all runs together; by the tightest accountant where a quick one says more than `largest`."""
        with self._told():
            known = self._charges()
        return _epsilons((), known, largest, delta)[1]

    def runs(self, delta: float) -> list[RunSpent]:
        """What every run spent, by its first charge."""
        columns, kinds = "run, level, count(*), min(time), max(time)", "GROUP BY run, level ORDER BY min(number)"
        with self._told():
            rows = self._database.execute(f"SELECT {columns} FROM charges {kinds}").fetchall()
            alone = [_epsilon(self._charges(row[0]), delta) for row in rows]
        return [RunSpent._make((*row, spent)) for row, spent in zip(rows, alone, strict=True)]

    def catch_up(self, counter: int, delta: float, at_least: float = 0.0) -> int:
        """Charge for participations that a restored backup does not know, each what the costliest known one cost.

        Args:
            counter: charges that the coordinator has seen.
            delta: at which charges are compared.
            at_least: epsilon of all together, which the owner's log tells of; more is charged until it is reached.

        Returns:
            How many were charged.

        Raises:
            DeployError: the ledger knows no charge to go by, or as many already, or lacks more than a node ever has.
        """
        with self._transaction():
            missing = counter - self.counter
            if missing <= 0 and self.spent(delta) >= at_least:
                raise DeployError(f"{self._file} has {self.counter} charges already; there is nothing to catch up with")
            if missing > _MOST_MISSING:
                raise DeployError(f"{missing:,} charges cannot be missing; ask the coordinator how it counts them")
            query = "SELECT DISTINCT level, noise, rate, steps, relation, sampling FROM charges"
            known = self._database.execute(query).fetchall()
            if not known:
                raise DeployError(
                    f"{self._file} holds no charge by which the missing ones could be judged; restore a later backup"
                )
            priced = {(row[0], Charge(*row[1:])) for row in known}
            level, costliest = max(priced, key=lambda each: (epsilon(each[1], delta, "rdp"), each))
            charged = 0
            while charged < missing or (self.spent(delta) < at_least and charged < _MOST_MISSING):
                self._insert(CAUGHT_UP, 0, "", costliest, level)
                charged += 1
        return charged

    def _begin(self) -> None:
        with self._transaction():
            if not self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:  # nobody else was faster
                for statement in _SCHEMA.split(";\n"):
                    if statement.strip():
                        self._database.execute(statement)

    def _charges(self, run: str | None = None) -> list[Charge]:
        """All releases of a run, or of all runs; those of one kind as one charge."""
        kinds = "GROUP BY noise, rate, relation, sampling ORDER BY min(number)"
        chosen = f"SELECT {_RELEASES} FROM charges WHERE ?1 IS NULL OR run = ?1 {kinds}"
        return [Charge(*row) for row in self._database.execute(chosen, (run,))]

    def _insert(self, run: str, round: int, digest: str, charge: Charge, level: str) -> int:
        values: tuple[Any, ...] = (run, round, digest, level, time.time(), *charge)
        marks = ", ".join("?" * len(values))
        number = self._database.execute(f"INSERT INTO charges ({_COLUMNS}) VALUES ({marks})", values).lastrowid
        assert number is not None
        return number

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing, and nobody else meanwhile."""
        with self._told():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as one line."""
        try:
            yield
        except sqlite3.OperationalError as error:
            advice = "make room" if "full" in str(error) else "check the disk, and whether another program holds it"
            raise DeployError(f"{self._file} cannot be written ({error}), so nothing is charged; {advice}") from error
        except sqlite3.DatabaseError as error:
            raise DeployError(
                f"{self._file} is damaged ({error}); restore a backup, and catch up with what the coordinator has seen"
            ) from error


def _epsilons(before: Sequence[Charge], after: Sequence[Charge], largest: float, delta: float) -> tuple[float, float]:
    """Both in no time; where that is too much, by an accountant that takes seconds and may find less."""
    quick = _epsilon(before, delta), _epsilon(after, delta)
    return quick if quick[1] <= largest else (_epsilon(before, delta, _SLOW), _epsilon(after, delta, _SLOW))


def _epsilon(charges: Sequence[Charge], delta: float, accountants: Sequence[Accountant] = _QUICK) -> float:
    """The least of the bounds that can be had."""
    if len({charge.relation for charge in charges}) > 1:
        charges = [charge._replace(relation="replace") for charge in charges]
    able = [each for each in accountants if not any(_refused(each, charge) for charge in charges)]
    return min((composed(charges, delta, each) for each in able), default=math.inf)


def _refused(accountant: Accountant, charge: Charge) -> bool:
    return refusal(accountant, charge.rate, charge.relation, charge.sampling) is not None
