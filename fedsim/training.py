"""One client while it trains: what its client half in `strategies/` sees, and the loop over batches that it calls."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import seeds
from fedsim.adversaries import Adversary
from fedsim.algorithm import Batch, Coordinates, Correction, LossTerm, Trained, Vectors
from fedsim.composition import Masks
from fedsim.errors import ClientError, NotFiniteError
from fedsim.job import Job
from fedsim.optimizers import effective_steps, learning_rate, make_optimizer
from fedsim.parameters import FlatModule, Weights
from fedsim.privacy.batches import declared_units, poisson_batch, rows_of, steps_of_pass
from fedsim.privacy.plan import ExampleMechanism, Plan
from fedsim.problem import Problem, evaluating


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
        private: its twin with per-example gradients, where privacy is asked for.
        personal: coordinates that stay with their client.
        adversary: what attackers do.
        frozen: models to compare with, made when first asked for.
    """

    job: Job
    problem: Problem
    plain: FlatModule
    private: FlatModule | None
    personal: Masks | None
    adversary: Adversary | None
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
        data = self.work.job.federation.rows(self.number, "train")
        problem = self.work.problem
        self.rows = len(data.x)
        self.steps = 0
        self._data = self._trained_on(Batch(problem.inputs(data.x), problem.targets(data.y)))
        self._losses_noted: list[float] = []
        self._passes = self._frozen = self._private_steps = 0
        self.buffers = self.first_buffers.clone()

    def _trained_on(self, data: Batch) -> Batch:
        """The client's rows, or what the adversary makes of them."""
        adversary, job = self.work.adversary, self.work.job
        if adversary is None or adversary.rows is None or self.number not in job.attackers:
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
            output = self.work.plain.module(self._data.inputs.clone())  # a model may work in place
            return self.work.problem.losses(output, self._data.targets).mean()

    def data(self) -> Batch:
        """All train rows; refused under example-level privacy."""
        if self.work.private is not None:
            raise ClientError("what a strategy reads off a client's rows is not covered by privacy.example")
        return self._data

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
        flat = self.work.private or self.work.plain
        self._begin(flat, start)
        rate = learning_rate(settings, self.round, self.work.job.scenario.rounds)
        fixed = self._fixed(trains)
        plain = settings.plain and self.work.private is None and correct is None and at is None and fixed is None
        if plain and self.observed is None:
            params, steps = flat.vector, self._descend(flat, rate, loss_term, self._batches(epochs, whole))
        else:
            gradients = self._gradients(flat, loss_term, epochs, whole)
            params, steps = self._walk(flat, start, rate, gradients, correct, at, fixed)
        flat.check()
        self.steps += steps
        self.buffers = flat.buffers.clone()
        return Trained(params, steps, rate * effective_steps(steps, settings.momentum), self.buffers)

    def _walk(
        self,
        flat: FlatModule,
        start: Tensor,
        rate: float,
        gradients: Iterator[Tensor],
        correct: Correction | None,
        at: Callable[[Tensor], Tensor] | None,
        fixed: Tensor | None,
    ) -> tuple[Tensor, int]:
        """Optimiser steps on the flat vector: correct, hold fixed coordinates, clip, step."""
        settings = self.work.job.scenario.train
        params = flat.vector if at is None else start.clone()
        optimizer = make_optimizer(settings, params, rate)
        if at is not None:
            flat.vector.copy_(at(params))
        steps, observed, known = 0, self.observed, len(self._losses_noted)
        for gradient in gradients:
            steps += 1
            step = correct(gradient, params) if correct is not None else gradient
            if fixed is not None:
                step = step.masked_fill(fixed, 0.0)
            if settings.clip is not None:
                step = step * min(1.0, settings.clip / max(float(step.norm()), 1e-12))
            if observed is not None:
                loss = next(iter(self._losses_noted[known:]), None)
                observed.append(Step(self._passes, loss, float(step.norm()), rate))
                known = len(self._losses_noted)
            params.grad = step
            optimizer.step()
            if fixed is not None:  # weight decay moves them too
                params[fixed] = start[fixed]
            if at is not None:
                flat.vector.copy_(at(params))
        return params, steps

    def _descend(self, flat: FlatModule, rate: float, loss_term: LossTerm | None, batches: Iterable[Batch]) -> int:
        """What `_walk` does for plain SGD, to the bit, without gathering the gradient first."""
        steps = 0
        for loss in self._losses(flat, loss_term, batches):
            steps += 1
            flat.descend(loss, rate)
        return steps

    def _begin(self, flat: FlatModule, start: Tensor) -> None:
        self._passes += 1
        flat.load(Weights(start, self.first_buffers))
        if not flat.module.training:
            flat.module.train()

    def _fixed(self, trains: Coordinates) -> Tensor | None:
        """[D] bool: coordinates that must not move."""
        if trains == "all":
            return None
        personal = self.work.personal
        if personal is None:
            raise ClientError(f"trains={trains!r} needs a strategy with a personal pattern")
        return personal.parameters if trains == "shared" else ~personal.parameters

    def _gradients(
        self, flat: FlatModule, loss_term: LossTerm | None, epochs: int | None, whole: bool
    ) -> Iterator[Tensor]:
        """Every step's gradient [D], private or of the batch's mean loss, at what `flat` then holds."""
        if self.work.private is None:
            losses = self._losses(flat, loss_term, self._batches(epochs, whole))
            return map(flat.differentiate, losses)
        if whole:
            raise ClientError("privacy.example charges steps on Poisson batches; the strategy asks for one on all rows")
        return self._private_gradients(flat, loss_term, epochs)

    def _losses(self, flat: FlatModule, loss_term: LossTerm | None, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """Every batch's mean loss [], at what `flat` then holds."""
        mean_loss = self.work.problem.mean_loss
        for batch in batches:
            loss = mean_loss(flat.module(batch.inputs), batch.targets)
            if loss_term is not None:
                loss = loss + loss_term(flat.module, batch).mean()
            self._note(loss.item())
            yield loss

    def _private_gradients(self, flat: FlatModule, loss_term: LossTerm | None, epochs: int | None) -> Iterator[Tensor]:
        """Every step's clipped, summed and noised gradient [D] of a Poisson batch."""
        from fedsim.privacy.example import clipped_gradient_sum, forget, noisy_gradient

        plan, number = self.work.job.privacy, self.number
        assert plan is not None and isinstance(plan.mechanism, ExampleMechanism)
        mechanism, train = plan.mechanism, self.work.job.scenario.train
        rate, divisor = float(plan.rates[number]), float(mechanism.divisors[number])
        declared = declared_units(rate, divisor)
        units = self.work.job.federation.units(number) if mechanism.grouped else None
        count = self.rows if units is None else int(units.max(initial=-1)) + 1
        per_layer = mechanism.clipping == "per-layer"
        draws, noise = self._draws("poisson batches"), self._draws("gradient noise")
        forget(flat)
        for _ in range(steps_of_pass(declared, train.batch_size, epochs, train.epochs or 1, train.steps)):
            self._charge(plan)
            batch, owners = self._rows_of(poisson_batch(count, rate, draws), units)
            total = torch.zeros_like(flat.gradient)
            if len(batch.targets):
                losses = self._batch_losses(flat, batch, loss_term)
                if len(known := (found := losses.detach())[found.isfinite()]):
                    self._note(float(known.mean()))
                total = clipped_gradient_sum(flat, losses, plan.clip, owners=owners, per_layer=per_layer)
            yield noisy_gradient(total, plan.noise_multiplier, plan.clip, divisor, noise)

    def _rows_of(self, drawn: np.ndarray, units: np.ndarray | None) -> tuple[Batch, Tensor | None]:
        """The rows of drawn units, and whose each is; None where every row is a unit."""
        rows, owners = (drawn, None) if units is None else rows_of(drawn, units)
        batch = Batch(*(part[torch.from_numpy(rows)] for part in self._data))
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

    def _draws(self, purpose: str) -> np.random.Generator:
        """The generator of one purpose, this round, client and pass."""
        named = purpose if self._passes == 1 else f"{purpose} of pass {self._passes}"
        return seeds.numpy_generator(self.work.job.scenario.seed, named, self.round, self.number)

    def _batch_losses(self, flat: FlatModule, batch: Batch, loss_term: LossTerm | None) -> Tensor:
        losses = self.work.problem.losses(flat.module(batch.inputs), batch.targets)
        return losses if loss_term is None else losses + loss_term(flat.module, batch)

    def _note(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise NotFiniteError(f"the loss is not finite in step {len(self._losses_noted) + 1}. {self.advice}")
        self._losses_noted.append(loss)

    def _batches(self, epochs: int | None, whole: bool) -> Iterator[Batch]:
        """Batches of rows in an order of this round and client: each epoch is permuted and cut."""
        if whole:
            yield self._data
            return
        job, size = self.work.job, self.work.job.scenario.train.batch_size
        wanted = job.local_steps(self.number) if epochs is None else epochs * -(-self.rows // size)
        order = self._draws("batches")
        taken = 0
        while taken < wanted:
            rows = torch.from_numpy(order.permutation(self.rows))
            inputs, targets = self._data.inputs[rows], self._data.targets[rows]
            for start in range(0, self.rows, size):
                if taken == wanted:
                    break
                taken += 1
                yield Batch(inputs[start : start + size], targets[start : start + size])
