"""A group of steps is its steps, whichever weights it does not write; and which those are."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim import seeds
from fedsim.parameters import FlatModule, views
from fedsim.steps import longest_group, steps_of
from fedsim.tasks.classification import Classification

BATCH, INPUTS, WIDE, RATE = 2, 5, 12, 0.3
LONGEST = WIDE // (2 * BATCH)
CLASSES = Classification(("a", "b", "c"))


class Net(nn.Module):
    """A wide layer on the inputs, and a narrow one."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(INPUTS, WIDE), nn.Linear(WIDE, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.narrow(torch.tanh(self.wide(x)))
        return logits


class InPlace(Net):
    """Without a bias it is the product itself that is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(INPUTS, WIDE, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.narrow(torch.tanh_(self.wide(x)))
        return logits


class Fixed(Net):
    """Inputs scaled by numbers that do not learn."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((INPUTS,), 0.5), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scale)


class Scaled(Net):
    """Inputs scaled by numbers that learn."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(INPUTS))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scale)


class Twice(Net):
    """The layer acts on two things."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.narrow(torch.tanh(self.wide(x)) + self.wide(-2 * x))
        return logits


class Beside(Net):
    """The weight is used otherwise as well."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.wide.weight.square().mean(1)[:3]


class Deep(Net):
    """Rows of rows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, None])[:, 0]


NETS: dict[type[nn.Module], int] = {
    Net: LONGEST,
    InPlace: LONGEST,
    Fixed: LONGEST,
    Scaled: 0,
    Twice: 0,
    Beside: 0,
    Deep: 0,
}
nets = pytest.mark.parametrize("kind", NETS, ids=lambda kind: str(kind.__name__))


def flat_of(kind: type[nn.Module]) -> FlatModule:
    with seeds.scope(1, "net"):
        return FlatModule(kind().double().train())


def rows(steps: int) -> list[Tensor]:
    """Inputs, targets and weights; the last batch is padded."""
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(steps * BATCH, INPUTS, generator=draws, dtype=torch.float64)
    weights = torch.full((steps * BATCH,), 1 / BATCH, dtype=torch.float64)
    weights[-BATCH:] = torch.tensor([1.0] + [0.0] * (BATCH - 1))
    return [x, torch.randint(0, 3, (steps * BATCH,), generator=draws), weights]


@nets
@pytest.mark.parametrize("steps", [1, 2, LONGEST, LONGEST + 1])
def test_a_group_is_its_steps(kind: type[nn.Module], steps: int) -> None:
    flat, (x, y, weights) = flat_of(kind), rows(steps)
    moved, rate = flat.vector.clone(), torch.tensor(RATE, dtype=torch.float64)
    group = steps_of(flat, CLASSES, steps)
    params = views(flat.layout.parameters, moved)
    [losses] = group(*params, *flat.constants.values(), x, y, weights, rate)
    optimizer = torch.optim.SGD([each for each in flat.module.parameters() if each.requires_grad], RATE)
    for step, loss in enumerate(losses):
        own = slice(step * BATCH, (step + 1) * BATCH)
        optimizer.zero_grad(set_to_none=False)
        expected = (functional.cross_entropy(flat.module(x[own]), y[own], reduction="none") * weights[own]).sum()
        torch.autograd.backward(expected)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
        optimizer.step()
    torch.testing.assert_close(moved, flat.vector, rtol=1e-12, atol=1e-14)


@nets
def test_weights_that_act_on_inputs_alone_are_found(kind: type[nn.Module]) -> None:
    """Nothing else of a model may read them, as a group does not write them."""
    flat = flat_of(kind)
    params, fixed = views(flat.layout.parameters, flat.vector.clone()), list(flat.constants.values())
    assert longest_group(flat, CLASSES, params, fixed, rows(1)) == NETS[kind]
