"""Whether a model's per-example gradients may be relied on, tried with three rows.

A layer's first dimension is taken for the rows. Where it is not (positions looked up once for the whole
batch, time first), or a weight is used outside its layer, the gradients found are wrong and nothing says so. Where
plain code mixes rows (`x - x.mean(0)`), one row moves the gradients of all others and clipping bounds nothing.
So three rows go through one by one, where the gradient found must be autograd's, and together, where each row's
gradient must be what it was alone. And nothing but gradients may carry rows away: values that a forward pass
writes into the model would be sent without noise.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedsim import seeds
from fedsim.errors import ModelError, one_line
from fedsim.privacy.rows import RowGradients
from fedsim.privacy.taps import PerRow

Gradients = Sequence[RowGradients | None]
"""In the order of parameters."""

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def try_rows(module: nn.Module, per_row: PerRow, inputs: tuple[Tensor, ...], name: str) -> None:
    """Try a model on rows of a batch; its gradients are zero afterwards, its values as they were.

    Args:
        module: in training mode, every trainable parameter with a `grad`.
        per_row: what finds its gradients for each row.
        inputs: of one forward pass, [B, ...] each, B >= 1.
        name: of the model, for messages.

    Raises:
        ModelError: a gradient is wrong or depends on other rows, or a forward pass writes into the model.
    """
    with (
        seeds.scope(0, "private trial"),
        torch.enable_grad(),
        _without_dropout(module),
        _unchanged(module, per_row, name),
    ):
        rows = [_three_rows(part) for part in inputs]
        alone = []
        for place in range(3):
            one = [part[place : place + 1] for part in rows]
            found = _found(module, per_row, one, name)
            _refuse_wrong(per_row, _autograds(module, per_row, one), found, name)
            alone.append(_samples(per_row, found, 1))
        together = _samples(per_row, _found(module, per_row, rows, name), 3)
    if together is None or not _same(torch.cat([one for one in alone if one is not None]), together):
        raise ModelError(
            f"model {name!r}: a row's gradient depends on the other rows of its batch, so privacy.example cannot "
            "bound it. Take no mean, sum or order over the batch's dimension, and draw by nn.Dropout only."
        )


def _three_rows(part: Tensor) -> Tensor:
    """[3, ...] the first rows of a batch where these differ, else rows like its first, made of its values."""
    rows, shape = part[:3], (3, *part.shape[1:])
    finite = bool(rows.isfinite().all())
    if finite and len(torch.unique(rows.reshape(len(rows), -1), dim=0)) == 3:
        return rows
    if part.is_floating_point():
        shares = torch.rand(shape, dtype=part.dtype)
        return part[:1] * shares if finite and bool(part[0].any()) else shares
    values = torch.unique(part)
    values = values if len(values) > 1 else torch.arange(int(values[0]) + 1, dtype=part.dtype)
    return values[torch.randint(len(values), shape)]


def _losses(module: nn.Module, rows: Sequence[Tensor]) -> Tensor:
    """[B] the same function of every row's output; a model that draws draws the same each time."""
    with seeds.scope(0, "private trial"):
        try:
            output: Tensor = module(*(part.clone() for part in rows))
        except IndexError as error:  # drawn tokens stand anywhere
            text = "fails on rows whose tokens change places, so its gradients of rows cannot be tried"
            raise ModelError(f"the model {text}: {one_line(error)}") from error
    each = output.reshape(len(rows[0]), -1)
    return (each * torch.cos(torch.arange(each.shape[1], dtype=each.dtype))).sum(1)


def _found(module: nn.Module, per_row: PerRow, rows: Sequence[Tensor], name: str) -> Gradients:
    """What is found of every parameter's gradient for each row."""
    losses = _losses(module, rows)
    try:
        return per_row(losses)
    except (ModelError, RuntimeError) as error:
        raise ModelError(f"model {name!r}: no per-example gradients: {error}") from error


def _autograds(module: nn.Module, per_row: PerRow, rows: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Every parameter's gradient by autograd; None where it was not used."""
    loss = _losses(module, rows).sum()
    try:
        return torch.autograd.grad(loss, list(per_row.parameters.values()), allow_unused=True)
    finally:
        per_row.forget()


def _samples(per_row: PerRow, found: Gradients, rows: int) -> Tensor | None:
    """[rows, D] what was found, zeros where a parameter was not used; None where it is not these rows'."""
    samples = []
    for parameter, gradients in zip(per_row.parameters.values(), found, strict=True):
        if gradients is None:
            samples.append(parameter.new_zeros(rows, parameter.numel()))
        elif (each := _each(gradients, parameter)) is not None and len(each) == rows:
            samples.append(each)
        else:
            return None
    return torch.cat(samples, dim=1)


def _each(gradients: RowGradients, parameter: nn.Parameter) -> Tensor | None:
    """[rows, d] each row's gradient as a clipped sum takes it; None where clipping is told of other norms."""
    each = parameter.new_empty(len(gradients), parameter.numel())
    for row, out in zip(torch.eye(len(gradients), dtype=parameter.dtype), each, strict=True):
        gradients.weighted(row, out)
    norms = torch.linalg.vector_norm(each, dim=1, dtype=torch.float64)
    return each if _same(norms, gradients.norms()) else None


def _refuse_wrong(per_row: PerRow, whole: Sequence[Tensor | None], found: Gradients, name: str) -> None:
    """Name the first parameter whose gradient of a single row is not autograd's."""
    for (key, parameter), expected, gradients in zip(per_row.parameters.items(), whole, found, strict=True):
        if not _is_autograds(expected, gradients, parameter):
            raise ModelError(
                f"model {name!r}: per-example gradients of parameter {key!r} are wrong under privacy.example. "
                "Give every layer the batch as its first dimension, and use a layer's weights only by calling it."
            )


def _is_autograds(whole: Tensor | None, gradients: RowGradients | None, parameter: nn.Parameter) -> bool:
    if whole is None or gradients is None:
        return whole is None or not bool(whole.any())
    each = _each(gradients, parameter)
    return each is not None and _same(whole.flatten()[None], each)


def _same(expected: Tensor, found: Tensor) -> bool:
    """Whether gradients agree to rounding; numbers that are not finite are the client's failure, said elsewhere."""
    if expected.shape != found.shape:
        return False
    if not bool(expected.isfinite().all()):
        return True
    tolerance = 1e-4 * float(expected.abs().max())
    return torch.allclose(found, expected, rtol=1e-3, atol=tolerance)


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block: its draws depend on the size of the batch."""
    layers = [layer for layer in module.modules() if type(layer) in _DROPOUTS and layer.training]
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True


@contextmanager
def _unchanged(module: nn.Module, per_row: PerRow, name: str) -> Iterator[None]:
    """Put every value of the model back after the block; refuse a model that changed a floating one."""
    held = [
        (key, value, value.detach().clone()) for key, value in (*module.named_parameters(), *module.named_buffers())
    ]
    try:
        yield
        for key, value, before in held:
            if value.is_floating_point() and not torch.equal(value, before):
                raise ModelError(
                    f"model {name!r}: a forward pass in training writes what it saw of rows into {key!r}, which "
                    "would be sent without noise under privacy.example. Keep no running statistics."
                )
    finally:
        per_row.forget()
        with torch.no_grad():
            for _, value, before in held:
                if not torch.equal(value, before):
                    value.copy_(before)
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
