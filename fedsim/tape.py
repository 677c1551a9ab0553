"""What torch does in a computation, recorded while it does it, to be done again on other values.

Most of a small net's step is Python's modules and autograd's graph. The operations themselves are a few tens, for
tensors of the same shapes always the same. A tape calls those and nothing else: the same kernels in the same order, and
so the same bits, without modules and without autograd.

That is right where a computation does the same whenever shapes are the same. A recording finds most of what speaks
against it (numbers that are drawn, values that Python looks at, writes to what is not the computation's own), and a
tape is tried before it is used. What is kept in Python is not found (a module that counts its calls): use it where
`stateless` says that there is nothing.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.fx.node import map_aggregate
from torch.nn.modules import module as modules
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Output = TypeVar("Output")
_AFTER = 3
"""Calls with tensors of the same shapes before one is recorded, which takes as long as ten steps of a small net."""
_MOST = 64
"""Shapes that are looked at."""
_UNREPEATABLE = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
}
_OURS = "torch.nn.", "fedsim.models."
_OUR_HOOKS = {"fedsim.images"}
_HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
_WITHOUT_CODE = {"__init__", "__module__", "__doc__", "__annotations__", "__firstlineno__", "__static_attributes__"}


class Repeated(Generic[Output]):
    """A function of tensors, which gives tensors, in any nesting of tuples and lists.

    The bits are those of the function: calls with shapes that come often are done by tape.
    """

    def __init__(self, function: Callable[..., Output], reads: Sequence[Tensor]) -> None:
        """
        Args:
            function: does the same whenever its tensors have the same shapes; no gradient is taken of what it gives.
            reads: the tensors that it uses besides its arguments, and does not write. They may get other values, and
                lie elsewhere, from call to call.
        """
        self._function, self._reads = function, tuple(reads)
        self._proven: dict[Any, fx.GraphModule] = {}
        self._tried: dict[Any, int | fx.GraphModule | None] = {}

    def __call__(self, *tensors: Tensor) -> Output:
        """What the function gives."""
        key = tuple([(each.shape, each.stride(), each.dtype) for each in tensors])
        if (tape := self._proven.get(key)) is not None:
            return self._repeated(tape, tensors)
        return self._watched(key, tensors)

    def _repeated(self, tape: fx.GraphModule, tensors: Sequence[Tensor]) -> Output:
        with torch._C._AutoDispatchBelowAutograd():  # without `no_grad`, in which some kernels keep less
            output: Output = tape.forward(*tensors, *self._reads)
            return output

    def _watched(self, key: Any, tensors: Sequence[Tensor]) -> Output:
        """Call the function, and come nearer to a tape for these shapes: count, record, try."""
        known = self._tried.get(key, 0)
        if isinstance(known, int) and known == _AFTER:
            output, self._tried[key] = self._recorded(tensors)
            return output
        output = self._function(*tensors)
        if isinstance(known, fx.GraphModule):
            self._tried[key] = None
            if self._gives(known, tensors, output):
                self._proven[key] = known
        elif known is not None and (known or len(self._tried) < _MOST):
            self._tried[key] = known + 1
        return output

    def _recorded(self, tensors: Sequence[Tensor]) -> tuple[Output, fx.GraphModule | None]:
        """What the function gives, and a tape of it where there can be one."""
        recorder = _Recorder([*tensors, *self._reads])
        with recorder:
            output = self._function(*tensors)
        return output, recorder.tape(output)

    def _gives(self, tape: fx.GraphModule, tensors: Sequence[Tensor], output: Output) -> bool:
        """Whether a tape gives the same bits as the function."""
        try:
            found = self._repeated(tape, tensors)
        except (RuntimeError, TypeError, IndexError):
            return False
        return all(map(_same, tree_leaves(found), tree_leaves(output)))


def stateless(module: nn.Module) -> bool:
    """Whether all code of a module is torch's own or that of `fedsim.models`, which keeps nothing from call to call."""
    if any(getattr(modules, f"_global{hooks}") for hooks in _HOOKS):
        return False
    return all(_known(type(part)) and not _altered(part) for part in module.modules())


def _known(kind: type) -> bool:
    """Whether a class is torch's or ours, or adds to one that is no more than what its parts are."""
    own = next((place for place, each in enumerate(kind.__mro__) if each.__module__.startswith(_OURS)), None)
    return own is not None and all(vars(each).keys() <= _WITHOUT_CODE for each in kind.__mro__[:own])


def _altered(part: nn.Module) -> bool:
    hooks = [hook for each in _HOOKS for hook in getattr(part, each).values()]
    return "forward" in vars(part) or any(hook.__module__ not in _OUR_HOOKS for hook in hooks)


def _same(one: Any, other: Any) -> bool:
    """Whether two leaves are the same to the bit, and lie in memory alike; kernels may round by that."""
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return one is other
    if (one.shape, one.stride(), one.dtype) != (other.shape, other.stride(), other.dtype):
        return False
    return torch.equal(*(each.detach().reshape(-1).view(torch.uint8) for each in (one, other)))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation below autograd as a node of a graph."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph, self._refused = fx.Graph(), False
        self._nodes: dict[int, fx.Node] = {}
        self._places: dict[Any, fx.Node] = {}
        self._alive: list[Tensor] = []  # so that no other tensor gets the identity or the memory of one that is known
        for number, each in enumerate(known):
            self._know(each, self._graph.placeholder(f"given_{number}"))
        self._outside = {each.untyped_storage().data_ptr() for each in known}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch imports its compiler, two seconds in every process, to tell it to leave this class alone."""
        return False

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `TorchDispatchMode`."""
        keys = kwargs or {}
        output = func(*args, **keys)
        if self._refused or _unrepeatable(func, args, keys) or self._writes_outside(func, args, keys):
            self._refused = True
        elif not (func.is_view and self._is_known(output)):
            self._note(func, args, keys, output)
        return output

    def tape(self, output: Any) -> fx.GraphModule | None:
        """What was noted, with that output; None where it cannot be repeated."""
        nodes = map_aggregate(output, self._node)
        if self._refused:
            return None
        self._graph.output(nodes)
        self._graph.eliminate_dead_code()
        for node in self._graph.nodes:
            _quicken(node)
        return fx.GraphModule(nn.Module(), self._graph)

    def _note(self, func: OpOverload, args: Any, keys: Any, output: Any) -> None:
        node = self._graph.call_function(func, map_aggregate(args, self._node), map_aggregate(keys, self._node))
        if isinstance(output, Tensor):
            self._know(output, node)
        elif isinstance(output, (tuple, list)):
            for number, each in enumerate(output):
                if isinstance(each, Tensor):
                    self._know(each, self._graph.call_function(operator.getitem, (node, number)))

    def _know(self, tensor: Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = self._places[_place(tensor)] = node
        self._alive.append(tensor)

    def _is_known(self, view: Any) -> bool:
        """Whether a view is what another tensor is: `detach`, a transpose of a transpose."""
        if not isinstance(view, Tensor) or (node := self._places.get(_place(view))) is None or not view.numel():
            return False
        self._know(view, node)
        return True

    def _node(self, value: Any) -> Any:
        """A tensor's node, or the value itself."""
        if not isinstance(value, Tensor):
            return value
        if (node := self._nodes.get(id(value))) is None:
            self._refused = True
        return node

    def _writes_outside(self, func: OpOverload, args: Sequence[Any], keys: dict[str, Any]) -> bool:
        """Whether an operation writes to what was there before."""
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = args[place] if place < len(args) else keys.get(argument.name)
                tensors = [each for each in tree_leaves(written) if isinstance(each, Tensor)]
                if self._outside.intersection(each.untyped_storage().data_ptr() for each in tensors):
                    return True
        return False


def _unrepeatable(func: OpOverload, args: Sequence[Any], keys: dict[str, Any]) -> bool:
    """Whether an operation draws numbers, or what it does depends on more than shapes."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return bool(_UNREPEATABLE.intersection(func.tags))
    arguments = func._schema.arguments
    defaults = {each.name: each.default_value for each in arguments if each.has_default_value()}
    given = dict(zip((each.name for each in arguments), args, strict=False)) | keys
    return bool((defaults | given).get("dropout_p", 1.0) != 0.0)


def _place(tensor: Tensor) -> Any:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _quicken(node: fx.Node) -> None:
    """Call an operation by its name in Python where it has one, which takes half the time of an `OpOverload`."""
    if not isinstance(node.target, OpOverload):
        return
    space, _, name = node.target._schema.name.partition("::")
    function = getattr(torch._C._VariableFunctions, name, None)
    if space != "aten":
        return
    if function is not None and getattr(torch, name) is function:
        node.target = function
    elif hasattr(torch._C.TensorBase, name) and node.target._schema.arguments[0].name == "self":
        node.op, node.target = "call_method", name
