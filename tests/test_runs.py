"""The run folder keeps what it was told, whatever kills the process, and is read while it is written."""

import hashlib
import json
import math
import multiprocessing
import random
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fedsim.background import InOrder
from fedsim.checkpoints import Snapshot, snapshot_of
from fedsim.environment import environment
from fedsim.errors import RunFolderError
from fedsim.parameters import FlatModule, Layout, Weights, fingerprint, layout_of
from fedsim.reading import EventRow
from fedsim.records import ClientRow, Event, LedgerRow, Phase, RoundRecord
from fedsim.runs import Best, RunFolder, check_out
from fedsim.states import Kept
from fedsim.stored import open_run

MADE = environment("digest", corpus="digits", data="digits", model="own:Net", scenario_folder=Path())
FORK = multiprocessing.get_context("fork")
ACCURACY = "global/central-validation/rows/accuracy"
CLIENTS = 10


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def client(round: int, number: int, phase: Phase = "train", error: str | None = None) -> ClientRow:
    status = "failed" if error else "ok"
    loss = None if error else 0.1 * number
    return ClientRow(round, number, phase, status, 50, loss, 5, 0.25, 800, 804, error, {"accuracy": 0.5})  # type: ignore[arg-type]


def round_of(number: int, weights: Weights, cohort: int = 3, epsilon: float | None = None) -> RoundRecord:
    clients = [client(number, index) for index in range(cohort)]
    return RoundRecord(number, 1.5, cohort, 0, {ACCURACY: number / 10}, epsilon, fingerprint(weights), clients)


def created(path: Path, keep: int = 2) -> RunFolder:
    return RunFolder.create(path, "test", 'title = "Test"\n', [], {}, keep=keep)


def snapshot(weights: Weights, vectors: Mapping[str, Tensor] = {}) -> Snapshot:
    counts = np.arange(CLIENTS)
    return Snapshot(weights, vectors, counts, counts[::-1].copy())


def commit(
    folder: RunFolder,
    record: RoundRecord,
    layout: Layout,
    weights: Weights,
    *,
    best: Best | None = None,
    states: Mapping[int, Kept] | None = {},
    ledger: Sequence[LedgerRow] = (),
) -> None:
    """Commit a round, with a checkpoint unless `states` is None, and as the best so far unless another is."""
    folder.commit(record, layout, snapshot(weights), best or Best(record.number, weights), states=states, ledger=ledger)


@pytest.fixture
def model() -> FlatModule:
    return FlatModule(net())


@pytest.fixture
def weights(model: FlatModule) -> Weights:
    return Weights(model.vector, model.buffers)


def test_a_record_comes_back_as_it_was(tmp_path: Path, model: FlatModule, weights: Weights) -> None:
    rows = [client(1, 0), client(1, 0, "evaluate"), client(1, 7, error="ClientError: the loss is not finite")]
    record = RoundRecord(1, 2.5, 2, 1, {ACCURACY: 0.25, "odd": math.nan}, 0.75, fingerprint(weights), rows)
    with created(tmp_path / "run") as folder:
        ledger = [LedgerRow(0, 1, 0.75), LedgerRow(7, 1, 0.5)]
        commit(folder, record, model.layout, weights, ledger=ledger)
    with closing(open_run(tmp_path / "run")) as read:
        (row,) = read.rounds()
        assert (row.number, row.seconds, row.cohort, row.failed, row.epsilon) == (1, 2.5, 2, 1, 0.75)
        assert row.best is True and row.fingerprint == fingerprint(weights)
        assert sorted(read.clients(), key=rows.index) == rows
        assert read.clients(round=2) == []
        assert read.metrics()[ACCURACY] == {1: 0.25} and math.isnan(read.metrics()["odd"][1])
        assert read.privacy() == ledger
        assert read.events() == []
        assert read.summary() == {}
    with closing(sqlite3.connect(tmp_path / "run" / "run.db")) as database:
        failures = database.execute("SELECT * FROM failures").fetchall()
    assert failures == [(1, 7, "train", "ClientError: the loss is not finite")]


def test_an_account_is_the_one_after_the_asked_round(tmp_path: Path, model: FlatModule, weights: Weights) -> None:
    """Only accounts that changed are written; others stand as they were."""
    charges = {1: [LedgerRow(0, 1, 0.5), LedgerRow(4, 1, 0.5)], 2: [LedgerRow(0, 2, 0.7)], 3: [LedgerRow(9, 1, 0.5)]}
    with created(tmp_path / "run") as folder:
        for number, accounts in charges.items():
            commit(folder, round_of(number, weights), model.layout, weights, ledger=accounts)
    with closing(open_run(tmp_path / "run")) as read:
        assert read.privacy(round=1) == [LedgerRow(0, 1, 0.5), LedgerRow(4, 1, 0.5)]
        assert read.privacy(round=2) == [LedgerRow(0, 2, 0.7), LedgerRow(4, 1, 0.5)]
        assert read.privacy() == [LedgerRow(0, 2, 0.7), LedgerRow(4, 1, 0.5), LedgerRow(9, 1, 0.5)]


def test_a_finished_run_has_everybodys_account(tmp_path: Path, model: FlatModule, weights: Weights) -> None:
    """A slow accountant leaves epsilon open until the end; client 4 was charged for a round that was not committed."""
    with created(tmp_path / "run") as folder:
        commit(
            folder, round_of(1, weights), model.layout, weights, ledger=[LedgerRow(0, 1, None), LedgerRow(4, 1, None)]
        )
        commit(folder, round_of(2, weights), model.layout, weights, ledger=[LedgerRow(0, 2, None)])
        with closing(open_run(tmp_path / "run")) as read:
            assert read.privacy() == [LedgerRow(0, 2, None), LedgerRow(4, 1, None)]
        events = [Event("client failed", "round 3, client 4: odd"), Event("failure", "all 1 clients failed")]
        folder.finish(
            {},
            {},
            model.layout,
            weights,
            Best(2, weights),
            ledger=[LedgerRow(0, 2, 0.75), LedgerRow(4, 2, 0.5)],
            events=events,
        )
    with closing(open_run(tmp_path / "run")) as read:
        assert read.privacy(round=1) == [LedgerRow(0, 1, None), LedgerRow(4, 1, None)]
        assert read.privacy() == [LedgerRow(0, 2, 0.75), LedgerRow(4, 2, 0.5)]
        assert read.events() == [EventRow(2, *event) for event in events]


def test_an_account_of_a_run_without_a_round_is_kept(tmp_path: Path, model: FlatModule, weights: Weights) -> None:
    with created(tmp_path / "run") as folder:
        folder.finish({}, {}, model.layout, weights, Best(0, weights), ledger=[LedgerRow(3, 1, 0.5)])
    with closing(open_run(tmp_path / "run")) as read:
        assert read.privacy() == [LedgerRow(3, 1, 0.5)]


def test_saved_models_are_whole(tmp_path: Path) -> None:
    """Frozen parameters and batch norm's counter too: a strict load gives the model back."""
    made = net()
    made[2].weight.requires_grad_(False)  # type: ignore[index]
    before = {name: value.clone() for name, value in made.state_dict().items()}
    flat = FlatModule(made)
    weights = Weights(flat.vector, flat.buffers)
    with created(tmp_path / "run") as folder:
        commit(folder, round_of(1, weights), flat.layout, weights)
        folder.finish({}, {}, flat.layout, weights, Best(1, weights), constants=flat.constants)
    for file in ("best", "last"):
        plain = net()
        plain.load_state_dict(load_file(tmp_path / "run" / "model" / f"{file}.safetensors"), strict=True)
        assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_models_load_in_plain_torch(tmp_path: Path, model: FlatModule, weights: Weights) -> None:
    best, last = weights, Weights(weights.vector + 1, weights.buffers + 2)
    with created(tmp_path / "run") as folder:
        commit(folder, round_of(1, best), model.layout, best)
        commit(folder, round_of(2, last), model.layout, last, best=Best(1, best))
        summary = {"accuracy": 0.9, "epsilon": math.inf}
        folder.finish(summary, {"classes": ["a", "b"]}, model.layout, last, Best(1, best))
    for file, number, expected in (("best", "1", best), ("last", "2", last)):
        path, plain = tmp_path / "run" / "model" / f"{file}.safetensors", net()
        keys = plain.load_state_dict(load_file(path), strict=False)
        assert keys.unexpected_keys == []
        flat = FlatModule(plain)
        assert fingerprint(Weights(flat.vector, flat.buffers)) == fingerprint(expected)
        with safe_open(path, framework="pt") as opened:
            assert opened.metadata() == {"round": number}
    assert json.loads((tmp_path / "run" / "model" / "model.json").read_text()) == {"classes": ["a", "b"]}
    with closing(open_run(tmp_path / "run")) as read:
        assert read.summary() == {"accuracy": 0.9, "epsilon": None}


# Checkpoints: what they hold, how many stay, and what a kill leaves


def test_a_checkpoint_holds_what_the_next_round_depends_on(tmp_path: Path, model: FlatModule, weights: Weights) -> None:
    """And nothing else: model, the server's vectors, and two counts for every client."""
    control, before = torch.arange(3.0), snapshot(weights)
    with created(tmp_path / "run") as folder:
        after = Snapshot(weights, {"shared/control": control}, before.participations, before.accepted)
        folder.commit(round_of(5, weights), model.layout, after, Best(5, weights), states={})
        file = folder.checkpoints / "round-000005.safetensors"
    tensors = load_file(file)
    again = snapshot_of(tensors, model.layout, CLIENTS, file)
    assert torch.equal(again.weights.vector, weights.vector) and torch.equal(again.weights.buffers, weights.buffers)
    assert list(again.vectors) == ["shared/control"] and torch.equal(again.vectors["shared/control"], control)
    assert (again.participations == before.participations).all() and (again.accepted == before.accepted).all()
    names = {f"model/{slot.name}" for slot in (*model.layout.parameters, *model.layout.buffers)}
    assert set(tensors) == names | {"server/shared/control", "clients/participations", "clients/accepted"}
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"round": "5"}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("keep", [1, 2, 4])
def test_only_the_last_checkpoints_and_the_best_model_stay(
    tmp_path: Path, model: FlatModule, weights: Weights, keep: int, every: int
) -> None:
    """The best is of round 2, which has a checkpoint of its own only where every round has."""
    with created(tmp_path / "run", keep) as folder:
        for number in range(1, 13):
            best = Best(min(number, 2), weights)
            states: Mapping[int, Kept] | None = {} if number % every == 0 else None
            commit(
                folder,
                round_of(number, weights),
                model.layout,
                weights,
                best=best,
                states=states,
            )
        kept = names_in(folder.checkpoints)
    with closing(open_run(tmp_path / "run")) as read:
        rounds = read.rounds()
    checkpoints = [row.checkpoint for row in rounds if row.checkpoint is not None]
    assert checkpoints == [f"round-{number:06d}.safetensors" for number in range(every, 13, every)]
    file = "round-000002.safetensors" if every == 1 else "best-000002.safetensors"
    assert kept == sorted({file, *checkpoints[-keep:]})
    assert [row.number for row in rounds if row.best] == [1, 2]


def test_a_round_without_a_checkpoint_is_a_row(tmp_path: Path, model: FlatModule, weights: Weights) -> None:
    with created(tmp_path / "run") as folder:
        commit(folder, round_of(1, weights), model.layout, weights, states=None)
        assert names_in(folder.checkpoints) == []
        assert folder.committed == 1
    with closing(open_run(tmp_path / "run")) as read:
        (row,) = read.rounds()
    assert (row.checkpoint, row.checkpoint_sha256, row.states, row.states_sha256) == (None,) * 4


def test_states_lie_in_a_file_of_their_own_as_long_as_they_are_needed(
    tmp_path: Path, model: FlatModule, weights: Weights
) -> None:
    """Client 1 changes in every round, client 2 in the first alone."""
    with created(tmp_path / "run", keep=1) as folder:
        for number in (1, 2, 3):
            changed = {1: Kept(number, {"control": torch.full((2,), float(number))})}
            first = {2: Kept(1, {"control": torch.zeros(2)})} if number == 1 else {}
            commit(folder, round_of(number, weights), model.layout, weights, states=changed | first)
        names = names_in(folder.checkpoints)
        states = load_file(folder.checkpoints / "states-000003.safetensors")
    assert names == ["round-000003.safetensors", "states-000001.safetensors", "states-000003.safetensors"]
    assert list(states) == ["1/control"] and states["1/control"].tolist() == [3.0, 3.0]
    with closing(open_run(tmp_path / "run")) as read:
        kept = [tuple(row) for row in read.select("SELECT client, checkpoint, made FROM states ORDER BY client")]
        file, digest = read.rounds()[-1].states, read.rounds()[-1].states_sha256
    assert kept == [(1, 3, 3), (2, 1, 1)]
    content = (tmp_path / "run" / "checkpoints" / str(file)).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest


def commit_for_ever(path: Path, layout: Layout, size: int) -> None:
    """Commit until killed; now and then close and open again, so that a kill may fall there too."""
    torch.set_num_threads(1)
    folder = created(path)
    for number in range(1, 1_000_000):
        weights = Weights(torch.full((size,), float(number)), torch.zeros(0))
        states = {number % 7: Kept(number, {"control": weights.vector})}
        commit(folder, round_of(number, weights, cohort=20), layout, weights, states=states)
        if number % 3 == 0:
            folder.close()
            folder = RunFolder(path)


@pytest.fixture
def large() -> Iterator[tuple[Layout, int]]:
    layout = layout_of(nn.Linear(500, 400, bias=False))
    yield layout, layout.size


def test_a_kill_loses_at_most_the_round_in_progress(tmp_path: Path, large: tuple[Layout, int]) -> None:
    """Whatever the instant: the last row's checkpoint is there, whole, and of that round."""
    delays, committed = random.Random(1), 0
    for trial in range(20):
        path = tmp_path / str(trial)
        process = FORK.Process(target=commit_for_ever, args=(path, *large))
        process.start()
        wait_for(path / "run.db")
        time.sleep(delays.uniform(0, 0.1))
        process.kill()
        process.join()
        committed += check_after_kill(path)
    assert committed > 0


def check_after_kill(path: Path) -> int:
    with closing(open_run(path)) as read:
        rounds = read.rounds()
        assert [row.number for row in rounds] == list(range(1, len(rounds) + 1))
        for row in rounds:
            assert len(read.clients(row.number)) == row.cohort == 20
    if rounds:
        last = rounds[-1]
        for name, digest in ((last.checkpoint, last.checkpoint_sha256), (last.states, last.states_sha256)):
            content = (path / "checkpoints" / str(name)).read_bytes()
            assert hashlib.sha256(content).hexdigest() == digest
        model = load_file(path / "checkpoints" / str(last.checkpoint))["model/weight"]
        assert set(model.flatten().tolist()) == {len(rounds)}
    return len(rounds)


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until, f"{path} does not appear"
        time.sleep(0.005)


def test_a_killed_run_goes_on_and_clears_what_was_half_done(
    tmp_path: Path, model: FlatModule, weights: Weights
) -> None:
    """A checkpoint without its row, and a file without its ending, are what a kill can leave."""
    with created(tmp_path / "run") as folder:
        commit(folder, round_of(1, weights), model.layout, weights)
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "round-000002.safetensors").write_bytes(b"whole, but its row is missing")
    (checkpoints / "round-000003.safetensors.tmp").write_bytes(b"half")
    with RunFolder(tmp_path / "run") as folder:
        commit(folder, round_of(2, weights), model.layout, weights)
    assert names_in(checkpoints) == ["round-000001.safetensors", "round-000002.safetensors"]
    with closing(open_run(tmp_path / "run")) as read:
        content = (checkpoints / "round-000002.safetensors").read_bytes()
        assert hashlib.sha256(content).hexdigest() == read.rounds()[-1].checkpoint_sha256


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_reader_sees_whole_rounds_while_another_process_writes(tmp_path: Path, large: tuple[Layout, int]) -> None:
    path = tmp_path / "run"
    writer = FORK.Process(target=commit_for_ever, args=(path, *large))
    writer.start()
    try:
        wait_for(path / "run.db")
        with closing(open_run(path)) as read:
            seen, until = 0, time.monotonic() + 30
            while seen < 10 and time.monotonic() < until:
                numbers = [row.number for row in read.rounds()]
                assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= seen
                seen = len(numbers)
                assert seen == 0 or len(read.clients(seen)) == 20
            assert seen >= 10
    finally:
        writer.kill()
        writer.join()


def test_ten_thousand_clients_a_round(tmp_path: Path, model: FlatModule, weights: Weights) -> None:
    with created(tmp_path / "run") as folder:
        start = time.perf_counter()
        commit(folder, round_of(1, weights, cohort=10_000), model.layout, weights)
        assert time.perf_counter() - start < 5
    with closing(open_run(tmp_path / "run")) as read:
        assert [row.client for row in read.clients(1)] == list(range(10_000))


def test_the_folder_says_where_the_run_came_from(tmp_path: Path) -> None:
    for place, text in (("a", "x = 1\n"), ("b", "x = 2\n")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text(text)
    sources = [tmp_path / "a" / "mine.py", tmp_path / "b" / "mine.py", tmp_path / "a" / "mine.py"]
    with RunFolder.create(tmp_path / "run", "test", "seed = 1\n", sources, MADE) as folder:
        path = folder.path
    assert (path / "scenario.toml").read_text() == "seed = 1\n"
    assert names_in(path) == ["checkpoints", "environment.json", "model", "run.db", "scenario.toml", "sources"]
    kept = json.loads((path / "environment.json").read_text())
    assert kept["sources"] == {
        "mine.py": hashlib.sha256(b"x = 1\n").hexdigest(),
        "mine-2.py": hashlib.sha256(b"x = 2\n").hexdigest(),
    }
    assert (path / "sources" / "mine-2.py").read_text() == "x = 2\n"
    assert kept["packages"]["torch"] == torch.__version__ and kept["processor"] and kept["data_sha256"] == "digest"
    assert kept["corpus"] == "digits" and kept["model"] == "own:Net"


def test_without_a_path_runs_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [RunFolder.create(None, "Private FedAvg!", "", [], {}) for _ in range(2)]
    assert folders[0].path != folders[1].path
    for folder in folders:
        folder.close()
        assert folder.path.parent == tmp_path / "runs"
        assert re.fullmatch(r"\d{8}-\d{4}-private-fedavg-[0-9a-f]{4}", folder.path.name)


def test_a_long_name_still_makes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunFolder.create(None, "long " * 60, "", [], {}) as folder:
        assert folder.path.is_dir()


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_an_existing_out_folder_is_refused_and_untouched(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"^run folder \S+/out exists already; choose another.*$"):
        created(out)
    assert names_in(tmp_path) == ["out"]
    assert kind != "file" or out.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "reason"), [("n" * 300, "File name too long"), ("file/run", "Not a directory"), ("loop/run", "Too many")]
)
def test_an_impossible_out_folder_is_told_before_anything_is_trained(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(RunFolderError, match=rf"^run folder \S+ cannot be written \({reason}.*; choose another"):
        check_out(tmp_path / name)


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"^run folder \S+/file/run cannot be written \(Not a directory: .*$"):
        created(tmp_path / "file" / "run")
    with pytest.raises(RunFolderError, match=r"No such file or directory: .*gone\.py"):
        RunFolder.create(tmp_path / "run", "test", "", [tmp_path / "gone.py"], {})
    assert names_in(tmp_path) == ["file"]


def test_what_is_no_run_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is not a run folder: it has no run\.db$"):
        open_run(tmp_path)
    (tmp_path / "run.db").write_text("not a database, but long enough to be looked at as one" * 20)
    with pytest.raises(RunFolderError, match=r"run\.db cannot be read as the records of a run: .*$"):
        open_run(tmp_path)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    created(tmp_path / "run").close()
    with closing(sqlite3.connect(tmp_path / "run" / "run.db")) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(
        RunFolderError, match=r"has schema 99, this fedsim reads 1 to 4; use the version that wrote it$"
    ):
        open_run(tmp_path / "run")


def test_reading_a_closed_run_writes_nothing(tmp_path: Path, model: FlatModule, weights: Weights) -> None:
    with created(tmp_path / "run") as folder:
        commit(folder, round_of(1, weights), model.layout, weights)
    names, before = names_in(tmp_path / "run"), (tmp_path / "run" / "run.db").read_bytes()
    with closing(open_run(tmp_path / "run")) as read:
        assert len(read.rounds()) == 1
        assert names_in(tmp_path / "run") == names
    assert (tmp_path / "run" / "run.db").read_bytes() == before


def test_a_run_closes_while_somebody_reads(tmp_path: Path, model: FlatModule, weights: Weights) -> None:
    folder = created(tmp_path / "run")
    with closing(open_run(tmp_path / "run")) as read:
        commit(folder, round_of(1, weights), model.layout, weights)
        assert len(read.rounds()) == 1
        folder.close()
        assert len(read.rounds()) == 1
    with RunFolder(tmp_path / "run") as again, closing(open_run(tmp_path / "run")) as read:
        commit(again, round_of(2, weights), model.layout, weights)
        assert len(read.rounds()) == 2


def test_every_column_is_documented(tmp_path: Path) -> None:
    """docs/run-folder.md names each table and column of the schema, and its version."""
    text = (Path(__file__).parents[1] / "docs" / "run-folder.md").read_text()
    created(tmp_path / "run").close()
    with closing(sqlite3.connect(tmp_path / "run" / "run.db")) as database:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type != 'index'")]
        for table in tables:
            section = text.partition(f"### {table}\n")[2].partition("\n### ")[0]
            for _, column, *_ in database.execute(f"PRAGMA table_info({table})"):
                assert re.search(rf"^\| `{column}` \|", section, re.MULTILINE), f"{table}.{column}"
    assert f"version {version}" in text


# Commits in a thread of their own


def test_calls_end_in_the_order_in_which_they_began() -> None:
    """And never two at once: the second waits for the first, however long that takes."""
    ended: list[int] = []

    def call(number: int, seconds: float) -> None:
        time.sleep(seconds)
        ended.append(number)

    calls = InOrder()
    for number, seconds in enumerate([0.05, 0.0, 0.02, 0.0]):
        calls.start(partial(call, number, seconds))
        assert ended[:number] == list(range(number)), "what began before has ended"
    calls.wait()
    assert ended == [0, 1, 2, 3]
    calls.close()


def test_a_call_runs_beside_its_caller() -> None:
    going_on = threading.Event()
    calls = InOrder()
    calls.start(lambda: None if going_on.wait(30) else pytest.fail("nobody went on"))
    going_on.set()
    calls.wait()
    calls.close()


@pytest.mark.parametrize("error", [RunFolderError("full"), KeyboardInterrupt()])
def test_what_a_call_raises_is_raised_once_by_whoever_waits(error: BaseException) -> None:
    def fail() -> None:
        raise error

    for next_step in ("wait", "start"):
        calls = InOrder()
        calls.start(fail)
        with pytest.raises(type(error)) as raised:
            calls.wait() if next_step == "wait" else calls.start(lambda: None)
        assert raised.value is error
        calls.wait()
        calls.close()


def test_closing_waits_for_the_last_call_whatever_it_raises() -> None:
    ended: list[bool] = []

    def fail_late() -> None:
        time.sleep(0.05)
        ended.append(True)
        raise RunFolderError("full")

    calls = InOrder()
    calls.start(fail_late)
    calls.close()
    assert ended == [True]
