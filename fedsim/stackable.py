"""How many clients a scenario trains at once, and whether they can be, tried before anything trains.

A model or a client half may be written so that many clients cannot be one computation: it draws while it trains, notes
something in its buffers that padding would change, decides by the values of its rows. So three clients of a few rows
train one by one and as a stack, and if they do not come to the same, all are trained one by one, and the run says why.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim import seeds
from fedsim.algorithm import initial
from fedsim.cohorts import largest_size
from fedsim.data.federation import Federation, Rows
from fedsim.devices import of_worker, resolved, usual_width
from fedsim.errors import ClientError, FedsimError
from fedsim.functional import Lookups
from fedsim.job import Job
from fedsim.local import Contribution, Received, Work, one_thread
from fedsim.parameters import layout_of
from fedsim.privacy.batches import expected_batch, sampling_rate
from fedsim.privacy.plan import ExampleMechanism, Plan
from fedsim.scenario import Scenario
from fedsim.together import Member, Result, at_once

_EPOCHS = 2
_OTHER = 0.01
"""By how much shared vectors differ from their first values in the trial's second round."""
_PLENTY = 10**6  # steps that the trial's plan allows


class Settled(NamedTuple):
    """A job whose scenario says how wide its stacks are.

    Attributes:
        job: with `engine.stack` resolved.
        reason: why clients that should be trained at once are trained one by one; empty where they are not.
    """

    job: Job
    reason: str


@one_thread()
def settled(job: Job) -> Settled:
    """Resolve `engine.stack` and `engine.devices`.

    The width is what the scenario asks for, else by `devices.usual_width`; at most a cohort, and 1 where clients cannot
    be stacked, who then train on cores.
    """
    engine, job = job.scenario.engine, _with_engine(job, devices=_devices(job.scenario))
    width = min(engine.stack or _usual_width(job), largest_size(job.rule, job.federation.clients))
    reason = refusal(job) if width > 1 else ""
    if reason:
        reason = f"engine.stack = {width}: clients are trained one by one, since {reason}"
    if reason or width == 1:
        return Settled(_with_engine(job, stack=1, devices=["cpu"]), reason)
    return Settled(_with_engine(job, stack=width), reason)


def _devices(scenario: Scenario) -> list[str]:
    engine = scenario.engine
    if engine.compile or engine.stack == 1 or scenario.train.precision == "bf16":  # all of them one client at a time
        return ["cpu"]
    return resolved(engine.devices, torch.cuda.device_count())


def _usual_width(job: Job) -> int:
    device = of_worker(job.scenario.engine.devices or ["cpu"], 0)
    if device.type == "cpu":
        return 1
    return usual_width(device, layout_of(job.build_model()).size, job.scenario.train.batch_size)


def _with_engine(job: Job, **changes: Any) -> Job:
    engine = job.scenario.engine.model_copy(update=changes)
    return replace(job, scenario=job.scenario.model_copy(update={"engine": engine}))


@one_thread()
def refusal(job: Job) -> str:
    """Why the clients of a job cannot be stacked; empty where they can. Three of them are trained to find out."""
    plan = job.privacy
    if job.apart is not None:
        return "one of them has everybody's rows"
    if plan is not None and isinstance(plan.mechanism, ExampleMechanism) and plan.mechanism.grouped:
        return f"privacy.example protects a {plan.mechanism.unit}, whose rows have a mean gradient"
    tried = _trial(job)
    with seeds.preserved():
        return _tried(Work(tried))


def _tried(work: Work) -> str:
    """What is wrong with the trial's clients as a stack.

    Most of what clients keep and are sent is zero at first, and a sum over all of a stack is then right by chance. So
    they do their round twice, the second time with what they have kept and with other shared vectors.
    """
    inits = work.algorithm.shared
    received = Received(work.initial, initial(inits, work.initial.vector, work.federation.clients))
    members = [Member(number, None) for number in range(work.federation.clients)]
    try:
        first = [work.train(member.number, 1, received, None) for member in members]
        again = received._replace(shared={name: vector + _OTHER for name, vector in received.shared.items()})
        keeping = [member._replace(state=done.state) for member, done in zip(members, first, strict=True)]
        then = [work.train(member.number, 1, again, member.state) for member in keeping]
    except FedsimError as error:
        return f"the trial of it failed: {error}"
    return _compared(work, members, received, first) or _compared(work, keeping, again, then)


def _compared(work: Work, members: list[Member], received: Received, alone: list[Contribution]) -> str:
    """What is wrong with them as a stack, if one by one they come to this."""
    try:
        with Lookups() as lookups:
            together = at_once(work, members, 1, received)
    except Exception as error:
        drew = "randomness" in str(error)
        return "the model draws while it trains" if drew else f"as a stack they fail: {error}"
    if lookups.count:
        return "the model looks up an embedding by other means than a plain nn.Embedding"
    differences = (_different(*pair, work.initial.vector) for pair in zip(alone, together, strict=True))
    return next(filter(None, differences), "")


def _different(alone: Contribution, other: Result, start: Tensor) -> str:
    """What of a client differs by more than rounding."""
    if isinstance(other, ClientError):
        return f"as a stack they fail: {other}"
    share, floor = _tolerance(start)

    def far(first: Tensor, second: Tensor) -> bool:
        distance = float((first.double() - second.double()).norm()) if first.shape == second.shape else math.inf
        return not distance <= share * float(first.double().norm()) + floor

    pairs = [(alone.loss, other.loss), *((value, other.scalars[name]) for name, value in alone.scalars.items())]
    differs = {
        "update": far(alone.vector, other.vector) or alone.steps != other.steps,
        "state": any(far(alone.state[key], other.state.get(key, start[:0])) for key in alone.state),
        "loss or scalar": not all(
            math.isclose(*pair, rel_tol=10 * share, abs_tol=floor) for pair in pairs if not math.isnan(pair[0])
        ),
    }
    what = [name for name, found in differs.items() if found]
    return f"as a stack they come to another {what[0]}" if what else ""


def _tolerance(start: Tensor) -> tuple[float, float]:
    """How far rounding may move a client: by a share of what it sends, and by some last digits of its model [D].

    Few steps of tame nets stay within a hundredth of it; mistakes are a thousand times as large.
    """
    share = 1e-8 if start.dtype == torch.float64 else 1e-4
    return share, 8 * torch.finfo(start.dtype).eps * float(start.norm())


def _trial(job: Job) -> Job:
    """The job for three of its clients, of unequal sizes, on a few of their rows for two epochs."""
    size = job.scenario.train.batch_size
    rows = [_cut(job, client, most) for client, most in zip(_three(job), _sizes(size), strict=False)]
    train = job.scenario.train.model_copy(update={"steps": None, "epochs": _EPOCHS})
    engine = job.scenario.engine.model_copy(update={"stack": len(rows) + 1})  # one place is padding
    cohort = job.scenario.cohort.model_copy(update={"client_timeout": None})
    scenario = job.scenario.model_copy(update={"train": train, "engine": engine, "cohort": cohort})
    return replace(
        job,
        scenario=scenario,
        federation=_federation(job.federation, rows),
        privacy=_plan(job.privacy, [len(each.x) for each in rows], size),
        attackers=(),
    )


def _three(job: Job) -> list[int]:
    """The clients with most, with the median, and with least train rows."""
    rows = job.federation.train_rows
    able = np.flatnonzero(rows)
    order = able[np.argsort(-rows[able], kind="stable")]
    return list(dict.fromkeys([int(order[0]), int(order[len(order) // 2]), int(order[-1])]))


def _sizes(batch: int) -> tuple[int, int, int]:
    """A batch and a short one; a shorter one; one shorter still."""
    return batch + 2, batch // 2 + 1, 2


def _cut(job: Job, client: int, most: int) -> Rows:
    rows = job.federation.rows(client, "train")
    return Rows(rows.x[:most], rows.y[:most])


def _federation(whole: Federation, rows: list[Rows]) -> Federation:
    """Clients that have these train rows and no others."""
    ends = np.cumsum([len(each.x) for each in rows])
    return Federation(
        x=np.concatenate([each.x for each in rows]),
        y=np.concatenate([each.y for each in rows]),
        offsets=np.concatenate([[0], ends]),
        train_ends=ends,
        validation_ends=ends,
        central={},
        names=[str(number) for number in range(len(rows))],
        corpus=whole.corpus,
        task=whole.task,
        classes=whole.classes,
        preprocessing=whole.preprocessing,
        vocabulary=whole.vocabulary,
    )


def _plan(plan: Plan | None, rows: list[int], batch: int) -> Plan | None:
    """The same promise to the trial's clients."""
    if plan is None or not isinstance(plan.mechanism, ExampleMechanism):
        return plan
    divisors = np.array([expected_batch(count, batch) for count in rows])
    rates = np.array([sampling_rate(count, batch) for count in rows])
    mechanism = replace(plan.mechanism, divisors=divisors)
    return replace(plan, mechanism=mechanism, rates=rates, steps=np.full(len(rows), _PLENTY))
