"""Reads how long a server asks to wait, from headers or an error body."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
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
_ZERO = re.compile(r"0+(?:\.0+)?")
_EPOCH = 1e9  # larger numbers are dates, in seconds since 1970
_PREFIXES = ("x-ratelimit-", "anthropic-ratelimit-", "ratelimit-")
_LIMITS = ("requests", "tokens", "input-tokens", "output-tokens")
_RATE_LIMIT = 429
_OVERLOADED = (503, 529)


def wait_asked_for(headers: Mapping[str, str], body: str = "", status: int | None = _RATE_LIMIT) -> float | None:
    """Return the seconds a server asks to wait; None if it states nothing that can be read.

    Reads the headers `Retry-After`, `retry-after-ms`, and those with the reset time of a rate limit: OpenAI's and
    Anthropic's headers per limit, and `RateLimit-Reset` with its variants. In bodies, reads sentences ("try again in
    1m30s") and fields (Gemini's `retryDelay`, Hugging Face's `estimated_time`).

    Many servers send the reset times with every response. They count only if a limit can be the reason of the error.

    Args:
        headers: The response's headers; names are matched case-insensitively.
        body: The response's body.
        status: The response's status.
    """
    found = {name.lower(): str(value) for name, value in headers.items()}
    milliseconds = _number(found.get("retry-after-ms", ""))
    stated = (None if milliseconds is None else milliseconds / 1000, _seconds(found.get("retry-after", "")))
    for seconds in (*stated, _in_words(body), _until_reset(found, status)):
        if seconds is not None:
            return seconds
    return None


def _until_reset(headers: Mapping[str, str], status: int | None) -> float | None:
    """Return the seconds until the exhausted limits reset; None if no limit is the reason of the error.

    If none of the limits with a reset time is marked as exhausted, the latest reset counts: after a rate limit, and
    after an overload if any limit is marked.
    """
    used_up, resets = [], []
    for reset, remaining in _limit_headers():
        seconds = _first(_seconds(headers.get(name, "")) for name in reset)
        if seconds is not None:
            resets.append(seconds)
            used_up += [seconds] if _any_is_0(headers, remaining) else []
    if used_up:
        return max(used_up)
    every = [name for name in headers if "ratelimit" in name and "remaining" in name]
    limited = status == _RATE_LIMIT or (status in _OVERLOADED and _any_is_0(headers, every))
    return max(resets, default=None) if limited else None


def _limit_headers() -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield each limit's header names: those of its reset time, and those of what remains of it."""
    for prefix in _PREFIXES:
        for limit in _LIMITS:
            yield (
                (f"{prefix}reset-{limit}", f"{prefix}{limit}-reset"),
                (f"{prefix}remaining-{limit}", f"{prefix}{limit}-remaining"),
            )
        for reset in ("reset", "reset-after"):
            yield (prefix + reset,), (f"{prefix}remaining",)


def _any_is_0(headers: Mapping[str, str], names: Iterable[str]) -> bool:
    return any(_ZERO.fullmatch(headers.get(name, "").strip()) for name in names)


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
    except (ValueError, OverflowError):
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
