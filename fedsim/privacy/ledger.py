"""What each client has spent: participations counted, epsilon composed over all rounds, and what it covers.

A client is charged when it is selected, whether or not it answers. A client's charges are all alike (same
rate, noise and steps in every participation), so its whole ledger is the number of participations.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedsim.errors import PrivacyError
from fedsim.privacy.accountant import Accountant, Steps, epsilons, largest, rounded_up
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
    """One client's line in the record; its epsilon is None where it is left for the end of the run."""

    client: int
    participations: int
    epsilon: float | None


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
        """Whether no client with rows may take part any more."""
        return bool((self.participations >= self.plan.max_participations)[self.plan.steps > 0].all())

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
        """Every client that took part, by number; or those of a cohort alone, cheap enough for every round.

        PRV takes up to a second for each distinct charge, so a cohort's rows have no epsilon under it.
        """
        clients = self._took_part()
        if cohort is not None:
            clients = clients[np.isin(clients, cohort)]
        later = cohort is not None and self.plan.accountant == "prv"
        spent = [None] * len(clients) if later else self._epsilons(clients, self.plan.delta).tolist()
        return [Row(*row) for row in zip(clients.tolist(), self.participations[clients].tolist(), spent, strict=True)]

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
        charges, index = self._charges(clients)
        of_clients: np.ndarray = epsilons(self.plan.noise_multiplier, charges, delta, self.plan.accountant)[index]
        return of_clients


_ACCOUNTANTS: dict[Accountant, str] = {"rdp": "Renyi DP", "prv": "privacy loss random variables"}


def statement(plan: Plan, spent: Spent) -> list[str]:
    """What the printed epsilon means, in lines of at most 80 columns for summary and report."""
    unit = "row" if plan.window is None else f"window of {plan.window} tokens"
    most, median, smallest = (rounded_up(value) for value in (spent.largest, spent.median, spent.smallest))
    lines = [
        f"epsilon {most} at delta {spent.delta:g} (largest client; median {median}, smallest {smallest})",
        f"protects one {unit}, not one person; relation: zero-out (add or remove it, the count public)",
        f"mechanism: Poisson-sampled Gaussian, noise {plan.noise_multiplier:.4g}, clip {plan.max_grad_norm:g}",
        f"adversary: the server and all it tells; accountant: {_ACCOUNTANTS[plan.accountant]}",
        "covers every upload and the model after every round, and nothing else: no losses, no counts",
        f"composed over all rounds; participations of a client: {spent.participations} at most so far, "
        f"{plan.max_participations} enforced",
        "epsilon of the mechanism; not a guarantee about this file, since the seed gives away noise and batches",
        "run.db and this summary are for the curator: they hold more than epsilon covers",
    ]
    return [part for line in lines for part in textwrap.wrap(line, 80, subsequent_indent="  ")]
