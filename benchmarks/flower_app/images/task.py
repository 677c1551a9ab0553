"""784-200-200-10 on 50 random images a client, batches of ten, one epoch."""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

ROWS, BATCH, LEARNING_RATE, OWNERS, MEASURED = 50, 10, 0.05, 100, 100


class Net(nn.Module):
    """McMahan et al. 2017's "2NN": 199,210 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B, 10] of images [B, 1, 28, 28]."""
        scores: Tensor = self.layers(images)
        return scores


@cache
def images() -> tuple[Tensor, Tensor]:
    """The rows of OWNERS clients, and then those that are measured on."""
    rng = np.random.default_rng(1)
    number = OWNERS * ROWS + MEASURED
    x, y = rng.random((number, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, number)
    return torch.from_numpy(x), torch.from_numpy(y)


def client_rows(partition: int) -> tuple[Tensor, Tensor]:
    """One client's rows; where there are more clients than owners, clients share them."""
    start = ROWS * (partition % OWNERS)
    x, y = images()
    return x[start : start + ROWS], y[start : start + ROWS]


@cache
def net_of_this_process() -> Net:
    """A net that the messages of one process use in turn."""
    return Net()


def tight(state: dict[str, Tensor], x: Tensor, y: Tensor) -> nn.Module:
    """One epoch on a net that stays: slices of shuffled rows, and one fused step."""
    net = net_of_this_process()
    net.load_state_dict(state)
    parameters = list(net.parameters())
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    for start in range(0, len(x), BATCH):
        loss = nn.functional.cross_entropy(net(x[start : start + BATCH]), y[start : start + BATCH])
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, gradients, alpha=-LEARNING_RATE)
    return net


def template(state: dict[str, Tensor], x: Tensor, y: Tensor) -> nn.Module:
    """One epoch as templates write it: a new net, DataLoader and optimiser for every message."""
    net = Net()
    net.load_state_dict(state)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    net.train()
    for inputs, targets in loader:
        optimizer.zero_grad()
        criterion(net(inputs), targets).backward()
        optimizer.step()
    return net


def nothing(state: dict[str, Tensor], x: Tensor, y: Tensor) -> nn.Module:
    """No work: the model as it came, on a net that stays."""
    net = net_of_this_process()
    net.load_state_dict(state)
    return net


@torch.no_grad()
def measure(net: nn.Module) -> tuple[float, float]:
    """Loss and accuracy on the rows that no client has."""
    x, y = (rows[-MEASURED:] for rows in images())
    scores = net(x)
    return float(nn.functional.cross_entropy(scores, y)), float((scores.argmax(1) == y).float().mean())
