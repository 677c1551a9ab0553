"""The local optimiser, its state fresh and its rate set every round, and the precision of the pass before its step.

A step is one call of the kernels under `torch.optim`'s `fused=True`, one pass over memory. `torch.optim` itself imports
torch's compiler at its first step, a second in every process, and takes as long as a small net's step to call them.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from fedsim.tables import Train


class Optimizer(Protocol):
    """Moves the vector that it was made for, against the gradient in the vector's `grad`."""

    def step(self) -> None:
        """One step."""
        ...


def make_optimizer(settings: Train, params: Tensor, learning_rate: float) -> Optimizer:
    """The local optimiser on flat vectors `params`, one [D] or several [C, D], with fresh state."""
    if settings.optimizer == "sgd":
        return _Sgd(params, learning_rate, settings.momentum, settings.weight_decay)
    step = {"adam": torch._fused_adam_, "adamw": torch._fused_adamw_}[settings.optimizer]
    return _Adam(step, params, learning_rate, settings.weight_decay)


class _Sgd:
    """As `torch.optim.SGD`: v <- m v + g + decay w (at first g + decay w), w <- w - rate v."""

    def __init__(self, params: Tensor, rate: float, momentum: float, decay: float) -> None:
        self._params, self._rate, self._momentum, self._decay = params, rate, momentum, decay
        self._velocity = [torch.empty_like(params)] if momentum else []
        self._first = True

    def step(self) -> None:
        torch._fused_sgd_(
            [self._params],
            [_gradient_of(self._params)],
            self._velocity,
            weight_decay=self._decay,
            momentum=self._momentum,
            lr=self._rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=self._first,
        )
        self._first = False


class _Adam:
    """As `torch.optim.Adam` or `AdamW`, with their defaults for beta and epsilon."""

    def __init__(self, kernel: Callable[..., None], params: Tensor, rate: float, decay: float) -> None:
        self._kernel, self._params, self._rate, self._decay = kernel, params, rate, decay
        self._means, self._squares = torch.zeros_like(params), torch.zeros_like(params)
        self._steps = torch.zeros((), dtype=torch.float32, device=params.device)

    def step(self) -> None:
        self._steps += 1
        self._kernel(
            [self._params],
            [_gradient_of(self._params)],
            [self._means],
            [self._squares],
            [],
            [self._steps],
            lr=self._rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=self._decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


def _gradient_of(params: Tensor) -> Tensor:
    """What is in `grad`, laid out as the kernels want it."""
    assert params.grad is not None
    return params.grad.contiguous()


def learning_rate(settings: Train, round: int, rounds: int) -> float:
    """The learning rate of a round (from 1) under the schedule."""
    schedule = settings.schedule
    if schedule is None:
        return settings.learning_rate
    if schedule.kind == "cosine":
        return settings.learning_rate * (1 + math.cos(math.pi * (round - 1) / rounds)) / 2
    return settings.learning_rate * schedule.factor ** ((round - 1) // schedule.every)


def effective_steps(steps: int, momentum: float) -> float:
    """Sum of the weights with which gradients enter the update: plain SGD's steps, more with momentum.

    A gradient of step t counts (1 - m^(T - t + 1)) / (1 - m) times by the end (Wang et al. 2020, section 4).
    """
    if momentum == 0.0:
        return float(steps)
    return sum((1 - momentum ** (steps - t)) / (1 - momentum) for t in range(steps))


def precise(settings: Train, device: str = "cpu") -> AbstractContextManager[object]:
    """What a step's forward pass and loss stand in; vectors, gradients and steps stay float32.

    For each step anew: autocast remembers the weights that it has rounded until its block ends.
    """
    return torch.autocast(device, torch.bfloat16) if settings.precision == "bf16" else nullcontext()
