"""A policy on carts: episodes are Gymnasium's, the gradient is REINFORCE's, draws are the platform's."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from torch import Tensor

from fedsim import registry, seeds
from fedsim.data.check import check
from fedsim.data.corpus import Corpus, Folders
from fedsim.errors import DataError, FedsimError, ModelError
from fedsim.metrics import add
from fedsim.models.policy import Policy, policy
from fedsim.tasks.control import Control
from tests import small

CARTS: small.Changes = {
    "data": {"name": "cartpole", "clients": 3, "episodes": 12, "unseen": 2, "partition": {"kind": "natural"}},
    "model": {"name": "policy", "hidden": 8, "steps": 30},
    "train.batch_size": 4,
}


def corpus(**settings: int) -> Corpus:
    source = registry.find("fedsim.data.sources", "cartpole", Path(), "data.name")
    made: Corpus = source(Folders((), Path()), **settings)
    check(made)
    return made


def rows(count: int = 6) -> Tensor:
    return torch.from_numpy(corpus(clients=count, episodes=1, unseen=0).x)


def player(steps: int = 60) -> Policy:
    with seeds.scope(3, "test"):
        return Policy(8, steps)


def test_episodes_are_those_of_gymnasiums_single_cart() -> None:
    """Greedy play, one cart after another in the environment for one: as long, to the step."""
    model, lengths = player().eval(), []
    for row in rows().double().numpy():
        cart: Any = CartPoleEnv()
        cart.reset(seed=0)
        cart.state = row[:4].copy()
        cart.length, cart.gravity, cart.force_mag = row[4:]
        cart.polemass_length = cart.masspole * cart.length
        state, length, fallen = row[:4].astype(np.float32), 0, False
        while not fallen and length < model.steps:
            action = int(model.logits(torch.from_numpy(state)).argmax())
            state, _, fallen, _, _ = cart.step(action)
            length += 1
        lengths.append(float(length))
    assert len(set(lengths)) > 1
    assert model(rows())[:, 1].tolist() == lengths


def test_the_physics_of_a_cart_are_its_own() -> None:
    """The same start under another motor is another episode."""
    x = rows(1).repeat(2, 1)
    x[1, 6] = 4 * x[0, 6]
    states, _, _ = player().eval()._played(x)
    assert torch.equal(states[0, 0], states[0, 1]) and not torch.equal(states[1, 0], states[1, 1])


def test_the_gradient_is_that_of_the_actions_likelihood_times_what_was_still_to_come() -> None:
    """Row by row and step by step, from the paper's formula, with plain loops."""
    model, x = player(20), rows(4)
    torch.manual_seed(5)
    losses, returns = model(x).unbind(1)
    torch.manual_seed(5)
    states, actions, alive = model._played(x)
    assert torch.equal(returns, alive.sum(0))
    to_come = [[float(alive[time:, row].sum()) for row in range(4)] for time in range(len(alive))]
    gains = []
    for time, still in enumerate(to_come):
        standing = [row for row in range(4) if alive[time, row]]
        mean = sum(still[row] for row in standing) / len(standing)
        gains += [(time, row, still[row] - mean) for row in standing]
    spread = math.sqrt(sum(gain**2 for *_, gain in gains) / len(gains)) + 1e-6
    expected = [torch.zeros(())] * 4
    for time, row, gain in gains:
        likely = torch.log_softmax(model.logits(states[time, row]), 0)[actions[time, row]]
        expected[row] = expected[row] - likely * gain / spread / model.steps
    torch.testing.assert_close(losses, torch.stack(expected))


def test_actions_are_drawn_in_training_by_the_global_generator_alone() -> None:
    model, x = player(), rows()
    torch.manual_seed(1)
    first, other = model(x), model(x)
    torch.manual_seed(1)
    assert torch.equal(model(x), first) and not torch.equal(first, other)
    model.eval()
    assert torch.equal(model(x), model(x))


def test_federated_play_repeats_to_the_bit_and_is_judged_by_its_return(tmp_path: Path) -> None:
    first, again = (small.run(small.job(CARTS), tmp_path / name) for name in ("a", "b"))
    assert torch.equal(first.weights.vector, again.weights.vector)
    assert first.values["headline"]["metric"] == "global/central-test/rows/return"
    assert 1 <= first.values["headline"]["value"] <= 30


def test_carts_do_not_depend_on_how_many_there_are() -> None:
    few, many = corpus(clients=2, episodes=3, unseen=1), corpus(clients=5, episodes=3, unseen=0)
    assert np.array_equal(few.x, many.x[:9])
    assert few.own_test is not None and few.own_test.sum() == 3 and many.own_test is None
    assert len(np.unique(many.x[:, 4:], axis=0)) == 5
    assert (np.abs(many.x[:, :4]) <= 0.05).all()


def test_statistics_are_plain_sums() -> None:
    problem, output = Control(), torch.tensor([[1.0, 10.0], [3.0, 20.0], [-1.0, 60.0]])
    parts = [problem.statistics(output[part], torch.zeros(3)[part]) for part in (slice(1), slice(1, 3))]
    assert problem.metrics(add([problem.zeros(), *parts])) == {"loss": 1.0, "return": 30.0}
    assert all(math.isnan(value) for value in problem.metrics(problem.zeros()).values())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="control has no targets, give a 0 per row"):
        Control().check_rows(np.zeros((2, 7), np.float32), np.ones(2, np.float32))
    with pytest.raises(ModelError, match=r"gives outputs of shape \[2, 3\], the data needs \[2, 2\]"):
        Control().check(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ModelError, match="plays episodes of data 'cartpole', not rows"):
        policy((4,), "control")
    with pytest.raises(ModelError, match="steps = 0 should be at least 1"):
        policy((7,), "control", steps=0)


def test_rows_that_share_a_mean_have_no_example_level_privacy(tmp_path: Path) -> None:
    """An episode's loss depends on the others of its batch, so that no clipping bounds what one of them does."""
    private = {"privacy.example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}}
    with pytest.raises(FedsimError) as refused:
        small.job({**CARTS, **private})
    assert "policy" in str(refused.value) and "\n" not in str(refused.value)
