"""The local optimiser takes the steps of `torch.optim`'s plain code, and gradients pass as they are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.optimizers import make_optimizer
from tests import small

KINDS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
}


def settings(kind: str, decay: float) -> Any:
    name, more = ("sgd", KINDS[kind][1]) if kind == "momentum" else (kind, {})
    changes = {"optimizer": name, "weight_decay": decay, **more}
    return small.scenario({f"train.{key}": value for key, value in changes.items()}).train


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(37,), (3, 37)])
def test_steps_are_those_of_torch(kind: str, decay: float, shape: tuple[int, ...]) -> None:
    """Of one vector and of a stack, whose clients do not feel each other; in float64, since rounding differs."""
    draws = torch.Generator().manual_seed(4)
    start = torch.randn(*shape, generator=draws, dtype=torch.float64)
    gradients: list[Tensor] = [torch.randn(*shape, generator=draws, dtype=torch.float64) for _ in range(6)]
    gradients[3] = torch.ones((), dtype=torch.float64).expand(shape)  # as a correction may leave it
    ours, theirs = start.clone(), start.clone()
    optimizer = make_optimizer(settings(kind, decay), ours, 0.05)
    oracle = KINDS[kind][0]([theirs], lr=0.05, weight_decay=decay, foreach=False, fused=False, **KINDS[kind][1])
    for gradient in gradients:
        before = gradient.clone()
        ours.grad, theirs.grad = gradient, gradient.clone()
        optimizer.step()
        oracle.step()
        assert torch.equal(gradient, before)
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    assert (ours - start).abs().min() > 1e-6
