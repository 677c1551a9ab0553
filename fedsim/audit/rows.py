"""One-run audit of example level: does the private step hide whether a row is there?

Steinke, Nasr and Jagielski 2023: many canaries at once, each in or out by a coin of its own, then a guess on each from
what one training released. The adversary is the server that sees every private step's gradient, as the accountant
assumes; the mechanism is the scenario's own, clients' loop and all, with the scenario's noise.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import seeds
from fedsim.algorithm import Algorithm, Batch, Coordinates, Correction, Local, LossTerm, Trained, Upload, Vectors
from fedsim.audit.canaries import Audited, audited_rows, canary_rows, coins, with_those
from fedsim.audit.evidence import row_evidence
from fedsim.audit.loop import train
from fedsim.audit.one_run import OneRun
from fedsim.data.corpus import Folders
from fedsim.data.federation import Rows
from fedsim.errors import ScenarioError, named
from fedsim.flower import AlgorithmStrategy
from fedsim.job import Job, prepare, prepare_on
from fedsim.local import Work
from fedsim.parameters import FlatModule, Weights
from fedsim.privacy.batches import declared_units, rows_of
from fedsim.privacy.example import private_module, unit_gradients
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.plan import ExampleMechanism, Plan
from fedsim.privacy.statement import mechanism, protected
from fedsim.problem import evaluating
from fedsim.progress import Progress
from fedsim.scenario import Scenario

_ABSENT = 64  # rows like canaries that are in no data
_OTHERS = 256  # units from which the rest of a batch is estimated
_FEWEST_OTHERS = 32
_MOST_VALUES = 1 << 28  # of all gradients that are held at once, 1 GB

Seen = Callable[[Tensor, Tensor, LossTerm | None], None]
"""(a step's released gradient [D], the point [D] where it was taken, the strategy's own term of the loss)."""


def audit_rows(
    scenario: Scenario, folders: Folders, canaries: int, delta: float, progress: Progress, *, noise_off: bool = False
) -> OneRun:
    """Audit `[privacy.example]`.

    Args:
        scenario: at example level.
        folders: where data files are looked for.
        canaries: m.
        delta: of claim and bound.
        progress: is told what takes a while.
        noise_off: run the mechanism without its noise.

    Raises:
        FedsimError: the scenario cannot be run, or its data are too few.
    """
    progress.phase("loading the data")
    planned = prepare(scenario, folders)
    assert planned.privacy is not None
    seed = scenario.seed
    made = canary_rows(planned.federation, canaries + _ABSENT, seed, lambda x: _logits(planned, x))
    drawn, absent = (Rows(made.x[part], made.y[part]) for part in (slice(canaries), slice(canaries, None)))
    with named(scenario.origin):
        audited = audited_rows(planned.federation, drawn)
    declared = prepare_on(audited.federation, _alone(scenario, planned.privacy, delta))
    plan, inside = declared.privacy, coins(seed, canaries)
    assert plan is not None
    ran = replace(plan, noise_multiplier=0.0) if noise_off else plan
    work = Work(replace(declared, federation=with_those(audited, inside), privacy=ran))
    watch = _Watch(declared, ran, audited, absent, seed)
    work.algorithm = _watched(work.algorithm, watch.step)
    ledger = Ledger(plan, declared.identity)
    rounds = train(work, AlgorithmStrategy(work), ledger, progress)
    return OneRun(
        title=scenario.title,
        level="example",
        audited=f"{protected(plan)}; {audited.others:,} rows of {audited.owner} and {canaries} canaries",
        mechanism=mechanism(ran),
        claim=ledger.spent(delta).largest,
        delta=delta,
        noise_off=noise_off,
        rounds=rounds,
        releases=watch.steps,
        evidence=watch.evidence.numpy(),
        inside=inside,
    )


def _alone(scenario: Scenario, plan: Plan, delta: float) -> Scenario:
    """The scenario for one client that takes part as often as one may, under the noise that the scenario has."""
    if scenario.adversary is not None:
        raise ScenarioError(f"{scenario.origin}: adversary: an audit attacks by itself; leave it out")
    rounds = min(scenario.rounds, plan.most)
    changes = {
        "rounds": rounds,
        "cohort": {},
        "privacy.example.noise_multiplier": plan.noise_multiplier,
        "privacy.example.max_participations": rounds,
        "privacy.example.delta": delta,
        "stop": {},
    }
    return scenario.changed(changes)


def _logits(job: Job, x: np.ndarray) -> np.ndarray:
    """[n, classes] what the first model says of inputs."""
    module = job.build_model()
    with torch.no_grad(), evaluating(module):
        return np.asarray(module(job.build_problem().inputs(x)))


class _Watch:
    """Adds up what each private step says of each canary.

    Attributes:
        evidence: [m].
        steps: seen so far.
    """

    def __init__(self, job: Job, plan: Plan, audited: Audited, absent: Rows, seed: int) -> None:
        assert isinstance(plan.mechanism, ExampleMechanism)
        self.evidence = torch.zeros(len(audited.canaries.x), dtype=torch.float64)
        self.steps = 0
        self._plan, self._mechanism, self._seed = plan, plan.mechanism, seed
        self._rate, self._divisor = float(plan.rates[0]), float(plan.mechanism.divisors[0])
        self._units = declared_units(self._rate, self._divisor) - len(self.evidence)
        self._problem = job.build_problem()
        # A twin of the audit's own: nothing that it does touches the model that is audited.
        self._flat = private_module(job.build_model(), job.model_title)
        self._buffers = self._flat.buffers.clone()
        self._canaries = self._batch(*audited.canaries)
        self._absent = self._batch(*absent)
        self._others, self._owners = self._sample(audited)

    def step(self, released: Tensor, at: Tensor, loss_term: LossTerm | None) -> None:
        """One private step's gradient, released at a point."""
        self.steps += 1
        with seeds.scope(self._seed, "audit", self.steps):  # dropout draws from the global generators
            self._flat.load(Weights(at, self._buffers))
            canaries, absent = (self._gradients(rows, None, loss_term) for rows in (self._canaries, self._absent))
            others = self._gradients(self._others, self._owners, loss_term)
        total = released * self._divisor
        self.evidence += row_evidence(total, canaries, absent, others, self._units, self._rate, self._plan.clip)

    def _sample(self, audited: Audited) -> tuple[Batch, Tensor | None]:
        """Rows of some units besides the canaries, and whose each is where rows are grouped."""
        held = _MOST_VALUES // self._flat.layout.size - len(self.evidence) - _ABSENT
        count = min(self._units, _OTHERS, max(_FEWEST_OTHERS, held))
        drawn = np.sort(seeds.numpy_generator(self._seed, "audit others").choice(self._units, count, replace=False))
        federation = audited.federation
        if not self._mechanism.grouped:
            return self._batch(federation.x[drawn], federation.y[drawn]), None
        rows, owners = rows_of(drawn, federation.units(0)[: audited.others])
        return self._batch(federation.x[rows], federation.y[rows]), torch.from_numpy(owners)

    def _batch(self, x: np.ndarray, y: np.ndarray) -> Batch:
        return Batch(self._problem.inputs(x), self._problem.targets(y))

    def _gradients(self, batch: Batch, owners: Tensor | None, loss_term: LossTerm | None) -> Tensor:
        """[U, D] each unit's clipped gradient at what the twin then holds; zero where it is not finite."""
        losses = self._problem.losses(self._flat.module(batch.inputs), batch.targets)
        if loss_term is not None:
            losses = losses + loss_term(self._flat.module, batch)
        parts = _of_units(self._flat, losses, owners)
        per_layer = self._mechanism.clipping == "per-layer"
        bound = self._plan.clip / math.sqrt(len(parts)) if per_layer else self._plan.clip
        norms = torch.stack([part.norm(dim=1) for part in parts])
        factors = (bound / (norms if per_layer else norms.norm(dim=0, keepdim=True))).clamp(max=1).expand_as(norms)
        clipped = [part * factor[:, None] for part, factor in zip(parts, factors, strict=True)]
        return torch.cat(clipped, dim=1).nan_to_num(0.0, 0.0, 0.0)


def _of_units(flat: FlatModule, losses: Tensor, owners: Tensor | None) -> list[Tensor]:
    """[U, d] of every parameter each unit's gradient; zeros where it was not used."""
    units = len(losses) if owners is None else int(owners.max()) + 1
    found = zip(flat.layout.parameters, unit_gradients(flat, losses, owners), strict=True)
    return [
        losses.new_zeros(units, slot.stop - slot.start) if gradients is None else gradients.each()
        for slot, gradients in found
    ]


class _Watched:
    """A client as its client half sees it, each of whose steps is seen from outside."""

    def __init__(self, local: Local, seen: Seen) -> None:
        self._local, self._seen = local, seen
        self.received: Tensor = local.received
        self.shared: Vectors = local.shared
        self.state: Vectors = local.state
        self.number, self.rows, self.round = local.number, local.rows, local.round

    def train(
        self,
        start: Tensor,
        *,
        correct: Correction | None = None,
        at: Callable[[Tensor], Tensor] | None = None,
        loss_term: LossTerm | None = None,
        trains: Coordinates = "all",
        epochs: int | None = None,
        whole: bool = False,
    ) -> Trained:
        """See `algorithm.Local.train`."""

        def corrected(gradient: Tensor, params: Tensor) -> Tensor:
            self._seen(gradient, params if at is None else at(params), loss_term)
            return gradient if correct is None else correct(gradient, params)

        return self._local.train(
            start, correct=corrected, at=at, loss_term=loss_term, trains=trains, epochs=epochs, whole=whole
        )

    def loss(self, params: Tensor) -> Tensor:
        """See `algorithm.Local.loss`."""
        return self._local.loss(params)

    def data(self) -> Batch:
        """See `algorithm.Local.data`."""
        return self._local.data()

    def frozen(self, params: Tensor) -> nn.Module:
        """See `algorithm.Local.frozen`."""
        return self._local.frozen(params)


def _watched(algorithm: Algorithm, seen: Seen) -> Algorithm:
    """The algorithm, whose private steps are seen as the server could see them."""

    def client(local: Local) -> Upload:
        return algorithm.client(_Watched(local, seen))

    return replace(algorithm, client=client)
