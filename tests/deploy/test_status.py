"""What a site tells of itself, without a server: tables that fit, an exposition that parses, the last run's course."""

import json
import math
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.deploy import status, superlink
from fedsim.deploy.following import Ticket, following_file
from fedsim.deploy.status import NODE_STATES, Facts, Node, Run
from fedsim.errors import DeployError
from tests.deploy.exposition import samples
from tests.deploy.served import admit, site_with

WORDS = st.text(max_size=90)
NUMBERS = st.floats(allow_nan=True)
NODES = st.builds(
    Node,
    number=st.integers(0, 9999),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", fullmatch=True),
    status=st.sampled_from(NODE_STATES),
    node_id=st.none() | st.integers(2, 2**64 - 1),
    contact=st.none() | st.floats(0, 2e9),
    seconds_ago=st.none() | st.floats(0, 1e9),
    fedsim=st.none() | st.sampled_from(["0.1.0", "10.11.12.dev3+local"]),
    flwr=st.none() | st.just("1.42.0"),
)
RUNS = st.builds(
    Run,
    ticket=WORDS,
    folder=WORDS,
    status=st.sampled_from(["running", "done", "failed"]),
    reason=WORDS,
    round=st.integers(0, 10**6),
    rounds=st.none() | st.integers(1, 10**6),
    metrics=st.dictionaries(WORDS, NUMBERS, max_size=9),
)
FACTS = st.builds(
    Facts,
    server=st.sampled_from(["up", "down"]),
    address=WORDS,
    certificate_days=st.floats(-1e4, 1e4),
    nodes=st.lists(NODES, max_size=5, unique_by=lambda node: node.name),
    run=st.none() | RUNS,
)


@given(FACTS)
def test_the_table_fits_eighty_columns(facts: Facts) -> None:
    """Whatever nodes, folders and metrics are called; and nothing of it moves the terminal's cursor."""
    assert all(len(line) <= 80 and line.isprintable() for line in status.table(facts))


@given(FACTS, st.floats(0, 2e9))
def test_the_exposition_says_what_the_facts_say(facts: Facts, now: float) -> None:
    """Read back by the format's own rules, names with quotes and line ends included."""
    read = samples(status.prometheus(facts, now))
    assert read["fedsim_up", ()] == (facts.server == "up")
    assert read["fedsim_written_timestamp_seconds", ()] == now
    assert read["fedsim_certificate_days", ()] == facts.certificate_days
    counted = sum(value for (name, _), value in read.items() if name == "fedsim_nodes")
    assert counted == len(facts.nodes)
    for node in facts.nodes:
        assert read.get(("fedsim_node_last_contact_timestamp_seconds", (("node", node.name),))) == node.contact
    if facts.run is not None:
        assert read["fedsim_run_round", ()] == facts.run.round
        for name, value in facts.run.metrics.items():
            told = read["fedsim_run_metric", (("metric", name),)]
            assert told == value or (math.isnan(told) and math.isnan(value))


def test_the_last_run_is_followed(tmp_path: Path) -> None:
    """The newest ticket of a run counts; a line that is being written does not count yet."""
    site = site_with(tmp_path)
    assert status.facts(site).run is None
    for age, (purpose, folder) in enumerate([("describe", None), ("run", tmp_path / "new"), ("run", tmp_path / "old")]):
        ticket = Ticket(purpose=purpose, run="0" * 16, scenario="", folder=folder).write(site.runs)
        os.utime(site.runs / f"{ticket}.json", (2e9 - age, 2e9 - age))
        if purpose == "run" and folder == tmp_path / "new":
            newest = following_file(site.runs, ticket)
    lines = [
        {"kind": "begin", "rounds": 5},
        {"kind": "round", "number": 1, "shown": {"accuracy": 0.25}},
        {"kind": "round", "number": 2, "shown": {"accuracy": 0.5, "loss": None}},
    ]
    newest.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "round", "num')
    run = status.facts(site).run
    assert run is not None
    assert (run.folder, run.round, run.rounds, run.metrics) == (str(tmp_path / "new"), 2, 5, {"accuracy": 0.5})
    assert run.status == "unknown"
    newest.write_text(json.dumps({"kind": "finished", "status": "failed", "reason": "no node came"}) + "\n")
    run = status.facts(site).run
    assert run is not None and (run.status, run.reason) == ("failed", "no node came")


def test_a_lock_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """A command that root gave once has left a file that is root's."""
    site = site_with(tmp_path)
    (site.folder / "server.lock").mkdir()
    with pytest.raises(DeployError, match=r"server\.lock cannot be opened"):
        status.facts(site)


def test_a_deleted_message_leaves_no_bytes(tmp_path: Path) -> None:
    """SQLite's files keep what was in a row until its place is used again; in WAL mode, in which Flower writes, too."""
    site = site_with(tmp_path)
    for mode in ("DELETE", "WAL"):
        with closing(sqlite3.connect(site.superlink_database)) as database:
            database.execute(f"PRAGMA journal_mode = {mode}")
            database.execute("PRAGMA secure_delete = OFF")  # which some systems' SQLite has on, for the main file
            database.execute("CREATE TABLE IF NOT EXISTS objects (content BLOB)")
            with database:
                database.executemany("INSERT INTO objects VALUES (?)", [(b"UPDATE" * 2000,)] * 20)
            with database:
                database.execute("DELETE FROM objects")
            database.execute("PRAGMA wal_checkpoint")
            assert found(site.folder, b"UPDATE")
            superlink.sweep(site)
            assert not found(site.folder, b"UPDATE")


def found(folder: Path, text: bytes) -> bool:
    """Whether the SuperLink's database has a text anywhere in its files."""
    return any(text in path.read_bytes() for path in folder.glob("superlink.db*"))


def test_versions_are_kept_for_every_node(tmp_path: Path) -> None:
    """A run asks those that take part; what others told before stays."""
    site = site_with(tmp_path, "north", "south")
    status.remember(site, {"north": {"fedsim": "0.1.0", "flwr": "1.41.0"}})
    status.remember(site, {"south": {"fedsim": "0.1.1", "flwr": "1.42.0"}})
    admit(site, tmp_path, "east")
    told = [(node.name, node.status, node.fedsim, node.flwr) for node in status.facts(site).nodes]
    assert told == [
        ("north", "unknown", "0.1.0", "1.41.0"),
        ("south", "unknown", "0.1.1", "1.42.0"),
        ("east", "unknown", None, None),
    ]


def test_metrics_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prometheus' collector may read at any instant; a file that cannot be finished leaves the old one."""
    site = site_with(tmp_path)
    status.write(site, status.facts(site))
    before = site.metrics.read_text()
    with pytest.raises(UnicodeEncodeError):
        broken = Run("t", "f", "running", "", 1, None, {"\ud800": 1.0})
        status.write(site, status.facts(site)._replace(run=broken))
    assert site.metrics.read_text() == before
    with pytest.raises(DeployError, match=r"metrics\.prom cannot be written: Not a directory"):
        status.write(site.model_copy(update={"folder": site.settings}), status.facts(site))
    assert [path.name for path in site.folder.glob(".metrics*")] == []
