"""The server takes Adam steps along the mean update (FedAdam).

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2: with Delta the cohort's mean update,
m = beta1 m + (1 - beta1) Delta, v = beta2 v + (1 - beta2) Delta^2,
w += server_lr m / (sqrt(v) + tau). v starts at tau^2, and nothing corrects the averages for their start.
Communicates: the model down, one update up. Any local optimiser. Private at example level: the server only
transforms what FedAvg sends it.
Try it: fedsim run quickstart --set 'privacy={}' --set strategy.name=fedadam --set train.learning_rate=0.3
"""

import math

import torch

from fedsim.algorithm import Algorithm, Combined, Server, Weighting, local_update, zeros


def fedadam(
    server_lr: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    weights: Weighting = "examples",
) -> Algorithm:
    """FedAdam.

    Args:
        server_lr: eta, > 0; the best of the paper lie between 0.003 and 0.1, by task.
        beta1, beta2: of the mean update and of its square, in [0, 1).
        tau: how adaptive the step is, > 0: the smaller, the more alike the steps of all coordinates are.
        weights: "examples" (FedAvg) or "uniform" (as the algorithm is written).
    """
    if not (0 < server_lr < math.inf and 0 <= beta1 < 1 and 0 <= beta2 < 1 and 0 < tau < math.inf):
        raise ValueError(
            f"server_lr = {server_lr} and tau = {tau} should be above 0 and finite, "
            f"and beta1 = {beta1} and beta2 = {beta2} at least 0 and below 1"
        )

    def server(server: Server, combined: Combined) -> Server:
        delta = combined.update
        first = beta1 * server.state["first_moment"] + (1 - beta1) * delta
        second = beta2 * server.state["second_moment"] + (1 - beta2) * delta**2
        params = server.params + server_lr * first / (second.sqrt() + tau)
        return server._replace(params=params, state={"first_moment": first, "second_moment": second})

    return Algorithm(
        "fedadam",
        local_update,
        server,
        weights,
        server_state={
            "first_moment": zeros,
            "second_moment": lambda params, population: torch.full_like(params, tau**2),
        },
        private="the server transforms a sum of clipped, noised gradients",
    )
