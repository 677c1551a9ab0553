"""Client level: a release is the mean that it claims to be, with the noise that it claims, whoever answered."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedsim import algorithm, seeds
from fedsim.algorithm import Combined
from fedsim.cohorts import CohortRule
from fedsim.local import Work
from fedsim.privacy.client import Releasing, moved_clip, moved_nodes
from fedsim.privacy.levels import plan_client
from fedsim.privacy.plan import AdaptiveClip, ClientMechanism, Plan, depth
from fedsim.privacy.requests import AdaptiveClipping, ClientPrivacy
from fedsim.privacy.uploads import clipped, norm_of, with_bit
from tests import small
from tests.privacy.test_uploads import check_normal
from tests.strategies.exchange import Server

CLIP, NOISE = 0.5, 1.3
PRIVATE: small.Changes = {
    "model": {"name": "mlp", "hidden": [512]},
    "strategy": {"name": "fedavg", "weights": "uniform"},
    "privacy.client": {"noise_multiplier": NOISE, "delta": 1e-4, "clip": CLIP},
}
COHORTS: Mapping[str, tuple[int, small.Changes, float, int]] = {
    "0 of 40": (40, {"cohort.poisson": 0.01}, 0.4, 12),
    "1 of 40": (40, {"cohort.size": 1}, 1.0, 8),
    "10 of 40": (40, {"cohort.fraction": 0.25}, 10.0, 8),
    "some of 40": (40, {"cohort.poisson": 0.3}, 12.0, 8),
    "1,000 of 1,000": (1000, {}, 1000.0, 3),
}
"""Clients, the cohort rule, q K and rounds."""


def work(clients: int, changes: small.Changes = small.NOTHING) -> Work:
    """A federation of so many clients in the plane."""
    return _work(clients, json.dumps({**small.POINTS, **PRIVATE, "rounds": 12, "data.min_rows": 1, **changes}))


@cache
def _work(clients: int, changes: str) -> Work:
    data = small.points(0.0, clients=clients, rows=4 if clients > 100 else 10)
    return Work(small.job(json.loads(changes), data=data))


def sent(on: Work, round: int, longest: float = 4 * CLIP) -> dict[int, Tensor]:
    """Made-up uploads of all clients, of lengths up to some; an adaptive clip's bit is up to the sender."""
    draw = torch.Generator().manual_seed(round)
    values = torch.randn(on.federation.clients, on.layout.size, generator=draw)
    lengths = torch.rand(on.federation.clients, generator=draw) * longest
    return dict(enumerate(values * (lengths / values.norm(dim=1))[:, None]))


def shortened(upload: Tensor, clip: float) -> np.ndarray:
    """What may enter the sum, in float64."""
    vector = upload.double().numpy()
    return vector * min(1.0, clip / float(np.sqrt((vector**2).sum())))


def answers(uploads: dict[int, Tensor], failing: str) -> dict[int, Tensor | str]:
    """Nobody fails, or every third client, in one way or another, or everybody."""
    ways: list[Tensor | str] = ["error", "nothing", torch.full_like(uploads[0], torch.nan)]
    if failing == "nobody":
        return {**uploads}
    every = 1 if failing == "everybody" else 3
    return {number: ways[number // 3 % 3] if not number % every else upload for number, upload in uploads.items()}


@pytest.mark.parametrize("failing", ["nobody", "some", "everybody"])
@pytest.mark.parametrize("cohort", COHORTS)
def test_the_mean_and_the_noise_are_those_that_are_claimed(cohort: str, failing: str) -> None:
    """(sum of clip(u, C) + N(0, z^2 C^2)) / (q K), q K the planned size: through the strategy that a run drives."""
    clients, rule, planned, rounds = COHORTS[cohort]
    on = work(clients, rule)
    server, noise, sizes = Server(on), [], []
    for round in range(1, rounds + 1):
        uploads, before = sent(on, round), server.strategy.server.params
        change = (server.round(answers(uploads, failing)) - before).double().numpy()
        arrived = answers(uploads, failing)
        cohort_now = server.strategy.cohort
        counted = [number for number in cohort_now if arrived[number] is uploads[number]]
        noise.append(change * planned - sum((shortened(uploads[number], CLIP) for number in counted), 0.0))
        sizes.append(len(cohort_now))
        assert server.strategy.unused is None
    assert min(sizes) == 0 if planned < 1 else set(sizes) == {int(planned)} or on.job.rule.poisson
    check_normal(np.concatenate(noise), NOISE * CLIP)
    assert len({float(each[0]) for each in noise}) == rounds, "fresh noise every round"


@pytest.mark.parametrize("uploads", [0, 1, 10, 1000])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_mechanism_alone_releases_the_same(uploads: int, adaptive: bool) -> None:
    """Its divisor and its noise know nothing of how many uploads the sum has."""
    clip, planned = 0.7, 20.0
    settings = AdaptiveClip(quantile=0.5, rate=0.2, bit_noise=3.0, update_noise=1.7) if adaptive else None
    vectors = torch.from_numpy(np.random.default_rng(4).standard_normal((uploads, 40_000)))
    total = vectors.sum(0)
    size = torch.cat([total, total.new_tensor([2.0])]) if adaptive else total
    release = releasing(planned, settings)(size, 3, clip)
    noise = (release.estimate * planned - total).numpy()
    check_normal(noise, clip * (1.7 if adaptive else NOISE))
    assert (release.clip == clip) is not adaptive


def releasing(size: float, adaptive: AdaptiveClip | None = None, tree: int | None = None) -> Releasing:
    return Releasing(ClientMechanism(size, adaptive, tree), NOISE, None, draws)


def draws(purpose: str, number: int) -> np.random.Generator:
    return seeds.numpy_generator(11, purpose, number)


def test_personal_coordinates_get_no_noise() -> None:
    shared = torch.arange(1000) < 900
    release = replace(releasing(5.0), shared=shared)(torch.zeros(1000), 1, CLIP)
    assert not release.estimate[~shared].any() and bool(release.estimate[shared].all())


def test_a_server_half_sees_nothing_that_is_not_released() -> None:
    """Neither who answered nor how many: whatever it makes of them would be in the model."""
    seen: list[Combined] = []

    def recording(server: algorithm.Server, combined: Combined) -> algorithm.Server:
        seen.append(combined)
        return algorithm.add_update(server, combined)

    on = work(40, {"cohort.size": 10})
    watched = Work(on.job)
    watched.algorithm = replace(on.algorithm, server=recording)
    for failing in ("nobody", "some", "everybody"):
        Server(watched).round(answers(sent(on, 1), failing))
    assert {combined.share_of_population for combined in seen} == {10 / 40}
    assert all(len(combined.numbers) == len(combined.weights) == 0 for combined in seen)


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "feddyn", "fedadam"])
def test_a_round_that_nobody_answers_is_released(name: str) -> None:
    """An empty cohort and one that failed as a whole: noise alone moves the model, and a server's vectors with it."""
    on = work(40, {"cohort.poisson": 0.01, "strategy.name": name})
    server, empty = Server(on), 0
    for _ in range(6):
        before = server.strategy.server.params
        after = server.round(dict.fromkeys(range(40), "error"))
        empty += not server.strategy.cohort
        assert not torch.equal(after, before) and bool(torch.isfinite(after).all())
        assert not server.strategy.accepted.any()
    assert 0 < empty < 6, "the seed is to give both"


def test_one_client_moves_a_release_by_no_more_than_its_clip() -> None:
    """Whatever it sends: the noise of the two worlds is the same, so what differs is its part."""
    on = work(40, {"cohort.size": 10})
    with_it, without = Server(on), Server(on)
    loud = {number: upload * 1e6 for number, upload in sent(on, 1).items()}
    first = with_it.round(loud)
    one = with_it.strategy.cohort[0]
    second = without.round({**loud, one: "error"})
    assert (first - second).double().norm() * 10 == pytest.approx(CLIP, rel=1e-3)


# --- the clip that follows


def mechanism_of(request: ClientPrivacy, clients: int, rule: CohortRule) -> Plan:
    return plan_client(request, clients, rule, rounds=100)


def followed(quantile: float, rate: float, start: float, norms: np.ndarray, rounds: int, size: int) -> Iterator[float]:
    """Clips of rounds in which `size` of the norms are drawn, from `start` times the wanted quantile."""
    asked = AdaptiveClipping(quantile=quantile, rate=rate)
    request = ClientPrivacy(delta=1e-6, noise_multiplier=1.0, adaptive=asked)
    plan = mechanism_of(request, len(norms), CohortRule(size=size))
    mechanism, rng = Releasing.of(plan, None, draws), np.random.default_rng(7)
    clip = start * float(np.quantile(norms, quantile))
    for round in range(1, rounds + 1):
        uploads = [torch.tensor([norm]) for norm in rng.choice(norms, size, replace=False)]
        contributions = [with_bit(clipped(upload, clip), norm_of(upload), clip) for upload in uploads]
        clip = mechanism(torch.stack(contributions).sum(0), round, clip).clip
        yield clip


@pytest.mark.parametrize("start", [0.01, 100.0])
@pytest.mark.parametrize(("quantile", "rate"), [(0.1, 1.0), (0.5, 0.2), (0.9, 1.0)])
def test_an_adaptive_clip_finds_its_quantile(quantile: float, rate: float, start: float) -> None:
    """Within 5 points after 100 rounds from 100 times above and below.

    A clip moves by at most a factor e^(rate max(gamma, 1 - gamma)), on the slow side e^(rate min(gamma, 1 - gamma)), a
    round: at rate 0.2 the quantile 0.1 would take log(100) / 0.02 = 230 rounds from below.
    """
    norms = np.exp(np.random.default_rng(1).standard_normal(2000))
    *_, clip = followed(quantile, rate, start, norms, 100, 100)
    assert abs(float((norms <= clip).mean()) - quantile) <= 0.05


@pytest.mark.parametrize("start", [0.01, 100.0])
def test_it_takes_46_rounds_from_a_hundred_times_away(start: float) -> None:
    """log(100) / (0.2 * 0.5), give or take what the noise on the bits moves it."""
    clips = list(followed(0.5, 0.2, start, np.ones(1000) * 3.0, 60, 100))
    crossed = next(round for round, clip in enumerate(clips, 1) if (clip >= 3.0) is (start < 1))
    assert 42 <= crossed <= 51


@settings(deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(-200, 200), st.floats(0.5, 500), st.floats(0.01, 0.99), st.floats(0.01, 3.0))
def test_the_clip_moves_as_published(clip: float, bits: float, size: float, quantile: float, rate: float) -> None:
    """Andrew et al. 2021, with bits in {0, 1}: C exp(-eta (b - gamma)), b = (sum of bits + noise) / m.

    Bits that are centred and divided by the planned size say the same once 1/2 is added to their mean.
    """
    moved = moved_clip(clip, bits, size, AdaptiveClip(quantile, rate, 1.0, 1.0))
    exponent = -rate * ((bits + size / 2) / size - quantile)
    expected = clip * math.exp(exponent) if abs(exponent) < 600 else math.inf if exponent > 0 else 0.0
    assert moved == pytest.approx(min(max(expected, 1e-30), 1e30), rel=1e-9)


def test_the_noise_on_the_bits_is_the_planned_one() -> None:
    adaptive = AdaptiveClip(quantile=0.5, rate=1.0, bit_noise=3.0, update_noise=1.0)
    mechanism, total = releasing(20.0, adaptive), torch.tensor([0.0, 4.5])
    moves = [-math.log(mechanism(total, round, 1.0).clip) for round in range(1, 3001)]
    check_normal(np.array(moves) * 20.0 - 4.5, 3.0)


@pytest.mark.parametrize("failing", ["nobody", "some", "everybody"])
def test_a_rounds_noise_is_that_of_the_clip_that_clipped_it(failing: str) -> None:
    """The next round's would be up to e times as much or as little; bits of those that failed count as neither."""
    adaptive = {"quantile": 0.5, "rate": 2.0, "bit_noise": 2.0}
    on = work(40, {"cohort.size": 10, "privacy.client.adaptive": adaptive})
    assert on.job.privacy is not None and on.job.privacy.adaptive is not None
    update_noise = on.job.privacy.adaptive.update_noise
    server, noise, clips = Server(on), [], []
    for round in range(1, 9):
        clip, before = server.strategy.clip, server.strategy.server.params
        assert clip is not None
        bit = torch.tensor([0.5 if round % 3 else -0.5])
        uploads = {number: torch.cat([upload, bit]) for number, upload in sent(on, round, 3 * clip).items()}
        arrived = answers(uploads, failing)
        change = (server.round(arrived) - before).double().numpy()
        counted = [number for number in server.strategy.cohort if arrived[number] is uploads[number]]
        total = sum((shortened(uploads[number][:-1], clip) for number in counted), 0.0)
        noise.append((change * 10.0 - total) / (update_noise * clip))
        clips.append(clip)
        moved = math.log(server.strategy.clip or 0.0) - math.log(clip)
        assert abs(moved + 2.0 * float(bit) * len(counted) / 10) < 2.0 * 5 * 2.0 / 10
    check_normal(np.concatenate(noise), 1.0)
    assert clips[0] == CLIP and len(set(clips)) == 8


def test_clients_are_told_the_clip_and_a_forged_bit_counts_as_one() -> None:
    """A deployed client may send any number in the place of its bit."""
    adaptive = {"quantile": 0.5, "rate": 2.0, "bit_noise": 2.0}
    on = work(40, {"cohort.size": 10, "privacy.client.adaptive": adaptive})
    honest, forged = Server(on), Server(on)
    assert {message.content.config_records["config"]["clip"] for message in Server(on).messages()} == {CLIP}
    uploads = sent(on, 1)
    honest.round({number: torch.cat([upload, torch.tensor([0.5])]) for number, upload in uploads.items()})
    forged.round({number: torch.cat([upload, torch.tensor([1e9])]) for number, upload in uploads.items()})
    assert forged.strategy.clip == honest.strategy.clip
    assert torch.equal(forged.strategy.server.params, honest.strategy.server.params)


# --- DP-FTRL


def nodes_of(count: int) -> list[tuple[int, int]]:
    """The nodes (level, last leaf) that a prefix of `count` leaves is made of: the binary digits of `count`."""
    found, end = [], 0
    for level in reversed(range(count.bit_length())):
        if count >> level & 1:
            end += 2**level
            found.append((level, end))
    return found


@pytest.mark.parametrize("leaves", [1, 2, 6, 8, 13])
def test_the_noise_of_all_rounds_together_is_that_of_the_nodes(leaves: int) -> None:
    """After t rounds of a tree: the nodes of t's binary digits; of a restarted tree on top of the finished ones."""
    mechanism, total, size = releasing(1.0, tree=leaves), torch.zeros(50, dtype=torch.float64), 50
    finished = torch.zeros_like(total)
    for round in range(1, 3 * leaves + 1):
        total += mechanism(torch.zeros(size, dtype=torch.float64), round, CLIP).estimate
        tree, count = (round - 1) // leaves, (round - 1) % leaves + 1
        nodes = [
            torch.from_numpy(draws(f"tree noise of level {level}", tree * leaves + end).standard_normal(size))
            for level, end in nodes_of(count)
        ]
        expected = finished + torch.stack(nodes).sum(0) * NOISE * CLIP
        assert torch.allclose(total, expected, rtol=0, atol=1e-12)
        if count == leaves:
            finished = expected


def test_its_variance_is_popcount_times_that_of_a_node() -> None:
    """A tree of 13 rounds, and as many of the next."""
    mechanism, size = releasing(1.0, tree=13), 20_000
    total = np.zeros(size)
    for round in range(1, 27):
        total += mechanism(torch.zeros(size, dtype=torch.float64), round, CLIP).estimate.numpy()
        nodes = (13).bit_count() * ((round - 1) // 13) + ((round - 1) % 13 + 1).bit_count()
        check_normal(total, math.sqrt(nodes) * NOISE * CLIP)


def test_no_two_nodes_share_their_noise() -> None:
    """In 4 trees of 13 rounds each node has a name of its own, the same whenever it comes and goes."""
    named: list[tuple[str, int]] = []

    def noting(purpose: str, number: int) -> np.random.Generator:
        named.append((purpose, number))
        return draws(purpose, number)

    mechanism = replace(releasing(1.0, tree=13), draws=noting)
    for round in range(1, 53):
        mechanism(torch.zeros(3), round, CLIP)
    nodes = {(tree, node) for tree in range(4) for leaf in range(1, 14) for node in nodes_of(leaf)}
    assert len(set(named)) == len(nodes)
    first, second = (np.concatenate([estimates(mechanism, 13 * tree)]) for tree in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(len(first))


def estimates(mechanism: Releasing, done: int) -> np.ndarray:
    """The noise of a tree's first round after so many rounds were done."""
    return mechanism(torch.zeros(10_000), done + 1, CLIP).estimate.numpy()


@pytest.mark.parametrize("leaves", range(1, 65))
def test_a_leaf_lies_in_as_many_nodes_as_it_is_charged_for(leaves: int) -> None:
    """Among all nodes that any prefix is made of, some leaf lies in `depth` of them and none in more."""
    released = {node for count in range(1, leaves + 1) for node in nodes_of(count)}
    inside = [sum(end - 2**level < leaf <= end for level, end in released) for leaf in range(1, leaves + 1)]
    assert max(inside) == depth(leaves) == math.ceil(math.log2(leaves + 1))
    known: set[tuple[int, int]] = set()
    for leaf in range(1, leaves + 1):
        gained, dropped = moved_nodes(leaf)
        known = (known | {gained}) - set(dropped)
        assert known == set(nodes_of(leaf))


@pytest.mark.parametrize(("leaves", "rounds", "noise"), [(1, 4, 2.0), (8, 8, 3.0), (8, 32, 5.0), (100, 250, 8.0)])
@pytest.mark.parametrize("accountant", ["rdp", "exact"])
def test_epsilon_is_that_of_dp_accountings_tree(leaves: int, rounds: int, noise: float, accountant: Any) -> None:
    """One participation in each tree, trees composed: RDP to half a percent; exact is no more, and no less than PLD's
    own composition of as many Gaussians."""
    from dp_accounting import (
        GaussianDpEvent,
        NeighboringRelation,
        SelfComposedDpEvent,
        SingleEpochTreeAggregationDpEvent,
    )
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    request = ClientPrivacy(
        delta=1e-5, noise_multiplier=noise, mechanism="tree", min_separation=leaves, accountant=accountant
    )
    plan = plan_client(request, 1000, CohortRule(size=1000), rounds)
    trees = -(-rounds // leaves)
    assert (plan.max_participations, plan.separation) == (trees, leaves)
    orders = [1 + x / 10 for x in range(1, 1000)] + list(range(101, 1024))
    event = SelfComposedDpEvent(SingleEpochTreeAggregationDpEvent(noise, leaves), trees)
    rdp = RdpAccountant(orders, NeighboringRelation.REPLACE_SPECIAL).compose(event).get_epsilon(1e-5)
    if accountant == "rdp":
        assert plan.epsilon == pytest.approx(rdp, rel=5e-3)
        return
    gaussians = SelfComposedDpEvent(GaussianDpEvent(noise), trees * math.ceil(math.log2(leaves + 1)))
    pld = PLDAccountant(value_discretization_interval=1e-3).compose(gaussians).get_epsilon(1e-5)
    assert plan.epsilon <= rdp
    assert plan.epsilon == pytest.approx(pld, rel=5e-3)


def test_a_trees_noise_reaches_the_model_through_the_strategy() -> None:
    """Rounds 1 to 6 of trees of 4 leave in the model the noise of 1 and 1 node: everything else has been taken back."""
    on = work(40, {"cohort.size": 10, "privacy.client.mechanism": "tree", "privacy.client.min_separation": 4})
    server, changes = Server(on), []
    uploads: Sequence[dict[int, Tensor]] = [sent(on, round) for round in range(1, 7)]
    for each in uploads:
        before = server.strategy.server.params
        server.round({**each})
        total = sum((shortened(each[number], CLIP) for number in server.strategy.cohort), np.zeros(on.layout.size))
        changes.append((server.strategy.server.params - before).double().numpy() * 10.0 - total)
    check_normal(np.sum(changes[:4], axis=0), NOISE * CLIP)
    check_normal(np.sum(changes[:6], axis=0), math.sqrt(2) * NOISE * CLIP)
    check_normal(changes[3], math.sqrt(3) * NOISE * CLIP)
