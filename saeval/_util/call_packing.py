"""Packs prompts and replies for readers who have the windows that prompts hold."""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from saeval._util.shared_text import without_shared

LEFT_OUT: Final = "left out"
"""Status of the entry that says how many more prompts there were, in place of a prompt."""

_MOST_BYTES = 1 << 28
"""Bytes of prompts and replies that are unpacked; a few kilobytes of somebody's can claim to be gigabytes."""
_LEVEL = 6  # of zlib; 9 takes a quarter longer for 2 % less
_WINDOW = 31_000  # bytes in which zlib finds what it has seen: those that both sides know, and those of a part
_REACH = 25_000  # bytes known to both sides, at most
_TRIED = 8  # texts of a group that are looked for in the prompts
_NONE = "-"

Call = tuple[str, str, str]
"""Prompt, reply and status."""


def packed_calls(
    calls: Sequence[Call],
    windows: Sequence[Sequence[str]] = (),
    templates: Sequence[str] = (),
    spell: Callable[[bytes], str] = lambda packed: b64encode(packed).decode(),
) -> str:
    """Return calls as a short text.

    It begins with the numbers of the groups of known texts that prompts hold, `-` for none; each template is a group
    after those of windows. Parts follow, each after a `.`: zlib's format, with the last 25,000 bytes of these groups'
    texts, joined by line ends, as its dictionary. Each part is a JSON list. The first entry of all is what all prompts
    begin and end with; the others are what is between, reply and status of a call. The script of reports unpacks it,
    too.

    Args:
        calls: The calls.
        windows: Texts of the latent's windows, which prompts may hold, by group.
        templates: Texts that prompts may be made of.
        spell: Writes bytes as text without a `.`; default: in base64.
    """
    before, after, prompts = without_shared([prompt for prompt, _, status in calls if status != LEFT_OUT])
    asked = iter(prompts)
    rest = [(prompt if status == LEFT_OUT else next(asked), reply, status) for prompt, reply, status in calls]
    groups = _groups(windows, templates)
    held = _held(groups, "\n".join([before, *prompts, after]))
    known = _known([groups[k] for k in held])
    empty = _packer(known)
    # A part is short enough for all of what is known to be in reach of its end.
    parts: list[list[Any]] = [[[before, after]]]
    size = 0
    for call in rest:
        length = len(call[0]) + len(call[1])
        if size and size + length > _WINDOW - len(known):
            parts.append([])
            size = 0
        parts[-1].append(call)
        size += length
    texts = [json.dumps(part, ensure_ascii=False, separators=(",", ":")) for part in parts]
    return ".".join(["".join(map(str, held)) or _NONE, *(spell(_deflated(text, empty)) for text in texts)])


def unpacked_calls(packed: str, windows: Sequence[Sequence[str]] = (), templates: Sequence[str] = ()) -> list[Call]:
    """Return what `packed_calls` was given with these windows and templates, in base64.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        held, *parts = packed.split(".")
        if not parts:  # as earlier versions packed
            return [(prompt, reply, status) for prompt, reply, status in json.loads(_inflated(packed, b""))]
        groups = _groups(windows, templates)
        named = [] if held == _NONE else map(int, held)
        known = _known([groups[k] for k in named] if held else windows)  # earlier versions knew all windows
        lists = [json.loads(_inflated(part, known)) for part in parts]
        (before, after), *rest = (entry for entries in lists for entry in entries) if held else _earlier(lists)
        return [(p if status == LEFT_OUT else f"{before}{p}{after}", reply, status) for p, reply, status in rest]
    except (TypeError, AttributeError, IndexError, zlib.error, RecursionError) as error:
        raise ValueError("it cannot be unpacked") from error


def _earlier(lists: Sequence[Any]) -> list[Any]:
    """Return what earlier versions packed, whose first part was what all prompts begin and end with alone."""
    head, *parts = lists
    return [head, *(entry for part in parts for entry in part)]


def _groups(windows: Sequence[Sequence[str]], templates: Sequence[str]) -> list[Sequence[str]]:
    """Return groups of texts that both sides know; their numbers have one digit."""
    return [*windows, *([template] for template in templates)][:10]


def _held(groups: Sequence[Sequence[str]], text: str) -> list[int]:
    """Return the numbers of the groups of which a text holds one of the first, by its middle."""
    return [k for k, group in enumerate(groups) if any(_middle(known) in text for known in group[:_TRIED])]


def _middle(text: str) -> str:
    return text[len(text) // 2 :][:16]


def _known(groups: Iterable[Sequence[str]]) -> bytes:
    """Return texts as zlib takes them for what both sides know: the last 25 kB."""
    return "\n".join(text for group in groups for text in group).encode(errors="replace")[-_REACH:]


def _packer(known: bytes) -> zlib._Compress:
    """Return a packer that knows a text; its copies need not read it again."""
    return zlib.compressobj(_LEVEL, zdict=known) if known else zlib.compressobj(_LEVEL)


def _deflated(text: str, empty: zlib._Compress) -> bytes:
    packer = empty.copy()
    return packer.compress(text.encode(errors="replace")) + packer.flush()


def _inflated(packed: str, known: bytes) -> bytes:
    inflater = zlib.decompressobj(zdict=known) if known else zlib.decompressobj()
    text = inflater.decompress(b64decode(packed), _MOST_BYTES)
    if inflater.unconsumed_tail:
        raise ValueError("too large")
    return text
