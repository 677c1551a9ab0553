"""The warm process as its supervisor sees it: started, asked, and replaced when it dies."""

import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from flwr.app import ConfigRecord, Message

from fedsim.deploy._flower import Task, crashed
from fedsim.deploy.children import Child
from fedsim.deploy.node.warm import Done, Ready, Work
from fedsim.errors import DeployError

_LOOK = 0.1  # seconds between two looks at whether a process still lives, or all should end
Ending = Callable[[], bool]
"""Whether the node is to end."""


class Worker:
    """A warm process.

    Attributes:
        child: the process.
    """

    def __init__(self, folder: Path, data: Path, log: Path, *, seeded_coins: bool = False) -> None:
        """Start it; it takes seconds until it is ready."""
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        flags = ["--seeded-coins"] if seeded_coins else []
        program = "from fedsim.deploy.node.warm import main; main()"
        command = [sys.executable, "-P", "-c", program, str(folder), str(data), str(theirs.fileno()), *flags]
        # A scenario may name any model of the hub: what is not here already is not fetched, unless the owner says so.
        environment = {"HF_HUB_OFFLINE": "1", **os.environ, "PYTHONUNBUFFERED": "1"}
        with theirs:
            self.child = Child("the process that works", command, environment, log, [theirs.fileno()])

    def wait(self, ending: Ending) -> None:
        """Wait until it is ready.

        Raises:
            DeployError: it cannot work, and why.
        """
        came = self._received(ending)
        if isinstance(came, Ready) and came.problem is not None:
            raise DeployError(came.problem)
        if not isinstance(came, Ready) and not ending():
            raise DeployError(f"the process that works did not start {_ended(self.child)}; {_last_lines(self.child)}")

    def ask(self, message: Message, fab: bytes, ending: Ending) -> Done | str:
        """Have a message answered; where the process dies over it, or all should end, a line that says so."""
        try:
            self._connection.send(Work(message, fab))
            came = self._received(ending)
        except OSError:
            came = None
        if isinstance(came, Done):
            return came
        return "the node is being stopped" if ending() else f"the process that works died {_ended(self.child)}"

    def stop(self) -> None:
        """End it."""
        self._connection.close()
        self.child.stop(2.0)

    def _received(self, ending: Ending) -> object:
        """What it sends; None when it has died, or all should end."""
        while not ending():
            try:
                if self._connection.poll(_LOOK):
                    return self._connection.recv()
            except (EOFError, OSError):
                return None
        return None


def attend(task: Task, worker: Worker, name: str, tell: Callable[[str], None], ending: Ending) -> None:
    """Have one task answered, whatever becomes of the process that works on it.

    Args:
        task: of the SuperNode.
        worker: who answers.
        name: of the node.
        tell: is given lines for the owner.
        ending: whether all should end.
    """
    try:
        asked = task.asked()
    except DeployError as error:
        task.close()
        tell(str(error))
        return
    tell(f"asked: {_named(asked.message)}")
    done = worker.ask(asked.message, asked.fab, ending)
    if isinstance(done, str):
        line = f"failed: {_named(asked.message)}: {done}; {_last_lines(worker.child)}"
        done = Done(crashed(asked.message, f"{name}: {done}"), line)
    try:
        task.answer(asked, done.reply)
    except DeployError as error:
        tell(str(error))
    else:
        tell(done.line)


def _named(message: Message) -> str:
    """What is asked, as far as it says so itself."""
    config, kind = message.content.get("config"), message.metadata.message_type
    round = config.get("server-round") if isinstance(config, ConfigRecord) else None
    return f"{kind}, round {round}" if isinstance(round, int) and round else kind


def _ended(child: Child) -> str:
    """How a process ended."""
    with_code = child.wait(1.0)
    if with_code is None:
        return "or hangs"
    if with_code < 0:
        return f"by signal {-with_code}{', as when memory runs out' if with_code == -9 else ''}"
    return f"with exit code {with_code}"


def _last_lines(child: Child) -> str:
    """Where they are, which is the owner's business alone."""
    return f"its last lines are in {child.log}"
