"""Who does what on Ray: a worker holds a call ahead, and nobody's call waits behind a long one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedsim.engine.inline import InlineEngine
from fedsim.grid import FIRST_NODE, Begin, Chunk, ChunkProgram, ChunkResult, setting
from fedsim.replies import metrics_of
from tests import small

if TYPE_CHECKING:
    from fedsim.engine.ray import RayEngine


def sleeper() -> ChunkProgram:
    """Sleeps as long as each message says, and tells in which process."""

    def run(chunk: Chunk) -> ChunkResult:
        import os
        import time

        def reply(message: Message) -> Message:
            time.sleep(float(setting(message, "seconds", 0.0)))
            return Message(RecordDict({"metrics": MetricRecord({"process": os.getpid()})}), reply_to=message)

        return ChunkResult([reply(message) for message in chunk.messages], {})

    return run


def processes(begin: Begin, seconds: Sequence[float]) -> list[int]:
    """Where each chunk of one message was done."""
    InlineEngine().grid(small.job())  # Flower makes no message before a grid is there
    contents = [RecordDict({"config": ConfigRecord({"seconds": each})}) for each in seconds]
    chunks = [Chunk([Message(each, place + FIRST_NODE, "train")], {}) for place, each in enumerate(contents)]
    results = begin(chunks).results()
    return [int(str(metrics_of(result.replies[0])["process"])) for result in results]


def test_nobody_waits_behind_a_long_call(ray_engine: "RayEngine") -> None:
    """Whoever has it is given nothing ahead: the other one does all the rest meanwhile."""
    begin = small.with_workers(ray_engine, 2).program(sleeper, lambda sent: float(setting(sent, "seconds", 0.0)))
    for _ in range(2):  # nothing is known of the first batch but what it costs, of the second how long that takes
        long, *short = processes(begin, [1.0, *[0.02] * 8])
        assert long not in short
        assert len(set(short)) == 1


def test_both_workers_share_in_equal_calls(ray_engine: "RayEngine") -> None:
    begin = small.with_workers(ray_engine, 2).program(sleeper, lambda sent: 1.0)
    for _ in range(2):
        done = processes(begin, [0.05] * 8)
        assert sorted(done.count(process) for process in set(done)) in ([4, 4], [3, 5])
