"""Encodes data for a page: JSON that is safe inside a script, and names for files and addresses."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from codecs import BOM_UTF16_LE
from typing import Any

from markupsafe import Markup
from pydantic_core import to_json

from saeval._util import clean, escape_script, gzipped

_FIRST = 0x4000  # first of 32,768 characters that have no special meaning in a script


def script_json(value: Any) -> Markup:
    """Return JSON that is safe inside a `<script>`: ASCII, without `<`, `>` and `&`; numbers must be finite."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(escape_script(text))  # noqa: S704 - no character of markup is left in it


def packed_json(value: Any) -> str:
    """Return JSON as gzip in base64, for large, repetitive and rarely read data."""
    return packed(_json(value))


def packed(content: bytes) -> str:
    """Return bytes as gzip in base64, which the script of the pages unpacks."""
    return b64encode(gzipped(content)).decode()


def dense_json(value: Any) -> str:
    """Return JSON as gzip in `dense` characters, for scripts in UTF-16."""
    return dense_packed(_json(value))


def dense_packed(content: bytes) -> str:
    """Return bytes as gzip in `dense` characters, for scripts in UTF-16."""
    return dense(gzipped(content))


def dense(content: bytes) -> str:
    """Return bytes as a digit followed by characters from U+4000 to U+BFFF, which encode 15 bits each.

    In UTF-16 these characters take 16 bits each, a fifth less than base64 in UTF-8. The digit is 1 if the characters
    encode one byte more than the content.
    """
    import numpy as np

    groups = np.zeros((-(-len(content) // 15), 8, 2), dtype=np.uint8)  # 15 bytes and a zero as 8 words of 16 bits
    padded = np.frombuffer(content + bytes(-len(content) % 15), dtype=np.uint8)
    groups.reshape(-1, 16)[:, :15] = padded.reshape(-1, 15)
    words = groups.view(">u2")[:, :, 0].astype(np.uint32)
    words[:, 1:] |= words[:, :-1] << 16  # character k ends in word k, k + 1 bits before its end
    numbers = (words >> np.arange(1, 9, dtype=np.uint32)) & 0x7FFF
    count = -(-8 * len(content) // 15)
    longer = 15 * count // 8 - len(content)
    return f"{longer}" + (numbers.ravel()[:count] + _FIRST).astype("<u2").tobytes().decode("utf-16-le")


def utf16(text: str) -> bytes:
    """Return a script in UTF-16 with a byte order mark, which tells browsers the encoding, also without a server."""
    return BOM_UTF16_LE + text.encode("utf-16-le")


def script_text(content: bytes) -> str:
    """Return the text of a script of the report, in UTF-16 or UTF-8."""
    return content.decode("utf-16" if content.startswith(BOM_UTF16_LE) else "utf-8")


def _json(value: Any) -> bytes:
    """Return JSON in UTF-8; numbers that are not finite become null, since one of them would make a page unreadable."""
    try:
        return to_json(value, inf_nan_mode="null")  # five times as fast as the standard library
    except ValueError:
        return to_json(clean(value), inf_nan_mode="null")


def slug(name: str) -> str:
    """Return a name for files and URLs; different names can share it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "cell"


def page_name(number: int, cell: str) -> str:
    """Return the name of a cell's page in a report, without its ending."""
    return f"{number}-{slug(cell)}"
