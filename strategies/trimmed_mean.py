"""The mean of every coordinate without its largest and smallest values (coordinate-wise trimmed mean).

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018, algorithm 1, option II: in each coordinate the floor(beta n) largest and as many smallest of the n values
are left out, and the mean of the others is taken. With weights it is their weighted mean; what is left out is
counted in clients. With beta = 0 it is FedAvg.
Communicates: the model down, one update up; nothing is summed in the workers. Any local optimiser. Private at
example level: updates are computed from clipped and noised gradients, and what combines them is post-processing.
Guarantee: up to floor(beta n) attackers cannot move a coordinate out of the honest values' range; fewer than
1 / beta clients are not trimmed at all. It fails slowly: under ALIE attackers stay within the honest spread, where
nothing is trimmed, and uneven clients lose the coordinates that only they train.
"""

from torch import Tensor

from fedsim.algorithm import Algorithm, Weighting
from fedsim.combiners import Combiner, by_columns
from fedsim.strategies.fedavg import fedavg_by


def trimmed_mean(beta: float = 0.2, weights: Weighting = "uniform") -> Algorithm:
    """FedAvg combined by the coordinate-wise trimmed mean.

    Args:
        beta: the share of clients left out at each end, 0 <= beta < 0.5.
        weights: "uniform" (the paper) or "examples", in the mean of what is kept.
    """
    if not 0 <= beta < 0.5:
        raise ValueError(f"beta = {beta} should be at least 0 and below 0.5")

    def combine(updates: Tensor, weights: Tensor, previous: Tensor) -> Tensor:
        trimmed = trimmed_at_each_end(beta, len(updates))

        def mean_of_kept(block: Tensor) -> Tensor:
            ordered, order = block.sort(dim=1, stable=True)
            kept = slice(trimmed, len(updates) - trimmed)
            heavy = weights.double()[order[:, kept]]
            mean: Tensor = (ordered[:, kept] * heavy).sum(1) / heavy.sum(1)
            return mean

        return by_columns(mean_of_kept, updates)

    return fedavg_by(Combiner("trimmed mean", combine), "trimmed-mean", weights)


def trimmed_at_each_end(beta: float, clients: int) -> int:
    """floor(beta n), where 0.29 * 100 counts as 29; some value is always kept."""
    return min(int(beta * clients + 1e-9), (clients - 1) // 2)
