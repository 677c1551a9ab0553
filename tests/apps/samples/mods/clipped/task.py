"""Softmax regression on handwritten digits in NumPy."""

from functools import cache

import numpy as np
from sklearn.datasets import load_digits

Arrays = dict[str, np.ndarray]


def start() -> Arrays:
    """The model that everybody starts from."""
    return {"weight": np.zeros((64, 10), np.float32), "bias": np.zeros(10, np.float32)}


@cache
def client_rows(partition: int, partitions: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 64] and classes [n] of one client; low partitions own mostly low digits."""
    images, classes = load_digits(return_X_y=True)
    order = np.argsort(classes + np.random.default_rng(0).normal(0, 2, len(classes)))
    own = np.array_split(order, partitions)[partition]
    return (images[own] / 16).astype(np.float32), classes[own]


def probabilities(model: Arrays, x: np.ndarray) -> np.ndarray:
    """[n, 10] for images [n, 64]."""
    scores = x @ model["weight"] + model["bias"]
    scores = np.exp(scores - scores.max(1, keepdims=True))
    return scores / scores.sum(1, keepdims=True)


def train(model: Arrays, x: np.ndarray, y: np.ndarray, learning_rate: float, steps: int = 5) -> Arrays:
    """Full-batch descent."""
    for _ in range(steps):
        residual = (probabilities(model, x) - np.eye(10, dtype=np.float32)[y]) / len(x)
        gradient = {"weight": x.T @ residual, "bias": residual.sum(0)}
        model = {name: (value - learning_rate * gradient[name]).astype(np.float32) for name, value in model.items()}
    return model


def loss(model: Arrays, x: np.ndarray, y: np.ndarray) -> float:
    """Mean cross-entropy."""
    return float(-np.log(probabilities(model, x)[np.arange(len(y)), y] + 1e-12).mean())
