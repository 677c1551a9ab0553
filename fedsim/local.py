"""One client's work in one round: train on its own rows, or measure a model on them.

`Work` lives in a worker and does the work of any client, one after another, on one model that lies on flat
vectors. What a client half of `strategies/` sees is `LocalClient`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from fedsim import seeds
from fedsim.algorithm import Batch, Coordinates, Correction, LossTerm, Trained, Upload, Vectors, initial
from fedsim.data.federation import Rows
from fedsim.errors import ClientError, FedsimError, one_line
from fedsim.job import Job, personal_mask
from fedsim.metrics import Statistics
from fedsim.optimizers import effective_steps, learning_rate, make_optimizer
from fedsim.parameters import FlatModule, Weights, from_record, is_finite
from fedsim.privacy.batches import poisson_batch
from fedsim.problem import evaluate
from fedsim.signals import time_limit
from fedsim.states import State


class Received(NamedTuple):
    """What the server sent: the model, and vectors of the algorithm by name."""

    weights: Weights
    shared: Vectors


class Contribution(NamedTuple):
    """What a client sends back.

    Attributes:
        vector: [D + E + extras] update, change of floating buffers, extras in the algorithm's order.
        scalars: the algorithm's scalars.
        state: the client's new state; it does not leave the client.
        norm: Euclidean norm of `vector`; infinite where its square is.
        loss: mean training loss over the steps.
        steps: optimiser steps taken.
    """

    vector: Tensor
    scalars: dict[str, float]
    state: State
    norm: float
    loss: float
    steps: int


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


class Work:
    """Does any client's work, in this process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.train_settings = job.scenario.train
        self.federation = job.federation
        self.problem = job.build_problem()
        self.algorithm = job.build_algorithm()
        plain = job.build_model()
        self.private = _private_twin(plain, job.model_title) if job.privacy is not None else None
        self.plain = FlatModule(plain)
        self.layout = self.plain.layout
        self.initial = Weights(self.plain.vector, self.plain.buffers).clone()
        pattern = self.algorithm.personal
        self.personal = personal_mask(self.layout, pattern) if pattern is not None else None
        self._latest: tuple[ArrayRecord, Weights] | None = None

    def bytes_down(self, training: bool) -> int:
        """Bytes of the arrays that a real network would carry to a client."""
        shared = len(self.algorithm.shared) * self.layout.size if training else 0
        return (self.layout.size + self.layout.buffer_size + shared) * self.initial.vector.element_size()

    @property
    def bytes_up(self) -> int:
        """Bytes of the arrays in a client's contribution."""
        return self.contribution_size * self.initial.vector.element_size()

    @property
    def contribution_size(self) -> int:
        """D + E + extras, the length of a client's contribution."""
        return self.layout.size * (1 + len(self.algorithm.extra)) + self.layout.buffer_size

    def received(self, record: ArrayRecord) -> Weights:
        """The flat vectors of a model as it was sent; decoded once for all clients that got the same record."""
        if self._latest is None or self._latest[0] is not record:
            self._latest = record, from_record(self.layout, record)
        return self._latest[1]

    def train(
        self, number: int, round: int, received: Received, state: State | None, steps: list[Step] | None = None
    ) -> Contribution:
        """One client's round.

        Args:
            number: the client.
            round: from 1.
            received: model and shared vectors.
            state: the client's own vectors, None before its first accepted round.
            steps: gets every step that is taken, also up to a failure; the same bits, a little slower.

        Draws from the global generators (dropout) are seeded here; `seeds.preserved` keeps the caller's.

        Raises:
            ClientError: names round and client; whatever went wrong in the client's work.
        """
        try:
            with self.limited():
                return self._train(number, round, received, state, steps)
        except FedsimError as error:
            raise ClientError(f"round {round}, client {number}: {error}") from error
        except Exception as error:
            raise ClientError(f"round {round}, client {number}: {one_line(error)}") from error

    @contextmanager
    def limited(self) -> Iterator[None]:
        """One client's work: its time limit, and models that are in order whatever ends it."""
        try:
            with time_limit(self.job.scenario.cohort.client_timeout, "cohort.client_timeout"):
                yield
        except Exception:
            for flat in filter(None, (self.plain, self.private)):
                with suppress(RuntimeError):  # a model that has changed its parameters' type stays as it is
                    flat.reattach()
            raise

    def _train(
        self, number: int, round: int, received: Received, state: State | None, steps: list[Step] | None
    ) -> Contribution:
        start = received.weights.vector
        own = {name: vector.clone() for name, vector in (state or self._first_state()).items()}
        if self.personal is not None:
            start = start.clone()
            start[self.personal] = own["personal"]
        client = LocalClient(self, number, round, start, received, own, steps)
        untouched = start._version
        seeds.seed_globals(self.job.scenario.seed, "train", round, number)
        upload = self.algorithm.client(client)
        if start._version != untouched:  # the next client of the chunk reads the same memory
            raise ClientError("the strategy's client half changed local.received in place; compute a new vector")
        self._check_shapes(upload)
        kept = dict(upload.state)
        update = upload.update
        if self.personal is not None:
            kept["personal"] = (start + update)[self.personal]
            update = update.masked_fill(self.personal, 0.0)
        buffers = client.buffers if upload.buffers is None else upload.buffers
        vector = self._packed(upload._replace(update=update), self._change(received.weights.buffers, buffers))
        norm = math.sqrt(float(vector @ vector))
        if not (math.isfinite(norm) or is_finite(vector)):
            raise ClientError(f"the update is not finite after {client.steps} steps. {client.advice}")
        scalars = {name: float(value) for name, value in upload.scalars.items()}
        return Contribution(vector, scalars, kept, norm, client.mean_loss, client.steps)

    def _check_shapes(self, upload: Upload) -> None:
        """A vector of another shape would be broadcast into the cohort's sum."""
        vectors = {"update": upload.update, **{f"extra {name!r}": upload.extra[name] for name in self.algorithm.extra}}
        for name, vector in vectors.items():
            if vector.shape != (self.layout.size,):
                raise ClientError(f"the strategy's {name} has shape {list(vector.shape)}, not [{self.layout.size}]")

    def _change(self, before: Tensor, after: Tensor) -> Tensor:
        """[E] by which floating buffers changed; none under privacy, which covers clipped gradients alone.

        An unchanged value counts as 0 even where it is infinite (a mask).
        """
        if self.private is not None:
            return torch.zeros_like(before)
        return torch.where(after == before, torch.zeros_like(before), after - before)

    def _first_state(self) -> State:
        first = initial(self.algorithm.client_state, self.initial.vector, self.federation.clients)
        if self.personal is not None:
            first["personal"] = self.initial.vector[self.personal]
        return first

    def _packed(self, upload: Upload, buffers: Tensor) -> Tensor:
        """[D + E + extras] one vector of all that is summed."""
        extras = [upload.extra[name] for name in self.algorithm.extra]
        return torch.cat([upload.update, buffers, *extras]) if extras or len(buffers) else upload.update

    def evaluate(self, weights: Weights, rows: Rows, what: str) -> Statistics:
        """Additive statistics of a model on rows.

        Raises:
            ClientError: starts with `what`, the rows' name for people; the model fails on them.
        """
        self.plain.load(weights)
        try:
            return evaluate(self.plain.module, self.problem, rows.x, rows.y, self.job.scenario.evaluate.batch_size)
        except Exception as error:
            raise ClientError(f"{what}: evaluation failed: {one_line(error)}") from error


@dataclass
class LocalClient:
    """One client in one round, as its client half sees it (`algorithm.Local`)."""

    work: Work
    number: int
    round: int
    received: Tensor
    message: Received
    state: Vectors
    observed: list[Step] | None = None

    def __post_init__(self) -> None:
        data = self.work.federation.rows(self.number, "train")
        problem = self.work.problem
        self.shared = self.message.shared
        self.rows = len(data.x)
        self.steps = 0
        self._data = Batch(problem.inputs(data.x), problem.targets(data.y))
        self._losses_noted: list[float] = []
        self._passes = 0
        self.buffers = self.message.weights.buffers.clone()

    @property
    def mean_loss(self) -> float:
        """Mean over steps of the batch's mean loss; empty Poisson batches have none."""
        noted = self._losses_noted
        return reduce(add, noted, 0.0) / len(noted) if noted else math.nan  # `sum` rounds otherwise from Python 3.12 on

    @property
    def advice(self) -> str:
        """What to change when numbers are not finite."""
        rate = self.work.train_settings.learning_rate
        return f"Lower train.learning_rate ({rate:g}) or set train.clip."

    def loss(self, params: Tensor) -> Tensor:
        """Mean loss [] on the train rows; refused under example-level privacy."""
        if self.work.private is not None:
            raise ClientError("the loss on a client's rows is not covered by privacy.example")
        self.work.plain.load(Weights(params, self.buffers))
        with torch.no_grad():
            output = self.work.plain.module(self._data.inputs.clone())  # a model may work in place
            return self.work.problem.losses(output, self._data.targets).mean()

    def train(
        self,
        start: Tensor,
        *,
        correct: Correction | None = None,
        at: Callable[[Tensor], Tensor] | None = None,
        loss_term: LossTerm | None = None,
        trains: Coordinates = "all",
        epochs: int | None = None,
    ) -> Trained:
        """See `algorithm.Local.train`."""
        settings = self.work.train_settings
        flat = self.work.private or self.work.plain
        self._begin(flat, start)
        rate = learning_rate(settings, self.round, self.work.job.scenario.rounds)
        fixed = self._fixed(trains)
        plain = settings.plain and self.work.private is None and correct is None and at is None and fixed is None
        if plain and self.observed is None:
            params, steps = flat.vector, self._descend(flat, rate, loss_term, epochs)
        else:
            gradients = self._private_gradients if self.work.private is not None else self._gradients
            params, steps = self._walk(flat, start, rate, gradients(flat, loss_term, epochs), correct, at, fixed)
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
        settings = self.work.train_settings
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

    def _descend(self, flat: FlatModule, rate: float, loss_term: LossTerm | None, epochs: int | None) -> int:
        """What `_walk` does for plain SGD, to the bit, without gathering the gradient first."""
        steps = 0
        for loss in self._losses(flat, loss_term, epochs):
            steps += 1
            flat.descend(loss, rate)
        return steps

    def _begin(self, flat: FlatModule, start: Tensor) -> None:
        self._passes += 1
        if self.work.private is not None and self._passes > 1:
            raise ClientError("a second private pass over the rows is not charged; train once a round")
        flat.load(Weights(start, self.message.weights.buffers))
        if not flat.module.training:
            flat.module.train()

    def _fixed(self, trains: Coordinates) -> Tensor | None:
        """[D] bool: coordinates that must not move."""
        if trains == "all":
            return None
        personal = self.work.personal
        if personal is None:
            raise ClientError(f"trains={trains!r} needs a strategy with a personal pattern")
        return personal if trains == "shared" else ~personal

    def _gradients(self, flat: FlatModule, loss_term: LossTerm | None, epochs: int | None) -> Iterator[Tensor]:
        """Every step's gradient [D] of the batch's mean loss, at what `flat` then holds."""
        for loss in self._losses(flat, loss_term, epochs):
            yield flat.differentiate(loss)

    def _losses(self, flat: FlatModule, loss_term: LossTerm | None, epochs: int | None) -> Iterator[Tensor]:
        """Every batch's mean loss [], at what `flat` then holds."""
        mean_loss = self.work.problem.mean_loss
        for batch in self._batches(epochs):
            loss = mean_loss(flat.module(batch.inputs), batch.targets)
            if loss_term is not None:
                loss = loss + loss_term(flat.module, batch).mean()
            self._note(loss.item())
            yield loss

    def _private_gradients(self, flat: FlatModule, loss_term: LossTerm | None, epochs: int | None) -> Iterator[Tensor]:
        """Every step's clipped, summed and noised gradient [D] of a Poisson batch."""
        from fedsim.privacy.example import clipped_gradient_sum, forget, noisy_gradient

        if epochs is not None:
            raise ClientError("privacy.example charges the scenario's epochs; the strategy asks for its own")
        plan = self.work.job.privacy
        assert plan is not None
        seed, round, number = self.work.job.scenario.seed, self.round, self.number
        rate, divisor = float(plan.rates[number]), float(plan.divisors[number])
        draws = seeds.numpy_generator(seed, "poisson batches", round, number)
        noise = seeds.numpy_generator(seed, "gradient noise", round, number)
        forget(flat)
        for _ in range(int(plan.steps[number])):
            rows = torch.from_numpy(poisson_batch(self.rows, rate, draws))
            total = torch.zeros_like(flat.gradient)
            if len(rows):
                losses = self._batch_losses(flat, Batch(*(part[rows] for part in self._data)), loss_term)
                self._note(float(losses.detach().mean()))
                total = clipped_gradient_sum(flat, losses, plan.max_grad_norm)
            yield noisy_gradient(total, plan.noise_multiplier, plan.max_grad_norm, divisor, noise)

    def _batch_losses(self, flat: FlatModule, batch: Batch, loss_term: LossTerm | None) -> Tensor:
        losses = self.work.problem.losses(flat.module(batch.inputs), batch.targets)
        return losses if loss_term is None else losses + loss_term(flat.module, batch)

    def _note(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise ClientError(f"the loss is not finite in step {len(self._losses_noted) + 1}. {self.advice}")
        self._losses_noted.append(loss)

    def _batches(self, epochs: int | None) -> Iterator[Batch]:
        """Batches of rows in an order of this round and client: each epoch is permuted and cut."""
        settings = self.work.train_settings
        size = settings.batch_size
        limit = settings.steps if epochs is None and settings.steps else None
        wanted = limit or (epochs or settings.epochs or 1) * -(-self.rows // size)
        purpose = "batches" if self._passes == 1 else f"batches of pass {self._passes}"
        order = seeds.numpy_generator(self.work.job.scenario.seed, purpose, self.round, self.number)
        taken = 0
        while taken < wanted:
            rows = torch.from_numpy(order.permutation(self.rows))
            inputs, targets = self._data.inputs[rows], self._data.targets[rows]
            for start in range(0, self.rows, size):
                if taken == wanted:
                    break
                taken += 1
                yield Batch(inputs[start : start + size], targets[start : start + size])


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside the block, wherever bits matter: more would bracket sums otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _private_twin(plain: nn.Module, name: str) -> FlatModule:
    from fedsim.privacy.example import private_module  # Opacus takes seconds to import

    return private_module(plain, name)
