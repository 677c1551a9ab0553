"""Every random number of a run.

A draw is named by (seed, purpose, round, client). SHA-256 of that name seeds a generator of its own, so a
draw depends on nothing else: not on the worker, the order of clients or what was drawn before.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def digest(*name: int | str) -> bytes:
    """SHA-256 of a name; its parts are integers and strings, and ("a", 1) differs from ("a1",)."""
    return hashlib.sha256("\x1f".join(f"{type(part).__name__}:{part}" for part in name).encode()).digest()


def integer(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """An integer in [0, 2^63), as libraries with a seed of their own want it."""
    return int.from_bytes(digest(seed, purpose, round, client)[:8], "little") >> 1


def fraction(seed: int, purpose: str, key: int | str) -> float:
    """A number in [0, 1) that belongs to `key`: where a row or group falls when data are split by shares."""
    return int.from_bytes(digest(seed, purpose, key)[:8], "little") / 2**64


def numpy_generator(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """NumPy's PCG64, for every draw that names its generator, the mechanism's noise among them.

    The name's 256 bits fill its 128 bits of state: no two of a run's draws begin alike.
    """
    return np.random.Generator(np.random.PCG64(np.frombuffer(digest(seed, purpose, round, client), dtype="<u4")))


def seed_globals(seed: int, purpose: str, round: int = 0, client: int = 0) -> None:
    """Seed the global generators of torch, numpy and random; inside `preserved`.

    For what draws globally and cannot be told otherwise: `nn.init`, dropout, users' models, stock strategies.
    Torch and numpy keep 32 bits of the name, so two of 10,000 scopes begin alike about once in 100 runs; no
    proof rests on these draws.
    """
    value = integer(seed, purpose, round, client)
    torch.default_generator.manual_seed(value)
    np.random.seed(value % 2**32)
    random.seed(value)


@contextmanager
def preserved() -> Iterator[None]:
    """Put the global generators back after the block as they were before it."""
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@contextmanager
def scope(seed: int, purpose: str, round: int = 0, client: int = 0) -> Iterator[None]:
    """`seed_globals` inside the block, and everything as before after it."""
    with preserved():
        seed_globals(seed, purpose, round, client)
        yield
