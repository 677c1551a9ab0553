"""What a run promises, fixed before anything trains: at which level, by which mechanism, with how much noise.

The scenario asks for an epsilon (or a noise) and a clip norm at one of three levels. The plan says what each client is
charged when it takes part (or in every round, where chance hides who does), solves one noise multiplier for all, and
limits how often a client may take part. All follows from declared numbers, never from data.

    example  a client's own rows, against the server    noise in every local step
    client   a client, against whoever sees the model   noise on the cohort's clipped sum
    local    a client's rows, against the server        noise on each client's clipped upload
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from fedsim.privacy.accountant import Accountant, Charge, Relation, Sampling, largest

Level = Literal["example", "client", "local"]


@dataclass(frozen=True, eq=False)
class ExampleMechanism:
    """Poisson batches of units, their gradients clipped, summed, noised (Abadi et al. 2016, algorithm 1).

    Attributes:
        divisors: [K] q_k n_k, the mean number of units in a batch.
        unit: what is protected, for people: "row", "window of 81 tokens", or the name of what groups rows.
        grouped: whether a unit is a group of rows; its gradient is then their mean.
        clipping: "flat" bounds a unit's gradient as one vector, "per-layer" each parameter at C / sqrt(layers).
    """

    divisors: np.ndarray
    unit: str = "row"
    grouped: bool = False
    clipping: Literal["flat", "per-layer"] = "flat"

    share = 1.0  # of the noise multiplier that a release has, at a sensitivity of C


@dataclass(frozen=True)
class AdaptiveClip:
    """The clip norm follows a quantile of the updates' norms (Andrew et al. 2021).

    Attributes:
        quantile: gamma, the share of clients whose updates are to stay unclipped.
        rate: eta: C <- C exp(-eta (b - gamma)), b the noised share of clients that stayed below C.
        bit_noise: sigma_b, standard deviation of the noise on the sum of bits.
        update_noise: z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2), the multiplier on the sum of updates: both releases
            together cost what one with z does.
    """

    quantile: float
    rate: float
    bit_noise: float
    update_noise: float


@dataclass(frozen=True)
class ClientMechanism:
    """Uploads clipped, summed, noised once, divided by the cohort's planned size.

    Attributes:
        size: q K, the mean size of a cohort among all registered clients; the divisor, whoever answers.
        adaptive: how the clip norm follows the updates; None where it stays.
        tree: rounds of a tree of DP-FTRL (Kairouz et al. 2021), in which a client takes part at most once, and the
            fewest rounds between two of its participations; None for noise that is fresh every round.
    """

    size: float
    adaptive: AdaptiveClip | None = None
    tree: int | None = None

    @property
    def share(self) -> float:
        """Of the noise multiplier: a leaf of a tree of n rounds lies in ceil(log2(n + 1)) sums."""
        return 1.0 if self.tree is None else 1 / math.sqrt(depth(self.tree))


@dataclass(frozen=True)
class LocalMechanism:
    """Each client's upload clipped and noised before it leaves.

    Any two data sets of a client are to be alike, so its relation is "replace": uploads differ by up to 2 C.
    """

    share = 1.0


Mechanism = ExampleMechanism | ClientMechanism | LocalMechanism


@dataclass(frozen=True, eq=False)
class Plan:
    """A run's promise.

    Attributes:
        level: whom it protects from whom.
        mechanism: what does.
        noise_multiplier: z, standard deviation of the noise over the clip norm.
        clip: C, of a unit's gradient or a client's upload; of an adaptive clip the first.
        delta: of every epsilon that is printed.
        accountant: that computes them.
        relation: between data sets that cannot be told apart.
        sampling: how units come into a release.
        max_participations: of a client, enforced by sampler and ledger; None where every round charges everybody.
        rounds: of the run.
        rates: [K] q_k of every client's releases; 0 for a client that spends nothing.
        steps: [K] releases of one participation, or of one round; 0 likewise.
        warnings: lines for the user; empty when all is well.
    """

    level: Level
    mechanism: Mechanism
    noise_multiplier: float
    clip: float
    delta: float
    accountant: Accountant
    relation: Relation
    sampling: Sampling
    max_participations: int | None
    rounds: int
    rates: np.ndarray
    steps: np.ndarray
    warnings: tuple[str, ...] = ()

    @property
    def by_round(self) -> bool:
        """Whether a round charges every client, because chance hides who takes part."""
        return self.max_participations is None

    @property
    def adaptive(self) -> AdaptiveClip | None:
        """How the clip follows updates; None where it stays."""
        return self.mechanism.adaptive if isinstance(self.mechanism, ClientMechanism) else None

    @property
    def separation(self) -> int:
        """Rounds between two participations of a client, at least: 1 where nothing asks for more."""
        tree = self.mechanism.tree if isinstance(self.mechanism, ClientMechanism) else None
        return tree or 1

    @property
    def most(self) -> int:
        """The most times that a client can be charged."""
        return self.rounds if self.max_participations is None else self.max_participations

    @cached_property
    def kinds(self) -> tuple[list[Charge], np.ndarray]:
        """The distinct charges of one participation, and [K] each client's index into them."""
        pairs, index = np.unique(
            self.rates + 1j * self.steps, return_inverse=True
        )  # NumPy sorts numbers, not pairs, fast
        noise = self.noise_multiplier * self.mechanism.share
        charges = [
            Charge(noise, rate, int(steps), self.relation, self.sampling)
            for rate, steps in zip(pairs.real.tolist(), pairs.imag.tolist(), strict=True)
        ]
        return charges, index.ravel()

    @cached_property
    def epsilon(self) -> float:
        """The largest epsilon over clients at the end of the run, for the unluckiest that is allowed."""
        return self.epsilon_after(self.most)

    def charges_after(self, times: int) -> list[Charge]:
        """The distinct charges of clients that were charged this many times."""
        return [one._replace(steps=one.steps * times) for one in self.kinds[0]]

    def epsilon_after(self, times: int, delta: float | None = None) -> float:
        """The largest epsilon over clients that were charged this many times."""
        return largest(self.charges_after(times), self.delta if delta is None else delta, self.accountant)[0]


def depth(leaves: int) -> int:
    """Sums of a binary tree in which a leaf lies, itself included: ceil(log2(n + 1))."""
    return leaves.bit_length()
