"""The contenders of benchmarks/engine.py train the nets they say, as plain torch would."""

import runpy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsim import seeds

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def workload(name: str) -> Any:
    return loaded()[name]


@cache
def loaded() -> dict[str, Any]:
    return runpy.run_path(str(BENCHMARKS / "_workload.py"))


@pytest.mark.parametrize(("name", "size"), [("Mlp", 199_210), ("Cnn", 1_663_370)])
def test_nets_have_the_published_size(name: str, size: int) -> None:
    net = workload(name)()
    assert sum(parameter.numel() for parameter in net.parameters()) == size
    assert net(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_the_tight_epoch_is_plain_sgd() -> None:
    """torch.optim.SGD over the same batches gives the same parameters."""
    net, plain = workload("Mlp")(), workload("Mlp")()
    plain.load_state_dict(net.state_dict())
    x, y = workload("client_rows")(7)
    with seeds.scope(1, "benchmark"):
        workload("train")(net, x, y)
    optimizer = torch.optim.SGD(plain.parameters(), lr=workload("LEARNING_RATE"))
    with seeds.scope(1, "benchmark"):
        batches = np.split(torch.randperm(len(x)).numpy(), len(x) // workload("BATCH"))
    for rows in batches:
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(plain(x[rows]), y[rows]))
        optimizer.step()
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
