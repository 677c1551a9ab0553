"""Each row's gradient of a layer's parameters, from what the layer saw and the gradient at its output.

For layers known by their exact type, whose rows lie in the first dimension.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.privacy.rows import Lookups, Product, RowGradients, Whole, as_factors, dense

_MANY_CHANNELS = 8  # in a group of a convolution, from which on it is faster than a matrix of its patches

Call = tuple[Tensor, Tensor]
"""What a layer saw in a call and the gradient at its output, [B, ...] each."""
Found = dict[str, RowGradients]
"""By the name of a parameter, also of one that a layer lacks."""


def known(layer: nn.Module) -> bool:
    """Whether `row_gradients` takes a layer: its exact type is known, with no parameters but those of its type."""
    return type(layer) in _KINDS and layer._parameters.keys() <= {"weight", "bias"}


def fits(layer: nn.Module, seen: Tensor, rows: int) -> bool:
    """Whether what a known layer saw can be a batch of rows."""
    return seen.dim() >= _KINDS[type(layer)][1](layer) and len(seen) == rows


def row_gradients(layer: nn.Module, calls: list[Call]) -> Iterator[tuple[nn.Parameter, RowGradients]]:
    """Of a known layer's trainable parameters, given all its calls in a forward pass; a parameter may come twice."""
    if len(calls) > 1 and isinstance(layer, nn.Linear | nn.Embedding):
        calls = [_one_call(layer, calls)]
    for call in calls:
        for name, gradients in _KINDS[type(layer)][0](layer, *call).items():
            if (parameter := layer._parameters[name]) is not None and parameter.requires_grad:
                yield parameter, gradients


def _one_call(layer: nn.Linear | nn.Embedding, calls: list[Call]) -> Call:
    """Calls of a layer that works place by place, as one call on the places of all of them."""
    shape = (layer.in_features,) if isinstance(layer, nn.Linear) else ()
    seen = [part.reshape(len(part), -1, *shape) for part, _ in calls]
    given = [part.reshape(len(part), -1, part.shape[-1]) for _, part in calls]
    return torch.cat(seen, dim=1), torch.cat(given, dim=1)


def _linear(layer: nn.Linear, seen: Tensor, given: Tensor) -> Found:
    if given.dim() == 2:
        rows = Whole(given)
        return {"weight": Product(seen, rows), "bias": rows}
    given = given.reshape(len(given), -1, given.shape[-1])
    return {"weight": dense(seen.reshape(*given.shape[:2], -1), given), "bias": Whole(given.sum(1))}


def _embedding(layer: nn.Embedding, seen: Tensor, given: Tensor) -> Found:
    """An embedding's padding has no gradient, as it has none under autograd."""
    if layer.padding_idx is not None:
        given = given.masked_fill((seen == layer.padding_idx)[..., None], 0.0)
    tokens = seen.reshape(len(seen), -1)
    return {"weight": Lookups.at(tokens, given.reshape(*tokens.shape, -1), layer.num_embeddings)}


def _convolution(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, seen: Tensor, given: Tensor) -> Found:
    """A convolution is a dense layer on patches, of which each group of channels has its own."""
    padding, mode = layer._reversed_padding_repeated_twice, layer.padding_mode
    padded = functional.pad(seen, padding, "constant" if mode == "zeros" else mode) if any(padding) else seen
    values, places = layer.weight[0].numel(), math.prod(given.shape[2:])
    weight: RowGradients
    if layer.groups == 1 and as_factors(places, values, layer.out_channels):
        weight = dense(_patches(layer, padded, given.shape[2:])[:, 0].mT, given.flatten(2).mT)
    elif layer.in_channels // layer.groups < _MANY_CHANNELS:
        patches = _patches(layer, padded, given.shape[2:])
        weight = Whole((given.reshape(len(given), layer.groups, -1, places) @ patches.mT).flatten(1))
    else:
        weight = Whole(_convolved(layer, padded, given))
    return {"weight": weight, "bias": Whole(given.flatten(2).sum(2))}


def _patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, padded: Tensor, places: torch.Size) -> Tensor:
    """[B, groups, I, T] what each output place T saw, I the values of a kernel over a group's channels."""
    batch, channel, *spatial = padded.stride()
    inside = [step * width for step, width in zip(spatial, layer.dilation, strict=True)]
    between = [step * width for step, width in zip(spatial, layer.stride, strict=True)]
    shape = (*padded.shape[:2], *layer.kernel_size, *places)
    patches = padded.as_strided(shape, (batch, channel, *inside, *between))
    return patches.reshape(len(padded), layer.groups, -1, math.prod(places))


def _convolved(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, padded: Tensor, given: Tensor) -> Tensor:
    """[B, d] weight gradients: rows are groups of the channels of a single, wide image (Rochette, Manoel, Tramel,
    "Efficient Per-Example Gradient Computations in Convolutional Neural Networks", 2019)."""
    rows, none = len(given), [0] * len(layer.kernel_size)
    wide = given.flatten(0, 1)[None], padded.flatten(0, 1)[None]
    weight = layer.weight.detach().repeat(rows, *[1] * (layer.weight.dim() - 1))
    keys = (layer.stride, none, layer.dilation, False, none, rows * layer.groups)
    gradients = torch.ops.aten.convolution_backward(*wide, weight, None, *keys, [False, True, False])
    found: Tensor = gradients[1].reshape(rows, -1)
    return found


def _group_norm(layer: nn.GroupNorm, seen: Tensor, given: Tensor) -> Found:
    normed = functional.group_norm(seen, layer.num_groups, eps=layer.eps)
    shape = (*seen.shape[:2], -1)
    return {"weight": Whole((given * normed).reshape(shape).sum(2)), "bias": Whole(given.reshape(shape).sum(2))}


def _layer_norm(layer: nn.LayerNorm, seen: Tensor, given: Tensor) -> Found:
    normed = functional.layer_norm(seen, layer.normalized_shape, eps=layer.eps)
    shape = (len(seen), -1, layer.weight.numel())
    return {"weight": Whole((given * normed).reshape(shape).sum(1)), "bias": Whole(given.reshape(shape).sum(1))}


_KINDS: dict[type[nn.Module], tuple[Callable[..., Found], Callable[..., int]]] = {
    nn.Linear: (_linear, lambda layer: 2),
    nn.Embedding: (_embedding, lambda layer: 1),
    nn.Conv1d: (_convolution, lambda layer: 3),
    nn.Conv2d: (_convolution, lambda layer: 4),
    nn.Conv3d: (_convolution, lambda layer: 5),
    nn.GroupNorm: (_group_norm, lambda layer: 2),
    nn.LayerNorm: (_layer_norm, lambda layer: 1 + len(layer.normalized_shape)),
}
"""What finds a layer's gradients, and how many dimensions a batch for it has at least."""
