"""Packs prompts and replies for readers who have the windows that prompts hold."""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from typing import Final

from saeval._util.shared_text import without_shared

LEFT_OUT: Final = "left out"
"""Status of the entry that says how many more prompts there were, in place of a prompt."""

_MOST_BYTES = 1 << 28
"""Bytes of prompts and replies that are unpacked; a few kilobytes of somebody's can claim to be gigabytes."""
_REACH, _PART = 25_000, 6_000  # bytes known to both sides, and of a part; zlib looks back 32 kB
_LEVEL = 6  # of zlib; 9 takes five times as long for 0.1 % less

Call = tuple[str, str, str]
"""Prompt, reply and status."""


def packed_calls(calls: Sequence[Call], windows: Iterable[str] = ()) -> str:
    """Return calls as a short text.

    Parts follow a `.` each, in base64: zlib's format, with the last 25,000 bytes of the windows' texts, joined by line
    ends, as its dictionary. The first part is JSON of what all prompts begin and end with; the others are JSON of what
    is between, reply and status of some calls each. The script of reports unpacks it, too.

    Args:
        calls: The calls.
        windows: Texts of the latent's windows, which prompts hold.
    """
    before, after, prompts = without_shared([prompt for prompt, _, status in calls if status != LEFT_OUT])
    asked = iter(prompts)
    rest = [(prompt if status == LEFT_OUT else next(asked), reply, status) for prompt, reply, status in calls]
    empty = _packer(_known(windows))
    # A part is short enough for all of what is known to be in reach of its end.
    parts = [json.dumps([before, after], ensure_ascii=False)]
    begin, size = 0, 0
    for end, (prompt, reply, _) in enumerate(rest, 1):
        size += len(prompt) + len(reply)
        if size > _PART or end == len(rest):
            parts.append(json.dumps(rest[begin:end], ensure_ascii=False))
            begin, size = end, 0
    return "".join(f".{b64encode(_deflated(part, empty)).decode()}" for part in parts)


def unpacked_calls(packed: str, windows: Iterable[str] = ()) -> list[Call]:
    """Return what `packed_calls` was given with these windows.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        if not packed.startswith("."):  # as earlier versions packed
            return [(prompt, reply, status) for prompt, reply, status in json.loads(_inflated(packed, b""))]
        known = _known(windows)
        head, *parts = (json.loads(_inflated(part, known)) for part in packed[1:].split("."))
        before, after = head
        rest = [(prompt, reply, status) for part in parts for prompt, reply, status in part]
        return [(p if status == LEFT_OUT else f"{before}{p}{after}", reply, status) for p, reply, status in rest]
    except (TypeError, AttributeError, zlib.error, RecursionError) as error:
        raise ValueError("it cannot be unpacked") from error


def _known(windows: Iterable[str]) -> bytes:
    """Return windows as zlib takes them for text that both sides know: the last 25 kB."""
    return "\n".join(windows).encode(errors="replace")[-_REACH:]


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
