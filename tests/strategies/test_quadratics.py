"""What the papers prove on quadratic clients: SCAFFOLD finds the optimum, FedAvg drifts beside it, and so on."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fedsim.algorithm import Algorithm, Batch, Upload
from fedsim.strategies.afl import afl, onto_simplex
from fedsim.strategies.apfl import apfl
from fedsim.strategies.central import central
from fedsim.strategies.constant import constant
from fedsim.strategies.ditto import ditto
from fedsim.strategies.fedadagrad import fedadagrad
from fedsim.strategies.fedadam import fedadam
from fedsim.strategies.fedavg import fedavg
from fedsim.strategies.fedavgm import fedavgm
from fedsim.strategies.fedbn import fedbn
from fedsim.strategies.feddyn import feddyn
from fedsim.strategies.fednova import fednova
from fedsim.strategies.fedper import fedper
from fedsim.strategies.fedprox import fedprox
from fedsim.strategies.fedrep import fedrep
from fedsim.strategies.fedsgd import fedsgd
from fedsim.strategies.fedyogi import fedyogi
from fedsim.strategies.local import local
from fedsim.strategies.moon import moon
from fedsim.strategies.qfedavg import qfedavg
from fedsim.strategies.scaffold import scaffold
from tests.strategies.quadratic import Quadratic, clients, combine, optimum, own_model, simulate, work


def everyone(round: int) -> Sequence[int]:
    return range(4)


def two_in_turn(round: int) -> Sequence[int]:
    return [(0, 1), (2, 3), (0, 2), (1, 3)][round % 4]


def alike(steps: int = 1) -> list[Quadratic]:
    """Uneven clients that take equally many steps."""
    return [replace(client, steps=steps) for client in clients()]


def trail(algorithm: Algorithm, rounds: int = 5) -> Tensor:
    """[rounds, D] the global model after each of the first rounds of uneven clients, two of the four at a time."""
    return torch.stack([simulate(algorithm, clients(), count, two_in_turn).params for count in range(1, rounds + 1)])


def losses_of(all_clients: Sequence[Quadratic], params: Tensor) -> Tensor:
    """[K] every client's loss."""
    return torch.stack([client.loss(params) for client in all_clients])


@pytest.mark.parametrize(
    "algorithm",
    [fedprox(mu=0.0), fedavgm(beta=0.0, server_lr=1.0), moon(mu=0.0), ditto(), apfl(), central()],
    ids=lambda algorithm: algorithm.name,
)
def test_with_its_own_part_switched_off_an_algorithm_is_fedavg_to_the_bit(algorithm: Algorithm) -> None:
    """Of what Ditto and APFL keep at home the global model never hears."""
    assert torch.equal(trail(algorithm), trail(fedavg()))


def test_qfedavg_without_fairness_is_fedavg() -> None:
    """Li et al. 2020, section 3.4; with the paper's uniform weights."""
    torch.testing.assert_close(trail(qfedavg(q=0.0)), trail(fedavg("uniform")), rtol=1e-9, atol=0)


def test_afl_that_learns_nothing_is_uniform_fedavg() -> None:
    torch.testing.assert_close(trail(afl(lambda_lr=0.0)), trail(fedavg("uniform")), rtol=1e-9, atol=0)


def test_fednova_with_equal_steps_is_fedavg() -> None:
    """Wang et al. 2020: normalisation changes nothing where there is nothing to even out."""
    after = [simulate(algorithm, alike(4), 7, everyone).params for algorithm in (fednova(), fedavg())]
    torch.testing.assert_close(*after, rtol=1e-9, atol=0)


@pytest.mark.parametrize("cohort", [everyone, two_in_turn])
def test_scaffold_reaches_the_optimum(cohort: Callable[[int], Sequence[int]]) -> None:
    """Karimireddy et al. 2020, theorem III: without noise it converges, whatever the clients' unevenness."""
    uneven = clients()
    server = simulate(scaffold(), uneven, 1500, cohort)
    assert (server.params - optimum(uneven)).norm() < 1e-8


def test_scaffolds_control_is_the_mean_gradient_at_the_optimum() -> None:
    """There each client's control is its own gradient, and their mean is zero."""
    uneven = clients()
    server = simulate(scaffold(), uneven, 1500, everyone)
    assert server.shared["control"].norm() < 1e-8
    for client in uneven:
        gradient = client.curvature * (server.params - client.optimum)
        assert (client.state["control"] - gradient).norm() < 1e-8


def test_fedavg_stalls_beside_the_optimum() -> None:
    """Client drift: with several local steps the fixed point is another than the optimum."""
    uneven = clients()
    long, longer = (simulate(fedavg(), uneven, rounds, everyone).params for rounds in (1500, 3000))
    assert (long - longer).norm() < 1e-9
    assert (longer - optimum(uneven)).norm() > 0.05


def test_fedavg_with_one_step_is_gradient_descent() -> None:
    """And then it does reach the optimum of the weighted mean loss."""
    uneven = clients()
    for client in uneven:
        client.steps = 1
    server = simulate(fedavg(), uneven, 1500, everyone)
    assert (server.params - optimum(uneven)).norm() < 1e-8


def test_scaffold_is_fedavg_in_its_first_round() -> None:
    """All controls are zero until somebody has trained."""
    first = [simulate(algorithm, clients(), 1, everyone).params for algorithm in (fedavg("uniform"), scaffold())]
    assert torch.equal(*first)


def test_fedavg_weighs_by_rows_unless_told_otherwise() -> None:
    """A client's rows are as good as as many clients of one row."""
    heavy = clients(2)
    heavy[1].rows = 30
    shares = [simulate(fedavg(), heavy, 1, {1: [number]}.__getitem__).params for number in (0, 1)]
    both = simulate(fedavg(), heavy, 1, lambda _: [0, 1]).params
    assert torch.allclose(both, (shares[0] + 3 * shares[1]) / 4, atol=1e-12)
    uniform = simulate(fedavg("uniform"), heavy, 1, lambda _: [0, 1]).params
    assert torch.allclose(uniform, (shares[0] + shares[1]) / 2, atol=1e-12)


def test_dittos_global_model_is_fedavgs() -> None:
    """Personal models only listen."""
    assert torch.equal(
        simulate(ditto(), clients(), 20, everyone).params, simulate(fedavg(), clients(), 20, everyone).params
    )


def test_dittos_personal_models_settle_between_own_optimum_and_global_model() -> None:
    """Li et al. 2021, equation 2: v = (A b + lambda w) / (A + lambda) for a quadratic."""
    uneven, lamda = clients(), 0.5
    server = simulate(ditto(lamda=lamda), uneven, 1500, everyone)
    for client in uneven:
        own = client.state["model"]
        expected = (client.curvature * client.optimum + lamda * server.params) / (client.curvature + lamda)
        assert (own - expected).norm() < 1e-8
        assert client.loss(own) < client.loss(server.params)


def test_ditto_without_pull_is_local_training() -> None:
    uneven = clients()
    simulate(ditto(lamda=0.0), uneven, 1500, everyone)
    assert all((client.state["model"] - client.optimum).norm() < 1e-8 for client in uneven)


@pytest.mark.parametrize("algorithm", [ditto(lamda=1.0), apfl(alpha=0.7)], ids=lambda algorithm: algorithm.name)
def test_the_personal_pass_leaves_no_trace_in_the_averaged_buffers(algorithm: Algorithm) -> None:
    """A batch norm's statistics are to be those of the model that is averaged."""
    client = clients()[1]
    client.state = {"model": torch.ones(3).double(), "alpha": torch.full((1,), 0.7).double()}
    server = algorithm.start(torch.zeros(3, dtype=torch.float64), 4)
    buffers = work(algorithm, client, server).buffers
    assert buffers is not None
    assert torch.equal(buffers, client.train(server.params).buffers)


def test_dittos_own_model_is_the_personal_one() -> None:
    uneven = clients()
    server = simulate(ditto(), uneven, 3, everyone)
    assert all(torch.equal(own_model(ditto(), client, server), client.state["model"]) for client in uneven)


def with_a_head(personal: Sequence[bool] = (False, False, True)) -> list[Quadratic]:
    return [replace(client, personal=torch.tensor(personal)) for client in clients()]


def test_fedrep_trains_the_head_with_the_body_fixed_and_then_the_body() -> None:
    """Collins et al. 2021, algorithm 1; coordinates of a quadratic do not mix, so each part moves on its own."""
    client, *_ = with_a_head()
    server = fedrep().start(torch.zeros(3, dtype=torch.float64), 1)
    upload = work(fedrep(), client, server)
    trained = client.train(server.params).params
    assert torch.allclose(upload.update, trained * torch.tensor([1.0, 1.0, 0.0]), atol=1e-12)
    assert torch.allclose(upload.state["personal"], trained[2:], atol=1e-12)


@pytest.mark.parametrize("algorithm", [fedper(), fedbn()], ids=lambda algorithm: algorithm.name)
def test_personal_coordinates_are_each_clients_own_and_the_others_fedavgs(algorithm: Algorithm) -> None:
    """Arivazhagan et al. 2019 and Li et al. 2021; coordinates of a quadratic do not mix."""
    uneven = with_a_head()
    server = simulate(algorithm, uneven, 1500, everyone)
    assert torch.equal(server.params[:2], simulate(fedavg(), clients(), 1500, everyone).params[:2])
    for client in uneven:
        own = own_model(algorithm, client, server)
        assert torch.equal(own[:2], server.params[:2])
        assert (own[2] - client.optimum[2]).abs() < 1e-8


def test_local_finds_every_clients_own_optimum_and_shares_nothing() -> None:
    uneven = with_a_head((True, True, True))
    server = simulate(local(), uneven, 1500, everyone)
    assert not server.params.any()
    assert all((own_model(local(), client, server) - client.optimum).norm() < 1e-8 for client in uneven)


def test_fedsgd_is_gradient_descent_on_the_mean_loss() -> None:
    """However many steps [train] asks for."""
    uneven = clients()
    first = simulate(fedsgd(), uneven, 1, everyone).params
    gradient = torch.stack([client.curvature * -client.optimum for client in uneven]).mean(0)
    assert torch.allclose(first, -uneven[0].rate * gradient, atol=1e-12)
    assert (simulate(fedsgd(), uneven, 1500, everyone).params - optimum(uneven)).norm() < 1e-8


def test_fedprox_settles_nearer_to_the_optimum_the_stronger_its_pull() -> None:
    """Li et al. 2020: what drifts less is averaged better."""
    away = [
        (simulate(fedprox(mu=mu), clients(), 600, everyone).params - optimum(clients())).norm() for mu in (0, 1, 10)
    ]
    assert away[0] > away[1] > away[2]


def test_fedprox_descends_on_the_proximal_objective() -> None:
    """Equation 2: for a quadratic the minimum from w is (a b + mu w) / (a + mu)."""
    (client,) = clients(1)
    client.steps, start = 2000, torch.ones(3, dtype=torch.float64)
    upload = work(fedprox(mu=3.0), client, fedprox().start(start, 1))
    expected = (client.curvature * client.optimum + 3.0 * start) / (client.curvature + 3.0)
    assert torch.allclose(start + upload.update, expected, atol=1e-9)


@pytest.mark.parametrize("cohort", [everyone, two_in_turn])
def test_feddyn_reaches_the_optimum(cohort: Callable[[int], Sequence[int]]) -> None:
    """Acar et al. 2021, theorem 1: the stationary points of clients and server are the same."""
    uneven = clients()
    server = simulate(feddyn(alpha=1.0), uneven, 1500, cohort)
    assert (server.params - optimum(uneven)).norm() < 1e-8
    for client in uneven:
        assert (client.state["dual"] - client.curvature * (server.params - client.optimum)).norm() < 1e-8


def test_feddyns_h_is_the_mean_of_all_duals() -> None:
    """Of those too that do not take part; so it counts a cohort by its share of the population."""
    uneven = clients()
    server = simulate(feddyn(), uneven, 7, two_in_turn)
    duals = torch.stack([client.state["dual"] for client in uneven])
    torch.testing.assert_close(server.state["h"], duals.mean(0), rtol=1e-9, atol=0)


def test_200_rounds_bring_scaffold_and_feddyn_100_times_nearer_than_fedavg() -> None:
    fedavgs, *others = (
        (simulate(algorithm, clients(), 200, everyone).params - optimum(clients())).norm()
        for algorithm in (fedavg(), scaffold(), feddyn(alpha=1.0))
    )
    assert all(100 * other < fedavgs for other in others)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_fednova_is_consistent_where_fedavg_is_biased(momentum: float) -> None:
    """Wang et al. 2020: the bias of unequal steps goes with the rate for FedNova and stays for FedAvg."""

    def away(algorithm: Algorithm, rate: float) -> float:
        slow = [replace(client, rate=rate, momentum=momentum) for client in clients()]
        return float((simulate(algorithm, slow, round(40 / rate), everyone).params - optimum(slow)).norm())

    coarse, fine = (away(fednova(), rate) for rate in (0.04, 0.01))
    assert fine < 0.02
    assert fine < coarse / 3
    assert away(fedavg(), 0.01) > 10 * fine


def test_moon_descends_on_its_contrast() -> None:
    """Li et al. 2021, equation 3, as it is written; features are the model itself here."""
    (client,) = clients(1)
    client.steps = 1
    received, previous = (torch.tensor(values, dtype=torch.float64) for values in ([1.0, 2.0, 3.0], [3.0, -1.0, 0.5]))
    client.state = {"previous": previous}
    algorithm = moon(mu=2.0, temperature=0.7)
    update = work(algorithm, client, algorithm.start(received, 1)).update
    z = received.clone().requires_grad_()
    near, far = (torch.exp(cosine_similarity(z, other, dim=0) / 0.7) for other in (received, previous))
    (contrast,) = torch.autograd.grad(-2.0 * torch.log(near / (near + far)), z)
    expected = client.curvature * (received - client.optimum) + contrast
    assert contrast.norm() > 0.1
    assert torch.allclose(update, -client.rate * expected, atol=1e-12)


def test_moon_remembers_the_model_it_trained() -> None:
    (client,) = clients(1)
    server = simulate(moon(), [client], 1, lambda round: [0])
    assert torch.equal(client.state["previous"], server.params)


def test_momentum_at_the_server_is_a_geometric_sum_of_updates() -> None:
    """Hsu et al. 2019: what came i rounds ago still counts beta^i."""
    beta, models = 0.6, torch.cat([torch.zeros(1, 3).double(), trail(fedavgm(beta=0.6, server_lr=0.5))])
    moved = models.diff(dim=0) / 0.5
    updates = torch.stack([moved[0], *(after - beta * before for before, after in pairwise(moved))])
    server = fedavg().start(models[0], 4)
    for round, update in enumerate(updates, start=1):
        chosen = [client for client in clients() if client.number in two_in_turn(round)]
        expected = torch.stack([work(fedavg(), client, server).update for client in chosen]).mean(0)
        assert torch.allclose(update, expected, atol=1e-12)
        server = server._replace(params=models[round])


# Reddi et al. 2021, algorithm 2: (v, Delta, beta2) -> v, where the three differ.
SECOND_MOMENTS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "fedadagrad": lambda v, delta, beta2: v + delta**2,
    "fedadam": lambda v, delta, beta2: beta2 * v + (1 - beta2) * delta**2,
    "fedyogi": lambda v, delta, beta2: v - (1 - beta2) * delta**2 * np.sign(v - delta**2),
}


@pytest.mark.parametrize(
    ("algorithm", "beta1"),
    [
        (fedadagrad(server_lr=0.3, beta1=0.2, tau=0.01), 0.2),
        (fedadam(server_lr=0.3, beta1=0.8, beta2=0.95, tau=0.01), 0.8),
        (fedyogi(server_lr=0.3, beta1=0.8, beta2=0.95, tau=0.01), 0.8),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_adaptive_servers_follow_the_papers_loop(algorithm: Algorithm, beta1: float) -> None:
    x, m, v = np.zeros(3), np.zeros(3), np.full(3, 0.01**2)
    for round in range(1, 31):
        ends = []
        for client in clients():
            end = x.copy()
            for _ in range(client.steps):
                end = end - client.rate * client.curvature.numpy() * (end - client.optimum.numpy())
            ends.append(end)
        delta = np.mean([ends[number] - x for number in two_in_turn(round)], axis=0)
        m = beta1 * m + (1 - beta1) * delta
        v = SECOND_MOMENTS[algorithm.name](v, delta, 0.95)
        x = x + 0.3 * m / (np.sqrt(v) + 0.01)
    np.testing.assert_allclose(simulate(algorithm, clients(), 30, two_in_turn).params.numpy(), x, rtol=1e-9)


@pytest.mark.parametrize("algorithm", [fedavgm(), fedadagrad(), fedadam(), fedyogi()], ids=lambda each: each.name)
def test_every_server_step_finds_the_optimum_when_updates_are_gradients(algorithm: Algorithm) -> None:
    server = simulate(algorithm, alike(steps=1), 1500, everyone)
    assert (server.params - optimum(clients())).norm() < 1e-8


def test_qfedavg_follows_algorithm_2() -> None:
    """Li et al. 2020, one round from a point where losses differ, with L = 1 / learning rate."""
    uneven, w, q = clients(), np.full(3, 0.5), 1.7
    shifts, hs = [], []
    for client in uneven:
        loss, end = float(client.loss(torch.tensor(w))), client.train(torch.tensor(w)).params.numpy()
        delta = (w - end) / client.rate
        shifts.append(loss**q * delta)
        hs.append(q * loss ** (q - 1) * (delta**2).sum() + loss**q / client.rate)
    algorithm = qfedavg(q=q)
    server = algorithm.start(torch.tensor(w), 4)
    uploads = [work(algorithm, client, server) for client in uneven]
    found = algorithm.server(server, combine(algorithm, uneven, uploads, 4)).params
    np.testing.assert_allclose(found.numpy(), w - sum(shifts) / sum(hs), rtol=1e-9)


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 5.0, 15.0, 1e9])
@pytest.mark.parametrize("off", [0.0, 1e-23, 1e-5, 1e-2])
def test_qfedavg_survives_losses_of_almost_nothing(q: float, off: float) -> None:
    """In float32 the square of 1e-23 is 0, and so is 1e-10 to the power of 15; steps are then FedAvg's or shorter."""
    fitted = [replace(client, optimum=torch.zeros(3), curvature=torch.ones(3)) for client in alike()]
    algorithm, start = qfedavg(q=q), torch.full((3,), off)
    server = algorithm.start(start, 4)
    uploads = [work(algorithm, client, server) for client in fitted]
    for upload in uploads:
        h = upload.scalars["h"]
        assert isinstance(h, Tensor) and upload.update.dtype == h.dtype == torch.float32
        assert torch.finfo(torch.float32).tiny < h < torch.inf
    moved = algorithm.server(server, combine(algorithm, fitted, uploads, 4)).params - start
    longest = (fitted[0].train(start).params - start).abs().max()
    assert moved.abs().max() <= longest * (1 + 1e-4)
    assert moved.any() or off < 1e-5


def test_qfedavg_evens_the_losses_the_more_the_larger_q_is() -> None:
    """Li et al. 2020, section 3.2: for its objective, sum_k F_k^{q+1} / (q + 1)."""
    spreads = []
    for q in (0.0, 1.0, 5.0):
        server = simulate(qfedavg(q=q), alike(), 2000, everyone)
        losses = losses_of(alike(), server.params)
        spreads.append(losses.std())
        pulls = torch.stack([client.curvature * (server.params - client.optimum) for client in alike()])
        assert (losses[:, None] ** q * pulls).sum(0).norm() < 1e-6, "no gradient is left"
    assert spreads[0] > spreads[1] > spreads[2]


def test_afl_finds_the_model_that_is_best_for_the_worst_client() -> None:
    """Mohri et al. 2019: there lambda's clients lose equally, no other loses more, and the mixture has no gradient."""
    server = simulate(afl(lambda_lr=0.05), alike(), 2000, everyone)
    losses, share = losses_of(alike(), server.params), server.state["lambda"]
    assert losses.max() < losses_of(alike(), simulate(fedavg(), alike(), 2000, everyone).params).max()
    assert (losses[share > 0] - losses.max()).abs().max() < 1e-6
    pulls = torch.stack([client.curvature * (server.params - client.optimum) for client in alike()])
    assert (share[:, None] * pulls).sum(0).norm() < 1e-5


def test_afl_weighs_even_a_cohort_that_has_no_share() -> None:
    """Weights that sum to 0 would divide by 0."""
    learned, server = afl().weights, afl().start(torch.zeros(3), 4)
    assert callable(learned)
    assert learned(server, torch.tensor([1, 3])).tolist() == [0.25, 0.25]
    server = server._replace(state={"lambda": torch.tensor([0.0, 0.4, 0.0, 0.6])})
    weights = learned(server, torch.tensor([0, 2]))
    assert weights.min() > 0
    assert weights[0] == weights[1]
    assert learned(server, torch.tensor([1, 3])).tolist() == pytest.approx([0.4, 0.6])


numbers = st.floats(-10, 10, allow_subnormal=False)
huge = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([-1e308, 1e17, 1e18, 1e308])


@given(st.lists(numbers, min_size=1, max_size=6))
def test_the_projection_onto_the_simplex_is_the_nearest_point(values: list[float]) -> None:
    """The oracle tries every set of coordinates that may be above 0, on which the nearest point is a shift."""
    point = np.array(values)
    best = min(
        (
            candidate
            for kept in product([False, True], repeat=len(point))
            if any(kept)
            for candidate in [np.where(kept, point - (point[list(kept)].sum() - 1) / sum(kept), 0.0)]
            if candidate.min() >= 0
        ),
        key=lambda candidate: float(((candidate - point) ** 2).sum()),
    )
    found = onto_simplex(torch.tensor(values, dtype=torch.float64))
    assert found.min() >= 0
    assert float(found.sum()) == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(found.numpy(), best, atol=1e-7)


@given(st.lists(numbers, min_size=1, max_size=50), st.floats(-5, 5))
def test_the_projection_forgets_a_common_shift_and_is_at_home_on_the_simplex(values: list[float], by: float) -> None:
    found = onto_simplex(torch.tensor(values, dtype=torch.float64))
    again, shifted = onto_simplex(found), onto_simplex(torch.tensor(values, dtype=torch.float64) + by)
    torch.testing.assert_close(again, found, rtol=0, atol=1e-9)
    torch.testing.assert_close(shifted, found, rtol=0, atol=1e-9)


@given(st.lists(huge | numbers, min_size=1, max_size=50))
def test_the_projection_onto_the_simplex_of_huge_values_is_on_it(values: list[float]) -> None:
    """Where 1 is less than what rounding leaves; all that a value more than 1 below the largest gets is 0."""
    point = torch.tensor(values, dtype=torch.float64)
    found = onto_simplex(point)
    assert found.min() >= 0
    assert float(found.sum()) == pytest.approx(1, abs=1e-9)
    assert not found[point.max() - point > 1 + 1e-9].any()
    torch.testing.assert_close(found[point == point.max()], found.max().expand(int((point == point.max()).sum())))


def test_apfl_with_nothing_of_its_own_is_fedavg() -> None:
    uneven = clients()
    server = simulate(apfl(alpha=0.0), uneven, 20, everyone)
    assert all(torch.equal(own_model(apfl(), client, server), server.params) for client in uneven)


def test_apfl_with_nothing_but_its_own_is_local_training() -> None:
    uneven, alone = clients(), with_a_head((True, True, True))
    server = simulate(apfl(alpha=1.0), uneven, 20, everyone)
    simulate(local(), alone, 20, everyone)
    for client, other in zip(uneven, alone, strict=True):
        torch.testing.assert_close(own_model(apfl(), client, server), other.state["personal"], rtol=1e-12, atol=1e-12)


def test_apfls_mixture_reaches_the_clients_optimum() -> None:
    """Deng et al. 2020: v makes up for what the global model lacks, at any share above 0."""
    uneven = clients()
    server = simulate(apfl(alpha=0.5), uneven, 1500, everyone)
    for client in uneven:
        # v was trained beside w of the client's last pass, which its next pass would find again
        w = server.params + work(fedavg(), client, server).update
        assert (0.5 * client.state["model"] + 0.5 * w - client.optimum).norm() < 1e-8


def test_apfls_share_descends_on_the_mixtures_loss() -> None:
    """One step of v: the slope is that of F_k(alpha v + (1 - alpha) w) in alpha, and alpha stays within [0, 1]."""
    for rate, bounded in ((0.01, False), (1e3, True)):
        (client,) = alike()[:1]
        client.state = {
            "model": torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64),
            "alpha": torch.tensor([0.3], dtype=torch.float64),
        }
        v, server = client.state["model"], apfl().start(torch.zeros(3, dtype=torch.float64), 1)
        w = client.train(server.params).params
        share = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(client.loss(share * v + (1 - share) * w), share)
        moved = work(apfl(alpha_lr=rate), client, server).state["alpha"]
        expected = (0.3 - rate * slope).clamp(0, 1)
        assert torch.allclose(moved, expected.view(1), atol=1e-12)
        assert bool(expected in (0, 1)) == bounded


def test_constant_counts_every_client_once() -> None:
    """Targets run through the three classes: 10 rows give 4, 3 and 3, whoever is drawn how often."""
    server = simulate(constant(smoothing=0.5), clients(), 12, two_in_turn)
    assert server.state["sums"].tolist() == [16.0, 12.0, 12.0]
    assert torch.allclose(server.params.softmax(0), torch.tensor([16.5, 12.5, 12.5]).double() / 41.5)


def test_constant_takes_a_total_below_zero_for_none() -> None:
    """A client flips its counts' sign: logarithms stay finite, and the total is what was sent, in any order."""
    algorithm, (client, *_) = constant(smoothing=0.5), clients()
    server, counts = algorithm.start(torch.zeros(3), 4), torch.tensor([4.0, 3.0, 3.0])
    sent = combine(algorithm, [client], [Upload(counts, scalars={"rows": 0.0})], 4)
    after = algorithm.server(server, sent._replace(update=-counts))
    assert torch.equal(after.params, torch.full((3,), 0.5).log())
    again = algorithm.server(after, sent._replace(update=2 * counts))
    assert torch.equal(again.params, (counts + 0.5).log())


def test_constant_counts_bytes_after_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In "abab" and "abac" b always follows a but once."""
    text = [list(b"abab"), list(b"abac")]
    windows = Batch(torch.tensor([row[:-1] for row in text]), torch.tensor([row[1:] for row in text]))
    monkeypatch.setattr(Quadratic, "data", lambda self: windows)
    (client,) = clients(1)
    client.optimum = torch.zeros(256 * 256, dtype=torch.float64)
    counts = simulate(constant(), [client], 2, lambda round: [0]).state["sums"].view(256, 256)
    found = {(chr(a), chr(b)): int(counts[a, b]) for a, b in counts.nonzero().tolist()}
    assert found == {("a", "b"): 3, ("a", "c"): 1, ("b", "a"): 2}


@pytest.mark.parametrize(
    "impossible",
    [
        lambda: fedprox(mu=-0.1),
        lambda: scaffold(server_lr=0.0),
        lambda: ditto(lamda=-0.1),
        lambda: feddyn(alpha=0.0),
        lambda: moon(temperature=0.0),
        lambda: fedavgm(beta=1.0),
        lambda: fedadagrad(beta1=1.0),
        lambda: fedadam(beta2=1.0),
        lambda: fedyogi(tau=0.0),
        lambda: qfedavg(q=float("nan")),
        lambda: afl(lambda_lr=-1.0),
        lambda: apfl(alpha=1.1),
        lambda: constant(smoothing=0.0),
    ],
)
def test_an_impossible_hyper_parameter_is_named(impossible: Callable[[], Algorithm]) -> None:
    with pytest.raises(ValueError, match=r"^[a-z_0-9]+ = .* (should|above)"):
        impossible()
