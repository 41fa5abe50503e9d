"""Connects to the Ray cluster at RAY_ADDRESS, or starts a private one on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from saeval._util import InputError, first_line

log = logging.getLogger("saeval")

_LOOPBACK = "127.0.0.1"
_TOKEN = secrets.token_hex(32)  # one per process, since Ray reads it once
_OURS = {
    # Despite its name, this allows a node to use the loopback address on any system; read when ray is imported.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_SHARED_MEMORY = 200 << 20  # bytes; messages about a latent are small


@contextmanager
def cluster(cpus: int | None) -> Iterator[None]:
    """Within this context, be connected to a cluster: the present one, the one at RAY_ADDRESS, or a new one.

    A new cluster runs on this machine, listens on loopback only, requires a random token, has no dashboard, and reports
    no usage statistics. It stops at the end of the context.

    Args:
        cpus: CPUs of a new cluster; default: all.

    Raises:
        InputError: If Ray is not installed, cannot be reached, or would listen to other machines.
    """
    address = os.environ.get("RAY_ADDRESS")
    with ExitStack() as at_the_end:
        if not address:
            at_the_end.enter_context(
                _environment({"RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or _TOKEN, **_OURS})
            )
        try:
            import ray
        except ImportError:
            raise InputError("run.executor: Ray is not installed; pip install 'saeval[ray]'") from None
        if not ray.is_initialized():
            at_the_end.enter_context(_connected(address=address) if address else _own(cpus))
        yield


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
            os.environ.update({name: before[name]} if name in before else {})


@contextmanager
def _own(cpus: int | None) -> Iterator[None]:
    # A private folder, since Ray's sockets require no token; in /tmp, since their paths must be short.
    folder = tempfile.mkdtemp(prefix="saeval-", dir="/tmp" if Path("/tmp").is_dir() else None)  # noqa: S108
    inside = Path(folder) / "r"  # Ray makes its own folder world-readable, but not the private one around it
    try:
        with (
            _reaped(folder),
            _connected(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=_SHARED_MEMORY,
                _node_ip_address=_LOOPBACK,
                _temp_dir=str(inside),
            ),
        ):
            _refuse_other_interfaces()
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _reaped(folder: str) -> Iterator[None]:
    """Within this context, a separate process cleans up if this one is killed."""
    program = [sys.executable, "-I", str(Path(__file__).with_name("ray_reaper.py")), folder]
    nowhere = subprocess.DEVNULL  # else readers of this process's output would wait for it
    reaper = subprocess.Popen(  # noqa: S603 - a program of saeval
        program, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, start_new_session=True
    )
    try:
        yield
    finally:
        reaper.kill()
        reaper.communicate()


@contextmanager
def _connected(**options: Any) -> Iterator[None]:
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray replaces the handler
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:  # noqa: BLE001 - Ray raises a plain Exception if a start times out
        ray.shutdown()
        line = first_line(error, type(error).__name__)
        raise InputError(
            f"run.executor: no Ray cluster at {options['address']} ({line}); start one (docs/scaling.md), and set "
            "RAY_ADDRESS and RAY_AUTH_TOKEN"
        ) from None
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
        # Ray prints messages about its processes to standard output, which is for results only.
        ray._private.worker.print_to_stdstream = _to_the_log
        yield
    finally:
        ray.shutdown()


def _to_the_log(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    for text in data["lines"]:
        log.info("Ray: %s", text.partition("\n")[0])


def _refuse_other_interfaces() -> None:
    import ray

    address = ray.util.get_node_ip_address()
    if address != _LOOPBACK:
        raise InputError(
            f"run.executor: Ray listens on {address} because this process imported Ray before saeval; import saeval "
            f"first, or start a cluster and set RAY_ADDRESS"
        )
