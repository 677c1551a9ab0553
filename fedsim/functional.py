"""A model as a function of the flat vectors of a stack: losses and gradients of C clients in one computation.

`torch.func.vmap` runs the plain module for all clients at once, on parameters, buffers and rows with a leading C. Where
numbers of rows differ, batches are padded, and weights of zero leave the padding out.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedsim.algorithm import Batch, LossTerm
from fedsim.devices import Replayed
from fedsim.parameters import Slot, layout_of
from fedsim.problem import Problem, evaluating

Tensors = Mapping[str, Tensor]
_MODEL = "model."

# On a CPU an LSTM and attention have no kernel for a stack: vmap calls theirs client by client, and says so every time.
warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")


class Losses(NamedTuple):
    """What one step of a stack says.

    Attributes:
        gradient: [C, D], of each client's weighted sum of losses.
        losses: [C] these sums.
        buffers: [C, ...] by name, as the forward pass left them.
    """

    gradient: Tensor
    losses: Tensor
    buffers: Tensors


class StackedModel:
    """A plain module, run for a stack of clients.

    Attributes:
        layout: where each parameter and floating buffer lies in its vector.
        device: where all of it is computed.
        replayed: does the steps of repeating shapes, on a GPU; else None.
    """

    def __init__(self, module: nn.Module, problem: Problem) -> None:
        """Take over `module`, which belongs to nobody else and lies where it is to be computed."""
        self.layout = layout_of(module)
        self.device = next(module.parameters()).device
        self.replayed = Replayed(self.flat_step) if self.device.type != "cpu" else None
        for layer in module.modules():
            if (
                type(layer) is nn.Embedding
                and layer.max_norm is None
                and not (layer.sparse or layer.scale_grad_by_freq)
            ):
                layer.forward = partial(_looked_up, layer)  # type: ignore[method-assign]
        self._whole = _Whole(module.train(), problem)
        self._others = {
            name: buffer.clone() for name, buffer in module.named_buffers() if not buffer.is_floating_point()
        }

    def buffers(self, floats: Tensor) -> Tensors:
        """A stack's buffers by name, from its floating ones [C, E]; whole numbers as they are at first."""
        others = {name: first.expand(len(floats), *first.shape).clone() for name, first in self._others.items()}
        return {**_views(self.layout.buffers, floats), **others}

    def floats(self, buffers: Tensors, like: Tensor) -> Tensor:
        """[C, E] the floating ones of a stack's buffers; `like` is [C, D]."""
        parts = [buffers[slot.name].flatten(1) for slot in self.layout.buffers]
        return torch.cat(parts, dim=1) if parts else like.new_empty(len(like), 0)

    def frozen(self, place: int, vectors: Tensor, floats: Tensor) -> tuple[nn.Module, Tensors]:
        """A module in evaluation mode for a loss term, and the values that it then has.

        Args:
            place: which of several, from 0.
            vectors: [C, D] its parameters.
            floats: [C, E] its floating buffers.
        """
        while len(self._whole.frozen) <= place:
            self._whole.frozen.append(copy.deepcopy(self._whole.model).requires_grad_(False).eval())
        values = {**_views(self.layout.parameters, vectors), **_views(self.layout.buffers, floats)}
        return self._whole.frozen[place], {f"frozen.{place}.{name}": value for name, value in values.items()}

    def step(
        self,
        vectors: Tensor,
        buffers: Tensors,
        batch: Batch,
        weights: Tensor,
        term: LossTerm | None = None,
        frozen: Tensors | None = None,
    ) -> Losses:
        """Losses and gradients of a step.

        Args:
            vectors: [C, D].
            buffers: as `buffers` gives them, or the last step.
            batch: [C, P, ...].
            weights: [C, P], of every row's loss; 0 of padding.
            term: added to each row's loss.
            frozen: values of the modules that the term compares with.
        """
        if self.replayed is None or term is not None or frozen:
            return self._stepped(vectors, buffers, batch, weights, term, frozen or {})
        gradient, losses, *after = self.replayed([vectors, *buffers.values(), *batch, weights])
        return Losses(gradient, losses, dict(zip(buffers, after, strict=True)))

    def flat_step(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """A step without a term: (vectors, buffers, inputs, targets, weights) to (gradient, losses, buffers)."""
        vectors, *values, inputs, targets, weights = tensors
        names = [*(slot.name for slot in self.layout.buffers), *self._others]
        buffers = dict(zip(names, values, strict=True))
        done = self._stepped(vectors, buffers, Batch(inputs, targets), weights, None, {})
        return [done.gradient, done.losses, *(done.buffers[name] for name in names)]

    def _stepped(
        self,
        vectors: Tensor,
        buffers: Tensors,
        batch: Batch,
        weights: Tensor,
        term: LossTerm | None,
        frozen: Tensors,
    ) -> Losses:
        def loss(parameters: Tensors, others: Tensors, kept: Tensors, *rows: Tensor) -> tuple[Tensor, Tensors]:
            others = {name: value.clone() for name, value in others.items()}  # a forward pass writes into them
            losses = self._call({**parameters, **others}, kept, rows[:2], term)
            return (losses * rows[2]).sum(), others

        views = _views(self.layout.parameters, vectors)
        gradients, (losses, after) = vmap(grad_and_value(loss, has_aux=True))(views, buffers, frozen, *batch, weights)
        gradient = torch.cat([gradients[slot.name].flatten(1) for slot in self.layout.parameters], dim=1)
        return Losses(gradient, losses.detach(), after)

    def row_gradients(
        self, vectors: Tensor, buffers: Tensors, batch: Batch, term: LossTerm | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Every parameter's gradient of each row's loss, [C, P, d] in the layout's order, and the losses [C, P]."""

        def loss(parameters: Tensors, others: Tensors, inputs: Tensor, targets: Tensor) -> Tensor:
            return self._call({**parameters, **others}, {}, (inputs[None], targets[None]), term)[0]

        by_row = vmap(grad_and_value(loss), (None, None, 0, 0))
        gradients, losses = vmap(by_row)(_views(self.layout.parameters, vectors), buffers, *batch)
        return [gradients[slot.name].flatten(2) for slot in self.layout.parameters], losses.detach()

    def losses(self, vectors: Tensor, buffers: Tensors, batch: Batch) -> Tensor:
        """[C, P] each row's loss, in evaluation mode."""

        def loss(parameters: Tensors, others: Tensors, *rows: Tensor) -> Tensor:
            return self._call({**parameters, **others}, {}, rows, None)

        with torch.no_grad(), evaluating(self._whole.model):
            found: Tensor = vmap(loss)(_views(self.layout.parameters, vectors), buffers, *batch)
            return found

    def _call(self, values: Tensors, frozen: Tensors, rows: Sequence[Tensor], term: LossTerm | None) -> Tensor:
        named = {_MODEL + name: value for name, value in values.items()}
        found: Tensor = functional_call(self._whole, {**named, **frozen}, (*rows, term))
        return found


class _Whole(nn.Module):
    """A model with its losses and what a loss term compares it with, so that all of it is called with given values."""

    def __init__(self, model: nn.Module, problem: Problem) -> None:
        super().__init__()
        self.model, self.frozen = model, nn.ModuleList()
        self._problem = problem

    def forward(self, inputs: Tensor, targets: Tensor, term: LossTerm | None) -> Tensor:
        """Each row's loss [B]."""
        losses = self._problem.losses(self.model(inputs), targets)
        return losses if term is None else losses + term(self.model, Batch(inputs, targets))


def _looked_up(layer: nn.Embedding, tokens: Tensor) -> Tensor:
    """What an embedding gives; not a number for a token that it does not know.

    vmap looks tokens up in the tables of all clients laid end to end: one beyond its own would find a neighbour's.
    """
    known = (tokens >= 0) & (tokens < layer.num_embeddings)
    padding = -1 if layer.padding_idx is None else layer.padding_idx
    found: Tensor = torch.ops.aten.embedding(layer.weight, tokens.clamp(0, layer.num_embeddings - 1), padding)
    return found.masked_fill(~known[..., None], torch.nan)


class Lookups(TorchFunctionMode):
    """Counts, inside the block, lookups of embeddings by whatever is no plain `nn.Embedding` of a `StackedModel`."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), keys: Any = None) -> Any:
        """Do what was asked for."""
        self.count += function in (functional.embedding, functional.embedding_bag, torch.embedding)
        return function(*args, **(keys or {}))


def _views(slots: Sequence[Slot], vectors: Tensor) -> dict[str, Any]:
    """The tensors [C, *shape] that lie in flat vectors [C, D]."""
    return {slot.name: vectors[:, slot.start : slot.stop].view(len(vectors), *slot.shape) for slot in slots}
