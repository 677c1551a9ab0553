"""Put the newest results of the benchmarks into docs/performance.md, and draw its pictures.

    python benchmarks/performance.py

The results are those that `engine.py`, `peers.py`, `profile_round.py`, `private_step.py`, `scale.py` and `gpu.py` have
left in benchmarks/results. What has not been measured keeps the text it has.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _performance_pictures as pictures
import engine
import peers
import profile_round
from _contenders import HERE, Case, Timing, from_rows, render

PAGE = HERE.parent / "docs" / "performance.md"
Found = dict[str, Any]
Table = dict[Case, dict[str, Timing]]


def main() -> None:
    """Write every section that something was measured for."""
    page = PAGE.read_text(encoding="utf-8")
    for name, section in SECTIONS.items():
        results = sorted((HERE / "results").glob(f"{name}-*.json"))
        if not results:
            print(f"{name}: nothing measured; its text stays", file=sys.stderr)
            continue
        found: list[Found] = [json.loads(path.read_text(encoding="utf-8")) for path in results]
        page = replaced(page, name, f"{section(found)}\n\n{measured_on(results[-1], found[-1])}")
    PAGE.write_text(page, encoding="utf-8")


def replaced(page: str, name: str, text: str) -> str:
    """The page with a text between a section's two marks."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        sys.exit(f"{PAGE}: the marks {begin} and {end} are missing")
    return f"{before}{begin}\n{text}\n{end}{after}"


def measured_on(path: Path, found: Found) -> str:
    """When and on what."""
    day, machine = path.stem.split("-")[-2], found["machine"]
    cores = f"{machine['cores']} cores with {machine['instructions']}"
    return f"Measured on {day[:4]}-{day[4:6]}-{day[6:]}: {cores}, {machine['platform']}."


def newest(found: Sequence[Found], order: Sequence[Case]) -> Table:
    """Every case as it was measured last; all contenders of a case come from one run."""
    latest: Table = {}
    for each in found:
        latest |= from_rows(each["timings"])
    return {case: latest[case] for case in order if case in latest}


def engine_section(found: Sequence[Found]) -> str:
    """The table, what the engine is held to, and the picture."""
    table = newest(found, engine.CASES)
    pictures.contenders(table, PAGE.with_name("performance-engine.svg"))
    aims = "\n".join(map(engine.told, engine.aims(table)))
    return "\n\n".join([*map(block, (render(table, "ours"), engine.LEGEND, aims)), shown("engine", "every contender")])


def peers_section(found: Sequence[Found]) -> str:
    """The table, how ours stands against the best of each, and the picture."""
    table = newest(found, peers.CASES)
    pictures.contenders(table, PAGE.with_name("performance-peers.svg"))
    best = "\n".join(map(peers.against, table.items()))
    packages = "; ".join(", ".join(packages) for packages in found[-1]["packages"].values())
    tables = map(block, (render(table, "ours"), peers.LEGEND, best))
    return "\n\n".join([*tables, f"Packages: {packages}.", shown("peers", "every way to run a peer")])


def profile_section(found: Sequence[Found]) -> str:
    """The tables of every net."""
    cases = [(Case(*(each[key] for key in Case._fields)), each) for each in found[-1]["profiles"]]
    return "\n\n".join(block(profile_round.render(case, each)) for case, each in cases)


def scale_section(found: Sequence[Found]) -> str:
    """The table and the picture."""
    import scale

    settings = [
        (
            scale.Setting(*(each[key] for key in scale.Setting._fields)),
            scale.Cost(*(each[key] for key in scale.Cost._fields)),
        )
        for each in found[-1]["costs"]
    ]
    pictures.scale(found[-1]["costs"], PAGE.with_name("performance-scale.svg"))
    return f"{block(scale.render(dict(settings)))}\n\n{shown('scale', 'memory and time')}"


def printed_section(found: Sequence[Found]) -> str:
    """The table as it was printed."""
    return block(found[-1]["text"])


def block(text: str) -> str:
    """A table as it was printed."""
    return f"```\n{text}\n```"


def shown(name: str, what: str) -> str:
    """A picture in the page."""
    return f"![{what}](performance-{name}.svg)"


SECTIONS: dict[str, Callable[[Sequence[Found]], str]] = {
    "profile": profile_section,
    "engine": engine_section,
    "peers": peers_section,
    "private_step": printed_section,
    "scale": scale_section,
    "gpu": printed_section,
}


if __name__ == "__main__":
    main()
