"""A node answers as the client that it is in the simulation; and what it refuses never comes near its rows."""

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsim.deploy.assignment import Assignment
from fedsim.deploy.node import holding as holdings
from fedsim.deploy.node import log as logs
from fedsim.deploy.node.folder import NodeFolder
from fedsim.deploy.node.kept import Replies, States, digest_of
from fedsim.deploy.node.review import approve
from fedsim.errors import DeployError
from fedsim.grid import begin_run, client_number
from fedsim.local import Work
from tests import small
from tests.deploy.node_messages import NUMBER, RUN, Played, Simulated, bundle

BATCH_NORM = {"model": {"name": "cnn", "preset": "small", "norm": "batch"}}
EXAMPLE: dict[str, Any] = {
    "model": {"name": "cnn", "preset": "small"},
    "privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0, "max_participations": 3},
}
LOCAL: dict[str, Any] = {
    "strategy": {"name": "fedavg", "weights": "uniform"},
    "privacy.local": {"noise_multiplier": 4.0, "delta": 1e-3, "clip": 1.0, "max_participations": 3},
}
CASES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "scaffold": {"strategy.name": "scaffold"},
    "fedbn": {"strategy.name": "fedbn", **BATCH_NORM},
    "example": EXAMPLE,
    "local": LOCAL,
}


def arrays(reply: Message) -> dict[str, bytes]:
    """The bytes of all arrays of a reply."""
    assert not reply.has_error(), reply.error
    return {
        f"{name}/{key}": array.data
        for name, record in reply.content.array_records.items()
        for key, array in record.items()
    }


def metrics(reply: Message, *without: str) -> dict[str, Any]:
    """The figures of a reply but for some."""
    record = reply.content["metrics"]
    assert isinstance(record, MetricRecord)
    return {name: value for name, value in record.items() if name not in without}


@pytest.fixture
def played(tmp_path: Path) -> Played:
    return Played(small.job(), tmp_path)


@pytest.fixture
def private(tmp_path: Path) -> Played:
    return Played(small.job(EXAMPLE), tmp_path)


def entries(played: Played, kind: str) -> list[dict[str, Any]]:
    """The log's entries of a kind."""
    return [entry for entry in logs.entries(played.folder / "log.jsonl") if entry["kind"] == kind]


@pytest.mark.parametrize("name", CASES)
def test_a_node_answers_as_its_client_in_the_simulation_does(name: str, tmp_path: Path) -> None:
    """To the bit, over three rounds, with what the client keeps between them; every round in a process of its own."""
    job = small.job(CASES[name])
    played, simulated = Played(job, tmp_path), Simulated(job)
    for round in (1, 2, 3):
        messages = simulated.messages(round)
        replies = simulated.replies(messages)
        place = [client_number(message) for message in messages].index(NUMBER)
        played.node = played.opened()
        mine, reference = played.ask(played.told(messages[place])), replies[place]
        assert arrays(mine) == arrays(reference)
        for figure, value in metrics(mine, "counter", "seconds").items():
            assert metrics(reference)[figure] == value
        simulated.strategy.aggregate_train(round, replies)


def test_a_node_of_a_flower_strategy_sees_one_client_and_trains(tmp_path: Path) -> None:
    """Flower's FedAdam wants two clients, and only the server knows how many there are."""
    job = small.job({"strategy.name": "flower:FedAdam"})
    played, work = Played(job, tmp_path), Work(job)
    reply = played.ask(played.train(work, reply="model"))
    assert not reply.has_error(), reply.error
    assert metrics(reply)["num-examples"] == job.federation.train_rows[NUMBER]


def test_a_description_is_of_the_rows(played: Played) -> None:
    """Counts, shapes and types are the rows' own, and nothing in it is a value of a row."""
    message = played.told(Message(RecordDict({"config": ConfigRecord({})}), NUMBER + 2, "query.describe"))
    content = played.ask(message).content
    federation = played.job.federation
    about, counts = content["description"], content["metrics"]
    assert isinstance(about, ConfigRecord) and isinstance(counts, MetricRecord)
    assert about["x-shape"] == list(federation.x.shape[1:]) and about["classes"] == list(federation.classes)
    for part in ("train", "validation", "test"):
        assert counts[f"rows-{part}"] == federation.sizes(part)[NUMBER]


def test_code_of_the_server_is_refused_before_anything_is_loaded(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle with a fedsim of its own, whose ledger charges nothing: no data are loaded, and the log says why."""
    calls: list[str] = []
    monkeypatch.setattr(holdings, "load", lambda *given: calls.append("data"))
    own = {"fedsim/__init__.py": "", "fedsim/deploy/node/ledger.py": f"open({str(tmp_path / 'ran')!r}, 'w')"}
    fab = bundle(played.assignment, tmp_path / "app", own)
    reply = played.ask(played.train(Work(played.job)), fab)
    assert str(reply.error.reason).startswith("refused: ")
    assert not calls and not (tmp_path / "ran").exists()
    assert "fedsim/" in entries(played, "refused")[0]["why"]


@pytest.mark.parametrize(
    ("rules", "changes", "more", "told"),
    [
        ('strategies = ["scaffold"]', {}, {}, "strategies"),
        ('levels = ["example"]', {}, {}, "levels"),
        ("smallest_cohort = 9", {}, {}, "smallest_cohort"),
        ("", {}, {"assignment": "0" * 64}, "another assignment"),
        ("", {}, {"fedsim": "9.9.9"}, "9.9.9"),
        ("", {}, {"run": "../../../etc"}, "run"),
        ("", {}, {"number": 5}, "client 5 of 5"),
        ("", {}, {"counter": -1}, "counter"),
        ("", {"strategy": {"name": "/etc/mine.py:mine"}}, {}, "none of its sources"),
    ],
)
def test_what_is_refused_costs_nothing_and_loads_nothing(
    rules: str,
    changes: dict[str, Any],
    more: dict[str, Any],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The owner's rules, and messages that are not what they say."""
    played = Played(small.job(), tmp_path, rules="")
    text = (played.folder / "rules.toml").read_text()
    key = rules.partition(" ")[0]
    kept = [line for line in text.splitlines() if not key or not line.startswith(key)]
    (played.folder / "rules.toml").write_text("\n".join([*kept, rules]))
    if changes:
        changed = played.job.scenario.to_toml().replace('name = "fedavg"', f'name = "{changes["strategy"]["name"]}"')
        played.assignment = Assignment(changed)
        played.fab = bundle(played.assignment, tmp_path / "app")
    message = played.train(Work(played.job), **more)
    monkeypatch.setattr(holdings, "load", lambda *given: pytest.fail("the data were loaded"))
    reply = played.ask(message)
    reason = str(reply.error.reason)
    assert reason.startswith("refused: ") and told in reason
    assert told in entries(played, "refused")[0]["why"] and played.node.ledger.counter == 0


def test_own_code_runs_once_it_was_approved(tmp_path: Path) -> None:
    """Before that not a line of it: it waits for its owner."""
    ran = tmp_path / "ran"
    source = f"""
from pathlib import Path
from torch import nn
Path({str(ran)!r}).touch()
class Mine(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int):
        super().__init__()
        self.layer = nn.Linear(64, classes)
    def forward(self, x):
        return self.layer(x.flatten(1))
"""
    (tmp_path / "mine.py").write_text(source)
    job = small.job({"model": {"name": "mine.py:Mine"}}, tmp_path)
    played, simulated = Played(job, tmp_path, sources={"mine.py": source}), Simulated(job)
    message = next(each for each in simulated.messages(1) if client_number(each) == NUMBER)
    ran.unlink()
    (tmp_path / "mine.py").unlink()
    assert "not approved" in str(played.ask(played.told(message)).error.reason)
    assert not ran.exists()
    approve(NodeFolder.open(played.folder), played.assignment.sources_digest)
    assert arrays(played.ask(played.told(message))) == arrays(simulated.replies([message])[0])
    assert ran.exists()


def test_a_repeated_message_costs_nothing_more(private: Played) -> None:
    """The same bytes are sent again, from the disk; another counter of the coordinator's makes no difference."""
    work = Work(private.job)
    first = private.ask(private.train(work))
    private.node = private.opened()
    again = private.ask(private.train(work, counter=1))
    assert arrays(first) == arrays(again) and metrics(first) == metrics(again)
    assert private.node.ledger.counter == metrics(again)["counter"] == 1
    other = private.ask(private.train(work, round=2))
    assert metrics(other)["counter"] == 2 and arrays(other) != arrays(first)


def test_the_charge_is_on_the_disk_before_rows_are_trained_on(private: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that dies over its work has charged for it."""
    counted: list[int] = []

    def dies(*given: object) -> None:
        counted.append(private.opened().ledger.counter)
        raise SystemExit(1)

    monkeypatch.setattr("fedsim.deploy.node.handling.answered", dies)
    reply = private.ask(private.train(Work(private.job)))
    assert reply.has_error() and counted == [1]


def test_noise_is_drawn_anew_every_time(private: Played) -> None:
    """Unless a rehearsal asks for the seed's: two nodes asked the same send other noise, and charge alike."""
    message, sent = private.train(Work(private.job)), set()
    for _ in range(2):
        private.node = private.opened(seeded_coins=False)
        sent.add(arrays(private.ask(message))["update/vector"])
        for path in (private.folder / "replies").iterdir():
            path.unlink()
    assert len(sent) == 2 and private.node.ledger.counter == 2


def test_a_log_that_cannot_be_written_holds_the_reply_back(private: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """What left and is in no log would be worse; once it can be written the same bytes leave, and cost nothing more."""

    def full(*given: object, **facts: object) -> None:
        raise DeployError("log.jsonl cannot be written (No space left on device); make room")

    message = private.train(Work(private.job))
    with monkeypatch.context() as patched:
        patched.setattr(logs.Log, "write", full)
        assert "make room" in str(private.ask(message).error.reason)
    assert metrics(private.ask(message))["counter"] == 1


def test_a_restored_ledger_is_noticed(private: Played) -> None:
    """The coordinator has seen more charges than the node knows of."""
    reply = private.ask(private.train(Work(private.job), counter=3))
    for told in ("restored from a backup", "a copy of its key", "--catch-up 3"):
        assert told in str(reply.error.reason)
    assert private.node.ledger.counter == 0


def test_rows_that_have_changed_cost_nothing(private: Played) -> None:
    """The server divides by what was declared, so that it could use nothing that the node would be charged for."""
    work, rows = Work(private.job), int(private.job.federation.train_rows[NUMBER])
    refused = private.ask(private.train(work, rows=rows + 1))
    assert "others than those that it declared" in str(refused.error.reason)
    assert private.node.ledger.counter == 0
    assert not private.ask(private.train(work, rows=rows)).has_error()


def test_spending_ends_at_the_owners_limit(tmp_path: Path) -> None:
    """All rounds together stay within rules.toml's epsilon; what is refused is not charged."""
    played = Played(small.job(EXAMPLE), tmp_path)
    work = Work(played.job)
    played.ask(played.train(work))
    spent = played.node.ledger.spent(1e-5)
    rules = (played.folder / "rules.toml").read_text().replace("100.0", f"{spent * 1.01}")
    (played.folder / "rules.toml").write_text(rules)
    reply = played.ask(played.train(work, round=2))
    assert "largest_epsilon" in str(reply.error.reason) and played.node.ledger.spent(1e-5) == spent


def test_the_log_names_what_left_and_no_value(private: Played) -> None:
    """Who, which run and round, names and sizes, epsilon before and after."""
    reply = private.ask(private.train(Work(private.job)))
    (entry,) = entries(private, "answered")
    assert (entry["who"], entry["run"], entry["round"]) == ("study.example:8443", RUN, 1)
    assert 0 == entry["epsilon-before"] < entry["epsilon-after"]
    assert {each["field"] for each in entry["left"]} == {"metrics", "update/vector"}
    assert next(each["bytes"] for each in entry["left"] if each["field"] == "update/vector") == len(
        arrays(reply)["update/vector"]
    )


def test_a_full_disk_costs_nothing_and_the_message_is_answered_later(
    private: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is taken before the charge."""

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    message = private.train(Work(private.job))
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        reply = private.ask(message)
    assert "disk is full" in str(reply.error.reason) and "disk is full" in entries(private, "failed")[0]["why"]
    assert private.node.ledger.counter == 0 and not list((private.folder / "replies").glob("*"))
    assert metrics(private.ask(message))["counter"] == 1


def test_a_small_disk_is_full_in_earnest(tmp_path: Path) -> None:
    """A file system without room for a reply, where this machine lets a test have one."""
    played, disk = Played(small.job(EXAMPLE), tmp_path), tmp_path / "node" / "replies"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=128k,mode=700", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        message, filler = played.train(Work(played.job)), disk / "filler"
        filler.write_bytes(b"x" * 100_000)
        assert "disk is full" in str(played.ask(message).error.reason) and played.node.ledger.counter == 0
        filler.unlink()
        assert metrics(played.ask(message))["counter"] == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_state_that_is_no_longer_kept_is_an_error(tmp_path: Path) -> None:
    """And not a new beginning, which nobody would notice."""
    played = Played(small.job({"strategy.name": "scaffold"}), tmp_path)
    simulated = Simulated(played.job)
    message = next(each for each in simulated.messages(1) if client_number(each) == NUMBER)
    for round in (1, 2, 3, 4):
        config = {"server-round": round, "accepted-round": max(0, round - 1)}
        assert not played.ask(played.told(message, **config)).has_error()
    kept = {path.name for path in (played.folder / "states" / RUN).iterdir()}
    assert kept == {"000002.safetensors", "000003.safetensors", "000004.safetensors"}
    reply = played.ask(played.told(message, **{"server-round": 5, "accepted-round": 1}))
    assert "after round 1 is no longer kept" in str(reply.error.reason)
    back = played.ask(played.told(message, **{"server-round": 3, "accepted-round": 2, "weight": 2.0}))
    assert not back.has_error()  # a server that went back takes later rounds with it
    assert {path.name for path in (played.folder / "states" / RUN).iterdir()} == {
        "000002.safetensors",
        "000003.safetensors",
    }


def test_stored_replies_come_back_as_they_were(tmp_path: Path) -> None:
    """Arrays, whole numbers and numbers that are none, and only the last few."""
    replies, vector = Replies(tmp_path), np.arange(5, dtype=np.float32)
    content = RecordDict(
        {
            "update": ArrayRecord([vector]),
            "metrics": MetricRecord({"loss": float("nan"), "rows": 3, "big": 1e300, "third": 1 / 3}),
        }
    )
    for round in range(12):
        replies.put(replies.room(RUN, round, "a" * 64, 20), content)
    assert replies.get(RUN, 0, "a" * 64) is None and len(list(tmp_path.iterdir())) == 8
    stored = replies.get(RUN, 11, "a" * 64)
    assert stored is not None
    assert repr(dict(stored["metrics"])) == repr(dict(content["metrics"]))
    assert stored.array_records["update"]["0"].data == content.array_records["update"]["0"].data
    assert replies.get(RUN, 11, "b" * 64) is None


def test_a_damaged_state_is_told(tmp_path: Path) -> None:
    """In one line, without a traceback."""
    states = States(tmp_path)
    (tmp_path / "000001.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DeployError, match="round 1 is damaged"):
        states.get(1)


def test_a_digest_is_of_what_is_asked() -> None:
    """Every value and every array count; the ledger's counter does not."""
    begin_run()

    def message(kind: str = "train", value: float = 1.0, counter: int = 0, **config: Any) -> Message:
        content = RecordDict({"arrays": ArrayRecord([np.array([value])])})
        content["config"] = ConfigRecord({"counter": counter, **config})
        return Message(content, 2, kind)

    asked = {
        digest_of(message()),
        digest_of(message(value=2.0)),
        digest_of(message("evaluate")),
        digest_of(message(a=1)),
    }
    asked |= {digest_of(message(a=1.0)), digest_of(message(a="1"))}
    assert len(asked) == 6
    assert digest_of(message()) == digest_of(message(counter=7))


def test_room_that_a_killed_process_had_taken_is_given_back(private: Played) -> None:
    """Each kill would else cost the disk as much as a model."""
    replies = Replies(private.folder / "replies")
    taken = replies.room(RUN, 1, "a" * 64, 100_000)
    os.close(taken._file)  # as the end of a process does
    assert list((private.folder / "replies").iterdir())
    private.opened()
    assert not list((private.folder / "replies").iterdir())
