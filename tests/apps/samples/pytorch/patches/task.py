"""The net, its data and one client's epoch; the same for server and clients."""

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Loader = DataLoader[tuple[Tensor, ...]]


class Net(nn.Module):
    """A convolution and a dense layer for 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8 * 4 * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B, 10] of images [B, 1, 8, 8]."""
        hidden = self.pool(torch.relu(self.conv(images)))
        scores: Tensor = self.head(hidden.flatten(1))
        return scores


@cache
def digits() -> tuple[Tensor, Tensor]:
    """All images [1797, 1, 8, 8] in a fixed random order, and their classes; the first 200 are nobody's."""
    images, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.tensor(images[order] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return x, torch.tensor(classes[order])


def client_rows(partition: int, partitions: int) -> tuple[Tensor, Tensor]:
    """The images of one partition of the rows that clients own; their numbers differ by one at most."""
    x, y = digits()
    return x[200 + partition :: partitions], y[200 + partition :: partitions]


def loaders(partition: int, partitions: int, batch: int, seed: int) -> tuple[Loader, Loader]:
    """One client's rows for training, in an order that `seed` draws, and the fifth of them for evaluation."""
    x, y = client_rows(partition, partitions)
    held = len(x) // 5
    order = torch.Generator().manual_seed(seed)
    train = DataLoader(TensorDataset(x[held:], y[held:]), batch_size=batch, shuffle=True, generator=order)
    return train, DataLoader(TensorDataset(x[:held], y[:held]), batch_size=256)


def train(net: nn.Module, loader: Loader, epochs: int, learning_rate: float) -> float:
    """Train in place; the mean loss over all batches."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=learning_rate, momentum=0.9)
    net.train()
    losses = []
    for _ in range(epochs):
        for images, classes in loader:
            optimizer.zero_grad()
            loss = criterion(net(images), classes)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def test(net: nn.Module, loader: Loader) -> tuple[float, float]:
    """Loss and accuracy."""
    net.eval()
    loss, right, rows = 0.0, 0, 0
    for images, classes in loader:
        scores = net(images)
        loss += nn.functional.cross_entropy(scores, classes, reduction="sum").item()
        right += int((scores.argmax(1) == classes).sum())
        rows += len(classes)
    return loss / rows, right / rows
