"""Replaces unpaired surrogates in external text, since UTF-8 cannot encode them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

_HALF = "\\ud"
"""Start of the JSON escape of any surrogate, in lower case."""

_NUMBERS = frozenset({type(None), bool, int, float})


def clean_text(text: str) -> str:
    """Return text that UTF-8 can encode: surrogate pairs are joined, an unpaired surrogate becomes U+FFFD.

    Truncated replies, files and command lines may contain unpaired surrogates.

    Example:
        >>> clean_text("a \\ud83d b"), clean_text("\\ud83d\\ude00")
        ('a \\ufffd b', '\\U0001f600')
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _is_clean(value: object) -> bool:
    """Return whether a value is a plain number or None, or ASCII text; a cheap check before `clean`."""
    return type(value) in _NUMBERS or (type(value) is str and value.isascii())


@cache
def _arguments(kind: Any) -> tuple[str, ...]:
    """Return the names of the fields that a dataclass is made from."""
    return tuple(field.name for field in fields(kind) if field.init)


def clean(value: T) -> T:
    """Apply `clean_text` to all strings in a value, including keys: JSON data, tuples and dataclasses.

    Strings of a subclass keep their class unless they need cleaning; dataclasses in which nothing does are returned as
    they are.
    """
    if _is_clean(value):
        return value
    cleaned: Any = value
    if isinstance(value, str):
        cleaned = clean_text(value)
    elif isinstance(value, list):
        cleaned = [clean(inner) for inner in value]
    elif isinstance(value, tuple):
        parts = [clean(inner) for inner in value]
        cleaned = type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    elif is_dataclass(value) and not isinstance(value, type):
        changed = {}
        for name in _arguments(type(value)):
            held = getattr(value, name)
            if not _is_clean(held) and (new := clean(held)) is not held:
                changed[name] = new
        cleaned = replace(value, **changed) if changed else value
    elif isinstance(value, Mapping):
        cleaned = {clean(key): clean(inner) for key, inner in value.items()}
    return cleaned  # type: ignore[no-any-return]


def may_have_surrogates(text: str) -> bool:
    """Return whether JSON text may contain escaped surrogates; a cheap check before `clean`."""
    return _HALF in text or "\\uD" in text
