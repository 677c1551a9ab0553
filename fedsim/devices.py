"""Devices on which stacks of clients are trained: which there are, how wide a stack is there, repeatable numbers.

One by one clients train on processor cores. A GPU is worth its way only with many of them in one computation, so it is
the stack that goes there: models, rows and steps; what a client sends is back in ordinary memory.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsim.errors import FedsimError, ScenarioError, one_line

CPU = torch.device("cpu")
_WARM_UPS = 3
_CAPTURED = 32
"""Shapes whose graphs are kept: each holds memory of its own, and a step on all rows may have ever new ones."""
_ROWS = 8192
"""Of a step of a stack: more keep no GPU busier."""
_WIDTHS = ((100_000, 256), (1_000_000, 128), (10_000_000, 32))
"""Parameters up to which so many clients are trained at once on a GPU; of larger models 8."""

Computation = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class DeviceMemoryError(FedsimError):
    """A stack that a GPU's memory cannot hold; it ends the run, since a narrower one has other bits."""


def resolved(asked: Sequence[str] | None, present: int) -> list[str]:
    """The devices that a run uses.

    Args:
        asked: "cpu", or "cuda:0" and so on; None for all GPUs, or the processor where there is none.
        present: number of GPUs here.

    Raises:
        ScenarioError: names a device that is not here.
    """
    here = [f"cuda:{number}" for number in range(present)]
    if asked is None:
        return here or ["cpu"]
    if asked == ["cpu"]:
        return ["cpu"]
    if not asked or "cpu" in asked or len(set(asked)) < len(asked):
        raise ScenarioError(f'engine.devices = {list(asked)}: give ["cpu"], or each GPU once: ["cuda:0"]')
    if missing := [name for name in asked if name not in here]:
        raise ScenarioError(f"engine.devices: {missing[0]!r} is not here; there are {', '.join(here) or 'no GPUs'}")
    return list(asked)


def gpus_of(asked: Sequence[str] | None) -> int:
    """How many GPUs a run uses that asks for these devices; none where there are none."""
    return sum(name != "cpu" for name in resolved(asked, torch.cuda.device_count()))


def of_worker(devices: Sequence[str], worker: int) -> torch.device:
    """The device of a worker, from 0; workers take turns at devices, or at those that a cluster lets them see."""
    device, seen = torch.device(devices[worker % len(devices)]), torch.cuda.device_count()
    if device.type == "cpu" or not seen or (device.index or 0) < seen:
        return device
    return torch.device("cuda", worker % seen)


def usual_width(device: torch.device, parameters: int, batch_size: int) -> int:
    """W where a scenario does not say: on a processor 1; on a GPU by the model's size and a step's rows."""
    if device.type == "cpu":
        return 1
    width = next((width for most, width in _WIDTHS if parameters <= most), 8)
    return max(1, min(width, _ROWS // batch_size))


def make_repeatable(device: torch.device, memory: float | None) -> None:
    """Set a worker's process up for a GPU, before it first uses it: the same bits every time, and its memory's cap.

    Args:
        device: of the worker.
        memory: GB of the GPU that this process may take; None for all.
    """
    if device.type == "cpu":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is else free in how it brackets sums
    torch.use_deterministic_algorithms(True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - mypy does not know it
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    if memory is not None:
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory * 1e9 / whole), device)


@contextmanager
def on(device: torch.device, width: int) -> Iterator[None]:
    """New tensors are made on the device; a stack for which it has no memory is an error that says what to change."""
    try:
        with nullcontext() if device.type == "cpu" else device:
            yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"engine.stack = {width}: {device} has no memory for so many clients at once; set a smaller engine.stack, "
            "or fewer engine.workers_per_gpu"
        ) from error


class Captured(NamedTuple):
    """A computation that can be done again on what its `inputs` then hold, by `replay`, into its `outputs`."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    replay: Callable[[], Any]


def captured_on_gpu(computation: Computation, tensors: Sequence[Tensor]) -> Captured:
    """A CUDA graph of a computation: its kernels are started by one call instead of one by one."""
    inputs = [tensor.clone() for tensor in tensors]
    apart = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    apart.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(apart):  # what is done at first only (handles, workspaces) must not be captured
        for _ in range(_WARM_UPS):
            computation(inputs)
    torch.cuda.current_stream().wait_stream(apart)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = computation(inputs)
    return Captured(inputs, outputs, graph.replay)


class Replayed:
    """A computation that is captured for each shape of what it takes, and then replayed; old shapes make room.

    Attributes:
        reason: why it is not captured but computed as usual; empty where it is.
    """

    def __init__(
        self,
        computation: Computation,
        capture: Callable[[Computation, Sequence[Tensor]], Captured] = captured_on_gpu,
    ) -> None:
        self._computation, self._capture = computation, capture
        self._known: dict[tuple[Any, ...], Captured] = {}
        self.reason = ""

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The computation's outputs, in memory of their own."""
        if self.reason:
            return self._computation(tensors)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if shapes not in self._known:
            if len(self._known) == _CAPTURED:
                del self._known[next(iter(self._known))]
            try:
                self._known[shapes] = self._capture(self._computation, tensors)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.reason = one_line(error)
                return self._computation(tensors)
        known = self._known[shapes]
        for kept, given in zip(known.inputs, tensors, strict=True):
            kept.copy_(given)
        known.replay()
        return [output.clone() for output in known.outputs]
