"""Clients with much the same linear task, drawn when asked for.

Needs no download, and no memory for the clients that nobody asks for.

After Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, section 5.1, "Synthetic(alpha, beta)".
There clients' tasks have nothing in common; here they vary around one, so that there is something to learn together.
Licence: none needed; rows are drawn.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim import seeds
from fedsim.data.corpus import Folders
from fedsim.data.federation import Rows
from fedsim.data.population import Population

Count = Annotated[int, Field(ge=1)]
Spread = Annotated[float, Field(ge=0)]
FEATURES, CLASSES = 60, 10


def synthetic(
    folders: Folders,
    *,
    clients: Count = 1000,
    rows: Count = 50,
    alpha: Spread = 0.2,
    beta: Spread = 0.5,
    central_clients: Annotated[int, Field(ge=0)] = 40,
    seed: Annotated[int, Field(ge=0)] = 1,
) -> Population:
    """Client k has y = argmax(W_k x + b_k) with a W_k, a b_k and a distribution of x of its own.

    The entries of W_k and b_k are normal with variance alpha around those of W and b, which are drawn from N(0, 1).
    x is normal around v_k with covariance diag(j^-1.2); the entries of v_k are drawn from N(B_k, 1), B_k from
    N(0, beta). 60 features, 10 classes, the same number of rows for all.

    Args:
        folders: not used; no file is needed.
        clients: K.
        rows: of every client.
        alpha: how much clients' tasks differ.
        beta: how much their inputs do.
        central_clients: further clients, whose rows make up the two central sets.
        seed: of the draws; those of a client depend on this and its number alone.
    """
    deviations, shape = np.arange(1, FEATURES + 1) ** -0.6, (FEATURES + 1, CLASSES)
    common = seeds.numpy_generator(seed, "synthetic").standard_normal(shape)

    def of(client: int) -> Rows:
        draws = seeds.numpy_generator(seed, "synthetic", 1, client)
        task = common + alpha**0.5 * draws.standard_normal(shape)
        centre = draws.normal(draws.normal(0, beta**0.5), 1, FEATURES)
        x = draws.normal(centre, deviations, (rows, FEATURES))
        return Rows(x.astype(np.float32), (x @ task[:-1] + task[-1]).argmax(1))

    unseen = [of(clients + number) for number in range(central_clients)]
    return Population(
        name=f"synthetic-{alpha:g}-{beta:g}",
        task="classification",
        sizes=np.broadcast_to(rows, clients),
        rows=of,
        classes=tuple(map(str, range(CLASSES))),
        preprocessing={"kind": "none"},
        test=Rows(*map(np.concatenate, zip(*unseen, strict=True))) if unseen else None,
    )
