"""Our contender: a fedsim run with two Ray workers on the same nets and rows, records and checkpoints included."""

import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from _workload import BATCH, CLIENTS, LEARNING_RATE, NETS, arguments, images, report

from fedsim.data.corpus import Corpus, Folders
from fedsim.rounds import run
from fedsim.stored import open_run

WORKERS = 2
HERE = Path(__file__).parent


def corpus(folders: Folders) -> Corpus:
    """The random images; they have no natural clients, and partition iid deals everyone 50 of them."""
    x, y = images()
    return Corpus("random-images", "classification", x, y, tuple("0123456789"))


def scenario(net: str, cohort: int, rounds: int) -> dict[str, Any]:
    """Training alone: every row is a train row and nothing is evaluated."""
    return {
        "title": "benchmark",
        "seed": 1,
        "rounds": rounds,
        "data": {
            "name": "random-images",
            "partition": {"kind": "iid", "clients": CLIENTS},
            "split": {"central": 0.0, "train": 1.0, "validation": 0.0, "test": 0.0},
        },
        "model": {"name": f"{HERE / '_workload.py'}:{NETS[net].__name__}"},
        "train": {"learning_rate": LEARNING_RATE, "batch_size": BATCH, "epochs": 1},
        "cohort": {"size": cohort, "on_client_error": "fail"},
        "evaluate": {"clients_every": 0},
        "engine": {"kind": "ray", "workers": WORKERS},
    }


def main() -> None:
    """Run the rounds and report when each was committed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run(scenario(*arguments()), data=corpus, out=out)
        with closing(open_run(out)) as records:
            report([row.committed for row in records.rounds()])


if __name__ == "__main__":
    main()
