"""The first stage: make the activation store of every cell, in as few model passes as possible, or find it in the cache."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from saeval.assets import cache_dir
from saeval.errors import StoreError
from saeval.interfaces import ActivationSource
from saeval.progress import Display
from saeval.seeding import content_hash
from saeval.store import ActivationStore, ActivationWriter

if TYPE_CHECKING:
    from saeval.task import Part

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_VERIFY_BELOW = 2 << 30  # bytes; larger stores are verified by `saeval doctor --store`


def store_path(source: Part[ActivationSource]) -> Path:
    """Return where the store of a source is kept: its name is a hash of all that its content depends on."""
    return cache_dir() / "stores" / content_hash(source.identity)


def collect(sources: Mapping[str, Part[ActivationSource]], display: Display) -> dict[str, ActivationStore]:
    """Return the store of every source, collecting those that are not in the cache.

    Args:
        sources: Sources by cell name.
        display: Where progress is shown.

    Raises:
        InputError: If a model, coder or corpus is missing or does not fit.
        StoreError: If a source breaks its contract.
    """
    for names in passes(sources, display):
        group = [store_path(sources[name]) for name in names]
        try:
            _collect_group([sources[name].plugin for name in names], group, display)
        except OSError as error:
            # numpy says so many bytes were "requested" and so few "written", and no more.
            no_room = error.errno in _NO_ROOM or "requested and" in str(error)
            if not no_room and not str(error.filename or "").startswith(str(cache_dir())):
                raise  # a file of the source's own
            raise StoreError(
                f"{error.filename or cache_dir()}: activations cannot be written ({error.strerror or error}); make room, or set "
                "SAEVAL_CACHE to another folder, and run the same command again"
            ) from None
    return {name: ActivationStore.open(store_path(part)) for name, part in sources.items()}


def passes(sources: Mapping[str, Part[ActivationSource]], display: Display) -> list[list[str]]:
    """Return the cells whose stores are not in the cache, those together that share a model pass.

    Args:
        sources: Sources by cell name.
        display: Where is said what is damaged.
    """
    by_path = {store_path(part): name for name, part in sources.items()}
    groups: dict[str, list[str]] = {}
    for name in [name for path, name in by_path.items() if _usable(path, display) is None]:
        part = sources[name]
        groups.setdefault(content_hash(part.loaded.id, part.plugin.shares()), []).append(name)
    return list(groups.values())


def _usable(path: Path, display: Display) -> ActivationStore | None:
    if not path.exists():
        return None
    size = sum(f.stat().st_size for f in path.iterdir())
    try:
        return ActivationStore.open(path, verify=size < _VERIFY_BELOW)
    except StoreError as error:
        display.say(f"cached activations are damaged and are collected again: {error}")
        shutil.rmtree(path)
        return None


def _locked(path: Path, display: Display) -> AbstractContextManager[object]:
    """Return the lock of a store, taken; the operating system drops it when its process dies, however it dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        display.wait("collect activations: waiting for another saeval process, which collects the same ones")
        return lock.acquire()


def _collect_group(sources: Sequence[ActivationSource], paths: Sequence[Path], display: Display) -> None:
    """Collect sources that share a model pass; a lock each keeps two processes from doing the same work."""
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for path in sorted(paths):  # one order for all processes, so that they cannot wait for each other
            stack.enter_context(_locked(path, display))
        todo = [(s, p) for s, p in zip(sources, paths, strict=True) if not p.exists()]
        if not todo:
            return
        with display.stage("collect activations", 0, "tokens") as stage:
            writers = [ActivationWriter(path, progress=stage.reach) for _, path in todo]
            type(todo[0][0]).collect_many([s for s, _ in todo], writers)
            for (source, _), writer in zip(todo, writers, strict=True):
                if source.synthetic:
                    writer.note(synthetic=True)  # stays with the store wherever it is taken
                writer.finish()
