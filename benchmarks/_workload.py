"""What every torch contender of `engine.py` does: the nets, one client's local epoch, and measuring a model.

Plain torch; bare and stock Flower train by `train`, our engine by its own loop on the same nets and rows.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from _rows import BATCH, CLIENTS, LEARNING_RATE, LENGTH, ROWS, arguments, measured_rows, report, train_rows
from torch import Tensor, nn

__all__ = ["BATCH", "CLIENTS", "LEARNING_RATE", "ROWS", "arguments", "report"]


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


def small_cnn() -> nn.Module:
    """Two stages of 16 channels: 10,330 parameters."""
    from fedsim.models.cnn import cnn

    return cnn((1, 28, 28), 10, "classification")


def lstm() -> nn.Module:
    """Two layers of 128 over bytes: 237,824 parameters."""
    from fedsim.models.lstm import lstm

    return lstm((LENGTH,), 256, "next-token")


def transformer() -> nn.Module:
    """Two blocks of width 64 over bytes: 138,240 parameters."""
    from fedsim.models.transformer import transformer

    return transformer((LENGTH,), 256, "next-token")


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": Mlp,
    "cnn": Cnn,
    "small-cnn": small_cnn,
    "lstm": lstm,
    "transformer": transformer,
}


def client_rows(client: int, net: str = "mlp") -> tuple[Tensor, Tensor]:
    """One client's inputs and targets, as the net takes them."""
    x, y = train_rows(net)
    own = slice(client * ROWS, (client + 1) * ROWS)
    return _tensor(x[own]), _tensor(y[own])


def _tensor(rows: np.ndarray) -> Tensor:
    values = torch.from_numpy(rows)
    return values if values.is_floating_point() else values.long()


def train(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """One epoch of plain SGD in place, as tight as torch allows: slices of shuffled rows, one fused step."""
    parameters = list(net.parameters())
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    for start in range(0, len(x), BATCH):
        loss = mean_loss(net(x[start : start + BATCH]), y[start : start + BATCH])
        torch._foreach_add_(parameters_data(parameters), torch.autograd.grad(loss, parameters), alpha=-LEARNING_RATE)


def mean_loss(output: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of [B, C] logits, or of [B, L, C] at every place."""
    if output.ndim > 2:
        output, targets = output.flatten(0, 1), targets.flatten()
    return nn.functional.cross_entropy(output, targets)


@torch.no_grad()
def measure(net: nn.Module, name: str, share: int = 1) -> tuple[float, float]:
    """Loss and accuracy on what every round's model is measured on, or on one of `share` equal parts of it."""
    x, y = (_tensor(rows[: len(rows) // share]) for rows in measured_rows(name))
    output = net(x)
    return float(mean_loss(output, y)), float((output.argmax(-1) == y).float().mean())


def parameters_data(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The parameters' values, which may be changed in place."""
    return [parameter.data for parameter in parameters]


@torch.no_grad()
def distance(values: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Euclidean distance between two models."""
    squares = [(value - other).square().sum() for value, other in zip(values, others, strict=True)]
    return math.sqrt(float(sum(squares)))
