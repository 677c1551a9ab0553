"""The grid's contract, inline and on Ray: one reply per message, in order, and a chunk's sum in its last reply."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedsim.engine import Engine
from fedsim.flower import AlgorithmStrategy
from fedsim.grid import CLIENT_FAILED, FIRST_NODE, NumberedGrid
from fedsim.job import Job
from fedsim.local import Work
from fedsim.parameters import to_record
from tests import small

if TYPE_CHECKING:
    pass

CHUNKS = [0, 0, 1, 1]


@pytest.fixture(scope="module")
def job() -> Job:
    """Four clients; a step of the odd one cannot be taken."""
    return small.job(small.POINTS, data=small.points(3e38))


@pytest.fixture(scope="module")
def work(job: Job) -> Work:
    return Work(job)


@pytest.fixture
def grid(engine: Engine, job: Job) -> NumberedGrid:
    return engine.grid(job)


def message(work: Work, client: int, reply: str, arrays: ArrayRecord | None = None, **more: Any) -> Message:
    arrays = arrays if arrays is not None else to_record(work.layout, work.initial)
    config = ConfigRecord({"server-round": 1, "reply": reply, "chunk": CHUNKS[client], "weight": 2.0, **more})
    return Message(RecordDict({"arrays": arrays, "config": config}), client + FIRST_NODE, "train")


def vector(reply: Message) -> torch.Tensor:
    return torch.from_numpy(reply.content.array_records["update"]["vector"].numpy())


def test_every_message_has_its_reply_in_order(grid: NumberedGrid, work: Work) -> None:
    """Also a failing client's: its reply is an error with the reason."""
    messages = [message(work, client, "update") for client in (3, 2, 1, 0)]
    replies = grid.send_and_receive(messages)
    assert [reply.metadata.src_node_id for reply in replies] == [client + FIRST_NODE for client in (3, 2, 1, 0)]
    assert [reply.metadata.reply_to_message_id for reply in replies] == [m.metadata.message_id for m in messages]
    assert [reply.has_error() for reply in replies] == [False, True, False, False]
    assert replies[1].error.code == CLIENT_FAILED
    assert "round 1, client 2" in str(replies[1].error.reason)


def test_a_chunks_sum_is_in_its_last_sound_reply(grid: NumberedGrid, work: Work) -> None:
    """Weighted, without the failing client; the other replies carry metrics alone."""
    arrays = to_record(work.layout, work.initial)
    single = {
        client: vector(grid.send_and_receive([message(work, client, "update", arrays)])[0]) for client in (0, 1, 3)
    }
    replies = grid.send_and_receive([message(work, client, "sum", arrays) for client in range(4)])
    assert ["update" in reply.content if reply.has_content() else None for reply in replies] == [
        False,
        True,
        None,
        True,
    ]
    assert torch.equal(vector(replies[1]), 2.0 * single[0] + 2.0 * single[1])
    assert torch.equal(vector(replies[3]), 2.0 * single[3])
    assert all("metrics" in reply.content for reply in replies if reply.has_content())


def test_no_messages_no_replies(grid: NumberedGrid) -> None:
    """Strategies may configure nothing, and an empty Poisson cohort is a round too."""
    assert grid.send_and_receive([]) == []


def test_without_messages_nothing_is_begun(grid: NumberedGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would ever pull it, so that every round would leave an engine one more batch to look through."""
    begun: list[object] = []
    monkeypatch.setattr(grid, "begin", begun.append)
    assert grid.push_messages([]) == [] and not begun


def test_a_message_with_arrays_that_do_not_fit_is_an_error_reply(grid: NumberedGrid, work: Work) -> None:
    other = ArrayRecord({"weight": next(iter(to_record(work.layout, work.initial).values()))})
    (reply,) = grid.send_and_receive([message(work, 0, "update", other)])
    assert reply.has_error()
    assert "do not match its layout" in str(reply.error.reason)


def test_replies_do_not_share_arrays(grid: NumberedGrid, work: Work) -> None:
    """Some of Flower's strategies pop arrays out of replies."""
    arrays = to_record(work.layout, work.initial)
    replies = grid.send_and_receive([message(work, client, "model", arrays) for client in (0, 1)])
    names = list(arrays)
    replies[0].content.array_records["arrays"].pop(names[0])
    assert list(replies[1].content.array_records["arrays"]) == names
    assert list(arrays) == names


def test_nodes_are_clients_from_two_on(grid: NumberedGrid) -> None:
    """Flower keeps ids 0 and 1 for itself."""
    assert grid.get_node_ids() == [2, 3, 4, 5]


def test_pushed_messages_can_be_pulled_once(grid: NumberedGrid, work: Work) -> None:
    names = grid.push_messages([message(work, client, "update") for client in (0, 1)])
    assert [reply.metadata.src_node_id for reply in grid.pull_messages(names)] == [2, 3]
    assert grid.pull_messages(names) == []


def test_messages_without_a_chunk_are_answered_alone(grid: NumberedGrid, work: Work) -> None:
    """As stock strategies send them: the reply is the client's whole model."""
    sent = [message(work, client, "model") for client in (0, 1)]
    for each in sent:
        del each.content.config_records["config"]["chunk"]
    replies = grid.send_and_receive(sent)
    assert all(
        set(reply.content.array_records["arrays"]) == set(to_record(work.layout, work.initial)) for reply in replies
    )


def test_two_jobs_share_an_engine_one_after_the_other(engine: Engine, tmp_path: Path) -> None:
    """A new job's grid replaces what the workers did before; nothing of the old one is left."""
    jobs = [small.job({"rounds": 1, "model.hidden": [size]}) for size in (4, 8, 4)]
    results = [small.run(job, tmp_path / str(number), engine) for number, job in enumerate(jobs)]
    assert results[0].fingerprint == results[2].fingerprint
    assert len(results[1].weights.vector) > len(results[0].weights.vector)


def test_states_stay_with_the_grid(engine: Engine) -> None:
    """Two rounds of SCAFFOLD: a fresh grid knows no controls, so its second round comes out otherwise."""
    of = Work(small.job({"strategy": {"name": "scaffold"}}))
    results = []
    for fresh in (False, True):
        strategy, grid = AlgorithmStrategy(of), engine.grid(of.job)
        arrays = to_record(of.layout, of.initial)
        for number in (1, 2):
            grid = engine.grid(of.job) if fresh else grid
            messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
            aggregated, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
            assert aggregated is not None
            arrays = aggregated
        results.append(strategy.weights.vector)
    assert not torch.equal(*results)
