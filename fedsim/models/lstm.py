"""A recurrent network: stacked LSTM layers over bytes, other tokens, vectors or the lines of an image.

"128-128" has two layers of 128, and like the character model of McMahan et al., "Communication-Efficient
Learning of Deep Networks from Decentralized Data", AISTATS 2017, embeds each byte in 8 dimensions.
"""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from fedsim.data.corpus import PREDICTS_NEXT
from fedsim.errors import ModelError
from fedsim.models._fit import at_least_one, mean_of_steps, not_too_many, sequence, small_embedding

Preset = Literal["128-128"]
Pool = Literal["mean", "last"]


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
    pool: Pool = "mean",
    vocabulary: int = 256,
    padding: int = 0,
) -> nn.Module:
    """A recurrent network for sequences.

    Args:
        shape: of one row: (L,) tokens, (T, F) floats, or (C, H, W) pixels, of which each line is a step.
        outputs: values that it gives for every row, or for every place.
        task: "next-token" and "generation" give an output at every place, others one a row.
        preset: "128-128"; the keys below replace its sizes.
        width: of each layer.
        layers: stacked.
        embedding: dimensions of a token.
        pool: what of the steps a row's one output is made of: their mean, or of floats and pixels the last.
        vocabulary: number of different tokens; 256 for bytes.
        padding: the token that fills rows up, and counts for nothing where a row has one output.

    Raises:
        ModelError: rows are no sequences, a size is impossible, or `pool` is "last" of tokens.
    """
    features = sequence("lstm", shape, task)
    given = {"width": width, "layers": layers, "embedding": embedding}
    explicit = {key: value for key, value in given.items() if value is not None}
    sizes = _PRESETS[preset]._replace(**explicit)
    at_least_one("lstm", vocabulary=vocabulary, **sizes._asdict())
    not_too_many("lstm", "layers", sizes.layers)
    pooled = task not in PREDICTS_NEXT
    embed: nn.Module = nn.Identity()
    if features is None:
        embed = (small_embedding if pooled else nn.Embedding)(vocabulary, sizes.embedding)
        if pool == "last":
            raise ModelError(
                "model 'lstm': pool = \"last\" is not for tokens, of which the last may only fill a row up"
            )
    return LSTM(
        embed, features or sizes.embedding, sizes.width, sizes.layers, outputs, pool if pooled else None, padding
    )


class LSTM(nn.Module):
    """Sequences [B, L] or [B, T, F] or images [B, C, H, W] to logits [B, L, outputs], or pooled [B, outputs]."""

    def __init__(
        self, embed: nn.Module, inputs: int, width: int, layers: int, outputs: int, pool: Pool | None, padding: int
    ) -> None:
        super().__init__()
        self.embed = embed
        self.lstm = nn.LSTM(inputs, width, layers, batch_first=True)
        self.head = nn.Linear(width, outputs)
        self.pool, self.padding = pool, padding

    def features(self, x: Tensor) -> Tensor:
        """What the head sees: [B, L, width], or [B, width] of a row: its steps' mean, or the last of them."""
        given = x.transpose(1, 2).flatten(2) if x.dim() == 4 else x  # the lines of an image, with all its channels
        steps: Tensor = self.lstm(self.embed(given))[0]
        if self.pool is None:
            return steps
        return steps[:, -1] if self.pool == "last" else mean_of_steps(steps, x, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, L, outputs], or [B, outputs]."""
        logits: Tensor = self.head(self.features(x))
        return logits
