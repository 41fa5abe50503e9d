"""Makes text from outside (replies, corpora, files of explanations) fit to be written, shown and encoded as UTF-8."""

from __future__ import annotations

import re
from typing import Any

REPLACEMENT = "\ufffd"
"""Stands where a character was that no file can hold, as it does in every Unicode decoder."""

_SURROGATES = re.compile("[\ud800-\udfff]+")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def encodable(text: str) -> str:
    r"""Return text that UTF-8 can encode: halves of a character are joined, and a lone half becomes U+FFFD.

    JSON may hold half a surrogate pair (`"\ud83d"`), where a server cuts an emoji in two at the token limit.

    Example:
        >>> encodable("fine \ud83d") == "fine \ufffd"
        True
    """
    if text.isascii():
        return text
    return _SURROGATES.sub(lambda m: m[0].encode("utf-16", "surrogatepass").decode("utf-16", "replace"), text)


def clean_text(text: str) -> str:
    """Return text that UTF-8 can encode, with U+FFFD for control characters, too; tabs and line breaks stay."""
    return _CONTROLS.sub(REPLACEMENT, encodable(text))


def clean_values(value: Any) -> Any:
    """Return JSON data whose texts are clean."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean_text(key) if isinstance(key, str) else key: clean_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_values(item) for item in value]
    return value
