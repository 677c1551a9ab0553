"""Power: planted bugs are refuted by audits of one release, repeated in both worlds; the mechanism as it is stands.

A bug is a patch of one of the real functions. Claims are exact for the releases that a score looks at.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import fedsim.local
from fedsim import seeds
from fedsim.flower import AlgorithmStrategy
from fedsim.job import Job
from fedsim.privacy import client, example
from fedsim.training import LocalClient
from tests.audit.repeated import (
    DELTA,
    Scores,
    claim,
    one_round,
    one_step,
    quietness,
    two_rounds,
    two_steps,
)
from tests.audit.worlds import split_bound

Plant = Callable[[pytest.MonkeyPatch], None]
REPETITIONS = [100, pytest.param(5000, marks=[pytest.mark.proof, pytest.mark.timeout(3000)])]


def bound(scores: Scores, repetitions: int) -> float:
    """Of an audit with so many repetitions in either world."""
    return split_bound(scores(True, repetitions), scores(False, repetitions), DELTA)


def step_without_noise(patch: pytest.MonkeyPatch) -> None:
    real = example.noisy_gradient
    patch.setattr(
        example, "noisy_gradient", lambda total, noise, clip, divisor, draws: real(total, 0.0, clip, divisor, draws)
    )


def step_without_clip(patch: pytest.MonkeyPatch) -> None:
    real = example.clipped_gradient_sum
    patch.setattr(example, "clipped_gradient_sum", lambda flat, losses, clip, **keys: real(flat, losses, 1e9, **keys))


def step_with_old_noise(patch: pytest.MonkeyPatch) -> None:
    """Two rounds share their draws."""

    def draws(self: LocalClient, purpose: str) -> np.random.Generator:
        return seeds.numpy_generator(self.work.job.scenario.seed, purpose, self.round // 2, self.number)

    patch.setattr(LocalClient, "_coins", draws)


def round_without_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(client, "gaussian", lambda size, *_: torch.zeros(size, dtype=torch.float64))


def round_without_clip(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fedsim.local, "clipped", lambda vector, clip: vector)


def round_divided_by_who_answered(patch: pytest.MonkeyPatch) -> None:
    real = AlgorithmStrategy._combined

    def combined(self: AlgorithmStrategy, round: int, answered: list[int], sound: dict[int, object]) -> Tensor:
        assert self._releasing is not None
        return real(self, round, answered, sound) * (self._releasing.size / len(answered))  # type: ignore[arg-type]

    patch.setattr(AlgorithmStrategy, "_combined", combined)


def round_with_old_noise(patch: pytest.MonkeyPatch) -> None:
    """Two rounds share their draws."""
    real = Job.draws
    patch.setattr(Job, "draws", lambda self, purpose, number: real(self, purpose, number // 2))


BUGS: list[tuple[Plant, Scores, int]] = [
    (step_without_noise, one_step, 1),
    (step_without_clip, one_step, 1),
    (step_with_old_noise, two_steps, 2),
    (round_without_noise, one_round, 1),
    (round_without_clip, one_round, 1),
    (round_divided_by_who_answered, quietness, 1),
    (round_with_old_noise, two_rounds, 2),
]


@pytest.mark.parametrize("repetitions", REPETITIONS)
@pytest.mark.parametrize(("plant", "scores", "releases"), BUGS, ids=[plant.__name__ for plant, _, _ in BUGS])
def test_a_planted_bug_is_refuted(
    plant: Plant, scores: Scores, releases: int, repetitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert bound(scores, repetitions) > claim(releases)


@pytest.mark.parametrize("repetitions", REPETITIONS)
@pytest.mark.parametrize(
    ("scores", "releases"), [(one_step, 1), (two_steps, 2), (one_round, 1), (two_rounds, 2), (quietness, 1)]
)
def test_the_mechanism_as_it_is_stands(scores: Scores, releases: int, repetitions: int) -> None:
    """And what the audit shows of it is not nothing, where there are enough repetitions and the score is good."""
    shown = bound(scores, repetitions)
    assert shown <= claim(releases)
    if repetitions > 1000 and scores in (one_step, one_round):
        assert shown > claim(releases) / 10
