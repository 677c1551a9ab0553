"""Fair averaging: clients with a larger loss count more (q-FedAvg).

Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020, algorithm 2: the objective is
sum_k p_k F_k(w)^{q+1} / (q + 1). With F_k the loss at the received w_t, L = 1 / learning rate and
D_k = L (w_t - w_k), client k sends F_k^q D_k and h_k = q F_k^{q-1} ||D_k||^2 + L F_k^q; the server takes
w_{t+1} = w_t - sum_k F_k^q D_k / sum_k h_k.
Communicates: the model down, one weighted update and one number up. Plain SGD only (L bounds the curvature of what a
step of 1 / L descends on). With q = 0 it is FedAvg. A loss below 10^{-30/q} (0.01 for q = 15) or
1e-10 counts as the larger of these, so that float32 holds F_k^q. No private form is declared: it sends its raw loss.
"""

import math
from typing import Annotated

from fedsim.algorithm import Algorithm, Combined, Local, Server, Upload, Weighting
from fedsim.ranges import Range

_SMALLEST_LOSS = 1e-10  # a loss of 0 has no power of q - 1 < 0
_SMALLEST_POWER = 1e-30  # of F^q: float32 ends at 1e-38, and L and D are yet to be multiplied in


def qfedavg(q: Annotated[float, Range(1e-3, 15.0, log=True)] = 1.0, weights: Weighting = "uniform") -> Algorithm:
    """q-FedAvg.

    Args:
        q: how much fairness counts, >= 0; the paper tries 0.001 to 15.
        weights: p_k: "uniform" (the paper draws clients by p_k instead) or "examples".
    """
    if not 0 <= q < math.inf:
        raise ValueError(f"q = {q} should be at least 0 and finite")
    smallest = max(_SMALLEST_LOSS, _SMALLEST_POWER ** (1 / max(q, 1)))

    def client(local: Local) -> Upload:
        loss = local.loss(local.received).double().clamp(min=smallest)  # float32 errors grow q-fold
        trained = local.train(local.received)
        lipschitz = trained.steps / trained.step_size
        step = lipschitz * (trained.params - local.received)
        h = q * loss ** (q - 1) * step.square().sum(-1, keepdim=True) + lipschitz * loss**q
        return Upload((loss**q).to(step.dtype) * step, scalars={"h": h.to(step.dtype)})

    def server(server: Server, combined: Combined) -> Server:
        return server._replace(params=server.params + combined.update / combined.mean("h"))

    return Algorithm("qfedavg", client, server, weights, scalars=("h",), optimizers=("plain sgd",))
