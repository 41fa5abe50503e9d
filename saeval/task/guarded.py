"""Calls methods of plugins whose failure must not end a run."""

from __future__ import annotations

from collections.abc import Callable

from saeval._util import without_secrets


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


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
