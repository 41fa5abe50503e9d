"""Collects the activation stores of all cells in as few model passes as possible, or finds them in the cache."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from saeval._util import Display, Stage, StoreError, cache_dir, content_hash, os_reason, watch_standstill
from saeval.activations import ActivationStore, ActivationWriter, store_folder
from saeval.plugin.base import ActivationSource

if TYPE_CHECKING:
    from saeval.task import Part

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_VERIFY_BELOW = 2 << 30  # bytes; larger stores are verified by `saeval doctor --store`


def store_path(source: Part[ActivationSource]) -> Path:
    """Return the folder of a source's store, named by the hash of everything that its content depends on."""
    return store_folder(source.identity)


def collect(
    sources: Mapping[str, Part[ActivationSource]],
    display: Display,
    work: Callable[[list[list[str]]], None] | None = None,
    standstill: float = math.inf,
) -> dict[str, ActivationStore]:
    """Return the store of every source, collecting those that are not in the cache.

    Args:
        sources: Sources by cell name.
        display: Shows the progress.
        work: Collects groups of cells that share a model pass; None to collect in this process.
        standstill: Seconds without progress after which a message is shown.

    Raises:
        InputError: If a model, coder or corpus is missing or does not fit.
        StoreError: If a source breaks its contract.
    """

    def here(groups: list[list[str]]) -> None:
        for names in groups:
            with collecting(display, 0, "tokens", standstill) as stage:
                collect_pass([sources[name] for name in names], progress=stage.reach)

    if groups := passes(sources, display):
        # Locks prevent two processes from collecting the same stores: the later one waits and then finds them done.
        with ExitStack() as stack:
            for path in sorted(store_path(sources[name]) for names in groups for name in names):
                stack.enter_context(_locked(path, display))  # in sorted order, to avoid deadlocks
            left = [[name for name in names if not store_path(sources[name]).exists()] for names in groups]
            if left := [names for names in left if names]:
                (work or here)(left)
                for path in (store_path(sources[name]) for names in left for name in names):
                    for useless in path.parent.glob(f"{path.name}.*.partial"):  # from processes that started late
                        shutil.rmtree(useless, ignore_errors=True)
    return {name: ActivationStore.open(store_path(part)) for name, part in sources.items()}


@contextmanager
def collecting(display: Display, total: int, unit: str, standstill: float) -> Iterator[Stage]:
    """Within this context, show the progress of collecting, and a message if it stalls (hang or large download)."""

    def tell(seconds: float) -> None:
        display.wait(
            f"collect activations: no progress for {seconds:.0f} s; if it hangs, stop it with Ctrl-C and rerun the "
            "same command, which resumes"
        )

    with (
        display.stage("collect activations", total, unit) as stage,
        watch_standstill(standstill, lambda: stage.moved, tell),
    ):
        yield stage


def collect_pass(
    sources: Sequence[Part[ActivationSource]],
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Collect sources that share a model pass.

    Args:
        sources: The sources; several only if `passes` groups them.
        share: This process's share of the corpus's shards, as (number, count); the last process makes the stores.
        progress: Called with tokens done and total tokens.

    Raises:
        InputError: If a model, coder or corpus is missing or does not fit.
        StoreError: If a source breaks its contract, or the disk is full.
    """
    from filelock import FileLock

    plugins, paths = [part.plugin for part in sources], [store_path(part) for part in sources]
    with _in_cache():
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        writers = [
            ActivationWriter(path, progress=progress, share=share, source=part.loaded.id)
            for part, path in zip(sources, paths, strict=True)
        ]
        type(plugins[0]).collect_many(plugins, writers)
        for source, path, writer in zip(plugins, paths, writers, strict=True):
            if source.synthetic:
                writer.note(synthetic=True)  # stored in the manifest, so that copies keep it
            if share[1] == 1:
                writer.finish()
                continue
            with FileLock(path.with_name(path.name + ".finish.lock")):
                if writer.complete and not path.exists():
                    writer.finish()


@contextmanager
def _in_cache() -> Iterator[None]:
    """Within this context, turn errors of writing to the cache into a `StoreError` with a remedy.

    Raises:
        StoreError: If the cache cannot be written to.
    """
    try:
        yield
    except OSError as error:
        # numpy's error for a full disk contains only the bytes "requested" and "written".
        no_room = error.errno in _NO_ROOM or "requested and" in str(error)
        if not no_room and not str(error.filename or "").startswith(str(cache_dir())):
            raise  # the error is about a file of the source
        raise StoreError(
            f"{error.filename or cache_dir()}: activations cannot be written ({os_reason(error)}); free some space, or "
            "set SAEVAL_CACHE to another folder, and rerun the same command"
        ) from None


def passes(sources: Mapping[str, Part[ActivationSource]], display: Display) -> list[list[str]]:
    """Return the cells whose stores are not in the cache, grouped by model pass.

    Args:
        sources: Sources by cell name.
        display: Shows messages about damaged stores.
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
    """Acquire and return the lock of a store; the operating system releases it if the process dies.

    Raises:
        StoreError: If the cache cannot be written to.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(path.name + ".lock"))
    with _in_cache():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            display.wait(
                "collect activations: waiting for another saeval process that is collecting the same activations"
            )
            return lock.acquire()
