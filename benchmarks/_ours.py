"""Our contender: `fedsim run` with two Ray workers on the same rows, records and checkpoints included."""

import sys
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
from _rows import BATCH, CLIENTS, LEARNING_RATE, MEASURED, TEXT, arguments, measured_rows, report, train_rows

from fedsim.data.corpus import Corpus, Folders

WORKERS = 2
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [200, 200]},
    "cnn": {"name": "cnn", "preset": "mcmahan"},
    "small-cnn": {"name": "cnn"},
    "lstm": {"name": "lstm"},
    "transformer": {"name": "transformer"},
}


def corpus(folders: Folders) -> Corpus:
    """The random images; they have no natural clients, and partition iid deals everyone 50 of them."""
    return _corpus("mlp", "classification", tuple("0123456789"))


def windows(folders: Folders) -> Corpus:
    """The random bytes, likewise."""
    return _corpus("lstm", "next-token", tuple(map(str, range(256))))


def _corpus(net: str, task: Any, classes: tuple[str, ...]) -> Corpus:
    """All clients' rows, and a test set of its own: what is measured after every round and as much to stay unseen."""
    parts = [train_rows(net), measured_rows(net), measured_rows(net)]
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    own_test = np.arange(len(x)) >= len(x) - 2 * MEASURED
    return Corpus("random rows", task, x, y, classes, own_test=own_test)


def scenario(net: str, cohort: int, rounds: int) -> dict[str, Any]:
    """Every row of a client is a train row; the global model is measured centrally after every round."""
    return {
        "title": "benchmark",
        "seed": 1,
        "rounds": rounds,
        "data": {
            "name": f"{Path(__file__)}:{'windows' if net in TEXT else 'corpus'}",
            "partition": {"kind": "iid", "clients": CLIENTS},
            "split": {"train": 1.0, "validation": 0.0, "test": 0.0},
        },
        "model": MODELS[net],
        "train": {"learning_rate": LEARNING_RATE, "batch_size": BATCH, "epochs": 1},
        "cohort": {"size": cohort, "on_client_error": "fail"},
        "evaluate": {"clients_every": 0},
        "engine": {"kind": "ray", "workers": WORKERS},
    }


def main() -> None:
    """Run the command, then report when each round was committed. More arguments are keys that `--set` sets."""
    import tomli_w

    from fedsim.cli import main as command

    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "benchmark.toml", Path(folder) / "run"
        path.write_text(tomli_w.dumps(scenario(*arguments())), encoding="utf-8")
        settings = [part for key in sys.argv[4:] for part in ("--set", key)]
        sys.argv = ["fedsim", "run", str(path), "--out", str(out), *settings]
        with suppress(SystemExit):
            command()
        if not out.exists():
            sys.exit(2)  # the command has said why
        report(*found(path, out))


def found(path: Path, out: Path) -> tuple[list[float], float]:
    """When the rounds were committed, and how far the last model is from the first."""
    from safetensors.torch import load_file

    from fedsim.local import Work
    from fedsim.planning import as_scenario, jobs
    from fedsim.stored import open_run

    with closing(open_run(out)) as records:
        ended = [row.committed for row in records.rounds()]
    job, _ = jobs(as_scenario(path), Folders.of(None, path.parent), None, None)
    initial, last = Work(job).plain.module.state_dict(), load_file(out / "model" / "last.safetensors")
    return ended, sum(float((last[name] - value).square().sum()) for name, value in initial.items()) ** 0.5


if __name__ == "__main__":
    main()
