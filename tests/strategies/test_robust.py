"""Robust combiners: against plain NumPy, and what each keeps with f attackers anywhere."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fedsim.algorithm import Algorithm, add_update, local_update
from fedsim.combiners import COLUMNS, mean
from fedsim.strategies.bulyan import bulyan
from fedsim.strategies.centred_clipping import centred_clipping
from fedsim.strategies.krum import krum
from fedsim.strategies.median import median
from fedsim.strategies.multi_krum import multi_krum
from fedsim.strategies.norm_bounding import norm_bounding
from fedsim.strategies.rfa import rfa
from fedsim.strategies.trimmed_mean import trimmed_mean

Array = NDArray[Any]
Drawn = st.DataObject

ALL = [median, trimmed_mean, krum, multi_krum, bulyan, rfa, centred_clipping, norm_bounding]
GUARD = {krum, multi_krum, bulyan}
"""Those that are told f."""

every = pytest.mark.parametrize("strategy", ALL, ids=lambda strategy: strategy.__name__)
seeds = st.integers(0, 2**32 - 1)


def some(seed: int, clients: int, size: int) -> Array:
    return np.random.default_rng(seed).normal(size=(clients, size))


def integers(seed: int, clients: int) -> Array:
    """Weights that count something, so that a weighted median can be taken by repeating."""
    return np.random.default_rng(seed).integers(1, 6, clients).astype(np.float64)


def combined(algorithm: Algorithm, updates: Array, weights: Array, previous: Array | None = None) -> Array:
    """In the order given, where ties are broken as by an oracle that takes the first."""
    before = np.zeros_like(updates[0]) if previous is None else previous
    result = algorithm.combine.combine(torch.tensor(updates), torch.tensor(weights), torch.tensor(before))
    return np.asarray(result)


# Oracles: (updates [n, P], weights [n], previous [P]) -> [P]


def oracle_median(updates: Array, weights: Array, previous: Array) -> Array:
    return np.asarray(np.median(np.repeat(updates, weights.astype(int), axis=0), axis=0))


def oracle_trimmed_mean(updates: Array, weights: Array, previous: Array, beta: float = 0.2) -> Array:
    cut = math.floor(beta * len(updates))
    result = []
    for column in updates.T:
        kept = sorted(zip(column, weights, strict=True))[cut : len(updates) - cut]
        result.append(sum(value * weight for value, weight in kept) / sum(weight for _, weight in kept))
    return np.array(result)


def krum_scores(updates: Array, f: int) -> list[float]:
    result = []
    for i, update in enumerate(updates):
        others = sorted(((update - other) ** 2).sum() for j, other in enumerate(updates) if j != i)
        result.append(sum(others[: max(1, len(updates) - f - 2)]))
    return result


def oracle_krum(updates: Array, weights: Array, previous: Array, f: int = 1) -> Array:
    return np.asarray(updates[np.argmin(krum_scores(updates, f))])


def oracle_multi_krum(updates: Array, weights: Array, previous: Array, f: int = 1, m: int | None = None) -> Array:
    best = np.argsort(krum_scores(updates, f), kind="stable")[: len(updates) - f - 2 if m is None else m]
    return np.asarray(np.average(updates[best], axis=0, weights=weights[best]))


def oracle_bulyan(updates: Array, weights: Array, previous: Array, f: int = 1) -> Array:
    left, chosen = list(range(len(updates))), list[int]()
    for _ in range(len(updates) - 2 * f):
        chosen.append(left.pop(int(np.argmin(krum_scores(updates[left], f)))))
    result = []
    for column in updates[chosen].T:
        near = sorted(range(len(chosen)), key=lambda row: abs(column[row] - np.median(column)))
        near = near[: len(chosen) - 2 * f]
        result.append(np.average(column[near], weights=weights[chosen][near]))
    return np.array(result)


def oracle_rfa(updates: Array, weights: Array, previous: Array, iterations: int = 3, nu: float = 1e-6) -> Array:
    centre = oracle_median(updates, weights, previous)
    for _ in range(iterations):
        pulls = [w / max(nu, math.dist(update, centre)) for update, w in zip(updates, weights, strict=True)]
        centre = np.average(updates, axis=0, weights=pulls)
    return centre


def oracle_centred_clipping(
    updates: Array, weights: Array, previous: Array, tau: float | None = None, iterations: int = 1
) -> Array:
    centre = previous
    for _ in range(iterations):
        lengths = [math.dist(update, centre) for update in updates]
        longest = sorted(lengths)[(len(lengths) - 1) // 2] if tau is None else tau
        steps = [
            (update - centre) * min(1.0, longest / length) if length else update - centre
            for update, length in zip(updates, lengths, strict=True)
        ]
        centre = centre + np.average(steps, axis=0, weights=weights)
    return centre


def oracle_norm_bounding(updates: Array, weights: Array, previous: Array, bound: float | None = None) -> Array:
    return oracle_centred_clipping(updates, weights, np.zeros_like(previous), bound)


ORACLES: dict[Any, Callable[..., Array]] = {
    median: oracle_median,
    trimmed_mean: oracle_trimmed_mean,
    krum: oracle_krum,
    multi_krum: oracle_multi_krum,
    bulyan: oracle_bulyan,
    rfa: oracle_rfa,
    centred_clipping: oracle_centred_clipping,
    norm_bounding: oracle_norm_bounding,
}


def draw_settings(draw: Drawn, strategy: Any, clients: int) -> dict[str, Any]:
    """Hyper-parameters, also non-default ones, that this many clients allow."""
    if strategy in GUARD:
        f = draw.draw(st.integers(0, (clients - 3) // (4 if strategy is bulyan else 2)), "f")
        m = draw.draw(st.none() | st.integers(1, clients - f), "m") if strategy is multi_krum else None
        return {"f": f} | ({"m": m} if m else {})
    choices: dict[Any, st.SearchStrategy[dict[str, Any]]] = {
        trimmed_mean: st.fixed_dictionaries({"beta": st.sampled_from([0.0, 0.125, 0.25, 0.375, 0.4921875])}),
        rfa: st.fixed_dictionaries({"iterations": st.integers(1, 6), "nu": st.sampled_from([1e-6, 0.5])}),
        centred_clipping: st.fixed_dictionaries(
            {"tau": st.sampled_from([None, 0.3, 1.0]), "iterations": st.integers(1, 4)}
        ),
        norm_bounding: st.fixed_dictionaries({"bound": st.sampled_from([None, 0.3, 1.0])}),
    }
    return draw.draw(choices.get(strategy, st.just({})), "settings")


@every
@given(draw=st.data(), seed=seeds, size=st.integers(1, 6))
def test_a_combiner_is_its_formula(strategy: Any, draw: Drawn, seed: int, size: int) -> None:
    clients = draw.draw(st.integers(3 if strategy in GUARD else 1, 13), "clients")
    settings = draw_settings(draw, strategy, clients)
    updates, weights, previous = some(seed, clients, size), integers(seed, clients), some(seed + 1, 1, size)[0]
    found = combined(strategy(**settings), updates, weights, previous)
    assert np.allclose(found, ORACLES[strategy](updates, weights, previous, **settings), rtol=0, atol=1e-9)


@every
def test_blocks_of_columns_do_not_show(strategy: Any) -> None:
    """A vector longer than a block is one vector to every distance, and each of its coordinates is there."""
    updates, weights, previous = some(0, 11, 2 * COLUMNS + 5), integers(0, 11), some(1, 1, 2 * COLUMNS + 5)[0]
    expected = ORACLES[strategy](updates, weights, previous)
    assert np.allclose(combined(strategy(), updates, weights, previous), expected, rtol=0, atol=1e-9)


@every
@given(seed=seeds, clients=st.integers(7, 15), draw=st.data())
def test_the_order_of_clients_does_not_matter(strategy: Any, seed: int, clients: int, draw: Drawn) -> None:
    """To the bit, also where clients agree in a coordinate, in all, or in everything but their weight."""
    updates = torch.tensor(some(seed, clients, 5).round(draw.draw(st.integers(0, 8))), dtype=torch.float32)
    updates[1], updates[3] = updates[0], updates[2]
    weights, order = torch.tensor(integers(seed, clients)).float(), draw.draw(st.permutations(range(clients)))
    previous = torch.ones(5)
    combine = strategy().combine
    assert torch.equal(combine(updates, weights, previous), combine(updates[order], weights[order], previous))


@every
@given(seed=seeds, clients=st.integers(7, 15))
def test_updates_that_agree_are_the_result(strategy: Any, seed: int, clients: int) -> None:
    """To the bit: to agree is not to be attacked. Centred clipping's median distance is then that of them all."""
    one = torch.tensor(some(seed, 1, 5)[0], dtype=torch.float32)
    updates, weights = one.repeat(clients, 1), torch.tensor(integers(seed, clients)).float()
    combine = strategy().combine
    assert torch.equal(combine(updates, weights), one)
    assert torch.equal(combine(updates, weights, one), one)


@every
@pytest.mark.parametrize("clients", [7, 8])
def test_zero_updates_give_zero(strategy: Any, clients: int) -> None:
    """No division by a norm or a distance that is zero."""
    found = strategy().combine(torch.zeros(clients, 5), torch.ones(clients))
    assert torch.equal(found, torch.zeros(5))


@every
@pytest.mark.parametrize("idle", [4, 6])
def test_most_clients_doing_nothing_is_no_accident(strategy: Any, idle: int) -> None:
    """Medians of norms and distances are zero then; the result stays finite and no longer than the rest."""
    updates = torch.zeros(7, 5)
    updates[idle:] = torch.tensor(some(0, 7 - idle, 5), dtype=torch.float32)
    found = strategy().combine(updates, torch.ones(7))
    assert found.isfinite().all()
    assert found.norm() <= updates.norm(dim=1).max()


@every
@given(seed=seeds)
def test_one_update_is_taken_as_it_is(strategy: Any, seed: int) -> None:
    """By those that promise nothing about n; a combiner that is told f has a least n, which the platform checks."""
    combine = strategy().combine
    if combine.least == 1:
        one = torch.tensor(some(seed, 1, 5), dtype=torch.float32)
        assert torch.equal(combine(one, torch.tensor([3.0])), one[0])


@every
@given(seed=seeds, clients=st.integers(7, 12), scale=st.sampled_from([0.25, 8.0, 1024.0]))
def test_a_scaled_cohort_gives_the_scaled_result(strategy: Any, seed: int, clients: int, scale: float) -> None:
    """No default fits one learning rate only; RFA's nu alone is a length, and matters where the start is an update."""
    updates, weights, previous = some(seed, clients, 5), integers(seed, clients), some(seed + 1, 1, 5)[0]
    expected = scale * combined(strategy(), updates, weights, previous)
    scaled = rfa(nu=1e-6 * scale) if strategy is rfa else strategy()
    found = combined(scaled, scale * updates, weights, scale * previous)
    assert np.allclose(found, expected, rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize("strategy", [s for s in ALL if s is not norm_bounding], ids=lambda strategy: strategy.__name__)
@given(seed=seeds, clients=st.integers(7, 12), size=st.floats(0.1, 100))
def test_a_moved_cohort_gives_the_moved_result(strategy: Any, seed: int, clients: int, size: float) -> None:
    """Only differences between updates count; norm bounding alone knows where zero is."""
    updates, weights, previous = some(seed, clients, 5), integers(seed, clients), some(seed + 1, 1, 5)[0]
    move = size * some(seed + 2, 1, 5)[0]
    algorithm = strategy()
    expected = combined(algorithm, updates, weights, previous) + move
    assert np.allclose(combined(algorithm, updates + move, weights, previous + move), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "algorithm",
    [trimmed_mean(beta=0.0), multi_krum(f=0, m=9), centred_clipping(tau=1e30), norm_bounding(bound=1e30)],
    ids=lambda algorithm: algorithm.name,
)
@given(seed=seeds)
def test_what_leaves_nothing_out_is_the_mean(algorithm: Algorithm, seed: int) -> None:
    """With its weights, in float32 up to rounding."""
    updates = torch.tensor(some(seed, 9, 5), dtype=torch.float32)
    weights = torch.tensor(integers(seed, 9)).float()
    assert (algorithm.combine(updates, weights) - mean(updates, weights)).norm() <= 1e-6 * updates.norm()


@pytest.mark.parametrize(("beta", "clients", "trimmed"), [(0.29, 100, 29), (0.3, 10, 3), (0.1, 30, 3), (0.2, 4, 0)])
def test_trimming_counts_in_decimals(beta: float, clients: int, trimmed: int) -> None:
    """0.29 * 100 is 28.999999999999996 in floats, and means 29."""
    updates = torch.arange(clients).float()[:, None] ** 2
    found = trimmed_mean(beta=beta).combine(updates, torch.ones(clients))
    assert found.item() == pytest.approx(updates[trimmed : clients - trimmed].mean().item())


def test_trimming_always_keeps_a_value() -> None:
    """However close beta comes to a half."""
    assert trimmed_mean(beta=0.4999999999999).combine(torch.tensor([[1.0], [3.0]]), torch.ones(2)).item() == 2.0


# Guarantees


@st.composite
def attacked(draw: st.DrawFn, least: Callable[[int], int], most: int = 4) -> tuple[int, Array, Array]:
    """f, honest updates [n - f, P] and attackers' [f, P]: near or far, together or scattered; n >= least(f)."""
    f = draw(st.integers(0, most))
    honest = draw(st.integers(least(f) - f, least(f) - f + 6))
    size, seed = draw(st.integers(1, 6)), draw(seeds)
    distance = 10.0 ** draw(st.floats(-3, 30))
    attackers = some(seed + 1, f, size)
    if draw(st.booleans()):
        attackers[:] = some(seed + 2, 1, size)
    return f, some(seed, honest, size).astype(np.float32), (distance * attackers).astype(np.float32)


def everyone(honest: Array, attackers: Array) -> Tensor:
    return torch.tensor(np.concatenate([honest, attackers]), dtype=torch.float32)


def result(algorithm: Algorithm, honest: Array, attackers: Array, previous: Array | None = None) -> Array:
    updates = everyone(honest, attackers)
    before = None if previous is None else torch.tensor(previous, dtype=torch.float32)
    return algorithm.combine(updates, torch.ones(len(updates)), before).double().numpy()


def radius(honest: Array) -> tuple[Array, float]:
    """The honest mean, and how far from it an honest update lies at most."""
    centre = honest.astype(np.float64).mean(0)
    return centre, max(math.dist(update, centre) for update in honest)


@given(attacked(lambda f: 2 * f + 1))
def test_a_minority_cannot_move_the_median_out_of_the_honest_range(case: tuple[int, Array, Array]) -> None:
    _, honest, attackers = case
    found = result(median(), honest, attackers)
    assert (honest.min(0) <= found).all()
    assert (found <= honest.max(0)).all()


@given(attacked(lambda f: 2 * f + 1))
def test_the_trimmed_cannot_move_the_trimmed_mean_out_of_the_honest_range(case: tuple[int, Array, Array]) -> None:
    """Any f of the n, for a beta that leaves out as many."""
    f, honest, attackers = case
    found = result(trimmed_mean(beta=f / (f + len(honest))), honest, attackers)
    assert (honest.min(0) <= found).all()
    assert (found <= honest.max(0)).all()


def test_one_more_than_is_trimmed_can_move_it_anywhere() -> None:
    """The promise ends where it says: two far attackers of ten against a tenth."""
    honest, attackers = some(0, 8, 3), np.full((2, 3), 1e6)
    assert (result(trimmed_mean(beta=0.1), honest, attackers) > 1e4).all()
    assert (result(trimmed_mean(beta=0.2), honest, attackers) <= honest.max(0)).all()


@given(attacked(lambda f: 2 * f + 3), st.data())
def test_krum_and_multi_krum_stay_with_the_honest(case: tuple[int, Array, Array], draw: Drawn) -> None:
    """Whoever is taken has a score no worse than an honest one's, hence an honest neighbour this close."""
    f, honest, attackers = case
    n = f + len(honest)
    centre, r = radius(honest)
    farthest = r + 2 * r * math.sqrt((n - f - 2) / (n - 2 * f - 1))
    found = result(krum(f=f), honest, attackers)
    assert any(np.array_equal(found, update) for update in everyone(honest, attackers).double().numpy())
    assert math.dist(found, centre) <= farthest * (1 + 1e-5)
    m = draw.draw(st.none() | st.integers(1, n - f), "m")
    assert math.dist(result(multi_krum(f=f, m=m), honest, attackers), centre) <= farthest * (1 + 1e-5)


@given(st.integers(0, 4), st.integers(0, 5), seeds)
def test_krum_takes_an_honest_update_when_attackers_are_far(f: int, more: int, seed: int) -> None:
    """Even if all attackers send the same: f - 1 friends are fewer than the n - f - 2 neighbours that count."""
    honest, attackers = some(seed, f + 3 + more, 4).astype(np.float32), np.full((f, 4), 1e6)
    found = result(krum(f=f), honest, attackers)
    assert any(np.array_equal(found, update) for update in honest.astype(np.float64))


@given(attacked(lambda f: 4 * f + 3))
def test_bulyan_leaves_the_honest_range_by_its_width_at_most(case: tuple[int, Array, Array]) -> None:
    """The median is inside; the values kept are no farther from it than honest ones."""
    f, honest, attackers = case
    found = result(bulyan(f=f), honest, attackers)
    low, high = honest.min(0).astype(np.float64), honest.max(0).astype(np.float64)
    width = (high - low) * (1 + 1e-5)
    assert (low - width <= found).all()
    assert (found <= high + width).all()


def test_bulyan_guards_each_coordinate_where_krum_guards_the_whole() -> None:
    """El Mhamdi et al. 2018: in many dimensions an attacker within Krum's reach may put it all into one coordinate."""
    honest = some(0, 9, 1000)
    lone = honest.mean(0)
    lone[0] += 20
    attackers = lone[None]
    assert result(krum(f=1), honest, attackers)[0] > 15
    assert abs(result(bulyan(f=1), honest, attackers)[0]) < 3


@given(attacked(lambda f: 2 * f + 1))
def test_each_step_of_rfa_is_out_of_far_attackers_hands(case: tuple[int, Array, Array]) -> None:
    """A step's pull by an attacker is a unit vector times its weight, however far it stands; so also three steps."""
    f, honest, attackers = case
    centre, r = radius(honest)
    away = math.dist(result(median(), honest, attackers), centre)
    for iterations in (1, 2, 3):
        away = max(r, away) + f / len(honest) * (r + away)
        assert math.dist(result(rfa(iterations=iterations), honest, attackers), centre) <= away * (1 + 1e-5)


@given(attacked(lambda f: 3 * f + 1))
def test_rfa_approaches_a_point_within_the_geometric_medians_bound(case: tuple[int, Array, Array]) -> None:
    """Lopuhaa and Rousseeuw 1991: within 2 (1 - a) / (1 - 2 a) of the honest radius, with a share a < 1/2."""
    f, honest, attackers = case
    share = f / (f + len(honest))
    centre, r = radius(honest)
    found = result(rfa(iterations=50), honest, attackers)
    assert math.dist(found, centre) <= 2 * (1 - share) / (1 - 2 * share) * r * (1 + 1e-5)


def test_rfa_is_not_held_at_zero_by_a_client_that_sends_zero() -> None:
    """Weiszfeld's steps do not leave a point where an update is, and a free rider's update is no place to start."""
    honest = 1 + 0.1 * some(0, 9, 50)
    found = result(rfa(), honest, np.zeros((1, 50)))
    assert np.abs(found - 1).max() < 0.2


@given(attacked(lambda f: f + 1), st.floats(0.01, 10), st.data())
def test_an_attackers_share_of_clipping_is_its_weights(
    case: tuple[int, Array, Array], limit: float, draw: Drawn
) -> None:
    """Centred clipping moves by tau at most, norm bounding gives the bound at most, of which attackers decide a."""
    f, honest, attackers = case
    share = f / (f + len(honest))
    previous = some(draw.draw(seeds), 1, honest.shape[1])[0].astype(np.float32)
    for algorithm, start in ((centred_clipping(tau=limit), previous), (norm_bounding(bound=limit), 0 * previous)):
        rounding = 1e-5 * (limit + np.abs(honest).max() + np.abs(previous).max())
        found = result(algorithm, honest, attackers, previous)
        idle = result(algorithm, honest, np.tile(start, (f, 1)), previous)
        assert math.dist(found, start) <= limit + rounding
        assert math.dist(found, idle) <= share * limit + rounding


@given(attacked(lambda f: 2 * f + 1), seeds)
def test_a_minority_cannot_stretch_the_median_distance(case: tuple[int, Array, Array], seed: int) -> None:
    """So the default tau and bound are no more than an honest distance and norm."""
    _, honest, attackers = case
    previous = some(seed, 1, honest.shape[1])[0].astype(np.float32)
    found = result(centred_clipping(), honest, attackers, previous)
    assert math.dist(found, previous) <= max(math.dist(update, previous) for update in honest) * (1 + 1e-5)
    bounded = result(norm_bounding(), honest, attackers)
    assert np.linalg.norm(bounded) <= np.linalg.norm(honest.astype(np.float64), axis=1).max() * (1 + 1e-5)


def test_centred_clipping_goes_on_from_the_last_round() -> None:
    """By tau a round towards where everybody is, until it is there."""
    combine = centred_clipping(tau=1.0).combine
    assert combine.remembers
    updates, last = torch.tensor([[3.5, 0.0]]).repeat(5, 1), torch.zeros(2)
    reached = [float((last := combine(updates, torch.ones(5), last))[0]) for _ in range(5)]
    assert reached == pytest.approx([1.0, 2.0, 3.0, 3.5, 3.5])


@every
def test_negated_updates_times_ten_turn_the_mean_but_no_robust_combiner(strategy: Any) -> None:
    """Four clients of twenty; uneven enough that honest updates differ by as much as they are long."""
    truth = some(0, 1, 200)[0]
    honest = truth + some(1, 16, 200)
    attackers = -10 * honest[:4]
    updates = everyone(honest, attackers)
    assert mean(updates, torch.ones(20)).double().numpy() @ truth < 0
    found = result(strategy(**({"f": 4} if strategy in GUARD else {})), honest, attackers)
    assert found @ truth > 0.5 * truth @ truth


@every
def test_bits_do_not_depend_on_threads(strategy: Any) -> None:
    """A run is repeatable whatever else keeps the cores busy."""
    updates, weights = torch.tensor(some(0, 20, 3 * COLUMNS + 11), dtype=torch.float32), torch.ones(20)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(strategy().combine(updates, weights))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


# What a scenario can say


@every
def test_everything_but_the_combiner_is_fedavgs(strategy: Any) -> None:
    """So that it can be lent to other algorithms; private at example level since combining is post-processing."""
    algorithm = strategy()
    assert algorithm.client is local_update
    assert algorithm.server is add_update
    assert algorithm.name == strategy.__name__.replace("_", "-")
    assert algorithm.weights == "uniform"
    assert strategy(weights="examples").weights == "examples"
    assert algorithm.private


@pytest.mark.parametrize(
    ("algorithm", "least"),
    [
        (median(), 1),
        (krum(f=0), 3),
        (krum(f=4), 11),
        (multi_krum(f=4), 11),
        (multi_krum(f=4, m=10), 14),
        (bulyan(f=4), 19),
    ],
)
def test_a_promise_needs_enough_clients(algorithm: Algorithm, least: int) -> None:
    assert algorithm.combine.least == least


@pytest.mark.parametrize(
    ("strategy", "settings", "message"),
    [
        (krum, {"f": -1}, "f = -1 should be at least 0"),
        (multi_krum, {"f": -1}, "f = -1 should be at least 0"),
        (multi_krum, {"m": 0}, "m = 0 should be at least 1"),
        (bulyan, {"f": -2}, "f = -2 should be at least 0"),
        (trimmed_mean, {"beta": 0.5}, "beta = 0.5 should be at least 0 and below 0.5"),
        (trimmed_mean, {"beta": -0.1}, "beta = -0.1 should be"),
        (trimmed_mean, {"beta": math.nan}, "beta = nan should be"),
        (rfa, {"iterations": 0}, "iterations = 0 should be at least 1"),
        (rfa, {"nu": 0.0}, "nu = 0.0 should be above 0"),
        (rfa, {"nu": math.inf}, "nu = inf should be above 0 and finite"),
        (centred_clipping, {"tau": 0.0}, "tau = 0.0 should be above 0"),
        (centred_clipping, {"tau": math.nan}, "tau = nan should be above 0"),
        (centred_clipping, {"iterations": 0}, "iterations = 0 should be at least 1"),
        (norm_bounding, {"bound": -1.0}, "bound = -1.0 should be above 0"),
    ],
)
def test_impossible_settings_are_refused(strategy: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        strategy(**settings)
