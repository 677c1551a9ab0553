"""What `fedsim export --public` writes: what epsilon covers of a run and nothing else, as a folder to give away.

All that is written is picked by name. What the records hold besides (losses, norms, failures, cohorts, figures on
clients' own rows, the seed, digests of rows, what a resumed run goes on from) has no way into it.
"""

import json
import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import tomli_w

from fedsim import checkpoints
from fedsim.errors import RunFolderError, one_line
from fedsim.machine import sync
from fedsim.privacy.accountant import rounded_up
from fedsim.progress import WIDTH, wrapped
from fedsim.records import SCHEMA_VERSION, being_written, to_json
from fedsim.stored import open_run, reading, stored_environment, stored_scenario

STATEMENT, CARD, SCENARIO, BEST, LAST = FILES = (
    *("PRIVACY.txt", "model.json", "scenario.toml"),
    *("best.safetensors", "last.safetensors"),
)
"""All that there is in the folder."""

_ALL_ROUNDS = "rounds"
_COVERED_ENDS = (_ALL_ROUNDS, "budget", "target", "patience", "diverged")
"""What may end a run: declared numbers, and rules that read noised models and the server's held-out rows."""
_ARCHITECTURE = ("model", "settings", "input_shape", "input_type", "outputs", "vocabulary", "parameters")
_MECHANISM = (
    *("level", "delta", "mechanism", "noise_multiplier", "clip", "adaptive_clip", "clipping", "tree_rounds", "divisor"),
    *("unit", "relation", "adversary", "accountant", "covers", "charged", "max_participations", "rounds"),
)
"""Declared numbers, and what follows from them; of a client, who it is and how often it took part do not."""
_SPENT = ("largest", "median", "smallest")
_JOINT = "joint DP: "
_SAID = ("protects ", "mechanism: ", "adversary: ", "covers ", _JOINT)
"""How the lines of a run's statement begin that are true of these files word by word."""
_SEED = "The seed is left out: whoever holds it can undo the noise."


def publish(folder: Path, out: Path) -> tuple[str, ...]:
    """Write what epsilon covers of a run.

    Args:
        folder: of a finished private run.
        out: a new folder, there whole or not at all.

    Returns:
        The names of its files.

    Raises:
        RunFolderError: no finished private run of this version, one that shares no model or was ended by what clients
            did; or `out` is there or cannot be written.
    """
    with _writing(out), suppress(FileNotFoundError):
        out.lstat()
        raise RunFolderError(f"{out} exists already; choose another with --out, or remove it")
    summary = _finished(folder)
    with reading(folder):
        _refuse_uncovered(folder, summary)
        card = _card(folder, summary)
        texts = {STATEMENT: "\n".join(_statement(summary, card)), CARD: to_json(card, indent=2)}
    texts[SCENARIO] = _scenario(folder)
    models = {name: _read(folder / "model" / name) for name in (BEST, LAST)}
    _write(out, {**{name: f"{text}\n".encode() for name, text in texts.items()}, **models})
    return FILES


def _finished(folder: Path) -> dict[str, Any]:
    """The summary of a run that has ended."""
    with closing(open_run(folder)) as records:
        if records.version != SCHEMA_VERSION:
            raise RunFolderError(
                f"{folder / 'run.db'} has schema {records.version}, which does not say what may be given away; run its "
                f"scenario anew: this fedsim writes schema {SCHEMA_VERSION}"
            )
        writing, summary = being_written(folder), records.summary()
        failed = [row.client for row in records.failures() if row.phase == "train"]
    if not summary:
        advice = "it is still going on; wait until it has ended" if writing else f"go on with: fedsim resume {folder}"
        raise RunFolderError(f"{folder} has not finished: {advice}")
    if failed and summary.get("privacy", {}).get("level") in ("example", "local"):
        raise RunFolderError(
            f"{folder}: client {failed[0]} failed in a round, which shows in what the server made of it, and epsilon "
            "does not cover; mend what failed and run it anew"
        )
    return summary


def _refuse_uncovered(folder: Path, summary: Mapping[str, Any]) -> None:
    if "privacy" not in summary:
        raise RunFolderError(
            f"{folder} promises no privacy, so nothing of it is covered; run it with privacy.example, privacy.client "
            "or privacy.local"
        )
    if summary["headline"]["metric"].startswith("personal/"):
        raise RunFolderError(f"{folder}: its strategy shares no model, so there is none to give away; use another")
    if (kind := _ended_by(summary)) not in _COVERED_ENDS:
        raise RunFolderError(
            f"{folder}: what clients did ended it ({kind}), and epsilon does not cover when; run it so that its "
            "rounds, its epsilon or central-validation figures end it"
        )


def _ended_by(summary: Mapping[str, Any]) -> str:
    """The kind of rule that ended a run early; `_ALL_ROUNDS` where none did."""
    return str(summary["stop"]["kind"]) if summary["stop"] is not None else _ALL_ROUNDS


def _card(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """`model.json`: what a user of the weights needs, by names that are known to be public."""
    stored, environment = _stored_card(folder), stored_environment(folder)
    best, last = summary["best_round"], summary["rounds"]
    return {
        "architecture": _picked(stored["architecture"], _ARCHITECTURE),
        "task": stored["task"],
        "classes": stored["classes"],
        "data": environment["data"],
        "preprocessing": _preprocessing(stored, environment),
        "metrics": {
            "protocol": "model/data/weighting/metric",
            "rows": "the server's own held-out ones, which are not protected",
            "round_chosen_by": summary["chosen_by"],
            "best": _central(summary["metrics"]),
            "last": _central(summary["metrics_last_round"]),
        },
        "best_round": best,
        "last_round": last,
        "ended_by": _ended_by(summary),
        "privacy": _privacy(summary),
        "fingerprint": summary["fingerprint"],
    }


def _stored_card(folder: Path) -> dict[str, Any]:
    file = folder / "model" / CARD
    try:
        return dict(json.loads(_read(file)))
    except (ValueError, TypeError, RecursionError) as error:
        raise RunFolderError(f"{file} is damaged: {one_line(error)}") from error


def _preprocessing(card: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any] | None:
    """How rows were preprocessed, of a source of fedsim, which under privacy fits nothing; None of a user's own."""
    if ":" in environment["data"]:
        return None
    done: Mapping[str, Any] = card["preprocessing"]
    return dict(done)


def _central(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of the global model on the server's own rows."""
    own = [name for name in metrics if name.startswith(("global/central-validation/", "global/central-test/"))]
    return _picked(metrics, own)


def _privacy(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The promise, as `fedsim.privacy.statement.values` gives it; what was spent only where declared numbers say it.

    Where seen figures ended the run, only the planned epsilon is one that was promised beforehand.
    """
    privacy: Mapping[str, Any] = summary["privacy"]
    spent = privacy["level"] == "example" and _ended_by(summary) in (_ALL_ROUNDS, "budget")
    return {
        "epsilon": privacy["planned"],
        **_picked(privacy, _MECHANISM),
        **({"spent": _picked(privacy, _SPENT)} if spent else {}),
    }


def _picked(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _scenario(folder: Path) -> str:
    tables = {key: value for key, value in stored_scenario(folder).items() if key != "seed"}
    return f"# {_SEED} Run it with: --set seed=N\n{tomli_w.dumps(tables)}".rstrip()


def _statement(summary: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    """`PRIVACY.txt`, in lines of at most 80 columns."""
    said = _said(summary["privacy"]["statement"])
    personal = any(line.startswith(_JOINT) for line in said)
    secret = "The mechanism's random numbers were drawn in secret, and kept nowhere."
    simulated = (
        "Epsilon of the mechanism, not a guarantee about these files: it was a simulation, whose random numbers all "
        f"come from one seed. {_SEED} So can whoever guesses it, and a small number is soon guessed."
    )
    mechanism = secret if summary["privacy"].get("secret_coins") else simulated
    declared = f"Taken as public, and not protected: {', '.join(_declared(card))}."
    paragraphs = [
        wrapped(summary["title"]),
        ["What differential privacy covers of this run, and nothing else."],
        [*_wrapped(_epsilon(card["privacy"])), *said, *_wrapped(_composition(card))],
        textwrap.wrap(mechanism, WIDTH),
        textwrap.wrap(declared, WIDTH),
        _wrapped(_contents(card, personal)),
    ]
    return [line for paragraph in paragraphs for line in ("", *paragraph)][1:]


def _wrapped(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in wrapped(text)]


def _said(statement: Iterable[str]) -> list[str]:
    """The lines of a run's statement that may be said here, each with those that it is continued on."""
    lines, said = [], False
    for line in statement:
        said = line.startswith(_SAID) or (said and line.startswith("  "))
        lines += [line] if said else []
    return lines


def _epsilon(privacy: Mapping[str, Any]) -> list[str]:
    lines = [f"epsilon {rounded_up(privacy['epsilon'])} at delta {privacy['delta']:g}, for every client, as planned"]
    if "spent" in privacy:
        most, median, least = (rounded_up(privacy["spent"][name]) for name in _SPENT)
        lines.append(f"spent: {most} by the client that spent most (median {median}, smallest {least})")
    return lines


def _composition(card: Mapping[str, Any]) -> list[str]:
    privacy = card["privacy"]
    rounds = f"{card['last_round']} rounds done of {privacy['rounds']} planned"
    limit = privacy["max_participations"]
    charged = "each charges every client" if limit is None else f"at most {limit} participations of a client, enforced"
    return [
        f"composed over all rounds: {rounds}; {charged}",
        "of this run alone: other runs on the same rows, and a choice among runs, spend more",
    ]


def _declared(card: Mapping[str, Any]) -> list[str]:
    """What the promise takes as known to everybody."""
    counts = " and how many units each has (which is not told here)" if card["privacy"]["level"] == "example" else ""
    return [
        "the scenario",
        f"how many clients there are{counts}",
        "classes, names of columns and categories, and the shape of a row",
        "how rows were made ready" + (" (by code that is not here)" if card["preprocessing"] is None else ""),
        "the server's own held-out rows, on which the figures are",
    ]


def _contents(card: Mapping[str, Any], personal: bool) -> list[str]:
    metrics, own = card["metrics"], card["architecture"]["model"]
    how = f"chosen by {metrics['round_chosen_by']}" if metrics["round_chosen_by"] else "the last; nothing chose"
    lines = [
        f"{BEST}: the model after round {card['best_round']}, {how}",
        f"{LAST}: the model after round {card['last_round']}, the last",
        f"{CARD}: its architecture, preprocessing, classes and figures; `fedsim.load` of this folder builds it",
        f"{SCENARIO}: what was run",
    ]
    if ":" in own:
        lines.append(f"{own} is code that is not here")
    if personal:
        lines.append("parameters that stay with their clients are in both models as they were before training")
    return lines


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise RunFolderError(f"{file} cannot be read: {error.strerror or error}") from error


def _write(out: Path, contents: Mapping[str, bytes]) -> None:
    """A new folder with these files, at once or not at all."""
    unfinished = out.absolute().with_name(f".{out.name}-{os.urandom(4).hex()}{checkpoints.UNFINISHED}")
    try:
        with _writing(out):
            unfinished.mkdir(parents=True)
            for name, content in contents.items():
                checkpoints.write(unfinished / name, content)
            unfinished.rename(out)
            sync(unfinished.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn what the system says about files and disks into one line for the user."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{out} cannot be written: {error.strerror or error}; choose another with --out"
        ) from error
