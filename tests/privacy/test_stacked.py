"""Clipped gradient sums of several clients at once: each is the sum of its own clipped rows, within the bound."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsim.privacy.stacked import clipped_sums

CLIENTS, ROWS, SIZES = 3, 4, (5, 2)


def gradients(seed: int, scale: float) -> list[Tensor]:
    """Of two parameters, heavy-tailed: their norms lie far apart."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(CLIENTS, ROWS, size) for size in SIZES]
    return [scale * torch.randn(shape, generator=draw) ** 3 for shape in shapes]


@pytest.mark.parametrize("per_layer", [False, True], ids=["flat", "per layer"])
@given(st.integers(0, 1000), st.sampled_from([1e-3, 1.0, 1e3]), st.integers(0, 2**ROWS - 1))
def test_a_sum_is_that_of_each_rows_clipped_gradient(per_layer: bool, seed: int, scale: float, mask: int) -> None:
    """Row by row in float64 as the oracle; padding, whatever it holds, counts as none."""
    found, clip = gradients(seed, scale), 0.7
    real = torch.tensor([[bool(mask >> row & 1) for row in range(ROWS)]] * CLIENTS)
    found[0][~real] = torch.inf
    sums = clipped_sums(found, real, clip, per_layer=per_layer)
    for client in range(CLIENTS):
        total = torch.zeros(sum(SIZES), dtype=torch.float64)
        for row in range(ROWS):
            if real[client, row]:
                parts = [each[client, row].double() for each in found]
                groups = parts if per_layer else [torch.cat(parts)]
                bound = clip / math.sqrt(len(groups))
                total += torch.cat([part * min(1.0, bound / float(part.norm())) for part in groups])
        assert torch.allclose(sums[client].double(), total, rtol=1e-5, atol=1e-6 * clip)


@given(st.integers(0, 1000), st.sampled_from([1.0, 1e3, 1e10]))
def test_no_row_exceeds_the_clip(seed: int, scale: float) -> None:
    """A row alone in its batch, its clipped norm measured again in float64: C (1 + 2^-23) at most."""
    found, clip = gradients(seed, scale), 0.1
    for row in range(ROWS):
        real = torch.zeros(CLIENTS, ROWS, dtype=torch.bool)
        real[:, row] = True
        norms = torch.linalg.vector_norm(clipped_sums(found, real, clip), dim=1, dtype=torch.float64)
        assert float(norms.max()) <= clip * (1 + 2**-23)


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_a_row_that_is_not_finite_counts_as_none(value: float) -> None:
    """Of its client, and it touches no other; a norm that float64 holds is clipped."""
    found, real = gradients(1, 1.0), torch.ones(CLIENTS, ROWS, dtype=torch.bool)
    without = real.clone()
    without[1, 2] = False
    expected = clipped_sums(found, without, 1.0)
    found[1][1, 2, 0] = value
    sums = clipped_sums(found, real, 1.0)
    others = [0, 2]
    assert torch.equal(sums[others], expected[others])
    assert torch.equal(sums[1], expected[1]) is not math.isfinite(value)
    assert sums.isfinite().all()
