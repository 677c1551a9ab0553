"""Scenario files as nested tables: found, derived from one another by `extends`, changed by `--set`.

What the tables may say is checked by `scenario.py`.
"""

import os
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedsim.errors import ScenarioError
from fedsim.registry import nearest

ALTERNATIVES = (
    ("cohort", ("size", "fraction", "poisson")),
    ("train", ("epochs", "steps")),
    ("privacy.example", ("epsilon", "noise_multiplier")),
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
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise ScenarioError(f"{name}: there is no such file")
        return path
    if name in shipped():
        return Path(str(files("fedsim.scenarios") / f"{name}.toml"))
    raise ScenarioError(f"there is no scenario {name!r}.{nearest(name, shipped())} Or give a .toml file.")


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of a scenario file with all that it extends.

    Args:
        path: of the file.
        overrides: "train.learning_rate=0.05", values as in TOML; a bare word is a string.

    Raises:
        ScenarioError: a file that cannot be read or is not TOML, or an override that sets no key.
    """
    return override(_read(path, ()), dict(_assignment(text) for text in overrides))


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
        table[last] = value
    return result


def references(content: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Table, key and value of all that names a file of the user's own, relative to the scenario's."""
    found = []
    for name, key in (("data", "name"), ("data", "path"), ("model", "name"), ("strategy", "name")):
        table = content.get(name)
        value = table.get(key) if isinstance(table, Mapping) else None
        if isinstance(value, str) and (key == "path" or ":" in value):
            found.append((name, key, value))
    return found


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """A file's tables over those that it extends; files that they name are relative to this file."""
    if path.resolve() in seen:
        raise ScenarioError(f"{path}: extends leads back to itself")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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


def _base(path: Path, parent: str) -> Path:
    """The file that `path` extends: one beside it, else as `locate` finds it."""
    beside = path.parent / parent
    if beside.is_file():
        return beside
    try:
        return locate(parent)
    except ScenarioError as error:
        raise ScenarioError(f"{path}: extends: {error}") from None


def _moved(content: dict[str, Any], old: Path, new: Path) -> dict[str, Any]:
    """The same tables as a file in another folder would write them: the files they name stay where they are."""
    moved: dict[str, Any] = _copied(content)
    for table, key, value in references(content) if old != new else ():
        if not Path(value).is_absolute():
            moved[table][key] = os.path.relpath(old / value, new)
    return moved


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
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
