"""Federated averaging (FedAvg).

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
algorithm 1: each client of the cohort trains from the global model w_t on its own rows; the server takes
w_{t+1} = w_t + sum_k n_k (w_k - w_t) / sum_k n_k, with n_k the client's train rows.
Communicates: the model down, one update up. Any local optimiser. Private at example level: an update is
computed from clipped and noised gradients alone.
Its two halves are the plain ones that many others share: `local_update` trains and sends the change, `add_update`
adds what was combined (`fedsim/algorithm.py`).
"""

from fedsim.algorithm import Algorithm, Weighting, add_update, local_update
from fedsim.combiners import Combiner


def fedavg(weights: Weighting = "examples") -> Algorithm:
    """FedAvg.

    Args:
        weights: "examples" (the paper) or "uniform".
    """
    return Algorithm("fedavg", local_update, add_update, weights, private="the update sums clipped, noised gradients")


def fedavg_by(combiner: Combiner, name: str, weights: Weighting) -> Algorithm:
    """FedAvg whose updates another combiner makes one, under the name of that algorithm."""
    private = "the update sums clipped, noised gradients; combining updates is post-processing"
    return Algorithm(name, local_update, add_update, weights, combiner, private=private)
