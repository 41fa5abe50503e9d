"""Encodes data for a page: JSON that cannot end a script, and names for files and addresses."""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64encode
from typing import Any

from markupsafe import Markup

from saeval._util import escape_script

_LEVEL = 5  # of gzip; 9 takes eight times as long for 4 % less


def script_json(value: Any) -> Markup:
    """Return JSON that is safe inside a `<script>`: ASCII, without `<`, `>` and `&`; numbers must be finite."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(escape_script(text))  # noqa: S704 - no character of markup is left in it


def packed_json(value: Any) -> str:
    """Return JSON as gzip in base64, for data that is large, repetitive and rarely read."""
    return packed(json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode())


def packed(content: bytes) -> str:
    """Return bytes as gzip in base64, which the script of the pages unpacks."""
    return b64encode(gzip.compress(content, _LEVEL, mtime=0)).decode()


def slug(name: str) -> str:
    """Return a name for files and URLs; different names can share it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "cell"


def page_name(number: int, cell: str) -> str:
    """Return the name of a cell's page in a report, without its ending."""
    return f"{number}-{slug(cell)}"
