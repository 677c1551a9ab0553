"""What every contender of `engine.py` and `peers.py` trains on; NumPy alone, as not every peer has torch.

100 clients own 50 rows each: random 28x28 images in 10 classes, or windows of 80 random bytes. After every round the
global model is measured on 100 other rows.
"""

import json
import sys
from functools import cache

import numpy as np

CLIENTS = 100
ROWS = 50
BATCH = 10
LEARNING_RATE = 0.05
MEASURED = 100
LENGTH = 80
TEXT = ("lstm", "transformer")
"""Nets that read bytes; the others see images."""
_TRAIN, _MEASURED = 1, 2

Rows = tuple[np.ndarray, np.ndarray]


@cache
def train_rows(net: str) -> Rows:
    """Inputs and targets of all clients; each owns ROWS in a row."""
    return _drawn(net, CLIENTS * ROWS, _TRAIN)


@cache
def measured_rows(net: str) -> Rows:
    """Inputs and targets of what the model is measured on."""
    return _drawn(net, MEASURED, _MEASURED)


def _drawn(net: str, rows: int, seed: int) -> Rows:
    """Images [rows, 1, 28, 28] float32 and classes [rows], or bytes [rows, LENGTH] uint8 and each one's next byte."""
    rng = np.random.default_rng(seed)
    if net in TEXT:
        text = rng.integers(0, 256, (rows, LENGTH + 1), dtype=np.uint8)
        return text[:, :-1].copy(), text[:, 1:].copy()
    return rng.random((rows, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, rows)


def arguments() -> tuple[str, int, int]:
    """Net, clients a round and rounds, as a contender gets them."""
    net, cohort, rounds = sys.argv[1:4]
    return net, int(cohort), int(rounds)


def report(ended: list[float], moved: float) -> None:
    """Tell who asked the Unix time at which every round ended, and how far the model is then from where it began."""
    print(json.dumps({"ended": ended, "moved": moved}), flush=True)
