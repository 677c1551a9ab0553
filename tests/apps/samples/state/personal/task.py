"""Softmax regression on handwritten digits in NumPy: everybody's weight, each client's own bias."""

from functools import cache

import numpy as np
from sklearn.datasets import load_digits


@cache
def client_rows(partition: int, partitions: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 64] and classes [n] of one client; each sees half of the classes far more often."""
    images, classes = load_digits(return_X_y=True)
    rng = np.random.default_rng(partition)
    rows = np.arange(partition, len(images), partitions)
    frequent = (classes[rows] + partition) % 2 == 0
    kept = rows[frequent | (rng.random(len(rows)) < 0.2)]
    return images[kept].astype(np.float32), classes[kept]


def probabilities(weight: np.ndarray, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    """[n, 10] for rows [n, 64]."""
    scores = x @ weight + bias
    scores = np.exp(scores - scores.max(1, keepdims=True))
    return scores / scores.sum(1, keepdims=True)


def loss(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Mean cross-entropy."""
    return float(-np.log(probabilities(weight, bias, x)[np.arange(len(y)), y] + 1e-12).mean())


def gradients(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the mean cross-entropy: for weight [64, 10] and bias [10]."""
    residual = (probabilities(weight, bias, x) - np.eye(10, dtype=np.float32)[y]) / len(x)
    return x.T @ residual, residual.sum(0)
