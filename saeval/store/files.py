"""What the writer and the reader of a store must agree on."""

from __future__ import annotations

import hashlib
from pathlib import Path

FORMAT = "saeval.store/1"


def checksum(path: Path) -> str:
    """Return the hash of a file's content."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
