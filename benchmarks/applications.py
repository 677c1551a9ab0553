"""Every application that comes with fedsim: federated, beside training alone, on pooled rows and not at all.

    python benchmarks/applications.py                       all of them: about an hour
    python benchmarks/applications.py heart-disease wisdm   some; the page keeps what was found of the others
    python benchmarks/applications.py --quick               a smoke test: two applications, cut short, printed only

What is found goes into benchmarks/results as it comes, and at the end into docs/applications.md.

Each is the command `fedsim run NAME`, as its scenario says. Its references are run with the same data, model, rounds
and seed: `local` trains every client alone, `central` one model on all rows, `constant` answers the same for every row.
Data sets are looked for as by the command; one whose files are not there is left out, and said so.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _contenders import HERE, write

from fedsim.summary import SHORT_NAMES

ROOT = HERE.parent
PAGE = ROOT / "docs/applications.md"
APPLICATIONS = (
    "heart-disease",
    "adult",
    "adult-trees",
    "parkinsons",
    "air-quality",
    "wisdm",
    "fsdd",
    "movietweetings",
    "kdd99",
    "nab",
    "sms-spam",
    "sms-spam-transformer",
    "sentiment",
    "sentiment-transformer",
    "clinc150",
    "wikitext2",
    "text-generation",
    "bert-lora",
    "mnist-mlp",
    "mnist-cnn",
    "mnist-lstm",
    "mnist-transformer",
    "cartpole",
)
FAST = ("heart-disease", "sms-spam")
CUT = ("rounds=2", "evaluate.every=1")


class Run(NamedTuple):
    """One run's figures, a reference's or the application's own.

    Attributes:
        central: the headline metric of the global model on central test rows; None where there are none.
        clients: its mean over clients of their own test rows.
        own: likewise of clients' own models.
    """

    central: float | None
    clients: float | None
    own: float | None


class Application(NamedTuple):
    """What came of one command.

    Attributes:
        name: of the scenario.
        title: for people.
        metric: by which it is judged.
        lower: whether less of it is better.
        seconds: of the command, references included.
        runs: "federated", and the references by name.
        missing: why it was not run.
    """

    name: str
    title: str = ""
    metric: str = ""
    lower: bool = False
    seconds: float = 0.0
    runs: Mapping[str, Run] = {}
    missing: str = ""


def main() -> None:
    """Run the applications, print their table, and put it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(APPLICATIONS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="two of them, for two rounds")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in APPLICATIONS]:
        sys.exit(f"{unknown[0]} is no application; there are {', '.join(APPLICATIONS)}")
    names = options.names or (FAST if options.quick else APPLICATIONS)
    found = []
    for name in names:
        found.append(application(name, CUT if options.quick else ()))
        if not options.quick:
            write("applications", {"applications": [as_row(found[-1])]})
    print("\n".join(table(found)))
    if options.quick:
        return
    from _applications_page import write_page

    newest = kept()
    write_page(PAGE, newest, table(newest))
    print(f"\nwritten to {PAGE}")


def kept() -> list[Application]:
    """Every application as it was run last."""
    latest: dict[str, Application] = {}
    for path in sorted((HERE / "results").glob("applications-*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["applications"]:
            runs = {name: Run(**figures) for name, figures in row["runs"].items()}
            latest[row["name"]] = Application(**{**row, "runs": runs})
    return [latest[name] for name in APPLICATIONS if name in latest]


def application(name: str, settings: Sequence[str]) -> Application:
    """Run one command."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        changes = [word for each in settings for word in ("--set", each)]
        words = [sys.executable, "-c", "from fedsim.cli import main; main()", "run", name, "--json", *changes]
        process = subprocess.run(
            [*words, "--out", str(Path(folder) / "run")], cwd=ROOT, capture_output=True, text=True, check=False
        )
    if process.returncode:
        reason = next((line for line in process.stderr.splitlines() if line.startswith("error: ")), "")
        if "not found" not in reason:
            sys.exit(f"{name} failed:\n{process.stderr[-3000:]}")
        return Application(name, missing=reason.removeprefix("error: "))
    return told(name, json.loads(process.stdout), time.perf_counter() - began)


def told(name: str, values: Mapping[str, Any], seconds: float) -> Application:
    """What a command has printed, in short."""
    headline = values["headline"]
    metric = headline["metric"].split("/", 3)[-1]
    runs = {"federated": values, **values.get("references", {})}
    return Application(
        name,
        values["title"],
        metric,
        headline["lower_is_better"],
        seconds,
        {each: figures(of, metric) for each, of in runs.items()},
    )


def figures(values: Mapping[str, Any], metric: str) -> Run:
    """One run's figures; a model that is nobody's is judged on nothing."""
    best, last = values["metrics"], values["metrics_last_round"]
    judged = values["headline"]["metric"].startswith("global/")
    return Run(
        best.get(f"global/central-test/rows/{metric}") if judged else None,
        best.get(f"global/client-test/clients/{metric}") if judged else None,
        last.get(f"personal/client-test/clients/{metric}"),
    )


COLUMNS = ("federated", "local", "central", "constant")


def table(found: Sequence[Application]) -> list[str]:
    """For people, at most 80 columns: two lines for each application."""
    lines = [f"{'':<22}{'metric':<17}{'':<8}{'federated':>10}{'local':>8}{'central':>8}{'const.':>7}"]
    for each in found:
        if each.missing:
            lines.append(f"{each.name:<22}left out: {each.missing}"[:80])
            continue
        arrow = "lower" if each.lower else "higher"
        rows = {
            "central": [_central(each, run) for run in COLUMNS],
            "clients": [_clients(each, run) for run in COLUMNS],
        }
        for place, (where, cells) in enumerate(rows.items()):
            head = f"{each.name if place == 0 else '':<22}"
            what = SHORT_NAMES.get(each.metric, each.metric) if place == 0 else f"{arrow} is better"
            lines.append(f"{head}{what:<17}{where:<8}{cells[0]:>10}{cells[1]:>8}{cells[2]:>8}{cells[3]:>7}")
    return lines


def _central(each: Application, run: str) -> str:
    return _cell(each.runs[run].central) if run in each.runs else "-"


def _clients(each: Application, run: str) -> str:
    """Of clients' own models where they have them, marked; else of the global one."""
    found = each.runs.get(run)
    if found is None:
        return "-"
    return _cell(found.clients if found.own is None else found.own) + ("*" if found.own is not None else "")


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def as_row(each: Application) -> dict[str, Any]:
    """As JSON has it."""
    return {**each._asdict(), "runs": {name: run._asdict() for name, run in each.runs.items()}}


if __name__ == "__main__":
    main()
