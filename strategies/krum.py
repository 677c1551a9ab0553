"""The one update that lies closest to its neighbours in place of the mean (Krum).

Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
NeurIPS 2017, section 4: the score of u_i is the sum of ||u_i - u_j||^2 over its n - f - 2 nearest other updates, and
the update with the least score is taken as it is. Distances cover everything that is sent: parameters, buffers and
an algorithm's extra vectors.
Communicates: the model down, one update up; nothing is summed in the workers. Any local optimiser. Private at
example level: updates are computed from clipped and noised gradients, and what combines them is post-processing.
Guarantee, for n >= 2 f + 3: with f attackers anywhere the update taken is an honest one, or as close to honest ones
as they are to each other up to a factor sqrt((n - f - 2) / (n - 2 f - 1)). It learns from one client a round, so it
is slow and unfair where rows are uneven. It fails under ALIE: attackers that agree within the honest spread are each
other's nearest neighbours and are taken.
"""

import torch
from torch import Tensor

from fedsim.algorithm import Algorithm, Weighting
from fedsim.combiners import COLUMNS, Combiner
from fedsim.strategies.fedavg import fedavg_by


def krum(f: int = 1, weights: Weighting = "uniform") -> Algorithm:
    """FedAvg combined by Krum.

    Args:
        f: attackers in a cohort that it guards against, >= 0; a round needs 2 f + 3 updates.
        weights: "uniform" or "examples"; of no effect, since one update is taken.
    """
    if f < 0:
        raise ValueError(f"f = {f} should be at least 0")

    def combine(updates: Tensor, weights: Tensor, previous: Tensor) -> Tensor:
        return updates[scores(squared_distances(updates), f).argmin()].clone()

    return fedavg_by(Combiner("krum", combine, least=2 * f + 3, needs="n >= 2 f + 3"), "krum", weights)


def squared_distances(updates: Tensor) -> Tensor:
    """[n, n] in float64, between updates [n, P]; of differences, so that close pairs keep all their digits."""
    count = len(updates)
    pairs = torch.zeros(count * (count - 1) // 2, dtype=torch.float64)
    for block in torch.split(updates, COLUMNS, dim=1):
        pairs += torch.pdist(block.double()).square_()
    matrix = torch.zeros(count, count, dtype=torch.float64)
    first, second = torch.triu_indices(count, count, offset=1)
    matrix[first, second] = matrix[second, first] = pairs
    return matrix


def scores(squares: Tensor, f: int) -> Tensor:
    """Krum's scores.

    Args:
        squares: [n, n] squared distances between updates.
        f: attackers guarded against.

    Returns:
        [n] for each update the sum over its n - f - 2 nearest others, one at least.
    """
    others = squares.clone().fill_diagonal_(torch.inf)
    return others.sort(1).values[:, : max(1, len(squares) - f - 2)].sum(1)
