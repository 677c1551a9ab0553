"""Each row's gradient from what layers see, against one-example autograd, and models that are not tapped."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsim import seeds
from fedsim.errors import ModelError
from fedsim.privacy import example
from fedsim.privacy.example import private_module, unit_gradients
from fedsim.privacy.lstm import PrivateLSTM
from fedsim.privacy.rows import Products, Whole
from fedsim.privacy.taps import Taps
from tests.privacy.test_example import (
    CASES,
    InPlace,
    TiedTwice,
    floats,
    losses_of,
    one_by_one,
    tokens,
)

CONVOLUTIONS: tuple[Callable[..., nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def check(model: nn.Module, inputs: Tensor) -> None:
    """Every row's gradient of every parameter is autograd's for the row alone, and so is its norm."""
    model = model.double()
    targets = torch.zeros(model(inputs).shape[:-1], dtype=torch.long)
    expected = one_by_one(model, inputs, targets)
    flat = private_module(model, "case")
    found = unit_gradients(flat, losses_of(flat.module(inputs), targets), None)
    for slot, gradients in zip(flat.layout.parameters, found, strict=True):
        part = expected[:, slot.start : slot.stop]
        if gradients is None:
            assert not part.any()
        else:
            torch.testing.assert_close(gradients.each(), part, rtol=1e-9, atol=1e-12)
            # Rounded up: by the root of the rounding where places take each other back.
            torch.testing.assert_close(gradients.norms(), part.norm(dim=1), rtol=1e-9, atol=1e-6)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_convolutions_of_all_kinds(data: st.DataObject) -> None:
    """Dimensions, channels, groups, kernel, stride, padding, dilation, with and without bias."""
    dimensions = data.draw(st.integers(1, 3))
    sizes = [data.draw(st.integers(1, 9 - 2 * dimensions)) for _ in range(dimensions)]
    each = st.integers(1, 3)
    kernel, stride, dilation = (tuple(data.draw(each) for _ in range(dimensions)) for _ in range(3))
    groups, per_group = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 9]))
    mode = data.draw(st.sampled_from(["zeros", "zeros", "reflect", "circular", "replicate"]))
    padding: str | tuple[int, ...] = tuple(data.draw(st.integers(0, 2)) for _ in range(dimensions))
    if data.draw(st.booleans()):
        padding = data.draw(st.sampled_from(["valid", "same"] if set(stride) == {1} else ["valid"]))
    layer = CONVOLUTIONS[dimensions - 1](
        groups * per_group,
        groups * data.draw(each),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=data.draw(st.booleans()),
        padding_mode=mode,
    ).double()
    inputs = floats(data.draw(st.integers(1, 4)), groups * per_group, *sizes)
    try:
        layer(inputs)
    except RuntimeError:  # a kernel larger than the image, or more padding than it can be reflected by
        assume(False)
    check(nn.Sequential(layer, nn.Tanh(), nn.Flatten()), inputs)


@pytest.mark.parametrize("size", [2, 40])
@pytest.mark.parametrize("channels", [3, 16])
def test_convolutions_as_factors_and_whole(channels: int, size: int) -> None:
    """Few places and many: whichever form is taken."""
    model = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()).double()
    inputs = floats(3, channels, size, size)
    check(model, inputs)
    flat = private_module(model, "case")
    first, *_ = unit_gradients(flat, flat.module(inputs).sum(1), None)
    assert isinstance(first, Products if size == 2 else Whole)


class Twice(nn.Module):
    """Layers of every kind, each called twice, once on other places than the other time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.dense, self.norm = nn.Embedding(7, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.convolve, self.groups = nn.Conv1d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.embed(x) + self.embed(x[:, :1]).tanh()
        stream = self.norm(self.dense(self.norm(stream)).tanh())
        channels = self.groups(self.convolve(self.groups(self.convolve(stream.mT)).tanh()))
        logits: Tensor = channels.mean(2) + self.dense(stream[:, 0])
        return logits


@pytest.mark.parametrize("model", [Twice, TiedTwice])
def test_a_layer_called_twice_or_a_weight_of_two_layers_is_added_up(model: Callable[[], nn.Module]) -> None:
    with seeds.scope(1, "model"):
        check(model(), tokens(5, 6, 7))


@pytest.mark.parametrize(
    ("keys", "ends"),
    [({}, 1), ({"batch_first": True, "num_layers": 2, "bidirectional": True}, 4), ({"bias": False}, 1)],
)
def test_a_private_lstm_is_torchs(keys: dict[str, Any], ends: int) -> None:
    """Outputs, last states and what a first state does to them, for a batch of either layout."""
    layer = nn.LSTM(3, 4, **keys).double()
    twin, x = PrivateLSTM(layer), floats(5, 5, 3)
    state = floats(ends, 5, 4), floats(ends, 5, 4).tanh()
    for found, expected in ((twin(x), layer(x)), (twin(x, state), layer(x, state))):
        for one, other in zip(_flat(found), _flat(expected), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_packed_sequences_are_refused() -> None:
    packed = nn.utils.rnn.pack_sequence([floats(4, 3), floats(2, 3)])
    with pytest.raises(ModelError, match="equally long sequences; pad them"):
        PrivateLSTM(nn.LSTM(3, 4))(packed)


def _flat(outputs: tuple[Tensor, tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [outputs[0], *outputs[1]]


def test_models_of_known_layers_are_tapped() -> None:
    """The others are left to Opacus' hooks."""
    others = {"parameter of the model itself", "a dense layer's heir"}
    for name, (make, _) in CASES.items():
        assert isinstance(example._of(private_module(make(), name)), Taps) == (name not in others)


class ChangedAfterwards(nn.Module):
    """Adds to what its layer saw; autograd, which goes no further than that layer, does not mind."""

    def __init__(self, later: int) -> None:
        super().__init__()
        self.calls, self.later, self.dense = 0, later, nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = x.clone()
        logits: Tensor = self.dense(x)
        if self.calls > self.later:
            x.add_(1)
        return logits


@pytest.mark.parametrize("later", [0, 7])
def test_what_a_layer_saw_must_stay_what_it_was(later: int) -> None:
    """In the trial or afterwards: its gradient would be that of other rows."""
    flat = private_module(ChangedAfterwards(later).double(), "mine")
    with pytest.raises(ModelError, match="changed in place afterwards"):
        unit_gradients(flat, flat.module(floats(5, 8)).sum(1), None)


class Sometimes(nn.Module):
    """Gives its second layer one row for all once it has been tried."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.first, self.second = 0, nn.Linear(8, 8), nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        stream = self.first(x)
        logits: Tensor = self.second(stream if self.calls < 8 else stream[:1]).expand(len(x), -1)
        return logits


def test_a_layer_that_is_not_given_the_batch_is_refused_at_any_time() -> None:
    flat = private_module(Sometimes().double(), "mine")
    with pytest.raises(ModelError, match=r"given \[1, 8\] in a batch of 5 rows"):
        unit_gradients(flat, flat.module(floats(5, 8)).sum(1), None)


def test_nothing_is_noted_where_nothing_is_learned() -> None:
    flat = private_module(InPlace().double(), "mine")
    flat.module(floats(5, 3, 8))
    per_row = example._of(flat)
    assert isinstance(per_row, Taps) and per_row._noted
    per_row.forget()
    with torch.no_grad():
        flat.module(floats(5, 3, 8))
    assert not per_row._noted
