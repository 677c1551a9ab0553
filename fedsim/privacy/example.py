"""The private gradient: per-example gradients by Opacus, clipped, summed and noised.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1. Opacus' hooks leave every
parameter's gradient for each row behind (`hooks.py`, `rows.py`); everything after that happens here, on flat vectors
in the plain model's layout, so that a private client's update has the same coordinates as any other.
"""

import copy
import math
from typing import Any

import numpy as np
import torch
from opacus.layers import DPLSTM
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.hooks import RemovableHandle

from fedsim import seeds
from fedsim.errors import ModelError
from fedsim.parameters import FlatModule, Slot
from fedsim.privacy.hooks import Gradients, clear, quiet, row_gradients, set_hooks
from fedsim.privacy.rows import RowGradients
from fedsim.privacy.trial import try_rows


def private_module(plain: nn.Module, name: str, gradients: Gradients = "hooks") -> FlatModule:
    """A twin of a model that yields per-example gradients, on flat vectors in the model's own layout.

    `nn.LSTM` becomes Opacus' `DPLSTM` with the same weights by name; the rest is a copy. The twin's first
    forward pass is preceded by a trial, on three rows, that per-example gradients are right.

    Args:
        plain: the model; it is not changed.
        name: of the model, for messages.
        gradients: "hooks" keeps each row's gradient, "ghost" of large dense layers and embeddings only its factors:
            the same numbers to rounding, in less memory.

    Raises:
        ModelError: a layer mixes the rows of a batch or has no per-example gradient; or, in the first
            forward pass, what `trial.try_rows` finds.
    """
    _refuse_layers(plain, name)
    twin = _with_private_lstms(plain).train()
    _refuse_unknown_layers(twin, name)
    set_hooks(twin, gradients)
    by_name = dict(twin.named_parameters())
    trainable = [key for key, parameter in plain.named_parameters() if parameter.requires_grad]
    flat = FlatModule(twin, {key: by_name[key] for key in trainable})
    _try_at_first_forward(flat, name)
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
        [D] in the plain model's layout.
    """
    try:
        flat.gradient.zero_()
        with quiet():
            torch.autograd.backward(losses.sum())
        used = _of_units(flat, owners)
        squares = torch.stack([gradients.squares() for gradients in used.values()])  # [parameters, U]
        if not bool((finite := squares.sum(0).isfinite()).all()):
            used, squares = {slot: gradients.some(finite) for slot, gradients in used.items()}, squares[:, finite]
        bound = max_grad_norm / math.sqrt(len(flat.layout.parameters)) if per_layer else max_grad_norm
        norms = (squares if per_layer else squares.sum(0, keepdim=True)).sqrt()
        factors = _rounded_down((bound / norms).clamp(max=1), flat.vector.dtype).expand_as(squares)
        total = torch.zeros_like(flat.vector)
        for (slot, gradients), each in zip(used.items(), factors, strict=True):
            total[slot.start : slot.stop] = gradients.weighted(each)
        return total
    finally:
        forget(flat)


def noisy_gradient(
    clipped_sum: Tensor, noise_multiplier: float, max_grad_norm: float, divisor: float, generator: np.random.Generator
) -> Tensor:
    """(clipped sum + z C N(0, I)) / (q n), the gradient of one private step.

    Args:
        clipped_sum: [D]; zeros where the Poisson batch is empty, which leaves noise alone.
        noise_multiplier: z >= 0.
        max_grad_norm: C > 0.
        divisor: q n, from `batches.expected_batch`.
        generator: where the noise comes from; NumPy's, since torch's on the CPU has 2^32 streams only.
    """
    kind = np.float64 if clipped_sum.dtype == torch.float64 else np.float32
    noise = torch.from_numpy(generator.standard_normal(tuple(clipped_sum.shape), dtype=kind)).to(clipped_sum.dtype)
    return (clipped_sum + noise_multiplier * max_grad_norm * noise) / divisor


def forget(flat: FlatModule) -> None:
    """Drop whatever Opacus has kept of a forward pass.

    A forward pass without its backward pass (a loss that raised) would otherwise leave activations to be
    paired with the next client's gradients: call this before a client's first step.
    """
    clear(flat.module)


def _of_units(flat: FlatModule, owners: Tensor | None) -> dict[Slot, RowGradients]:
    """The gradients of every parameter that was used, for each row, or as means for each unit."""
    parameters = dict(flat.module.named_parameters())
    found = {slot: row_gradients(parameters[slot.name]) for slot in flat.layout.parameters}
    used = {slot: gradients for slot, gradients in found.items() if gradients is not None}
    return used if owners is None else {slot: gradients.means(owners) for slot, gradients in used.items()}


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
            # Opacus drops the recurrent connections too: another model than the one that is deployed.
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
            replaced.setdefault(layer, _private_lstm(layer))
            setattr(twin.get_submodule(parent), child, replaced[layer])
    return twin


def _private_lstm(layer: nn.LSTM) -> nn.Module:
    shape = {key: getattr(layer, key) for key in ("num_layers", "bias", "batch_first", "bidirectional")}
    with seeds.scope(0, "private lstm"):  # its first weights, drawn globally, are replaced at once
        private: nn.Module = DPLSTM(layer.input_size, layer.hidden_size, **shape)
    private.to(dtype=layer.get_parameter("weight_ih_l0").dtype).load_state_dict(layer.state_dict())
    for key, parameter in private.named_parameters():
        parameter.requires_grad = layer.get_parameter(key).requires_grad
    return private


def _try_at_first_forward(flat: FlatModule, name: str) -> None:
    """Let the first forward pass be preceded by a trial; a trial that fails is repeated at the next one."""
    handle: RemovableHandle

    def trial(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal handle
        handle.remove()
        try:
            try_rows(module, inputs, name)
        except Exception:
            handle = module.register_forward_pre_hook(trial)
            raise

    handle = flat.module.register_forward_pre_hook(trial)


def _rounded_down(factors: Tensor, dtype: torch.dtype) -> Tensor:
    """`factors` in `dtype`, never larger, so that rounding cannot lift a clipped norm above the bound."""
    rounded = factors.to(dtype)
    below = torch.nextafter(rounded, torch.zeros_like(rounded))
    return torch.where(rounded.double() > factors, below, rounded)
