"""What every benchmark shares: figures, children that are timed, sides that take turns, and Delphi's own
environment."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DELPHI = HERE / "delphi"  # scripts that run in Delphi's environment, and what that environment holds


class BenchmarkError(RuntimeError):
    """A side could not be measured."""


@dataclass(frozen=True)
class Figure:
    """One measured figure: an amount, or a ratio whose sides took turns.

    Attributes:
        name: Key in the JSON output.
        values: One value a round: the ratio, or the amount.
        unit: Unit of the values; `×` for a ratio.
        method: What was measured, in a sentence that a sceptic can repeat.
        target: What it should reach; None where nothing is promised.
        lower_is_better: Which way is good.
        sides: What each side measured, a value a round, by its label with unit, such as `saeval, CPU s`.
    """

    name: str
    values: Sequence[float]
    unit: str
    method: str
    target: float | None = None
    lower_is_better: bool = False
    sides: Mapping[str, Sequence[float]] | None = None

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None where there is none."""
        if self.target is None:
            return None
        return self.median <= self.target if self.lower_is_better else self.median >= self.target


def ratio(
    name: str,
    sides: Mapping[str, Sequence[float]],
    method: str,
    *,
    target: float | None = None,
    inverse: bool = False,
    lower_is_better: bool = False,
) -> Figure:
    """Return the figure second side / first side, round by round (first / second with `inverse`).

    With costs (seconds) as sides and saeval as the first one, this is how many times less saeval needs.
    """
    first, second = list(sides.values())[:2]
    pairs = zip(first, second, strict=True)
    values = [a / b if inverse else b / a for a, b in pairs]
    return Figure(name, values, "×", method, target, lower_is_better, sides)


@dataclass(frozen=True)
class Bench:
    """What a benchmark is given.

    Attributes:
        quick: Whether to measure a small version: all of them in under five minutes.
        folder: Where data may be generated; empty at first, shared by all benchmarks of a run.
        rounds: How often the sides take turns.
        delphi_python: Interpreter of the environment that holds eai-delphi; None where nothing is compared with it.
    """

    quick: bool
    folder: Path
    rounds: int
    delphi_python: Path | None

    def saeval(self, module: str, *arguments: object) -> dict[str, Any]:
        """Run `python -m benchmarks.<module> arguments…` in a process of its own; return the JSON it prints last."""
        return _child([sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)])

    def delphi(self, script: str, *arguments: object) -> dict[str, Any]:
        """Run `benchmarks/delphi/<script>.py arguments…` in Delphi's environment; return the JSON it prints last."""
        return _child([str(self.delphi_python), str(DELPHI / f"{script}.py"), *map(str, arguments)])

    def alternate(self, **sides: Callable[[], float]) -> dict[str, list[float]]:
        """Measure the sides in turn, `rounds` times: what else the machine does then strikes them alike."""
        measured: dict[str, list[float]] = {label: [] for label in sides}
        for _ in range(self.rounds):
            for label, measure in sides.items():
                measured[label].append(measure())
        return measured


def _child(command: Sequence[str]) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command[1:4])}: exit {done.returncode}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def cpu_seconds() -> float:
    """CPU seconds of this process and all its threads so far."""
    import time

    return time.process_time()


def peak_rss_mb() -> float:
    """Most memory this process has held, in MiB, memory-mapped files included."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def delphi_environment(folder: Path) -> Path:
    """Make a virtual environment with eai-delphi, or find it; return its interpreter.

    eai-delphi is installed without its requirements, which are given in delphi/requirements.txt: vLLM, sparsify and
    bitsandbytes are not needed by what is measured and are replaced by empty modules (delphi/stubs.py).
    """
    python = folder / "bin" / "python"
    finished = folder / "finished"
    if not finished.exists():
        print(f"installing eai-delphi into {folder} …", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        constraints = str(HERE.parent / "constraints.txt")
        for command in (
            [*pip, "-c", constraints, "-r", str(DELPHI / "requirements.txt")],
            [*pip, "--no-deps", "eai-delphi==0.1.3"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BenchmarkError(f"eai-delphi cannot be installed\n{done.stderr[-3000:]}")
        finished.touch()
    return python
