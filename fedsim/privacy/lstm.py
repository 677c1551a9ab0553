"""`nn.LSTM` made of dense layers, whose gradients for each row are known: torch's own is one step of the graph.

Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, with a forget gate, as `nn.LSTM` documents it.
"""

from itertools import product

import torch
from torch import Tensor, nn

from fedsim.errors import ModelError


class PrivateLSTM(nn.Module):
    """The twin of an LSTM without dropout and projections, with that LSTM's own parameters.

    Attributes:
        weights: the parameters by the LSTM's names for them.
    """

    def __init__(self, layer: nn.LSTM) -> None:
        super().__init__()
        self.weights: dict[str, nn.Parameter] = dict(layer.named_parameters())
        self.batch_first, self.width, self.directions = layer.batch_first, layer.hidden_size, 1 + layer.bidirectional
        ends = [
            f"l{number}{way}" for number, way in product(range(layer.num_layers), ("", "_reverse")[: self.directions])
        ]
        self.inputs = nn.ModuleList(_dense(self.weights, f"ih_{end}") for end in ends)
        self.states = nn.ModuleList(_dense(self.weights, f"hh_{end}") for end in ends)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """What `nn.LSTM` gives for a batch: outputs, and the last hidden and cell states.

        Args:
            x: [B, T, I] where the layer has `batch_first`, else [T, B, I].
            state: [layers * directions, B, width] hidden and cell states to begin with; zeros if not given.

        Raises:
            ModelError: `x` is a packed sequence, or a single one.
        """
        if not isinstance(x, Tensor) or x.dim() != 3:
            raise ModelError("under privacy.example an nn.LSTM takes a batch of equally long sequences; pad them")
        steps = x if self.batch_first else x.transpose(0, 1)
        none = steps.new_zeros(len(steps), self.width)
        first = [(none, none)] * len(self.inputs) if state is None else list(zip(*state, strict=True))
        last: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(self.inputs), self.directions):
            outputs = []
            for place in range(start, start + self.directions):
                backwards = place > start
                given = steps.flip(1) if backwards else steps
                output, end = self._walk(place, given, first[place])
                outputs.append(output.flip(1) if backwards else output)
                last.append(end)
            steps = torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]
        hidden, cell = (torch.stack(parts) for parts in zip(*last, strict=True))
        return steps if self.batch_first else steps.transpose(0, 1), (hidden, cell)

    def _walk(self, place: int, steps: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[B, T, width] one direction of one layer, and where it ends."""
        hidden, cell = state
        outputs = []
        for given in self.inputs[place](steps).unbind(1):
            enter, forget, new, leave = (given + self.states[place](hidden)).chunk(4, dim=1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = leave.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return torch.stack(outputs, dim=1), (hidden, cell)


def _dense(weights: dict[str, nn.Parameter], end: str) -> nn.Linear:
    weight, bias = weights[f"weight_{end}"], weights.get(f"bias_{end}")
    dense = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")  # draws nothing
    dense.weight, dense.bias = weight, bias  # type: ignore[assignment]
    return dense
