"""The local step, compiled: `engine.compile`.

A step's whole computation (forward, loss, backward, update), and that of a group of steps, is traced once and made a
shared library by torch's AOTInductor, before anything trains. The library travels with the job, so workers need no
compiler and load it in milliseconds; one is kept per computation in the user's cache. Shapes are static: a batch of
fewer rows is padded with its last row, whose weight is zero, and steps that fill no group are taken one by one.
"""

import copy
import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fedsim.errors import ClientError, ModelError, ScenarioError, one_line
from fedsim.machine import processor_lines, user_cache
from fedsim.parameters import FlatModule, Weights, views
from fedsim.problem import Problem
from fedsim.steps import Computation, gradient_of, longest_group, steps_of

_REFUSED = "cannot be compiled; set engine.compile = false"
_TOLERANCE = 1e-3
"""Of the gradient's norm: rounding is a hundred times less, rows that mix with padding are more."""
_OPTIONS: dict[str, Any] = {
    "cpp.threads": 1,  # two would give other bits
    "compile_threads": 1,  # no processes that stay
    "cpp.vec_isa_ok": True,  # what the processor has; trying each set of instructions takes ten seconds
}
_MOST = 8
"""Steps of a call: more gain little and take long to compile."""
NOBODY: Mapping[int, int] = {}
_LONGEST = 200
"""Characters that are kept of what torch says."""
Runner = Callable[[list[Tensor]], list[Tensor]]


class Libraries(NamedTuple):
    """A model's compiled computations, as the bytes of shared libraries.

    Attributes:
        gradient: of the mean loss over a batch.
        steps: of plain gradient descent, in place, by how many steps a call takes, most first and one last; empty
            where the local optimiser is another.
        batch_size: rows of every step.
    """

    gradient: bytes
    steps: dict[int, bytes]
    batch_size: int

    @property
    def digest(self) -> str:
        """SHA-256: made anew, by another compiler, they may give other bits."""
        return hashlib.sha256(b"".join((self.gradient, *self.steps.values()))).hexdigest()


class Program:
    """A compiled model in this process.

    Attributes:
        descends: whether it knows steps of plain gradient descent.
    """

    def __init__(self, libraries: Libraries, flat: FlatModule) -> None:
        """Load what `libraries_of` made of the same model."""
        self._layout, self._constants = flat.layout, list(flat.constants.values())
        self._size, self._kind = libraries.batch_size, flat.vector.dtype
        self._gradient = _loaded(libraries.gradient)
        self._steps = {steps: _loaded(library) for steps, library in libraries.steps.items()}
        self.descends = bool(self._steps)

    def descend(
        self,
        start: Weights,
        rate: float,
        rows: tuple[Tensor, Tensor],
        orders: Iterable[tuple[Tensor, int]],
        note: Callable[[float], None],
        observe: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Plain gradient descent, a step for each batch.

        Args:
            start: where it begins; unchanged.
            rate: learning rate.
            rows: inputs and targets.
            orders: for every epoch an order of the rows, by number, and how many batches are cut of it.
            note: is told each batch's mean loss, in order; it may raise, and what was stepped to is then lost.
            observe: is told every gradient [D] afterwards; the same bits, a computation more. Inside a group it is
                that at the point where single steps would be, which differs in its last digits.

        Returns:
            [D], a new vector.
        """
        vector = start.vector.clone()
        params, fixed = views(self._layout.parameters, vector), self._fixed(start)
        step = torch.full((), rate, dtype=self._kind)
        for steps, batches in self._groups(rows, *self._places(orders)):
            before = Weights(vector.clone(), start.buffers) if observe is not None else None
            losses = _run(self._steps[steps], [*params, *fixed, *batches, step])
            gradients = self._path(before, steps, batches, step) if before is not None else iter(())
            for loss in losses:
                note(loss)
                if observe is not None:
                    observe(next(gradients))
        return vector

    def _places(self, orders: Iterable[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Every step's rows by number [S*B], and their weights in its mean [S*B]; both with padding."""
        places, weights = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=self._kind)]
        for order, batches in orders:
            count = batches * self._size
            padding = max(0, count - len(order))
            places.append(torch.cat((order, order[-1:].expand(padding))) if padding else order[:count])
            weights.append(torch.full((count,), 1 / self._size, dtype=self._kind))
            if padding:
                weights[-1][-self._size : -padding] = 1 / (self._size - padding)
                weights[-1][-padding:] = 0
        return torch.cat(places), torch.cat(weights)

    def _groups(
        self, rows: tuple[Tensor, Tensor], places: Tensor, weights: Tensor
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """How many steps a call takes, and what it takes them on: inputs, targets and weights."""
        first = 0
        for steps in self._steps:
            count = steps * self._size
            while calls := min(_MOST // steps, (len(places) - first) // count):  # several share a copy of their rows
                block = slice(first, first + calls * count)
                parts = *(part.index_select(0, places[block]) for part in rows), weights[block]
                for batches in zip(*(torch.split(part, count) for part in parts), strict=True):
                    yield steps, list(batches)
                first = block.stop

    def _path(self, start: Weights, steps: int, batches: Sequence[Tensor], rate: Tensor) -> Iterator[Tensor]:
        """The gradient [D] before each step of a group; `start` moves along."""
        params, fixed = views(self._layout.parameters, start.vector), self._fixed(start)
        for batch in zip(*(each.chunk(steps) for each in batches), strict=True):
            yield self._differentiated(start, list(batch))[0]
            _run(self._steps[1], [*params, *fixed, *batch, rate])

    def gradient(self, at: Weights, inputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        """The gradient [D] of the mean loss over any number of rows, in new memory, and that loss."""
        total, loss = None, 0.0
        for block in self._blocks(inputs, targets):
            part, each = self._differentiated(at, block)
            loss += each
            total = part if total is None else total.add_(part)
        assert total is not None
        return total, loss

    def _differentiated(self, at: Weights, block: Sequence[Tensor]) -> tuple[Tensor, float]:
        """The gradient [D] of a block's weighted loss, in new memory, and that loss."""
        gradient = torch.empty_like(at.vector)
        outs, params = (views(self._layout.parameters, vector) for vector in (gradient, at.vector))
        [loss] = _run(self._gradient, [*outs, *params, *self._fixed(at), *block])
        return gradient, loss

    def _fixed(self, weights: Weights) -> list[Tensor]:
        return [*views(self._layout.buffers, weights.buffers), *self._constants]

    def _blocks(self, inputs: Tensor, targets: Tensor) -> Iterator[list[Tensor]]:
        """Rows in blocks of the batch size, and each row's weight in the mean [B], zero for padding.

        Contiguous, since a library reads memory as if it were and does not look.
        """
        rows = len(targets)
        for first in range(0, rows, self._size):
            places = torch.arange(first, first + self._size)
            weights = torch.full((self._size,), 1 / rows, dtype=self._kind).masked_fill_(places >= rows, 0)
            places = places.clamp_(max=rows - 1)
            yield [inputs.index_select(0, places), targets.index_select(0, places), weights]


def _loaded(library: bytes) -> Runner:
    with tempfile.NamedTemporaryFile(suffix=".so") as file:  # once it is mapped its name is needed no more
        file.write(library)
        file.flush()
        run: Runner = torch._C._aoti.AOTIModelContainerRunnerCpu(file.name, 1).run
        return run


def _run(runner: Runner, tensors: list[Tensor]) -> list[float]:
    """The losses that a computation returns; parameters or gradients are changed in place."""
    try:
        losses: list[float] = runner(tensors)[0].view(-1).tolist()
        return losses
    except RuntimeError as error:  # a class or token out of range; the lines below the first are frames of C++
        raise ClientError(f"the compiled step failed: {str(error).splitlines()[0]}") from error


def libraries_of(
    module: nn.Module,
    name: str,
    problem: Problem,
    inputs: Tensor,
    targets: Tensor,
    batch_size: int,
    *,
    plain: bool,
    clients: Mapping[int, int] = NOBODY,
) -> Libraries:
    """A model's compiled computations, from the user's cache or made now (12 s each).

    Args:
        module: as it is built for training.
        name: what messages call it.
        problem: gives the loss.
        inputs, targets: real rows, at most `batch_size`, on which the result is tried.
        batch_size: B of every call.
        plain: whether the local optimiser is plain gradient descent.
        clients: how many clients there are by the number of steps that they take in a round.

    Raises:
        ModelError: the model draws numbers, changes its buffers, mixes rows or cannot be traced as it is.
        ScenarioError: a compiler is needed and there is none.
    """
    flat = FlatModule(copy.deepcopy(module).train())
    weights = Weights(flat.vector.clone(), flat.buffers)
    params = views(flat.layout.parameters, weights.vector)
    fixed = [*views(flat.layout.buffers, weights.buffers), *flat.constants.values()]
    outs = views(flat.layout.parameters, torch.empty_like(flat.vector))

    def rows(count: int) -> list[Tensor]:
        places = torch.arange(count * batch_size) % len(targets)
        return [inputs[places], targets[places], flat.vector.new_ones(len(places))]

    gradient = _library(gradient_of(flat, problem), [*outs, *params, *fixed, *rows(1)], name)
    made = dict[int, bytes]()
    for steps in _calls(longest_group(flat, problem, params, fixed, rows(1)), clients) if plain else ():
        example = [*params, *fixed, *rows(steps), flat.vector.new_ones(())]
        made[steps] = _library(steps_of(flat, problem, steps), example, name)
    libraries = Libraries(gradient, made, batch_size)
    _try(Program(libraries, flat), flat, name, problem, inputs, targets)
    return libraries


def refusal(module: nn.Module, name: str, problem: Problem, inputs: Tensor, targets: Tensor, batch_size: int) -> str:
    """Why a model's step cannot be compiled, as far as that is known without a compiler; empty where it can.

    Arguments are those of `libraries_of`.
    """
    flat = FlatModule(copy.deepcopy(module).train())
    places = torch.arange(batch_size) % len(targets)
    outs = views(flat.layout.parameters, torch.empty_like(flat.vector))
    fixed = [*views(flat.layout.parameters, flat.vector.clone()), *views(flat.layout.buffers, flat.buffers)]
    example = [
        *outs,
        *fixed,
        *flat.constants.values(),
        inputs[places],
        targets[places],
        flat.vector.new_ones(batch_size),
    ]
    try:
        _traced(gradient_of(flat, problem), example, name)
    except ModelError as error:
        return str(error).removesuffix(f", so it {_REFUSED}")
    return ""


def _calls(longest: int, clients: Mapping[int, int]) -> list[int]:
    """How many steps calls take, most first: those of which a round needs the fewest, and one."""

    def calls(size: int) -> int:
        return sum(count * (steps // size + steps % size) for steps, count in clients.items())

    return sorted({1, min(range(1, max(1, min(longest, _MOST)) + 1), key=calls)}, reverse=True)


def _library(computation: Computation, example: list[Tensor], name: str) -> bytes:
    """A computation's library, for tensors of the shapes of `example`."""
    graph = _traced(computation, example, name)
    kept = _cache() / f"{_digest(graph, example)}.so"
    if kept.is_file():
        return kept.read_bytes()
    library = _built(graph, example, name)
    with suppress(OSError):  # a full or read-only disk costs the next start its time, nothing else
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
            file.write(library)
        Path(file.name).replace(kept)
    return library


def _traced(computation: Computation, example: list[Tensor], name: str) -> GraphModule:
    """A computation as a graph of plain operations."""
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        apart = {torch.ops.aten.addmm.default: _product_and_bias}
        graph = make_fx(computation, decomposition_table=apart, tracing_mode="fake")(*example)
    except ModelError as error:
        raise ModelError(f"model {name!r} {error}, so it {_REFUSED}") from error
    except Exception as error:
        raise ModelError(f"model {name!r} {_REFUSED} ({one_line(error)[:_LONGEST]})") from error
    graph.graph.eliminate_dead_code()
    graph.recompile()
    for target in (node.target for node in graph.graph.nodes):
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            raise ModelError(f"model {name!r} draws numbers while it trains ({target}), so it {_REFUSED}")
        if "mkldnn_rnn" in str(target):
            raise ModelError(f"model {name!r} has torch's own recurrent kernel, so it {_REFUSED}")
    return graph


def _product_and_bias(bias: Tensor, rows: Tensor, weight: Tensor, **scales: Any) -> Any:
    """`addmm`, which takes twice as long as the product alone; as a sum, inductor would make it `addmm` again."""
    return NotImplemented if scales else torch.sub(bias, rows @ weight, alpha=-1)


def _built(graph: GraphModule, example: list[Tensor], name: str) -> bytes:
    """The graph as a shared library."""
    import torch._inductor
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        with _scratch(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about itself
            get_cpp_compiler()
            path = torch._inductor.aot_compile(graph, tuple(example), options=_OPTIONS)
            return Path(str(path)).read_bytes()
    except InvalidCxxCompiler as error:
        raise ScenarioError(
            "engine.compile = true needs a C++ compiler, and none was found; install one (Debian: apt install g++) or "
            "leave the key out"
        ) from error
    except Exception as error:
        raise ModelError(f"model {name!r} {_REFUSED} ({one_line(error)[:_LONGEST]})") from error


@contextmanager
def _scratch() -> Iterator[None]:
    """A folder for what the compiler leaves behind; gone afterwards."""
    key = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(key)
    with tempfile.TemporaryDirectory(prefix="fedsim-compile-") as folder:
        os.environ[key] = folder
        try:
            yield
        finally:
            os.environ.pop(key, None)
            if before is not None:
                os.environ[key] = before


def _try(program: Program, flat: FlatModule, name: str, problem: Problem, inputs: Tensor, targets: Tensor) -> None:
    """Compare with autograd on a batch that has to be padded where that is possible."""
    rows = max(1, len(targets) - 1)
    loss = problem.losses(flat.module(inputs[:rows].clone()), targets[:rows]).mean()
    expected = flat.differentiate(loss)
    try:
        found, _ = program.gradient(Weights(flat.vector, flat.buffers), inputs[:rows], targets[:rows])
    except ClientError as error:
        raise ModelError(f"model {name!r} {_REFUSED} ({error})") from error
    if float((found - expected).norm()) > _TOLERANCE * float(expected.norm()):
        raise ModelError(f"model {name!r} mixes the rows of a batch, or is compiled wrongly: it {_REFUSED}")


def _digest(graph: GraphModule, example: Sequence[Tensor]) -> str:
    """SHA-256 of all that decides what the library is, but the compiler."""
    words = [graph.code, torch.__version__, _processor(), torch.backends.cpu.get_cpu_capability(), str(_OPTIONS)]
    words += [f"{tensor.dtype} {list(tensor.shape)} {tensor.stride()}" for tensor in example]
    digest = hashlib.sha256("\n".join(words).encode())
    for node in graph.graph.nodes:
        if node.op == "get_attr":  # numbers that the model's code holds
            digest.update(repr(getattr(graph, node.target).tolist()).encode())
    return digest.hexdigest()


def _processor() -> str:
    """Model and instructions of this processor, for which the library is made."""
    return "\n".join(
        sorted({line for line in processor_lines() if line.startswith(("model name", "flags", "Features"))})
    )


def _cache() -> Path:
    return user_cache() / "compiled"
