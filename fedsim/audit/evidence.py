"""How strongly what a mechanism released speaks for each canary: a log-likelihood ratio, above 0 for "in".

The score of a canary is the inner product of the release with the canary's gradient, taken in the metric of all that
is random besides: a matched filter. Everything in it is known to an adversary who knows all but the coins. Any score
gives a true bound; a better one gives a larger bound. The threshold is 0, whatever the coins are.
"""

import math

import torch
from torch import Tensor

_FLOOR = 1e-4  # of C^2: the least variance that is reckoned with in any direction
_VARIANCES = torch.logspace(-4, 6, 101, dtype=torch.float64)
_LEAST = 1e-12
_BLOCK = 1 << 14  # coordinates that are multiplied in float64 at once


def row_evidence(
    released: Tensor, canaries: Tensor, absent: Tensor, others: Tensor, units: int, rate: float, clip: float
) -> Tensor:
    """[m] evidence of one private step.

    A release is u = sum_i b_i s_i g_i + sum_k s_k h_k + noise: coins b, Poisson draws s of rate q. Apart from b_i s_i
    it is taken for Gaussian, with mean and scatter of the other units' sum from a sample of them. How much noise there
    is is measured on the release, not believed: one that the mechanism forgot would hide that it did. Rows like the
    canaries that are in no data say how far all this is off.

    Args:
        released: [D] the clipped sum with its noise.
        canaries: [m, D] g, clipped.
        absent: [a, D] clipped gradients of rows drawn as canaries are, which never are in.
        others: [r, D] h of r of the other units, r >= 1, clipped.
        units: n >= r of them, canaries apart.
        rate: q in (0, 1].
        clip: C > 0.
    """
    of_canary = rate / 2 - rate**2 / 4  # variance of b_i s_i
    of_other = (rate * (1 - rate) + rate**2 * (units / len(others) - 1)) * units / len(others)
    rows = torch.cat([canaries * math.sqrt(of_canary), others * math.sqrt(of_other)])
    centred = released - rate * units * others.mean(0) - rate / 2 * canaries.sum(0)
    # All that is needed are inner products: inverting v I + K^T K is inverting v I + K K^T (Woodbury).
    gram = _products(torch.cat([rows, absent, centred[None]]))
    modelled, tested = slice(len(rows)), slice(len(rows), len(gram))
    values, vectors = torch.linalg.eigh(gram[modelled, modelled])
    values, along = values.clamp(min=0), vectors.T @ gram[modelled]
    variance = _likeliest(_VARIANCES * clip**2, values, along[:, -1], float(gram[-1, -1]), len(centred))
    metric = (gram[tested, tested] - (along[:, tested].T / (values + variance)) @ along[:, tested]) / variance
    alike = metric[-1, :-1].square() / metric.diagonal()[:-1].clamp(min=_LEAST)
    excess = float(alike.mean().clamp(min=1))
    solved = (vectors[: len(canaries)] / (values + variance)) @ along
    filtered, own = solved[:, -1] / math.sqrt(of_canary), solved[:, : len(canaries)].diagonal()
    # The metric has the canary's own scatter in it; without, its products are larger by 1 / (1 - own).
    without = 1 / (1 - own).clamp(min=_FLOOR)
    precision = without * own / of_canary
    return _log_ratio((without * filtered + rate / 2 * precision) / excess, precision / excess, rate)


def _likeliest(variances: Tensor, values: Tensor, along: Tensor, square: float, size: int) -> Tensor:
    """[] v under which N(0, v I + K^T K) makes a vector likeliest.

    Args:
        variances: [l] to choose from.
        values: [k] eigenvalues of K K^T.
        along: [k] K times the vector, in its eigenvectors.
        square: the vector's squared length.
        size: D.
    """
    v = variances[:, None]
    determinants = size * variances.log() + (values / v).log1p().sum(1)
    squares = (square - (along.square() / (values + v)).sum(1)) / variances
    return variances[(determinants + squares).argmin()]


def client_evidence(projections: Tensor, rate: float, variance: float) -> Tensor:
    """[m] evidence of one round.

    A canary that is in takes part with probability q, and then adds 1 to its projection; noise has `variance`.

    Args:
        projections: [m] inner products of the release with each canary's direction, in units of its upload.
        rate: q in (0, 1].
        variance: of everything else along a direction.
    """
    precision = torch.full_like(projections.double(), 1 / (variance + _FLOOR))
    return _log_ratio(projections * precision, precision, rate)


def _log_ratio(products: Tensor, precision: Tensor, rate: float) -> Tensor:
    """[m] log of the likelihood of being in over that of being out, of who takes part with probability `rate`.

    Args:
        products: [m] <release, canary> in the metric.
        precision: [m] <canary, canary> in the metric.
        rate: q in (0, 1].
    """
    there = math.log(rate) + products - precision / 2
    absent = math.log1p(-rate) if rate < 1 else -math.inf
    return torch.logaddexp(torch.full_like(there, absent), there)


def _products(rows: Tensor) -> Tensor:
    """[k, k] inner products of rows [k, D], in float64."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for block in torch.split(rows, _BLOCK, 1):
        total += block.double() @ block.double().T
    return total
