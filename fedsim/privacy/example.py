"""The private gradient: per-example gradients, clipped, summed and noised.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1. One backward pass leaves every
parameter's gradient for each row, mostly as factors (`taps.py`, `layers.py`, `rows.py`); a model with a layer that is
not known there goes by Opacus' hooks (`hooks.py`). Everything after that happens here, on flat vectors in the plain
model's layout, so that a private client's update has the same coordinates as any other.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.hooks import RemovableHandle

from fedsim.errors import ModelError
from fedsim.parameters import FlatModule
from fedsim.privacy import layers
from fedsim.privacy.lstm import PrivateLSTM
from fedsim.privacy.normals import add_normal
from fedsim.privacy.rows import RowGradients
from fedsim.privacy.taps import PerRow, Taps
from fedsim.privacy.trial import try_rows
from fedsim.seeds import Draw


def private_module(plain: nn.Module, name: str) -> FlatModule:
    """A twin of a model that yields per-example gradients, on flat vectors in the model's own layout.

    `nn.LSTM` becomes `PrivateLSTM` with the same weights by name; the rest is a copy. The twin's first
    forward pass is preceded by a trial, on three rows, that per-example gradients are right.

    Args:
        plain: the model; it is not changed.
        name: of the model, for messages.

    Raises:
        ModelError: a layer mixes the rows of a batch or has no per-example gradient; or, in the first
            forward pass, what `trial.try_rows` finds.
    """
    _refuse_layers(plain, name)
    twin = _with_private_lstms(plain).train()
    trainable = {key: _parameter(twin, key) for key, value in plain.named_parameters() if value.requires_grad}
    per_row = _per_row(twin, trainable, name)
    flat = FlatModule(twin, trainable)
    vars(twin)["per_row"] = per_row
    _try_at_first_forward(flat, per_row, name)
    return flat


def clipped_gradient_sum(
    flat: FlatModule,
    losses: Tensor,
    max_grad_norm: float,
    *,
    owners: Tensor | None = None,
    per_layer: bool = False,
) -> Tensor:
    """Sum over units of g_i min(1, C / |g_i|): a unit is a row, or rows whose mean gradient is g_i.

    Norms are accumulated in float64; a clipped gradient's norm, measured again in float64, is at most C (1 + 2^-23). A
    unit whose gradient is not finite counts as none: were its client to fail for it, that would tell that it is there.

    Args:
        flat: from `private_module`; its `gradient` is overwritten.
        losses: [B] loss of each row, B >= 1, from one forward pass of `flat.module`.
        max_grad_norm: C > 0.
        owners: [B] the unit of each row, from 0 to U - 1, each with a row at least; None where rows are units.
        per_layer: clip each parameter's part of g_i to C / sqrt(P), P the number of parameters, instead of the whole:
            McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018,
            section 2.2. Together the parts are within C, so the noise is the same.

    Returns:
        [D] in the plain model's layout; it lies in `flat.gradient`.
    """
    found = unit_gradients(flat, losses, owners)
    total, used = flat.gradient, [gradients for gradients in found if gradients is not None]
    parts = torch.stack([gradients.norms() for gradients in used])  # [parameters, U]
    norms: Tensor = torch.linalg.vector_norm(parts, dim=0)
    if not math.isfinite(float(norms.sum())):
        finite = norms.isfinite()
        found = [None if gradients is None else gradients.some(finite) for gradients in found]
        parts, norms = parts[:, finite], norms[finite]
    bound = max_grad_norm / math.sqrt(len(found)) if per_layer else max_grad_norm
    below = bound * (1 - torch.finfo(total.dtype).eps)  # so that no factor is rounded above bound / norm
    rounded = (below / (parts if per_layer else norms)).clamp_(max=1).to(total.dtype)
    factors = iter(rounded.unbind() if per_layer else [rounded] * len(parts))
    for slot, gradients in zip(flat.layout.parameters, found, strict=True):
        out = total[slot.start : slot.stop]
        if gradients is None:
            out.zero_()
        else:
            gradients.weighted(next(factors), out)
    return total


def unit_gradients(flat: FlatModule, losses: Tensor, owners: Tensor | None) -> Sequence[RowGradients | None]:
    """Each parameter's gradients for each row, or as means for each unit; None where it was not used.

    Args:
        flat, losses, owners: as for `clipped_gradient_sum`.

    Returns:
        In the layout's order.
    """
    found = _of(flat)(losses)
    if owners is None:
        return found
    return [None if gradients is None else gradients.means(owners) for gradients in found]


def noisy_gradient(
    clipped_sum: Tensor, noise_multiplier: float, max_grad_norm: float, divisor: float, draw: Draw
) -> Tensor:
    """(clipped sum + z C N(0, I)) / (q n), the gradient of one private step.

    Args:
        clipped_sum: [D], overwritten; zeros where the Poisson batch is empty, which leaves noise alone.
        noise_multiplier: z >= 0.
        max_grad_norm: C > 0.
        divisor: q n, from `batches.expected_batch`.
        draw: where the noise comes from; never torch's generator, which has 2^32 streams only on the CPU.
    """
    return add_normal(clipped_sum.mul_(1 / divisor), noise_multiplier * max_grad_norm / divisor, draw)


def forget(flat: FlatModule) -> None:
    """Drop whatever is kept of a forward pass.

    A forward pass without its backward pass (a loss that raised) would otherwise leave what layers saw: call
    this before a client's first step.
    """
    _of(flat).forget()


def _of(flat: FlatModule) -> PerRow:
    per_row: PerRow = vars(flat.module)["per_row"]
    return per_row


def _per_row(twin: nn.Module, trainable: Mapping[str, nn.Parameter], name: str) -> PerRow:
    """What finds a twin's gradients: taps where every layer is known, else Opacus' hooks."""
    with_parameters = [layer for layer in twin.modules() if any(True for _ in layer.parameters(recurse=False))]
    if all(layers.known(layer) for layer in with_parameters):
        return Taps(twin, trainable)
    from fedsim.privacy.hooks import Hooks  # Opacus takes seconds to import

    _refuse_unknown_layers(twin, name)
    return Hooks(twin, trainable)


_REPLACEMENTS: dict[type[nn.Module], str] = {
    _BatchNorm: 'Use GroupNorm, or set model.norm = "group".',
    _InstanceNorm: "Set track_running_stats=False.",
    nn.GRU: "Use nn.LSTM.",
    nn.RNN: "Use nn.LSTM.",
    nn.MultiheadAttention: "Write attention with nn.Linear and scaled_dot_product_attention.",
}


def _refuse_layers(plain: nn.Module, name: str) -> None:
    """Name the first layer that cannot be private; a frozen batch norm, which Opacus lets pass, included."""
    for label, layer in plain.named_modules():
        for kind, replacement in _REPLACEMENTS.items():
            without_statistics = isinstance(layer, _InstanceNorm) and not layer.track_running_stats
            if isinstance(layer, kind) and not without_statistics:
                raise _refusal(name, label, layer, replacement)
        if isinstance(layer, nn.LSTM) and layer.dropout:
            # Its twin has none: another model than the one that is deployed.
            raise _refusal(name, label, layer, "Set its dropout to 0 and put nn.Dropout between layers.")
        if isinstance(layer, nn.LSTM) and layer.proj_size:
            raise _refusal(name, label, layer, "Set its proj_size to 0 and add an nn.Linear.")
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.max_norm is not None:
            # It rescales the rows of its weight that a batch uses, in the forward pass and without noise.
            raise _refusal(name, label, layer, "Leave max_norm unset.")
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.scale_grad_by_freq:
            # It divides a gradient by how often the whole batch has that token.
            raise _refusal(name, label, layer, "Leave scale_grad_by_freq unset.")


def _refuse_unknown_layers(twin: nn.Module, name: str) -> None:
    """Name the first layer that Opacus itself refuses."""
    from opacus.validators import ModuleValidator

    for label, layer in twin.named_modules():
        own = list(layer.parameters(recurse=False))
        if any(parameter.requires_grad for parameter in own) and list(layer.buffers()):
            raise _refusal(name, label, layer, "Move its buffers or its parameters into a layer of their own.")
        for error in ModuleValidator.VALIDATORS.get(type(layer), lambda _: [])(layer) if own else []:
            raise _refusal(name, label, layer, " ".join(str(error).split()))


def _refusal(name: str, label: str, layer: nn.Module, advice: str) -> ModelError:
    kind = type(layer).__name__
    return ModelError(f"model {name!r}: layer {label!r} ({kind}) cannot be trained with privacy.example. {advice}")


def _with_private_lstms(plain: nn.Module) -> nn.Module:
    twin = copy.deepcopy(plain)
    replaced: dict[nn.Module, nn.Module] = {}
    for label, layer in list(twin.named_modules(remove_duplicate=False)):
        if isinstance(layer, nn.LSTM):
            parent, _, child = label.rpartition(".")
            replaced.setdefault(layer, PrivateLSTM(layer))
            setattr(twin.get_submodule(parent), child, replaced[layer])
    return twin


def _parameter(twin: nn.Module, name: str) -> nn.Parameter:
    """A twin's parameter by its name in the plain model."""
    label, _, own = name.rpartition(".")
    layer = twin.get_submodule(label)
    return layer.weights[own] if isinstance(layer, PrivateLSTM) else layer.get_parameter(own)


def _try_at_first_forward(flat: FlatModule, per_row: PerRow, name: str) -> None:
    """Let the first forward pass be preceded by a trial; a trial that fails is repeated at the next one."""
    handle: RemovableHandle

    def trial(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal handle
        handle.remove()
        try:
            try_rows(module, per_row, inputs, name)
        except Exception:
            handle = module.register_forward_pre_hook(trial)
            raise

    handle = flat.module.register_forward_pre_hook(trial)
