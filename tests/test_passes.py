"""A client's work is the same to the bit whether its passes are done by tape or by autograd."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim import tape
from fedsim.algorithm import Algorithm, Batch, Local, Upload, add_update
from fedsim.job import Job
from fedsim.local import Received, Work
from tests import small

SMALL_STEPS: dict[str, Any] = {"train.batch_size": 8, "train.epochs": 2, "data.partition.clients": 10}
TEXT: dict[str, Any] = {
    "data": {"name": "python-source", "max_bytes": 20_000, "window": 20, "partition": {"kind": "iid", "clients": 10}},
    "train.learning_rate": 0.05,
}
JOBS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "products": {"model": {"name": "mlp", "hidden": [512, 100]}},
    "momentum": {"train.momentum": 0.9, "train.clip": 1.0},
    "adam": {"train.optimizer": "adam", "train.learning_rate": 0.01},
    "scaffold": {"strategy": {"name": "scaffold"}},
    "fedprox": {"strategy": {"name": "fedprox", "mu": 0.1}},
    "rounded": {"train.precision": "bf16"},
    "images": {"model": {"name": "cnn", "preset": "small"}},
    "lstm": {**TEXT, "model": {"name": "lstm"}},
    "transformer": {**TEXT, "model": {"name": "transformer"}},
}


def work(job: Job, clients: range = range(6)) -> tuple[list[Tensor], list[float], int]:
    """What clients contribute, their losses, and the tapes that were made."""
    bench = Work(job)
    done = [bench.train(number, 1, Received(bench.initial.clone(), shared(bench)), None) for number in clients]
    return [each.vector for each in done], [each.loss for each in done], bench.passes.tapes


def shared(bench: Work) -> dict[str, Tensor]:
    return {name: torch.zeros_like(bench.initial.vector) for name in bench.algorithm.shared}


@pytest.mark.parametrize("name", JOBS)
def test_tapes_change_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "_LONGEST", math.inf)  # however slow the machine
    job = small.job({**SMALL_STEPS, **JOBS[name]})
    vectors, losses, tapes = work(job)
    assert tapes >= 1
    monkeypatch.setattr(tape, "_AFTER", 10**9)
    expected, expected_losses, none = work(job)
    assert none == 0
    assert losses == expected_losses
    assert all(map(torch.equal, vectors, expected))


OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.layer = nn.Linear(64, outputs)

    def forward(self, x):
        return self.layer(x.flatten(1))
"""


def test_a_users_own_code_is_called_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "_LONGEST", math.inf)
    (tmp_path / "net.py").write_text(OWN)
    (tmp_path / "loss.py").write_text(
        "import torch\ndef loss(output, targets):\n    return torch.nn.functional.cross_entropy(output, targets, "
        'reduction="none")\n'
    )
    for changes in ({"model": {"name": "net.py:Net"}}, {"task.loss": "loss.py:loss"}):
        job = small.job({**SMALL_STEPS, **changes}, tmp_path)
        assert work(job)[2] == 0


def test_a_module_that_a_strategy_has_had_is_called_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A term of the loss gets the module, and may have changed what a tape would not see."""
    monkeypatch.setattr(tape, "_LONGEST", math.inf)

    def term(model: nn.Module, batch: Batch) -> Tensor:
        model.register_forward_hook(lambda layer, inputs, output: output * 2)
        return torch.zeros(len(batch.targets))

    def contribution() -> tuple[Tensor, list[int]]:
        tapes = []

        def half(local: Local) -> Upload:
            for loss_term in (None, term, None):
                trained = local.train(local.received, loss_term=loss_term, whole=loss_term is not None)
                tapes.append(bench.passes.tapes)
            return Upload(trained.params - local.received)

        bench = Work(small.job({**SMALL_STEPS, "train.epochs": 3}))
        bench.algorithm = Algorithm("probe", half, add_update)
        return bench.train(0, 1, Received(bench.initial, {}), None).vector, tapes

    vector, tapes = contribution()
    assert tapes[0] >= 1
    assert tapes[1:] == [0, 0]
    monkeypatch.setattr(tape, "_AFTER", 10**9)
    expected, none = contribution()
    assert none == [0, 0, 0]
    assert torch.equal(vector, expected)
