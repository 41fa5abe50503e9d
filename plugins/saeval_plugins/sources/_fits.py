"""Caches measurements of coders that baselines copy (such as L0), so that they are made once."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from saeval.plugin import InputError, cache_dir, content_hash, write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from saeval.plugin import ActivationSource

    Arrays = Mapping[str, NDArray[np.floating]]

_VERSION = 1  # increase it when measurements change


def cached_fit(source: ActivationSource, measure: Callable[[], Arrays]) -> Arrays:
    """Return arrays from the cache, or measure and cache them.

    Args:
        source: The source that reads the coder; its fingerprint covers everything that the arrays depend on.
        measure: Computes the arrays.
    """
    import numpy as np

    file = cache_dir() / "fits" / f"{content_hash('fit', _VERSION, source.fingerprint())}.npz"
    with suppress(OSError, ValueError, EOFError, zipfile.BadZipFile), np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
    found = measure()
    packed = io.BytesIO()
    np.savez(packed, **found)
    with suppress(OSError, InputError):  # it is then measured again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, packed.getvalue())
    return found
