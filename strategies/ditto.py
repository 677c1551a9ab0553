"""Personal models tied to a global one (Ditto).

Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, algorithm 1: the
global model w is FedAvg's; beside it each client keeps v_k and minimises F_k(v) + lambda/2 ||v - w||^2, so
its gradient gains lambda (v - w). v_k starts as a copy of the initial model.
Communicates: the model down, one update up; v_k stays with the client. Any local optimiser. Private at example
level, jointly: both passes clip, noise and are charged, and v_k never leaves its client.
Try it: fedsim run quickstart --set 'privacy={}' --set strategy.name=ditto --set train.learning_rate=0.3
"""

import math
from typing import Annotated

from fedsim.algorithm import Algorithm, Local, Upload, Weighting, add_update, copy_of_model
from fedsim.ranges import Range


def ditto(lamda: Annotated[float, Range(1e-2, 10.0, log=True)] = 0.1, weights: Weighting = "examples") -> Algorithm:
    """Ditto.

    Args:
        lamda: lambda of the paper, the pull of the personal model towards the global one, >= 0.
        weights: "examples" or "uniform".
    """
    if not 0 <= lamda < math.inf:
        raise ValueError(f"lamda = {lamda} should be at least 0 and finite")

    def client(local: Local) -> Upload:
        trained = local.train(local.received)
        own = local.train(
            local.state["model"], correct=lambda gradient, params: gradient + lamda * (params - local.received)
        )
        return Upload(trained.params - local.received, state={"model": own.params}, buffers=trained.buffers)

    return Algorithm(
        "ditto",
        client,
        add_update,
        weights,
        client_state={"model": copy_of_model},
        own_model=lambda local: local.state["model"],
        private="both models sum clipped, noised gradients, and the personal one never leaves",
        private_passes=(None, None),
    )
