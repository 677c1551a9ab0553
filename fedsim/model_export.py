"""What `fedsim export --model` writes: a model as a folder for somebody who has neither the run nor, perhaps, fedsim.

As torch, weights in safetensors and the whole computation as `torch.export` has it, which torch alone reads; as ONNX,
one graph for onnxruntime and others, compared with torch before it is given away. A card in both.
"""

import contextlib
import io
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from fedsim import checkpoints, seeds
from fedsim.answers import check_answers
from fedsim.card import markdown
from fedsim.data.corpus import BYTES
from fedsim.errors import ModelError, RunFolderError, one_line
from fedsim.extras import needed
from fedsim.handover import CARD, SOURCES, WEIGHTS, Handed, opened
from fedsim.machine import sync
from fedsim.raw_rows import Preprocessing
from fedsim.records import to_json

Form = Literal["torch", "onnx"]
ROWS = 100
"""On which an ONNX graph is compared with torch."""
TOLERANCE = 1e-5
"""By how much the two may differ, where outputs are below 1; relative to the largest one beyond that."""
_README, _PROGRAM, _GRAPH = "README.md", "model.pt2", "model.onnx"
_OPSET = 18


class Exported(NamedTuple):
    """What was written.

    Attributes:
        files: names, and what each is.
        difference: largest one between ONNX and torch on `ROWS` rows; None where there is no ONNX.
    """

    files: dict[str, str]
    difference: float | None


def export_model(
    run: Path,
    form: Form,
    out: Path,
    client: int | None = None,
    *,
    model: Callable[..., nn.Module] | None = None,
    data: Callable[..., Any] | None = None,
    data_dir: Path | None = None,
    **parts: Any,
) -> Exported:
    """Write a run's model for its users.

    Args:
        run: the folder of a finished run.
        form: "torch" or "onnx".
        out: a new folder, there whole or not at all.
        client: whose own model is wanted; the global one by default.
        model, data, data_dir: as for `fedsim.load`, and so are its further ones, `parts`.

    Raises:
        RunFolderError: no finished run of this version, or `out` is there or cannot be written.
        ModelError: the model cannot be exported, or ONNX does not give what torch gives.
        FedsimError: as `fedsim.load`; or packages for ONNX are not installed.
    """
    if out.exists() or out.is_symlink():
        raise RunFolderError(f"{out} exists already; choose another with --out, or remove it")
    handed = opened(run, client, model=model, data=data, data_dir=data_dir, **parts)
    if "format" not in handed.card or "strategy" not in handed.card:
        raise RunFolderError(f"{run} does not say enough of its model to export it; give a run of this version")
    check_answers(handed.card["task"])
    card, difference = dict(handed.card), None
    if form == "torch":
        contents, files = _as_torch(handed)
    else:
        graph, difference = as_onnx(handed)
        inside = _scaled_inside(handed.preprocessing)
        takes = "raw pixels" if inside else "rows that are ready, as below"
        contents, files = {_GRAPH: graph}, {_GRAPH: f"the graph for onnxruntime; input `x` is {takes}, output `y`"}
        card["onnx"] = {"preprocessing_inside": inside, "largest_difference": difference, "rows": ROWS}
    files |= {CARD: "the same as this page, for programs", _README: "this page"}
    contents |= {CARD: (to_json(card, indent=2) + "\n").encode(), _README: markdown(card, files).encode()}
    _write(out, contents)
    return Exported(files, difference)


def _as_torch(handed: Handed) -> tuple[dict[str, bytes], dict[str, str]]:
    """Weights, the user's own code and the computation; contents by name, and what each is."""
    weights = WEIGHTS[1]
    tensors = {**dict(handed.module.named_buffers()), **handed.module.state_dict()}
    contents = {weights: save({name: tensor.clone().contiguous() for name, tensor in tensors.items()})}
    files = {weights: "all values; `fedsim.load` of this folder, or `load_state_dict` of a module of your own"}
    for name in sorted(set(handed.card["sources"].values())):
        contents[f"{SOURCES}/{name}"] = (handed.sources / name).read_bytes()
        files[f"{SOURCES}/{name}"] = "the user's own code that builds the model or makes rows ready"
    contents[_PROGRAM] = as_program(handed)
    files[_PROGRAM] = "the computation; `torch.export.load('model.pt2').module()`, with torch alone"
    return contents, files


def as_program(handed: Handed) -> bytes:
    """A model as `torch.export` has it, for any number of rows."""
    file = io.BytesIO()
    try:
        with _quiet():
            rows = torch.export.Dim("rows")
            program = torch.export.export(
                handed.module, (_drawn(handed.preprocessing, 2),), dynamic_shapes=({0: rows},)
            )
            torch.export.save(program, file)
    except Exception as error:  # whatever its code does that cannot be traced
        raise ModelError(f"the model cannot be exported: {one_line(error)}") from error
    return file.getvalue()


class _Scaled(nn.Module):
    """A model whose inputs are raw pixels."""

    scale: Tensor
    shift: Tensor

    def __init__(self, module: nn.Module, stored: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        # (p / largest - mean) / std, folded in float64 into one product and one sum.
        mean, std = (torch.tensor(stored[key], dtype=torch.float64)[:, None, None] for key in ("mean", "std"))
        self.register_buffer("scale", (1 / (stored["divide_by"] * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, x: Tensor) -> Tensor:
        """The model's outputs."""
        outputs: Tensor = self.module(x * self.scale + self.shift)
        return outputs


class _Named(nn.Module):
    """A model whose input is called x, whatever its author called it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """The model's outputs."""
        outputs: Tensor = self.module(x)
        return outputs


def as_onnx(handed: Handed) -> tuple[bytes, float]:
    """A model as an ONNX graph, input `x` [rows, ...], output `y`; and how far it is from torch.

    Raises:
        ModelError: it cannot be exported, or the two differ by more than `TOLERANCE`.
        FedsimError: packages are missing.
    """
    onnx, runtime = (needed(name, "onnx", "ONNX") for name in ("onnx", "onnxruntime"))
    needed("onnxscript", "onnx", "ONNX")
    preprocessing = handed.preprocessing
    inside = _scaled_inside(preprocessing)
    module = (_Scaled(handed.module, preprocessing.stored) if inside else _Named(handed.module)).eval()
    largest = float(preprocessing.stored["divide_by"]) if inside else None
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (_drawn(preprocessing, 2, largest),),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("rows")},),
                input_names=["x"],
                output_names=["y"],
                opset_version=_OPSET,
                verbose=False,
            )
            assert program is not None
            graph = bytes(program.model_proto.SerializeToString())
            onnx.checker.check_model(graph)
    except Exception as error:
        raise ModelError(f"the model cannot be exported to ONNX: {one_line(error)}") from error
    return graph, _compared(runtime, graph, handed, largest)


def _compared(runtime: Any, graph: bytes, handed: Handed, largest: float | None) -> float:
    """The largest difference from torch on rows that go through the module as `predict` gives them."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    x = _drawn(handed.preprocessing, ROWS, largest)
    ready = x if largest is None else torch.from_numpy(handed.preprocessing(x.numpy()))
    try:
        with torch.no_grad():
            wanted = handed.module(ready)
        found = [session.run(None, {"x": rows.numpy()})[0] for rows in (x, x[:1])]  # the number of rows is free
    except Exception as error:  # whatever a user's code does with rows that it does not expect
        raise ModelError(
            f"the ONNX graph cannot be compared with torch: the model fails on rows drawn at random: {one_line(error)}"
        ) from error
    if found[0].shape != tuple(wanted.shape) or len(found[1]) != 1:
        raise ModelError(f"the ONNX graph gives {list(found[0].shape)}, torch {list(wanted.shape)}: it depends on rows")
    difference = float(np.abs(found[0] - wanted.numpy()).max())
    bound = TOLERANCE * max(1.0, float(wanted.abs().max()))
    if not difference <= bound:
        raise ModelError(
            f"the ONNX graph differs from torch by {difference:.2g} on {ROWS} rows, more than {bound:.2g}; export it "
            "as torch"
        )
    return difference


def _scaled_inside(preprocessing: Preprocessing) -> bool:
    """Whether a graph can take raw values: pixels that are divided and normalised, and nothing else."""
    stored = preprocessing.stored
    return preprocessing.kind == "image" and "transform" not in stored and len(preprocessing.shape) == 3


def _drawn(preprocessing: Preprocessing, rows: int, largest: float | None = None) -> Tensor:
    """Rows that look like the model's: tokens, each of those that its place may hold; raw pixels up to `largest`; or
    numbers around 0.
    """
    draws = seeds.numpy_generator(0, "export", rows)
    shape = (rows, *preprocessing.shape)
    if preprocessing.whole:
        bounds = preprocessing.stored.get("places") or [[0, preprocessing.vocabulary or BYTES]]
        low, high = np.array(bounds).T
        return torch.from_numpy(draws.integers(low, high, shape))
    if largest is not None:
        return torch.from_numpy(np.floor(draws.random(shape) * (largest + 1)).astype(np.float32))
    return torch.from_numpy(draws.standard_normal(shape).astype(np.float32))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters print and warn of."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _write(out: Path, contents: Mapping[str, bytes]) -> None:
    """A new folder with these files, at once or not at all."""
    unfinished = out.absolute().with_name(f".{out.name}-{os.urandom(4).hex()}{checkpoints.UNFINISHED}")
    try:
        unfinished.mkdir(parents=True)
        for name, content in contents.items():
            (unfinished / name).parent.mkdir(exist_ok=True)
            checkpoints.write(unfinished / name, content)
        unfinished.rename(out)
        sync(unfinished.parent)
    except OSError as error:
        reason = error.strerror or error
        raise RunFolderError(f"{out} cannot be written: {reason}; choose another with --out") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
