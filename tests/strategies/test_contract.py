"""What every algorithm in `strategies/` keeps, whatever its theory."""

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim import registry
from fedsim.algorithm import Algorithm
from fedsim.combiners import Fold
from fedsim.errors import ClientError, ScenarioError
from fedsim.local import Received, Work
from fedsim.parameters import Weights
from tests import small
from tests.strategies.quadratic import clients, combine, work

NAMES = registry.members("fedsim.strategies")


def algorithm(name: str) -> Algorithm:
    function = registry.find("fedsim.strategies", name, Path(), "strategy")
    return function()  # type: ignore[no-any-return]


def worker(name: str, **changes: Any) -> Work:
    return Work(small.job({"strategy": {"name": name}, **changes}))


def received(of: Work) -> Received:
    start = of.algorithm.start(of.initial.vector, of.federation.clients)
    return Received(of.initial, start.shared)


@pytest.mark.parametrize("name", NAMES)
def test_an_algorithm_is_a_frozen_value_under_its_files_name(name: str) -> None:
    found = algorithm(name)
    assert found.name == name
    with pytest.raises(FrozenInstanceError):
        found.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", NAMES)
def test_every_default_trains(name: str) -> None:
    """One round on real rows: a finite update of the model's size, the declared extras, the declared state."""
    of = worker(name)
    done = of.train(0, 1, received(of), None)
    assert done.vector.shape == (of.layout.size * (1 + len(of.algorithm.extra)),)
    assert done.vector.dtype == of.initial.vector.dtype
    assert done.vector.norm() > 0
    assert set(done.state) == set(of.algorithm.client_state) | ({"personal"} if of.algorithm.personal else set())
    assert done.steps > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_client_leaves_what_it_was_given_as_it_was(name: str) -> None:
    """All clients of a chunk get the same tensors."""
    of = worker(name)
    sent = received(of)
    before = [sent.weights.vector.clone(), *(vector.clone() for vector in sent.shared.values())]
    first = of.train(0, 1, sent, None)
    states = {key: value.clone() for key, value in first.state.items()}
    of.train(0, 2, sent, first.state)
    assert all(torch.equal(*pair) for pair in zip(before, [sent.weights.vector, *sent.shared.values()], strict=True))
    assert all(torch.equal(states[key], first.state[key]) for key in states)


@pytest.mark.parametrize("name", NAMES)
def test_a_client_does_the_same_again(name: str) -> None:
    """Whoever worked before it in the same process."""
    of = worker(name)
    first = of.train(1, 3, received(of), None)
    of.train(0, 3, received(of), None)
    again = of.train(1, 3, received(of), None)
    assert torch.equal(first.vector, again.vector)
    assert not torch.equal(first.vector, of.train(1, 4, received(of), None).vector)


@pytest.mark.parametrize("name", NAMES)
def test_the_server_step_makes_new_tensors(name: str) -> None:
    """Checkpoints and messages still hold the old ones."""
    of = algorithm(name)
    uneven = clients()
    for client in uneven:
        client.personal = torch.tensor([False, False, True])
        client.state = {key: init(torch.zeros(3).double(), 4) for key, init in of.client_state.items()}
    server = of.start(torch.zeros(3, dtype=torch.float64), 4)._replace(round=1)
    before = [server.params.clone(), *(vector.clone() for vector in server.shared.values())]
    combined = combine(of, uneven, [work(of, client, server) for client in uneven], 4)
    after = of.server(server, combined)
    assert all(torch.equal(*pair) for pair in zip(before, [server.params, *server.shared.values()], strict=True))
    assert not torch.equal(after.params, server.params)
    assert after.shared.keys() == server.shared.keys()


@pytest.mark.parametrize("name", [name for name in NAMES if algorithm(name).personal])
def test_personal_coordinates_stay_with_the_client(name: str) -> None:
    """They are cut out of the upload, kept, and put into the model that the client receives next time."""
    of = worker(name)
    assert of.personal is not None
    first = of.train(0, 1, received(of), None)
    assert not first.vector[: of.layout.size][of.personal].any()
    assert first.vector[: of.layout.size][~of.personal].any()
    assert not torch.equal(first.state["personal"], of.initial.vector[of.personal])
    other = received(of)._replace(weights=Weights(of.initial.vector.masked_fill(of.personal, 7.0), of.initial.buffers))
    from_other = of.train(0, 2, other, first.state)
    from_own = of.train(0, 2, received(of), first.state)
    assert torch.equal(from_other.vector, from_own.vector), "the server's values there are never looked at"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_only_covered_optimisers_are_accepted(name: str, optimizer: str) -> None:
    changes = {"train.optimizer": optimizer, "train.learning_rate": 0.01}
    covered = {"sgd" if kind == "plain sgd" else kind for kind in algorithm(name).optimizers}
    if optimizer in covered:
        assert worker(name, **changes).train(0, 1, received(worker(name)), None).steps
    else:
        with pytest.raises(ScenarioError, match="theory covers"):
            worker(name, **changes)


@pytest.mark.parametrize("setting", ["momentum", "weight_decay", "clip"])
def test_scaffold_takes_plain_steps_only(setting: str) -> None:
    """Its control is a mean gradient, which it reads off the update."""
    with pytest.raises(ScenarioError, match="theory covers: plain sgd"):
        worker("scaffold", **{f"train.{setting}": 0.5})


@pytest.mark.parametrize("name", NAMES)
def test_privacy_is_refused_unless_argued_for(name: str) -> None:
    """An algorithm says in `private` why its uploads stay private; one that says so must then run."""
    changes = {"privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}}
    if algorithm(name).private:
        of = worker(name, **changes)
        assert of.train(0, 1, received(of), None).steps
    else:
        with pytest.raises(ScenarioError, match="declares no private form"):
            worker(name, **changes)


def test_a_second_private_pass_is_a_failure_not_a_leak() -> None:
    """Should an algorithm argue wrongly, the platform still stops it: the second pass was not charged."""
    of = worker("fedavg", **{"privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}})
    of.algorithm = algorithm("ditto")
    with pytest.raises(ClientError, match="second private pass"):
        of.train(0, 1, received(of), {"model": of.initial.vector.clone()})


@pytest.mark.parametrize("name", [name for name in NAMES if algorithm(name).linear])
def test_a_linear_algorithm_needs_only_the_weighted_sum(name: str) -> None:
    """So its declared combiner is the mean: sum of weight times vector over sum of weights."""
    of = worker(name)
    vectors = [of.train(number, 1, received(of), None).vector for number in range(3)]
    weights = torch.tensor([1.0, 2.0, 3.0])
    running = Fold()
    for vector, weight in zip(vectors, weights.tolist(), strict=True):
        running.add(vector, weight)
    total = running.total
    assert total is not None
    mean = of.algorithm.combine(torch.stack(vectors), weights)
    assert (mean - total / 6).norm() <= 1e-6 * mean.norm()
