"""What a scenario asks of privacy: its tables `[privacy.example]`, `[privacy.client]` and `[privacy.local]`.

Each names exactly one of `epsilon`, which no client's epsilon exceeds at the end, and `noise_multiplier`, z: the
standard deviation of the noise over the clip norm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedsim.errors import PrivacyError
from fedsim.privacy.accountant import Accountant, Relation

LEAST_CLIP, MOST_CLIP = 1e-30, 1e30
"""What float32 can be clipped to. Nearer to 0 its values lie so far apart that rounding moves a sum by more than a
clip, and noise that is a multiple of it hides nothing."""
_LEAST_DELTA, _MOST_NOISE = 1e-300, 1e100  # the accountants divide by a thousandth of delta and square the noise


@dataclass(frozen=True)
class ExamplePrivacy:
    """`[privacy.example]`: a client's rows, or groups of them, against the server.

    Attributes:
        delta: one for all clients, below 1 / n of every client.
        max_grad_norm: C, to which each unit's gradient is clipped.
        epsilon, noise_multiplier: one of them.
        max_participations: rounds a client may take part in; by default as many as at most 1 % of clients
            would exceed under the cohort rule.
        accountant: "rdp", "prv" or "pld".
        relation: "zero-out" or "replace".
        clipping: "flat", or "per-layer".
    """

    delta: float
    max_grad_norm: float = 1.0
    epsilon: float | None = None
    noise_multiplier: float | None = None
    max_participations: int | None = None
    accountant: Accountant = "rdp"
    relation: Relation = "zero-out"
    clipping: Literal["flat", "per-layer"] = "flat"

    def __post_init__(self) -> None:
        _check("privacy.example", self, ("max_grad_norm", "max_participations"))
        _among("privacy.example.accountant", self.accountant, ("rdp", "prv", "pld"))


@dataclass(frozen=True)
class AdaptiveClipping:
    """`privacy.client.adaptive`: the clip norm follows a quantile of updates' norms.

    Attributes:
        quantile: gamma in (0, 1), the share of clients that are to stay unclipped.
        rate: eta > 0, by which the logarithm of the clip moves for a share that is off by one.
        bit_noise: sigma_b, of the noise on the sum of bits; max(m / 20, z) for cohorts of m by default.
    """

    quantile: float = 0.5
    rate: float = 0.2
    bit_noise: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise PrivacyError(f"privacy.client.adaptive.quantile = {self.quantile} should lie between 0 and 1")
        for key in ("rate", "bit_noise"):
            _positive(f"privacy.client.adaptive.{key}", getattr(self, key))


@dataclass(frozen=True)
class ClientPrivacy:
    """`[privacy.client]`: a client, against whoever sees the models; the server is trusted with uploads.

    Attributes:
        delta: below 1 / K.
        clip: C, to which each client's upload is clipped; where it adapts, the first.
        epsilon, noise_multiplier: one of them.
        adaptive: how the clip follows the updates; None keeps it.
        mechanism: "gaussian", fresh noise every round, or "tree", DP-FTRL.
        min_separation: rounds of a tree, and between two participations of a client.
        max_participations: of a client, where chance does not hide who takes part.
        accountant: by default "rdp" where chance hides who takes part, and "exact" where it does not.
        relation: "zero-out" or "replace".
        amplified: whether a fixed-size cohort is charged as drawn without replacement, which needs "replace".
    """

    delta: float
    clip: float = 1.0
    epsilon: float | None = None
    noise_multiplier: float | None = None
    adaptive: AdaptiveClipping | None = None
    mechanism: Literal["gaussian", "tree"] = "gaussian"
    min_separation: int | None = None
    max_participations: int | None = None
    accountant: Accountant | None = None
    relation: Relation = "zero-out"
    amplified: bool = False

    def __post_init__(self) -> None:
        _check("privacy.client", self, ("clip", "max_participations", "min_separation"))
        if self.accountant is not None:
            _among("privacy.client.accountant", self.accountant, ("rdp", "prv", "pld", "exact"))
        if (self.mechanism == "tree") != (self.min_separation is not None):
            raise PrivacyError(
                "privacy.client: mechanism = 'tree' and min_separation go together: the rounds of a tree, in each of "
                "which a client takes part at most once"
            )
        if self.mechanism == "tree" and self.adaptive is not None:
            raise PrivacyError(
                "privacy.client.adaptive: the sums of a tree hold updates of many rounds under one clip; leave it out, "
                "or use mechanism = 'gaussian'"
            )
        if self.mechanism == "tree" and (self.relation != "zero-out" or self.amplified):
            raise PrivacyError("privacy.client: mechanism = 'tree' is accounted under relation = 'zero-out' alone")


@dataclass(frozen=True)
class LocalPrivacy:
    """`[privacy.local]`: a client's rows against the server; each client noises its own upload.

    Attributes:
        delta: of the promise.
        clip: C, to which an upload is clipped.
        epsilon, noise_multiplier: one of them.
        max_participations: rounds a client may take part in.
    """

    delta: float
    clip: float = 1.0
    epsilon: float | None = None
    noise_multiplier: float | None = None
    max_participations: int | None = None

    def __post_init__(self) -> None:
        _check("privacy.local", self, ("clip", "max_participations"))


def _check(table: str, request: Any, positive: Sequence[str]) -> None:
    """What all levels ask alike; the first of what should be positive is the clip."""
    if (request.epsilon is None) == (request.noise_multiplier is None):
        given = "neither" if request.epsilon is None else "both"
        raise PrivacyError(f"{table}: set exactly one of epsilon and noise_multiplier; {given} given")
    for key in ("epsilon", "noise_multiplier", *positive):
        _positive(f"{table}.{key}", getattr(request, key))
    if not _LEAST_DELTA <= request.delta < 1:
        raise PrivacyError(f"{table}.delta = {request.delta} should lie between 1e-300 and 1, below 1 / units")
    key = positive[0]
    if not LEAST_CLIP <= (clip := getattr(request, key)) <= MOST_CLIP:
        raise PrivacyError(f"{table}.{key} = {clip:g} should lie between {LEAST_CLIP:g} and {MOST_CLIP:g}; 1 is usual")
    noise = request.noise_multiplier
    if noise is not None and not 1 / _MOST_NOISE <= noise <= _MOST_NOISE:
        raise PrivacyError(
            f"{table}.noise_multiplier = {noise} should lie between {1 / _MOST_NOISE:g} and {_MOST_NOISE:g}; 1 is usual"
        )


def _positive(key: str, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise PrivacyError(f"{key} = {value} should be above 0 and finite")


def _among(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise PrivacyError(f"{key} = {value!r} should be {', '.join(known[:-1])} or {known[-1]}")
