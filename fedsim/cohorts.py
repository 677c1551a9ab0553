"""Who takes part in a round: cohort rules, sampling, and limits on participations.

A cohort is a pure function of (rule, seed, round, participations so far), so that a resumed run draws the
same clients as an uninterrupted one; unless its coins are secret, which privacy may need.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim import seeds
from fedsim.errors import ScenarioError
from fedsim.seeds import Coins


@dataclass(frozen=True)
class CohortRule:
    """How many clients are drawn each round; exactly one of the three is set.

    Attributes:
        size: this many clients, without replacement.
        fraction: a fixed size too, max(1, round(fraction K)) of K clients.
        poisson: every client independently with this probability, so a cohort may be empty.
    """

    size: int | None = None
    fraction: float | None = None
    poisson: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            named = " and ".join(given) or "none"
            raise ScenarioError(f"cohort: set exactly one of size, fraction and poisson; {named} given")
        if self.size is not None and self.size < 1:
            raise ScenarioError(f"cohort.size = {self.size}: a cohort has at least 1 client")
        for name in ("fraction", "poisson"):
            if name in given and not 0 < given[name] <= 1:
                raise ScenarioError(f"cohort.{name} = {given[name]}: use a share above 0 and at most 1")


class Cohorts:
    """Who is drawn, round after round.

    Attributes:
        participations: [K] rounds that each client was drawn in.
        last: [K] the last of them; 0 for none.
        drawn: in the last round, sorted; those among them that have no rows send nothing.
    """

    def __init__(
        self,
        rule: CohortRule,
        seed: int,
        able: np.ndarray,
        limit: int | None = None,
        separation: int = 1,
        *,
        registered: bool = False,
        coins: Coins = seeds.numpy_generator,
    ) -> None:
        """Before round 1.

        Args:
            rule: how many are drawn.
            seed: of the run.
            able: [K] bool, clients with train rows.
            limit: the most participations of a client; None for as many as there are rounds.
            separation: rounds between two participations of a client, at least.
            registered: whether all K clients are drawn from, and those that are not able just send nothing: who else is
                drawn is not to tell whether they have rows.
            coins: that decide; secret ones where a promise rests on nobody's knowing who is drawn.
        """
        self.participations = np.zeros(len(able), dtype=np.int64)
        self.drawn: list[int] = []
        self.last = np.zeros(len(able), dtype=np.int64)
        self._rule, self._seed, self._limit, self._separation = rule, seed, limit, separation
        self._coins = coins
        self._able, self._population = able, np.ones_like(able) if registered else able

    def draw(self, round: int) -> list[int]:
        """The round's cohort, sorted: who was drawn and has rows."""
        rested = (self.last == 0) | (self.last <= round - self._separation)
        able = self._population & rested
        self.drawn = sample(
            self._rule, self._seed, round, self.participations, self._limit, able=able, coins=self._coins
        )
        self.participations[self.drawn] += 1
        self.last[self.drawn] = round
        return [number for number in self.drawn if self._able[number]]

    def restore(self, participations: np.ndarray, last: np.ndarray | None) -> None:
        """Go on as after rounds in which clients were drawn so often, and last in these; None where it is not kept."""
        self.participations = participations.copy()
        self.last = last.copy() if last is not None else np.zeros_like(participations)


def expected_size(rule: CohortRule, population: int) -> float:
    """Clients per round among `population` of them; exact for a fixed size, the mean for `poisson`."""
    if rule.poisson is not None:
        return rule.poisson * population
    return float(_fixed_size(rule, population))


def largest_size(rule: CohortRule, population: int) -> int:
    """The most clients that a round among `population` of them can have."""
    return population if rule.poisson is not None else _fixed_size(rule, population)


def sample(
    rule: CohortRule,
    seed: int,
    round: int,
    participations: np.ndarray,
    limit: int | None,
    *,
    able: np.ndarray | None = None,
    coins: Coins = seeds.numpy_generator,
) -> list[int]:
    """Draw a round's cohort.

    Args:
        rule: how many.
        seed: of the run.
        round: number of the round.
        participations: [K] rounds each client has been charged for.
        limit: clients with this many leave the population before the draw; None keeps all.
        able: [K] bool, the clients that can take part at all, those with train rows; None for all.
        coins: that decide.

    Returns:
        Sorted client numbers. All that remain, where fewer than a fixed size do; `poisson` may draw nobody.
    """
    population = len(participations)
    remains = np.ones(population, dtype=bool) if able is None else able
    if limit is not None:
        remains = remains & (participations < limit)
    draw = coins(seed, "cohort", round, 0)
    if rule.poisson is not None:
        cohort = np.flatnonzero((draw.random(population) < rule.poisson) & remains)
    else:
        clients = np.flatnonzero(remains)
        size = min(_fixed_size(rule, population), len(clients))
        cohort = np.sort(draw.choice(clients, size, replace=False, shuffle=False))
    numbers: list[int] = cohort.tolist()
    return numbers


def dropouts(rate: float, seed: int, round: int, cohort: Sequence[int]) -> set[int]:
    """The clients of a cohort that do not answer, each independently with probability `rate`."""
    if not rate:
        return set()
    return {client for client in cohort if seeds.integer(seed, "dropout", round, client) < rate * 2**63}


def participation_limit(
    rule: CohortRule, population: int, rounds: int, exceed: float = 0.01, *, able: int | None = None
) -> int:
    """The smallest number of participations that at most a share `exceed` of clients goes beyond.

    Participations of one client are Binomial(rounds, p) with p = 1 under `fraction = 1.0`, where the answer
    is `rounds`. At least 1, since a limit of 0 would let nobody take part.

    Args:
        rule: the cohort rule.
        population: K, by which a fraction is turned into a size.
        rounds: of the run.
        exceed: share of clients, in (0, 1).
        able: how many of the K can take part, at least 1; a fixed size falls on them alone. None for all.
    """
    from scipy import stats

    size, drawn_from = expected_size(rule, population), population if able is None else able
    share = rule.poisson if rule.poisson is not None else min(1.0, size / drawn_from)
    return max(1, int(stats.binom.ppf(1 - exceed, rounds, share)))


def _fixed_size(rule: CohortRule, population: int) -> int:
    if rule.size is not None:
        return min(rule.size, population)
    assert rule.fraction is not None
    return max(1, round(rule.fraction * population))
