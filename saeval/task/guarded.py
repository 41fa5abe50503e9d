"""Calls methods of plugins whose failure must not end a run."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pydantic import JsonValue, TypeAdapter

from saeval._util import without_secrets
from saeval.plugin.base import ActivationSource

_OPTIONS: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])

log = logging.getLogger("saeval")


def said_by(label: str, cautions: Callable[..., object], *arguments: object) -> list[str]:
    """Return the cautions of a plugin; if it raises or returns no list of sentences, a caution that says so.

    Args:
        label: Name of the plugin.
        cautions: Its method `cautions`.
        *arguments: What the method is called with.
    """
    try:
        said = cautions(*arguments)
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything; the scores are paid for
        return [f"its cautions are unknown, because {label} raised {without_secrets(_sentence(error))}"]
    if isinstance(said, list | tuple) and all(isinstance(caution, str) for caution in said):
        return list(said)
    return [f"its cautions are unknown, because {label} returned {type(said).__name__} instead of a list of sentences"]


def text_options_of(source: ActivationSource) -> dict[str, JsonValue]:
    """Return a source's `text_options`; none if it raises or returns anything but a mapping of JSON values."""
    try:
        return _OPTIONS.validate_python(source.text_options())
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything; the scores are paid for
        log.info("no text options: %s", without_secrets(_sentence(error)))
        return {}


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
