"""Files of tensors: a kill leaves the old file or the new one, never a piece, and damage is noticed when read.

A checkpoint is all that the next round depends on, in one safetensors file: nothing of it is code.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save_file
from torch import Tensor

from fedsim.errors import RunFolderError
from fedsim.machine import sync
from fedsim.parameters import Layout, Slot, Weights, views

UNFINISHED = ".tmp"
"""Ending of a file that is still being written."""


@dataclass(frozen=True)
class Snapshot:
    """What the next round depends on, clients' states apart.

    Attributes:
        weights: the global model.
        vectors: the server's others, by name, such as "shared/control".
        participations: [K] rounds that each client was selected in.
        accepted: [K] last round of each client that counted; 0 for none.
    """

    weights: Weights
    vectors: Mapping[str, Tensor]
    participations: np.ndarray
    accepted: np.ndarray

    def tensors(self, layout: Layout) -> dict[str, Tensor]:
        """What the file of a checkpoint holds."""
        tensors = named_tensors(layout, self.weights, "model/")
        tensors |= {f"server/{key}": tensor for key, tensor in self.vectors.items()}
        for name in ("participations", "accepted"):
            tensors[f"clients/{name}"] = torch.from_numpy(getattr(self, name).astype(np.int32))
        return tensors


def snapshot_of(
    tensors: Mapping[str, Tensor], layout: Layout, clients: int, path: Path, dtype: torch.dtype | None = None
) -> Snapshot:
    """The snapshot in a checkpoint's tensors, of a model of type `dtype`; None is any floating type.

    Raises:
        RunFolderError: they are not those of this model and these clients.
    """
    counts = {}
    for name in ("participations", "accepted"):
        tensor = tensors.get(f"clients/{name}")
        if tensor is None or tensor.dtype != torch.int32 or tensor.shape != (clients,) or (tensor < 0).any():
            raise RunFolderError(f"{path} does not fit the run: clients/{name} is not a count for {clients} clients")
        counts[name] = tensor.numpy().astype(np.int64)
    start = len("server/")
    vectors = {name[start:]: tensor for name, tensor in tensors.items() if name.startswith("server/")}
    return Snapshot(weights_of(tensors, layout, "model/", path, dtype), vectors, **counts)


def weights_of(
    tensors: Mapping[str, Tensor], layout: Layout, prefix: str, path: Path, dtype: torch.dtype | None = None
) -> Weights:
    """The flat vectors of a model in a file, of type `dtype`; None is any floating type.

    Raises:
        RunFolderError: they are not those of this model.
    """
    return Weights(*(_gathered(tensors, slots, prefix, path, dtype) for slots in (layout.parameters, layout.buffers)))


def _gathered(
    tensors: Mapping[str, Tensor], slots: tuple[Slot, ...], prefix: str, path: Path, dtype: torch.dtype | None
) -> Tensor:
    for slot in slots:
        tensor = tensors.get(prefix + slot.name)
        fits = tensor is not None and tuple(tensor.shape) == slot.shape and tensor.is_floating_point()
        if tensor is None or not fits or tensor.dtype != (dtype or tensor.dtype):
            found = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            wanted = f"{dtype or 'floating'} {list(slot.shape)}"
            raise RunFolderError(f"{path} does not fit the model: {slot.name} is {found}, not {wanted}")
    return torch.cat([tensors[prefix + slot.name].flatten() for slot in slots]) if slots else torch.zeros(0)


def load(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file.

    Args:
        path: the file.
        sha256: what it must have.

    Raises:
        RunFolderError: it is not there, is cut or damaged, or is no such file.
    """
    content = _read(path, sha256)
    try:
        return from_safetensors(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise RunFolderError(f"{path} is no file of tensors: {' '.join(str(error).split())}") from error


def verify(path: Path, sha256: str | None) -> None:
    """Make sure that a file is the one that was written.

    Raises:
        RunFolderError: it is not there, is cut or damaged.
    """
    _read(path, sha256)


def _read(path: Path, sha256: str | None) -> bytes:
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # or a name that no file can have
        raise RunFolderError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise RunFolderError(f"{path} is damaged: its checksum is not the one that was recorded")
    return content


def named_tensors(layout: Layout, weights: Weights, prefix: str = "") -> dict[str, Tensor]:
    """The model by parameter and buffer name, in layout order.

    Args:
        layout: where each tensor lies.
        weights: the flat vectors; the result are views of them.
        prefix: put before every name.
    """
    return {
        prefix + slot.name: view
        for slots, vector in ((layout.parameters, weights.vector), (layout.buffers, weights.buffers))
        for slot, view in zip(slots, views(slots, vector), strict=True)
    }


def save_model(
    path: Path, layout: Layout, weights: Weights, constants: Mapping[str, Tensor], notes: Mapping[str, str]
) -> None:
    """Write a whole model for its users, as `load_state_dict` takes it.

    Args:
        path: the file.
        layout, weights: what is trained, and the floating buffers.
        constants: frozen parameters and integer buffers by name, which no round changes.
        notes: the file's own metadata.
    """
    save(path, {**constants, **named_tensors(layout, weights)}, notes)


def save(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    """Write tensors and notes (the file's own metadata) as safetensors, at once or not at all.

    With one note the same tensors always give the same file; of several, safetensors draws the order.

    Returns:
        SHA-256 of the file, in hex.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with _in_place_of(path) as unfinished:
        try:
            _save_file(plain, unfinished, {**notes})
        except SafetensorError as error:  # what the system said about the disk
            raise OSError(" ".join(str(error).split())) from error
        with unfinished.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _save_file(tensors: dict[str, Tensor], path: Path, notes: dict[str, str]) -> None:
    try:
        save_file(tensors, path, notes)
    except RuntimeError:  # some share memory, as an algorithm's vectors may
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, notes)


def write(path: Path, content: bytes) -> None:
    """Put `content` in the place of `path` and return when it is on the disk."""
    with _in_place_of(path) as unfinished:
        unfinished.write_bytes(content)


@contextmanager
def _in_place_of(path: Path) -> Iterator[Path]:
    """A file to be written in the block, which then takes the place of `path` and is on the disk.

    The rename is what makes the file appear; syncing the file before it and the folder after it is what
    makes a later database row that names the file true after a crash of the machine as well.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        yield unfinished
        sync(unfinished)
        unfinished.replace(path)
    except OSError:
        with suppress(OSError):  # a full disk needs the space
            unfinished.unlink(missing_ok=True)
        raise
    sync(path.parent)
