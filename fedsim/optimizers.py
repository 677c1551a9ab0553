"""The local optimiser: torch's own, on one flat vector, with fresh state every round and a rate per round."""

import math

import torch
from torch import Tensor

from fedsim.scenario import Train


def make_optimizer(settings: Train, params: Tensor, learning_rate: float) -> torch.optim.Optimizer:
    """The local optimiser on one flat vector, with fresh state."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            [params], learning_rate, settings.momentum, weight_decay=settings.weight_decay, foreach=False
        )
    kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind([params], learning_rate, weight_decay=settings.weight_decay, foreach=False)


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
