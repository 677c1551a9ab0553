"""Federated averaging of the body under personal last layers (FedPer).

Arivazhagan et al., "Federated Learning with Personalization Layers", arXiv 1912.00818, 2019, algorithms 1 and 2:
a client trains body and head together; only the body is averaged, and the head stays for the client's next round.
Communicates: the body down, its update up; heads stay with their clients. Any local optimiser. Private at example
level, jointly: a head too is computed from clipped and noised gradients, and never leaves its client.
Try it: fedsim run quickstart --set 'privacy={}' --set strategy.name=fedper --set train.learning_rate=0.3
"""

from fedsim.algorithm import Algorithm, Weighting, add_update, local_update


def fedper(personal: str = "head.*", weights: Weighting = "examples") -> Algorithm:
    """FedPer.

    Args:
        personal: pattern of the personal parameters' names (shell style).
        weights: "examples" (the paper) or "uniform".
    """
    return Algorithm(
        "fedper",
        local_update,
        add_update,
        weights,
        personal=personal,
        private="body and head sum clipped, noised gradients, and heads never leave",
    )
