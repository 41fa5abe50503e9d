"""Compresses prompts and replies for readers that already have the windows in the prompts."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from pydantic_core import from_json, to_json

from saeval._util.deflate import deflated, inflated
from saeval._util.shared_text import without_shared

LEFT_OUT: Final = "left out"
"""Status of the entry that counts the prompts not kept."""

_MOST_BYTES = 1 << 28
"""Maximum bytes to decompress, since a few kilobytes may expand to gigabytes (zip bomb)."""
_WINDOW = 31_000  # bytes of dictionary and part together, within zlib's window of 32 kB
_REACH = 25_000  # maximum bytes of the dictionary
_TRIED = 3  # texts per group to search for in the prompts
_NONE = "-"

Call = tuple[str, str, str]
"""Prompt, reply and status."""


def packed_calls(
    calls: Sequence[Call],
    windows: Sequence[Sequence[str]] = (),
    templates: Sequence[str] = (),
    spell: Callable[[bytes], str] = lambda packed: b64encode(packed).decode(),
) -> str:
    """Compress calls to a short text.

    The format begins with the numbers of the groups of known texts that occur in prompts, `-` for none; each template
    is a group after the groups of windows. Then follow parts, each a `.` and zlib data. The zlib dictionary is the last
    25,000 bytes of the texts in these groups, joined by line breaks. Each part is a JSON list. The first entry overall
    is the common start and end of all prompts; every other entry is the remainder of the prompt, reply and status of a
    call. The script in HTML reports unpacks it, too.

    Args:
        calls: The calls.
        windows: Texts of the latent's windows, which may occur in the prompts, by group.
        templates: Texts of the prompts' templates.
        spell: Encodes bytes as text without a `.`; default: base64.
    """
    before, after, prompts = without_shared([prompt for prompt, _, status in calls if status != LEFT_OUT])
    asked = iter(prompts)
    rest = [(prompt if status == LEFT_OUT else next(asked), reply, status) for prompt, reply, status in calls]
    groups = _groups(windows, templates)
    held = _held(groups, "\n".join([before, *prompts, after]))
    known = _known([groups[k] for k in held])
    # Parts are short enough that the whole dictionary is within zlib's window at their end.
    parts: list[list[Any]] = [[[before, after]]]
    size = 0
    for call in rest:
        length = len(call[0]) + len(call[1])
        if size and size + length > _WINDOW - len(known):
            parts.append([])
            size = 0
        parts[-1].append(call)
        size += length
    return ".".join(["".join(map(str, held)) or _NONE, *(spell(deflated(_as_json(part), known)) for part in parts)])


def unpacked_calls(packed: str, windows: Sequence[Sequence[str]] = (), templates: Sequence[str] = ()) -> list[Call]:
    """Return the calls from the output of `packed_calls` (in base64), given the same windows and templates.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        held, *parts = packed.split(".")
        if not parts:  # format of earlier versions
            return [(prompt, reply, status) for prompt, reply, status in json.loads(inflated(packed, _MOST_BYTES))]
        groups = _groups(windows, templates)
        named = [] if held == _NONE else map(int, held)
        known = _known([groups[k] for k in named] if held else windows)  # earlier: all windows
        lists = [_from_json(inflated(part, _MOST_BYTES, known)) for part in parts]
        (before, after), *rest = (entry for entries in lists for entry in entries) if held else _earlier(lists)
        return [(p if status == LEFT_OUT else f"{before}{p}{after}", reply, status) for p, reply, status in rest]
    except (TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError("it cannot be unpacked") from error


def _earlier(lists: Sequence[Any]) -> list[Any]:
    """Return the entries in the format of earlier versions, whose first part is the common start and end."""
    head, *parts = lists
    return [head, *(entry for part in parts for entry in part)]


def _groups(windows: Sequence[Sequence[str]], templates: Sequence[str]) -> list[Sequence[str]]:
    """Return the groups of known texts, at most ten so that their numbers have one digit."""
    return [*windows, *([template] for template in templates)][:10]


def _held(groups: Sequence[Sequence[str]], text: str) -> list[int]:
    """Return the numbers of the groups of which one of the first texts occurs in `text`, found by its middle part."""
    return [k for k, group in enumerate(groups) if any(_middle(known) in text for known in group[:_TRIED])]


def _middle(text: str) -> str:
    return text[len(text) // 2 :][:16]


def _known(groups: Iterable[Sequence[str]]) -> bytes:
    """Return the zlib dictionary: the last 25 kB of the texts."""
    return "\n".join(text for group in groups for text in group).encode(errors="replace")[-_REACH:]


def _from_json(content: bytes) -> Any:
    try:
        return from_json(content)  # three times as fast as the standard library
    except ValueError:  # unpaired surrogates of earlier versions
        return json.loads(content)


def _as_json(part: Sequence[Any]) -> bytes:
    try:
        return to_json(part)  # five times as fast as the standard library
    except ValueError:  # unpaired surrogates
        return json.dumps(part, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
