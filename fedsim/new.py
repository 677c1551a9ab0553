"""A first scenario of one's own, from the templates beside this file."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from fedsim.errors import ScenarioError


def create(path: Path, *, folder: bool = False) -> list[Path]:
    """Write a commented scenario, or a folder with a scenario, a model and data of one's own.

    Args:
        path: the scenario's file, ending in .toml; with `folder` the folder, which must not exist yet.
        folder: whether a folder is wanted.

    Returns:
        The files written. Each scenario among them runs as it is.

    Raises:
        ScenarioError: `path` exists already, cannot be written, or is no .toml file.
    """
    if path.exists():
        raise ScenarioError(f"{path} exists already and is left as it is; give another name")
    if not folder and path.suffix != ".toml":
        raise ScenarioError(f"{path}: a scenario's name ends in .toml; write {path}.toml or add --folder")
    templates = files("fedsim") / "templates"
    try:
        if not folder:
            return [_copy(templates / "scenario.toml", path)]
        path.mkdir(parents=True)
        originals = [entry for entry in (templates / "folder").iterdir() if entry.is_file()]
        return sorted(_copy(original, path / original.name) for original in originals)
    except OSError as error:
        raise ScenarioError(f"{path} cannot be written: {error.strerror}") from error


def _copy(original: Traversable, copy: Path) -> Path:
    copy.write_text(original.read_text(encoding="utf-8"), encoding="utf-8")
    return copy
