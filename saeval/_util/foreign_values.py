"""Turns values of other libraries (numpy, torch, Arrow, pydantic) into plain data, as YAML would contain it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

_CONVERSIONS = ("tolist", "to_pylist", "as_py")
"""Methods of numpy's and torch's, of Arrow's columns, and of Arrow's single values."""


def plain_values(value: Any) -> Any:
    """Return a value with numbers, arrays, columns, ranges, tuples, paths and models in it as plain data.

    Other values, such as strings of a subclass, are returned as they are.

    Example:
        >>> import numpy as np
        >>> plain_values({"n": np.int64(2), "indices": np.array([1, 2]), "rest": range(2)})
        {'n': 2, 'indices': [1, 2], 'rest': [0, 1]}
    """
    if isinstance(value, Mapping):
        return {key: plain_values(inner) for key, inner in value.items()}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(value, list | tuple | range):
        return [plain_values(inner) for inner in value]
    if isinstance(value, PurePath):
        return str(value)
    for name in _CONVERSIONS:
        convert = None if isinstance(value, type) else getattr(value, name, None)
        if callable(convert):
            return convert()
    return value
