"""Partitioners of flwr-datasets by name, `flwr:DirichletPartitioner`, as kinds of `data.partition`.

Their own arguments are the keys. `partition_by` is "label" or "client": what a row is known by here. A partitioner's
`seed` is drawn from the scenario's, and rows are shuffled before it sees them.
"""

import inspect
import logging
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim import registry
from fedsim.errors import ScenarioError
from fedsim.extras import needed

if TYPE_CHECKING:
    from fedsim.data.partition import Pool

PREFIX = "flwr:"
_LOG = logging.getLogger(__name__)
_ROW = "row"


def partitioned(name: str, settings: Mapping[str, Any], pool: "Pool") -> list[np.ndarray]:
    """Deal a pool of rows as a partitioner of flwr-datasets does.

    Args:
        name: such as "flwr:DirichletPartitioner".
        settings: arguments of its class, without `seed`.
        pool: the rows.

    Returns:
        For every client its positions in the pool, sorted; rows that the partitioner leaves out are nobody's, which is
        logged.

    Raises:
        ScenarioError: no such partitioner, an argument that does not fit, or one row given to two clients.
        FedsimError: flwr-datasets is not installed.
    """
    made = _class(name)
    arguments = registry.bind(made, settings, "data.partition", reserved=("seed", "self"))
    columns = {"label": pool.labels, "client": pool.owners}
    known = {column: values for column, values in columns.items() if values is not None}
    if (by := arguments.get("partition_by")) is not None and by not in known:
        there = " or ".join(known) or "none: these rows have neither"
        raise ScenarioError(f"data.partition.partition_by = {by!r}: rows are known by {there}")
    order = pool.rng.permutation(pool.size)
    if "seed" in inspect.signature(made).parameters:
        arguments["seed"] = int(pool.rng.integers(2**31))
    dealt = registry.call(_dealt, "data.partition", made=made, arguments=arguments, known=known, order=order)
    _check(dealt, pool.size)
    return [np.sort(rows) for rows in dealt]


def _class(name: str) -> Any:
    there = needed("flwr_datasets.partitioner", "hf", f"data.partition.kind = {name!r}")
    known = {PREFIX + each: getattr(there, each) for each in there.__all__ if not _odd(each)}
    if name not in known:
        raise ScenarioError(f"data.partition.kind: there is no {name!r}.{registry.nearest(name, known)}")
    return known[name]


def _odd(name: str) -> bool:
    """Whether a partitioner is none of rows, or is told a function, which no scenario can write."""
    return name == "Partitioner" or name.startswith("Vertical") or name == "IdToSizeFncPartitioner"


def _dealt(
    made: Any, arguments: Mapping[str, Any], known: Mapping[str, np.ndarray], order: np.ndarray
) -> list[np.ndarray]:
    import datasets

    datasets.disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of draws that it does again by itself
        partitioner = made(**arguments)
        columns = {column: values[order].tolist() for column, values in known.items()}
        partitioner.dataset = datasets.Dataset.from_dict({_ROW: order.tolist(), **columns})
        return [
            np.asarray(partitioner.load_partition(number)[_ROW], dtype=np.int64)
            for number in range(partitioner.num_partitions)
        ]


def _check(dealt: list[np.ndarray], size: int) -> None:
    times = np.bincount(np.concatenate(dealt), minlength=size) if dealt else np.zeros(size)
    if (times > 1).any():
        raise ScenarioError("data.partition: it gives one row to several clients; choose another kind")
    if left := int((times == 0).sum()):
        _LOG.warning("data.partition: %d of %d rows are left out by the partitioner", left, size)
