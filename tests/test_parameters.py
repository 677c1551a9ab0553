"""A model as a flat vector: there and back to the bit, and no view is lost without notice."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from fedsim.arrays import encode, view
from fedsim.errors import ModelError
from fedsim.parameters import FlatModule, Weights, fingerprint, from_record, layout_of, to_record, views


def net(kind: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LSTM(4, 2)).to(kind)


def weights(flat: FlatModule) -> Weights:
    return Weights(flat.vector, flat.buffers).clone()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_model_survives_the_way_through_flowers_record(kind: torch.dtype) -> None:
    flat = FlatModule(net(kind))
    sent = weights(flat)
    back = from_record(flat.layout, to_record(flat.layout, sent))
    assert all(torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in zip(sent, back, strict=True))


def test_the_record_is_the_models_state_by_name() -> None:
    """What any Flower program expects; integer buffers are not sent."""
    module = net()
    expected = {name: value.clone() for name, value in module.state_dict().items() if value.is_floating_point()}
    flat = FlatModule(module)
    arrays = to_record(flat.layout, weights(flat)).to_torch_state_dict()
    assert arrays.keys() == expected.keys()
    assert all(torch.equal(arrays[name], expected[name]) for name in expected)


def test_training_moves_the_vector_and_loading_moves_the_model() -> None:
    flat = FlatModule(net()[0])  # type: ignore[index]
    before = weights(flat)
    x = torch.ones(2, 3)
    flat.module(x).sum().backward()
    assert flat.gradient.norm() > 0
    torch.optim.SGD(flat.module.parameters(), lr=0.1).step()
    assert torch.allclose(flat.vector, before.vector - 0.1 * flat.gradient)
    moved = flat.module(x).detach().clone()
    flat.load(before)
    assert not torch.equal(flat.module(x), moved)
    assert torch.equal(flat.vector, before.vector)


def test_views_lie_where_their_slots_say() -> None:
    """Also in a vector that is itself a row of a matrix; scalars and empty tensors have places too."""
    module = net()
    module.register_parameter("scalar", nn.Parameter(torch.tensor(1.0)))
    module.register_parameter("nothing", nn.Parameter(torch.zeros(0, 3)))
    slots = layout_of(module).parameters
    row = torch.arange(3.0 * slots[-1].stop).view(3, -1)[1]
    for slot, part in zip(slots, views(slots, row), strict=True):
        assert torch.equal(part, row[slot.start : slot.stop].reshape(slot.shape))
        assert part.is_contiguous()


def test_running_statistics_are_seen_in_the_buffers() -> None:
    flat = FlatModule(nn.Sequential(nn.BatchNorm1d(2)))
    before = flat.buffers.clone()
    flat.module(torch.randn(8, 2) + 5)
    assert not torch.equal(flat.buffers, before)
    flat.check()


def test_frozen_parameters_stay_out() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    assert layout_of(module).size == 4 * 2 + 2


def _reassign(module: Any) -> None:
    module[0].weight.data = module[0].weight.data.clone()


def _replace(module: Any) -> None:
    module[0].weight = nn.Parameter(torch.zeros(4, 3))


def _drop_gradient(module: Any) -> None:
    module.zero_grad(set_to_none=True)


def _replace_buffer(module: Any) -> None:
    module[1].running_mean = torch.zeros(4)


@pytest.mark.parametrize(
    ("detach", "message"),
    [
        (_reassign, "parameter '0.weight' left the flat vector"),
        (_replace, "parameter '0.weight' left the flat vector"),
        (_drop_gradient, "parameter '0.weight' left the flat vector"),
        (_replace_buffer, "buffer '1.running_mean' left the flat vector"),
        (lambda module: module.double(), "left the flat vector"),
    ],
)
def test_a_lost_view_is_noticed(detach: Any, message: str) -> None:
    """Without the check the model would train, and the vector would stay as it was."""
    flat = FlatModule(net())
    detach(flat.module)
    with pytest.raises(ModelError, match=message):
        flat.load(weights(flat))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.ReLU(), "no trainable parameter"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), "mixes"),
    ],
)
def test_a_model_without_a_flat_vector_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        FlatModule(module)


def test_a_record_of_another_model_is_refused() -> None:
    flat = FlatModule(nn.Linear(3, 2))
    good = to_record(flat.layout, weights(flat))
    with pytest.raises(ModelError, match="do not match its layout: bias"):
        from_record(flat.layout, ArrayRecord({"weight": good["weight"]}))
    with pytest.raises(ModelError, match="'weight' has shape"):
        from_record(flat.layout, ArrayRecord({**good, "weight": Array(np.zeros((2, 4), dtype=np.float32))}))


def test_the_fingerprint_is_what_the_run_folders_page_says() -> None:
    """SHA-256 of parameters, then buffers, little-endian float32."""
    flat = FlatModule(net())
    flat.buffers += 0.5
    values = np.concatenate([flat.vector.numpy(), flat.buffers.numpy()])
    assert fingerprint(weights(flat)) == hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_encoding_is_flowers_own(shape: tuple[int, ...], kind: type) -> None:
    values: np.ndarray = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
    for array in (values, values.T):
        assert encode(array) == Array(array.copy(order="C"))
        assert np.array_equal(view(encode(array)), array)
