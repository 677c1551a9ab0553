"""What torch does in a computation, recorded while it does it, to be done again on other values.

Most of a small net's step is Python's modules and autograd's graph. The operations themselves are a few tens, for
tensors of the same shapes always the same. A tape calls those and nothing else: the same kernels in the same order, and
so the same bits, without modules and without autograd.

That is right where a computation does the same whenever shapes are the same. A recording finds operations that speak
against it (numbers that are drawn, values that decide what is done, writes to what is not the computation's own), and
a tape is tried before it is used. What Python keeps or reads past torch is not found (a module that counts its calls,
`tolist()`): `stateless` says of which modules it is known that there is nothing.
"""

import itertools
import math
import operator
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.fx.node import map_aggregate
from torch.nn.modules import module as modules
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedsim.signals import alarm_deferred

Output = TypeVar("Output")
Run = Callable[..., Any]
_AFTER = 3
"""Calls with tensors of the same shapes before one is recorded, since to record takes as long as ten small steps."""
_LONGEST = 0.02
"""Seconds of a call in which Python and autograd still count: beyond, a tape gains less than its trials cost."""
_TRIALS = 2
"""Calls whose bits a tape must give before it is used."""
_MOST = 64
"""Tapes that are made of a function."""
_UNREPEATABLE = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
}
"""Tags of operations that give no tensor, or one whose shape follows from values or changes later."""
_STATISTICS = "running_mean", "running_var"
"""Arguments that operations write without saying so."""
_KNOWN_CLASSES = "torch.nn.", "fedsim.models."
"""Where modules are from whose code is known to keep nothing that a recording does not see."""
_KNOWN_CALLS = "torch.", "fedsim.images."
"""Where hooks and other functions that a module keeps may be from."""
_HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
_WITHOUT_CODE = {"__init__", "__module__", "__doc__", "__annotations__", "__firstlineno__", "__static_attributes__"}
"""What a class may define and still have no code but its bases' run in a pass."""


@dataclass
class _Seen:
    """What is known of calls with tensors of some shapes: how many there were, and a tape that is being tried.

    `shortest` is what one has taken at least, in seconds.
    """

    calls: int = 0
    shortest: float = math.inf
    tape: Run | None = None
    trials: int = 0


class Repeated(Generic[Output]):
    """A function of tensors, which gives tensors, in any nesting of tuples and lists.

    The bits are those of the function: calls with shapes that come often are done by tape, where there can be one.
    """

    def __init__(self, function: Callable[..., Output], reads: Sequence[Tensor]) -> None:
        """
        Args:
            function: does the same whenever its tensors have the same shapes, strides and types; no gradient is taken
                of what it gives, and it is not called under autocast.
            reads: the tensors that it uses besides its arguments. They may get other values, and lie elsewhere, from
                call to call, but do not change their shape, strides, type or whether they need a gradient.
        """
        self._function, self._reads = function, tuple(reads)
        self._seen: dict[Any, _Seen] = {}
        self._proven: dict[Any, Run] = {}
        self._made = 0

    @property
    def tapes(self) -> int:
        """For how many shapes there is a tape in use."""
        return len(self._proven)

    def __call__(self, *tensors: Tensor) -> Output:
        """What the function gives."""
        key = tuple([(each.shape, each.stride(), each.dtype) for each in tensors])
        if (tape := self._proven.get(key)) is not None:
            return self._repeated(tape, tensors)
        return self._watched(key, tensors)

    def _repeated(self, tape: Run, tensors: Sequence[Tensor]) -> Output:
        # Below autograd, not under `no_grad`: oneDNN's recurrent layers then keep nothing for their backward pass.
        with torch._C._AutoDispatchBelowAutograd():
            output: Output = tape(*tensors, *self._reads)
            return output

    def _watched(self, key: Any, tensors: Sequence[Tensor]) -> Output:
        """Call the function, and come nearer to a tape for these shapes: count, record, try."""
        seen = self._seen.setdefault(key, _Seen())
        if seen.calls == _AFTER and seen.shortest < _LONGEST and self._made < _MOST:
            output, seen.tape = self._recorded(tensors)
            self._made += seen.tape is not None
        else:
            started = time.perf_counter()
            output = self._function(*tensors)
            seen.shortest = min(seen.shortest, time.perf_counter() - started)
            if seen.tape is not None:
                self._try(key, seen, seen.tape, tensors, output)
        seen.calls += 1
        return output

    def _recorded(self, tensors: Sequence[Tensor]) -> tuple[Output, Run | None]:
        """What the function gives, and a tape of it where there can be one."""
        recorder = _Recorder([*tensors, *self._reads])
        with alarm_deferred(), recorder:  # it might ring while torch's mode is half entered
            output = self._function(*tensors)
        return output, recorder.tape(output)

    def _try(self, key: Any, seen: _Seen, tape: Run, tensors: Sequence[Tensor], output: Output) -> None:
        """See whether a tape gives what the function gave; one that does so often enough is used from now on."""
        with alarm_deferred():
            gives = _gives(lambda: self._repeated(tape, tensors), output)
        seen.trials += 1
        if not gives:
            seen.tape = None
        elif seen.trials == _TRIALS:
            self._proven[key] = tape
            del self._seen[key]


def stateless(module: nn.Module) -> bool:
    """Whether all code of a module is torch's or that of `fedsim.models`, and keeps nothing that a recording misses."""
    if any(getattr(modules, f"_global{hooks}") for hooks in _HOOKS):
        return False
    tensors = [*module.parameters(), *module.buffers()]
    plain = all(type(each) in (Tensor, nn.Parameter) and not each._backward_hooks for each in tensors)
    return plain and all(map(_known, module.modules()))


def _known(part: nn.Module) -> bool:
    classes = [each for each in type(part).__mro__ if each is not object]
    calls = [hook for each in _HOOKS for hook in getattr(part, each).values()]
    calls += [value for value in vars(part).values() if callable(value)]
    return all(
        each.__module__.startswith(_KNOWN_CLASSES) or vars(each).keys() <= _WITHOUT_CODE for each in classes
    ) and all(f"{getattr(each, '__module__', None)}.".startswith(_KNOWN_CALLS) for each in calls)


def _gives(repeated: Callable[[], Any], output: Any) -> bool:
    """Whether a tape gives that output; whatever goes wrong in it, it does not."""
    try:
        found, leaves = tree_leaves(repeated()), tree_leaves(output)
        return len(found) == len(leaves) and all(map(_same, found, leaves))
    except Exception:
        return False


def _same(one: Any, other: Any) -> bool:
    """Whether two leaves are the same to the bit, and lie in memory alike; kernels may round by that."""
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return bool(one == other)
    kinds = [(each.shape, each.stride(), each.dtype, each.requires_grad) for each in (one, other)]
    if kinds[0] != kinds[1]:
        return False
    return torch.equal(*(each.reshape(-1).view(torch.uint8) for each in (one, other)))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation below autograd as a node of a graph."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph, self._refused = fx.Graph(), False
        self._nodes: dict[int, fx.Node] = {}
        self._places: dict[Any, fx.Node] = {}
        self._alive: list[Tensor] = []  # so that no other tensor gets the identity or the memory of one that is known
        if any(map(_odd, given)) or _overlap(given):
            self._refuse()
            return
        self._outside = _storages(given)
        for number, each in enumerate(given):
            self._know(each, self._graph.placeholder(f"given_{number}"))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch imports its compiler, two seconds in every process, to tell it to leave this class alone."""
        return False

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `TorchDispatchMode`."""
        output = func(*args, **(kwargs or {}))
        if not self._refused:
            try:
                self._note(func, args, kwargs or {}, output)
            except Exception:  # whatever it is: it shall not fail a step that goes well
                self._refuse()
        return output

    def tape(self, output: Any) -> Run | None:
        """What was noted, with that output; None where it cannot be repeated."""
        if self._refused:
            return None
        try:
            self._graph.output(map_aggregate(output, self._node))
            self._graph.eliminate_dead_code(_has_effect)
            for node in self._graph.nodes:
                _quicken(node)
            run: Run = fx.GraphModule(nn.Module(), self._graph).forward
            return run
        except Exception:
            return None

    def _note(self, func: OpOverload, args: Any, keys: dict[str, Any], output: Any) -> None:
        if _unrepeatable(func, args, keys) or self._writes_outside(func, args, keys):
            self._refuse()
            return
        if func.is_view and self._found_again(output):
            return
        node = self._graph.call_function(func, map_aggregate(args, self._node), map_aggregate(keys, self._node))
        if isinstance(output, Tensor):
            self._know(output, node)
            return
        for number, each in enumerate(output if isinstance(output, (tuple, list)) else ()):
            if isinstance(each, Tensor):
                self._know(each, self._graph.call_function(operator.getitem, (node, number)))

    def _refuse(self) -> None:
        self._refused = True
        self._alive.clear()

    def _know(self, tensor: Tensor, node: fx.Node) -> None:
        if _odd(tensor):
            raise TypeError(f"a tensor that has no place in memory, or is not what lies there: {tensor.layout}")
        self._nodes[id(tensor)] = self._places[_place(tensor)] = node
        self._alive.append(tensor)

    def _found_again(self, view: Any) -> bool:
        """Take a view that is what another tensor is (`detach`, a transpose of a transpose) for that one, if it is."""
        if not isinstance(view, Tensor) or not view.numel() or (node := self._places.get(_place(view))) is None:
            return False
        self._know(view, node)
        return True

    def _node(self, value: Any) -> Any:
        """A tensor's node, or the value itself; KeyError for a tensor that comes from elsewhere."""
        return self._nodes[id(value)] if isinstance(value, Tensor) else value

    def _writes_outside(self, func: OpOverload, args: Sequence[Any], keys: dict[str, Any]) -> bool:
        """Whether an operation writes to what was there before."""
        given = _by_name(func, args, keys)
        written = [
            given.get(argument.name)
            for argument in func._schema.arguments
            if argument.name in _STATISTICS or (argument.alias_info is not None and argument.alias_info.is_write)
        ]
        return bool(self._outside & _storages(each for each in tree_leaves(written) if isinstance(each, Tensor)))


def _unrepeatable(func: OpOverload, args: Sequence[Any], keys: dict[str, Any]) -> bool:
    """Whether an operation draws numbers, or what it does depends on more than shapes."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return bool(_UNREPEATABLE.intersection(func.tags))
    defaults = {each.name: each.default_value for each in func._schema.arguments if each.has_default_value()}
    given = defaults | _by_name(func, args, keys)
    return bool(given.get("dropout_p", 1.0) != 0.0)  # attention without dropout draws nothing


def _by_name(func: OpOverload, args: Sequence[Any], keys: dict[str, Any]) -> dict[str, Any]:
    """The arguments that an operation was given."""
    return dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | keys


def _odd(tensor: Tensor) -> bool:
    """Whether a tensor is not just numbers at a place in memory."""
    plain = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)
    return not plain or tensor.is_complex() or tensor.is_neg()


def _overlap(given: Sequence[Tensor]) -> bool:
    """Whether two tensors share memory, or are one."""
    spans = []
    for each in given:
        steps = sum((size - 1) * step for size, step in zip(each.shape, each.stride(), strict=True))
        spans += [(each.data_ptr(), each.data_ptr() + (steps + 1) * each.element_size())] if each.numel() else []
    spans.sort()
    shared = any(first[1] > second[0] for first, second in itertools.pairwise(spans))
    return shared or len({id(each) for each in given}) < len(given)


def _place(tensor: Tensor) -> Any:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _storages(tensors: Iterable[Tensor]) -> set[int]:
    return {each.untyped_storage().data_ptr() for each in tensors if each.numel()}


def _has_effect(node: fx.Node) -> bool:
    """Whether a node does more than give a value."""
    return node.is_impure() or (isinstance(node.target, OpOverload) and not node.target._schema.returns)


def _quicken(node: fx.Node) -> None:
    """Call an operation by its name in Python where it has one, which takes half the time of an `OpOverload`."""
    if not isinstance(node.target, OpOverload) or not node.target._schema.name.startswith("aten::"):
        return
    name = node.target._schema.name.removeprefix("aten::")
    functions, methods = torch._C._VariableFunctions, vars(torch._C.TensorBase)
    if hasattr(functions, name) and getattr(torch, name, None) is getattr(functions, name):
        node.target = getattr(torch, name)
    elif node.target._schema.arguments[0].name == "self" and name in methods and name not in vars(Tensor):
        node.op = "call_method"
        node.target = name
