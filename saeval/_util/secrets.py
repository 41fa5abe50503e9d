"""Keep keys out of whatever is shown or written: errors, logs, ledgers and results."""

from __future__ import annotations

import os
import re

_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_KEY_LIKE = re.compile(
    r"\b(?:sk|pk|key|api)[-_](?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{6,}|\bBearer [^\s\"']{6,}", re.IGNORECASE
)


def without_secrets(text: object) -> str:
    """Return a text without the values of secret environment variables, and without what looks like a key.

    Args:
        text: What a server, a library or a plugin said.
    """
    found = str(text)
    for name, value in os.environ.items():
        if len(value) >= 6 and _NAME.search(name):
            found = found.replace(value, "…")
    return _KEY_LIKE.sub("…", found)
