"""Model files: safetensors written so that a kill leaves the old file or the new one, never a piece."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save as to_safetensors
from torch import Tensor

from fedsim.parameters import Layout, Weights

UNFINISHED = ".tmp"
"""Ending of a file that is still being written."""


def named_tensors(layout: Layout, weights: Weights, prefix: str = "") -> dict[str, Tensor]:
    """The model by parameter and buffer name, in layout order.

    Args:
        layout: where each tensor lies.
        weights: the flat vectors; the result are views of them.
        prefix: put before every name.
    """
    return {
        prefix + slot.name: vector[slot.start : slot.stop].view(slot.shape)
        for slots, vector in ((layout.parameters, weights.vector), (layout.buffers, weights.buffers))
        for slot in slots
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

    Returns:
        SHA-256 of the file, in hex.
    """
    content = to_safetensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {**notes})
    write(path, content)
    return hashlib.sha256(content).hexdigest()


def write(path: Path, content: bytes) -> None:
    """Put `content` in the place of `path` and return when it is on the disk.

    The rename is what makes the file appear; syncing the file before it and the folder after it is what
    makes a later database row that names the file true after a crash of the machine as well.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
