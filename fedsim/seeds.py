"""Every random number of a run.

A draw is named by (seed, purpose, round, client). SHA-256 of that name seeds a generator of its own, so a
draw depends on nothing else: not on the worker, the order of clients or what was drawn before.

What a mechanism of privacy draws comes from `Coins`: `numpy_generator` gives its named draws, which whoever knows the
seed can draw again, and `secret` those of the operating system, which nobody can.
"""

import hashlib
import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch

_BLOCK = 2**15  # normal draws that are made together, so that they stay in a core's cache


class Draw(Protocol):
    """The coins of one draw of a mechanism, as far as it asks for them: NumPy's generators, or `SecretDraw`."""

    def random(self, size: int, /) -> np.ndarray:
        """[size] independent uniform numbers in [0, 1), float64."""
        ...

    def standard_normal(self, size: int, /) -> np.ndarray:
        """[size] independent draws of N(0, 1), float64."""
        ...

    def choice(self, a: np.ndarray, size: int, replace: bool, *, shuffle: bool) -> np.ndarray:
        """[size] of the values `a`; without `shuffle` their order is no draw."""
        ...


Coins = Callable[[int, str, int, int], Draw]
"""(seed, purpose, round, client) -> the coins of that draw."""


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


class SecretDraw:
    """Coins of the operating system's generator, which are kept nowhere: no seed gives them again, and no state."""

    def random(self, size: int, /) -> np.ndarray:
        """[size] uniform numbers in [0, 1), of 53 bits."""
        words = np.frombuffer(os.urandom(8 * size), dtype="<u8")
        return (words >> np.uint64(11)) * 2.0**-53

    def standard_normal(self, size: int, /) -> np.ndarray:
        """[size] draws of N(0, 1) by Box and Muller's formulas; see `privacy.normals`.

        Each pair is of 106 random bits; no draw is beyond 8.6 deviations, which 1 of 10^17 would be.
        """
        values = np.empty(size)
        for start in range(0, size, _BLOCK):
            block = values[start : start + _BLOCK]
            pairs = (len(block) + 1) // 2
            radii = np.sqrt(-2 * np.log1p(-self.random(pairs)))
            angles = self.random(pairs) * (2 * math.pi)
            block[:pairs] = radii * np.cos(angles)
            block[pairs:] = (radii * np.sin(angles))[: len(block) - pairs]
        return values

    def choice(self, a: np.ndarray, size: int, replace: bool, *, shuffle: bool) -> np.ndarray:
        """[size] different values of `a`, in any order: those with the smallest of random keys.

        Raises:
            ValueError: `replace`, which no mechanism asks for.
        """
        if replace:
            raise ValueError("secret coins choose without replacement")
        return a[np.argsort(self.random(len(a)))[:size]]


def secret(seed: int, purpose: str, round: int = 0, client: int = 0) -> SecretDraw:
    """The coins of a mechanism where a proof has to hold: fresh at every call, whatever they are named."""
    return SecretDraw()


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
