"""The server takes Yogi steps along the mean update (FedYogi).

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2: with Delta the cohort's mean update,
m = beta1 m + (1 - beta1) Delta, v -= (1 - beta2) Delta^2 sign(v - Delta^2),
w += server_lr m / (sqrt(v) + tau). v starts at tau^2, and nothing corrects the averages for their start.
Communicates: the model down, one update up. Any local optimiser. Private at example level: the server only
transforms what FedAvg sends it.
Try it: fedsim run quickstart --set 'privacy={}' --set strategy.name=fedyogi --set train.learning_rate=0.3
"""

from typing import Annotated

import torch
from torch import Tensor

from fedsim.algorithm import Algorithm, Weighting
from fedsim.ranges import Range
from fedsim.strategies._adaptive import adaptive


def fedyogi(
    server_lr: Annotated[float, Range(1e-3, 10.0, log=True)] = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: Annotated[float, Range(1e-5, 0.1, log=True)] = 1e-3,
    weights: Weighting = "examples",
) -> Algorithm:
    """FedYogi.

    Args:
        server_lr: eta, > 0; the best of the paper lie between 0.003 and 0.1, by task.
        beta1, beta2: of the mean update and of its square, in [0, 1).
        tau: how adaptive the step is, > 0: the smaller, the more alike the steps of all coordinates are.
        weights: "examples" (FedAvg) or "uniform" (as the algorithm is written).
    """
    if not 0 <= beta2 < 1:
        raise ValueError(f"beta2 = {beta2} should be at least 0 and below 1")

    def moved(second: Tensor, square: Tensor) -> Tensor:
        return second - (1 - beta2) * square * torch.sign(second - square)

    return adaptive("fedyogi", moved, server_lr, beta1, tau, weights)
