"""What each client has spent: participations counted, epsilon composed over all rounds, and what it covers.

A client is charged when it is selected, whether or not it answers. A client's charges are all alike (same
rate, noise and steps in every participation), so its whole ledger is the number of participations.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedsim.errors import PrivacyError
from fedsim.privacy.accountant import Steps, epsilon, largest
from fedsim.privacy.plan import Plan


class Spent(NamedTuple):
    """Epsilon at `delta` over the clients that took part; all 0 and no client where nobody did.

    Attributes:
        client: whose epsilon is the largest; the lowest number among equals.
        participations: the most that any client has.
        clients: how many took part.
    """

    delta: float
    largest: float
    median: float
    smallest: float
    client: int | None
    participations: int
    clients: int


class Row(NamedTuple):
    """One client's line in the record."""

    client: int
    participations: int
    epsilon: float


class Ledger:
    """Counts participations and refuses those that the plan does not cover.

    Attributes:
        plan: the promise.
        participations: [K] charged so far.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.participations = np.zeros(len(plan.rates), dtype=np.int64)

    @property
    def exhausted(self) -> bool:
        """Whether no client may take part any more."""
        return bool((self.participations >= self.plan.max_participations).all())

    def charge(self, clients: Sequence[int]) -> None:
        """Charge one participation to each client of a cohort; call before the round runs.

        Raises:
            PrivacyError: a client would exceed `max_participations`; nobody is charged then.
        """
        self.participations = self.after(clients).participations

    def after(self, clients: Sequence[int]) -> "Ledger":
        """The ledger as it would be with this cohort charged; raises as `charge` does."""
        counts = self.participations + np.bincount(np.asarray(clients, dtype=np.int64), minlength=len(self.plan.rates))
        beyond = np.flatnonzero(counts > self.plan.max_participations)
        if len(beyond):
            raise PrivacyError(
                f"client {beyond[0]} has spent its privacy budget of {self.plan.max_participations} participations. "
                "Leave it out of the cohort, or plan for more privacy.example.max_participations."
            )
        charged = Ledger(self.plan)
        charged.participations = counts
        return charged

    def largest(self) -> float:
        """The largest epsilon over clients so far; cheap enough for every round."""
        plan = self.plan
        return largest(plan.noise_multiplier, self._charges(self._took_part())[0], plan.delta, plan.accountant)[0]

    def spent(self, delta: float | None = None) -> Spent:
        """Largest, median and smallest epsilon, at the plan's delta or another (an audit's)."""
        delta = self.plan.delta if delta is None else delta
        clients = self._took_part()
        if not len(clients):
            return Spent(delta, 0.0, 0.0, 0.0, None, 0, 0)
        epsilons = self._epsilons(clients, delta)
        return Spent(
            delta=delta,
            largest=float(epsilons.max()),
            median=float(np.median(epsilons)),
            smallest=float(epsilons.min()),
            client=int(clients[epsilons.argmax()]),
            participations=int(self.participations.max()),
            clients=len(clients),
        )

    def rows(self, cohort: Sequence[int] | None = None) -> list[Row]:
        """Every client that took part, by number; or those of a cohort alone."""
        clients = self._took_part()
        if cohort is not None:
            clients = clients[np.isin(clients, cohort)]
        epsilons = self._epsilons(clients, self.plan.delta)
        counts = self.participations[clients]
        return [Row(*row) for row in zip(clients.tolist(), counts.tolist(), epsilons.tolist(), strict=True)]

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps."""
        return {"participations": self.participations.copy()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a checkpoint's `state()`.

        Raises:
            PrivacyError: it belongs to another number of clients, or exceeds the plan.
        """
        counts = np.array(state["participations"], dtype=np.int64)
        if counts.shape != self.participations.shape or counts.min() < 0 or counts.max() > self.plan.max_participations:
            raise PrivacyError(
                f"the checkpoint's ledger has {len(counts)} clients with up to {counts.max()} participations, the plan "
                f"{len(self.participations)} with up to {self.plan.max_participations}. Resume with the same scenario."
            )
        self.participations = counts

    def _took_part(self) -> np.ndarray:
        return np.flatnonzero(self.participations)

    def _charges(self, clients: np.ndarray) -> tuple[list[Steps], np.ndarray]:
        """The distinct charges of these clients, and each client's index into them."""
        one_participation, kinds = self.plan.kinds
        base = self.plan.max_participations + 1
        codes, index = np.unique(kinds[clients] * base + self.participations[clients], return_inverse=True)
        pairs = [(one_participation[code // base], code % base) for code in codes.tolist()]
        return [Steps(one.rate, one.steps * count) for one, count in pairs], index

    def _epsilons(self, clients: np.ndarray, delta: float) -> np.ndarray:
        """Epsilon of each of these clients; one computation per distinct charge."""
        plan = self.plan
        charges, index = self._charges(clients)
        of_charges = [epsilon(plan.noise_multiplier, *charge, delta, plan.accountant) for charge in charges]
        return np.array([of_charges[place] for place in index])


def statement(plan: Plan, spent: Spent) -> list[str]:
    """What the printed epsilon means, in lines of at most 80 columns for summary and report."""
    unit = "row" if plan.window is None else f"window of {plan.window} tokens"
    accountant = {"rdp": "Renyi DP", "prv": "privacy loss random variables"}[plan.accountant]
    largest, median, smallest = (_rounded_up(value) for value in (spent.largest, spent.median, spent.smallest))
    lines = [
        f"epsilon {largest} at delta {spent.delta:g} (largest client; median {median}, smallest {smallest})",
        f"protects one {unit}, not one person; relation: zero-out (add or remove it)",
        f"mechanism: Poisson-sampled Gaussian, noise {plan.noise_multiplier:.4g}, clip {plan.max_grad_norm:g}",
        f"adversary: the server and all it tells; accountant: {accountant}",
        "covers the model after every round and nothing else: no losses, no counts",
        f"composed over all rounds; participations of a client: {spent.participations} at most so far, "
        f"{plan.max_participations} enforced",
        "epsilon of the mechanism; not a guarantee about this file, since the seed gives away noise and batches",
    ]
    return [part for line in lines for part in textwrap.wrap(line, 80, subsequent_indent="  ")]


def _rounded_up(value: float) -> str:
    """Two decimals, never below the value: a printed epsilon must not promise more than was kept."""
    return f"{math.ceil(value * 100) / 100:.2f}" if math.isfinite(value) else "infinite"
