"""The last combined update, moved by clipped differences from it (centred clipping).

Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021, equation CC:
v <- v + sum_i w_i (u_i - v) min(1, tau / ||u_i - v||) / sum_i w_i, from the v of the last round, zero before the
first. Without a fixed tau, which fits one net and one learning rate, it is the median distance ||u_i - v|| of that
iteration, so that in round 1 updates are clipped to their median norm. Distances cover everything that is sent.
Communicates: the model down, one update up; nothing is summed in the workers; the server keeps v. Any local
optimiser. Private at example level: updates are computed from clipped and noised gradients, and what combines them
is post-processing.
Guarantee: an iteration moves v by at most tau, of which attackers with a share a of the weight decide a tau; with
the median for tau and fewer than half the clients attacking, tau is no more than an honest distance.
The paper clips momenta, whose noise the past has averaged out; updates of one round are noisier, so that ALIE, which
hides in their spread and pushes the same way each round, is only slowed down.
"""

import math

import torch
from torch import Tensor

from fedsim.algorithm import Algorithm, Weighting
from fedsim.combiners import Combiner, distances, weighted_sum
from fedsim.strategies.fedavg import fedavg_by


def centred_clipping(tau: float | None = None, iterations: int = 1, weights: Weighting = "uniform") -> Algorithm:
    """FedAvg combined by centred clipping.

    Args:
        tau: the longest difference that counts fully, in the units of an update's norm, > 0; None is the median
            over clients (the lower one of two) in each iteration.
        iterations: steps a round, >= 1; one in the paper.
        weights: "uniform" (the paper) or "examples", in the mean of clipped differences.
    """
    if tau is not None and not 0 < tau < math.inf:
        raise ValueError(f"tau = {tau} should be above 0 and finite")
    if iterations < 1:
        raise ValueError(f"iterations = {iterations} should be at least 1")

    def combine(updates: Tensor, weights: Tensor, previous: Tensor) -> Tensor:
        centre = previous
        for _ in range(iterations):
            lengths = distances(updates, centre)
            longest = lengths.median() if tau is None else tau
            factors = weights.double() / weights.double().sum() * torch.where(lengths > longest, longest / lengths, 1.0)
            centre = weighted_sum(updates, factors) + centre * (1 - float(factors.sum()))
        return centre

    return fedavg_by(Combiner("centred clipping", combine, remembers=True), "centred-clipping", weights)
