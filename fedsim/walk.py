"""The loop over steps of the local optimiser, on one client's vector [D] or on a stack's [C, D]."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fedsim.algorithm import Correction
from fedsim.optimizers import make_optimizer
from fedsim.tables import Train

Sloped = tuple[Tensor, Tensor | None]
"""A gradient, [D] or [C, D], and which slots [C] of a stack take no step (bool); None where all do."""


def walk(
    point: Tensor,
    start: Tensor,
    gradients: Iterable[Sloped],
    settings: Train,
    rate: float,
    *,
    correct: Correction | None = None,
    at: Callable[[Tensor], Tensor] | None = None,
    fixed: Tensor | None = None,
    observe: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Optimiser steps from `start`: correct, hold fixed coordinates, clip, step.

    A slot that takes no step keeps its values and gives a gradient of zero to `correct`. Its steps are a prefix of its
    stack's, so Adam's count of steps is right for every slot that still moves.

    Args:
        point: [D] or [C, D], equal to `start`, where gradients are taken; it is written.
        start: of the same shape, unchanged.
        gradients: each computed when it is asked for, at what `point` holds then.
        settings: of the local optimiser.
        rate: learning rate.
        correct, at: see `algorithm.Local.train`.
        fixed: bool, coordinates that must not move.
        observe: is told every gradient that the optimiser takes.

    Returns:
        Where the steps have led: `point` itself, unless `at` puts it elsewhere.
    """
    params = point if at is None else start.clone()
    optimizer = make_optimizer(settings, params, rate)
    if at is not None:
        point.copy_(at(params))
    for gradient, held in gradients:
        if held is not None:
            gradient[held] = 0.0
        step = correct(gradient, params) if correct is not None else gradient
        if fixed is not None:
            step = step.masked_fill(fixed, 0.0)
        if settings.clip is not None:
            step = _clipped(step, settings.clip)
        if observe is not None:
            observe(step)
        params.grad = step
        if held is None:
            optimizer.step()
        else:
            kept = params[held]
            optimizer.step()
            params[held] = kept
        if fixed is not None:  # weight decay moves them too
            params.copy_(torch.where(fixed, start, params))
        if at is not None:
            point.copy_(at(params))
    return params


def _clipped(step: Tensor, clip: float) -> Tensor:
    """A gradient, or each of a stack's, no longer than `clip`."""
    norms: Tensor = torch.linalg.vector_norm(step, dim=-1, keepdim=True).double()
    return step * (clip / norms.clamp(min=1e-12)).clamp(max=1.0).to(step.dtype)
