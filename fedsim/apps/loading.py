"""An app's components, imported from its folder by the process that runs them."""

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fedsim.errors import FedsimError, one_line

Part = TypeVar("Part")
_folders: list[str] = []
"""Folders of apps that were loaded in this process."""


def load(reference: str, folder: Path, kind: type[Part], what: str) -> Part:
    """The object that a reference names, in a folder that `at_hand` has prepared.

    Args:
        reference: module:attribute.
        folder: of the app.
        kind: of the object.
        what: names the reference in an error.

    Raises:
        FedsimError: there is none; what the app's own code raised is told with its place.
    """
    module, _, attributes = reference.partition(":")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        reason = f"{one_line(error)}{place_of(error, folder)}"
        raise FedsimError(f"{what} = {reference!r}: module {module} cannot be imported: {reason}") from error
    for name in attributes.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise FedsimError(f"{what} = {reference!r}: module {module} has no {attributes}") from error
    if not isinstance(found, kind):
        raise FedsimError(f"{what} = {reference!r} is a {type(found).__name__}, not a {kind.__name__}")
    return found


def at_hand(folder: Path) -> None:
    """Have an app's modules imported from its folder, and anew, whatever app this process had before.

    Two apps may have packages of one name, and one may have been edited since.
    """
    for name in [name for name in list(sys.modules) if _of_an_app(name)]:  # others may import meanwhile
        del sys.modules[name]
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in {*_folders, str(folder)})]
    if str(folder) not in _folders:
        _folders.append(str(folder))
    importlib.invalidate_caches()


def _of_an_app(name: str) -> bool:
    """Whether a module is of an app that was loaded: its top-level package lies in the app's folder itself."""
    top = name.partition(".")[0]
    module = sys.modules.get(top)
    places = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None)]
    if top in ("fedsim", "__main__"):
        return False
    return any(str(Path(place).parent) in _folders for place in places if place is not None)


def place_of(error: BaseException, folder: Path) -> str:
    """Where in the app's files an error came up, as ' (file:line)'; nothing where that was elsewhere."""
    frames = traceback.extract_tb(error.__traceback__)
    within = [frame for frame in frames if Path(frame.filename).is_relative_to(folder)]
    return f" ({Path(within[-1].filename).relative_to(folder)}:{within[-1].lineno})" if within else ""


@contextmanager
def own_errors(folder: Path, what: str) -> Iterator[None]:
    """Tell what the app's own code raised inside the block as one line; errors of ours and interrupts pass."""
    try:
        yield
    except FedsimError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not error.code:
            return
        raise FedsimError(f"{what} raised {one_line(error)}{place_of(error, folder)}") from error
