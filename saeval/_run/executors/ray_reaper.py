"""Cleans up a local Ray cluster whose driver was killed; a separate program that imports only the standard library.

It waits for the end of its input, which comes when the driver is gone, however it ended. Then processes that belong
to the cluster get a while to end by themselves, because they may be waiting for answers that are paid for.

Usage: python ray_reaper.py FOLDER [SECONDS]
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_GRACE = 15.0  # seconds that processes get, where none are said
_PATIENCE = 10.0  # seconds after the kill


def main(folder: Path, grace: float) -> None:
    """Wait for the driver's end, and leave nothing of its cluster behind."""
    sys.stdin.buffer.read()
    _until_gone(folder, grace)
    for process in _processes(folder):
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)
    _until_gone(folder, _PATIENCE)
    shutil.rmtree(folder, ignore_errors=True)


def _until_gone(folder: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while _processes(folder) and time.monotonic() < until:
        time.sleep(0.2)


def _processes(folder: Path) -> list[int]:
    """Return the processes that were started with the cluster's folder among their arguments; ours is none of them."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments = (place / "cmdline").read_bytes()
            if (
                f"{folder}/".encode() in arguments
                and place.stat().st_uid == os.getuid()
                and int(place.name) != os.getpid()
            ):
                found.append(int(place.name))
    return found


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # sent to the driver, whose end is waited for
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else _GRACE)
