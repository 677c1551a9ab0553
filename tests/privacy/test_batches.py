"""Poisson batches: rates, steps, and what is drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim import seeds
from fedsim.privacy.batches import (
    declared_units,
    expected_batch,
    poisson_batch,
    rows_of,
    sampling_rate,
    steps_of,
    steps_of_pass,
)


@given(st.integers(1, 10_000), st.integers(1, 512), st.integers(1, 5))
def test_an_epoch_is_about_one_pass_on_average(rows: int, batch_size: int, epochs: int) -> None:
    """q n steps rows are drawn in an epoch on average: n, and less than one batch more."""
    rate, steps = sampling_rate(rows, batch_size), steps_of(rows, batch_size, epochs)
    assert 0 < rate <= 1
    assert expected_batch(rows, batch_size) == pytest.approx(min(rows, batch_size))
    assert rows * epochs <= steps * expected_batch(rows, batch_size) + 1e-6
    assert (steps / epochs - 1) * expected_batch(rows, batch_size) < rows


@pytest.mark.parametrize(("rows", "rate"), [(200, 0.1), (50, 0.5), (30, 1.0)])
def test_rows_are_drawn_independently_at_their_rate(rows: int, rate: float) -> None:
    """Sizes are binomial in mean and variance, and every row comes equally often."""
    draws = 4000
    generator = seeds.numpy_generator(5, "test")
    sizes, seen = np.zeros(draws), np.zeros(rows)
    for draw in range(draws):
        batch = poisson_batch(rows, rate, generator)
        assert (np.diff(batch) > 0).all()
        sizes[draw] = len(batch)
        seen[batch] += 1
    spread = np.sqrt(rows * rate * (1 - rate))
    assert abs(sizes.mean() - rows * rate) <= 5 * spread / np.sqrt(draws)
    assert sizes.std() == pytest.approx(spread, rel=0.06)
    assert np.abs(seen / draws - rate).max() <= 5 * np.sqrt(rate * (1 - rate) / draws)


def test_a_batch_may_be_empty() -> None:
    generator = seeds.numpy_generator(5, "test")
    assert min(len(poisson_batch(3, 0.1, generator)) for _ in range(50)) == 0


def test_a_client_without_rows_draws_nothing_and_takes_no_step() -> None:
    assert (sampling_rate(0, 32), expected_batch(0, 32), steps_of(0, 32, 3)) == (0.0, 0.0, 0)
    assert len(poisson_batch(0, 0.0, seeds.numpy_generator(5, "test"))) == 0


@given(st.integers(0, 10**7), st.integers(1, 5000))
def test_rate_and_divisor_say_how_many_units_were_declared(units: int, batch_size: int) -> None:
    """So that the steps of a pass follow from what was planned, whatever rows there are."""
    assert declared_units(sampling_rate(units, batch_size), expected_batch(units, batch_size)) == units


def test_a_pass_takes_the_scenarios_steps_or_epochs_or_epochs_of_its_own() -> None:
    assert steps_of_pass(100, 30, None, epochs=2, steps=None) == 8
    assert steps_of_pass(100, 30, None, epochs=1, steps=5) == 5
    assert steps_of_pass(100, 30, 3, epochs=1, steps=5) == 12
    assert [steps_of_pass(0, 30, own, epochs=1, steps=5) for own in (None, 3)] == [0, 0]


@given(st.lists(st.integers(0, 9), max_size=40), st.sets(st.integers(0, 9)))
def test_drawn_units_bring_all_their_rows(owner: list[int], wanted: set[int]) -> None:
    units = np.unique(owner, return_inverse=True)[1].astype(np.int64)
    drawn = np.array(sorted(wanted & set(units.tolist())), dtype=np.int64)
    rows, owners = rows_of(drawn, units)
    assert rows.tolist() == [row for row, unit in enumerate(units) if unit in wanted]
    assert drawn[owners].tolist() == units[rows].tolist()
