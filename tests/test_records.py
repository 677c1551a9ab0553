"""The tables of a run: what a rewind and a pruning leave, older schemas, tags, and who may write."""

import math
import multiprocessing
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import records, tags
from fedsim.engine.inline import InlineEngine
from fedsim.errors import RunFolderError
from fedsim.flower import AlgorithmStrategy
from fedsim.local import Work
from fedsim.parameters import to_record
from fedsim.reading import EventRow, Records
from fedsim.records import CheckpointFiles, ClientRow, Event, LedgerRow, MeasuredRow, RoundRecord, StateRow, keep_rows
from fedsim.replies import client_rows, metrics_of
from tests import small

VERSION_1 = Path(__file__).parent / "fixtures" / "run-v1"
FORK = multiprocessing.get_context("fork")
States = Mapping[int, set[int]]
"""For a checkpoint's round the clients whose state changed since the one before."""


def row(round: int, client: int, error: str | None = None, **more: Any) -> ClientRow:
    status = "failed" if error else "ok"
    return ClientRow(round, client, "train", status, 50, 0.5, 5, 0.25, 8, 9, error, {}, **more)  # type: ignore[arg-type]


def record(number: int, clients: Sequence[ClientRow] = ()) -> RoundRecord:
    name = "global/central-validation/rows/accuracy"
    return RoundRecord(number, 1.5, len(clients), 0, {name: number / 100}, 0.1 * number, f"print {number}", clients)


def in_memory() -> sqlite3.Connection:
    """A database like a run's; without a disk, for the many that hypothesis wants."""
    database = sqlite3.connect(":memory:")
    database.executescript(empty())
    return database


@cache
def empty() -> str:
    """The statements that make a run's tables, as a run's own file gives them."""
    with tempfile.TemporaryDirectory() as folder:
        records.create_tables(Path(folder) / "run.db")
        with closing(sqlite3.connect(Path(folder) / "run.db")) as database:
            return "\n".join(database.iterdump())


def contents(database: sqlite3.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """All rows by table, without the time of commits."""
    found = {}
    for table, columns in records.schema().items():
        names = ", ".join(name for name in columns if name != "committed")
        found[table] = database.execute(f"SELECT {names} FROM {table}").fetchall()
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    records.create_tables(tmp_path / "run.db")
    return tmp_path / "run.db"


@pytest.fixture
def database(path: Path) -> Iterator[records.Writer]:
    writer = records.connect(path)
    yield writer
    records.disconnect(writer)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of a run that was written in schema 1."""
    return shutil.copytree(VERSION_1, tmp_path / "old")


# Rounds, clients, and going back


def test_all_that_is_said_of_a_client_comes_back(path: Path, database: records.Writer) -> None:
    rows = [row(1, 0, norm=2.5, stack=4, epsilon=0.75), row(1, 3), row(1, 7, "round 1, client 7: odd")]
    files = CheckpointFiles("round-000001.safetensors", "ab", "states-000001.safetensors", "cd")
    records.insert_round(database, record(1, rows), files, best=True, ledger=[], states=[StateRow(0, 1, 1)])
    records.insert_round(database, record(2, [row(2, 3)]), None, best=False, ledger=[])
    with closing(Records(path)) as read:
        assert read.clients(round=1) == rows
        assert read.clients(client=3) == [row(1, 3), row(2, 3)]
        assert read.clients(round=2, client=0) == []
        assert read.failures() == [(1, 7, "train", "round 1, client 7: odd")]
        first, second = read.rounds()
    assert (first.checkpoint, first.checkpoint_sha256, first.states, first.states_sha256) == files
    assert (second.checkpoint, second.checkpoint_sha256, second.states, second.states_sha256) == (None,) * 4


def test_a_round_may_be_committed_from_another_thread(path: Path, database: records.Writer) -> None:
    def commit() -> None:
        records.insert_round(database, record(1), None, best=False, ledger=[])

    thread = threading.Thread(target=commit)
    thread.start()
    thread.join()
    with closing(Records(path)) as read:
        assert [round.number for round in read.rounds()] == [1]


def write(database: sqlite3.Connection, numbers: Sequence[int]) -> None:
    """Rounds with everything that a round can have; an event after every third."""
    for number in numbers:
        clients = [row(number, client, "odd" if client == number % 5 else None) for client in range(5)]
        ledger = [LedgerRow(client, number, 0.1 * number) for client in range(number % 5)]
        states = [StateRow(number % 3, number, number)] if number % 2 else []
        files = CheckpointFiles(f"round-{number}", "ab", None, None) if number % 2 else None
        records.insert_round(database, record(number, clients), files, best=False, ledger=ledger, states=states)
        if number % 3 == 0:
            records.insert_event(database, Event("resumed", f"after round {number}"))


@given(last=st.integers(0, 8), back=st.integers(0, 8), finished=st.booleans())
@settings(deadline=None, max_examples=40)
def test_after_a_rewind_nothing_came_later(last: int, back: int, finished: bool) -> None:
    """As if the run had been killed after that round; and going on from it gives what would have been."""
    back = min(last, back)
    with closing(in_memory()) as rewound, closing(in_memory()) as killed, closing(in_memory()) as whole:
        write(rewound, range(1, last + 1))
        if finished:
            records.insert_summary(rewound, {"status": "done"}, ledger=[], events=[])
        records.rewind(rewound, back)
        write(killed, range(1, back + 1))
        assert contents(rewound) == contents(killed)
        write(rewound, range(back + 1, last + 3))
        write(whole, range(1, last + 3))
        assert contents(rewound) == contents(whole)


def test_accounts_are_right_when_a_finished_run_goes_on(path: Path, database: records.Writer) -> None:
    """Its final accounts lie after the last round, where the run that goes on forgets them, and why it had ended."""
    for number in (1, 2):
        ledger = [LedgerRow(0, number, None), LedgerRow(4, 1, None)][:number]
        records.insert_round(database, record(number), None, best=False, ledger=ledger)
    records.insert_event(database, Event("resumed", "after round 1"))
    records.insert_summary(
        database, {}, ledger=[LedgerRow(0, 3, 0.7), LedgerRow(4, 1, 0.5)], events=[Event("time", "over")]
    )
    with closing(Records(path)) as read:
        assert read.privacy() == [LedgerRow(0, 3, 0.7), LedgerRow(4, 1, 0.5)]
        assert read.privacy(round=2) == [LedgerRow(0, 2, None), LedgerRow(4, 1, None)]
        records.rewind(database, 2)
        assert read.privacy() == [LedgerRow(0, 2, None), LedgerRow(4, 1, None)]
        assert read.summary() == {}
        assert read.events() == [EventRow(2, "resumed", "after round 1")]
        records.insert_round(
            database, record(3), None, best=False, ledger=[LedgerRow(0, 3, None), LedgerRow(9, 1, None)]
        )
        records.insert_summary(
            database,
            {"rounds": 3},
            ledger=[LedgerRow(0, 3, 0.9), LedgerRow(4, 1, 0.5), LedgerRow(9, 1, 0.4)],
            events=[],
        )
        assert read.privacy() == [LedgerRow(0, 3, 0.9), LedgerRow(4, 1, 0.5), LedgerRow(9, 1, 0.4)]
        records.rewind(database, 1)
        assert read.privacy() == [LedgerRow(0, 1, None)]


def test_an_event_knows_the_last_round(path: Path, database: records.Writer) -> None:
    records.insert_event(database, Event("resumed", "from nothing"))
    records.insert_round(database, record(1), None, best=False, ledger=[])
    records.insert_event(database, Event("resumed", "from round 1"))
    with closing(Records(path)) as read:
        assert read.events() == [EventRow(0, "resumed", "from nothing"), EventRow(1, "resumed", "from round 1")]


# States


@st.composite
def histories(draw: st.DrawFn) -> list[StateRow]:
    """Checkpoints at some rounds; a state is made since the one before, or an older one moved into its file."""
    made: dict[int, int] = {}
    rows, before = [], 0
    for checkpoint in sorted(draw(st.sets(st.integers(1, 12), max_size=7))):
        for client in sorted(draw(st.sets(st.integers(0, 5)))):
            if client not in made or draw(st.booleans()):
                made[client] = draw(st.integers(before + 1, checkpoint))
            rows.append(StateRow(client, checkpoint, made[client]))
        before = checkpoint
    return rows


def in_force(rows: Sequence[StateRow], checkpoint: int) -> list[StateRow]:
    """The oracle: of every client the last row up to a checkpoint."""
    last = {row.client: row for row in sorted(rows, key=lambda row: row.checkpoint) if row.checkpoint <= checkpoint}
    return [last[client] for client in sorted(last)]


def with_states(rows: Sequence[StateRow]) -> sqlite3.Connection:
    database = in_memory()
    for number in range(1, 13):
        own = [row for row in rows if row.checkpoint == number]
        records.insert_round(database, record(number), None, best=False, ledger=[], states=own)
    return database


@given(rows=histories(), kept=st.lists(st.integers(0, 13), max_size=4))
@settings(deadline=None, max_examples=150)
def test_what_kept_checkpoints_use_stays_and_nothing_else(rows: list[StateRow], kept: list[int]) -> None:
    with closing(with_states(rows)) as database:
        assert all(records.live_states(database, number) == in_force(rows, number) for number in range(14))
        records.prune_states(database, kept)
        left = [StateRow(*values) for values in database.execute("SELECT client, checkpoint, made FROM states")]
        assert left == sorted({row for number in kept for row in in_force(rows, number)})
        assert all(records.live_states(database, number) == in_force(rows, number) for number in kept)


@given(rows=histories(), round=st.integers(0, 13))
@settings(deadline=None, max_examples=60)
def test_a_rewind_forgets_later_states(rows: list[StateRow], round: int) -> None:
    with closing(with_states(rows)) as database:
        records.rewind(database, round)
        assert records.live_states(database, 99) == in_force(rows, round)


# What is recorded of clients


@given(
    rows=st.lists(st.builds(row, st.integers(1, 9), st.integers(0, 40), st.sampled_from([None, "odd"])), max_size=60),
    shares=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_failures_stay_and_a_kept_client_is_kept_whole(
    rows: list[ClientRow], shares: tuple[float, float], seed: int
) -> None:
    """The more is asked for, the more is kept, in order; a client's sound rows stay or go together."""
    assert keep_rows(rows, "all", seed) == rows
    assert keep_rows(rows, "failed", seed) == [each for each in rows if each.status == "failed"]
    less, more = (keep_rows(rows, share, seed) for share in sorted(shares))
    assert [each for each in more if each in less] == less
    sound = [each for each in rows if each.status == "ok"]
    kept = {each.client for each in more if each.status == "ok"}
    assert [each for each in more if each.status == "ok"] == [each for each in sound if each.client in kept]
    assert [each for each in more if each.status == "failed"] == keep_rows(rows, "failed", seed)


def test_a_share_is_about_as_large_as_it_was_asked_for() -> None:
    rows = [row(1, client) for client in range(10_000)]
    for share in (0.01, 0.1, 0.5):
        spread = 5 * math.sqrt(10_000 * share * (1 - share))
        assert abs(len(keep_rows(rows, share, 3)) - 10_000 * share) < spread
    assert keep_rows(rows, 0.1, 3) != keep_rows(rows, 0.1, 4)


def replies() -> tuple[Work, list[Message], list[Message]]:
    """The messages of a real round, and what clients answered."""
    job = small.job()
    work, grid = Work(job), InlineEngine().grid(job)
    strategy = AlgorithmStrategy(work)
    messages = list(strategy.configure_train(1, to_record(work.layout, work.initial), ConfigRecord(), grid))
    return work, messages, list(grid.send_and_receive(messages=messages))


def test_a_reply_says_norm_and_stack_or_neither() -> None:
    work, messages, answers = replies()
    for name in ("norm", "stack"):
        metrics_of(answers[0]).pop(name, None)
    (plain,) = client_rows(1, messages[:1], answers[:1], work)
    assert (plain.norm, plain.stack, plain.epsilon) == (None, 1, None)
    for norm, expected in ((2.5, 2.5), (math.inf, None), (math.nan, None)):
        metrics_of(answers[0]).update({"norm": norm, "stack": 4})
        (told,) = client_rows(1, messages[:1], answers[:1], work, [0.5])
        assert (told.norm, told.stack, told.epsilon) == (expected, 4, 0.5)
        assert told.metrics == plain.metrics


# Older and newer schemas


def test_a_run_of_version_1_reads_as_the_newest(old: Path) -> None:
    before = {file: file.read_bytes() for file in old.rglob("*") if file.is_file()}
    with closing(Records(old / "run.db")) as read:
        assert read.version == 1
        first, second = read.rounds()
        assert (first.number, first.cohort, second.checkpoint) == (1, 10, "round-000002.safetensors")
        assert second.best is True and second.states is None and second.states_sha256 is None
        assert len(read.clients()) == 40 and len(read.clients(client=3)) == 4
        assert {(each.norm, each.stack, each.epsilon) for each in read.clients()} == {(None, 1, None)}
        assert read.privacy()[1] == LedgerRow(1, 2, second.epsilon)
        assert read.summary()["fingerprint"] == second.fingerprint
        assert (read.tags(), read.failures(), list(read.select("SELECT * FROM states"))) == ([], [], [])
        for table, columns in records.schema().items():
            assert all(tuple(found.keys()) == tuple(columns) for found in read.select(f"SELECT * FROM {table}"))
        with pytest.raises(RunFolderError, match="readonly"):
            list(read.select("DELETE FROM summary"))
    assert {file: file.read_bytes() for file in old.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("version", [0, records.SCHEMA_VERSION + 1, -1])
def test_other_schemas_are_refused(old: Path, version: int) -> None:
    with closing(sqlite3.connect(old / "run.db")) as database:
        database.execute(f"PRAGMA user_version = {version}")
    expected = rf"run\.db has schema {version}, this fedsim reads 1 to 4; use the version that wrote it$"
    for use in (lambda: Records(old / "run.db"), lambda: tags.set_tag(old, "paper")):
        with pytest.raises(RunFolderError, match=expected):
            use()


def test_what_cannot_be_read_to_its_end_is_told_in_one_line(old: Path) -> None:
    content = (old / "run.db").read_bytes()
    (old / "run.db").write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with closing(Records(old / "run.db")) as read, pytest.raises(RunFolderError, match="cannot be read as the records"):
        read.rounds()


# Who writes


def hold(folder: Path) -> None:
    """Write a run until killed."""
    database = records.connect(folder / "run.db")
    records.insert_round(database, record(1), None, best=False, ledger=[])
    (folder / "holding").touch()
    time.sleep(60)


def test_a_run_has_one_writer_until_that_ends_however_it_ends(path: Path) -> None:
    folder = path.parent
    assert not records.being_written(folder)
    process = FORK.Process(target=hold, args=(folder,))
    process.start()
    until = time.monotonic() + 30
    while not (folder / "holding").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert records.being_written(folder)
    with pytest.raises(RunFolderError, match=r"is being written by another process; wait until that run has ended$"):
        records.connect(path)
    process.kill()
    process.join()
    assert not records.being_written(folder)
    with closing(Records(path)) as read:
        assert len(read.rounds()) == 1
    records.disconnect(records.connect(path))


# Tags


def test_a_tag_is_set_changed_and_removed_while_the_run_goes_on(path: Path, database: records.Writer) -> None:
    folder = path.parent
    with closing(Records(path)) as read:
        tags.set_tag(folder, "paper", "figure\n2 ")
        records.insert_round(database, record(1), None, best=False, ledger=[])
        tags.set_tag(folder, "best")
        best, paper = read.tags()
        assert (best.name, best.note, paper.name, paper.note) == ("best", "", "paper", "figure 2")
        assert abs(paper.created - time.time()) < 60
        tags.set_tag(folder, "best", "by far")
        assert [tag[:2] for tag in read.tags()] == [("best", "by far"), ("paper", "figure 2")]
        tags.remove_tag(folder, "best")
        assert [tag.name for tag in read.tags()] == ["paper"]
        with pytest.raises(RunFolderError, match=r"has no tag 'best'; it has paper$"):
            tags.remove_tag(folder, "best")
        records.rewind(database, 0)
        assert [tag.name for tag in read.tags()] == ["paper"], "a person's word outlives a rewind"


def test_a_tag_waits_for_a_commit(path: Path, database: records.Writer) -> None:
    database.execute("BEGIN IMMEDIATE")
    commit = threading.Timer(0.5, database.commit)
    commit.start()
    tags.set_tag(path.parent, "paper")
    commit.join()
    with closing(Records(path)) as read:
        assert [tag.name for tag in read.tags()] == ["paper"]


@pytest.mark.parametrize("name", ["", "two words", "a,b", "x" * 41, "line\nbreak"])
def test_a_tag_is_one_word(path: Path, name: str) -> None:
    with pytest.raises(RunFolderError, match="is no tag; one is a word"):
        tags.set_tag(path.parent, name)


def test_a_run_of_version_1_cannot_be_tagged(old: Path) -> None:
    for change in (tags.set_tag, tags.remove_tag):
        with pytest.raises(RunFolderError, match=r"old has schema 1, which has no tags; runs of this fedsim can be"):
            change(old, "paper")


def test_the_fixture_names_no_machine() -> None:
    """Committed for ever: neutral, and small."""
    files = [file for file in VERSION_1.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 300_000
    assert not any(word in file.read_bytes() for file in files for word in (b"/home/", b"/root/", b"/tmp/"))


def test_a_run_of_version_3_has_no_tests_and_no_digests_of_cohorts(path: Path, database: records.Writer) -> None:
    records.insert_round(database, replace(record(1), cohort_sha256="abc"), None, best=True, ledger=[])
    tested = [MeasuredRow(4, 9, None, {"accuracy": 0.5, "personal/accuracy": math.nan})]
    records.insert_summary(database, {"status": "done"}, ledger=[], events=[], tests=tested)
    with closing(Records(path)) as read:
        assert [row.cohort_sha256 for row in read.rounds()] == ["abc"]
        ((client, rows, loss, metrics),) = read.tests()
        assert (client, rows, loss, metrics["accuracy"]) == (4, 9, None, 0.5) and math.isnan(
            metrics["personal/accuracy"]
        )
    database.execute("ALTER TABLE rounds DROP COLUMN cohort_sha256")
    for table in ("tests", "sketches"):
        database.execute(f"DROP TABLE {table}")
    database.execute("PRAGMA user_version = 3")
    database.commit()
    with closing(Records(path)) as read:
        assert read.version == 3 and [row.cohort_sha256 for row in read.rounds()] == [None]
        assert read.tests() == [] == list(read.select("SELECT * FROM sketches"))


def test_a_cohort_is_the_same_whatever_the_order() -> None:
    assert records.cohort_digest([3, 1, 20]) == records.cohort_digest([20, 3, 1])
    assert len({records.cohort_digest(cohort) for cohort in ([], [1], [1, 2], [12], [0, 12])}) == 5


def test_a_run_of_version_2_has_accounts_without_their_mechanism(path: Path, database: records.Writer) -> None:
    account = LedgerRow(3, 1, 0.5, "abc", "example", "zero-out", "poisson", 1.1, 0.1, 4)
    records.insert_round(database, record(1), None, best=True, ledger=[account])
    with closing(Records(path)) as read:
        assert read.privacy() == [account]
    for column in ("identity", "level", "relation", "sampling", "noise", "rate", "steps"):
        database.execute(f"ALTER TABLE privacy DROP COLUMN {column}")
    database.execute("PRAGMA user_version = 2")
    database.commit()
    with closing(Records(path)) as read:
        assert (read.version, read.privacy()) == (2, [LedgerRow(3, 1, 0.5)])
        assert [tuple(row.keys()) for row in read.select("SELECT * FROM privacy")] == [
            tuple(records.schema()["privacy"])
        ]
        assert read.tags() == []
