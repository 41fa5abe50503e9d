"""Reports a run to experiment trackers, during the run and at its end; failures of trackers only cause messages."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saeval._util import Display, without_secrets
from saeval.plugin.base import RunProgress, Tracker
from saeval.records import MAIN, RunResult
from saeval.task import Part, Task

_LONGEST = 120.0  # timeout in seconds, since a tracker's server may not answer
_EVERY = 10.0  # seconds between progress reports

log = logging.getLogger("saeval")


@contextmanager
def followed(task: Task, folder: Path, last: Callable[[], Mapping[str, Any]], display: Display) -> Iterator[None]:
    """Within this context, report progress to the task's trackers.

    Args:
        task: The task.
        folder: The run directory.
        last: Returns the latest content of its progress file.
        display: Shows messages about failures.
    """
    following = [part for part in task.trackers if type(part.plugin).follow is not Tracker.follow]
    if not following:
        yield
        return
    over, began = threading.Event(), time.monotonic()

    def report() -> None:
        seen: Mapping[str, Any] = {}
        while following and not over.wait(_EVERY):
            content = last()
            if content is not seen:
                seen = content
                seconds = time.monotonic() - began
                progress = RunProgress(task.name, task.sha, folder.name, folder, seconds, _numbers(content))
                _report(following, progress, display)

    thread = threading.Thread(target=report, name="trackers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_LONGEST)


def _report(following: list[Part[Tracker]], progress: RunProgress, display: Display) -> None:
    """Report to each tracker, and drop those that fail."""
    for part in [*following]:
        try:
            part.plugin.follow(progress)
        except BaseException as error:  # noqa: BLE001 - any failure affects only the tracker
            following.remove(part)
            log.error("a tracker raised\n%s", traceback.format_exc())
            said = without_secrets(f"{type(error).__name__}: {error}")
            display.say(f"{_name(part)}: {said}; it receives no more progress")


def _name(part: Part[Tracker]) -> str:
    return f"tracker {part.loaded.id.removeprefix('saeval/')}"


def _numbers(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a progress file by name."""
    stages: Sequence[Mapping[str, Any]] = content.get("stages", ())
    found = {f"done/{stage['stage']}": stage["done"] / stage["total"] for stage in stages if stage["total"]}
    found["calls"] = content.get("calls", 0)
    if not content.get("unknown"):  # do not report an unknown price as 0
        found["usd"] = content.get("usd", 0.0)
    for score in content.get("scores", ()):
        if score["mean"] is not None:
            variant = "" if score["variant"] == MAIN else f"{score['variant']}/"
            name = f"so_far/{score['cell']}/{variant}{score['scorer']}.{score['metric']}"
            found |= {name: score["mean"], f"{name}.n": score["n"]}
    return {name: float(value) for name, value in found.items()}


def tell(trackers: Iterable[Part[Tracker]], result: RunResult, folder: Path, display: Display) -> None:
    """Let every tracker log a finished run, one after the other, with a timeout of two minutes each.

    Args:
        trackers: The trackers.
        result: The run's result.
        folder: Its directory.
        display: Shows messages about failures.
    """
    for part in trackers:
        if (failure := _failure_of(part.plugin, result, folder)) is not None:
            display.say(f"{_name(part)}: {failure}; the run itself is complete")


def _failure_of(tracker: Tracker, result: RunResult, folder: Path) -> str | None:
    failures: list[str] = []

    def track() -> None:
        try:
            tracker.track(result, folder)
        except BaseException as error:  # noqa: BLE001 - any failure affects only the tracker
            log.error("a tracker raised\n%s", traceback.format_exc())
            failures.append(without_secrets(f"{type(error).__name__}: {error}"))

    thread = threading.Thread(target=track, name=f"tracker {tracker.name}", daemon=True)
    thread.start()
    thread.join(_LONGEST)
    if thread.is_alive():
        return f"still not done after {_LONGEST:g} s; not waiting any longer"
    return failures[0] if failures else None
