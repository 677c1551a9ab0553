"""Whatever a node sends: a sound reply counts as it is, anything else is that node's failure, and the round goes on."""

import json
import math
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.arrays import sendable
from fedsim.deploy.described import Description
from fedsim.deploy.replies import Expected, Unsound, counter_of, plain
from fedsim.driving import strategy_for
from fedsim.errors import DeployError
from fedsim.grid import begin_run, with_content
from fedsim.local import Work
from fedsim.parameters import to_record
from fedsim.progress import Silent
from fedsim.rounds import create_folder, execute
from fedsim.stored import open_run
from tests import small
from tests.deploy.flower_grid import Answer, FlowerGrid, Memory, deployed, description, server_job, simulated, workforce

HOSTILE = 1
SIZE = 64 * 16 + 16 + 16 * 10 + 10
"""Values of an update of the small job."""


@pytest.fixture(scope="module", autouse=True)
def in_a_run() -> None:
    """Flower makes messages in a process that coordinates a run."""
    begin_run()


def changed(change: Callable[[dict[str, Any]], Any]) -> Answer:
    """A node that changes its honest reply to a training message: its records by name."""

    def answer(message: Message, reply: Message) -> Message:
        if message.metadata.message_type != "train":
            return reply
        records: dict[str, Any] = dict(sendable(reply.content).items())
        change(records)
        return with_content(reply, RecordDict(records))

    return answer


def vector(values: np.ndarray, **said: Any) -> Callable[[dict[str, Any]], None]:
    """Another vector in the reply, of which the array's own fields say something else."""

    def change(records: dict[str, Any]) -> None:
        array = Array(values)
        told = {"dtype": array.dtype, "shape": tuple(array.shape), "stype": array.stype, "data": array.data} | said
        records["update"] = ArrayRecord({"vector": Array(**told)})

    return change


def figures(**told: Any) -> Callable[[dict[str, Any]], None]:
    """Other figures in the reply; None takes one away."""

    def change(records: dict[str, Any]) -> None:
        kept = {**records["metrics"], **{name.replace("_", "-"): value for name, value in told.items()}}
        records["metrics"] = MetricRecord({name: value for name, value in kept.items() if value is not None})

    return change


def long_error(message: Message, reply: Message) -> Message:
    text = "\x1b[31mboom\n" * 100_000
    return Message(Error(2, text), reply_to=message) if message.metadata.message_type == "train" else reply


def of_another(message: Message, reply: Message) -> Message:
    """A reply from a node id that was not asked."""
    if message.metadata.message_type == "train":
        reply.metadata.__dict__["_src_node_id"] = 99
    return reply


NOT_SOUND: dict[str, Answer] = {
    "giant": changed(vector(np.zeros(3_000_000, np.float32))),
    "short": changed(vector(np.zeros(3, np.float32))),
    "nan": changed(vector(np.full(SIZE, np.nan, np.float32))),
    "infinite": changed(vector(np.full(SIZE, np.inf, np.float32))),
    "double": changed(vector(np.zeros(SIZE))),
    "integers": changed(vector(np.zeros(SIZE, np.int64))),
    "matrix": changed(vector(np.zeros((1, SIZE), np.float32))),
    "lying shape": changed(vector(np.zeros(3, np.float32), shape=(SIZE,))),
    "lying type": changed(vector(np.zeros(SIZE), dtype="float32")),
    "no bytes": changed(vector(np.zeros(SIZE, np.float32), data=b"")),
    "another form": changed(vector(np.zeros(SIZE, np.float32), stype="pickle")),
    "no update": changed(lambda records: records.pop("update")),
    "no metrics": changed(lambda records: records.pop("metrics")),
    "one record more": changed(lambda records: records.update(more=ConfigRecord({"a": 1}))),
    "other key": changed(lambda records: records.update(update=ArrayRecord({"other": records["update"]["vector"]}))),
    "metrics are arrays": changed(lambda records: records.update(metrics=records["update"])),
    "negative rows": changed(figures(num_examples=-5)),
    "huge rows": changed(figures(num_examples=10**15)),
    "one metric more": changed(figures(mine=1.0)),
    "a list": changed(figures(loss=[1.0, 2.0])),
    "infinite loss": changed(figures(loss=math.inf)),
    "a sum": changed(figures(summed=1)),
    "half a step": changed(figures(steps=1.5)),
    "more steps than a record can hold": changed(figures(steps=1e30)),
    "a long error": long_error,
    "of another node": of_another,
}


@pytest.mark.parametrize("name", NOT_SOUND)
def test_a_reply_that_is_not_sound_is_its_nodes_failure(tmp_path: Path, name: str) -> None:
    """The others' model comes to the same bits as without that node, and the record says why in one printable line."""
    job = small.job({"rounds": 1, "evaluate.clients_every": 0})
    grid = FlowerGrid(job, odd={HOSTILE: NOT_SOUND[name]})
    result = deployed(job, tmp_path / "odd", grid=grid)
    missing = FlowerGrid(job)
    missing.away = {HOSTILE}
    assert result.fingerprint == deployed(job, tmp_path / "away", grid=missing).fingerprint
    with closing(open_run(tmp_path / "odd")) as records:
        rows = records.clients(round=1)
    assert [row.client for row in rows if row.status == "failed"] == [HOSTILE]
    (reason,) = [str(row.error) for row in rows if row.status == "failed"]
    assert reason.isprintable() and len(reason) < 500 and reason.startswith("round 1, node-1: ")


SHORT = st.text(max_size=5)
ODD_RECORD = st.one_of(
    st.builds(MetricRecord, st.dictionaries(SHORT, st.floats() | st.integers(-(2**63), 2**63 - 1), max_size=3)),
    st.builds(ConfigRecord, st.dictionaries(SHORT, st.text() | st.binary() | st.booleans(), max_size=3)),
    st.builds(
        lambda name, dtype, shape, stype, data: ArrayRecord({name: Array(dtype, tuple(shape), stype, data)}),
        st.sampled_from(["vector", "other"]),
        st.sampled_from(["float32", "float64", "|O", "nonsense"]),
        st.lists(st.integers(-1, 2**40), max_size=3),
        st.sampled_from(["numpy.ndarray", "", "pickle"]),
        st.binary(max_size=200),
    ),
)
DESCRIBED = description(small.job(), 0)["description"]
NAMES = st.sampled_from(["update", "metrics", "arrays", "config", ""])


@settings(max_examples=150, deadline=None)
@given(records=st.dictionaries(NAMES, ODD_RECORD, max_size=3), kind=st.sampled_from(["train", "evaluate"]))
def test_no_content_raises_anything_but_that_it_is_not_sound(records: dict[str, Any], kind: str) -> None:
    """Checking is the server's own code on a stranger's bytes: it never fails otherwise, and these never count."""
    message = Message(RecordDict({"config": ConfigRecord({"reply": "update", "part": "validation"})}), 7, kind)
    with pytest.raises(Unsound):
        expected().content(message, 0, Message(RecordDict(records), reply_to=message))


@settings(max_examples=60, deadline=None)
@given(
    odd=st.dictionaries(st.integers(0, 4), st.sampled_from(sorted(NOT_SOUND.keys() - {"giant"})), max_size=5),
)
def test_aggregation_counts_the_sound_ones_alone(odd: dict[int, str]) -> None:
    """Through grid and strategy: never an exception, and exactly the honest nodes' rounds are accepted."""
    job = the_job()
    grid = workforce(FlowerGrid(job, odd={number: NOT_SOUND[name] for number, name in odd.items()}))
    server = the_server()
    strategy, remote = strategy_for(Work(server)), grid.grid(server)
    work = Work(server)
    messages = strategy.configure_train(1, to_record(work.layout, work.initial), ConfigRecord(), remote)
    replies = strategy.received(1, remote.send_and_receive(messages))
    strategy.aggregate_train(1, replies)
    assert [bool(round) for round in strategy.accepted] == [number not in odd for number in range(5)]


@cache
def the_job() -> Any:
    return small.job({"evaluate.clients_every": 0})


@cache
def the_server() -> Any:
    return server_job(the_job())


@cache
def expected() -> Expected:
    return Expected.of(Work(the_server()))


@settings(max_examples=150, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(sorted(DESCRIBED)), st.one_of(st.text(), st.integers(), st.floats())),
    records=st.dictionaries(st.sampled_from(["description", "metrics"]), ODD_RECORD, max_size=1),
)
def test_no_description_raises_anything_but_that_it_cannot_be_read(
    changes: dict[str, Any], records: dict[str, Any]
) -> None:
    """It is the first thing that a stranger says; what is taken over is of the right form."""
    content = description(the_job(), 0)
    said = content["description"]
    for name, value in changes.items():
        said[name] = value
    try:
        found = Description.of(RecordDict({**content, **records}))
    except DeployError:
        return
    assert not records
    assert all(isinstance(count, int) and count >= 0 for count in (found.train, found.validation, found.test))
    json.dumps(found.decisive)


def test_what_a_private_node_keeps_to_itself_is_filled_in(tmp_path: Path) -> None:
    """Under privacy loss, norm and time do not leave: the norm is measured here, the rest is unknown; bits stay."""
    job = small.job({**small.PRIVATE, "rounds": 1, "evaluate.clients_every": 0, "data.partition.clients": 3})
    quiet = changed(figures(loss=None, norm=None, seconds=None, steps=None, num_examples=None))
    result = deployed(job, tmp_path / "quiet", grid=FlowerGrid(job, odd=dict.fromkeys(range(3), quiet)))
    assert result.fingerprint == simulated(job, tmp_path / "here").fingerprint
    with closing(open_run(tmp_path / "quiet")) as ours, closing(open_run(tmp_path / "here")) as theirs:
        told, known = ours.clients(round=1), theirs.clients(round=1)
    assert [row.loss for row in told] == [None] * 3
    assert [row.norm for row in told] == pytest.approx([row.norm for row in known], rel=1e-6)
    assert [(row.rows, row.steps) for row in told] == [(row.rows, row.steps) for row in known]


def test_a_lie_about_measures_is_that_nodes_failure(tmp_path: Path) -> None:
    """Sums of the wrong length, of other rows than declared or not finite never reach a metric or a stop rule."""
    job = small.job({"rounds": 1})

    def measures(change: Callable[[dict[str, Any]], None]) -> Answer:
        def answer(message: Message, reply: Message) -> Message:
            if message.metadata.message_type != "evaluate":
                return reply
            told: dict[str, Any] = dict(reply.content["metrics"])
            change(told)
            return with_content(reply, RecordDict({"metrics": MetricRecord(told)}))

        return answer

    lies: list[Callable[[dict[str, Any]], None]] = [
        lambda told: told.update({"stat/loss": [math.nan]}),
        lambda told: told.update({"stat/loss": [1e300]}),
        lambda told: told.update({"stat/confusion": [1.0]}),
        lambda told: told.update({"stat/rows": [1e6]}),
        lambda told: told.pop("stat/rows"),
    ]
    grid = FlowerGrid(job, odd={number: measures(lie) for number, lie in enumerate(lies)})
    deployed(job, tmp_path / "run", grid=grid)
    with closing(open_run(tmp_path / "run")) as records:
        rows = [row for row in records.clients(round=1) if row.phase == "evaluate"]
    assert rows and all(row.status == "failed" for row in rows)


@settings(max_examples=50, deadline=None)
@given(st.text() | st.none() | st.integers())
def test_what_a_node_says_becomes_one_short_printable_line(text: object) -> None:
    line = plain(text)
    assert len(line) <= 300 and (line.isprintable() or not line)


@pytest.mark.parametrize(("value", "believed"), [(5, 5), (-1, None), (2**62, None), (1.5, None), ([1], None)])
def test_a_counter_is_believed_in_the_right_form_alone(value: Any, believed: int | None) -> None:
    message = Message(RecordDict(), 7, "train")
    reply = Message(RecordDict({"metrics": MetricRecord({"counter": value})}), reply_to=message)
    assert counter_of(reply) == believed


def test_counters_of_ledgers_go_back_to_their_nodes(tmp_path: Path) -> None:
    """The largest that was seen stands in the node's next message, so that a restored backup is noticed."""
    job, memory = small.job({"rounds": 2, "evaluate.clients_every": 0}), Memory()
    grid = FlowerGrid(job, odd={0: changed(figures(counter=41))})
    server = server_job(job)
    with create_folder(server, tmp_path / "run") as folder:
        execute(server, workforce(grid, memory), folder, Silent())
    told = [
        message.content["config"]["counter"] for message in grid.asked if message.metadata.dst_node_id == grid.ids[0]
    ]
    assert told == [0, 41] and memory.seen == {"node-0": 41}
