"""A tape gives the bits of what it was recorded from, whatever layers do; and what cannot be repeated is not."""

import copy
import math
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils._pytree import tree_leaves

from fedsim import tape
from fedsim.errors import ClientError
from fedsim.signals import time_limit
from fedsim.tape import _AFTER, Repeated, stateless


@pytest.fixture(autouse=True)
def however_slow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "_LONGEST", math.inf)


CALLS = 9
"""Of a function with the same shapes: enough for a tape to be recorded, tried and used."""
Make = Callable[[], nn.Module]


def chain(*layers: nn.Module) -> Make:
    """A model of these layers between two of its own: rows of 8 numbers to 4."""
    return lambda: nn.Sequential(nn.Linear(8, 16), *map(copy.deepcopy, layers), nn.Linear(16, 4))


def of_images(*layers: nn.Module, wide: int) -> Make:
    return lambda: nn.Sequential(nn.Conv2d(1, 8, 3), *map(copy.deepcopy, layers), nn.Flatten(), nn.Linear(wide, 4))


def of_tokens(embedding: nn.Module, wide: int) -> Make:
    return lambda: nn.Sequential(copy.deepcopy(embedding), nn.Flatten(), nn.Linear(wide, 4))


def tied() -> nn.Module:
    layer = nn.Linear(8, 8)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(8, 4))


def frozen() -> nn.Module:
    model = chain(nn.ReLU())()
    model[0].requires_grad_(False)  # type: ignore[index]
    return model


ROWS, IMAGES, TOKENS, TEXTS = (6, 8), (6, 1, 8, 8), (6, 7), (6, 5, 8)
BY_TAPE: dict[str, tuple[Make, tuple[int, ...]]] = {
    "linear": (chain(nn.ReLU()), ROWS),
    "tied": (tied, ROWS),
    "frozen": (frozen, ROWS),
    "in place": (chain(nn.ReLU(inplace=True)), ROWS),
    "in place on views": (
        chain(nn.Unflatten(1, (4, 4)), nn.ReLU6(inplace=True), nn.Flatten(), nn.Tanh()),
        ROWS,
    ),
    "activations": (chain(nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.PReLU(), nn.Softplus(), nn.LogSigmoid()), ROWS),
    "norms": (chain(nn.LayerNorm(16), nn.RMSNorm(16), nn.GroupNorm(2, 16)), ROWS),
    "no dropout": (chain(nn.Dropout(0.0)), ROWS),
    "batch norm without statistics": (chain(nn.BatchNorm1d(16, track_running_stats=False)), ROWS),
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 16)), nn.Linear(16, 4)), ROWS),
    "images": (of_images(nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.GroupNorm(2, 8), wide=72), IMAGES),
    "images back": (of_images(nn.ConvTranspose2d(8, 2, 3), nn.AvgPool2d(2), wide=32), IMAGES),
    "embedding": (of_tokens(nn.Embedding(20, 8, padding_idx=1), 56), TOKENS),
    "bag": (of_tokens(nn.EmbeddingBag(20, 8, mode="mean"), 8), TOKENS),
    "attention": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Flatten(), nn.Linear(40, 4)
        ),
        TEXTS,
    ),
}


def running() -> nn.Module:
    """A batch norm that does not even count its batches, and so writes only what its operation does not say."""
    norm = nn.BatchNorm1d(16)
    norm.num_batches_tracked = None
    return norm


NOT_BY_TAPE: dict[str, tuple[Make, tuple[int, ...]]] = {
    "dropout": (chain(nn.Dropout(0.5)), ROWS),
    "random slopes": (chain(nn.RReLU()), ROWS),
    "running statistics": (chain(nn.BatchNorm1d(16)), ROWS),
    "uncounted statistics": (chain(running()), ROWS),
    "spectral norm": (lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 4))), ROWS),
    "in place on the batch": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 4)), ROWS),
    "sparse": (of_tokens(nn.Embedding(20, 8, sparse=True), 56), TOKENS),
    "largest embeddings": (of_tokens(nn.Embedding(20, 8, max_norm=1.0), 56), TOKENS),
}


def passes(model: nn.Module) -> Callable[[Tensor, Tensor], tuple[Tensor, list[Tensor]]]:
    """A function to the mean loss and its gradients."""
    parameters = [each for each in model.parameters() if each.requires_grad]

    def function(x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        loss = nn.functional.cross_entropy(model(x), y)
        return loss.detach(), list(torch.autograd.grad(loss, parameters))

    return function


def batches(shape: tuple[int, ...], count: int = CALLS, seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(seed)
    for _ in range(count):
        tokens = shape == TOKENS
        x = torch.randint(0, 20, shape, generator=draws) if tokens else torch.randn(shape, generator=draws)
        yield x, torch.randint(0, 4, shape[:1], generator=draws)


def bits(output: Any) -> list[bytes]:
    return [bytes(each.to_dense().reshape(-1).view(torch.uint8).tolist()) for each in tree_leaves(output)]


def taped(model: nn.Module, shape: tuple[int, ...]) -> int:
    """How many tapes are made while a model and its twin without tapes take the same steps, to the bit."""
    twin = copy.deepcopy(model)
    read, function = [*model.parameters(), *model.buffers()], passes(model)
    repeated, plain = (Repeated(function, read) if stateless(model) else function), passes(twin)
    for number, (x, y) in enumerate(batches(shape)):
        torch.manual_seed(number)
        expected = plain(x.clone(), y)
        torch.manual_seed(number)
        found = repeated(x, y)
        assert bits(found) == bits(expected)
        assert not any(each.requires_grad for each in tree_leaves(found))
        for net, (_, gradients) in ((model, found), (twin, expected)):
            with torch.no_grad():
                moved = [parameter for parameter in net.parameters() if parameter.requires_grad]
                for parameter, gradient in zip(moved, gradients, strict=True):
                    parameter.data = parameter - 0.1 * gradient  # elsewhere in memory, as a new client's are
        assert bits(list(model.state_dict().values())) == bits(list(twin.state_dict().values()))
    return repeated.tapes if isinstance(repeated, Repeated) else 0


@pytest.mark.parametrize("name", BY_TAPE)
def test_a_tape_has_the_bits_of_autograd(name: str) -> None:
    torch.manual_seed(0)
    make, shape = BY_TAPE[name]
    assert taped(make(), shape) == 1


@pytest.mark.parametrize("name", NOT_BY_TAPE)
def test_what_cannot_be_repeated_is_not(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NOT_BY_TAPE[name]
    assert taped(make(), shape) == 0


class Counting(nn.Linear):
    """Does something else at every call."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x) * self.calls


class Renamed(nn.Sequential):
    """Adds nothing to what its parts are."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 4), nn.ReLU())


class Mixed:
    """Of a class behind torch's."""

    def extra_repr(self) -> str:
        return ""


class Mixture(nn.Linear, Mixed):
    pass


class Weight(nn.Parameter):
    pass


def hooked(register: Callable[[nn.Linear], object]) -> nn.Module:
    layer = nn.Linear(8, 4)
    register(layer)
    return nn.Sequential(layer)


def noisy(*given: Any) -> None:
    random.random()


def of_another_package(*given: Any) -> None:
    random.random()


of_another_package.__module__ = "torch_mine"


def noisy_tanh(x: Tensor) -> Tensor:
    return x.tanh() * random.random()


def hook_on_weight(layer: nn.Linear) -> None:
    layer.weight.register_hook(noisy)  # type: ignore[no-untyped-call]


STATEFUL: dict[str, Make] = {
    "a forward of its own": lambda: Counting(8, 4),
    "inside": lambda: nn.Sequential(Counting(8, 4)),
    "parametrised": lambda: parametrizations.weight_norm(Counting(8, 4)),
    "a parametrisation of its own": lambda: hooked(
        lambda layer: parametrize.register_parametrization(layer, "weight", Counting(8, 8))
    ),
    "mixed": lambda: Mixture(8, 4),
    "a hook": lambda: hooked(lambda layer: layer.register_forward_hook(noisy)),
    "a hook of a package whose name begins as torch's": lambda: hooked(
        lambda layer: layer.register_forward_hook(of_another_package)
    ),
    "a hook on a weight": lambda: hooked(hook_on_weight),
    "a weight of another type": lambda: hooked(lambda layer: setattr(layer, "weight", Weight(torch.ones(4, 8)))),
    "an instance's forward": lambda: hooked(lambda layer: setattr(layer, "forward", noisy)),
    "an activation": lambda: nn.TransformerEncoderLayer(8, 2, activation=noisy_tanh),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_modules_with_code_of_others_are_told(name: str) -> None:
    assert not stateless(STATEFUL[name]())


def test_modules_of_known_code_are_told() -> None:
    assert stateless(Renamed())
    handle = nn.modules.module.register_module_forward_hook(noisy)
    assert not stateless(Renamed())
    handle.remove()
    assert stateless(nn.Sequential(Renamed()))


def test_every_shape_has_a_tape_of_its_own() -> None:
    model = chain(nn.ReLU())()
    repeated, plain = Repeated(passes(model), list(model.parameters())), passes(model)
    for number, rows in enumerate([3, 5, 6] * CALLS):
        for x, y in batches((rows, 8), 1, seed=number):
            assert bits(repeated(x, y)) == bits(plain(x, y))
    assert repeated.tapes == 3


def test_a_bad_batch_is_refused_as_before_and_spoils_no_tape() -> None:
    model = chain(nn.ReLU())()
    repeated, plain = Repeated(passes(model), list(model.parameters())), passes(model)
    for x, y in batches(ROWS):  # before, while and after it is recorded
        with pytest.raises(IndexError, match="Target 9 is out of bounds"):
            repeated(x, torch.full_like(y, 9))
        assert bits(repeated(x, y)) == bits(plain(x, y))
    assert repeated.tapes == 1


def test_a_tape_that_is_wrong_is_found_in_its_trial() -> None:
    """A function that hides a number from torch gives what it gives, and has no tape."""
    calls = 0

    def hiding(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x * float(x.tolist()[0])

    repeated = Repeated(hiding, [])
    for number in range(1, CALLS):
        x = torch.full((3,), float(number))
        assert torch.equal(repeated(x), x * number)
    assert repeated.tapes == 0
    assert calls == CALLS - 1


@pytest.mark.parametrize("function", [lambda x, y: x + y, lambda x, y: (x * 2, y.detach())])
def test_a_tensor_that_is_given_twice_is_told_from_two(function: Callable[..., Any]) -> None:
    repeated = Repeated(function, [])
    for number in range(2 * CALLS):
        x, y = torch.full((3,), float(number)), torch.ones(3)
        given = (x, x) if number < CALLS else (x, y)
        assert bits(repeated(*given)) == bits(function(*given))
        both = torch.arange(5.0) + number
        given = (both[:3], both[1:4]) if number < CALLS else (both[:3].clone(), both[1:4] * 2)
        assert bits(repeated(*given)) == bits(function(*given))


def test_memory_that_is_given_twice_is_told_from_two() -> None:
    repeated = Repeated(lambda x, y: x[1:3] * y, [])
    for number in range(2 * CALLS):
        base = torch.arange(4.0) + number
        x, y = (base, base[1:3]) if number < CALLS else (base, torch.full((2,), 7.0))
        assert torch.equal(repeated(x, y), x[1:3] * y)


def test_a_parameter_is_not_given_in_the_place_of_its_values() -> None:
    weight = nn.Parameter(torch.ones(3))
    repeated = Repeated(lambda x: (x * 2, weight.detach()), [weight])
    for _ in range(CALLS):
        assert not repeated(torch.ones(3))[1].requires_grad


def test_complex_numbers_are_left_alone() -> None:
    repeated = Repeated(lambda x: x.conj() * 1, [])
    for number in range(CALLS):
        x = torch.full((3,), complex(1, number))
        assert torch.equal(repeated(x), x.conj() * 1)
    inside = Repeated(lambda x: torch.view_as_real(torch.view_as_complex(x).conj() * 1), [])
    for number in range(CALLS):
        pair = torch.tensor([1.0, number])
        assert torch.equal(inside(pair), torch.tensor([1.0, -number]))
    assert repeated.tapes == inside.tapes == 0


def test_a_tape_keeps_nothing_of_its_batches() -> None:
    model = chain(nn.ReLU())()
    repeated = Repeated(passes(model), list(model.parameters()))
    for x, y in batches(ROWS):
        repeated(x, y)
        kept = weakref.ref(x)
    del x, y
    assert repeated.tapes == 1
    assert kept() is None


def test_a_time_limit_that_ends_during_a_recording_is_heeded_after_it() -> None:
    """Torch's mode may be half entered when an alarm rings, and would then stay for ever."""
    reached = 0

    def slow(x: Tensor) -> Tensor:
        nonlocal reached
        y = x + 1
        if reached >= _AFTER:
            time.sleep(0.05)
        reached += 1
        return y

    over = threading.Event()
    idle = threading.Thread(target=over.wait)  # a signal that the main thread blocked would come to this one
    idle.start()
    try:
        repeated = Repeated(slow, [])
        for _ in range(_AFTER):
            repeated(torch.ones(3))
        for each in (repeated, Repeated(slow, [])):  # one is recorded and comes to its end, the other is not
            with pytest.raises(ClientError, match="took longer"), time_limit(0.01, "cohort.client_timeout"):
                each(torch.ones(3))
            assert torch._C._len_torch_dispatch_stack() == 0
            assert reached == _AFTER + 1
    finally:
        over.set()
        idle.join()


def test_statistics_that_an_operation_writes_without_saying_so_are_written_once() -> None:
    mean, variance = torch.zeros(2), torch.ones(2)
    repeated = Repeated(lambda x: nn.functional.batch_norm(x, mean, variance, training=True), [mean, variance])
    expected = torch.zeros(2)
    for number in range(CALLS):
        x = torch.full((4, 2), float(number))
        repeated(x)
        expected = 0.9 * expected + 0.1 * number
        torch.testing.assert_close(mean, expected)
    assert repeated.tapes == 0


def test_no_more_tapes_are_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "_MOST", 2)
    repeated = Repeated(lambda x: x + 1, [])
    for _ in range(CALLS):
        for size in range(1, 6):
            assert torch.equal(repeated(torch.ones(size)), torch.full((size,), 2.0))
    assert repeated.tapes == 2


def test_a_call_that_takes_long_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "_LONGEST", 0.0)
    repeated = Repeated(lambda x: x + 1, [])
    for _ in range(CALLS):
        repeated(torch.ones(3))
    assert repeated.tapes == 0
