"""The noise of a private step."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim import seeds
from fedsim.privacy.normals import add_normal

BLOCK = 2**16
"""Values that are drawn together."""


def drawn(size: int, kind: torch.dtype = torch.float32) -> np.ndarray:
    return add_normal(torch.zeros(size, dtype=kind), 1.0, seeds.numpy_generator(1, "noise")).numpy()


def by_hand(size: int) -> list[float]:
    """Box and Muller's formulas, word by word, in the order that is documented."""
    words, values = seeds.numpy_generator(1, "noise").bit_generator, []
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        halves = np.array([words.random_raw() for _ in range(-(-count // 2))], dtype="<u8").view("<i4").tolist()
        firsts, seconds = halves[: len(halves) // 2], halves[len(halves) // 2 :]
        radii = [math.sqrt(-2 * math.log(abs(first | 1) / 2**31)) for first in firsts]
        angles = [math.pi * second / 2**31 for second in seconds]
        block = [r * math.cos(a) for r, a in zip(radii, angles, strict=True)]
        block += [r * math.sin(a) for r, a in zip(radii, angles, strict=True)]
        values += block[:count]
    return values


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 7, 1000, BLOCK + 5])
def test_draws_are_box_and_mullers_of_the_generators_words(size: int, kind: torch.dtype) -> None:
    """The named stream of NumPy, whose 256 bits of seed no two clients share, and no 32-bit one of torch."""
    tolerance = 3e-4 if kind == torch.float32 else 1e-12  # a float32 just below 1 is off by 2^-25
    np.testing.assert_allclose(drawn(size, kind), by_hand(size), rtol=tolerance, atol=tolerance)


def test_draws_are_normal_to_their_tails_and_independent() -> None:
    """Kolmogorov's distance, the share beyond 4 deviations, and neighbours and halves of a pair that share a word."""
    values = drawn(2_000_000).astype(np.float64)
    assert stats.kstest(values, "norm").pvalue > 1e-3
    beyond, expected = np.sum(np.abs(values) > 4), 2_000_000 * 2 * stats.norm.sf(4)
    assert abs(beyond - expected) < 4 * expected**0.5
    pairs = values[: BLOCK * 30].reshape(-1, 2, BLOCK // 2)
    for one, other in ((pairs[:, 0], pairs[:, 1]), (values[:-1], values[1:])):
        for power in (1, 2):
            assert abs(np.corrcoef(one.ravel() ** power, other.ravel() ** power)[0, 1]) < 4 / one.size**0.5


def test_it_is_added_at_its_size() -> None:
    start = torch.linspace(-1, 1, 1001)
    found = add_normal(start.clone(), 0.25, seeds.numpy_generator(1, "noise"))
    np.testing.assert_allclose(found, start.numpy() + 0.25 * drawn(1001), atol=1e-6)
    assert torch.equal(add_normal(start.clone(), 0.0, seeds.numpy_generator(1, "noise")), start)
