"""The server step that FedAdagrad, FedAdam and FedYogi share; they differ in how the second moment moves.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2: m = beta1 m + (1 - beta1) Delta and
w += server_lr m / (sqrt(v) + tau), with v at first tau^2.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedsim.algorithm import Algorithm, Combined, Server, Weighting, local_update, zeros


def adaptive(
    name: str,
    moved: Callable[[Tensor, Tensor], Tensor],
    server_lr: float,
    beta1: float,
    tau: float,
    weights: Weighting,
) -> Algorithm:
    """FedAvg's client half under an adaptive server step.

    Args:
        name: of the algorithm.
        moved: (v [D], Delta^2 [D]) -> the next v [D].
        server_lr, beta1, tau, weights: as the algorithm has them.
    """
    if not (0 < server_lr < math.inf and 0 <= beta1 < 1 and 0 < tau < math.inf):
        raise ValueError(
            f"server_lr = {server_lr} and tau = {tau} should be above 0 and finite, "
            f"and beta1 = {beta1} at least 0 and below 1"
        )

    def server(server: Server, combined: Combined) -> Server:
        delta = combined.update
        first = beta1 * server.state["first_moment"] + (1 - beta1) * delta
        second = moved(server.state["second_moment"], delta**2)
        params = server.params + server_lr * first / (second.sqrt() + tau)
        return server._replace(params=params, state={"first_moment": first, "second_moment": second})

    return Algorithm(
        name,
        local_update,
        server,
        weights,
        server_state={
            "first_moment": zeros,
            "second_moment": lambda params, population: torch.full_like(params, tau**2),
        },
        private="the server transforms a sum of clipped, noised gradients",
    )
