"""One client while it trains: what its client half in `strategies/` sees, and the loop over batches that it calls."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import seeds
from fedsim.adversaries import Adversary
from fedsim.algorithm import Batch, Coordinates, Correction, LossTerm, Trained, Vectors
from fedsim.compiled import Program
from fedsim.composition import Masks
from fedsim.errors import ClientError, NotFiniteError
from fedsim.job import Job
from fedsim.optimizers import effective_steps, learning_rate
from fedsim.parameters import FlatModule, Weights
from fedsim.passes import Passes
from fedsim.privacy import example
from fedsim.privacy.batches import declared_units, poisson_batch, rows_of, steps_of_pass
from fedsim.privacy.plan import ExampleMechanism, Plan
from fedsim.problem import Problem, evaluating
from fedsim.products import Gradient
from fedsim.walk import Sloped, walk


class Step(NamedTuple):
    """A step of the local optimiser, as an observer of the client is told.

    Attributes:
        training: which call of `local.train` in the round, from 1.
        loss: mean over the batch, before the step; None for a Poisson batch without rows.
        norm: Euclidean norm of the gradient that the optimiser took: noised, corrected, clipped.
        learning_rate: of the step.
    """

    training: int
    loss: float | None
    norm: float
    learning_rate: float


class Bench(Protocol):
    """What a worker has for whichever client it trains.

    Attributes:
        job: what is trained.
        problem: of the job.
        plain: the model on flat vectors.
        passes: of the plain model.
        private: its twin with per-example gradients, where privacy is asked for.
        program: its compiled step, where `engine.compile` is set.
        personal: coordinates that stay with their client.
        adversary: what attackers do.
        attackers: the clients that follow it.
        frozen: models to compare with, made when first asked for.
    """

    job: Job
    problem: Problem
    plain: FlatModule
    passes: Passes
    private: FlatModule | None
    program: Program | None
    personal: Masks | None
    adversary: Adversary | None
    attackers: frozenset[int]
    frozen: list[FlatModule]


@dataclass
class LocalClient:
    """One client in one round, as its client half sees it (`algorithm.Local`)."""

    work: Bench
    number: int
    round: int
    received: Tensor
    shared: Vectors
    state: Vectors
    first_buffers: Tensor
    observed: list[Step] | None = None

    def __post_init__(self) -> None:
        self.rows = int(self.work.job.federation.train_rows[self.number])
        self.steps = 0
        self._losses_noted: list[float] = []
        self._passes = self._frozen = self._private_steps = 0
        self.buffers = self.first_buffers

    @cached_property
    def trained_on(self) -> Batch:
        """The client's rows, or what the adversary makes of them."""
        adversary, job, problem = self.work.adversary, self.work.job, self.work.problem
        rows = job.federation.rows(self.number, "train")
        data = Batch(problem.inputs(rows.x), problem.targets(rows.y))
        if adversary is None or adversary.rows is None or self.number not in self.work.attackers:
            return data
        generator = seeds.numpy_generator(job.scenario.seed, "attack on rows", 0, self.number)  # each round the same
        return Batch(*adversary.rows(data.inputs, data.targets, generator))

    @property
    def mean_loss(self) -> float:
        """Mean over steps of the batch's mean loss; empty Poisson batches have none."""
        noted = self._losses_noted
        return reduce(add, noted, 0.0) / len(noted) if noted else math.nan  # `sum` rounds otherwise from Python 3.12 on

    @property
    def advice(self) -> str:
        """What to change when numbers are not finite."""
        rate = self.work.job.scenario.train.learning_rate
        return f"Lower train.learning_rate ({rate:g}) or set train.clip."

    def loss(self, params: Tensor) -> Tensor:
        """Mean loss [] on the train rows; refused under example-level privacy."""
        if self.work.private is not None:
            raise ClientError("the loss on a client's rows is not covered by privacy.example")
        self.work.plain.load(Weights(params, self.buffers))
        with torch.no_grad(), evaluating(self.work.plain.module):
            output = self.work.plain.module(self.trained_on.inputs.clone())  # a model may work in place
            return self.work.problem.losses(output, self.trained_on.targets).mean()

    def data(self) -> Batch:
        """All train rows; refused under example-level privacy."""
        if self.work.private is not None:
            raise ClientError("what a strategy reads off a client's rows is not covered by privacy.example")
        return self.trained_on

    def frozen(self, params: Tensor) -> nn.Module:
        """A model with these parameters [D], in evaluation mode, that does not learn, for a loss term."""
        if self._frozen == len(self.work.frozen):
            self.work.frozen.append(FlatModule(copy.deepcopy(self.work.plain.module)))
            self.work.frozen[-1].module.requires_grad_(False)
        flat = self.work.frozen[self._frozen]
        self._frozen += 1
        flat.load(Weights(params, self.first_buffers))
        return flat.module.eval()

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
        settings = self.work.job.scenario.train
        self.begin()
        rate = learning_rate(settings, self.round, self.work.job.scenario.rounds)
        fixed = fixed_coordinates(self.work.personal, trains)
        plain = settings.plain and self.work.private is None and correct is None and at is None and fixed is None
        program, before = self.work.program, self.steps
        if plain and program is not None and program.descends and not (loss_term or whole):
            params = self._descend_compiled(program, start, rate, self._orders(epochs))
            self.buffers = self.first_buffers.clone()  # a compiled model changes none
        else:
            flat = self._loaded(start)
            if plain and program is None:
                params = self._descend(flat, rate, loss_term, self._batches(epochs, whole))
            else:
                slopes = self._slopes(flat, loss_term, epochs, whole)
                observe = self._observer(rate) if self.observed is not None else None
                params = walk(
                    flat.vector, start, slopes, settings, rate, correct=correct, at=at, fixed=fixed, observe=observe
                )
            flat.check()
            self.buffers = flat.buffers.clone()
        steps = self.steps - before
        return Trained(params, steps, rate * effective_steps(steps, settings.momentum), self.buffers)

    def _loaded(self, start: Tensor) -> FlatModule:
        """The model to train, at that vector [D] and with the buffers that were received."""
        flat = self.work.private or self.work.plain
        flat.load(Weights(start, self.first_buffers))
        if not flat.module.training:
            flat.module.train()
        return flat

    def _descend(self, flat: FlatModule, rate: float, loss_term: LossTerm | None, batches: Iterable[Batch]) -> Tensor:
        """What `walk` does for plain SGD, without gathering the gradient first."""
        observe = self._observer(rate) if self.observed is not None else None
        steps = 0
        for gradients in self._gradients(loss_term, batches):
            steps += 1
            flat.descend(gradients, rate, observe)
        self.steps += steps
        return flat.vector

    def _descend_compiled(
        self, program: Program, start: Tensor, rate: float, orders: Iterable[tuple[Tensor, int]]
    ) -> Tensor:
        """Where plain SGD leads [D], by the compiled step."""

        def note(loss: float) -> None:
            self.note(loss)
            self.steps += 1

        observe = self._observer(rate) if self.observed is not None else None
        return program.descend(Weights(start, self.first_buffers), rate, self.trained_on, orders, note, observe)

    def begin(self) -> None:
        """Another pass over the rows begins, with draws of its own."""
        self._passes += 1

    def _observer(self, rate: float) -> Callable[[Tensor], None]:
        """Notes every step for who looks on."""
        known = len(self._losses_noted)

        def observe(gradient: Tensor) -> None:
            nonlocal known
            self.saw(next(iter(self._losses_noted[known:]), None), gradient, rate)
            known = len(self._losses_noted)

        return observe

    def saw(self, loss: float | None, gradient: Tensor, rate: float) -> None:
        """A step, for who looks on: its loss, and the gradient [D] that the optimiser took."""
        if self.observed is not None:
            self.observed.append(Step(self._passes, loss, float(gradient.norm()), rate))

    def _slopes(
        self, flat: FlatModule, loss_term: LossTerm | None, epochs: int | None, whole: bool
    ) -> Iterator[Sloped]:
        """Every step's gradient [D], private or of the batch's mean loss, at what `flat` then holds."""
        gradients: Iterator[Tensor]
        if self.work.program is not None:
            gradients = self._compiled_gradients(self.work.program, flat, loss_term, self._batches(epochs, whole))
        elif self.work.private is None:
            gradients = map(flat.gathered, self._gradients(loss_term, self._batches(epochs, whole)))
        else:
            gradients = self._private_gradients(flat, loss_term, self.drawn(epochs, whole))
        for gradient in gradients:
            self.steps += 1
            yield gradient, None

    def _compiled_gradients(
        self, program: Program, flat: FlatModule, loss_term: LossTerm | None, batches: Iterable[Batch]
    ) -> Iterator[Tensor]:
        """Every batch's gradient [D], by the compiled model, at what `flat` then holds."""
        if loss_term is not None:
            raise ClientError("the strategy adds a term to the loss, which engine.compile cannot; set it to false")
        for batch in batches:
            gradient, loss = program.gradient(Weights(flat.vector, flat.buffers), *batch)
            self.note(loss)
            yield gradient

    def _gradients(self, loss_term: LossTerm | None, batches: Iterable[Batch]) -> Iterator[Sequence[Gradient]]:
        """Every batch's gradients of its mean loss, parameter by parameter, at what the plain model then holds."""
        for batch in batches:
            loss, gradients = self.work.passes(batch, loss_term)
            self.note(loss.item())
            yield gradients

    def _private_gradients(
        self, flat: FlatModule, loss_term: LossTerm | None, drawn: Iterable[np.ndarray]
    ) -> Iterator[Tensor]:
        """Every step's clipped, summed and noised gradient [D] of a Poisson batch."""
        plan, mechanism = self.work.job.privacy, self._mechanism
        assert plan is not None
        units = self.work.job.federation.units(self.number) if mechanism.grouped else None
        per_layer = mechanism.clipping == "per-layer"
        release = self.release()
        example.forget(flat)
        for picked in drawn:
            batch, owners = self._rows_of(picked, units)
            if not len(batch.targets):
                yield release(flat.gradient.zero_())
                continue
            losses = self._batch_losses(flat, batch, loss_term)
            self._note_rows(losses.detach())
            yield release(example.clipped_gradient_sum(flat, losses, plan.clip, owners=owners, per_layer=per_layer))

    def release(self) -> Callable[[Tensor], Tensor]:
        """What makes a pass' clipped sums [D] private: noise of this client, and the divisor."""
        plan, divisor = self.work.job.privacy, float(self._mechanism.divisors[self.number])
        assert plan is not None
        noise = self._coins("gradient noise")
        return lambda total: example.noisy_gradient(total, plan.noise_multiplier, plan.clip, divisor, noise)

    def drawn(self, epochs: int | None, whole: bool) -> Iterator[np.ndarray]:
        """The units of every private step's Poisson batch, each charged before it is drawn."""
        if whole:
            raise ClientError("privacy.example charges steps on Poisson batches; the strategy asks for one on all rows")
        plan, mechanism, train = self.work.job.privacy, self._mechanism, self.work.job.scenario.train
        assert plan is not None
        rate = float(plan.rates[self.number])
        declared = declared_units(rate, float(mechanism.divisors[self.number]))
        count = self.rows
        if mechanism.grouped:
            count = int(self.work.job.federation.units(self.number).max(initial=-1)) + 1
        draw = self._coins("poisson batches")
        for _ in range(steps_of_pass(declared, train.batch_size, epochs, train.epochs or 1, train.steps)):
            self._charge(plan)
            yield poisson_batch(count, rate, draw)

    @property
    def _mechanism(self) -> ExampleMechanism:
        plan = self.work.job.privacy
        assert plan is not None and isinstance(plan.mechanism, ExampleMechanism)
        return plan.mechanism

    def _rows_of(self, drawn: np.ndarray, units: np.ndarray | None) -> tuple[Batch, Tensor | None]:
        """The rows of drawn units, and whose each is; None where every row is a unit."""
        rows, owners = (drawn, None) if units is None else rows_of(drawn, units)
        index = torch.from_numpy(rows)
        batch = Batch(*(part.index_select(0, index) for part in self.trained_on))  # faster than part[index]
        return batch, None if owners is None else torch.from_numpy(owners)

    def _charge(self, plan: Plan) -> None:
        """Refuse a private step for which the client is not charged, before it is taken."""
        charged = int(plan.steps[self.number])
        if self._private_steps == charged:
            raise ClientError(
                f"private step {charged + 1} of a round that is charged for {charged}: the strategy makes a pass over "
                "the rows that its private_passes do not name"
            )
        self._private_steps += 1

    def _coins(self, purpose: str) -> seeds.Draw:
        """The mechanism's coins of one purpose, this round, client and pass."""
        return self.work.job.coins(self.work.job.scenario.seed, self._named(purpose), self.round, self.number)

    def _named(self, purpose: str) -> str:
        return purpose if self._passes == 1 else f"{purpose} of pass {self._passes}"

    def _batch_losses(self, flat: FlatModule, batch: Batch, loss_term: LossTerm | None) -> Tensor:
        losses = self.work.problem.losses(flat.module(batch.inputs), batch.targets)
        return losses if loss_term is None else losses + loss_term(flat.module, batch)

    def _note_rows(self, losses: Tensor) -> None:
        """A private step's loss: the mean over its rows whose loss is finite."""
        mean = float(losses.mean())
        if not math.isfinite(mean):
            if not len(known := losses[losses.isfinite()]):
                return
            mean = float(known.mean())
        self.note(mean)

    def note(self, loss: float) -> None:
        """A step's loss, which must be finite."""
        if not math.isfinite(loss):
            raise NotFiniteError(f"the loss is not finite in step {len(self._losses_noted) + 1}. {self.advice}")
        self._losses_noted.append(loss)

    def _batches(self, epochs: int | None, whole: bool) -> Iterator[Batch]:
        """Batches of rows in an order of this round and client: each epoch is permuted and cut."""
        if whole:
            yield self.trained_on
            return
        size = self.work.job.scenario.train.batch_size
        for order, batches in self._orders(epochs):
            inputs, targets = (part.index_select(0, order) for part in self.trained_on)  # faster than part[order]
            for start in range(0, batches * size, size):
                yield Batch(inputs[start : start + size], targets[start : start + size])

    def picks(self, epochs: int | None, whole: bool) -> Iterator[Tensor]:
        """The rows of every step's batch, by number; the batches are those of `train`."""
        if whole:
            yield torch.arange(self.rows)
            return
        for order, batches in self._orders(epochs):
            yield from torch.split(order, self.work.job.scenario.train.batch_size)[:batches]

    def _orders(self, epochs: int | None) -> Iterator[tuple[Tensor, int]]:
        """For every epoch an order of the rows [n], and how many batches are cut of it."""
        job, size = self.work.job, self.work.job.scenario.train.batch_size
        left = job.local_steps(self.number) if epochs is None else epochs * -(-self.rows // size)
        order = seeds.numpy_generator(job.scenario.seed, self._named("batches"), self.round, self.number)
        while left > 0:
            batches = min(left, -(-self.rows // size))
            yield torch.from_numpy(order.permutation(self.rows)), batches
            left -= batches


def fixed_coordinates(personal: Masks | None, trains: Coordinates) -> Tensor | None:
    """[D] bool: coordinates that must not move; None where all may."""
    if trains == "all":
        return None
    if personal is None:
        raise ClientError(f"trains={trains!r} needs a strategy with a personal pattern")
    return personal.parameters if trains == "shared" else ~personal.parameters
