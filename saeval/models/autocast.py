"""Keeps mixed precision of the calling code, such as a training loop, out of a run."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def without_autocast() -> Iterator[None]:
    """Within this context, compute in the precision of the model although the caller's code uses `torch.autocast`.

    Activations are cached by the model and its precision. Autocast would change those computed in the caller's thread
    only, and later runs would read them from the cache.
    """
    torch = sys.modules.get("torch")
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch is not None and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
