"""The local step, compiled: `engine.compile`.

A step's whole computation (forward, loss, backward, update) is traced once and made a shared library by torch's
AOTInductor, before anything trains. The library travels with the job, so workers need no compiler and load it in
milliseconds; one is kept per computation in the user's cache. Shapes are static: a batch of fewer rows is padded with
its last row, whose weight is zero.
"""

import copy
import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule

from fedsim.errors import ClientError, ModelError, ScenarioError, one_line
from fedsim.machine import processor_lines, user_cache
from fedsim.parameters import FlatModule, Weights, views
from fedsim.problem import Problem

_REFUSED = "cannot be compiled; set engine.compile = false"
_TOLERANCE = 1e-3
"""Of the gradient's norm: rounding is a hundred times less, rows that mix with padding are more."""
_OPTIONS: dict[str, Any] = {
    "cpp.threads": 1,  # two would give other bits
    "compile_threads": 1,  # no processes that stay
    "cpp.vec_isa_ok": True,  # what the processor has; trying each set of instructions takes ten seconds
}
_LONGEST = 200
"""Characters that are kept of what torch says."""
Computation = Callable[..., tuple[Tensor]]
Runner = Callable[[list[Tensor]], list[Tensor]]


class Libraries(NamedTuple):
    """A model's compiled computations, as the bytes of shared libraries.

    Attributes:
        gradient: of the mean loss over a batch.
        step: of plain gradient descent, in place; None where the local optimiser is another.
        batch_size: rows of every call.
    """

    gradient: bytes
    step: bytes | None
    batch_size: int

    @property
    def digest(self) -> str:
        """SHA-256: made anew, by another compiler, they may give other bits."""
        return hashlib.sha256(self.gradient + (self.step or b"")).hexdigest()


class Program:
    """A compiled model in this process.

    Attributes:
        descends: whether it knows steps of plain gradient descent.
    """

    def __init__(self, libraries: Libraries, flat: FlatModule) -> None:
        """Load what `libraries_of` made of the same model."""
        self._layout, self._constants = flat.layout, list(flat.constants.values())
        self._size = libraries.batch_size
        self._full = flat.vector.new_full((self._size,), 1 / self._size)
        self._gradient = _loaded(libraries.gradient)
        self._step = _loaded(libraries.step) if libraries.step is not None else None
        self.descends = self._step is not None

    def descend(
        self,
        start: Weights,
        rate: float,
        batches: Iterable[tuple[Tensor, Tensor]],
        note: Callable[[float], None],
        observe: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Plain gradient descent, a step for each batch.

        Args:
            start: where it begins; unchanged.
            rate: learning rate.
            batches: inputs and targets of at most `batch_size` rows each.
            note: is told each batch's mean loss before the next step; it may raise.
            observe: is told every gradient [D] afterwards; the same bits, a computation more.

        Returns:
            [D], a new vector.
        """
        assert self._step is not None
        vector = start.vector.clone()
        params, fixed = views(self._layout.parameters, vector), self._fixed(start)
        step = vector.new_tensor(rate)
        for batch in batches:
            gradient = self.gradient(Weights(vector, start.buffers), *batch)[0] if observe is not None else None
            [rows] = self._blocks(*batch)
            note(_run(self._step, [*params, *fixed, *rows, step]))
            if observe is not None and gradient is not None:
                observe(gradient)
        return vector

    def gradient(self, at: Weights, inputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        """The gradient [D] of the mean loss over any number of rows, in new memory, and that loss."""
        fixed = [*views(self._layout.parameters, at.vector), *self._fixed(at)]
        total, loss = None, 0.0
        for rows in self._blocks(inputs, targets):
            part = torch.empty_like(at.vector)
            loss += _run(self._gradient, [*views(self._layout.parameters, part), *fixed, *rows])
            total = part if total is None else total.add_(part)
        assert total is not None
        return total, loss

    def _fixed(self, weights: Weights) -> list[Tensor]:
        return [*views(self._layout.buffers, weights.buffers), *self._constants]

    def _blocks(self, inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows in blocks of the batch size, and each row's weight in the mean [B], zero for padding.

        Contiguous, since a library reads memory as if it were and does not look.
        """
        rows = len(targets)
        if rows == self._size:
            yield inputs.contiguous(), targets.contiguous(), self._full
            return
        for first in range(0, rows, self._size):
            places = torch.arange(first, first + self._size).clamp_(max=rows - 1)
            weights = torch.zeros_like(self._full)
            weights[: rows - first] = 1 / rows
            yield inputs[places].contiguous(), targets[places].contiguous(), weights


def _loaded(library: bytes) -> Runner:
    with tempfile.NamedTemporaryFile(suffix=".so") as file:  # once it is mapped its name is needed no more
        file.write(library)
        file.flush()
        run: Runner = torch._C._aoti.AOTIModelContainerRunnerCpu(file.name, 1).run
        return run


def _run(runner: Runner, tensors: list[Tensor]) -> float:
    """The loss that a computation returns; parameters or gradients are changed in place."""
    try:
        return runner(tensors)[0].item()
    except RuntimeError as error:  # a class or token out of range; the lines below the first are frames of C++
        raise ClientError(f"the compiled step failed: {str(error).splitlines()[0]}") from error


def libraries_of(
    module: nn.Module, name: str, problem: Problem, inputs: Tensor, targets: Tensor, batch_size: int, *, plain: bool
) -> Libraries:
    """A model's compiled computations, from the user's cache or made now (20 to 30 s).

    Args:
        module: as it is built for training.
        name: what messages call it.
        problem: gives the loss.
        inputs, targets: real rows, at most `batch_size`, on which the result is tried.
        batch_size: B of every call.
        plain: whether the local optimiser is plain gradient descent.

    Raises:
        ModelError: the model draws numbers, changes its buffers, mixes rows or cannot be traced as it is.
        ScenarioError: a compiler is needed and there is none.
    """
    flat = FlatModule(copy.deepcopy(module).train())
    rows = torch.arange(batch_size).clamp_(max=len(targets) - 1)
    batch = [inputs[rows].contiguous(), targets[rows].contiguous(), flat.vector.new_ones(batch_size)]
    weights = Weights(flat.vector.clone(), flat.buffers)
    params = views(flat.layout.parameters, weights.vector)
    fixed = [*views(flat.layout.buffers, weights.buffers), *flat.constants.values()]
    outs = views(flat.layout.parameters, torch.empty_like(flat.vector))
    made = [_library(_gradient(flat, problem), [*outs, *params, *fixed, *batch], name)]
    if plain:
        made.append(_library(_step(flat, problem), [*params, *fixed, *batch, flat.vector.new_ones(())], name))
    libraries = Libraries(made[0], made[1] if plain else None, batch_size)
    _try(Program(libraries, flat), flat, name, problem, inputs, targets)
    return libraries


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


def _step(flat: FlatModule, problem: Problem) -> Computation:
    """(params, fixed, inputs, targets, weights, rate) -> loss: params -= rate * gradient."""

    def step(*tensors: Tensor) -> tuple[Tensor]:
        params = tensors[: len(flat.layout.parameters)]
        loss, gradients = _differentiated(flat, problem, tensors[:-1])
        for param, gradient in zip(params, gradients, strict=True):
            param.copy_(param - tensors[-1] * gradient)
        return (loss,)

    return step


def _gradient(flat: FlatModule, problem: Problem) -> Computation:
    """(outs, params, fixed, inputs, targets, weights) -> loss: outs = gradient."""

    def gradient(*tensors: Tensor) -> tuple[Tensor]:
        outs, rest = tensors[: len(flat.layout.parameters)], tensors[len(flat.layout.parameters) :]
        loss, gradients = _differentiated(flat, problem, rest)
        for out, each in zip(outs, gradients, strict=True):
            out.copy_(each)
        return (loss,)

    return gradient


def _differentiated(flat: FlatModule, problem: Problem, tensors: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The rows' weighted loss [] at (params, fixed, inputs, targets, weights), and its gradients."""
    *given, inputs, targets, weights = tensors
    params, fixed = given[: len(flat.layout.parameters)], given[len(flat.layout.parameters) :]
    leaves = [param.detach().requires_grad_() for param in params]
    before = [tensor._version for tensor in fixed]
    slots = *flat.layout.parameters, *flat.layout.buffers
    names = [*(slot.name for slot in slots), *flat.constants]
    with torch.enable_grad():
        output = functional_call(flat.module, dict(zip(names, [*leaves, *fixed], strict=True)), (inputs,))
        loss = (problem.losses(output, targets) * weights).sum()
    if [tensor._version for tensor in fixed] != before:
        raise ModelError("changes its buffers while it trains")
    return loss.detach(), torch.autograd.grad(loss, leaves, materialize_grads=True)


def _traced(computation: Computation, example: list[Tensor], name: str) -> GraphModule:
    """A computation as a graph of plain operations."""
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        graph = make_fx(computation, tracing_mode="fake")(*example)
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
