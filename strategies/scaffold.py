"""Stochastic controlled averaging (SCAFFOLD).

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, algorithm 1
with option II. Client i keeps a control c_i, the server their mean c. A local step uses the gradient
g - c_i + c; afterwards c_i+ = c_i - c + (x - y_i) / (K eta), and the server adds the means:
x += eta_g mean(y_i - x), c += |S| / N mean(c_i+ - c_i).
Communicates: model and control down, update and control's change up. Plain SGD only (the control is a mean
gradient). Private at example level: the control is computed from the noised update and public numbers.
"""

import math
from typing import Annotated

from fedsim.algorithm import Algorithm, Combined, Local, Server, Upload, Weighting, zeros
from fedsim.ranges import Range


def scaffold(
    server_lr: Annotated[float, Range(0.1, 10.0, log=True)] = 1.0, weights: Weighting = "uniform"
) -> Algorithm:
    """SCAFFOLD.

    Args:
        server_lr: eta_g, the server's step along the mean update, > 0.
        weights: "uniform" (the paper) or "examples".
    """
    if not 0 < server_lr < math.inf:
        raise ValueError(f"server_lr = {server_lr} should be above 0 and finite")

    def client(local: Local) -> Upload:
        own, common = local.state["control"], local.shared["control"]
        trained = local.train(local.received, correct=lambda gradient, params: gradient - own + common)
        update = trained.params - local.received
        control = own - common - update / trained.step_size
        return Upload(update, extra={"control": control - own}, state={"control": control})

    def server(server: Server, combined: Combined) -> Server:
        control = server.shared["control"] + combined.share_of_population * combined.extra["control"]
        return server._replace(params=server.params + server_lr * combined.update, shared={"control": control})

    return Algorithm(
        "scaffold",
        client,
        server,
        weights,
        client_state={"control": zeros},
        shared={"control": zeros},
        extra=("control",),
        optimizers=("plain sgd",),
        private="the control is computed from the noised update and public numbers",
    )
