"""Packages that only some scenarios need."""

import importlib
from types import ModuleType

from fedsim.errors import FedsimError


def needed(module: str, extra: str, what: str) -> ModuleType:
    """A package that does not come with fedsim, imported where it is used.

    Args:
        module: to import.
        extra: of fedsim that brings it.
        what: needs it, as the beginning of a sentence.

    Raises:
        FedsimError: it is not installed; the message says how to.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FedsimError(f"{what} needs {error.name or module}: pip install 'fedsim[{extra}]'") from None
