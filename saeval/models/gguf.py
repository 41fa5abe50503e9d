"""Speeds up loading of GGUF files with transformers several times, with equal results.

transformers 5 reads the header of a GGUF file three times (tokenizer, configuration, weights), through
`gguf.GGUFReader`, which creates NumPy views of the memory-mapped file for every string of the vocabulary: half a minute
for 262,144 strings. Here the header is read once, through plain buffers. And `gguf` unpacks quantized weights 16 rows
at a time, of which a vocabulary has thousands; here it unpacks a quarter of a million values at a time.
"""

from __future__ import annotations

import math
import struct
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeval._util import InputError, os_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

_STRING, _ARRAY = 8, 9  # GGUF's numbers of the value types without a fixed size
_AT_ONCE = 1 << 18  # values unpacked at a time, so that intermediate results stay in the processor's cache


def check_gguf(path: Path) -> None:
    """Check that the header and length of a GGUF file are valid.

    Raises:
        InputError: If the file is damaged or truncated, or the package gguf is missing.
    """
    _reader(path)


@contextmanager
def fast_gguf(path: Path) -> Iterator[None]:
    """Within this context, transformers loads this GGUF file fast and without progress bars.

    It changes transformers for all threads: hold `LOADING`.

    Raises:
        InputError: If the package gguf is missing or the file is not a complete GGUF file.
    """
    from unittest.mock import patch

    gguf = _package(path)
    from gguf import quants
    from transformers import modeling_gguf_pytorch_utils as loader

    if not hasattr(loader, "_gguf_parse_value"):  # a version of transformers that reads headers differently
        yield
        return
    plain_reader, plain_parse = gguf.GGUFReader, loader._gguf_parse_value

    def parse(value: Any, types: Any) -> Any:
        return value if isinstance(value, str | int | float) else plain_parse(value, types)

    reader = _reader(path)
    with (
        patch.object(gguf, "GGUFReader", lambda file: reader if Path(file) == path else plain_reader(file)),
        patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
        patch.object(loader, "_gguf_parse_value", parse),
        patch.object(loader, "tqdm", lambda items, **_: items),
        patch.object(quants, "_apply_over_grouped_rows", _unpacked, create=True),
    ):
        yield


def _unpacked(
    unpack: Callable[[NDArray[Any]], NDArray[Any]], arr: NDArray[Any], otype: Any, oshape: tuple[int, ...]
) -> NDArray[Any]:
    """Return packed weights in another type and shape, unpacked in groups of rows."""
    import numpy as np

    packed = arr.reshape(-1, arr.shape[-1])
    found = np.empty((len(packed), math.prod(oshape) // max(1, len(packed))), otype)
    step = max(1, _AT_ONCE // max(1, found.shape[1]))
    for begin in range(0, len(packed), step):
        found[begin : begin + step] = unpack(packed[begin : begin + step])
    return found.reshape(oshape)


def _package(path: Path) -> Any:
    try:
        import gguf
    except ImportError:
        raise InputError(f"model {path.name}: GGUF files need the package gguf: pip install gguf") from None
    return gguf


def _reader(path: Path) -> Any:
    _package(path)
    try:
        return _reader_class()(path)
    except OSError as error:
        raise InputError(f"model {path} cannot be read: {os_reason(error)}") from None
    except (ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise InputError(f"model {path}: not a complete GGUF file ({error}); fetch it again") from None


def _reader_class() -> type[Any]:
    import gguf
    import numpy as np

    class BufferReader(gguf.GGUFReader):  # type: ignore[misc]
        """A `GGUFReader` that slices one buffer, and returns arrays as Python values."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: str | None = None) -> Any:
            array = np.frombuffer(self.data, dtype, int(count), offset)
            order = override_order or self.byte_order
            return array if order == "I" else array.view(array.dtype.newbyteorder(order))

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
            if raw_type != _ARRAY or self.byte_order != "I":
                return super()._get_field_parts(orig_offs, raw_type)  # type: ignore[no-any-return]
            element, length = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
            kind, count, offset = gguf.GGUFValueType(int(element[0])), int(length[0]), orig_offs + 12
            if kind == _ARRAY or count == 0:
                return super()._get_field_parts(orig_offs, raw_type)  # type: ignore[no-any-return]
            if kind == _STRING:
                values = []
                buffer = memoryview(self.data)
                for _ in range(count):
                    (size,) = struct.unpack_from("<Q", buffer, offset)
                    offset += 8 + size
                    values.append(str(buffer[offset - size : offset], "utf-8"))
            else:
                array = self._get(offset, self.gguf_scalar_to_np[kind], count)
                values = array.tolist()
                offset += array.nbytes
            types = [gguf.GGUFValueType.ARRAY, kind]
            return offset - orig_offs, [element, length, *values], list(range(2, 2 + count)), types

    return BufferReader
