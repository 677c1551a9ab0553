"""The private gradient against one-example autograd, for every kind of model."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn import functional

from fedsim import seeds
from fedsim.errors import ModelError
from fedsim.models.cnn import cnn
from fedsim.models.lstm import lstm
from fedsim.models.mlp import mlp
from fedsim.models.transformer import transformer
from fedsim.parameters import FlatModule, layout_of
from fedsim.privacy.batches import poisson_batch
from fedsim.privacy.example import clipped_gradient_sum, forget, noisy_gradient, private_module, unit_gradients


class TiedTwice(nn.Module):
    """One layer called twice and one weight in two layers, both large enough to be kept as factors otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 12)
        self.twice = nn.Linear(12, 12)
        self.head = nn.Linear(12, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.twice(self.twice(self.embed(x)).tanh()))
        return logits


class OwnPositions(nn.Module):
    """A parameter of the model itself, beside its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.positions = nn.Parameter(torch.randn(6, 5))
        self.head = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(x) + self.positions)
        return logits


class PositionsOnce(nn.Module):
    """Positions looked up once for the batch: Opacus takes them for rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions, self.head = nn.Embedding(7, 5), nn.Embedding(6, 5), nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(x) + self.positions(torch.arange(x.shape[1])))
        return logits


class WeightOutside(nn.Module):
    """An embedding whose weight is used by hand as well: Opacus sees the first use only."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle = nn.Embedding(7, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.middle(self.embed(x)), self.embed.weight)


class TimeFirst(nn.Module):
    """A layer that is given time as the first dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4), nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(x.transpose(0, 1))[0]).transpose(0, 1)
        return logits


class Padded(nn.Module):
    """Windows that end in padding, whose vector is not learned."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 5, padding_idx=3)
        self.head = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(x)).mean(1)
        return logits


class Grid(nn.Module):
    """A dense layer over places in two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 24), nn.Linear(24, 7)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).tanh().mean((1, 2)))
        return logits


def recurrent(**keys: Any) -> nn.Module:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True, **keys)
            self.head = nn.Linear(8 if self.lstm.bidirectional else 4, 7)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.lstm(x)[0])
            return logits

    return Recurrent()


class InPlace(nn.Module):
    """Work in place on a dense layer's output over places, which is a view, and a branch that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.aside, self.head = nn.Linear(8, 9), nn.Linear(8, 9), nn.Linear(9, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x).mul_(2)
        logits: Tensor = self.head(functional.relu_(self.body(x)).mul(2).sub_(1)).mean(1)
        return logits


def group_norm(groups: int, channels: int) -> nn.Module:
    """One whose factors and shifts are not where they start."""
    norm = nn.GroupNorm(groups, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


class Halved(nn.Linear):
    """A dense layer of another kind."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / 2


def frozen_parts() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 7))
    model.get_parameter("0.bias").requires_grad = False
    model.get_parameter("2.weight").requires_grad = False
    return model


def tokens(rows: int, length: int, vocabulary: int) -> Tensor:
    """Windows in which tokens repeat within a row and a row is constant."""
    drawn = torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))
    drawn[:, length // 2 :] = drawn[:, : length - length // 2]
    drawn[0] = 3
    return drawn


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


Case = tuple[Callable[[], nn.Module], Tensor]
CASES: dict[str, Case] = {
    "mlp": (lambda: mlp((1, 4, 4), 7, "classification", hidden=(6, 5)), floats(9, 1, 4, 4)),
    "cnn": (lambda: cnn((1, 8, 8), 7, "classification", channels=(4, 6), norm="group"), floats(9, 1, 8, 8)),
    "lstm": (lambda: lstm((6,), 7, "next-token", width=5, vocabulary=7), tokens(9, 6, 7)),
    "lstm pooled": (lambda: lstm((6, 3), 7, "classification", width=5), floats(9, 6, 3)),
    "transformer": (lambda: transformer((6,), 7, "next-token", width=8, heads=2, vocabulary=7), tokens(9, 6, 7)),
    "as many rows as steps": (lambda: transformer((6,), 7, "next-token", width=8, vocabulary=7), tokens(6, 6, 7)),
    "bidirectional lstm": (lambda: recurrent(num_layers=2, bidirectional=True), floats(5, 6, 3)),
    "lstm without bias": (lambda: recurrent(bias=False), floats(5, 6, 3)),
    "tied and called twice": (TiedTwice, tokens(5, 6, 7)),
    "parameter of the model itself": (OwnPositions, tokens(5, 6, 7)),
    "padding": (Padded, tokens(5, 6, 7)),
    "places in two dimensions": (Grid, floats(5, 3, 2, 8)),
    "frozen parts": (frozen_parts, floats(5, 3, 8)),
    "a dense layer's heir": (lambda: nn.Sequential(Halved(8, 24), nn.Tanh(), nn.Linear(24, 7)), floats(5, 8)),
    "work in place": (lambda: nn.Sequential(nn.Linear(8, 9), nn.ReLU(inplace=True), nn.Linear(9, 7)), floats(5, 8)),
    "work in place on places": (InPlace, floats(5, 3, 8)),
    "norms": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3), group_norm(3, 6), nn.LayerNorm((4, 4)), nn.Flatten(), nn.LayerNorm(96), nn.Linear(96, 7)
        ),
        floats(5, 4, 6, 6),
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    """A float64 model, rows and targets."""
    make, inputs = CASES[request.param]
    with seeds.scope(2, "model"):
        model = make().double()
    targets = torch.randint(0, 7, model(inputs).shape[:-1], generator=torch.Generator().manual_seed(3))
    return model, inputs, targets


def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
    """[B] mean loss over each row's places."""
    each = functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return each.view(len(targets), -1).mean(1)


def one_by_one(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """[B, D] the gradient of every row alone, by plain autograd on the plain model."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = []
    for x, y in zip(inputs, targets, strict=True):
        loss = losses_of(model(x[None]), y[None]).sum()
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


def clipped(gradients: Tensor, bound: float) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
    return gradients * (bound / norms).clamp(max=1)


def test_the_clipped_sum_is_that_of_one_example_autograd(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    """With a bound that clips about half the rows; twice, since nothing may stay from the first step."""
    model, inputs, targets = case
    each = one_by_one(model, inputs, targets)
    bound = float(each.norm(dim=1).median())
    expected = clipped(each, bound).sum(0)
    flat = private_module(model, "case")
    for _ in range(2):
        found = clipped_gradient_sum(flat, losses_of(flat.module(inputs), targets), bound)
        assert (found - expected).norm() <= 1e-9 * expected.norm()
        flat.check()


def test_the_twin_has_the_plain_models_layout_weights_and_outputs(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, inputs, _ = case
    before = copy.deepcopy(model.state_dict())
    flat, plain = private_module(model, "case"), FlatModule(copy.deepcopy(model))
    assert flat.layout == plain.layout == layout_of(model)
    assert torch.equal(flat.vector, plain.vector)
    torch.testing.assert_close(flat.module(inputs), plain.module(inputs), rtol=1e-9, atol=1e-11)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_weights_move_between_lstm_and_twin_by_name() -> None:
    """What a private client trained is loaded by the server's plain model, and the other way round."""
    with seeds.scope(3, "model"):
        model = recurrent(num_layers=2).double()
    flat, plain = private_module(model, "lstm"), FlatModule(copy.deepcopy(model))
    with torch.no_grad():
        flat.vector.add_(torch.linspace(-1, 1, len(flat.vector), dtype=torch.float64))
    plain.vector.copy_(flat.vector)
    inputs = floats(5, 6, 3)
    torch.testing.assert_close(flat.module(inputs), plain.module(inputs), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("per_layer", [False, True])
def test_one_row_more_or_less_moves_the_sum_by_at_most_the_bound(
    case: tuple[nn.Module, Tensor, Tensor], per_layer: bool
) -> None:
    """The sensitivity on neighbouring data sets, zero-out."""
    model, inputs, targets = case
    flat, bound = private_module(model, "case"), 0.01

    def total(rows: Tensor) -> Tensor:
        losses = losses_of(flat.module(inputs[rows]), targets[rows])
        return clipped_gradient_sum(flat, losses, bound, per_layer=per_layer).clone()

    everyone = total(torch.arange(len(inputs)))
    for left_out in range(len(inputs)):
        neighbour = total(torch.arange(len(inputs))[torch.arange(len(inputs)) != left_out])
        assert (everyone - neighbour).norm() <= bound * (1 + 1e-9)


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "lstm pooled"])
def test_ghost_norms_clip_as_opacus_fast_gradient_clipping_does(name: str) -> None:
    """Its two backward passes, to within the 1e-6 that it adds to norms, on the models that it takes."""
    make, inputs = CASES[name]
    with seeds.scope(2, "model"):
        model = make().double()
    targets = torch.randint(0, 7, model(inputs).shape[:-1], generator=torch.Generator().manual_seed(3))
    bound = float(one_by_one(model, inputs, targets).norm(dim=1).median())
    fixed = ModuleValidator.fix(model).double()
    theirs = GradSampleModuleFastGradientClipping(fixed, max_grad_norm=bound, loss_reduction="sum")
    losses = losses_of(theirs(inputs), targets)
    torch.autograd.backward(losses.sum(), retain_graph=True)
    theirs.zero_grad()
    theirs.disable_hooks()
    torch.autograd.backward((theirs.get_clipping_coef() * losses).sum())
    gradients = {key.removeprefix("_module."): parameter.grad for key, parameter in theirs.named_parameters()}
    expected = torch.cat([gradients[slot.name].flatten() for slot in layout_of(model).parameters])
    flat = private_module(model, "case")
    found = clipped_gradient_sum(flat, losses_of(flat.module(inputs), targets), bound)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("model", "inputs", "share"),
    [
        (lambda: mlp((1, 28, 28), 10, "classification", preset="2nn"), floats(9, 1, 28, 28), 0.02),
        (lambda: cnn((1, 28, 28), 10, "classification", preset="mcmahan"), floats(9, 1, 28, 28), 0.05),
        (lambda: transformer((20,), 256, "next-token"), tokens(9, 20, 256), 0.5),
    ],
)
def test_few_numbers_are_kept_beside_every_rows_gradient(
    model: Callable[[], nn.Module], inputs: Tensor, share: float
) -> None:
    """Gradients of large dense layers and embeddings would not fit into memory if kept for each row."""
    flat = private_module(model(), "large")
    losses = flat.module(inputs.float() if inputs.is_floating_point() else inputs).flatten(1).sum(1)
    kept = [part for rows in unit_gradients(flat, losses, None) for part in vars(rows).values()]
    assert sum(part.numel() for part in kept if isinstance(part, Tensor)) < share * len(inputs) * flat.layout.size


def test_each_parameter_may_have_a_clip_of_its_own(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    """C / sqrt(P) for each of P parameters, whichever the batch uses: the parts of all rows, clipped one by one."""
    model, inputs, targets = case
    each, layout = one_by_one(model, inputs, targets), layout_of(model)
    bound = float(each.norm(dim=1).median())
    parts = [
        clipped(each[:, slot.start : slot.stop], bound / len(layout.parameters) ** 0.5) for slot in layout.parameters
    ]
    expected = torch.cat(parts, dim=1)
    assert (expected.norm(dim=1) <= bound * (1 + 1e-9)).all()
    flat = private_module(model, "case")
    found = clipped_gradient_sum(flat, losses_of(flat.module(inputs), targets), bound, per_layer=True)
    assert (found - expected.sum(0)).norm() <= 1e-9 * expected.sum(0).norm()


def test_a_single_row_is_clipped_as_it_is_among_others() -> None:
    model, inputs, targets = mlp((4,), 3, "classification").double(), floats(5, 4), torch.tensor([0, 1, 2, 0, 1])
    flat, expected = private_module(model, "mlp"), clipped(one_by_one(model, inputs, targets), 0.1)
    for row in range(5):
        one = slice(row, row + 1)
        found = clipped_gradient_sum(flat, losses_of(flat.module(inputs[one]), targets[one]), 0.1)
        torch.testing.assert_close(found, expected[row], rtol=1e-9, atol=1e-12)


HEAVY: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a place": (lambda: mlp((400,), 10, "classification", hidden=(500,)), (400,)),
    "few places, as factors": (lambda: nn.Sequential(nn.Linear(300, 200), nn.ReLU(), Mean()), (9, 300)),
    "many places": (lambda: nn.Sequential(nn.Linear(30, 200), nn.ReLU(), Mean()), (90, 30)),
    "images": (lambda: cnn((3, 16, 16), 10, "classification", preset="32-64-128", norm="group"), (3, 16, 16)),
    "hooks": (lambda: nn.Sequential(Halved(400, 300), nn.Tanh(), nn.Linear(300, 10)), (400,)),
}


class Mean(nn.Module):
    """Over places."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, I] to [B, I]."""
        return x.mean(1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("name", HEAVY)
@pytest.mark.parametrize("per_layer", [False, True])
def test_a_float32_clipped_norm_measured_in_float64_keeps_the_bound(name: str, scale: float, per_layer: bool) -> None:
    """C (1 + 2^-23), on heavy-tailed gradients of some ten or hundred thousand coordinates, and close below it."""
    make, shape = HEAVY[name]
    with seeds.scope(4, "model"):
        model = make()
    heavy = seeds.numpy_generator(4, "rows").standard_t(2, (4, *shape)).astype(np.float32)
    flat, bound = private_module(model, name), 1e-4
    for x in torch.from_numpy(heavy * scale):
        logits = flat.module(x[None])
        losses = losses_of(logits, logits.argmin(1))  # the least likely class, so that no softmax saturates
        found = clipped_gradient_sum(flat, losses, bound, per_layer=per_layer).double()
        if per_layer:
            part = bound / len(flat.layout.parameters) ** 0.5
            norms = torch.stack([found[slot.start : slot.stop].norm() for slot in flat.layout.parameters])
            assert (norms <= part * (1 + 2**-23)).all() and (norms > part * (1 - 1e-5)).any()
        else:
            assert bound * (1 - 1e-5) <= found.norm() <= bound * (1 + 2**-23)


def test_small_gradients_are_not_touched() -> None:
    model = mlp((4,), 3, "classification").double()
    inputs, targets = floats(5, 4), torch.tensor([0, 1, 2, 0, 1])
    flat = private_module(model, "mlp")
    found = clipped_gradient_sum(flat, losses_of(flat.module(inputs), targets), 1e6)
    torch.testing.assert_close(found, one_by_one(model, inputs, targets).sum(0), rtol=1e-12, atol=1e-14)


def test_noise_has_its_size_and_its_generator_decides_it() -> None:
    """(sum + z C N) / (q n): what remains after the mean is normal with deviation z C / (q n)."""
    total = torch.linspace(-1, 1, 200_000)
    draw = [noisy_gradient(total.clone(), 2.0, 0.5, 32.0, seeds.numpy_generator(1, "noise")) for _ in range(2)]
    assert torch.equal(*draw)
    noise = (draw[0] - total / 32) * 32
    assert abs(float(noise.mean())) < 5 / 200_000**0.5
    assert float(noise.std()) == pytest.approx(1.0, rel=0.01)
    assert torch.equal(noisy_gradient(total.clone(), 0.0, 0.5, 32.0, seeds.numpy_generator(1, "noise")), total / 32)


def test_mean_over_poisson_batches_is_the_full_gradient() -> None:
    """Divided by q n, not by the size of the batch, the gradient is unbiased."""
    model = mlp((4,), 3, "classification", hidden=()).double()
    inputs, targets = floats(30, 4), torch.arange(30) % 3
    expected = clipped(one_by_one(model, inputs, targets), 0.3).sum(0) / 30
    flat, generator = private_module(model, "mlp"), seeds.numpy_generator(1, "batches")
    mean = torch.zeros_like(expected)
    for _ in range(1500):
        rows = torch.from_numpy(poisson_batch(30, 0.3, generator))
        if len(rows):
            mean += clipped_gradient_sum(flat, losses_of(flat.module(inputs[rows]), targets[rows]), 0.3) / 9 / 1500
    assert (mean - expected).norm() < 0.1 * expected.norm()


def test_neither_twin_nor_its_trial_draws_from_global_generators() -> None:
    """Dropout's draws, and so a run's bits, do not depend on whether a worker has built its twin before."""
    with seeds.scope(1, "test"):
        untouched = torch.rand(3)
    model = lstm((6,), 7, "next-token", vocabulary=7)
    with seeds.scope(1, "test"):
        flat = private_module(model, "lstm")
        flat.module(tokens(4, 6, 7))
        assert torch.equal(torch.rand(3), untouched)


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("owners", [None, [0, 1, 2, 1, 0]])
def test_a_unit_that_is_not_finite_counts_as_none_and_leaves_nothing_behind(
    per_layer: bool, owners: list[int] | None
) -> None:
    """Were its client to fail for it, one row would make a whole upload vanish, and no noise hides that."""
    model = mlp((4,), 3, "classification").double()
    inputs, targets = floats(5, 4), torch.tensor([0, 1, 2, 0, 1])
    flat = private_module(model, "mlp")
    units = torch.tensor(owners) if owners is not None else None

    def total(rows: Tensor, chosen: Tensor, units: Tensor | None) -> Tensor:
        losses = losses_of(flat.module(rows), targets[chosen])
        return clipped_gradient_sum(flat, losses, 0.1, owners=units, per_layer=per_layer).clone()

    everything, others = torch.arange(5), torch.tensor([0, 1, 3, 4])  # row 2 is a unit of its own
    expected = total(inputs[others], others, torch.tensor([0, 1, 1, 0]) if units is not None else None)
    for odd in (float("nan"), float("inf"), 1e308):
        broken = inputs.clone()
        broken[2, 1] = odd
        assert torch.allclose(total(broken, everything, units), expected, rtol=1e-12, atol=1e-15)
    assert not total(torch.full_like(inputs, float("nan")), everything, units).any()
    flat.module(inputs)  # a forward pass whose loss raised
    forget(flat)
    assert torch.allclose(total(inputs[others], others, torch.tensor([0, 1, 1, 0]) if owners else None), expected)


@pytest.mark.parametrize(
    ("layer", "advice"),
    [
        (nn.BatchNorm2d(4), r"layer '1' \(BatchNorm2d\) cannot be trained with privacy.example. Use GroupNorm"),
        (nn.BatchNorm2d(4, affine=False), "Use GroupNorm"),
        (nn.InstanceNorm2d(4, track_running_stats=True), "track_running_stats=False"),
        (nn.GRU(4, 4), "Use nn.LSTM"),
        (nn.LSTM(4, 4, 2, dropout=0.1), "dropout to 0"),
        (nn.MultiheadAttention(4, 2), "scaled_dot_product_attention"),
        (nn.Embedding(4, 4, max_norm=1.0), "Leave max_norm unset"),
        (nn.Embedding(4, 4, scale_grad_by_freq=True), "Leave scale_grad_by_freq unset"),
    ],
)
def test_a_layer_that_cannot_be_private_is_named(layer: nn.Module, advice: str) -> None:
    with pytest.raises(ModelError, match=advice):
        private_module(nn.Sequential(nn.Conv2d(1, 4, 3), layer), "mine")


@pytest.mark.parametrize(
    ("model", "inputs"),
    [(PositionsOnce(), tokens(6, 6, 7)), (WeightOutside(), tokens(4, 6, 7)), (TimeFirst(), floats(6, 6, 3).float())],
)
def test_a_model_whose_per_example_gradients_would_be_silently_wrong_is_refused(
    model: nn.Module, inputs: Tensor
) -> None:
    """Every time, so that a client that fails first does not let the others pass."""
    flat = private_module(model, "mine")
    for _ in range(2):
        with pytest.raises(ModelError, match="batch as its first dimension"):
            flat.module(inputs)


class Mixing(nn.Module):
    """Two layers with plain code between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(4, 5), between, nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.between(self.first(x)))
        return logits


MIXTURES: list[Callable[[Tensor], Tensor]] = [
    lambda x: x - x.mean(0),
    lambda x: x.softmax(0),
    lambda x: x / x.abs().max(),
    lambda x: x.roll(1, 0),
    lambda x: x.sort(0).values,
    lambda x: x / len(x),
]


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_model_that_mixes_rows_is_refused_whatever_its_first_batch(
    mixture: Callable[[Tensor], Tensor], rows: int
) -> None:
    """One row more would move every row's clipped gradient: the sensitivity would be above C."""
    flat = private_module(Mixing(mixture), "mine")
    with pytest.raises(ModelError, match="depends on the other rows of its batch"):
        flat.module(floats(1, 4).float().repeat(rows, 1))


def test_tokens_that_are_all_alike_do_not_hide_a_mixture() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), Mixing(lambda x: x - x.mean(0)))
    with pytest.raises(ModelError, match="depends on the other rows"):
        private_module(model, "mine").module(torch.full((4, 6), 3))


def test_dropout_is_not_taken_for_a_mixture() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3))
    flat = private_module(model, "mine")
    flat.module(floats(6, 4).float())
    assert all(layer.training for layer in flat.module.modules())


class Statistics(nn.Module):
    """A layer that keeps a mean of what it saw."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.add_(x.detach().sum(0))
        return x


def test_a_model_that_keeps_what_it_saw_of_rows_is_refused() -> None:
    """Its buffer would be sent beside the noised update, without noise; nothing of the trial stays in it."""
    flat = private_module(nn.Sequential(Statistics(), nn.Linear(4, 3)), "mine")
    for _ in range(2):
        with pytest.raises(ModelError, match=r"writes what it saw of rows into '0\.mean'"):
            flat.module(floats(6, 4).float())
    assert not flat.buffers.any()


def test_a_first_batch_that_is_not_finite_is_not_the_models_fault() -> None:
    flat = private_module(mlp((4,), 3, "classification").double(), "mlp")
    broken, targets = torch.full((3, 4), float("nan"), dtype=torch.float64), torch.tensor([0, 1, 2])
    assert not clipped_gradient_sum(flat, losses_of(flat.module(broken), targets), 0.1).any()
