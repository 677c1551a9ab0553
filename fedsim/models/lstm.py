"""A recurrent network: stacked LSTM layers over bytes, other tokens or vectors.

"128-128" has two layers of 128, and like the character model of McMahan et al., "Communication-Efficient
Learning of Deep Networks from Decentralized Data", AISTATS 2017, embeds each byte in 8 dimensions.
"""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from fedsim.data.corpus import PREDICTS_NEXT
from fedsim.models._fit import at_least_one, not_too_many, sequence

Preset = Literal["128-128"]


class Sizes(NamedTuple):
    """See `lstm`."""

    width: int
    layers: int
    embedding: int


_PRESETS: dict[Preset, Sizes] = {"128-128": Sizes(128, 2, 8)}


def lstm(
    shape: tuple[int, ...],
    outputs: int,
    task: str,
    *,
    preset: Preset = "128-128",
    width: int | None = None,
    layers: int | None = None,
    embedding: int | None = None,
    vocabulary: int = 256,
) -> nn.Module:
    """A recurrent network for sequences.

    Args:
        shape: of one row: (L,) tokens, or (T, F) floats for classification.
        outputs: values that it gives for every row, or for every place.
        task: "next-token" gives logits at every place, "classification" one row of them.
        preset: "128-128"; the keys below replace its sizes.
        width: of each layer.
        layers: stacked.
        embedding: dimensions of a token.
        vocabulary: number of different tokens; 256 for bytes.

    Raises:
        ModelError: rows are no sequences, or a size is impossible.
    """
    features = sequence("lstm", shape, task)
    given = {"width": width, "layers": layers, "embedding": embedding}
    explicit = {key: value for key, value in given.items() if value is not None}
    sizes = _PRESETS[preset]._replace(**explicit)
    at_least_one("lstm", vocabulary=vocabulary, **sizes._asdict())
    not_too_many("lstm", "layers", sizes.layers)
    embed = nn.Embedding(vocabulary, sizes.embedding) if features is None else nn.Identity()
    pooled = task not in PREDICTS_NEXT
    return LSTM(embed, features or sizes.embedding, sizes.width, sizes.layers, outputs, pooled=pooled)


class LSTM(nn.Module):
    """Sequences [B, L] or [B, T, F] to logits [B, L, outputs], or pooled [B, outputs]."""

    def __init__(self, embed: nn.Module, inputs: int, width: int, layers: int, outputs: int, *, pooled: bool) -> None:
        super().__init__()
        self.embed = embed
        self.lstm = nn.LSTM(inputs, width, layers, batch_first=True)
        self.head = nn.Linear(width, outputs)
        self.pooled = pooled

    def features(self, x: Tensor) -> Tensor:
        """What the head sees: [B, L, width], or its mean over steps [B, width]."""
        steps: Tensor = self.lstm(self.embed(x))[0]
        return steps.mean(1) if self.pooled else steps

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, L, outputs], or [B, outputs]."""
        logits: Tensor = self.head(self.features(x))
        return logits
