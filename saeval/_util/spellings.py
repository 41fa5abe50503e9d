"""Finds strings in a text, even escaped or encoded ones."""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import lru_cache

_ROUNDS = 4
"""Maximum number of nested escapes to undo."""
_DEPTH = 2
"""Maximum number of nested encodings to undo."""
_LONG = 1 << 16
"""Maximum length of a decoded text in which further encodings are searched."""
_BYTE = "[0-9A-Fa-f]{2}"
_URL = re.compile(rf"%{_BYTE}(?:%{_BYTE})*")
_BACKSLASH = re.compile(
    rf"\\(?:(?P<wide>u{_BYTE}{_BYTE}(?:\\u{_BYTE}{_BYTE})*)|(?P<byte>x{_BYTE}(?:\\x{_BYTE})*)"
    r"|(?P<octal>[0-7]{3}(?:\\[0-7]{3})*)|(?P<short>[^ux0-7]))"
)
"""Separate patterns with a fixed first letter, for which the engine can search; one pattern for all escapes takes ten
times as long."""
_HTML = re.compile(r"&(?:#\d+|#[xX][0-9A-Fa-f]+|[A-Za-z]+);")
_SHORT = {"t": "\t", "n": "\n", "r": "\r"}
_HEX = re.compile(rf"{_BYTE}[ :-]?{_BYTE}(?:[ :-]?{_BYTE}){{6,}}(?![A-Za-z0-9+/_-])")
_BASE = re.compile(r"[A-Za-z0-9+/_-]{14,}(?:\r?\n[A-Za-z0-9+/_-]+)*")
"""Words that may be base32 or base64, which may span several lines. This pattern and the one of hexadecimal words begin
with a class of characters, for which the engine can search; one pattern for both takes twice as long."""


def find_encoded(text: str, values: Collection[str]) -> list[str]:
    """Return the parts of a text, with escapes undone, that are one of the values or encode one.

    Args:
        text: The text.
        values: The values to search for.

    Example:
        >>> find_encoded("?key=se%2563ret", ["secret"]), find_encoded("Basic OnNlY3JldC1rZXk=", ["secret-key"])
        (['secret'], ['OnNlY3JldC1rZXk'])
    """
    plain, looked_for = _unescaped(text), _all_plain(frozenset(values))
    spaced = plain.replace("+", " ")
    found = [
        value
        for form, value in looked_for.items()
        if form in plain or (" " in form and form.replace("+", " ") in spaced)
    ]
    return found + [word for word, decoded in _decoded(plain) if _holds(decoded, looked_for)]


@lru_cache(maxsize=512)
def escaped_pattern(value: str) -> re.Pattern[str]:
    """Return a pattern that matches a text in which any character may be escaped, also several times.

    Example:
        >>> escaped_pattern("a/b").findall(r"a/b a%2fb a%252Fb a\\/b a&#47;b")
        ['a/b', 'a%2fb', 'a%252Fb', 'a\\\\/b', 'a&#47;b']
    """
    return re.compile("".join(map(_character, value)))


@lru_cache(maxsize=8)
def _all_plain(values: frozenset[str]) -> dict[str, str]:
    """Return the values by their unescaped form, since a value may itself contain escapes."""
    return {_unescaped(value): value for value in values}


def _holds(text: str, values: Collection[str], depth: int = _DEPTH) -> bool:
    plain = _unescaped(text)
    if any(value in plain for value in values):
        return True
    if depth == 0 or len(text) > _LONG:
        return False
    return any(_holds(decoded, values, depth - 1) for _, decoded in _decoded(plain))


# --- escapes ---


def _unescaped(text: str) -> str:
    for _ in range(_ROUNDS):
        before = text
        text = _URL.sub(lambda match: _text(bytes.fromhex(match[0].replace("%", ""))), text)
        text = _BACKSLASH.sub(_without_backslash, text)
        text = _HTML.sub(lambda match: html.unescape(match[0]), text)
        if text == before:
            break
    return text


def _without_backslash(match: re.Match[str]) -> str:
    kind = str(match.lastgroup)
    escaped = match[kind]
    if kind == "byte":
        return _text(bytes.fromhex(escaped.replace("\\", "").replace("x", "")))
    if kind == "octal":
        return _text(bytes(int(number, 8) & 255 for number in escaped.split("\\")))
    if kind == "wide":
        return bytes.fromhex(escaped.replace("\\", "").replace("u", "")).decode("utf-16-be", errors="replace")
    return _SHORT.get(escaped, escaped)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


_SLASH = r"(?:\\|%(?:25)*5C|&(?:amp;)*#92;)"
_AND = r"(?:&|%(?:25)*26|\\+u0026)(?:amp(?:;|%(?:25)*3B))*"
_END = r"(?:;|%(?:25)*3B)"
_NAMED = {'"': "quot", "&": "amp", "'": "apos", "<": "lt", ">": "gt"}


def _character(c: str) -> str:
    """Return a pattern that matches a character and all its escapes."""
    number, data = ord(c), c.encode(errors="replace")
    units = re.findall("....", c.encode("utf-16-be", errors="replace").hex())
    forms = ["".join(rf"{_SLASH}+u{unit}" for unit in units)]
    for byte_form in (r"%(?:25)*{:02x}", _SLASH + r"+x{:02x}", _SLASH + r"+{:03o}"):
        forms.append("".join(byte_form.format(byte) for byte in data))
    forms += [rf"{_AND}#0*{number}{_END}", rf"{_AND}#x0*{number:x}{_END}"]
    if number < 256:
        forms += [rf"{_SLASH}+x{number:02x}", rf"%(?:25)*{number:02x}"]
    forms += [rf"{_AND}{name}{_END}" for name in (_NAMED.get(c),) if name]
    forms += [rf"{_SLASH}+{letter}" for letter, meant in _SHORT.items() if meant == c]
    forms += [r"\+"] * (c == " ")
    return rf"(?:{_SLASH}*{re.escape(c)}|(?i:{'|'.join(forms)}))"


# --- encodings ---


def _decoded(text: str) -> Iterator[tuple[str, str]]:
    """Yield the words of a text that may be hexadecimal, base32 or base64, each with what it decodes to."""
    for run in _HEX.finditer(text):
        with suppress(ValueError):
            yield run[0], _text(bytes.fromhex(re.sub("[ :-]", "", run[0])))
    for run in _BASE.finditer(text):
        word = "".join(run[0].split())
        # Others are hyphenated prose; this excludes one in a million encoded values of ten characters.
        if any(c.isdigit() or c.isupper() for c in word[1:]):
            yield from ((run[0], decoded) for decoded in _from_base(word))


def _from_base(word: str) -> Iterator[str]:
    """Yield a word decoded as base32, and as base64 starting at each of its first four characters."""
    with suppress(binascii.Error):
        yield _text(base64.b32decode(word + "=" * (-len(word) % 8)))
    word = word.replace("-", "+").replace("_", "/")
    for start in range(4):
        part = word[start:]
        part = part[: len(part) - (len(part) % 4 == 1)]
        with suppress(binascii.Error):
            data = base64.b64decode(part + "=" * (-len(part) % 4))
            yield _text(data)
            yield data.decode("utf-16-le", errors="replace")
