"""What a printed epsilon means: in lines for people, and as values for programs."""

import math
import textwrap
from typing import Any

from fedsim.privacy.accountant import Accountant, rounded_up
from fedsim.privacy.ledger import Spent
from fedsim.privacy.plan import ClientMechanism, ExampleMechanism, Level, Plan

_ACCOUNTANTS: dict[Accountant, str] = {
    "rdp": "Renyi DP",
    "prv": "privacy loss random variables",
    "pld": "privacy loss distributions",
    "exact": "exact composition of Gaussians",
}
_ADVERSARIES: dict[Level, str] = {
    "example": "the server and all it tells; it sees every upload",
    "client": "whoever sees the models; the server is trusted with uploads",
    "local": "the server and all it tells; it sees every upload",
}
_COVERED: dict[Level, str] = {
    "example": "every upload and the model after every round",
    "client": "the model after every round",
    "local": "every upload and the model after every round",
}


def statement(plan: Plan, spent: Spent, personal: bool = False, *, secret: bool = False) -> list[str]:
    """What a run's epsilon covers, in lines of at most 80 columns for summary and report.

    Args:
        plan: the promise.
        spent: so far.
        personal: whether clients keep models of their own.
        secret: whether the mechanism's coins were kept nowhere, so that no seed gives them away.
    """
    coins = {"client": "cohorts", "example": "batches", "local": "all other coins"}[plan.level]
    drawn = {"client": "noise and cohorts" if plan.by_round else "noise", "example": "noise and batches"}
    whose = "the server" if plan.level == "client" else "each node"
    most, median, smallest = (rounded_up(value) for value in (spent.largest, spent.median, spent.smallest))
    lines = [
        f"epsilon {most} at delta {spent.delta:g} (largest client; median {median}, smallest {smallest})",
        *assumptions(plan, personal),
        _composition(plan, spent),
        f"{drawn.get(plan.level, 'noise')}: drawn in secret by {whose}, and kept nowhere"
        if secret
        else f"epsilon of the mechanism; not a guarantee about this file, since the seed gives away noise and {coins}",
        "run.db and this summary are for the curator: they hold more than epsilon covers",
    ]
    if rounded_up(plan.epsilon) != most:
        lines.insert(
            1, f"the run as planned: at most {rounded_up(plan.epsilon)}. Quote that where what was seen ended it"
        )
    return [part for line in lines for part in textwrap.wrap(line, 80, subsequent_indent="  ", break_on_hyphens=False)]


def assumptions(plan: Plan, personal: bool = False) -> list[str]:
    """What any epsilon of a plan rests on, before the run as after it; lines that are not wrapped yet.

    Args:
        plan: the promise.
        personal: whether clients keep models of their own.
    """
    return [
        f"protects {protected(plan)}; relation: {relation(plan)}",
        f"mechanism: {mechanism(plan)}",
        f"adversary: {_ADVERSARIES[plan.level]}; accountant: {_ACCOUNTANTS[plan.accountant]}",
        f"covers {_COVERED[plan.level]}, and nothing else: no losses, no counts, no failures",
        *([_JOINT] if personal else []),
    ]


def values(plan: Plan, spent: Spent) -> dict[str, Any]:
    """The same for programs: what `--json`, `run.db` and the model's card hold."""
    return {**spent._asdict(), **promise(plan)}


def promise(plan: Plan) -> dict[str, Any]:
    """A plan for programs."""
    details: dict[str, Any] = {}
    if isinstance(plan.mechanism, ExampleMechanism):
        details = {"unit": plan.mechanism.unit, "clipping": plan.mechanism.clipping}
    if isinstance(plan.mechanism, ClientMechanism):
        adaptive = plan.mechanism.adaptive
        details = {
            "unit": "client",
            "divisor": plan.mechanism.size,
            "adaptive_clip": None if adaptive is None else vars(adaptive),
            "tree_rounds": plan.mechanism.tree,
        }
    return {
        "level": plan.level,
        "planned": plan.epsilon,
        "mechanism": mechanism(plan),
        "accountant": plan.accountant,
        "relation": plan.relation,
        "adversary": _ADVERSARIES[plan.level],
        "covers": _COVERED[plan.level],
        "noise_multiplier": plan.noise_multiplier,
        "clip": plan.clip,
        "max_participations": plan.max_participations,
        "charged": "every round" if plan.by_round else "participations",
        "rounds": plan.rounds,
        **details,
    }


def shown(epsilon: float) -> str:
    """An epsilon in at most 13 columns of a table, never below the value."""
    return rounded_up(epsilon) if epsilon <= 1e5 or epsilon == math.inf else "above 100,000"


def protected(plan: Plan) -> str:
    """Whom or what the promise is about."""
    if not isinstance(plan.mechanism, ExampleMechanism):
        return "one client with all its rows"
    if plan.mechanism.grouped:
        return f"one {plan.mechanism.unit} at each client, with all its rows there"
    return f"one {plan.mechanism.unit}, not one person"


def relation(plan: Plan) -> str:
    """The data sets that cannot be told apart."""
    if plan.level == "local":
        return "any two data sets of the client"
    if plan.relation == "replace":
        return "replace (exchange it for any other)"
    return "zero-out (add or remove it, the count public)"


def mechanism(plan: Plan) -> str:
    """What makes it private."""
    noise, how = f"noise {plan.noise_multiplier:.4g}, clip {plan.clip:g}", plan.mechanism
    if isinstance(how, ExampleMechanism):
        parts = "" if how.clipping == "flat" else " per layer"
        return f"Poisson-sampled Gaussian, {noise}{parts}"
    if not isinstance(how, ClientMechanism):
        return f"Gaussian on every upload, {noise}"
    if how.tree is not None:
        return f"DP-FTRL, trees of {how.tree} rounds, {noise}"
    if how.adaptive is not None:
        noise += f" at first (quantile {how.adaptive.quantile:g})"
    drawn = "Poisson-sampled " if plan.by_round and plan.sampling == "poisson" else ""
    return f"{drawn}Gaussian on the cohort's sum, {noise}"


_JOINT = (
    "joint DP: a client's own model is its own and is not covered; the others together learn no more of it than epsilon"
)


def _composition(plan: Plan, spent: Spent) -> str:
    if plan.by_round:
        return f"composed over all rounds: {spent.participations} so far charged every client, {plan.rounds} planned"
    return (
        f"composed over all rounds; participations of a client: {spent.participations} at most so far, "
        f"{plan.most} enforced"
    )
