"""Steps of plain gradient descent as functions of tensors alone: what `compiled.py` makes libraries of.

A weight W that only ever acts on the inputs themselves, in one linear map X W^T, need not be written by every step of
a group. After steps 1 ... s its product with the next step's rows is

    X_s W_s^T = X_s W_0^T - sum_{j < s} (X_s X_j^T) rate D_j,   D_j the gradient of the product of step j,

so the products with W_0 of all the group's rows are one, the corrections are small, and W is written once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedsim.errors import ModelError
from fedsim.parameters import FlatModule
from fedsim.problem import Problem

_WORTH = 2
"""Outputs of a weight for each row of a group from which on its corrections cost less than it gains, by measurement."""
Computation = Callable[..., tuple[Tensor]]
NOTHING: Mapping[int, Tensor] = {}


def gradient_of(flat: FlatModule, problem: Problem) -> Computation:
    """(outs, params, fixed, inputs, targets, weights) -> loss []: outs = gradient."""
    count = len(flat.layout.parameters)

    def gradient(*tensors: Tensor) -> tuple[Tensor]:
        outs, params, (*fixed, inputs, targets, weights) = (
            tensors[:count],
            tensors[count : 2 * count],
            tensors[2 * count :],
        )
        loss, gradients = _differentiated(flat, problem, params, fixed, (inputs, targets, weights))
        for out, each in zip(outs, gradients, strict=True):
            out.copy_(each)
        return (loss,)

    return gradient


def steps_of(flat: FlatModule, problem: Problem, steps: int) -> Computation:
    """(params, fixed, inputs [S*B, ...], targets [S*B, ...], weights [S*B], rate) -> losses [S]: S steps on params."""
    count = len(flat.layout.parameters)

    def descend(*tensors: Tensor) -> tuple[Tensor]:
        params, (*fixed, inputs, targets, weights, rate) = list(tensors[:count]), tensors[count:]
        batches = list(zip(*(each.chunk(steps) for each in (inputs, targets, weights)), strict=True))
        followed = _followed(flat, problem, params, fixed, batches, rate)
        losses = []
        for batch in batches:
            given = {place: each.product() for place, each in followed.items()}
            loss, gradients = _differentiated(flat, problem, params, fixed, batch, given)
            losses.append(loss)
            for place, each in enumerate(gradients):
                if place in followed:
                    followed[place].push(each)
                else:
                    params[place] = params[place] - rate * each
        for place, weight in followed.items():
            params[place] = weight.moved()
        for param, moved in zip(tensors, params, strict=False):
            param.copy_(moved)
        return (torch.stack(losses),)

    return descend


def longest_group(
    flat: FlatModule, problem: Problem, params: Sequence[Tensor], fixed: Sequence[Tensor], batch: Sequence[Tensor]
) -> int:
    """Steps of the longest group in which some weight need not be written by each; 0 where there is none."""
    rows = _rows_of(flat, problem, params, fixed, batch)
    return max((len(params[place]) // (_WORTH * len(each)) for place, each in rows.items()), default=0)


class _Followed:
    """A weight W [O, I] that acts on known rows, and is not written while they are stepped over."""

    def __init__(self, weight: Tensor, rows: Sequence[Tensor], rate: Tensor) -> None:
        """`rows` [N, I] of each step."""
        self._weight, self._rate, self._rows = weight, rate, torch.cat(list(rows))
        self._products = (self._rows @ weight.t()).chunk(len(rows))
        later, earlier = self._rows[len(rows[0]) :], self._rows[: -len(rows[-1])]
        self._inner = (later @ earlier.t()).chunk(len(rows) - 1)
        self._pushes: list[Tensor] = []

    def product(self) -> Tensor:
        """X W^T [N, O] of the next step's rows, at the weight that steps up to now have led to."""
        step = len(self._pushes)
        if not step:
            return self._products[step]
        pushes = torch.cat(self._pushes)
        return self._products[step] - self._inner[step - 1][:, : len(pushes)] @ pushes

    def push(self, gradient: Tensor) -> None:
        """Take a step along the gradient [N, O] of the last product."""
        self._pushes.append(self._rate * gradient)

    def moved(self) -> Tensor:
        """The weight after all steps."""
        return self._weight - torch.cat(self._pushes).t() @ self._rows


class _Linear(TorchFunctionMode):
    """Notes on which rows each weight acts as a linear map; the product may be given instead."""

    def __init__(self, weights: Sequence[Tensor], given: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._weights, self._given = weights, given
        self.rows: dict[int, list[Tensor]] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See `torch.overrides`."""
        if function is not functional.linear:
            return function(*args, **(kwargs or {}))
        rows, weight, bias = _of_linear(*args, **(kwargs or {}))
        place = next((place for place, each in enumerate(self._weights) if each is weight), None)
        if place is not None:
            self.rows.setdefault(place, []).append(rows)
        if place is None or (product := self._given.get(place)) is None:
            return function(rows, weight, bias)
        return product.clone() if bias is None else product + bias  # new memory: a model may work in place


def _of_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


def _followed(
    flat: FlatModule,
    problem: Problem,
    params: Sequence[Tensor],
    fixed: Sequence[Tensor],
    batches: Sequence[tuple[Tensor, ...]],
    rate: Tensor,
) -> dict[int, _Followed]:
    """The weights that need not be written by every step, by their place among the parameters."""
    if len(batches) == 1:
        return {}
    rows = [_rows_of(flat, problem, params, fixed, batch) for batch in batches]
    found = {}
    for place in rows[0]:
        known = [each[place] for each in rows]
        if _WORTH * sum(map(len, known)) <= len(params[place]):
            found[place] = _Followed(params[place], known, rate)
    return found


def _rows_of(
    flat: FlatModule, problem: Problem, params: Sequence[Tensor], fixed: Sequence[Tensor], batch: Sequence[Tensor]
) -> dict[int, Tensor]:
    """The rows [N, I], by place, on which weights act that act once, and on nothing that other parameters moved."""
    leaves = [param.detach().requires_grad_() for param in params]
    with _Linear(leaves, NOTHING) as seen:
        _loss(flat, problem, leaves, fixed, batch)
    rows = {place: each[0] for place, each in seen.rows.items() if len(each) == 1}
    rows = {place: each for place, each in rows.items() if each.ndim == 2 and not each.requires_grad}
    given = {place: (each @ params[place].t()).detach().requires_grad_() for place, each in rows.items()}
    with _Linear(leaves, given):
        loss = _loss(flat, problem, leaves, fixed, batch)
    used = torch.autograd.grad(loss, leaves, allow_unused=True)
    return {place: each for place, each in rows.items() if used[place] is None}


def _differentiated(
    flat: FlatModule,
    problem: Problem,
    params: Sequence[Tensor],
    fixed: Sequence[Tensor],
    batch: Sequence[Tensor],
    given: Mapping[int, Tensor] = NOTHING,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The rows' weighted loss [] at (params, fixed, batch), and its gradients.

    Where a weight's product is given, by the weight's place, the gradient is that of the product.
    """
    leaves = [param.detach().requires_grad_() for param in params]
    products = {place: each.detach().requires_grad_() for place, each in given.items()}
    with _Linear(leaves, products):
        loss = _loss(flat, problem, leaves, fixed, batch)
    wanted = [products.get(place, leaf) for place, leaf in enumerate(leaves)]
    return loss.detach(), torch.autograd.grad(loss, wanted, materialize_grads=True)


def _loss(
    flat: FlatModule, problem: Problem, params: Sequence[Tensor], fixed: Sequence[Tensor], batch: Sequence[Tensor]
) -> Tensor:
    """Rows' losses, weighted and summed []."""
    inputs, targets, weights = batch
    before = [tensor._version for tensor in fixed]
    slots = *flat.layout.parameters, *flat.layout.buffers
    names = [*(slot.name for slot in slots), *flat.constants]
    with torch.enable_grad():
        output = functional_call(flat.module, dict(zip(names, [*params, *fixed], strict=True)), (inputs,))
        loss = (problem.losses(output, targets) * weights).sum()
    if [tensor._version for tensor in fixed] != before:
        raise ModelError("changes its buffers while it trains")
    return loss
