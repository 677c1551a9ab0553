"""Client level: what the server releases of a cohort's clipped uploads.

    estimate = (sum of clip(u_i, C) + noise) / (q K)

The divisor is planned: how many answered enters nowhere, an empty cohort releases noise alone. Noise is fresh every
round, or of DP-FTRL's tree (Kairouz et al. 2021), where the sum of all rounds so far carries log2 of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fedsim.privacy.plan import AdaptiveClip, ClientMechanism, Plan
from fedsim.privacy.requests import LEAST_CLIP, MOST_CLIP
from fedsim.privacy.uploads import gaussian, noised
from fedsim.seeds import Draw

Draws = Callable[[str, int], Draw]
"""(purpose, number) -> the coins of that draw."""


@dataclass(frozen=True)
class Release:
    """What the server makes of a cohort's sum.

    Attributes:
        estimate: [P] of the mean contribution.
        clip: C of the next round.
    """

    estimate: Tensor
    clip: float


@dataclass(frozen=True)
class Releasing:
    """The mechanism of one run.

    Attributes:
        mechanism: of the plan.
        noise_multiplier: z, of it.
        shared: [P] bool, coordinates that leave their clients; None for all.
        draws: the mechanism's coins.
    """

    mechanism: ClientMechanism
    noise_multiplier: float
    shared: Tensor | None
    draws: Draws

    @property
    def size(self) -> float:
        """q K, by which sums are divided."""
        return self.mechanism.size

    @classmethod
    def of(cls, plan: Plan, shared: Tensor | None, draws: Draws) -> "Releasing":
        """The mechanism that a plan asks for."""
        assert isinstance(plan.mechanism, ClientMechanism)
        return cls(plan.mechanism, plan.noise_multiplier, shared, draws)

    def __call__(self, total: Tensor, round: int, clip: float) -> Release:
        """Noise and divide.

        Args:
            total: [P], or [P + 1] with an adaptive clip's bits at its end: the sum over clients that answered, zeros
                where nobody did.
            round: from 1.
            clip: C by which these contributions were clipped, and no other.
        """
        size, adaptive = self.mechanism.size, self.mechanism.adaptive
        if adaptive is None:
            return Release(noised(total, self._noise(len(total), round, self.noise_multiplier * clip)) / size, clip)
        updates, bits = total[:-1], float(total[-1])
        estimate = noised(updates, self._noise(len(updates), round, adaptive.update_noise * clip)) / size
        bits += adaptive.bit_noise * float(self.draws("clip noise", round).standard_normal(1)[0])
        return Release(estimate, moved_clip(clip, bits, size, adaptive))

    def _noise(self, size: int, round: int, deviation: float) -> Tensor:
        """[P] of a round: fresh, or what the tree's noise gains: the node that ends here, less those it replaces."""
        leaves = self.mechanism.tree
        if leaves is None:
            return gaussian(size, deviation, self.shared, self.draws("client noise", round))
        tree, leaf = divmod(round - 1, leaves)

        def node(level: int, last: int) -> Tensor:
            draws = self.draws(f"tree noise of level {level}", tree * leaves + last)
            return gaussian(size, deviation, self.shared, draws)

        gained, dropped = moved_nodes(leaf + 1)
        noise = node(*gained)
        for each in dropped:
            noise -= node(*each)
        return noise


def moved_clip(clip: float, bits: float, size: float, adaptive: AdaptiveClip) -> float:
    """C exp(-eta (b - gamma)), with b the noised share of clients below C: Andrew et al. 2021, algorithm 1.

    It stays between 1e-30 and 1e30, where no rate lets it vanish or grow without bound.

    Args:
        clip: C.
        bits: noised sum of centred bits.
        size: q K, their divisor.
        adaptive: gamma and eta.
    """
    below = bits / size + 0.5
    moved = math.log(clip) - adaptive.rate * (below - adaptive.quantile)
    return math.exp(min(max(moved, math.log(LEAST_CLIP)), math.log(MOST_CLIP)))


def moved_nodes(leaf: int) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """How the nodes that make up a prefix change with its last leaf, which counts from 1.

    A node is (level, last leaf): it holds the sum of the 2^level leaves that end there.

    Returns:
        The node that ends at `leaf` and is part of the prefix, and those of the prefix before that it replaces.
    """
    level = (leaf & -leaf).bit_length() - 1
    return (level, leaf), [(below, leaf - 2**below) for below in range(level)]
