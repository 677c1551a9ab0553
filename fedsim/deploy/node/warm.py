"""The process at a node that works: torch, the rows and the last job stay loaded from one message to the next.

It has no connection but a socket pair to the process that started it (`supervise.py`), from which messages come and to
which answers go, one at a time, in the main thread, where the alarm clock of `cohort.client_timeout` rings.
"""

import argparse
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from flwr.app import Message

from fedsim.errors import FedsimError, one_line


class Ready(NamedTuple):
    """The process has started, or why it has not, in one line."""

    problem: str | None


class Work(NamedTuple):
    """A message and the bundle of its run."""

    message: Message
    fab: bytes


class Done(NamedTuple):
    """The answer to a message, and a line of it for the owner."""

    reply: Message
    line: str


def main() -> None:
    """Work until the other end is closed; `hands.Worker` starts it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("descriptor", type=int)
    parser.add_argument("--seeded-coins", action="store_true")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it says when to end
    with Connection(given.descriptor) as connection:
        serve(connection, lambda: _answerer(given.folder, given.data, seeded_coins=given.seeded_coins))


def serve(connection: Connection, start: Callable[[], Callable[[Work], Done]]) -> None:
    """Say that the process is ready, then answer what comes.

    Args:
        connection: to the process that hands on messages.
        start: loads what is needed, and gives what answers a message.
    """
    try:
        answer = start()
    except Exception as error:
        connection.send(Ready(str(error) if isinstance(error, FedsimError) else one_line(error)))
        return
    connection.send(Ready(None))
    while True:
        try:
            work = connection.recv()
        except (EOFError, ConnectionError):
            return
        connection.send(answer(work))


def _answerer(folder: Path, data: Path, *, seeded_coins: bool) -> Callable[[Work], Done]:
    import torch

    from fedsim.deploy.node.handling import Node

    torch.set_num_threads(1)  # as in every simulation: more would bracket sums otherwise
    node = Node.open(folder, data, seeded_coins=seeded_coins)
    node.bench.load()

    def answer(work: Work) -> Done:
        told = node.answer(work.message, work.fab)
        return Done(told.reply, told.line)

    return answer
