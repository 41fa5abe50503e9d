"""Reports unexpected failures: a sentence for the user, the traceback in a log."""

from __future__ import annotations

import time
import traceback
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

from saeval._util.assets import cache_dir
from saeval._util.errors import InternalError
from saeval._util.limits import shortage
from saeval._util.secrets import without_secrets

_SHIPPED = "saeval_plugins"
SINGLE_FILE = "saeval_local_"
"""What the module name of a single-file plugin begins with."""


def internal_error(error: Exception, log: Path | None = None) -> InternalError:
    """Write a traceback to a log, and return an error with a message for the user.

    Args:
        error: The exception.
        log: The log to append to; if None or not writable, a new log in the cache folder.
    """
    if (short := shortage(error)) is not None:
        return InternalError(f"{short}. Completed work is saved; rerun the same command to resume")
    text = without_secrets("".join(traceback.format_exception(error)))
    own = cache_dir() / "logs" / f"error-{time.strftime('%Y%m%d-%H%M%S')}.log"
    written = next((place for place in (log, own) if place is not None and _added(place, text)), None)
    where = f"the traceback is in {written}" if written else "no log could be written"
    line = " ".join(without_secrets(str(error)).split())[:200] or "no reason given"
    what = f"({type(error).__name__}: {line})"
    if (place := plugin_place(error)) is not None:
        return InternalError(
            f"the plugin code at {place} raised an error {what}; {where}. Fix the plugin, or tell its author"
        )
    return InternalError(
        f"an unexpected error occurred {what}; {where}. Please report it, with that log and the task spec"
    )


def plugin_place(error: BaseException, *, built_in: bool = False) -> str | None:
    """Return file name and line of the innermost code of a plugin, without its folder; None if none was running.

    The code of a package is its modules with an entry point; that of a single file is that file, and files beside it.

    Args:
        error: The exception.
        built_in: Whether to return the place in a plugin that saeval ships if no other was running.
    """
    modules = {entry.module.partition(".")[0] for entry in entry_points(group="saeval")} - {_SHIPPED}
    folders: set[Path] = set()
    found = shipped = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        module, file = str(frame.f_globals.get("__name__")).partition(".")[0], Path(frame.f_code.co_filename)
        if module.startswith(SINGLE_FILE):
            folders.add(file.parent)
        if module in modules or file.parent in folders:
            found = f"{file.name}:{line}"
        elif module == _SHIPPED:
            shipped = f"{file.name}:{line}"
    return found or (shipped if built_in else None)


def _added(place: Path, text: str) -> bool:
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("a", encoding="utf-8", errors="replace") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} ERROR\n{text}\n")
        return True
    return False
