"""The net, a client's data, training and measuring. Put your own here; the two apps need only what they import."""

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CENTRAL = 297
"""Rows that no client owns: the server measures on them."""
Loader = DataLoader[tuple[Tensor, ...]]


class Net(nn.Module):
    """A small convolutional net for 8x8 images in 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(16 * 4 * 4, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B, 10] of images [B, 1, 8, 8]."""
        found = self.pool(torch.relu(self.conv(images))).flatten(1)
        scores: Tensor = self.head(torch.relu(self.hidden(found)))
        return scores


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """All images [1797, 1, 8, 8] and their classes, in the same random order everywhere."""
    images, classes = load_digits(return_X_y=True)
    rng = np.random.Generator(np.random.PCG64(0))
    order = rng.permutation(len(images))
    x = torch.tensor(images[order] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return x, torch.tensor(classes[order])


def client_loaders(partition: int, partitions: int, batch: int) -> tuple[Loader, Loader]:
    """One client's rows, four fifths to train on and one to be measured on; equal shares, drawn at random."""
    x, y = (rows[CENTRAL + partition :: partitions] for rows in _digits())
    held = max(len(x) // 5, 1)
    train = DataLoader(TensorDataset(x[held:], y[held:]), batch_size=batch, shuffle=True)
    return train, DataLoader(TensorDataset(x[:held], y[:held]), batch_size=256)


def central_loader() -> Loader:
    """The rows that no client owns."""
    x, y = _digits()
    return DataLoader(TensorDataset(x[:CENTRAL], y[:CENTRAL]), batch_size=256)


def train(net: nn.Module, loader: Loader, epochs: int, learning_rate: float) -> float:
    """Train a net in place; the mean loss over all batches."""
    optimizer = torch.optim.SGD(net.parameters(), lr=learning_rate, momentum=0.9)
    net.train()
    losses = []
    for _ in range(epochs):
        for images, classes in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), classes)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def measure(net: nn.Module, loader: Loader) -> tuple[float, float, int]:
    """Mean loss, accuracy, and the number of rows."""
    net.eval()
    loss, right, rows = 0.0, 0, 0
    for images, classes in loader:
        scores = net(images)
        loss += nn.functional.cross_entropy(scores, classes, reduction="sum").item()
        right += int((scores.argmax(1) == classes).sum())
        rows += len(classes)
    return loss / rows, right / rows, rows
