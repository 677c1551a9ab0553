"""Where a user's Python objects were written: how they are called, and the file or the notebook cell.

A run folder keeps these files, and a run that goes on compares them.
"""

import inspect
import linecache
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """What was typed in one cell of a notebook.

    Attributes:
        name: of a file for it.
        text: of the whole cell.
    """

    name: str
    text: str


Origin = Path | Cell


def reference(value: object) -> str:
    """Where an object is to be found again: a scenario's word as it is, else module:qualname."""
    if isinstance(value, str):
        return value
    definition = _definition(value)
    return f"{definition.__module__}:{definition.__qualname__}"


def origins(value: object) -> list[Origin]:
    """The file in which a class or function was written, or its cell; nothing of a scenario's word, or what has none.

    Of a `functools.partial` that of its function, of any other object that of its class.
    """
    if isinstance(value, str):
        return []
    definition = _definition(value)
    try:
        file = inspect.getsourcefile(definition)
    except (TypeError, OSError):  # compiled; or a class of a cell or prompt, of which Python 3.11 knows no file
        file = None
    if file is not None and Path(file).is_file():
        return [Path(file)]
    for code in _codes(definition):
        if Path(code.co_filename).is_file():
            return [Path(code.co_filename)]
        if text := "".join(linecache.getlines(code.co_filename)):
            return [Cell(f"cell-{re.sub(r'[^A-Za-z0-9]+', '', definition.__name__) or 'code'}.py", text)]
    return []


def contents(found: Sequence[Origin]) -> dict[str, bytes]:
    """What was written, by a name for each: that of its file, with a number where two would share one.

    A file or a cell that is there twice is kept once.

    Raises:
        OSError: a file cannot be read.
    """
    named: dict[str, bytes] = {}
    for name, each in _named(found).items():
        named[name] = each.read_bytes() if isinstance(each, Path) else each.text.encode()
    return named


def names(found: Sequence[Origin]) -> dict[Origin, str]:
    """The name that `contents` gives to each."""
    named = {each if isinstance(each, Path) else each.text: name for name, each in _named(found).items()}
    return {each: named[each.resolve() if isinstance(each, Path) else each.text] for each in found}


def _named(found: Sequence[Origin]) -> dict[str, Origin]:
    named: dict[str, Origin] = {}
    seen: set[Path | str] = set()
    for each in found:
        origin = each.resolve() if isinstance(each, Path) else each
        key = origin if isinstance(origin, Path) else origin.text
        if key in seen:
            continue
        seen.add(key)
        first = Path(origin.name)
        name, count = first.name, 2
        while name in named:
            name, count = f"{first.stem}-{count}{first.suffix}", count + 1
        named[name] = origin
    return named


def _definition(value: object) -> Any:
    """The class or function behind an object, which may be a `functools.partial` or one that can be called."""
    plain = inspect.unwrap(getattr(value, "func", value))  # type: ignore[arg-type]
    return plain if hasattr(plain, "__qualname__") else type(plain)


def _codes(definition: Any) -> Iterator[CodeType]:
    """The code of a function, or of the methods that a class defines."""
    for each in vars(definition).values() if inspect.isclass(definition) else (definition,):
        code = getattr(each, "__code__", None)
        if isinstance(code, CodeType):
            yield code
