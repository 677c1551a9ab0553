"""Flower's Grid in this process, whose nodes do a job's work by the ClientApp: a SuperLink without processes.

Node ids are large and in no order, replies come in any, and everything is bytes in between, as between machines.
"""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsim.arrays import sendable
from fedsim.deploy.described import Description, federation_of
from fedsim.deploy.remote import Member, Post, RemoteWorkforce
from fedsim.engine.inline import InlineEngine
from fedsim.grid import RunGrid, with_content
from fedsim.job import Job, prepare_on
from fedsim.local import Work
from fedsim.progress import Silent
from fedsim.rounds import create_folder, execute
from fedsim.summary import Result
from fedsim.worker import client_app

RUN = 77
Answer = Callable[[Message, Message], Message | None]
"""What a node sends, of the message and its honest reply; None for nothing."""


class FlowerGrid(RunGrid):
    """Nodes that answer when they are asked for it; what one sends instead of its answer can be chosen."""

    def __init__(self, job: Job, *, odd: dict[int, Answer] | None = None, metrics: bool = True) -> None:
        """Nodes that hold the clients' rows of a job.

        Args:
            job: of which node n has client n.
            odd: what a client's node sends instead, by its number.
            metrics: whether owners let what nodes measure leave.
        """
        super().__init__(Run.create_empty(RUN))
        self.metrics = metrics
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 1, 1
        draw = random.Random(job.federation.clients)
        self.job, self.ids = job, draw.sample(range(2, 2**62), job.federation.clients)
        self.away: set[int] = set()
        self.asked: list[Message] = []
        work = Work(job)
        self._app, self._odd = client_app(lambda: work), odd or {}
        self._contexts = [
            Context(RUN, node, {"partition-id": number}, RecordDict(), {}) for number, node in enumerate(self.ids)
        ]
        self._replies: dict[str, Message] = {}

    def get_node_ids(self) -> list[int]:
        return [node for number, node in enumerate(self.ids) if number not in self.away]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        names = []
        for message in messages:
            names.append(f"{len(self.asked)}-{random.random()}")
            message.metadata.__dict__["_message_id"] = names[-1]
            self.asked.append(message)
            number = self.ids.index(message.metadata.dst_node_id)
            travelled = with_content(message, sendable(message.content))
            reply: Message | None = self._answered(number, travelled)
            if number in self._odd:
                assert reply is not None
                reply = self._odd[number](travelled, reply)
            if reply is not None:
                self._replies[names[-1]] = reply
        return names

    def _answered(self, number: int, message: Message) -> Message:
        if message.metadata.message_type == "query.describe":
            return Message(sendable(description(self.job, number, metrics=self.metrics)), reply_to=message)
        try:
            reply = self._app(message, self._contexts[number])
        except Exception as error:
            return Message(Error(2, str(error)), reply_to=message)
        return with_content(reply, sendable(reply.content))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))


class Memory:
    """Counters in memory."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def counter(self, name: str) -> int:
        return self.seen.get(name, 0)

    def saw(self, name: str, counter: int) -> None:
        self.seen[name] = max(counter, self.counter(name))


def description(job: Job, client: int, *, metrics: bool = True) -> RecordDict:
    """What a node that holds a client's rows says of them."""
    federation = job.federation
    counts: dict[str, Any] = {
        f"rows-{part}": int(federation.sizes(part)[client]) for part in ("train", "validation", "test")
    }
    said: dict[str, Any] = {
        "fedsim": "0.1.0",
        "flwr": "1.42.0",
        "x-shape": list(federation.x.shape[1:]),
        "x-type": str(federation.x.dtype),
        "y-shape": list(federation.y.shape[1:]),
        "y-type": str(federation.y.dtype),
        "task": federation.task,
        "classes": list(federation.classes),
        "vocabulary": -1 if federation.vocabulary is None else federation.vocabulary,
        "preprocessing": json.dumps(dict(federation.preprocessing)),
        "group-name": federation.group_name,
        "metrics": metrics,
        "counter": 0,
    }
    figures = {**counts, "units": int(federation.train_units()[client])}
    return RecordDict({"description": ConfigRecord(said), "metrics": MetricRecord(figures)})


def server_job(job: Job, *, metrics: bool = True, central: bool = True) -> Job:
    """The job as a server has it that knows of clients' rows what their nodes say."""
    clients = range(job.federation.clients)
    described = [Description.of(description(job, client, metrics=metrics)) for client in clients]
    names = [f"node-{client}" for client in clients]
    sets = job.federation.central if central else None
    federation = federation_of(names, described, sets, corpus=job.federation.corpus, measured=metrics)
    return prepare_on(federation, job.scenario, job.model)


def workforce(grid: FlowerGrid, memory: Memory | None = None, limit: float = 60.0) -> RemoteWorkforce:
    """The grid's nodes, for the loop."""
    members = [Member(f"node-{number}", node) for number, node in enumerate(grid.ids)]
    told = {"assignment": "0" * 64, "run": "0" * 16, "fedsim": "0.1.0"}
    return RemoteWorkforce(Post(grid, limit, pause=0.001, patience=0.01), members, told, memory or Memory())


def deployed(job: Job, out: Path, *, grid: FlowerGrid | None = None, metrics: bool = True) -> Result:
    """The run of a job over the grid's nodes."""
    server = server_job(job, metrics=metrics)
    with create_folder(server, out) as folder:
        return execute(server, workforce(grid or FlowerGrid(job)), folder, Silent())


def simulated(job: Job, out: Path) -> Result:
    """The run of a job in this process."""
    with create_folder(job, out) as folder:
        return execute(job, InlineEngine(), folder, Silent())
