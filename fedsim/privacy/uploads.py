"""What privacy makes of a client's upload: clipped, counted, and noised where the client noises its own.

A client's contribution is one vector, [P]: update, change of floating buffers, the algorithm's extra vectors. It is
clipped as one, so that all of it together moves a sum by at most C.
"""

import torch
from torch import Tensor

from fedsim.seeds import Draw

_SLACK = 1 + 0.75 * 2**-23
"""Rounding a vector's values to float32 adds up to 2^-24 to its norm, so what is clipped stays as it is when clipped
again, and however its norm is measured it is at most C (1 + 2^-23)."""


def clipped(vector: Tensor, clip: float) -> Tensor:
    """v min(1, C / |v|), with the norm in float64; a vector that was clipped already stays as it is.

    Args:
        vector: [P], finite.
        clip: C > 0.
    """
    norm = norm_of(vector)
    if norm <= clip * _SLACK:
        return vector
    factor = torch.tensor(clip / norm, dtype=torch.float64).to(vector.dtype)
    if float(factor) * norm > clip:
        factor = torch.nextafter(factor, torch.zeros_like(factor))
    return vector * factor


def norm_of(vector: Tensor) -> float:
    """Euclidean norm, accumulated in float64."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def with_bit(vector: Tensor, norm: float, clip: float) -> Tensor:
    """[P + 1] a clipped contribution, and its bit for an adaptive clip: 1/2 where the norm was at most C, else -1/2.

    Andrew et al. 2021 add bits in {0, 1}; centred ones move their sum by 1/2 instead of 1.
    """
    return torch.cat([vector, vector.new_tensor([0.5 if norm <= clip else -0.5])])


def gaussian(size: int, deviation: float, shared: Tensor | None, draw: Draw) -> Tensor:
    """[P] in float64, N(0, deviation^2) in every coordinate that is shared.

    Args:
        size: P.
        deviation: standard deviation, >= 0.
        shared: [P] bool, the coordinates that leave their clients; None for all. What stays is zero and stays so.
        draw: where the noise comes from.
    """
    noise = torch.from_numpy(draw.standard_normal(size)) * deviation
    return noise if shared is None else noise.masked_fill(~shared, 0.0)


def noised(vector: Tensor, noise: Tensor) -> Tensor:
    """A vector [P] plus noise [P] in float64, rounded last."""
    return (vector.double() + noise).to(vector.dtype)
