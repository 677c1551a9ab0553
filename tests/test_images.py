"""Another layout in memory gives the same model, and only a model that can take it is given it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedsim.images import channels_last, prefer_channels_last
from fedsim.models.cnn import cnn


def images(channels: int) -> Tensor:
    return torch.rand(3, channels, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def chain(channels: int) -> nn.Module:
    convolution = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(inplace=True))
    return nn.Sequential(convolution, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5)).double()


def family(channels: int) -> nn.Module:
    return cnn((channels, 8, 8), 5, "classification", channels=(4, 8), dense=16, norm="batch").double()


class Viewing(nn.Module):
    """As in many a tutorial: on images laid out otherwise, `view` raises."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(channels, 4, 3, padding=1), nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.relu(self.convolution(x)).view(len(x), -1))


def viewing(channels: int) -> nn.Module:
    return Viewing(channels).double()


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(module(x).square().sum(), list(module.parameters())))


@pytest.mark.parametrize("make", [chain, family, viewing])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_gives_the_same(make: Any, channels: int) -> None:
    torch.manual_seed(0)
    plain = make(channels)
    other, x = prefer_channels_last(copy.deepcopy(plain)), images(channels)
    assert torch.allclose(other(x), plain(x), rtol=1e-12)
    for found, expected in zip(gradients(other, x), gradients(plain, x), strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("make", "changed"), [(chain, True), (family, True), (viewing, False)])
@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_work_on_the_layout(make: Any, changed: bool, channels: int) -> None:
    """Also for one channel, where torch would take the layouts for the same and choose the slow one."""
    module = prefer_channels_last(make(channels))
    seen: list[tuple[int, ...]] = []
    first = next(part for part in module.modules() if isinstance(part, nn.Conv2d))
    first.register_forward_hook(lambda module, arguments, output: seen.append(output.stride()))
    module(images(channels))
    assert (seen[0][1] == 1) == changed


def test_a_model_of_other_rows_is_left_alone() -> None:
    assert not prefer_channels_last(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)))._forward_pre_hooks


def test_stacked_models_take_it_too() -> None:
    module, x = prefer_channels_last(chain(1)), images(1)
    weights = {name: torch.stack([value, 2 * value]) for name, value in module.state_dict().items()}
    outputs = vmap(lambda values, rows: functional_call(module, values, (rows,)))(weights, torch.stack([x, x]))
    assert torch.allclose(outputs[0], module(x), rtol=1e-12)
    assert torch.equal(channels_last(x), x)
