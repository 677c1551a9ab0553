"""A node over one client's rows of a small job, and messages as a coordinator sends them to it."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedsim.arrays import sendable
from fedsim.data import dealt
from fedsim.deploy.assignment import Assignment
from fedsim.deploy.node.handling import Node, version
from fedsim.engine.inline import InlineGrid
from fedsim.flower import AlgorithmStrategy
from fedsim.grid import begin_run, client_number, stamp, with_content
from fedsim.job import Job
from fedsim.local import Work
from fedsim.parameters import to_record
from fedsim.worker import client_app
from tests.deploy.owners import node_folder

NUMBER, RUN = 1, "00112233445566ff"
"""The client that is a node, and the run."""
DEFAULTS: dict[str, Any] = {"reply": "update", "accepted-round": 0, "weight": 1.0, "chunk": 0}


def bundle(assignment: Assignment, folder: Path, more: Mapping[str, str] | None = None) -> bytes:
    """A Flower app's bundle with an assignment, and perhaps with other files."""
    assignment.write_app(folder)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            file.writestr(str(path.relative_to(folder)), path.read_bytes())
        for name, text in (more or {}).items():
            file.writestr(name, text)
    return packed.getvalue()


class Played:
    """A job's node, and its coordinator played by the test.

    Attributes:
        folder: of the node.
        data: the node's rows.
        node: as it runs in this process.
        assignment, fab: what it is asked.
    """

    def __init__(self, job: Job, at: Path, *, rules: str = "", sources: Mapping[str, str] | None = None) -> None:
        self.job, self.data = job, at / "rows"
        dealt.write(job.federation, NUMBER, self.data)
        allowed = f"smallest_cohort = 1\nlargest_epsilon = 100.0\ndelta = 1e-5\n{rules}"
        self.folder = node_folder(at / "node", allowed).folder
        self.assignment = Assignment(job.scenario.to_toml(), sources or {})
        self.fab = bundle(self.assignment, at / "app")
        self.node = self.opened()
        begin_run()

    def opened(self, *, seeded_coins: bool = True) -> Node:
        """The node in a process that was just started."""
        return Node.open(self.folder, self.data, seeded_coins=seeded_coins)

    def told(self, message: Message, **more: Any) -> Message:
        """A message of the simulation as a coordinator sends it."""
        config = message.content["config"]
        assert isinstance(config, ConfigRecord)
        said: dict[str, Any] = {
            "assignment": self.assignment.digest,
            "run": RUN,
            "number": NUMBER,
            "clients": self.job.federation.clients,
            "counter": 0,
            "fedsim": version("fedsim"),
            **more,
        }
        said |= {name: value for name, value in config.items() if name not in said}
        content = RecordDict({**message.content, "config": ConfigRecord(said)})
        told = with_content(message, sendable(content))
        stamp(told, "a message")
        return told

    def train(self, work: Work, round: int = 1, **more: Any) -> Message:
        """A message that asks for a round from the initial model."""
        arrays, shared = to_record(work.layout, work.initial), ArrayRecord()
        config = ConfigRecord({**DEFAULTS, "server-round": round})
        content = RecordDict({"arrays": arrays, "shared": shared, "config": config})
        return self.told(Message(content, NUMBER + 2, "train"), **more)

    def ask(self, message: Message, fab: bytes | None = None) -> Message:
        """The node's reply."""
        return self.node.answer(message, self.fab if fab is None else fab).reply


class Simulated:
    """Rounds of a job in which every client answers for itself, as Flower's own ClientApp: the reference."""

    def __init__(self, job: Job) -> None:
        self.work = Work(job)
        self.strategy = AlgorithmStrategy(self.work)
        self._grid = InlineGrid(job)
        self._grid.sums = False
        self._app = client_app(lambda: self.work)
        self._contexts = {
            number: Context(1, number + 2, {"partition-id": number}, RecordDict(), {})
            for number in range(job.federation.clients)
        }

    def messages(self, round: int) -> list[Message]:
        """A round's messages."""
        arrays = to_record(self.work.layout, self.strategy.weights)
        sent = self.strategy.configure_train(round, arrays, ConfigRecord(), self._grid)
        for message in sent:
            stamp(message, f"{round}-{client_number(message)}")
        return sent

    def replies(self, messages: list[Message]) -> list[Message]:
        """What all clients of a round answer."""
        return [self._app(message, self._contexts[client_number(message)]) for message in messages]
