"""What to cite for a run: BibTeX of its algorithm, data, privacy accountant and software, and the data's licence.

A part says in its docstring where it comes from (`citations.py`). works.bib has the full entry, found by the title
that the docstring quotes; what is not there, such as a user's own strategy, is cited as its docstring does.
"""

import ast
import inspect
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from fedsim import adversaries, citations, registry
from fedsim.data.partition import KINDS
from fedsim.errors import FedsimError, RunFolderError
from fedsim.report.latex import escape
from fedsim.stored import is_run, stored_environment, stored_scenario

Values = Mapping[str, Any]


class Work(NamedTuple):
    """An entry of BibTeX."""

    key: str
    title: str
    bibtex: str


class Cited(NamedTuple):
    """A part of a run, and what to cite for it.

    Attributes:
        what: such as "algorithm fedprox".
        works: none where the part names no source.
        note: the licence of data, the version of software; None where there is nothing to say.
    """

    what: str
    works: tuple[Work, ...]
    note: str | None = None


def cite(folders: Sequence[Path]) -> list[Cited]:
    """What to cite for runs, each part once.

    Args:
        folders: run folders, or folders of runs, as a comparison's is.

    Raises:
        RunFolderError: there is no run in one, or one cannot be read.
    """
    found: dict[tuple[str, str | None], Cited] = {}
    for run in (run for folder in folders for run in _runs(folder)):
        environment = stored_environment(run)
        for part in _parts(run, stored_scenario(run), environment):
            found.setdefault((part.what, part.note), part)
        if any((folder / "tuning" / "tuning.json").is_file() for folder in folders):
            tuned = _software_part("optuna", "akiba2019optuna", environment.get("packages", {}))
            found.setdefault((tuned.what, tuned.note), tuned)
    kinds = list(dict.fromkeys(part.what.partition(" ")[0] for part in found.values()))
    return sorted(found.values(), key=lambda part: kinds.index(part.what.partition(" ")[0]))


def bibtex(found: Iterable[Cited]) -> str:
    """The entries, each once, under comments that say what each is for."""
    listed = list(found)
    comments = [f"% {part.what}: {_told(part)}".replace("@", " at ") for part in listed]  # BibTeX reads on from an @
    entries: dict[str, str] = {}
    for part in listed:
        for work in part.works:
            version = part.note if part.what.startswith("software") else None
            entries.setdefault(work.key, _noted(work.bibtex, version))
    return "\n".join([*comments, "", "\n\n".join(entries.values()), ""])


def as_data(found: Iterable[Cited]) -> list[dict[str, Any]]:
    """For programs."""
    return [{**part._asdict(), "works": [work._asdict() for work in part.works]} for part in found]


@cache
def known_works() -> Mapping[str, Work]:
    """The entries of works.bib by key."""
    text = files("fedsim.report").joinpath("works.bib").read_text(encoding="utf-8")
    entry = re.compile(r"^@\w+\{([^,]+),\n.*?^  title = \{([^\n]*)\},\n.*?^\}$", re.MULTILINE | re.DOTALL)
    return {match[1]: Work(match[1], match[2], match[0]) for match in entry.finditer(text)}


def works_of(docstring: str) -> tuple[Work, ...]:
    """The works that a docstring names: those of works.bib that it quotes, else the one that it describes."""
    quoted = [_plain(title) for title in citations.titles(docstring)]
    known = [(_plain(work.title), work) for work in known_works().values()]
    found = [min(same)[1] for title in quoted if (same := [each for each in known if each[0].startswith(title)])]
    paper = citations.paper(docstring)
    return tuple(found) or (() if paper == "-" else (described(paper),))


def described(paper: str) -> Work:
    """An entry from `Authors, "Title", Where Year`, as a docstring has it.

    Args:
        paper: of `citations.paper`.
    """
    authors, title, rest = (part.strip(" ,") for part in paper.split('"', 2))
    others = authors.endswith("et al.")
    names = [name for name in re.split(r",\s*|\s+and\s+", authors.removesuffix("et al.").strip(" ,")) if name]
    where, year = rest[:-4].strip(" ,"), rest[-4:]
    fields = {
        "author": " and ".join([*map(escape, names), *(["others"] if others else [])]),
        "title": escape(title),
        "howpublished": escape(where),
        "year": year,
    }
    word = next((word for word in re.findall(r"\w+", title) if len(word) > 3), "")
    key = _plain(f"{names[0] if names else ''}{year}{word}")
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return Work(key, title, "\n".join([f"@misc{{{key},", *lines, "}"]))


def _runs(folder: Path) -> list[Path]:
    if is_run(folder):
        return [folder]
    found = sorted(path.parent for path in folder.rglob("run.db"))
    if not found:
        raise RunFolderError(f"{folder}: there is no run in it; name a run folder, or the folder of a comparison")
    return found


class _Kept(NamedTuple):
    """The user's own files in a run's folder, and in which of them an object given from Python was written."""

    sources: Path
    origins: Mapping[str, str]


def _parts(run: Path, scenario: Values, environment: Values) -> Iterator[Cited]:
    kept = _Kept(run / "sources", environment.get("origins") or {})
    yield from _algorithms(kept, scenario.get("strategy", {}))
    yield _data(kept, str(environment.get("data", "-")))
    partition = str(scenario.get("data", {}).get("partition", {}).get("kind", ""))
    named = [
        ("partition", partition, lambda: inspect.getdoc(KINDS[partition]) if partition in KINDS else ""),
        ("model", *_packaged("fedsim.models", str(environment.get("model", "")))),
        ("attack", *_attack(str(scenario.get("adversary", {}).get("name", "")))),
    ]
    for what, name, docstring in named:
        works = works_of(_docstring(kept, name, docstring))
        if works:
            yield Cited(f"{what} {name}", works)
    yield from _privacy(scenario)
    yield from _software(scenario, environment.get("packages", {}))


def _algorithms(kept: _Kept, strategy: Values) -> Iterator[Cited]:
    """The strategy, and those that lend it their combiner or server half."""
    lent = [strategy.get(part) for part in ("combine", "server")]
    names = [strategy.get("name"), *(each.get("name") if isinstance(each, Mapping) else each for each in lent)]
    for name in (str(name) for name in names if name):
        plain = name.removeprefix("flower:").lower().replace("-", "").replace("_", "") if ":" in name else ""
        ours = {member.replace("-", ""): member for member in registry.members("fedsim.strategies")}
        same = ours.get(_FLOWERS.get(plain, plain), name) if name.startswith("flower:") else name
        yield Cited(f"algorithm {name}", works_of(_docstring(kept, *_packaged("fedsim.strategies", same))))


_FLOWERS = {"fedmedian": "median", "fedtrimmedavg": "trimmedmean"}
"""Flower's strategies whose names differ from those of the same algorithms here."""


def _data(kept: _Kept, name: str) -> Cited:
    docstring = _docstring(kept, *_packaged("fedsim.data.sources", name))
    licence = citations.licence(docstring)
    return Cited(f"data {name}", works_of(docstring), licence or "not known here; name the data's source and terms")


def _attack(name: str) -> tuple[str, Callable[[], str | None]]:
    return name, lambda: inspect.getdoc(adversaries.KINDS[name]) if name in adversaries.KINDS else ""


def _packaged(package: str, name: str) -> tuple[str, Callable[[], str | None]]:
    """A name, and how to come by the docstring of its file in a package of ours."""

    def docstring() -> str | None:
        try:
            return inspect.getdoc(inspect.getmodule(registry.find(package, name, Path(), package)))
        except FedsimError:
            return ""  # a Python caller's own, or of another version

    return name, docstring


def _docstring(kept: _Kept, name: str, packaged: Callable[[], str | None]) -> str:
    """Of a part of ours; of a user's own file.py:name, from the copy that the run has, which is not executed."""
    file, colon, attribute = name.partition(":")
    if not colon or name.startswith("flower:"):
        return (packaged() if name else "") or ""
    try:
        tree = ast.parse((kept.sources / kept.origins.get(name, Path(file).name)).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return ""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    own = [ast.get_docstring(node) for node in tree.body if isinstance(node, kinds) and node.name == attribute]
    both = [text for text in (*own, ast.get_docstring(tree)) if text]
    return next((text for text in both if citations.paper(text) != "-"), both[0] if both else "")


_LEVELS = {"example": ("abadi2016dpsgd",), "client": ("mcmahan2018recurrent",), "local": ()}
_ACCOUNTANTS = {
    "rdp": ("mironov2017renyi", "mironov2019sampled", "balle2020hypothesis"),
    "prv": ("gopi2021numerical",),
    "pld": ("doroshenko2022connect",),
    "exact": ("balle2018gaussian",),
}


def _privacy(scenario: Values) -> Iterator[Cited]:
    for level, works in _LEVELS.items():
        table = scenario.get("privacy", {}).get(level)
        if not isinstance(table, Mapping):
            continue
        more = [
            *(["kairouz2021dpftrl"] if table.get("mechanism") == "tree" else []),
            *(["andrew2021clipping"] if table.get("adaptive") else []),
        ]
        if works or more:
            yield Cited(f"privacy at {level} level", tuple(known_works()[key] for key in (*works, *more)))
        accountant = table.get("accountant") or _default_accountant(level, table, scenario.get("cohort", {}))
        yield Cited(f"accountant {accountant}", tuple(known_works()[key] for key in _ACCOUNTANTS[accountant]))


def _default_accountant(level: str, table: Values, cohort: Values) -> str:
    """That of `privacy.levels` where the scenario names none."""
    hidden = table.get("mechanism") != "tree" and (cohort.get("poisson") or table.get("amplified"))
    return "rdp" if level == "example" or (level == "client" and hidden) else "exact"


def _software(scenario: Values, packages: Values) -> Iterator[Cited]:
    used = {
        "fedsim": ("fedsim", True),
        "flwr": ("beutel2020flower", True),
        "ray": ("moritz2018ray", scenario.get("engine", {}).get("kind", "ray") == "ray"),
        "torch": ("paszke2019pytorch", True),
        "opacus": ("yousefpour2021opacus", any(scenario.get("privacy", {}).get(level) for level in _LEVELS)),
        "xgboost": ("chen2016xgboost", scenario.get("model", {}).get("name") == "xgboost"),
    }
    for package, (key, wanted) in used.items():
        if wanted:
            yield _software_part(package, key, packages)


def _software_part(package: str, key: str, packages: Values) -> Cited:
    version = packages.get(package) or packages.get(f"{package}-cpu")
    return Cited(f"software {package}", (known_works()[key],), f"version {version}" if version else None)


def _told(part: Cited) -> str:
    keys = ",".join(work.key for work in part.works)
    cited = f"\\cite{{{keys}}}" if keys else "names no source"
    if part.note is None:
        return cited
    return f"{cited}; {'licence: ' if part.what.startswith('data') else ''}{part.note}"


def _noted(entry: str, note: str | None) -> str:
    return entry if note is None else f"{entry.removesuffix('}')}  note = {{{escape(note.capitalize())}}},\n}}"


def _plain(text: str) -> str:
    """Lower-case letters and digits alone, whatever LaTeX or accents are around them."""
    letters = unicodedata.normalize("NFKD", re.sub(r"\\[^A-Za-z]", "", text))
    return "".join(each for each in letters.lower() if each.isascii() and each.isalnum())
