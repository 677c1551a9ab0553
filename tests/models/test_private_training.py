"""The families under example-level privacy: per-example gradients, and learning through clip and noise."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedsim import seeds
from fedsim.local import Received, Work
from fedsim.model import Known, make_model
from fedsim.privacy.example import private_module, unit_gradients
from fedsim.privacy.taps import Taps
from fedsim.problem import evaluate, problem_for
from tests import small

CASES: list[tuple[str, tuple[int, ...], str, dict[str, Any]]] = [
    ("mlp", (1, 8, 8), "classification", {}),
    ("cnn", (1, 8, 8), "classification", {}),
    ("cnn", (3, 8, 8), "classification", {"preset": "32-64-128", "norm": "group"}),
    ("transformer", (7,), "next-token", {"width": 16}),
    ("transformer", (7,), "classification", {"width": 16}),
    ("transformer", (7, 5), "classification", {"width": 16}),
    ("transformer", (1, 8, 8), "classification", {"width": 16}),
]


@pytest.mark.parametrize(("name", "shape", "task", "settings"), CASES)
def test_gradients_are_those_of_opacus_and_of_one_example(
    name: str, shape: tuple[int, ...], task: str, settings: dict[str, Any]
) -> None:
    """In float64, by Opacus' hooks on the unchanged model, with repeated bytes in the text."""
    classes = 256 if task == "next-token" else 4
    plain = make_model(name, settings, Known(shape, classes, task), Path(), seed=1).double()
    problem = problem_for(task, [str(number) for number in range(classes)])
    x, y = _rows(name, shape, task)
    hooked = GradSampleModule(copy.deepcopy(plain), batch_first=True, loss_reduction="sum", strict=True)
    torch.autograd.backward(problem.losses(hooked(x), y).sum())
    sampled = {key.removeprefix("_module."): parameter.grad_sample for key, parameter in hooked.named_parameters()}
    flat = private_module(plain, name)
    found = dict(zip(sampled, unit_gradients(flat, problem.losses(flat.module(x), y), None), strict=True))
    for row in range(len(x)):
        for key, gradient in _gradients(plain, problem.losses(plain(x[row : row + 1]), y[row : row + 1]).sum()).items():
            torch.testing.assert_close(sampled[key][row], gradient, rtol=1e-9, atol=1e-12)
            rows = found[key]
            assert rows is not None
            torch.testing.assert_close(rows.each()[row], gradient.flatten(), rtol=1e-9, atol=1e-12)


def _rows(name: str, shape: tuple[int, ...], task: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = name == "transformer" and len(shape) == 1
    x = torch.randint(4, (5, *shape), generator=generator)
    y = torch.randint(4, (5, *shape) if task == "next-token" else (5,), generator=generator)
    return (x if tokens else torch.randn(5, *shape, generator=generator, dtype=torch.float64)), y


def _gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = dict(module.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


TEXT: small.Changes = {
    "data": {"name": "python-source", "max_bytes": 6000, "window": 21, "partition": {"kind": "iid", "clients": 5}}
}
FAMILIES: dict[str, small.Changes] = {
    "mlp": {"model": {"name": "mlp", "hidden": [16]}},
    "cnn": {"model": {"name": "cnn", "preset": "small", "norm": "group"}},
    "lstm": {**TEXT, "model": {"name": "lstm", "width": 12}},
    "transformer": {**TEXT, "model": {"name": "transformer", "width": 16}},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_the_steps_that_it_is_charged_for(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client's round under clip and noise: finite, and the same to rounding by taps and by Opacus' hooks."""
    noise = {"noise_multiplier": 0.5, "delta": 1e-3, "max_grad_norm": 0.5}
    updates = []
    for tapped in (True, False):
        if not tapped:
            monkeypatch.setattr("fedsim.privacy.layers.known", lambda layer: False)
        work = Work(small.job({**FAMILIES[family], "privacy.example": noise}))
        assert work.private is not None and isinstance(work.private.module.per_row, Taps) == tapped
        done = work.train(1, 1, Received(work.initial, {}), None)
        assert work.job.privacy is not None
        assert done.steps == work.job.privacy.steps[1] > 0
        assert bool(torch.isfinite(done.vector).all())
        updates.append(done.vector)
    assert updates[0].norm() > 0
    assert (updates[0] - updates[1]).norm() <= 1e-4 * updates[0].norm()


def test_the_small_cnn_learns_digits_through_clip_and_noise() -> None:
    """As ten clients of 100 digits at epsilon 8 see it: 60 full steps, clip 1, noise 4.4 each, mean of ten."""
    images, labels = load_digits(return_X_y=True)
    order = seeds.numpy_generator(1, "order").permutation(len(images))
    x, y = (images[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels[order]
    problem = problem_for("classification", [str(digit) for digit in range(10)])
    module = make_model("cnn", {"preset": "small"}, Known((1, 8, 8), 10, "classification"), Path(), seed=1)
    params = {name: parameter.detach() for name, parameter in module.named_parameters()}
    inputs, targets, noise = problem.inputs(x[:1000]), problem.targets(y[:1000]), torch.Generator().manual_seed(1)

    def loss(params: dict[str, Tensor], row: Tensor, target: Tensor) -> Tensor:
        return problem.losses(functional_call(module, params, (row[None],)), target[None])[0]

    for _ in range(60):
        each = vmap(grad(loss), (None, 0, 0))(params, inputs, targets)
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in each.values()]).norm(dim=0)
        for name, gradient in each.items():
            clipped = torch.einsum("b,b...->...", (1 / norms).clamp(max=1), gradient)
            draw = torch.randn(clipped.shape, generator=noise)
            params[name].sub_(2.0 * (clipped + 4.4 * 10**0.5 * draw) / 1000)  # the parameter itself
    assert problem.metrics(evaluate(module, problem, x[1000:], y[1000:]))["accuracy"] > 0.75
