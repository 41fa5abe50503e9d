"""Serves a report whose latent pages also show activations on text that the reader types."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from saeval._util import SaevalError, rounded
from saeval.report.html.text import script_json
from saeval.report.server import HTML, SCRIPT, Answer
from saeval.report.view import ReportServer

Contexts = Sequence[tuple[Sequence[str], Iterable[float]]]
"""For each context of a text, its tokens and an activation per token."""
MOST = 2000
"""Maximum characters of a typed text."""


class LiveServer(ReportServer):
    """Serves the pages of a report, and returns activations on typed texts, one text at a time.

    Args:
        run_dir: The run.
        port: Port; 0 for a free one.
        cells: Cells whose model can read text.
        read: Returns a latent's activations on a text, given a cell's name, the latent's number and the text.

    Raises:
        InputError: If there is no report, another version of saeval wrote it, or the port cannot be used.
    """

    def __init__(self, run_dir: Path, port: int, cells: Sequence[str], read: Callable[[str, int, str], Contexts]):
        super().__init__(run_dir, port)
        self._cells, self._read = frozenset(cells), read
        self._reading = threading.Lock()

    def content(self, place: str, query: str) -> Answer:
        """Return a page of the report, marked as live, or the activations on a typed text."""
        if place == "typed.js":
            return self._typed(query)
        found = super().content(place, query)
        if found.kind != HTML:
            return found
        mark = f'<meta name="saeval-live" content="{MOST}">\n</head>'.encode()
        return found._replace(content=found.content.replace(b"</head>", mark, 1))

    def _typed(self, query: str) -> Answer:
        """Return a script that passes the activations, or an error, to the page."""
        try:
            asked = parse_qs(query, keep_blank_values=True, strict_parsing=True, errors="replace", max_num_fields=4)
            number, latent = (int(asked[name][0]) for name in ("n", "latent"))
            cell, text = asked["cell"][0], asked["text"][0]
        except (KeyError, ValueError):
            return Answer(HTTPStatus.BAD_REQUEST)
        found = self._activations(cell, latent, text)
        return Answer(HTTPStatus.OK, f"saevalTyped({number},{script_json(found)});\n".encode(), SCRIPT)

    def _activations(self, cell: str, latent: int, text: str) -> dict[str, Any]:
        if len(text) > MOST:
            return {"error": f"the text has {len(text):,} characters; the maximum is {MOST:,}"}
        if cell not in self._cells:
            return {"error": "this cell has no model that can read text"}
        if not self._reading.acquire(blocking=False):
            return {"error": "another text is being read; try again in a moment"}
        try:
            contexts = self._read(cell, latent, text)
        except SaevalError as error:
            return {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - the server continues after any error of a model
            return {"error": f"the text could not be read ({type(error).__name__}: {error})"}
        finally:
            self._reading.release()
        return {"contexts": [[[*tokens], [rounded(v, 4) or 0.0 for v in values]] for tokens, values in contexts]}
