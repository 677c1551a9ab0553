"""Whether a model's per-example gradients may be relied on, tried with three rows.

Opacus takes a layer's first dimension for the rows. Where it is not (positions looked up once for the whole
batch, time first), or a weight is used outside its layer, its gradients are wrong and nothing says so. Where
plain code mixes rows (`x - x.mean(0)`), one row moves the gradients of all others and clipping bounds nothing.
So three rows go through one by one, where Opacus' gradient must be autograd's, and together, where each row's
gradient must be what it was alone. And nothing but gradients may carry rows away: values that a forward pass
writes into the model would be sent without noise.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedsim import seeds
from fedsim.errors import ModelError
from fedsim.privacy.hooks import clear, quiet, row_gradients
from fedsim.privacy.rows import RowGradients

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def try_rows(module: nn.Module, inputs: tuple[Tensor, ...], name: str) -> None:
    """Try a hooked model on rows of a batch; its gradients are zero afterwards, its values as they were.

    Args:
        module: with Opacus' hooks, in training mode, every trainable parameter with a `grad`.
        inputs: of one forward pass, [B, ...] each, B >= 1.
        name: of the model, for messages.

    Raises:
        ModelError: a gradient is wrong or depends on other rows, or a forward pass writes into the model.
    """
    with seeds.scope(0, "private trial"), torch.enable_grad(), _without_dropout(module), _unchanged(module, name):
        rows = [_three_rows(part) for part in inputs]
        alone = []
        for place in range(3):
            _differentiate(module, [part[place : place + 1] for part in rows], name)
            _refuse_wrong(module, name)
            alone.append(_samples(module, 1))
        _differentiate(module, rows, name)
        together = _samples(module, 3)
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


def _differentiate(module: nn.Module, rows: list[Tensor], name: str) -> None:
    """Leave in every parameter its gradient of these rows, autograd's and Opacus'."""
    clear(module)
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()
    output: Tensor = module(*(part.clone() for part in rows))
    each = output.reshape(len(rows[0]), -1)  # the same function of every row
    try:
        with quiet():
            torch.autograd.backward((each * torch.cos(torch.arange(each.shape[1], dtype=each.dtype))).sum())
    except RuntimeError as error:
        raise ModelError(f"model {name!r}: Opacus finds no per-example gradients: {error}") from error


def _samples(module: nn.Module, rows: int) -> Tensor | None:
    """[rows, D] what the hooks found, zeros where a parameter was not used; None where it is not these rows'."""
    found = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            gradients = row_gradients(parameter)
            if gradients is None:
                found.append(parameter.new_zeros(rows, parameter.numel()))
            elif (each := _each(gradients, parameter)) is not None and len(each) == rows:
                found.append(each)
            else:
                return None
    return torch.cat(found, dim=1)


def _each(gradients: RowGradients, parameter: nn.Parameter) -> Tensor | None:
    """[rows, d] each row's gradient as a clipped sum takes it; None where clipping is told of other norms."""
    each = torch.stack([gradients.weighted(row) for row in torch.eye(len(gradients), dtype=parameter.dtype)])
    norms = torch.linalg.vector_norm(each, dim=1, dtype=torch.float64)
    return each if _same(norms, gradients.squares().sqrt()) else None


def _refuse_wrong(module: nn.Module, name: str) -> None:
    """Name the first parameter whose gradient of a single row is not autograd's."""
    for key, parameter in module.named_parameters():
        if parameter.requires_grad and not _is_autograds(parameter):
            raise ModelError(
                f"model {name!r}: per-example gradients of parameter {key!r} are wrong under privacy.example. "
                "Give every layer the batch as its first dimension, and use a layer's weights only by calling it."
            )


def _is_autograds(parameter: nn.Parameter) -> bool:
    whole, gradients = parameter.grad, row_gradients(parameter)
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
def _unchanged(module: nn.Module, name: str) -> Iterator[None]:
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
        clear(module)
        with torch.no_grad():
            for _, value, before in held:
                if not torch.equal(value, before):
                    value.copy_(before)
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
