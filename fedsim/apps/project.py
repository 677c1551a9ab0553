"""What a Flower app says of itself in its pyproject.toml: its two components and its settings."""

import hashlib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.errors import FedsimError, ScenarioError, one_line
from fedsim.registry import nearest

FILE = "pyproject.toml"
Value = bool | int | float | str
"""Of a setting."""
_NO_SOURCES = ("__pycache__", "venv", "node_modules", "site-packages")
_PAIR = re.compile(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S+)")


class Project(NamedTuple):
    """A Flower app's folder, read.

    Attributes:
        folder: absolute, without symbolic links.
        name: of the project.
        server, client: where its components are, as module:attribute.
        config: the settings, nested ones with dotted keys, as the apps see them in `context.run_config`.
        text: of the file.
    """

    folder: Path
    name: str
    server: str
    client: str
    config: dict[str, Value]
    text: str

    @property
    def file(self) -> Path:
        """The project's pyproject.toml."""
        return self.folder / FILE


def read(folder: Path, overrides: Sequence[str] = ()) -> Project:
    """Read an app's folder.

    Args:
        folder: that has the app's pyproject.toml.
        overrides: settings for this run as `flwr run --run-config` takes them: texts of KEY=VALUE pairs, the values
            as in TOML, or the name of one TOML file.

    Raises:
        FedsimError: it is no Flower app, or has no such setting.
    """
    folder = folder.resolve()
    file = folder / FILE
    try:
        text = file.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except FileNotFoundError as error:
        raise FedsimError(f"there is no {file}; name the folder of a Flower app") from error
    except (OSError, ValueError, RecursionError) as error:
        raise FedsimError(f"{file} cannot be read: {one_line(error)}") from error
    app = _table(_table(_table(tables, "tool"), "flwr"), "app")
    components = _table(app, "components")
    server, client = (_component(components, name, file) for name in ("serverapp", "clientapp"))
    config = dict(_flat(_table(app, "config"), f"{file}: tool.flwr.app.config"))
    for key, value in _overrides(overrides).items():
        if key not in config:
            place = f"[tool.flwr.app.config] of {file}"
            known = nearest(key, config) if config else " It has none."
            raise FedsimError(f"--run-config: {key} is not among the settings in {place}.{known}")
        config[key] = value
    name = _table(tables, "project").get("name")
    return Project(folder, name if isinstance(name, str) else folder.name, server, client, config, text)


def sources(folder: Path) -> dict[str, str]:
    """SHA-256 of an app's Python files, by their place in its folder; environments and hidden folders are left out."""
    found = {}
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not (name.startswith(".") or name in _NO_SOURCES))
        for file in sorted(Path(place, name) for name in files if name.endswith(".py")):
            found[file.relative_to(folder).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _table(tables: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = tables.get(name, {})
    return found if isinstance(found, dict) else {}


def _component(components: Mapping[str, Any], name: str, file: Path) -> str:
    reference = components.get(name)
    if not isinstance(reference, str):
        raise FedsimError(
            f"{file}: [tool.flwr.app.components] has no {name}; a Flower app names it as module:attribute"
        )
    module, _, attribute = reference.partition(":")
    if not module or not attribute:
        raise FedsimError(f"{file}: {name} = {reference!r} is not of the form module:attribute")
    return reference


def _flat(tables: Mapping[str, Any], what: str, before: str = "") -> Iterator[tuple[str, Value]]:
    """Settings with dotted keys instead of nested tables."""
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from _flat(value, what, f"{before}{key}.")
        elif isinstance(value, bool | int | float | str):
            yield f"{before}{key}", value
        else:
            raise ScenarioError(
                f"{what}: {before}{key} is neither a number, true or false, a text nor a table of those"
            )


def _overrides(texts: Sequence[str]) -> dict[str, Value]:
    if len(texts) == 1 and texts[0].endswith(".toml"):
        try:
            tables = tomllib.loads(Path(texts[0]).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise FedsimError(f"--run-config: {texts[0]} cannot be read: {one_line(error)}") from error
        return dict(_flat(tables, f"--run-config: {texts[0]}"))
    given: dict[str, Value] = {}
    for text in texts:
        if _PAIR.sub("", text).strip():
            raise FedsimError(f"--run-config: {text!r} is not of the form: key=1 other=0.5 third='some text'")
        for key, value in _PAIR.findall(text):
            try:
                given |= dict(_flat(tomllib.loads(f"{key} = {value}"), "--run-config"))
            except ValueError as error:
                advice = f"a text wants quotes: {key}='{value}'" if "'" not in value else "give a value as in TOML"
                raise FedsimError(f"--run-config: {key}={value}: {advice}") from error
    return given
