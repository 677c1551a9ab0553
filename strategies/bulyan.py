"""Krum's choice, trimmed around the median of every coordinate (Bulyan).

El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018, section 4:
Krum takes an update, it is set aside, and Krum is run on the rest, until theta = n - 2 f are set aside; in each
coordinate the combined update is the mean of the theta - 2 f values closest to the median of those. With weights it
is their weighted mean; choice and median count clients. Once few are left a score has one neighbour at least.
Communicates: the model down, one update up; nothing is summed in the workers. Any local optimiser. Private at
example level: updates are computed from clipped and noised gradients, and what combines them is post-processing.
Guarantee, for n >= 4 f + 3: with f attackers anywhere a coordinate leaves the honest values' range by no more than
that range's width, so that an attacker whom Krum takes cannot spend its whole distance on one coordinate. It fails
under ALIE: attackers that agree within the honest spread are chosen early and pull the median their way. It needs
many clients for few attackers.
"""

import torch
from torch import Tensor

from fedsim.algorithm import Algorithm, Weighting
from fedsim.combiners import Combiner, by_columns
from fedsim.strategies.fedavg import fedavg_by
from fedsim.strategies.krum import scores, squared_distances
from fedsim.strategies.median import weighted_median


def bulyan(f: int = 1, weights: Weighting = "uniform") -> Algorithm:
    """FedAvg combined by Bulyan over Krum.

    Args:
        f: attackers in a cohort that it guards against, >= 0; a round needs 4 f + 3 updates.
        weights: "uniform" (the paper) or "examples", in each coordinate's last mean.
    """
    if f < 0:
        raise ValueError(f"f = {f} should be at least 0")

    def combine(updates: Tensor, weights: Tensor, previous: Tensor) -> Tensor:
        chosen = chosen_by_krum(squared_distances(updates), f)
        heavy, once = weights.double()[chosen], torch.ones(len(chosen))

        def mean_around_median(block: Tensor) -> Tensor:
            values = block[:, chosen]
            away = (values.double() - weighted_median(values, once)[:, None]).abs()
            nearest = away.sort(dim=1, stable=True).indices[:, : len(chosen) - 2 * f]
            return (values.gather(1, nearest) * heavy[nearest]).sum(1) / heavy[nearest].sum(1)

        return by_columns(mean_around_median, updates)

    return fedavg_by(Combiner("bulyan", combine, least=4 * f + 3, needs="n >= 4 f + 3"), "bulyan", weights)


def chosen_by_krum(squares: Tensor, f: int) -> list[int]:
    """The n - 2 f updates that Krum takes one after another, given squared distances [n, n]."""
    left, chosen = list(range(len(squares))), list[int]()
    while len(chosen) < len(squares) - 2 * f:
        best = int(scores(squares[left][:, left], f).argmin())
        chosen.append(left.pop(best))
    return chosen
