"""What a run promises at example level, fixed before anything trains.

The scenario asks for an epsilon (or a noise) and a clip norm; the plan gives every client its sampling rate
and steps, all clients one noise multiplier, and the number of participations for which that noise was
solved and beyond which nobody is sampled. All follows from declared rows, never from data.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsim.cohorts import CohortRule, participation_limit
from fedsim.errors import PrivacyError
from fedsim.privacy.accountant import Accountant, Steps, largest, solve_noise
from fedsim.privacy.batches import expected_batch, sampling_rate, steps_of

_LEAST_DELTA, _MOST_NOISE = 1e-300, 1e100  # the accountants divide by a thousandth of delta and square the noise
_MOST_STEPS = 10**15  # as floats, in which epsilon is computed, all up to 9e15 are whole


@dataclass(frozen=True)
class ExamplePrivacy:
    """The scenario's `[privacy.example]`: set exactly one of `epsilon` and `noise_multiplier`.

    Attributes:
        delta: one for all clients, below 1 / n of every client.
        max_grad_norm: C, to which each row's gradient is clipped.
        epsilon: what no client's epsilon exceeds at `max_participations`.
        noise_multiplier: z, standard deviation of the noise over C.
        max_participations: rounds a client may take part in; by default as many as at most 1 % of clients
            would exceed under the cohort rule.
        accountant: "rdp" or "prv".
    """

    delta: float
    max_grad_norm: float = 1.0
    epsilon: float | None = None
    noise_multiplier: float | None = None
    max_participations: int | None = None
    accountant: Accountant = "rdp"

    def __post_init__(self) -> None:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            given = "neither" if self.epsilon is None else "both"
            raise PrivacyError(f"privacy.example: set exactly one of epsilon and noise_multiplier; {given} given")
        for key in ("epsilon", "noise_multiplier", "max_grad_norm", "max_participations"):
            value = getattr(self, key)
            if value is not None and not 0 < value < float("inf"):
                raise PrivacyError(f"privacy.example.{key} = {value} should be above 0 and finite")
        if not _LEAST_DELTA <= self.delta < 1:
            raise PrivacyError(f"privacy.example.delta = {self.delta} should lie between 1e-300 and 1, below 1 / rows")
        if self.noise_multiplier is not None and not 1 / _MOST_NOISE <= self.noise_multiplier <= _MOST_NOISE:
            raise PrivacyError(
                f"privacy.example.noise_multiplier = {self.noise_multiplier} should lie between {1 / _MOST_NOISE:g} "
                f"and {_MOST_NOISE:g}; 1 is usual"
            )
        if self.accountant not in ("rdp", "prv"):
            raise PrivacyError(f"privacy.example.accountant = {self.accountant!r} should be rdp or prv")


@dataclass(frozen=True, eq=False)
class Plan:
    """A run's promise.

    Attributes:
        noise_multiplier: z of every client and step.
        max_grad_norm: C.
        delta: of every epsilon that is printed.
        accountant: that computes them.
        max_participations: enforced by sampler and ledger.
        rates: [K] q_k of every client's Poisson batches; 0 for a client without train rows.
        steps: [K] private steps of one participation; 0 likewise.
        divisors: [K] q_k n_k.
        window: tokens in a row of a next-token task, else None.
        warnings: lines for the user; empty when all is well.
    """

    noise_multiplier: float
    max_grad_norm: float
    delta: float
    accountant: Accountant
    max_participations: int
    rates: np.ndarray
    steps: np.ndarray
    divisors: np.ndarray
    window: int | None
    warnings: tuple[str, ...]

    @cached_property
    def kinds(self) -> tuple[list[Steps], np.ndarray]:
        """The distinct charges of one participation, and [K] each client's index into them."""
        pairs, index = np.unique(np.stack([self.rates, self.steps], axis=1), axis=0, return_inverse=True)
        return [Steps(float(rate), int(steps)) for rate, steps in pairs], index.ravel()

    @cached_property
    def epsilon(self) -> float:
        """The largest epsilon over clients after `max_participations`."""
        charges = [Steps(one.rate, one.steps * self.max_participations) for one in self.kinds[0]]
        return largest(self.noise_multiplier, charges, self.delta, self.accountant)[0]


def plan(
    request: ExamplePrivacy,
    train_rows: np.ndarray,
    batch_size: int,
    epochs: int,
    rule: CohortRule,
    rounds: int,
    *,
    steps: int | None = None,
    window: int | None = None,
) -> Plan:
    """Turn what a scenario asks into a plan.

    Args:
        request: `[privacy.example]`.
        train_rows: [K] declared train rows of every client; one without any is never sampled and spends nothing.
        batch_size: B, the mean Poisson batch where a client has at least as many rows.
        epochs: passes over a client's rows in one participation.
        rule: the cohort rule.
        rounds: of the run.
        steps: of one participation of a client with rows, instead of `epochs`.
        window: tokens in a row, where a row is a window of a next-token task.

    Raises:
        PrivacyError: no client has train rows, delta is not below 1 / n for some client, or no noise reaches
            epsilon.
    """
    able = int((train_rows > 0).sum())
    if not able:
        raise PrivacyError("privacy.example: no client has a train row, so there is nothing to protect or to train on")
    _refuse_delta(request.delta, train_rows)
    limit = request.max_participations or participation_limit(rule, len(train_rows), rounds, able=able)
    sizes, kinds = np.unique(train_rows, return_inverse=True)
    rates = np.array([sampling_rate(int(n), batch_size) for n in sizes])[kinds]
    taken = np.array([(steps if n else 0) or steps_of(int(n), batch_size, epochs) for n in sizes])[kinds]
    _refuse_steps(int(taken.max()) * limit)
    noise = request.noise_multiplier
    if noise is None:
        assert request.epsilon is not None
        charges = {Steps(*charge) for charge in zip(rates.tolist(), (taken * limit).tolist(), strict=True)}
        noise = solve_noise(request.epsilon, charges, request.delta, request.accountant)
    return Plan(
        noise_multiplier=noise,
        max_grad_norm=request.max_grad_norm,
        delta=request.delta,
        accountant=request.accountant,
        max_participations=limit,
        rates=rates,
        steps=taken,
        divisors=np.array([expected_batch(int(n), batch_size) for n in sizes])[kinds],
        window=window,
        warnings=(*_delta_warning(request.delta, train_rows), *_batch_warning(batch_size, train_rows)),
    )


def _refuse_delta(delta: float, rows: np.ndarray) -> None:
    client = int(rows.argmax())
    most = int(rows[client])
    if delta >= 1 / most:
        raise PrivacyError(
            f"privacy.example.delta = {delta:g} is not below 1/{most}: client {client} has {most} train rows, and "
            f"such a delta would allow one of them to be published. Set it to {1 / (10 * most):.1g} or less."
        )


def _refuse_steps(most: int) -> None:
    if most > _MOST_STEPS:
        raise PrivacyError(
            f"privacy.example: a client would take {most:,} private steps in all, more than {_MOST_STEPS:,}; take "
            "fewer rounds, train.epochs or train.steps"
        )


def _delta_warning(delta: float, rows: np.ndarray) -> list[str]:
    most = int(rows.max())
    if delta <= 1 / (10 * most):
        return []
    above = int((delta * 10 * rows > 1).sum())
    return [
        f"privacy.example.delta = {delta:g} is above 1 / (10 rows) for {above} of {len(rows)} clients; "
        f"{1 / (10 * most):.1g} would suit all"
    ]


def _batch_warning(batch_size: int, rows: np.ndarray) -> list[str]:
    fewer = int(((rows > 0) & (rows < batch_size)).sum())
    if not fewer:
        return []
    return [
        f"{fewer} of {len(rows)} clients have fewer train rows than train.batch_size = {batch_size}; they train on "
        "all rows in every step, without amplification by sampling"
    ]
