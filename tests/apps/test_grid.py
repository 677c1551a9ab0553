"""The grid that a ServerApp sees, used by hand in any way."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.apps import worker
from fedsim.apps.grid import AppGrid, Batch
from fedsim.apps.loading import at_hand
from fedsim.engine import Engine
from fedsim.engine.inline import InlineEngine
from tests.apps import written

CLIENT = """
import random
import time

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(msg, context):
    trace = context.state.setdefault("trace", MetricRecord({"seen": []}))
    trace["seen"] = [*trace["seen"], msg.content["config"]["step"]]
    metrics = MetricRecord({"seen": trace["seen"], "draw": random.random(), "node": context.node_id})
    sums = ArrayRecord({"sum": Array(msg.content["arrays"]["w"].numpy().sum(keepdims=True))})
    return Message(RecordDict({"metrics": metrics, "sums": sums}), reply_to=msg)


@app.query("slow")
def slow(msg, context):
    context.state["late"] = MetricRecord({"late": 1})
    time.sleep(60)


@app.query("state")
def state(msg, context):
    return Message(RecordDict({"metrics": MetricRecord({"kept": len(context.state)})}), reply_to=msg)
"""
NODES = 4
Make = Callable[[Engine], AppGrid]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An app whose clients tell all that they were sent so far."""
    return written.write(tmp_path_factory.mktemp("app"), {"tiny/client_app.py": CLIENT})


@pytest.fixture
def grid(folder: Path, engine: Engine) -> Iterator[AppGrid]:
    """A grid of it."""
    with_closing = made(folder, engine)
    yield with_closing
    with_closing.close()


def made(folder: Path, engine: Engine) -> AppGrid:
    app = worker.App(folder, "tiny.client_app:app", {}, NODES, 0)
    at_hand(folder)
    return AppGrid(NODES, engine.program(lambda: worker.program(app), lambda message: 1.0), lambda messages: None)


def message(node: int, step: int, arrays: ArrayRecord | None = None) -> Message:
    record = arrays if arrays is not None else ArrayRecord({"w": Array(np.ones(3))})
    return Message(RecordDict({"arrays": record, "config": ConfigRecord({"step": step})}), node, "train")


def seen(replies: Sequence[Message]) -> list[object]:
    return [list(reply.content["metrics"]["seen"]) for reply in replies]  # type: ignore[arg-type]


def test_a_node_does_one_message_after_another(grid: AppGrid) -> None:
    """Also where several are pushed at once, or before the reply to the first was pulled."""
    replies = grid.send_and_receive([message(2, 1), message(3, 1), message(2, 2), message(2, 3)])
    assert seen(replies) == [[1], [1], [1, 2], [1, 2, 3]]
    first, second = grid.push_messages([message(2, 4), message(4, 1)]), grid.push_messages([message(2, 5)])
    assert seen(grid.pull_messages(second)) == [[1, 2, 3, 4, 5]]
    assert seen(grid.pull_messages(first)) == [[1, 2, 3, 4], [1]]
    assert grid.pull_messages(first) == []


def test_replies_come_in_the_order_of_the_messages(grid: AppGrid) -> None:
    """Whatever the order of the ids, which programs keep in sets."""
    names = grid.push_messages([message(node, 1) for node in (5, 3, 2, 4)])
    replies = grid.pull_messages(dict.fromkeys(reversed(names)))
    assert [reply.metadata.src_node_id for reply in replies] == [5, 3, 2, 4]
    assert [reply.metadata.reply_to_message_id for reply in replies] == names
    names = [name for node in (4, 2, 5, 3) for name in grid.push_messages([message(node, 2)])]
    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages(sorted(names))] == names


def test_what_is_sent_is_what_the_record_holds_now(grid: AppGrid) -> None:
    """A record that was sent before may hold other arrays by now; what lies in the object store is the old ones."""
    record = ArrayRecord({"w": Array(np.ones(3))})
    sums = []
    for round in range(3):
        record["w"] = Array(np.full(3, float(round)))
        (reply,) = grid.send_and_receive([message(2, round, record)])
        sums.append(float(reply.content["sums"]["sum"].numpy()[0]))  # type: ignore[union-attr]
    assert sums == [0.0, 3.0, 6.0]


def test_nobody_is_at_other_nodes(grid: AppGrid) -> None:
    """Flower's error for a node that is not available; the others do their work."""
    replies = grid.send_and_receive([message(2, 1), message(77, 1), message(1, 1)])
    assert [reply.error.code if reply.has_error() else 0 for reply in replies] == [0, 5, 5]
    assert grid.send_and_receive([]) == []


def test_a_client_that_takes_too_long_does_not_hold_up_the_run(grid: AppGrid) -> None:
    """As in Flower the strategy's timeout ends the waiting, and what the client did to its context is lost."""
    began = time.monotonic()
    slow, quick = Message(RecordDict(), 2, "query.slow"), Message(RecordDict(), 3, "query.state")
    replies = grid.send_and_receive([slow, quick], timeout=0.2)
    assert [reply.error.code if reply.has_error() else 0 for reply in replies] == [4, 0]
    assert time.monotonic() - began < 30
    (state,) = grid.send_and_receive([Message(RecordDict(), 2, "query.state")])
    assert state.content["metrics"]["kept"] == 0


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_clients_draws_depend_on_its_own_messages_alone(folder: Path, data: st.DataObject) -> None:
    """Not on what other nodes are asked, nor on how messages are put together into batches."""
    grid, draws = made(folder, InlineEngine()), list[object]()
    counts = data.draw(st.lists(st.integers(2, 5), min_size=1, max_size=8))
    while counts:
        size = data.draw(st.integers(1, len(counts)))
        replies = grid.send_and_receive([message(node, 0) for node in counts[:size]])
        draws += [reply.content["metrics"]["draw"] for reply in replies if reply.metadata.src_node_id == 2]
        counts = counts[size:]
    alone = made(folder, InlineEngine()).send_and_receive([message(2, 0) for _ in draws])
    assert draws == [reply.content["metrics"]["draw"] for reply in alone]


def test_a_batch_tells_what_each_took(folder: Path) -> None:
    """For the records: seconds of every message, and of all."""
    grid, batches = made(folder, InlineEngine()), list[Batch]()
    grid.received = batches.append
    grid.send_and_receive([message(2, 1), message(3, 1)])
    (batch,) = batches
    assert len(batch.seconds) == 2
    assert 0 < sum(batch.seconds) <= batch.wall
    assert isinstance(batch.replies[0].content["metrics"], MetricRecord)
