"""How rows are dealt to clients: one function per kind, named as in `data.partition.kind`, or flwr:NAME of Flower's.

Each takes the pool of rows to deal and its own settings, and returns for every client the sorted positions
in the pool that it owns; together they are a permutation of range(size).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedsim import registry
from fedsim.data.flower_partition import PREFIX, partitioned
from fedsim.errors import ScenarioError

_DRAWS = 1000
_MOST_CLIENTS = 1_000_000
"""Where `min_rows` 0 lets clients be empty: more are allowed only where there are more rows."""
_LARGEST_ALPHA = 1e300  # beyond it the sum of a draw overflows


class Pool(NamedTuple):
    """The rows to deal.

    Attributes:
        size: n, how many.
        labels: [n] class of every row, None where rows have none.
        owners: [n] natural client of every row, None where the corpus has none.
        min_rows: that every client must get; 0 allows empty clients.
        rng: from `seeds`.
    """

    size: int
    labels: np.ndarray | None
    owners: np.ndarray | None
    min_rows: int
    rng: np.random.Generator


Kind = Callable[..., list[np.ndarray]]


def deal(table: Mapping[str, Any], pool: Pool) -> list[np.ndarray]:
    """Deal the pool as a scenario's table `data.partition` says.

    Args:
        table: `kind` and that kind's settings, e.g. {"kind": "dirichlet", "clients": 10, "alpha": 0.3}.
        pool: the rows.

    Returns:
        For every client its positions in the pool, sorted. Under "natural", which deals by a given key, a
        client may have fewer than `min_rows`; under all other kinds none has.

    Raises:
        ScenarioError: an unknown kind or setting, or settings that these rows cannot meet.
    """
    settings = dict(table)
    name = settings.pop("kind", None)
    if not isinstance(name, str):
        raise ScenarioError(f"data.partition.kind must be given. Known: {', '.join(sorted(KINDS))}.")
    owned = partitioned(name, settings, pool) if name.startswith(PREFIX) else _dealt(name, settings, pool)
    smallest = min(range(len(owned)), key=lambda client: len(owned[client]))
    if name != "natural" and len(owned[smallest]) < pool.min_rows:
        raise ScenarioError(
            f"data.partition: client {smallest} gets {len(owned[smallest])} rows, and data.min_rows is "
            f"{pool.min_rows}; deal less unevenly, to fewer clients, or lower data.min_rows"
        )
    return owned


def _dealt(name: str, settings: Mapping[str, Any], pool: Pool) -> list[np.ndarray]:
    if name not in KINDS:
        raise ScenarioError(f"data.partition.kind: there is no {name!r}.{registry.nearest(name, KINDS)}")
    bound = registry.bind(KINDS[name], settings, "data.partition", reserved=("pool",))
    if "clients" in bound:
        _check_clients(bound["clients"], pool)
    owned: list[np.ndarray] = registry.call(KINDS[name], "data.partition", pool=pool, **bound)
    return owned


def iid(pool: Pool, clients: int) -> list[np.ndarray]:
    """Rows at random, the same number to everyone (give or take one).

    Args:
        pool: the rows.
        clients: number of clients.
    """
    return _sorted(np.array_split(pool.rng.permutation(pool.size), clients))


def shards(pool: Pool, clients: int, shards: int = 2) -> list[np.ndarray]:
    """Sort rows by label, cut them into clients * shards shards and deal each client the same number.

    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    section 3 ("pathological non-IID").

    Args:
        pool: the rows, with labels.
        clients: number of clients.
        shards: for each client; few shards are few labels.

    Raises:
        ScenarioError: no labels, or more shards than rows.
    """
    labels = _labels(pool, "shards")
    _at_least("shards", shards, 1)
    if clients * shards > pool.size:
        raise ScenarioError(
            f"data.partition: {clients} clients with {shards} shards each are {clients * shards} shards, more than "
            f"the {pool.size} rows; lower clients or shards"
        )
    cut = np.array_split(np.argsort(labels, kind="stable"), clients * shards)
    dealt = pool.rng.permutation(clients * shards).reshape(clients, shards)
    return _sorted([np.concatenate([cut[shard] for shard in mine]) for mine in dealt])


def dirichlet(pool: Pool, clients: int, alpha: float) -> list[np.ndarray]:
    """Spread each label's rows over the clients by Dirichlet(alpha).

    Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019, section 4;
    Hsu et al. 2019 draw each client's label mix instead, at equal sizes. Here sizes differ too. Smaller alpha
    is more uneven, alpha -> infinity is iid. Drawn again, up to 1,000 times, until everyone has `min_rows`.

    Args:
        pool: the rows, with labels.
        clients: number of clients.
        alpha: concentration, above 0 and at most 1e300.

    Raises:
        ScenarioError: no labels, alpha out of range, or 1,000 draws leave somebody with too few rows.
    """
    labels = _labels(pool, "dirichlet")
    if not 0 < alpha <= _LARGEST_ALPHA:
        raise ScenarioError(f"data.partition.alpha = {alpha}: give a number above 0 and at most {_LARGEST_ALPHA:g}")
    totals = np.unique(labels, return_counts=True)[1]
    for _ in range(_DRAWS):
        spread = pool.rng.dirichlet(np.full(clients, alpha), size=len(totals))
        counts = _apportioned(spread, totals)
        if counts.sum(axis=0).min() >= pool.min_rows:
            return _by_counts(pool, labels, counts)
    raise ScenarioError(
        f"data.partition: after {_DRAWS} draws with alpha = {alpha} some of {clients} clients still has fewer than "
        f"data.min_rows = {pool.min_rows} rows; raise alpha, lower clients or data.min_rows"
    )


def labels(pool: Pool, clients: int, labels_per_client: int) -> list[np.ndarray]:
    """Give each client rows of a fixed number of labels; owners of a label share its rows evenly.

    Li et al., "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022, "#C = k". Labels
    are dealt so that their numbers of owners differ by one at most.

    Args:
        pool: the rows, with labels.
        clients: number of clients.
        labels_per_client: k, at most the number of labels.

    Raises:
        ScenarioError: no labels, or k or clients too small or too large for every label to have an owner.
    """
    values, totals = np.unique(_labels(pool, "labels"), return_counts=True)
    _at_least("labels_per_client", labels_per_client, 1)
    if labels_per_client > len(values):
        raise ScenarioError(
            f"data.partition.labels_per_client = {labels_per_client}: there are only {len(values)} labels"
        )
    if clients * labels_per_client < len(values):
        raise ScenarioError(
            f"data.partition: {clients} clients with {labels_per_client} labels each cannot own all {len(values)} "
            "labels; raise clients or labels_per_client"
        )
    owns = np.zeros((len(values), clients), dtype=np.int64)
    for client in range(clients):
        least_owned = np.lexsort((pool.rng.random(len(values)), owns.sum(axis=1)))
        owns[least_owned[:labels_per_client], client] = 1
    return _by_counts(pool, _labels(pool, "labels"), _apportioned(owns / owns.sum(axis=1, keepdims=True), totals))


def quantity(pool: Pool, clients: int, alpha: float = 1.0) -> list[np.ndarray]:
    """Rows at random, in numbers that follow a power law: client k gets a share proportional to (k + 1)^-alpha.

    Everyone first gets `min_rows`; the power law holds for the rest. alpha = 0 is iid.

    Args:
        pool: the rows.
        clients: number of clients.
        alpha: exponent, >= 0.

    Raises:
        ScenarioError: alpha below 0.
    """
    if not 0 <= alpha < float("inf"):
        raise ScenarioError(f"data.partition.alpha = {alpha}: give a number of at least 0")
    share = np.arange(1, clients + 1) ** -float(alpha)
    rest = np.array([pool.size - clients * pool.min_rows])
    sizes = pool.min_rows + _apportioned(share[None] / share.sum(), rest)[0]
    return _sorted(np.split(pool.rng.permutation(pool.size), np.cumsum(sizes)[:-1]))


def natural(pool: Pool) -> list[np.ndarray]:
    """Rows as the corpus' own clients hold them; `min_rows` is left to the caller, who knows their names.

    Raises:
        ScenarioError: the corpus has no natural clients.
    """
    if pool.owners is None:
        raise ScenarioError(
            "data.partition.kind = 'natural' needs a corpus with clients of its own, and this one has none (for "
            "mnist set data.writers = true, for a CSV data.client); use another kind"
        )
    order = np.argsort(pool.owners, kind="stable")
    return np.split(order, np.cumsum(np.bincount(pool.owners))[:-1])


KINDS: Mapping[str, Kind] = {
    "iid": iid,
    "shards": shards,
    "dirichlet": dirichlet,
    "labels": labels,
    "quantity": quantity,
    "natural": natural,
}
"""Every kind of partition by its name in a scenario."""


def _check_clients(clients: int, pool: Pool) -> None:
    _at_least("clients", clients, 1)
    if clients * pool.min_rows > pool.size:
        raise ScenarioError(
            f"data.partition.clients = {clients}: {pool.size} rows cannot give everyone data.min_rows = "
            f"{pool.min_rows}; lower clients or data.min_rows"
        )
    if clients > max(pool.size, _MOST_CLIENTS):
        raise ScenarioError(
            f"data.partition.clients = {clients}: most would have none of the {pool.size} rows; give at most "
            f"{max(pool.size, _MOST_CLIENTS)}"
        )


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise ScenarioError(f"data.partition.{key} = {value}: give at least {least}")


def _labels(pool: Pool, kind: str) -> np.ndarray:
    if pool.labels is None:
        raise ScenarioError(
            f"data.partition.kind = {kind!r} needs a class for every row, and these data have none; use iid, "
            "quantity or natural"
        )
    return pool.labels


def _apportioned(shares: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Whole numbers [L, K] near shares [L, K] * totals [L], each row adding up to its total."""
    ends = np.rint(np.cumsum(shares, axis=1) * totals[:, None]).astype(np.int64)
    ends[:, -1] = totals
    return np.diff(ends, axis=1, prepend=0)


def _by_counts(pool: Pool, labels: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Deal each label's rows at random, counts[label, client] of them to every client."""
    shuffled = pool.rng.permutation(pool.size)
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    owner = np.repeat(np.tile(np.arange(counts.shape[1]), len(counts)), counts.ravel())
    by_client = by_label[np.argsort(owner, kind="stable")]
    return _sorted(np.split(by_client, np.cumsum(counts.sum(axis=0))[:-1]))


def _sorted(dealt: list[np.ndarray]) -> list[np.ndarray]:
    return [np.sort(rows) for rows in dealt]
