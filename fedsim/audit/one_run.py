"""What a one-run audit found: a claim, a lower bound on it, and what that says."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from fedsim.audit.bounds import CONFIDENCE, MOST_GUESSES, Interval, interval, one_run_bound, perfect_guesses
from fedsim.privacy.accountant import rounded_up
from fedsim.progress import wrapped

POWER = 2.0
"""What the lower bound must exceed without noise, for the audit to be worth anything."""


@dataclass(frozen=True, eq=False)
class OneRun:
    """One run with canaries, each of them guessed.

    Attributes:
        title: of the scenario.
        level: "example" for canary rows, "client" for canary clients.
        audited: what was trained on, for people.
        mechanism: for people, without its noise where that was switched off.
        claim: the ledger's epsilon of what was released, with the noise.
        delta: of claim and bound.
        noise_off: whether the mechanism ran without its noise, to see whether the audit sees.
        rounds, releases: rounds trained, and releases scored.
        evidence: [m] for each canary; above 0 it is guessed to be in.
        inside: [m] bool, whether it was.
    """

    title: str
    level: Literal["example", "client"]
    audited: str
    mechanism: str
    claim: float
    delta: float
    noise_off: bool
    rounds: int
    releases: int
    evidence: np.ndarray
    inside: np.ndarray

    @property
    def canaries(self) -> int:
        """M, all of them guessed."""
        return len(self.inside)

    @property
    def right(self) -> int:
        """Guesses that are right."""
        return int(((self.evidence > 0) == self.inside).sum())

    @property
    def accuracy(self) -> Interval:
        """Where the share of right guesses lies."""
        return interval(self.right, self.canaries)

    @cached_property
    def bound(self) -> float:
        """The epsilon that the guesses refute."""
        return one_run_bound(self.canaries, self.canaries, self.right, self.delta)

    @cached_property
    def reach(self) -> float:
        """The bound if every guess were right."""
        return one_run_bound(self.canaries, self.canaries, self.canaries, self.delta)

    @property
    def ok(self) -> bool:
        """Whether the claim stands; without noise, whether the audit sees that it is gone."""
        return self.bound > POWER if self.noise_off else self.bound <= self.claim

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.noise_off:
            return "SEEN" if self.ok else "NOT SEEN"
        return "consistent" if self.ok else "VIOLATED"


def meaning(found: OneRun) -> str:
    """What the verdict says, in sentences."""
    reach = f"{found.canaries} canaries can show {found.reach:.2f} at most"
    if found.noise_off and found.ok:
        return f"without noise the bound is above {POWER:g}, so the audit sees what noise should hide"
    if found.noise_off:
        more = " or larger cohorts" if found.level == "client" else ""
        more = f"rounds{more}" if found.reach > POWER else f"canaries: {reach}"
        return f"even without noise the bound is not above {POWER:g}: this audit sees too little; take more {more}"
    if not found.ok:
        return "it tells more than its epsilon allows; of a mechanism that keeps it one audit in 20 says so at most"
    if math.isinf(found.claim):
        return "without a finite epsilon there is no claim to refute"
    if found.reach > found.claim:
        return f"the claim stands, which {reach.replace(' at most', '')} to be false. Its power is shown by --noise-off"
    needed = perfect_guesses(found.claim, found.delta)
    many = f"it would take {needed:,} perfect guesses to refute this claim"
    if needed is None:
        many = f"not even {MOST_GUESSES:,} perfect guesses would refute this claim"
    return f"passing proves little: {many}, and {reach}. Its power is shown by --noise-off"


def one_run_lines(found: OneRun) -> list[str]:
    """For people, at most 80 columns."""
    kind = "rows" if found.level == "example" else "clients"
    off = ", noise off" if found.noise_off else ""
    pairs = [(name, text) for name, text in one_run_table(found) if name not in ("scenario", "verdict")]
    return [
        *wrapped(f"{found.title} · audit of {kind}{off}"),
        *(line for name, text in pairs for line in wrapped(f"{name:<12} {text}")),
        f"{'verdict':<12} {found.verdict}",
        *wrapped(meaning(found), 2),
    ]


def one_run_table(found: OneRun) -> list[tuple[str, str]]:
    """Names and figures."""
    ran = " (what the mechanism with its noise claims)" if found.noise_off else ""
    low, high = found.accuracy
    return [
        ("scenario", found.title),
        ("audited", found.audited),
        ("mechanism", found.mechanism),
        ("releases", f"{found.releases:,} in {found.rounds:,} rounds"),
        ("guesses", f"{found.right} of {found.canaries} right ({100 * low:.0f} to {100 * high:.0f} %), threshold 0"),
        ("claim", f"epsilon {rounded_up(found.claim)} at delta {found.delta:g}, by the ledger{ran}"),
        ("lower bound", f"epsilon {found.bound:.2f} at delta {found.delta:g}, confidence {100 * CONFIDENCE:.0f} %"),
        ("verdict", found.verdict),
    ]


def one_run_data(found: OneRun) -> dict[str, Any]:
    """For programs."""
    return {
        "audit": "rows" if found.level == "example" else "clients",
        "scenario": found.title,
        "audited": found.audited,
        "mechanism": found.mechanism,
        "noise_off": found.noise_off,
        "rounds": found.rounds,
        "releases": found.releases,
        "canaries": found.canaries,
        "right": found.right,
        "accuracy": found.accuracy._asdict(),
        "claim": found.claim,
        "delta": found.delta,
        "lower_bound": found.bound,
        "confidence": CONFIDENCE,
        "largest_possible_bound": found.reach,
        "perfect_guesses_to_refute": perfect_guesses(found.claim, found.delta),
        "verdict": found.verdict,
        "ok": found.ok,
        "evidence": found.evidence.tolist(),
        "inside": found.inside.tolist(),
    }
