"""Which devices a run uses, how wide its stacks are there, and what is replayed there: all but the GPU's own calls."""

import weakref
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from fedsim.algorithm import Batch
from fedsim.devices import CPU, Captured, Computation, DeviceMemoryError, Replayed, of_worker, on, resolved, usual_width
from fedsim.errors import ScenarioError
from fedsim.functional import StackedModel
from fedsim.stackable import settled
from fedsim.tasks.classification import Classification
from tests import small


@pytest.mark.parametrize(
    ("asked", "present", "found"),
    [
        (None, 0, ["cpu"]),
        (None, 2, ["cuda:0", "cuda:1"]),
        (["cpu"], 2, ["cpu"]),
        (["cuda:1"], 2, ["cuda:1"]),
    ],
)
def test_devices_are_those_asked_for_else_all_gpus(asked: list[str] | None, present: int, found: list[str]) -> None:
    assert resolved(asked, present) == found


@pytest.mark.parametrize(
    ("asked", "present", "reason"),
    [
        (["cuda:2"], 2, "'cuda:2' is not here; there are cuda:0, cuda:1"),
        (["cuda:0"], 0, "'cuda:0' is not here; there are no GPUs"),
        (["cpu", "cuda:0"], 1, "each GPU once"),
        (["cuda:0", "cuda:0"], 1, "each GPU once"),
        ([], 1, "each GPU once"),
    ],
)
def test_other_devices_are_refused(asked: list[str], present: int, reason: str) -> None:
    with pytest.raises(ScenarioError, match=rf"engine\.devices.*{reason}"):
        resolved(asked, present)


def test_one_by_one_there_is_no_device_to_ask_for() -> None:
    with pytest.raises(ScenarioError, match="engine: devices are for stacks"):
        small.job({"engine.stack": 1, "engine.devices": ["cuda:0"]})


def test_workers_take_turns_at_devices() -> None:
    assert [of_worker(["cuda:0", "cuda:1"], worker).index for worker in range(4)] == [0, 1, 0, 1]


def test_stacks_are_narrower_for_larger_models_and_batches() -> None:
    """On a processor a stack is no faster than one by one."""
    gpu = torch.device("cuda:0")
    assert usual_width(CPU, 10, 1) == 1
    sizes = 10_000, 199_210, 1_663_370, 10**8
    widths = [usual_width(gpu, size, 10) for size in sizes]
    assert widths == sorted(widths, reverse=True) and min(widths) > 1
    assert usual_width(gpu, 10, 10**6) == 1


def test_too_little_memory_says_what_to_change() -> None:
    reason = r"engine\.stack = 64: cpu has no memory.*a smaller engine\.stack"
    with pytest.raises(DeviceMemoryError, match=reason), on(CPU, 64):
        raise torch.OutOfMemoryError("CUDA out of memory")


def recorded(computation: Computation, tensors: Sequence[Tensor]) -> Captured:
    """What a CUDA graph does: its inputs and outputs stay where they are, and are read and written by `replay`."""
    inputs = [tensor.clone() for tensor in tensors]
    outputs = [output.clone() for output in computation(inputs)]

    def replay() -> None:
        for kept, output in zip(outputs, computation(inputs), strict=True):
            kept.copy_(output)

    return Captured(inputs, outputs, replay)


def stacked() -> StackedModel:
    return StackedModel(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), Classification(("a", "b", "c")))


def test_replayed_steps_are_steps() -> None:
    """Also when shapes alternate, and what a step gave is still there after the next."""
    model, replayed = stacked(), stacked()
    replayed.replayed = Replayed(replayed.flat_step, recorded)
    draws, results = torch.Generator().manual_seed(1), []
    for clients, rows in ((2, 3), (2, 5), (2, 3), (3, 3), (2, 5)):
        vectors = torch.randn(clients, model.layout.size, generator=draws)
        batch = Batch(torch.randn(clients, rows, 4, generator=draws), torch.zeros(clients, rows, dtype=torch.int64))
        weights = torch.full((clients, rows), 1 / rows)
        buffers = model.buffers(torch.rand(clients, model.layout.buffer_size, generator=draws))
        results.append([each.step(vectors, buffers, batch, weights) for each in (model, replayed)])
    for expected, found in results:
        assert torch.equal(found.gradient, expected.gradient) and torch.equal(found.losses, expected.losses)
        assert found.buffers.keys() == expected.buffers.keys()
        assert all(torch.equal(found.buffers[name], value) for name, value in expected.buffers.items())
    assert not replayed.replayed.reason


def test_graphs_of_ever_new_shapes_do_not_pile_up() -> None:
    """A step on all rows has as many as the largest client of its stack."""
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def watched(computation: Computation, tensors: Sequence[Tensor]) -> Captured:
        made = recorded(computation, tensors)
        alive.update(made.inputs)
        return made

    doubled = Replayed(lambda tensors: [2 * tensor for tensor in tensors], watched)
    for size in (*range(1, 101), *range(1, 101)):
        assert doubled([torch.full((size,), float(size))])[0].tolist() == [2.0 * size] * size
    assert 1 < len(alive) < 50


def test_what_cannot_be_captured_is_computed() -> None:
    def failing(computation: Computation, tensors: Sequence[Tensor]) -> Captured:
        raise RuntimeError("operation not permitted when stream is capturing")

    doubled = Replayed(lambda tensors: [2 * tensor for tensor in tensors], failing)
    assert doubled([torch.ones(2)])[0].tolist() == [2, 2]
    assert doubled.reason == "RuntimeError: operation not permitted when stream is capturing"


def test_the_resolved_scenario_names_width_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one on cores where stacks are not asked for and no GPU is here, or where one by one is."""
    here = settled(small.job()).job.scenario.engine
    assert (here.stack, here.devices) == (1, ["cpu"])
    pair = settled(small.job({"engine.stack": 2})).job.scenario.engine
    assert (pair.stack, pair.devices) == (2, ["cpu"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for one_by_one in ({"engine.stack": 1}, {"train.precision": "bf16"}):
        found = settled(small.job(one_by_one))
        assert (found.job.scenario.engine.stack, found.job.scenario.engine.devices, found.reason) == (1, ["cpu"], "")
