"""Whether a family of models fits the data: one clear line where it does not."""

from fedsim.data.corpus import PREDICTS_NEXT
from fedsim.errors import ModelError

_MOST_LAYERS = 200


def one_output_a_row(model: str, task: str) -> None:
    """Refuse the prediction of what is next at every place."""
    if task in PREDICTS_NEXT:
        text = "gives one output a row and cannot predict the next byte; use lstm or transformer"
        raise ModelError(f"model {model!r} {text}")


def sequence(model: str, shape: tuple[int, ...], task: str) -> int | None:
    """The features of a step for rows of float vectors [T, F], None for rows of tokens [L].

    Raises:
        ModelError: the rows are no sequence, or the next of a float sequence is asked for.
    """
    if len(shape) not in (1, 2):
        raise ModelError(f"model {model!r} takes rows [L] of tokens or [T, F] of floats, not {list(shape)}; use cnn")
    if len(shape) == 2 and task in PREDICTS_NEXT:
        raise ModelError(f"model {model!r} predicts the next of rows [L] of bytes, not of rows {list(shape)}")
    return shape[1] if len(shape) == 2 else None


def not_too_many(model: str, key: str, layers: int) -> None:
    """Refuse more layers than any net is trained with; every one costs time and memory even where it is narrow."""
    if layers > _MOST_LAYERS:
        raise ModelError(f"model {model!r}: {key} = {layers} should be at most {_MOST_LAYERS}")


def at_least_one(model: str, **sizes: int) -> None:
    """Refuse sizes below 1, by the scenario's key."""
    for key, size in sizes.items():
        if size < 1:
            raise ModelError(f"model {model!r}: {key} = {size} should be at least 1")
