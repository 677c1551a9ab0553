"""Gradients as products are autograd's own, whatever a model does with its weights."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fedsim.model import Known, make_model
from fedsim.parameters import FlatModule
from fedsim.products import Gradients, Product

WIDTH = 192
"""Of square weights: large enough for a product."""


def reference(module: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:
    """The flat gradient [D] by `backward()`, on a copy."""
    twin = copy.deepcopy(module)
    loss(twin).backward()  # type: ignore[no-untyped-call]
    parts = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parts])


def assert_same(module: nn.Module, loss: Callable[[nn.Module], Tensor], tolerance: float) -> None:
    """The flat gradient, and a step of descent, differ from the reference by at most that share of its norm."""
    expected = reference(module, loss)
    flat = FlatModule(copy.deepcopy(module))
    most = tolerance * expected.norm()
    flat.gradient.fill_(torch.nan)  # what is not written would be seen
    assert (flat.differentiate(loss(flat.module)) - expected).norm() <= most
    before = flat.vector.clone()
    flat.descend(flat.gradients(loss(flat.module)), 1.0)
    assert (before - flat.vector - expected).norm() <= most + torch.finfo(before.dtype).eps * before.norm()
    flat.check()


MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...], int, Any]] = {
    "mlp": ({"preset": "2nn"}, (1, 14, 14), 10, "classification"),
    "cnn": ({"preset": "mcmahan"}, (1, 8, 8), 10, "classification"),
    "lstm": ({"preset": "128-128"}, (9,), 256, "next-token"),
    "transformer": ({"width": 128, "layers": 1}, (9,), 256, "next-token"),
}


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_gradients_of_autograd(name: str, kind: torch.dtype, tolerance: float) -> None:
    given, shape, classes, task = MODELS[name]
    module = make_model(name, given, Known(shape, classes, task), Path(), seed=3).to(kind)
    draws = torch.Generator().manual_seed(1)
    tokens = task == "next-token"
    x = torch.randint(0, 256, (5, *shape), generator=draws) if tokens else torch.rand(5, *shape, generator=draws)
    y = torch.randint(0, classes, (5, *shape) if tokens else (5,), generator=draws)
    x = x if tokens else x.to(kind)
    assert products_of(module, lambda net: net(x).sum()) > 0
    assert_same(module, lambda net: functional.cross_entropy(net(x).flatten(0, -2), y.flatten()), tolerance)


def products_of(module: nn.Module, loss: Callable[[nn.Module], Tensor]) -> int:
    """How many weights of a module have their gradient as a product."""
    gradients = Gradients([parameter for parameter in module.parameters() if parameter.requires_grad])
    return sum(isinstance(gradient, Product) for gradient in gradients(loss(module)))


class Net(nn.Module):
    """Three layers of which the tests do as they like."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first, self.second, self.third = (nn.Linear(WIDTH, WIDTH, bias).double() for _ in range(3))


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def tied(net: Any) -> Any:
    return functional.linear(net.second(net.first(rows(4)).tanh()), net.first.weight)


def tied_to_an_embedding(net: Any) -> Any:
    return net.second(functional.embedding(torch.tensor([3, 1, 3]), net.first.weight)) + net.first(rows(3))


def called_twice(net: Any) -> Any:
    return net.second(net.first(net.first(rows(4)).tanh()))


def in_place(net: Any) -> Any:
    return net.third(net.second(net.first(rows(4)).relu_()).relu_())


def a_weight_among_values(net: Any) -> Any:
    return net.second(net.first(rows(4))) + net.first.weight.sum() * net.third(rows(4))


def transposed_once(net: Any) -> Any:
    across = net.first.weight.t()
    return torch.addmm(net.first.bias, rows(4), across) + 2 * across[:4]


def scaled(net: Any) -> Any:
    return net.second(torch.addmm(net.first.bias, rows(4), net.first.weight.t(), alpha=2.0, beta=0.5))


def from_the_left(net: Any) -> Any:
    return net.second(rows(4) @ net.first.weight)


def by_itself(net: Any) -> Any:
    return net.second(net.first.weight @ net.first.weight.t())


def unused(net: Any) -> Any:
    net.third(rows(4))
    return net.second(rows(4))


def cut_off(net: Any) -> Any:
    return net.second(net.first(rows(4)).detach()) + 0 * net.third(rows(4))


def frozen(net: Any) -> Any:
    net.first.requires_grad_(False)
    return net.second(net.first(rows(4)).tanh())


def penalised(net: Any) -> Any:
    """A gradient of gradients: of the outputs with respect to the rows."""
    x = rows(4).requires_grad_()
    output = net.second(net.first(x).tanh())
    (slope,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    return output + slope.square()


def recomputed(net: Any) -> Any:
    inner = nn.Sequential(net.first, nn.Tanh(), net.second, nn.Tanh())
    return net.third(checkpoint(inner, rows(4), use_reentrant=False))


def hooked(net: Any) -> Any:
    if not net.first.weight._backward_hooks:
        net.first.weight.register_hook(lambda gradient: gradient * 3)
    return net.second(net.first(rows(4)).tanh())


def turned_on_the_way(net: Any) -> Any:
    """As gradients are reversed for adversarial training, or clipped between layers."""
    first, second = net.first(rows(4)), net.second(net.third(rows(4)))
    first.register_hook(lambda gradient: -2 * gradient)
    second.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
    second.grad_fn.register_prehook(lambda gradients: (3 * gradients[0],))
    return net.third(first.tanh()) + second


USES: dict[str, tuple[Callable[[Any], Tensor], int]] = {
    "rows": (lambda net: net.third(net.second(net.first(rows(4)).tanh())), 3),
    "rows of sequences": (lambda net: net.second(net.first(rows(2, 3)).tanh()), 2),
    "sequences out of order": (lambda net: net.second(net.first(rows(3, 2).transpose(0, 1)).tanh()), 2),
    "four dimensions": (lambda net: net.second(net.first(rows(2, 3, 2)).tanh()), 2),
    "one row": (lambda net: net.second(net.first(rows()).tanh()), 2),
    "no row": (lambda net: net.second(net.first(rows(4))).sum() + net.third(rows(0)).sum(), 3),
    "tied": (tied, 2),
    "tied to an embedding": (tied_to_an_embedding, 1),
    "called twice": (called_twice, 2),
    "in place": (in_place, 3),
    "a weight among values": (a_weight_among_values, 2),
    "transposed once": (transposed_once, 0),
    "scaled": (scaled, 1),
    "from the left": (from_the_left, 1),
    "by itself": (by_itself, 1),
    "unused": (unused, 1),
    "cut off": (cut_off, 2),
    "frozen": (frozen, 1),
    "penalised": (penalised, 0),
    "recomputed": (recomputed, 3),
    "hooked": (hooked, 1),
    "turned on the way": (turned_on_the_way, 3),
}


@pytest.mark.parametrize("use", USES)
def test_other_uses_of_a_weight_are_counted(use: str) -> None:
    """A product that stood for part of a gradient would be a wrong step that nobody sees."""
    output, products = USES[use]
    module = Net()
    output(module)  # what a use changes in the module is then there
    assert products_of(module, lambda net: output(net).square().sum()) == products
    assert_same(module, lambda net: output(net).square().sum(), 1e-12)


def test_layers_without_bias() -> None:
    module = Net(bias=False)
    assert products_of(module, lambda net: called_twice(net).sum()) == 2
    for use in (called_twice, turned_on_the_way):
        assert_same(module, lambda net, use=use: use(net).square().sum(), 1e-12)  # type: ignore[misc]


def test_a_loss_may_be_of_another_type_than_the_parameters() -> None:
    """A strategy's term can make it so; each gradient is of its parameter's type all the same."""
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2))
    assert_same(net, lambda net: net(rows(3).float()).double().square().sum(), 1e-6)


STEPS: dict[str, Callable[[Tensor, nn.Linear], Tensor]] = {
    "layer": lambda x, layer: layer(x),
    "functional": lambda x, layer: functional.linear(x, layer.weight),
    "product": lambda x, layer: x @ layer.weight.t(),
    "left": lambda x, layer: x @ layer.weight,
    "in place": lambda x, layer: layer(x).relu_(),
    "residual": lambda x, layer: x + layer(x),
    "norm": lambda x, layer: x * layer.weight.square().mean(),
    "bias": lambda x, layer: x * layer.bias,
    "cut": lambda x, layer: x + layer(x.detach()),
}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 2)), min_size=1, max_size=6))
def test_any_chain_of_uses(chain: list[tuple[str, int]]) -> None:
    def loss(net: Any) -> Tensor:
        x, layers = rows(3), (net.first, net.second, net.third)
        for step, layer in chain:
            x = STEPS[step](x, layers[layer])
        return x.tanh().sum()

    assert_same(Net(), loss, 1e-11)


def test_a_step_leaves_nothing_behind() -> None:
    """The graph is freed, and a second step on another batch knows nothing of the first."""
    flat, fresh = FlatModule(Net()), Net()
    flat.module.third(rows(4))  # type: ignore[operator]
    flat.differentiate(tied(flat.module).sum())
    loss = tied(flat.module).sum()
    first = flat.differentiate(loss).clone()
    assert torch.allclose(first, reference(fresh, lambda net: tied(net).sum()), rtol=1e-12)
    with pytest.raises(RuntimeError, match="second time"):
        flat.differentiate(loss)
