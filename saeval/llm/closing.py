"""Closes language models at the end of their use."""

from __future__ import annotations

import logging
from collections.abc import Callable

from saeval._util import without_secrets
from saeval.llm.role import Asker

log = logging.getLogger("saeval")


async def close(asker: Asker, tell: Callable[[str], None]) -> None:
    """Release the connections of a language model; if that fails, warn, since all its answers are saved.

    Args:
        asker: The role.
        tell: Called with the warning.
    """
    try:
        await asker.llm.aclose()
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything
        text = f"{asker.role}: closing {asker.model} failed ({without_secrets(f'{type(error).__name__}: {error}')})"
        log.warning(text)
        tell(text)
