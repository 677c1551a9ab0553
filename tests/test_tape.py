"""A tape gives the bits of what it was recorded from, whatever layers do; and what cannot be repeated is not."""

import copy
import math
import random
import signal
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


def batches(shape: tuple[int, ...], count: int = CALLS) -> Iterator[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(1)
    for _ in range(count):
        tokens = shape == TOKENS
        x = torch.randint(0, 20, shape, generator=draws) if tokens else torch.randn(shape, generator=draws)
        yield x, torch.randint(0, 4, shape[:1], generator=draws)


def bits(output: Any) -> list[bytes]:
    return [bytes(each.to_dense().reshape(-1).view(torch.uint8).tolist()) for each in tree_leaves(output)]


def taped(model: nn.Module, shape: tuple[int, ...]) -> int:
    """How many tapes are made while a model and its twin without tapes take the same steps, to the bit."""
    twin = copy.deepcopy(model)
    read = [*model.parameters(), *model.buffers(), nn.functional.one_hot(torch.zeros(1, dtype=torch.int64))]
    function = passes(model)
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
    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name)


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
    for rows in [3, 5, 6] * CALLS:
        for x, y in batches((rows, 8), 1):
            assert bits(repeated(x, y)) == bits(plain(x, y))
    assert repeated.tapes == 3


def test_a_bad_batch_is_refused_as_before_and_spoils_no_tape() -> None:
    model = chain(nn.ReLU())()
    repeated = Repeated(passes(model), list(model.parameters()))
    for bad in range(CALLS):  # before, while and after it is recorded
        for x, y in batches(ROWS, 1):
            with pytest.raises(IndexError, match="Target 9 is out of bounds"):
                repeated(x, y + 9 - y)
            assert repeated(x, y)[0].isfinite(), bad
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
    seconds, held_back = 0.0, []

    def slow(x: Tensor) -> Tensor:
        held_back.append(signal.SIGALRM in signal.pthread_sigmask(signal.SIG_BLOCK, []))
        time.sleep(seconds)
        return x + 1

    repeated = Repeated(slow, [])
    while not any(held_back[-1:]):
        seconds = 0.05 if len(held_back) == _AFTER else 0.0
        late = False
        try:
            with time_limit(0.01 if seconds else None, "cohort.client_timeout"):
                repeated(torch.ones(3))
        except ClientError:
            late = True
    assert late
    assert held_back == [False] * _AFTER + [True]
    assert torch._C._len_torch_dispatch_stack() == 0
    assert signal.SIGALRM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_call_that_takes_long_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "_LONGEST", 0.0)
    repeated = Repeated(lambda x: x + 1, [])
    for _ in range(CALLS):
        repeated(torch.ones(3))
    assert repeated.tapes == 0
