"""Broken scenarios: each is made from a number alone, so that what it breaks can be repeated.

`mutant(1234)` takes a scenario that runs, and changes tables and values, then sometimes bytes of the file, then
sometimes what `--set` adds. The keys it knows are those of the code, so a number means the same for one state of it.
"""

import copy
import inspect
import math
import random
import tomllib
from collections.abc import Callable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
from pydantic import BaseModel

from fedsim import adversaries, registry
from fedsim.data.partition import KINDS
from fedsim.scenario import Scenario
from fedsim.scenario_files import locate
from tests.small import SMALL

Tree = dict[str, Any]
Random = random.Random

FILE = "mutant.toml"
TEXT: Tree = {
    **SMALL,
    "data": {"name": "python-source", "max_bytes": 20_000, "window": 20, "partition": {"kind": "natural"}},
    "model": {"name": "lstm", "layers": 1, "width": 8},
}
TABLE: Tree = {
    **SMALL,
    "data": {"name": "csv", "path": "rows.csv", "label": "kind", "partition": {"kind": "iid", "clients": 4}},
}
BASES: tuple[Tree, ...] = (SMALL, SMALL, tomllib.loads(locate("quickstart").read_text()), TEXT, TABLE)
SOURCES = {"model": "fedsim.models", "strategy": "fedsim.strategies", "data": "fedsim.data.sources"}

NUMBERS: tuple[Any, ...] = (
    *(4, 5, 7, 20, 64, 100, 1000, 0.01, 0.2, 0.3, 0.7, 2.0, 10.0, 1e-5, 1e-3),
    *(0, -1, 1, 2, 3, 10, 10**9, 10**9 + 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, -(2**63), 10**12, 10**18, 10**30),
    *(10**400, -(10**400), 0.0, -0.0, 0.5, 1.0, 0.1, 5e-324, 1e-300, 1e-9, 1e9, 1e18, 1e300, 1.7e308, -1e-3),
    *(math.nan, math.inf, -math.inf, True, False),
)
TEXTS = (
    *("", " ", "\n", "a\nb: c", "\x00", "\x1b[31m", "\u202e", "\ufeff", "é", "𝒳", "\u2028", "x" * 10_000, "%s%n{}"),
    *(".", "..", "/", "~", "/dev/null", "/dev/zero", "/dev/stdin", "/proc/kcore", "../" * 300, "quickstart", FILE),
    *(":", "a:b", ".:x", "/dev/null:x", "/dev/zero:x", "\x00:x", "x" * 5000 + ":x", "absent.py:Net", "nan", "1"),
)
STRUCTURES: tuple[Any, ...] = (
    *([], {}, [[]], [{}], [0], [-1], [10**9], [2**63 - 1, 2**63 - 1], [10**30], [1] * 200, [16, "a"], [math.nan]),
    *({"a": {"b": {"c": 1}}}, {"": 1}, {"name": "mlp"}, {"kind": "iid"}, date(1, 1, 1), datetime(9999, 12, 31)),
)
POOL = (*NUMBERS, *TEXTS, *STRUCTURES)
ODD_KEYS = ("", " ", "a.b", "é", "\n", "x" * 10_000, "__class__", "settings", "model_extra", "self", "_folder", "\x00")
"""Names that no scenario has, among them such as mean something to Python or to pydantic."""


def _keys(table: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a table of the scenario and of all tables in it."""
    for name, entry in table.model_fields.items():
        options = [entry.annotation, *getattr(entry.annotation, "__args__", ())]
        inner = next((each for each in options if isinstance(each, type) and issubclass(each, BaseModel)), None)
        yield from _keys(inner, f"{prefix}{name}.") if inner is not None else [prefix + name]


def _settings() -> Iterator[str]:
    """The dotted keys of everything that a scenario can name."""
    functions = {
        table: [registry.find(package, name, Path(), table) for name in registry.members(package)]
        for table, package in SOURCES.items()
    }
    functions["strategy.combine"] = functions["strategy.server"] = functions["strategy"]
    functions["data.partition"], functions["adversary"] = [*KINDS.values()], [*adversaries.KINDS.values()]
    for table, found in functions.items():
        yield from (f"{table}.{key}" for each in found for key in inspect.signature(each).parameters)


KNOWN = sorted({*_keys(Scenario), *_settings()})
WORDS = sorted(
    {
        *KINDS,
        *adversaries.KINDS,
        "adam",
        "sgd",
        "rdp",
        "prv",
        "uniform",
        "group",
        "cosine",
        *(name for package in SOURCES.values() for name in registry.members(package)),
    }
)
FITTING: tuple[tuple[str, Any], ...] = (
    ("model", {"name": "mlp", "hidden": [8, 8]}),
    ("model", {"name": "cnn", "channels": [4], "dense": 8, "norm": "group"}),
    ("model", {"name": "lstm", "width": 8}),
    ("model", {"name": "transformer", "width": 8, "layers": 1, "heads": 2, "dropout": 0.1}),
    ("data.partition", {"kind": "iid", "clients": 4}),
    ("data.partition", {"kind": "shards", "clients": 4, "shards": 2}),
    ("data.partition", {"kind": "labels", "clients": 6, "labels_per_client": 3}),
    ("data.partition", {"kind": "quantity", "clients": 6, "alpha": 1.0}),
    ("data.partition", {"kind": "natural"}),
    ("data.min_rows", 0),
    ("strategy", {"name": "scaffold", "server_lr": 0.5}),
    ("strategy", {"name": "ditto", "lamda": 0.1}),
    ("strategy", {"name": "fedrep"}),
    ("strategy.combine", {"name": "median"}),
    ("strategy.server", {"name": "fedadam", "server_lr": 0.01}),
    ("strategy", {"name": "flower:FedMedian"}),
    ("references", ["local", "central", "constant"]),
    ("adversary", {"name": "sign-flip", "fraction": 0.4, "scale": 10.0}),
    ("adversary", {"name": "label-flip", "clients": [0, 2]}),
    ("adversary", {"name": "alie", "fraction": 0.2}),
    ("adversary", {"name": "backdoor", "clients": [1], "target": 3, "size": 2}),
    ("cohort", {"size": 3, "min_replies": 2}),
    ("cohort", {"poisson": 0.5}),
    ("privacy", {"example": {"noise_multiplier": 1.0, "delta": 1e-3, "max_grad_norm": 1.0}}),
    ("stop", {"metric": "global/central-validation/rows/accuracy", "at_least": 0.9, "patience": 3}),
    ("evaluate.metric", "global/client-validation/clients/loss"),
    ("train.schedule", {"kind": "step", "every": 2, "factor": 0.5}),
    ("train", {"learning_rate": 0.1, "batch_size": 8, "steps": 3, "momentum": 0.9, "weight_decay": 1e-4, "clip": 1.0}),
    (
        "train",
        {"optimizer": "adam", "learning_rate": 0.1, "batch_size": 8, "epochs": 2, "schedule": {"kind": "cosine"}},
    ),
    ("privacy", {"example": {"epsilon": 8.0, "delta": 1e-3, "max_grad_norm": 1.0, "max_participations": 4}}),
    ("privacy.example.accountant", "prv"),
    ("data.split", {"central": 0.2, "train": 0.5, "validation": 0.25, "test": 0.25}),
    ("data", {"name": "csv", "path": "rows.csv", "label": "kind", "client": "who", "partition": {"kind": "natural"}}),
    (
        "data",
        {
            "name": "csv",
            "path": "rows.csv",
            "label": "kind",
            "group": "who",
            "partition": {"kind": "iid", "clients": 3},
        },
    ),
    ("model", {"name": "net.py:Net", "width": 8}),
    ("engine", {"kind": "ray", "workers": 2, "stack": 2, "bits": "not guaranteed"}),
    ("records.clients", 0.5),
    ("checkpoint", {"every": 2, "keep": 3}),
    ("cohort", {"fraction": 0.5, "client_timeout": 60.0, "on_client_error": "fail", "dropout": 0.3}),
    ("evaluate", {"every": 2, "clients_every": 3, "clients": 2, "min_rows": 1, "batch_size": 64}),
    ("stop", {"max_seconds": 60.0, "diverged_above": 10.0}),
    ("extends", "quickstart"),
)
"""Changes that fit by themselves, so that what breaks lies deeper."""


class Mutant(NamedTuple):
    """A broken scenario: the file's bytes, and what `--set` adds."""

    text: bytes
    settings: tuple[str, ...]


def mutant(number: int) -> Mutant:
    """The mutant of that number, always the same."""
    rng = Random(number)
    tree: Tree = copy.deepcopy(rng.choice(BASES))
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        _set(tree, *rng.choice(FITTING))
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2))):
        rng.choice(TREE_CHANGES)(tree, rng)
    text = tomli_w.dumps(tree).encode()
    if rng.random() < 0.12:
        text = rng.choice(TEXT_CHANGES)(text, rng)
    return Mutant(text, tuple(_setting(rng) for _ in range(rng.choice((0, 0, 0, 0, 0, 0, 0, 1, 2)))))


def _odd_value(rng: Random) -> Any:
    pool: tuple[Any, ...] = rng.choice((NUMBERS, NUMBERS, TEXTS, STRUCTURES, tuple(WORDS)))
    return copy.deepcopy(rng.choice(pool))


def _tables(tree: Tree) -> list[Tree]:
    """The tree and all tables in it."""
    return [tree, *(inner for value in tree.values() if isinstance(value, dict) for inner in _tables(value))]


def _place(tree: Tree, rng: Random) -> tuple[Tree, str]:
    """A table that is not empty and a key in it."""
    table = rng.choice([table for table in _tables(tree) if table] or [{"seed": 1}])
    return table, rng.choice(sorted(table))


def _set(tree: Tree, dotted: str, value: Any) -> None:
    """Set a key where its tables are tables."""
    *path, last = dotted.split(".")
    for name in path:
        inner = tree.setdefault(name, {})
        if not isinstance(inner, dict):
            return
        tree = inner
    tree[last] = copy.deepcopy(value)


def _delete(tree: Tree, rng: Random) -> None:
    table, key = _place(tree, rng)
    table.pop(key, None)


def _rename(tree: Tree, rng: Random) -> None:
    table, key = _place(tree, rng)
    letters = list(key)
    rng.shuffle(letters)
    table[rng.choice((key[1:], key + key[-1:], key.upper(), "".join(letters), *ODD_KEYS))] = table.pop(key, 1)


def _replace(tree: Tree, rng: Random) -> None:
    table, key = _place(tree, rng)
    table[key] = _odd_value(rng)


def _known(tree: Tree, rng: Random) -> None:
    _set(tree, rng.choice(KNOWN), _odd_value(rng))


def _similar(tree: Tree, rng: Random) -> None:
    """Another value of the same type, so that it passes the first checks."""
    leaves = [(table, key) for table in _tables(tree) for key in table if not isinstance(table[key], dict)]
    numbers = [(table, key) for table, key in leaves if not isinstance(table[key], str)]
    if leaves := numbers if numbers and rng.random() < 0.9 else leaves:
        table, key = rng.choice(leaves)
        old, same = table[key], [value for value in POOL if type(value) is type(table[key])]
        number = type(old) in (int, float) and rng.random() < 0.75
        table[key] = (
            rng.choice((2 * old, old + 1, old // 2, old * 10, -old)) if number else copy.deepcopy(rng.choice(same))
        )


def _add(tree: Tree, rng: Random) -> None:
    rng.choice(_tables(tree))[rng.choice(ODD_KEYS)] = _odd_value(rng)


def _swap(tree: Tree, rng: Random) -> None:
    (one, first), (other, second) = _place(tree, rng), _place(tree, rng)
    if first in one and second in other:
        one[first], other[second] = copy.deepcopy(other[second]), copy.deepcopy(one[first])


def _wrap(tree: Tree, rng: Random) -> None:
    """A value becomes a table or an array of itself, tables become arrays of tables."""
    table, key = _place(tree, rng)
    value = table.get(key)
    table[key] = rng.choice(([value], [value, value], {key: value}, {"name": value}, {"": value}))


def _nest(tree: Tree, rng: Random) -> None:
    table, key = _place(tree, rng)
    value = table.get(key)
    for _ in range(rng.choice((2, 10, 50, 150))):
        value = {rng.choice("ab"): value} if rng.random() < 0.5 else [value]
    table[key] = value


TREE_CHANGES: tuple[Callable[[Tree, Random], None], ...] = (
    *(*[_similar] * 20, _delete, _rename, _replace, _known, _known, _known, _add, _swap, _wrap, _nest),
)


def _line(text: bytes, rng: Random, make: Callable[[bytes], bytes]) -> bytes:
    lines = text.split(b"\n")
    place = rng.randrange(len(lines))
    return b"\n".join([*lines[:place], make(lines[place]), *lines[place + 1 :]])


def _cut(text: bytes, rng: Random) -> bytes:
    return text[: rng.randrange(len(text) + 1)]


def _garbage(text: bytes, rng: Random) -> bytes:
    for _ in range(rng.choice((1, 3, 30))):
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.randbytes(rng.choice((0, 1, 4))) + text[place + rng.choice((0, 1, 5)) :]
    return text


def _twice(text: bytes, rng: Random) -> bytes:
    return rng.choice((text + text, _line(text, rng, lambda line: line + b"\n" + line)))


def _encoded(text: bytes, rng: Random) -> bytes:
    ways: tuple[bytes, ...] = (
        *(b"\xef\xbb\xbf" + text, text.decode().encode("utf-16"), text.replace(b"\n", b"\r\n")),
        *(text.replace(b"\n", b"\r"), text.replace(b"=", b"\x00="), text + b"\x00", text.replace(b"e", b"\xe9"), b""),
    )
    return rng.choice(ways)


def _deep(text: bytes, rng: Random) -> bytes:
    depth = rng.choice((100, 3000, 9000))
    keys: tuple[bytes, ...] = (b"", b"model.", b"data.partition.", b"strategy.", b"privacy.without.")
    key = rng.choice(keys) + b"deep"
    forms: tuple[bytes, ...] = (
        *(key + b" = " + b"[" * depth, key + b" = " + b"[" * depth + b"]" * depth),
        *(key + b" = " + b"{a=" * depth + b"1" + b"}" * depth, key + b".a" * depth + b" = 1"),
    )
    return rng.choice(forms) + b"\n" + text


def _long_number(text: bytes, rng: Random) -> bytes:
    numbers: tuple[bytes, ...] = (
        *(b"9" * 5000, b"0x" + b"f" * 5000, b"-0o" + b"7" * 5000, b"1e999999", b"1" + b"_0" * 3000, b"0x" + b"f" * 16),
        *(b"9" * 90_000, b"1979-05-27T07:32:00+99:99", b"12:61:00", b"0." + b"1" * 20_000, b"'''\n\n'''"),
    )
    number = rng.choice(numbers)
    key = rng.choice(KNOWN).encode()
    return rng.choice(
        (_line(text, rng, lambda line: line.partition(b"=")[0] + b"= " + number), b"%s = %s\n" % (key, number) + text)
    )


def _extends(text: bytes, rng: Random) -> bytes:
    bases = ("mutant.toml", "./mutant.toml", "back.toml", ".", "", "folder.toml", "missing.toml", "unreadable.toml")
    value = rng.choice((*bases, *TEXTS, _odd_value(rng)))
    return tomli_w.dumps({"extends": value}).encode() + text


def _header(text: bytes, rng: Random) -> bytes:
    """Tables become arrays of tables, or belong to others."""
    return rng.choice(
        (text.replace(b"[", b"[[").replace(b"]", b"]]"), text.replace(b"[", b"[data."), text.replace(b"]", b""))
    )


TEXT_CHANGES: tuple[Callable[[bytes, Random], bytes], ...] = (
    *(_cut, _garbage, _garbage, _twice, _encoded, _deep, _long_number, _long_number, _extends, _extends, _header),
)


def _setting(rng: Random) -> str:
    """What `--set` might be given."""
    value = _odd_value(rng)
    if rng.random() < 0.6:
        return f"{rng.choice(KNOWN)}={tomli_w.dumps({'v': value})[4:].strip()}"
    key = rng.choice((*KNOWN, *ODD_KEYS[:6], "train..x", ".", "a" + ".a" * 2000))
    odd = (
        "",
        "=",
        "[" * 2000,
        "{a=" * 2000,
        "9" * 5000,
        "0x" + "f" * 5000,
        "'",
        '"""',
        "1\nrounds = 2",
        "2020-13-01",
        "\udcff",
    )
    written = rng.choice((str(value)[:9999], *odd))
    return rng.choice((f"{key}={written}", f"{key}={written}", f"{key} = {written}", key, f"={written}", written))
