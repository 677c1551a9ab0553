"""Normal draws in bulk: the noise of a private step, which would otherwise take longer than the step.

Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958: of uniform u in (0, 1) and v in [-1, 1),
sqrt(-2 ln u) cos(pi v) and sqrt(-2 ln u) sin(pi v) are independent and normal. Each of both has 32 random bits.

The bits are AES-128 in counter mode (NIST SP 800-38A) under a key that a NumPy generator draws: who knows some of a
vector's noise cannot compute the rest, as from the generator's own words, and a processor makes them twice as fast.
"""

import math

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

from fedsim.privacy.uploads import gaussian, noised
from fedsim.seeds import Draw

_MOST = 5 * 2**13  # values in a block, which stays in a core's cache
_HALF = 2.0**31  # one beyond the largest of a word's signed halves
_ZEROS = memoryview(bytes(4 * _MOST))  # a stream of AES is what it makes of them


def add_normal(vector: Tensor, deviation: float, draw: Draw) -> Tensor:
    """Add independent normal draws to `vector` [D], in place.

    Secret coins are normal draws in float64 themselves, and the sum is rounded last: the last bits of a float32's noise
    can tell what it was added to (Mironov, "On Significance of the Least Significant Bits for Differential Privacy",
    CCS 2012), and a few bits in the tails are what a proof rests on. From a generator, whose draws can be had again
    anyway, they are made as follows, several times as fast.

    The vector is cut into equal blocks, as few as have at most 40,960 values each; the last one may be shorter. A block
    of n values takes the next m = ceil(n / 2) words of 64 bits, as 2 m signed halves, little-endian. The first m halves
    are the u, the others the v; the block's first m values get the cosines, the others the sines.

    Args:
        vector: of float32 or float64.
        deviation: standard deviation, >= 0.
        draw: a generator, whose next four raw words, little-endian, are the stream's key and its first counter; or
            secret coins.

    Returns:
        `vector`. No draw of a generator is beyond 6.6 deviations: 2^-31 is the smallest u.
    """
    if not isinstance(draw, np.random.Generator):
        return vector.copy_(noised(vector, gaussian(len(vector), deviation, None, draw)))
    values, stream = vector.numpy(), _stream(draw)
    size = math.ceil(len(values) / math.ceil(len(values) / _MOST))
    octets = np.empty(8 * ((size + 1) // 2), dtype=np.uint8)
    halves, uniform = octets.view("<i4"), np.empty(len(octets) // 4, dtype=values.dtype)
    for start in range(0, len(values), size):
        block = values[start : start + size]
        words = (len(block) + 1) // 2
        stream.update_into(_ZEROS[: 8 * words], octets.data)
        halves[:words] |= 1  # the sizes of odd numbers are all as likely, and none is 0
        np.copyto(uniform[: 2 * words], halves[: 2 * words], casting="same_kind")
        radii, angles = uniform[:words], uniform[words : 2 * words]
        radii *= 1 / _HALF
        np.square(radii, out=radii)
        np.log(radii, out=radii)
        radii *= -deviation * deviation
        np.sqrt(radii, out=radii)
        angles *= math.pi / _HALF
        cosines = np.cos(angles, out=octets.view(values.dtype)[:words])  # where the bits were
        np.sin(angles, out=angles)
        cosines *= radii
        angles *= radii
        block[:words] += cosines
        block[words:] += angles[: len(block) - words]
    return vector


def _stream(generator: np.random.Generator) -> CipherContext:
    """Of random bytes, under 256 bits of a generator."""
    drawn = generator.bit_generator.random_raw(4).astype("<u8").tobytes()
    return Cipher(algorithms.AES128(drawn[:16]), modes.CTR(drawn[16:])).encryptor()
