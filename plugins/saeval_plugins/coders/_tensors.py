"""Reads tensor files (safetensors, NumPy, PyTorch, JSON) without running code in them."""

from __future__ import annotations

import errno
import json
import math
from typing import IO, TYPE_CHECKING, Any, TypeVar

from saeval.plugin import InputError, check_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

T = TypeVar("T")
_LFS = b"version https://git-lfs"  # beginning of the pointer that replaces a large file if Git LFS is not installed
SUFFIXES = (".safetensors", ".npz", ".npy", ".pt", ".pth", ".json")


def read_json(label: str, path: Path) -> dict[str, Any]:
    """Read a configuration.

    Raises:
        InputError: If it is not a JSON mapping.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{label}: {path.name} cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"{label}: {path.name} does not contain a JSON object")
    return config


def positive(label: str, config: Mapping[str, Any], *names: str) -> None:
    """Check that sizes in a configuration are positive whole numbers.

    Raises:
        InputError: If one is not.
    """
    for name in names:
        if type(config.get(name)) is not int or config[name] < 1:
            raise InputError(f"{label}: {name} is {config.get(name)!r}; it must be a positive whole number")


def read_tensors(label: str, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, as float32 on the CPU; an unnamed tensor gets the name "".

    Raises:
        InputError: If the file is damaged, contains anything but tensors, or a value that is not finite. Only a
            threshold may be infinite, because this is how pruned latents are kept silent.
    """
    tensors = {name: tensor.float() for name, tensor in _opened(label, path, _READERS[path.suffix]).items()}
    for name, tensor in tensors.items():
        allowed = tensor.isfinite()
        if name == "threshold":
            allowed |= tensor == float("inf")
        if not allowed.all():
            named = f"{name} contains" if name else "it contains"
            raise InputError(f"{label}: {named} NaN or infinite values; its training probably diverged, use another")
    return tensors


def tensor_shapes(label: str, path: Path) -> dict[str, list[int]]:
    """Return the shapes of the tensors of a `.safetensors` or `.npz` file by name, without reading the tensors.

    Raises:
        InputError: If the file is damaged.
    """
    return _opened(label, path, {".safetensors": _safetensors_shapes, ".npz": _npz_shapes}[path.suffix])


def pickled(label: str, path: Path) -> bytes:
    """Return the raw pickle of a `torch.save` file, after checking that the file is complete.

    Raises:
        InputError: If the file is damaged, or was not written by torch.save.
    """
    return _opened(label, path, _pickled)


def check_shapes(
    label: str,
    file: str,
    seen: Mapping[str, list[int]],
    wanted: Mapping[str, list[int]],
    architecture: str,
    ignored: Collection[str] = (),
) -> None:
    """Compare names and shapes of tensors with those the architecture requires.

    Args:
        label: The coder's name in messages.
        file: Name of the file.
        seen: Shapes found.
        wanted: Shapes required.
        architecture: The coder's declared architecture.
        ignored: Names of tensors that may also be present.

    Raises:
        InputError: If a tensor is missing, unexpected, or of another shape.
    """
    if missing := sorted(wanted.keys() - seen.keys()):
        raise InputError(f"{label}: {file} lacks {', '.join(missing)}, which {architecture!r} needs")
    if extra := sorted(seen.keys() - wanted.keys() - set(ignored)):
        raise InputError(
            f"{label}: {file} has {', '.join(extra)}, which {architecture!r} does not have; check the architecture"
        )
    for name, shape in wanted.items():
        if seen[name] != shape:
            raise InputError(
                f"{label}: {name} has shape {seen[name]}, but its configuration and other tensors require {shape}"
            )


def _opened(label: str, path: Path, read: Callable[[Path], T]) -> T:
    """Call a reader, and turn its errors into messages about the file."""
    import pickle
    import zipfile
    import zlib

    from safetensors import SafetensorError

    try:
        return read(path)
    except (pickle.UnpicklingError, _NotTensors) as error:
        what = str(error) if isinstance(error, _NotTensors) else "executable code, or something that is not a tensor"
        raise InputError(
            f"{label}: {path.name} contains {what}, but saeval reads weights only; save its tensors alone, as "
            "`.safetensors` or a state dict"
        ) from None
    except (
        OSError,
        ValueError,
        RuntimeError,
        EOFError,
        KeyError,
        RecursionError,
        SafetensorError,
        zipfile.BadZipFile,
        zlib.error,
    ) as e:
        if isinstance(e, OSError) and e.errno not in (None, errno.EINVAL):  # these two also occur for truncated files
            raise InputError(f"{label}: {path.name} cannot be read ({e.strerror})") from None
        if _starts_with(path, _LFS):
            raise InputError(f"{label}: {path.name} is a Git LFS pointer; run `git lfs pull` in its folder") from None
        line = (str(e).strip().splitlines() or [type(e).__name__])[0][:150]
        raise InputError(f"{label}: {path.name} is damaged or truncated ({line}); copy it again") from None


def _starts_with(path: Path, head: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(head)) == head


class _NotTensors(Exception):
    """Raised for a file that contains something other than tensors."""


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    check_memory(str(path), _as_float32(_safetensors_shapes(path)))
    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def _safetensors_shapes(path: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as tensors:
        return {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def _npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    check_memory(str(path), _as_float32(_npz_shapes(path)))
    with np.load(path, allow_pickle=False) as arrays:
        return {name: _from_numpy(arrays[name]) for name in arrays.files}


def _npz_shapes(path: Path) -> dict[str, list[int]]:
    import zipfile

    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                shapes[member.filename.removesuffix(".npy")] = _npy_shape(file, member.file_size)
    return shapes


def _pickled(path: Path) -> bytes:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            archive.open(member).close()
        name = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        if name is None:
            raise ValueError("it contains no data.pkl")
        return archive.read(name)


def _npy(path: Path) -> dict[str, Tensor]:
    import numpy as np

    with path.open("rb") as file:
        check_memory(str(path), _as_float32({"": _npy_shape(file, path.stat().st_size)}))
    return {"": _from_numpy(np.load(path, allow_pickle=False))}


def _npy_shape(file: IO[bytes], size: int) -> list[int]:
    """Return the shape in an array's header, after checking that the file has enough bytes for it.

    Args:
        file: The file, or a member of an archive.
        size: Its size in bytes.
    """
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise _NotTensors("Python objects")
    claimed, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if claimed > there or min(shape, default=0) < 0:
        raise ValueError(f"its header claims {claimed:,} bytes, but only {there:,} exist")
    return list(shape)


def _as_float32(shapes: Mapping[str, Sequence[int]]) -> int:
    """Return the memory that tensors take as float32, in bytes."""
    return sum(4 * math.prod(shape) for shape in shapes.values())


def _from_numpy(array: Any) -> Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _torch(path: Path) -> dict[str, Tensor]:
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    named = {"": content} if torch.is_tensor(content) else content
    if not isinstance(named, dict):
        raise _NotTensors(f"a {type(content).__name__}")
    for name, value in named.items():
        if not torch.is_tensor(value):
            raise _NotTensors(f"{name}, a {type(value).__name__}")
    return {str(name): value.detach() for name, value in named.items()}


def _json(path: Path) -> dict[str, Tensor]:
    import torch

    content = json.loads(path.read_text(encoding="utf-8"))
    named = content if isinstance(content, dict) else {"": content}
    try:
        return {name: torch.tensor(value, dtype=torch.float32) for name, value in named.items()}
    except TypeError:
        raise _NotTensors("something other than lists of numbers") from None


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".safetensors": _safetensors, ".npz": _npz, ".npy": _npy, ".pt": _torch, ".pth": _torch, ".json": _json,
}  # fmt: skip
