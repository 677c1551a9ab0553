"""One-run audit of client level: does what the server releases hide whether a client is there?

Canary clients are registered whatever their coins say; one that is out contributes nothing, as a client that never
answers does. One that is in uploads, whenever it is drawn, a vector of its own that is far longer than the clip, so
that clipping leaves it at full length. The adversary sees every round's estimate, from which the models follow.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fedsim.algorithm import Algorithm, Combined, Local, Server, Upload
from fedsim.audit.canaries import Directions, coins, with_clients
from fedsim.audit.evidence import client_evidence
from fedsim.audit.loop import train
from fedsim.audit.one_run import OneRun
from fedsim.data.corpus import Folders
from fedsim.errors import ScenarioError
from fedsim.flower import AlgorithmStrategy
from fedsim.job import prepare, prepare_on
from fedsim.local import Work
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.plan import ClientMechanism, Plan
from fedsim.privacy.statement import mechanism, protected
from fedsim.progress import Progress
from fedsim.scenario import Scenario

LEAST_CANARIES = 48
_LENGTH = 1000.0  # of a canary's upload, over the first clip


def audit_clients(
    scenario: Scenario, folders: Folders, canaries: int, delta: float, progress: Progress, *, noise_off: bool = False
) -> OneRun:
    """Audit `[privacy.client]`.

    Args:
        scenario: at client level.
        folders: where data files are looked for.
        canaries: m clients beside the scenario's, all of them registered.
        delta: of claim and bound.
        progress: is told what takes a while.
        noise_off: run the mechanism without its noise.

    Raises:
        FedsimError: the scenario cannot be run, or the canaries are too few or too many.
    """
    if canaries < LEAST_CANARIES:
        raise ScenarioError(f"--canaries {canaries}: an audit of clients needs {LEAST_CANARIES} or more")
    progress.phase("loading the data")
    planned = prepare(scenario, folders)
    assert planned.privacy is not None
    first, inside = planned.federation.clients, coins(scenario.seed, canaries)
    changed = _with_its_noise(scenario, planned.privacy, delta, 1 + canaries / first)
    declared = prepare_on(with_clients(planned.federation, inside), changed)
    plan = declared.privacy
    assert plan is not None and isinstance(plan.mechanism, ClientMechanism)
    ran = _silent(plan, plan.mechanism) if noise_off else plan
    work = Work(replace(declared, privacy=ran))
    shared = _shared(work)
    if int(shared.sum()) < canaries:
        raise ScenarioError(
            f"--canaries {canaries}: the model has {int(shared.sum()):,} values that leave a client; give fewer"
        )
    watch = _Watch(work, plan, Directions(shared, canaries, scenario.seed), first)
    work.algorithm = watch.algorithm
    strategy = AlgorithmStrategy(work)
    watch.clip_after = lambda: strategy.clip
    ledger = Ledger(plan, declared.identity)
    rounds = train(work, strategy, ledger, progress)
    return OneRun(
        title=scenario.title,
        level="client",
        audited=f"{protected(plan)}; {first:,} clients and {canaries} canaries",
        mechanism=mechanism(ran),
        claim=ledger.spent(delta).largest,
        delta=delta,
        noise_off=noise_off,
        rounds=rounds,
        releases=watch.releases,
        evidence=watch.evidence.numpy(),
        inside=inside,
    )


def _with_its_noise(scenario: Scenario, plan: Plan, delta: float, more: float) -> Scenario:
    """The scenario at the audit's delta for `more` times its clients, under its noise, limits and share of a cohort."""
    if scenario.adversary is not None:
        raise ScenarioError(f"{scenario.origin}: adversary: an audit attacks by itself; leave it out")
    changes = {"privacy.client.noise_multiplier": plan.noise_multiplier, "privacy.client.delta": delta, "stop": {}}
    if scenario.cohort.size is not None:
        changes["cohort.size"] = round(more * scenario.cohort.size)
    if plan.max_participations is not None:
        changes["privacy.client.max_participations"] = plan.max_participations
    return scenario.changed(changes)


def _silent(plan: Plan, how: ClientMechanism) -> Plan:
    """The plan without noise on updates, nor on the bits of an adaptive clip."""
    adaptive = replace(how.adaptive, bit_noise=0.0, update_noise=0.0) if how.adaptive is not None else None
    return replace(plan, noise_multiplier=0.0, mechanism=replace(how, adaptive=adaptive))


def _shared(work: Work) -> Tensor:
    """[D] bool: parameters that leave their clients."""
    if work.leaving is None:
        return torch.ones(work.layout.size, dtype=torch.bool)
    return work.leaving[: work.layout.size]


class _Watch:
    """Has canaries upload, and adds up what each round's release says of them.

    Attributes:
        algorithm: the job's, with both.
        evidence: [m].
        releases: seen so far.
        clip_after: the clip of the next round, where it follows the updates.
    """

    def __init__(self, work: Work, plan: Plan, directions: Directions, first: int) -> None:
        """For canaries whose numbers start at `first`."""
        assert isinstance(plan.mechanism, ClientMechanism)
        clients = work.job.federation.clients
        self.evidence = torch.zeros(clients - first, dtype=torch.float64)
        self.releases = 0
        self.clip_after: Callable[[], float | None] = lambda: None
        self.algorithm = self._with_canaries(work.algorithm)
        self._directions, self._first = directions, first
        self._length, self._clip = _LENGTH * plan.clip, plan.clip
        self._divisor, self._rate = plan.mechanism.size, plan.mechanism.size / clients
        self._shared = _shared(work)

    def _with_canaries(self, algorithm: Algorithm) -> Algorithm:
        def client(local: Local) -> Upload:
            if local.number < self._first:
                return algorithm.client(local)
            vector = self._length * self._directions.of(int(local.number) - self._first, local.round)
            update = vector.to(local.received.dtype)
            extra = {name: torch.zeros_like(update) for name in algorithm.extra}
            return Upload(update, extra=extra, state=local.state)

        def server(before: Server, combined: Combined) -> Server:
            self._see(combined.update, before.round)
            return algorithm.server(before, combined)

        return replace(algorithm, client=client, server=server)

    def _see(self, estimate: Tensor, round: int) -> None:
        released = estimate.double() * (self._divisor / self._clip)
        projections = self._directions.projections(released, round)
        variance = float(released[self._shared].square().mean())
        self.evidence += client_evidence(projections, self._rate, variance)
        self.releases += 1
        self._clip = self.clip_after() or self._clip
