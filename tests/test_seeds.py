"""Draws depend on their name alone, and whoever draws globally leaves no trace."""

import random
import subprocess
import sys

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim import seeds

names = st.tuples(st.integers(0, 2**40), st.text(max_size=8), st.integers(0, 1000), st.integers(0, 10**6))


@given(names, names)
def test_other_names_give_other_draws(one: tuple[int, str, int, int], other: tuple[int, str, int, int]) -> None:
    draws = [seeds.numpy_generator(*name).random(4).tolist() for name in (one, other)]
    assert (draws[0] == draws[1]) == (one == other)
    assert (seeds.integer(*one) == seeds.integer(*other)) == (one == other)


def test_numbers_and_texts_differ() -> None:
    """("a", 1), ("a1",) and ("a", "1") are three names."""
    assert len({seeds.digest("a", 1), seeds.digest("a1"), seeds.digest("a", "1")}) == 3


@given(names)
def test_an_integer_fits_a_signed_word(name: tuple[int, str, int, int]) -> None:
    assert 0 <= seeds.integer(*name) < 2**63


def test_fractions_are_even() -> None:
    """By them rows are split into shares: with 2,000 keys a tenth holds 200, give or take six deviations."""
    counts, _ = np.histogram([seeds.fraction(1, "split", key) for key in range(2000)], bins=10, range=(0, 1))
    assert np.abs(counts - 200).max() < 6 * np.sqrt(180)


def global_draws() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.random()), random.random()


def test_a_scope_repeats_its_draws_and_puts_the_generators_back() -> None:
    """Also when its block raises."""
    with seeds.scope(5, "outside"):
        undisturbed = [global_draws(), global_draws()]
    with seeds.scope(5, "outside"):
        disturbed = [global_draws()]
        with seeds.scope(1, "train", 2, 3):
            first = global_draws()
        try:
            with seeds.scope(1, "train", 2, 3):
                assert global_draws() == first
                raise ValueError
        except ValueError:
            disturbed.append(global_draws())
    assert disturbed == undisturbed
    assert first not in undisturbed


def test_another_process_draws_the_same() -> None:
    """Nothing of a process (its hash seed, what it imported) enters."""
    program = "from fedsim import seeds; print(seeds.integer(1, 'train', 2, 3), seeds.fraction(1, 'split', 'ann'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(seeds.integer(1, "train", 2, 3)), str(seeds.fraction(1, "split", "ann"))]
