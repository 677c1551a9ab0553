"""How loud a plan's noise is beside what it hides: its norm over the clip norm.

Noise falls on every value of a vector, a clip bounds the whole: with z and n averaged contributions of P values the
noise's norm is z C sqrt(P) / n. A promise is worth nothing where that drowns all that is learned.
"""

import math
from typing import NamedTuple

import numpy as np

from fedsim.privacy.client import moved_nodes
from fedsim.privacy.plan import ClientMechanism, ExampleMechanism, Plan

LOUD = 3.0
"""Noise norm over clip norm above which hardly anything is learned."""


class Noise(NamedTuple):
    """The norm of the noise over the clip norm.

    Attributes:
        ratio: in a client's own step at example level, else in what the model is moved by.
        where: which step or sum that is.
        mean: in the mean of such steps over a cohort; None where the server's sum is noised, or has been averaged.
        upload: in a client's own upload; None where it carries no noise of its own.
    """

    ratio: float
    where: str
    mean: float | None = None
    upload: float | None = None


def noise_over_clip(plan: Plan, values: int, cohort: float) -> Noise:
    """How loud the noise is: z sqrt(values) over how many clipped contributions are averaged.

    Args:
        plan: whose noise it is.
        values: that noise is added to: of the model at example level, else of an upload.
        cohort: mean number of clients in a round.
    """
    root = math.sqrt(values)
    if isinstance(plan.mechanism, ExampleMechanism):
        median = by_units(plan)[1]
        step = plan.noise_multiplier * root / float(plan.mechanism.divisors[median])
        return Noise(step, f"in a step of client {median}, the median data set", mean=step / math.sqrt(cohort))
    if isinstance(plan.mechanism, ClientMechanism):
        size = plan.mechanism.size
        return Noise(_round_noise(plan) * root / size, f"in a round, over cohorts of {size:g} clients")
    upload = plan.noise_multiplier * root
    return Noise(upload / math.sqrt(cohort), f"in a round, over cohorts of {cohort:g} clients", upload=upload)


def _round_noise(plan: Plan) -> float:
    """Standard deviation over C of what a round adds to a cohort's sum; of a tree its root mean square."""
    assert isinstance(plan.mechanism, ClientMechanism)
    if plan.mechanism.adaptive is not None:
        return plan.mechanism.adaptive.update_noise
    if (leaves := plan.mechanism.tree) is None:
        return plan.noise_multiplier
    nodes = [1 + len(moved_nodes(leaf)[1]) for leaf in range(1, min(leaves, plan.rounds) + 1)]
    return plan.noise_multiplier * math.sqrt(sum(nodes) / len(nodes))


def by_units(plan: Plan) -> list[int]:
    """Clients with the smallest, the median and the largest data set, of those that have any."""
    units = units_of(plan)
    able = np.flatnonzero(units)
    ordered = able[np.argsort(units[able], kind="stable")]
    most = int(ordered[np.searchsorted(units[ordered], units[ordered[-1]])])
    return [int(ordered[0]), int(ordered[len(ordered) // 2]), most]


def units_of(plan: Plan) -> np.ndarray:
    """[K] declared units of every client at example level."""
    assert isinstance(plan.mechanism, ExampleMechanism)
    rates, divisors = plan.rates, plan.mechanism.divisors
    units = np.divide(divisors, rates, out=np.zeros_like(rates), where=rates > 0)  # as `declared_units`, for all
    whole: np.ndarray = np.rint(units).astype(np.int64)
    return whole
