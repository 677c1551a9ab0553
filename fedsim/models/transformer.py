"""A Transformer: pre-norm blocks of self-attention and a two-layer perceptron.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017, with the normalisation before each part (Xiong et
al., ICML 2020), GELU and learned positions. Written from `nn.Linear`, `nn.LayerNorm` and `nn.Embedding`, for
which Opacus has per-example gradients. Images are cut into patches, as in Dosovitskiy et al., "An Image is Worth
16x16 Words", ICLR 2021.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.data.corpus import PREDICTS_NEXT
from fedsim.errors import ModelError
from fedsim.models._fit import at_least_one, mean_of_steps, not_too_many, sequence, small_embedding

Preset = Literal["small"]


class Sizes(NamedTuple):
    """See `transformer`."""

    width: int
    layers: int
    heads: int


_PRESETS: dict[Preset, Sizes] = {"small": Sizes(64, 2, 4)}


def transformer(
    shape: tuple[int, ...],
    outputs: int,
    task: str,
    *,
    preset: Preset = "small",
    width: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
    dropout: float = 0.0,
    patch: int = 4,
    vocabulary: int = 256,
    padding: int = 0,
) -> nn.Module:
    """A Transformer for sequences: causal for the next token, else pooled over places.

    Args:
        shape: of one row: (L,) tokens, (T, F) floats, or (C, H, W) pixels.
        outputs: values that it gives for every row, or for every place.
        task: "next-token" and "generation" give an output at every place, others one a row.
        preset: "small" (width 64, 2 layers, 4 heads); the keys below replace its sizes.
        width: of the residual stream, a multiple of `heads`.
        layers: blocks.
        heads: of attention.
        dropout: share of a part's output dropped while training, in [0, 1).
        patch: pixels of the side of the squares that an image is cut into.
        vocabulary: number of different tokens; 256 for bytes.
        padding: the token that fills rows up, and is not attended to where a row has one output.

    Raises:
        ModelError: rows are no sequences, or a size is impossible.
    """
    features = sequence("transformer", shape, task)
    given = {"width": width, "layers": layers, "heads": heads}
    explicit = {key: value for key, value in given.items() if value is not None}
    sizes = _PRESETS[preset]._replace(**explicit)
    at_least_one("transformer", vocabulary=vocabulary, **sizes._asdict())
    not_too_many("transformer", "layers", sizes.layers)
    if sizes.width % sizes.heads:
        raise ModelError(f"model 'transformer': width = {sizes.width} should be a multiple of heads = {sizes.heads}")
    if not 0 <= dropout < 1:
        raise ModelError(f"model 'transformer': dropout = {dropout} should be at least 0 and below 1")
    embed: nn.Module
    if len(shape) == 3:
        places, embed = _patches(shape, patch), Patches(shape[0], patch, sizes.width)
    else:
        places = shape[0]
        embed = small_embedding(vocabulary, sizes.width) if features is None else nn.Linear(features, sizes.width)
    return Transformer(embed, places, sizes, outputs, dropout, padding, causal=task in PREDICTS_NEXT)


class Transformer(nn.Module):
    """Sequences [B, L] or [B, T, F] or images [B, C, H, W] to logits [B, L, outputs] (causal), or [B, outputs]."""

    def __init__(
        self, embed: nn.Module, length: int, sizes: Sizes, outputs: int, dropout: float, padding: int, *, causal: bool
    ) -> None:
        super().__init__()
        self.embed = embed
        self.positions = small_embedding(length, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes.width, sizes.heads, dropout, causal) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, outputs)
        self.padding, self.causal = padding, causal

    def features(self, x: Tensor) -> Tensor:
        """What the head sees: [B, L, width], or its mean over places [B, width]."""
        given: Tensor = self.embed(x)
        # Positions are looked up once per example: per-example gradients need the batch axis.
        places = torch.arange(given.shape[1], device=x.device).expand(x.shape[0], -1)
        stream = given + self.positions(places)
        seen = None if self.causal or x.is_floating_point() else (x != self.padding)[:, None, None]  # [B, 1, 1, L]
        for block in self.blocks:
            stream = block(stream, seen)
        normed: Tensor = self.norm(stream)
        return normed if self.causal else mean_of_steps(normed, x, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, L, outputs], or [B, outputs]."""
        logits: Tensor = self.head(self.features(x))
        return logits


class Block(nn.Module):
    """One pre-norm block on a stream [B, L, width]."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.perceptron_norm = nn.LayerNorm(width)
        self.perceptron_in = nn.Linear(width, 4 * width)
        self.perceptron_out = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, stream: Tensor, seen: Tensor | None = None) -> Tensor:
        """The stream with what attention and perceptron add; `seen` [B, 1, 1, L] says what may be attended to."""
        stream = stream + self.dropout(self._attend(self.attention_norm(stream), seen))
        hidden = functional.gelu(self.perceptron_in(self.perceptron_norm(stream)))
        result: Tensor = stream + self.dropout(self.perceptron_out(hidden))
        return result

    def _attend(self, x: Tensor, seen: Tensor | None) -> Tensor:
        by_head = self.query_key_value(x).unflatten(2, (3, self.heads, -1)).transpose(1, 3)  # [B, H, 3, L, width / H]
        query, key, value = by_head.unbind(2)
        mixed = functional.scaled_dot_product_attention(query, key, value, seen, is_causal=self.causal)
        attended: Tensor = self.attention_out(mixed.transpose(1, 2).flatten(2))
        return attended


class Patches(nn.Module):
    """Images [B, C, H, W] to the embedded squares of them [B, places, width], line by line."""

    def __init__(self, channels: int, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.dense = nn.Linear(channels * side * side, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, places, width]."""
        (rows, channels, height, width), side = x.shape, self.side
        squares = x.reshape(rows, channels, height // side, side, width // side, side)
        embedded: Tensor = self.dense(squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
        return embedded


def _patches(shape: tuple[int, ...], side: int) -> int:
    """How many squares an image is cut into."""
    at_least_one("transformer", patch=side)
    _, height, width = shape
    if height % side or width % side:
        raise ModelError(f"model 'transformer': patch = {side} should divide images of {height}x{width} pixels")
    return (height // side) * (width // side)
