"""Closes language models at the end of their use."""

from __future__ import annotations

import logging
from collections.abc import Callable

from saeval._util import without_secrets
from saeval.plugin.base import LLM

log = logging.getLogger("saeval")


async def close(role: str, model: str, llm: LLM, tell: Callable[[str], None]) -> None:
    """Release the connections of a language model; if that fails, warn, since all its answers are saved.

    Args:
        role: Its role.
        model: The model as the spec names it.
        llm: The plugin.
        tell: Called with the warning.
    """
    try:
        await llm.aclose()
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything
        text = f"{role}: closing {model} failed ({without_secrets(f'{type(error).__name__}: {error}')})"
        log.warning(text)
        tell(text)
