"""Federated averaging with momentum at the server (FedAvgM).

Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
arXiv 1909.06335, 2019, section 4.3: v = beta v + Delta with Delta the cohort's mean update, w += server_lr v.
Communicates: the model down, one update up. Any local optimiser. With beta = 0 and server_lr = 1 it is FedAvg.
Private at example level: the server only transforms what FedAvg sends it.
Try it: fedsim run quickstart --set 'privacy={}' --set strategy.name=fedavgm --set train.learning_rate=0.3
"""

import math
from typing import Annotated

from fedsim.algorithm import Algorithm, Combined, Server, Weighting, local_update, zeros
from fedsim.ranges import Range


def fedavgm(
    beta: Annotated[float, Range(0.0, 0.99)] = 0.9,
    server_lr: Annotated[float, Range(1e-2, 10.0, log=True)] = 1.0,
    weights: Weighting = "examples",
) -> Algorithm:
    """FedAvgM.

    Args:
        beta: the share of the last velocity that is kept, in [0, 1); the paper tries 0 to 0.997.
        server_lr: the step along the velocity, > 0; an update moves the model by 1 / (1 - beta) times it in the end.
        weights: "examples" (the paper) or "uniform".
    """
    if not (0 <= beta < 1 and 0 < server_lr < math.inf):
        raise ValueError(
            f"beta = {beta} should be at least 0 and below 1, and server_lr = {server_lr} above 0 and finite"
        )

    def server(server: Server, combined: Combined) -> Server:
        velocity = beta * server.state["velocity"] + combined.update
        return server._replace(params=server.params + server_lr * velocity, state={"velocity": velocity})

    return Algorithm(
        "fedavgm",
        local_update,
        server,
        weights,
        server_state={"velocity": zeros},
        private="the server transforms a sum of clipped, noised gradients",
    )
