"""Building the model that a scenario names, and trying it on two rows.

A model is one of the families in `fedsim.models`, a user's own `file.py:Net`, or a Python callable: a class
of `nn.Module` or a function that returns one. It is given what is `Known`, as far as it has parameters for it.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import registry, seeds
from fedsim.errors import FedsimError, ModelError, one_line
from fedsim.machine import available_memory
from fedsim.problem import Problem, evaluating

Factory = Callable[..., nn.Module]


class Known(NamedTuple):
    """What a model's class or function is told, as far as it has parameters of these names.

    Attributes:
        shape: of one input row.
        outputs: values for every row, or for every place of a text; "classes" is another name for it.
        task: what is learned.
        vocabulary: how many tokens there are, where rows are tokens and no bytes.
        padding: the token that fills rows up, where the data say so.
    """

    shape: tuple[int, ...]
    outputs: int
    task: str
    vocabulary: int | None = None
    padding: int | None = None


_COPIES = 4  # the model received, the model trained, its gradient and its update


def make_model(
    model: str | Factory,
    settings: Mapping[str, Any],
    known: Known,
    folder: Path,
    seed: int,
) -> nn.Module:
    """A new model; the same arguments give the same initial values, whatever was drawn before.

    Args:
        model: a family's name, `file.py:Net`, or a class or function itself.
        settings: the scenario's further keys of [model].
        known: what it is told of data and task.
        folder: of the scenario, where the user's own file is looked for.
        seed: of the run.

    Raises:
        ScenarioError: an unknown model or key, or a value of the wrong type.
        ModelError: the model does not fit the data or cannot be built.
    """
    factory = _factory(model, folder)  # outside: a user's file may draw when it is first loaded
    with seeds.scope(seed, "model"):
        return build(factory, model_name(model), settings, known, folder)


def build(factory: Factory, name: str, settings: Mapping[str, Any], known: Known, folder: Path) -> nn.Module:
    """What a model's class or function gives; its initial values are drawn from the global generators.

    Args:
        factory: the class or function. If it has a parameter `scenario_folder`, it is told `folder`.
        name: of the model in messages.
        settings, known, folder: as for `make_model`, which raises the same.
    """
    arguments = _arguments(factory, settings, known, folder)
    try:
        built = factory(**arguments)
    except FedsimError:
        raise
    except Exception as error:
        raise ModelError(f"model {name!r} cannot be built: {one_line(error)}") from error
    if not isinstance(built, nn.Module):
        raise ModelError(f"model {name!r} gives a {type(built).__name__}; it should give an nn.Module")
    return built


def check_size(model: str | Factory, settings: Mapping[str, Any], known: Known, folder: Path) -> None:
    """Refuse sizes of a family of `fedsim.models` for which this machine's memory cannot suffice.

    The model is built without memory for its parameters. A user's own is not tried: its code may do anything.

    Args:
        model, settings, known, folder: as for `make_model`, in the same order.

    Raises:
        ModelError: the parameters need more memory than there is; as `make_model` otherwise.
        ScenarioError: as `make_model`.
    """
    if not isinstance(model, str) or ":" in model:
        return
    factory = _factory(model, folder)
    arguments = _arguments(factory, settings, known, folder)
    with torch.device("meta"):
        try:
            built = factory(**arguments)
        except (RuntimeError, TypeError) as error:  # numbers of bytes beyond 64 bits
            raise ModelError(f"model {model!r}: {_given(settings)} too large; no memory has so many bytes") from error
    size = sum(parameter.nbytes for parameter in built.parameters())
    free = available_memory()
    if free is not None and _COPIES * size > free:
        raise ModelError(
            f"model {model!r}: {_given(settings)} too large; parameters of {size / 1e9:.3g} GB need {_COPIES} times as "
            f"much to be trained, and {free / 1e9:.3g} GB of memory are free"
        )


def model_name(model: str | Factory) -> str:
    """What messages and records call a model."""
    return model if isinstance(model, str) else getattr(model, "__name__", type(model).__name__)


def check_model(name: str, module: nn.Module, problem: Problem, x: np.ndarray | Tensor, y: np.ndarray | Tensor) -> None:
    """Try a model on the first two rows, in evaluation mode and without gradients.

    Raises:
        ModelError: it fails on them, or its output does not fit the data; the message names the model.
    """
    with torch.no_grad(), evaluating(module):
        try:
            output = module(problem.inputs(x[:2]).clone())  # a model may work in place, the rows stay as they are
        except Exception as error:
            shape = list(x.shape[1:])
            why = f"{one_line(error)}{_too_few_tokens(error, problem.inputs(x[:2]))}"
            raise ModelError(f"model {name!r} fails on rows {shape} of {x.dtype}: {why}") from error
    problem.check(output, problem.targets(y[:2]), f"model {name!r}")


def _too_few_tokens(error: Exception, inputs: Tensor) -> str:
    """What an embedding needs, where a model finds no place for a token; empty of any other failure."""
    if not isinstance(error, IndexError) or inputs.is_floating_point() or not inputs.numel():
        return ""
    largest = int(inputs.max())
    return f"; rows hold tokens up to {largest}, so an embedding of them needs {largest + 1} (parameter vocabulary)"


def _arguments(factory: Factory, settings: Mapping[str, Any], known: Known, folder: Path) -> dict[str, Any]:
    there = {key: value for key, value in known._asdict().items() if value is not None}
    told = {"classes": known.outputs, "scenario_folder": folder, **there}
    bound = registry.bind(factory, settings, "model", reserved=told, own=("name",))
    wanted = inspect.signature(factory).parameters
    return {**{key: value for key, value in told.items() if key in wanted}, **bound}


def _given(settings: Mapping[str, Any]) -> str:
    """The sizes that a scenario sets, as the subject of a sentence."""
    sizes = [f"model.{key} = {value}" for key, value in settings.items() if isinstance(value, int | list | tuple)]
    return f"{' and '.join(sizes)} {'are' if len(sizes) > 1 else 'is'}" if sizes else "for these rows it is"


def _factory(model: str | Factory, folder: Path) -> Factory:
    found = registry.find("fedsim.models", model, folder, "model.name") if isinstance(model, str) else model
    if isinstance(found, nn.Module) or not callable(found):
        raise ModelError(
            f"model {model_name(model)!r} is a {type(found).__name__}; name a class of nn.Module or a function "
            "that returns one, so that it can be built from the seed"
        )
    return found
