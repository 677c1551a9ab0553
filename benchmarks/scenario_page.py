"""docs/scenario.md and docs/scenario.schema.json, from the types of a scenario's tables.

    python benchmarks/scenario_page.py

The page says of every key what it may be, its default and what it does; the schema lets editors complete and check
scenario files.
"""

import json
import typing
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fedsim.data.schema import Column
from fedsim.scenario import Scenario
from fedsim.tables import MOST

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, SCHEMA = DOCS / "scenario.md", DOCS / "scenario.schema.json"
_HEAD = """# The keys of a scenario

Made by `python benchmarks/scenario_page.py` from the types that check a scenario.

A scenario is a TOML file. An unknown key, a wrong type or an impossible value is an error that names the key. A table
marked *open* takes further keys, those of what its `name` (or `kind`) stands for: `fedsim list strategies`, `models`,
`data`, `partitions` and `adversaries` print them. `extends = "other.toml"` takes over all keys of another scenario;
`--set table.key=value` changes one on the command line. Files are named from the scenario's own folder.

For completion and checks in an editor, begin the file with

```toml
#:schema ./scenario.schema.json
```

and lay [scenario.schema.json](scenario.schema.json) beside it.
"""
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false"}
_GATHERED = {list: "list of {}", tuple: "[{}]", dict: "table"}
_SIGNS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def page() -> str:
    """The text of the page."""
    columns = _table("data.schema.COLUMN", Column)
    return "\n".join([_HEAD, *_table("", Scenario), *columns]) + "\n"


def schema() -> str:
    """The text of the schema."""
    made = Scenario.model_json_schema()
    made["properties"]["extends"] = {"type": "string", "description": "a scenario whose keys are taken over"}
    for table in (made, *made["$defs"].values()):
        table.pop("required", None)  # what a file lacks may stand in the one that it extends
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **made}, indent=1) + "\n"


def _table(place: str, table: type[BaseModel]) -> list[str]:
    """A table's section, and those of the tables in it."""
    fields = {name: field for name, field in table.model_fields.items() if not name.startswith("_")}
    inner = {name: found for name, field in fields.items() if (found := _tables(field.annotation))}
    lines = ["", f"## {f'[{place}]' if place else 'At the top'}", "", *_about(table)]
    plain = [_row(name, field) for name, field in fields.items() if name not in inner]
    if plain:
        lines += ["| key | may be | default | |", "|---|---|---|---|", *plain]
    for name, found in inner.items():
        for each in found:
            lines += _table(f"{place}.{name}" if place else name, each)
    return lines


def _about(table: type[BaseModel]) -> list[str]:
    text = " ".join((table.__doc__ or "").split())
    is_open = table.model_config.get("extra") == "allow"
    return [f"{'*open.* ' if is_open else ''}{text}", ""]


def _row(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
    cells = (f"`{name}`", _words(field.annotation, field.metadata), default, field.description or "")
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _value(value: Any) -> str:
    return "" if value is None or value is PydanticUndefined else f"`{json.dumps(value, default=str)}`"


def _tables(annotation: Any) -> list[type[BaseModel]]:
    """The tables that a key may be."""
    options = get_args(annotation) if _is_union(annotation) else (annotation,)
    return [each for each in options if isinstance(each, type) and issubclass(each, BaseModel)]


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (UnionType, typing.Union)


def _words(annotation: Any, metadata: Any = ()) -> str:
    """A type and its limits for people."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _words(inner[0], [*metadata, *inner[1:]])
    if _is_union(annotation):
        return " or ".join(_words(each, metadata) for each in inner if each is not NoneType)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(each)}`" for each in inner)
    if origin in _GATHERED:
        return _GATHERED[origin].format(", ".join(map(_words, inner)))
    return " ".join([_PLAIN.get(annotation, str(annotation)), *_limits(metadata)])


def _limits(metadata: Any) -> list[str]:
    """What numbers are allowed."""
    found: list[str] = []
    for each in metadata:
        for part in getattr(each, "metadata", [each]):
            bounds = ((word, getattr(part, sign, None)) for sign, word in _SIGNS.items())
            found += [f"{word} {value:,}" for word, value in bounds if value is not None and value != MOST]
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")
