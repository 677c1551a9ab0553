"""Our strategies and clients speak Flower: with its strategies, on grids we did not make, in its simulation."""

import os
import random
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedMedian, Strategy
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fedsim import registry
from fedsim.engine.inline import InlineGrid
from fedsim.errors import ScenarioError
from fedsim.flower import AlgorithmStrategy, central_block, central_messages
from fedsim.grid import FIRST_NODE, setting
from fedsim.local import Work
from fedsim.parameters import Weights, fingerprint, from_record, to_record
from fedsim.states import ContextStates
from fedsim.worker import client_app
from tests import flower_simulation, small
from tests.strategies.exchange import SUITED, of

ROOT = Path(__file__).resolve().parent.parent
STRATEGIES = registry.members("fedsim.strategies")


@cache
def work(name: str) -> Work:
    """Eight clients, of whom seven are in a cohort: as many as Bulyan needs."""
    partition = {"kind": "dirichlet", "clients": 8, "alpha": 0.5}
    size = {} if of(name).pooled else {"cohort.size": 7}
    return Work(
        small.job(
            {"strategy": {"name": name}, "data.partition": partition, "train.steps": 3, **size, **SUITED.get(name, {})}
        )
    )


def ours(name: str, grid: Grid | None = None) -> Weights:
    """Three rounds by the strategy's own `start`, as Flower runs it."""
    grid = grid or InlineGrid(work(name).job)
    strategy = AlgorithmStrategy(work(name))
    arrays = strategy.start(grid, to_record(work(name).layout, work(name).initial), num_rounds=3).arrays
    return from_record(work(name).layout, arrays)


class Nodes(Grid):
    """A grid as Flower might have one: odd node ids, no chunks, replies in any order, contexts at the nodes."""

    def __init__(self, name: str, clients: int) -> None:
        self.app = client_app(lambda: work(name))
        self.contexts = {
            1000 + 7 * number: Context(1, 1000 + 7 * number, {"partition-id": number}, RecordDict(), {})
            for number in range(clients)
        }
        self.ids = InlineGrid(work(name).job)  # gives messages the ids that replies refer to

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for position, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = f"{position}"
            replies.append(self.app(message, self.contexts[message.metadata.dst_node_id]))
        return replies[::-1]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        raise NotImplementedError

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return self.ids.run


@pytest.mark.parametrize("name", STRATEGIES)
def test_any_grid_gives_the_bits_of_ours(name: str) -> None:
    """Single updates are folded with the brackets of chunks, and states in Contexts follow the same rule."""
    clients = work(name).federation.clients
    assert fingerprint(ours(name, Nodes(name, clients))) == fingerprint(ours(name))


def test_a_client_without_a_node_is_named() -> None:
    with pytest.raises(ScenarioError, match="clients 6, 7 have no node"):
        ours("fedavg", Nodes("fedavg", 6))


def test_flowers_own_simulation_gives_the_bits_of_ours(tmp_path: Path) -> None:
    """FedAvg, and SCAFFOLD with its controls in Context.state, in Flower's actors."""
    done = subprocess.run(
        [sys.executable, "-c", "from tests.flower_simulation import main; main()"],  # not -m: its actors import it
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=250,
        env={**os.environ, "FLWR_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )
    printed = [line.split() for line in done.stdout.splitlines()]
    for name in flower_simulation.NAMES:
        inline = small.run(small.job(flower_simulation.changes(name)), tmp_path / name)
        assert [name, inline.fingerprint] in printed, done.stderr[-2000:]


def stock_start(strategy: Strategy, of: Work) -> Weights:
    arrays = strategy.start(InlineGrid(of.job), to_record(of.layout, of.initial), num_rounds=3).arrays
    return from_record(of.layout, arrays)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_flowers_fedavg_on_our_grid_agrees_with_ours(norm: str) -> None:
    """The clients send models, as stock strategies need; buffers of batch norm are averaged too."""
    of = Work(small.job({"model": {"name": "cnn", "preset": "small", "norm": norm}}))
    found = stock_start(FedAvg(fraction_train=1.0, fraction_evaluate=1.0), of)
    strategy = AlgorithmStrategy(of)
    strategy.start(InlineGrid(of.job), to_record(of.layout, of.initial), num_rounds=3)
    for mine, theirs, start in zip(strategy.weights, found, of.initial, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * max(float((mine - start).norm()), 1e-12)


def test_a_stock_strategy_that_takes_replies_apart_can_run() -> None:
    """FedMedian pops arrays out of replies and samples by itself, from the global generator."""
    random.seed(0)
    of = work("fedavg")
    found = stock_start(FedMedian(fraction_train=0.6, fraction_evaluate=0.6), of)
    assert torch.isfinite(found.vector).all()
    assert not torch.equal(found.vector, of.initial.vector)


def test_stock_strategies_see_metrics_of_clients() -> None:
    """The server's result has clients' training loss and validation rows, weighted by Flower."""
    of = work("fedavg")
    result = FedAvg(fraction_train=1.0, fraction_evaluate=1.0).start(
        InlineGrid(of.job), to_record(of.layout, of.initial), num_rounds=2
    )
    losses = [float(result.train_metrics_clientapp[number]["loss"]) for number in (1, 2)]  # type: ignore[arg-type]
    assert losses[1] < losses[0]
    assert "stat/rows" in result.evaluate_metrics_clientapp[2]


def test_the_order_of_replies_does_not_matter() -> None:
    """They are folded by client number."""
    of = work("scaffold")
    results = []
    for step in (1, -1):
        strategy, grid = AlgorithmStrategy(of), InlineGrid(of.job)
        messages = strategy.configure_train(1, to_record(of.layout, of.initial), ConfigRecord(), grid)
        strategy.aggregate_train(1, grid.send_and_receive(messages)[::step])
        results.append(strategy.weights)
    assert fingerprint(results[0]) == fingerprint(results[1])


def test_a_round_that_nobody_survives_changes_nothing() -> None:
    of = work("fedavg")
    strategy, grid = AlgorithmStrategy(of), InlineGrid(of.job)
    strategy.configure_train(1, to_record(of.layout, of.initial), ConfigRecord(), grid)
    assert strategy.aggregate_train(1, []) == (None, None)
    assert torch.equal(strategy.weights.vector, of.initial.vector)


@pytest.mark.parametrize("name", ["scaffold", "fedrep"])
def test_a_state_whose_round_was_not_accepted_is_lost(name: str) -> None:
    """A node that trained in a round which the server then gave up answers as if that round had not been."""
    of = work(name)
    app = client_app(lambda: of)

    def reply(context: Context, number: int, accepted: int) -> bytes:
        strategy = AlgorithmStrategy(of)
        messages = strategy.configure_train(number, to_record(of.layout, of.initial), ConfigRecord(), Nodes(name, 8))
        message = messages[0]
        message.metadata.__dict__["_message_id"] = "1"
        message.content.config_records["config"]["accepted-round"] = accepted
        answer = app(message, context)
        return bytes(answer.content.array_records["update"]["vector"].data)

    def context() -> Context:
        return Context(1, 1000, {"partition-id": 0}, RecordDict(), {})

    kept, fresh = context(), context()
    reply(kept, 1, 0)
    assert reply(kept, 2, 0) == reply(fresh, 2, 0)
    assert reply(kept, 3, 2) != reply(context(), 3, 0)


def test_context_states_survive_as_flower_keeps_them() -> None:
    """Only records of Flower's own types are in Context.state, which a node may write to disk."""
    context = Context(1, 2, {"partition-id": 0}, RecordDict(), {})
    state = {"control": torch.arange(4.0), "other": torch.zeros(2, dtype=torch.float64)}
    ContextStates(context).put(0, 5, state)
    assert {type(record) for record in context.state.values()} <= {ArrayRecord, ConfigRecord, MetricRecord}
    back = ContextStates(context).get(0, 5)
    assert back is not None
    assert all(torch.equal(back[key], state[key]) and back[key].dtype == state[key].dtype for key in state)


def test_flowers_private_names_are_where_we_use_them() -> None:
    """`fedsim/grid.py` leans on three private names of Flower. When a new version of Flower fails here, look at:

    - TaskIdentity: do `Message(...)`s still read run, node and task ids from it?
    - Run.create_empty: what a Grid's `run` gives back; strategies do not read it.
    - Metadata's "_message_id": does `Message(reply_to=...)` still copy it into reply_to_message_id?

    Then run this file against the new version, and widen the range of flwr in pyproject.toml.
    """
    assert version("flwr").startswith(("1.41.", "1.42.")), "a version of Flower that pyproject.toml does not allow"
    grid = InlineGrid(work("fedavg").job)
    assert (TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id) == (1, 1, 1)
    assert isinstance(grid.run, Run)
    message = Message(RecordDict(), FIRST_NODE, "query")
    assert message.metadata.src_node_id == TaskIdentity.node_id
    assert "_message_id" in message.metadata.__dict__
    (reply,) = grid.send_and_receive([message])
    assert message.metadata.message_id
    assert reply.metadata.reply_to_message_id == message.metadata.message_id
    assert reply.metadata.src_node_id == FIRST_NODE


@given(st.integers(0, 3000), st.integers(1, 600))
def test_many_workers_may_share_in_measuring_a_central_set(rows: int, most: int) -> None:
    """Every row is in one message; there are eight blocks or more, or as many as have 50 rows."""
    InlineGrid(work("fedavg").job)  # Flower makes no message before a grid is there
    messages = central_messages(ArrayRecord(), "test", rows, most)
    spans = [(int(setting(each, "start", -1)), int(setting(each, "stop", -1))) for each in messages]
    assert [row for start, stop in spans for row in range(start, stop)] == list(range(rows))
    block = central_block(rows, most)
    assert all(0 < stop - start <= block <= most for start, stop in spans)
    assert block >= min(rows, most, 50)
    assert len(spans) >= min(8, rows // 50)
