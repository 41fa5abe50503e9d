"""Checks the environment a run depends on. Makes no network calls and shows no key."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from saeval._util import InputError, StoreError, cache_dir, counted, refuse_malicious
from saeval.plugin.registry import Registry

_LITTLE = 5e9  # free bytes on the cache's disk below which a note is shown
_KEYS = re.compile(r".*_API_KEY|HF_TOKEN|HUGGING_FACE_HUB_TOKEN|AWS_SECRET_ACCESS_KEY|GOOGLE_APPLICATION_CREDENTIALS")


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        what: What was checked.
        status: `ok`, `wrong` if runs may fail, or `note` for other information.
        text: The result in words.
    """

    what: str
    status: Literal["ok", "note", "wrong"]
    text: str


def examine(store: Path | None = None) -> Iterator[Check]:
    """Run all checks; with a store, also read it completely and compare its checksums.

    Args:
        store: Directory of an activation store.
    """
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield from _packages()
    yield _malicious()
    yield _device()
    yield _cache()
    yield from _stores() if store is None else [_verified(store)]
    yield from _plugins()
    offline = [
        name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name) not in (None, "", "0")
    ]
    yield Check("network", "ok", f"hub access is off ({', '.join(offline)})" if offline else "hub access is on")
    keys = sorted(name for name, value in os.environ.items() if value and _KEYS.fullmatch(name))
    yield Check("keys", "ok", ", ".join(keys) or "none in the environment; models over HTTP may need one")


def _packages() -> Iterator[Check]:
    """Yield saeval's requirements, and whether a matching version is installed."""
    from packaging.requirements import Requirement

    yield Check("saeval", "ok", version("saeval"))
    for requirement in map(Requirement, requires("saeval") or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            yield Check(requirement.name, "wrong", f"is not installed: pip install '{requirement}'")
            continue
        fits = requirement.specifier.contains(installed, prereleases=True)
        text = installed if fits else f"version {installed} is not supported: pip install '{requirement}'"
        yield Check(requirement.name, "ok" if fits else "wrong", text)


def _malicious() -> Check:
    try:
        refuse_malicious("litellm")
    except InputError as error:
        return Check("malicious releases", "wrong", str(error))
    return Check("malicious releases", "ok", "no known one is installed")


def _device() -> Check:
    try:
        import torch
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything
        return Check("device", "wrong", f"torch cannot be imported ({type(error).__name__}: {error})")
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        return Check("device", "ok", f"{card.name}, {card.total_memory / 2**30:.0f} GiB; `device: auto` uses it")
    return Check("device", "ok", f"CPU, {os.cpu_count()} cores; no CUDA device")


def _cache() -> Check:
    """Return the free space of the cache, and whether it is writable."""
    place = cache_dir()
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = error.strerror or error
        return Check("cache", "wrong", f"{place}: cannot be written to ({reason}); set SAEVAL_CACHE to another folder")
    free = shutil.disk_usage(there).free
    text = f"{place}: {free / 1e9:.1f} GB free"
    return Check("cache", "note" if free < _LITTLE else "ok", text)


def _stores() -> Iterator[Check]:
    """Check that the files of the cache's stores exist; only `--store` reads them completely."""
    from saeval.activations import ActivationStore

    folder = cache_dir() / "stores"
    stores = sorted(manifest.parent for manifest in folder.glob("*/manifest.json"))
    for store in stores:
        try:
            ActivationStore.open(store)
        except (StoreError, OSError, ValueError) as error:
            yield Check("store", "wrong", str(error))
    yield Check("stores", "ok", f"{len(stores)} in the cache")


def _verified(store: Path) -> Check:
    from saeval.activations import ActivationStore

    try:
        opened = ActivationStore.open(store, verify=True)
    except (StoreError, OSError, ValueError) as error:
        return Check("store", "wrong", str(error))
    text = f"{store}: complete; {opened.n_latents:,} latents, {opened.n_tokens:,} tokens, all checksums match"
    return Check("store", "ok", text)


def _plugins() -> Iterator[Check]:
    rows = Registry().plugins()
    for row in rows:
        if row.status != "ok":
            yield Check("plugin", "note", f"{row.distribution} {row.version}: {row.reason}")
    yield Check("plugins", "ok", counted(sum(row.status == "ok" for row in rows), "package"))
