"""Defines the manifest of a store and the shapes of its arrays."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from saeval._util import InputError, StoreError, cache_dir, content_hash, shortage

STORE_FORMAT = "saeval.store/1"
_Count = Annotated[int, Field(ge=0)]


class _File(BaseModel):
    model_config = ConfigDict(strict=True)

    bytes: _Count
    blake2b: str


class _Manifest(BaseModel):
    model_config = ConfigDict(strict=True)

    n_latents: _Count
    contexts: _Count
    length: Annotated[int, Field(ge=1)]
    lead: _Count
    n_tokens: _Count
    nonzeros: _Count
    latents: list[_Count] | None = None
    facts: dict[str, Any]
    files: dict[str, _File]


def store_folder(identity: Any) -> Path:
    """Return the cache folder of a source's store, named by the hash of everything that its content depends on."""
    return cache_dir() / "stores" / content_hash(identity)


def damaged(path: Path, what: str) -> StoreError | InputError:
    """Return the error for a file that is damaged, or that cannot be read because memory or disk is short."""
    if (short := shortage(sys.exception())) is not None:
        return InputError(f"{path}: cannot be read now, though it may be intact: {short}")
    return StoreError(f"{path}: {what}; delete the store's directory and collect again")


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a finished store.

    Raises:
        StoreError: If the store is unfinished, of another format, or the manifest is damaged.
    """
    file = path / "manifest.json"
    try:
        manifest: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path}: not a finished store (no manifest.json); collect it again") from None
    except (OSError, ValueError) as error:
        raise damaged(file, f"it cannot be read ({type(error).__name__})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != STORE_FORMAT:
        seen = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise StoreError(f"{path}: format {seen!r}; this saeval reads {STORE_FORMAT}")
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        raise damaged(file, f"{'.'.join(map(str, first['loc']))} is damaged ({first['msg']})") from None
    return manifest


def map_array(path: Path) -> np.ndarray[Any, Any]:
    """Memory-map the array of a `.npy` file without keeping the file open.

    `numpy.memmap` keeps one file descriptor per array, and a run has hundreds of arrays. The result is a plain array,
    because each slice of a memmap object costs microseconds.

    Raises:
        OSError, ValueError: If it cannot be read, or is not an array of plain numbers.
    """
    import pyarrow as pa

    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version}")
        read_head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_head(file)
        begin = file.tell()
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError("not plain numbers")
    size = math.prod(shape) * dtype.itemsize
    with pa.memory_map(str(path), "r") as mapped:
        mapped.seek(begin)
        data = mapped.read_buffer(size)
    if data.size < size:
        raise ValueError("cut short")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def read_array(path: Path, shape: tuple[int | None, ...], kinds: str) -> np.ndarray[Any, Any]:
    """Memory-map an array of a store.

    Args:
        path: Its file.
        shape: Required shape; None for any length.
        kinds: Allowed kinds of dtype, as numpy abbreviates them.

    Raises:
        StoreError: If the file is not an array, or shape or dtype do not match.
    """
    try:
        array = map_array(path)
    except FileNotFoundError:
        raise damaged(path, "it is missing") from None
    except Exception as error:  # noqa: BLE001 - numpy parses the header as Python code
        raise damaged(path, f"it is not an array ({type(error).__name__})") from None
    fits = array.ndim == len(shape) and all(b in (None, a) for a, b in zip(array.shape, shape, strict=True))
    if not fits or array.dtype.kind not in kinds:
        raise damaged(path, f"it contains {array.dtype} of shape {list(array.shape)}, which does not fit the manifest")
    return array


def checksum(path: Path) -> str:
    """Return the hash of a file's content."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
