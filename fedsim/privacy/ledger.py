"""What has been spent: charges counted, epsilon composed over all rounds.

A client is charged when it is selected, whether or not it answers; where chance hides who is, every round charges every
client. A client's charges are all alike (same rate, noise and steps), so its ledger is how often it was charged.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fedsim.errors import PrivacyError
from fedsim.privacy.accountant import Charge, epsilons, largest
from fedsim.privacy.plan import Plan
from fedsim.records import LedgerRow

EVERYBODY = -1
"""In the place of a client's number: all clients, which were charged alike."""


class Spent(NamedTuple):
    """Epsilon at `delta` over the clients that were charged; all 0 and no client where nobody was.

    Attributes:
        client: whose epsilon is the largest; the lowest number among equals.
        participations: the most that any client was charged for.
        clients: how many were charged.
    """

    delta: float
    largest: float
    median: float
    smallest: float
    client: int | None
    participations: int
    clients: int


class Ledger:
    """Counts charges and refuses those that the plan does not cover.

    Attributes:
        plan: the promise.
        participations: [K] how often each client was charged so far.
    """

    def __init__(self, plan: Plan, identity: Callable[[int], str]) -> None:
        """Before anything was charged.

        Args:
            plan: the promise.
            identity: of a client's data, by its number, and of everybody's by `EVERYBODY`; runs that have it in common
                spend on the same people.
        """
        self.plan = plan
        self._identity = identity
        self.participations = np.zeros(len(plan.rates), dtype=np.int64)

    @property
    def exhausted(self) -> bool:
        """Whether no client may take part any more."""
        return bool((self.participations >= self.plan.most)[self.plan.steps > 0].all())

    def charge(self, clients: Sequence[int]) -> None:
        """Charge a round with this cohort; call before the round runs.

        Raises:
            PrivacyError: a client would exceed what the plan covers; nobody is charged then.
        """
        self.participations = self.after(clients).participations

    def after(self, clients: Sequence[int]) -> "Ledger":
        """The ledger as it would be with a round of this cohort charged; raises as `charge` does."""
        everybody = self.plan.by_round
        charged_for = (
            1 if everybody else np.bincount(np.asarray(clients, dtype=np.int64), minlength=len(self.plan.rates))
        )
        counts = self.participations + charged_for
        beyond = np.flatnonzero(counts > self.plan.most)
        if len(beyond):
            raise PrivacyError(
                f"client {beyond[0]} has spent its privacy budget of {self.plan.most} participations. "
                f"Leave it out of the cohort, or plan for more privacy.{self.plan.level}.max_participations."
            )
        charged = Ledger(self.plan, self._identity)
        charged.participations = counts
        return charged

    def largest(self) -> float:
        """The largest epsilon over clients so far; cheap enough for every round."""
        clients = self._charged()
        charges = self._charges(clients[:1] if self.plan.by_round else clients)[0]  # there all are charged alike
        return largest(charges, self.plan.delta, self.plan.accountant)[0]

    def spent(self, delta: float | None = None) -> Spent:
        """Largest, median and smallest epsilon, at the plan's delta or another (an audit's)."""
        delta = self.plan.delta if delta is None else delta
        clients = self._charged()
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

    def rows(self, cohort: Sequence[int] | None = None) -> list[LedgerRow]:
        """Every client that was charged, by number; or those of a cohort alone, cheap enough for every round.

        Where every round charges everybody alike that is one row, `EVERYBODY`'s. PRV and PLD take up to a second for
        each distinct charge, so a cohort's rows have no epsilon under them.
        """
        clients = self._charged()
        if self.plan.by_round and len(clients):
            return [self._row(EVERYBODY, int(clients[0]), self.largest())]
        if cohort is not None:
            clients = clients[np.isin(clients, cohort)]
        later = cohort is not None and self.plan.accountant in ("prv", "pld")
        spent = [None] * len(clients) if later else self._epsilons(clients, self.plan.delta).tolist()
        return [self._row(client, client, epsilon) for client, epsilon in zip(clients.tolist(), spent, strict=True)]

    def _row(self, who: int, client: int, epsilon: float | None) -> LedgerRow:
        """The line of a client, or of everybody, of whom `client` is one."""
        kinds, index = self.plan.kinds
        one, times = kinds[index[client]], int(self.participations[client])
        return LedgerRow(
            client=who,
            participations=times,
            epsilon=epsilon,
            identity=self._identity(who),
            level=self.plan.level,
            relation=one.relation,
            sampling=one.sampling,
            noise=one.noise,
            rate=one.rate,
            steps=one.steps * times,
        )

    def restore(self, participations: np.ndarray, rounds: int) -> None:
        """Go on as after `rounds` rounds, in which clients [K] took part so often.

        Raises:
            PrivacyError: it belongs to another number of clients, or exceeds the plan.
        """
        counts = np.array(participations, dtype=np.int64)
        if self.plan.by_round and counts.shape == self.participations.shape:
            counts = np.full_like(counts, rounds)
        if counts.shape != self.participations.shape or counts.min() < 0 or counts.max() > self.plan.most:
            raise PrivacyError(
                f"the checkpoint's ledger has {len(counts)} clients with up to {counts.max()} participations, the plan "
                f"{len(self.participations)} with up to {self.plan.most}. Resume with the same scenario."
            )
        self.participations = counts

    def _charged(self) -> np.ndarray:
        return np.flatnonzero(self.participations)

    def _charges(self, clients: np.ndarray) -> tuple[list[Charge], np.ndarray]:
        """The distinct charges of these clients, and each client's index into them."""
        one_participation, kinds = self.plan.kinds
        base = self.plan.most + 1
        codes, index = np.unique(kinds[clients] * base + self.participations[clients], return_inverse=True)
        pairs = [(one_participation[code // base], code % base) for code in codes.tolist()]
        return [one._replace(steps=one.steps * count) for one, count in pairs], index

    def _epsilons(self, clients: np.ndarray, delta: float) -> np.ndarray:
        """Epsilon of each of these clients; one computation per distinct charge."""
        charges, index = self._charges(clients)
        of_clients: np.ndarray = epsilons(charges, delta, self.plan.accountant)[index]
        return of_clients
