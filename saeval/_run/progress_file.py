"""Writes a run's progress to a file in its directory, for `saeval view --follow`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saeval._run.state import RunState
from saeval._util import Display, Spending, without_secrets

_EVERY = 1.0  # minimum seconds between writes
_SHARE = 0.02  # maximum share of the run's time for writing
_MOST = 20  # maximum messages and failure reasons in the file


class ProgressFile(Display):
    """Wraps another display and also writes the progress to a file; if writing fails, the run continues without it.

    Args:
        display: The other display.
        path: The file.
        state: The state of the run.

    Attributes:
        last: The content last written.
    """

    def __init__(self, display: Display, path: Path, state: RunState):
        self._inner, self._path, self._state = display, path, state
        self._stages: dict[str, dict[str, Any]] = {}
        self._said: list[str] = []
        self._began: dict[str, float] = {}
        self._due = 0.0
        self._busy = threading.Lock()
        self.last: dict[str, Any] = {}

    def count(self, spending: Any) -> None:
        """Pass on, and store."""
        super().count(spending)
        self._inner.count(spending)

    def begin(self, stage: str, total: int, unit: str) -> None:
        """Pass on, and write to the file."""
        self._inner.begin(stage, total, unit)
        self._began[stage] = time.monotonic()
        self._stages[stage] = {"stage": stage, "unit": unit, "done": 0, "total": total, "failed": 0, "seconds": 0.0}
        self._note()

    def update(self, stage: str, done: int, total: int, failed: int) -> None:
        """Pass on, and write to the file."""
        self._inner.update(stage, done, total, failed)
        seconds = time.monotonic() - self._began[stage]
        self._stages[stage].update(done=done, total=total, failed=failed, seconds=round(seconds, 1))
        self._note()

    def end(self, stage: str) -> None:
        """Pass on, and write to the file."""
        self._inner.end(stage)
        self._stages[stage]["ended"] = True
        self._note()

    def say(self, text: str) -> None:
        """Pass on, and write to the file."""
        self._inner.say(text)
        self._keep(text)

    def wait(self, text: str) -> None:
        """Pass on, and write to the file."""
        self._inner.wait(text)
        self._keep(text)

    @contextmanager
    def shown(self) -> Iterator[Display]:
        """Activate the display within this context, and write the final state at its end."""
        with self._inner.shown():
            try:
                yield self
            finally:
                self._due = 0.0
                self._note()

    def _keep(self, text: str) -> None:
        self._said = [*self._said, without_secrets(text)][-_MOST:]
        self._note()

    def _note(self) -> None:
        """Write the file, unless it was written a moment ago."""
        if time.monotonic() < self._due or not self._busy.acquire(blocking=False):
            return
        try:
            began = time.monotonic()
            self.last = self._content()
            text = json.dumps(self.last, ensure_ascii=False, allow_nan=False)
            new = self._path.with_name(f".{self._path.name}")
            new.write_text(text, encoding="utf-8", errors="replace")
            new.replace(self._path)
            self._due = time.monotonic() + max(_EVERY, (time.monotonic() - began) / _SHARE)
        except (OSError, ValueError):
            self._due = float("inf")
        finally:
            self._busy.release()

    def _content(self) -> dict[str, Any]:
        spent = self.spending() if self.spending is not None else Spending(0, 0.0)
        if spent.calls and self._calling_since is None:
            self._calling_since = time.monotonic()
        calling = time.monotonic() - self._calling_since if self._calling_since is not None else 0.0
        failures = [
            {"step": step, "reason": without_secrets(reason), "times": times}
            for (step, reason), times in self._state.reasons.most_common(_MOST)
        ]
        return {
            "updated": time.time(),
            "stages": [*self._stages.values()],
            "calls": spent.calls,
            "calling_seconds": round(calling, 1),
            "usd": spent.usd,
            "unknown": spent.unknown,
            "failures": failures,
            "scores": [*self._scores()],
            "said": self._said,
        }

    def _scores(self) -> Iterator[dict[str, Any]]:
        for name, cell in self._state.cells.items():
            for (label, variant), scored in cell.scored.items():
                metric = cell.cell.scorers[label].part.plugin.metrics[0].name
                n, mean = scored.so_far(metric)
                failed = sum(status == "failed" for status, _ in scored.unscored.values())
                place = {"cell": name, "scorer": label, "variant": variant, "metric": metric}
                yield {**place, "n": n, "mean": mean, "failed": failed}
