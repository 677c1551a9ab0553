"""The geometric median of updates in place of the mean (RFA).

Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", IEEE Transactions on Signal Processing 2022,
smoothed Weiszfeld algorithm: the point v with the least sum_i w_i ||u_i - v|| is approached by a few steps
v <- sum_i b_i u_i / sum_i b_i, b_i = w_i / max(nu, ||u_i - v||). They start from the coordinate-wise median: from
the mean, three steps would still be far away if one update were, and from zero they would stay there with a client
that sends zero. Distances cover everything that is sent.
Communicates: the model down, one update up; nothing is summed in the workers. Any local optimiser. Private at
example level: updates are computed from clipped and noised gradients, and what combines them is post-processing.
Guarantee: with a share a < 1/2 of the weight, attackers anywhere keep the geometric median within
2 (1 - a) / (1 - 2 a) r of a point that has all honest updates within r. It fails slowly: under ALIE attackers stay
within r, where they count fully, and b_i rewards those closest to the centre.
"""

import math

from torch import Tensor

from fedsim.algorithm import Algorithm, Weighting
from fedsim.combiners import Combiner, by_columns, distances, weighted_sum
from fedsim.strategies.fedavg import fedavg_by
from fedsim.strategies.median import weighted_median


def rfa(iterations: int = 3, nu: float = 1e-6, weights: Weighting = "uniform") -> Algorithm:
    """FedAvg combined by the smoothed geometric median.

    Args:
        iterations: Weiszfeld steps, >= 1.
        nu: the distance below which an update counts as at the centre, in the units of an update's norm, > 0. Well
            below the distances between updates; from there upwards the result turns into the mean.
        weights: "uniform" or "examples" (the paper), in start, sum and steps.
    """
    if iterations < 1:
        raise ValueError(f"iterations = {iterations} should be at least 1")
    if not 0 < nu < math.inf:
        raise ValueError(f"nu = {nu} should be above 0 and finite")

    def combine(updates: Tensor, weights: Tensor, previous: Tensor) -> Tensor:
        centre = by_columns(lambda block: weighted_median(block, weights), updates)
        for _ in range(iterations):
            pulls = weights.double() / distances(updates, centre).clamp(min=nu)
            centre = weighted_sum(updates, pulls / pulls.sum())
        return centre

    return fedavg_by(Combiner("geometric median", combine), "rfa", weights)
