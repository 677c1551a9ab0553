"""One release of the real mechanism, again and again, in a world with the audited unit and in one without.

Every release is the real functions' own: `Work.train`'s private step at example level, at client level the rounds of
`AlgorithmStrategy` on the real workers. All units enter every release, so that its claim is exact: one Gaussian.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.algorithm import Combined, Local, Server, Upload
from fedsim.audit.canaries import with_clients
from fedsim.audit.loop import train
from fedsim.data.corpus import Corpus, Folders
from fedsim.flower import AlgorithmStrategy
from fedsim.job import Job, prepare_on
from fedsim.local import Received, Work
from fedsim.parameters import Weights
from fedsim.privacy.gaussian import gaussian_epsilon
from fedsim.privacy.ledger import Ledger
from fedsim.progress import Silent
from tests import small

DELTA, NOISE, CLIP = 1e-5, 3.0, 0.5
Scores = Callable[[bool, int], np.ndarray]
"""(whether the unit is there, n) -> [n] scores of independent repetitions; a higher one speaks for it."""


def claim(releases: int) -> float:
    """Epsilon of so many releases, exactly."""
    return gaussian_epsilon(math.sqrt(releases) / NOISE, DELTA)


# Example level: a client with four rows, whose gradients are at right angles. The last row is audited.

_CLASSES, _ROWS, _FEATURES = 5, 4, 30


class Linear(nn.Linear):
    """[B, F] -> [B, classes]."""

    def __init__(self) -> None:
        super().__init__(_FEATURES, _CLASSES, bias=False)


def _rows(folders: Folders) -> Corpus:
    """Rows of one feature each, under a class of their own, with gradients far longer than the clip."""
    x = 100 * np.eye(_ROWS, _FEATURES, dtype=np.float32)
    classes = tuple(str(label) for label in range(_CLASSES))
    owner = {"clients": np.zeros(_ROWS, dtype=np.int64), "client_names": ("a",)}
    return Corpus("rows", "classification", x, np.arange(_ROWS), classes, **owner)  # type: ignore[arg-type]


def _declared() -> Job:
    """The client with all of its rows."""
    changes = {
        "data.partition": {"kind": "natural"},
        "data.split": {"central": 0.0, "train": 1.0, "validation": 0.0, "test": 0.0},
        "data.min_rows": 1,
        "train": {"learning_rate": 1.0, "batch_size": _ROWS, "steps": 1},
        "privacy.example.noise_multiplier": NOISE,
        "privacy.example.delta": DELTA,
        "privacy.example.max_grad_norm": CLIP,
    }
    return small.job(changes, model=Linear, data=_rows)


@cache
def _row_worlds() -> tuple[Work, Work]:
    """Without the audited row, which is still declared, and with it."""
    whole = _declared()
    fewer, ends = whole.federation, np.array([_ROWS - 1])
    fewer = replace(
        fewer, x=fewer.x[:-1], y=fewer.y[:-1], offsets=np.array([0, *ends]), train_ends=ends, validation_ends=ends
    )
    return Work(replace(whole, federation=fewer)), Work(whole)


def _sure_of(label: int) -> Weights:
    """A model that holds every row for this class."""
    weights = torch.zeros(_CLASSES, _FEATURES)
    weights[label] = 1.0
    return Weights(weights.flatten(), torch.zeros(0))


def _direction(label: int) -> Tensor:
    """[D] the audited row's gradient under `_sure_of(label)`, at length 1: towards its own class, away from that."""
    gradient = torch.zeros(_CLASSES, _FEATURES)
    gradient[label, _ROWS - 1], gradient[_ROWS - 1, _ROWS - 1] = math.sqrt(0.5), -math.sqrt(0.5)
    return gradient.flatten()


def _row_release(there: bool, round: int, label: int) -> Tensor:
    """[D] a private step's noised sum over the clip, from the upload of a round."""
    sent = _row_worlds()[there].train(0, round, Received(_sure_of(label), {}), None)
    return -sent.vector * _ROWS / CLIP


def step_noise(count: int) -> np.ndarray:
    """[count, values] the noise of so many rounds' steps, on features that no row has, over its standard deviation."""
    released = torch.stack([_row_release(False, round, 0) for round in range(1, count + 1)])
    return (released.reshape(count, _CLASSES, _FEATURES)[:, :, _ROWS:].flatten(1) / NOISE).numpy()


def one_step(there: bool, count: int) -> np.ndarray:
    """What a step moved along the audited row's gradient; mean 1 with it and 0 without, under noise of NOISE."""
    rounds = range(1 + there * count, 1 + there * count + count)
    return np.array([float(_row_release(there, round, 0) @ _direction(0)) for round in rounds])


def two_steps(there: bool, count: int) -> np.ndarray:
    """How steps of two rounds differ along the row's gradient, which a server makes differ by the models it sends."""
    between = _direction(0) - _direction(_CLASSES - 1)
    pairs = range(1 + there * count, 1 + there * count + count)
    moved = (_row_release(there, 2 * pair, 0) - _row_release(there, 2 * pair + 1, _CLASSES - 1) for pair in pairs)
    return np.array([float(each @ between) for each in moved])


# Client level: four clients that all send the same, and a fifth that is audited.

_CLIENTS = 4
_CLIENT_LEVEL: small.Changes = {
    **small.POINTS,
    "model.hidden": [64],
    "strategy.weights": "uniform",
    "privacy.client.noise_multiplier": NOISE,
    "privacy.client.delta": DELTA,
    "privacy.client.clip": CLIP,
}


def client_releases(there: bool, count: int) -> Tensor:
    """[count, D] what the server released of each round, as a noised sum over the clip.

    The four send e_0; the audited client sends e_1 in even rounds and -e_1 in odd ones, all far longer than the clip.
    """
    # Noise of the two worlds must not be the same, so they have seeds of their own.
    scenario = small.scenario({**_CLIENT_LEVEL, "rounds": count, "seed": 1 + there})
    federation = small.job(_CLIENT_LEVEL, data=small.points(0.0)).federation
    job = prepare_on(with_clients(federation, np.array([there])), scenario, None, small.points(0.0))
    work, seen = Work(job), []
    assert job.privacy is not None and job.federation.clients == _CLIENTS + 1

    def client(local: Local) -> Upload:
        update = torch.zeros_like(local.received)
        if local.number < _CLIENTS:
            update[0] = 100.0
        else:
            update[1] = 100.0 if local.round % 2 == 0 else -100.0
        return Upload(update)

    def server(before: Server, combined: Combined) -> Server:
        seen.append(combined.update * (_CLIENTS + 1) / CLIP)
        return before

    work.algorithm = replace(work.algorithm, client=client, server=server)
    train(work, AlgorithmStrategy(work), Ledger(job.privacy, job.identity), Silent())
    return torch.stack(seen)


def round_noise(count: int) -> np.ndarray:
    """[count, values] the noise of so many rounds, where no client sends anything, over its standard deviation."""
    return (client_releases(False, count)[:, 2:] / NOISE).numpy()


def one_round(there: bool, count: int) -> np.ndarray:
    """What a round moved along the audited client's vector; mean 1 with it and 0 without, under noise of NOISE."""
    signs = torch.tensor([-1.0, 1.0]).repeat(-(-count // 2))[:count]
    return (client_releases(there, count)[:, 1] * signs).numpy()


def two_rounds(there: bool, count: int) -> np.ndarray:
    """How an even and an odd round differ along the client's vector."""
    released = client_releases(there, 2 * count + 1)[1:, 1]
    return (released[::2] - released[1::2]).numpy()


def quietness(there: bool, count: int) -> np.ndarray:
    """How small the noise of a round is, where no client sends anything."""
    return -client_releases(there, count)[:, 2:].square().mean(1).numpy()
