"""A client's state counts once its round was accepted; the driver's store and Flower's Context keep one rule."""

from typing import Protocol

import pytest
import torch
from flwr.app import Context, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedsim.states import ClientStates, ContextStates, State


class Store(Protocol):
    def get(self, client: int, accepted_round: int) -> State | None: ...

    def put(self, client: int, round: int, state: State) -> None: ...


def stores() -> list[Store]:
    return [ClientStates(), ContextStates(Context(1, 2, {}, RecordDict(), {}))]


def value(state: State | None) -> float | None:
    return None if state is None else float(state["control"])


def state(number: int) -> State:
    return {"control": torch.tensor([float(number)])}


@given(st.lists(st.booleans(), max_size=12))
def test_the_state_is_that_of_the_last_accepted_round(accepted: list[bool]) -> None:
    """Whatever rounds the server gave up in between: a list of accepted rounds is the whole oracle."""
    for store in stores():
        last, expected = 0, None
        for number, kept in enumerate(accepted, start=1):
            assert value(store.get(0, last)) == expected
            store.put(0, number, state(number))
            if kept:
                last, expected = number, float(number)
        assert value(store.get(0, last)) == expected


@pytest.mark.parametrize("place", [0, 1])
def test_before_its_first_round_a_client_has_no_state(place: int) -> None:
    assert stores()[place].get(0, 0) is None


def test_clients_do_not_see_each_other() -> None:
    store = ClientStates()
    for client in (1, 2):
        store.put(client, 1, state(client))
    assert [value(store.get(client, 1)) for client in (0, 1, 2)] == [None, 1.0, 2.0]
