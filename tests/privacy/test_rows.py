"""Gradients of rows kept as factors against the gradients themselves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsim.privacy.rows import Lookups, Products, RowGradients, Whole, costs_less

PAIRS = ["dense layer", "embedding"]


def pair(kind: str, rows: int, places: int, sizes: tuple[int, int], seed: int) -> tuple[RowGradients, Tensor]:
    """Float32 factors, and in float64 the gradients [B, d] that they stand for."""
    draw = torch.Generator().manual_seed(seed)
    given = torch.randn(rows, places, sizes[0], generator=draw)
    if kind == "embedding":
        tokens = torch.randint(sizes[1], (rows, places), generator=draw)
        seen = torch.nn.functional.one_hot(tokens, sizes[1])
        return Lookups(tokens, given, sizes[1]), torch.einsum("bti,bto->bio", seen.double(), given.double()).flatten(1)
    seen = torch.randn(rows, places, sizes[1], generator=draw)
    return Products(seen, given), torch.einsum("bto,bti->boi", given.double(), seen.double()).flatten(1)


@pytest.mark.parametrize("kind", PAIRS)
@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(1, 7), st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(0, 10**6))
def test_factors_give_the_norms_sums_and_means_of_the_gradients(
    kind: str, rows: int, places: int, sizes: tuple[int, int], seed: int
) -> None:
    factors, gradients = pair(kind, rows, places, sizes, seed)
    draw = torch.Generator().manual_seed(seed + 1)
    weights, owners = torch.rand(rows, generator=draw), torch.arange(rows) // 2
    assert len(factors) == rows
    torch.testing.assert_close(factors.squares(), gradients.square().sum(1), rtol=1e-9, atol=1e-12)
    for found, expected in (
        (factors.weighted(weights), weights.double() @ gradients),
        (factors.means(owners).sample, Whole(gradients).means(owners).sample),
    ):
        torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-6)


def test_a_units_mean_is_the_mean_of_its_rows() -> None:
    found = Whole(torch.tensor([[1.0, 2.0], [5.0, 0.0], [3.0, 4.0]])).means(torch.tensor([1, 0, 1]))
    assert found.sample.tolist() == [[5.0, 0.0], [2.0, 3.0]]


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("off", [0.0, 1e-7, 1e-4, 1.0])
def test_a_norm_is_not_below_what_is_summed_where_places_cancel(kind: str, off: float) -> None:
    """Up to the last rounding, 2^-24: of pairs of places that all but take each other back."""
    for seed in range(20):
        factors, _ = pair(kind, 1, 40, (16, 24), seed)
        assert isinstance(factors, Products | Lookups)
        turned = torch.cat([factors.outputs, -factors.outputs * (1 + off)], dim=1)
        if isinstance(factors, Products):
            factors = Products(factors.inputs.repeat(1, 2, 1), turned)
        else:
            factors = Lookups(factors.tokens.repeat(1, 2), turned, 24)
        norm = torch.linalg.vector_norm(factors.weighted(torch.ones(1)), dtype=torch.float64)
        bound = factors.squares().sqrt()
        assert norm <= bound * (1 + 2**-24)
        largest = float(turned.norm(dim=2).sum()) * (1.0 if kind == "embedding" else 10.0)
        assert bound <= norm * (1 + 1e-6) + 1e-5 * largest, "it would clip for nothing"


def test_factors_are_kept_where_their_products_are_fewer_numbers() -> None:
    assert costs_less(1, 3) and costs_less(80, 12_801)
    assert not costs_less(80, 12_800)
