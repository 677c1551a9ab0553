"""The mean of the m updates that lie closest to their neighbours (Multi-Krum).

Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
NeurIPS 2017, Multi-Krum: the m updates with the least Krum scores are averaged, with their weights. m = 1 is Krum,
and m = n would be the mean; by default m = n - f - 2, as many as a score has neighbours.
Communicates: the model down, one update up; nothing is summed in the workers. Any local optimiser. Private at
example level: updates are computed from clipped and noised gradients, and what combines them is post-processing.
Guarantee, for n >= 2 f + 3 and m <= n - f: with f attackers anywhere each update taken is as close to honest ones as
Krum's. It learns from more clients than Krum. It fails under ALIE in the same way: attackers that agree within the
honest spread are taken, all f of them.
"""

import torch
from torch import Tensor

from fedsim.algorithm import Algorithm, Weighting
from fedsim.combiners import Combiner, weighted_sum
from fedsim.strategies.fedavg import fedavg_by
from fedsim.strategies.krum import scores, squared_distances


def multi_krum(f: int = 1, m: int | None = None, weights: Weighting = "uniform") -> Algorithm:
    """FedAvg combined by Multi-Krum.

    Args:
        f: attackers in a cohort that it guards against, >= 0; a round needs 2 f + 3 updates, and m + f.
        m: updates that are averaged, >= 1; None is n - f - 2 of the n that arrive.
        weights: "uniform" (the paper) or "examples", in the mean of those taken.
    """
    if f < 0:
        raise ValueError(f"f = {f} should be at least 0")
    if m is not None and m < 1:
        raise ValueError(f"m = {m} should be at least 1")

    def combine(updates: Tensor, weights: Tensor, previous: Tensor) -> Tensor:
        count = len(updates) - f - 2 if m is None else m
        taken = scores(squared_distances(updates), f).argsort(stable=True)[:count]
        factors = torch.zeros(len(updates), dtype=torch.float64)
        factors[taken] = weights.double()[taken] / weights.double()[taken].sum()
        return weighted_sum(updates, factors)

    least, needs = 2 * f + 3, "n >= 2 f + 3"
    if m is not None and m + f > least:
        least, needs = m + f, "n >= m + f"
    return fedavg_by(Combiner("multi-krum", combine, least, needs), "multi-krum", weights)
