"""Evidence against the same quantities written out in full, and what guesses by it achieve where that is known."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fedsim.audit.evidence import client_evidence, row_evidence

FLOOR = 1e-4


def unit_rows(count: int, size: int, rng: np.random.Generator) -> Tensor:
    rows = rng.normal(size=(count, size))
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("held", [10, 40])
@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_row_evidence_is_the_likelihood_ratio(noise: float, held: int, rate: float) -> None:
    """For each canary: mean and covariance of a release with its coin and draw known, in full [D, D] matrices.

    The variance that noise adds in every direction is the likeliest of a grid of tenths of a decade.
    """
    rng = np.random.default_rng(5)
    size, units = 60, 40
    canaries, others = unit_rows(6, size, rng), 0.4 * unit_rows(held, size, rng)
    g, h = canaries.numpy(), others.numpy()
    u = rate * units * h.mean(0) + g[:2].sum(0) + noise * rng.normal(size=size)
    of_other = (rate * (1 - rate) + rate**2 * (units / held - 1)) * units / held
    of_canary = rate / 2 - rate**2 / 4

    def log_density(known: np.ndarray, rest: np.ndarray, variance: float) -> float:
        mean = rate * units * h.mean(0) + rate / 2 * rest.sum(0) + known
        covariance = variance * np.eye(size) + of_other * h.T @ h + of_canary * rest.T @ rest
        return float(stats.multivariate_normal.logpdf(u, mean, covariance, allow_singular=True))

    nothing, absent = np.zeros(size), unit_rows(8, size, rng)
    variance = max((10 ** (each / 10) for each in range(-40, 61)), key=lambda v: log_density(nothing, g, v))
    assert max(noise**2, 1e-4) / 3 <= variance <= 3 * max(noise**2, 1e-4)
    mean = rate * units * h.mean(0) + rate / 2 * g.sum(0)
    metric = np.linalg.inv(variance * np.eye(size) + of_other * h.T @ h + of_canary * g.T @ g)
    excess = max(1.0, np.mean([(p @ metric @ (u - mean)) ** 2 / (p @ metric @ p) for p in absent.numpy()]))
    expected = []
    for own in range(len(g)):
        rest = np.delete(g, own, axis=0)
        there, away = (log_density(known, rest, variance) for known in (g[own], nothing))
        ratio = (there - away) / excess  # as if all variances were larger by that
        expected.append(np.logaddexp(np.log1p(-rate) if rate < 1 else -np.inf, np.log(rate) + ratio))
    found = row_evidence(torch.from_numpy(u), canaries, absent, others, units, rate, 1.0)
    assert np.allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_guesses_on_rows_are_as_good_as_noise_allows() -> None:
    """T steps that all canaries enter, alone and at right angles: right with probability Phi(sqrt(T) / 2 z)."""
    rng, z, steps, count = np.random.default_rng(7), 4.0, 16, 400
    inside = rng.random(count) < 0.5
    everything = torch.eye(count + 100, dtype=torch.float64)
    canaries, absent, others = everything[:count], everything[count:], torch.zeros(1, count + 100, dtype=torch.float64)
    evidence = torch.zeros(count, dtype=torch.float64)
    for _ in range(steps):
        released = torch.from_numpy(z * rng.normal(size=count + 100))
        released[:count] += torch.from_numpy(inside)
        evidence += row_evidence(released, canaries, absent, others, 1, 1.0, 1.0)
    right = int(((evidence.numpy() > 0) == inside).sum())
    expected = stats.norm.cdf(np.sqrt(steps) / (2 * z))
    assert abs(right / count - expected) < 4 * np.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize("rate", [0.2, 1.0])
@pytest.mark.parametrize("variance", [0.05, 2.0])
def test_client_evidence_is_the_likelihood_ratio(rate: float, variance: float) -> None:
    values = np.linspace(-2, 3, 11)
    deviation = np.sqrt(variance + FLOOR)
    there = (1 - rate) * stats.norm.pdf(values, 0, deviation) + rate * stats.norm.pdf(values, 1, deviation)
    expected = np.log(there / stats.norm.pdf(values, 0, deviation))
    assert np.allclose(client_evidence(torch.from_numpy(values), rate, variance).numpy(), expected)


def test_without_noise_a_single_participation_is_enough() -> None:
    evidence = sum(client_evidence(torch.tensor([y, 0.0]), 0.1, 0.0) for y in (0.0, 0.0, 1.0, 0.0))
    assert isinstance(evidence, Tensor) and evidence[0] > 0 > evidence[1]
