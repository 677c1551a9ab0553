"""Secret coins: what a mechanism draws is right, can be had by nobody again, and nothing else of a run has changed."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fedsim import seeds
from fedsim.errors import ClientError, PrivacyError
from fedsim.job import Job, with_secret_coins
from fedsim.local import Contribution, Received, Work
from fedsim.privacy.normals import add_normal
from tests import small
from tests.strategies.exchange import Server, uploads

ALARM = 1e-8
"""Of one statistical test of honest coins; all of this file together stay below 1e-6."""
CLIP, NOISE = 0.5, 1.5
LEVELS: dict[str, small.Changes] = {
    "example": {"privacy.example": {"noise_multiplier": NOISE, "delta": 1e-3, "max_grad_norm": CLIP}},
    "client": {"privacy.client": {"noise_multiplier": NOISE, "delta": 1e-2, "clip": CLIP}, "cohort.poisson": 0.5},
    "local": {"privacy.local": {"noise_multiplier": NOISE, "delta": 1e-3, "clip": CLIP}},
}
UNIFORM: small.Changes = {"strategy": {"name": "fedavg", "weights": "uniform"}}


def job(level: str, changes: small.Changes = small.NOTHING) -> Job:
    """A small job at a level of privacy, with coins of the seed."""
    table = {**LEVELS.get(level, {}), **UNIFORM, "model": {"name": "mlp", "hidden": [32]}}
    return small.job({**table, **changes})


def trained(on: Work, client: int = 0, round: int = 1) -> Contribution:
    """What a client makes of the first model."""
    return on.train(client, round, Received(on.initial, {}), None)


def normal(values: np.ndarray, deviation: float) -> None:
    """Values look like N(0, deviation^2): their distribution, their mean, their spread and their tails."""
    standard, size = values / deviation, len(values)
    assert stats.kstest(standard, "norm").pvalue > ALARM
    assert abs(standard.mean()) * math.sqrt(size) < stats.norm.isf(ALARM / 2)
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], size)
    assert low < (standard**2).sum() < high
    beyond = int((np.abs(standard) > 3.5).sum())
    assert stats.binomtest(beyond, size, 2 * stats.norm.sf(3.5)).pvalue > ALARM


def apart(one: np.ndarray, other: np.ndarray) -> None:
    """Two draws have nothing to do with each other."""
    assert abs(np.corrcoef(one, other)[0, 1]) * math.sqrt(len(one)) < stats.norm.isf(ALARM / 2)


# --- the draws


def test_normal_draws_are_normal_and_independent() -> None:
    """Also across the blocks in which they are made, and within a pair that shares a radius."""
    draw = seeds.secret(1, "noise")
    values = draw.standard_normal(5 * 2**15 + 7)
    assert values.dtype == np.float64 and np.isfinite(values).all()
    normal(values, 1.0)
    pairs = values[: 4 * 2**15].reshape(4, 2, -1)
    for power in (1, 2):
        apart(pairs[:, 0].ravel() ** power, pairs[:, 1].ravel() ** power)
        apart(values[:-1] ** power, values[1:] ** power)
    apart(values, draw.standard_normal(len(values)))
    assert [len(draw.standard_normal(size)) for size in (0, 1, 2, 3)] == [0, 1, 2, 3]


def test_uniform_draws_are_uniform_and_below_one() -> None:
    values = seeds.secret(1, "batches").random(200_000)
    assert values.min() >= 0 and values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > ALARM
    low_bits = (values * 2.0**53).astype(np.int64) & 1
    assert stats.binomtest(int(low_bits.sum()), len(values)).pvalue > ALARM, "all 53 bits are random"


def test_a_choice_is_of_different_values_each_as_likely() -> None:
    counts = np.zeros(10)
    for _ in range(4_000):
        chosen = seeds.secret(1, "cohort").choice(np.arange(10), 3, False, shuffle=False)
        assert len(set(chosen.tolist())) == 3
        counts[chosen] += 1
    # of draws without replacement counts vary by a factor (N - n) / (N - 1) less
    assert stats.chi2.sf(((counts - 1200) ** 2 / 1200).sum() * 9 / 7, 9) > ALARM
    with pytest.raises(ValueError, match="without replacement"):
        seeds.secret(1, "cohort").choice(np.arange(10), 3, True, shuffle=False)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_noise_is_added_at_its_size(kind: torch.dtype) -> None:
    start = torch.linspace(-1, 1, 50_001, dtype=kind)
    found = add_normal(start.clone(), 0.25, seeds.secret(1, "noise"))
    assert found.dtype == kind
    normal((found.double() - start.double()).numpy(), 0.25)


def test_a_sum_near_zero_does_not_tell_the_bits_of_what_was_noised() -> None:
    """Float32 noise close to 1 is a multiple of 2^-24, and -1 plus it too; of what is rounded last hardly any is."""
    found = add_normal(torch.full((400_000,), -1.0), 1.0, seeds.secret(1, "noise"))
    small_ones = found[found.abs() < 2**-6].double()
    assert len(small_ones) > 1_000
    told = (small_ones * 2**24).frac() == 0
    seeded = add_normal(torch.full((400_000,), -1.0), 1.0, seeds.numpy_generator(1, "noise"))
    near = seeded[seeded.abs() < 2**-6].double()
    assert bool(((near * 2**25).frac() == 0).all()), "so a simulation's do tell, whose seed tells everything anyway"
    assert float(told.double().mean()) < 0.2


# --- a run's draws


@contextmanager
def no_generator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside the block no generator of NumPy is made, none of torch is asked, and no global one moves."""

    def forbidden(*_: object, **__: object) -> Any:
        raise AssertionError("a generator that can be seeded was asked")

    moved: list[bool] = []
    seeding = seeds.seed_globals

    def seeded(*name: Any) -> None:
        seeding(*name)
        states.append(known())

    def known() -> tuple[object, ...]:
        return torch.default_generator.get_state().numpy().tobytes(), repr(np.random.get_state()), random.getstate()

    states = [known()]
    with monkeypatch.context() as patch:
        patch.setattr(seeds, "seed_globals", seeded)
        for name in ("PCG64", "default_rng", "normal", "standard_normal", "random", "rand", "randn"):
            patch.setattr(np.random, name, forbidden)
        for name in ("randn", "rand", "normal", "bernoulli", "randn_like", "rand_like", "randperm"):
            patch.setattr(torch, name, forbidden)
        for name in ("normal_", "uniform_", "bernoulli_", "random_"):
            patch.setattr(Tensor, name, forbidden)
        yield
        moved.append(known() != states[-1])
    assert moved == [False]


def test_example_level_asks_no_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches and noise of a client that trains."""
    on, seeded = Work(with_secret_coins(job("example"))), Work(job("example"))
    trained(on), trained(seeded)  # the first pass tries gradients on rows that are made up
    with no_generator(monkeypatch):
        assert trained(on).steps
    with pytest.raises(ClientError, match="a generator that can be seeded"), no_generator(monkeypatch):
        trained(seeded)


def test_local_level_noises_an_upload_without_a_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows at once, so that nothing but noise is drawn."""
    on = Work(with_secret_coins(job("local", {"strategy": {"name": "fedsgd", "weights": "uniform"}})))
    with no_generator(monkeypatch):
        trained(on)


@pytest.mark.parametrize("adaptive", [None, {}])
def test_client_level_draws_cohorts_and_noise_without_a_generator(
    monkeypatch: pytest.MonkeyPatch, adaptive: dict[str, Any] | None
) -> None:
    table = {**LEVELS["client"]["privacy.client"], **({} if adaptive is None else {"adaptive": adaptive})}
    secret = with_secret_coins(job("client", {"privacy.client": table}))
    server = Server(Work(secret))
    with no_generator(monkeypatch):
        nothing: dict[int, Tensor | str] = dict.fromkeys(range(secret.federation.clients), "error")
        for _ in range(3):
            server.round(nothing)
    assert server.strategy.cohorts.participations.any()


def test_a_seed_tells_nothing_of_a_local_upload() -> None:
    """Two uploads of one seed, round and client differ by two independent noises; the seed's noise is none of them."""
    secret, seeded = Work(with_secret_coins(job("local"))), Work(job("local"))
    one, other, simulated, again = (trained(on).vector.double().numpy() for on in (secret, secret, seeded, seeded))
    assert np.array_equal(simulated, again)
    normal(one - other, math.sqrt(2) * NOISE * CLIP)
    normal(one - simulated, math.sqrt(2) * NOISE * CLIP)
    noise = seeds.numpy_generator(1, "upload noise", 1, 0).standard_normal(len(one))
    apart(one, noise)
    assert abs(np.corrcoef(simulated, noise)[0, 1]) > 0.9, "with the seed's coins everybody knows the noise"


def test_a_seed_tells_nothing_of_a_private_step() -> None:
    """With every row in the batch and one step, two uploads differ by noise alone."""
    alike = {"train.steps": 1, "train.epochs": None, "train.batch_size": 2000, "train.learning_rate": 1.0}
    on = Work(with_secret_coins(job("example", alike)))
    rows = int(on.federation.train_rows[0])
    one, other = (trained(on).vector.double().numpy() for _ in range(2))
    normal(one - other, math.sqrt(2) * NOISE * CLIP / rows)


def test_poisson_batches_of_a_round_are_drawn_anew() -> None:
    """Almost without noise, one round of one seed trains on other rows each time."""
    quiet = {**LEVELS["example"]["privacy.example"], "noise_multiplier": 1e-50}
    on = Work(with_secret_coins(job("example", {"privacy.example": quiet})))
    assert not torch.equal(trained(on).vector, trained(on).vector)


def test_what_no_promise_rests_on_follows_the_seed_as_before() -> None:
    """The first model, and the order of batches: without privacy, and beneath the noise of an upload."""
    assert torch.equal(Work(with_secret_coins(job("none"))).initial.vector, Work(job("none")).initial.vector)
    quiet = {**LEVELS["local"]["privacy.local"], "noise_multiplier": 1e-50}
    for plain in (job("none"), job("local", {"privacy.local": quiet})):
        one, other = (trained(Work(each)).vector for each in (plain, with_secret_coins(plain)))
        assert torch.equal(one, other)


def test_poisson_cohorts_are_drawn_anew_and_fixed_ones_are_not() -> None:
    """A cohort is part of the proof only where chance hides who is in it."""
    clients = {"data.partition": {"kind": "iid", "clients": 60}}
    table = LEVELS["client"]["privacy.client"]
    poisson = with_secret_coins(job("client", clients))
    cohorts = poisson.cohorts()
    drawn = [cohorts.draw(round) for round in range(1, 101)]
    assert drawn[0] != poisson.cohorts().draw(1), "which happens by chance once in 10^18 times"
    assert stats.binomtest(sum(map(len, drawn)), 6000, 0.5).pvalue > ALARM
    fixed = job("none", {**clients, "privacy.client": table, "cohort.size": 20})
    assert with_secret_coins(fixed).cohorts().draw(1) == fixed.cohorts().draw(1)
    hidden = {**table, "relation": "replace", "amplified": True, "accountant": "rdp"}
    amplified = with_secret_coins(job("none", {**clients, "privacy.client": hidden, "cohort.size": 20}))
    one, other = amplified.cohorts().draw(1), amplified.cohorts().draw(1)
    assert len(one) == len(other) == 20 and one != other


def test_a_tree_is_refused_with_the_reason() -> None:
    """It takes earlier nodes' noise off again; kept for that it would lie beside the models."""
    tree = {**LEVELS["client"]["privacy.client"], "mechanism": "tree", "min_separation": 2}
    prepared = job("none", {"privacy.client": tree, "cohort.size": 2})
    with pytest.raises(PrivacyError, match=r"'tree'.*kept with the models.*'gaussian'"):
        with_secret_coins(prepared)


def test_a_resumed_run_keeps_its_rounds_and_draws_later_ones_anew() -> None:
    """After a checkpoint model and participations are what they were; the next release has noise of its own."""
    table = LEVELS["client"]["privacy.client"]
    on = Work(with_secret_coins(job("none", {"privacy.client": table, "cohort.size": 3})))
    first = Server(on)
    before = first.round(uploads(on)).clone()
    kept, after = first.strategy.snapshot(), []
    for _ in range(2):
        again = Server(on)
        again.strategy.restore(1, kept)
        again.messages()  # of round 1, which is not asked again
        again.strategy.restore(1, kept)
        assert torch.equal(again.strategy.weights.vector, before)
        assert np.array_equal(again.strategy.cohorts.participations, kept.participations)
        after.append((again.round(uploads(on)).double().numpy(), again.strategy.cohorts.participations.copy()))
    (one, drawn), (other, same) = after
    assert np.array_equal(drawn, same) and drawn.sum() == 6, "each round is charged once"
    normal(one - other, math.sqrt(2) * NOISE * CLIP / 3)
