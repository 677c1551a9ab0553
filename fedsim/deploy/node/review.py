"""A coordinator's own code at a node: kept as text until its owner has read and approved it, and never run before.

An approval is of the SHA-256 of all source files together, so a changed letter in one of them needs a new one.
"""

import difflib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.deploy import private_files
from fedsim.deploy.assignment import Assignment
from fedsim.deploy.node.folder import NodeFolder
from fedsim.deploy.node.log import Log
from fedsim.errors import DeployError, Refused
from fedsim.machine import sync
from fedsim.scenario import Scenario
from fedsim.scenario_files import named_files

MOST_PENDING = 20
"""Assignments that wait; a coordinator that sends more fills no disk."""
_ABOUT, _FILES = "about.json", "files"
_AROUND = 3  # lines that are shown around one that differs


class Waiting(NamedTuple):
    """Own code that an owner is asked about, or was.

    Attributes:
        digest: SHA-256 of the sources.
        title: of the scenario that first came with it.
        when: ISO 8601, when it came or was approved.
        sources: text by name.
    """

    digest: str
    title: str
    when: str
    sources: Mapping[str, str]


def approved(folder: NodeFolder, assignment: Assignment) -> Path:
    """The folder in which an assignment's own code lies, as its owner approved it.

    Raises:
        Refused: the owner has not, or what lies there is no longer what was approved. New code then waits for a review.
    """
    digest = assignment.sources_digest
    place = folder.approved / digest
    if not place.is_dir():
        _wait(folder, assignment)
        raise Refused(
            f"own code {digest[:12]} ({', '.join(sorted(assignment.sources))}) is not approved; the node's owner finds "
            "it with `fedsim deploy review DIR`"
        )
    if _read(place).sources != assignment.sources:
        raise Refused(
            f"own code {digest[:12]}: the approved files were changed at the node; its owner approves it anew"
        )
    return place / _FILES


def pending(folder: NodeFolder) -> list[Waiting]:
    """Own code that waits for the owner, first come first."""
    return _all(folder.pending)


def decided(folder: NodeFolder) -> list[Waiting]:
    """Own code that the owner approved, by when."""
    return _all(folder.approved)


def unread(folder: NodeFolder, scenario: Scenario) -> list[str]:
    """Files of own code that would read the owner's rows for a scenario, and that the owner has not approved.

    Raises:
        DeployError: one is not there.
    """
    known = {text for code in decided(folder) for text in code.sources.values()}
    named = named_files({"data": scenario.data.model_dump(exclude_none=True)})
    files = {value.partition(":")[0] for key, value in named if not key.endswith("path")}
    try:
        return [name for name in sorted(files) if _decoded(scenario.folder / name) not in known]
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(f"own code of the scenario cannot be read: {error}") from error


def approve(folder: NodeFolder, digest: str) -> Waiting:
    """Let own code run from now on.

    Args:
        folder: the node's.
        digest: of code that waits, or its first digits.

    Raises:
        DeployError: none or several begin so, or it cannot be written.
    """
    found = _found(pending(folder), digest)
    if not found.sources:
        raise DeployError(f"{folder.pending / found.digest} is damaged; reject it, and let it be sent again")
    Log(folder.log_file).write("approved", code=found.digest, files=sorted(found.sources))
    _remove(folder.approved / found.digest)
    _write(folder.approved, found._replace(when=_now()))
    _remove(folder.pending / found.digest)
    return found


def reject(folder: NodeFolder, digest: str) -> Waiting:
    """Forget own code that waits, or take an approval back; it waits again when it is sent again.

    Raises:
        DeployError: as of `approve`.
    """
    found = _found([*pending(folder), *decided(folder)], digest)
    Log(folder.log_file).write("rejected", code=found.digest, files=sorted(found.sources))
    _remove(folder.pending / found.digest)
    _remove(folder.approved / found.digest)
    return found


def lines(folder: NodeFolder, digest: str) -> Iterator[str]:
    """What is to be read of own code that waits: what differs from what was approved last, or all of it.

    Lines begin with "+", "-" or " " as those of `diff`. What is not printable is written as its code, so that no
    character hides or moves another.

    Raises:
        DeployError: as of `approve`.
    """
    found, known = _found(pending(folder), digest), decided(folder)
    before: Mapping[str, str] = known[-1].sources if known else {}
    yield f"code {found.digest}"
    yield f"of {visible(found.title)!r}, came {found.when}"
    yield f"against what was approved last, {known[-1].digest[:12]}" if known else "nothing was approved before"
    for name in sorted({*before, *found.sources}):
        old, new = (_shown(of.get(name, "")) for of in (before, found.sources))
        yield ""
        if old == new:
            yield f"{visible(name)}: as it was approved"
            continue
        yield f"{visible(name)}: {'changed' if name in before and name in found.sources else 'new' if new else 'gone'}"
        yield from islice(difflib.unified_diff(old, new, n=_AROUND, lineterm=""), 2, None)


def visible(text: str) -> str:
    """A text as it is, but what is not printable as its code."""
    return "".join(sign if sign.isprintable() or sign == "\t" else ascii(sign)[1:-1] for sign in text)


def _shown(source: str) -> list[str]:
    return [visible(line) for line in source.split("\n")] if source else []


def _wait(folder: NodeFolder, assignment: Assignment) -> None:
    """Keep own code for a review."""
    if (folder.pending / assignment.sources_digest).is_dir():
        return
    if len(pending(folder)) >= MOST_PENDING:
        raise Refused(
            f"own code {assignment.sources_digest[:12]} is not approved, and {MOST_PENDING} others wait for the node's "
            "owner already: none more is kept"
        )
    title = next((line for line in assignment.scenario.splitlines() if line.startswith("title")), "")
    named = title.partition("=")[2].strip().strip("\"'")[:200]
    _write(folder.pending, Waiting(assignment.sources_digest, named, _now(), assignment.sources))


def _write(place: Path, code: Waiting) -> None:
    """Whole or not at all: under another name first."""
    new = place / f".{code.digest}.new"
    inside = (new / _FILES).resolve()
    if odd := [name for name in code.sources if inside not in (inside / name).resolve().parents]:
        raise Refused(f"source {odd[0]!r} would lie outside its folder")
    private_files.folder(place)
    _remove(new)
    try:
        for name, text in code.sources.items():
            file = new / _FILES / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text.encode("utf-8", "surrogatepass"))
        about = {"title": code.title, "when": code.when, "names": sorted(code.sources)}
        (new / _ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8")
        new.rename(place / code.digest)
        sync(place)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise DeployError(f"{place} cannot be written ({error.strerror}); make room, or check the disk") from error


def _read(place: Path) -> Waiting:
    """Own code as it lies in a folder; without sources where it is damaged."""
    try:
        about: dict[str, Any] = json.loads((place / _ABOUT).read_text(encoding="utf-8"))
        texts = {name: _decoded(place / _FILES / name) for name in about["names"]}
        return Waiting(place.name, str(about["title"]), str(about["when"]), texts)
    except (OSError, ValueError, KeyError, TypeError):
        return Waiting(place.name, "damaged", "", {})


def _decoded(file: Path) -> str:
    return file.read_bytes().decode("utf-8", "surrogatepass")


def _all(place: Path) -> list[Waiting]:
    if not place.is_dir():
        return []
    found = [_read(each) for each in place.iterdir() if each.is_dir() and not each.name.startswith(".")]
    return sorted(found, key=lambda each: (each.when, each.digest))


def _found(codes: Sequence[Waiting], digest: str) -> Waiting:
    found = [each for each in codes if each.digest.startswith(digest)]
    if len({each.digest for each in found}) != 1 or not digest:
        listed = ", ".join(each.digest[:12] for each in codes)
        which = f"there are {listed}" if codes else "there is none"
        raise DeployError(f"{'several codes begin' if len(found) > 1 else 'no code begins'} with {digest!r}; {which}")
    return found[0]


def _remove(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
