"""A user's own function of inputs, applied to all rows once they are split and made ready."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedsim.data.federation import CentralPart, Federation, Rows
from fedsim.data.population import Population, sound
from fedsim.errors import DataError, FedsimError, ScenarioError, one_line

Transform = Callable[[np.ndarray], np.ndarray]
"""x [N, ...] -> x [N, ...], each row by itself."""
_TRIED = 3


def of_federation(federation: Federation, transform: Transform, name: str) -> Federation:
    """A federation with other inputs; floats become float32.

    Args:
        federation: whose rows are in memory.
        transform: is given arrays that it cannot write to.
        name: of it, for messages and in `preprocessing`.

    Raises:
        ScenarioError: it fails, gives no array of as many rows, or a row's result depends on other rows.
        DataError: it gives something that is no finite number.
    """
    x = _applied(transform, name, federation.x)
    central: dict[CentralPart, Rows] = {
        part: Rows(_applied(transform, name, rows.x) if len(rows.x) else x[:0], rows.y)
        for part, rows in federation.central.items()
    }
    for values in (x, *(rows.x for rows in central.values())):
        _check_tokens(values, federation.vocabulary, name)
    return replace(
        federation,
        x=x,
        central=central,
        vocabulary=federation.vocabulary if x.dtype.kind in "iu" else None,
        preprocessing={**federation.preprocessing, "transform": name},
    )


def of_population(population: Population, transform: Transform, name: str) -> Population:
    """A population with other inputs; arguments and errors as for `of_federation`."""
    rows, test, vocabulary = population.rows, population.test, population.vocabulary

    def other(x: np.ndarray) -> np.ndarray:
        made = _applied(transform, name, x) if len(x) else x
        _check_tokens(made, vocabulary, name)
        return made

    def others(client: int) -> Rows:
        x, y = rows(client)
        return Rows(other(x), y)

    tokens = vocabulary is not None and other(sound(population, int(np.argmax(population.sizes))).x).dtype.kind in "iu"
    return replace(
        population,
        rows=others,
        test=Rows(other(test.x), test.y) if test is not None else None,
        vocabulary=vocabulary if tokens else None,
        preprocessing={**population.preprocessing, "transform": name},
    )


def _check_tokens(x: np.ndarray, vocabulary: int | None, name: str) -> None:
    """Refuse tokens that the vocabulary has not."""
    if vocabulary is not None and x.dtype.kind in "iu" and x.size and (x.min() < 0 or x.max() >= vocabulary):
        raise DataError(f"data.transform: {name} gives tokens {x.min()} to {x.max()} of a vocabulary of {vocabulary}")


def _applied(transform: Transform, name: str, x: np.ndarray) -> np.ndarray:
    """[N, ...] the result, in memory in its own order: bits depend on how rows lie."""
    result = _result(transform, name, x)
    for row in np.unique(np.linspace(0, len(x) - 1, min(_TRIED, len(x))).astype(int)):
        alone = _result(transform, name, x[row : row + 1])[0]
        if alone.shape != result[row].shape or not np.allclose(
            alone, result[row], rtol=1e-4, atol=1e-5, equal_nan=True
        ):
            raise ScenarioError(
                f"data.transform: {name} gives row {row} another value alone than among others; use no mean, order "
                "or other figure of several rows, but declared constants"
            )
    if result.dtype.kind not in "fiu":
        raise DataError(f"data.transform: {name} gives type {result.dtype}; return floats or integers")
    with np.errstate(over="ignore"):  # what float32 cannot hold is not finite
        result = np.ascontiguousarray(result, dtype=np.float32 if result.dtype.kind == "f" else None)
    if result.dtype.kind == "f" and not (finite := np.isfinite(result.reshape(len(result), -1)).all(axis=1)).all():
        raise DataError(f"data.transform: {name} gives a value in row {int(np.argmin(finite))} that is not finite")
    return result


def _result(transform: Transform, name: str, x: np.ndarray) -> np.ndarray:
    given = x.view()
    given.flags.writeable = False
    try:
        result = transform(given)
    except FedsimError:
        raise
    except Exception as error:
        shape = list(x.shape[1:])
        raise ScenarioError(f"data.transform: {name} fails on rows {shape} of {x.dtype}: {one_line(error)}") from error
    if not isinstance(result, np.ndarray) or result.ndim < 2 or len(result) != len(x):
        found = f"shape {list(result.shape)}" if isinstance(result, np.ndarray) else type(result).__name__
        raise ScenarioError(
            f"data.transform: {name} gives {found} for {len(x)} rows; return an array [rows, ...], a row for each"
        )
    return result
