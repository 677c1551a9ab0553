"""What a scenario asks of privacy, level by level, turned into a plan with its noise solved."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedsim.cohorts import CohortRule, expected_size, participation_limit
from fedsim.errors import PrivacyError
from fedsim.privacy.accountant import Sampling, refusal, solve_noise
from fedsim.privacy.batches import expected_batch, sampling_rate, steps_of_pass
from fedsim.privacy.plan import (
    AdaptiveClip,
    ClientMechanism,
    ExampleMechanism,
    Level,
    LocalMechanism,
    Plan,
)
from fedsim.privacy.requests import ClientPrivacy, ExamplePrivacy, LocalPrivacy

_MOST_STEPS = 10**15  # as floats, in which epsilon is computed, all up to 9e15 are whole


def plan_example(
    request: ExamplePrivacy,
    units: np.ndarray,
    batch_size: int,
    epochs: int,
    rule: CohortRule,
    rounds: int,
    *,
    steps: int | None = None,
    passes: Sequence[int | None] = (None,),
    unit: str = "row",
    grouped: bool = False,
) -> Plan:
    """Turn what a scenario asks at example level into a plan.

    Args:
        request: `[privacy.example]`.
        units: [K] declared train units (rows, or groups of rows) of every client; one without any is never sampled
            and spends nothing.
        batch_size: B, the mean Poisson batch where a client has at least as many units.
        epochs: passes over a client's units in one participation.
        rule: the cohort rule.
        rounds: of the run.
        steps: of one pass of a client with units, instead of `epochs`.
        passes: over its units that a client makes in one participation, each by its own epochs, or None for the
            `epochs` or `steps` here.
        unit: what a unit is, for people.
        grouped: whether it is a group of rows.

    Raises:
        PrivacyError: no client has a unit, delta is not below 1 / n for some client, or no noise reaches epsilon.
    """
    able = int((units > 0).sum())
    if not able:
        raise PrivacyError("privacy.example: no client has a train row, so there is nothing to protect or to train on")
    _refuse_delta(request.delta, units, unit)
    limit = request.max_participations or participation_limit(rule, len(units), rounds, able=able)
    sizes, kinds = np.unique(units, return_inverse=True)
    rates = np.array([sampling_rate(int(n), batch_size) for n in sizes])[kinds]
    taken = np.array([sum(steps_of_pass(int(n), batch_size, own, epochs, steps) for own in passes) for n in sizes])[
        kinds
    ]
    _refuse_steps(int(taken.max()) * limit)
    for rate in sorted(set(rates.tolist())):
        if (reason := refusal(request.accountant, rate, request.relation, "poisson")) is not None:
            raise PrivacyError(f"privacy.example.accountant = {request.accountant!r}: {reason}")
    return _solved(
        Plan(
            level="example",
            mechanism=ExampleMechanism(
                divisors=np.array([expected_batch(int(n), batch_size) for n in sizes])[kinds],
                unit=unit,
                grouped=grouped,
                clipping=request.clipping,
            ),
            noise_multiplier=1.0,
            delta=request.delta,
            clip=request.max_grad_norm,
            accountant=request.accountant,
            relation=request.relation,
            sampling="poisson",
            max_participations=limit,
            rounds=rounds,
            rates=rates,
            steps=taken,
            warnings=(*_delta_warning(request.delta, units, unit), *_batch_warning(batch_size, units, unit)),
        ),
        request,
    )


def plan_client(request: ClientPrivacy, clients: int, rule: CohortRule, rounds: int) -> Plan:
    """Turn what a scenario asks at client level into a plan.

    A Poisson cohort is hidden by chance: every round charges every registered client at rate q, and nobody's
    participations are limited, since a limit would make them depend on each other. A fixed-size cohort has no such
    amplification but under replace-one; there every participation is charged, and their number is limited.

    Args:
        request: `[privacy.client]`.
        clients: K, registered.
        rule: the cohort rule.
        rounds: of the run.

    Raises:
        PrivacyError: the cohort rule, the mechanism and the accountant do not go together, delta is not below 1 / K, or
            no noise reaches epsilon.
    """
    size = expected_size(rule, clients)
    tree, share = request.min_separation if request.mechanism == "tree" else None, size / clients
    hidden = tree is None and share < 1 and (rule.poisson is not None or request.amplified)
    sampling: Sampling = "poisson" if rule.poisson is not None or not hidden else "fixed"
    _refuse_sampling(request, rule, hidden)
    accountant = request.accountant or ("rdp" if hidden else "exact")
    if (reason := refusal(accountant, share if hidden else 1.0, request.relation, sampling)) is not None:
        raise PrivacyError(f"privacy.client.accountant = {accountant!r}: {reason}")
    _refuse_client_delta("client", request.delta, clients)
    limit = None if hidden else request.max_participations or _most_participations(rule, clients, rounds, tree)
    plan = _solved(
        Plan(
            level="client",
            mechanism=ClientMechanism(size, None, tree),
            noise_multiplier=1.0,
            delta=request.delta,
            clip=request.clip,
            accountant=accountant,
            relation=request.relation,
            sampling=sampling,
            max_participations=limit,
            rounds=rounds,
            rates=np.full(clients, share if hidden else 1.0),
            steps=np.ones(clients, dtype=np.int64),
            warnings=tuple(_client_warnings(request, clients, size)),
        ),
        request,
    )
    return plan if request.adaptive is None else _with_adaptive_clip(plan, request, size)


def plan_local(request: LocalPrivacy, able: np.ndarray, rule: CohortRule, rounds: int) -> Plan:
    """Turn what a scenario asks of each client's own noise into a plan.

    Args:
        request: `[privacy.local]`.
        able: [K] bool, the clients that can take part.
        rule: the cohort rule.
        rounds: of the run.

    Raises:
        PrivacyError: no client can take part, or no noise reaches epsilon.
    """
    if not able.any():
        raise PrivacyError("privacy.local: no client has a train row, so there is nothing to protect or to train on")
    limit = request.max_participations or participation_limit(rule, len(able), rounds, able=int(able.sum()))
    _refuse_client_delta("local", request.delta, len(able))
    return _solved(
        Plan(
            level="local",
            mechanism=LocalMechanism(),
            noise_multiplier=1.0,
            delta=request.delta,
            clip=request.clip,
            accountant="exact",
            relation="replace",
            sampling="poisson",
            max_participations=limit,
            rounds=rounds,
            rates=able.astype(float),
            steps=able.astype(np.int64),
            warnings=tuple(_client_delta_warning("local", request.delta, len(able))),
        ),
        request,
    )


def _solved(plan: Plan, request: ExamplePrivacy | ClientPrivacy | LocalPrivacy) -> Plan:
    """A plan of noise 1 with the noise that the request names, or the least that keeps to its epsilon."""
    noise = request.noise_multiplier
    if noise is None:
        assert request.epsilon is not None
        charges, key = plan.charges_after(plan.most), f"privacy.{plan.level}.epsilon"
        noise = solve_noise(request.epsilon, charges, plan.delta, plan.accountant, key)
    return replace(plan, noise_multiplier=noise)


def _with_adaptive_clip(plan: Plan, request: ClientPrivacy, size: float) -> Plan:
    """The plan whose noise is shared between the sum of updates and the sum of bits.

    C follows what was released, z does not: over its C every round is the same Gaussian, so all accountants hold.
    """
    assert request.adaptive is not None and isinstance(plan.mechanism, ClientMechanism)
    z, settings = plan.noise_multiplier, request.adaptive
    bit_noise = settings.bit_noise if settings.bit_noise is not None else max(size / 20, z)
    if 2 * bit_noise <= z:
        raise PrivacyError(
            f"privacy.client.adaptive.bit_noise = {bit_noise:g}: twice it must be above the noise multiplier {z:.4g}, "
            f"or the bits alone would cost more than the whole budget; {max(size / 20, z):.4g} would suit"
        )
    update_noise = (z**-2 - (2 * bit_noise) ** -2) ** -0.5
    adaptive = AdaptiveClip(settings.quantile, settings.rate, bit_noise, update_noise)
    return replace(plan, mechanism=replace(plan.mechanism, adaptive=adaptive))


def _client_warnings(request: ClientPrivacy, clients: int, size: float) -> list[str]:
    warnings = _client_delta_warning("client", request.delta, clients)
    if request.min_separation is not None and size * request.min_separation > clients:
        warnings.append(
            f"{size:g} clients in each of {request.min_separation} rounds are more than the {clients} there are: with "
            f"min_separation = {request.min_separation} later cohorts are smaller, and divided by {size:g} all the same"
        )
    return warnings


def _most_participations(rule: CohortRule, clients: int, rounds: int, tree: int | None) -> int:
    """As many as at most 1 % of clients would exceed, and no more than there are trees."""
    limit = participation_limit(rule, clients, rounds)
    return limit if tree is None else min(limit, -(-rounds // tree))


def _refuse_sampling(request: ClientPrivacy, rule: CohortRule, hidden: bool) -> None:
    """Refuse what contradicts how cohorts are drawn."""
    if request.mechanism == "tree" and rule.poisson is not None:
        raise PrivacyError(
            "privacy.client.mechanism = 'tree' needs no chance in who takes part, and a Poisson cohort would be "
            "charged for nothing; use cohort.size, or mechanism = 'gaussian'"
        )
    if request.amplified and (rule.poisson is not None or (not hidden and request.relation == "replace")):
        raise PrivacyError(
            "privacy.client.amplified has no effect here: it charges a fixed-size cohort of some clients as drawn by "
            "chance. Leave it out"
        )
    if request.amplified and request.relation != "replace":
        raise PrivacyError(
            "privacy.client.amplified: a fixed-size cohort hides a client only under relation = 'replace' (sampling "
            "without replacement). Poisson cohorts are cheaper and need no such key: cohort.poisson"
        )
    if hidden and request.max_participations is not None:
        raise PrivacyError(
            "privacy.client.max_participations: here chance hides who takes part and every round charges everybody; a "
            "limit would make rounds depend on each other. Leave it out"
        )


def _refuse_client_delta(level: Level, delta: float, clients: int) -> None:
    if delta >= 1 / clients:
        raise PrivacyError(
            f"privacy.{level}.delta = {delta:g} is not below 1/{clients}, one over the number of clients: such a delta "
            f"would allow one of them to be published. Set it to {_rounded_down(1 / (10 * clients))} or less."
        )


def _client_delta_warning(level: Level, delta: float, clients: int) -> list[str]:
    if delta <= 1 / (10 * clients):
        return []
    least = _rounded_down(1 / (10 * clients))
    return [f"privacy.{level}.delta = {delta:g} is above 1 / (10 clients); {least} would suit"]


def _refuse_delta(delta: float, units: np.ndarray, unit: str) -> None:
    client = int(units.argmax())
    most = int(units[client])
    if delta >= 1 / most:
        raise PrivacyError(
            f"privacy.example.delta = {delta:g} is not below 1/{most}: client {client} has {most} train {_many(unit)}, "
            "and such a delta would allow one of them to be published. Set it to "
            f"{_rounded_down(1 / (10 * most))} or less."
        )


def _rounded_down(delta: float) -> str:
    """A delta to one digit, no larger than it is."""
    rounded = f"{delta:.0e}"
    digit, _, power = rounded.partition("e")
    if float(rounded) > delta:
        rounded = f"{int(digit) - 1}e{power}" if digit != "1" else f"9e{int(power) - 1}"
    return f"{float(rounded):g}"


def _many(unit: str) -> str:
    return "rows" if unit == "row" else f"units ({unit})"


def _refuse_steps(most: int) -> None:
    if most > _MOST_STEPS:
        raise PrivacyError(
            f"privacy.example: a client would take {most:,} private steps in all, more than {_MOST_STEPS:,}; take "
            "fewer rounds, train.epochs or train.steps"
        )


def _delta_warning(delta: float, units: np.ndarray, unit: str) -> list[str]:
    most = int(units.max())
    if delta <= 1 / (10 * most):
        return []
    above = int((delta * 10 * units > 1).sum())
    return [
        f"privacy.example.delta = {delta:g} is above 1 / (10 {_many(unit)}) for {above} of {len(units)} clients; "
        f"{_rounded_down(1 / (10 * most))} would suit all"
    ]


def _batch_warning(batch_size: int, units: np.ndarray, unit: str) -> list[str]:
    fewer = int(((units > 0) & (units < batch_size)).sum())
    if not fewer:
        return []
    return [
        f"{fewer} of {len(units)} clients have fewer train {_many(unit)} than train.batch_size = {batch_size}; they "
        f"train on all of them in every step, without amplification by sampling"
    ]
