"""A policy for carts with poles, which plays the episodes that it is given.

Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning", Machine Learning
1992 (REINFORCE): the gradient of the expected return is that of the mean of log pi(a_t | s_t) A_t, here with A_t what
is still to come of an episode's return, less its mean over the batch at that time.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fedsim.errors import ModelError
from fedsim.extras import needed
from fedsim.models._fit import at_least_one


def policy(shape: tuple[int, ...], task: str, *, hidden: int = 32, steps: int = 200) -> nn.Module:
    """A policy of one hidden layer.

    Args:
        shape: of one row, (7,) as of the data set `cartpole`.
        task: control.
        hidden: width of the hidden layer.
        steps: after which an episode ends, if the pole still stands; a return is at most that.

    Raises:
        ModelError: the data are others, or a size is impossible.
        FedsimError: Gymnasium is not installed.
    """
    if task != "control" or shape != (7,):
        raise ModelError(f"model 'policy' plays episodes of data 'cartpole', not rows {list(shape)} of task {task}")
    at_least_one("policy", hidden=hidden, steps=steps)
    needed("gymnasium", "rl", "model 'policy'")
    return Policy(hidden, steps)


class Policy(nn.Module):
    """Starts [B, 7] to losses and returns [B, 2]; actions are drawn in training, else the likeliest is taken."""

    def __init__(self, hidden: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.body = nn.Linear(4, hidden)
        self.head = nn.Linear(hidden, 2)

    def logits(self, states: Tensor) -> Tensor:
        """[..., 4] to the logits [..., 2] of pushing left and right."""
        logits: Tensor = self.head(self.body(states).tanh())
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Losses and returns [B, 2]; in evaluation a loss is the negative share of the longest return."""
        states, actions, alive = self._played(x)
        returns = alive.sum(0)
        if not self.training:
            return torch.stack([-returns / self.steps, returns], dim=1)
        likely = torch.log_softmax(self.logits(states), dim=2).gather(2, actions[..., None])[..., 0]
        gains = _advantages(alive)
        return torch.stack([-(likely * gains).sum(0) / self.steps, returns], dim=1)

    def _played(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States [T, B, 4], actions [T, B], and whether the episode had not ended [T, B], as 0 or 1."""
        carts = _carts(x)
        state, standing = x[:, :4], torch.ones(len(x), dtype=torch.bool)
        states: list[Tensor] = []
        actions: list[Tensor] = []
        alive: list[Tensor] = []
        with torch.no_grad():
            while len(states) < self.steps and standing.any():
                logits = self.logits(state)
                right = torch.rand(len(x)) < logits.softmax(1)[:, 1] if self.training else logits[:, 1] > logits[:, 0]
                states.append(state)
                actions.append(right.long())
                alive.append(standing)
                seen, _, fallen, _, _ = carts.step(actions[-1].numpy())
                state, standing = torch.from_numpy(seen), standing & ~torch.from_numpy(fallen)
        return torch.stack(states), torch.stack(actions), torch.stack(alive).to(x.dtype)


def _advantages(alive: Tensor) -> Tensor:
    """[T, B] what is still to come of each return, less the mean of those who still stand; in standard deviations."""
    to_come = alive.flip(0).cumsum(0).flip(0)
    gains = (to_come - to_come.sum(1, keepdim=True) / alive.sum(1, keepdim=True)) * alive
    spread = (gains.square().sum() / alive.sum()).sqrt()
    return gains / (spread + 1e-6)


def _carts(x: Tensor) -> Any:
    """Gymnasium's environment of as many carts as there are rows, each with its own physics, where its row begins."""
    from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

    carts: Any = CartPoleVectorEnv(num_envs=len(x), max_episode_steps=2**30)
    carts.reset(seed=0)  # its draws begin episodes anew, which nobody then looks at
    values = x.detach().double().numpy().T
    carts.state = values[:4].copy()
    carts.length, carts.gravity, carts.force_mag = values[4:]
    carts.polemass_length = carts.masspole * carts.length
    return carts
