"""Keeps a lookup from waiting for the model hub."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_hub() -> Iterator[None]:
    """Make huggingface_hub use its cache only, as HF_HUB_OFFLINE does."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
