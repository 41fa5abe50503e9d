"""Cleans up a local Ray cluster after its driver was killed; a separate program that uses only the standard library.

It waits for the end of its input, which occurs when the driver ends for any reason. Then the processes of the cluster
get some time to end by themselves, because they may be waiting for calls that are billed.

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

_GRACE = 15.0  # default seconds for processes to end
_PATIENCE = 10.0  # seconds to wait after the kill


def main(folder: Path, grace: float) -> None:
    """Wait for the driver to end, then remove the processes and files of its cluster."""
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
    """Return the ids of processes with the cluster's folder in their arguments, without this process."""
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
        signal.signal(number, signal.SIG_IGN)  # they are meant for the driver
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else _GRACE)
