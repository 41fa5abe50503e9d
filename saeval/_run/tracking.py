"""Tell experiment trackers of a run; what goes wrong there is said, and harms nothing."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path

from saeval._util import Display, without_secrets
from saeval.plugin.base import Tracker
from saeval.records import RunResult
from saeval.task import Part

_LONGEST = 120.0  # seconds; a tracker's server may not answer at all

log = logging.getLogger("saeval")


def tell(trackers: Iterable[Part[Tracker]], result: RunResult, folder: Path, display: Display) -> None:
    """Let every tracker write a run down, one after the other, each within two minutes.

    Args:
        trackers: The trackers.
        result: The run's result.
        folder: Its directory.
        display: Where failures are said.
    """
    for part in trackers:
        if (failure := _failure_of(part.plugin, result, folder)) is not None:
            display.say(f"tracker {part.loaded.id.removeprefix('saeval/')}: {failure}; the run itself is whole")


def _failure_of(tracker: Tracker, result: RunResult, folder: Path) -> str | None:
    failures: list[str] = []

    def track() -> None:
        try:
            tracker.track(result, folder)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it costs the tracker's entry only
            log.error("a tracker raised\n%s", traceback.format_exc())
            failures.append(without_secrets(f"{type(error).__name__}: {error}"))

    thread = threading.Thread(target=track, name=f"tracker {tracker.name}", daemon=True)
    thread.start()
    thread.join(_LONGEST)
    if thread.is_alive():
        return f"still not done after {_LONGEST:g} s, and not waited for"
    return failures[0] if failures else None
