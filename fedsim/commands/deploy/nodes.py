"""A data owner's commands: run a node, read what it did, decide what it may do, and leave."""

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.console import Json, Settings, print_json, tell
from fedsim.errors import DeployError, FedsimError

if TYPE_CHECKING:
    from fedsim.deploy.node.folder import NodeFolder

NodeDir = Annotated[Path, typer.Argument(metavar="DIR", help="a node, made by `fedsim deploy join`")]


def node(
    folder: NodeDir,
    data: Annotated[Path | None, typer.Option(help="your rows; as node.toml says by default")] = None,
    check: Annotated[
        str | None, typer.Option(metavar="SCENARIO", help="say what of your rows does not fit it, else let it be asked")
    ] = None,
    settings: Settings = [],  # noqa: B006
) -> None:
    """Run a node over your rows until it is interrupted; or check, here alone, whether they fit a scenario.

    A node reads rows as a scenario says that was checked so, and in no other way.

    Example: fedsim deploy node fedsim-node --data patients.csv --check study.toml
    """
    from fedsim.deploy.node.folder import NodeFolder

    home = NodeFolder.open(folder)
    named = data if data is not None else Path(home.data.path) if home.data is not None else None
    if named is None:
        raise DeployError(f"give --data PATH, or write it into {folder / 'node.toml'} as path under [data]")
    path = (named if data is not None else folder / named).resolve()
    if not path.exists():
        raise DeployError(f"{path}: there is no such file or folder; give your rows with --data")
    if check is not None:
        _check(home, path, check, settings)
        return
    if settings:
        raise DeployError("--set goes with --check: what a node is asked comes from the coordinator")
    home.require_member()
    from fedsim.deploy.node.supervise import run_node

    run_node(folder, path)


def _check(home: "NodeFolder", path: Path, name: str, settings: list[str]) -> None:
    from fedsim.data.dealt import is_holding
    from fedsim.deploy.node.checked import accept
    from fedsim.deploy.node.holding import check, load
    from fedsim.deploy.node.review import unread
    from fedsim.scenario import load as read

    scenario = read(name, settings)
    if not is_holding(path) and (code := unread(home, scenario)):
        raise DeployError(
            f"{name}: {', '.join(code)} would run to read your rows, and you have not approved it; when the "
            f"coordinator asks for it, it waits for `fedsim deploy review {home.folder}`"
        )
    if found := check(path, scenario):
        for line in found:
            typer.echo(line)
        things = "one thing does" if len(found) == 1 else f"{len(found)} things do"
        raise DeployError(f"{path}: {things} not fit {name}")
    held = load(path, scenario)
    rows = f"{held.train} train, {held.validation - held.train} validation, {len(held.x) - held.validation} test rows"
    typer.echo(f"{path} fits {name}: {rows}")
    if not is_holding(path):
        accept(home, scenario)
        typer.echo("the node answers scenarios that read your rows as this one does")


def rules(folder: NodeDir, as_json: Json = False) -> None:
    """Show what a node's rules.toml allows, as the node understands it.

    Example: fedsim deploy rules fedsim-node
    """
    from fedsim.deploy.node.folder import NodeFolder
    from fedsim.deploy.node.rules import Rules, read

    found = read(NodeFolder.open(folder).rules_file).model_dump()
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        typer.echo(f"{key:<16} {_allowed(value)}")
        typer.echo(f"{'':<16} {Rules.model_fields[key].description}")


def _allowed(value: Any) -> str:
    """A rule's value, as rules.toml writes it."""
    if value is None:
        return "any"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:_}" if isinstance(value, int) else str(value)


def ledger(
    folder: NodeDir,
    catch_up: Annotated[
        int | None, typer.Option(metavar="N", help="charge for what a restored backup lacks of N charges")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a node has spent of its rows' privacy: every run, and all together.

    Example: fedsim deploy ledger fedsim-node
    """
    from fedsim.deploy.node.folder import NodeFolder
    from fedsim.deploy.node.rules import read
    from fedsim.privacy.accountant import rounded_up

    home = NodeFolder.open(folder)
    allowed = read(home.rules_file)
    books, log = home.books()
    try:
        if catch_up is not None:
            charged = books.catch_up(catch_up, allowed.delta, home.told(allowed.delta))
            log.write("caught-up", charged=charged, counter=books.counter)
            typer.echo(
                f"charged {charged} missing participations, each what the costliest known one costs", err=as_json
            )
        runs, counter = books.runs(allowed.delta), books.counter
        spent = books.spent(allowed.delta, allowed.largest_epsilon)
    finally:
        books.close()
    if as_json:
        together = {"epsilon": spent, "delta": allowed.delta, "largest_epsilon": allowed.largest_epsilon}
        print_json({"runs": [run._asdict() for run in runs], **together, "counter": counter})
        return
    typer.echo(f"{'run':<16}  {'level':<8} {'charges':>7}  {'epsilon':>8}  {'first':<16}  last")
    for run in runs:
        first, last = (datetime.fromtimestamp(when).strftime("%Y-%m-%d %H:%M") for when in (run.first, run.last))
        epsilon = rounded_up(run.epsilon)
        typer.echo(f"{run.run:<16}  {run.level:<8} {run.participations:>7}  {epsilon:>8}  {first:<16}  {last}")
    typer.echo(f"all {counter}: epsilon {rounded_up(spent)} of {allowed.largest_epsilon:g} at delta {allowed.delta:g}")


def log(
    folder: NodeDir,
    verify: Annotated[bool, typer.Option("--verify", help="look for lines that were changed or taken out")] = False,
    last: Annotated[int, typer.Option(min=1, help="show so many lines")] = 20,
    as_json: Json = False,
) -> None:
    """Show what a node was asked and what left it; its whole log is DIR/log.jsonl.

    Example: fedsim deploy log fedsim-node --verify
    """
    from fedsim.deploy.node import log as logs
    from fedsim.deploy.node.folder import NodeFolder

    file = NodeFolder.open(folder).log_file
    if verify:
        if wrong := logs.verify(file):
            for line in wrong[1:]:
                typer.echo(line)
            raise DeployError(wrong[0])
        entries = sum(1 for _ in logs.entries(file))
        tell({"sound": True, "entries": entries}, f"{file}: {entries} entries, none changed or taken out", as_json)
        return
    shown = list(logs.entries(file))[-last:]
    if as_json:
        print_json(shown)
        return
    for entry in shown:
        typer.echo(_told(entry))


def _told(entry: dict[str, Any]) -> str:
    """An entry as a line of text."""
    hidden = ("time", "kind", "previous", "left")
    facts = {key: value for key, value in entry.items() if key not in hidden and value is not False}
    words = [f"{key} {_short(value)}" for key, value in facts.items()]
    if left := entry.get("left"):
        words.append("left " + ", ".join(f"{each.get('field', '?')} ({each.get('bytes', 0):,} bytes)" for each in left))
    return str(FedsimError(f"{entry['time'][:19]} {entry['kind']}: {', '.join(words)}"))  # one printable line


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text[:12] if len(text) == 64 else text


def review(
    folder: NodeDir,
    digest: Annotated[str | None, typer.Argument(help="show this code: its first digits do")] = None,
    approve: Annotated[str | None, typer.Option(metavar="DIGEST", help="let this code run from now on")] = None,
    reject: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="forget this code, or take its approval back")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read coordinators' own code that waits for you, against what you approved last; approve or reject it.

    Nothing of it has run. Example: fedsim deploy review fedsim-node, then with --approve DIGEST
    """
    from fedsim.deploy.node import review as reviews
    from fedsim.deploy.node.folder import NodeFolder

    if sum(each is not None for each in (digest, approve, reject)) > 1:
        raise DeployError("give one of DIGEST, --approve and --reject")
    home = NodeFolder.open(folder)
    if (wanted := approve or reject) is not None:
        done = (reviews.approve if approve is not None else reviews.reject)(home, wanted)
        word = "approved" if approve is not None else "rejected"
        tell({"digest": done.digest, word: True}, f"{word} {done.digest}: {', '.join(sorted(done.sources))}", as_json)
        return
    waiting = reviews.pending(home)
    if as_json:
        both = {"pending": waiting, "approved": reviews.decided(home)}
        print_json({key: [code._asdict() for code in codes] for key, codes in both.items()})
        return
    if digest is None and len(waiting) != 1:
        for code in waiting:
            files = ", ".join(sorted(map(reviews.visible, code.sources)))
            typer.echo(f"{code.digest[:12]}  {code.when[:19]}  {reviews.visible(code.title)}: {files}")
        typer.echo(
            f"{len(waiting)} wait; show one with `fedsim deploy review {folder} DIGEST`" if waiting else "none waits"
        )
        return
    chosen = digest if digest is not None else waiting[0].digest
    plain = "NO_COLOR" in os.environ
    for line in reviews.lines(home, chosen):
        typer.secho(line, fg=None if plain else {"+": "green", "-": "red"}.get(line[:1]))
    typer.echo(f"to let it run: fedsim deploy review {folder} --approve {chosen[:12]}")


def leave(
    folder: NodeDir,
    forget: Annotated[bool, typer.Option("--forget", help="remove ledger and log, too")] = False,
    as_json: Json = False,
) -> None:
    """Withdraw: refuse whatever is asked from now on, and remove key, states, replies and coordinators' code.

    What left before cannot be taken back. Example: fedsim deploy leave fedsim-node
    """
    from fedsim.deploy.node.folder import NodeFolder
    from fedsim.deploy.node.leave import leave as withdraw

    home = NodeFolder.open(folder)
    removed = withdraw(home, forget=forget)
    kept = "" if forget else "; ledger and log stay"
    told = f"withdrawn; removed {', '.join(removed) or 'nothing'}{kept}"
    revoke = f"tell the coordinator, who ends the node's key with `fedsim deploy revoke {home.name} --on SITE`"
    tell({"withdrawn": True, "removed": removed}, f"{told}\n{revoke}", as_json)
