"""A trained model given to somebody who does not train: loaded whole, and asked.

Needs torch, numpy, safetensors and pydantic, neither Flower, Ray nor Opacus; only a client's own model, which is put
together from what the run keeps, needs all that the run needed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor, nn

from fedsim import registry, seeds
from fedsim.answers import answer, check_answers
from fedsim.errors import FedsimError, ModelError, RunFolderError, one_line
from fedsim.model import Known, build
from fedsim.problem import Answer
from fedsim.raw_rows import Preprocessing

if TYPE_CHECKING:
    from fedsim.data.transform import Transform
    from fedsim.federating import DataSource
    from fedsim.own import Loss, Metric
    from fedsim.own_models import Own

CARD, SOURCES = "model.json", "sources"
WEIGHTS = ("best.safetensors", "weights.safetensors")
"""Of a run, and of what `fedsim export --model` writes."""
_NEEDED = {"architecture": dict, "task": str, "classes": list, "preprocessing": dict | None}
_BLOCK = 256


class Handed(NamedTuple):
    """A model as it is handed over.

    Attributes:
        module: in evaluation mode, on the CPU.
        card: what `model.json` says; of a client's own model with its figures on its own rows.
        preprocessing: what is done to raw values first.
        sources: where the user's own code lies.
    """

    module: nn.Module
    card: Mapping[str, Any]
    preprocessing: Preprocessing
    sources: Path


class Predictions(NamedTuple):
    """What a model says of rows.

    Attributes:
        columns: "row", then those of the task.
        rows: one list of values for every row.
    """

    columns: list[str]
    rows: list[list[Any]]


def load(
    path: str | Path,
    client: int | None = None,
    *,
    model: Callable[..., nn.Module] | None = None,
    data: "DataSource | None" = None,
    loss: "str | Loss | None" = None,
    metrics: "Sequence[str | Metric]" = (),
    transform: "str | Transform | None" = None,
    data_dir: Path | None = None,
) -> nn.Module:
    """The model of a finished run, of `fedsim export --model torch`, or of `fedsim export --public`.

    A user's own model is built by the run's copy of its file, which is executed.

    Args:
        path: of the folder.
        client: whose own model is wanted, of a strategy that gives clients such; the global one by default.
        model: class or function of the model, where the run was given one that lies in no file.
        data, loss, metrics, data_dir: as for `resume`; only a client's own model needs them.
        transform: likewise, and it makes rows ready where it lies in no file.

    Returns:
        The module in evaluation mode. `.preprocessing` makes rows for it of raw values, `.classes` names its outputs;
        a module that has attributes of these names keeps its own.

    Raises:
        RunFolderError: no finished run or exported model, damaged, or it shares no model.
        FedsimError: its code is not there or does not fit.
    """
    parts = {"loss": loss, "metrics": metrics, "transform": transform}
    handed = opened(path, client, model=model, data=data, data_dir=data_dir, **parts)
    given = {"preprocessing": handed.preprocessing, "classes": tuple(handed.card["classes"])}
    for name, value in given.items():
        if not hasattr(handed.module, name):
            setattr(handed.module, name, value)
    return handed.module


def predict(
    path: str | Path,
    data: Path,
    client: int | None = None,
    *,
    model: Callable[..., nn.Module] | None = None,
    data_dir: Path | None = None,
) -> Predictions:
    """What a model says of new rows.

    Args:
        path, client, model, data_dir: as for `load`.
        data: the rows, in a file or folder of the kind that `Preprocessing.read` takes.

    Raises:
        DataError: rows that are not what the model was trained on; names line, column or file.
        FedsimError: as `load`, or the model fails on the rows.
    """
    handed = opened(path, client, model=model, data_dir=data_dir)
    return predicted(handed, data)


def predicted(handed: Handed, data: Path) -> Predictions:
    """`predict` with a model that is loaded already."""
    check_answers(handed.card["task"])
    read = handed.preprocessing.read(data)
    columns: list[str] = ["row"]
    rows: list[list[Any]] = []
    start = 0
    while start < len(read.x):
        stop = _alike(read.x, start)
        x = torch.from_numpy(np.stack([np.asarray(row) for row in read.x[start:stop]]))
        said = _answered(handed, x)
        columns = ["row", *said.columns]
        rows += [[name, *values] for name, values in zip(read.names[start:stop], said.rows, strict=True)]
        start = stop
    return Predictions(columns, rows)


def opened(
    path: str | Path,
    client: int | None = None,
    *,
    model: Callable[..., nn.Module] | None = None,
    data: "DataSource | None" = None,
    data_dir: Path | None = None,
    **parts: Any,
) -> Handed:
    """A model and all that belongs to it; arguments and errors as of `load`, whose further ones are `parts`."""
    run = Path(path)
    folder = run / "model" if (run / "model").is_dir() else run
    card, sources = _card(run, folder), run / SOURCES
    if "trees" in card["architecture"]:
        raise ModelError(
            f"{run}: its model is trees, no module of torch; xgboost.Booster(model_file=...) reads files of {folder}"
        )
    if "onnx" in card:
        raise RunFolderError(
            f"{run} has a graph for onnxruntime and no weights; ask that, or export the run with --model torch"
        )
    strategy, stored = card.get("strategy", {}), card["preprocessing"] or {}
    if client is not None and (strategy.get("own_models", True) or stored.get("fit") != "per-client"):
        own = _own_model(run, client, model=model, data=data, data_dir=data_dir, **parts)
        card, tensors, file = {**card, **own.card}, own.tensors, run
    elif not strategy.get("shares_a_model", True) and "client" not in card:
        raise RunFolderError(f"{run}: its strategy shares no model; ask for a client's own with client (--client)")
    else:
        file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), folder / WEIGHTS[0])
        tensors = _tensors(file)
    try:
        module = _built(card, sources, model)
        preprocessing = _preprocessing(card, sources, client, parts.get("transform"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(f"{folder / CARD} is damaged: {one_line(error)}") from error
    _fill(module, tensors, file)
    return Handed(module.eval(), card, preprocessing, sources)


def _own_model(run: Path, client: int, **given: Any) -> "Own":
    try:
        from fedsim.own_models import own_model
    except ImportError as error:
        raise FedsimError(
            f"a client's own model is put together with {error.name}, which is not installed: pip install fedsim; or "
            "write it where the run was made: fedsim export RUN --model torch --client K"
        ) from None
    return own_model(run, client, **given)


def _card(run: Path, folder: Path) -> dict[str, Any]:
    file = folder / CARD
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        if (run / "run.db").is_file() and (run / "pyproject.toml").is_file():
            arrays = run / "model" / "last.safetensors"
            raise RunFolderError(f"{run} is the run of a Flower app; {arrays} has its model's arrays") from error
        if (run / "run.db").is_file():
            raise RunFolderError(f"{run} has not finished, so it has no model yet: fedsim resume {run}") from error
        raise RunFolderError(f"{run} is no run and no exported model: {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{file} is damaged: {one_line(error)}") from error
    if not isinstance(card, dict) or not all(isinstance(card.get(key), kind) for key, kind in _NEEDED.items()):
        raise RunFolderError(f"{file} is damaged: it does not describe a model")
    if not all(isinstance(card.get(key, {}), dict) for key in ("strategy", "sources", "client")):
        raise RunFolderError(f"{file} is damaged: it does not describe a model")
    return card


def _built(card: Mapping[str, Any], sources: Path, model: Callable[..., nn.Module] | None) -> nn.Module:
    """The model with initial values, told what it was told when it was trained."""
    architecture = card["architecture"]
    name, outputs = architecture["model"], architecture.get("outputs", len(card["classes"]))
    factory = model if model is not None else _factory(name, card, sources)
    vocabulary, stored = architecture.get("vocabulary"), card["preprocessing"] or {}
    padding = stored.get("padding") if vocabulary is not None else None
    known = Known(tuple(architecture["input_shape"]), outputs, card["task"], vocabulary, padding)
    with seeds.preserved():
        return build(factory, name, architecture["settings"], known, _scenario_folder(sources.parent))


def _scenario_folder(run: Path) -> Path:
    """Where a run's scenario lay, which may name further folders; of a model that was given away, where that lies."""
    try:
        return Path(json.loads((run / "environment.json").read_text(encoding="utf-8"))["scenario_folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return run


def _factory(name: str, card: Mapping[str, Any], sources: Path) -> Callable[..., Any]:
    """What builds the model: a family of fedsim, or a class in the run's copy of a user's file."""
    if ":" not in name:
        return registry.find("fedsim.models", name, sources, "model.name")
    if (found := _own_code(name, card, sources, "model.name")) is None:
        raise ModelError(
            f"model {name!r} is code that is not here; give its class, fedsim.load(..., model=Net). A run keeps a copy "
            "of a model that its scenario names as file.py:Net, or that was imported from a file"
        )
    return found


def _own_code(reference: str, card: Mapping[str, Any], sources: Path, what: str) -> Callable[..., Any] | None:
    """A function or class of the user's in the copy that was kept of its file; None where there is no such copy."""
    file, name = card.get("sources", {}).get(reference), reference.partition(":")[2]
    if file is None or not (sources / file).is_file() or not name.isidentifier():
        return None
    return registry.from_file(f"{file}:{name}", sources, what)


def _preprocessing(card: Mapping[str, Any], sources: Path, client: int | None, given: Any) -> Preprocessing:
    """What is done to raw values; `given` is the user's transform, as an object."""
    stored, architecture = card["preprocessing"] or {}, card["architecture"]
    transform = stored.get("transform")
    if transform is not None and not callable(given):
        given = _own_code(transform, card, sources, "data.transform")
    return Preprocessing(
        stored,
        tuple(architecture["input_shape"]),
        architecture.get("input_type", "uint8" if stored.get("kind") == "bytes" else "float32") != "float32",
        architecture.get("vocabulary"),
        card["task"],
        _client_name(card, stored, client),
        None if transform is None else given,
    )


def _client_name(card: Mapping[str, Any], stored: Mapping[str, Any], client: int | None) -> str | None:
    """Whose scales are used, where every client of a table has its own; they are kept in the clients' order."""
    if "client" in card:
        return str(card["client"]["name"])
    names = list(stored.get("scales", {})) if stored.get("fit") == "per-client" else []
    if client is None or not names:
        return None
    if not 0 <= client < len(names):
        raise RunFolderError(f"client {client}: there are scales of {len(names)} clients, 0 to {len(names) - 1}")
    return str(names[client])


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return from_safetensors(file.read_bytes())
    except OSError as error:
        raise RunFolderError(f"{file} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise RunFolderError(f"{file} is no file of tensors: {one_line(error)}") from error


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Put a file's values into a module: all that it keeps, and nothing else.

    A tied parameter is in the file once, under its first name; a buffer that is no part of the state dict is there too.
    """
    places = {**dict(module.named_buffers()), **module.state_dict(keep_vars=True)}
    if odd := sorted(tensors.keys() - places.keys()):
        raise RunFolderError(f"{file} does not fit the model: it has {odd[0]!r}, which the model has not")
    filled = {places[name].data_ptr() for name in tensors}
    for name, place in places.items():
        if name not in tensors and place.data_ptr() not in filled:
            raise RunFolderError(f"{file} does not fit the model: {name!r} is missing")
    with torch.no_grad():
        for name, place in places.items():
            if name not in tensors:
                continue
            if tensors[name].shape != place.shape:
                found, wanted = list(tensors[name].shape), list(place.shape)
                raise RunFolderError(f"{file} does not fit the model: {name!r} is {found}, not {wanted}")
            place.copy_(tensors[name])


def _answered(handed: Handed, x: Tensor) -> Answer:
    try:
        with torch.no_grad():
            output = handed.module(x if x.is_floating_point() else x.long())
    except Exception as error:
        shape = list(x.shape[1:])
        raise ModelError(f"the model fails on rows {shape} of {x.dtype}: {one_line(error)}") from error
    card = handed.card
    return answer(card["task"], card["classes"], handed.preprocessing.stored.get("target", {}), x, output)


def _alike(x: Any, start: int) -> int:
    """Where rows of one shape end that begin at `start`: texts may differ in length."""
    stop, shape = start, np.shape(x[start])
    while stop < len(x) and stop - start < _BLOCK and np.shape(x[stop]) == shape:
        stop += 1
    return stop
