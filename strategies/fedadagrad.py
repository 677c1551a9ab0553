"""The server takes Adagrad steps along the mean update (FedAdagrad).

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2: with Delta the cohort's mean update,
m = beta1 m + (1 - beta1) Delta, v += Delta^2,
w += server_lr m / (sqrt(v) + tau). v starts at tau^2, and nothing corrects the averages for their start.
Communicates: the model down, one update up. Any local optimiser. Private at example level: the server only
transforms what FedAvg sends it.
"""

from typing import Annotated

from torch import Tensor

from fedsim.algorithm import Algorithm, Weighting
from fedsim.ranges import Range
from fedsim.strategies._adaptive import adaptive


def fedadagrad(
    server_lr: Annotated[float, Range(1e-3, 10.0, log=True)] = 0.1,
    beta1: float = 0.0,
    tau: Annotated[float, Range(1e-5, 0.1, log=True)] = 1e-3,
    weights: Weighting = "examples",
) -> Algorithm:
    """FedAdagrad.

    Args:
        server_lr: eta, > 0; the paper tunes it for each data set.
        beta1: of the mean update, in [0, 1).
        tau: how adaptive the step is, > 0: the smaller, the more alike the steps of all coordinates are.
        weights: "examples" (FedAvg) or "uniform" (as the algorithm is written).
    """

    def moved(second: Tensor, square: Tensor) -> Tensor:
        return second + square

    return adaptive("fedadagrad", moved, server_lr, beta1, tau, weights)
