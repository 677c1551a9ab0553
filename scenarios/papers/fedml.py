"""Data and model of FedML's benchmark on MNIST: He et al., "FedML: A Research Library and Benchmark", 2020.

The data are those of Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, section 5.1: 1,000
clients of two digits each, in numbers that follow a power law. Dealt as the authors' script deals them.
"""

from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from fedsim import seeds
from fedsim.data.corpus import Corpus, Folders
from fedsim.data.sources.mnist import mnist

_CLIENTS, _DIGITS, _AT_FIRST = 1000, 10, 5
_MEAN, _SPREAD = 0.1307, 0.3081  # by which fedsim has normalised pixels


def power_law(folders: Folders, seed: int) -> Corpus:
    """All of MNIST, train and test rows alike, dealt to 1,000 clients; a few thousand rows are nobody's.

    Client k has digits k and k + 1 modulo 10: five rows of each, and then of the d-th digit's rest a share proportional
    to a lognormal number with sigma = 2, rounded down, as long as there are so many left. Every pixel is standardised
    by its mean and standard deviation over all rows.

    Args:
        folders: where MNIST is looked for.
        seed: of the run; the lognormal numbers depend on it.
    """
    corpus = mnist(folders)
    rows = [np.flatnonzero(corpus.y == digit) for digit in range(_DIGITS)]
    rest = np.array([len(each) for each in rows]) - _CLIENTS
    weights = seeds.numpy_generator(seed, "power law").lognormal(0, 2, (_DIGITS, _CLIENTS // _DIGITS, 2))
    shares = (rest[:, None, None] * weights / weights.sum((1, 2), keepdims=True)).astype(int)
    owner, given = np.full(len(corpus), -1), np.zeros(_DIGITS, dtype=int)

    def give(client: int, digit: int, number: int) -> None:
        owner[rows[digit][given[digit] : given[digit] + number]] = client
        given[digit] += number

    pairs = [(client, place, (client + place) % _DIGITS) for client in range(_CLIENTS) for place in (0, 1)]
    for client, _, digit in pairs:
        give(client, digit, _AT_FIRST)
    for client, place, digit in pairs:
        number = int(shares[digit, client // _DIGITS, place])
        if given[digit] + number < len(rows[digit]):
            give(client, digit, number)
    kept = owner >= 0
    return replace(
        corpus,
        name="mnist-power-law",
        x=_standardised(corpus.x)[kept],
        y=corpus.y[kept],
        preprocessing={"kind": "none", "fitted_on_rows": True},
        clients=owner[kept],
        client_names=tuple(f"client {number}" for number in range(_CLIENTS)),
        own_test=None,
    )


def _standardised(x: np.ndarray) -> np.ndarray:
    """[N, 784] of normalised images, by each pixel's own mean and spread on the scale from 0 to 255."""
    grey = 255 * (x.reshape(len(x), -1) * np.float32(_SPREAD) + np.float32(_MEAN))
    return np.asarray((grey - grey.mean(0)) / (grey.std(0) + 0.001), dtype=np.float32)


class SigmoidRegression(nn.Module):
    """Logistic regression as FedML's code has it: a sigmoid, and then cross-entropy takes that for logits."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(shape[0], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Values in (0, 1), [B, classes]."""
        values: Tensor = self.head(x).sigmoid()
        return values
