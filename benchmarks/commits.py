"""What it costs that a run can be resumed: time that commits add to a round, bytes on disk, and a large `run.db`.

    python benchmarks/commits.py           some five minutes on 2 cores
    python benchmarks/commits.py --quick   a smoke test

Rounds: McMahan's CNN (1.66 million parameters) under SCAFFOLD, 10 of 100 clients a round, 2 Ray workers, with a
checkpoint every round and with none until the end, in turn. Records: 1,000 rounds of 10,000 clients' rows.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from _ours import corpus, scenario

from fedsim.background import InOrder
from fedsim.records import ClientRow, RoundRecord, connect, create_tables, insert_round
from fedsim.rounds import Run, run
from fedsim.runs import RunFolder

LAYOUT = ("checkpoint every round", "none until the end")


class Timing(NamedTuple):
    """Seconds of every round after the first, what the main thread waited for commits in it, and the commits' own."""

    rounds: list[float]
    waited: list[float]
    commits: list[float]


class Clock:
    """Notes what commits take, and what is waited for them."""

    def __init__(self) -> None:
        self.waited: list[float] = []
        self.commits: list[float] = []

    @contextmanager
    def running(self) -> Any:
        """Time `RunFolder.commit` and `InOrder.wait` inside the block."""
        kept = RunFolder.commit, InOrder.wait
        RunFolder.commit = timed(kept[0], self.commits)  # type: ignore[method-assign]
        InOrder.wait = timed(kept[1], self.waited)  # type: ignore[method-assign]
        try:
            yield
        finally:
            RunFolder.commit, InOrder.wait = kept  # type: ignore[method-assign]


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The function, noting how long every call takes."""

    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - started)

    return call


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds and rows")
    quick = parser.parse_args().quick
    rounds, repeats = (3, 1) if quick else (8, 3)
    table_rounds = 5 if quick else 1000
    measure_rounds(rounds, repeats)
    measure_records(table_rounds, 10_000)


def measure_rounds(rounds: int, repeats: int) -> None:
    """Time rounds with and without checkpoints."""
    timings = {name: Timing([], [], []) for name in LAYOUT}
    disk: dict[str, int] = {}
    for _ in range(repeats):
        for name, every in zip(LAYOUT, (1, rounds), strict=True):
            with tempfile.TemporaryDirectory() as folder:
                out, clock = Path(folder) / "run", Clock()
                with clock.running():
                    seconds = round_seconds(scaffold(rounds, every), out)
                timings[name].rounds.extend(seconds[1:])
                timings[name].waited.append(sum(clock.waited) / rounds)
                timings[name].commits.extend(clock.commits[1:])
                disk = sizes(out) if every == 1 else disk
    print(f"{'CNN 1.66 M, SCAFFOLD, 10 clients a round':<44}{'s/round':>9}{'waited':>9}{'a commit':>10}")
    for name, timing in timings.items():
        figures = [statistics.median(part) for part in timing]
        print(f"{name:<44}{figures[0]:>9.3f}{figures[1]:>9.3f}{figures[2]:>10.3f}")
    with_, without = (statistics.median(timings[name].rounds) for name in LAYOUT)
    print(f"commits add {1000 * (with_ - without):.0f} ms to a round ({100 * (with_ / without - 1):.1f} %)")
    print("on disk after the last round: " + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in disk.items()))


def scaffold(rounds: int, every: int) -> dict[str, Any]:
    """The CNN workload of `engine.py` under SCAFFOLD."""
    return {
        **scenario("cnn", 10, rounds),
        "strategy": {"name": "scaffold"},
        "checkpoint": {"every": every},
    }


def round_seconds(described: dict[str, Any], out: Path) -> list[float]:
    """Seconds from each round's beginning to the next one's; what the last waited for its commit is left out."""
    begun: list[float] = []
    kept = Run.round

    def noted(self: Run, number: int) -> Any:
        begun.append(time.perf_counter())
        return kept(self, number)

    Run.round = noted  # type: ignore[method-assign]
    try:
        run(described, data=corpus, out=out)
    finally:
        Run.round = kept  # type: ignore[method-assign]
    return [after - before for before, after in pairwise(begun)]


def sizes(folder: Path) -> dict[str, int]:
    """Bytes by kind of file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    kinds = {
        "checkpoints": ("round-",),
        "clients' states": ("states-",),
        "models": ("last", "best"),
        "records": ("run.db",),
    }
    return {
        kind: sum(path.stat().st_size for path in files if path.name.startswith(starts))
        for kind, starts in kinds.items()
    }


def measure_records(rounds: int, clients: int) -> None:
    """Fill a `run.db` and time its commits and a reader."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.db"
        create_tables(path)
        database, seconds = connect(path), []
        for number in range(1, rounds + 1):
            record = RoundRecord(
                number, 1.0, clients, 0, {"global/x/rows/loss": 1 / number}, None, "0" * 64, rows_of(number, clients)
            )
            started = time.perf_counter()
            insert_round(database, record, None, best=False, ledger=())
            seconds.append(time.perf_counter() - started)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = path.stat().st_size
        started = time.perf_counter()
        (count,) = database.execute("SELECT count(*) FROM clients WHERE client = 17").fetchone()
        looked_up = time.perf_counter() - started
        started = time.perf_counter()
        database.execute("SELECT client, avg(seconds) FROM clients GROUP BY client ORDER BY 2 DESC LIMIT 5").fetchall()
        grouped = time.perf_counter() - started
    tenth = max(1, rounds // 10)
    print(
        f"\nrun.db with {rounds * clients:,} client rows: {size / 1e6:.0f} MB, "
        f"{size / (rounds * clients):.0f} bytes a row"
    )
    print(
        f"a commit of {clients:,} rows: {1000 * statistics.median(seconds[:tenth]):.0f} ms at first, "
        f"{1000 * statistics.median(seconds[-tenth:]):.0f} ms at the end; {sum(seconds):.0f} s in all"
    )
    print(f"one client's {count:,} rows: {looked_up:.2f} s; the slowest five of all: {grouped:.2f} s")


def rows_of(number: int, clients: int) -> Sequence[ClientRow]:
    """A round's rows as they usually are."""
    return [
        ClientRow(
            number,
            client,
            "train",
            "ok",
            50,
            1.2345678 / (client + 1),
            5,
            0.0031415,
            796840,
            796840,
            None,
            {},
            0.123456789,
        )
        for client in range(clients)
    ]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
