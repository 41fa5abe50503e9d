"""Reads how long a server asks to wait, from headers or an error body."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = r"\d+(?:\.\d+)?"
_UNIT = r"(?:ms|milliseconds?|s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:ours?)?)"
_PIECE = re.compile(rf"({_NUMBER})\s*({_UNIT})", re.IGNORECASE)
_DURATION = re.compile(rf"(?:{_NUMBER}\s*{_UNIT}[\s,]*)+", re.IGNORECASE)
_SENTENCE = re.compile(
    rf"(?:try|retry|available|wait|reset\w*)[^.\n]{{0,40}}?\b(?:in|after|for|about)\s+({_DURATION.pattern})",
    re.IGNORECASE,
)
_FIELD = re.compile(
    r"[\"'](retry_?after(?:_ms|_seconds)?|retry_?delay|estimated_time)[\"']\s*:\s*[\"']?([\d.]+)\s*(ms|s)?",
    re.IGNORECASE,
)
_EPOCH = 1e9  # larger numbers are dates, in seconds since 1970
_LIMITS = ("requests", "tokens", "input-tokens", "output-tokens")


def wait_asked_for(headers: Mapping[str, str], body: str = "") -> float | None:
    """Return the seconds a server asks to wait; None if it states nothing that can be read.

    Reads the headers `Retry-After`, `retry-after-ms`, and those with the reset time of a rate limit: OpenAI's and
    Anthropic's headers per limit, and `RateLimit-Reset` with its variants. In bodies, reads sentences ("try again in
    1m30s") and fields (Gemini's `retryDelay`, Hugging Face's `estimated_time`).

    Args:
        headers: The response's headers; names are matched case-insensitively.
        body: The response's body.
    """
    found = {name.lower(): str(value) for name, value in headers.items()}
    milliseconds = _number(found.get("retry-after-ms", ""))
    stated = (None if milliseconds is None else milliseconds / 1000, _seconds(found.get("retry-after", "")))
    for seconds in (*stated, _in_words(body), _until_reset(found)):
        if seconds is not None:
            return seconds
    return None


def _until_reset(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until the exhausted limit resets. If none is marked as exhausted, use the latest reset."""
    used_up, resets = [], []
    for prefix in ("x-ratelimit-", "anthropic-ratelimit-", "ratelimit-"):
        for limit in _LIMITS:
            names = (f"{prefix}reset-{limit}", f"{prefix}{limit}-reset")
            left = (f"{prefix}remaining-{limit}", f"{prefix}{limit}-remaining")
            seconds = _first(_seconds(headers.get(name, "")) for name in names)
            if seconds is not None:
                resets.append(seconds)
                used_up += [seconds] if "0" in [headers.get(name) for name in left] else []
        resets += [
            s for name in ("reset", "reset-after") if (s := _seconds(headers.get(prefix + name, ""))) is not None
        ]
    return max(used_up or resets, default=None)


def _first(values: Iterable[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)


def _in_words(body: str) -> float | None:
    if sentence := _SENTENCE.search(body):
        return _duration(sentence[1])
    if field := _FIELD.search(body):
        seconds = _number(field[2])
        scale = 1e-3 if field[1].lower().endswith("_ms") or field[3] == "ms" else 1.0
        return None if seconds is None else seconds * scale
    return None


def _seconds(text: str) -> float | None:
    """Return a header's value in seconds from now: a number, a duration such as `6m0s`, or a date."""
    number = _number(text)
    if number is not None:
        return max(0.0, number / (1000 if number > 1000 * _EPOCH else 1) - time.time()) if number > _EPOCH else number
    if _DURATION.fullmatch(text):
        return _duration(text)
    date = _date(text)
    return None if date is None else max(0.0, date.timestamp() - time.time())


def _date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _duration(text: str) -> float:
    return sum(float(number) * _unit(unit.lower()) for number, unit in _PIECE.findall(text))


def _unit(name: str) -> float:
    milliseconds = name == "ms" or name.startswith("milli")
    return _UNITS["ms" if milliseconds else name[0]]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None
