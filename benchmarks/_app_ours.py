"""A contender of `flower_apps.py`: the app under the command `fedsim flower` with two workers, run folder included."""

import sys
import tempfile
from pathlib import Path

from _app_stock import APP, WORKERS, config

from fedsim.cli import main as command


def main() -> None:
    """Run the command; the app reports by itself."""
    body, cohort, rounds = sys.argv[1:]
    settings = " ".join(f"{key}={value!r}" for key, value in config(int(cohort), int(rounds), body).items())
    with tempfile.TemporaryDirectory() as folder:
        options = ["--nodes", cohort, "--workers", str(WORKERS), "--run-config", settings]
        sys.argv = ["fedsim", "flower", str(APP), *options, "--out", str(Path(folder) / "run")]
        command()


if __name__ == "__main__":
    main()
