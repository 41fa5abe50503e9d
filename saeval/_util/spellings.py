"""Finds strings in a text even if they are escaped or encoded."""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import lru_cache

_ROUNDS = 4
"""Escapes within escapes that are undone."""
_DEPTH = 2
"""Encodings within encodings that are undone."""
_LONG = 1 << 16
"""Characters of what an encoding hides, beyond which nothing is decoded within it."""
_BYTE = "[0-9A-Fa-f]{2}"
_URL = re.compile(rf"%{_BYTE}(?:%{_BYTE})*")
_BACKSLASH = re.compile(
    rf"\\(?:(?P<wide>u{_BYTE}{_BYTE}(?:\\u{_BYTE}{_BYTE})*)|(?P<byte>x{_BYTE}(?:\\x{_BYTE})*)"
    r"|(?P<octal>[0-7]{3}(?:\\[0-7]{3})*)|(?P<short>[^ux0-7]))"
)
"""Each pattern begins with a letter that the engine searches for; one for all escapes takes ten times as long."""
_HTML = re.compile(r"&(?:#\d+|#[xX][0-9A-Fa-f]+|[A-Za-z]+);")
_SHORT = {"t": "\t", "n": "\n", "r": "\r"}
_RUN = re.compile(
    r"(?P<hex>(?:[0-9A-Fa-f]{2}[ :-]?){7,}[0-9A-Fa-f]{2})(?![A-Za-z0-9+/_-])"
    r"|(?P<base>[A-Za-z0-9+/_-]{14,}(?:\r?\n[A-Za-z0-9+/_-]+)*)"
)
"""Words that may be hexadecimal, base32 or base64; the latter in lines, too."""


def hidden(text: str, values: Collection[str]) -> list[str]:
    """Return what of a text, with all escapes undone, is one of some values, or encodes one.

    Args:
        text: The text.
        values: What is looked for.

    Example:
        >>> hidden("?key=se%2563ret", ["secret"]), hidden("Basic OnNlY3JldC1rZXk=", ["secret-key"])
        (['secret'], ['OnNlY3JldC1rZXk'])
    """
    plain, looked_for = _unescaped(text), _all_plain(frozenset(values))
    spaced = plain.replace("+", " ")
    found = [
        value
        for form, value in looked_for.items()
        if form in plain or (" " in form and form.replace("+", " ") in spaced)
    ]
    return found + [run[0] for run in _RUN.finditer(plain) if any(_holds(d, looked_for) for d in _decoded(run))]


@lru_cache(maxsize=512)
def however_escaped(value: str) -> re.Pattern[str]:
    """Return a pattern of a text in which each character may be escaped, also several times.

    Example:
        >>> however_escaped("a/b").findall(r"a/b a%2fb a%252Fb a\\/b a&#47;b")
        ['a/b', 'a%2fb', 'a%252Fb', 'a\\\\/b', 'a&#47;b']
    """
    return re.compile("".join(map(_character, value)))


@lru_cache(maxsize=8)
def _all_plain(values: frozenset[str]) -> dict[str, str]:
    """Return values by what undoing all escapes makes of them, since they may look like escapes themselves."""
    return {_unescaped(value): value for value in values}


def _holds(text: str, values: Collection[str], depth: int = _DEPTH) -> bool:
    plain = _unescaped(text)
    if any(value in plain for value in values):
        return True
    if depth == 0 or len(text) > _LONG:
        return False
    return any(_holds(d, values, depth - 1) for run in _RUN.finditer(plain) for d in _decoded(run))


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
    """Return a pattern of a character in all its escapes."""
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


def _decoded(run: re.Match[str]) -> Iterator[str]:
    """Yield what a word says if it is hexadecimal, base32, or base64 that begins at any of its first characters."""
    word = "".join(run[0].split())
    if not any(c.isdigit() or c.isupper() for c in word[1:]):
        return  # words of prose, joined by hyphens; among encoded values of ten characters, one in a million is so
    if run.lastgroup == "hex":
        with suppress(ValueError):
            yield _text(bytes.fromhex(re.sub("[ :-]", "", run[0])))
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
