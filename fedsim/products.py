"""Gradients of parameters, those of linear maps as products of two thin matrices.

The gradient of a weight W [O, I] in y = x W^T is G^T x, where G [N, O] is the gradient of y. Autograd makes a full
matrix of it only for that to be added to the weight; whoever has G and x may add their product straight to where it
belongs. Maps are found in the graph of the loss, before its backward pass. Nothing of the model is replaced: whatever
else it does (tied weights, work in place, gradients of gradients) stands in the graph too, and a weight that is used
in any other way has its gradient from autograd.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import functional

_LARGE = 2**15
"""Values of a weight from which on a product is worth its search in the graph, by measurement."""


class Product(NamedTuple):
    """A weight's gradient [O, I] as `left` [O, N] times `right` [N, I]."""

    left: Tensor
    right: Tensor


Gradient = Tensor | Product | None
"""Of one parameter, which has none where it was not used."""


class Gradients:
    """Differentiates losses with respect to parameters, all of one type.

    Attributes:
        one: the gradient of a loss by itself.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._ends = [get_gradient_edge(parameter) for parameter in parameters]
        sizes = (parameter.numel() if parameter.ndim == 2 else 0 for parameter in parameters)
        self._large = {self._ends[place].node: place for place, size in enumerate(sizes) if size >= _LARGE}
        self.one = torch.ones((), dtype=parameters[0].dtype)

    def __call__(self, loss: Tensor) -> Sequence[Gradient]:
        """Each parameter's gradient of a scalar loss, whose graph is freed."""
        maps = self._maps(loss)
        if not maps:
            return self._differentiated(loss, self._ends)
        hooked: dict[int, Tensor] = {}
        for number, each in enumerate(maps):
            each.output.node.register_prehook(_noting(hooked, number))
        apart = {each.weight for each in maps}
        others = [place for place in range(len(self._ends)) if place not in apart]
        found = self._differentiated(loss, [*(each.output for each in maps), *(self._ends[place] for place in others)])
        gradients: list[Gradient] = [None] * len(self._ends)
        for number, each in enumerate(maps):
            if (gradient := hooked.get(number, found[number])) is not None:
                gradients[each.weight] = _joined(gradients[each.weight], Product(gradient.t(), each.taken))
        for place, whole in zip(others, found[len(maps) :], strict=True):
            gradients[place] = whole
        return gradients

    def _differentiated(self, loss: Tensor, ends: Sequence[GradientEdge]) -> tuple[Tensor | None, ...]:
        """What `torch.autograd.grad` gives, whose checks of its arguments take as long as a small layer."""
        run: Callable[..., tuple[Tensor | None, ...]] = Variable._execution_engine.run_backward
        return run((loss,), (self.one,), False, False, tuple(ends), allow_unreachable=True, accumulate_grad=False)

    def _maps(self, loss: Tensor) -> list["_LinearMap"]:
        """Uses of large weights; of one with a hook, which wants to see its gradient, none."""
        if not self._large or loss.grad_fn is None:
            return []
        return [
            each
            for each in _linear_maps(loss.grad_fn, self._large)
            if not self._parameters[each.weight]._backward_hooks
        ]


def _noting(hooked: dict[int, Tensor], number: int) -> Callable[[Sequence[Tensor | None]], None]:
    """Notes an output's gradient as its map takes it: the model's hooks have changed it, what is asked for may not be.

    Where nothing below a map is asked for, the map is not run, and then hooks come first.
    """

    def note(gradients: Sequence[Tensor | None]) -> None:
        if gradients[0] is not None:
            hooked[number] = gradients[0]

    return note


def _joined(before: Gradient, product: Product) -> Product:
    """The sum of a weight's products so far and another, as one."""
    if not isinstance(before, Product):
        return product
    return Product(torch.cat([before.left, product.left], 1), torch.cat([before.right, product.right]))


class _LinearMap(NamedTuple):
    """A use of a weight: which one, where its output is made, and x [N, I], which it took."""

    weight: int
    output: GradientEdge
    taken: Tensor


def _kinds() -> tuple[type, type, type, type]:
    """Autograd's nodes for a linear map with and without bias, for the weight's transpose in it, and for the weight."""
    weight, one = nn.Parameter(torch.zeros(1, 1)), torch.zeros(1, 1)
    with_bias, without = functional.linear(one, weight, torch.zeros(1)), functional.linear(one, weight)
    nodes = with_bias.grad_fn, without.grad_fn, weight.t().grad_fn, get_gradient_edge(weight).node
    return type(nodes[0]), type(nodes[1]), type(nodes[2]), type(nodes[3])


_WITH_BIAS, _WITHOUT, _TRANSPOSE, _END = _kinds()
_PLACE_OF_WEIGHT = {_WITH_BIAS: 2, _WITHOUT: 1}
"""The last argument of a node, in which it takes its transposed weight."""


def _linear_maps(root: Node, weights: Mapping[Node, int]) -> list[_LinearMap]:
    """All uses of those weights whose every use below `root` is a linear map. `weights` by the nodes where they end."""
    uses: list[tuple[int, Node]] = []
    elsewhere: set[int] = set()  # weights that something else uses too
    waiting, seen = [root], {root}
    for node in waiting:
        arguments = node.next_functions
        if (place := _PLACE_OF_WEIGHT.get(type(node))) is not None:
            weight = _transposed(arguments[place][0], weights)
            if weight is not None and getattr(node, "_saved_alpha", 1) == 1:
                uses.append((weight, node))
                arguments = arguments[:place]
        for child, _ in arguments:
            if child is None or child in seen:
                continue
            if type(child) is not _END:
                seen.add(child)
                waiting.append(child)
            elif child in weights:
                elsewhere.add(weights[child])
    return [_LinearMap(weight, GradientEdge(node, 0), _taken(node)) for weight, node in uses if weight not in elsewhere]


def _transposed(node: Node | None, weights: Mapping[Node, int]) -> int | None:
    """Which weight a node transposes, if it does."""
    if node is None or type(node) is not _TRANSPOSE:
        return None
    ((weight, _),) = node.next_functions
    return None if weight is None else weights.get(weight)


def _taken(node: Node) -> Tensor:
    """x of a linear map, as autograd has kept it for the weight's gradient."""
    saved: Tensor = node._saved_mat1 if type(node) is _WITH_BIAS else node._saved_self  # type: ignore[attr-defined]
    return saved.detach()
