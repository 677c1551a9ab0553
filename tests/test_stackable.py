"""How wide stacks are, and what is trained one by one instead, with its reason."""

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.data.corpus import Corpus, Folders
from fedsim.errors import ScenarioError
from fedsim.job import Job
from fedsim.resuming import resume
from fedsim.stackable import settled
from fedsim.stored import open_run
from tests import small

NOISE = {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}


def width(job: Job) -> int | None:
    return settled(job).job.scenario.engine.stack


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 1),
        ({"engine.stack": 3}, 3),
        ({"engine.stack": 100}, 5),
        ({"engine.stack": 100, "cohort.size": 2}, 2),
        ({"engine.stack": 4, "cohort.size": 1}, 1),
        ({"engine.stack": 100, "cohort.poisson": 0.1}, 5),
        ({"engine.stack": 3, "privacy.example": NOISE}, 3),
        ({"engine.stack": 3, "model": {"name": "cnn", "preset": "small"}}, 3),
    ],
)
def test_a_stack_is_as_wide_as_asked_and_at_most_a_cohort(changes: dict[str, Any], expected: int) -> None:
    """Whoever asks for nothing gets 1, on a CPU the fastest; it is in the scenario that a run keeps."""
    found = settled(small.job(changes))
    assert (found.job.scenario.engine.stack, found.reason) == (expected, "")
    assert f"stack = {expected}" in found.job.scenario.to_toml()


class Own(nn.Module):
    """A dense layer between something and the classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(self.before(x.flatten(1)))
        return logits

    def before(self, x: Tensor) -> Tensor:
        """What the layer sees."""
        return x


class Drops(Own):
    def before(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, self.training)


class Mixes(Own):
    def before(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Decides(Own):
    def before(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Looks(Own):
    """An embedding by hand."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.table = nn.Parameter(torch.ones(17, 1))

    def before(self, x: Tensor) -> Tensor:
        return x * functional.embedding((x * 16).long(), self.table).squeeze(2)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Drops, "the model draws while it trains"),
        (Mixes, "as a stack they come to another update"),
        (Decides, "as a stack they fail: .*data-dependent control flow"),
        (Looks, "the model looks up an embedding by other means"),
    ],
)
def test_a_model_that_cannot_be_stacked(model: Callable[..., nn.Module], reason: str) -> None:
    """What it draws, how it pads and which way it goes would be others, or a token could be a neighbour's."""
    check_alone(small.job({"engine.stack": 3}, model=model), reason)


HALVES = """
import torch
from fedsim.algorithm import Algorithm, Upload, add_update, zeros

def made(client):
    start = {"kept": lambda params, population: params.new_zeros(1)}
    return Algorithm("own", client, add_update, client_state=start, shared={"sent": zeros})

def normed():
    def client(local):
        update = local.train(local.received).params - local.received
        return Upload(update / update.norm(), state=local.state)
    return made(client)

def choosing():
    def client(local):
        trained = local.train(local.received, epochs=2 if local.number == 1 else 1)
        return Upload(trained.params - local.received, state=local.state)
    return made(client)

def noisy():
    def client(local):
        update = local.train(local.received).params - local.received
        return Upload(update + 0.01 * torch.randn_like(update), state=local.state)
    return made(client)

def counting():
    def client(local):
        update = local.train(local.received).params - local.received
        return Upload(update, state={"kept": local.state["kept"].sum()[None] + local.data().targets.sum()})
    return made(client)

def keeping():
    def client(local):
        update = local.train(local.received).params - local.received
        return Upload(update, state={"kept": update.abs().max(-1, keepdim=True).values.mean() + local.state["kept"]})
    return made(client)

def damped():
    def client(local):
        update = local.train(local.received).params - local.received
        return Upload(update / (1 + local.state["kept"].norm()), state={"kept": local.state["kept"] + 1})
    return made(client)

def guided():
    def client(local):
        update = local.train(local.received).params - local.received
        return Upload(update / (1 + local.shared["sent"].norm()), state=local.state)
    return made(client)

def stacked():
    def client(local):
        update = local.train(local.received).params - local.received
        return Upload(update / update.norm(dim=-1, keepdim=True) * local.rows, state={"kept": local.state["kept"] + 1})
    return made(client)
"""


@pytest.mark.parametrize(
    ("half", "reason"),
    [
        ("normed", "as a stack they come to another update"),
        ("choosing", "as a stack they fail: Boolean value of Tensor with more than one value is ambiguous"),
        ("noisy", "as a stack they come to another update"),
        ("counting", "as a stack they fail: the strategy's client half reads the rows of its client by itself"),
        ("keeping", "as a stack they come to another state"),
        ("damped", "as a stack they come to another update"),
        ("guided", "as a stack they come to another update"),
    ],
)
def test_a_client_half_that_is_not_written_for_stacks(half: str, reason: str, tmp_path: Path) -> None:
    """A sum over everybody's coordinates, a choice by one client's number, draws of its own, rows, a mixed state.

    The last two are right as long as what they keep and are sent is zero, as it is at first.
    """
    check_alone(own(half, tmp_path), reason)


def test_one_that_is_goes_into_a_stack(tmp_path: Path) -> None:
    assert width(own("stacked", tmp_path)) == 3


def own(half: str, folder: Path) -> Job:
    (folder / "own.py").write_text(HALVES)
    return small.job({"strategy": {"name": f"own.py:{half}"}, "engine.stack": 3}, folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strategy": {"name": "constant"}}, "reads the rows of its client by itself"),
        ({"strategy": {"name": "central"}}, "one of them has everybody's rows"),
        ({"model": {"name": "cnn", "preset": "small", "norm": "batch"}}, "as a stack they come to another update"),
    ],
)
def test_what_comes_with_fedsim_and_is_never_stacked(changes: dict[str, Any], reason: str) -> None:
    """A strategy that trains nothing, one that has a single client, and normalisation over padded batches."""
    check_alone(small.job({**changes, "engine.stack": 3}), reason)


def test_persons_are_protected_one_by_one() -> None:
    rng = np.random.default_rng(0)
    rows, owners = rng.normal(size=(60, 3)).astype(np.float32), np.repeat(np.arange(3), 20)

    def people(folders: Folders) -> Corpus:
        names, y = ("a", "b", "c"), (rows[:, 0] > 0).astype(np.int64)
        groups = np.arange(60) // 2
        return Corpus("p", "classification", rows, y, ("0", "1"), {}, owners, names, groups, "person")

    private = {"privacy.example": {**NOISE, "unit": "person"}, "data.split.central": 0.0}
    job = small.job({"data.partition": {"kind": "natural"}, **private, "engine.stack": 3}, data=people)
    check_alone(job, "privacy.example protects a person, whose rows have a mean gradient")


def check_alone(job: Job, reason: str) -> None:
    """Clients of a job are trained one by one, and it is said why."""
    found = settled(job)
    assert found.job.scenario.engine.stack == 1
    assert found.reason.startswith("engine.stack = 3: clients are trained one by one, since ")
    assert re.search(reason, found.reason), found.reason


def test_a_run_keeps_the_reason(tmp_path: Path) -> None:
    """Among its events and in its scenario, and its bits are those of clients one by one."""
    strategy = {"strategy": {"name": "constant"}}
    done = small.run(small.job({**strategy, "engine.stack": 3}), tmp_path / "asked")
    with closing(open_run(done.folder)) as read:
        (event,) = [event for event in read.events() if event.kind == "one by one"]
    assert "reads the rows of its client by itself" in event.message
    assert "stack = 1" in (done.folder / "scenario.toml").read_text()
    assert done.fingerprint == small.run(small.job(strategy), tmp_path / "alone").fingerprint


def test_a_run_goes_on_with_its_stacks(tmp_path: Path) -> None:
    """Width and kind of device decide bits, as does what is compiled, so they stay."""
    whole = small.run(small.job({"engine.stack": 3, "rounds": 2}), tmp_path / "whole")
    first = small.run(small.job({"engine.stack": 3, "rounds": 1}), tmp_path / "first")
    for key, settings in (
        ("stack", ["engine.stack=2"]),
        ("stack", ["engine={kind='inline'}"]),
        ("devices", ["engine={kind='inline', stack=3}"]),
        ("devices", ["engine.devices=['cuda:0']"]),
    ):
        with pytest.raises(ScenarioError, match=rf"engine\.{key}: trained bits depend on it"):
            resume(first.folder, rounds=2, settings=settings)
    alone = small.run(small.job({"rounds": 1}), tmp_path / "alone")
    with pytest.raises(ScenarioError, match=r"engine\.compile: trained bits depend on it"):
        resume(alone.folder, rounds=2, settings=["engine.compile=true"])
    assert resume(first.folder, rounds=2).fingerprint == whole.fingerprint
