"""Normal draws in bulk: the noise of a private step, which would otherwise take longer than the step.

Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958: of uniform u in (0, 1) and v in [-1, 1),
sqrt(-2 ln u) cos(pi v) and sqrt(-2 ln u) sin(pi v) are independent and normal. Each of both has 32 random bits, which
come from NumPy's generator: its 256 bits of seed give every client and round a stream of its own, where torch's on the
CPU has 2^32. NumPy's vectorised functions make them normal, a block at a time, three times as fast as its own normals.
"""

import math

import numpy as np
from torch import Tensor

_WORDS = 2**15  # of 64 bits in a block, which stays in a core's cache
_HALF = 2.0**31  # one beyond the largest of a word's signed halves


def add_normal(vector: Tensor, deviation: float, generator: np.random.Generator) -> Tensor:
    """Add independent normal draws to `vector` [D], in place.

    The vector is cut into blocks of 2^16 values, the last of what is left. A block of n values takes the next m =
    ceil(n / 2) words of the generator, as 2 m signed halves in memory's order. The first m halves are the u, the others
    the v; the block's first m values get the cosines, the others the sines.

    Args:
        vector: of float32 or float64.
        deviation: standard deviation, >= 0.
        generator: whose raw 64-bit words are taken.

    Returns:
        `vector`. No draw is beyond 6.6 deviations: 2^-31 is the smallest u.
    """
    values = vector.numpy()
    for start in range(0, len(values), 2 * _WORDS):
        block = values[start : start + 2 * _WORDS]
        words = (len(block) + 1) // 2
        halves = generator.bit_generator.random_raw(words).view(np.int32)
        halves[:words] |= 1  # the sizes of odd numbers are all as likely, and none is 0
        uniform = halves.astype(values.dtype)
        radii, angles = uniform[:words], uniform[words:]
        np.abs(radii, out=radii)
        radii *= 1 / _HALF
        np.log(radii, out=radii)
        radii *= -2
        np.sqrt(radii, out=radii)
        radii *= deviation
        angles *= math.pi / _HALF
        block[:words] += np.cos(angles) * radii
        np.sin(angles, out=angles)
        angles *= radii
        block[words:] += angles[: len(block) - words]
    return vector
