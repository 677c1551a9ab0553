"""What every contender of `engine.py` does: the nets, the clients' images and one client's local epoch.

Plain torch; bare and stock Flower train by `train`, our engine by its own loop on the same nets and rows.
"""

import json
import sys
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

CLIENTS = 100
ROWS = 50
BATCH = 10
LEARNING_RATE = 0.05


class Mlp(nn.Sequential):
    """784-200-200-10, McMahan et al. 2017's "2NN": 199,210 parameters."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
        )


class Cnn(nn.Sequential):
    """McMahan et al. 2017's CNN for 28x28 images: 1,663,370 parameters."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        )


NETS: dict[str, type[nn.Sequential]] = {"mlp": Mlp, "cnn": Cnn}


@cache
def images() -> tuple[np.ndarray, np.ndarray]:
    """Random images [CLIENTS * ROWS, 1, 28, 28] float32 and their classes; each client owns ROWS in a row."""
    rng = np.random.default_rng(1)
    rows = CLIENTS * ROWS
    return rng.random((rows, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, rows)


def client_rows(client: int) -> tuple[Tensor, Tensor]:
    """One client's images and classes, as views."""
    x, y = images()
    own = slice(client * ROWS, (client + 1) * ROWS)
    return torch.from_numpy(x[own]), torch.from_numpy(y[own])


def train(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """One epoch of plain SGD in place, as tight as torch allows: slices of shuffled rows, one fused step."""
    parameters = list(net.parameters())
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    for start in range(0, len(x), BATCH):
        loss = nn.functional.cross_entropy(net(x[start : start + BATCH]), y[start : start + BATCH])
        torch._foreach_add_(parameters_data(parameters), torch.autograd.grad(loss, parameters), alpha=-LEARNING_RATE)


def parameters_data(parameters: list[nn.Parameter]) -> list[Tensor]:
    """The parameters' values, which may be changed in place."""
    return [parameter.data for parameter in parameters]


def arguments() -> tuple[str, int, int]:
    """Net, clients a round and rounds, as `engine.py` passes them to a contender."""
    net, cohort, rounds = sys.argv[1:4]
    return net, int(cohort), int(rounds)


def report(ended: list[float]) -> None:
    """Tell `engine.py` the Unix time at which every round ended."""
    print(json.dumps(ended))
