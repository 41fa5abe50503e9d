"""Text of models and corpora made fit for a page: nothing in it hides, turns a line around, or ends a script."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from base64 import b64encode
from math import isfinite
from typing import Any

from markupsafe import Markup

_HIDDEN = {
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Zl",
    "Zp",
}  # control, format (bidi marks among them), surrogates, private use, breaks
_IN_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def visible(text: object) -> str:
    r"""Return text in which invisible characters stand as escapes such as `\u202e`; line breaks and tabs stay."""
    string = str(text)
    if string.isprintable():
        return string
    return "".join(c if c in "\n\t" or _shows(c) else f"\\u{ord(c):04x}" for c in string)


def _shows(c: str) -> bool:
    return unicodedata.category(c) not in _HIDDEN and ord(c) & 0xFFFE != 0xFFFE  # which XML has no place for


def script_json(value: Any) -> Markup:
    """Return JSON that can stand in a `<script>` or be one: ASCII, without `<`, `>` and `&`; numbers must be finite."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_IN_SCRIPT))  # noqa: S704 - no character of markup is left in it


def packed_json(value: Any) -> str:
    """Return JSON as gzip in base64, for what is large, says the same many times, and is seldom looked at."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def number(value: Any, digits: int = 5) -> float | None:
    """Return a finite number rounded to significant digits; None for any other."""
    return float(f"{value:.{digits}g}") if value is not None and isfinite(value) else None


def slug(name: str) -> str:
    """Return a name fit for a file and a URL; different names can share it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "cell"
