"""Gradient descent on everybody's rows: one step a round on all rows of each client (FedSGD).

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
section 2: client k computes the mean gradient g_k on all its rows and w_{t+1} = w_t - eta sum_k n_k g_k / sum_k n_k.
Communicates: the model down, -eta g_k up. Plain SGD only, and of [train] only its learning rate counts. No
private form is declared: one private step on a Poisson batch is FedAvg with train.steps = 1.
"""

from fedsim.algorithm import Algorithm, Local, Upload, Weighting, add_update


def fedsgd(weights: Weighting = "examples") -> Algorithm:
    """FedSGD.

    Args:
        weights: "examples" (the paper) or "uniform".
    """

    def client(local: Local) -> Upload:
        return Upload(local.train(local.received, whole=True).params - local.received)

    return Algorithm("fedsgd", client, add_update, weights, optimizers=("plain sgd",))
