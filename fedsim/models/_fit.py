"""Whether a family of models fits the data: one clear line where it does not. What families for sequences share."""

import torch
from torch import Tensor, nn

from fedsim.data.corpus import PREDICTS_NEXT
from fedsim.errors import ModelError

_MOST_LAYERS = 200


def one_output_a_row(model: str, task: str) -> None:
    """Refuse the prediction of what is next at every place."""
    if task in PREDICTS_NEXT:
        text = "gives one output a row and cannot predict the next byte; use lstm or transformer"
        raise ModelError(f"model {model!r} {text}")


def sequence(model: str, shape: tuple[int, ...], task: str) -> int | None:
    """The features of a step for rows of float vectors [T, F] or of images [C, H, W]; None for rows of tokens [L].

    Raises:
        ModelError: the rows are no sequence, or the next of another than tokens is asked for.
    """
    if len(shape) not in (1, 2, 3):
        text = "takes rows [L] of tokens, [T, F] of floats or [channels, height, width] of pixels"
        raise ModelError(f"model {model!r} {text}, not {list(shape)}")
    if len(shape) > 1 and task in PREDICTS_NEXT:
        raise ModelError(f"model {model!r} predicts the next of rows [L] of bytes, not of rows {list(shape)}")
    return None if len(shape) == 1 else shape[1] if len(shape) == 2 else shape[0] * shape[2]


def small_embedding(count: int, width: int) -> nn.Embedding:
    """An embedding whose tokens start small beside what layers make of them (as GPT-2), also those that are rare."""
    embedding = nn.Embedding(count, width)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding


def mean_of_steps(steps: Tensor, x: Tensor, padding: int) -> Tensor:
    """[B, W] the mean of [B, L, W] over steps; over those of tokens other than `padding` where x [B, L] is tokens."""
    if x.is_floating_point():
        return steps.mean(1)
    kept = (x != padding).to(steps.dtype)
    return torch.einsum("blw,bl->bw", steps, kept) / kept.sum(1, keepdim=True).clamp(min=1)


def not_too_many(model: str, key: str, layers: int) -> None:
    """Refuse more layers than any net is trained with; every one costs time and memory even where it is narrow."""
    if layers > _MOST_LAYERS:
        raise ModelError(f"model {model!r}: {key} = {layers} should be at most {_MOST_LAYERS}")


def at_least_one(model: str, **sizes: int) -> None:
    """Refuse sizes below 1, by the scenario's key."""
    for key, size in sizes.items():
        if size < 1:
            raise ModelError(f"model {model!r}: {key} = {size} should be at least 1")
