"""The noise of a private step."""

import math

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from fedsim import seeds
from fedsim.privacy.normals import add_normal

MOST = 40_960
"""Values that are drawn together, at most."""


def drawn(size: int, kind: torch.dtype = torch.float32) -> np.ndarray:
    return add_normal(torch.zeros(size, dtype=kind), 1.0, seeds.numpy_generator(1, "noise")).numpy()


def stream(words: int) -> list[int]:
    """The signed halves of that many 64-bit words: AES of a number that counts up, NIST SP 800-38A, section 6.5."""
    raw = seeds.numpy_generator(1, "noise").bit_generator.random_raw(4).astype("<u8").tobytes()
    aes, first = Cipher(algorithms.AES(raw[:16]), modes.ECB()).encryptor(), int.from_bytes(raw[16:], "big")
    counters = [(first + number) % 2**128 for number in range(-(-words // 2))]
    octets = b"".join(aes.update(counter.to_bytes(16, "big")) for counter in counters)
    return [int.from_bytes(octets[place : place + 4], "little", signed=True) for place in range(0, 8 * words, 4)]


def by_hand(size: int) -> list[float]:
    """Box and Muller's formulas, word by word, in the order that is documented."""
    largest = -(-size // -(-size // MOST))
    counts = [min(largest, size - start) for start in range(0, size, largest)]
    halves, values = iter(stream(sum(-(-count // 2) for count in counts))), list[float]()
    for count in counts:
        firsts, seconds = ([next(halves) for _ in range(-(-count // 2))] for _ in range(2))
        radii = [math.sqrt(-2 * math.log(abs(first | 1) / 2**31)) for first in firsts]
        angles = [math.pi * second / 2**31 for second in seconds]
        block = [r * math.cos(a) for r, a in zip(radii, angles, strict=True)]
        block += [r * math.sin(a) for r, a in zip(radii, angles, strict=True)]
        values += block[:count]
    return values


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 7, 1000, MOST, 3 * MOST + 5])
def test_draws_are_box_and_mullers_of_the_stream(size: int, kind: torch.dtype) -> None:
    """Under 256 bits of NumPy's named generator, which no two clients share, and no 32-bit one of torch."""
    tolerance = 3e-4 if kind == torch.float32 else 1e-12  # a float32 just below 1 is off by 2^-25
    np.testing.assert_allclose(drawn(size, kind), by_hand(size), rtol=tolerance, atol=tolerance)


def test_draws_are_normal_to_their_tails_and_independent() -> None:
    """Kolmogorov's distance, the share beyond 4 deviations, and neighbours and halves of a pair that share a word."""
    values = drawn(50 * MOST).astype(np.float64)
    assert stats.kstest(values, "norm").pvalue > 1e-3
    beyond, expected = np.sum(np.abs(values) > 4), len(values) * 2 * stats.norm.sf(4)
    assert abs(beyond - expected) < 4 * expected**0.5
    pairs = values.reshape(-1, 2, MOST // 2)
    for one, other in ((pairs[:, 0], pairs[:, 1]), (values[:-1], values[1:])):
        for power in (1, 2):
            assert abs(np.corrcoef(one.ravel() ** power, other.ravel() ** power)[0, 1]) < 4 / one.size**0.5


def test_a_generators_next_draws_are_others() -> None:
    """Each step of a client draws from where the step before it has left its generator."""
    generator = seeds.numpy_generator(1, "noise")
    one, other = (add_normal(torch.zeros(100_000), 1.0, generator).numpy() for _ in range(2))
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / len(one) ** 0.5


def test_it_is_added_at_its_size() -> None:
    start = torch.linspace(-1, 1, 1001)
    found = add_normal(start.clone(), 0.25, seeds.numpy_generator(1, "noise"))
    np.testing.assert_allclose(found, start.numpy() + 0.25 * drawn(1001), atol=1e-6)
    assert torch.equal(add_normal(start.clone(), 0.0, seeds.numpy_generator(1, "noise")), start)
