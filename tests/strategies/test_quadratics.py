"""What the papers prove on quadratic clients: SCAFFOLD finds the optimum, FedAvg drifts beside it, and so on."""

from collections.abc import Callable, Sequence

import pytest
import torch

from fedsim.strategies.ditto import ditto
from fedsim.strategies.fedavg import fedavg
from fedsim.strategies.fedrep import fedrep
from fedsim.strategies.scaffold import scaffold
from tests.strategies.quadratic import clients, optimum, simulate, work


def everyone(round: int) -> Sequence[int]:
    return range(4)


def two_in_turn(round: int) -> Sequence[int]:
    return [(0, 1), (2, 3), (0, 2), (1, 3)][round % 4]


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


def test_fedrep_trains_the_head_with_the_body_fixed_and_then_the_body() -> None:
    """Collins et al. 2021, algorithm 1; coordinates of a quadratic do not mix, so each part moves on its own."""
    (client,) = clients(1)
    client.personal = torch.tensor([False, False, True])
    algorithm = fedrep()
    server = algorithm.start(torch.zeros(3, dtype=torch.float64), 1)
    update = work(algorithm, client, server).update
    assert torch.allclose(update, client.train(server.params).params, atol=1e-12)
