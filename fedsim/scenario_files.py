"""Scenario files as nested tables: found, derived from one another by `extends`, changed by `--set`.

What the tables may say is checked by `scenario.py`.
"""

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedsim.errors import ScenarioError
from fedsim.registry import is_file, nearest

_MOST_BYTES = 64_000  # of a page of text; a table of data given by mistake has more
_DEEPEST = 20
_NAMING_FILES = (
    *("data.name", "data.path", "model.name", "strategy.name", "strategy.combine.name", "strategy.server.name"),
    *("adversary.name", "references", "task.loss", "task.metrics", "data.transform"),
)
_LONG_KEY = re.compile(r"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){100}")  # a.a.a...: minutes for the parser

ALTERNATIVES = (
    ("cohort", ("size", "fraction", "poisson")),
    ("train", ("epochs", "steps")),
    ("privacy.example", ("epsilon", "noise_multiplier")),
    ("privacy.client", ("epsilon", "noise_multiplier")),
    ("privacy.local", ("epsilon", "noise_multiplier")),
    ("adversary", ("fraction", "clients")),
)
"""Keys of which a table has one: setting one in a derived scenario or by --set drops the others."""


def shipped() -> list[str]:
    """Names of the scenarios that come with fedsim."""
    return sorted(
        Path(entry.name).stem for entry in files("fedsim.scenarios").iterdir() if entry.name.endswith(".toml")
    )


def locate(name: str) -> Path:
    """The file of a scenario given as a path or as the name of one that comes with fedsim.

    Raises:
        ScenarioError: there is neither.
    """
    path = Path(name)
    if path.suffix == ".toml" or is_file(path):
        if not is_file(path):
            raise ScenarioError(f"{name}: there is no such file")
        return path
    if name in shipped():
        return Path(str(files("fedsim.scenarios") / f"{name}.toml"))
    raise ScenarioError(f"there is no scenario {name!r}.{nearest(name, shipped())} Or give a .toml file.")


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of a scenario file with all that it extends.

    Args:
        path: of the file.
        overrides: "train.learning_rate=0.05", values as in TOML; a bare word is a string. A file that one names lies
            beside the scenario, else in the current folder.

    Raises:
        ScenarioError: a file that cannot be read or is not TOML, or an override that sets no key.
    """
    content = _read(path, ())
    try:
        changes = assignments(overrides)
        return override(override(content, changes), _from_here(override({}, changes), path.resolve().parent))
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from None


def assignments(overrides: Sequence[str]) -> dict[str, Any]:
    """Values by dotted key, of texts such as "train.learning_rate=0.05".

    Raises:
        ScenarioError: a text that sets no key, or one that lies too deep.
    """
    changes = dict(_assignment(text) for text in overrides)
    if deep := [key for key in changes if key.count(".") > _DEEPEST]:
        raise ScenarioError(f"{deep[0][:40]}...: nested more than {_DEEPEST} deep; there is no such key")
    check_values(changes)
    return changes


def override(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested tables with dotted keys set; of alternatives, the one that is set replaces the others."""
    result: dict[str, Any] = {key: _copied(value) for key, value in content.items()}
    for dotted, value in changes.items():
        *tables, last = dotted.split(".")
        table = result
        for name in tables:
            inner = table.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ScenarioError(f"{dotted} cannot be set: {name} is not a table")
            table = inner
        prefix = ".".join(tables)
        # One that is set along with this one stays, so that the check refuses both.
        _drop_alternatives(
            table, prefix, {key.rpartition(".")[2] for key in changes if key.rpartition(".")[0] == prefix}
        )
        table[last] = _copied(value)
    return result


def check_values(content: Mapping[str, Any]) -> None:
    """Refuse values that no scenario needs and on which other things break later, each by its key.

    Raises:
        ScenarioError: a whole number beyond 64 bits, which TOML does not have, or tables nested too deeply.
    """
    left: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while left:
        keys, value = left.pop()
        if len(keys) > _DEEPEST:
            raise ScenarioError(f"{'.'.join(keys[:3])}: nested more than {_DEEPEST} deep; write it flat")
        if isinstance(value, Mapping):
            left += [((*keys, str(key)), inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            left += [((*keys, str(place)), inner) for place, inner in enumerate(value)]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ScenarioError(f"{'.'.join(keys)}: whole numbers have 64 bits; give one nearer to 0")


def named_files(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Dotted key and value of all that names a file of the user's own, relative to the scenario's."""
    found = ((key, each) for key, value in _naming(content) for each in (value if isinstance(value, list) else [value]))
    return [(key, each) for key, each in found if _names_file(key, each)]


def renamed(content: Mapping[str, Any], place: Callable[[str], str]) -> dict[str, Any]:
    """The same tables with `place` of every file of the user's own in the place of the file."""
    return override(content, _placed(content, place))


def _naming(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of what may name files; one, or a list."""
    for dotted in _NAMING_FILES:
        value: Any = content
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            yield dotted, value


def _names_file(key: str, value: Any) -> bool:
    return isinstance(value, str) and (key.endswith("path") or (":" in value and not value.startswith("flower:")))


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """A file's tables over those that it extends; files that they name are relative to this file."""
    if path.resolve() in seen:
        raise ScenarioError(f"{path}: extends leads back to itself")
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise ScenarioError(f"{size:,} bytes are too many for a scenario, which has at most {_MOST_BYTES:,}")
        content = _tables(path.read_text(encoding="utf-8-sig"))
        check_values(content)
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: not valid TOML: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except ValueError as error:
        raise ScenarioError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from None
    if "extends" not in content:
        return content
    parent = content.pop("extends")
    if not isinstance(parent, str):
        raise ScenarioError(f"{path}: extends should be the name or file of one scenario")
    base = _base(path, parent)
    inherited = _moved(_read(base, (*seen, path.resolve())), base.resolve().parent, path.resolve().parent)
    return _derive(inherited, content)


def _tables(text: str) -> dict[str, Any]:
    """TOML's tables.

    Raises:
        ValueError: says what is wrong, with line and column where the parser knows them.
    """
    too_deep = ValueError("arrays or tables are nested too deeply")
    if _LONG_KEY.search(text):
        raise too_deep
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise too_deep from None
    except ValueError:  # Python's own, on integers of thousands of digits
        raise ValueError("a whole number has too many digits") from None


def _base(path: Path, parent: str) -> Path:
    """The file that `path` extends: one beside it, else as `locate` finds it."""
    beside = path.parent / parent
    if is_file(beside):
        return beside
    try:
        return locate(parent)
    except ScenarioError as error:
        raise ScenarioError(f"{path}: extends: {error}") from None


def _moved(content: dict[str, Any], old: Path, new: Path) -> dict[str, Any]:
    """The same tables as a file in another folder would write them: the files they name stay where they are."""

    def moved(file: str) -> str:
        return file if Path(file).is_absolute() else os.path.relpath(old / file, new)

    return override(content, _placed(content, moved) if old != new else {})


def _from_here(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The keys that name files, which lie in `folder` or else in the current one, as a file in `folder` writes them."""

    def found(file: str) -> str:
        return file if is_file(folder / file) or not is_file(Path(file)) else str(Path.cwd() / file)

    return _placed(content, found)


def _placed(content: Mapping[str, Any], place: Callable[[str], str]) -> dict[str, Any]:
    """Dotted keys of all that may name files, with `place` of those files in their values."""

    def placed(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [placed(key, each) for each in value]
        if not _names_file(key, value):
            return value
        file, colon, name = (value, "", "") if key.endswith("path") else value.partition(":")
        return f"{place(file)}{colon}{name}"

    return {key: placed(key, value) for key, value in _naming(content)}


def _derive(base: dict[str, Any], changes: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Merge tables; one that names another function (`name`, `kind`) replaces the base's whole table."""
    result = dict(base)
    _drop_alternatives(result, prefix, set(changes))
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not _renamed(old, value):
            result[key] = _derive(old, value, f"{prefix}.{key}" if prefix else key)
        else:
            result[key] = value
    return result


def _renamed(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return any(key in new and new[key] != old.get(key) for key in ("name", "kind"))


def _drop_alternatives(table: dict[str, Any], prefix: str, setting: set[str]) -> None:
    for name, keys in ALTERNATIVES:
        if name == prefix and setting & set(keys):
            for key in set(keys) - setting:
                table.pop(key, None)


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ScenarioError(f"--set {text}: write it as key=value, e.g. --set train.learning_rate=0.05")
    try:
        read = _tables(f"value = {value}")
    except ValueError:
        read = {}
    return key.strip(), read["value"] if set(read) == {"value"} else value.strip()
