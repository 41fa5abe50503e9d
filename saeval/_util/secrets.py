"""Removes credentials from all output, by their values and by their patterns."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from saeval._util.spellings import escaped_pattern, find_encoded

MARK = "…"
"""What replaces a secret."""
SHORTEST = 8
"""Length of the shortest value to search for; shorter values are usually ordinary words."""

_ENVIRONMENT = re.compile(
    r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|COOKIE|BEARER|(?:^|_)(?:PASS|PWD|AUTH|SAS|PAT|JWT|DSN)$",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"(?:sk-)?(?:empty|none|null|undefined|placeholder|change-?me|secret|password|true|false"
    r"|(?:not?|no)-?(?:api-?)?(?:key|token)?-?(?:needed|required|used|set)?"
    r"|(?:your|my|fake|dummy|test|any|some|example)-?(?:api-?)?(?:key|token|secret)?)"
    r"|(.)\1*",
    re.IGNORECASE,
)
_SHAPES = (
    r"\b(?:sk|pk|rk|key|api)[-_](?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{6,}",
    r"\b(?:Bearer|Basic) [^\s\"']{6,}",
    r"\bgh[oprsu]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}|\bglpat-[\w-]{16,}",
    r"\bhf_[A-Za-z0-9]{16,}|\bgsk_[A-Za-z0-9]{16,}|\br8_[A-Za-z0-9]{16,}",
    r"\bnvapi-[\w-]{16,}|\bpplx-[A-Za-z0-9]{16,}|\bxai-[\w-]{16,}",
    r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}|\bAIza[\w-]{20,}|\bya29\.[\w-]{10,}",
    r"\bxox[abeoprs]-[\w-]{8,}|\bdapi[a-f0-9]{16,}",
    r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?|\bSG\.[\w-]{10,}\.[\w-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY-----",
)
_SHAPE = re.compile("|".join(_SHAPES), re.IGNORECASE)
_LOGIN = re.compile(r"(?<=//)[^\s/?#@\"']+@|[^\s/?#@:\"']+:[^\s/?#@\"']*@")
"""The user part of an address, also in misspelled addresses."""
_QUERY = re.compile(r"([?&#;])([\w.-]+)=([^\s&#;\"']+)")
_TYPED = re.compile(r"(?<![^\s'\"()=,:])[^\s'\"()=,:/\\]+(?![^\s'\"()=,:])")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")

_SECRET_WORDS = frozenset(
    (
        "secret",
        "secrets",
        "password",
        "passwd",
        "passphrase",
        "credential",
        "credentials",
        "apikey",
        "authorization",
        "cookie",
        "cookies",
        "bearer",
        "jwt",
        "accesskey",
        "authtoken",
        "accesstoken",
        "privatekey",
        "secretkey",
        "token",
    )
)
_MODEL_WORDS = frozenset(("key", "pass", "pwd", "auth", "sas", "sig", "signature", "pat", "psk", "otp"))
"""Words that name a secret in the options of a model, but have other meanings in the rest of a spec."""
_HARMLESS_TOKENS = frozenset(
    (
        "bos",
        "eos",
        "pad",
        "unk",
        "mask",
        "stop",
        "sep",
        "cls",
        "start",
        "end",
        "max",
        "min",
        "image",
        "first",
        "last",
        "next",
        "thinking",
    )
)
_NAMES = frozenset(("env", "id", "ids", "count", "limit", "type", "name", "file", "path"))
_RANDOM = re.compile(r"[A-Za-z0-9]{16,}")

_used: set[str] = set()


def register_secret(value: str) -> str:
    """Register a value as a credential, so that it is removed from all output; return it."""
    if _counts(value) and value not in _used:
        _used.add(value)
        _forget()
    return value


def without_values(text: str) -> str:
    """Return a text without the credentials of this process, in any encoding; the rest is not changed.

    For replies of models, in which text that only looks like a key may be part of the answer. If a credential is
    encoded such that its position cannot be determined, the whole text is replaced.
    """
    for spelling in _current():
        if spelling in text:
            text = text.replace(spelling, MARK)
    values = _values()
    if not values or not (found := find_encoded(text, values)):
        return text
    for spelling in found:
        text = escaped_pattern(spelling).sub(MARK, text)
    return MARK if find_encoded(text, values) else text


def may_hold_values(texts: Iterable[str]) -> bool:
    """Return whether `without_values` may change any of some texts; False means that it changes none.

    Paragraphs that texts share, as prompts do, are searched once. Nothing is iterated if no credential is known.
    """
    values = _values()
    if not values:
        return False
    whole = list(texts)
    if any(spelling in text for spelling in _current() for text in whole):
        return True
    paragraphs = dict.fromkeys(paragraph for text in whole for paragraph in text.split("\n\n"))
    return bool(find_encoded("\n\n".join(paragraphs), values))


def without_secrets(text: object) -> str:
    """Return a text without the credentials of this process, and without text that looks like a credential.

    Args:
        text: A message of a server, a library or a plugin.
    """
    refresh_environment()
    found = _SHAPE.sub(MARK, without_values(str(text)))
    found = _LOGIN.sub(f"{MARK}@", found) if "@" in found else found
    return _QUERY.sub(_query_without_secret, found) if "=" in found else found


def without_keys(typed: str) -> str:
    """Apply `without_secrets` to a text that quotes user input, and also remove random-looking words.

    Parts of paths are kept, since folder names may contain hashes.
    """
    return _TYPED.sub(_random_word, without_secrets(typed))


def refresh_environment() -> None:
    """Update the known credentials if the environment has changed; `without_values` does not, for speed."""
    if (now := _snapshot()) != _seen:
        _seen[:] = now
        _forget()


def names_credential(text: str) -> bool:
    """Return whether a text contains a credential of this process, in any encoding."""
    refresh_environment()
    return without_values(text) != text


def holds_secret(text: str) -> str | None:
    """Return why a text of a spec is or contains a credential (by its value or pattern), or None.

    For speed, the environment is not read: call `refresh_environment` before the first text of a spec.
    """
    if without_values(text) != text:
        return "holds a credential of your environment"
    if _SHAPE.search(text):
        return "looks like a key"
    if "://" in text or text.startswith("//"):
        if "@" in text.partition("//")[2].partition("/")[0]:
            return "is an address with a user name or password"
        if any(_names_secret(name) or random_looking(value) for _, name, value in _QUERY.findall(text)):
            return "is an address with a key"
    return None


def names_secret(name: str, *, of_model: bool) -> bool:
    """Return whether the name of an option indicates that its value is a credential.

    Args:
        name: The name, in any spelling: `api_key`, `Ocp-Apim-Subscription-Key`, `azureAdToken`.
        of_model: Whether it is an option of a language model, where `key` always means a credential.
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words or words[-1] in _NAMES:
        return False
    if words[-1] == "token" and len(words) > 1 and words[-2] in _HARMLESS_TOKENS:
        return False
    if len(words) > 1 and words[-1] == "key":
        return True
    found = _SECRET_WORDS | _MODEL_WORDS if of_model else _SECRET_WORDS
    return not found.isdisjoint((*words, *map("".join, pairwise(words))))


def random_looking(text: str) -> bool:
    """Return whether a text contains a long word with alternating letters and digits, as in keys."""
    return any(len(re.findall(r"[A-Za-z](?=\d)|\d(?=[A-Za-z])", word)) >= 3 for word in _RANDOM.findall(text))


def placeholder(value: str) -> bool:
    """Return whether a value is a placeholder key for servers without authentication: `EMPTY`, `not-needed`."""
    return bool(_PLACEHOLDER.fullmatch(value.replace("_", "-").replace(" ", "-")))


def _forget() -> None:
    _values.cache_clear()
    _current.cache_clear()


def _names_secret(name: str) -> bool:
    return names_secret(name, of_model=True)


def _query_without_secret(match: re.Match[str]) -> str:
    mark, name, value = match.groups()
    return f"{mark}{name}={MARK}" if _names_secret(name) or random_looking(value) else match[0]


def _random_word(match: re.Match[str]) -> str:
    return MARK if random_looking(match[0]) else match[0]


def _counts(value: str) -> bool:
    return len(value) >= SHORTEST and not placeholder(value)


def _snapshot() -> list[tuple[str, str]]:
    return [(name, value) for name, value in os.environ.items() if _ENVIRONMENT.search(name) or "@" in value]


_seen: list[tuple[str, str]] = []


def _environment() -> Iterator[str]:
    """Yield the credentials in the environment: values of variables with such names, and passwords in addresses."""
    for name, value in _seen:
        if _ENVIRONMENT.search(name) and not (value.startswith(("/", "~")) and Path(value).expanduser().exists()):
            yield value.strip()
        if login := re.search(r"//([^/@\s]+)@", value):
            yield login[1].partition(":")[2]


@lru_cache(maxsize=1)
def _values() -> frozenset[str]:
    """Return the credentials of this process."""
    if not _seen:
        _seen[:] = _snapshot()
    return frozenset(value for value in (*_used, *_environment()) if _counts(value))


@lru_cache(maxsize=1)
def _current() -> tuple[str, ...]:
    """Return all encodings of the credentials of this process, the longest first."""
    return tuple(sorted({s for value in _values() for s in _spellings(value)}, key=lambda s: (-len(s), s)))


def _spellings(value: str) -> Iterator[str]:
    """Yield a value, and its base64 forms at any offset in a longer text, so that they are found without decoding."""
    yield value
    for data in (value.encode(errors="replace"), value.encode("utf-16-le", errors="replace")):
        for before in range(3):
            coded = base64.b64encode(b"\0" * before + data).rstrip(b"=").decode()
            # The first and last characters depend on the text around the value.
            inner = coded[-(-before * 8 // 6) :][: (len(data) * 8 - (-before * 8) % 6) // 6]
            if len(inner) >= SHORTEST:
                yield from (inner, inner.replace("+", "-").replace("/", "_"))
