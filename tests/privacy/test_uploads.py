"""What an upload becomes before it may enter a sum: no longer than C, noised by as much as is claimed."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fedsim import seeds
from fedsim.privacy.uploads import clipped, gaussian, noised, norm_of, with_bit

MODEL = 1_663_370
"""Parameters of McMahan's CNN, the largest that is shipped."""
FALSE_ALARM = 1e-6
"""With which a statistical test fails though the law holds; seeds are fixed, so it does so always or never."""
Draw = tuple[str, int, float, int]


def drawn(kind: str, size: int, scale: float, seed: int, dtype: torch.dtype) -> Tensor:
    """[size] of a distribution whose largest value may be all of its norm, or none of it."""
    rng = np.random.default_rng(seed)
    makers: Mapping[str, Callable[[], np.ndarray]] = {
        "normal": lambda: rng.standard_normal(size),
        "cauchy": lambda: rng.standard_cauchy(size),
        "pareto": lambda: rng.pareto(0.6, size) * rng.choice([-1.0, 1.0], size),
        "one": lambda: np.eye(1, size, seed % size)[0],
        "equal": lambda: np.ones(size),
    }
    most = float(torch.finfo(torch.float32).max) / 4
    return torch.from_numpy(np.clip(makers[kind]() * scale, -most, most)).to(dtype)


def exact_norm(vector: Tensor) -> float:
    """The square root of the exactly rounded sum of the squares of float64 values."""
    return math.sqrt(math.fsum((vector.double().numpy() ** 2).tolist()))


vectors: st.SearchStrategy[Draw] = st.tuples(
    st.sampled_from(["normal", "cauchy", "pareto", "one", "equal"]),
    st.integers(1, 1000),
    st.floats(-12, 12).map(lambda power: 10.0**power),
    st.integers(0, 2**32),
)
clips = st.floats(-12, 12).map(lambda power: 10.0**power)
dtypes = st.sampled_from([torch.float32, torch.float64])


@settings(deadline=None, max_examples=300)
@given(vectors, clips, dtypes)
def test_a_clipped_norm_is_at_most_c_and_the_direction_stays(draw: Draw, clip: float, dtype: torch.dtype) -> None:
    vector = drawn(*draw, dtype)
    before, kept = vector.clone(), clipped(vector, clip)
    norm, length = exact_norm(vector), exact_norm(kept)
    assert kept.dtype == dtype and torch.equal(vector, before)
    assert length <= clip * (1 + 2**-23)
    assert length >= min(norm, clip) * (1 - 2**-22), "no more is cut off than is needed"
    if norm <= clip:
        assert torch.equal(kept, vector)
    error = kept.double() - vector.double() * (length / norm if norm else 1.0)
    assert exact_norm(error) <= 2**-22 * length


@settings(deadline=None, max_examples=300)
@given(vectors, clips, dtypes)
def test_clipping_twice_is_clipping_once(draw: Draw, clip: float, dtype: torch.dtype) -> None:
    """To the bit: a server that clips again what a worker has clipped gets the same sum."""
    once = clipped(drawn(*draw, dtype), clip)
    assert torch.equal(clipped(once, clip), once)


@settings(deadline=None, max_examples=100)
@given(st.integers(-40, 40), st.integers(1, 2000), st.integers(0, 1000), dtypes)
def test_a_norm_a_few_steps_above_c_is_clipped_or_close_enough(
    ulps: int, size: int, seed: int, dtype: torch.dtype
) -> None:
    """C just below or above the vector's norm, where rounding decides."""
    vector = drawn("normal", size, 1.0, seed, dtype)
    clip = exact_norm(vector) * (1 + ulps * 2**-26)
    kept = clipped(vector, clip)
    assert exact_norm(kept) <= clip * (1 + 2**-23)
    assert torch.equal(clipped(kept, clip), kept)


def test_a_factor_is_rounded_down() -> None:
    """So only the values' own rounding may lengthen a vector, by 2^-24: least chance to hide among equal values."""
    rng = np.random.default_rng(6)
    for value, clip, size in zip(
        rng.uniform(1, 9, 3000), rng.uniform(0.1, 1, 3000), rng.integers(1, 9, 3000), strict=True
    ):
        kept = clipped(torch.full((int(size),), value, dtype=torch.float32), clip)
        assert exact_norm(kept) <= clip * (1 + 2**-24 + 2**-46)
        assert torch.equal(clipped(kept, clip), kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["normal", "cauchy", "pareto", "equal"])
def test_the_largest_model_is_clipped_as_exactly(kind: str, dtype: torch.dtype) -> None:
    """A norm accumulated in float32 would be off by hundreds of steps."""
    vector = drawn(kind, MODEL, 1e-3, 5, dtype)
    kept = clipped(vector, 0.7)
    assert 0.7 * (1 - 2**-22) <= exact_norm(kept) <= 0.7 * (1 + 2**-23)
    assert torch.equal(clipped(kept, 0.7), kept)
    assert norm_of(vector) == pytest.approx(exact_norm(vector), rel=1e-10)


def test_lengths_far_apart_stay_safe() -> None:
    """Float32 has no factor that small: nothing of the vector is left, which is short enough."""
    most = torch.full((1000,), torch.finfo(torch.float32).max)
    assert exact_norm(clipped(most, 1e-9)) <= 1e-9
    assert not clipped(torch.zeros(5), 1e-30).any()


@settings(deadline=None)
@given(vectors, clips, dtypes)
def test_the_bit_says_whether_the_norm_was_below(draw: Draw, clip: float, dtype: torch.dtype) -> None:
    """Centred at 0, so that one client moves the sum of bits by half; behind a contribution that stays as it was."""
    vector = drawn(*draw, dtype)
    sent = with_bit(clipped(vector, clip), norm_of(vector), clip)
    assert torch.equal(sent[:-1], clipped(vector, clip))
    assert float(sent[-1]) == (0.5 if norm_of(vector) <= clip else -0.5)
    assert sent.dtype == dtype


@pytest.mark.parametrize("deviation", [1e-6, 0.3, 1e4])
def test_noise_is_gaussian_of_the_claimed_size(deviation: float) -> None:
    """Its distribution as a whole, and its mean and variance more sharply: each fails by chance once in a million."""
    noise = gaussian(200_000, deviation, None, seeds.numpy_generator(3, "a test's noise", 1)).numpy()
    assert noise.dtype == np.float64
    check_normal(noise, deviation)


def test_noise_falls_only_on_what_leaves_its_client() -> None:
    shared = torch.arange(10_000) % 3 > 0
    noise = gaussian(10_000, 2.0, shared, np.random.default_rng(1))
    assert not noise[~shared].any()
    check_normal(noise[shared].numpy(), 2.0)


def test_noise_is_added_in_float64_and_rounded_last() -> None:
    """To the nearest float32 of the exact sum; a float32 noise would have been rounded before."""
    rng = np.random.default_rng(2)
    vector, noise = torch.from_numpy(rng.standard_normal(1000)).float(), torch.from_numpy(rng.standard_normal(1000))
    expected = (vector.numpy().astype(np.float64) + noise.numpy()).astype(np.float32)
    assert np.array_equal(noised(vector, noise).numpy(), expected)
    assert not torch.equal(noised(vector, noise), vector + noise.float())


def check_normal(values: Any, deviation: float) -> None:
    """Values [n] look like N(0, deviation^2); a third of the false alarms for each of three tests."""
    standard, alarm = np.asarray(values) / deviation, FALSE_ALARM / 3
    size = len(standard)
    assert stats.kstest(standard, "norm").pvalue > alarm
    assert abs(standard.mean()) * math.sqrt(size) < stats.norm.isf(alarm / 2)
    low, high = stats.chi2.ppf([alarm / 2, 1 - alarm / 2], size)
    assert low < (standard**2).sum() < high
