"""Serves a page that shows the progress of a run."""

from __future__ import annotations

import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

from saeval._util import InputError, read_json
from saeval.records import run_state
from saeval.report.html.pages import render
from saeval.report.html.text import script_json
from saeval.report.server import HTML, SCRIPT, Answer, LocalServer
from saeval.report.view import report_file


class FollowServer(LocalServer):
    """Serves a page that shows the progress of a run, and the run's report as soon as it exists.

    Args:
        run_dir: The run, finished or not.
        port: Port; 0 for a free one.

    Raises:
        InputError: If it is not a run, or the port cannot be used.
    """

    def __init__(self, run_dir: Path, port: int = 0):
        self.run_dir = run_dir.resolve()
        run_state(self.run_dir)
        self.page = render("follow.html.j2", {"run": self.run_dir.name})
        super().__init__(port, "follow.html")

    def content(self, place: str, query: str) -> Answer:
        """Return the page, the run's progress, or a page of its report."""
        if place == "follow.html":
            return Answer(HTTPStatus.OK, self.page.encode(), HTML)
        if place == "status.js":
            text = f"saevalStatus({script_json(progress(self.run_dir))});\n"
            return Answer(HTTPStatus.OK, text.encode(), SCRIPT)
        return report_file(self.run_dir / "report", place)


def progress(run_dir: Path) -> dict[str, Any]:
    """Return the progress of a run: status, time, spending, stages, failures and scores so far.

    Raises:
        InputError: If it is not a run.
    """
    state = run_state(run_dir)
    try:
        found = read_json(run_dir / "logs" / "progress.json")
    except InputError:
        found = {}
    status = str(state.get("status", ""))
    found = found if isinstance(found, dict) else {}
    written = [at.get("updated") for at in (state, found)]  # a run that is killed writes only its progress
    ended = max((float(at) for at in written if isinstance(at, int | float)), default=0.0)
    end = time.time() if status == "running" else ended
    return {
        **found,
        "status": status,
        "reason": str(state.get("reason", "")),
        "seconds": max(0.0, end - float(state.get("began") or end)),
        "report": (run_dir / "report" / "index.html").is_file(),
        "now": time.time(),
    }
