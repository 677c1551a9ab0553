"""A round of a strategy with uploads that a test makes up: what its server does shows without any training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedsim.algorithm import Algorithm
from fedsim.arrays import encode
from fedsim.composition import algorithm_of
from fedsim.errors import ScenarioError
from fedsim.flower import AlgorithmStrategy
from fedsim.grid import CLIENT_FAILED, Begun, Chunk, NumberedGrid, client_number, failure
from fedsim.job import Job
from fedsim.local import Work
from fedsim.parameters import to_record
from fedsim.registry import members
from tests import small

CLIENTS = 8
"""Enough for Bulyan against one attacker, which needs seven."""
NAMES = members("fedsim.strategies")
SUITED: Mapping[str, small.Changes] = {"fedbn": {"model": {"name": "cnn", "preset": "small", "norm": "batch"}}}
"""What a strategy needs of the rest of a scenario."""
Parts = tuple[str, str | None, str | None]
"""An algorithm, and whose combiner and server half it has."""


@cache
def job(name: str) -> Job:
    """A few clients of digits under a strategy."""
    base = {"data.partition": {"kind": "dirichlet", "clients": CLIENTS, "alpha": 0.5}, "train.steps": 3}
    base |= {"model": {"name": "mlp", "hidden": [4]}}
    return small.job({**base, "strategy": {"name": name}, **SUITED.get(name, {})})


@cache
def work(name: str) -> Work:
    """This process' work on it."""
    return Work(job(name))


def parted(parts: Parts) -> Job | None:
    """The job of a combination; None where it is refused."""
    name, combine, server = parts
    table = {"name": name, **({"combine": {"name": combine}} if combine else {})}
    table |= {"server": {"name": server}} if server else {}
    scenario = job(name).scenario.changed({"strategy": table})
    try:
        algorithm_of(scenario)
    except ScenarioError:
        return None
    return replace(job(name), scenario=scenario)


def of(name: str) -> Algorithm:
    """A strategy with its defaults."""
    return work(name).algorithm


class Nobody(NumberedGrid):
    """A grid whose clients never do anything."""

    def begin(self, chunks: Sequence[Chunk]) -> Begun:
        """Nothing is ever sent."""
        raise AssertionError("replies are made up here")


class Server:
    """A strategy's server, and uploads by client number in the place of training.

    Attributes:
        strategy: ours, as a Flower Strategy.
    """

    def __init__(self, on: Work) -> None:
        self.on, self.strategy = on, AlgorithmStrategy(on)
        self.grid = Nobody(on.job.federation.clients)
        self._round = 0

    def messages(self) -> list[Message]:
        """What the next round sends."""
        self._round += 1
        record = to_record(self.on.layout, self.strategy.weights)
        messages = self.strategy.configure_train(self._round, record, ConfigRecord(), self.grid)
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(client_number(message))
        return messages

    def round(self, uploads: Mapping[int, Tensor | str], order: int = 1) -> Tensor:
        """The global model [D] after a round.

        Args:
            uploads: each client's contribution [D + E + extras], or what its reply is instead: "error" or "nothing".
            order: -1 hands the replies over from the last to the first.
        """
        replies = [self._reply(message, uploads[client_number(message)]) for message in self.messages()]
        self.strategy.aggregate_train(self._round, self.strategy.received(self._round, replies[::order]))
        return self.strategy.server.params

    def _reply(self, message: Message, upload: Tensor | str) -> Message:
        if upload == "error":
            return failure(message, CLIENT_FAILED, "it failed")
        figures: dict[str, int | float] = {"num-examples": 10, "loss": 1.0, "norm": 1.0, "steps": 1, "seconds": 0.0}
        figures |= {"summed": 0, **{f"scalar/{name}": 1.5 for name in self.on.algorithm.scalars}}
        content = RecordDict({"metrics": MetricRecord({**figures})})
        if isinstance(upload, Tensor):
            content["update"] = ArrayRecord({"vector": encode(upload.numpy())})
        return Message(content, reply_to=message)


def uploads(on: Work, seed: int = 0) -> dict[int, Tensor]:
    """A made-up contribution of every client; personal coordinates are zero, as the platform cuts them out."""
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for number in range(on.job.federation.clients):
        vector = torch.randn(on.contribution_size, generator=draw)
        if on.personal is not None:
            vector[: on.layout.size][on.personal.parameters] = 0.0
        made[number] = vector if not on.algorithm.model else vector.abs()  # counts
    return made
