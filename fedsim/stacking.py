"""The clients of a stack while they train together: what their client half sees, and the batches that it trains on.

Every client draws from its own generators what it would draw alone, in the same order: its batches, and its noise. A
batch is padded to the largest of the stack by rows that weigh nothing, and a client that has no step left is held.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.algorithm import Batch, Coordinates, Correction, LossTerm, Scalar, Trained, Upload, Vectors
from fedsim.errors import ClientError, NotFiniteError
from fedsim.functional import StackedModel, Tensors
from fedsim.optimizers import effective_steps, learning_rate
from fedsim.privacy.stacked import clipped_sums
from fedsim.training import LocalClient, fixed_coordinates
from fedsim.walk import Sloped, walk


class Slot(NamedTuple):
    """A place in a stack; a silent one has a client's draws and shapes, but rows of zeros, and never moves."""

    client: LocalClient
    silent: bool


class _Padded(NamedTuple):
    """A step's rows: `batch` [C, P, ...], and which are `real` [C, P]."""

    batch: Batch
    real: Tensor


class _Noted(NamedTuple):
    """A step's losses [C], and of which clients there is one to note."""

    losses: Tensor
    known: Sequence[bool]


class Stack:
    """C clients in one round, as their client half sees them (`algorithm.Local`)."""

    def __init__(self, slots: Sequence[Slot], model: StackedModel) -> None:
        """Everybody's received model, vectors and rows, side by side."""
        self._slots, self._model = slots, model
        self._clients = [slot.client for slot in slots]
        first = self._clients[0]
        self._work, self.round = first.work, first.round
        there = model.device
        self.received = _side_by_side([client.received for client in self._clients], there)
        self.shared: Vectors = {
            name: vector.to(there).expand(len(slots), *vector.shape) for name, vector in first.shared.items()
        }
        self.state: Vectors = {
            name: torch.stack([client.state[name] for client in self._clients]).to(there) for name in first.state
        }
        self.number = torch.tensor([[client.number] for client in self._clients])
        self.rows = torch.tensor([[client.rows] for client in self._clients])
        self.failures: dict[int, NotFiniteError] = {}
        self._first_buffers = _side_by_side([client.first_buffers for client in self._clients], there)
        self._buffers = model.buffers(self._first_buffers)
        inputs, targets, self._starts = _gathered(slots)
        self._inputs, self._targets = inputs.to(there), targets.to(there)
        self._frozen: dict[str, Tensor] = {}
        self._places = 0
        self._noted: list[_Noted] = []
        self._moved: Sequence[bool] = ()

    def loss(self, params: Tensor) -> Tensor:
        """See `algorithm.Local`."""
        self._refuse("the loss on a client's rows")
        rows, real = self._rows([torch.arange(client.rows) for client in self._clients], int(self.rows.max()))
        losses = self._model.losses(params, self._buffers, rows)
        return torch.where(real, losses, 0.0).sum(1, keepdim=True) / self.rows

    def data(self) -> Batch:
        """See `algorithm.Local`."""
        raise ClientError("the strategy's client half reads the rows of its client by itself")

    def frozen(self, params: Tensor) -> nn.Module:
        """See `algorithm.Local`."""
        module, values = self._model.frozen(self._places, params, self._first_buffers)
        self._frozen |= values
        self._places += 1
        return module

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
        """See `algorithm.Local`."""
        if start.shape != self.received.shape:
            raise ClientError(f"train starts from a vector {list(start.shape)}; of a stack {list(self.received.shape)}")
        scenario, before = self._work.job.scenario, [client.steps for client in self._clients]
        rate = learning_rate(scenario.train, self.round, scenario.rounds)
        for client in self._clients:
            client.begin()
        point = start.clone(memory_format=torch.contiguous_format)
        self._buffers = self._model.buffers(self._first_buffers)
        fixed = fixed_coordinates(self._work.personal, trains)
        fixed = None if fixed is None else fixed.to(point.device)
        if self._work.private is None:
            slopes = self._slopes(point, loss_term, epochs, whole)
        else:
            slopes = self._private_slopes(point, loss_term, epochs, whole)
        params = walk(
            point,
            start,
            slopes,
            scenario.train,
            rate,
            correct=correct,
            at=at,
            fixed=fixed,
            observe=lambda gradient: self._observe(gradient, rate),
        )
        self._note()
        floats = self._model.floats(self._buffers, point)
        for client, own in zip(self._clients, floats.cpu(), strict=True):
            client.buffers = own
        steps = [client.steps - first for client, first in zip(self._clients, before, strict=True)]
        sizes = [[rate * effective_steps(count, scenario.train.momentum)] for count in steps]
        return Trained(params, torch.tensor(steps)[:, None], point.new_tensor(sizes), floats)

    def apart(self, upload: Upload, place: int) -> Upload:
        """What one of the clients uploads; raises why it has failed."""
        if place in self.failures:
            raise self.failures[place]

        def own(value: Tensor) -> Tensor:
            if value.ndim == 0 or len(value) != len(self._slots):
                raise ClientError(f"the strategy's client half gave {list(value.shape)} for {len(self._slots)} clients")
            return value[place].cpu()

        def number(value: Scalar) -> Scalar:
            return own(value) if isinstance(value, Tensor) else value

        return Upload(
            own(upload.update),
            {name: own(vector) for name, vector in upload.extra.items()},
            {name: number(value) for name, value in upload.scalars.items()},
            {name: own(value).clone() for name, value in upload.state.items()},  # a view would keep the whole stack
            None if upload.buffers is None else own(upload.buffers),
        )

    def _slopes(self, point: Tensor, term: LossTerm | None, epochs: int | None, whole: bool) -> Iterator[Sloped]:
        """Every step's gradient [C, D] of the batches' mean losses, at what `point` then holds."""
        most = int(self.rows.max())
        size = most if whole else min(self._work.job.scenario.train.batch_size, most)
        for picks in zip_longest(*(client.picks(epochs, whole) for client in self._clients)):
            held = self._stepping(picks)
            batch, real = self._rows(picks, size)
            weights = real.to(point.dtype) / real.sum(1, keepdim=True).clamp(min=1)
            done = self._model.step(point, self._buffers, batch, weights, term, self._frozen)
            self._buffers = done.buffers if held is None else _where(held, self._buffers, done.buffers)
            self._noted.append(_Noted(done.losses, self._moved))
            yield done.gradient, held

    def _private_slopes(
        self, point: Tensor, term: LossTerm | None, epochs: int | None, whole: bool
    ) -> Iterator[Sloped]:
        """Every step's clipped, summed and noised gradients [C, D] of Poisson batches, each padded to the largest."""
        plan, asked = self._work.job.privacy, self._work.job.scenario.privacy.example
        assert plan is not None and asked is not None
        releases = [client.release() for client in self._clients]
        for drawn in zip_longest(*(client.drawn(epochs, whole) for client in self._clients)):
            picks = [None if each is None else torch.from_numpy(each) for each in drawn]
            held = self._stepping(picks)
            total, size = torch.zeros_like(point), max(0 if each is None else len(each) for each in picks)
            losses, noted = point.new_zeros(len(point)), [False] * len(picks)
            if size:
                batch, real = self._rows(picks, size)
                gradients, each = self._model.row_gradients(point, self._buffers, batch, term)
                total = clipped_sums(gradients, real, plan.clip, per_layer=asked.clipping == "per-layer")
                known = real & each.isfinite()
                losses = torch.where(known, each, 0.0).sum(1) / known.sum(1).clamp(min=1)
                noted = known.any(1).tolist()
            self._noted.append(_Noted(losses, noted))
            noised = [
                release(own) if moves else own
                for release, own, moves in zip(releases, total.cpu(), self._moved, strict=True)
            ]
            yield torch.stack(noised).to(point.device), held

    def _stepping(self, picks: Sequence[Tensor | None]) -> Tensor | None:
        """Count a step of those who have one left; [C] bool, who is held, None for nobody."""
        for client, own in zip(self._clients, picks, strict=True):
            client.steps += own is not None
        self._moved = [own is not None and not slot.silent for slot, own in zip(self._slots, picks, strict=True)]
        return None if all(self._moved) else ~torch.tensor(self._moved)

    def _rows(self, picks: Sequence[Tensor | None], size: int) -> _Padded:
        """The picked rows of every client, padded to `size` by its first pick, or its first row where it has none.

        Padding is of the client's own rows, so that it is finite where they are.
        """
        index = torch.empty(len(picks), size, dtype=torch.int64)
        real = torch.zeros(len(picks), size, dtype=torch.bool)
        for place, (own, start) in enumerate(zip(picks, self._starts, strict=True)):
            count = 0 if own is None else len(own)
            if own is not None and count:
                index[place, :count] = own + start
                index[place, count:] = index[place, 0]
            else:
                index[place] = start
            real[place, :count] = not self._slots[place].silent
        return _Padded(Batch(self._inputs[index], self._targets[index]), real)

    def _observe(self, gradient: Tensor, rate: float) -> None:
        """Note a step for those on whom somebody looks."""
        watched = [(place, client) for place, client in enumerate(self._clients) if client.observed is not None]
        if not watched:
            return
        losses, known = self._noted[-1]
        self._note()
        for place, client in watched:
            if self._moved[place] and place not in self.failures:
                client.saw(float(losses[place]) if known[place] else None, gradient[place], rate)

    def _note(self) -> None:
        """Have clients note their losses; one that is not finite is that client's failure, and nobody else's."""
        for losses, known in self._noted:
            for place, loss in enumerate(losses.tolist()):
                if known[place] and place not in self.failures:
                    try:
                        self._clients[place].note(loss)
                    except NotFiniteError as error:
                        self.failures[place] = error
        self._noted.clear()

    def _refuse(self, what: str) -> None:
        if self._work.private is not None:
            raise ClientError(f"{what} is not covered by privacy.example")


def _gathered(slots: Sequence[Slot]) -> tuple[Tensor, Tensor, list[int]]:
    """All slots' inputs and targets, one after another, and where each slot's begin."""
    data = [_zeros(slot.client) if slot.silent else slot.client.trained_on for slot in slots]
    counts = [len(each.targets) for each in data]
    starts = np.cumsum([0, *counts[:-1]]).tolist()
    return torch.cat([each.inputs for each in data]), torch.cat([each.targets for each in data]), starts


def _zeros(client: LocalClient) -> Batch:
    """Rows of zeros in the place of a client's, which are never looked at."""
    rows, problem = client.work.job.federation.rows(client.number, "train"), client.work.problem
    return Batch(torch.zeros_like(problem.inputs(rows.x)), torch.zeros_like(problem.targets(rows.y)))


def _side_by_side(vectors: Sequence[Tensor], device: torch.device) -> Tensor:
    """[C, D]; one copy alone where all are one."""
    first = vectors[0]
    if all(vector is first for vector in vectors):
        return first.to(device).expand(len(vectors), *first.shape)
    return torch.stack(list(vectors)).to(device)


def _where(held: Tensor, before: Tensors, after: Tensors) -> Tensors:
    """Buffers of which those who are held keep theirs."""
    return {
        name: torch.where(held.view(-1, *[1] * (value.ndim - 1)), before[name], value) for name, value in after.items()
    }
