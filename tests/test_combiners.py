"""How updates become one: chunks depend on the cohort alone, and folds are ordinary sums."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.combiners import FEWEST_CHUNKS, MOST_CHUNKS, Fold, chunk_numbers, mean

sizes = st.lists(st.integers(1, 10_000), min_size=1, max_size=300)


@given(sizes)
def test_chunks_are_contiguous_and_neither_few_nor_tiny(rows: list[int]) -> None:
    """A client each as far as 16; then more only where each holds eight clients or more, to 64 at most."""
    numbers = chunk_numbers(rows)
    assert numbers[0] == 0
    assert all(after - before in (0, 1) for before, after in pairwise(numbers))
    count = numbers[-1] + 1
    assert min(len(rows), FEWEST_CHUNKS) <= count <= min(len(rows), MOST_CHUNKS)
    assert count <= FEWEST_CHUNKS or len(rows) >= 8 * count


@given(sizes)
def test_a_chunk_exceeds_an_equal_share_by_less_than_its_last_client(rows: list[int]) -> None:
    """It is closed as soon as the rows so far reach its share of the total."""
    numbers = chunk_numbers(rows)
    count, total, largest = numbers[-1] + 1, sum(rows), max(rows)
    for chunk in range(count):
        held = sum(size for size, number in zip(rows, numbers, strict=True) if number == chunk)
        assert held <= total / count + 2 * largest


@given(sizes, st.integers(1, 40))
def test_a_stack_lies_in_one_chunk(rows: list[int], stack: int) -> None:
    """Of near-equal rows, as stacks allow; so that its bits do not depend on where the chunk is trained."""
    numbers, stacks = chunk_numbers(rows, stack), -(-len(rows) // stack)
    assert all(len(set(numbers[start : start + stack])) == 1 for start in range(0, len(rows), stack))
    assert all(after - before in (0, 1) for before, after in pairwise([0, *numbers]))
    assert min(stacks, FEWEST_CHUNKS) <= numbers[-1] + 1 <= min(stacks, MOST_CHUNKS)


def test_no_clients_make_no_chunks() -> None:
    """A Poisson cohort may be empty."""
    assert chunk_numbers([]) == chunk_numbers([], 3) == []


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(0.1, 100)), min_size=1, max_size=20))
def test_sum_then_divide_is_the_weighted_mean(pairs: list[tuple[float, float]]) -> None:
    updates = torch.tensor([[value, 2 * value] for value, _ in pairs], dtype=torch.float64)
    weights = torch.tensor([weight for _, weight in pairs], dtype=torch.float64)
    running = Fold()
    for update, weight in zip(updates, weights.tolist(), strict=True):
        running.add(update, weight)
    assert running.total is not None
    expected = (updates * weights[:, None]).sum(0) / weights.sum()
    assert torch.allclose(running.total / weights.sum(), expected, atol=1e-9)
    assert torch.allclose(mean(updates, weights), expected, atol=1e-9)


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_folding_leaves_its_vectors_alone(weight: float) -> None:
    """A sum begins with its first vector itself, and is never added to in place until it is its own."""
    vectors = [torch.ones(3), torch.ones(3)]
    running = Fold()
    for vector in vectors:
        running.add(vector, weight)
    assert running.total is not None
    assert running.total.tolist() == [2 * weight] * 3
    assert all(vector.tolist() == [1.0] * 3 for vector in vectors)


def test_nothing_folds_to_nothing() -> None:
    assert Fold().total is None
