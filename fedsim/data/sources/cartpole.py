"""Starts of episodes on carts that differ: what a policy is trained and tested on. Every cart is a client.

The task of Barto, Sutton, Anderson, "Neuronlike adaptive elements that can solve difficult learning control problems",
1983, as in Gymnasium's CartPole, whose pole, gravity and motor are one cart's own here.
Licence: none needed; rows are drawn.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from fedsim import seeds
from fedsim.data.corpus import Corpus, Folders

Count = Annotated[int, Field(ge=1)]
_LEAST, _MOST = (
    (0.2, 6.0, 4.0),
    (1.5, 14.0, 16.0),
)  # half a pole's length in m, gravity in m/s^2, the motor's force in N


def cartpole(
    folders: Folders,
    *,
    clients: Count = 20,
    episodes: Count = 20,
    unseen: Annotated[int, Field(ge=0)] = 10,
    seed: Annotated[int, Field(ge=0)] = 1,
) -> Corpus:
    """Rows of 7: the state at the start (place, speed, angle, its speed), then length, gravity and force of the cart.

    Args:
        folders: not used; no file is needed.
        clients: carts; length, gravity and force of each are drawn evenly between about half and three times the
            usual ones.
        episodes: rows of each. States are drawn as Gymnasium draws them, evenly from -0.05 to 0.05.
        unseen: further carts, whose rows are the test set.
        seed: of the draws; those of a cart depend on this and its number alone.
    """
    carts = clients + unseen
    owners = np.repeat(np.arange(carts), episodes)
    return Corpus(
        name="cartpole",
        task="control",
        x=np.concatenate([_rows(cart, episodes, seed) for cart in range(carts)]),
        y=np.zeros(carts * episodes, dtype=np.float32),
        classes=(),
        preprocessing={"kind": "none"},
        clients=np.where(owners < clients, owners, -1),
        client_names=tuple(f"cart {number}" for number in range(clients)),
        own_test=owners >= clients if unseen else None,
        test_units=owners if unseen else None,
    )


def _rows(cart: int, episodes: int, seed: int) -> np.ndarray:
    """[episodes, 7] float32."""
    draws = seeds.numpy_generator(seed, "cartpole", 0, cart)
    physics = np.broadcast_to(draws.uniform(_LEAST, _MOST), (episodes, 3))
    return np.concatenate([draws.uniform(-0.05, 0.05, (episodes, 4)), physics], axis=1).astype(np.float32)
