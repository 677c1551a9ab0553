"""Federated averaging of all but the normalisation, which stays with each client (FedBN).

Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR 2021, algorithm 1:
scale, shift and running statistics of batch normalisation are the client's own; all else is FedAvg's.
Communicates: the other parameters down, their update up. Any local optimiser. No private form is declared: running
statistics are computed from rows without noise, and a client's later gradients depend on them.
Try it: fedsim run quickstart --set 'privacy={}' --set strategy.name=fedbn --set model.norm=batch
"""

from fedsim.algorithm import Algorithm, Weighting, add_update, local_update


def fedbn(personal: str = "*norm*", weights: Weighting = "examples") -> Algorithm:
    """FedBN.

    Args:
        personal: pattern of the normalisation's parameter and buffer names (shell style).
        weights: "examples" (FedAvg) or "uniform" (as the algorithm is written).
    """
    return Algorithm("fedbn", local_update, add_update, weights, personal=personal)
