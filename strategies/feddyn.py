"""Dynamic regularisation: each client's objective is bent so that its minimum moves to the global one (FedDyn).

Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, algorithm 1. Client k keeps a dual
g_k, its own gradient once all agree, and minimises L_k(w) - <g_k, w> + alpha/2 ||w - w_t||^2; afterwards
g_k -= alpha (w_k - w_t). The server takes h -= alpha |P_t| / m mean(w_k - w_t), w_{t+1} = mean(w_k) - h / alpha.
Communicates: the model down, one update up. Any local optimiser (the theory has it reach the minimum). Private
at example level: the dual is computed from noised updates.
Try it: fedsim run quickstart --set 'privacy={}' --set strategy.name=feddyn --set train.learning_rate=0.3
"""

import math
from typing import Annotated

from fedsim.algorithm import Algorithm, Combined, Local, Server, Upload, Weighting, zeros
from fedsim.ranges import Range


def feddyn(alpha: Annotated[float, Range(1e-3, 1.0, log=True)] = 0.01, weights: Weighting = "uniform") -> Algorithm:
    """FedDyn.

    Args:
        alpha: the weight of the regulariser, > 0; the paper chooses among 0.1, 0.01 and 0.001 for each data set.
        weights: "uniform" (the paper) or "examples".
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha = {alpha} should be above 0 and finite")

    def client(local: Local) -> Upload:
        dual = local.state["dual"]
        trained = local.train(
            local.received, correct=lambda gradient, params: gradient - dual + alpha * (params - local.received)
        )
        update = trained.params - local.received
        return Upload(update, state={"dual": dual - alpha * update})

    def server(server: Server, combined: Combined) -> Server:
        h = server.state["h"] - alpha * combined.share_of_population * combined.update
        return server._replace(params=server.params + combined.update - h / alpha, state={"h": h})

    return Algorithm(
        "feddyn",
        client,
        server,
        weights,
        client_state={"dual": zeros},
        server_state={"h": zeros},
        private="the dual is computed from the noised update and public numbers",
    )
