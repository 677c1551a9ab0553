"""The mean of updates that are clipped to a norm (norm bounding).

Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019, section 4, norm thresholding:
sum_i w_i u_i min(1, M / ||u_i||) / sum_i w_i. Without a fixed M, which fits one net and one learning rate, it is the
median norm of the round. The norm covers everything that is sent. The paper's weak noise is left out.
Communicates: the model down, one update up; nothing is summed in the workers. Any local optimiser. Private at
example level: updates are computed from clipped and noised gradients, and what combines them is post-processing.
Guarantee: attackers with a share a of the weight move the combined update by at most a M, which ends model
replacement; with the median for M and fewer than half the clients attacking, M is no more than an honest norm. No
more than that: it fails wherever attackers agree, since a share a of negated or ALIE's updates counts fully.
"""

import math

import torch
from torch import Tensor

from fedsim.algorithm import Algorithm, Weighting
from fedsim.combiners import Combiner, distances, weighted_sum
from fedsim.strategies.fedavg import fedavg_by


def norm_bounding(bound: float | None = None, weights: Weighting = "uniform") -> Algorithm:
    """FedAvg with clipped updates.

    Args:
        bound: M, the largest norm of an update, > 0; None is the median over the round's clients (the lower one of
            two).
        weights: "uniform" or "examples" (the paper), in the mean of clipped updates.
    """
    if bound is not None and not 0 < bound < math.inf:
        raise ValueError(f"bound = {bound} should be above 0 and finite")

    def combine(updates: Tensor, weights: Tensor, previous: Tensor) -> Tensor:
        norms = distances(updates, torch.zeros_like(updates[0]))
        largest = norms.median() if bound is None else bound
        shares = weights.double() / weights.double().sum()
        return weighted_sum(updates, shares * torch.where(norms > largest, largest / norms, 1.0))

    return fedavg_by(Combiner("norm bounding", combine), "norm-bounding", weights)
