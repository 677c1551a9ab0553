"""Gradients of rows kept as factors against the gradients themselves."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsim.privacy.rows import Lookups, Product, Products, RowGradients, Whole, as_factors

FORMS = ["dense layer", "embedding"]


def pair(kind: str, rows: int, places: int, sizes: tuple[int, int], seed: int) -> tuple[RowGradients, Tensor]:
    """Float32 factors, and in float64 the gradients [B, d] that they stand for."""
    draw = torch.Generator().manual_seed(seed)
    given = torch.randn(rows, places, sizes[0], generator=draw)
    if kind == "embedding":
        tokens = torch.randint(sizes[1], (rows, places), generator=draw)
        seen = torch.nn.functional.one_hot(tokens, sizes[1])
        looked = torch.einsum("bti,bto->bio", seen.double(), given.double()).flatten(1)
        return Lookups.at(tokens, given, sizes[1]), looked
    seen = torch.randn(rows, places, sizes[1], generator=draw)
    form = Product(seen[:, 0], Whole(given[:, 0])) if places == 1 else Products(seen, given)
    return form, torch.einsum("bto,bti->boi", given.double(), seen.double()).flatten(1)


def weighted(gradients: RowGradients, factors: Tensor) -> Tensor:
    """[d] the sum, written over what is not a number."""
    out = torch.full((gradients.each().shape[1],), float("nan"))
    gradients.weighted(factors, out)
    return out


@pytest.mark.parametrize("kind", FORMS)
@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(1, 7), st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(0, 10**6))
def test_factors_give_the_norms_sums_and_means_of_the_gradients(
    kind: str, rows: int, places: int, sizes: tuple[int, int], seed: int
) -> None:
    factors, gradients = pair(kind, rows, places, sizes, seed)
    draw = torch.Generator().manual_seed(seed + 1)
    weights, owners = torch.rand(rows, generator=draw), torch.arange(rows) // 2
    kept = torch.rand(rows, generator=draw) < 0.7
    assert len(factors) == rows and len(factors.some(kept)) == int(kept.sum())
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(factors.norms(), gradients.norm(dim=1), **close)
    for found, expected in (
        (weighted(factors, weights), weights.double() @ gradients),
        (weighted(factors.some(kept), weights[kept]), weights[kept].double() @ gradients[kept]),
        (factors.each(), gradients),
        (factors.means(owners).each(), Whole(gradients).means(owners).sample),
        (factors.some(kept).each(), gradients[kept]),
    ):
        torch.testing.assert_close(found, expected.float(), **close)


def test_a_units_mean_is_the_mean_of_its_rows() -> None:
    found = Whole(torch.tensor([[1.0, 2.0], [5.0, 0.0], [3.0, 4.0]])).means(torch.tensor([1, 0, 1]))
    assert found.sample.tolist() == [[5.0, 0.0], [2.0, 3.0]]


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("off", [0.0, 1e-7, 1e-4, 1.0])
@pytest.mark.parametrize("places", [1, 40])
def test_a_norm_is_not_below_what_is_summed_where_places_cancel(kind: str, off: float, places: int) -> None:
    """Up to the last rounding, 2^-24: of pairs of places that all but take each other back."""
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        given, seen = torch.randn(1, places, 16, generator=draw), torch.randn(1, places, 24, generator=draw)
        turned, tokens = torch.cat([given, -given * (1 + off)], dim=1), torch.arange(places)[None] % 24
        factors = (
            Products(seen.repeat(1, 2, 1), turned)
            if kind == "dense layer"
            else Lookups.at(tokens.repeat(1, 2), turned, 24)
        )
        norm = torch.linalg.vector_norm(weighted(factors, torch.ones(1)), dtype=torch.float64)
        bound = factors.norms()
        assert norm <= bound * (1 + 2**-24)
        largest = float(turned.norm(dim=2).sum()) * (1.0 if kind == "embedding" else 10.0)
        assert bound <= norm * (1 + 1e-6) + 1e-5 * largest, "it would clip for nothing"


def test_a_single_place_is_shrunk_by_less_than_a_millionth() -> None:
    factors, gradients = pair("dense layer", 5, 1, (300, 200), 1)
    ratio = factors.norms() / gradients.norm(dim=1)
    assert (ratio >= 1).all() and (ratio < 1 + 1e-6).all()


def test_factors_are_kept_where_they_take_less_time() -> None:
    assert as_factors(1, 3, 2) and as_factors(20, 128, 512)
    assert not as_factors(80, 64, 256) and not as_factors(196, 800, 64)
