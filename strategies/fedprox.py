"""Federated averaging with a proximal term that holds clients near the global model (FedProx).

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, equation 2: each client minimises
F_k(w) + mu/2 ||w - w_t||^2, so the gradient of a local step gains mu (w - w_t).
Communicates: the model down, one update up. With mu = 0 it is FedAvg, to the bit. Any local optimiser. Private
at example level: the term reads no row and is added to the noised gradient.
"""

import math
from typing import Annotated

from torch import Tensor

from fedsim.algorithm import Algorithm, Local, Upload, Weighting, add_update
from fedsim.ranges import Range


def fedprox(mu: Annotated[float, Range(1e-4, 1.0, log=True)] = 0.01, weights: Weighting = "examples") -> Algorithm:
    """FedProx.

    Args:
        mu: the pull towards the global model, >= 0; the paper chooses among 0.001, 0.01, 0.1 and 1 for each data set.
        weights: "examples" or "uniform".
    """
    if not 0 <= mu < math.inf:
        raise ValueError(f"mu = {mu} should be at least 0 and finite")

    def client(local: Local) -> Upload:
        def pulled(gradient: Tensor, params: Tensor) -> Tensor:
            return gradient + mu * (params - local.received)

        trained = local.train(local.received, correct=pulled if mu else None)
        return Upload(trained.params - local.received)

    return Algorithm(
        "fedprox", client, add_update, weights, private="the proximal term is added to clipped, noised gradients"
    )
