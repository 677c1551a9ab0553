"""The median of every coordinate in place of the mean (coordinate-wise median).

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018, algorithm 1, option I: the combined update is med_i(u_ij) in each coordinate j. With weights it is the
weighted median, the mean of the lower and the upper one; equal weights give the ordinary median.
Communicates: the model down, one update up; nothing is summed in the workers. Any local optimiser. Private at
example level: updates are computed from clipped and noised gradients, and what combines them is post-processing.
Guarantee: attackers with less than half of the weight cannot move a coordinate out of the honest values' range. It
fails slowly: under ALIE they shift every coordinate within the honest spread, and where clients' rows are uneven
the median of honest updates is itself biased.
"""

import torch
from torch import Tensor

from fedsim.algorithm import Algorithm, Weighting
from fedsim.combiners import Combiner, by_columns
from fedsim.strategies.fedavg import fedavg_by


def median(weights: Weighting = "uniform") -> Algorithm:
    """FedAvg combined by the coordinate-wise median.

    Args:
        weights: "uniform" (the paper) or "examples", in the weighted median.
    """

    def combine(updates: Tensor, weights: Tensor, previous: Tensor) -> Tensor:
        return by_columns(lambda block: weighted_median(block, weights), updates)

    return fedavg_by(Combiner("median", combine), "median", weights)


def weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted median of each row, in float64.

    Args:
        values: [c, n].
        weights: [n], >= 0, not all zero.

    Returns:
        [c], the mean of the least values up to which at least half, and more than half, of the weight lies.
    """
    ordered, order = values.sort(1)
    reached = weights.double()[order].cumsum(1)
    half = reached[:, -1:] / 2
    lower, upper = (reached < half).sum(1), (reached <= half).sum(1)
    return ordered.gather(1, torch.stack([lower, upper], dim=1)).double().mean(1)
