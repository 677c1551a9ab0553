"""Clipped gradient sums of a stack of clients, from every row's gradient."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def clipped_sums(gradients: Sequence[Tensor], real: Tensor, max_grad_norm: float, *, per_layer: bool = False) -> Tensor:
    """For each client the sum over its rows of g_i min(1, C / |g_i|), as `example.clipped_gradient_sum` takes it.

    Norms are accumulated in float64 and factors rounded down, so that a clipped gradient's norm, measured again in
    float64, is at most C (1 + 2^-23). A row whose gradient is not finite counts as none.

    Args:
        gradients: of each parameter, [C, P, d].
        real: [C, P] bool; other rows are padding and count as none.
        max_grad_norm: C > 0.
        per_layer: clip each parameter's part to C / sqrt(number of parameters) instead of the whole.

    Returns:
        [C, D].
    """
    norms = [torch.linalg.vector_norm(each, dim=2, dtype=torch.float64) for each in gradients]
    squares = torch.stack(norms).square()  # [parameters, C, P]
    total = squares.sum(0)
    counts = real & total.isfinite()
    bound = max_grad_norm / math.sqrt(len(gradients)) if per_layer else max_grad_norm
    lengths = (squares if per_layer else total.expand_as(squares)).sqrt()
    factors = _rounded_down((bound / lengths).clamp(max=1), gradients[0].dtype).masked_fill(~counts, 0.0)
    sums = [
        torch.einsum("cp,cpd->cd", factor, each.masked_fill(~counts[..., None], 0.0))
        for factor, each in zip(factors, gradients, strict=True)
    ]
    return torch.cat(sums, dim=1)


def _rounded_down(factors: Tensor, dtype: torch.dtype) -> Tensor:
    """`factors` in `dtype`, never larger, so that rounding cannot lift a clipped norm above the bound."""
    rounded = factors.to(dtype)
    below = torch.nextafter(rounded, torch.zeros_like(rounded))
    return torch.where(rounded.double() > factors, below, rounded)
