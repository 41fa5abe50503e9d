"""How long saeval takes to answer `--help` and to validate a task."""

from __future__ import annotations

import shutil
import subprocess
import time

from benchmarks.harness import Bench, BenchmarkError, Figure


def measure(bench: Bench) -> list[Figure]:
    """Return the wall-clock seconds of two commands; the first, cold start of each is not counted."""
    return [
        Figure(
            "help_seconds",
            _seconds(["--help"], bench.rounds),
            "s",
            "wall-clock of `saeval --help`, files in the page cache",
            target=0.3,
            lower_is_better=True,
        ),
        Figure(
            "validate_seconds",
            _seconds(["validate", "--task", "quickstart"], bench.rounds),
            "s",
            "wall-clock of `saeval validate --task quickstart`, files in the page cache",
            target=0.6,
            lower_is_better=True,
        ),
    ]


def _seconds(arguments: list[str], rounds: int) -> list[float]:
    command = shutil.which("saeval")
    if command is None:
        raise BenchmarkError("there is no `saeval` command; install the package in this environment")
    taken = []
    for _ in range(1 + max(rounds, 5)):
        began = time.perf_counter()
        subprocess.run([command, *arguments], check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
    return taken[1:]
